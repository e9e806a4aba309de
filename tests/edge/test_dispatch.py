"""Who gets in, what is there, and what is counted: the edge as its callers find it."""

import asyncio
import json
import re
from pathlib import Path

import pytest

from edge.dispatch import RequestIds
from onegate.auth.v1 import grant_pb2
from onegate.common.v1 import error_pb2
from onegate.router.v1 import chat_pb2, model_service_pb2
from runtime import apikeys
from runtime.calls import ServerCall
from runtime.clock import SystemClock, SystemEntropy
from runtime.errors import GatewayError
from tests.edge.stage import KEY, METERED, MODEL, SERVED, Event, Stage, chunk, send, staged
from tests.edge.wire import Answer, until
from tests.openapi_oracle import MODEL_LIST, faults
from tests.recordings import needs_specs

pytestmark = pytest.mark.anyio

OTHER = apikeys.mint(grant_pb2.KEY_KIND_PROJECT, SystemEntropy())
BODY = json.dumps({"model": MODEL, "messages": [{"role": "user", "content": "Hi"}]})
BEARER = f"Authorization: Bearer {KEY}"


def request(target: str, *lines: str, body: str = "") -> bytes:
    """``METHOD path`` as bytes."""
    head = [f"{target} HTTP/1.1", "Host: x", f"Content-Length: {len(body)}", *lines, "", ""]
    return ("\r\n".join(head) + body).encode()


async def asked(stage: Stage, target: str, *lines: str, body: str = "") -> Answer:
    client = await stage.connect()
    await client.send(request(target, *lines, body=body))
    return await client.answer(has_body=not target.startswith("HEAD"))


async def chatted(stage: Stage, *lines: str) -> Answer:
    return await asked(stage, "POST /v1/chat/completions", *lines, body=BODY)


def code(answer: Answer) -> str:
    found: str = json.loads(answer.body)["error"]["code"]
    return found


@pytest.mark.parametrize(
    "lines",
    [
        [f"Authorization: Bearer {KEY}"],
        [f"x-api-key: {KEY}"],
        [f"api-key: {KEY}"],
        [f"X-Goog-Api-Key: {KEY}"],
        [f"Authorization: Bearer {KEY}", f"x-api-key: {KEY}"],
    ],
)
async def test_the_key_is_taken_from_every_vendors_header(tmp_path: Path, lines: list[str]) -> None:
    async with staged(tmp_path) as stage:
        assert (await chatted(stage, *lines)).status == 200


@pytest.mark.parametrize(
    "lines",
    [
        [],
        ["Authorization: Bearer"],
        [f"Authorization: Basic {KEY}"],
        ["Authorization: Bearer sk-og-garbage"],
        [f"Authorization: Bearer {KEY}a"],
        [f"Authorization: Bearer {KEY}", f"x-api-key: {OTHER}"],
        [f"Authorization: Bearer {KEY}", f"Authorization: Bearer {OTHER}"],
    ],
)
async def test_who_has_no_key_is_told_so_before_the_body_comes(
    tmp_path: Path, lines: list[str]
) -> None:
    async with staged(tmp_path) as stage:
        client = await stage.connect()
        raw = request("POST /v1/chat/completions", *lines, body=BODY)
        await client.send(raw[: -len(BODY)])
        answer = await client.answer()
        assert answer.status == 401
        assert code(answer) == "invalid_api_key"
        assert answer.headers["www-authenticate"].startswith("Bearer")
        assert KEY not in answer.body.decode()
        assert stage.auth.asked == []
        assert stage.router.requests == []


async def test_a_key_in_the_query_is_no_key(tmp_path: Path) -> None:
    async with staged(tmp_path) as stage:
        answer = await asked(stage, f"GET /v1/models?key={KEY}&api_key={KEY}")
        assert answer.status == 401
        assert KEY not in answer.body.decode()


async def test_a_key_that_auth_does_not_know_is_refused(tmp_path: Path) -> None:
    async with staged(tmp_path) as stage:
        assert (await chatted(stage, f"x-api-key: {OTHER}")).status == 401
        assert (await chatted(stage, f"x-api-key: {OTHER}")).status == 401
        assert len(stage.auth.asked) == 1


