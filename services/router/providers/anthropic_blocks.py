"""What Anthropic's answers are made of, as parts and usage of the contract.

https://platform.claude.com/docs/en/api/messages. Blocks that the contract has no part for (server
tools and their results, compaction, …) stay as they are: opaque parts of a whole answer, and
beside the delta of a streamed one.
"""

from collections.abc import Iterable, Sequence
from typing import Final

from onegate.common.v1 import content_pb2, token_usage_pb2
from services.router.providers.foreign import Json, count, dump, utf8_size

_USAGE_NAMED: Final = frozenset(
    {
        "cache_creation",
        "cache_creation_input_tokens",
        "cache_read_input_tokens",
        "input_tokens",
        "output_tokens",
        "output_tokens_details",
        "server_tool_use",
        "service_tier",
    }
)
_SEARCHES: Final = "web_search_requests"
_TOTALS: Final = frozenset({"input_tokens", "output_tokens"})


def parts(blocks: Sequence[Json]) -> list[content_pb2.Part]:
    """The parts of a whole answer, in order."""
    made: list[content_pb2.Part] = []
    text_chars = 0
    for block in blocks:
        made.append(_part(block, text_chars))
        if block["type"] == "text":
            text_chars += len(block["text"])
    return made


def output_bytes(part: content_pb2.Part) -> int:
    """UTF-8 bytes of what the model wrote in a part."""
    match part.WhichOneof("content"):
        case "text":
            return utf8_size(part.text.text)
        case "thinking":
            return utf8_size(part.thinking.text)
        case "tool_call":
            return utf8_size(part.tool_call.name) + utf8_size(part.tool_call.arguments)
        case _:
            return len(part.opaque_json)


def annotations(citations: Iterable[Json], start: int, end: int) -> list[content_pb2.Annotation]:
    """Where a text block comes from. A citation backs its whole block, which lies between the
    characters ``start`` and ``end`` of the answer's text.
    """
    return [_annotation(citation, start, end) for citation in citations]


def thinking(block: Json) -> content_pb2.ThinkingPart:
    """A thinking block, shown or redacted."""
    if block["type"] == "redacted_thinking":
        return content_pb2.ThinkingPart(redacted_data=block["data"])
    return content_pb2.ThinkingPart(text=block["thinking"], signature=block.get("signature") or "")


def usage(reported: Json) -> token_usage_pb2.TokenUsage | None:
    """The usage as the contract counts: the input includes what was read from and written to the
    cache, at Anthropic listed beside it; ``None`` when nothing was reported.

    The totals leave out what compaction took
    (https://platform.claude.com/docs/en/build-with-claude/compaction#understanding-usage); its
    iterations are added. Those of other models (an advisor's) stay in ``extra_json``.
    """
    if not _TOTALS & reported.keys():
        return None
    tokens = _tokens(reported)
    for iteration in reported.get("iterations") or ():
        if iteration["type"] == "compaction":
            for field, value in _tokens(iteration).ListFields():
                setattr(tokens, field.name, getattr(tokens, field.name) + value)
    details = reported.get("output_tokens_details") or {}
    tokens.reasoning_tokens = count(details.get("thinking_tokens"))
    tools = reported.get("server_tool_use") or {}
    tokens.web_searches = count(tools.get(_SEARCHES))
    rest = {key: value for key, value in reported.items() if key not in _USAGE_NAMED and value}
    if beyond := {name: runs for name, runs in tools.items() if name != _SEARCHES and runs}:
        rest["server_tool_use"] = beyond
    if rest:
        tokens.extra_json = dump(rest)
    return tokens


def _part(block: Json, text_chars: int) -> content_pb2.Part:
    """One block as a part; ``text_chars`` characters of text came before it."""
    match block["type"]:
        case "text":
            text = block["text"]
            citations = block.get("citations") or ()
            noted = annotations(citations, text_chars, text_chars + len(text))
            return content_pb2.Part(
                text=content_pb2.TextPart(text=text, annotations=noted),
                extra_json=dump({"citations": citations}) if citations else b"",
            )
        case "thinking" | "redacted_thinking":
            return content_pb2.Part(thinking=thinking(block))
        case "tool_use":
            caller = block.get("caller") or {}
            return content_pb2.Part(
                tool_call=content_pb2.ToolCall(
                    id=block["id"],
                    name=block["name"],
                    arguments=dump(block["input"]).decode(),
                    kind=content_pb2.TOOL_KIND_FUNCTION,
                ),
                extra_json=(
                    dump({"caller": caller}) if caller.get("type", "direct") != "direct" else b""
                ),
            )
        case _:
            return content_pb2.Part(opaque_json=dump(block))


def _annotation(citation: Json, start: int, end: int) -> content_pb2.Annotation:
    """A citation; those of documents have no address and stay as they are."""
    url = citation.get("url") or citation.get("source") or ""
    if not url.startswith(("http://", "https://")):
        return content_pb2.Annotation(opaque_json=dump(citation))
    return content_pb2.Annotation(
        url_citation=content_pb2.UrlCitation(
            url=url, title=citation.get("title") or "", start_index=start, end_index=end
        )
    )


def _tokens(reported: Json) -> token_usage_pb2.TokenUsage:
    """The counts that an iteration and the total have in common."""
    lifetimes = reported.get("cache_creation") or {}
    hour = count(lifetimes.get("ephemeral_1h_input_tokens"))
    short = count(lifetimes.get("ephemeral_5m_input_tokens"))
    written = max(count(reported.get("cache_creation_input_tokens")), hour + short)
    cached = count(reported.get("cache_read_input_tokens"))
    return token_usage_pb2.TokenUsage(
        input_tokens=count(reported.get("input_tokens")) + written + cached,
        cached_input_tokens=cached,
        cache_write_tokens=written - hour,
        cache_write_1h_tokens=hour,
        output_tokens=count(reported.get("output_tokens")),
    )
