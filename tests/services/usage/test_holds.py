"""What is set aside before a call: held on every account or on none, once, and never lost."""

from collections.abc import AsyncIterator

import pytest

from onegate.common.v1 import error_pb2
from onegate.usage.v1 import budget_pb2, hold_pb2
from onegate.usage.v1 import hold_service_pb2 as pb
from onegate.usage.v1.usage_record_pb2 import Reservation
from runtime.errors import GatewayError
from services.usage.store import Verdict
from tests.services.usage.books import ALERT, MONTH, PAYER, Books, books_on
from tests.services.usage.records import attempt_id

pytestmark = pytest.mark.anyio

HELD, REFUSED = pb.HOLD_OUTCOME_HELD, pb.HOLD_OUTCOME_REFUSED
ALREADY, NOT_NEEDED = pb.HOLD_OUTCOME_ALREADY, pb.HOLD_OUTCOME_NOT_NEEDED
DAY_S = 24 * 3600


@pytest.fixture
async def books(dsn: str) -> AsyncIterator[Books]:
    async with books_on(dsn) as opened:
        yield opened
        await opened.sound()


def outcomes(answers: list[pb.HoldAnswer] | GatewayError) -> list[int]:
    assert not isinstance(answers, GatewayError)
    return [answer.outcome for answer in answers]


async def test_what_is_held_never_exceeds_the_limit(books: Books) -> None:
    await books.budget(100)
    answers = await books.place(*(books.hold(n, 30) for n in range(5)))
    assert outcomes(answers) == [HELD, HELD, HELD, REFUSED, REFUSED]
    assert await books.stands() == (0, 90)


async def test_a_refusal_says_whose_limit_it_was_and_when_it_resets(books: Books) -> None:
    budget = await books.budget(100, period=MONTH)
    await books.settle(1, 25)
    answers = await books.place(books.hold(2, 60), books.hold(3, 60))
    refusal = answers[1].refusal
    assert refusal.budget_id == budget.id
    assert refusal.account == "key key_1"
    assert refusal.limit_nano_usd == 100
    assert refusal.spent_nano_usd == 25
    assert refusal.held_nano_usd == 60
    assert refusal.asked_nano_usd == 60
    assert refusal.resets_at.ToJsonString() == "2026-12-01T00:00:00Z"
    assert answers[0].period_ends_at == refusal.resets_at


async def test_a_hold_is_on_all_its_accounts_or_on_none(books: Books) -> None:
    await books.budget(1_000, scope=budget_pb2.BUDGET_SCOPE_ORGANIZATION, subject="org_1")
    await books.budget(50)
    (answer,) = await books.place(books.hold(1, 60))
    assert answer.outcome == REFUSED
    assert await books.stands("org_1") == (0, 0)
    await books.place(books.hold(2, 40))
    assert await books.stands("org_1") == (0, 40)
    assert await books.stands("key_1") == (0, 40)


async def test_settling_releases_the_hold_and_adds_the_cost_once(books: Books) -> None:
    await books.budget(100)
    await books.place(books.hold(1, 60))
    given = {"reservation": Reservation(amount_nano_usd=60)}
    assert await books.settle(1, 45, **given) is Verdict.INSERTED
    assert await books.settle(1, 45, **given) is Verdict.DUPLICATE
    assert await books.stands() == (45, 0)


async def test_a_contradiction_changes_no_account(books: Books) -> None:
    await books.budget(100)
    await books.settle(1, 45)
    assert await books.settle(1, 46) is Verdict.QUARANTINED
    assert await books.stands() == (45, 0)


async def test_a_record_that_nobody_can_believe_leaves_its_hold_as_uncertain(books: Books) -> None:
    await books.budget(100)
    await books.place(books.hold(1, 60))
    given = {"reservation": Reservation(amount_nano_usd=60)}
    assert await books.settle(1, -1, **given) is Verdict.QUARANTINED
    assert await books.stands() == (60, 0)


async def test_calls_without_a_hold_are_charged_too(books: Books) -> None:
    await books.budget(100)
    await books.settle(1, 70)
    await books.settle(2, 70)
    assert await books.stands() == (140, 0)
    (answer,) = await books.place(books.hold(3, 1))
    assert answer.outcome == REFUSED


