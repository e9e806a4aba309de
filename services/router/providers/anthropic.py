"""Anthropic's Messages API.

URL: ``POST https://api.anthropic.com/v1/messages``
(https://platform.claude.com/docs/en/api/messages), ``GET /v1/models``. Key: ``x-api-key``.

Version: ``anthropic-version: 2023-06-01``. Of the two versions that are served it is the one that
still takes ``temperature``, ``top_p`` and ``top_k``, which version 2026-10-21 refuses for every
model, also at their defaults (https://platform.claude.com/docs/en/api/versioning). Nothing that
the gateway sends is new in the later version.

How it differs from OpenAI's dialect: system messages stand beside the turns; turns alternate; every
content is a list of typed blocks; ``max_tokens`` is required; ``tool_choice`` holds
``disable_parallel_tool_use``; thoughts carry signatures that must come back; the input count leaves
out what was cached; there is one answer per call and no seed, penalty, bias or log probability.
"""

from collections.abc import Mapping
from datetime import datetime
from typing import Final

import msgspec

from onegate.common.v1 import content_pb2
from onegate.router.v1 import chat_pb2
from runtime.errors import GatewayError
from services.router.providers import anthropic_blocks, anthropic_messages
from services.router.providers.anthropic_models import PROVIDER, ModelTraits, thinking, traits
from services.router.providers.anthropic_outcomes import FINISH_REASONS, answered_tier, error, extra
from services.router.providers.anthropic_stream import AnthropicStream
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

VERSION: Final = "2023-06-01"

FIELDS: Final[Fields] = {
    "model": Rule.DERIVED,
    "messages": Rule.DERIVED,
    "tools": Rule.DERIVED,
    "tool_choice": Rule.DERIVED,
    "parallel_tool_calls": Rule.DERIVED,
    "temperature": "temperature",
    "top_p": "top_p",
    "top_k": "top_k",
    "min_p": None,
    "presence_penalty": None,
    "frequency_penalty": None,
    "seed": None,
    "stop": "stop_sequences",
    "logit_bias": None,
    "output_tokens_max": "max_tokens",
    "choices": None,
    "response_format": Rule.DERIVED,
    "thinking": Rule.DERIVED,
    "logprobs": None,
    "top_logprobs": None,
    "output_modalities": Rule.DERIVED,
    "audio_output": None,
    "stream": "stream",
    "stream_usage": Rule.ACCEPTED,
    "service_tier": Rule.DERIVED,
    "store": Rule.ACCEPTED,
    "verbosity": None,
    "prediction": None,
    "web_search_options_json": Rule.DERIVED,
    "prompt_cache_key": Rule.ACCEPTED,
    "prompt_cache_retention": None,
    "metadata": Rule.ACCEPTED,
    "end_user": Rule.DERIVED,
    "safety_identifier": Rule.DERIVED,
    "extra_json": Rule.DERIVED,
    "routing": Rule.ACCEPTED,
    "context": Rule.ACCEPTED,
    "native": Rule.ACCEPTED,
    "legacy_output_tokens_max": Rule.ACCEPTED,
    "legacy_functions": Rule.ACCEPTED,
}
"""What becomes of every field of a request. ``metadata`` is kept with the usage row; Anthropic's
own ``metadata`` only names the end user."""

EXTRA: Final = frozenset(
    {
        "cache_control",
        "container",
        "context_management",
        "diagnostics",
        "fallbacks",
        "inference_geo",
        "mcp_servers",
        "output_config",
        "speed",
    }
)
"""Fields of the Messages API that the contract does not name and that callers may add to theirs."""

BETAS: Final = "anthropic_beta"
"""An added field with the names of betas, sent as the ``anthropic-beta`` header."""

SERVICE_TIERS: Final[Mapping[str, str]] = {
    "auto": "auto",
    "default": "standard_only",
    "priority": "auto",
    "standard_only": "standard_only",
}
"""``auto`` takes the priority capacity that an account has bought
(https://platform.claude.com/docs/en/api/service-tiers)."""

