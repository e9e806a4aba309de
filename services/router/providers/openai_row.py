"""What a row of ``compatible.py`` says: everything in which a vendor's use of the OpenAI dialect
differs from OpenAI's own. Data only; the wire reads it.
"""

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, TypeAlias

from onegate.router.v1 import chat_pb2

FinishReason: TypeAlias = chat_pb2.FinishReason.ValueType

STOP: Final = chat_pb2.FINISH_REASON_STOP
LENGTH: Final = chat_pb2.FINISH_REASON_LENGTH
FILTERED: Final = chat_pb2.FINISH_REASON_CONTENT_FILTER
CALLS: Final = chat_pb2.FINISH_REASON_TOOL_CALLS

AUTO: Final = chat_pb2.TOOL_CHOICE_MODE_AUTO
NONE: Final = chat_pb2.TOOL_CHOICE_MODE_NONE
REQUIRED: Final = chat_pb2.TOOL_CHOICE_MODE_REQUIRED
ONE: Final = chat_pb2.TOOL_CHOICE_MODE_ONE
ALLOWED: Final = chat_pb2.TOOL_CHOICE_MODE_ALLOWED


class AudioForm(enum.Enum):
    """How sound is written in a message."""

    OBJECT = enum.auto()
    """``input_audio: {"data": base64, "format"}``, OpenAI's own."""
    OBJECT_URL = enum.auto()
    """The same, with a data URL for ``data``."""
    STRING = enum.auto()
    """``input_audio: base64``."""
    CONTENT = enum.auto()
    """``audio_content: {"content": data URL}``."""


class FileForm(enum.Enum):
    """How a document is written in a message."""

    OBJECT = enum.auto()
    """``file: {"file_data": data URL, "filename"}``, OpenAI's own; no URLs."""
    OBJECT_URL = enum.auto()
    """The same, and ``file_data`` may be a URL."""
    FILE_URL = enum.auto()
    """``file_url: {"url"}``; the data without its media type."""
    DOCUMENT_URL = enum.auto()
    """``document_url: url``."""


