"""Google's Vertex AI: Gemini, Claude and the open models that Google serves, in one's own project.

URL: ``https://{location}-aiplatform.googleapis.com/v1/projects/{project}/locations/{location}``,
without the location in the host for ``global``, and under it
``/publishers/google/models/{model}:generateContent``
(https://cloud.google.com/vertex-ai/generative-ai/docs/model-reference/inference),
``/publishers/anthropic/models/{model}:rawPredict``
(https://platform.claude.com/docs/en/build-with-claude/claude-on-vertex-ai) and
``/endpoints/openapi/chat/completions``. Key: an OAuth token that a service account, a federated
identity or the machine's own identity buys; or an API key of Vertex as ``x-goog-api-key``.

How it differs from the three dialects that it speaks: only in paths and credentials, and in that
Claude's model stands in the path and its version in the body. The name decides: ``claude-…`` is
Anthropic's, one with a slash (``meta/llama-…``) is spoken to in OpenAI's dialect, the rest is
Google's.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Final
from urllib.parse import quote

import msgspec

from onegate.router.v1 import chat_pb2
from runtime.errors import GatewayError
from services.router.providers import anthropic, gemini
from services.router.providers.base import (
    Answer,
    Exchange,
    Headers,
    ListedModel,
    ShortLived,
    Stream,
    UpstreamRequest,
    Wire,
)
from services.router.providers.compatible import COMPATIBLE
from services.router.providers.foreign import unsupported
from services.router.providers.openai import OpenAIWire

SCOPE: Final = "https://www.googleapis.com/auth/cloud-platform"
"""https://cloud.google.com/vertex-ai/docs/authentication"""
ANTHROPIC_VERSION: Final = "vertex-2023-10-16"

_NO_TIER: Final = frozenset({"", "auto", "default", "standard"})
OPEN: Final = replace(
    COMPATIBLE,
    kind="vertex",
    title="Vertex AI",
    # Models of others that Google serves: `meta/…`, `qwen/…`, `deepseek-ai/…`.
    sources=("https://cloud.google.com/vertex-ai/generative-ai/docs/maas/call-open-model-apis",),
    path="/endpoints/openapi/chat/completions",
    models_path="",
)

_OPEN: Final = OpenAIWire(OPEN)
_ENCODER: Final = msgspec.json.Encoder()


class VertexWire:
    """How Vertex AI speaks."""

    dialect = chat_pb2.DIALECT_UNSPECIFIED
    native = False
    base_url = ""

    def authorize(self, secret: str) -> Headers | ShortLived:
        """What a key file buys, or the machine's own identity without a secret; a text that is no
        key file is an API key.
        """
        if secret and not secret.startswith("{"):
            return [("x-goog-api-key", secret)]
        return ShortLived(seller="google", scope=SCOPE, secret=secret)

    def request(self, exchange: Exchange) -> UpstreamRequest:
        """The call. Raises UNSUPPORTED_PARAMETER or INVALID_REQUEST."""
        wire: Wire = _speaks(exchange.model)
        if wire is anthropic.WIRE:
            return _claude(exchange)
        if wire is gemini.WIRE:
            # Vertex has its tiers, too, but takes no word for them in the body.
            if exchange.request.service_tier not in _NO_TIER:
                raise unsupported("service_tier", OPEN.title)
            request = gemini.WIRE.request(_without_tier(exchange))
            return request._replace(path=f"/publishers/google{request.path}")
        return wire.request(exchange)

    def response(self, exchange: Exchange, body: bytes) -> Answer:
        """A whole answer."""
        return _speaks(exchange.model).response(exchange, body)

    def stream(self, exchange: Exchange) -> Stream:
        """A decoder for one streamed answer."""
        return _speaks(exchange.model).stream(exchange)

    def error(self, status: int, headers: Mapping[str, str], body: bytes) -> GatewayError:
        """What an error means: in Anthropic's form from Claude, in Google's from all else."""
        wire: Wire = anthropic.WIRE if _is_anthropic(body) else gemini.WIRE
        return wire.error(status, headers, body)

    def models_request(self) -> UpstreamRequest | None:
        """What a project may call depends on its quotas and agreements, and no list tells it."""
        return None

    def models(self, _body: bytes) -> list[ListedModel]:
        """Nothing is listed."""
        return []


WIRE: Final = VertexWire()


def _speaks(model: str) -> Wire:
    if model.startswith("claude-"):
        return anthropic.WIRE
    return _OPEN if "/" in model else gemini.WIRE


def _without_tier(exchange: Exchange) -> Exchange:
    if not exchange.request.service_tier:
        return exchange
    request = chat_pb2.ChatRequest()
    request.CopyFrom(exchange.request)
    request.ClearField("service_tier")
    return exchange._replace(request=request)


def _is_anthropic(body: bytes) -> bool:
    try:
        told = msgspec.json.decode(body)
    except (msgspec.DecodeError, RecursionError):
        return False
    return isinstance(told, dict) and told.get("type") == "error"


def _claude(exchange: Exchange) -> UpstreamRequest:
    body, betas = anthropic.WIRE.form(exchange)
    body["anthropic_version"] = ANTHROPIC_VERSION
    headers = [("content-type", "application/json")]
    if betas:
        headers.append(("anthropic-beta", betas))
    method = "streamRawPredict" if exchange.request.stream else "rawPredict"
    return UpstreamRequest(
        method="POST",
        path=f"/publishers/anthropic/models/{quote(exchange.model, safe='@')}:{method}",
        headers=headers,
        body=_ENCODER.encode(body),
    )
