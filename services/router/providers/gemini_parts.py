"""What Gemini's answers are made of, as parts, annotations and usage of the contract.

https://ai.google.dev/api/generate-content. Parts that the contract has none for (code that Gemini
ran, its own tools, …) stay as they are: opaque parts of a whole answer, and beside the delta
of a streamed one.
"""

import base64
import binascii
import hashlib
from collections.abc import Mapping, Sequence
from typing import Final

from onegate.common.v1 import content_pb2, token_usage_pb2
from onegate.router.v1 import chat_pb2
from services.router.providers.foreign import GEMINI_PROOF, Json, count, dump, utf8_size
from services.router.providers.gemini_contents import MADE_UP_ID
from services.router.providers.gemini_models import version

_URL_SAFE: Final = str.maketrans("-_", "+/")
_USAGE_NAMED: Final = frozenset(
    {
        "cacheTokensDetails",
        "cachedContentTokenCount",
        "candidatesTokenCount",
        "candidatesTokensDetails",
        "promptTokenCount",
        "promptTokensDetails",
        "serviceTier",
        "thoughtsTokenCount",
        "totalTokenCount",
    }
)
_TOLD_BESIDE: Final = (
    "citationMetadata",
    "finishMessage",
    "groundingMetadata",
    "safetyRatings",
    "urlContextMetadata",
)
_BILLED_BY_QUERY_SINCE: Final = 3.0


def parts(part: Json, call_id: str) -> list[content_pb2.Part]:
    """One of Gemini's parts, and the proof that came with it. ``call_id`` names a function call
    that Gemini gave no id.
    """
    proof = part.get("thoughtSignature") or ""
    if "functionCall" in part:
        return [content_pb2.Part(tool_call=_call(part["functionCall"], proof, call_id))]
    if part.get("thought") and "text" in part:
        thought = content_pb2.ThinkingPart(text=part["text"], signature=_signature(proof))
        return [content_pb2.Part(thinking=thought)]
    made = []
    if "text" in part:
        if part["text"]:
            made.append(content_pb2.Part(text=content_pb2.TextPart(text=part["text"])))
    elif (media := _media(part)) is not None:
        made.append(media)
    elif part.keys() - {"thoughtSignature", "thought"}:
        return [content_pb2.Part(opaque_json=dump(part))]
    if proof:
        thought = content_pb2.ThinkingPart(signature=_signature(proof))
        made.append(content_pb2.Part(thinking=thought))
    return made


def made_up_id(answer_id: str, call: int, part: Json) -> str:
    """An id for a function call that has none: the same whenever the same answer is read, and
    unlike the ids of the conversation's other answers.
    """
    if not answer_id:
        answer_id = hashlib.sha256(dump(part)).hexdigest()[:16]
    return f"{MADE_UP_ID}{answer_id}-{call}"


def output_bytes(part: content_pb2.Part) -> int:
    """UTF-8 bytes of what the model wrote in a part; media count as nothing."""
    match part.WhichOneof("content"):
        case "text":
            return utf8_size(part.text.text)
        case "thinking":
            return utf8_size(part.thinking.text)
        case "tool_call":
            return utf8_size(part.tool_call.name) + utf8_size(part.tool_call.arguments)
        case _:
            return len(part.opaque_json)


def annotations(grounding: Json, text: str) -> list[content_pb2.Annotation]:
    """Where the answer's text comes from
    (https://ai.google.dev/gemini-api/docs/google-search#attributing_sources_with_inline_citations).

    Segments are counted in bytes; where the count does not fit the text (an answer of several
    parts) the segment is looked for. Sources that back no segment cite nothing in particular.
    """
    pages = [chunk.get("web") or {} for chunk in grounding.get("groundingChunks") or ()]
    made = []
    cited = set()
    for support in grounding.get("groundingSupports") or ():
        start, end = _stretch(support.get("segment") or {}, text)
        for index in support.get("groundingChunkIndices") or ():
            cited.add(index)
            made.append(_citation(pages[index], start, end))
    made += [_citation(page, 0, 0) for index, page in enumerate(pages) if index not in cited]
    return [annotation for annotation in made if annotation is not None]


def logprobs(result: Json) -> chat_pb2.Logprobs:
    """Log probabilities of the tokens, with the likeliest in their place."""
    tops = [step.get("candidates") or () for step in result.get("topCandidates") or ()]
    chosen = result.get("chosenCandidates") or ()
    return chat_pb2.Logprobs(
        content=[
            chat_pb2.TokenLogprob(
                token=token.get("token") or "",
                logprob=token.get("logProbability") or 0,
                top=[
                    chat_pb2.TokenLogprob(
                        token=top.get("token") or "", logprob=top.get("logProbability") or 0
                    )
                    for top in (tops[index] if index < len(tops) else ())
                ],
            )
            for index, token in enumerate(chosen)
        ]
    )


