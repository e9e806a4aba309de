"""Auth as its callers see it, over real sockets."""

import asyncio
import logging
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx2
import pytest

from onegate.auth.v1 import (
    grant_pb2,
    grant_service_pb2,
    key_service_pb2,
    project_service_pb2,
)
from onegate.common.v1 import error_pb2
from runtime import apikeys
from runtime.config import TelemetrySettings
from runtime.errors import GatewayError, reason_name
from runtime.rpc import OPERATOR_KEY, unary
from runtime.sql import open_database
from services.auth.server import run
from tests.gateway import free_port
from tests.services.auth.ports import ENTROPY, NOON, SteppedClock, auth_settings
from tests.services.auth.serving import OPERATOR, TOKEN, Peer, auth, bearer, settings_of
from tests.services.auth.test_store import second_organization
from tests.services.auth.test_watch import ShakyStore

pytestmark = pytest.mark.anyio

NOBODYS_PROJECT_KEY = apikeys.mint(grant_pb2.KEY_KIND_PROJECT, ENTROPY)
NOBODYS_ADMIN_KEY = apikeys.mint(grant_pb2.KEY_KIND_ADMIN, ENTROPY)


def calls_of(peer: Peer, key_id: str = "key_x") -> list[tuple[Any, Any]]:
    """Every administrative method with a request that would be served."""
    return [
        (peer.keys.CreateKey, key_service_pb2.CreateKeyRequest(name="x")),
        (peer.keys.GetKey, key_service_pb2.GetKeyRequest(id=key_id)),
        (peer.keys.ListKeys, key_service_pb2.ListKeysRequest()),
        (peer.keys.RevokeKey, key_service_pb2.RevokeKeyRequest(id=key_id)),
        (peer.projects.CreateProject, project_service_pb2.CreateProjectRequest(name="x")),
        (peer.projects.ListProjects, project_service_pb2.ListProjectsRequest()),
    ]


async def refusal(method: Any, request: Any, metadata: Any = OPERATOR) -> GatewayError:
    """How a call is refused."""
    with pytest.raises(GatewayError) as caught:
        await unary(method, request, timeout_s=5, metadata=metadata)
    return caught.value


async def grant_of(peer: Peer, key: str) -> grant_pb2.Grant:
    """What auth says of a key."""
    request = grant_service_pb2.GetGrantRequest(key_digest=apikeys.digest(key))
    return (await unary(peer.grants.GetGrant, request, timeout_s=5)).grant


@pytest.mark.parametrize("tcp", [False, True], ids=["unix", "tcp"])
async def test_a_key_lives_from_its_making_to_its_revocation(tmp_path: Path, tcp: bool) -> None:
    async with auth(tmp_path, tcp=tcp) as at:
        value, key = await at.create(
            name="ci",
            expires_in_seconds=3600,
            models_allowed=["openai/*"],
            tags={"team": "a"},
            rate_limits=[
                grant_pb2.RateLimit(meter=grant_pb2.RATE_METER_REQUESTS, amount=5, window_s=60)
            ],
        )
        assert apikeys.kind_of(value) == grant_pb2.KEY_KIND_PROJECT
        assert key.redacted_value == apikeys.redact(value)
        assert key.project_id == at.first.project_id
        grant = await grant_of(at, value)
        assert (grant.key_id, grant.name, grant.version) == (key.id, "ci", key.version)
        assert list(grant.models_allowed) == ["openai/*"]
        assert grant.expires_at == key.expires_at
        assert [limit.amount for limit in grant.rate_limits] == [5]
        ended = await at.revoke(key.id)
        assert ended.HasField("revoked_at")
        assert ended.version > key.version
        with pytest.raises(GatewayError) as caught:
            await grant_of(at, value)
        assert caught.value.reason == error_pb2.ERROR_REASON_INVALID_API_KEY


async def test_the_first_keys_work(tmp_path: Path) -> None:
    async with auth(tmp_path) as at:
        assert (await grant_of(at, at.first.api_key)).project_id == at.first.project_id
        admin = await grant_of(at, at.first.admin_key)
        assert (admin.kind, list(admin.scopes)) == (grant_pb2.KEY_KIND_ADMIN, ["admin"])


async def test_an_expired_key_has_a_grant_and_the_reader_decides(tmp_path: Path) -> None:
    clock = SteppedClock()
    async with auth(tmp_path, clock=clock) as at:
        value, _ = await at.create(expires_in_seconds=60)
        clock.passed_s = 3600
        grant = await grant_of(at, value)
        assert grant.expires_at.ToDatetime(NOON.tzinfo) == NOON + timedelta(seconds=60)


async def test_a_digest_has_thirty_two_bytes(tmp_path: Path) -> None:
    async with auth(tmp_path) as at:
        request = grant_service_pb2.GetGrantRequest(key_digest=b"short")
        error = await refusal(at.grants.GetGrant, request)
        assert (reason_name(error.reason), error.param) == ("invalid_request", "key_digest")


