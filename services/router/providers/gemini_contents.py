"""The conversation and the tools in Gemini's contents and parts.

https://ai.google.dev/api/caching#Content. System messages stand beside the contents; the model's
role is ``model``; the results of one step's function calls stand together in one content of the
user's, by name. Media are bytes with a media type, or an address that Google fetches.
"""

import base64
import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgspec

from onegate.common.v1 import content_pb2
from onegate.router.v1 import chat_pb2
from services.router.providers.foreign import (
    BESIDE,
    GEMINI_PROOF,
    Json,
    arguments,
    dump,
    given_object,
    invalid,
    is_object,
    sent_back,
    unsupported,
)
from services.router.providers.gemini_models import PROVIDER

ROLES: Final[Mapping[int, str]] = {
    content_pb2.ROLE_SYSTEM: "system",
    content_pb2.ROLE_DEVELOPER: "system",
    content_pb2.ROLE_USER: "user",
    content_pb2.ROLE_TOOL: "user",
    content_pb2.ROLE_ASSISTANT: "model",
}

OWN_PARTS: Final = frozenset(
    {
        "codeExecutionResult",
        "executableCode",
        "fileData",
        "functionResponse",
        "inlineData",
        "toolCall",
        "toolResponse",
        "videoMetadata",
    }
)
"""Parts without an equivalent in the contract, sent as they are."""

PART_EXTRA: Final = frozenset(
    {"mediaProcessing", "mediaResolution", "partMetadata", "videoMetadata"}
)
"""Fields of parts that the contract does not name and that are sent as they are."""

MADE_UP_ID: Final = "gemini-"
"""How an id begins that the gateway gave to a call without one; Gemini is not told it."""

SKIP_PROOF: Final = "skip_thought_signature_validator"
"""Stands for the proof of a function call that Gemini 3 did not make itself or whose proof the
caller did not keep (https://ai.google.dev/gemini-api/docs/thought-signatures#faqs); without one the
call is refused."""

_PROOF_SINCE: Final = 3.0
_PROVABLE: Final = frozenset({"inlineData", "text"})
_DATA_URL: Final = re.compile(r"data:([\w.+/-]+);base64,([\w+/=-]+)")
_FILES: Final = "https://generativelanguage.googleapis.com/v1beta/"
_RESOLUTIONS: Final = {"low": "MEDIA_RESOLUTION_LOW", "high": "MEDIA_RESOLUTION_HIGH"}


