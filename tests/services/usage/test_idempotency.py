"""Claims and kept answers, on every database: one call is first, nobody else gets what is not
known, and everything ends with its window.
"""

import asyncio
from collections.abc import AsyncIterator

import pytest

from onegate.usage.v1 import idempotency_service_pb2 as pb
from runtime.errors import GatewayError, reason_name
from runtime.sql import open_database, unix_micros
from services.usage.idempotency.idempotency_store import MIGRATIONS, IdempotencyStore
from tests.services.usage.records import SteppedClock, attempt_id

pytestmark = pytest.mark.anyio

DIGEST = "a" * 64
LIFE = attempt_id(1000)
NEXT_LIFE = attempt_id(2000)
WINDOW_MS = 60_000
LEASE_MS = 20_000


class Kept:
    """A store by a clock that the test moves."""

    def __init__(self, store: IdempotencyStore, clock: SteppedClock) -> None:
        self.store = store
        self.clock = clock

    async def claim(self, number: int, body: bytes = b"body") -> pb.ClaimAnswerResponse:
        return await self.store.claim(
            pb.ClaimAnswerRequest(
                id=DIGEST,
                body=body,
                claim_id=attempt_id(number),
                request_id=f"req_{number}",
                owner="router-0",
                life=LIFE,
                lease_ms=LEASE_MS,
                window_ms=WINDOW_MS,
            )
        )

    async def state(self, number: int, body: bytes = b"body") -> str:
        found = (await self.claim(number, body)).state
        return pb.ClaimState.Name(found).removeprefix("CLAIM_STATE_")

    async def append(self, number: int, sequence: int, chunk: bytes, end: str = "") -> None:
        state = pb.ClaimState.Value(f"CLAIM_STATE_{end or 'UNSPECIFIED'}")
        await self.store.append(
            pb.AppendAnswerRequest(
                claim_id=attempt_id(number), sequence=sequence, chunk=chunk, end=state
            )
        )

    async def read(self, number: int, sequence: int = 0) -> tuple[str, list[bytes], int]:
        found = await self.store.read(
            pb.ReadAnswerRequest(claim_id=attempt_id(number), sequence=sequence)
        )
        state = pb.ClaimState.Name(found.state).removeprefix("CLAIM_STATE_")
        return state, list(found.chunks), found.count

    async def keep(self, *numbers: int, life: str = LIFE, former_settled: bool = False) -> int:
        return await self.store.keep(
            pb.KeepClaimsRequest(
                owner="router-0",
                life=life,
                claim_ids=[attempt_id(number) for number in numbers],
                lease_ms=LEASE_MS,
                former_settled=former_settled,
            )
        )


@pytest.fixture
async def kept(dsn: str) -> AsyncIterator[Kept]:
    database, clock = open_database(dsn), SteppedClock()
    await database.migrate("usage_idempotency", MIGRATIONS, now=clock.now())
    yield Kept(IdempotencyStore(database, lambda _: unix_micros(clock.now())), clock)
    await database.close()


async def test_of_many_claims_at_once_one_is_first(kept: Kept) -> None:
    claims = await asyncio.gather(*(kept.claim(number) for number in range(1, 21)))
    states = [claim.state for claim in claims]
    assert states.count(pb.CLAIM_STATE_FIRST) == 1
    assert states.count(pb.CLAIM_STATE_RUNNING) == 19
    (first,) = {claim.claim_id for claim in claims}
    assert first in [attempt_id(number) for number in range(1, 21)]
    assert len({claim.request_id for claim in claims}) == 1


async def test_a_claim_that_is_asked_for_again_is_still_the_first(kept: Kept) -> None:
    assert [await kept.state(1), await kept.state(1)] == ["FIRST", "FIRST"]


async def test_another_body_is_a_mismatch_whatever_the_claim_is_at(kept: Kept) -> None:
    await kept.claim(1)
    assert await kept.state(2, b"other") == "MISMATCH"
    await kept.append(1, 0, b"answer", "DONE")
    assert await kept.state(2, b"other") == "MISMATCH"


