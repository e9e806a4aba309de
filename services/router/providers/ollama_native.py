"""Ollama's own chat API.

URL: ``POST http://localhost:11434/api/chat`` (https://docs.ollama.com/api/chat),
``GET /api/tags``. No key for a local server; Ollama's cloud takes a bearer token
(https://docs.ollama.com/cloud).

Why it stands beside the row ``ollama`` of ``compatible.py``: Ollama's OpenAI-compatible endpoint
cannot say how long the context is (``num_ctx``), and what does not fit into a context of the
server's choosing is cut off without a word; nor how long the model stays loaded (``keep_alive``),
nor most of what ``options`` holds (``min_p``, ``top_k``, ``repeat_penalty``, …)
(https://docs.ollama.com/api/openai-compatibility#setting-the-context-size).

How it differs from OpenAI's dialect: knobs are in ``options``; a stream is one JSON value a line;
pictures stand beside the text, as base64 alone; arguments are objects and calls come whole; the
answer has no id; a call cannot be forced; there is one answer per call.
"""

from collections.abc import Mapping
from typing import Final

import msgspec

from onegate.common.v1 import content_pb2
from onegate.router.v1 import chat_pb2
from runtime.errors import GatewayError
from services.router.providers import ollama_native_answers, ollama_native_messages
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
    utf8_size,
)
from services.router.providers.ollama_native_answers import OllamaStream
from services.router.providers.ollama_native_messages import PROVIDER