CREDENTIALS = {
    "nothing": ((), "invalid_api_key"),
    "a wrong operator token": (((OPERATOR_KEY, TOKEN + "x"),), "invalid_api_key"),
    "an empty operator token": (((OPERATOR_KEY, ""),), "invalid_api_key"),
    "a text that is no key": (bearer("sk-proj-abc"), "invalid_api_key"),
    "another scheme": ((("authorization", f"Basic {NOBODYS_ADMIN_KEY}"),), "invalid_api_key"),
    "a project key that nobody has": (bearer(NOBODYS_PROJECT_KEY), "scope_missing"),
    "an admin key that nobody has": (bearer(NOBODYS_ADMIN_KEY), "invalid_api_key"),
}


@pytest.mark.parametrize("credential", CREDENTIALS)
async def test_nobody_administers_without_a_credential(tmp_path: Path, credential: str) -> None:
    metadata, expected = CREDENTIALS[credential]
    async with auth(tmp_path) as at:
        for method, request in calls_of(at):
            error = await refusal(method, request, metadata)
            assert reason_name(error.reason) == expected


async def test_a_wrong_operator_token_is_not_saved_by_a_good_admin_key(tmp_path: Path) -> None:
    async with auth(tmp_path) as at:
        metadata = ((OPERATOR_KEY, "wrong"), *bearer(at.first.admin_key))
        error = await refusal(*calls_of(at)[2], metadata)
        assert reason_name(error.reason) == "invalid_api_key"


async def test_a_project_key_administers_nothing(tmp_path: Path) -> None:
    async with auth(tmp_path) as at:
        for method, request in calls_of(at):
            error = await refusal(method, request, bearer(at.first.api_key))
            assert reason_name(error.reason) == "scope_missing"


async def test_an_ended_admin_key_administers_nothing(tmp_path: Path) -> None:
    clock = SteppedClock()
    async with auth(tmp_path, clock=clock) as at:
        revoked, key = await at.create(kind=grant_pb2.KEY_KIND_ADMIN)
        await at.revoke(key.id)
        expired, _ = await at.create(kind=grant_pb2.KEY_KIND_ADMIN, expires_in_seconds=5)
        clock.passed_s = 5
        for method, request in calls_of(at):
            error = await refusal(method, request, bearer(revoked))
            assert reason_name(error.reason) == "invalid_api_key"
            error = await refusal(method, request, bearer(expired))
            assert reason_name(error.reason) == "key_expired"


@pytest.mark.parametrize("who", ["operator", "admin"])
async def test_the_operator_and_an_admin_key_administer(tmp_path: Path, who: str) -> None:
    async with auth(tmp_path) as at:
        metadata = OPERATOR if who == "operator" else bearer(at.first.admin_key)
        _, key = await at.create()
        for method, request in calls_of(at, key.id):
            await unary(method, request, timeout_s=5, metadata=metadata)


async def test_an_admin_key_sees_its_own_organisation_alone(tmp_path: Path) -> None:
    async with auth(tmp_path) as at:
        _, foreign_project = await second_organization(tmp_path)
        _, foreign = await at.create(project_id=foreign_project)
        own = bearer(at.first.admin_key)
        for method, request in [
            (at.keys.GetKey, key_service_pb2.GetKeyRequest(id=foreign.id)),
            (at.keys.RevokeKey, key_service_pb2.RevokeKeyRequest(id=foreign.id)),
            (
                at.keys.CreateKey,
                key_service_pb2.CreateKeyRequest(name="x", project_id=foreign_project),
            ),
        ]:
            error = await refusal(method, request, own)
            assert reason_name(error.reason) == "not_found"
        listed = await unary(
            at.keys.ListKeys, key_service_pb2.ListKeysRequest(), timeout_s=5, metadata=own
        )
        assert {key.organization_id for key in listed.keys} == {at.first.organization_id}
        assert len(listed.keys) == 2


async def test_what_is_not_there_is_not_found(tmp_path: Path) -> None:
    async with auth(tmp_path) as at:
        for method, request in (calls_of(at)[1], calls_of(at)[3]):
            error = await refusal(method, request)
            assert (reason_name(error.reason), error.param) == ("not_found", "id")


async def test_keys_are_listed_page_by_page(tmp_path: Path) -> None:
    async with auth(tmp_path) as at:
        made = [(await at.create(name=f"k{n}"))[1].id for n in range(5)]
        seen: list[str] = []
        token = ""
        while True:
            request = key_service_pb2.ListKeysRequest(page_size=2, page_token=token)
            listed = await unary(at.keys.ListKeys, request, timeout_s=5, metadata=OPERATOR)
            seen += [key.id for key in listed.keys]
            token = listed.next_page_token
            if not token:
                break
        assert seen[:5] == made[::-1]
        assert len(seen) == 7


