"""The providers' wires by kind. A new vendor of the OpenAI dialect is one row in
``compatible.py``; a wire of its own is one module and one line here.
"""

from services.router.providers import (
    anthropic,
    bedrock,
    cohere,
    gemini,
    ollama_native,
    replicate,
    tgi_native,
    vertex,
)
from services.router.providers.base import Wire
from services.router.providers.compatible import ROWS
from services.router.providers.openai import OpenAIWire

PROVIDERS: dict[str, Wire] = {
    **{row.kind: OpenAIWire(row) for row in ROWS},
    "anthropic": anthropic.WIRE,
    "bedrock": bedrock.WIRE,
    "cohere": cohere.WIRE,
    "gemini": gemini.WIRE,
    "ollama-native": ollama_native.WIRE,
    "replicate": replicate.WIRE,
    "tgi-native": tgi_native.WIRE,
    "vertex": vertex.WIRE,
}
