"""The OpenAI wire of every vendor: golden exchanges, addresses, credentials, lists of models."""

import json
from typing import Any

import pytest

from onegate.common.v1 import error_pb2
from onegate.router.v1 import chat_pb2
from runtime.errors import GatewayError
from services.router.providers import PROVIDERS
from services.router.providers.base import Exchange, ListedModel, ShortLived
from services.router.providers.openai import OpenAIWire
from tests.providers import goldens

PROTOCOL = error_pb2.ERROR_REASON_UPSTREAM_PROTOCOL
GOLDENS = [
    pytest.param(kind, *golden.values, id=f"{kind}/{golden.id}")
    for kind in PROVIDERS
    if PROVIDERS[kind].dialect == chat_pb2.DIALECT_OPENAI_CHAT
    for golden in goldens.load(kind)
]


def call(**fields: Any) -> Exchange:
    return Exchange(
        request=chat_pb2.ChatRequest(**fields), model="some-model", cost=lambda tokens: 1
    )


@pytest.mark.parametrize(("kind", "golden"), GOLDENS)
def test_a_golden_exchange_comes_out_as_written(kind: str, golden: dict[str, Any]) -> None:
    goldens.check(PROVIDERS[kind], golden)


@pytest.mark.parametrize(
    ("kind", "address", "headers"),
    [
        ("openai", "https://api.openai.com/v1/chat/completions", {}),
        ("azure", "/openai/v1/chat/completions", {}),
        (
            "github",
            "https://models.github.ai/inference/chat/completions",
            {"x-github-api-version": "2022-11-28"},
        ),
        ("groq", "https://api.groq.com/openai/v1/chat/completions", {}),
        ("perplexity", "https://api.perplexity.ai/chat/completions", {}),
        ("zai", "https://api.z.ai/api/paas/v4/chat/completions", {}),
        ("compatible", "/chat/completions", {}),
        ("demo", "/chat/completions", {}),
    ],
)
def test_a_call_goes_to_the_vendors_address(
    kind: str, address: str, headers: dict[str, str]
) -> None:
    wire = PROVIDERS[kind]
    sent = wire.request(call())
    assert sent.method == "POST"
    assert wire.base_url + sent.path == address
    assert dict(sent.headers) == {
        "content-type": "application/json",
        "accept": "application/json",
        **headers,
    }


def test_a_stream_is_asked_for_as_one() -> None:
    sent = PROVIDERS["openai"].request(call(stream=True))
    assert ("accept", "text/event-stream") in sent.headers


@pytest.mark.parametrize(
    ("kind", "secret", "headers"),
    [
        ("openai", "sk-1", [("authorization", "Bearer sk-1")]),
        ("azure", "az-1", [("api-key", "az-1")]),
        ("ollama", "", []),
    ],
)
def test_a_credential_goes_where_the_vendor_looks(
    kind: str, secret: str, headers: list[tuple[str, str]]
) -> None:
    wire = PROVIDERS[kind]
    assert isinstance(wire, OpenAIWire)
    given = wire.authorize(secret)
    assert not isinstance(given, ShortLived)
    assert list(given) == headers


def test_every_wire_speaks_openais_dialect_and_says_whether_it_forwards() -> None:
    wire = PROVIDERS["groq"]
    assert wire.dialect == chat_pb2.DIALECT_OPENAI_CHAT
    assert not wire.native
    assert PROVIDERS["demo"].native


@pytest.mark.parametrize(
    ("kind", "path"),
    [("openai", "/models"), ("github", "/catalog/models"), ("azure", None), ("perplexity", None)],
)
def test_models_are_asked_for_where_the_vendor_lists_what_can_be_called(
    kind: str, path: str | None
) -> None:
    asked = PROVIDERS[kind].models_request()
    assert (asked and asked.path) == path
    assert asked is None or (asked.method, asked.body) == ("GET", b"")


@pytest.mark.parametrize(
    ("body", "listed"),
    [
        (
            {"object": "list", "data": [{"id": "gpt-5", "created": 7, "owned_by": "openai"}]},
            ListedModel("gpt-5", 7, "openai"),
        ),
        (
            [{"id": "a/b", "organization": "a", "display_name": "B", "context_length": 8192}],
            ListedModel("a/b", 0, "a", "B", 8192),
        ),
        (
            {
                "data": [
                    {
                        "id": "o/r",
                        "name": "R",
                        "context_length": None,
                        "top_provider": {"max_completion_tokens": 4096},
                    }
                ]
            },
            ListedModel("o/r", 0, "", "R", 0, 4096),
        ),
        (
            {"data": [{"id": "g", "context_window": 131072, "max_completion_tokens": 32768}]},
            ListedModel("g", 0, "", "", 131072, 32768),
        ),
        (
            {"data": [{"id": "m", "name": None, "max_context_length": 32000.0}]},
            ListedModel("m", 0, "", "", 32000),
        ),
        ({"models": [{"id": "v", "max_model_len": 4096}]}, ListedModel("v", 0, "", "", 4096)),
        (
            [
                {
                    "id": "openai/gpt-4.1",
                    "publisher": "OpenAI",
                    "limits": {"max_input_tokens": 1000, "max_output_tokens": 100},
                }
            ],
            ListedModel("openai/gpt-4.1", 0, "OpenAI", "", 1000, 100),
        ),
        ({"data": [{"id": "c", "meta": {"n_ctx": -1}}]}, ListedModel("c")),
    ],
)
def test_a_list_of_models_is_read_in_every_vendors_spelling(body: Any, listed: ListedModel) -> None:
    assert PROVIDERS["compatible"].models(json.dumps(body).encode()) == [listed]


def test_what_is_no_model_is_not_listed() -> None:
    body = json.dumps({"data": [{"object": "model"}, "gpt", {"id": 3}]}).encode()
    assert PROVIDERS["compatible"].models(body) == []


@pytest.mark.parametrize("body", [b"<html>", b"{}", b'{"data": {}}', b"7", b'{"data": "\xff"}'])
def test_what_is_no_list_of_models_is_refused(body: bytes) -> None:
    with pytest.raises(GatewayError) as refused:
        PROVIDERS["openai"].models(body)
    assert refused.value.reason == PROTOCOL
