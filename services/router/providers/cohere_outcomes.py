"""What Cohere's answers are made of, how they end, and what they cost.

https://docs.cohere.com/reference/chat and https://docs.cohere.com/reference/errors.

Usage is told twice: ``tokens`` is what the model read and wrote, with what Cohere itself adds to a
prompt (safety instructions, tools, templates), ``billed_units`` is what is charged
(https://docs.cohere.com/docs/how-does-cohere-pricing-work). The latter is metered, because it is
what the bill says; the former, and how many of those were cached, which changes no price, is kept
beside it.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgspec

from onegate.common.v1 import content_pb2, error_pb2, token_usage_pb2
from onegate.router.v1 import chat_pb2
from runtime.errors import GatewayError
from services.router.providers.cohere_messages import PROVIDER
from services.router.providers.foreign import (
    STATUS_REASONS,
    Json,
    count,
    dump,
    retry_after_ms,
    upstream_error,
)

FINISH_REASONS: Final[Mapping[str, chat_pb2.FinishReason.ValueType]] = {
    "COMPLETE": chat_pb2.FINISH_REASON_STOP,
    "STOP_SEQUENCE": chat_pb2.FINISH_REASON_STOP,
    "MAX_TOKENS": chat_pb2.FINISH_REASON_LENGTH,
    "TOOL_CALL": chat_pb2.FINISH_REASON_TOOL_CALLS,
}
"""By ``finish_reason``; one that is not listed counts as STOP, and its own word is kept."""

FAILURES: Final[Mapping[str, int]] = {
    "ERROR": error_pb2.ERROR_REASON_UPSTREAM_ERROR,
    "TIMEOUT": error_pb2.ERROR_REASON_UPSTREAM_TIMEOUT,
}
"""Finish reasons that mean that the call failed."""

ERRORS: Final[Mapping[int, int]] = {
    **STATUS_REASONS,
    404: error_pb2.ERROR_REASON_MODEL_NOT_FOUND,
    498: error_pb2.ERROR_REASON_UPSTREAM_AUTH,
}
"""By status; Cohere's errors have no other code."""

_CONTEXT_LENGTH: Final = re.compile(
    r"too many tokens|maximum context|context length", re.IGNORECASE
)
_NULL: Final = "null"


def error(status: int, headers: Mapping[str, str], body: bytes) -> GatewayError:
    """What an error means: its status, and its ``message``."""
    try:
        told = msgspec.json.decode(body)
    except msgspec.DecodeError:
        told = None
    said = told.get("message") if isinstance(told, dict) else ""
    reason = ERRORS.get(status, error_pb2.ERROR_REASON_UPSTREAM_ERROR)
    if reason == error_pb2.ERROR_REASON_INVALID_REQUEST and _CONTEXT_LENGTH.search(str(said)):
        reason = error_pb2.ERROR_REASON_CONTEXT_LENGTH_EXCEEDED
    return upstream_error(
        PROVIDER, reason, status=status, said=said, retry_ms=retry_after_ms(headers)
    )


def check_finish(reason: str, said: object = "") -> None:
    """Raises what a reason means that is a failure."""
    if reason in FAILURES:
        raise upstream_error(PROVIDER, FAILURES[reason], status=0, said=said)


def parts(message: Json) -> list[content_pb2.Part]:
    """The parts of a whole answer: the plan before the calls is a thought."""
    made: list[content_pb2.Part] = []
    if message.get("tool_plan"):
        plan = content_pb2.ThinkingPart(text=message["tool_plan"])
        made.append(content_pb2.Part(thinking=plan))
    for block in message.get("content") or ():
        match block["type"]:
            case "text":
                made.append(content_pb2.Part(text=content_pb2.TextPart(text=block["text"])))
            case "thinking":
                thought = content_pb2.ThinkingPart(text=block["thinking"])
                made.append(content_pb2.Part(thinking=thought))
            case _:
                made.append(content_pb2.Part(opaque_json=dump(block)))
    calls = message.get("tool_calls") or ()
    made.extend(content_pb2.Part(tool_call=_call(call)) for call in calls)
    noted = annotations(message.get("citations") or ())
    texts = [part.text for part in made if part.HasField("text")]
    if noted and texts:
        texts[-1].annotations.extend(noted)
    elif noted:
        made.append(content_pb2.Part(text=content_pb2.TextPart(annotations=noted)))
    return made


def annotations(citations: Sequence[Json]) -> list[content_pb2.Annotation]:
    """Where stretches of the answer come from. Sources are documents and results of tools; one that
    is a page has its address in the document.
    """
    return [_annotation(citation) for citation in citations]


def usage(reported: Json) -> token_usage_pb2.TokenUsage | None:
    """What is charged; ``None`` when nothing was reported."""
    tokens = reported.get("tokens") or {}
    charged = reported.get("billed_units") or tokens
    if not {"input_tokens", "output_tokens"} & charged.keys():
        return None
    beside = {name: reported[name] for name in ("tokens", "cached_tokens") if reported.get(name)}
    return token_usage_pb2.TokenUsage(
        input_tokens=_count(charged.get("input_tokens")),
        output_tokens=_count(charged.get("output_tokens")),
        extra_json=dump(beside) if beside else b"",
    )


def logprobs(items: Sequence[Json]) -> chat_pb2.Logprobs:
    """Log probabilities. Cohere gives them for stretches of text, each of one or more tokens: that
    of the stretch is their sum.
    """
    return chat_pb2.Logprobs(
        content=[
            chat_pb2.TokenLogprob(token=item.get("text") or "", logprob=sum(item["logprobs"]))
            for item in items
            if item.get("logprobs")
        ]
    )


def object_or_nothing(arguments: str) -> str:
    """A call's arguments; ``null`` and nothing at all are no arguments."""
    return "{}" if arguments.strip() in ("", _NULL) else arguments


def _call(call: Json) -> content_pb2.ToolCall:
    function = call["function"]
    return content_pb2.ToolCall(
        id=call["id"],
        name=function["name"],
        arguments=object_or_nothing(function.get("arguments") or ""),
        kind=content_pb2.TOOL_KIND_FUNCTION,
    )


def _annotation(citation: Json) -> content_pb2.Annotation:
    for source in citation.get("sources") or ():
        document = source.get("document") or {}
        url = document.get("url")
        if isinstance(url, str) and url.startswith(("http://", "https://")):
            return content_pb2.Annotation(
                url_citation=content_pb2.UrlCitation(
                    url=url,
                    title=str(document.get("title") or ""),
                    start_index=_count(citation.get("start")),
                    end_index=_count(citation.get("end")),
                )
            )
    return content_pb2.Annotation(opaque_json=dump(citation))


def _count(value: Any) -> int:
    """A count; Cohere's are numbers with or without a point."""
    return count(int(value) if isinstance(value, float) and value.is_integer() else value)
