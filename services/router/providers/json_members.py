"""Members of JSON objects, as the OpenAI dialect needs them: foreign JSON is embedded verbatim once
it is known to be JSON, members that nobody named are kept, and none is ever written twice.

Refuses to merge what contradicts: two values for one member are an error, never a choice.
"""

from collections.abc import Mapping
from typing import Any, Final

import msgspec

from onegate.common.v1 import error_pb2
from runtime.errors import GatewayError

Json = dict[str, Any]

MALFORMED: Final = (msgspec.DecodeError, UnicodeDecodeError)
"""What decoding raises for bytes that are no JSON, or no JSON of the shape."""

ENCODE: Final = msgspec.json.Encoder().encode
_RAW: Final = msgspec.json.Decoder(msgspec.Raw)
_OBJECT: Final = msgspec.json.Decoder(dict[str, msgspec.Raw])


def embedded(raw: bytes, param: str) -> msgspec.Raw:
    """JSON from the caller, to be written as it is. Raises INVALID_REQUEST when it is none."""
    try:
        return _RAW.decode(raw)
    except MALFORMED:
        raise _invalid(param, f"`{param}` is not JSON; send a JSON value.") from None


def members(raw: bytes, param: str) -> dict[str, msgspec.Raw]:
    """The members of a JSON object from the caller, values as they are.

    Raises INVALID_REQUEST when it is none.
    """
    try:
        return _OBJECT.decode(raw)
    except MALFORMED:
        raise _invalid(param, f"`{param}` is not a JSON object; send one.") from None


def foreign_members(raw: bytes) -> dict[str, msgspec.Raw]:
    """The members of a JSON object that has been read before."""
    return _OBJECT.decode(raw)


def extend(target: Json, extra_json: bytes, param: str) -> None:
    """Adds the members of ``extra_json`` to ``target``, values verbatim.

    A member that both have is merged when both are objects. Raises INVALID_REQUEST when it cannot
    be, and when ``extra_json`` is no object.
    """
    for name, value in members(extra_json, param).items():
        mine = target.get(name)
        if mine is None:
            target[name] = value
        elif isinstance(mine, dict):
            target[name] = dict(mine)
            extend(target[name], bytes(value), f"{param}.{name}")
        else:
            raise _invalid(
                f"{param}.{name}",
                f"`{param}.{name}` repeats a field that has been set already; set it once.",
            )


def put(target: Json, path: str, value: object) -> None:
    """Sets a member; dots in the path lead into objects, which are made as needed."""
    *parents, name = path.split(".")
    for parent in parents:
        target[parent] = target = dict(target.get(parent, {}))
    target[name] = value


def merge(target: Json, more: Mapping[str, Any]) -> None:
    """Sets members, object by object."""
    for name, value in more.items():
        if isinstance(value, Mapping):
            inner = dict(target.get(name, {}))
            merge(inner, value)
            target[name] = inner
        else:
            target[name] = value


def unnamed(value: Mapping[str, Any], known: frozenset[str]) -> bytes:
    """The members that are not known and not null, as a JSON object; empty when there are none."""
    if known.issuperset(value):
        return b""
    beyond = {k: v for k, v in value.items() if k not in known and v is not None}
    return ENCODE(beyond) if beyond else b""


def _invalid(param: str, message: str) -> GatewayError:
    return GatewayError(error_pb2.ERROR_REASON_INVALID_REQUEST, message, param=param)
