"""Text Generation Inference's own API: a prompt goes in, the text that follows it comes out.

URL: ``POST {endpoint}/generate_stream``, ``GET {endpoint}/info``, at a dedicated Inference Endpoint
of Hugging Face's or a server of one's own
(https://huggingface.co/docs/text-generation-inference/reference/api_reference,
https://github.com/huggingface/text-generation-inference/blob/main/docs/openapi.json). Bearer token
at an endpoint, none at a server that asks for none.

Why it stands beside the row ``tgi`` of ``compatible.py``: TGI's OpenAI-compatible endpoint writes
a conversation in the model's chat template, and models without one (base models, most fine-tuned
completers) have no chat at all. Nor can it say ``typical_p``, ``repetition_penalty``, ``truncate``,
a grammar that is a regular expression, or which LoRA adapter answers (``adapter_id``).

How it differs from OpenAI's dialect: there is one prompt, which is sent word for word, and so one
message; tokens come one by one, with their log probabilities; an end that was asked for (``stop``)
is part of the answer. ``/generate`` does not say how many tokens the prompt has, and
``/generate_stream`` does: so whole answers are read from that, too.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgspec

from onegate.common.v1 import content_pb2, error_pb2, token_usage_pb2
from onegate.router.v1 import chat_pb2
from runtime.errors import GatewayError
from runtime.sse import ServerSentEvent, SseParser
from services.router.providers.base import (
    Answer,
    Exchange,
    Headers,
    ListedModel,
    StreamState,
    UpstreamRequest,
)
from services.router.providers.foreign import (
    MALFORMED,
    STATUS_REASONS,
    Fields,
    Json,
    Rule,
    copy_fields,
    count,
    given_object,
    protocol_error,
    read_object,
    retry_after_ms,
    sent_back,
    unsupported,
    upstream_error,
    utf8_size,
)

PROVIDER: Final = "Text Generation Inference"

FIELDS: Final[Fields] = {
    "model": Rule.ACCEPTED,
    "messages": Rule.DERIVED,
    "tools": None,
    "tool_choice": None,
    "parallel_tool_calls": None,
    "temperature": Rule.DERIVED,
    "top_p": Rule.DERIVED,
    "top_k": "top_k",
    "min_p": None,
    "presence_penalty": None,
    "frequency_penalty": "frequency_penalty",
    "seed": "seed",
    "stop": "stop",
    "logit_bias": None,
    "output_tokens_max": "max_new_tokens",
    "choices": None,
    "response_format": Rule.DERIVED,
    "thinking": None,
    "logprobs": Rule.DERIVED,
    "top_logprobs": "top_n_tokens",
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
"""What becomes of every field of a request; names are those of ``parameters``."""

EXTRA: Final = frozenset(
    {"adapter_id", "do_sample", "grammar", "repetition_penalty", "truncate", "typical_p"}
    | {"watermark"}
)
"""Parameters that the contract does not name and that callers may add to theirs."""

FINISH_REASONS: Final[Mapping[str, chat_pb2.FinishReason.ValueType]] = {
    "eos_token": chat_pb2.FINISH_REASON_STOP,
    "stop_sequence": chat_pb2.FINISH_REASON_STOP,
    "length": chat_pb2.FINISH_REASON_LENGTH,
}
"""By ``finish_reason``; one that is not listed counts as STOP, and its own word is kept."""

ERRORS: Final[Mapping[str, int]] = {
    "validation": error_pb2.ERROR_REASON_INVALID_REQUEST,
    "overloaded": error_pb2.ERROR_REASON_UPSTREAM_RATE_LIMITED,
    "generation": error_pb2.ERROR_REASON_UPSTREAM_ERROR,
    "incomplete_generation": error_pb2.ERROR_REASON_UPSTREAM_ERROR,
}
"""By ``error_type``; any other is known by its status."""

_TOO_LONG: Final = ("must have less than", "must be <=")
_TIERS: Final = frozenset({"", "auto", "default"})
_DECODER: Final = msgspec.json.Decoder()
_ENCODER: Final = msgspec.json.Encoder()


class TgiWire:
    """How Text Generation Inference speaks."""

    dialect = chat_pb2.DIALECT_UNSPECIFIED
    native = False
    base_url = ""

    def authorize(self, secret: str) -> Headers:
        """The token, where there is one."""
        return [("authorization", f"Bearer {secret}")] if secret else []

    def request(self, exchange: Exchange) -> UpstreamRequest:
        """The prompt. Raises UNSUPPORTED_PARAMETER or INVALID_REQUEST."""
        request = exchange.request
        parameters: Json = {}
        for key, value in given_object(request.extra_json or b"{}", "extra").items():
            if key not in EXTRA:
                raise unsupported(key, PROVIDER)
            parameters[key] = value
        copy_fields(request, FIELDS, parameters, PROVIDER)
        _sample(request, parameters)
        _form(request, parameters)
        parameters["details"] = True
        body = {"inputs": prompt(request.messages), "parameters": parameters}
        return UpstreamRequest(
            method="POST",
            path="/generate_stream",
            headers=[("content-type", "application/json")],
            body=_ENCODER.encode(body),
        )

    def response(self, exchange: Exchange, body: bytes) -> Answer:
        """A whole answer: all events of a stream, put together."""
        stream, parser = self.stream(exchange), SseParser()
        events = stream.feed(parser.feed(body))
        events += stream.feed(parser.end())
        events += stream.end()
        choices = [choice for event in events for choice in event.delta.choices]
        part = content_pb2.Part(
            text=content_pb2.TextPart(text="".join(choice.text for choice in choices))
        )
        parts = [part] if part.text.text else []
        logprobs = [each for choice in choices for each in choice.logprobs.content]
        whole = chat_pb2.Choice(
            message=content_pb2.Message(role=content_pb2.ROLE_ASSISTANT, parts=parts),
            finish_reason=choices[-1].finish_reason,
            native_finish_reason=stream.finish_reason,
            logprobs=chat_pb2.Logprobs(content=logprobs) if logprobs else None,
        )
        answer = chat_pb2.ChatAnswer(model=exchange.model, choices=[whole])
        return Answer(
            event=chat_pb2.ChatEvent(answer=answer),
            usage=stream.usage,
            finish_reason=stream.finish_reason,
            upstream_id="",
            output_bytes=stream.output_bytes,
        )

    def stream(self, exchange: Exchange) -> "TgiStream":
        """A decoder for one streamed answer."""
        return TgiStream(exchange)

    def error(self, status: int, headers: Mapping[str, str], body: bytes) -> GatewayError:
        """What an error means: its ``error_type``, or its status."""
        try:
            told = msgspec.json.decode(body)
        except msgspec.DecodeError:
            told = None
        return error_of(told, status, retry_after_ms(headers))

    def models_request(self) -> UpstreamRequest:
        """What the server serves."""
        return UpstreamRequest(method="GET", path="/info", headers=[], body=b"")

    def models(self, body: bytes) -> list[ListedModel]:
        """The one model, and how much it takes."""
        told = read_object(body, PROVIDER)
        name = told.get("model_id")
        if not isinstance(name, str) or not name:
            raise protocol_error(PROVIDER, "answered with something that names no model")
        return [ListedModel(id=name, context_tokens_max=count(told.get("max_total_tokens")))]


class TgiStream(StreamState):
    """Decodes one answer, token by token."""

    __slots__ = ("_began", "_logprobs", "_model")

    def __init__(self, exchange: Exchange) -> None:
        super().__init__()
        self._model = exchange.model
        self._logprobs = exchange.request.logprobs
        self._began = False

    def feed(self, events: Sequence[ServerSentEvent]) -> list[chat_pb2.ChatEvent]:
        """The deltas that the events hold."""
        made: list[chat_pb2.ChatEvent] = []
        for event in events:
            if self.done:
                break
            try:
                made += self._token(_DECODER.decode(event.data))
            except MALFORMED as exc:
                raise protocol_error(PROVIDER, "sent an event that is not its protocol's") from exc
        return made

    def end(self) -> list[chat_pb2.ChatEvent]:
        """The provider closed the stream."""
        if not self.done:
            raise protocol_error(PROVIDER, "ended the stream before the answer was complete")
        return []

    def _token(self, told: Json) -> list[chat_pb2.ChatEvent]:
        """One token; the last one says why it is the last."""
        if "error" in told:
            raise error_of(told, 0, 0)
        made: list[chat_pb2.ChatEvent] = []
        if not self._began:
            self._began = True
            first = chat_pb2.ChatEvent()
            first.delta.model = self._model
            first.delta.choices.add(starts=True)
            made.append(first)
        token = told["token"]
        if not token["special"] and token["text"]:
            self.started = True
            self.output_bytes += utf8_size(token["text"])
            made.append(_delta(text=token["text"], logprobs=self._chances(told)))
        if told.get("generated_text") is not None:
            made.append(self._end(told.get("details") or {}))
        return made

    def _chances(self, told: Json) -> chat_pb2.Logprobs | None:
        if not self._logprobs:
            return None
        top = [
            chat_pb2.TokenLogprob(token=each["text"], logprob=each["logprob"])
            for each in told.get("top_tokens") or ()
        ]
        token = told["token"]
        said = chat_pb2.TokenLogprob(token=token["text"], logprob=token["logprob"] or 0.0, top=top)
        return chat_pb2.Logprobs(content=[said])

    def _end(self, details: Json) -> chat_pb2.ChatEvent:
        self.done = True
        self.finish_reason = details.get("finish_reason") or "eos_token"
        if "generated_tokens" in details:
            self.usage = token_usage_pb2.TokenUsage(
                input_tokens=count(details.get("input_length")),
                output_tokens=count(details["generated_tokens"]),
            )
        return _delta(
            finish_reason=FINISH_REASONS.get(self.finish_reason, chat_pb2.FINISH_REASON_STOP),
            native_finish_reason=self.finish_reason,
        )


WIRE: Final = TgiWire()


def prompt(messages: Sequence[content_pb2.Message]) -> str:
    """The one message, word for word. Raises UNSUPPORTED_PARAMETER for a conversation."""
    if len(messages) != 1 or messages[0].role != content_pb2.ROLE_USER:
        raise unsupported(
            "messages",
            PROVIDER,
            "It takes one user message, which is the prompt; for conversations the operator "
            "configures the endpoint as kind tgi.",
        )
    (message,) = messages
    if message.name:
        raise unsupported("messages[0].name", PROVIDER)
    sent_back(given_object(message.extra_json or b"{}", "messages[0]"), "messages[0]", PROVIDER)
    texts: list[str] = []
    for number, part in enumerate(message.parts):
        if not part.HasField("text"):
            raise unsupported(f"messages[0].content[{number}]", PROVIDER, "It takes text only.")
        texts.append(part.text.text)
    return "".join(texts)


def error_of(told: Any, status: int, retry_ms: int) -> GatewayError:
    """An error, of a request or inside a stream."""
    told = told if isinstance(told, dict) else {}
    said, kind = told.get("error"), told.get("error_type")
    if isinstance(said, dict):
        said = said.get("message")
    reason = ERRORS.get(str(kind)) or STATUS_REASONS.get(
        status, error_pb2.ERROR_REASON_UPSTREAM_ERROR
    )
    if status == 404:
        reason = error_pb2.ERROR_REASON_MODEL_NOT_FOUND
    if reason == error_pb2.ERROR_REASON_INVALID_REQUEST and _is_too_long(str(said)):
        reason = error_pb2.ERROR_REASON_CONTEXT_LENGTH_EXCEEDED
    return upstream_error(PROVIDER, reason, status=status, said=said, retry_ms=retry_ms)


def _is_too_long(said: str) -> bool:
    """``inputs`` must have less than 1024 tokens; ``inputs`` tokens + ``max_new_tokens`` must be
    <= 2048.
    """
    return "inputs" in said and any(words in said for words in _TOO_LONG)


def _sample(request: chat_pb2.ChatRequest, parameters: Json) -> None:
    """A temperature of 0 is to take the likeliest token, which is what it does unless something
    else is asked; 0 itself is refused there, and so is a ``top_p`` of 1, which asks for nothing.
    """
    if request.temperature:
        parameters["temperature"] = request.temperature
    elif request.HasField("temperature"):
        parameters["do_sample"] = False
    if request.HasField("top_p") and request.top_p != 1:
        parameters["top_p"] = request.top_p


def _form(request: chat_pb2.ChatRequest, parameters: Json) -> None:
    """What the answer is made of."""
    wanted = request.response_format
    if wanted.kind == chat_pb2.RESPONSE_FORMAT_KIND_JSON_OBJECT:
        parameters["grammar"] = {"type": "json", "value": {"type": "object"}}
    elif wanted.kind == chat_pb2.RESPONSE_FORMAT_KIND_JSON_SCHEMA:
        given_object(wanted.schema, "response_format.json_schema.schema")
        parameters["grammar"] = {"type": "json", "value": msgspec.Raw(wanted.schema)}
    if any(each != chat_pb2.OUTPUT_MODALITY_TEXT for each in request.output_modalities):
        raise unsupported("modalities", PROVIDER, "It answers in text only.")
    if request.service_tier not in _TIERS:
        raise unsupported("service_tier", PROVIDER)


def _delta(**gained: Any) -> chat_pb2.ChatEvent:
    event = chat_pb2.ChatEvent()
    event.delta.choices.add(**gained)
    return event