class Contents:
    """Builds the contents of one call, message by message.

    ``generation`` is the model's: from 3 on function calls need a proof and pictures may have a
    resolution.
    """

    def __init__(self, generation: float) -> None:
        self.system: list[Json] = []
        self.contents: list[Json] = []
        self._generation = generation
        self._names: dict[str, str] = {}

    def add(self, message: content_pb2.Message, where: str) -> None:
        """Adds a message. Raises INVALID_REQUEST or UNSUPPORTED_PARAMETER."""
        role = ROLES.get(message.role)
        if role is None:
            raise invalid(f"{where}.role", "Every message needs a role.")
        if message.name and message.role != content_pb2.ROLE_TOOL:
            raise unsupported(f"{where}.name", PROVIDER)
        parts = self._parts(message, where)
        if message.role == content_pb2.ROLE_TOOL:
            self._add_results(parts, where)
        elif role == "system":
            self.system.extend(parts)
        elif parts:
            if role == "model" and self._generation >= _PROOF_SINCE:
                _prove(parts)
            self.contents.append({"role": role, "parts": parts})

    def _add_results(self, parts: list[Json], where: str) -> None:
        """Results join those of the step that they belong to."""
        if not parts or any("functionResponse" not in part for part in parts):
            raise invalid(f"{where}.tool_call_id", "A tool's message must name its call.")
        if self.contents and "functionResponse" in self.contents[-1]["parts"][-1]:
            self.contents[-1]["parts"].extend(parts)
        else:
            self.contents.append({"role": "user", "parts": parts})

    def _parts(self, message: content_pb2.Message, where: str) -> list[Json]:
        """A message's parts. Empty text is left out, except where it is all that is said."""
        made: list[Json] = []
        for index, part in enumerate(message.parts):
            self._add_part(made, part, f"{where}.content[{index}]")
        members = given_object(message.extra_json or b"{}", where)
        made += _pictures(members.pop("images", []), f"{where}.images")
        made += [
            _opaque(dump(part), f"{where}.{BESIDE}") for part in sent_back(members, where, PROVIDER)
        ]
        said = [part for part in made if part.get("text") != "" or "thoughtSignature" in part]
        return said or ([] if ROLES[message.role] == "system" else made[:1])

    def _add_part(self, made: list[Json], part: content_pb2.Part, where: str) -> None:
        """One part as Gemini has it."""
        match part.WhichOneof("content"):
            case "text":
                encoded: Json = {"text": part.text.text}
            case "refusal":
                encoded = {"text": part.refusal.text}
            case "thinking":
                _add_thought(made, part.thinking)
                return
            case "tool_call":
                encoded = self._call(part.tool_call, where)
            case "tool_result":
                encoded = {"functionResponse": self._result(part.tool_result, where)}
            case "opaque_json":
                encoded = _opaque(part.opaque_json, where)
            case None:
                raise unsupported(where, PROVIDER, "It takes no empty parts.")
            case _:
                encoded = self._media(part, where)
        for key, value in given_object(part.extra_json or b"{}", where).items():
            if key not in PART_EXTRA:
                raise unsupported(f"{where}.{key}", PROVIDER)
            encoded[key] = value
        made.append(encoded)

    def _call(self, call: content_pb2.ToolCall, where: str) -> Json:
        """A call that the model made, with its proof where it was when Gemini made it."""
        if call.kind == content_pb2.TOOL_KIND_CUSTOM:
            raise unsupported(where, PROVIDER, "It has no tools with free-text input.")
        self._names[call.id] = call.name
        args = arguments(call.arguments)
        if args is None:
            raise invalid(f"{where}.arguments", "A call's arguments must be a JSON object.")
        function: Json = {"name": call.name, "args": args}
        if call.id and not call.id.startswith(MADE_UP_ID):
            function["id"] = call.id
        encoded: Json = {"functionCall": function}
        if call.thought_signature:
            encoded["thoughtSignature"] = base64.b64encode(call.thought_signature).decode()
        return encoded

    def _result(self, result: content_pb2.ToolResult, where: str) -> Json:
        """A function's result: a JSON object as it is, any other text as ``output``, a failure as
        ``error``.
        """
        call_id = result.tool_call_id
        name = result.name or self._names.get(call_id, "")
        if not name:
            raise invalid(f"{where}.tool_call_id", "No earlier message makes the call it answers.")
        said = "".join(part.text.text for part in result.parts)
        response: Json = {"name": name, "response": _response(said, failed=result.is_error)}
        if call_id and not call_id.startswith(MADE_UP_ID):
            response["id"] = call_id
        media = [
            self._media(part, f"{where}[{index}]")
            for index, part in enumerate(result.parts)
            if not part.HasField("text")
        ]
        if media:
            response["parts"] = media
        return response

    def _media(self, part: content_pb2.Part, where: str) -> Json:
        """A picture, sound, video or document."""
        match part.WhichOneof("content"):
            case "image":
                encoded = _source(part.image.source, "", where)
                if part.image.detail in _RESOLUTIONS and self._generation >= _PROOF_SINCE:
                    encoded["mediaResolution"] = {"level": _RESOLUTIONS[part.image.detail]}
                elif part.image.detail == "low":
                    raise unsupported(f"{where}.image_url.detail", PROVIDER)
                return encoded
            case "audio":
                if part.audio.audio_id:
                    raise unsupported(f"{where}.audio", PROVIDER, "Send the sound itself.")
                kind = f"audio/{part.audio.format}" if part.audio.format else ""
                return _source(part.audio.source, kind, where)
            case "file":
                return _source(part.file.source, "", where)
            case "video":
                return _source(part.video.source, "", where)
            case kind:
                raise unsupported(where, PROVIDER, f"It takes no {kind} parts here.")


def tools(request: chat_pb2.ChatRequest) -> list[Json]:
    """All functions in one tool, Gemini's own tools beside it."""
    functions: list[Json] = []
    own: list[Json] = []
    for index, tool in enumerate(request.tools):
        where = f"tools[{index}]"
        match tool.WhichOneof("tool"):
            case "function":
                functions.append(_function(tool.function, where))
            case "provider_json":
                block = given_object(tool.provider_json, where)
                if "type" in block or "name" in block:
                    raise unsupported(where, PROVIDER, "It knows no such tool.")
                own.append(block)
            case _:
                raise unsupported(where, PROVIDER, "It has no tools with free-text input.")
    if request.web_search_options_json:
        for key in given_object(request.web_search_options_json, "web_search_options"):
            raise unsupported(f"web_search_options.{key}", PROVIDER)
        own.append({"googleSearch": {}})
    return [{"functionDeclarations": functions}, *own] if functions else own