async def test_a_repeated_request_is_answered_as_the_first(books: Books) -> None:
    await books.budget(100)
    twice = [books.hold(1, 60), books.hold(1, 60), books.hold(2, 60)]
    assert outcomes(await books.place(*twice)) == [HELD, HELD, REFUSED]
    assert outcomes(await books.place(*twice)) == [HELD, HELD, REFUSED]
    assert await books.stands() == (0, 60)


async def test_a_refused_attempt_is_not_admitted_by_a_late_duplicate(books: Books) -> None:
    await books.budget(100)
    await books.place(books.hold(1, 100))
    await books.place(books.hold(2, 100))
    await books.void(1)
    (late,) = await books.place(books.hold(2, 100))
    assert late.outcome == REFUSED
    assert late.refusal.limit_nano_usd == 100
    assert await books.stands() == (0, 0)


async def test_a_hold_that_was_given_up_before_it_came_is_never_placed(books: Books) -> None:
    await books.budget(100)
    assert await books.void(1) == 0
    (late,) = await books.place(books.hold(1, 50))
    assert (late.outcome, late.state) == (ALREADY, hold_pb2.HOLD_STATE_VOIDED)
    assert await books.stands() == (0, 0)


async def test_a_settled_attempt_is_not_held_again(books: Books) -> None:
    await books.budget(100)
    await books.place(books.hold(1, 50))
    await books.settle(1, 20)
    (late,) = await books.place(books.hold(1, 50))
    assert (late.outcome, late.state) == (ALREADY, hold_pb2.HOLD_STATE_POSTED)
    assert await books.stands() == (20, 0)


async def test_where_no_budget_applies_nothing_is_held(books: Books) -> None:
    await books.budget(100)
    await books.budget(0, subject="key_1", mode=ALERT)
    answers = await books.place(
        books.hold(1, 50, key_id="key_2"), books.hold(2, 50, organization_id="org_2")
    )
    assert outcomes(answers) == [NOT_NEEDED, NOT_NEEDED]


async def test_as_much_is_held_as_there_is_room_for(books: Books) -> None:
    await books.budget(100)
    answers = await books.place(
        books.hold(1, 60), books.hold(2, 60, least=10), books.hold(3, 60, least=1)
    )
    assert [answer.amount_nano_usd for answer in answers] == [60, 40, 0]
    assert outcomes(answers) == [HELD, HELD, REFUSED]


async def test_a_call_that_costs_nothing_needs_no_room(books: Books) -> None:
    await books.budget(10)
    await books.settle(1, 50)
    (answer,) = await books.place(books.hold(2, 0))
    assert answer.outcome == HELD


async def test_a_raise_is_held_once_and_refused_without_loss(books: Books) -> None:
    await books.budget(100)
    await books.place(books.hold(1, 30))
    for _ in range(2):
        answer = await books.raise_to(1, 70)
        assert (answer.outcome, answer.amount_nano_usd) == (HELD, 70)
    answer = await books.raise_to(1, 101)
    assert (answer.outcome, answer.amount_nano_usd) == (REFUSED, 70)
    assert answer.refusal.held_nano_usd == 70
    answer = await books.raise_to(1, 150, least=80)
    assert (answer.outcome, answer.amount_nano_usd) == (HELD, 100)
    assert (await books.raise_to(2, 5)).outcome == pb.HOLD_OUTCOME_UNKNOWN
    await books.settle(1, 99)
    assert (await books.raise_to(1, 150)).outcome == ALREADY
    assert await books.stands() == (99, 0)


async def test_a_lease_that_runs_out_posts_what_was_held_until_the_truth_comes(
    books: Books,
) -> None:
    await books.budget(100)
    await books.place(books.hold(1, 60, lease_ms=5_000), books.hold(2, 10))
    books.clock.passed_s += 6
    await renew(books)
    assert await books.holders.sweep() == (1, 0)
    assert await books.stands() == (60, 10)
    assert (await books.check.verify()).uncertain_nano_usd == 60
    await books.settle(1, 45)
    assert await books.stands() == (45, 10)
    assert (await books.check.verify()).uncertain_nano_usd == 0


