"""Policies that choose a model by what a call is like."""

import json
import time
from typing import Any

import pytest

from onegate.common.v1 import content_pb2
from onegate.router.v1 import chat_pb2
from runtime.route_settings import PolicyModel, PolicyRule, PolicySettings
from services.router.routing.features import Features, holds
from services.router.routing.observed import Observed
from services.router.routing.policies import SetPolicies, chosen
from services.router.routing.routes import Asked, Look, Routes

NOW_S = 1000.0
RATES = {"a/big": 10.0, "b/mid": 4.0, "c/small": 1.0}
MODELS = (
    PolicyModel(model="a/big", quality=0.95),
    PolicyModel(model="b/mid", quality=0.7),
    PolicyModel(model="c/small", quality=0.4),
)
TOOLS = chat_pb2.CHAT_FEATURE_TOOLS
IMAGE = chat_pb2.CHAT_FEATURE_IMAGE_INPUT


def native(text: str, *needs: "chat_pb2.ChatFeature.ValueType") -> Features:
    body = json.dumps({"messages": [{"role": "user", "content": text}]}).encode()
    own = chat_pb2.NativeRequest(body=body, input_tokens_bound=len(body), features=needs)
    return Features(chat_pb2.ChatRequest(native=own))


def typed(text: str) -> Features:
    part = content_pb2.Part(text=content_pb2.TextPart(text=text))
    return Features(chat_pb2.ChatRequest(messages=[content_pb2.Message(parts=[part])]))


def look(observed: Observed | None = None, lacking: str = "", window: int = 0) -> Look:
    return Look(
        seen=(observed or Observed()).find,
        rate=lambda model: RATES.get(model, float("inf")),
        window=lambda model: window if model == "c/small" else 0,
        lacks=lambda model, needs: model == lacking and bool(needs),
        offering=lambda _: (),
        resolves=lambda model: "/" in model,
        broken_s=lambda _: 0.0,
        full=lambda model: (observed or Observed()).full(model, NOW_S),
        now_s=NOW_S,
    )


def rule(**fields: Any) -> PolicyRule:
    return PolicyRule(**{"name": "x", "models": ("a/big",), **fields})


def auto(*rules: PolicyRule, **weights: float) -> PolicySettings:
    return PolicySettings(name="onegate/auto", model=MODELS, rule=rules, **weights)


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("What is the weather like in Paris, and how do I get to the airport?", "en"),
        ("Wie ist das Wetter in Paris und wie komme ich mit der Bahn zum Flughafen?", "de"),
        ("Quel est le temps à Paris et que faire dans la ville avec les enfants ?", "fr"),
        ("¿Qué tiempo hace en París y cómo llego al aeropuerto con los niños para el tren?", "es"),
        ("Какая погода в Париже?", "ru"),
        ("巴黎的天气怎么样", "zh"),
        ("パリの天気はどうですか", "ja"),
        ("파리 날씨가 어때요?", "ko"),
        ("xyzzy 42", ""),
    ],
)
def test_a_language_is_told_whatever_way_the_text_comes(text: str, language: str) -> None:
    assert native(text).language == language
    assert typed(text).language == language


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("```\nx\n```", True),
        ("Fix this: def f(x):\n  import os\n", True),
        ("SELECT a FROM b; why does `return x;` fail?", True),
        ("I want to import a car from Japan.", False),
        ("The class was a function of time.", False),
    ],
)
def test_a_program_is_told_from_prose(text: str, code: bool) -> None:
    assert native(text).code is code
    assert typed(text).code is code


@pytest.mark.parametrize(
    ("fields", "held"),
    [
        ({}, True),
        ({"tools": True}, True),
        ({"tools": False}, False),
        ({"images": True}, False),
        ({"images": False, "audio": False, "files": False, "json_schema": False}, True),
        ({"input_tokens_min": 5, "input_tokens_max": 1000}, True),
        ({"input_tokens_min": 1000}, False),
        ({"input_tokens_max": 5}, False),
        ({"code": False, "language": ("en", "de")}, True),
        ({"code": True}, False),
        ({"language": ("fr",)}, False),
    ],
)
def test_a_rule_holds_when_everything_that_it_says_does(fields: dict[str, Any], held: bool) -> None:
    call = native("What is the weather like in Paris, and how do I get to the airport?", TOOLS)
    assert holds(rule(**fields), call) is held


