"""Deadlines that move: who is cancelled, when, and who is told."""

import asyncio

import pytest

from runtime.clock import SystemClock
from services.router.upstream import watchdog as module
from services.router.upstream.watchdog import Watchdog

pytestmark = pytest.mark.anyio


def runs(dog: Watchdog) -> bool:
    return dog._timer is not None


async def test_a_late_task_is_cancelled_and_can_tell_why() -> None:
    clock, dog = SystemClock(), Watchdog(SystemClock())
    started_s = clock.monotonic()
    with dog.watch(started_s + 0.1) as watch:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            assert watch.caught()
    assert 0.1 <= clock.monotonic() - started_s < 5
    await asyncio.sleep(0)  # the cancellation is taken back: this would raise


async def test_a_deadline_that_moves_is_not_missed_and_does_not_fire() -> None:
    clock, dog = SystemClock(), Watchdog(SystemClock())
    with dog.watch(clock.monotonic() + 0.1) as watch:
        for _ in range(10):
            watch.deadline_s = clock.monotonic() + 0.1
            await asyncio.sleep(0.03)
    assert not watch.expired


async def test_a_cancellation_from_elsewhere_is_not_the_watchs() -> None:
    dog = Watchdog(SystemClock())

    async def work() -> bool:
        with dog.watch(SystemClock().monotonic() + 60) as watch:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                return watch.caught()
        return True

    task = asyncio.create_task(work())
    await asyncio.sleep(0)
    task.cancel()
    assert await task is False


async def test_when_both_cancel_the_caller_wins() -> None:
    dog = Watchdog(SystemClock())

    async def work() -> bool:
        with dog.watch(0.0) as watch:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                return watch.caught()
        return True

    task = asyncio.create_task(work())
    await asyncio.sleep(0)
    for watch in dog._watches:
        watch.expire()
        watch.expire()
    task.cancel()
    assert await task is False


async def test_the_timer_rests_when_nothing_is_watched() -> None:
    dog = Watchdog(SystemClock())
    for _ in range(2):
        with dog.watch(SystemClock().monotonic() + 60):
            assert runs(dog)
        for _ in range(100):
            await asyncio.sleep(module.SWEEP_S if runs(dog) else 0)
        assert not runs(dog)


def test_only_a_task_can_be_watched() -> None:
    loop = asyncio.new_event_loop()
    failures: list[BaseException] = []

    def call() -> None:
        try:
            Watchdog(SystemClock()).watch(0.0)
        except RuntimeError as error:
            failures.append(error)
        loop.stop()

    loop.call_soon(call)
    loop.run_forever()
    loop.close()
    assert "only a task" in str(failures[0])
