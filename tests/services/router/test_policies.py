"""Each policy by itself, against what it is meant to say, in any situation: it refuses exactly what
it is there to refuse, with its own reason, and looks at nothing else.
"""

import ipaddress
from collections.abc import Callable
from dataclasses import replace
from fnmatch import fnmatchcase

import pytest
from hypothesis import given
from hypothesis import strategies as st

from onegate.auth.v1 import data_policy_pb2, grant_pb2
from services.router.limits.admission import POLICIES, CallFacts
from services.router.routing.data_rules import FREE, CallData, DataHandling
from services.router.routing.health import Health
from services.router.routing.illness import ILLNESSES
from tests.services.router.test_planning import resolve

NOW = 1_800_000_000
BY_NAME = {policy.name: policy for policy in POLICIES}
PATTERNS = ("*", "openai/*", "*/gpt-5", "anthropic/*", "x/y", "open*5")
NETWORKS = ("10.0.0.0/8", "192.168.0.0/16", "2001:db8::/32", "nonsense")
SCOPES = ("model.request", "model.chat.request", "model.read", "admin")

RULES = st.builds(
    data_policy_pb2.DataRule,
    level=st.sampled_from([1, 2, 3, 4]),
    demands=st.builds(
        data_policy_pb2.DataDemands,
        regions=st.lists(st.sampled_from(["eu", "us"]), unique=True),
        retention_days_max=st.none() | st.integers(0, 40),
        no_training=st.booleans(),
    ),
)
GRANTS = st.builds(
    grant_pb2.Grant,
    kind=st.sampled_from([0, 1, 2]),
    disabled=st.booleans(),
    models_allowed=st.lists(st.sampled_from(PATTERNS), max_size=3),
    models_denied=st.lists(st.sampled_from(PATTERNS), max_size=2),
    scopes=st.lists(st.sampled_from(SCOPES), max_size=3),
    networks_allowed=st.lists(st.sampled_from(NETWORKS), max_size=3),
)
FACTS = st.builds(
    CallFacts,
    model=st.sampled_from(["openai/gpt-5", "anthropic/claude", "x/y", "openai/o3"]),
    priced=st.booleans(),
    client_address=st.sampled_from(["", "10.1.1.1", "::ffff:10.1.1.1", "192.168.1.1", "2001:db8::1",
                                    "8.8.8.8", "nobody"]),
    cost_max_nano_usd=st.none() | st.integers(0, 20),
    cost_bound=st.sampled_from([lambda: 10, lambda: 0, lambda: None]),
    data=st.just(FREE) | st.builds(
        CallData, data_class=st.just("internal"), rules=st.lists(RULES, max_size=2).map(tuple)
    ),
    handling=st.builds(
        DataHandling,
        regions=st.sampled_from([(), ("eu",), ("us",), ("eu", "us"), ("fr",)]),
        retention_days=st.none() | st.integers(0, 40),
        training=st.none() | st.booleans(),
    ),
    reachable=st.booleans(),
    over_price=st.sampled_from(["", "prompt", "completion"]),
)  # fmt: skip
EXPIRIES = st.none() | st.integers(-3, 3)


def permits_enabled(grant: grant_pb2.Grant, _: CallFacts) -> bool:
    return not grant.disabled


def permits_expiry(grant: grant_pb2.Grant, _: CallFacts) -> bool:
    return not grant.HasField("expires_at") or grant.expires_at.seconds > NOW


def permits_kind(grant: grant_pb2.Grant, _: CallFacts) -> bool:
    return grant.kind == grant_pb2.KEY_KIND_PROJECT


def permits_network(grant: grant_pb2.Grant, facts: CallFacts) -> bool:
    if not grant.networks_allowed:
        return True
    try:
        address = ipaddress.ip_address(facts.client_address.removeprefix("::ffff:"))
    except ValueError:
        return False
    known = [text for text in grant.networks_allowed if text != "nonsense"]
    return any(address in ipaddress.ip_network(text) for text in known)


