"""Cohere's chat API, version 2.

URL: ``POST https://api.cohere.com/v2/chat`` (https://docs.cohere.com/reference/chat), for streams,
too (https://docs.cohere.com/reference/chat-stream), ``GET https://api.cohere.com/v1/models``.
Key: a bearer token. Version 1 of the chat, with ``message`` and ``chat_history``, is another API
for models that are gone.

How it differs from OpenAI's dialect: ``p`` and ``k`` for the sampling; a schema is a kind of
``json_object``; whether tools follow their schemas is one switch for all; the choice of tools has
two words; a model tells its plan before it calls; citations point into the text, at documents and
at tools' results; thoughts are blocks of text without a proof; usage is told in tokens and in
billed units; there is one answer per call and no bias.
"""

from collections.abc import Mapping
from typing import Final

import msgspec

from onegate.common.v1 import content_pb2
from onegate.router.v1 import chat_pb2
from runtime.errors import GatewayError
from services.router.providers import cohere_messages, cohere_outcomes
from services.router.providers.anthropic_models import BUDGETS
from services.router.providers.base import Answer, Exchange, Headers, ListedModel, UpstreamRequest
from services.router.providers.cohere_messages import PROVIDER
from services.router.providers.cohere_stream import CohereStream
from services.router.providers.foreign import (
    MALFORMED,
    Fields,
    Json,
    Rule,
    copy_fields,
    given_object,
    protocol_error,
    read_object,
    unsupported,
    utf8_size,
)

