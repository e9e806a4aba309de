"""What Anthropic's models differ in, as a table, and how an effort becomes one of their ways to
think.

Sources: https://platform.claude.com/docs/en/about-claude/models/overview (output limits),
https://platform.claude.com/docs/en/build-with-claude/thinking and …/effort, and Anthropic's own
per-model summary in https://github.com/anthropics/skills (skills/claude-api/SKILL.md, "Thinking &
Effort"). A newer version of a known family is taken to be like the newest one listed; any other
name is an Anthropic-compatible endpoint's and gets the older, budget form.
"""

import enum
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from onegate.router.v1 import chat_pb2
from services.router.providers.foreign import Json, unsupported

PROVIDER: Final = "Anthropic"


class Off(enum.Enum):
    """How a model is kept from thinking: the ``type`` to say, or that nothing needs or helps to be
    said.
    """

    OMITTED = "omitted"
    DISABLED = "disabled"
    BETWEEN_TOOLS = "between_tools"
    NEVER = "never"


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelTraits:
    """What a model takes. ``output_tokens_max`` is sent when the caller names no limit."""

    output_tokens_max: int
    budgets: bool = False
    adaptive: bool = False
    off: Off = Off.OMITTED
    efforts: tuple[str, ...] = ()
    sampling: bool = True
    system_turns: bool = False


_LEVELS: Final = ("low", "medium", "high", "xhigh", "max")
_4_6: Final = ModelTraits(
    output_tokens_max=128_000,
    budgets=True,
    adaptive=True,
    efforts=("low", "medium", "high", "max"),
)


def _adaptive(off: Off, *, system_turns: bool = False) -> ModelTraits:
    """Claude 4.7 and later: adaptive thinking only, every effort, no sampling parameters."""
    return ModelTraits(
        output_tokens_max=128_000,
        adaptive=True,
        off=off,
        efforts=_LEVELS,
        sampling=False,
        system_turns=system_turns,
    )


MODELS: Final[Mapping[str, Mapping[tuple[int, int], ModelTraits]]] = {
    "opus": {
        (3, 0): ModelTraits(output_tokens_max=4_096),
        (4, 0): ModelTraits(output_tokens_max=32_000, budgets=True),
        (4, 5): ModelTraits(
            output_tokens_max=64_000, budgets=True, efforts=("low", "medium", "high")
        ),
        (4, 6): _4_6,
        (4, 7): _adaptive(Off.OMITTED),
        (4, 8): _adaptive(Off.OMITTED, system_turns=True),
        (5, 0): _adaptive(Off.DISABLED, system_turns=True),
        (5, 5): _adaptive(Off.NEVER, system_turns=True),
    },
    "sonnet": {
        (3, 0): ModelTraits(output_tokens_max=4_096),
        (3, 5): ModelTraits(output_tokens_max=8_192),
        (3, 7): ModelTraits(output_tokens_max=64_000, budgets=True),
        (4, 0): ModelTraits(output_tokens_max=64_000, budgets=True),
        (4, 6): _4_6,
        (5, 0): _adaptive(Off.DISABLED),
        (5, 5): _adaptive(Off.BETWEEN_TOOLS, system_turns=True),
    },
    "haiku": {
        (3, 0): ModelTraits(output_tokens_max=4_096),
        (3, 5): ModelTraits(output_tokens_max=8_192),
        (4, 5): ModelTraits(output_tokens_max=64_000, budgets=True),
        (5, 5): _adaptive(Off.DISABLED),
    },
    "fable": {(5, 0): _adaptive(Off.NEVER, system_turns=True)},
    "mythos": {(5, 0): _adaptive(Off.NEVER, system_turns=True)},
}
"""By family and by the first version that behaves so."""

UNKNOWN: Final = ModelTraits(output_tokens_max=8_192, budgets=True)
"""A model of an Anthropic-compatible endpoint; 8,192 output tokens is a limit they all take."""

BUDGETS: Final[Mapping[int, int]] = {
    chat_pb2.THINKING_EFFORT_MINIMAL: 1_024,
    chat_pb2.THINKING_EFFORT_LOW: 1_024,
    chat_pb2.THINKING_EFFORT_MEDIUM: 8_192,
    chat_pb2.THINKING_EFFORT_HIGH: 24_576,
    chat_pb2.THINKING_EFFORT_XHIGH: 32_000,
    chat_pb2.THINKING_EFFORT_MAX: 32_000,
}
"""Thinking tokens by effort, where a model takes a budget. Anthropic gives no table, only the least
(1,024) and the advice to stay below 32,000 outside of batches; between them stand the figures that
Google documents for the same words (https://ai.google.dev/gemini-api/docs/openai)."""

