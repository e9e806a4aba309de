"""Narrowing: a child is never wider than its parent, and no narrower than it has to be."""

import itertools
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onegate.auth.v1 import grant_pb2
from runtime.networks import is_inside
from runtime.patterns import allows, matches
from services.auth.policy import (
    NOTHING,
    PATTERNS_MAX,
    Policy,
    RateLimit,
    effective,
    from_json,
    meet,
    narrow,
    to_json,
)
from services.router.limits.admission import CallFacts, listing_refusal, refusal

PATTERN = st.text("ab*", min_size=1, max_size=6)
LISTS = st.lists(PATTERN, max_size=3).map(tuple)
MODELS = ["".join(text) for n in range(9) for text in itertools.product("ab", repeat=n)]
SCOPES = ("model.request", "model.chat.request", "model.images.request", "model.read")
NETWORKS = ("10.0.0.0/8", "10.1.0.0/16", "10.1.2.3/32", "192.0.2.0/24", "fd00::/8", "fd00::1/128")
ADDRESSES = ("10.9.9.9", "10.1.9.9", "10.1.2.3", "192.0.2.1", "fd00::1", "fd00::2", "8.8.8.8", "")
LIMITS = st.builds(
    RateLimit,
    meter=st.just(grant_pb2.RATE_METER_REQUESTS),
    amount=st.integers(1, 3),
    window_s=st.integers(1, 3),
    scope=st.just(grant_pb2.RATE_SCOPE_KEY),
)
POLICIES = st.builds(
    Policy,
    models_allowed=LISTS,
    models_denied=st.lists(PATTERN, max_size=2).map(tuple),
    rate_limits=st.lists(LIMITS, max_size=3).map(tuple),
    tags=st.dictionaries(st.sampled_from("xyz"), st.sampled_from("12"), max_size=2),
    scopes=st.lists(st.sampled_from(SCOPES), max_size=3).map(tuple),
    networks=st.lists(st.sampled_from(NETWORKS), max_size=3).map(tuple),
)


def let_through(policy: Policy) -> set[str]:
    return {m for m in MODELS if allows(policy.models_allowed, policy.models_denied, m)}


@settings(deadline=None)
@given(PATTERN, PATTERN)
def test_two_patterns_meet_in_exactly_what_both_stand_for(first: str, second: str) -> None:
    both = {m for m in MODELS if matches(first, m) and matches(second, m)}
    assert {m for m in MODELS if any(matches(p, m) for p in meet(first, second))} == both


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        ("openai/*", "*", {"openai/*"}),
        ("openai/*", "openai/gpt-5", {"openai/gpt-5"}),
        ("openai/*", "azure/*", set()),
        ("openai/*", "*/gpt-5", {"openai/*/gpt-5", "openai/gpt-5"}),
        ("openai/gpt-*", "*-mini", {"openai/gpt-*-mini", "openai/gpt-mini"}),
        ("a*b*", "*c*d", {"a*b*c*d", "a*c*b*d"}),
    ],
)
def test_patterns_meet_as_people_expect(first: str, second: str, expected: set[str]) -> None:
    assert expected <= set(meet(first, second))
    assert set(meet(first, second)) == set(meet(second, first))


@settings(deadline=None)
@given(POLICIES, POLICIES)
def test_a_child_is_never_wider_than_its_parent_nor_than_itself(
    parent: Policy, child: Policy
) -> None:
    assert let_through(narrow(parent, child)) == let_through(parent) & let_through(child)


@settings(deadline=None)
@given(POLICIES, POLICIES, POLICIES)
def test_three_levels_allow_what_each_of_them_allows(
    organization: Policy, project: Policy, key: Policy
) -> None:
    together = effective(organization, project, key)
    expected = let_through(organization) & let_through(project) & let_through(key)
    assert let_through(together) == expected


def calls(policy: Policy) -> set[str]:
    """What the router lets a key with these scopes do."""
    facts = [CallFacts(model="m", priced=True, scope=scope) for scope in SCOPES[1:3]]
    held = grant_pb2.Grant(kind=grant_pb2.KEY_KIND_PROJECT, scopes=policy.scopes)
    found = {fact.scope for fact in facts if refusal(held, fact, 0.0) is None}
    return found | ({"list"} if listing_refusal(held, 0.0) is None else set())


@settings(deadline=None)
@given(POLICIES, POLICIES)
def test_what_a_child_may_do_and_from_where_is_what_both_levels_say(
    parent: Policy, child: Policy
) -> None:
    together = narrow(parent, child)
    for address in ADDRESSES:
        both = all(not p.networks or is_inside(address, p.networks) for p in (parent, child))
        assert both == (not together.networks or is_inside(address, together.networks))
    assert calls(together) <= calls(parent) & calls(child)
    # Listing models comes with any call; nothing that calls is lost.
    assert calls(together) - {"list"} == (calls(parent) & calls(child)) - {"list"}


@settings(deadline=None)
@given(POLICIES)
def test_a_policy_is_read_as_it_was_written(policy: Policy) -> None:
    assert from_json(to_json(policy)) == policy


@settings(deadline=None)
@given(POLICIES, POLICIES)
def test_every_rate_limit_stays_in_force(parent: Policy, child: Policy) -> None:
    together = narrow(parent, child)
    assert set(together.rate_limits) == {*parent.rate_limits, *child.rate_limits}
    assert len(set(together.rate_limits)) == len(together.rate_limits)


@settings(deadline=None)
@given(POLICIES, POLICIES)
def test_the_nearest_level_names_the_tag(parent: Policy, child: Policy) -> None:
    assert dict(narrow(parent, child).tags) == {**parent.tags, **child.tags}


@settings(deadline=None)
@given(POLICIES)
def test_a_level_that_says_nothing_changes_no_right(policy: Policy) -> None:
    for together in (narrow(Policy(), policy), narrow(policy, Policy())):
        assert let_through(together) == let_through(policy)


def test_no_model_in_common_denies_every_model_instead_of_allowing_all() -> None:
    together = narrow(Policy(models_allowed=("openai/*",)), Policy(models_allowed=("azure/*",)))
    assert together.models_denied == (NOTHING,)
    assert not allows(together.models_allowed, together.models_denied, "openai/gpt-5")
    again = narrow(together, Policy(models_allowed=("openai/*",)))
    assert not allows(again.models_allowed, again.models_denied, "openai/gpt-5")


def test_patterns_made_to_explode_end_in_time_and_allow_nothing_more() -> None:
    parent = tuple(f"*{'a*' * n}b{n}*" for n in range(100))
    child = tuple(f"*{'b*' * n}a{n}*" for n in range(100))
    start = time.process_time()
    together = narrow(Policy(models_allowed=parent), Policy(models_allowed=child))
    assert time.process_time() - start < 4
    assert len(together.models_allowed) <= PATTERNS_MAX
    for model in ("b1", "a1", "ab"):
        if allows(together.models_allowed, together.models_denied, model):
            assert allows(parent, (), model)
            assert allows(child, (), model)


def test_an_answer_that_cannot_be_completed_is_no_answer() -> None:
    assert meet("*a*" * 12 + "b", "c" + "*d*" * 12) == ()
