"""The typed form of a request, as tests write it and read it."""

import base64
import json
from typing import Any

from google.protobuf import json_format

from edge.endpoints.chat_request import decode
from edge.endpoints.chat_typed import typed
from onegate.router.v1 import chat_pb2

Json = dict[str, Any]

HI: Json = {"role": "user", "content": "Hi"}
CONTEXT = chat_pb2.CallContext(request_id="req_1")


def asked(**fields: Any) -> chat_pb2.ChatRequest:
    """The typed form of a request with these fields."""
    body = {"model": "m", "messages": [HI], **fields}
    return typed(decode(json.dumps(body).encode(), depth_max=64), CONTEXT)


def said(**message: Any) -> Json:
    """The typed form of one message, as JSON."""
    made: Json = shown(asked(messages=[message]).messages[0])
    return made


def shown(message: Any) -> Any:
    """A message as JSON, with its embedded JSON and bytes legible."""
    return legible(json_format.MessageToDict(message, preserving_proto_field_name=True))


def legible(value: Any) -> Any:
    if isinstance(value, list):
        return [legible(inner) for inner in value]
    if not isinstance(value, dict):
        return value
    return {
        key: json.loads(base64.b64decode(inner)) if key.endswith("_json") else legible(inner)
        for key, inner in value.items()
    }


def text(words: str) -> Json:
    return {"text": {"text": words}}
