"""The life of a key after it was made: changed, rotated, disabled, enabled, used, and bound by what
its project and its organisation say of keys.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from onegate.auth.v1 import (
    grant_pb2,
    grant_service_pb2,
    key_policy_service_pb2,
    key_policy_service_pb2_grpc,
    key_service_pb2,
    project_policy_service_pb2,
    project_service_pb2,
    rate_limit_service_pb2,
    rate_limit_service_pb2_grpc,
)
from runtime import apikeys
from runtime.errors import GatewayError, reason_name
from runtime.rpc import unary
from services.auth.administration import ADDRESS_KEY
from tests.services.auth.ports import NOON, SteppedClock
from tests.services.auth.serving import OPERATOR, Auth, auth, bearer

pytestmark = pytest.mark.anyio

DAY_S = 86_400


async def does(method: Any, request: Any, metadata: Any = OPERATOR) -> Any:
    """What the operator, or somebody else, is answered."""
    return await unary(method, request, timeout_s=5, metadata=metadata)


@contextmanager
def refused(reason: str, param: str | None = None) -> Iterator[None]:
    """What is done inside is refused so."""
    with pytest.raises(GatewayError) as caught:
        yield
    assert reason_name(caught.value.reason) == reason, caught.value.message
    if param is not None:
        assert caught.value.param == param


async def grant_of(at: Auth, value: str) -> grant_pb2.Grant:
    request = grant_service_pb2.GetGrantRequest(key_digest=apikeys.digest(value))
    answer: grant_service_pb2.GetGrantResponse = await does(at.grants.GetGrant, request)
    return answer.grant


async def rotate(at: Auth, key_id: str, **fields: Any) -> tuple[str, key_service_pb2.Key]:
    request = key_service_pb2.RotateKeyRequest(id=key_id, **fields)
    made: key_service_pb2.RotateKeyResponse = await does(at.keys.RotateKey, request)
    return made.value, made.key


def ends(moment: Any) -> float:
    """Seconds after noon."""
    return float((moment.ToDatetime(NOON.tzinfo) - NOON).total_seconds())


async def test_both_secrets_work_until_the_grace_is_over(tmp_path: Path) -> None:
    clock = SteppedClock()
    async with auth(tmp_path, clock=clock) as at:
        old, key = await at.create(tags={"team": "a"}, models_allowed=["openai/*"])
        new, rotated = await rotate(at, key.id, grace_seconds=3600)
        assert (rotated.id, dict(rotated.tags)) == (key.id, {"team": "a"})
        assert rotated.redacted_value == apikeys.redact(new)
        assert [secret.redacted_value for secret in rotated.former_secrets] == [apikeys.redact(old)]
        assert ends(rotated.former_secrets[0].ends_at) == 3600
        before, after = await grant_of(at, old), await grant_of(at, new)
        assert before.key_id == after.key_id == key.id
        assert list(before.models_allowed) == list(after.models_allowed) == ["openai/*"]
        assert ends(before.expires_at) == 3600
        assert not after.HasField("expires_at")
        clock.passed_s = 3600
        request = key_service_pb2.GetKeyRequest(id=key.id)
        assert not (await does(at.keys.GetKey, request)).key.former_secrets


async def test_a_rotation_without_grace_ends_every_earlier_secret_at_once(tmp_path: Path) -> None:
    async with auth(tmp_path) as at:
        first, key = await at.create()
        second, _ = await rotate(at, key.id)
        third, rotated = await rotate(at, key.id, grace_seconds=0)
        assert list(rotated.former_secrets) == []
        for dead in (first, second):
            with refused("invalid_api_key"):
                await grant_of(at, dead)
        assert (await grant_of(at, third)).key_id == key.id


async def test_no_earlier_secret_outlives_the_last_rotations_grace(tmp_path: Path) -> None:
    clock = SteppedClock()
    async with auth(tmp_path, clock=clock) as at:
        first, key = await at.create()
        second, _ = await rotate(at, key.id, grace_seconds=1000)
        clock.passed_s = 100
        _, rotated = await rotate(at, key.id, grace_seconds=50)
        assert [ends(secret.ends_at) for secret in rotated.former_secrets] == [150, 150]
        for value in (first, second):
            assert ends((await grant_of(at, value)).expires_at) == 150
        for _ in range(3):
            await rotate(at, key.id, grace_seconds=50)
        with refused("conflict", "grace_seconds"):
            await rotate(at, key.id, grace_seconds=50)
        clock.passed_s = 200
        await rotate(at, key.id, grace_seconds=50)


async def test_a_rotated_admin_key_administers_with_both_secrets_and_then_with_one(
    tmp_path: Path,
) -> None:
    clock = SteppedClock()
    async with auth(tmp_path, clock=clock) as at:
        old, key = await at.create(kind=grant_pb2.KEY_KIND_ADMIN)
        new, _ = await rotate(at, key.id, grace_seconds=60)
        listing = project_service_pb2.ListProjectsRequest()
        for value in (old, new):
            await does(at.projects.ListProjects, listing, bearer(value))
        clock.passed_s = 60
        with refused("key_expired"):
            await does(at.projects.ListProjects, listing, bearer(old))
        await does(at.projects.ListProjects, listing, bearer(new))


async def test_a_rotation_is_pushed_and_the_old_secret_is_refused_by_everybody(
    tmp_path: Path,
) -> None:
    async with auth(tmp_path) as at, at.clients(2) as clients:
        old, key = await at.create()
        for client in clients:
            await client.get(old)
        new, rotated = await rotate(at, key.id, grace_seconds=0)
        for client in clients:
            grant = await client.get(new)
            assert grant.version == rotated.version
            with refused("invalid_api_key"):
                await client.get(old)


async def test_a_disabled_key_is_refused_by_everybody_until_it_is_enabled(tmp_path: Path) -> None:
    async with auth(tmp_path) as at, at.clients(2) as clients:
        value, key = await at.create()
        for client in clients:
            await client.get(value)
        asked = key_service_pb2.DisableKeyRequest(id=key.id)
        disabled = (await does(at.keys.DisableKey, asked)).key
        assert disabled.HasField("disabled_at")
        assert (await does(at.keys.DisableKey, asked)).key == disabled
        for client in clients:
            assert (await grant_of(at, value)).disabled
            with refused("key_disabled"):
                while client.lookup(value) is not None:
                    await client.get(value)
                await client.get(value)
        enabled = (await does(at.keys.EnableKey, key_service_pb2.EnableKeyRequest(id=key.id))).key
        assert not enabled.HasField("disabled_at")
        assert not (await grant_of(at, value)).disabled
        await at.revoke(key.id)
        with refused("conflict"):
            await does(at.keys.EnableKey, key_service_pb2.EnableKeyRequest(id=key.id))


async def test_a_disabled_admin_key_administers_nothing_not_even_itself(tmp_path: Path) -> None:
    async with auth(tmp_path) as at:
        value, key = await at.create(kind=grant_pb2.KEY_KIND_ADMIN)
        await does(at.keys.DisableKey, key_service_pb2.DisableKeyRequest(id=key.id))
        with refused("key_disabled"):
            request = key_service_pb2.EnableKeyRequest(id=key.id)
            await does(at.keys.EnableKey, request, bearer(value))


async def test_an_admin_key_works_from_its_networks_alone(tmp_path: Path) -> None:
    async with auth(tmp_path) as at:
        value, key = await at.create(
            kind=grant_pb2.KEY_KIND_ADMIN, networks_allowed=["10.0.0.0/8", "::1"]
        )
        assert list(key.networks_allowed) == ["10.0.0.0/8", "::1/128"]
        request = project_service_pb2.ListProjectsRequest()
        for address in ("10.1.2.3", "::1"):
            metadata = (*bearer(value), (ADDRESS_KEY, address))
            await does(at.projects.ListProjects, request, metadata)
        for address in ("11.1.2.3", "nonsense", ""):
            with refused("address_forbidden"):
                metadata = (*bearer(value), (ADDRESS_KEY, address))
                await does(at.projects.ListProjects, request, metadata)


@pytest.mark.parametrize("network", ["10.1.2.3/8", "nowhere", "300.0.0.0/8", ""])
async def test_a_malformed_network_is_refused_by_name(tmp_path: Path, network: str) -> None:
    async with auth(tmp_path) as at:
        with refused("invalid_request", "networks_allowed[1]"):
            await at.create(networks_allowed=["::1", network])


async def test_everything_about_a_key_can_be_changed_and_reaches_its_grant(tmp_path: Path) -> None:
    async with auth(tmp_path) as at:
        value, key = await at.create(models_allowed=["openai/*"], expires_in_seconds=60)
        request = key_service_pb2.UpdateKeyRequest(
            id=key.id,
            name="renamed",
            models_allowed=key_service_pb2.KeyTexts(),
            models_denied=key_service_pb2.KeyTexts(values=["openai/o3"]),
            networks_allowed=key_service_pb2.KeyTexts(values=["10.0.0.0/8"]),
            tags=key_service_pb2.KeyTags(values={"feature": "search"}),
            scopes=key_service_pb2.KeyScopes(names=["model.chat.request"]),
            rate_limits=key_service_pb2.KeyRateLimits(
                values=[
                    grant_pb2.RateLimit(meter=grant_pb2.RATE_METER_IMAGES, amount=1, window_s=9)
                ]
            ),
            never_expires=True,
        )
        changed = (await does(at.keys.UpdateKey, request)).key
        assert (changed.name, changed.HasField("expires_at")) == ("renamed", False)
        grant = await grant_of(at, value)
        assert (list(grant.models_allowed), list(grant.models_denied)) == ([], ["openai/o3"])
        assert (list(grant.networks_allowed), dict(grant.tags)) == (
            ["10.0.0.0/8"],
            {"feature": "search"},
        )
        assert list(grant.scopes) == ["model.chat.request"]
        assert [limit.meter for limit in grant.rate_limits] == [grant_pb2.RATE_METER_IMAGES]
        same = (await does(at.keys.UpdateKey, key_service_pb2.UpdateKeyRequest(id=key.id))).key
        assert same == changed


async def test_the_last_use_is_noted_and_is_no_change_of_the_key(tmp_path: Path) -> None:
    clock = SteppedClock()
    async with auth(tmp_path, clock=clock) as at, at.clients(1, clock=clock) as (client,):
        value, key = await at.create()
        assert not key.HasField("last_used_at")
        await client.get(value)
        clock.passed_s = 5
        client.lookup(value)
        await client.report_uses()
        request = key_service_pb2.GetKeyRequest(id=key.id)
        seen = (await does(at.keys.GetKey, request)).key
        assert (ends(seen.last_used_at), seen.version) == (5, key.version)
        for used_at_s in (1, int(NOON.timestamp()) + 10**6):
            use = grant_service_pb2.KeyUse(key_id=key.id, used_at_s=used_at_s)
            await does(at.grants.ReportUse, grant_service_pb2.ReportUseRequest(uses=[use]))
            assert (await does(at.keys.GetKey, request)).key == seen


async def policy(at: Auth, project_id: str = "", **fields: Any) -> key_policy_service_pb2.KeyPolicy:
    """Says what keys are held to."""
    stub = key_policy_service_pb2_grpc.KeyPolicyServiceStub(at.channel)
    request = key_policy_service_pb2.UpdateKeyPolicyRequest(project_id=project_id, **fields)
    answer: key_policy_service_pb2.UpdateKeyPolicyResponse = await does(
        stub.UpdateKeyPolicy, request
    )
    again = await does(
        stub.GetKeyPolicy, key_policy_service_pb2.GetKeyPolicyRequest(project_id=project_id)
    )
    assert again.policy == answer.policy
    return answer.policy


async def test_no_secret_works_for_longer_than_organisation_and_project_say(tmp_path: Path) -> None:
    clock = SteppedClock()
    async with auth(tmp_path, clock=clock) as at:
        project = at.first.project_id
        await policy(at, max_lifetime_seconds=90 * DAY_S)
        await policy(at, project, max_lifetime_seconds=30 * DAY_S, default_lifetime_seconds=DAY_S)
        with refused("invalid_request", "expires_in_seconds"):
            await at.create(expires_in_seconds=31 * DAY_S)
        _, usual = await at.create()
        assert ends(usual.expires_at) == DAY_S
        value, key = await at.create(expires_in_seconds=30 * DAY_S)
        clock.passed_s = 20 * DAY_S
        update = key_service_pb2.UpdateKeyRequest(id=key.id, expires_in_seconds=11 * DAY_S)
        with refused("invalid_request", "expires_in_seconds"):
            await does(at.keys.UpdateKey, update)
        with refused("invalid_request", "expires_in_seconds"):
            await does(
                at.keys.UpdateKey, key_service_pb2.UpdateKeyRequest(id=key.id, never_expires=True)
            )
        _, rotated = await rotate(at, key.id, expires_in_seconds=30 * DAY_S)
        assert ends(rotated.expires_at) == 50 * DAY_S
        assert ends((await grant_of(at, value)).expires_at) == 21 * DAY_S
        _, admin = await at.create(kind=grant_pb2.KEY_KIND_ADMIN)
        assert ends(admin.expires_at) == (20 + 90) * DAY_S
        with refused("invalid_request", "default_lifetime_seconds"):
            await policy(at, project, default_lifetime_seconds=31 * DAY_S)


async def test_an_endless_key_ends_when_it_is_rotated_under_a_policy(tmp_path: Path) -> None:
    async with auth(tmp_path) as at:
        _, key = await at.create()
        await policy(at, max_lifetime_seconds=DAY_S)
        _, rotated = await rotate(at, key.id)
        assert ends(rotated.expires_at) == DAY_S


async def test_what_is_said_of_all_keys_reaches_every_grant_and_is_pushed(tmp_path: Path) -> None:
    async with auth(tmp_path) as at, at.clients(1) as (client,):
        value, _ = await at.create(networks_allowed=["10.1.0.0/16"], tags={"team": "own"})
        await client.get(value)
        said = await policy(
            at,
            networks_allowed=key_policy_service_pb2.PolicyNetworks(values=["10.0.0.0/8"]),
            tags=key_policy_service_pb2.PolicyTags(values={"team": "all", "customer": "c"}),
        )
        assert list(said.networks_allowed) == ["10.0.0.0/8"]
        limits = rate_limit_service_pb2_grpc.RateLimitServiceStub(at.channel)
        await does(
            limits.SetRateLimit,
            rate_limit_service_pb2.SetRateLimitRequest(
                rate_limit=project_policy_service_pb2.ProjectRateLimit(
                    id="rl-openai/*", tokens_per_day=7, images_per_minute=2
                )
            ),
        )
        grant = await grant_of(at, value)
        assert list(grant.networks_allowed) == ["10.1.0.0/16"]
        assert dict(grant.tags) == {"team": "own", "customer": "c"}
        assert {(limit.scope, limit.model) for limit in grant.rate_limits} == {
            (grant_pb2.RATE_SCOPE_ORGANIZATION, "openai/*")
        }
        await policy(
            at,
            at.first.project_id,
            networks_allowed=key_policy_service_pb2.PolicyNetworks(values=["192.0.2.0/24"]),
        )
        assert list((await grant_of(at, value)).networks_allowed) == ["none"]
