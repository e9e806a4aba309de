"""Golden exchanges: what a caller asks, what is sent, what is answered, what the caller has.

A golden is one JSON file, written by hand from the vendor's documentation: ``call`` (a
``ChatRequest``), ``sent`` (path and body), ``received`` (a JSON body, or a list of events for a
stream), ``answer`` or ``deltas``, and ``usage``. Messages are in protobuf's JSON; bytes that hold
JSON are written as that JSON. Where events have names beside their data, an event is written as an
object with the name as its one member; a string there is data that is no JSON.
"""

import base64
import json
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import json_format
from google.protobuf.message import Message

from onegate.router.v1 import chat_pb2
from runtime.sse import ServerSentEvent
from services.router.providers.base import Exchange, Wire

_JSON_BYTES = ("json", "schema")


def load(provider: str) -> list[Any]:
    """The provider's goldens as parameters."""
    folder = Path(__file__).parent / provider
    return [
        pytest.param(json.loads(path.read_text("utf-8")), id=path.stem)
        for path in sorted(folder.glob("*.json"))
    ]


def check(wire: Wire, golden: dict[str, Any], *, named: bool = False) -> None:
    """Plays a golden through the wire, both ways."""
    call = json_format.ParseDict(_packed(golden["call"]), chat_pb2.ChatRequest())
    exchange = Exchange(request=call, model=golden["model"], cost=lambda tokens: 0)
    sent = wire.request(exchange)
    assert sent.path == golden["sent"]["path"]
    assert json.loads(sent.body) == golden["sent"]["body"]
    if isinstance(golden["received"], list):
        stream = wire.stream(exchange)
        events = [
            event
            for data in golden["received"]
            for event in stream.feed([_event(data, named=named)])
        ]
        events += stream.end()
        assert [readable(event.delta) for event in events] == golden["deltas"]
        ended: Any = stream
    else:
        ended = wire.response(exchange, json.dumps(golden["received"]).encode())
        assert readable(ended.event.answer) == golden["answer"]
    assert ended.usage is not None
    assert readable(ended.usage) == golden["usage"]
    assert ended.finish_reason == golden["finish_reason"]


def _event(data: dict[str, Any], *, named: bool) -> ServerSentEvent:
    if not named:
        return ServerSentEvent(b"", json.dumps(data).encode())
    ((name, told),) = data.items()
    data_of = told if isinstance(told, str) else json.dumps(told)
    return ServerSentEvent(name.encode(), data_of.encode())


def readable(message: Message) -> Any:
    """A message in protobuf's JSON, with bytes that hold JSON opened."""
    return _opened(json_format.MessageToDict(message, preserving_proto_field_name=True))


def _packed(value: Any) -> Any:
    if isinstance(value, list):
        return [_packed(inner) for inner in value]
    if isinstance(value, dict):
        return {
            key: base64.b64encode(json.dumps(inner).encode()).decode()
            if key.endswith(_JSON_BYTES) and isinstance(inner, dict)
            else _packed(inner)
            for key, inner in value.items()
        }
    return value


def _opened(value: Any) -> Any:
    if isinstance(value, list):
        return [_opened(inner) for inner in value]
    if isinstance(value, dict):
        return {
            key: json.loads(base64.b64decode(inner))
            if key.endswith(_JSON_BYTES) and isinstance(inner, str)
            else _opened(inner)
            for key, inner in value.items()
        }
    return value
