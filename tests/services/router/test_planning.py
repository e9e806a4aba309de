"""Who is tried, in which order, and what is said of the rest."""

import pytest

from onegate.common.v1 import error_pb2
from onegate.router.v1 import chat_pb2
from runtime.errors import GatewayError
from services.router.models.catalog import Deployment
from services.router.routing.planning import BREAKER, Plan, make_plan, with_rescue, without_broken

RATE = error_pb2.ERROR_REASON_UPSTREAM_RATE_LIMITED
AUTH = error_pb2.ERROR_REASON_UPSTREAM_AUTH
FORBIDDEN = error_pb2.ERROR_REASON_MODEL_FORBIDDEN
NOT_FOUND = error_pb2.ERROR_REASON_MODEL_NOT_FOUND
INVALID = error_pb2.ERROR_REASON_INVALID_REQUEST


def resolve(name: str) -> Deployment:
    provider, _, model = name.partition("/")
    if not model:
        raise GatewayError(NOT_FOUND, f"no {name}")
    return Deployment(id=name, provider=provider, model=model, price_name=name, free=False)


def plan(
    *models: str,
    wishes: chat_pb2.RoutingPreferences | None = None,
    verdicts: dict[str, GatewayError] | None = None,
) -> Plan:
    judged = verdicts or {}
    return make_plan(models, wishes, resolve, lambda deployment: judged.get(deployment.id))


def ids(made: Plan) -> list[str]:
    return [deployment.id for deployment in made.candidates]


def left_out(made: Plan) -> dict[str, int]:
    return {out.model: out.why.reason for out in made.excluded}


def test_one_model_is_one_candidate() -> None:
    assert ids(plan("a/m")) == ["a/m"]
    assert left_out(plan("a/m")) == {}


def test_a_model_that_is_not_found_or_refused_leaves_nobody() -> None:
    made = plan("m")
    assert (ids(made), left_out(made)) == ([], {"m": NOT_FOUND})
    assert made.refusal().reason == NOT_FOUND
    made = plan("a/m", verdicts={"a/m": GatewayError(FORBIDDEN, "no")})
    assert made.refusal().reason == FORBIDDEN
    assert [(e.model, e.detail) for e in made.refusal().excluded] == [("a/m", "no")]


def test_several_models_need_no_wishes() -> None:
    assert ids(plan("a/m", "b/m")) == ["a/m", "b/m"]


def test_fallbacks_follow_in_order_once_each() -> None:
    wishes = chat_pb2.RoutingPreferences()
    made = plan("a/m", "b/m", "x", "a/m", "c/m", wishes=wishes)
    assert ids(made) == ["a/m", "b/m", "c/m"]
    assert left_out(made) == {"x": NOT_FOUND}


@pytest.mark.parametrize(
    ("wishes", "expected", "excluded"),
    [
        (chat_pb2.RoutingPreferences(provider_order=["C", "b"]), ["c/m", "b/m", "a/m"], []),
        (chat_pb2.RoutingPreferences(provider_only=["B"]), ["b/m"], ["a/m", "c/m"]),
        (chat_pb2.RoutingPreferences(provider_ignore=["A", "c"]), ["b/m"], ["a/m", "c/m"]),
        (chat_pb2.RoutingPreferences(allow_fallbacks=False), ["a/m"], ["b/m", "c/m"]),
        (chat_pb2.RoutingPreferences(allow_fallbacks=True), ["a/m", "b/m", "c/m"], []),
        (
            chat_pb2.RoutingPreferences(provider_order=["b"], allow_fallbacks=False),
            ["b/m"],
            ["a/m", "c/m"],
        ),
    ],
)
def test_wishes_choose_and_order_providers(
    wishes: chat_pb2.RoutingPreferences, expected: list[str], excluded: list[str]
) -> None:
    made = plan("a/m", "b/m", "c/m", wishes=wishes)
    assert ids(made) == expected
    assert left_out(made) == dict.fromkeys(excluded, INVALID)


def test_a_request_that_excludes_everybody_is_its_own_fault() -> None:
    refused = plan("a/m", wishes=chat_pb2.RoutingPreferences(provider_only=["z"])).refusal()
    assert (refused.reason, refused.param) == (INVALID, "provider")
    assert "a is not in provider.only" in refused.message


def test_a_fallback_serves_when_the_first_cannot() -> None:
    made = plan(
        "a/m",
        "b/m",
        wishes=chat_pb2.RoutingPreferences(allow_fallbacks=False),
        verdicts={"a/m": GatewayError(RATE, "later")},
    )
    assert ids(made) == ["b/m"]


def test_what_will_pass_is_told_before_what_will_not() -> None:
    verdicts = {
        "a/m": GatewayError(FORBIDDEN, "no"),
        "b/m": GatewayError(AUTH, "broken"),
        "c/m": GatewayError(RATE, "later", retry_after_ms=900),
        "d/m": GatewayError(RATE, "soon", retry_after_ms=100),
    }
    refused = plan(
        "a/m", "b/m", "c/m", "d/m", wishes=chat_pb2.RoutingPreferences(), verdicts=verdicts
    ).refusal()
    assert (refused.reason, refused.retry_after_ms) == (RATE, 100)
    assert [e.reason for e in refused.excluded] == [FORBIDDEN, AUTH, RATE, RATE]


def test_those_that_keep_failing_are_left_out_but_never_more_than_half() -> None:
    made = plan("a/m", "b/m", "c/m", "d/m")
    broken = {"a/m": 5.0, "b/m": 5.0, "d/m": 5.0}
    left = without_broken(made, lambda name: broken.get(name, 0.0))
    assert ids(left) == ["c/m", "a/m"]
    assert [(out.model, out.rule) for out in left.excluded] == [("b/m", BREAKER), ("d/m", BREAKER)]
    assert ids(without_broken(plan("a/m"), lambda _: 5.0)) == ["a/m"]
    assert without_broken(made, lambda _: 0.0) is made


def test_whom_to_try_after_a_certain_failure_is_nobody_who_is_tried_anyway() -> None:
    made = plan("a/m", "b/m")
    assert with_rescue(made, {}) is made
    denied = {"d/m": GatewayError(FORBIDDEN, "no")}
    both = with_rescue(made, {32: plan("b/m", "c/m", "d/m", verdicts=denied), 33: plan("a/m")})
    assert {reason: [d.id for d in found] for reason, found in both.rescue.items()} == {32: ["c/m"]}
    assert left_out(both) == {"d/m": FORBIDDEN}
