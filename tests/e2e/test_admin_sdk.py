"""The official SDK administers a gateway: every resource made, read, paged, changed and ended."""

import json
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from openai.resources.admin.organization.organization import Organization

from tests.gateway import Gateway, running_gateway, wait_until

HELLO: Any = [{"role": "user", "content": "Hello!"}]
MODEL = "demo/echo"


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """A gateway with the demo provider, to administer."""
    with running_gateway(tmp_path_factory.mktemp("admin")) as running:
        yield running


@pytest.fixture(scope="module")
def client(gateway: Gateway) -> Iterator[openai.OpenAI]:
    """The SDK with the first admin key, and checking every answer's shape."""
    with openai.OpenAI(
        base_url=gateway.base_url,
        api_key=gateway.api_key,
        admin_api_key=gateway.credentials["admin_key"],
        max_retries=0,
        _strict_response_validation=True,
    ) as made:
        yield made


@pytest.fixture
def organization(client: openai.OpenAI) -> Organization:
    """``client.admin.organization``."""
    return client.admin.organization


@pytest.fixture
def project_id(organization: Organization) -> str:
    """A project of this test's own."""
    return organization.projects.create(name="test").id


def http(gateway: Gateway, method: str, path: str, body: object = None) -> tuple[int, Any]:
    """What the gateway's own extensions answer, which no SDK knows."""
    return http_as(gateway, gateway.credentials["admin_key"], method, path, body)


def http_as(
    gateway: Gateway, key: str, method: str, path: str, body: object = None
) -> tuple[int, Any]:
    """The same with another key."""
    request = urllib.request.Request(
        f"{gateway.base_url}{path}",
        method=method,
        data=None if body is None else json.dumps(body).encode(),
        headers={"authorization": f"Bearer {key}", "content-type": "application/json"},
    )
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def chat_status(gateway: Gateway, key: str) -> str:
    """How a chat call with this key ends: ``ok`` or the error's code."""
    with openai.OpenAI(base_url=gateway.base_url, api_key=key, max_retries=0) as caller:
        try:
            caller.chat.completions.create(model=MODEL, messages=HELLO)
        except openai.APIStatusError as error:
            return str(error.code)
    return "ok"


def test_a_project_lives_from_its_making_to_its_archive(
    organization: Organization, gateway: Gateway
) -> None:
    made = organization.projects.create(name="one", residency="EU_STORAGE_PROCESSING")
    assert (made.name, made.status, made.residency) == ("one", "active", "EU_STORAGE_PROCESSING")
    assert organization.projects.retrieve(made.id) == made
    assert organization.projects.update(made.id, name="two").name == "two"
    _, key = http(gateway, "POST", f"/organization/projects/{made.id}/api_keys", {"name": "k"})
    # Nobody says where the demo is, so no data that must stay in Europe goes there.
    assert chat_status(gateway, key["value"]) == "data_policy"
    ended = organization.projects.archive(made.id)
    assert ended.status == "archived"
    assert ended.archived_at
    wait_until(lambda: chat_status(gateway, key["value"]) == "invalid_api_key", 1.0, "the end")
    assert made.id not in {project.id for project in organization.projects.list()}
    everything = organization.projects.list(include_archived=True)
    assert made.id in {project.id for project in everything}
    with pytest.raises(openai.ConflictError):
        organization.projects.update(made.id, name="three")


def test_pages_show_every_project_once(organization: Organization) -> None:
    made = [organization.projects.create(name=f"page {n}").id for n in range(5)]
    listed = [project.id for project in organization.projects.list(limit=2)]
    assert listed[:5] == made[::-1]
    assert len(listed) == len(set(listed))
    first = organization.projects.list(limit=2)
    assert (len(first.data), first.has_more, first.last_id) == (2, True, made[-2])


