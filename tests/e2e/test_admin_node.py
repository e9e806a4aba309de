"""The official Node SDK walks every administrative resource of a gateway."""

import json
import os
import subprocess
from pathlib import Path

from tests.e2e.test_admin_sdk import gateway
from tests.gateway import Gateway

__all__ = ["gateway"]

NODE = Path(__file__).parent / "node"
ENDED_WITH_AN_ERROR = {
    *("admin_api_keys", "groups", "groups.users", "invites", "projects", "roles", "users"),
    *("projects.api_keys", "projects.data_retention", "projects.groups", "projects.roles"),
    *("projects.model_permissions", "projects.rate_limits", "projects.service_accounts"),
    *("projects.spend_alerts", "projects.spend_limit", "projects.users", "spend_limit"),
}


def test_the_node_client_administers_every_resource(gateway: Gateway) -> None:
    ran = subprocess.run(
        ["node", "admin_walk.mjs"],
        cwd=NODE,
        env={
            **os.environ,
            "BASE_URL": gateway.base_url,
            "API_KEY": gateway.api_key,
            "ADMIN_KEY": gateway.credentials["admin_key"],
        },
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr[-3000:]
    walked = json.loads(ran.stdout)
    assert {name for name, steps in walked.items() if "error" in steps} == ENDED_WITH_AN_ERROR
    assert walked["audit_logs"] == ["page"]
