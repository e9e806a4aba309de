"""What budgets count, when they begin anew, and who is told about them."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from sqlalchemy import select, text

from onegate.common.v1 import error_pb2
from onegate.usage.v1 import budget_pb2, budget_service_pb2_grpc, hold_service_pb2_grpc
from onegate.usage.v1 import budget_service_pb2 as pb
from onegate.usage.v1 import hold_service_pb2 as holds_pb
from onegate.usage.v1.budget_pb2 import Budget, BudgetAlert, BudgetFilter
from onegate.usage.v1.usage_record_pb2 import Reservation
from runtime.config import RpcSettings
from runtime.errors import GatewayError
from runtime.metrics import Metrics
from runtime.passes import SPENDING, Gate
from runtime.rpc import RpcServer, channel, unary
from services.usage.ledger.budget_board import BudgetBoard
from services.usage.ledger.budget_service import BudgetService
from services.usage.ledger.budgets import checked, span_of
from services.usage.ledger.hold_service import HoldService
from services.usage.ledger.ledger_schema import CROSSINGS
from tests.services.usage.books import ALERT, KEY, MONTH, PAYER, Books, books_on
from tests.services.usage.records import OPERATOR, TOKEN, attempt_id, until

pytestmark = pytest.mark.anyio

DAY, WEEK = budget_pb2.BUDGET_PERIOD_DAY, budget_pb2.BUDGET_PERIOD_WEEK
CUSTOMER = budget_pb2.BUDGET_SCOPE_CUSTOMER
HELD, REFUSED = holds_pb.HOLD_OUTCOME_HELD, holds_pb.HOLD_OUTCOME_REFUSED
US = 1_000_000


@pytest.fixture
async def books(dsn: str) -> AsyncIterator[Books]:
    async with books_on(dsn) as opened:
        yield opened
        await opened.sound()


@pytest.mark.parametrize(
    ("period", "start", "end"),
    [
        (DAY, "2026-11-21", "2026-11-22"),
        (WEEK, "2026-11-16", "2026-11-23"),
        (MONTH, "2026-11-01", "2026-12-01"),
    ],
)
async def test_periods_are_those_of_the_calendar(
    books: Books, period: budget_pb2.BudgetPeriod.ValueType, start: str, end: str
) -> None:
    await books.budget(100, period=period)
    (balance,) = await books.balances()
    assert balance.period_starts_at.ToJsonString() == f"{start}T00:00:00Z"
    assert balance.resets_at.ToJsonString() == f"{end}T00:00:00Z"


def test_december_ends_with_the_year() -> None:
    span = span_of(MONTH, 1_798_675_200 * US)
    assert (span.start_us, span.end_us) == (1_796_083_200 * US, 1_798_761_600 * US)


async def test_a_period_that_ends_needs_nobody_to_reset_it(books: Books) -> None:
    await books.budget(100, period=DAY)
    await books.place(books.hold(1, 100))
    books.clock.passed_s += 24 * 3600
    (answer,) = await books.place(books.hold(2, 100))
    assert answer.outcome == HELD
    assert await books.stands() == (0, 100)
    await books.settle(1, 70)
    assert await books.stands() == (0, 100)


async def test_a_calendar_period_counts_what_was_spent_before_the_budget(books: Books) -> None:
    await books.settle(1, 30)
    await books.settle(2, 40, key_id="key_2")
    books.clock.passed_s += 1
    await books.budget(100, period=MONTH)
    await books.budget(100, period=MONTH, subject="*")
    assert await books.stands() == (30, 0)
    await books.settle(3, 5, key_id="key_2")
    found = {(b.budget.subject, b.subject): b.spent_nano_usd for b in await books.balances()}
    assert found == {("key_1", "key_1"): 30, ("*", "key_2"): 45}


async def test_every_customer_of_a_template_has_an_account(books: Books) -> None:
    await books.budget(100, scope=CUSTOMER, subject="*", project_id="proj_1")
    answers = await books.place(
        books.hold(1, 80, customer="acme"),
        books.hold(2, 80, customer="other"),
        books.hold(3, 80, customer="acme"),
        books.hold(4, 80, customer="acme", project_id="proj_2"),
    )
    assert [a.outcome for a in answers] == [HELD, HELD, REFUSED, holds_pb.HOLD_OUTCOME_NOT_NEEDED]
    assert answers[2].refusal.account == "customer acme"
    assert {b.subject: b.held_nano_usd for b in await books.balances()} == {
        "acme": 80,
        "other": 80,
    }


async def test_a_long_name_has_an_account_too(books: Books) -> None:
    await books.budget(100, scope=CUSTOMER, subject="*")
    name = "x" * 4_000
    await books.place(books.hold(1, 60, customer=name))
    await books.settle(1, 50, customer=name)
    assert await books.stands(name) == (50, 0)


async def test_a_budget_set_after_the_hold_is_charged_too(books: Books) -> None:
    await books.budget(100)
    await books.place(books.hold(1, 60))
    await books.budget(100, scope=CUSTOMER, subject="acme")
    await books.settle(1, 50, customer="acme")
    assert await books.stands("key_1") == (50, 0)
    assert await books.stands("acme") == (50, 0)


async def test_a_budget_that_ended_releases_what_it_held(books: Books) -> None:
    budget = await books.budget(100)
    await books.place(books.hold(1, 60))
    await books.budgets.end(budget.id, "org_1")
    assert await books.balances() == []
    await books.settle(1, 50, reservation=Reservation(amount_nano_usd=60))
    assert await books.holders.open_holds("", "", 10) == []
    (answer,) = await books.place(books.hold(2, 1_000))
    assert answer.outcome == holds_pb.HOLD_OUTCOME_NOT_NEEDED


async def test_a_changed_limit_holds_at_once(books: Books) -> None:
    first = await books.budget(100)
    await books.place(books.hold(1, 60))
    second = await books.budget(50)
    assert second.id == first.id
    (answer,) = await books.place(books.hold(2, 1))
    assert answer.outcome == REFUSED
    await books.budget(61)
    (answer,) = await books.place(books.hold(3, 1))
    assert answer.outcome == HELD


async def test_people_are_told_once_when_a_part_is_spent(books: Books) -> None:
    alert = BudgetAlert(percents=[50, 100], recipients=["a@example.com"])
    await books.budget(100, mode=ALERT, alert=alert)
    for number, cost in enumerate((49, 2, 48, 30)):
        await books.settle(number, cost)

    def rows(connection: Any) -> list[tuple[int, int]]:
        query = select(CROSSINGS.c.percent, CROSSINGS.c.spent_nano_usd)
        return [tuple(row) for row in connection.execute(query.order_by(CROSSINGS.c.percent))]

    assert await books.database.read(rows) == [(50, 51), (100, 129)]


async def test_a_rebuilt_ledger_is_what_it_was(books: Books) -> None:
    await books.budget(100)
    await books.place(books.hold(1, 60), books.hold(2, 5))
    await books.settle(1, 50)
    spoil = text("UPDATE ledger_accounts SET posted_nano_usd = 7, held_nano_usd = 8")
    await books.database.write(lambda c: c.execute(spoil))
    faults = (await books.check.verify()).faults
    assert {(f.what, f.kept_nano_usd, f.rebuilt_nano_usd) for f in faults} == {
        ("posted", 7, 50),
        ("held", 8, 5),
    }
    assert await books.check.rebuild() == 1
    assert await books.stands() == (50, 5)


@pytest.mark.parametrize(
    "fields",
    [
        {"organization_id": ""},
        {"scope": 0},
        {"subject": ""},
        {"subject": "x" * 257},
        {"period": 0},
        {"limit_nano_usd": -1},
        {"alert": BudgetAlert(percents=[0])},
        {"alert": BudgetAlert(percents=[5, 5])},
        {"alert": BudgetAlert(recipients=["nobody"])},
        {"scope": budget_pb2.BUDGET_SCOPE_ORGANIZATION, "subject": "org_2"},
    ],
)
def test_a_budget_that_says_nonsense_is_refused(fields: dict[str, Any]) -> None:
    given = {"organization_id": "org_1", "scope": KEY, "subject": "key_1", "period": MONTH}
    with pytest.raises(GatewayError) as refused:
        checked(Budget(**{**given, **fields}))
    assert refused.value.reason == error_pb2.ERROR_REASON_INVALID_REQUEST


class Service:
    """Budgets and holds over gRPC."""

    def __init__(self, books: Books, link: grpc.aio.Channel) -> None:
        self.books = books
        self.budgets = budget_service_pb2_grpc.BudgetServiceStub(link)
        self.holds = hold_service_pb2_grpc.HoldServiceStub(link)

    async def call(self, method: Any, request: Any) -> Any:
        return await unary(method, request, timeout_s=10, metadata=OPERATOR)


@pytest.fixture
async def service(books: Books) -> AsyncIterator[Service]:
    settings = RpcSettings()
    server = RpcServer(settings, "usage")
    board = BudgetBoard(books.clock)
    server.add(
        budget_service_pb2_grpc.add_BudgetServiceServicer_to_server,
        BudgetService(books.budgets, board, Gate(TOKEN, SPENDING, books.clock), books.ids),
    )
    metrics = Metrics("usage")
    holding = HoldService((books.holds, books.holders), TOKEN, metrics, asyncio.Event())
    server.add(hold_service_pb2_grpc.add_HoldServiceServicer_to_server, holding)
    port = await server.start("127.0.0.1:0")
    async with channel(f"127.0.0.1:{port}", settings) as link:
        yield Service(books, link)
    await server.stop(0)
    await holding.close()


def asked(limit: int, **fields: Any) -> pb.SetBudgetRequest:
    given = {"organization_id": "org_1", "scope": KEY, "subject": "key_1", "period": MONTH}
    return pb.SetBudgetRequest(budget=Budget(limit_nano_usd=limit, **{**given, **fields}))


async def test_watchers_hear_of_every_hard_budget(service: Service) -> None:
    await service.call(service.budgets.SetBudget, asked(1))
    watch = service.budgets.WatchBudgets(pb.WatchBudgetsRequest(watcher="router-0"))
    heard: dict[str, Budget] = {}
    complete = asyncio.Event()

    async def listen() -> None:
        async for news in watch:
            heard.update((budget.id, budget) for budget in news.budgets)
            for name in news.deleted:
                del heard[name]
            if news.complete:
                complete.set()

    async def limits_are(*limits: int) -> None:
        await until(
            lambda: sorted(b.limit_nano_usd for b in heard.values()) == sorted(limits),
            f"the limits {limits}",
        )

    listening = asyncio.create_task(listen())
    async with asyncio.timeout(10):
        await complete.wait()
    await limits_are(1)
    made = (await service.call(service.budgets.SetBudget, asked(2, subject="key_2"))).budget
    await service.call(service.budgets.SetBudget, asked(9, mode=ALERT))
    await service.call(service.budgets.SetBudget, asked(3))
    await limits_are(2, 3)
    await service.call(service.budgets.DeleteBudget, pb.DeleteBudgetRequest(budget_id=made.id))
    await limits_are(3)
    listening.cancel()


async def test_budgets_and_balances_come_in_pages(service: Service) -> None:
    for number in range(5):
        await service.call(service.budgets.SetBudget, asked(number, subject=f"key_{number}"))
    chosen = BudgetFilter(organization_id="org_1", scope=KEY)
    for method, request, field in (
        (service.budgets.ListBudgets, pb.ListBudgetsRequest, "budgets"),
        (service.budgets.ListBalances, pb.ListBalancesRequest, "balances"),
    ):
        found, token = 0, ""
        for _ in range(3):
            page = await service.call(method, request(filter=chosen, page_size=2, page_token=token))
            found += len(getattr(page, field))
            token = page.next_page_token
        assert (found, token) == (5, "")


async def test_only_the_operator_sets_budgets(service: Service) -> None:
    calls: tuple[tuple[Any, Any], ...] = (
        (service.budgets.SetBudget, asked(1)),
        (service.budgets.ListBudgets, pb.ListBudgetsRequest()),
        (service.budgets.DeleteBudget, pb.DeleteBudgetRequest()),
        (service.budgets.ListBalances, pb.ListBalancesRequest()),
        (service.holds.ListHolds, holds_pb.ListHoldsRequest()),
    )
    for method, request in calls:
        with pytest.raises(GatewayError) as refused:
            await unary(method, request, timeout_s=10)
        assert refused.value.reason == error_pb2.ERROR_REASON_INVALID_API_KEY


async def test_many_routers_never_exceed_a_budget_and_none_is_refused_while_there_is_room(
    service: Service,
) -> None:
    await service.call(service.budgets.SetBudget, asked(1_000))
    epochs = {
        name: (
            await service.call(service.holds.OpenEpoch, holds_pb.OpenEpochRequest(holder=name))
        ).epoch
        for name in ("router-0", "router-1", "router-2", "router-3")
    }

    async def one(number: int) -> int:
        name = f"router-{number % 4}"
        hold = holds_pb.HoldRequest(
            attempt_id=attempt_id(number),
            payer=holds_pb.Payer(**PAYER),
            amount_nano_usd=7,
            lease_ms=60_000,
        )
        request = holds_pb.PlaceHoldsRequest(holder=name, epoch=epochs[name], holds=[hold])
        answer = await service.call(service.holds.PlaceHolds, request)
        return int(answer.answers[0].outcome)

    outcomes = await asyncio.gather(*(one(number) for number in range(200)))
    assert outcomes.count(HELD) == 1_000 // 7
    assert outcomes.count(REFUSED) == 200 - 1_000 // 7
    assert await service.books.stands() == (0, 7 * (1_000 // 7))