def test_an_admin_key_lives_from_its_making_to_its_end(
    organization: Organization, gateway: Gateway
) -> None:
    made = organization.admin_api_keys.create(name="ci", expires_in_seconds=3600)
    assert made.value.startswith("sk-og-admin-")
    assert made.expires_at == made.created_at + 3600
    found = organization.admin_api_keys.retrieve(made.id)
    assert found.redacted_value in f"{made.value[:16]}…{made.value[-4:]}"
    assert made.id in {key.id for key in organization.admin_api_keys.list(limit=1, order="asc")}
    with openai.OpenAI(base_url=gateway.base_url, api_key="", admin_api_key=made.value) as other:
        assert other.admin.organization.projects.list().data
    gone = organization.admin_api_keys.delete(made.id)
    assert (gone.id, gone.deleted) == (made.id, True)
    with pytest.raises(openai.NotFoundError):
        organization.admin_api_keys.retrieve(made.id)
    status, answer = http_as(gateway, made.value, "GET", "/organization/projects")
    assert (status, answer["error"]["code"]) == (401, "invalid_api_key")


def test_a_project_key_is_made_with_all_that_it_is_held_to(
    organization: Organization, gateway: Gateway, project_id: str
) -> None:
    wanted = {
        "name": "service",
        "expires_in_seconds": 60,
        "models": ["openai/*"],
        "tags": {"team": "search"},
        "scopes": ["model.request"],
        "limits": [{"meter": "requests", "amount": 5, "window_seconds": 60}],
    }
    path = f"/organization/projects/{project_id}/api_keys"
    status, made = http(gateway, "POST", path, wanted)
    assert status == 200
    assert made["limits"] == [
        {"meter": "requests", "amount": 5, "window_seconds": 60, "model": None}
    ]
    assert chat_status(gateway, made["value"]) == "model_forbidden"
    keys = organization.projects.api_keys
    found = keys.retrieve(made["id"], project_id=project_id)
    assert (found.name, found.expires_at) == ("service", found.created_at + 60)
    assert [key.id for key in keys.list(project_id)] == [made["id"]]
    changed = keys.update(
        made["id"], project_id=project_id, expires_in_seconds=3600, scopes=["api.all.read"]
    )
    assert changed.expires_at is not None
    assert changed.expires_at >= found.created_at + 3600
    assert keys.delete(made["id"], project_id=project_id).deleted
    with pytest.raises(openai.NotFoundError):
        keys.retrieve(made["id"], project_id=project_id)


def test_a_key_is_not_found_through_another_project(
    organization: Organization, gateway: Gateway, project_id: str
) -> None:
    other = organization.projects.create(name="other").id
    _, made = http(gateway, "POST", f"/organization/projects/{other}/api_keys", {"name": "k"})
    with pytest.raises(openai.NotFoundError):
        organization.projects.api_keys.delete(made["id"], project_id=project_id)
    assert chat_status(gateway, made["value"]) == "ok"


@pytest.mark.parametrize(
    ("method", "path", "body", "param"),
    [
        ("POST", "/organization/projects", {"name": "x", "id": "proj_mine"}, "id"),
        (
            "POST",
            "/organization/projects",
            {"name": "x", "organization_id": "o"},
            "organization_id",
        ),
        ("POST", "/organization/projects", {"name": 1}, "name"),
        ("POST", "/organization/projects", {}, "name"),
        ("POST", "/organization/admin_api_keys", {"name": "x", "role": "owner"}, "role"),
        ("POST", "/organization/admin_api_keys", {"name": "x", "scopes": ["all"]}, "scopes"),
        ("GET", "/organization/projects?limit=many", None, "limit"),
        ("GET", "/organization/projects?archived=true", None, "archived"),
        ("GET", "/organization/projects?after=nobody", None, "after"),
    ],
)
def test_a_field_that_is_not_there_to_be_set_is_refused_by_name(
    gateway: Gateway, method: str, path: str, body: object, param: str
) -> None:
    status, answer = http(gateway, method, path, body)
    assert (status, answer["error"]["param"]) == (400, param)


def test_a_route_that_is_not_there_is_said_in_openais_shape(gateway: Gateway) -> None:
    assert http(gateway, "GET", "/organization/nothing")[0] == 404
    status, answer = http(gateway, "DELETE", "/organization/projects")
    assert (status, answer["error"]["code"]) == (405, "method_not_allowed")


