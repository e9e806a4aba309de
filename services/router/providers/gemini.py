"""Google's Gemini API, generateContent.

URL: ``POST https://generativelanguage.googleapis.com/v1beta/models/{model}:generateContent`` and
``…:streamGenerateContent?alt=sse`` (https://ai.google.dev/api/generate-content),
``GET …/models``. Key: ``x-goog-api-key``, never in the URL.

How it differs from OpenAI's dialect: system messages stand beside the contents; messages are
``contents`` of ``parts``, the assistant's role is ``model``; knobs are in ``generationConfig``; a
function's arguments and results are JSON objects; results name their function; thoughts, function
calls and texts carry signatures that must come back; a stream has no last event; results of
Gemini's own tools and thoughts are counted beside prompt and answer.
"""

from collections.abc import Mapping
from typing import Final
from urllib.parse import quote

import msgspec

from onegate.common.v1 import content_pb2
from onegate.router.v1 import chat_pb2
from runtime.errors import GatewayError
from services.router.providers import gemini_contents, gemini_parts
from services.router.providers.base import Answer, Exchange, Headers, ListedModel, UpstreamRequest
from services.router.providers.foreign import (
    MALFORMED,
    Fields,
    Json,
    Rule,
    copy_fields,
    given_object,
    invalid,
    protocol_error,
    read_object,
    unsupported,
)
from services.router.providers.gemini_models import PROVIDER, thinking_config, version
from services.router.providers.gemini_outcomes import answered_tier, error, finish
from services.router.providers.gemini_stream import GeminiStream

FIELDS: Final[Fields] = {
    "model": Rule.DERIVED,
    "messages": Rule.DERIVED,
    "tools": Rule.DERIVED,
    "tool_choice": Rule.DERIVED,
    "parallel_tool_calls": Rule.DERIVED,
    "temperature": "temperature",
    "top_p": "topP",
    "top_k": "topK",
    "min_p": None,
    "presence_penalty": "presencePenalty",
    "frequency_penalty": "frequencyPenalty",
    "seed": "seed",
    "stop": "stopSequences",
    "logit_bias": None,
    "output_tokens_max": "maxOutputTokens",
    "choices": "candidateCount",
    "response_format": Rule.DERIVED,
    "thinking": Rule.DERIVED,
    "logprobs": "responseLogprobs",
    "top_logprobs": "logprobs",
    "output_modalities": Rule.DERIVED,
    "audio_output": Rule.DERIVED,
    "stream": Rule.DERIVED,
    "stream_usage": Rule.ACCEPTED,
    "service_tier": Rule.DERIVED,
    "store": Rule.ACCEPTED,
    "verbosity": None,
    "prediction": None,
    "web_search_options_json": Rule.DERIVED,
    "prompt_cache_key": Rule.ACCEPTED,
    "prompt_cache_retention": None,
    "metadata": Rule.ACCEPTED,
    "end_user": Rule.ACCEPTED,
    "safety_identifier": Rule.ACCEPTED,
    "extra_json": Rule.DERIVED,
    "routing": Rule.ACCEPTED,
    "context": Rule.ACCEPTED,
    "native": Rule.ACCEPTED,
    "legacy_output_tokens_max": Rule.ACCEPTED,
    "legacy_functions": Rule.ACCEPTED,
}
"""What becomes of every field of a request; names are those of ``generationConfig``. Cache
breakpoints are not sent: Gemini caches prefixes by itself."""

EXTRA: Final = frozenset({"cachedContent", "labels", "modelArmorConfig", "safetySettings"})
"""Fields of the call that the contract does not name and that callers may add to theirs.
``generationConfig`` and ``toolConfig`` may be added, too; what the contract says wins."""

SERVICE_TIERS: Final[Mapping[str, str]] = {
    "auto": "",
    "default": "standard",
    "standard": "standard",
    "flex": "flex",
    "priority": "priority",
}
"""https://ai.google.dev/gemini-api/docs/flex-inference; empty for Gemini's own choice."""

MODALITIES: Final[Mapping[int, str]] = {
    chat_pb2.OUTPUT_MODALITY_TEXT: "TEXT",
    chat_pb2.OUTPUT_MODALITY_AUDIO: "AUDIO",
    chat_pb2.OUTPUT_MODALITY_IMAGE: "IMAGE",
}

_AUDIO_FORMATS: Final = frozenset({"", "pcm", "pcm16"})
_GENERATES: Final = "generateContent"
_ENCODER: Final = msgspec.json.Encoder()


