"""Gemini request bodies as calls of the contract, for round trips: the tests' own reading of the
documentation, independent of the wire's.
"""

import base64
import json
import re
from typing import Any

from onegate.common.v1 import content_pb2
from onegate.router.v1 import chat_pb2

VERBATIM = {
    "args",
    "parameters",
    "parametersJsonSchema",
    "response",
    "responseJsonSchema",
    "responseSchema",
}
"""Values whose keys are the caller's own."""

LEVELS = {
    "MINIMAL": chat_pb2.THINKING_EFFORT_MINIMAL,
    "LOW": chat_pb2.THINKING_EFFORT_LOW,
    "MEDIUM": chat_pb2.THINKING_EFFORT_MEDIUM,
    "HIGH": chat_pb2.THINKING_EFFORT_HIGH,
}
MODALITIES = {
    "TEXT": chat_pb2.OUTPUT_MODALITY_TEXT,
    "AUDIO": chat_pb2.OUTPUT_MODALITY_AUDIO,
    "IMAGE": chat_pb2.OUTPUT_MODALITY_IMAGE,
}
KNOBS = {
    "temperature": "temperature",
    "topP": "top_p",
    "topK": "top_k",
    "maxOutputTokens": "output_tokens_max",
    "candidateCount": "choices",
    "seed": "seed",
    "presencePenalty": "presence_penalty",
    "frequencyPenalty": "frequency_penalty",
    "responseLogprobs": "logprobs",
    "logprobs": "top_logprobs",
}


def camel(value: Any) -> Any:
    """A body with the names that the documentation has: Google takes both spellings."""
    if isinstance(value, list):
        return [camel(inner) for inner in value]
    if not isinstance(value, dict):
        return value
    made = {}
    for key, inner in value.items():
        name = re.sub(r"_(\w)", lambda match: match[1].upper(), key)
        made[name] = inner if name in VERBATIM else camel(inner)
    return {key: inner for key, inner in made.items() if inner is not None}


def decode(body: dict[str, Any], *, stream: bool = False) -> chat_pb2.ChatRequest:
    """The call that a body with documented names makes."""
    request = chat_pb2.ChatRequest(stream=stream)
    if "systemInstruction" in body:
        parts = [part(each) for each in body["systemInstruction"]["parts"]]
        request.messages.add(
            role=content_pb2.ROLE_SYSTEM, parts=[made for each in parts for made in each]
        )
    for content in body["contents"]:
        parts = [part(each) for each in content["parts"]]
        request.messages.add(
            role=content_pb2.ROLE_ASSISTANT
            if content["role"] == "model"
            else content_pb2.ROLE_USER,
            parts=[made for each in parts for made in each],
        )
    extra = {key: body[key] for key in body if key in ("cachedContent", "labels", "safetySettings")}
    if "modelArmorConfig" in body:
        extra["modelArmorConfig"] = body["modelArmorConfig"]
    _tools(body, request, extra)
    rest = _generation(dict(body.get("generationConfig", {})), request)
    if rest:
        extra["generationConfig"] = rest
    if extra:
        request.extra_json = json.dumps(extra).encode()
    return request


def part(written: dict[str, Any]) -> list[content_pb2.Part]:
    """One part: what the contract has no part for stays as it is."""
    rest = dict(written)
    proof = rest.pop("thoughtSignature", "")
    made = content_pb2.Part()
    if rest.pop("thought", False):
        made.thinking.text = rest.pop("text")
        made.thinking.signature = f"gemini:{proof}" if proof else ""
        return [made]
    if "text" in rest:
        made.text.text = rest.pop("text")
    elif "functionCall" in rest:
        call = rest.pop("functionCall")
        made.tool_call.id, made.tool_call.name = call.get("id", ""), call["name"]
        made.tool_call.arguments = json.dumps(call.get("args", {}))
        made.tool_call.thought_signature = raw(proof)
        return [made]
    elif "functionResponse" in rest:
        result = rest.pop("functionResponse")
        made.tool_result.tool_call_id, made.tool_result.name = result.get("id", ""), result["name"]
        made.tool_result.parts.add().text.text = json.dumps(result["response"])
        for each in result.get("parts", []):
            made.tool_result.parts.extend(part(each))
    elif "inlineData" in rest or "fileData" in rest:
        _media(made, rest)
    else:
        return [content_pb2.Part(opaque_json=json.dumps(written).encode())]
    if rest:
        made.extra_json = json.dumps(rest).encode()
    said = [made] if made.text.text or not made.HasField("text") or not proof else []
    if proof:
        thinking = content_pb2.ThinkingPart(signature=f"gemini:{proof}")
        said.append(content_pb2.Part(thinking=thinking))
    return said


def raw(text: str) -> bytes:
    """Base64 in either alphabet; recordings have cut long media anywhere."""
    text = text.translate(str.maketrans("-_", "+/")).rstrip("=")
    return base64.b64decode(text[: len(text) - (len(text) % 4 == 1)] + "===")


def recoded(text: str) -> str:
    return base64.b64encode(raw(text)).decode()


def _media(made: content_pb2.Part, rest: dict[str, Any]) -> None:
    if "inlineData" in rest:
        data = rest.pop("inlineData")
        source = content_pb2.MediaSource(data=raw(data["data"]), media_type=data["mimeType"])
    else:
        data = rest.pop("fileData")
        source = content_pb2.MediaSource(url=data["fileUri"], media_type=data.get("mimeType", ""))
    kind = source.media_type.partition("/")[0]
    places = {
        "image": made.image.source,
        "audio": made.audio.source,
        "video": made.video.source,
    }
    places.get(kind, made.file.source).CopyFrom(source)