def test_a_service_account_brings_a_key_and_takes_it_away(
    organization: Organization, gateway: Gateway, project_id: str
) -> None:
    accounts = organization.projects.service_accounts
    made = accounts.create(project_id, name="bot", expires_in_seconds=60)
    assert (made.role, made.api_key is not None) == ("member", True)
    assert made.api_key is not None
    assert chat_status(gateway, made.api_key.value) == "ok"
    key = organization.projects.api_keys.retrieve(made.api_key.id, project_id=project_id)
    assert key.owner.service_account is not None
    assert key.owner.service_account.id == made.id
    second = accounts.api_keys.create(made.id, project_id=project_id, name="second")
    assert chat_status(gateway, second.value) == "ok"
    changed = accounts.update(made.id, project_id=project_id, name="robot", role="owner")
    assert changed == accounts.retrieve(made.id, project_id=project_id)
    assert (changed.name, changed.role) == ("robot", "owner")
    bare = accounts.create(project_id, name="bare", create_service_account_only=True)
    assert (bare.role, bare.api_key) == ("none", None)
    assert [row.id for row in accounts.list(project_id, limit=1)] == [bare.id, made.id]
    assert accounts.delete(made.id, project_id=project_id).deleted
    for value in (made.api_key.value, second.value):
        assert chat_status(gateway, value) == "invalid_api_key"
    with pytest.raises(openai.NotFoundError):
        accounts.retrieve(made.id, project_id=project_id)


def test_a_projects_models_are_narrowed_and_widened_for_its_keys(
    organization: Organization, gateway: Gateway, project_id: str
) -> None:
    account = organization.projects.service_accounts.create(project_id, name="bot")
    assert account.api_key is not None
    key = account.api_key.value
    assert chat_status(gateway, key) == "ok"
    models = organization.projects.model_permissions
    set_to = models.update(project_id, mode="allow_list", model_ids=["openai/*"])
    assert set_to.to_dict()["model_ids"] == ["openai/*"]
    assert models.retrieve(project_id) == set_to
    wait_until(lambda: chat_status(gateway, key) == "model_forbidden", 1.0, "the narrowing")
    models.update(project_id, mode="allow_list", model_ids=["echo"])
    wait_until(lambda: chat_status(gateway, key) == "ok", 1.0, "the widening by a bare name")
    models.update(project_id, mode="deny_list", model_ids=["demo/*"])
    wait_until(lambda: chat_status(gateway, key) == "model_forbidden", 1.0, "the denial")
    models.update(project_id, mode="allow_list", model_ids=[])
    assert chat_status(gateway, key) == "model_forbidden"
    assert models.delete(project_id).deleted
    wait_until(lambda: chat_status(gateway, key) == "ok", 1.0, "the freedom")


def test_a_projects_rate_limit_holds_for_all_its_keys_together(
    organization: Organization, gateway: Gateway, project_id: str
) -> None:
    accounts = organization.projects.service_accounts
    values = [accounts.create(project_id, name=name).api_key for name in ("a", "b")]
    one, two = [key.value for key in values if key is not None]
    limits = organization.projects.rate_limits
    set_to = limits.update_rate_limit(
        "rl-demo/*", project_id=project_id, max_requests_per_1_minute=2
    )
    assert (set_to.id, set_to.model, set_to.max_requests_per_1_minute) == (
        "rl-demo/*",
        "demo/*",
        2,
    )
    assert [limit.id for limit in limits.list_rate_limits(project_id)] == ["rl-demo/*"]
    assert [chat_status(gateway, key) for key in (one, two)] == ["ok", "ok"]
    assert [chat_status(gateway, key) for key in (one, two)] == ["rate_limit_exceeded"] * 2
    limits.update_rate_limit("rl-*", project_id=project_id, max_requests_per_1_day=0)
    listed = limits.list_rate_limits(project_id, limit=1)
    assert [limit.id for limit in listed] == ["rl-*", "rl-demo/*"]
    with pytest.raises(openai.NotFoundError):
        limits.update_rate_limit("gpt-5", project_id=project_id, max_requests_per_1_minute=2)