class GeminiWire:
    """How Gemini speaks."""

    dialect = chat_pb2.DIALECT_GOOGLE_GENERATE_CONTENT
    native = False
    base_url = "https://generativelanguage.googleapis.com/v1beta"

    def authorize(self, secret: str) -> Headers:
        """The key."""
        return [("x-goog-api-key", secret)]

    def request(self, exchange: Exchange) -> UpstreamRequest:
        """The call. Raises UNSUPPORTED_PARAMETER or INVALID_REQUEST."""
        request = exchange.request
        body: Json = {}
        config: Json = {}
        rules: Json = {}
        _extra(request, body, config, rules)
        copy_fields(request, FIELDS, config, PROVIDER)
        _contents(request, exchange.model, body)
        _tools(request, body, rules)
        _form(request, exchange.model, config)
        if config:
            body["generationConfig"] = config
        if rules:
            body["toolConfig"] = rules
        if tier := _service_tier(request.service_tier):
            body["serviceTier"] = tier
        return UpstreamRequest(
            method="POST",
            path=_path(exchange.model, stream=request.stream),
            headers=[("content-type", "application/json")],
            body=_ENCODER.encode(body),
        )

    def response(self, exchange: Exchange, body: bytes) -> Answer:
        """A whole answer."""
        response = read_object(body, PROVIDER)
        try:
            return _answer(response, exchange.model)
        except MALFORMED as exc:
            raise protocol_error(PROVIDER, "answered with something that is no answer") from exc

    def stream(self, exchange: Exchange) -> GeminiStream:
        """A decoder for one streamed answer."""
        return GeminiStream(exchange)

    def error(self, status: int, headers: Mapping[str, str], body: bytes) -> GatewayError:
        """What an error means: its ``google.rpc.Status``, or its HTTP status without one."""
        return error(status, headers, body)

    def models_request(self) -> UpstreamRequest:
        """The first 1,000 models, which is the most that a page takes
        (https://ai.google.dev/api/models#method:-models.list).
        """
        return UpstreamRequest(method="GET", path="/models?pageSize=1000", headers=[], body=b"")

    def models(self, body: bytes) -> list[ListedModel]:
        """The models that generate content, with the limits that the list tells."""
        page = read_object(body, PROVIDER)
        try:
            return [
                _listed(model)
                for model in page["models"]
                if _GENERATES in model.get("supportedGenerationMethods", (_GENERATES,))
            ]
        except MALFORMED as exc:
            raise protocol_error(PROVIDER, "answered with something that is no list") from exc


WIRE: Final = GeminiWire()


def _path(model: str, *, stream: bool) -> str:
    """Models are named with or without their collection (``models/``, ``tunedModels/``)."""
    collection, slash, name = model.rpartition("/")
    place = f"{quote(collection)}{slash}" if slash else "models/"
    method = "streamGenerateContent?alt=sse" if stream else _GENERATES
    return f"/{place}{quote(name, safe='')}:{method}"


def _contents(request: chat_pb2.ChatRequest, model: str, body: Json) -> None:
    """Who said what."""
    contents = gemini_contents.Contents(version(model))
    for index, message in enumerate(request.messages):
        contents.add(message, f"messages[{index}]")
    body["contents"] = contents.contents
    if contents.system:
        body["systemInstruction"] = {"parts": contents.system}


def _tools(request: chat_pb2.ChatRequest, body: Json, rules: Json) -> None:
    """The tools and whether they must be called."""
    tools = gemini_contents.tools(request)
    if not tools:
        return
    body["tools"] = tools
    serial = request.HasField("parallel_tool_calls") and not request.parallel_tool_calls
    if serial and "functionDeclarations" in tools[0]:
        raise unsupported("parallel_tool_calls", PROVIDER)
    if calling := gemini_contents.calling_config(request):
        rules["functionCallingConfig"] = calling


def _form(request: chat_pb2.ChatRequest, model: str, config: Json) -> None:
    """What the answer is made of, and how much is thought before it."""
    if request.HasField("thinking") and (thinking := thinking_config(request.thinking, model)):
        config["thinkingConfig"] = thinking
    wanted = request.response_format
    if wanted.kind == chat_pb2.RESPONSE_FORMAT_KIND_JSON_OBJECT:
        config["responseMimeType"] = "application/json"
    elif wanted.kind == chat_pb2.RESPONSE_FORMAT_KIND_JSON_SCHEMA:
        given_object(wanted.schema, "response_format.json_schema.schema")
        config["responseMimeType"] = "application/json"
        config["responseJsonSchema"] = msgspec.Raw(wanted.schema)
    if request.output_modalities:
        config["responseModalities"] = [MODALITIES[each] for each in request.output_modalities]
    audio = request.audio_output
    if audio.format not in _AUDIO_FORMATS:
        raise unsupported("audio.format", PROVIDER, "It speaks in `pcm16` only.")
    if voice := audio.voice or audio.voice_id:
        config["speechConfig"] = {"voiceConfig": {"prebuiltVoiceConfig": {"voiceName": voice}}}