def permits_scope(grant: grant_pb2.Grant, facts: CallFacts) -> bool:
    return not grant.scopes or bool({"model.request", facts.scope} & set(grant.scopes))


def permits_model(grant: grant_pb2.Grant, facts: CallFacts) -> bool:
    allowed = not grant.models_allowed or any(
        fnmatchcase(facts.model, pattern) for pattern in grant.models_allowed
    )
    return allowed and not any(fnmatchcase(facts.model, p) for p in grant.models_denied)


def permits_owner(_: grant_pb2.Grant, facts: CallFacts) -> bool:
    return facts.reachable


def permits_data(_: grant_pb2.Grant, facts: CallFacts) -> bool:
    handling = facts.handling
    for rule in facts.data.rules:
        demands = rule.demands
        if demands.regions:
            inside = {"eu", "fr"} if "eu" in demands.regions else set()
            inside |= set(demands.regions)
            if not handling.regions or set(handling.regions) - inside:
                return False
        if demands.HasField("retention_days_max"):
            kept = handling.retention_days
            if kept is None or kept > demands.retention_days_max:
                return False
        if demands.no_training:
            unknown = handling.training is None and handling.retention_days != 0
            if handling.training or unknown:
                return False
    return True


def permits_price(_: grant_pb2.Grant, facts: CallFacts) -> bool:
    return facts.priced


def permits_price_max(_: grant_pb2.Grant, facts: CallFacts) -> bool:
    return facts.over_price == ""


def permits_cost(_: grant_pb2.Grant, facts: CallFacts) -> bool:
    if facts.cost_max_nano_usd is None:
        return True
    bound = facts.cost_bound()
    return bound is not None and bound <= facts.cost_max_nano_usd


MEANINGS: dict[str, Callable[[grant_pb2.Grant, CallFacts], bool]] = {
    "enabled": permits_enabled,
    "expiry": permits_expiry,
    "kind": permits_kind,
    "network": permits_network,
    "scope": permits_scope,
    "model": permits_model,
    "owner": permits_owner,
    "data": permits_data,
    "price": permits_price,
    "price-max": permits_price_max,
    "cost": permits_cost,
}
"""What each policy is meant to let through, said a second time and in another way."""


def test_every_policy_has_a_meaning_here() -> None:
    assert set(MEANINGS) == set(BY_NAME)
    assert len(BY_NAME) == len(POLICIES)


@pytest.mark.parametrize("name", sorted(MEANINGS))
@given(grant=GRANTS, facts=FACTS, expiry=EXPIRIES)
def test_a_policy_refuses_exactly_what_it_is_there_to_refuse(
    name: str, grant: grant_pb2.Grant, facts: CallFacts, expiry: int | None
) -> None:
    if expiry is not None:
        grant.expires_at.seconds = NOW + expiry
    policy = BY_NAME[name]
    objection = policy.judge(grant, facts, float(NOW))
    assert (objection is None) == MEANINGS[name](grant, facts)
    if objection is not None:
        assert objection.reason == policy.reason
        assert objection.message
    # The same facts, the same verdict: nothing is remembered.
    again = policy.judge(grant, replace(facts), float(NOW))
    assert (again is None) == (objection is None)


@given(
    cooled=st.floats(0, 100),
    passed=st.floats(0, 200),
    quarantined=st.sampled_from(["", "a", "a/m", "b"]),
)
def test_a_deployment_is_left_alone_exactly_as_long_as_it_was_told(
    cooled: float, passed: float, quarantined: str
) -> None:
    health, one = Health(), resolve("a/m")
    if cooled:
        health.cool_down(one.id, cooled, 0.0)
    if quarantined:
        health.quarantine(quarantined, 0.0)
    verdicts = {row.name: row.judge(health, one, passed) for row in ILLNESSES}
    assert (verdicts["cooling"] is not None) == (passed < cooled)
    rests = quarantined in ("a", "a/m") and passed < 60.0
    assert (verdicts["credential"] is not None) == rests
    for row in ILLNESSES:
        verdict = verdicts[row.name]
        assert verdict is None or verdict.reason == row.reason
