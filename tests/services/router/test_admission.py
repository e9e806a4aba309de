"""Each policy by itself, and all of them over generated grants."""

from collections.abc import Iterable

import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from hypothesis import given
from hypothesis import strategies as st

from onegate.auth.v1 import grant_pb2
from onegate.common.v1 import error_pb2
from services.router.limits.admission import POLICIES, CallFacts, listing_refusal, refusal

NOW = 1_800_000_000.0
PROJECT = grant_pb2.KEY_KIND_PROJECT


def key(**fields: object) -> grant_pb2.Grant:
    return grant_pb2.Grant(**{"kind": PROJECT, **fields})  # type: ignore[arg-type]


def call(**fields: object) -> CallFacts:
    return CallFacts(**{"model": "openai/gpt-5", "priced": True, **fields})  # type: ignore[arg-type]


def reason_of(grant: grant_pb2.Grant, facts: CallFacts) -> str:
    objection = refusal(grant, facts, NOW)
    if objection is None:
        return ""
    assert objection.message
    return error_pb2.ErrorReason.Name(objection.reason).removeprefix("ERROR_REASON_")


def at(seconds: float) -> Timestamp:
    return Timestamp(seconds=int(seconds), nanos=int(seconds % 1 * 1e9))


CASES = [
    (key(), call(), ""),
    (key(kind=grant_pb2.KEY_KIND_ADMIN), call(), "SCOPE_MISSING"),
    (key(kind=grant_pb2.KEY_KIND_UNSPECIFIED), call(), "SCOPE_MISSING"),
    (key(expires_at=at(NOW + 0.5)), call(), ""),
    (key(expires_at=at(NOW)), call(), "KEY_EXPIRED"),
    (key(expires_at=at(NOW - 9)), call(), "KEY_EXPIRED"),
    (key(networks_allowed=["10.0.0.0/8"]), call(client_address="10.1.2.3"), ""),
    (key(networks_allowed=["10.0.0.0/8"]), call(client_address="::ffff:10.1.2.3"), ""),
    (key(networks_allowed=["10.0.0.1/8"]), call(client_address="10.1.2.3"), ""),
    (key(networks_allowed=["x", "fd00::/8"]), call(client_address="fd00::1"), ""),
    (key(networks_allowed=["10.0.0.0/8"]), call(client_address="11.1.2.3"), "ADDRESS_FORBIDDEN"),
    (key(networks_allowed=["10.0.0.0/8"]), call(client_address=""), "ADDRESS_FORBIDDEN"),
    (key(networks_allowed=["10.0.0.0/8"]), call(client_address="nonsense"), "ADDRESS_FORBIDDEN"),
    (key(networks_allowed=["nonsense"]), call(client_address="10.1.2.3"), "ADDRESS_FORBIDDEN"),
    (key(scopes=["model.request"]), call(), ""),
    (key(scopes=["model.read"]), call(), "SCOPE_MISSING"),
    (key(scopes=["model.chat.request"]), call(), ""),
    (key(scopes=["model.images.request"]), call(), "SCOPE_MISSING"),
    (key(models_allowed=["openai/*"]), call(), ""),
    (key(models_allowed=["anthropic/*"]), call(), "MODEL_FORBIDDEN"),
    (key(models_denied=["*/gpt-5"]), call(), "MODEL_FORBIDDEN"),
    (key(models_allowed=["*"], models_denied=["*"]), call(), "MODEL_FORBIDDEN"),
    (key(), call(priced=False), "MODEL_PRICE_UNKNOWN"),
    (key(), call(cost_max_nano_usd=10, cost_bound=lambda: 10), ""),
    (key(), call(cost_max_nano_usd=10, cost_bound=lambda: 11), "INVALID_REQUEST"),
    (key(), call(cost_max_nano_usd=10, cost_bound=lambda: None), "INVALID_REQUEST"),
    (key(), call(cost_max_nano_usd=0, cost_bound=lambda: 0), ""),
]