def _service_tier(wanted: str) -> str:
    """Gemini's word for the service tier; empty for its own choice."""
    if wanted and wanted not in SERVICE_TIERS:
        raise unsupported("service_tier", PROVIDER)
    return SERVICE_TIERS.get(wanted, "")


def _extra(request: chat_pb2.ChatRequest, body: Json, config: Json, rules: Json) -> None:
    """Adds the caller's additional fields."""
    into = {"generationConfig": config, "toolConfig": rules}
    for key, value in given_object(request.extra_json or b"{}", "extra").items():
        if key in EXTRA:
            body[key] = value
        elif key not in into:
            raise unsupported(key, PROVIDER)
        elif not isinstance(value, dict):
            raise invalid(key, f"`{key}` must be a JSON object.")
        else:
            into[key].update(value)


def _answer(response: Json, model: str) -> Answer:
    """An answer as the contract has it; a refused prompt is an answer without content."""
    answer_id = response.get("responseId") or ""
    reported = response.get("usageMetadata") or {}
    candidates = response.get("candidates") or ()
    blocked = (response.get("promptFeedback") or {}).get("blockReason") or ""
    if not candidates and not blocked:
        raise protocol_error(PROVIDER, "answered without an answer")
    choices = [
        _choice(candidate.get("index", position), candidate, answer_id)
        for position, candidate in enumerate(candidates)
    ] or [_blocked(blocked)]
    answer = chat_pb2.ChatAnswer(
        id=answer_id,
        model=response.get("modelVersion") or model,
        service_tier=answered_tier(reported),
        choices=choices,
        extra_json=gemini_parts.told_beside(response),
    )
    searches = sum(gemini_parts.searches(candidate, model) for candidate in candidates)
    return Answer(
        event=chat_pb2.ChatEvent(answer=answer),
        usage=gemini_parts.usage(reported, searches),
        finish_reason=choices[0].native_finish_reason,
        upstream_id=answer_id,
        output_bytes=sum(
            gemini_parts.output_bytes(part) for choice in choices for part in choice.message.parts
        ),
    )


def _choice(index: int, candidate: Json, answer_id: str) -> chat_pb2.Choice:
    """One of the answers."""
    made: list[content_pb2.Part] = []
    calls = 0
    for part in (candidate.get("content") or {}).get("parts") or ():
        call_id = ""
        if "functionCall" in part:
            call_id = gemini_parts.made_up_id(answer_id, calls, part)
            calls += 1
        made += gemini_parts.parts(part, call_id)
    _annotate(made, candidate.get("groundingMetadata") or {})
    reason = candidate["finishReason"]
    choice = chat_pb2.Choice(
        index=index,
        message=content_pb2.Message(role=content_pb2.ROLE_ASSISTANT, parts=made),
        finish_reason=finish(reason, calls=calls > 0),
        native_finish_reason=reason,
    )
    if candidate.get("logprobsResult"):
        choice.logprobs.CopyFrom(gemini_parts.logprobs(candidate["logprobsResult"]))
    return choice


def _annotate(parts: list[content_pb2.Part], grounding: Json) -> None:
    """Notes where the text comes from on its last part; pictures come from somewhere, too."""
    texts = [part.text for part in parts if part.HasField("text")]
    noted = gemini_parts.annotations(grounding, "".join(text.text for text in texts))
    if noted and not texts:
        parts.append(content_pb2.Part(text=content_pb2.TextPart(annotations=noted)))
    elif noted:
        texts[-1].annotations.extend(noted)


def _blocked(reason: str) -> chat_pb2.Choice:
    """The prompt was refused."""
    return chat_pb2.Choice(
        message=content_pb2.Message(role=content_pb2.ROLE_ASSISTANT),
        finish_reason=chat_pb2.FINISH_REASON_CONTENT_FILTER,
        native_finish_reason=reason,
    )


def _listed(model: Json) -> ListedModel:
    """One model of the list."""
    return ListedModel(
        id=model["name"].removeprefix("models/"),
        owner="google",
        name=model.get("displayName") or "",
        context_tokens_max=model.get("inputTokenLimit") or 0,
        output_tokens_max=model.get("outputTokenLimit") or 0,
    )
