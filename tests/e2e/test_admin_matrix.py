"""Every administrative route, called by every role, on what is its own, what is another
organisation's and with no right key at all. No cell is written by hand: what is expected follows
from the table of operations and the roles' permissions.
"""

import itertools
import json
import re
from dataclasses import dataclass, field
from typing import Any

import pytest
from typer.testing import CliRunner

from cli import organizations
from cli.context import CliContext, load
from edge.admin.route import AnyRoute
from edge.admin.table import ROUTES
from services.auth.permissions import OPERATIONS, ORGANIZATION_ROLES, PROJECT_ROLES
from tests.e2e.test_admin_sdk import gateway, http_as
from tests.gateway import Gateway

__all__ = ["gateway"]

ORGANIZATION = "/organization"
CHANNEL = {"type": "email", "recipients": ["ops@example.com"]}
BODIES: dict[str, dict[str, Any]] = {
    "projects.create": {"name": "x"},
    "projects.update": {"name": "x"},
    "admin_api_keys.create": {"name": "x"},
    "api_keys.create": {"name": "x"},
    "service_accounts.create": {"name": "x"},
    "model_permissions.update": {"mode": "deny_list", "model_ids": ["x"]},
    "organization.model_permissions.update": {"mode": "deny_list", "model_ids": ["x"]},
    "data_retention.update": {"retention_type": "zero_data_retention"},
    "projects.data_retention.update": {"retention_type": "none"},
    "data_policy.update": {"demands": []},
    "projects.data_policy.update": {"demands": []},
    "api_keys.data_policy.update": {"demands": []},
    **{
        f"{place}{name}": {
            "currency": "USD",
            "interval": "month",
            "threshold_amount": 1,
            **({"notification_channel": CHANNEL} if "alerts" in name else {}),
        }
        for place in ("", "projects.")
        for name in ("spend_limit.update", "spend_alerts.create", "spend_alerts.update")
    },
    "users.create": {"email": "new@example.com"},
    "projects.users.add": {"user_id": "{user_id}", "role": "member"},
    "invites.create": {"email": "invited@example.com", "role": "reader"},
    "groups.create": {"name": "x"},
    "groups.update": {"name": "x"},
    "groups.users.add": {"user_id": "{user_id}"},
    "projects.groups.add": {"group_id": "{group_id}", "role": "member"},
    "roles.create": {"role_name": "x", "permissions": []},
    "roles.assigned.assign": {"role_id": "{role_id}"},
}
"""The least that a route takes, for those that take anything."""

SINCE = "?start_time=0"
"""Reports are asked for with the time that they begin at."""

ROLES = [
    *(("organization", word) for word in ORGANIZATION_ROLES),
    *(("project", word) for word in PROJECT_ROLES),
]
_NUMBERS = itertools.count()


@dataclass
class Side:
    """An organisation's objects, one of each kind, by the name that paths have for it."""

    gateway: Gateway
    key: str
    ids: dict[str, str] = field(default_factory=dict)

    def post(self, path: str, body: object) -> dict[str, Any]:
        """What its owner makes."""
        status, answer = http_as(self.gateway, self.key, "POST", path, body)
        assert status == 200, answer
        assert isinstance(answer, dict)
        return answer

    def fill(self) -> None:
        """Makes one object of each kind."""
        project = self.ids["project_id"] = self.post(f"{ORGANIZATION}/projects", {"name": "p"})[
            "id"
        ]
        inside = f"{ORGANIZATION}/projects/{project}"
        email = f"m{next(_NUMBERS)}@example.com"
        self.ids |= {
            "key_id": self.post(f"{ORGANIZATION}/admin_api_keys", {"name": "k"})["id"],
            "api_key_id": self.post(f"{inside}/api_keys", {"name": "k"})["id"],
            "service_account_id": self.post(f"{inside}/service_accounts", {"name": "s"})["id"],
            "user_id": self.post(f"{ORGANIZATION}/users", {"email": email})["id"],
            "group_id": self.post(f"{ORGANIZATION}/groups", {"name": "g"})["id"],
            "invite_id": self.post(
                f"{ORGANIZATION}/invites", {"email": f"x{email}", "role": "reader"}
            )["id"],
            "role_id": self.post(
                f"{ORGANIZATION}/roles", {"role_name": f"r{email}", "permissions": []}
            )["id"],
            "alert_id": self.post(f"{ORGANIZATION}/spend_alerts", BODIES["spend_alerts.create"])[
                "id"
            ],
            "rate_limit_id": "rl-*",
        }

    def caller(self, level: str, word: str) -> str:
        """A key of a user with one role and no other right."""
        email = f"c{next(_NUMBERS)}@example.com"
        body = {"email": email, "role": word if level == "organization" else "reader"}
        user_id = self.post(f"{ORGANIZATION}/users", body)["id"]
        if level == "project":
            path = f"{ORGANIZATION}/projects/{self.ids['project_id']}/users"
            self.post(path, {"user_id": user_id, "role": word})
        made = self.post(f"{ORGANIZATION}/admin_api_keys", {"name": "k", "user_id": user_id})
        return str(made["value"])

    def bound(self, template: str) -> str:
        """A text with this side's ids."""
        return re.sub(r"\{(\w+)\}", lambda found: self.ids[found[1]], template)

    def call(self, route: AnyRoute, key: str, place: "Side | None" = None) -> int:
        """The status of one call, on this side's objects or another's."""
        ids = place or self
        path = ids.bound(route.path.removeprefix("/v1"))
        path += SINCE if route.name == "usage.read" else ""
        body = None
        if route.method == "POST":
            fields = BODIES.get(route.name, {})
            body = {n: ids.bound(v) if isinstance(v, str) else v for n, v in fields.items()}
        status, _ = http_as(self.gateway, key, route.method, path, body)
        return status


