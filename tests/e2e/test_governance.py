"""Keys on a gateway of two routers and two edges: what they may call, and how fast they die."""

import asyncio
import contextlib
import json
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import Any

import grpc
import openai
import pytest

from onegate.common.v1 import content_pb2
from onegate.router.v1 import chat_pb2, chat_service_pb2_grpc
from tests.gateway import Gateway, running_gateway, wait_until

MODEL = "demo/echo"
HELLO: Any = [{"role": "user", "content": "Hello!"}]
CONNECTIONS = 24
"""Fresh connections a round: with two listeners both get some, but for one case in 2^23."""


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """A gateway of two routers and two edges."""
    with running_gateway(tmp_path_factory.mktemp("pair"), workers=2) as gateway:
        assert len(gateway.pids_of("router")) == 2
        assert len(gateway.pids_of("edge")) == 2
        yield gateway


def status_of(gateway: Gateway, key: str) -> tuple[int, str]:
    """Status and error code of one call on a connection of its own."""
    body = json.dumps({"model": MODEL, "messages": HELLO}).encode()
    request = urllib.request.Request(
        f"{gateway.base_url}/chat/completions",
        data=body,
        headers={"authorization": f"Bearer {key}", "content-type": "application/json"},
    )
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return int(answer.status), ""
    except urllib.error.HTTPError as error:
        return error.code, str(json.load(error)["error"]["code"])


def router_status(gateway: Gateway, router: int, key: str) -> grpc.StatusCode:
    """How a plain gRPC call to one router ends."""
    path = gateway.data_dir / "run" / f"router-{router}.sock"
    message = content_pb2.Message(
        role=content_pb2.ROLE_USER,
        parts=[content_pb2.Part(text=content_pb2.TextPart(text="Hello!"))],
    )

    async def ask() -> grpc.StatusCode:
        async with grpc.aio.insecure_channel(f"unix:{path}") as channel:
            call = chat_service_pb2_grpc.ChatServiceStub(channel).Chat(
                chat_pb2.ChatRequest(model=MODEL, messages=[message]),
                metadata=(("authorization", f"Bearer {key}"),),
                timeout=10,
            )
            with contextlib.suppress(grpc.RpcError):
                assert [_ async for _ in call]
            return await call.code()

    return asyncio.run(ask())


def make_key(gateway: Gateway, *arguments: str) -> tuple[str, str]:
    """Id and secret of a new key."""
    made = json.loads(gateway.cli("keys", "create", "--name", "test", "-o", "json", *arguments))
    return made["id"], made["value"]


def test_a_revoked_key_is_refused_within_a_second_on_both_routers_and_edges(pair: Gateway) -> None:
    key_id, key = make_key(pair)
    for _ in range(CONNECTIONS):
        assert status_of(pair, key) == (200, "")
    for router in (0, 1):
        assert router_status(pair, router, key) == grpc.StatusCode.OK
    pair.cli("keys", "revoke", key_id)
    returned = time.monotonic()
    wait_until(lambda: time.monotonic() - returned > 0.9, what="0.9 s after the revocation")
    for _ in range(CONNECTIONS):
        assert status_of(pair, key) == (401, "invalid_api_key")
    for router in (0, 1):
        assert router_status(pair, router, key) == grpc.StatusCode.UNAUTHENTICATED


def test_a_key_outside_its_models_gets_403_and_sees_none_of_the_others(pair: Gateway) -> None:
    _, key = make_key(pair, "--models", "openai/*")
    assert status_of(pair, key) == (403, "model_forbidden")
    with openai.OpenAI(base_url=pair.base_url, api_key=key) as client:
        assert [model.id for model in client.models.list()] == []


def test_an_expired_key_is_refused_as_expired(pair: Gateway) -> None:
    _, key = make_key(pair, "--expires-in", "1s")
    wait_until(lambda: status_of(pair, key) == (401, "key_expired"), what="expiry")


@pytest.mark.parametrize(
    "key", ["", "garbage", "sk-og-", "sk-og-" + "a" * 46, "sk-og-admin-" + "b" * 46, "sk-proj-x"]
)
def test_a_garbage_key_is_refused(pair: Gateway, key: str) -> None:
    assert status_of(pair, key) == (401, "invalid_api_key")


def test_an_admin_key_calls_no_model(pair: Gateway) -> None:
    status, _ = status_of(pair, pair.credentials["admin_key"])
    assert status == 403


@pytest.mark.parametrize("header", ["x-api-key", "api-key", "x-goog-api-key"])
def test_the_key_is_taken_from_every_vendors_header(pair: Gateway, header: str) -> None:
    request = urllib.request.Request(f"{pair.base_url}/models", headers={header: pair.api_key})
    with urllib.request.urlopen(request, timeout=10) as answer:
        assert answer.status == 200


def test_a_key_in_the_query_string_is_not_taken(pair: Gateway) -> None:
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(f"{pair.base_url}/models?key={pair.api_key}", timeout=10)
    assert refused.value.code == 401
    refused.value.close()
