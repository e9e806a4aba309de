"""Replicate's API for language models.

URL: ``POST https://api.replicate.com/v1/models/{owner}/{name}/predictions`` for official models,
``POST …/deployments/{owner}/{name}/predictions`` for one's own deployments and
``POST …/predictions`` for a version of any model
(https://replicate.com/docs/topics/predictions/create-a-prediction). Bearer token.

A model is called by ``owner/name``, ``owner/name:version`` or ``deployments/owner/name``.

How it differs from every other: a call begins a *prediction*, a job with an id that goes on whether
or not somebody waits for it, and that costs until it is over. A prediction that nobody waits for
any more is cancelled; each also has a deadline of its own (``Cancel-After``), should this process
die. Streamed events come from another host, which the prediction names: it is followed to
Replicate's own hosts only, and a prediction without a stream is asked how it stands until it is
over. What a model takes: ``replicate_inputs.py``.
"""

import math
import re
from collections.abc import Mapping
from typing import Final
from urllib.parse import urlsplit

import msgspec

from onegate.common.v1 import error_pb2
from onegate.router.v1 import chat_pb2
from runtime.errors import GatewayError
from runtime.sse import ServerSentEvent
from services.router.providers import replicate_predictions
from services.router.providers.base import (
    Answer,
    Exchange,
    Headers,
    Job,
    ListedModel,
    UpstreamRequest,
)
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
from services.router.providers.replicate_inputs import (
    PROVIDER,
    Inputs,
    conversation,
    inputs_of,
    think,
)
from services.router.providers.replicate_predictions import ReplicateStream