FIELDS: Final[Fields] = {
    "model": Rule.DERIVED,
    "messages": Rule.DERIVED,
    "tools": Rule.DERIVED,
    "tool_choice": Rule.DERIVED,
    "parallel_tool_calls": Rule.DERIVED,
    "temperature": "temperature",
    "top_p": "p",
    "top_k": "k",
    "min_p": None,
    "presence_penalty": "presence_penalty",
    "frequency_penalty": "frequency_penalty",
    "seed": "seed",
    "stop": "stop_sequences",
    "logit_bias": None,
    "output_tokens_max": "max_tokens",
    "choices": None,
    "response_format": Rule.DERIVED,
    "thinking": Rule.DERIVED,
    "logprobs": "logprobs",
    "top_logprobs": None,
    "output_modalities": Rule.DERIVED,
    "audio_output": None,
    "stream": "stream",
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
"""What becomes of every field of a request. Cache breakpoints are not sent: Cohere caches prefixes
by itself."""

EXTRA: Final = frozenset({"citation_options", "documents", "priority", "safety_mode"})
"""Fields of the chat that the contract does not name and that callers may add to theirs."""

_TIERS: Final = frozenset({"", "auto", "default"})
_ENCODER: Final = msgspec.json.Encoder()


class CohereWire:
    """How Cohere speaks."""

    dialect = chat_pb2.DIALECT_UNSPECIFIED
    native = False
    base_url = "https://api.cohere.com"

    def authorize(self, secret: str) -> Headers:
        """The key."""
        return [("authorization", f"Bearer {secret}")]

    def request(self, exchange: Exchange) -> UpstreamRequest:
        """The call. Raises UNSUPPORTED_PARAMETER or INVALID_REQUEST."""
        request = exchange.request
        body: Json = {"model": exchange.model, "stream": False}
        _extra(request, body)
        copy_fields(request, FIELDS, body, PROVIDER)
        body["messages"] = cohere_messages.conversation(request.messages, exchange.model)
        _tools(request, body)
        _form(request, body)
        if request.service_tier not in _TIERS:
            raise unsupported("service_tier", PROVIDER)
        if request.HasField("thinking") and (thinking := _thinking(request.thinking)):
            body["thinking"] = thinking
        return UpstreamRequest(
            method="POST",
            path="/v2/chat",
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

    def stream(self, exchange: Exchange) -> CohereStream:
        """A decoder for one streamed answer."""
        return CohereStream(exchange.model)

    def error(self, status: int, headers: Mapping[str, str], body: bytes) -> GatewayError:
        """What an error means: its status, and its ``message``."""
        return cohere_outcomes.error(status, headers, body)

    def models_request(self) -> UpstreamRequest:
        """The first 1,000 models that chat (https://docs.cohere.com/reference/list-models)."""
        path = "/v1/models?endpoint=chat&page_size=1000"
        return UpstreamRequest(method="GET", path=path, headers=[], body=b"")

    def models(self, body: bytes) -> list[ListedModel]:
        """The models, with the context that the list tells."""
        page = read_object(body, PROVIDER)
        try:
            return [
                ListedModel(
                    id=model["name"],
                    owner="cohere",
                    context_tokens_max=int(model.get("context_length") or 0),
                )
                for model in page["models"]
            ]
        except MALFORMED as exc:
            raise protocol_error(PROVIDER, "answered with something that is no list") from exc


WIRE: Final = CohereWire()


def _tools(request: chat_pb2.ChatRequest, body: Json) -> None:
    """The tools and whether they must be called."""
    tools = cohere_messages.tools(request)
    if not tools:
        return
    if request.HasField("parallel_tool_calls") and not request.parallel_tool_calls:
        raise unsupported("parallel_tool_calls", PROVIDER)
    body["tools"] = tools
    if any(tool.function.strict for tool in request.tools):
        body["strict_tools"] = True
    if rule := cohere_messages.tool_choice(request.tool_choice):
        body["tool_choice"] = rule


def _form(request: chat_pb2.ChatRequest, body: Json) -> None:
    """What the answer is made of (https://docs.cohere.com/docs/structured-outputs)."""
    wanted = request.response_format
    if wanted.kind == chat_pb2.RESPONSE_FORMAT_KIND_JSON_OBJECT:
        body["response_format"] = {"type": "json_object"}
    elif wanted.kind == chat_pb2.RESPONSE_FORMAT_KIND_JSON_SCHEMA:
        given_object(wanted.schema, "response_format.json_schema.schema")
        schema = msgspec.Raw(wanted.schema)
        body["response_format"] = {"type": "json_object", "json_schema": schema}
    for modality in request.output_modalities:
        if modality != chat_pb2.OUTPUT_MODALITY_TEXT:
            raise unsupported("modalities", PROVIDER, "It answers in text only.")


def _thinking(asked: chat_pb2.Thinking) -> Json:
    """Cohere's ``thinking``, empty for the model's default. An effort becomes a budget, as where
    Anthropic's models take one; Cohere's think as long as they need without one.
    """
    if asked.HasField("include_thoughts") and not asked.include_thoughts:
        raise unsupported("thinking.include_thoughts", PROVIDER)
    if asked.effort == chat_pb2.THINKING_EFFORT_NONE or (
        asked.HasField("enabled") and not asked.enabled
    ):
        return {"type": "disabled"}
    if asked.HasField("budget_tokens"):
        return {"type": "enabled", "token_budget": asked.budget_tokens}
    if asked.effort in BUDGETS:
        return {"type": "enabled", "token_budget": BUDGETS[asked.effort]}
    return {"type": "enabled"} if asked.enabled else {}


def _extra(request: chat_pb2.ChatRequest, body: Json) -> None:
    """Adds the caller's additional fields."""
    for key, value in given_object(request.extra_json or b"{}", "extra").items():
        if key not in EXTRA:
            raise unsupported(key, PROVIDER)
        body[key] = value


def _answer(told: Json, model: str) -> Answer:
    """An answer as the contract has it."""
    reason = str(told["finish_reason"])
    cohere_outcomes.check_finish(reason)
    parts = cohere_outcomes.parts(told["message"])
    choice = chat_pb2.Choice(
        message=content_pb2.Message(role=content_pb2.ROLE_ASSISTANT, parts=parts),
        finish_reason=cohere_outcomes.FINISH_REASONS.get(reason, chat_pb2.FINISH_REASON_STOP),
        native_finish_reason=reason,
    )
    if told.get("logprobs"):
        choice.logprobs.CopyFrom(cohere_outcomes.logprobs(told["logprobs"]))
    return Answer(
        event=chat_pb2.ChatEvent(
            answer=chat_pb2.ChatAnswer(id=told["id"], model=model, choices=[choice])
        ),
        usage=cohere_outcomes.usage(told.get("usage") or {}),
        finish_reason=reason,
        upstream_id=told["id"],
        output_bytes=sum(map(_output_bytes, parts)),
    )


def _output_bytes(part: content_pb2.Part) -> int:
    """UTF-8 bytes of what the model wrote in a part."""
    call = part.tool_call
    texts = (part.text.text, part.thinking.text, call.name, call.arguments)
    return sum(map(utf8_size, texts)) + len(part.opaque_json)
