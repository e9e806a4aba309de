"""Time and randomness, and the ids that are made of both."""

import os
import time
import uuid
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.clock import Clock, Entropy, PooledEntropy, SystemClock, SystemEntropy, uuid7

CLOCK: Clock = SystemClock()
ENTROPY: Entropy = SystemEntropy()


class FixedEntropy:
    """Random bytes that a test chose."""

    def __init__(self, content: bytes) -> None:
        self._content = content

    def bytes(self, count: int) -> bytes:
        assert count == len(self._content)
        return self._content


def test_the_wall_clock_is_in_utc() -> None:
    now = CLOCK.now()
    assert now.tzinfo is UTC
    assert abs(now - datetime.now(UTC)) < timedelta(minutes=1)


def test_the_monotonic_clock_never_goes_back() -> None:
    readings = [CLOCK.monotonic() for _ in range(1000)]
    assert readings == sorted(readings)


@pytest.mark.anyio
async def test_sleeping_takes_at_least_its_time() -> None:
    start = time.monotonic()
    await CLOCK.sleep(0.05)
    assert time.monotonic() - start >= 0.045


@pytest.mark.parametrize("entropy", [ENTROPY, PooledEntropy()])
@pytest.mark.parametrize("count", [0, 1, 16, 1000, 4095, 4096, 4097, 10_000])
def test_random_bytes_come_in_the_number_asked_for(entropy: Entropy, count: int) -> None:
    assert len(entropy.bytes(count)) == count


@pytest.mark.parametrize("entropy", [ENTROPY, PooledEntropy()])
def test_random_bytes_do_not_repeat(entropy: Entropy) -> None:
    assert len({entropy.bytes(16) for _ in range(1000)}) == 1000


def test_a_child_does_not_repeat_what_its_parent_draws() -> None:
    entropy = PooledEntropy()
    entropy.bytes(16)
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(writing, entropy.bytes(16))
        os._exit(0)
    os.waitpid(child, 0)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        assert entropy.bytes(16) != pipe.read()


def test_an_id_is_the_one_of_the_standard_s_own_example() -> None:
    # https://www.rfc-editor.org/rfc/rfc9562#name-example-of-a-uuidv7-value
    rand_a, rand_b = 0xCC3, 0x18C4DC0C0C07398F
    made = uuid7(0x017F22E279B0, FixedEntropy((rand_a << 68 | rand_b).to_bytes(10, "big")))
    assert made == "017f22e2-79b0-7cc3-98c4-dc0c0c07398f"


@given(st.integers(0, 2**48 - 1), st.binary(min_size=10, max_size=10))
def test_every_id_is_a_uuid_of_version_7_that_tells_its_time(unix_ms: int, random: bytes) -> None:
    made = uuid.UUID(uuid7(unix_ms, FixedEntropy(random)))
    assert made.version == 7
    assert made.variant == uuid.RFC_4122
    assert made.int >> 80 == unix_ms


@given(st.binary(min_size=10, max_size=10), st.binary(min_size=10, max_size=10))
def test_ids_differ_when_74_bits_do(first: bytes, second: bytes) -> None:
    def used(random: bytes) -> int:
        number = int.from_bytes(random, "big")
        return (number >> 68 & 0xFFF) << 62 | number & (1 << 62) - 1

    ids = {uuid7(1, FixedEntropy(random)) for random in (first, second)}
    assert len(ids) == len({used(first), used(second)})


def test_ids_sort_by_their_time() -> None:
    made = [uuid7(unix_ms, ENTROPY) for unix_ms in range(1_000_000, 1_001_000)]
    assert made == sorted(made)
