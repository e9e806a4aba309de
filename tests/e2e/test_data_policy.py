"""A data policy from the administrator's hand to the usage row, through a whole gateway; and what a
dry run and ``onegate policy explain`` say of it.
"""

import asyncio
import json
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from onegate.common.v1 import content_pb2
from onegate.router.v1 import chat_pb2, explain_service_pb2, explain_service_pb2_grpc, plan_pb2
from runtime.config import RpcSettings
from runtime.errors import GatewayError, reason_name
from runtime.rpc import channel, unary
from tests.fake_provider import FakeProvider, running_in_thread
from tests.gateway import Gateway, running_gateway, wait_until

CONFIG = """
[[provider]]
name = "far"
kind = "compatible"
base_url = "{far}"
models = ["m"]
free = true
region = ["us"]
retention_days = 30
trains = true

[[provider]]
name = "near"
kind = "compatible"
base_url = "{near}"
models = ["m"]
free = true
region = ["de"]
retention_days = 0
"""


@pytest.fixture(scope="module")
def far() -> Iterator[FakeProvider]:
    with running_in_thread(FakeProvider(models=("m",))) as provider:
        yield provider


@pytest.fixture(scope="module")
def near() -> Iterator[FakeProvider]:
    with running_in_thread(FakeProvider(models=("m",))) as provider:
        yield provider


@pytest.fixture(scope="module")
def gateway(
    tmp_path_factory: pytest.TempPathFactory, far: FakeProvider, near: FakeProvider
) -> Iterator[Gateway]:
    config = CONFIG.format(far=far.base_url, near=near.base_url)
    with running_gateway(tmp_path_factory.mktemp("policy"), config) as running:
        yield running


