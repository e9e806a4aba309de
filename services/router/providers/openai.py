"""OpenAI's chat completions, and every vendor that speaks them.

URL: ``POST https://api.openai.com/v1/chat/completions``
(https://platform.openai.com/docs/api-reference/chat/create), ``GET /v1/models``. Key:
``authorization: Bearer``. Version: none; the dialect grows.

How vendors differ from OpenAI is data: the rows of :mod:`services.router.providers.compatible`.
Bodies that a vendor takes and gives as OpenAI does are forwarded as they are (``native``).
"""

from collections.abc import Mapping
from typing import Final
from urllib.parse import quote

from onegate.router.v1 import chat_pb2
from runtime.errors import GatewayError
from services.router.providers.base import (
    Answer,
    Exchange,
    Headers,
    ListedModel,
    ShortLived,
    Stream,
    UpstreamRequest,
)
from services.router.providers.openai_error import http_error
from services.router.providers.openai_models import listed_models
from services.router.providers.openai_native import NativeStream, native_answer, native_body
from services.router.providers.openai_request import typed_body
from services.router.providers.openai_response import typed_answer
from services.router.providers.openai_row import Compatible
from services.router.providers.openai_stream import TypedStream

_JSON: Final = ("content-type", "application/json")
_ACCEPT_JSON: Final = ("accept", "application/json")
_ACCEPT_STREAM: Final = ("accept", "text/event-stream")


class OpenAIWire:
    """How one vendor speaks OpenAI's dialect."""

    __slots__ = ("row",)

    dialect = chat_pb2.DIALECT_OPENAI_CHAT

    def __init__(self, row: Compatible) -> None:
        self.row = row

    @property
    def native(self) -> bool:
        """Whether bodies are forwarded as they are, both ways."""
        return self.row.native

    @property
    def base_url(self) -> str:
        """The vendor's own base URL; empty when an operator must say it."""
        return self.row.base_url

    def authorize(self, secret: str) -> Headers | ShortLived:
        """Where the credential goes; nowhere without one, as a server at home may need none."""
        if self.row.entra_scope and secret.startswith("{"):
            return ShortLived(seller="entra", scope=self.row.entra_scope, secret=secret)
        if not secret:
            return ()
        if self.row.key_header == "authorization":
            return (("authorization", f"Bearer {secret}"),)
        return ((self.row.key_header, secret),)

    def request(self, exchange: Exchange) -> UpstreamRequest:
        """The call. Raises UNSUPPORTED_PARAMETER and INVALID_REQUEST."""
        write = native_body if exchange.native else typed_body
        accept = _ACCEPT_STREAM if exchange.request.stream else _ACCEPT_JSON
        return UpstreamRequest(
            method="POST",
            path=self.row.path.replace("{model}", quote(exchange.model, safe="")),
            headers=(_JSON, accept, *self.row.headers),
            body=write(self.row, exchange),
        )

    def response(self, exchange: Exchange, body: bytes) -> Answer:
        """A whole answer. Raises UPSTREAM_PROTOCOL when it is not one, and the mapped reason for
        an error in spite of its status.
        """
        read = native_answer if exchange.native else typed_answer
        return read(self.row, exchange, body)

    def stream(self, exchange: Exchange) -> Stream:
        """A decoder for one streamed answer."""
        decoder = NativeStream if exchange.native else TypedStream
        return decoder(self.row, exchange)

    def error(self, status: int, headers: Mapping[str, str], body: bytes) -> GatewayError:
        """What an HTTP status of 300 or more means."""
        return http_error(self.row, status, headers, body)

    def models_request(self) -> UpstreamRequest | None:
        """The vendor's list of models; ``None`` when it has none that tells what can be called."""
        if not self.row.models_path:
            return None
        return UpstreamRequest(
            method="GET",
            path=self.row.models_path,
            headers=(_ACCEPT_JSON, *self.row.headers),
            body=b"",
        )

    def models(self, body: bytes) -> list[ListedModel]:
        """The vendor's models. Raises UPSTREAM_PROTOCOL when the body is not a list of models."""
        return listed_models(self.row, body)
