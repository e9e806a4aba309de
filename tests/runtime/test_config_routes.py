"""``[[route]]`` tables: what they become, and what is said of those that cannot be."""

import dataclasses
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest

from runtime.config import (
    ConfigError,
    PolicyModel,
    PolicyRule,
    PolicySettings,
    RouteSettings,
    RouteTarget,
    load,
)
from tests.runtime.test_config import _commented_out

ENVIRON = {"OPENAI_API_KEY": "k", "GEMINI_API_KEY": "k"}
TO = '[[route.to]]\nmodel = "openai/m"\n'
BACK = 'fallbacks = ["r"]\n'
Write = Callable[[str], Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write_to(text: str) -> Path:
        path = tmp_path / "onegate.toml"
        path.write_text(text)
        return path

    return write_to


def test_the_example_shows_every_setting_of_a_route_and_loads(write: Write) -> None:
    text = "[[route]]" + _commented_out().partition("[[route]]")[2].partition("[[policy]]")[0]
    tables = tomllib.loads(text)["route"]
    assert {key for table in tables for key in table} == {
        f.name for f in dataclasses.fields(RouteSettings)
    }
    assert {key for table in tables for to in table["to"] for key in to} == {
        f.name for f in dataclasses.fields(RouteTarget)
    }
    smart, cheap = load(write(text), ENVIRON, {}).routes
    assert (smart.name, smart.fallbacks, smart.to[0]) == (
        "smart",
        ("cheap",),
        RouteTarget(model="openai/gpt-4o", weight=95.0),
    )
    assert (cheap.spread, [to.model for to in cheap.to]) == (
        "cost",
        ["gemini/gemini-2.5-flash-lite", "openai/gpt-4o-mini"],
    )


def test_the_example_shows_every_setting_of_a_policy_and_loads(write: Write) -> None:
    text = "[[policy]]" + _commented_out().partition("[[policy]]")[2]
    (table,) = tomllib.loads(text)["policy"]
    for cls, shown in (
        (PolicySettings, [table]),
        (PolicyModel, table["model"]),
        (PolicyRule, table["rule"]),
    ):
        assert {key for one in shown for key in one} == {f.name for f in dataclasses.fields(cls)}
    (policy,) = load(write(text), ENVIRON, {}).policies
    assert [(one.model, one.quality) for one in policy.model] == [
        ("openai/gpt-4o", 0.9),
        ("openai/gpt-4o-mini", 0.6),
    ]
    assert (policy.rule[0].code, policy.rule[0].language) == (True, ("en", "de"))


MODEL = '[[policy.model]]\nmodel = "openai/m"\n'


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (f"[[policy]]\n{MODEL}", ":1: a policy needs name"),
        ('[[policy]]\nname = "p"\n', ":1: a policy needs 1 to 64 models: [[policy.model]]"),
        (
            f'[[policy]]\nname = "p"\n{MODEL}[[policy.rule]]\nname = "x"\nmodels = ["a/m"]\n',
            ':7: the policy has no model "a/m"',
        ),
        (
            f'[[policy]]\nname = "p"\n{MODEL}[[policy.rule]]\nname = "x"\n',
            ":5: a policy.rule needs models",
        ),
        (
            f'[[policy]]\nname = "p"\n{MODEL}[[policy.rule]]\nlanguage = ["xx"]\n',
            ":6: policy.rule.language must be one of en,",
        ),
        (
            '[[policy]]\nname = "p"\n[[policy.model]]\nmodel = "opena/m"\n',
            ':4: there is no provider "opena"; did you mean "openai"?',
        ),
        (
            f'[[route]]\nname = "p"\n{TO}[[policy]]\nname = "p"\n{MODEL}',
            ':6: there is a route or policy "p" already',
        ),
        (f'[[policy]]\nname = "p"\nqualty = 1\n{MODEL}', 'policy.qualty; did you mean "quality"?'),
    ],
)
def test_a_fault_of_a_policy_is_said_with_its_place(write: Write, text: str, said: str) -> None:
    with pytest.raises(ConfigError) as raised:
        load(write(text), ENVIRON, {})
    assert said in str(raised.value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("route = 3\n", ":1: route is written as [[route]] tables"),
        (f"[[route]]\n{TO}", ":1: a route needs name"),
        ('[[route]]\nname = "r"\n', ":1: a route needs 1 to 64 deployments: [[route.to]]"),
        (f'[[route]]\nname = "r"\n{TO}{TO}', ":1: a route names each deployment once"),
        (f'[[route]]\nname = "a b"\n{TO}', ":2: route.name must be a model's name"),
        (
            f'[[route]]\nname = "r"\nspred = "cost"\n{TO}',
            ':3: there is no setting route.spred; did you mean "spread"?',
        ),
        (
            f'[[route]]\nname = "r"\nspread = "price"\n{TO}',
            ":3: route.spread must be one of weight, least-outstanding, latency, cost, throughput",
        ),
        (
            f'[[route]]\nname = "r"\n{TO}weight = -1\n',
            ":5: route.to.weight must be between 0 and 1,000,000",
        ),
        (f'[[route]]\nname = "r"\n{TO}wait = 1\n', ":5: there is no setting route.to.wait"),
        (
            '[[route]]\nname = "r"\n[[route.to]]\nmodel = "m"\n',
            ":4: route.to.model must be a model at a provider, like openai/gpt-4o-mini",
        ),
        ('[[route]]\nname = "r"\n[[route.to]]\nweight = 2\n', ":3: a route.to needs model"),
        (
            '[[route]]\nname = "r"\n[[route.to]]\nmodel = "opena/m"\n',
            ':4: there is no provider "opena"; did you mean "openai"?',
        ),
        (
            f'[[route]]\nname = "r"\n{TO}[[route]]\nname = "r"\n{TO}',
            ':6: there is a route "r" already',
        ),
        (
            f'[[route]]\nname = "r"\nfallbacks = ["x"]\n{TO}',
            ':3: route.fallbacks: there is no route "x"',
        ),
        (
            f'[[route]]\nname = "r"\nfallbacks = ["s"]\n{TO}[[route]]\nname = "s"\n{BACK}{TO}',
            ':3: route.fallbacks lead from "r" back to itself',
        ),
        (
            f'[[route]]\nname = "r"\ncontext_fallbacks = ["other/m"]\n{TO}',
            ':3: there is no provider "other"',
        ),
        (
            f'[[route]]\nname = "r"\nmirror_to = "other/m"\nmirror_percent = 5\n{TO}',
            ':3: there is no provider "other"',
        ),
        (
            f'[[route]]\nname = "r"\nmirror_percent = 5\n{TO}',
            ":1: a route that mirrors needs mirror_to and mirror_percent",
        ),
    ],
)
def test_a_fault_is_said_with_its_place(write: Write, text: str, said: str) -> None:
    with pytest.raises(ConfigError) as raised:
        load(write(text), ENVIRON, {})
    assert said in str(raised.value)


def test_a_process_that_calls_no_provider_does_not_ask_whether_it_is_there(write: Write) -> None:
    text = f'[[route]]\nname = "r"\n{TO}'
    (route,) = load(write(text), {}, {}, check_credentials=False).routes
    assert route.name == "r"
    with pytest.raises(ConfigError, match='no provider "openai"'):
        load(write(text), {"GEMINI_API_KEY": "k"}, {})