async def test_holds_of_a_router_that_fell_silent_are_posted(books: Books) -> None:
    await books.budget(100)
    await books.place(books.hold(1, 60))
    books.clock.passed_s += 29
    assert await books.holders.sweep() == (0, 0)
    books.clock.passed_s += 2
    assert await books.holders.sweep() == (1, 0)
    assert await books.stands() == (60, 0)
    assert await books.void(1) == 1
    assert await books.stands() == (0, 0)


async def renew(books: Books, *numbers: int) -> list[str]:
    request = pb.RenewLeasesRequest(
        holder="router-0",
        epoch=books.epoch,
        attempt_ids=map(attempt_id, numbers),
        lease_ms=600_000,
    )
    return await books.holders.renew(request)


async def test_renewed_leases_last(books: Books) -> None:
    await books.budget(100)
    await books.place(books.hold(1, 60, lease_ms=40_000))
    for _ in range(4):
        books.clock.passed_s += 20
        await renew(books, 1)
        assert await books.holders.sweep() == (0, 0)
    assert await books.stands() == (0, 60)


async def test_a_hold_that_came_after_its_record_ends_without_a_trace(books: Books) -> None:
    await books.settle(1, 45)
    await books.budget(100)
    await books.place(books.hold(1, 60, lease_ms=1))
    books.clock.passed_s += 1
    assert await books.holders.sweep() == (0, 1)
    assert await books.stands() == (0, 0)


async def test_an_older_epoch_is_refused(books: Books) -> None:
    await books.budget(100)
    old = books.epoch
    books.epoch = await books.open_epoch(journal_epoch=old)
    assert books.epoch > old
    with pytest.raises(GatewayError) as refused:
        await books.place(books.hold(1, 10), epoch=old)
    assert refused.value.reason == error_pb2.ERROR_REASON_CONFLICT
    assert await books.stands() == (0, 0)


async def test_a_fenced_request_does_not_harm_others_in_its_batch(books: Books) -> None:
    await books.budget(100)
    other = await books.open_epoch(holder="router-1")
    late = pb.PlaceHoldsRequest(holder="router-0", epoch=77, holds=[books.hold(1, 10)])
    good = pb.PlaceHoldsRequest(holder="router-1", epoch=other, holds=[books.hold(2, 10)])
    placed = await books.holds.place([late, good])
    assert isinstance(placed[0], GatewayError)
    assert outcomes(placed[1]) == [HELD]
    assert await books.stands() == (0, 10)


async def test_a_new_epoch_voids_what_the_journal_did_not_dispatch(books: Books) -> None:
    await books.budget(100)
    await books.place(books.hold(1, 30), books.hold(2, 40))
    books.epoch = await books.open_epoch(journal_epoch=books.epoch)
    assert await books.stands() == (0, 70)
    await books.settle(1, 25)
    await books.place(books.hold(3, 5))
    request = pb.CloseEpochsRequest(holder="router-0", epoch=books.epoch)
    assert await books.holders.close_epochs(request) == 1
    assert await books.stands() == (25, 5)


async def test_a_lease_posted_for_what_was_never_sent_is_taken_back_by_the_next_life(
    books: Books,
) -> None:
    await books.budget(100)
    await books.place(books.hold(1, 30))
    books.clock.passed_s += 700
    assert await books.holders.sweep() == (1, 0)
    assert await books.stands() == (30, 0)
    books.epoch = await books.open_epoch(journal_epoch=books.epoch)
    request = pb.CloseEpochsRequest(holder="router-0", epoch=books.epoch)
    assert await books.holders.close_epochs(request) == 1
    assert await books.stands() == (0, 0)


async def test_without_its_journal_a_router_may_have_spent_what_it_held(books: Books) -> None:
    await books.budget(100)
    await books.place(books.hold(1, 30))
    books.epoch = await books.open_epoch(journal_epoch=0)
    request = pb.CloseEpochsRequest(holder="router-0", epoch=books.epoch)
    assert await books.holders.close_epochs(request) == 0
    assert await books.stands() == (30, 0)
    await books.settle(1, 12)
    assert await books.stands() == (12, 0)


async def test_a_cost_above_what_was_held_is_flagged(books: Books) -> None:
    await books.budget(100)
    await books.place(books.hold(1, 60))
    await books.settle(1, 160)
    assert await books.stands() == (160, 0)
    assert (await books.check.verify()).overruns == 1