@pytest.fixture(scope="module")
def foreign(gateway: Gateway) -> Side:
    """Another organisation, with one object of each kind."""
    cli = CliContext(load=lambda: load(None, {"data_dir": str(gateway.data_dir)}))
    ran = CliRunner().invoke(organizations.app, ["create", "foreign", "-o", "json"], obj=cli)
    assert ran.exit_code == 0, ran.output
    side = Side(gateway, json.loads(ran.stdout)["admin_key"])
    side.fill()
    return side


@pytest.fixture
def own(gateway: Gateway) -> Side:
    """This organisation, with one object of each kind."""
    side = Side(gateway, gateway.credentials["admin_key"])
    side.fill()
    return side


def permitted(level: str, word: str, route: AnyRoute) -> bool:
    """What the tables say."""
    permission = OPERATIONS[route.name].permission
    # Everybody reads what an organisation's reader may, whatever else they are in a project.
    held = ORGANIZATION_ROLES[word if level == "organization" else "reader"].permissions
    if level == "project" and "{project_id}" in route.path:
        held |= PROJECT_ROLES[word].permissions
    return permission in held


def test_every_route_names_an_operation_and_every_operation_that_may_be_called_a_route() -> None:
    named = {route.name for route in ROUTES}
    assert named <= set(OPERATIONS)
    operators = {name for name, operation in OPERATIONS.items() if not operation.permission}
    assert set(OPERATIONS) - named == operators
    assert len({(route.method, route.path) for route in ROUTES}) == len(ROUTES)


@pytest.mark.parametrize(("level", "word"), ROLES)
def test_a_role_may_what_the_table_says_on_its_own_and_nothing_elsewhere(
    own: Side, foreign: Side, level: str, word: str
) -> None:
    key = own.caller(level, word)
    wrong = []
    # What ends the project comes last, so that the others find it alive.
    for route in sorted(ROUTES, key=lambda route: route.name == "projects.archive"):
        # A limit's id is a model's name: by itself it is nobody's.
        if set(re.findall(r"\{(\w+)\}", route.path)) - {"rate_limit_id"}:
            status = own.call(route, key, foreign)
            if status not in (403, 404):
                wrong.append(f"foreign {route.name}: {status}")
        status = own.call(route, key)
        if (status == 403) is permitted(level, word, route) or status >= 500 or status == 401:
            wrong.append(f"own {route.name}: {status}")
    assert wrong == []


@pytest.mark.parametrize("key", ["", "garbage", "sk-og-admin-" + "b" * 46])
def test_nobody_may_anything(own: Side, key: str) -> None:
    assert {own.call(route, key) for route in ROUTES} == {401}


def test_a_key_that_calls_models_administers_nothing(own: Side, gateway: Gateway) -> None:
    assert {own.call(route, gateway.api_key) for route in ROUTES} == {403}


def test_what_another_organisation_has_is_in_no_listing(own: Side, foreign: Side) -> None:
    hidden = set(foreign.ids.values()) - {"rl-*"}
    for route in ROUTES:
        if route.method != "GET" or "{" in route.path:
            continue
        path = route.path.removeprefix("/v1")
        path += SINCE if route.name == "usage.read" else ""
        _, answer = http_as(own.gateway, own.key, "GET", path)
        assert not [found for found in hidden if found in str(answer)]
