"""The router's process: start, models, discovery, the demo, draining, dying and coming back."""

import asyncio
import json
import logging
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from onegate.common.v1 import error_pb2
from onegate.router.v1 import (
    chat_service_pb2_grpc,
    model_service_pb2,
    model_service_pb2_grpc,
)
from onegate.usage.v1 import usage_record_pb2
from runtime.clock import SystemClock
from runtime.config import ProviderSettings, Settings, TelemetrySettings
from runtime.errors import GatewayError
from runtime.relay import RelayPool
from runtime.rpc import OPERATOR_KEY, channel, from_rpc_error, unary
from runtime.rules import ConfigError
from services.router import server
from tests.fake_provider import FakeProvider, Fault, Outcome, Reply
from tests.gateway import free_port
from tests.services.router.rig import (
    Rig,
    hello,
    native,
    provider,
    running,
    settings_in,
    sheet,
    until,
)

pytestmark = pytest.mark.anyio
PRICED = (sheet("openai/m"), sheet("openai/n"))


async def listed(rig: Rig, key: str = "", **page: Any) -> model_service_pb2.ListModelsResponse:
    async with channel(rig.settings.router.listen, rig.settings.rpc) as to_router:
        stub = model_service_pb2_grpc.ModelServiceStub(to_router)
        return await unary(
            stub.ListModels,
            model_service_pb2.ListModelsRequest(**page),
            timeout_s=5,
            metadata=(("authorization", f"Bearer {key or rig.key}"),),
        )


async def ids(rig: Rig, key: str = "") -> list[str]:
    return [model.id for model in (await listed(rig, key)).models]


async def got(rig: Rig, name: str, key: str = "") -> str:
    async with channel(rig.settings.router.listen, rig.settings.rpc) as to_router:
        stub = model_service_pb2_grpc.ModelServiceStub(to_router)
        try:
            answer = await unary(
                stub.GetModel,
                model_service_pb2.GetModelRequest(id=name),
                timeout_s=5,
                metadata=(("authorization", f"Bearer {key or rig.key}"),),
            )
        except GatewayError as error:
            return error_pb2.ErrorReason.Name(error.reason).removeprefix("ERROR_REASON_")
        return answer.model.id


async def until_listed(rig: Rig, model: str) -> None:
    async with asyncio.timeout(5):
        while await got(rig, model) != model or model not in await ids(rig):  # noqa: ASYNC110
            await asyncio.sleep(0.02)


async def test_without_a_provider_the_demo_answers(tmp_path: Path) -> None:
    async with running(settings_in(tmp_path)) as rig:
        for streamed in (False, True):
            said = await rig.chat(hello("demo/echo", stream=streamed))
            assert "onegate's built-in demo provider" in said.text
            assert said.text.endswith("You said: Hi")
            assert said.served.model == "demo/echo"
            assert said.metered.cost_nano_usd == 0
        assert (await rig.chat(hello("echo"))).error is None
        assert (await rig.chat(hello("gpt-5"))).reason == "model_not_found"
        (model,) = (await listed(rig)).models
        assert (model.id, model.free, model.callable) == ("demo/echo", True, True)
        for record in await rig.records(3):
            assert (record.provider, record.cost_nano_usd) == ("demo", 0)
            assert record.certainty == usage_record_pb2.CERTAINTY_REPORTED
            assert record.tokens.output_tokens > 0


async def test_a_configured_demo_answers_to_the_names_it_is_given(tmp_path: Path) -> None:
    demo = ProviderSettings(name="play", kind="demo", models=("gpt-5", "other"))
    async with running(settings_in(tmp_path, demo)) as rig:
        assert (await rig.chat(hello("gpt-5"))).served.model == "play/gpt-5"
        assert (await rig.chat(hello("play/other"))).error is None
        assert (await rig.chat(hello("play/echo"))).reason == "model_not_found"


async def test_a_key_sees_the_models_that_it_may_call(tmp_path: Path) -> None:
    async with FakeProvider(models=("m", "z")) as fake:
        settings = settings_in(tmp_path, provider("b", fake), provider("a", fake, models=("n",)))
        async with running(settings, PRICED) as rig:
            await until_listed(rig, "b/z")
            models = (await listed(rig)).models
            assert [(m.id, m.callable) for m in models] == [
                ("a/n", True),
                ("b/m", True),
                ("b/n", True),
                ("b/z", False),
            ]
            narrow = rig.add_key(models_allowed=["b/*"], models_denied=["*/n"])
            assert await ids(rig, narrow) == ["b/m", "b/z"]
            assert await got(rig, "b/m", narrow) == "b/m"
            assert await got(rig, "m", narrow) == "b/m"
            assert await got(rig, "a/n", narrow) == "MODEL_NOT_FOUND"
            assert await got(rig, "a/nope") == "MODEL_NOT_FOUND"
            first = await listed(rig, page_size=3)
            assert [m.id for m in first.models] == ["a/n", "b/m", "b/n"]
            rest = await listed(rig, page_size=3, page_token=first.next_page_token)
            assert ([m.id for m in rest.models], rest.next_page_token) == (["b/z"], "")