FIELDS: Final[Fields] = {
    "model": Rule.DERIVED,
    "messages": Rule.DERIVED,
    "tools": None,
    "tool_choice": None,
    "parallel_tool_calls": None,
    "temperature": None,
    "top_p": None,
    "top_k": None,
    "min_p": None,
    "presence_penalty": None,
    "frequency_penalty": None,
    "seed": None,
    "stop": Rule.DERIVED,
    "logit_bias": None,
    "output_tokens_max": None,
    "choices": None,
    "response_format": Rule.DERIVED,
    "thinking": Rule.DERIVED,
    "logprobs": None,
    "top_logprobs": None,
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
"""What becomes of every field of a request, unless the model's family has an input for it."""

HOSTS: Final = ("replicate.com", "replicate.net")
"""Whose subdomains streams may come from: ``stream.replicate.com``, and
``streaming-api.svc.us.c.replicate.net`` in former answers."""

WAIT_S: Final = 5
"""How long a prediction may keep its first answer back, in the hope that it is over by then. As
long at most, one goes on whose caller left before its id was known."""
DEADLINE_S_MIN: Final = 5
"""The shortest deadline that is accepted."""

_WORD: Final = r"[A-Za-z0-9][\w.\-]*"
_MODEL: Final = re.compile(rf"(deployments/)?({_WORD}/{_WORD})(?::({_WORD}))?")
_ID: Final = re.compile(r"[A-Za-z0-9]{1,64}")
_TIERS: Final = frozenset({"", "auto", "default"})
_ENCODER: Final = msgspec.json.Encoder()


class ReplicateWire:
    """How Replicate speaks."""

    dialect = chat_pb2.DIALECT_UNSPECIFIED
    native = False
    base_url = "https://api.replicate.com/v1"

    def authorize(self, secret: str) -> Headers:
        """The token."""
        return [("authorization", f"Bearer {secret}")]

    def request(self, exchange: Exchange) -> UpstreamRequest:
        """The prediction. Raises UNSUPPORTED_PARAMETER or INVALID_REQUEST."""
        request, stream = exchange.request, exchange.request.stream
        path, body = _place(exchange.model)
        body["input"] = _input(request, inputs_of(exchange.model))
        headers = [("content-type", "application/json")]
        if stream:
            body["stream"] = True
        else:
            headers.append(("prefer", f"wait={WAIT_S}"))
        return UpstreamRequest(
            method="POST", path=path, headers=headers, body=_ENCODER.encode(body)
        )

    def response(self, exchange: Exchange, body: bytes) -> Answer:
        """A prediction that is over."""
        return replicate_predictions.answer(exchange, body)

    def stream(self, exchange: Exchange) -> ReplicateStream:
        """A decoder for one streamed answer."""
        return ReplicateStream(exchange)

    def error(self, status: int, headers: Mapping[str, str], body: bytes) -> GatewayError:
        """What an error means: its status, and its ``detail``."""
        return replicate_predictions.error(status, headers, body)

    def models_request(self) -> UpstreamRequest:
        """The language models. Replicate has some ten thousand models of all sorts; this collection
        is its own choice of those that write
        (https://replicate.com/docs/reference/http#collections.get).
        """
        return UpstreamRequest(
            method="GET", path="/collections/language-models", headers=[], body=b""
        )

    def models(self, body: bytes) -> list[ListedModel]:
        """The models."""
        page = read_object(body, PROVIDER)
        try:
            return [
                ListedModel(id=f"{model['owner']}/{model['name']}", owner=model["owner"])
                for model in page["models"]
            ]
        except MALFORMED as exc:
            raise protocol_error(PROVIDER, "answered with something that is no list") from exc

    def deadline(self, seconds: float) -> Headers:
        """Replicate cancels what takes longer
        (https://replicate.com/changelog/2025-10-16-prediction-deadlines).
        """
        return [("cancel-after", f"{max(DEADLINE_S_MIN, math.ceil(seconds))}s")]

    def job(self, body: bytes) -> Job:
        """A prediction. Of the addresses that it names only the stream's is used."""
        told = read_object(body, PROVIDER)
        identity, status, urls = told.get("id"), told.get("status"), told.get("urls")
        if not isinstance(identity, str) or not _ID.fullmatch(identity) or status is None:
            raise protocol_error(PROVIDER, "answered with something that is no prediction")
        url = urls.get("stream") if isinstance(urls, dict) else None
        path = f"/predictions/{identity}"
        return Job(
            over=status in replicate_predictions.OVER,
            state=UpstreamRequest(method="GET", path=path, headers=[], body=b""),
            cancel=UpstreamRequest(method="POST", path=f"{path}/cancel", headers=[], body=b""),
            stream_url=url if isinstance(url, str) else "",
        )

    def may_stream(self, url: str, base_host: str) -> bool:
        """Whether a stream may be asked for, with the token, at ``url``: over TLS, at one of
        Replicate's hosts, and only when that is where the call itself went.
        """
        parts = urlsplit(url)
        ours = all(_is_vendors(host) for host in (parts.hostname or "", base_host))
        return ours and parts.scheme == "https" and parts.netloc == parts.hostname

    def is_last(self, event: ServerSentEvent) -> bool:
        """Whether no other event of the stream follows."""
        return replicate_predictions.is_last(event)

    def settled(self, body: bytes) -> bytes:
        """A prediction that is over, as an event."""
        return b"event: %s\ndata: %s\n\n" % (
            replicate_predictions.PREDICTION,
            _ENCODER.encode(read_object(body, PROVIDER)),
        )


WIRE: Final = ReplicateWire()


def _place(model: str) -> tuple[str, Json]:
    """Where a model is called, and what names it there."""
    found = _MODEL.fullmatch(model)
    if found is None:
        raise GatewayError(
            error_pb2.ERROR_REASON_MODEL_NOT_FOUND,
            f"{PROVIDER} has no model {model!r}: name it as owner/name, owner/name:version or "
            "deployments/owner/name.",
        )
    deployment, name, version = found.groups()
    if version and not deployment:
        return "/predictions", {"version": f"{name}:{version}"}
    if version:
        raise invalid("model", "A deployment on Replicate is called without a version.")
    return f"/{'deployments' if deployment else 'models'}/{name}/predictions", {}


def _input(request: chat_pb2.ChatRequest, inputs: Inputs) -> Json:
    """What the model is given."""
    made: Json = {}
    for key, value in given_object(request.extra_json or b"{}", "extra").items():
        if key != "input":
            raise unsupported(key, PROVIDER, "A model's own inputs go into `input`.")
        if not isinstance(value, dict):
            raise invalid(key, f"`{key}` must be a JSON object.")
        made.update(value)
    copy_fields(request, {**FIELDS, **inputs.fields}, made, PROVIDER)
    made.update(conversation(request.messages, inputs))
    if request.stop:
        _stop(list(request.stop), made, inputs)
    if request.HasField("thinking"):
        made.update(think(request.thinking, inputs))
    _form(request)
    return made


def _stop(ends: list[str], made: Json, inputs: Inputs) -> None:
    """The ends of the answer, where the family takes them and they hold no comma."""
    if not inputs.stop or any("," in end for end in ends):
        raise unsupported("stop", PROVIDER)
    made[inputs.stop] = ",".join(ends)


def _form(request: chat_pb2.ChatRequest) -> None:
    """Refuses every form of answer but text."""
    kind = request.response_format.kind
    if kind not in (
        chat_pb2.RESPONSE_FORMAT_KIND_UNSPECIFIED,
        chat_pb2.RESPONSE_FORMAT_KIND_TEXT,
    ):
        raise unsupported("response_format", PROVIDER, "Its models answer in plain text.")
    if any(each != chat_pb2.OUTPUT_MODALITY_TEXT for each in request.output_modalities):
        raise unsupported("modalities", PROVIDER, "It answers in text only.")
    if request.service_tier not in _TIERS:
        raise unsupported("service_tier", PROVIDER)


def _is_vendors(host: str) -> bool:
    return host.endswith(tuple(f".{name}" for name in HOSTS))