_BUDGET_MIN: Final = 1_024
_EFFORTS: Final[Mapping[int, str]] = {
    chat_pb2.THINKING_EFFORT_MINIMAL: "low",
    chat_pb2.THINKING_EFFORT_LOW: "low",
    chat_pb2.THINKING_EFFORT_MEDIUM: "medium",
    chat_pb2.THINKING_EFFORT_HIGH: "high",
    chat_pb2.THINKING_EFFORT_XHIGH: "xhigh",
    chat_pb2.THINKING_EFFORT_MAX: "max",
}
_PARAM: Final = "reasoning_effort"
_NAME: Final = re.compile(
    r"claude-(?:(?P<family>[a-z]+)-(?P<version>\d{1,2}(?:-\d{1,2})?)(?!\d)"
    r"|(?P<old_version>\d(?:-\d)?)-(?P<old_family>[a-z]+))"
)


def traits(model: str) -> ModelTraits:
    """What the model of this name takes."""
    match = _NAME.search(model)
    if match is None:
        return UNKNOWN
    rows = MODELS.get(match["family"] or match["old_family"])
    if rows is None:
        return UNKNOWN
    major, _, minor = (match["version"] or match["old_version"]).partition("-")
    version = (int(major), int(minor or 0))
    known = [first for first in rows if first <= version]
    return rows[max(known)] if known else UNKNOWN


def thinking(
    request: chat_pb2.Thinking, model: ModelTraits, max_tokens: int
) -> tuple[Json | None, str]:
    """The wire's ``thinking`` object, if any, and ``output_config.effort``, empty for none.

    Raises UNSUPPORTED_PARAMETER when the model cannot do what is asked.
    """
    effort = request.effort
    off = effort == chat_pb2.THINKING_EFFORT_NONE or (
        request.HasField("enabled") and not request.enabled
    )
    if off:
        return _off(model), _level(effort, model) if effort in _EFFORTS else ""
    if request.HasField("budget_tokens"):
        if not model.budgets:
            raise unsupported(
                "thinking.budget_tokens",
                PROVIDER,
                "This model takes `reasoning_effort` instead of a budget.",
            )
        config: Json = {"type": "enabled", "budget_tokens": request.budget_tokens}
        return _shown(config, request, model), _level(effort, model) if effort in _EFFORTS else ""
    if model.adaptive:
        return _shown({"type": "adaptive"}, request, model), _level(effort, model)
    if not model.budgets:
        raise unsupported(_PARAM, PROVIDER, "This model does not think.")
    budget = _budget(effort, max_tokens)
    return _shown({"type": "enabled", "budget_tokens": budget}, request, model), ""


def _off(model: ModelTraits) -> Json | None:
    """The wire's way to say that the model must not think."""
    if model.off is Off.NEVER:
        raise unsupported(_PARAM, PROVIDER, "This model always thinks; ask for `low`.")
    return None if model.off is Off.OMITTED else {"type": model.off.value}


def _shown(config: Json, request: chat_pb2.Thinking, model: ModelTraits) -> Json:
    """``display`` where it differs from the model's default: models that take budgets show their
    thoughts, later ones do not.
    """
    if request.HasField("include_thoughts"):
        if not request.include_thoughts:
            config["display"] = "omitted"
        elif not model.budgets:
            config["display"] = "summarized"
    return config


def _level(effort: int, model: ModelTraits) -> str:
    """The effort's word, or the strongest weaker one that the model knows; empty for its
    default.
    """
    if effort not in _EFFORTS or not model.efforts:
        return ""
    allowed = _LEVELS[: _LEVELS.index(_EFFORTS[effort]) + 1]
    return [level for level in allowed if level in model.efforts][-1]


def _budget(effort: int, max_tokens: int) -> int:
    """Thinking tokens for an effort, leaving half of ``max_tokens`` to the answer when it is
    small.
    """
    if max_tokens <= _BUDGET_MIN:
        raise unsupported(
            _PARAM,
            PROVIDER,
            f"Thinking takes at least {_BUDGET_MIN} tokens: raise `max_completion_tokens`.",
        )
    wanted = BUDGETS.get(effort, BUDGETS[chat_pb2.THINKING_EFFORT_MEDIUM])
    return max(_BUDGET_MIN, min(wanted, max_tokens // 2))