def slice_request(books: Books, amount: int, least: int = 1) -> pb.TakeSliceRequest:
    return pb.TakeSliceRequest(
        holder="router-0",
        epoch=books.epoch,
        slice_id=attempt_id(900),
        payer=pb.Payer(**PAYER),
        amount_nano_usd=amount,
        amount_least_nano_usd=least,
        lease_ms=60_000,
    )


async def give_back(books: Books, amount: int) -> int:
    return await books.holds.return_slice(
        pb.ReturnSliceRequest(
            holder="router-0", epoch=books.epoch, slice_id=attempt_id(900), amount_nano_usd=amount
        )
    )


async def test_a_slice_is_a_sixteenth_of_the_room_at_most(books: Books) -> None:
    await books.budget(1_600)
    answer = await books.holds.take_slice(slice_request(books, 500))
    assert (answer.outcome, answer.amount_nano_usd) == (HELD, 100)
    assert await books.stands() == (0, 100)
    again = await books.holds.take_slice(slice_request(books, 500))
    assert (again.outcome, again.amount_nano_usd) == (HELD, 100)
    assert await books.stands() == (0, 100)


async def test_a_slice_that_is_too_small_is_not_given(books: Books) -> None:
    await books.budget(1_600)
    for _ in range(2):
        answer = await books.holds.take_slice(slice_request(books, 500, 101))
        assert answer.outcome == REFUSED


async def test_calls_settle_their_share_of_a_slice_and_the_rest_goes_back(books: Books) -> None:
    await books.budget(1_600)
    await books.holds.take_slice(slice_request(books, 100))
    share = Reservation(amount_nano_usd=30, slice_id=attempt_id(900), slice_amount_nano_usd=30)
    await books.settle(1, 12, reservation=share)
    assert await books.stands() == (12, 70)
    assert await give_back(books, 40) == 40
    assert await give_back(books, 40) == 0
    assert await books.stands() == (12, 30)
    await books.settle(2, 31, reservation=share)
    assert await books.stands() == (43, 0)
    assert (await books.check.verify()).overruns == 1
    assert await books.holders.open_holds("", "", 10) == []


async def test_a_slice_whose_lease_ran_out_is_corrected_share_by_share(books: Books) -> None:
    await books.budget(1_600)
    await books.holds.take_slice(slice_request(books, 100))
    books.clock.passed_s += 61
    assert await books.holders.sweep() == (1, 0)
    assert await books.stands() == (100, 0)
    share = Reservation(amount_nano_usd=30, slice_id=attempt_id(900), slice_amount_nano_usd=30)
    await books.settle(1, 12, reservation=share)
    assert await books.stands() == (82, 0)
    assert await give_back(books, 70) == 70
    assert await books.stands() == (12, 0)


async def test_who_is_refused_while_slices_lie_idle_is_told_to_come_again(books: Books) -> None:
    await books.budget(1_600)
    await books.holds.take_slice(slice_request(books, 100))
    (answer,) = await books.place(books.hold(1, 1_501))
    assert (answer.outcome, answer.refusal.retry_after_ms) == (REFUSED, 50)
    assert await renew(books) == [attempt_id(900)]
    assert await books.holders.recalled() == [attempt_id(900)]
    await give_back(books, 100)
    assert await renew(books) == []
    (answer,) = await books.place(books.hold(2, 1_501))
    assert answer.outcome == HELD
    (answer,) = await books.place(books.hold(3, 1_501))
    assert (answer.outcome, answer.refusal.retry_after_ms) == (REFUSED, 0)


async def test_what_ended_long_ago_is_forgotten(books: Books) -> None:
    await books.budget(100)
    await books.place(books.hold(1, 10), books.hold(2, 10, lease_ms=1), books.hold(3, 200))
    await books.void(1)
    books.clock.passed_s += 1
    await books.holders.sweep()
    assert await books.holders.forget() == 0
    books.clock.passed_s += DAY_S
    assert await books.holders.forget() == 2
    (open_,) = await books.holders.open_holds("", "", 10)
    assert open_.state == hold_pb2.HOLD_STATE_UNCERTAIN
