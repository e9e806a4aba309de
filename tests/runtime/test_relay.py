"""What the relay adds to a call: payloads both ways, targets that come and go, what moves and what
waits.
"""

import asyncio
import json
import time
from pathlib import Path

import pytest

from onegate.common.v1 import error_pb2
from onegate.common.v1.relay_service_pb2 import RelayRequest
from runtime import relay
from runtime.calls import Handler, ServerCall
from runtime.clock import SystemClock
from runtime.config import RpcSettings
from runtime.errors import GatewayError
from runtime.relay import RelayPool
from runtime.relay_frames import (
    ANSWER_WINDOW_BYTES,
    WINDOW_BYTES,
)
from runtime.relay_stream import DeadlineWatch, Leg
from runtime.relay_writer import FrameWriter
from runtime.rpc import RpcServer
from tests.runtime.calls_raw import hear_nothing, raw_server, relay_pool_of
from tests.runtime.calls_transports import (
    SERVICE,
    Seen,
    collect,
    handlers,
    keep_the_loop,
    loop_of_the_module,
    opened,
    refusal,
    relay_pool,
    serving,
    until,
)

pytestmark = pytest.mark.anyio

# gRPC hands late events to the loop that asked for them: one loop outlives the tests of a module.
anyio_backend = pytest.fixture(scope="module")(loop_of_the_module)
one_loop = pytest.fixture(scope="module", autouse=True)(keep_the_loop)

SETTINGS = RpcSettings()


@pytest.fixture
def target(tmp_path: Path) -> str:
    return f"unix:{tmp_path / 'one.sock'}"


@pytest.fixture
def other_target(tmp_path: Path) -> str:
    return f"unix:{tmp_path / 'two.sock'}"


async def test_payloads_go_both_ways_on_one_call(target: str) -> None:
    async with serving(target, SETTINGS, handlers(Seen())), relay_pool(SETTINGS, target) as pool:
        call = opened(pool, "Dialogue", b"one")
        assert await call.receive() == b"one"
        for word in (b"two", b"three" * 10_000, b"four"):
            await call.send(word)
            assert await call.receive() == word
        await call.send(b"")
        assert await call.receive() is None