async def test_a_revoked_key_is_refused_within_a_second(tmp_path: Path) -> None:
    async with staged(tmp_path) as stage:
        assert (await chatted(stage, BEARER)).status == 200
        stage.auth.revoke(KEY)
        async with asyncio.timeout(1.0):
            while (await chatted(stage, BEARER)).status == 200:
                pass
        assert (await chatted(stage, BEARER)).status == 401


async def test_an_auth_that_is_away_is_no_refusal(tmp_path: Path) -> None:
    async with staged(tmp_path) as stage:
        stage.auth.failure = GatewayError(error_pb2.ERROR_REASON_STORE_UNAVAILABLE, "away")
        answer = await chatted(stage, BEARER)
        assert answer.status == 503
        assert code(answer) == "auth_unavailable"
        assert answer.headers["retry-after"] == "1"
        assert answer.headers["x-should-retry"] == "true"


@pytest.mark.parametrize(
    ("target", "status", "allow"),
    [
        ("GET /v1/nothing", 404, None),
        ("GET /", 404, None),
        ("GET /v1/models/", 404, None),
        ("GET /v1/chat/completions/", 404, None),
        ("GET /v1//models", 404, None),
        ("GET /v1/chat/completions", 405, "POST"),
        ("DELETE /v1/models", 405, "GET, HEAD"),
        ("OPTIONS /v1/models", 405, "GET, HEAD"),
        ("OPTIONS /v1/chat/completions", 405, "POST"),
        ("POST /healthz", 405, "GET, HEAD"),
        ("PATCH /v1/models/x", 405, "GET, HEAD"),
    ],
)
async def test_what_is_not_there_is_told_with_its_key_or_without(
    tmp_path: Path, target: str, status: int, allow: str | None
) -> None:
    async with staged(tmp_path) as stage:
        for lines in ((), (BEARER,)):
            answer = await asked(stage, target, *lines)
            assert answer.status == status
            assert answer.headers.get("allow") == allow
            assert answer.headers["x-request-id"].startswith("req_")
            assert code(answer) == ("not_found" if status == 404 else "method_not_allowed")


async def test_pages_need_no_key(tmp_path: Path) -> None:
    async with staged(tmp_path) as stage:
        for path in ("/healthz", "/readyz"):
            answer = await asked(stage, f"GET {path}")
            assert answer.status == 200
            assert json.loads(answer.body)["status"] == "ok"
        head = await asked(stage, "HEAD /healthz")
        assert (head.status, head.headers["content-length"]) == (200, "15")


async def test_metrics_count_by_endpoint_and_status_and_never_by_caller(tmp_path: Path) -> None:
    async with staged(tmp_path) as stage:
        await chatted(stage, BEARER)
        await chatted(stage)
        await asked(stage, "GET /v1/secret-path")
        broken = await stage.connect()
        await broken.send(b"GARBAGE\r\n\r\n")
        await broken.answer()
        page = (await asked(stage, "GET /metrics")).body.decode()
        assert 'onegate_edge_requests_total{endpoint="chat.completions",status="200"} 1.0' in page
        assert 'onegate_edge_requests_total{endpoint="chat.completions",status="401"} 1.0' in page
        assert 'onegate_edge_requests_total{endpoint="none",status="404"} 1.0' in page
        assert 'onegate_edge_requests_total{endpoint="malformed",status="400"} 1.0' in page
        assert "onegate_edge_in_flight 1.0" in page
        assert "onegate_edge_request_duration_seconds_bucket" in page
        assert KEY not in page
        assert "secret-path" not in page


async def test_every_request_has_an_id_of_its_own(tmp_path: Path) -> None:
    async with staged(tmp_path) as stage:
        ids = [
            (await asked(stage, "GET /healthz", "x-request-id: req_mine")).headers["x-request-id"]
            for _ in range(20)
        ]
        assert len(set(ids)) == 20
        assert all(re.fullmatch(r"req_[0-9a-f]{32}", found) for found in ids)