async def test_projects_are_made_and_listed_page_by_page(tmp_path: Path) -> None:
    async with auth(tmp_path) as at:
        request = project_service_pb2.CreateProjectRequest(name=" second ")
        made = await unary(at.projects.CreateProject, request, timeout_s=5, metadata=OPERATOR)
        assert (made.project.name, made.project.organization_id) == (
            "second",
            at.first.organization_id,
        )
        names = []
        token = ""
        for _ in range(2):
            page = project_service_pb2.ListProjectsRequest(page_size=1, page_token=token)
            listed = await unary(at.projects.ListProjects, page, timeout_s=5, metadata=OPERATOR)
            names += [project.name for project in listed.projects]
            token = listed.next_page_token
        assert (names, token) == (["second", "default"], "")


@pytest.mark.parametrize(
    ("fields", "param"),
    [({"page_size": -1}, "page_size"), ({"page_token": "1; DROP TABLE keys"}, "page_token")],
)
async def test_a_page_is_asked_for_properly(
    tmp_path: Path, fields: dict[str, Any], param: str
) -> None:
    async with auth(tmp_path) as at:
        error = await refusal(at.keys.ListKeys, key_service_pb2.ListKeysRequest(**fields))
        assert (reason_name(error.reason), error.param) == ("invalid_request", param)


async def test_a_bad_field_is_refused_by_name_across_the_wire(tmp_path: Path) -> None:
    async with auth(tmp_path) as at:
        request = key_service_pb2.CreateKeyRequest(name="x", models_allowed=["open ai"])
        error = await refusal(at.keys.CreateKey, request)
        assert (reason_name(error.reason), error.param) == ("invalid_request", "models_allowed[0]")
        project = project_service_pb2.CreateProjectRequest(name="\x07")
        assert (await refusal(at.projects.CreateProject, project)).param == "name"


async def test_a_repeated_request_shows_no_secret_twice(tmp_path: Path) -> None:
    async with auth(tmp_path) as at:
        value, key = await at.create(request_id="r1")
        again, same = await at.create(request_id="r1")
        assert value
        assert again == ""
        assert same == key
        request = key_service_pb2.CreateKeyRequest(name="other", request_id="r1")
        error = await refusal(at.keys.CreateKey, request)
        assert reason_name(error.reason) == "idempotency_mismatch"


async def test_no_secret_is_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    async with auth(tmp_path) as at:
        value, key = await at.create()
        await grant_of(at, value)
        await at.revoke(key.id)
        await refusal(*calls_of(at)[0], bearer(at.first.api_key))
        secrets = [value, at.first.admin_key, at.first.api_key, TOKEN]
        secrets.append(at.identity.pepper.reveal())
    assert key.id in caplog.text
    for secret in secrets:
        assert secret[-20:] not in caplog.text


async def test_a_change_is_kept_even_when_watchers_cannot_be_told_at_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with auth(tmp_path) as at:
        shaky = ShakyStore(open_database(auth_settings(tmp_path).dsn))
        at.feed._store = shaky
        shaky.away = True
        value, key = await at.create()
        await at.revoke(key.id)
        assert "will learn of a change later" in caplog.text
        with pytest.raises(GatewayError):
            await grant_of(at, value)
        shaky.away = False
        await shaky.close()


async def test_the_service_runs_until_it_is_stopped(tmp_path: Path) -> None:
    stop, ready = asyncio.Event(), asyncio.Event()
    address = f"127.0.0.1:{free_port()}"
    settings = replace(settings_of(tmp_path), telemetry=TelemetrySettings(metrics_address=address))
    running = asyncio.create_task(run(settings, stop=stop, ready=ready.set))
    async with asyncio.timeout(10):
        await ready.wait()
    peer = Peer(f"unix:{tmp_path}/auth.sock")
    # Nobody has set this service up: its operator can make keys nevertheless.
    value, _ = await peer.create()
    assert (await grant_of(peer, value)).project_id
    watch = peer.grants.WatchGrants(grant_service_pb2.WatchGrantsRequest())
    await watch.read()
    async with httpx2.AsyncClient() as http:
        page = (await http.get(f"http://{address}/metrics")).text
    assert "onegate_auth_watchers 1.0" in page
    stop.set()
    async with asyncio.timeout(3):
        await running
    await peer.channel.close()


async def test_an_address_that_cannot_be_listened_on_is_said(tmp_path: Path) -> None:
    settings = settings_of(tmp_path)
    nowhere = replace(settings.auth, listen=f"unix:{tmp_path}/operator.token/auth.sock")
    with pytest.raises(OSError, match="cannot listen"):
        await run(replace(settings, auth=nowhere), stop=asyncio.Event(), ready=lambda: None)
