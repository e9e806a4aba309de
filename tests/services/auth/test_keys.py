"""What a key becomes for others, when it is alive, and what a new one may say."""

import hashlib
import hmac
from dataclasses import replace
from datetime import timedelta

import pytest

from onegate.auth.v1 import grant_pb2, key_service_pb2
from onegate.common.v1 import error_pb2
from runtime.errors import GatewayError
from services.auth import keys
from services.auth.policy import Policy, RateLimit
from services.auth.records import KeyRecord, Lineage, OrganizationRecord, ProjectRecord
from tests.services.auth.ports import NOON

PER_MINUTE = RateLimit(
    meter=grant_pb2.RATE_METER_REQUESTS,
    amount=60,
    window_s=60,
    scope=grant_pb2.RATE_SCOPE_KEY,
)
PER_PROJECT = replace(PER_MINUTE, scope=grant_pb2.RATE_SCOPE_PROJECT)
KEY = KeyRecord(
    id="key_1",
    organization_id="org_1",
    project_id="proj_1",
    principal_id="user_1",
    kind=grant_pb2.KEY_KIND_PROJECT,
    name="ci",
    redacted_value="sk-og-abcd…wxyz",
    policy=Policy(models_allowed=("*/gpt-5",), rate_limits=(PER_MINUTE,), tags={"team": "key"}),
    version=7,
    created_at=NOON,
    expires_at=NOON + timedelta(hours=1),
    revoked_at=None,
)
PROJECT = ProjectRecord(
    id="proj_1",
    organization_id="org_1",
    name="default",
    policy=Policy(rate_limits=(PER_PROJECT,), tags={"team": "project", "cost": "1"}),
    version=9,
    created_at=NOON,
)
ORGANIZATION = OrganizationRecord(
    id="org_1",
    name="default",
    policy=Policy(models_allowed=("openai/*",), models_denied=("*/gpt-4",)),
    version=3,
    created_at=NOON,
)
CLASSES = ("public", "internal", "confidential")
LINEAGE = Lineage(organization=ORGANIZATION, project=PROJECT, key=KEY)


def request(**fields: object) -> key_service_pb2.CreateKeyRequest:
    built = key_service_pb2.CreateKeyRequest(name="ci")
    built.MergeFrom(key_service_pb2.CreateKeyRequest(**fields))  # type: ignore[arg-type]
    return built


def limit(**fields: int | str) -> grant_pb2.RateLimit:
    built = grant_pb2.RateLimit(meter=grant_pb2.RATE_METER_REQUESTS, amount=5, window_s=60)
    for name, value in fields.items():
        setattr(built, name, value)
    return built


def test_the_stored_mac_is_an_hmac_of_the_digest_under_the_pepper() -> None:
    expected = hmac.new(b"pepper", b"digest", hashlib.sha256).digest()
    assert keys.mac(b"pepper", b"digest") == expected
    assert keys.mac(b"other", b"digest") != expected
    assert keys.pepper_fingerprint(b"pepper") != keys.pepper_fingerprint(b"other")


def test_a_grant_says_what_all_levels_allow_together() -> None:
    grant = keys.grant(LINEAGE, CLASSES)
    assert set(grant.models_allowed) == {"openai/*/gpt-5", "openai/gpt-5"}
    assert list(grant.models_denied) == ["*/gpt-4"]
    assert {limit.scope for limit in grant.rate_limits} == {
        grant_pb2.RATE_SCOPE_PROJECT,
        grant_pb2.RATE_SCOPE_KEY,
    }
    assert dict(grant.tags) == {"team": "key", "cost": "1"}
    assert (grant.key_id, grant.project_id, grant.organization_id) == ("key_1", "proj_1", "org_1")
    assert (grant.principal_id, grant.name, list(grant.scopes)) == ("user_1", "ci", [])
    assert grant.expires_at.ToDatetime(NOON.tzinfo) == KEY.expires_at


@pytest.mark.parametrize(
    ("of_key", "of_project", "of_organization"), [(7, 9, 3), (9, 1, 2), (1, 2, 9)]
)
def test_a_grant_has_the_version_of_the_newest_thing_it_came_from(
    of_key: int, of_project: int, of_organization: int
) -> None:
    lineage = Lineage(
        organization=replace(ORGANIZATION, version=of_organization),
        project=replace(PROJECT, version=of_project),
        key=replace(KEY, version=of_key),
    )
    assert keys.grant(lineage, CLASSES).version == 9


def test_an_admin_key_administers_and_calls_no_model() -> None:
    admin = replace(KEY, kind=grant_pb2.KEY_KIND_ADMIN, project_id=None, expires_at=None)
    grant = keys.grant(Lineage(organization=ORGANIZATION, project=None, key=admin), CLASSES)
    assert list(grant.scopes) == [keys.ADMIN_SCOPE]
    assert list(grant.models_denied) == ["*"]
    assert grant.project_id == ""
    assert not grant.HasField("expires_at")


def test_administrators_see_a_keys_own_policy_and_never_its_secret() -> None:
    message = keys.key_message(replace(KEY, revoked_at=NOON))
    assert list(message.models_allowed) == ["*/gpt-5"]
    assert [limit.amount for limit in message.rate_limits] == [60]
    assert message.redacted_value == "sk-og-abcd…wxyz"
    assert message.revoked_at.ToDatetime(NOON.tzinfo) == NOON
    assert (message.id, message.version, message.project_id) == ("key_1", 7, "proj_1")


def test_a_project_is_shown_as_it_is_kept() -> None:
    message = keys.project_message(PROJECT)
    assert (message.id, message.organization_id, message.name) == ("proj_1", "org_1", "default")
    assert message.created_at.ToDatetime(NOON.tzinfo) == NOON