def ask(
    gateway: Gateway, key: str, path: str, body: object | None = None, **headers: str
) -> tuple[int, dict[str, Any]]:
    """Status and JSON of one request."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    request = urllib.request.Request(
        f"{gateway.base_url}{path}",
        data=None if body is None else json.dumps(body).encode(),
        headers={"authorization": f"Bearer {key}", "content-type": "application/json", **named},
    )
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.status, json.loads(answer.read())
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read())


def hello(*models: str, **fields: Any) -> dict[str, Any]:
    """A small call."""
    return {"models": models, "messages": [{"role": "user", "content": "Hi"}], **fields}


def test_a_data_policy_holds_from_the_administrator_to_the_usage_row(
    gateway: Gateway, far: FakeProvider, near: FakeProvider
) -> None:
    admin, key = gateway.credentials["admin_key"], gateway.api_key
    chat = "/chat/completions"
    demand = {"data_class": "internal", "regions": ["EU"], "retention_days_max": 0}
    status, policy = ask(
        gateway, admin, "/organization/data_policy", {"demands": [demand | {"no_training": True}]}
    )
    assert status == 200, policy
    assert policy["effective"]["rules"][0]["regions"] == ["eu"]
    version = policy["effective"]["version"]
    assert ask(gateway, admin, "/organization/data_policy")[1] == policy

    def refused() -> bool:
        status, said = ask(gateway, key, chat, hello("far/m"), x_onegate_data_class="internal")
        return status == 403 and said["error"]["code"] == "data_policy"

    wait_until(refused, what="the policy at the router")
    calls = len(far.chats)
    _, said = ask(gateway, key, chat, hello("far/m"), x_onegate_data_class="internal")
    assert "the organisation demands processing in eu (it is us)" in said["error"]["message"]
    assert said["error"]["metadata"]["excluded"][0]["model"] == "far/m"
    both = hello("far/m", "near/m")
    status, said = ask(gateway, key, chat, both, x_onegate_data_class="confidential")
    assert status == 200, said
    assert len(far.chats) == calls
    status, _ = ask(gateway, key, chat, both)
    assert status == 200
    assert len(far.chats) == calls + 1
    status, said = ask(gateway, key, chat, both | {"provider": {"zdr": True}})
    assert status == 200
    assert len(far.chats) == calls + 1
    status, said = ask(gateway, key, chat, both, x_onegate_data_class="secret")
    assert (status, said["error"]["param"]) == (400, "x-onegate-data-class")

    def proofs() -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = json.loads(gateway.cli("usage", "-o", "json"))
        return [row for row in rows if row["data_class"] == "confidential"]

    wait_until(lambda: len(proofs()) == 1, what="the usage row")
    (row,) = proofs()
    assert (row["model"], row["data_policy_version"]) == ("near/m", version)
    assert (row["data_regions"], row["data_retention_days"]) == ("de", 0)


def test_the_models_that_no_call_could_reach_are_hidden(gateway: Gateway) -> None:
    made = gateway.cli("keys", "create", "--name", "walled", "-o", "json")
    key = json.loads(made)
    secret, key_id = key["value"], key["id"]
    assert {m["id"] for m in ask(gateway, secret, "/models")[1]["data"]} == {"far/m", "near/m"}
    gateway.cli("policy", "set", "--key", key_id, "--no-training")

    def seen() -> set[str]:
        return {model["id"] for model in ask(gateway, secret, "/models")[1]["data"]}

    wait_until(lambda: seen() == {"near/m"}, what="the hidden model")
    assert ask(gateway, secret, "/models/far/m")[0] == 404
    shown = ask(gateway, secret, "/models/near/m")[1]["data_policy"]
    assert shown == {"region": "de", "regions": ["de"], "retention_days": 0, "training": None}
    policy = json.loads(gateway.cli("policy", "show", "--key", key_id, "-o", "json"))
    assert [rule["level"] for rule in policy["rules"]][-1] == "key"
    assert "no training" in gateway.cli("policy", "show", "--key", key_id)
    gateway.cli("policy", "set", "--key", key_id)
    wait_until(lambda: seen() == {"far/m", "near/m"}, what="the model that is back")


def test_a_dry_run_answers_with_the_plan_and_calls_nobody(
    gateway: Gateway, far: FakeProvider, near: FakeProvider
) -> None:
    calls = len(far.chats), len(near.chats)
    body = hello("near/m", "far/m", "far/none", provider={"zdr": True}, stream=True)
    status, plan = ask(
        gateway, gateway.api_key, "/chat/completions", body, x_onegate_dry_run="true"
    )
    assert status == 200, plan
    assert (plan["object"], plan["order"], plan["refusal"]) == ("onegate.plan", ["near/m"], None)
    by_model = {one["model"]: one for one in plan["considered"]}
    refusing = [v for v in by_model["far/m"]["verdicts"] if v["verdict"] == "refuse"]
    assert [(v["rule"], v["reason"]) for v in refusing] == [("data", "data_policy")]
    assert by_model["far/none"]["verdicts"][0]["reason"] == "model_not_found"
    status, plan = ask(
        gateway, gateway.api_key, "/chat/completions", hello("far/none"), x_onegate_dry_run="true"
    )
    assert (status, plan["order"]) == (200, [])
    assert plan["refusal"]["code"] == "model_not_found"
    status, _ = ask(gateway, gateway.api_key, "/chat/completions", body, x_onegate_dry_run="yes")
    assert status == 400
    assert (len(far.chats), len(near.chats)) == calls


def explain(
    gateway: Gateway, key_id: str, metadata: list[tuple[str, str]], *models: str
) -> plan_pb2.Plan:
    """What a router answers to an internal caller."""
    text = content_pb2.Part(text=content_pb2.TextPart(text="Hi"))
    request = explain_service_pb2.ExplainChatRequest(
        key_id=key_id,
        request=chat_pb2.ChatRequest(
            model=models[0],
            messages=[content_pb2.Message(role=content_pb2.ROLE_USER, parts=[text])],
            routing=chat_pb2.RoutingPreferences(fallback_models=models[1:]),
        ),
    )

    async def call() -> plan_pb2.Plan:
        target = f"unix:{gateway.data_dir}/run/router-0.sock"
        async with channel(target, RpcSettings()) as line:
            stub = explain_service_pb2_grpc.ExplainServiceStub(line)
            return (await unary(stub.ExplainChat, request, timeout_s=15, metadata=metadata)).plan

    return asyncio.run(call())


def test_an_explanation_is_for_whom_the_key_concerns(gateway: Gateway, tmp_path: Path) -> None:
    made = json.loads(
        gateway.cli("keys", "create", "--name", "narrow", "--models", "near/*", "-o", "json")
    )
    foreign = json.loads(gateway.cli("orgs", "create", "strangers", "-o", "json"))
    models = ("far/m", "near/m")
    bearer = [("authorization", f"Bearer {made['value']}")]
    own = explain(gateway, "", bearer, *models)
    assert [one.model for one in own.considered if one.place] == ["near/m"]
    (far,) = [one for one in own.considered if one.model == "far/m"]
    assert far.verdicts[-1].withheld
    owner = [("authorization", f"Bearer {gateway.credentials['admin_key']}")]
    assert explain(gateway, made["id"], owner, *models) == own
    for metadata in (
        [("authorization", f"Bearer {foreign['admin_key']}")],
        bearer,
        [("x-onegate-operator", "guessed")],
        [],
    ):
        with pytest.raises(GatewayError) as caught:
            explain(gateway, made["id"], metadata, *models)
        assert reason_name(caught.value.reason) in (
            "not_found",
            "scope_missing",
            "invalid_api_key",
        )
    told = gateway.cli("policy", "explain", "--key", made["id"], "--model", "far/m")
    assert "Refused" in told
    assert "withheld" not in told
    arguments = ("policy", "explain", "--key", made["id"], "--model", "far/m", "--model", "near/m")
    plan = json.loads(gateway.cli(*arguments, "-o", "json"))
    assert plan["order"] == ["near/m"]
    gateway.cli("keys", "revoke", made["id"])
    with pytest.raises(GatewayError) as caught:
        explain(gateway, made["id"], owner, *models)
    assert reason_name(caught.value.reason) == "conflict"