def test_what_a_typed_call_needs_is_seen() -> None:
    request = chat_pb2.ChatRequest(
        tools=[chat_pb2.Tool()],
        messages=[content_pb2.Message(parts=[content_pb2.Part(image=content_pb2.ImagePart())])],
        response_format=chat_pb2.ResponseFormat(kind=chat_pb2.RESPONSE_FORMAT_KIND_JSON_SCHEMA),
    )
    assert Features(request).needs == {TOOLS, IMAGE, chat_pb2.CHAT_FEATURE_JSON_SCHEMA}


@pytest.mark.parametrize(
    ("weights", "first"),
    [
        ({"quality": 1.0, "cost": 0.0, "latency": 0.0}, "a/big"),
        ({"quality": 0.0, "cost": 1.0, "latency": 0.0}, "c/small"),
        ({"quality": 1.0, "cost": 0.5, "latency": 0.0}, "b/mid"),
        ({"quality": 0.0, "cost": 0.0, "latency": 1.0}, "b/mid"),
    ],
)
def test_the_best_for_what_counts_goes_first(weights: dict[str, float], first: str) -> None:
    observed = Observed()
    for model, first_s in (("a/big", 0.9), ("b/mid", 0.1), ("c/small", 0.5)):
        observed.of(model).succeeded(first_s, 1, 0.0, NOW_S)
    models, said = chosen(auto(**weights), native("Hi"), look(observed))
    assert (models[0], len(models)) == (first, 3)
    assert said == "onegate/auto; no rule, best of 3"


def test_who_fails_or_is_full_goes_after_the_others() -> None:
    observed = Observed()
    for _ in range(60):
        observed.of("c/small").failed(NOW_S)
    observed.of("b/mid").full_until_s = NOW_S + 1
    models, _ = chosen(auto(quality=0.0, latency=0.0), native("Hi"), look(observed))
    assert models[0] == "a/big"


def test_the_first_rule_that_holds_says_from_which() -> None:
    rules = (
        rule(name="tools", tools=True, models=("b/mid", "a/big")),
        rule(name="code", code=True),
    )
    models, said = chosen(auto(*rules, cost=0.0), native("```x```", TOOLS), look())
    assert (models, said) == (["a/big", "b/mid"], "onegate/auto; rule tools, best of 2")
    models, said = chosen(auto(*rules), native("```x```"), look())
    assert (models, said) == (["a/big"], "onegate/auto; rule code, best of 1")


def test_who_cannot_do_what_the_call_needs_is_not_chosen_while_another_can() -> None:
    models, _ = chosen(auto(), native("Hi", IMAGE), look(lacking="c/small"))
    assert "c/small" not in models
    models, _ = chosen(auto(), native("x" * 400), look(window=50))
    assert "c/small" not in models
    only = auto(rule(models=("c/small",)))
    assert chosen(only, native("Hi", IMAGE), look(lacking="c/small"))[0] == ["c/small"]


def test_a_policy_is_asked_for_by_its_name_alone() -> None:
    routes = Routes((), SetPolicies([auto(rule(name="code", code=True))]))
    request = native("```x```").request
    asked = Asked(models=("onegate/auto", "d/m"), request=request)
    assert routes.concerns(asked)
    expanded = routes.expand(asked, look())
    assert expanded.models == ["a/big", "d/m"]
    assert expanded.said == "onegate/auto; rule code, best of 1"
    assert routes.reachable("onegate/auto") == ["a/big", "b/mid", "c/small"]
    assert not routes.concerns(Asked(models=("a/big",)))


def test_a_long_prompt_takes_no_longer_than_its_ends() -> None:
    rules = [rule(name=f"{n}", code=True, language=("th",), tools=True) for n in range(20)]
    call = native("all the words of a novel, and \\u4f60 " * 50_000)
    began_s = time.process_time()
    chosen(auto(*rules, rule(language=("ko",), code=False)), call, look())
    # Some hundred microseconds; the bound only tells that nobody reads the whole novel.
    assert time.process_time() - began_s < 0.1
    assert len(call.sample) <= 2 * 4096 + 1
