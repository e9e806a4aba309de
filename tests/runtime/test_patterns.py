"""Model patterns: what they stand for and which covers which."""

import itertools
import re
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime import patterns

PATTERNS = st.text("ab/*", max_size=7)
MODELS = st.text("ab/", max_size=8)
SHORT_MODELS = ["".join(text) for n in range(7) for text in itertools.product("ab/", repeat=n)]


def by_expression(pattern: str, model: str) -> bool:
    """The same question, asked of the standard library."""
    expression = ".*".join(re.escape(part) for part in pattern.split("*"))
    return re.fullmatch(expression, model) is not None


@pytest.mark.parametrize(
    ("pattern", "model", "expected"),
    [
        ("openai/gpt-5", "openai/gpt-5", True),
        ("openai/gpt-5", "openai/gpt-5-mini", False),
        ("openai/*", "openai/gpt-5", True),
        ("openai/*", "azure/gpt-5", False),
        ("*", "anything/at/all", True),
        ("*/gpt-*-mini", "azure/gpt-5-mini", True),
        ("*/gpt-*-mini", "azure/gpt-mini", False),
        ("openrouter/*", "openrouter/meta/llama", True),
        ("a*a", "a", False),
        ("OpenAI/*", "openai/gpt-5", False),
        ("", "", True),
        ("", "x", False),
    ],
)
def test_a_star_stands_for_any_run(pattern: str, model: str, expected: bool) -> None:
    assert patterns.matches(pattern, model) is expected


@given(PATTERNS, MODELS)
def test_matching_agrees_with_a_regular_expression(pattern: str, model: str) -> None:
    assert patterns.matches(pattern, model) is by_expression(pattern, model)


@given(PATTERNS, PATTERNS)
def test_covering_means_that_no_model_is_left_out(wide: str, narrow: str) -> None:
    outside = [m for m in SHORT_MODELS if by_expression(narrow, m) and not by_expression(wide, m)]
    if patterns.covers(wide, narrow):
        assert outside == []


@given(PATTERNS, PATTERNS)
def test_what_is_not_covered_has_a_model_outside(wide: str, narrow: str) -> None:
    if not patterns.covers(wide, narrow):
        witness = narrow.replace("*", "#")
        assert by_expression(narrow, witness)
        assert not by_expression(wide, witness)


def test_no_pattern_makes_matching_slow() -> None:
    start = time.process_time()
    assert not patterns.matches("*a" * 100 + "*b", "a" * 100_000)
    assert time.process_time() - start < 2


@pytest.mark.parametrize(
    ("allowed", "denied", "expected"),
    [
        ([], [], True),
        (["openai/*"], [], True),
        (["azure/*"], [], False),
        (["azure/*", "openai/gpt-5"], [], True),
        ([], ["openai/*"], False),
        (["openai/*"], ["*"], False),
        (["openai/*"], ["azure/*"], True),
    ],
)
def test_denied_wins_and_an_empty_list_allows_every_model(
    allowed: list[str], denied: list[str], expected: bool
) -> None:
    assert patterns.allows(allowed, denied, "openai/gpt-5") is expected
