"""What the models on Bedrock differ in, as a table: Converse has one form for all of them, and
``additionalModelRequestFields`` for what only some can do.

Sources: a model's own page under
https://docs.aws.amazon.com/bedrock/latest/userguide/model-parameters.html,
https://docs.aws.amazon.com/bedrock/latest/userguide/inference-reasoning.html (who thinks),
https://docs.aws.amazon.com/bedrock/latest/userguide/prompt-caching.html (who caches, and for how
long), https://docs.aws.amazon.com/nova/latest/nova2-userguide/extended-thinking.html, and for
``reasoning_effort`` and ``reasoning_config`` what the models answered when they were asked. A model
without a row is asked for nothing beyond Converse.
"""

import enum
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from onegate.router.v1 import chat_pb2
from services.router.providers import anthropic_models
from services.router.providers.foreign import Json, unsupported

PROVIDER: Final = "Amazon Bedrock"


class Reasoning(enum.Enum):
    """How a model is told to think."""

    CLAUDE = enum.auto()
    """Anthropic's ``thinking`` and ``output_config.effort``."""
    NOVA = enum.auto()
    """``reasoningConfig: {"type": "enabled", "maxReasoningEffort"}``; off unless it is on."""
    EFFORT = enum.auto()
    """``reasoning_effort``; it cannot be switched off."""
    SWITCH = enum.auto()
    """``reasoning_config: "high"``; off unless it is on."""
    ALWAYS = enum.auto()
    """It thinks as much as it likes."""
    UNKNOWN = enum.auto()
    """It does not think, or nobody says how it is told to."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """What a family of models takes.

    Attributes:
        reasoning: how it is told to think.
        top_k: where ``top_k`` stands in ``additionalModelRequestFields``; empty: it has none.
        caches: takes cache points in messages and the system prompt.
        caches_tools: takes cache points after tools.
        lifetimes: takes a lifetime for a cache point.
        thoughts: takes its thoughts back, with their proof.
        statuses: takes the status of a tool's result.
        plain_ids: takes neither dots nor colons in the ids of tool calls, as Anthropic's models.
    """

    reasoning: Reasoning = Reasoning.UNKNOWN
    top_k: tuple[str, ...] = ()
    caches: bool = False
    caches_tools: bool = False
    lifetimes: bool = False
    thoughts: bool = False
    statuses: bool = False
    plain_ids: bool = False


_NOVA: Final = Family(top_k=("inferenceConfig", "topK"), caches=True, statuses=True)

FAMILIES: Final[Sequence[tuple[str, Family]]] = (
    (
        "anthropic.claude",
        Family(
            reasoning=Reasoning.CLAUDE,
            top_k=("top_k",),
            caches=True,
            caches_tools=True,
            lifetimes=True,
            thoughts=True,
            statuses=True,
            plain_ids=True,
        ),
    ),
    (
        "amazon.nova-2",
        Family(
            reasoning=Reasoning.NOVA,
            top_k=("inferenceConfig", "topK"),
            caches=True,
            statuses=True,
        ),
    ),
    ("amazon.nova", _NOVA),
    ("openai.gpt-oss", Family(reasoning=Reasoning.EFFORT)),
    ("qwen.qwen3", Family(reasoning=Reasoning.SWITCH)),
    ("deepseek.r1", Family(reasoning=Reasoning.ALWAYS)),
    ("minimax.minimax", Family(reasoning=Reasoning.ALWAYS)),
    ("moonshot.kimi-k2-thinking", Family(reasoning=Reasoning.ALWAYS)),
)
"""By the beginning of the model's name, without the geography of its inference profile; the first
row that fits."""

_PLAIN: Final = Family()
_HIDDEN: Final = Family(
    caches=True, caches_tools=True, lifetimes=True, thoughts=True, plain_ids=True
)
"""A model behind an ARN that does not name it (``…:application-inference-profile/mi1dadi0g15f``):
cache points and proven thoughts were made for it, or the caller would not send them."""

_GEOGRAPHY: Final = re.compile(r"^(?:us|eu|apac|jp|au|ca|in|il|me|sa|global|us-gov)\.")

EFFORTS: Final[Mapping[int, str]] = {
    chat_pb2.THINKING_EFFORT_MINIMAL: "low",
    chat_pb2.THINKING_EFFORT_LOW: "low",
    chat_pb2.THINKING_EFFORT_MEDIUM: "medium",
    chat_pb2.THINKING_EFFORT_HIGH: "high",
    chat_pb2.THINKING_EFFORT_XHIGH: "high",
    chat_pb2.THINKING_EFFORT_MAX: "high",
}
"""The three efforts that Nova 2 and gpt-oss know."""

_PARAM: Final = "reasoning_effort"
_SAMPLING_DEFAULTS: Final[Mapping[str, object]] = {"temperature": 1, "topP": 1}


def family(model: str) -> Family:
    """What a model takes, by its id, inference profile or ARN."""
    name = model.rpartition("/")[2]
    name = _GEOGRAPHY.sub("", name)
    for start, row in FAMILIES:
        if name.startswith(start):
            return row
    return _PLAIN if "." in name else _HIDDEN


def thinking(request: chat_pb2.ChatRequest, model: str) -> Json:
    """What ``additionalModelRequestFields`` says of thinking; empty when nothing needs saying.

    Raises UNSUPPORTED_PARAMETER when the model cannot do what is asked.
    """
    asked = request.thinking
    off = asked.effort == chat_pb2.THINKING_EFFORT_NONE or (
        asked.HasField("enabled") and not asked.enabled
    )
    how = family(model).reasoning
    if how is Reasoning.CLAUDE:
        return _claude(request, model)
    if asked.HasField("budget_tokens"):
        raise unsupported("thinking.budget_tokens", PROVIDER, "This model takes no budget.")
    wants = not off and (asked.enabled or asked.effort in EFFORTS)
    if how in (Reasoning.EFFORT, Reasoning.ALWAYS) and off:
        raise unsupported(_PARAM, PROVIDER, "This model always thinks.")
    if not wants or (how is Reasoning.ALWAYS and asked.effort not in EFFORTS):
        return {}
    word = EFFORTS.get(asked.effort, "medium")
    said: Mapping[Reasoning, Json] = {
        Reasoning.NOVA: {"reasoningConfig": {"type": "enabled", "maxReasoningEffort": word}},
        Reasoning.SWITCH: {"reasoning_config": "high"},
        Reasoning.EFFORT: {"reasoning_effort": word},
    }
    if how not in said:
        hint = "Say it in the model's own words in `additionalModelRequestFields`."
        raise unsupported(_PARAM, PROVIDER, hint)
    return said[how]


def check_sampling(config: Json, model: str) -> None:
    """Leaves out values that change nothing where a model samples in its own way only, which
    Claude does from 4.7 on. Raises UNSUPPORTED_PARAMETER for others.
    """
    if family(model).reasoning is not Reasoning.CLAUDE or anthropic_models.traits(model).sampling:
        return
    for name, default in _SAMPLING_DEFAULTS.items():
        if config.get(name) == default:
            del config[name]
        elif name in config:
            param = "top_p" if name == "topP" else name
            raise unsupported(param, PROVIDER, "This model samples in its own way only.")


def put_top_k(more: Json, value: int, model: str) -> None:
    """Writes ``top_k`` where the model has it. Raises UNSUPPORTED_PARAMETER."""
    path = family(model).top_k
    if not path:
        raise unsupported("top_k", PROVIDER, "This model has no such knob.")
    *parents, name = path
    place: dict[str, Any] = more
    for parent in parents:
        place = place.setdefault(parent, {})
    place[name] = value


def _claude(request: chat_pb2.ChatRequest, model: str) -> Json:
    """Claude's thinking, as at Anthropic."""
    traits = anthropic_models.traits(model)
    output_tokens_max = request.output_tokens_max or traits.output_tokens_max
    shown, effort = anthropic_models.thinking(request.thinking, traits, output_tokens_max)
    said: Json = {} if shown is None else {"thinking": shown}
    if effort:
        said["output_config"] = {"effort": effort}
    return said