def _tools(body: dict[str, Any], request: chat_pb2.ChatRequest, extra: dict[str, Any]) -> None:
    for tool in listed(body.get("tools")):
        for name, value in tool.items():
            if name != "functionDeclarations":
                request.tools.add().provider_json = json.dumps({name: value}).encode()
                continue
            for declared in value:
                function = request.tools.add().function
                function.name = declared["name"]
                function.description = declared.get("description", "")
                schema = declared.get("parametersJsonSchema") or declared.get("parameters")
                if schema:
                    function.parameters_schema = json.dumps(schema).encode()
    rules = dict(body.get("toolConfig", {}))
    _rule(rules.pop("functionCallingConfig", {}), request)
    if rules:
        extra["toolConfig"] = rules


def _rule(calling: dict[str, Any], request: chat_pb2.ChatRequest) -> None:
    """Whether functions must be called."""
    names = calling.get("allowedFunctionNames", [])
    match calling.get("mode"):
        case "AUTO":
            request.tool_choice.mode = chat_pb2.TOOL_CHOICE_MODE_AUTO
        case "NONE":
            request.tool_choice.mode = chat_pb2.TOOL_CHOICE_MODE_NONE
        case "VALIDATED":
            request.tool_choice.mode = chat_pb2.TOOL_CHOICE_MODE_AUTO
            for tool in request.tools:
                tool.function.strict = True
        case "ANY" if names:
            request.tool_choice.mode = chat_pb2.TOOL_CHOICE_MODE_ALLOWED
            request.tool_choice.required = True
            request.tool_choice.names.extend(names)
        case "ANY":
            request.tool_choice.mode = chat_pb2.TOOL_CHOICE_MODE_REQUIRED


def listed(value: Any) -> list[Any]:
    """A repeated field: Google takes a single value for a list of one."""
    return value if isinstance(value, list) else [value] if value else []


def _generation(config: dict[str, Any], request: chat_pb2.ChatRequest) -> dict[str, Any]:
    """Sets the knobs; returns the rest."""
    for name, field in KNOBS.items():
        if name in config:
            value = config.pop(name)
            setattr(request, field, int(value) if field == "top_k" else value)
    request.stop.extend(config.pop("stopSequences", []))
    request.output_modalities.extend(
        MODALITIES[each] for each in config.pop("responseModalities", [])
    )
    thinking = config.pop("thinkingConfig", None)
    if thinking:
        if "thinkingBudget" in thinking:
            request.thinking.budget_tokens = thinking["thinkingBudget"]
        if "thinkingLevel" in thinking:
            request.thinking.effort = LEVELS[thinking["thinkingLevel"]]
        if "includeThoughts" in thinking:
            request.thinking.include_thoughts = thinking["includeThoughts"]
    schema = config.pop("responseJsonSchema", None) or config.pop("responseSchema", None)
    if config.get("responseMimeType") == "application/json":
        del config["responseMimeType"]
        kind = "JSON_SCHEMA" if schema else "JSON_OBJECT"
        request.response_format.kind = chat_pb2.ResponseFormatKind.Value(
            f"RESPONSE_FORMAT_KIND_{kind}"
        )
        request.response_format.schema = json.dumps(schema).encode() if schema else b""
    return config


def normal(body: dict[str, Any]) -> dict[str, Any]:
    """A body in the one form among those that mean the same."""
    made: dict[str, Any] = camel(body)
    if "systemInstruction" in made:
        made["systemInstruction"] = {"parts": made["systemInstruction"]["parts"]}
    made["contents"] = [
        {"role": content["role"], "parts": _normal_parts(content["parts"])}
        for content in made["contents"]
    ]
    declared: list[Any] = []
    own: list[Any] = []
    for tool in listed(made.pop("tools", [])):
        for name, value in tool.items():
            if name == "functionDeclarations":
                declared += [_normal_function(function) for function in value]
            else:
                own.append({name: value})
    if declared or own:
        made["tools"] = ([{"functionDeclarations": declared}] if declared else []) + own
    config = made.get("generationConfig", {})
    if "responseSchema" in config:
        config["responseJsonSchema"] = config.pop("responseSchema")
    calling = made.get("toolConfig", {}).get("functionCallingConfig", {})
    if calling.get("allowedFunctionNames") == []:
        del calling["allowedFunctionNames"]
    return {key: value for key, value in made.items() if value not in ([], {})}


def _normal_parts(parts: list[dict[str, Any]]) -> list[dict[str, Any]]:
    said = [part for part in parts if part != {"text": ""}]
    return [_normal_part(part) for part in said or parts[:1]]


def _normal_part(part: dict[str, Any]) -> dict[str, Any]:
    made = dict(part)
    if made.get("thought") is False:
        del made["thought"]
    if "thoughtSignature" in made and "functionCall" in made:
        made["thoughtSignature"] = recoded(made["thoughtSignature"])
    if "inlineData" in made:
        made["inlineData"] = {**made["inlineData"], "data": recoded(made["inlineData"]["data"])}
    if "functionResponse" in made:
        result = dict(made["functionResponse"])
        if "parts" in result:
            result["parts"] = [_normal_part(each) for each in result["parts"]]
        made["functionResponse"] = result
    if "functionCall" in made:
        made["functionCall"] = {"args": {}, **made["functionCall"]}
    return made


def _normal_function(function: dict[str, Any]) -> dict[str, Any]:
    made = {key: value for key, value in function.items() if value}
    if "parameters" in made:
        made["parametersJsonSchema"] = made.pop("parameters")
    return made