def calling_config(request: chat_pb2.ChatRequest) -> Json:
    """``functionCallingConfig``; empty for Gemini's default. VALIDATED is AUTO with arguments that
    follow their schemas, which OpenAI's ``strict`` asks for
    (https://ai.google.dev/gemini-api/docs/function-calling#function_calling_modes).
    """
    choice = request.tool_choice
    free = "VALIDATED" if any(tool.function.strict for tool in request.tools) else "AUTO"
    match choice.mode:
        case chat_pb2.TOOL_CHOICE_MODE_AUTO:
            return {"mode": free}
        case chat_pb2.TOOL_CHOICE_MODE_NONE:
            return {"mode": "NONE"}
        case chat_pb2.TOOL_CHOICE_MODE_REQUIRED:
            return {"mode": "ANY"}
        case chat_pb2.TOOL_CHOICE_MODE_ONE:
            return {"mode": "ANY", "allowedFunctionNames": list(choice.names)}
        case chat_pb2.TOOL_CHOICE_MODE_ALLOWED:
            mode = "ANY" if choice.required else "VALIDATED"
            return {"mode": mode, "allowedFunctionNames": list(choice.names)}
        case _:
            return {"mode": free} if free == "VALIDATED" else {}


def _pictures(images: Any, where: str) -> list[Json]:
    """Pictures of an earlier answer, as the edge wrote them and as callers send them back."""
    made: list[Json] = []
    for image in images if isinstance(images, list) else [images]:
        match image:
            case {"image_url": {"url": str(url)}} if found := _DATA_URL.fullmatch(url):
                made.append({"inlineData": {"mimeType": found[1], "data": found[2]}})
            case _:
                raise unsupported(where, PROVIDER, "Send pictures as base64 data URLs.")
    return made


def _add_thought(made: list[Json], thought: content_pb2.ThinkingPart) -> None:
    """A thought, and its proof if it is Gemini's: on the text or picture that it was found on, if
    that is known.
    """
    ours = thought.signature.startswith(GEMINI_PROOF)
    proof = {"thoughtSignature": thought.signature.removeprefix(GEMINI_PROOF)} if ours else {}
    if thought.text:
        made.append({"text": thought.text, "thought": True, **proof})
    elif proof and made and made[-1].keys() <= _PROVABLE:
        made[-1].update(proof)
    elif proof:
        made.append({"text": "", **proof})


def _prove(parts: Sequence[Json]) -> None:
    """Gives the first function call of a step a proof if it has none."""
    first = next((part for part in parts if "functionCall" in part), None)
    if first is not None:
        first.setdefault("thoughtSignature", SKIP_PROOF)


def _response(said: str, *, failed: bool) -> Any:
    """A function's result as the JSON object that Gemini asks for."""
    if failed:
        return {"error": said}
    raw = said.encode()
    return msgspec.Raw(raw) if is_object(raw) else {"output": said}


def _opaque(part: bytes, where: str) -> Json:
    """A part of Gemini's that the contract does not know, verbatim."""
    block = given_object(part, where)
    if not OWN_PARTS & block.keys():
        raise unsupported(where, PROVIDER, "It knows no such part.")
    return block


def _source(source: content_pb2.MediaSource, media_type: str, where: str) -> Json:
    """Where media comes from; ``media_type`` stands in for one that the caller did not name."""
    kind = source.media_type or media_type
    match source.WhichOneof("source"):
        case "data" if kind:
            data = base64.b64encode(source.data).decode()
            return {"inlineData": {"mimeType": kind, "data": data}}
        case "url":
            uri = source.url
        case "file_id":
            uri = source.file_id
            if uri.startswith("files/"):
                uri = _FILES + uri
        case _:
            raise invalid(where, f"`{where}` needs a URL, or data with a media type.")
    return {"fileData": {"fileUri": uri, **({"mimeType": kind} if kind else {})}}


def _function(function: chat_pb2.FunctionTool, where: str) -> Json:
    """A function; its schema is JSON Schema, verbatim."""
    declared: Json = {"name": function.name}
    if function.description:
        declared["description"] = function.description
    if function.parameters_schema:
        given_object(function.parameters_schema, f"{where}.function.parameters")
        declared["parametersJsonSchema"] = msgspec.Raw(function.parameters_schema)
    return declared