@pytest.mark.parametrize(("grant", "facts", "reason"), CASES)
def test_a_call_is_refused_for_this_reason_alone(
    grant: grant_pb2.Grant, facts: CallFacts, reason: str
) -> None:
    assert reason_of(grant, facts) == reason


def test_a_cost_is_bounded_only_for_who_asks() -> None:
    def explode() -> int:
        raise AssertionError

    assert reason_of(key(), call(cost_bound=explode)) == ""


def test_the_bound_that_is_broken_is_named() -> None:
    objection = refusal(key(), call(cost_max_nano_usd=1_500_000, cost_bound=lambda: 2_000_000), NOW)
    assert objection is not None
    assert "0.002000000 USD" in objection.message
    assert "0.001500000 USD" in objection.message
    assert objection.param == "x-onegate-max-cost"


def test_who_asks_is_judged_before_what_is_asked() -> None:
    """An expired key learns nothing about models or prices."""
    grant = key(expires_at=at(NOW - 1), models_denied=["*"], scopes=["x"])
    assert reason_of(grant, call(priced=False)) == "KEY_EXPIRED"


GRANTS = st.builds(
    grant_pb2.Grant,
    kind=st.sampled_from([PROJECT, grant_pb2.KEY_KIND_ADMIN]),
    expires_at=st.none() | st.integers(-5, 5).map(lambda s: at(NOW + s)),
    models_allowed=st.lists(st.sampled_from(["openai/*", "*", "anthropic/*", "*/gpt-5"])),
    models_denied=st.lists(st.sampled_from(["openai/*", "anthropic/*", "*/gpt-5"])),
    scopes=st.lists(st.sampled_from(["model.request", "model.read", "admin"])),
    networks_allowed=st.lists(st.sampled_from(["10.0.0.0/8", "192.168.0.0/16"])),
)
FACTS = st.builds(
    CallFacts,
    model=st.sampled_from(["openai/gpt-5", "anthropic/claude", "x/y"]),
    priced=st.booleans(),
    client_address=st.sampled_from(["", "10.0.0.1", "192.168.9.9", "8.8.8.8"]),
    cost_max_nano_usd=st.none() | st.integers(0, 20),
    cost_bound=st.sampled_from([lambda: 10, lambda: None]),
)


@given(grant=GRANTS, facts=FACTS)
def test_one_objection_refuses_and_none_lets_through(
    grant: grant_pb2.Grant, facts: CallFacts
) -> None:
    objections = [policy.judge(grant, facts, NOW) for policy in POLICIES]
    objecting = [objection for objection in objections if objection is not None]
    verdict = refusal(grant, facts, NOW)
    assert (verdict is None) == (not objecting)
    if verdict is not None:
        assert (verdict.reason, verdict.message) == (objecting[0].reason, objecting[0].message)


@given(grant=GRANTS, facts=FACTS, more=st.sampled_from(["*", "openai/*", "x/y"]))
def test_denying_more_never_allows_more(
    grant: grant_pb2.Grant, facts: CallFacts, more: str
) -> None:
    before = refusal(grant, facts, NOW)
    grant.models_denied.append(more)
    if before is not None:
        assert refusal(grant, facts, NOW) is not None


@pytest.mark.parametrize(
    ("scopes", "expires", "refused"),
    [
        ([], None, False),
        (["model.request"], None, False),
        (["model.read"], NOW + 1, False),
        (["admin"], None, False),
        (["model.chat.request"], None, False),
        (["files.read"], None, True),
        ([], NOW - 1, True),
    ],
)
def test_listing_needs_a_live_key_that_may_use_models(
    scopes: Iterable[str], expires: float | None, refused: bool
) -> None:
    grant = key(scopes=scopes, expires_at=None if expires is None else at(expires))
    assert (listing_refusal(grant, NOW) is not None) == refused