async def test_one_call_too_many_is_refused_at_once_and_pages_are_not(tmp_path: Path) -> None:
    async def script(_call: ServerCall, _request: chat_pb2.ChatRequest) -> None:
        await asyncio.Event().wait()

    async with staged(tmp_path, calls_max=3) as stage:
        stage.router.script = script
        clients = [await stage.connect() for _ in range(3)]
        for client in clients:
            await client.send(request("POST /v1/chat/completions", BEARER, body=BODY))
        await until(lambda: len(stage.router.requests) == 3)
        client = await stage.connect()
        for _ in range(10):
            await client.send(request("POST /v1/chat/completions", BEARER, body=BODY))
            answer = await client.answer()
            assert (answer.status, code(answer)) == (503, "overloaded")
            assert answer.headers["retry-after"] == "1"
        for path in ("/healthz", "/metrics"):
            assert (await asked(stage, f"GET {path}")).status == 200
        assert (await asked(stage, "GET /v1/models", BEARER)).status == 200
        await clients[0].leave()
        await until(lambda: stage.router.cancelled == 1)
        await client.send(request("POST /v1/chat/completions", BEARER, body=BODY))
        await until(lambda: len(stage.router.requests) == 4)


async def test_a_stream_that_has_begun_does_not_wait_for_its_answer(tmp_path: Path) -> None:
    begin, go_on = asyncio.Event(), asyncio.Event()

    async def script(call: ServerCall, _request: chat_pb2.ChatRequest) -> None:
        await begin.wait()
        await send(call, Event(served=SERVED), Event(native=chunk("Hel")))
        await go_on.wait()
        await send(call, Event(native=chunk("lo")), Event(metered=METERED))

    async with staged(tmp_path) as stage:
        stage.router.script = script
        admission = stage.edge.admission
        client = await stage.connect()
        body = json.dumps({**json.loads(BODY), "stream": True})
        await client.send(request("POST /v1/chat/completions", BEARER, body=body))
        await until(lambda: admission.waiting == 1)
        begin.set()
        await client.head()
        assert (await client.chunk(), admission.waiting) == (chunk("Hel"), 0)
        go_on.set()
        await until(lambda: stage.router.ended == 1)
        await client.leave()
        assert admission.waiting == 0


async def test_models_are_listed_over_all_pages(tmp_path: Path) -> None:
    async with staged(tmp_path) as stage:
        stage.router.models = [
            model_service_pb2.Model(id=f"p/m{index}", provider="p") for index in range(25)
        ]
        stage.router.page_size = 10
        answer = await asked(stage, "GET /v1/models", BEARER)
        assert answer.status == 200
        assert [model["id"] for model in json.loads(answer.body)["data"]] == [
            f"p/m{index}" for index in range(25)
        ]
        assert stage.router.metadata[0]["authorization"] == f"Bearer {KEY}"


@needs_specs
async def test_listed_models_are_what_openais_description_says(tmp_path: Path) -> None:
    async with staged(tmp_path) as stage:
        answer = await asked(stage, "GET /v1/models", BEARER)
        assert faults(MODEL_LIST, json.loads(answer.body)) == []


@pytest.mark.parametrize("path", [MODEL, MODEL.replace("/", "%2F"), MODEL.replace("/", "%2f")])
async def test_a_model_is_found_by_its_id_however_its_slash_is_written(
    tmp_path: Path, path: str
) -> None:
    async with staged(tmp_path) as stage:
        answer = await asked(stage, f"GET /v1/models/{path}?x=y", BEARER)
        assert json.loads(answer.body)["id"] == MODEL
        missing = await asked(stage, "GET /v1/models/openai/none", BEARER)
        assert (missing.status, code(missing)) == (404, "model_not_found")


async def test_another_router_lists_the_models_when_one_is_away(tmp_path: Path) -> None:
    async with staged(tmp_path, routers=2) as stage:
        await stage.routers[0].leave()
        for _ in range(3):
            assert (await asked(stage, "GET /v1/models", BEARER)).status == 200
        stage.routers[1].failure = GatewayError(error_pb2.ERROR_REASON_SCOPE_MISSING, "no")
        assert (await asked(stage, "GET /v1/models", BEARER)).status == 403
        await stage.routers[1].leave()
        answer = await asked(stage, "GET /v1/models", BEARER)
        assert (answer.status, code(answer)) == (503, "router_unavailable")