@pytest.mark.parametrize(
    ("key", "reason"),
    [
        (replace(KEY, revoked_at=NOON), error_pb2.ERROR_REASON_INVALID_API_KEY),
        (replace(KEY, expires_at=NOON), error_pb2.ERROR_REASON_KEY_EXPIRED),
        (
            replace(KEY, revoked_at=NOON, expires_at=NOON),
            error_pb2.ERROR_REASON_INVALID_API_KEY,
        ),
    ],
)
def test_a_revoked_or_expired_key_is_dead(key: KeyRecord, reason: int) -> None:
    with pytest.raises(GatewayError) as caught:
        keys.check_alive(key, now=NOON)
    assert caught.value.reason == reason


@pytest.mark.parametrize("expires_at", [None, NOON + timedelta(microseconds=1)])
def test_a_key_lives_until_its_expiry(expires_at: object) -> None:
    keys.check_alive(replace(KEY, expires_at=expires_at), now=NOON)  # type: ignore[arg-type]


def test_a_request_becomes_a_checked_key() -> None:
    asked = keys.new_key(
        request(
            name="  ci  ",
            project_id="proj_1",
            expires_in_seconds=60,
            models_allowed=["openai/**", "openai/*", "demo/echo"],
            rate_limits=[limit(), limit(model="openai/*")],
            tags={"team": "a"},
            request_id="r1",
        )
    )
    assert asked.name == "ci"
    assert asked.kind == grant_pb2.KEY_KIND_PROJECT
    assert asked.expires_in_s == 60
    assert asked.policy.models_allowed == ("openai/*", "demo/echo")
    assert [limit.scope for limit in asked.policy.rate_limits] == [grant_pb2.RATE_SCOPE_KEY] * 2
    assert dict(asked.policy.tags) == {"team": "a"}
    assert keys.new_key(request()).expires_in_s is None


def test_calls_at_the_same_time_are_limited_without_a_window() -> None:
    concurrency = limit(meter=grant_pb2.RATE_METER_CONCURRENCY, window_s=0)
    assert keys.new_key(request(rate_limits=[concurrency])).policy.rate_limits[0].window_s == 0


def test_an_admin_key_asks_for_a_name_an_expiry_and_tags_at_most() -> None:
    asked = keys.new_key(request(kind=ADMIN, expires_in_seconds=60, tags={"team": "a"}))
    assert (asked.kind, asked.expires_in_s, dict(asked.policy.tags)) == (ADMIN, 60, {"team": "a"})


ADMIN = grant_pb2.KEY_KIND_ADMIN
BAD_REQUESTS = [
    ({"name": "x" * 201}, "name"),
    ({"name": "\n\n"}, "name"),
    ({"name": "\x1b[31m"}, "name"),
    ({"kind": 7}, "kind"),
    ({"expires_in_seconds": -1}, "expires_in_seconds"),
    ({"expires_in_seconds": keys.EXPIRES_IN_S_MAX + 1}, "expires_in_seconds"),
    ({"request_id": "x" * 65}, "request_id"),
    ({"kind": ADMIN, "project_id": "proj_1"}, "project_id"),
    ({"kind": ADMIN, "models_allowed": ["*"]}, "models_allowed"),
    ({"kind": ADMIN, "rate_limits": [limit()]}, "rate_limits"),
    ({"models_allowed": [""]}, "models_allowed[0]"),
    ({"models_allowed": ["*", "open ai/*"]}, "models_allowed[1]"),
    ({"models_allowed": ["x" * 201]}, "models_allowed[0]"),
    ({"models_allowed": ["*a*b*c*d*"]}, "models_allowed[0]"),
    ({"models_allowed": [f"m{n}" for n in range(101)]}, "models_allowed"),
    ({"rate_limits": [limit(meter=0)]}, "rate_limits[0].meter"),
    ({"rate_limits": [limit(), limit(amount=0)]}, "rate_limits[1].amount"),
    ({"rate_limits": [limit(amount=10**12 + 1)]}, "rate_limits[0].amount"),
    ({"rate_limits": [limit(window_s=0)]}, "rate_limits[0].window_s"),
    (
        {"rate_limits": [limit(meter=grant_pb2.RATE_METER_CONCURRENCY)]},
        "rate_limits[0].window_s",
    ),
    ({"rate_limits": [limit(scope=grant_pb2.RATE_SCOPE_PROJECT)]}, "rate_limits[0].scope"),
    ({"rate_limits": [limit(model="a b")]}, "rate_limits[0].model"),
    ({"rate_limits": [limit(), limit()]}, "rate_limits"),
    ({"rate_limits": [limit(window_s=n) for n in range(1, 22)]}, "rate_limits"),
    ({"tags": {str(n): "" for n in range(17)}}, "tags"),
    ({"tags": {"": "x"}}, "tags"),
    ({"tags": {"x" * 65: ""}}, "tags"),
    ({"tags": {"x\n": ""}}, "tags"),
    ({"tags": {"x": "y" * 513}}, "tags"),
    ({"tags": {"x": "a\nb"}}, "tags"),
]


@pytest.mark.parametrize(("fields", "param"), BAD_REQUESTS)
def test_a_bad_field_is_refused_by_name(fields: dict[str, object], param: str) -> None:
    with pytest.raises(GatewayError) as caught:
        keys.new_key(request(**fields))
    assert caught.value.reason == error_pb2.ERROR_REASON_INVALID_REQUEST
    assert caught.value.param == param
    assert f"`{param}`" in caught.value.message
