"""What a call is, whichever transport carries it: every test runs over the plain RPC and the
relay, over a unix socket and TCP.
"""

import asyncio
import json
import logging
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from onegate.common.v1 import error_pb2
from runtime.config import RpcSettings
from runtime.errors import GatewayError, Reason
from runtime.rpc import RpcServer
from tests.runtime.calls_transports import (
    SERVICE,
    Seen,
    Transport,
    collect,
    connected,
    handlers,
    keep_the_loop,
    loop_of_the_module,
    refusal,
    until,
    whole_error,
)

pytestmark = pytest.mark.anyio

# gRPC hands late events to the loop that asked for them: one loop outlives the tests of a module.
anyio_backend = pytest.fixture(scope="module")(loop_of_the_module)
one_loop = pytest.fixture(scope="module", autouse=True)(keep_the_loop)

ROOT = Path(__file__).resolve().parent.parent.parent
STALL_BYTES_MAX = 64 * 1024
"""What a sender may send to a reader that does not read, beside one payload."""


@dataclass
class Rig:
    """A server and a way to call it."""

    kind: str
    target: str
    settings: RpcSettings
    server: RpcServer
    seen: Seen
    transport: Transport


@pytest.fixture
def settings() -> RpcSettings:
    return RpcSettings(message_bytes_max=16 * 1024 * 1024)


@pytest.fixture(params=["plain-unix", "plain-tcp", "relay-unix", "relay-tcp"])
async def rig(
    request: pytest.FixtureRequest, settings: RpcSettings, tmp_path: Path
) -> AsyncIterator[Rig]:
    kind, network = request.param.split("-")
    seen = Seen()
    async with AsyncExitStack() as stack:
        server = RpcServer(settings, "test")
        server.add_calls(handlers(seen))
        target = f"unix:{tmp_path / 'calls.sock'}"
        if network == "tcp":
            target = f"127.0.0.1:{await server.start('127.0.0.1:0')}"
        else:
            assert await server.start(target) == 0
        stack.push_async_callback(server.stop, 0)
        transport = await stack.enter_async_context(connected(kind, target, settings))
        yield Rig(kind, target, settings, server, seen, transport)


