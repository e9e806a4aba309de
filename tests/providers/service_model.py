"""Checks a JSON body against a shape of an AWS service model (botocore's ``service-2.json``)."""

import base64
import binascii
import functools
import json
import re
from collections.abc import Iterator
from typing import Any

from tests import recordings

_KINDS: dict[str, type | tuple[type, ...]] = {
    "blob": str,
    "boolean": bool,
    "double": (int, float),
    "float": (int, float),
    "integer": int,
    "list": list,
    "long": int,
    "map": dict,
    "string": str,
    "structure": dict,
}


@functools.cache
def bedrock_runtime() -> dict[str, Any]:
    """Every shape of the Bedrock runtime."""
    text = (recordings.SPECS / "bedrock-runtime.service-2.json").read_text("utf-8")
    shapes: dict[str, Any] = json.loads(text)["shapes"]
    return shapes


def faults(shapes: dict[str, Any], name: str, value: Any, where: str = "") -> Iterator[str]:
    """What is wrong with a value of a shape. Members that stand in the URL are left out."""
    shape = shapes[name]
    if shape.get("document"):
        return
    kind = shape["type"]
    if not _is(value, kind):
        yield f"{where}: {type(value).__name__} is no {kind}"
    elif kind == "structure":
        yield from _structure(shapes, shape, value, where)
    elif kind == "list":
        yield from _size(shape, len(value), where)
        for index, entry in enumerate(value):
            yield from faults(shapes, shape["member"]["shape"], entry, f"{where}[{index}]")
    elif kind == "map":
        yield from _size(shape, len(value), where)
        for key, entry in value.items():
            yield from faults(shapes, shape["key"]["shape"], key, f"{where}.{key}")
            yield from faults(shapes, shape["value"]["shape"], entry, f"{where}.{key}")
    elif kind == "blob":
        yield from _blob(shape, value, where)
    elif kind == "string":
        yield from _size(shape, len(value), where)
        if "enum" in shape and value not in shape["enum"]:
            yield f"{where}: {value!r} is none of {shape['enum']}"
        if "pattern" in shape and not re.fullmatch(shape["pattern"], value):
            yield f"{where}: {value!r} does not match {shape['pattern']}"
    else:
        yield from _size(shape, value, where)


def _is(value: Any, kind: str) -> bool:
    return isinstance(value, _KINDS[kind]) and (kind == "boolean" or not isinstance(value, bool))


def _structure(
    shapes: dict[str, Any], shape: dict[str, Any], value: dict[str, Any], where: str
) -> Iterator[str]:
    members = {k: m for k, m in shape["members"].items() if "location" not in m}
    for name in shape.get("required", ()):
        if name in members and name not in value:
            yield f"{where}.{name}: missing"
    if shape.get("union") and len(value) != 1:
        yield f"{where}: {len(value)} members of a union"
    for name, inner in value.items():
        if name not in members:
            yield f"{where}.{name}: unknown"
        else:
            yield from faults(shapes, members[name]["shape"], inner, f"{where}.{name}")


def _size(shape: dict[str, Any], size: float, where: str) -> Iterator[str]:
    if not shape.get("min", size) <= size <= shape.get("max", size):
        yield f"{where}: {size} is out of bounds"


def _blob(shape: dict[str, Any], value: str, where: str) -> Iterator[str]:
    try:
        yield from _size(shape, len(base64.b64decode(value, validate=True)), where)
    except binascii.Error:
        yield f"{where}: no base64"