def usage(reported: Json, searches: int = 0) -> token_usage_pb2.TokenUsage | None:
    """The usage as the contract counts: results of Gemini's own tools are input, thoughts are
    output, each listed beside the rest by Gemini, which leaves out
    what is 0; ``None`` when nothing was reported.
    """
    if not reported:
        return None
    tools = count(reported.get("toolUsePromptTokenCount"))
    thoughts = count(reported.get("thoughtsTokenCount"))
    given = _by_modality(reported.get("promptTokensDetails"))
    cached = _by_modality(reported.get("cacheTokensDetails"))
    made = _by_modality(reported.get("candidatesTokensDetails"))
    rest = {key: value for key, value in reported.items() if key not in _USAGE_NAMED and value}
    return token_usage_pb2.TokenUsage(
        input_tokens=count(reported.get("promptTokenCount")) + tools,
        cached_input_tokens=count(reported.get("cachedContentTokenCount")),
        input_audio_tokens=given.get("AUDIO", 0),
        input_image_tokens=given.get("IMAGE", 0),
        cached_input_audio_tokens=cached.get("AUDIO", 0),
        output_tokens=count(reported.get("candidatesTokenCount")) + thoughts,
        reasoning_tokens=thoughts,
        output_audio_tokens=made.get("AUDIO", 0),
        output_image_tokens=made.get("IMAGE", 0),
        web_searches=searches,
        extra_json=dump(rest) if rest else b"",
    )


def searches(candidate: Json, model: str) -> int:
    """The web searches that are charged: Gemini 3 charges every query once and ignores empty ones,
    earlier models charge a grounded answer
    (https://ai.google.dev/gemini-api/docs/google-search#pricing).
    """
    queries = (candidate.get("groundingMetadata") or {}).get("webSearchQueries") or ()
    charged = len({query for query in queries if query})
    return charged if version(model) >= _BILLED_BY_QUERY_SINCE else min(charged, 1)


def told_beside(answer: Json) -> bytes:
    """What an answer tells that the contract does not name, under ``google``."""
    told: Json = {}
    candidates = [
        {key: candidate[key] for key in _TOLD_BESIDE if candidate.get(key)}
        for candidate in answer.get("candidates") or ()
    ]
    if any(candidates):
        told["candidates"] = candidates
    if answer.get("promptFeedback"):
        told["promptFeedback"] = answer["promptFeedback"]
    return dump({"google": told}) if told else b""


def _call(call: Json, proof: str, call_id: str) -> content_pb2.ToolCall:
    """A function call. One in pieces has not been asked for; only Vertex AI sends it."""
    if "partialArgs" in call or call.get("willContinue"):
        raise ValueError("a function call in pieces")
    return content_pb2.ToolCall(
        id=call.get("id") or call_id,
        name=call["name"],
        arguments=dump(call.get("args") or {}).decode(),
        kind=content_pb2.TOOL_KIND_FUNCTION,
        thought_signature=_bytes(proof),
    )


def _bytes(proof: str) -> bytes:
    """Base64 in either alphabet, with or without padding."""
    text = proof.translate(_URL_SAFE)
    return binascii.a2b_base64(text + "=" * (-len(text) % 4))


def _signature(proof: str) -> str:
    return GEMINI_PROOF + proof if proof else ""


def _media(part: Json) -> content_pb2.Part | None:
    """A picture or a sound that the model made."""
    data = part.get("inlineData") or {}
    kind = data.get("mimeType") or ""
    if not kind.startswith(("image/", "audio/")):
        return None
    source = content_pb2.MediaSource(data=base64.b64decode(data["data"]), media_type=kind)
    if kind.startswith("image/"):
        return content_pb2.Part(image=content_pb2.ImagePart(source=source))
    audio = content_pb2.AudioPart(source=source, format=audio_format(kind))
    return content_pb2.Part(audio=audio)


def audio_format(media_type: str) -> str:
    """OpenAI's word for the sound: Gemini speaks in raw 16-bit samples."""
    kind = media_type.partition(";")[0].removeprefix("audio/")
    return "pcm16" if kind.lower() in ("l16", "pcm") else kind


def _stretch(segment: Json, text: str) -> tuple[int, int]:
    """Where a segment lies in the text, in characters."""
    raw = text.encode()
    start = len(raw[: count(segment.get("startIndex"))].decode(errors="ignore"))
    end = len(raw[: count(segment.get("endIndex"))].decode(errors="ignore"))
    quoted = segment.get("text") or text[start:end]
    if text[start:end] != quoted and (found := text.find(quoted)) >= 0:
        return found, found + len(quoted)
    return start, end


def _citation(page: Json, start: int, end: int) -> content_pb2.Annotation | None:
    if not page.get("uri"):
        return None
    return content_pb2.Annotation(
        url_citation=content_pb2.UrlCitation(
            url=page["uri"], title=page.get("title") or "", start_index=start, end_index=end
        )
    )


def _by_modality(details: Sequence[Json] | None) -> Mapping[str, int]:
    """Token counts by modality."""
    return {
        detail.get("modality") or "": count(detail.get("tokenCount")) for detail in details or ()
    }