@pytest.mark.parametrize("size", [0, 1, 700, 64 * 1024, 8 * 1024 * 1024])
async def test_a_payload_comes_back_as_it_was_sent(rig: Rig, size: int) -> None:
    payload = bytes(range(256)) * (size // 256) + b"q" * (size % 256)
    assert await collect(rig.transport.call("Echo", payload)) == [payload]


@pytest.mark.parametrize(
    "sizes",
    [
        [],
        [0],
        [0, 0, 0],
        [5, 0],
        [0, 5],
        [5, 0, 5, 0],
        [700] * 64,
        [40_000] * 20,
        [1_500_000, 3, 1_500_000],
        [128 * 1024, 128 * 1024 + 1, 256 * 1024, 0],
    ],
)
async def test_payloads_keep_their_order_and_their_number(rig: Rig, sizes: list[int]) -> None:
    payloads = await collect(rig.transport.call("Script", json.dumps(sizes).encode()))
    assert [len(payload) for payload in payloads] == sizes
    assert all(payload == bytes([at]) * len(payload) for at, payload in enumerate(payloads))


async def test_the_end_is_repeated_for_whoever_asks_again(rig: Rig) -> None:
    call = rig.transport.call("Echo", b"x")
    assert await collect(call) == [b"x"]
    assert await call.receive() is None


async def test_a_handler_sees_method_metadata_and_remaining_time(rig: Rig) -> None:
    call = rig.transport.call("Describe", metadata={"authorization": "Bearer k"}, timeout_s=7.5)
    facts = json.loads((await collect(call))[0])
    assert facts["method"] == f"{SERVICE}Describe"
    assert facts["metadata"]["authorization"] == "Bearer k"
    assert 6 < facts["timeout_s"] < 8


@pytest.mark.parametrize("before", [b"", b"first", b"large" * 200_000])
async def test_an_error_survives_with_all_its_fields(rig: Rig, before: bytes) -> None:
    call = rig.transport.call("Fail", before)
    if before:
        assert await call.receive() == before
    error = await refusal(call)
    assert error.to_proto() == whole_error().to_proto()


@pytest.mark.parametrize("reason", [r for r in Reason.values() if r])
async def test_every_reason_survives(rig: Rig, reason: int) -> None:
    rig.seen.refuse = GatewayError(reason, "no")
    assert (await refusal(rig.transport.call("Refuse"))).reason == reason


async def test_a_defect_is_logged_and_not_told(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.ERROR):
        error = await refusal(rig.transport.call("Defect", b"xyzzy"))
    assert error.reason == error_pb2.ERROR_REASON_INTERNAL
    assert "xyzzy" not in error.message
    assert "xyzzy" in caplog.text


async def test_an_unknown_method_is_refused(rig: Rig) -> None:
    error = await refusal(rig.transport.call("Nonsense"))
    assert error.reason == error_pb2.ERROR_REASON_NOT_FOUND


async def test_a_cancel_reaches_the_handler_within_100_ms(rig: Rig) -> None:
    call = rig.transport.call("Hold")
    assert await call.receive() == b"held"
    cancelled_at = time.monotonic()
    call.cancel()
    await until(lambda: rig.seen.cancelled_at, "the handler is cancelled")
    assert rig.seen.cancelled_at[0] - cancelled_at < 0.1
    await until(lambda: rig.seen.cleaned_up == 1, "the handler has cleaned up")
    assert (await refusal(call)).reason == error_pb2.ERROR_REASON_CANCELLED


async def test_a_cancel_reaches_a_handler_that_waits_for_the_reader(rig: Rig) -> None:
    call = rig.transport.call("Flood", b"a")
    assert await call.receive()
    await stalled(rig.seen, "a")
    call.cancel()
    await until(lambda: rig.seen.cleaned_up == 1, "the handler has cleaned up")


async def test_a_cancel_before_the_first_payload_reaches_the_handler_or_stops_it(rig: Rig) -> None:
    calls = [rig.transport.call("Hold") for _ in range(50)]
    for call in calls:
        call.cancel()
    assert await collect(rig.transport.call("Echo", b"x")) == [b"x"]
    await until(lambda: rig.seen.running == 0, "every handler has cleaned up")


async def test_cancelling_a_call_that_is_over_does_nothing(rig: Rig) -> None:
    call = rig.transport.call("Echo", b"x")
    assert await collect(call) == [b"x"]
    call.cancel()
    assert await collect(rig.transport.call("Echo", b"y")) == [b"y"]


async def test_a_deadline_ends_the_call_and_its_handler(rig: Rig) -> None:
    began = time.monotonic()
    error = await refusal(rig.transport.call("Hold", timeout_s=0.2))
    assert error.reason == error_pb2.ERROR_REASON_DEADLINE_EXCEEDED
    assert 0.15 < time.monotonic() - began < 10
    await until(lambda: rig.seen.cleaned_up == 1, "the handler has cleaned up")


async def test_each_call_has_its_own_deadline(rig: Rig) -> None:
    long, short = rig.transport.call("Hold"), rig.transport.call("Hold", timeout_s=0.1)
    shorter = rig.transport.call("Hold", timeout_s=0.05)
    for call in (short, shorter):
        assert (await refusal(call)).reason == error_pb2.ERROR_REASON_DEADLINE_EXCEEDED
    rig.seen.release.set()
    assert await collect(long) == [b"held", b"released"]


async def stalled(seen: Seen, name: str) -> int:
    """How much a sender got rid of when it came to a halt."""
    sent, still_since = -1, time.monotonic()
    while time.monotonic() - still_since < 0.2:
        if seen.sent_bytes.get(name, 0) != sent:
            sent, still_since = seen.sent_bytes.get(name, 0), time.monotonic()
        await asyncio.sleep(0.01)
    return sent


async def test_a_stalled_reader_stops_its_own_sender_and_no_other(rig: Rig) -> None:
    call = rig.transport.call("Flood", b"slow", timeout_s=60)
    assert await call.receive()
    sent = await stalled(rig.seen, "slow")
    assert 0 < sent <= STALL_BYTES_MAX + 1000 + 1000
    other = rig.transport.call("Script", json.dumps([10_000] * 100).encode())
    assert len(await collect(other)) == 100
    assert rig.seen.sent_bytes["slow"] <= STALL_BYTES_MAX + 1000 + 1000
    for _ in range(sent // 1000 + 100):
        assert await call.receive()
    call.cancel()


async def test_a_thousand_calls_at_once_are_all_answered(rig: Rig) -> None:
    calls = [rig.transport.call("Echo", b"%d" % number * 100) for number in range(1000)]
    answers = await asyncio.gather(*(collect(call) for call in calls))
    assert answers == [[b"%d" % number * 100] for number in range(1000)]


async def test_large_payloads_at_once_come_back_whole_and_so_does_a_small_one(rig: Rig) -> None:
    large = [bytes([number]) * (2 << 20) for number in range(12)]
    calls = [rig.transport.call("Echo", payload) for payload in large]
    small = asyncio.create_task(collect(rig.transport.call("Echo", b"small")))
    answers = [asyncio.create_task(collect(call)) for call in calls]
    assert await small == [b"small"]
    assert await asyncio.gather(*answers) == [[payload] for payload in large]


async def test_cancelled_large_payloads_harm_no_other(rig: Rig) -> None:
    calls = [rig.transport.call("Echo", bytes(2 << 20)) for _ in range(12)]
    await asyncio.sleep(0.005)
    for call in calls[1:]:
        call.cancel()
    assert await collect(calls[0]) == [bytes(2 << 20)]
    assert await collect(rig.transport.call("Echo", b"x" * (1 << 20))) == [b"x" * (1 << 20)]
    await until(lambda: rig.seen.running == 0, "every handler has ended")


async def test_a_request_over_the_limit_is_refused_and_harms_no_other(rig: Rig) -> None:
    held = rig.transport.call("Hold")
    assert await held.receive() == b"held"
    error = await refusal(
        lambda: rig.transport.call("Echo", bytes(rig.settings.message_bytes_max + 1))
    )
    assert error.reason == error_pb2.ERROR_REASON_REQUEST_TOO_LARGE
    rig.seen.release.set()
    assert await collect(held) == [b"released"]


async def test_an_answer_over_the_limit_is_refused_and_harms_no_other(rig: Rig) -> None:
    held = rig.transport.call("Hold")
    assert await held.receive() == b"held"
    sizes = [10, rig.settings.message_bytes_max + 1]
    error = await refusal(rig.transport.call("Script", json.dumps(sizes).encode()))
    assert error.reason == error_pb2.ERROR_REASON_REQUEST_TOO_LARGE
    rig.seen.release.set()
    assert await collect(held) == [b"released"]


class TestWithTightLimits:
    """Limits that an operator may set."""

    @pytest.fixture
    def settings(self) -> RpcSettings:
        return RpcSettings(calls_max=3, call_timeout_max_s=0.3)

    async def test_calls_beyond_the_limit_are_refused_until_one_ends(self, rig: Rig) -> None:
        held = [rig.transport.call("Hold") for _ in range(3)]
        for call in held:
            assert await call.receive() == b"held"
        error = await refusal(lambda: rig.transport.call("Echo", b"x"))
        assert error.reason == error_pb2.ERROR_REASON_OVERLOADED
        held[0].cancel()
        await until(lambda: rig.seen.running == 2, "a handler has cleaned up")
        await asyncio.sleep(0.01)
        assert await collect(rig.transport.call("Echo", b"x")) == [b"x"]

    async def test_a_cancelled_call_counts_until_its_handler_has_cleaned_up(self, rig: Rig) -> None:
        rig.seen.cleaning_s = 0.2
        held = [rig.transport.call("Hold") for _ in range(3)]
        for call in held:
            assert await call.receive() == b"held"
        held[0].cancel()
        await until(lambda: rig.seen.cancelled_at, "the handler is cancelled")
        error = await refusal(lambda: rig.transport.call("Echo", b"x"))
        assert error.reason == error_pb2.ERROR_REASON_OVERLOADED
        assert rig.seen.cleaned_up == 0

    async def test_a_call_ends_at_the_longest_time_however_much_it_asks_for(self, rig: Rig) -> None:
        began = time.monotonic()
        error = await refusal(rig.transport.call("Hold", timeout_s=3600))
        assert error.reason == error_pb2.ERROR_REASON_DEADLINE_EXCEEDED
        assert 0.2 < time.monotonic() - began < 20


async def test_stopping_lets_calls_under_way_finish(rig: Rig) -> None:
    call = rig.transport.call("Hold")
    assert await call.receive() == b"held"
    stopping = asyncio.create_task(rig.server.stop(10))
    await asyncio.sleep(0.1)
    assert not stopping.done()
    rig.seen.release.set()
    assert await collect(call) == [b"released"]
    async with asyncio.timeout(2):
        await stopping


async def test_stopping_cuts_what_is_left_after_the_grace_period(rig: Rig) -> None:
    call = rig.transport.call("Hold")
    assert await call.receive() == b"held"
    began = time.monotonic()
    await rig.server.stop(0.2)
    assert 0.15 < time.monotonic() - began < 20
    assert (await refusal(call)).reason == error_pb2.ERROR_REASON_DRAINING
    assert rig.seen.cleaned_up == 1
    assert rig.seen.running == 0


async def test_a_stopped_server_takes_no_calls(rig: Rig) -> None:
    await rig.server.stop(1)
    error = await refusal(lambda: rig.transport.call("Echo", b"x"))
    assert error.reason == error_pb2.ERROR_REASON_ROUTER_UNAVAILABLE


@contextmanager
def server_process(address: str) -> Iterator["subprocess.Popen[bytes]"]:
    """A server that can be killed."""
    command = [sys.executable, "-m", "tests.runtime.calls_server", address]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline().startswith(b"ready")
        try:
            yield process
        finally:
            process.kill()


@pytest.mark.parametrize("kind", ["plain", "relay"])
async def test_a_killed_server_never_looks_like_a_good_end(kind: str, tmp_path: Path) -> None:
    target = f"unix:{tmp_path / 'calls.sock'}"
    with server_process(target) as process:
        async with connected(kind, target, RpcSettings()) as transport:
            silent, flowing = transport.call("Hold"), transport.call("Flood", b"a")
            assert await silent.receive() == b"held"
            assert await flowing.receive()
            process.send_signal(signal.SIGKILL)
            for call in (silent, flowing):
                error = await refusal(call)
                assert error.reason == error_pb2.ERROR_REASON_ROUTER_UNAVAILABLE


@pytest.mark.parametrize("kind", ["plain", "relay"])
async def test_a_deadline_holds_while_the_server_is_frozen(kind: str, tmp_path: Path) -> None:
    target = f"unix:{tmp_path / 'calls.sock'}"
    with server_process(target) as process:
        async with connected(kind, target, RpcSettings()) as transport:
            assert await collect(transport.call("Echo", b"x")) == [b"x"]
            process.send_signal(signal.SIGSTOP)
            error = await refusal(transport.call("Echo", b"x", timeout_s=0.2))
            assert error.reason == error_pb2.ERROR_REASON_DEADLINE_EXCEEDED
            process.send_signal(signal.SIGCONT)
            assert await collect(transport.call("Echo", b"y")) == [b"y"]