def test_data_retention_is_kept_for_the_organisation_and_its_projects(
    organization: Organization, project_id: str
) -> None:
    changed = organization.data_retention.update(retention_type="zero_data_retention")
    assert organization.data_retention.retrieve() == changed
    own = organization.projects.data_retention
    assert own.retrieve(project_id).type == "organization_default"
    own.update(project_id, retention_type="enhanced_zero_data_retention")
    assert own.retrieve(project_id).type == "enhanced_zero_data_retention"
    with pytest.raises(openai.BadRequestError):
        own.update(project_id, retention_type="forever")  # type: ignore[arg-type]


def test_a_key_is_rotated_disabled_and_used_through_rest(
    organization: Organization, gateway: Gateway, project_id: str
) -> None:
    path = f"/organization/projects/{project_id}/api_keys"
    _, made = http(gateway, "POST", path, {"name": "ci", "networks": ["127.0.0.0/8"]})
    own = f"{path}/{made['id']}"
    status, rotated = http(gateway, "POST", f"{own}/rotate", {"grace_seconds": 3600})
    assert (status, rotated["id"]) == (200, made["id"])
    for value in (made["value"], rotated["value"]):
        wait_until(lambda value=value: chat_status(gateway, value) == "ok", 5.0, "both")
    assert http(gateway, "POST", f"{own}/disable")[1]["status"] == "disabled"
    wait_until(lambda: chat_status(gateway, rotated["value"]) == "key_disabled", 5.0, "the stop")
    status, answer = http_as(gateway, made["value"], "GET", "/models")
    assert (status, answer["error"]["type"]) == (401, "authentication_error")
    http(gateway, "POST", f"{own}/enable")
    wait_until(lambda: chat_status(gateway, rotated["value"]) == "ok", 5.0, "the start")
    http(gateway, "POST", f"{own}/rotate", {"grace_seconds": 0})
    for value in (made["value"], rotated["value"]):
        wait_until(lambda value=value: chat_status(gateway, value) == "invalid_api_key", 5.0, "end")
    keys = organization.projects.api_keys

    def used() -> bool:
        return keys.retrieve(made["id"], project_id=project_id).last_used_at is not None

    wait_until(used, 30.0, "the report of a use")
    http(gateway, "POST", own, {"networks": ["10.0.0.0/8"]})
    _, third = http(gateway, "POST", f"{own}/rotate", {"grace_seconds": 0})
    assert chat_status(gateway, third["value"]) == "address_forbidden"


def test_limits_of_a_key_and_of_the_organisation_are_in_openais_shape(
    gateway: Gateway, project_id: str
) -> None:
    path = f"/organization/projects/{project_id}/api_keys"
    _, key = http(gateway, "POST", path, {"name": "ci"})
    for place in ("/organization/rate_limits", f"{path}/{key['id']}/rate_limits"):
        body = {"max_requests_per_1_minute": 1000, "max_concurrent_calls": 50}
        status, limit = http(gateway, "POST", f"{place}/rl-demo%2F*", body)
        assert (status, limit["model"], limit["max_concurrent_calls"]) == (200, "demo/*", 50)
        assert [row["id"] for row in http(gateway, "GET", place)[1]["data"]] == ["rl-demo/*"]
        assert http(gateway, "DELETE", f"{place}/rl-demo%2F*")[1]["deleted"]
        assert http(gateway, "DELETE", f"{place}/rl-demo%2F*")[0] == 404
    status, answer = http(
        gateway, "POST", "/organization/key_policy", {"max_key_lifetime_seconds": 60}
    )
    assert (status, answer["max_key_lifetime_seconds"]) == (200, 60)
    status, answer = http(gateway, "POST", path, {"name": "x", "expires_in_seconds": 61})
    assert (status, answer["error"]["param"]) == (400, "expires_in_seconds")
    http(gateway, "POST", "/organization/key_policy", {"max_key_lifetime_seconds": 0})
