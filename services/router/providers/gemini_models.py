"""How Gemini's models think, and what an effort becomes.

Sources: https://ai.google.dev/gemini-api/docs/thinking (levels and budgets by model) and
https://ai.google.dev/gemini-api/docs/openai#thinking (what OpenAI's ``reasoning_effort`` stands
for). Gemini 3 and later take a level, Gemini 2.5 takes a budget, earlier models do not think. A
name without a version (``gemini-flash-latest``) is taken to be of the newest kind.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Final

from onegate.router.v1 import chat_pb2
from services.router.providers.foreign import Json, unsupported

PROVIDER: Final = "Gemini"

BUDGETS: Final[Mapping[int, int]] = {
    chat_pb2.THINKING_EFFORT_MINIMAL: 1_024,
    chat_pb2.THINKING_EFFORT_LOW: 1_024,
    chat_pb2.THINKING_EFFORT_MEDIUM: 8_192,
    chat_pb2.THINKING_EFFORT_HIGH: 24_576,
    chat_pb2.THINKING_EFFORT_XHIGH: 24_576,
    chat_pb2.THINKING_EFFORT_MAX: 24_576,
}
"""Thinking tokens by effort for Gemini 2.5; 24,576 is also the most that its Flash models take."""

LEVELS: Final[Mapping[int, str]] = {
    chat_pb2.THINKING_EFFORT_MINIMAL: "MINIMAL",
    chat_pb2.THINKING_EFFORT_LOW: "LOW",
    chat_pb2.THINKING_EFFORT_MEDIUM: "MEDIUM",
    chat_pb2.THINKING_EFFORT_HIGH: "HIGH",
    chat_pb2.THINKING_EFFORT_XHIGH: "HIGH",
    chat_pb2.THINKING_EFFORT_MAX: "HIGH",
}
"""Thinking levels by effort from Gemini 3 on."""

_ALL: Final = ("MINIMAL", "LOW", "MEDIUM", "HIGH")
_MODEL_LEVELS: Final[Sequence[tuple[str, Sequence[str]]]] = (
    ("gemini-3-pro", ("LOW", "HIGH")),
    ("gemini-3-flash", _ALL),
    ("gemini-3.1-flash-lite", _ALL),
    ("gemini-3.5-flash", _ALL),
    ("gemini-3.6-flash", _ALL),
    ("", ("LOW", "MEDIUM", "HIGH")),
)
"""The levels of a model by the beginning of its name; the last row is every other model's."""

_DYNAMIC: Final = -1
_PARAM: Final = "reasoning_effort"
_VERSION: Final = re.compile(r"gemini-(\d+(?:\.\d+)?)")
_NEWEST: Final = 99.0


def version(model: str) -> float:
    """The generation of the model, as a number: 2.5, 3, 3.1."""
    match = _VERSION.search(model)
    return float(match[1]) if match else _NEWEST


def thinking_config(request: chat_pb2.Thinking, model: str) -> Json:
    """The wire's ``thinkingConfig``; empty when nothing needs to be said.

    Raises UNSUPPORTED_PARAMETER when the model cannot do what is asked.
    """
    config: Json = {}
    if request.HasField("include_thoughts"):
        config["includeThoughts"] = request.include_thoughts
    off = request.effort == chat_pb2.THINKING_EFFORT_NONE or (
        request.HasField("enabled") and not request.enabled
    )
    generation = version(model)
    if generation < 2.5:
        if request.HasField("budget_tokens") or (not off and _asks(request)):
            raise unsupported(_PARAM, PROVIDER, "This model does not think.")
        return {}
    if request.HasField("budget_tokens"):
        config["thinkingBudget"] = request.budget_tokens
    elif off:
        if generation >= 3 or "2.5-pro" in model:
            raise unsupported(_PARAM, PROVIDER, "This model always thinks; ask for `low`.")
        config["thinkingBudget"] = 0
    elif generation >= 3:
        if request.effort in LEVELS:
            config["thinkingLevel"] = _level(LEVELS[request.effort], model)
    elif _asks(request):
        config["thinkingBudget"] = BUDGETS.get(request.effort, _DYNAMIC)
    return config


def _asks(request: chat_pb2.Thinking) -> bool:
    """Whether the caller wants thinking, however much."""
    return request.enabled or request.effort in LEVELS


def _level(wanted: str, model: str) -> str:
    """The level, or the next stronger one that the model has, as Google maps them."""
    name = model.removeprefix("models/")
    known = next(levels for prefix, levels in _MODEL_LEVELS if name.startswith(prefix))
    return next(level for level in _ALL[_ALL.index(wanted) :] if level in known)