FIELDS: Final[Fields] = {
    "model": Rule.DERIVED,
    "messages": Rule.DERIVED,
    "tools": Rule.DERIVED,
    "tool_choice": Rule.DERIVED,
    "parallel_tool_calls": Rule.DERIVED,
    "temperature": "temperature",
    "top_p": "top_p",
    "top_k": "top_k",
    "min_p": "min_p",
    "presence_penalty": "presence_penalty",
    "frequency_penalty": "frequency_penalty",
    "seed": "seed",
    "stop": "stop",
    "logit_bias": None,
    "output_tokens_max": "num_predict",
    "choices": None,
    "response_format": Rule.DERIVED,
    "thinking": Rule.DERIVED,
    "logprobs": Rule.DERIVED,
    "top_logprobs": Rule.DERIVED,
    "output_modalities": Rule.DERIVED,
    "audio_output": None,
    "stream": Rule.DERIVED,
    "stream_usage": Rule.ACCEPTED,
    "service_tier": Rule.DERIVED,
    "store": Rule.ACCEPTED,
    "verbosity": None,
    "prediction": None,
    "web_search_options_json": None,
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
"""What becomes of every field of a request; names are those of ``options``."""

EXTRA: Final = frozenset({"keep_alive", "shift", "truncate"})
"""Fields of the chat that the contract does not name and that callers may add to theirs.
``options`` may be added, too; what the contract says wins."""

LEVELS: Final[Mapping[int, str]] = {
    chat_pb2.THINKING_EFFORT_MINIMAL: "low",
    chat_pb2.THINKING_EFFORT_LOW: "low",
    chat_pb2.THINKING_EFFORT_MEDIUM: "medium",
    chat_pb2.THINKING_EFFORT_HIGH: "high",
    chat_pb2.THINKING_EFFORT_XHIGH: "high",
    chat_pb2.THINKING_EFFORT_MAX: "high",
}
"""Efforts by name, for the models that know any (https://docs.ollama.com/capabilities/thinking);
the others only think or do not."""

_KNOWS_LEVELS: Final = "gpt-oss"
_TIERS: Final = frozenset({"", "auto", "default"})
_ENCODER: Final = msgspec.json.Encoder()


class OllamaWire:
    """How Ollama speaks."""

    dialect = chat_pb2.DIALECT_UNSPECIFIED
    native = False
    base_url = "http://localhost:11434"

    def authorize(self, secret: str) -> Headers:
        """The key, where there is one."""
        return [("authorization", f"Bearer {secret}")] if secret else []

    def request(self, exchange: Exchange) -> UpstreamRequest:
        """The call. Raises UNSUPPORTED_PARAMETER or INVALID_REQUEST."""
        request = exchange.request
        body: Json = {"model": exchange.model, "stream": request.stream}
        options: Json = {}
        _extra(request, body, options)
        copy_fields(request, FIELDS, options, PROVIDER)
        body["messages"] = ollama_native_messages.conversation(request.messages)
        if tools := ollama_native_messages.tools(request):
            body["tools"] = tools
        _form(request, body)
        if request.HasField("thinking"):
            _think(request.thinking, exchange.model, body)
        if options:
            body["options"] = options
        return UpstreamRequest(
            method="POST",
            path="/api/chat",
            headers=[("content-type", "application/json")],
            body=_ENCODER.encode(body),
        )

    def response(self, exchange: Exchange, body: bytes) -> Answer:
        """A whole answer."""
        told = read_object(body, PROVIDER)
        try:
            return _answer(told, exchange.model)
        except MALFORMED as exc:
            raise protocol_error(PROVIDER, "answered with something that is no answer") from exc

    def stream(self, exchange: Exchange) -> OllamaStream:
        """A decoder for one streamed answer."""
        return OllamaStream(exchange.model)

    def error(self, status: int, headers: Mapping[str, str], body: bytes) -> GatewayError:
        """What an error means: its status, and its ``error``."""
        return ollama_native_answers.error(status, headers, body)

    def models_request(self) -> UpstreamRequest:
        """The models that are there (https://docs.ollama.com/api/tags)."""
        return UpstreamRequest(method="GET", path="/api/tags", headers=[], body=b"")

    def models(self, body: bytes) -> list[ListedModel]:
        """The models."""
        page = read_object(body, PROVIDER)
        try:
            return [ListedModel(id=model["name"], owner="ollama") for model in page["models"]]
        except MALFORMED as exc:
            raise protocol_error(PROVIDER, "answered with something that is no list") from exc


WIRE: Final = OllamaWire()


def _form(request: chat_pb2.ChatRequest, body: Json) -> None:
    """What the answer is made of."""
    wanted = request.response_format
    if wanted.kind == chat_pb2.RESPONSE_FORMAT_KIND_JSON_OBJECT:
        body["format"] = "json"
    elif wanted.kind == chat_pb2.RESPONSE_FORMAT_KIND_JSON_SCHEMA:
        given_object(wanted.schema, "response_format.json_schema.schema")
        body["format"] = msgspec.Raw(wanted.schema)
    if request.logprobs:
        body["logprobs"] = True
        if request.top_logprobs:
            body["top_logprobs"] = request.top_logprobs
    for modality in request.output_modalities:
        if modality != chat_pb2.OUTPUT_MODALITY_TEXT:
            raise unsupported("modalities", PROVIDER, "It answers in text only.")
    if request.service_tier not in _TIERS:
        raise unsupported("service_tier", PROVIDER)


def _think(asked: chat_pb2.Thinking, model: str, body: Json) -> None:
    """``think``: whether, or how hard, where the model knows that."""
    if asked.HasField("budget_tokens"):
        raise unsupported("thinking.budget_tokens", PROVIDER, "It takes an effort.")
    if asked.HasField("include_thoughts") and not asked.include_thoughts:
        raise unsupported("thinking.include_thoughts", PROVIDER)
    if asked.effort == chat_pb2.THINKING_EFFORT_NONE or (
        asked.HasField("enabled") and not asked.enabled
    ):
        body["think"] = False
    elif asked.effort in LEVELS:
        body["think"] = LEVELS[asked.effort] if _KNOWS_LEVELS in model else True
    elif asked.enabled:
        body["think"] = True


def _extra(request: chat_pb2.ChatRequest, body: Json, options: Json) -> None:
    """Adds the caller's additional fields."""
    for key, value in given_object(request.extra_json or b"{}", "extra").items():
        if key in EXTRA:
            body[key] = value
        elif key != "options":
            raise unsupported(key, PROVIDER)
        elif not isinstance(value, dict):
            raise invalid(key, f"`{key}` must be a JSON object.")
        else:
            options.update(value)


def _answer(told: Json, model: str) -> Answer:
    """An answer as the contract has it."""
    if not told["done"]:
        raise protocol_error(PROVIDER, "answered with half an answer")
    parts = ollama_native_answers.parts(told)
    reason = told.get("done_reason") or "stop"
    calls = any(part.HasField("tool_call") for part in parts)
    choice = chat_pb2.Choice(
        message=content_pb2.Message(role=content_pb2.ROLE_ASSISTANT, parts=parts),
        finish_reason=ollama_native_answers.finish(reason, calls=calls),
        native_finish_reason=reason,
        logprobs=ollama_native_answers.logprobs(told),
    )
    answer = chat_pb2.ChatAnswer(
        created_unix_s=ollama_native_answers.created(told),
        model=told.get("model") or model,
        choices=[choice],
    )
    return Answer(
        event=chat_pb2.ChatEvent(answer=answer),
        usage=ollama_native_answers.usage(told),
        finish_reason=reason,
        upstream_id="",
        output_bytes=sum(map(_output_bytes, parts)),
    )


def _output_bytes(part: content_pb2.Part) -> int:
    """UTF-8 bytes of what the model wrote in a part."""
    call = part.tool_call
    return sum(map(utf8_size, (part.text.text, part.thinking.text, call.name, call.arguments)))
