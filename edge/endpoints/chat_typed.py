"""An OpenAI chat request as the hub's typed message, nothing lost.

The router asks for this form when the deployment that it chose speaks another dialect. A field
that the contract names is translated; a field that it does not name, or a value that it has no
word for (``reasoning_effort: "default"``), travels in ``extra_json`` as the caller wrote it:
providers of the same dialect get it verbatim, others refuse it.

Legacy forms: ``functions`` become tools and a ``function`` message becomes a tool's result without
a ``tool_call_id``; ``legacy_functions`` says that the caller expects ``function_call`` back.
"""

from collections.abc import Iterable
from typing import Any, Final

from edge.endpoints import chat_knobs, chat_parts, strict_json
from edge.endpoints.chat_fields import ChatFields, invalid
from edge.endpoints.chat_parts import cache_hint, unnamed
from edge.endpoints.chat_request import ChatCall, frame
from onegate.common.v1 import content_pb2
from onegate.router.v1 import chat_pb2

_ROLES: Final = {
    "system": content_pb2.ROLE_SYSTEM,
    "developer": content_pb2.ROLE_DEVELOPER,
    "user": content_pb2.ROLE_USER,
    "assistant": content_pb2.ROLE_ASSISTANT,
    "tool": content_pb2.ROLE_TOOL,
    "function": content_pb2.ROLE_TOOL,
}
_SAME: Final = (
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "presence_penalty",
    "frequency_penalty",
    "seed",
    "logprobs",
    "top_logprobs",
    "parallel_tool_calls",
    "store",
    "service_tier",
    "verbosity",
    "prompt_cache_key",
    "prompt_cache_retention",
)
"""Fields that are called the same in the hub and need no translation."""

_COMMON: Final = frozenset({"role", "content", "name"})
_KNOWN: Final = {
    "system": _COMMON,
    "developer": _COMMON,
    "user": _COMMON,
    "assistant": _COMMON
    | {"refusal", "tool_calls", "function_call", "audio", "annotations"}
    | {"reasoning_content", "reasoning", "reasoning_details"},
    "tool": _COMMON | {"tool_call_id"},
    "function": _COMMON,
}
_FIELDS: Final = frozenset(ChatFields.__struct_fields__)


def typed(call: ChatCall, context: chat_pb2.CallContext) -> chat_pb2.ChatRequest:
    """The call in the hub's own words. Raises INVALID_REQUEST for base64 that is none and for
    knobs that contradict each other.
    """
    fields, members = call.fields, call.members
    _check_contradictions(fields)
    request = frame(call, context)
    extra = {
        key: value for key, value in members.items() if key not in _FIELDS and value is not None
    }
    for name in _SAME:
        value = getattr(fields, name)
        if value is not None:
            setattr(request, name, value)
    if fields.stop is not None:
        request.stop.extend([fields.stop] if isinstance(fields.stop, str) else fields.stop)
    if fields.logit_bias:
        request.logit_bias.update(fields.logit_bias)
    if fields.web_search_options is not None:
        request.web_search_options_json = strict_json.encode(fields.web_search_options)
    chat_knobs.set_tools(fields, members, request)
    chat_knobs.set_tool_choice(fields, request)
    chat_knobs.set_answer_form(members, request, extra)
    chat_knobs.set_thinking(members, request, extra)
    messages = members["messages"]
    for index, message in enumerate(messages):
        request.messages.append(_message(message, f"messages[{index}]"))
    request.legacy_functions = (
        fields.functions is not None
        or fields.function_call is not None
        or any(m["role"] == "function" or m.get("function_call") for m in messages)
    )
    if extra:
        request.extra_json = strict_json.encode(extra)
    return request


def _check_contradictions(fields: ChatFields) -> None:
    """Refuses what the hub cannot say in one way. A provider of the caller's own dialect judges it
    by itself; OpenAI refuses it too.
    """
    if 0 in (fields.max_tokens, fields.max_completion_tokens):
        raise invalid("An answer of 0 tokens cannot be asked for.", "max_completion_tokens")
    if fields.max_tokens is not None and fields.max_completion_tokens is not None:
        raise invalid(
            "'max_tokens' and 'max_completion_tokens' cannot be set at the same time; "
            "use 'max_completion_tokens'.",
            "max_tokens",
        )
    if fields.functions is not None and fields.tools is not None:
        raise invalid(
            "'functions' and 'tools' cannot be set at the same time; use 'tools'.", "functions"
        )
    if fields.function_call is not None and fields.tool_choice is not None:
        raise invalid(
            "'function_call' and 'tool_choice' cannot be set at the same time; use 'tool_choice'.",
            "function_call",
        )


def _message(members: dict[str, Any], place: str) -> content_pb2.Message:
    """One message. A cache breakpoint on the message stands after its last part, as LiteLLM has it
    (https://docs.litellm.ai/docs/completion/prompt_caching).
    """
    role = members["role"]
    message = content_pb2.Message(role=_ROLES[role])
    if beyond := unnamed(members, _KNOWN[role]):
        message.extra_json = strict_json.encode(beyond)
    if members.get("name") and role not in ("tool", "function"):
        message.name = members["name"]
    content = members.get("content")
    parts = [] if content is None else chat_parts.parts(content, f"{place}.content")
    match role:
        case "assistant":
            message.parts.extend(_assistant_parts(members, parts))
        case "tool" | "function":
            result = content_pb2.ToolResult(
                tool_call_id=members.get("tool_call_id") or "",
                name=members.get("name") or "",
                parts=parts,
            )
            message.parts.append(content_pb2.Part(tool_result=result))
        case _:
            message.parts.extend(parts)
    hint = cache_hint(members)
    if hint is not None and message.parts:
        message.parts[-1].cache_hint.CopyFrom(hint)
    return message


def _assistant_parts(
    members: dict[str, Any], content: list[content_pb2.Part]
) -> Iterable[content_pb2.Part]:
    """What an assistant's message says, in the order in which models say it."""
    yield from chat_parts.thoughts(members)
    if annotations := members.get("annotations"):
        texts = [part for part in content if part.HasField("text")]
        if not texts:
            content = [content_pb2.Part(text=content_pb2.TextPart()), *content]
            texts = content[:1]
        texts[0].text.annotations.extend(_annotation(item) for item in annotations)
    yield from content
    if (refusal := members.get("refusal")) is not None:
        yield content_pb2.Part(refusal=content_pb2.RefusalPart(text=refusal))
    if (audio := members.get("audio")) is not None:
        part = content_pb2.Part(audio=content_pb2.AudioPart(audio_id=audio["id"]))
        if beyond := unnamed(audio, {"id"}):
            part.extra_json = strict_json.encode(beyond)
        yield part
    for call in members.get("tool_calls") or ():
        yield chat_parts.tool_call(call)
    if (called := members.get("function_call")) is not None:
        yield content_pb2.Part(
            tool_call=content_pb2.ToolCall(
                name=called["name"],
                arguments=called["arguments"],
                kind=content_pb2.TOOL_KIND_FUNCTION,
            )
        )


def _annotation(members: dict[str, Any]) -> content_pb2.Annotation:
    """An annotation of an earlier answer, sent back."""
    match members:
        case {
            "type": "url_citation",
            "url_citation": {
                "url": str(url),
                "title": str(title),
                "start_index": int(start),
                "end_index": int(end),
                **inner,
            },
            **outer,
        } if not (inner or outer):
            return content_pb2.Annotation(
                url_citation=content_pb2.UrlCitation(
                    url=url, title=title, start_index=start, end_index=end
                )
            )
        case _:
            return content_pb2.Annotation(opaque_json=strict_json.encode(members))