async def test_a_router_that_refuses_to_list_models_is_not_asked_around(tmp_path: Path) -> None:
    async with staged(tmp_path, routers=2) as stage:
        for router in stage.routers:
            router.failure = GatewayError(error_pb2.ERROR_REASON_SCOPE_MISSING, "no")
        assert (await asked(stage, "GET /v1/models", BEARER)).status == 403
        assert sum(len(router.metadata) for router in stage.routers) == 1


async def test_an_endpoint_without_use_for_a_body_takes_a_small_one(tmp_path: Path) -> None:
    async with staged(tmp_path) as stage:
        assert (await asked(stage, "GET /v1/models", BEARER, body="x" * 1000)).status == 200
        answer = await asked(stage, "GET /v1/models", BEARER, body="x" * 100_000)
        assert (answer.status, code(answer)) == (413, "request_too_large")


async def test_every_call_is_one_line_in_the_access_log_and_pages_are_none(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    async with staged(tmp_path, access_log=True) as stage:
        answer = await chatted(stage, BEARER, "X-Client-Request-Id: theirs")
        await asked(stage, "GET /healthz")
        await asked(stage, f"GET /v1/models?key={KEY}")
    calls, models = capfd.readouterr().out.splitlines()
    request_id = answer.headers["x-request-id"]
    for said in ("POST /v1/chat/completions 200", f"id={request_id}", "client_id=theirs"):
        assert said in calls
    assert f"model={MODEL}" in calls
    assert f"key=key_{KEY[-8:]}" in calls
    assert "GET /v1/models 401" in models
    assert KEY not in calls + models


async def test_a_defect_is_a_500_that_names_the_request_and_nothing_else(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with staged(tmp_path) as stage:
        monkeypatch.delattr(stage.edge._models, "_stubs")
        answer = await asked(stage, "GET /v1/models", BEARER)
        assert answer.status == 500
        assert code(answer) == "internal"
        assert answer.headers["x-request-id"] in answer.body.decode()
        assert "_stubs" not in answer.body.decode()
        assert "_stubs" in caplog.text


async def test_draining_takes_readiness_first(tmp_path: Path) -> None:
    async with staged(tmp_path, drain_notice_s=0.3) as stage:
        draining = asyncio.create_task(stage.edge.drain())
        await until(lambda: not stage.edge.checks()["accepting"])
        answer = await asked(stage, "GET /readyz")
        assert answer.status == 503
        assert answer.headers["connection"] == "close"
        assert (await chatted(stage, BEARER)).status == 200
        await draining
        with pytest.raises(ConnectionRefusedError):
            await stage.connect()


@pytest.mark.parametrize(
    ("networks", "status"),
    [([], 200), (["127.0.0.0/8"], 200), (["10.0.0.0/8", "::1/128"], 403)],
)
async def test_a_key_works_from_its_networks_alone(
    tmp_path: Path, networks: list[str], status: int
) -> None:
    async with staged(tmp_path) as stage:
        stage.auth.add(KEY, networks_allowed=networks)
        for _ in range(2):
            answer = await asked(stage, "GET /v1/models", BEARER)
            assert answer.status == status
            if status == 403:
                assert code(answer) == "address_forbidden"
                assert "127.0.0.1" in answer.body.decode()
        assert len(stage.router.metadata) == (2 if status == 200 else 0)


def test_ids_that_are_made_together_begin_alike_and_none_twice() -> None:
    ids = RequestIds(SystemClock(), SystemEntropy())
    made = [ids.next() for _ in range(1_000)]
    assert len(set(made)) == len(made)
    assert all(re.fullmatch(r"req_[0-9a-f]{32}", found) for found in made)
    heads = [found[:16] for found in made]
    assert heads == sorted(heads)
    assert len(set(heads)) <= 3, "a new time with new randomness only"