async def test_what_a_taker_takes_counts_as_read(target: str) -> None:
    async with serving(target, SETTINGS, handlers(Seen())), relay_pool(SETTINGS, target) as pool:
        call = opened(pool, "Dialogue", b"one")
        assert await call.receive() == b"one"
        taken: list[bytes] = []

        def take(payload: bytes) -> bool:
            if payload == b"stop":
                return False
            taken.append(payload)
            return True

        words = [b"%d" % at * 1000 for at in range(4 * ANSWER_WINDOW_BYTES // 1000)]
        reading = asyncio.create_task(call.receive(take))
        await asyncio.sleep(0)
        for word in words:
            await call.send(word)
        await call.send(b"stop")
        assert await reading == b"stop"
        assert taken == words
        await call.send(b"")
        assert await call.receive(take) is None


async def test_a_handler_that_does_not_read_stops_its_caller(target: str) -> None:
    seen = Seen()
    async with serving(target, SETTINGS, handlers(seen)), relay_pool(SETTINGS, target) as pool:
        call = opened(pool, "Deaf")
        sent = 0

        async def speak() -> None:
            nonlocal sent
            for _ in range(1000):
                await call.send(b"x" * 1000)
                sent += 1000
            await call.send(b"")

        speaking = asyncio.create_task(speak())
        await until(lambda: call.credit_bytes <= 0, "the credit is used up")
        await asyncio.sleep(0.05)
        assert WINDOW_BYTES - 2000 < sent <= WINDOW_BYTES
        assert await collect(opened(pool, "Echo", b"x")) == [b"x"]
        seen.release.set()
        assert await call.receive() == b"1000000"
        await speaking


async def test_a_cancelled_call_stops_its_own_blocked_send(target: str) -> None:
    async with serving(target, SETTINGS, handlers(Seen())), relay_pool(SETTINGS, target) as pool:
        call = opened(pool, "Deaf")
        await call.send(b"x" * WINDOW_BYTES)
        sending = asyncio.create_task(call.send(b"y"))
        await asyncio.sleep(0.01)
        call.cancel()
        with pytest.raises(GatewayError, match="cancelled"):
            await sending
        with pytest.raises(GatewayError, match="cancelled"):
            await call.send(b"z")


async def test_a_second_reader_of_one_call_is_a_defect(target: str) -> None:
    async with serving(target, SETTINGS, handlers(Seen())), relay_pool(SETTINGS, target) as pool:
        call = opened(pool, "Hold")
        assert await call.receive() == b"held"
        reading = asyncio.create_task(call.receive())
        await asyncio.sleep(0)
        with pytest.raises(RuntimeError, match="two tasks"):
            await call.receive()
        call.cancel()
        with pytest.raises(GatewayError):
            await reading


async def test_a_reader_that_is_cancelled_can_read_again(target: str) -> None:
    seen = Seen()
    async with serving(target, SETTINGS, handlers(seen)), relay_pool(SETTINGS, target) as pool:
        call = opened(pool, "Hold")
        assert await call.receive() == b"held"
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await call.receive()
        seen.release.set()
        assert await collect(call) == [b"released"]


async def test_metadata_that_is_no_text_is_a_defect_and_leaves_nothing_behind(target: str) -> None:
    seen = Seen()
    async with serving(target, SETTINGS, handlers(seen)), relay_pool(SETTINGS, target) as pool:
        with pytest.raises(ValueError, match="surrogates"):
            pool.call(f"{SERVICE}Hold", b"", metadata={"x": "\ud800"}, timeout_s=60)
        assert pool.calls == 0
        assert await collect(opened(pool, "Echo", b"x")) == [b"x"]
        await until(lambda: seen.running == 0, "no handler is left")


async def test_call_numbers_begin_again_and_skip_those_in_use(target: str) -> None:
    seen = Seen()
    async with serving(target, SETTINGS, handlers(seen)), relay_pool(SETTINGS, target) as pool:
        held = opened(pool, "Hold")
        assert (await held.receive(), held.number) == (b"held", 1)
        pool._ready[0]._number = 2**32 - 2
        numbers = []
        for _ in range(3):
            call = opened(pool, "Echo", b"x")
            numbers.append(call.number)
            assert await collect(call) == [b"x"]
        assert numbers == [2**32 - 1, 2, 3]
        held.cancel()


async def test_without_a_target_a_call_is_refused_at_once(target: str) -> None:
    pool = RelayPool((target,), SETTINGS, SystemClock())
    await pool.start()
    assert not pool.ready
    began = time.monotonic()
    error = await refusal(lambda: opened(pool, "Echo"))
    assert error.reason == error_pb2.ERROR_REASON_ROUTER_UNAVAILABLE
    assert "nothing was sent" in error.message
    await pool.close()
    assert time.monotonic() - began < 5


async def test_a_target_that_stays_away_is_named_in_the_log_once(
    target: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(relay, "COMPLAIN_AFTER_S", 0.1)
    async with relay_pool_of(target):
        await until(lambda: target in caplog.text, "the log names the target")
        await asyncio.sleep(0.5)
    assert caplog.text.count("there is no relay to") == 1


async def test_a_restarted_target_is_found_again(target: str) -> None:
    pool = RelayPool((target,), SETTINGS, SystemClock())
    await pool.start()
    for _ in range(2):
        async with serving(target, SETTINGS, handlers(Seen())):
            await until(lambda: pool.ready, "the relay is up")
            assert await collect(opened(pool, "Echo", b"x")) == [b"x"]
        await until(lambda: not pool.ready, "the relay is down")
    await pool.close()


async def test_closing_the_pool_ends_its_calls_and_their_handlers(target: str) -> None:
    seen = Seen()
    async with serving(target, SETTINGS, handlers(seen)):
        async with relay_pool(SETTINGS, target) as pool:
            call = opened(pool, "Hold")
            assert await call.receive() == b"held"
        assert (await refusal(call)).reason == error_pb2.ERROR_REASON_CANCELLED
        await until(lambda: seen.cleaned_up == 1, "the handler has cleaned up")


async def test_two_targets_share_calls_evenly(target: str, other_target: str) -> None:
    one, two = Seen(), Seen()
    async with (
        serving(target, SETTINGS, handlers(one)),
        serving(other_target, SETTINGS, handlers(two)),
        relay_pool(SETTINGS, target, other_target) as pool,
    ):
        await until(lambda: len(pool._ready) == 2, "both relays are up")
        calls = [opened(pool, "Hold") for _ in range(100)]
        for call in calls:
            assert await call.receive() == b"held"
        assert (one.running, two.running) == (50, 50)
        one.release.set()
        await until(lambda: pool.calls == 50, "one target is idle")
        more = [opened(pool, "Echo", b"x") for _ in range(40)]
        assert two.running == 50
        for call in more:
            assert await collect(call) == [b"x"]
        assert one.started == 90
        two.release.set()


async def test_calls_one_after_another_take_turns(target: str, other_target: str) -> None:
    one, two = Seen(), Seen()
    async with (
        serving(target, SETTINGS, handlers(one)),
        serving(other_target, SETTINGS, handlers(two)),
        relay_pool(SETTINGS, target, other_target) as pool,
    ):
        await until(lambda: len(pool._ready) == 2, "both relays are up")
        for _ in range(20):
            assert await collect(opened(pool, "Echo", b"x")) == [b"x"]
        assert (one.started, two.started) == (10, 10)


async def test_a_draining_target_finishes_its_calls_and_gets_no_new_ones(
    target: str, other_target: str
) -> None:
    one, two = Seen(), Seen()
    async with (
        serving(target, SETTINGS, handlers(one)) as server,
        relay_pool(SETTINGS, target, other_target) as pool,
    ):
        call = opened(pool, "Hold")
        assert await call.receive() == b"held"
        async with serving(other_target, SETTINGS, handlers(two)):
            await until(lambda: len(pool._ready) == 2, "both relays are up")
            stopping = asyncio.create_task(server.stop(10))
            await until(lambda: len(pool._ready) == 1, "the drain is noticed")
            for _ in range(10):
                assert await collect(opened(pool, "Echo", b"x")) == [b"x"]
            assert (one.started, two.started) == (1, 10)
            one.release.set()
            assert await collect(call) == [b"released"]
            async with asyncio.timeout(2):
                await stopping


async def test_stopping_a_target_under_load_fails_no_call(target: str, other_target: str) -> None:
    seen, answered = Seen(), 0
    async with (
        serving(target, SETTINGS, handlers(seen)) as server,
        serving(other_target, SETTINGS, handlers(seen)),
        relay_pool(SETTINGS, target, other_target) as pool,
    ):
        await until(lambda: len(pool._ready) == 2, "both relays are up")
        done = asyncio.Event()

        async def load() -> None:
            nonlocal answered
            while not done.is_set():
                assert await collect(opened(pool, "Echo", b"x" * 700)) == [b"x" * 700]
                answered += 1

        loads = [asyncio.create_task(load()) for _ in range(32)]
        await until(lambda: answered > 200, "the load is on")
        async with asyncio.timeout(5):
            await server.stop(10)
        so_far = answered
        await until(lambda: answered > so_far + 200, "the load goes on")
        done.set()
        await asyncio.gather(*loads)


async def test_a_call_that_was_not_sent_moves_to_another_target_and_a_sent_one_fails(
    target: str, other_target: str
) -> None:
    async with relay_pool_of(target, other_target) as pool:
        async with raw_server(target, hear_nothing):
            await until(lambda: pool.ready, "the deaf target is up")
            sent = opened(pool, "Echo", b"sent")
            await asyncio.sleep(0.05)
            large = b"0123456789abcdef" * (1 << 20)
            unsent_large = opened(pool, "Echo", large)
            await asyncio.sleep(0.15)
            unsent = [opened(pool, "Echo", b"%d" % number) for number in range(100)]
            dialogue = opened(pool, "Dialogue", b"one")
            await dialogue.send(b"two")
            gone = opened(pool, "Echo", b"gone")
            gone.cancel()
            server = await opened_later(other_target)
            await until(lambda: len(pool._ready) == 2, "the other target is up")
        error = await refusal(sent)
        assert error.reason == error_pb2.ERROR_REASON_ROUTER_UNAVAILABLE
        assert "how far it got is unknown" in error.message
        assert await collect(unsent_large) == [large]
        for number, call in enumerate(unsent):
            assert await collect(call) == [b"%d" % number]
        assert await dialogue.receive() == b"one"
        assert await dialogue.receive() == b"two"
        await dialogue.send(b"")
        assert await dialogue.receive() is None
        await server.stop(1)


async def opened_later(target: str) -> RpcServer:
    server = RpcServer(SETTINGS, "later")
    server.add_calls(handlers(Seen()))
    await server.start(target)
    return server


async def test_an_unsent_call_fails_clearly_when_no_target_is_left(target: str) -> None:
    async with relay_pool_of(target) as pool:
        async with raw_server(target, hear_nothing):
            await until(lambda: pool.ready, "the deaf target is up")
            opened(pool, "Echo", bytes(16 << 20))
            await asyncio.sleep(0.15)
            unsent = opened(pool, "Echo", b"x")
        error = await refusal(unsent)
        assert error.reason == error_pb2.ERROR_REASON_ROUTER_UNAVAILABLE
        assert "nothing was sent" in error.message


async def test_so_much_may_wait_to_be_sent_and_no_more(target: str) -> None:
    settings = RpcSettings(message_bytes_max=8 << 20)
    async with raw_server(target, hear_nothing), relay_pool(settings, target) as pool:
        large = bytes(4 << 20)
        with pytest.raises(GatewayError) as refused:
            [opened(pool, "Echo", large) for _ in range(32)]
        assert refused.value.reason == error_pb2.ERROR_REASON_OVERLOADED
        waiting = pool._ready[0].writer.queued_bytes
        assert 32 << 20 < waiting <= 36 << 20


async def test_a_thousand_stalled_readers_hold_a_bounded_amount(target: str) -> None:
    seen = Seen()
    async with serving(target, SETTINGS, handlers(seen)), relay_pool(SETTINGS, target) as pool:
        calls = [opened(pool, "Flood", b"%d" % number, 60) for number in range(1000)]
        await until(
            lambda: all(seen.sent_bytes.get(str(n), 0) > 30_000 for n in range(1000)),
            "every sender has used its window up",
            30,
        )
        await asyncio.sleep(0.1)
        assert await collect(opened(pool, "Script", json.dumps([1000] * 64).encode()))
        waiting = [sum(map(len, call.inbox)) for call in calls]
        assert max(waiting) <= ANSWER_WINDOW_BYTES + 1000
        assert max(seen.sent_bytes.values()) <= ANSWER_WINDOW_BYTES + 1000


async def test_a_handler_that_ignores_its_cancel_cannot_speak_any_more(target: str) -> None:
    outcome: list[GatewayError] = []

    async def stubborn(call: ServerCall) -> None:
        await call.send(b"here")
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            try:
                await call.send(b"still here")
            except GatewayError as error:
                outcome.append(error)

    served: dict[str, Handler] = {f"{SERVICE}Stubborn": stubborn}
    async with serving(target, SETTINGS, served), relay_pool(SETTINGS, target) as pool:
        call = opened(pool, "Stubborn")
        assert await call.receive() == b"here"
        call.cancel()
        await until(lambda: outcome, "the handler was refused")
        assert outcome[0].reason == error_pb2.ERROR_REASON_CANCELLED


async def test_a_deadline_passes_once_however_long_the_handler_cleans_up() -> None:
    calls: dict[int, Leg] = {}
    expired: list[Leg] = []

    def expire(call: Leg) -> None:
        expired.append(call)
        call.finish(None)

    clock = SystemClock()
    writer = FrameWriter(RelayRequest, clock, SETTINGS)
    watch = DeadlineWatch(calls, clock, expire)
    calls[1] = Leg(writer, 1, 0, clock.monotonic() + 0.01)
    calls[2] = Leg(writer, 2, 0, clock.monotonic() + 60)
    for call in calls.values():
        watch.watch(call.deadline_s)
    await asyncio.sleep(0.1)
    assert expired == [calls[1]]
    assert watch._next_s == calls[2].deadline_s
    watch.stop()