async def test_an_answer_is_read_while_it_comes_and_after(kept: Kept) -> None:
    await kept.claim(1)
    await kept.append(1, 0, b"one")
    assert await kept.read(1) == ("RUNNING", [b"one"], 1)
    await kept.append(1, 1, b"two", "DONE")
    assert await kept.read(1, 1) == ("DONE", [b"two"], 2)
    assert await kept.state(2) == "DONE"


async def test_a_piece_that_comes_twice_is_kept_once(kept: Kept) -> None:
    await kept.claim(1)
    for _ in range(2):
        await kept.append(1, 0, b"one")
    for _ in range(2):
        await kept.append(1, 1, b"two", "DONE")
    assert await kept.read(1) == ("DONE", [b"one", b"two"], 2)


async def test_nothing_is_added_to_an_answer_that_is_whole(kept: Kept) -> None:
    await kept.claim(1)
    await kept.append(1, 0, b"one", "DONE")
    with pytest.raises(GatewayError) as caught:
        await kept.append(1, 1, b"two")
    assert reason_name(caught.value.reason) == "conflict"


async def test_a_failed_call_leaves_nothing_and_the_next_is_first(kept: Kept) -> None:
    await kept.claim(1)
    await kept.append(1, 0, b"half")
    for _ in range(2):
        await kept.append(1, 1, b"", "GONE")
    assert await kept.read(1) == ("GONE", [], 0)
    assert await kept.state(2) == "FIRST"
    assert await kept.read(2) == ("RUNNING", [], 0)


async def test_an_answer_that_was_too_large_is_remembered_without_its_content(kept: Kept) -> None:
    await kept.claim(1)
    await kept.append(1, 0, b"some")
    await kept.append(1, 1, b"", "TOO_LARGE")
    assert await kept.read(1) == ("TOO_LARGE", [], 0)
    assert await kept.state(2) == "TOO_LARGE"


async def test_a_silent_routers_claim_is_nobodys_until_its_journal_is_settled(kept: Kept) -> None:
    await kept.claim(1)
    await kept.append(1, 0, b"half")
    kept.clock.passed_s += LEASE_MS / 1000 + 1
    assert await kept.state(2) == "ABANDONED"
    assert (await kept.read(1))[0] == "ABANDONED"
    assert await kept.keep(life=NEXT_LIFE) == 0
    assert await kept.state(2) == "ABANDONED"
    assert await kept.keep(life=NEXT_LIFE, former_settled=True) == 1
    assert await kept.read(1) == ("GONE", [], 0)
    assert await kept.state(2) == "FIRST"


async def test_an_older_life_ends_no_claims_of_a_newer_one(kept: Kept) -> None:
    await kept.claim(1)
    assert await kept.keep(life=attempt_id(1), former_settled=True) == 0
    assert await kept.state(2) == "RUNNING"


async def test_a_claim_that_is_named_lives_and_one_that_is_not_ends(kept: Kept) -> None:
    await kept.claim(1)
    assert await kept.keep() == 0, "it may be so new that its router has not heard of it"
    for _ in range(3):
        kept.clock.passed_s += 15
        assert await kept.keep(1) == 0
    assert await kept.state(2) == "RUNNING"
    assert await kept.keep() == 1
    assert await kept.state(2) == "FIRST"


async def test_after_its_window_an_answer_is_gone_and_the_next_call_is_first(kept: Kept) -> None:
    await kept.claim(1)
    await kept.append(1, 0, b"one", "DONE")
    kept.clock.passed_s += WINDOW_MS / 1000 - 1
    assert await kept.store.expire() == 0
    assert await kept.state(2) == "DONE"
    kept.clock.passed_s += 1
    assert await kept.state(2) == "FIRST"
    assert await kept.read(1) == ("GONE", [], 0)


async def test_the_sweeper_deletes_answers_past_their_window(kept: Kept) -> None:
    await kept.claim(1)
    await kept.append(1, 0, b"one", "DONE")
    kept.clock.passed_s += WINDOW_MS / 1000
    assert await kept.store.expire() == 1
    assert await kept.read(1) == ("GONE", [], 0)
