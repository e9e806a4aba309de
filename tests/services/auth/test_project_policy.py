"""What a project is held to becomes what its keys are held to, and never anything wider."""

from dataclasses import replace

import pytest

from onegate.auth.v1 import grant_pb2
from runtime.errors import GatewayError
from runtime.patterns import allows
from services.auth.keys import checked_scopes
from services.auth.objects import RateLimitRecord
from services.auth.policy import NO_SCOPE, Policy, narrow
from services.auth.project_policy import ALLOW, DENY, policy_of
from services.auth.records import ProjectRecord
from tests.services.auth.ports import NOON

PROJECT = ProjectRecord(
    id="proj_1",
    organization_id="org_1",
    name="p",
    policy=Policy(),
    version=1,
    created_at=NOON,
)
LIMIT = RateLimitRecord(
    id="rl_1",
    organization_id="org_1",
    project_id="proj_1",
    model="openai/*",
    requests_per_minute=5,
    tokens_per_minute=None,
    images_per_minute=7,
    audio_megabytes_per_minute=7,
    requests_per_day=0,
    batch_input_tokens_per_day=7,
)


@pytest.mark.parametrize(
    ("mode", "models", "open_models", "closed_models"),
    [
        ("", (), ("openai/a", "demo/b"), ()),
        (ALLOW, ("openai/*",), ("openai/a",), ("demo/a",)),
        (ALLOW, ("a",), ("openai/a", "demo/a", "a"), ("demo/b", "openai/ab")),
        (ALLOW, ("gpt-*",), ("openai/gpt-5",), ("openai/o3",)),
        (ALLOW, ("*",), ("openai/a",), ()),
        (ALLOW, (), (), ("openai/a", "demo/b")),
        (DENY, ("a",), ("openai/b",), ("openai/a", "demo/a")),
        (DENY, ("openai/*",), ("demo/a",), ("openai/a",)),
        (DENY, (), ("openai/a",), ()),
    ],
)
def test_a_list_of_models_means_what_people_mean(
    mode: str, models: tuple[str, ...], open_models: tuple[str, ...], closed_models: tuple[str, ...]
) -> None:
    policy = policy_of(replace(PROJECT, model_mode=mode, models=models), ())
    for model in open_models:
        assert allows(policy.models_allowed, policy.models_denied, model)
    for model in closed_models:
        assert not allows(policy.models_allowed, policy.models_denied, model)


@pytest.mark.parametrize(("model", "pattern"), [("openai/*", "openai/*"), ("a", "*/a"), ("*", "")])
def test_a_rate_limit_counts_for_the_whole_project(model: str, pattern: str) -> None:
    limit = replace(LIMIT, model=model, tokens_per_day=9, concurrent_calls=2)
    rates = policy_of(PROJECT, [limit]).rate_limits
    assert {(rate.meter, rate.window_s): rate.amount for rate in rates} == {
        (grant_pb2.RATE_METER_REQUESTS, 60): 5,
        (grant_pb2.RATE_METER_REQUESTS, 86_400): 0,
        (grant_pb2.RATE_METER_TOKENS, 86_400): 9,
        (grant_pb2.RATE_METER_IMAGES, 60): 7,
        (grant_pb2.RATE_METER_AUDIO_MEGABYTES, 60): 7,
        (grant_pb2.RATE_METER_CONCURRENCY, 0): 2,
    }
    assert {(rate.model, rate.scope) for rate in rates} == {(pattern, grant_pb2.RATE_SCOPE_PROJECT)}


@pytest.mark.parametrize(
    ("parent", "child", "both"),
    [
        ((), (), ()),
        (("a",), (), ("a",)),
        ((), ("a",), ("a",)),
        (("a", "b"), ("b", "c"), ("b",)),
        (("a",), ("b",), (NO_SCOPE,)),
        (("model.request",), ("model.chat.request",), ("model.chat.request",)),
        (("model.chat.request", "model.read"), ("model.request",), ("model.chat.request",)),
        (("model.chat.request",), ("model.images.request",), (NO_SCOPE,)),
        (("model.request",), ("model.read",), (NO_SCOPE,)),
    ],
)
def test_scopes_that_both_levels_say_are_left(
    parent: tuple[str, ...], child: tuple[str, ...], both: tuple[str, ...]
) -> None:
    assert narrow(Policy(scopes=parent), Policy(scopes=child)).scopes == both


def test_scopes_are_known_words_each_once() -> None:
    kind = grant_pb2.KEY_KIND_PROJECT
    asked = ["api.all.read", "model.read", "api.model.request"]
    assert checked_scopes(asked, kind) == ("model.read", "model.request")
    with pytest.raises(GatewayError) as caught:
        checked_scopes(["model.read", "everything"], kind)
    assert caught.value.param == "scopes[1]"