async def test_listing_needs_a_key(tmp_path: Path) -> None:
    async with running(settings_in(tmp_path)) as rig:
        assert await got(rig, "demo/echo", "garbage") == "INVALID_API_KEY"
        blind = rig.add_key(scopes=["files.read"])
        assert await got(rig, "demo/echo", blind) == "SCOPE_MISSING"


async def test_the_operator_sees_every_model_and_a_wrong_token_none(tmp_path: Path) -> None:
    token = tmp_path / "operator.token"
    rpc = replace(settings_in(tmp_path).rpc, operator_token_file=str(token))
    demo = ProviderSettings(name="demo", kind="demo", models=("a", "b"))
    async with running(replace(settings_in(tmp_path, demo), rpc=rpc)) as rig:
        line = channel(rig.settings.router.listen, rig.settings.rpc)
        stub = model_service_pb2_grpc.ModelServiceStub(line)

        async def as_operator(presented: str) -> list[str]:
            request = model_service_pb2.ListModelsRequest()
            metadata = ((OPERATOR_KEY, presented),)
            answer = await unary(stub.ListModels, request, timeout_s=5, metadata=metadata)
            return [model.id for model in answer.models]

        for presented in ("", "x" * 64):
            with pytest.raises(GatewayError, match="operator"):  # no token here, nobody gets in
                await as_operator(presented)
        token.write_text("x" * 64)
        token.chmod(0o600)
        assert await as_operator("x" * 64) == ["demo/a", "demo/b"]
        with pytest.raises(GatewayError, match="operator"):
            await as_operator("y" * 64)
        await line.close()


async def test_a_model_that_a_provider_adds_can_be_called_within_one_poll(tmp_path: Path) -> None:
    async with FakeProvider(models=("m",)) as fake:
        settings = settings_in(
            tmp_path, provider("a", fake, free=True), provider("p", fake), discovery_interval_s=0.1
        )
        async with running(settings, PRICED) as rig:
            await until_listed(rig, "a/m")
            rig.prices.hidden.append(sheet("openai/new"))
            assert (await rig.chat(hello("p/other"))).reason == "model_not_found"
            fake.models = ("m", "new", "other")
            await until_listed(rig, "p/new")
            assert (await rig.chat(hello("p/new"))).error is None
            assert (await rig.chat(hello("p/other"))).reason == "model_price_unknown"
            assert {m.id: m.callable for m in (await listed(rig)).models}["p/new"]


