"""Is a JSON value what OpenAI's own API description says? The relaxed rule: the published document
cannot be used strictly, because it lost what may be null and OpenAI's own traffic fails it. So
nulls are dropped from the value and ``required`` from the schemas; types, enums and shapes count.
"""

import functools
import json
from typing import Any, Final

import jsonschema_rs

from tests.recordings import SPECS

SPEC: Final = SPECS / "openai-openapi.json"

CHAT_COMPLETION: Final = "CreateChatCompletionResponse"
CHAT_CHUNK: Final = "CreateChatCompletionStreamResponse"
MODEL: Final = "Model"
MODEL_LIST: Final = "ListModelsResponse"
ERROR: Final = "ErrorResponse"


def faults(schema: str, value: Any) -> list[str]:
    """What of ``value`` breaks the component ``schema``, each with its place; empty when nothing
    does. Call it only in tests marked ``needs_specs``.
    """
    found = _validator(schema).iter_errors(without_nulls(value))
    return [f"{'/'.join(map(str, fault.instance_path))}: {fault.message}" for fault in found]


def stream_faults(raw: bytes) -> list[str]:
    """The same for every chunk of a chat stream; the stream must end with ``[DONE]``."""
    blocks = [block for block in raw.split(b"\n\n") if block and not block.startswith(b":")]
    found = [] if blocks[-1:] == [b"data: [DONE]"] else ["the stream does not end with [DONE]"]
    for block in blocks[:-1]:
        found += faults(CHAT_CHUNK, json.loads(block.removeprefix(b"data: ")))
    return found


def without_nulls(value: Any) -> Any:
    """The value without members that are null."""
    if isinstance(value, dict):
        return {key: without_nulls(inner) for key, inner in value.items() if inner is not None}
    if isinstance(value, list):
        return [without_nulls(inner) for inner in value]
    return value


@functools.cache
def _validator(schema: str) -> jsonschema_rs.Validator:
    document = _relaxed(json.loads(SPEC.read_text(encoding="utf-8")))
    root = {"$ref": f"#/components/schemas/{schema}", "components": document["components"]}
    return jsonschema_rs.Draft202012Validator(root)


def _relaxed(schema: Any) -> Any:
    """The schema without its lists of required members."""
    if isinstance(schema, dict):
        return {
            key: _relaxed(inner)
            for key, inner in schema.items()
            if not (key == "required" and isinstance(inner, list))
        }
    if isinstance(schema, list):
        return [_relaxed(inner) for inner in schema]
    return schema
