"""Calls in the hub's words, and what a row makes of them, for the tests of the OpenAI wire."""

import json
from typing import Any, Final

import pytest

from onegate.common.v1 import content_pb2, error_pb2
from onegate.router.v1 import chat_pb2
from runtime.errors import GatewayError
from services.router.providers.base import Exchange
from services.router.providers.openai import OpenAIWire
from services.router.providers.openai_row import Compatible

Part = content_pb2.Part
UNSUPPORTED: Final = error_pb2.ERROR_REASON_UNSUPPORTED_PARAMETER
INVALID: Final = error_pb2.ERROR_REASON_INVALID_REQUEST


def text(words: str) -> Part:
    return Part(text=content_pb2.TextPart(text=words))


def message(*parts: Part, role: int = content_pb2.ROLE_USER, **more: Any) -> content_pb2.Message:
    return content_pb2.Message(role=content_pb2.Role.ValueType(role), parts=parts, **more)


def call(*messages: content_pb2.Message, **fields: Any) -> chat_pb2.ChatRequest:
    return chat_pb2.ChatRequest(messages=messages or [message(text("hello"))], **fields)


def choice(mode: int, *names: str, **more: Any) -> chat_pb2.ToolChoice:
    return chat_pb2.ToolChoice(mode=chat_pb2.ToolChoiceMode.ValueType(mode), names=names, **more)


def sent(row: Compatible, request: chat_pb2.ChatRequest) -> dict[str, Any]:
    exchange = Exchange(request=request, model="m", cost=lambda tokens: 0)
    body: dict[str, Any] = json.loads(OpenAIWire(row).request(exchange).body)
    return body


def refusal(row: Compatible, request: chat_pb2.ChatRequest) -> tuple[int, str]:
    with pytest.raises(GatewayError) as raised:
        sent(row, request)
    assert raised.value.message
    return raised.value.reason, raised.value.param


def sent_or_none(row: Compatible, request: chat_pb2.ChatRequest) -> dict[str, Any] | None:
    """The body, or ``None`` when the vendor has no equivalent."""
    try:
        return sent(row, request)
    except GatewayError as error:
        if error.reason != UNSUPPORTED:
            raise
        return None


def media(**source: Any) -> content_pb2.MediaSource:
    return content_pb2.MediaSource(**source)


def assistant(*parts: Part) -> content_pb2.Message:
    return message(*parts, role=content_pb2.ROLE_ASSISTANT)