_SAMPLING_DEFAULTS: Final[Mapping[str, object]] = {"temperature": 1, "top_p": 1, "top_k": None}
_ENCODER: Final = msgspec.json.Encoder()


class AnthropicWire:
    """How Anthropic speaks."""

    dialect = chat_pb2.DIALECT_ANTHROPIC_MESSAGES
    native = False
    base_url = "https://api.anthropic.com"

    def authorize(self, secret: str) -> Headers:
        """The key."""
        return [("x-api-key", secret)]

    def request(self, exchange: Exchange) -> UpstreamRequest:
        """The call. Raises UNSUPPORTED_PARAMETER or INVALID_REQUEST."""
        body, betas = self.form(exchange)
        body["model"] = exchange.model
        headers = [("content-type", "application/json"), ("anthropic-version", VERSION)]
        if betas:
            headers.append(("anthropic-beta", betas))
        return UpstreamRequest(
            method="POST", path="/v1/messages", headers=headers, body=_ENCODER.encode(body)
        )

    def form(self, exchange: Exchange) -> tuple[Json, str]:
        """The body without the model, which other clouds name in the path, and the names of betas.

        Raises UNSUPPORTED_PARAMETER or INVALID_REQUEST.
        """
        request = exchange.request
        model = traits(exchange.model)
        body: Json = {"max_tokens": model.output_tokens_max}
        copy_fields(request, FIELDS, body, PROVIDER)
        _sampling(body, model)
        _conversation(request, model, body)
        betas = _extra(request, body)
        _thinking_and_format(request, model, body)
        _account(request, body)
        return body, betas

    def response(self, exchange: Exchange, body: bytes) -> Answer:
        """A whole answer."""
        message = read_object(body, PROVIDER)
        try:
            return _answer(message, exchange.model)
        except MALFORMED as exc:
            raise protocol_error(PROVIDER, "answered with something that is no message") from exc

    def stream(self, exchange: Exchange) -> AnthropicStream:
        """A decoder for one streamed answer."""
        return AnthropicStream(exchange.model)

    def error(self, status: int, headers: Mapping[str, str], body: bytes) -> GatewayError:
        """What an error means: its ``type``, or its status when the body is not Anthropic's."""
        return error(status, headers, body)

    def models_request(self) -> UpstreamRequest:
        """All models on one page (https://platform.claude.com/docs/en/api/models/list)."""
        headers = [("anthropic-version", VERSION)]
        return UpstreamRequest(
            method="GET", path="/v1/models?limit=1000", headers=headers, body=b""
        )

    def models(self, body: bytes) -> list[ListedModel]:
        """The models, with the limits that the list tells."""
        page = read_object(body, PROVIDER)
        try:
            return [_listed(model) for model in page["data"]]
        except MALFORMED as exc:
            raise protocol_error(PROVIDER, "answered with something that is no list") from exc


WIRE: Final = AnthropicWire()


def _sampling(body: Json, model: ModelTraits) -> None:
    """Leaves out values that change nothing; models from Claude 4.7 on take no others."""
    for name, default in _SAMPLING_DEFAULTS.items():
        if name not in body or (model.sampling and name != "top_p"):
            continue
        if body[name] == default:
            del body[name]
        elif not model.sampling:
            raise unsupported(name, PROVIDER, "This model samples in its own way only.")


def _conversation(request: chat_pb2.ChatRequest, model: ModelTraits, body: Json) -> None:
    """Who said what, and the tools."""
    system, turns = anthropic_messages.conversation(request.messages, model)
    body["messages"] = turns
    if system:
        body["system"] = system
    if tools := anthropic_messages.tools(request):
        body["tools"] = tools
        if choice := anthropic_messages.tool_choice(request):
            body["tool_choice"] = choice


