"""What Converse's answers are made of, as parts and usage of the contract.

https://docs.aws.amazon.com/bedrock/latest/APIReference/API_runtime_Message.html. Blocks that the
contract has no part for (tools that Bedrock ran itself and their results) stay as they are: opaque
parts of a whole answer, and beside the delta of a streamed one.
"""

import base64
from collections.abc import Sequence
from typing import Any, Final

from onegate.common.v1 import content_pb2, token_usage_pb2
from services.router.providers.bedrock_messages import REDACTED
from services.router.providers.foreign import Json, count, dump, utf8_size

SERVER_TOOL: Final = "server_tool_use"
"""The ``type`` of a call that Bedrock answers itself."""

_HOUR: Final = "1h"


def parts(blocks: Sequence[Json]) -> list[content_pb2.Part]:
    """The parts of a whole answer, in order."""
    made: list[content_pb2.Part] = []
    text_chars = 0
    for block in blocks:
        part = _part(block, text_chars)
        text_chars += len(part.text.text)
        made.append(part)
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
        case "image":
            return 0
        case _:
            return len(part.opaque_json)


def image(form: str, data: bytes) -> content_pb2.ImagePart:
    """A picture that the model made."""
    return content_pb2.ImagePart(
        source=content_pb2.MediaSource(data=data, media_type=f"image/{form}")
    )


def redacted(data: bytes) -> str:
    """An encrypted thought as the contract has it. Anthropic's is text."""
    if data.isascii():
        return data.decode("ascii")
    return REDACTED + base64.b64encode(data).decode()


def annotation(citation: Json, start: int, end: int) -> content_pb2.Annotation:
    """Where the text between the characters ``start`` and ``end`` comes from; what is no web page
    stays as it is.
    """
    web = (citation.get("location") or {}).get("web") or {}
    if not web.get("url"):
        return content_pb2.Annotation(opaque_json=dump(citation))
    return content_pb2.Annotation(
        url_citation=content_pb2.UrlCitation(
            url=web["url"],
            title=citation.get("title") or web.get("domain") or "",
            start_index=start,
            end_index=end,
        )
    )


def usage(reported: Json, tier: str) -> token_usage_pb2.TokenUsage | None:
    """The usage as the contract counts: the input includes what was read from and written to the
    cache, at Bedrock listed beside it; ``None`` when nothing was reported.
    """
    if not {"inputTokens", "outputTokens"} & reported.keys():
        return None
    cached = count(reported.get("cacheReadInputTokens"))
    details = reported.get("cacheDetails") or ()
    hour = sum(count(each.get("inputTokens")) for each in details if each.get("ttl") == _HOUR)
    written = max(count(reported.get("cacheWriteInputTokens")), hour)
    tools = reported.get("serverToolUsage")
    return token_usage_pb2.TokenUsage(
        input_tokens=count(reported.get("inputTokens")) + cached + written,
        cached_input_tokens=cached,
        cache_write_tokens=written - hour,
        cache_write_1h_tokens=hour,
        output_tokens=count(reported.get("outputTokens")),
        extra_json=dump({"serverToolUsage": tools}) if tools else b"",
        service_tier=tier,
    )


def _part(block: Json, text_chars: int) -> content_pb2.Part:
    """One block as a part; ``text_chars`` characters of text came before it."""
    told: Any
    match block:
        case {"text": str(text)}:
            return content_pb2.Part(text=content_pb2.TextPart(text=text))
        case {"reasoningContent": {"reasoningText": told}}:
            thought = content_pb2.ThinkingPart(
                text=told["text"], signature=told.get("signature") or ""
            )
            return content_pb2.Part(thinking=thought)
        case {"reasoningContent": {"redactedContent": str(data)}}:
            hidden = redacted(base64.b64decode(data, validate=True))
            return content_pb2.Part(thinking=content_pb2.ThinkingPart(redacted_data=hidden))
        case {"toolUse": told} if told.get("type") != SERVER_TOOL:
            return content_pb2.Part(
                tool_call=content_pb2.ToolCall(
                    id=told["toolUseId"],
                    name=told["name"],
                    arguments=dump(told["input"]).decode(),
                    kind=content_pb2.TOOL_KIND_FUNCTION,
                )
            )
        case {"citationsContent": told}:
            return content_pb2.Part(text=_cited(told, text_chars))
        case {"image": {"format": str(form), "source": {"bytes": str(data)}}}:
            return content_pb2.Part(image=image(form, base64.b64decode(data, validate=True)))
        case {}:
            return content_pb2.Part(opaque_json=dump(block))
        case _:
            raise ValueError("A block is an object.")


def _cited(cited: Json, text_chars: int) -> content_pb2.TextPart:
    """Text with its sources. A citation backs its whole block."""
    text = "".join(piece["text"] for piece in cited.get("content") or ())
    noted = [
        annotation(citation, text_chars, text_chars + len(text))
        for citation in cited.get("citations") or ()
    ]
    return content_pb2.TextPart(text=text, annotations=noted)
