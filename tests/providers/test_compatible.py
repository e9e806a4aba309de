"""The rows of the vendors: complete, sourced, and what the issue asks for."""

import dataclasses

import pytest

from onegate.router.v1 import chat_pb2
from services.router.providers import PROVIDERS
from services.router.providers.compatible import COMPATIBLE, DEMO, OPENAI, ROWS
from services.router.providers.openai import OpenAIWire
from services.router.providers.openai_request import FIELDS
from services.router.providers.openai_row import Compatible

KINDS = [
    "openai",
    "azure",
    "azure-deployments",
    "deepseek",
    "xai",
    "mistral",
    "groq",
    "together",
    "fireworks",
    "openrouter",
    "cerebras",
    "perplexity",
    "alibaba",
    "moonshot",
    "zai",
    "nvidia",
    "deepinfra",
    "sambanova",
    "huggingface",
    "tgi",
    "github",
    "ollama",
    "vllm",
    "llamacpp",
    "lmstudio",
    "compatible",
    "demo",
]
AT_HOME = {"ollama", "vllm", "llamacpp", "lmstudio"}
"""Servers that an operator runs; their documented address is the machine itself."""
SAID_BY_THE_OPERATOR = {"azure", "azure-deployments", "tgi", "compatible", "demo"}


def test_every_kind_has_its_row_and_its_wire() -> None:
    assert [row.kind for row in ROWS] == KINDS
    for row in ROWS:
        wire = PROVIDERS[row.kind]
        assert isinstance(wire, OpenAIWire)
        assert wire.row is row


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.kind)
def test_a_row_names_its_documents(row: Compatible) -> None:
    assert all(source.startswith("https://") for source in row.sources)
    assert bool(row.sources) == (row not in (COMPATIBLE, DEMO))


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.kind)
def test_a_row_has_an_address_unless_an_operator_must_say_it(row: Compatible) -> None:
    assert bool(row.base_url) == (row.kind not in SAID_BY_THE_OPERATOR)
    assert not row.base_url.endswith("/")
    assert row.path.startswith("/")
    if row.base_url:
        home = row.kind in AT_HOME
        assert row.base_url.startswith("http://localhost:" if home else "https://")


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.kind)
def test_a_row_renames_and_refuses_fields_that_there_are(row: Compatible) -> None:
    for name, own in row.fields.items():
        assert isinstance(FIELDS[name], str)
        assert own is None or own != FIELDS[name]
    assert row.response_formats <= {"text", "json_object", "json_schema"}
    assert chat_pb2.TOOL_CHOICE_MODE_AUTO in row.tool_choices


def test_the_demo_is_openai_at_another_address() -> None:
    named = {"kind", "title", "sources", "base_url"}
    for field in dataclasses.fields(DEMO):
        same = getattr(DEMO, field.name) == getattr(OPENAI, field.name)
        assert same == (field.name not in named)