def _thinking_and_format(request: chat_pb2.ChatRequest, model: ModelTraits, body: Json) -> None:
    """``thinking`` and ``output_config`` (effort and the answer's schema,
    https://platform.claude.com/docs/en/build-with-claude/structured-outputs).
    """
    config: Json = body.pop("output_config", {})
    if not isinstance(config, dict):
        raise invalid("output_config", "`output_config` must be a JSON object.")
    if request.HasField("thinking"):
        shown, effort = thinking(request.thinking, model, body["max_tokens"])
        if shown is not None:
            body["thinking"] = shown
        if effort:
            config["effort"] = effort
    wanted = request.response_format
    if wanted.kind == chat_pb2.RESPONSE_FORMAT_KIND_JSON_OBJECT:
        hint = "Ask for `json_schema` and give the schema."
        raise unsupported("response_format", PROVIDER, hint)
    if wanted.kind == chat_pb2.RESPONSE_FORMAT_KIND_JSON_SCHEMA:
        given_object(wanted.schema, "response_format.json_schema.schema")
        config["format"] = {"type": "json_schema", "schema": msgspec.Raw(wanted.schema)}
    if config:
        body["output_config"] = config
    for modality in request.output_modalities:
        if modality != chat_pb2.OUTPUT_MODALITY_TEXT:
            raise unsupported("modalities", PROVIDER, "It answers in text only.")


def _account(request: chat_pb2.ChatRequest, body: Json) -> None:
    """The end user and the service tier."""
    if user := request.safety_identifier or request.end_user:
        body["metadata"] = {"user_id": user}
    if request.service_tier:
        tier = SERVICE_TIERS.get(request.service_tier)
        if tier is None:
            raise unsupported("service_tier", PROVIDER, "It has `auto` and `default`.")
        body["service_tier"] = tier


def _extra(request: chat_pb2.ChatRequest, body: Json) -> str:
    """Adds the caller's additional fields; returns the betas that they name, comma-separated."""
    betas = ""
    for key, value in given_object(request.extra_json or b"{}", "extra").items():
        if key == BETAS and isinstance(value, list):
            betas = ",".join(str(beta) for beta in value)
        elif key in EXTRA:
            body[key] = value
        else:
            raise unsupported(key, PROVIDER)
    return betas


def _answer(message: Json, model: str) -> Answer:
    """A message as the contract has it; ``model`` was called, should the message not name it."""
    parts = anthropic_blocks.parts(message["content"])
    reported = message.get("usage") or {}
    reason = message["stop_reason"]
    if not reason:
        raise protocol_error(PROVIDER, "answered without saying why it stopped")
    choice = chat_pb2.Choice(
        message=content_pb2.Message(role=content_pb2.ROLE_ASSISTANT, parts=parts),
        finish_reason=FINISH_REASONS.get(reason, chat_pb2.FINISH_REASON_STOP),
        native_finish_reason=reason,
    )
    answer = chat_pb2.ChatAnswer(
        id=message["id"],
        model=message.get("model") or model,
        service_tier=answered_tier(reported),
        choices=[choice],
        extra_json=extra(message),
    )
    return Answer(
        event=chat_pb2.ChatEvent(answer=answer),
        usage=anthropic_blocks.usage(reported),
        finish_reason=reason,
        upstream_id=message["id"],
        output_bytes=sum(map(anthropic_blocks.output_bytes, parts)),
    )


def _listed(model: Json) -> ListedModel:
    """One model of the list."""
    created = datetime.fromisoformat(model["created_at"]) if model.get("created_at") else None
    return ListedModel(
        id=model["id"],
        created_unix_s=max(0, int(created.timestamp())) if created else 0,
        owner="anthropic",
        name=model.get("display_name") or "",
        context_tokens_max=model.get("max_input_tokens") or 0,
        output_tokens_max=model.get("max_tokens") or 0,
    )