class Thoughts(enum.Enum):
    """Where the thoughts of an earlier turn are written when they go back."""

    OMITTED = ""
    """Nowhere: the vendor builds its context without them, and other models' thoughts are no
    part of the conversation."""
    CONTENT = "reasoning_content"
    """``reasoning_content``, a text."""
    REASONING = "reasoning"
    """``reasoning``, a text."""
    DETAILS = "reasoning_details"
    """``reasoning_details``, with signatures."""
    AS_GIVEN = "as given"
    """``reasoning_details`` for what has a proof, else ``reasoning_content``."""
    PARTS = "content"
    """Parts of the content: ``{"type": "thinking", "thinking": [{"type": "text", …}]}``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ThinkingKnobs:
    """How a wish for thinking is said. Paths lead into objects at their dots; an empty one means
    that the vendor has no such knob.

    Attributes:
        effort: the path of the effort.
        words: the vendor's words for efforts, where they differ from OpenAI's.
        budget: the path of a budget in tokens.
        on: members that switch thinking on.
        off: members that switch it off; ``None`` when nothing does.
        shown: whether thoughts are ever part of the answer.
    """

    effort: str = "reasoning_effort"
    words: Mapping[str, str] = field(default_factory=dict)
    budget: str = ""
    on: Mapping[str, Any] = field(default_factory=dict)
    off: Mapping[str, Any] | None = field(default_factory=lambda: {"reasoning_effort": "none"})
    shown: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Compatible:
    """One vendor of the OpenAI dialect.

    Attributes:
        kind: the row's name in the configuration and in prices.
        title: the vendor's name for people.
        sources: the documents that the row was made from.
        base_url: the vendor's own; empty when an operator must say it.
        path: of chat completions, under the base URL; ``{model}`` stands for the model's name.
        models_path: of the list of models; empty when there is none that tells what can be called.
        key_header: the header of the credential; ``authorization`` takes it as a bearer token.
        entra_scope: what an Entra identity buys tokens for, where the vendor takes them instead
            of a key; empty where it does not.
        headers: more headers of every call.
        native: bodies are forwarded as they are, both ways. Only where the recorded answers are
            valid OpenAI answers untouched, thoughts and usage are spelled as the gateway spells
            them, and no field of a request needs another name.
        fields: by field of ``ChatRequest``, the vendor's name of it, or ``None``: no such knob.
            What is not listed has OpenAI's name.
        response_formats: the forms of answer that it knows.
        tool_choices: the rules of tool choice that it knows.
        custom_tools: takes tools with free-text input.
        legacy_functions: takes ``functions``, and answers with ``function_call``.
        developer_role: takes the role ``developer``; otherwise it is told as ``system``.
        names: takes ``name`` on messages.
        answer_fields: members of an earlier answer that it takes back in an assistant's message:
            ``refusal``, ``annotations``, ``audio``, ``images``.
        call_id_chars: ids of tool calls have exactly so many letters and digits; 0: any id.
        cache_control: takes cache breakpoints, in Anthropic's form; otherwise it caches by itself.
        video: takes ``video_url`` parts.
        thoughts: how it takes back the thoughts of an earlier turn.
        thoughts_required: refuses an earlier tool call without the thoughts that led to it, were
            they empty.
        thought_signatures: takes back the proofs that its tool calls carry, in Google's form.
        stream_usage: knows ``stream_options``; otherwise it sends usage unasked.
        service_tiers: its words for OpenAI's service tiers, where they differ.
        finish_reasons: its own words for why an answer ended.
        failures: finish reasons that mean that it failed.
        done_finishes: a stream may end with ``[DONE]`` and no finish reason.
        reasoning_beside: its output tokens leave out the reasoning tokens.
        ignored: members of answers that say nothing, such as padding.
    """

    kind: str
    title: str
    sources: tuple[str, ...] = ()
    base_url: str = ""
    path: str = "/chat/completions"
    models_path: str = "/models"
    key_header: str = "authorization"
    entra_scope: str = ""
    headers: tuple[tuple[str, str], ...] = ()
    native: bool = False
    fields: Mapping[str, str | None] = field(default_factory=dict)
    response_formats: frozenset[str] = frozenset({"text", "json_object", "json_schema"})
    tool_choices: frozenset[int] = frozenset({AUTO, NONE, REQUIRED, ONE})
    custom_tools: bool = False
    legacy_functions: bool = False
    developer_role: bool = False
    names: bool = True
    answer_fields: frozenset[str] = frozenset()
    call_id_chars: int = 0
    cache_control: bool = False
    audio: AudioForm = AudioForm.OBJECT
    files: FileForm = FileForm.OBJECT
    video: bool = False
    thinking: ThinkingKnobs | None = field(default_factory=ThinkingKnobs)
    thoughts: Thoughts = Thoughts.OMITTED
    thoughts_required: bool = False
    thought_signatures: bool = False
    stream_usage: bool = True
    service_tiers: Mapping[str, str] = field(default_factory=dict)
    finish_reasons: Mapping[str, FinishReason] = field(default_factory=dict)
    failures: frozenset[str] = frozenset()
    done_finishes: bool = False
    reasoning_beside: bool = False
    ignored: frozenset[str] = frozenset({"obfuscation"})


_PLAIN: Final[Mapping[str, None]] = {
    "audio_output": None,
    "metadata": None,
    "min_p": None,
    "output_modalities": None,
    "prediction": None,
    "prompt_cache_key": None,
    "prompt_cache_retention": None,
    "safety_identifier": None,
    "service_tier": None,
    "store": None,
    "top_k": None,
    "verbosity": None,
    "web_search_options_json": None,
}
"""What few vendors have beside OpenAI; a row that has one of them takes it out."""

TEMPLATE: Final = {
    "on": {"chat_template_kwargs": {"enable_thinking": True}},
    "off": {"chat_template_kwargs": {"enable_thinking": False}},
}
"""Thinking on and off, where it is the model's chat template that decides."""


def plain(*taken: str, **renamed: str | None) -> dict[str, str | None]:
    """The plain fields without those that the vendor takes, and its own names and gaps."""
    fields: dict[str, str | None] = {k: v for k, v in _PLAIN.items() if k not in taken}
    return fields | renamed