async def test_a_list_that_cannot_be_had_is_reported_once_and_the_last_one_stays(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    async with FakeProvider() as gone:
        pass
    async with FakeProvider(models=("m",)) as fake:
        settings = settings_in(
            tmp_path,
            provider("a", fake, free=True),
            provider("b", gone, free=True),
            ProviderSettings(name="c", kind="azure", base_url=fake.base_url, free=True),
            discovery_interval_s=0.1,
        )
        async with running(settings) as rig:
            await until_listed(rig, "a/m")
            fake.models = ()
            fake.list_status = 500
            polls = len(fake.taken)
            await fake.until(lambda: len(fake.taken) > polls + 3)
            assert await ids(rig) == ["a/m"]
            fake.models, fake.list_status = ("m", "n"), 200
            await until_listed(rig, "a/n")
    complaints = [r.getMessage() for r in caplog.records if "does not list" in r.getMessage()]
    assert sorted(line[0] for line in complaints) == ["a", "b"]
    assert any("lists its models again" in r.getMessage() for r in caplog.records)


async def test_a_plain_rpc_ends_in_the_same_handler(tmp_path: Path) -> None:
    async with (
        FakeProvider() as fake,
        running(settings_in(tmp_path, provider("a", fake)), PRICED) as rig,
        channel(rig.settings.router.listen, rig.settings.rpc) as to_router,
    ):
        stub = chat_service_pb2_grpc.ChatServiceStub(to_router)
        call = stub.Chat(
            native(hello()), timeout=5, metadata=(("authorization", f"Bearer {rig.key}"),)
        )
        events = [event async for answer in call for event in answer.events]
        assert [e.WhichOneof("event") for e in events] == ["served", "native", "metered"]
        call = stub.Chat(native(hello("nope")), timeout=5)
        with pytest.raises(Exception, match="API key") as caught:
            [answer async for answer in call]
        assert (
            from_rpc_error(caught.value).reason  # type: ignore[arg-type]
            == error_pb2.ERROR_REASON_INVALID_API_KEY
        )


async def test_draining_finishes_what_runs_and_takes_no_more(tmp_path: Path) -> None:
    async with (
        FakeProvider() as fake,
        running(settings_in(tmp_path, provider("a", fake)), PRICED) as rig,
    ):
        fake.default = Reply(chunk_delay_s=0.1)
        running_call = asyncio.create_task(rig.chat(hello(stream=True)))
        await fake.until(lambda: bool(fake.chats) and fake.chats[0].pieces_sent > 1)
        rig.stop.set()
        said = await running_call
        assert (said.error, said.text) == (None, Reply().text)
        assert rig.running is not None
        await rig.running
        assert (await rig.chat(hello())).error is not None
        (record,) = await rig.records(1)
        assert record.outcome == usage_record_pb2.OUTCOME_COMPLETED


async def test_what_outlasts_the_draining_is_cut_and_settled(tmp_path: Path) -> None:
    async with FakeProvider() as fake:
        fake.default = Reply(fault=Fault.HANG, fault_after=3)
        settings = settings_in(tmp_path, provider("a", fake), drain_timeout_s=0.3)
        async with running(settings, PRICED) as rig:
            running_call = asyncio.create_task(rig.chat(hello(stream=True)))
            await fake.until(lambda: bool(fake.chats) and fake.chats[0].pieces_sent == 3)
            rig.stop.set()
            said = await running_call
            assert said.reason == "draining"
            assert rig.running is not None
            await rig.running
            (record,) = await rig.records(1)
            assert record.outcome == usage_record_pb2.OUTCOME_CANCELLED
            assert record.tokens.output_tokens == 3
            await fake.until(lambda: fake.chats[0].outcome is Outcome.ABANDONED)


async def test_metrics_tell_attempts_tokens_and_overruns(tmp_path: Path) -> None:
    port = free_port()
    settings = settings_in(tmp_path)
    async with FakeProvider() as fake:
        settings = Settings(
            data_dir=settings.data_dir,
            router=settings.router,
            providers=(provider("a", fake),),
            telemetry=TelemetrySettings(metrics_address=f"127.0.0.1:{port}"),
        )
        async with running(settings, PRICED) as rig:
            await rig.chat(hello())
            usage = {
                "prompt_tokens": 10**9,
                "completion_tokens": 2,
                "prompt_tokens_details": {"cached_tokens": 5},
                "completion_tokens_details": {"reasoning_tokens": 1},
            }
            fake.script(Reply(usage=usage), Reply(status=400))
            await rig.chat(hello())
            await rig.chat(hello())
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(b"GET /metrics HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
            page = (await reader.read()).decode()
            writer.close()
    for line in (
        'onegate_router_attempts_total{provider="a",outcome="completed"} 2.0',
        'onegate_router_attempts_total{provider="a",outcome="failed"} 1.0',
        'onegate_router_tokens_total{kind="cached"} 5.0',
        'onegate_router_tokens_total{kind="reasoning"} 1.0',
        "onegate_router_overruns_total 1.0",
        "onegate_router_in_flight 0.0",
    ):
        assert line in page, page


@pytest.mark.parametrize(
    ("odd", "why"),
    [
        (
            ProviderSettings(name="x", kind="openai", base_url="http://169.254.169.254/"),
            "link-local",
        ),
        (ProviderSettings(name="x", kind="openai", api_key_env="NO_SUCH_VARIABLE"), "is not set"),
        (ProviderSettings(name="x", kind="azure"), "must start with"),
    ],
)
async def test_a_provider_that_cannot_be_used_stops_the_start(
    tmp_path: Path, odd: ProviderSettings, why: str
) -> None:
    with pytest.raises(ConfigError, match=why) as caught:
        async with running(settings_in(tmp_path, odd)):
            pass
    assert "x" in str(caught.value)


async def test_a_credential_is_sent_to_its_provider_and_shown_nowhere(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    secret_file = tmp_path / "secret"
    secret_file.write_text("sk-canary-4711")
    secret_file.chmod(0o600)
    async with FakeProvider() as fake:
        settings = settings_in(tmp_path, provider("a", fake, api_key_file=str(secret_file)))
        async with running(settings, PRICED) as rig:
            await rig.chat(hello())
            fake.default = Reply(status=401, body=b'{"error":{"message":"bad sk-canary-4711"}}')
            said = await rig.chat(hello())
            assert fake.chats[0].headers["authorization"] == "Bearer sk-canary-4711"
            assert "canary" not in repr(said.error)
            assert all("canary" not in repr(record) for record in await rig.records(2))
    assert "canary" not in caplog.text
    for path in (tmp_path / "journal").rglob("*"):
        assert b"canary" not in path.read_bytes()


async def test_until_auth_and_prices_are_heard_the_router_is_not_ready(tmp_path: Path) -> None:
    settings = settings_in(tmp_path)
    stop, ready = asyncio.Event(), asyncio.Event()
    task = asyncio.create_task(server.run(settings, stop=stop, ready=ready.set))
    pool = RelayPool([settings.router.listen], settings.rpc, SystemClock())
    await pool.start()
    await until(lambda: pool.ready)
    call = pool.call(
        server.CHAT_METHOD,
        native(hello("demo/echo")).SerializeToString(),
        metadata={"authorization": "Bearer x"},
        timeout_s=5,
    )
    with pytest.raises(GatewayError) as caught:
        await call.receive()
    assert caught.value.reason == error_pb2.ERROR_REASON_STORE_UNAVAILABLE
    assert caught.value.retry_after_ms > 0
    assert not ready.is_set()
    await pool.close()
    stop.set()
    async with asyncio.timeout(10):
        await task
    assert not ready.is_set()


async def test_a_full_journal_refuses_calls_until_usage_takes_its_records(tmp_path: Path) -> None:
    async with FakeProvider() as fake:
        settings = settings_in(tmp_path, provider("a", fake), journal_bytes_max=64 * 1024)
        async with running(settings, PRICED) as rig:
            rig.usage.away = True
            answered = 0
            while (said := await rig.chat(hello())).error is None:
                answered += 1
            assert said.reason == "journal_full"
            assert (answered, answered) > (20, len(fake.chats) - 1)
            assert rig.usage.records == {}
            rig.usage.away = False
            assert len(await rig.records(answered)) == answered
            await until(lambda: not journal_grows(tmp_path))
            assert (await rig.chat(hello())).error is None


def journal_grows(directory: Path) -> bool:
    """Whether finals lie in the journal that are not acknowledged, by its size."""
    files = [path for path in (directory / "journal").rglob("*") if path.is_file()]
    return sum(path.stat().st_size for path in files) > 48 * 1024


CHILD = """
import asyncio, sys
from pathlib import Path
from runtime.config import ProviderSettings
from services.router import server
from tests.services.router.rig import settings_in

async def main() -> None:
    settings = settings_in(
        Path(sys.argv[1]), ProviderSettings(name="a", kind="openai", base_url=sys.argv[2])
    )
    await server.run(settings, stop=asyncio.Event(), ready=lambda: print("ready", flush=True))

asyncio.run(main())
"""


async def test_a_router_that_is_killed_bills_what_ran_when_it_comes_back(tmp_path: Path) -> None:
    async with FakeProvider() as fake:
        settings = settings_in(tmp_path, provider("a", fake))
        async with running(settings, PRICED) as rig:
            await rig.chat(hello())
            rig.stop.set()
            assert rig.running is not None
            await rig.running
            child = await asyncio.create_subprocess_exec(
                sys.executable, "-c", CHILD, str(tmp_path), fake.base_url,
                stdout=subprocess.PIPE, cwd=Path(__file__).parents[3],
            )  # fmt: skip
            assert child.stdout is not None
            async with asyncio.timeout(30):
                assert await child.stdout.readline() == b"ready\n"
            fake.default = Reply(fault=Fault.HANG, fault_after=3)
            await until(lambda: rig.pool.ready)
            running_call = asyncio.create_task(rig.chat(hello(stream=True)))
            await fake.until(lambda: len(fake.chats) == 2 and fake.chats[1].pieces_sent == 3)
            os.kill(child.pid, signal.SIGKILL)
            await child.wait()
            assert (await running_call).reason == "router_unavailable"
            await fake.until(lambda: fake.chats[1].outcome is Outcome.ABANDONED)
            rig.stop.clear()
            rig.running = asyncio.create_task(
                server.run(settings, stop=rig.stop, ready=lambda: None)
            )
            _, record = await rig.records(2)
            assert record.outcome == usage_record_pb2.OUTCOME_INTERRUPTED
            assert record.certainty == usage_record_pb2.CERTAINTY_UNCERTAIN
            assert record.tokens.input_tokens == -(-len(json.dumps(hello(stream=True))) // 4)
            assert record.cost_nano_usd > 0


def test_a_router_without_a_valkey_does_not_load_its_library() -> None:
    asked = "import sys, services.router.server; print('valkey' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", asked], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
