"""The official Node SDK reads usage and costs; its own declarations say what results are."""

import json
import os
import subprocess

from tests.e2e.test_admin_node import NODE
from tests.e2e.test_usage_sdk import DAY, EMPTY, END, START, Place, place

__all__ = ["place"]

ENDPOINTS = {
    "completions": ("chat.completions", "responses"),
    "embeddings": ("embeddings",),
    "moderations": ("moderations",),
}


def test_the_node_client_reads_every_kind_of_usage(place: Place) -> None:
    ran = subprocess.run(
        ["node", "usage_walk.mjs"],
        cwd=NODE,
        env={
            **os.environ,
            "BASE_URL": place.gateway.base_url,
            "API_KEY": place.gateway.api_key,
            "ADMIN_KEY": place.gateway.credentials["admin_key"],
            "START": str(START),
            "END": str(END),
        },
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr[-3000:]
    walked = json.loads(ran.stdout)
    days = (END - START) // DAY
    assert {sums.pop("pages") for sums in walked.values()} == {-(-days // 2)}
    costs = sum(one.cost_nano_usd for one in place.records)
    assert walked["costs"]["nano_usd"] == costs
    for name, endpoints in ENDPOINTS.items():
        mine = [one for one in place.records if one.endpoint in endpoints]
        assert walked[name]["num_model_requests"] == len(mine)
        assert walked[name]["input_tokens"] == sum(one.tokens.input_tokens for one in mine)
    searches = sum(one.tokens.web_searches for one in place.records)
    assert walked["webSearchCalls"]["num_requests"] == searches
    empty = {name.title().replace("_", "") for name in EMPTY}
    assert all(not sums for name, sums in walked.items() if name[0].upper() + name[1:] in empty)
