"""Calls of the contract, and what a wire makes of them."""

import json
from typing import Any

import pytest

from onegate.common.v1 import content_pb2
from onegate.router.v1 import chat_pb2
from runtime.errors import GatewayError
from services.router.providers.base import Exchange, Wire


def message(*parts: content_pb2.Part, role: int = content_pb2.ROLE_USER) -> content_pb2.Message:
    return content_pb2.Message(role=content_pb2.Role.ValueType(role), parts=parts)


def text(words: str) -> content_pb2.Part:
    return content_pb2.Part(text=content_pb2.TextPart(text=words))


def call(*messages: content_pb2.Message, **fields: Any) -> chat_pb2.ChatRequest:
    """A call with these messages, or with one greeting."""
    return chat_pb2.ChatRequest(messages=messages or [message(text("hello"))], **fields)


def exchange(request: chat_pb2.ChatRequest, model: str) -> Exchange:
    return Exchange(request=request, model=model, cost=lambda tokens: 0)


def body_of(wire: Wire, request: chat_pb2.ChatRequest, model: str) -> dict[str, Any]:
    """The body that is sent."""
    body: dict[str, Any] = json.loads(wire.request(exchange(request, model)).body)
    return body


def refusal_of(wire: Wire, request: chat_pb2.ChatRequest, model: str) -> GatewayError:
    """The error with which the call is refused."""
    with pytest.raises(GatewayError) as raised:
        wire.request(exchange(request, model))
    return raised.value


def set_field(request: chat_pb2.ChatRequest, name: str) -> None:
    """Sets a field of any kind to something."""
    field = chat_pb2.ChatRequest.DESCRIPTOR.fields_by_name[name]
    if name == "metadata":
        request.metadata["team"] = "blue"
    elif field.message_type is not None:
        getattr(request, name).SetInParent()
    else:
        setattr(request, name, "x" if field.type == field.TYPE_STRING else True)
