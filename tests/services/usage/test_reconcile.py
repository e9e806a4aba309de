"""Bills against records: every difference, exactly, and the result is kept."""

import asyncio
from collections.abc import AsyncIterator, Iterable
from datetime import datetime, timedelta
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from onegate.common.v1 import error_pb2
from onegate.usage.v1 import reconcile_service_pb2 as pb
from onegate.usage.v1 import reconcile_service_pb2_grpc
from onegate.usage.v1.usage_record_pb2 import UsageRecord
from runtime.clock import SystemEntropy
from runtime.config import RpcSettings
from runtime.errors import GatewayError
from runtime.rpc import RpcServer, channel, from_rpc_error, unary
from runtime.sql import open_database
from services.usage.reconcile import reconcile_service, reconcile_store
from services.usage.reconcile.bills import (
    Figures,
    Said,
    amount_of,
    check_head,
    model_name,
    plus,
    usd_of,
)
from services.usage.reconcile.reconcile_service import ReconcileService
from services.usage.reconcile.reconcile_store import ReconcileStore
from services.usage.reconcile.scratch_sql import Scratch, Side
from services.usage.store import SqlStore
from tests.services.usage.records import NOON, OPERATOR, TOKEN, SteppedClock, attempt_id, record

ALL = [
    pb.BILL_FIGURE_INPUT_TOKENS,
    pb.BILL_FIGURE_CACHED_INPUT_TOKENS,
    pb.BILL_FIGURE_OUTPUT_TOKENS,
    pb.BILL_FIGURE_COST,
]
DAY = NOON.replace(hour=0)


def head_of(match: int, **fields: Any) -> pb.BillHead:
    """A bill of two days around noon."""
    made = pb.BillHead(
        digest=b"d" * 32,
        name="bill.csv",
        match=match,  # type: ignore[arg-type]
        figures=fields.pop("figures", ALL),
        **fields,
    )
    made.started_from.FromDatetime(DAY)
    made.started_before.FromDatetime(DAY + timedelta(days=2))
    return made


def line(name: str, cost: str = "0.000001", **fields: Any) -> pb.BillLine:
    """A line that says what :func:`record` says."""
    at: datetime = fields.pop("at", NOON)
    counts = {"input_tokens": 100, "cached_input_tokens": 40, "output_tokens": 10}
    counts |= {key: fields.pop(key) for key in list(fields) if key in counts}
    made = pb.BillLine(request_id=name, figures=pb.BillFigures(cost_usd=cost, **counts), **fields)
    made.started_at.FromDatetime(at)
    return made


def call(number: int, name: str, **changes: Any) -> UsageRecord:
    return record(number, upstream_request_id=name, **{"cost_nano_usd": 1_000, **changes})


class Desk:
    """Where bills are compared, over a socket."""

    def __init__(self, stub: reconcile_service_pb2_grpc.ReconcileServiceStub) -> None:
        self.stub = stub

    async def compare(
        self, head: pb.BillHead, *lines: pb.BillLine
    ) -> tuple[list[pb.BillDifference], pb.Reconciliation]:
        async def parts() -> AsyncIterator[pb.ReconcileRequest]:
            yield pb.ReconcileRequest(head=head)
            yield pb.ReconcileRequest(lines=pb.BillLines(lines=lines))

        return await self.send(parts())

    async def send(
        self, parts: AsyncIterator[pb.ReconcileRequest]
    ) -> tuple[list[pb.BillDifference], pb.Reconciliation]:
        found: list[pb.BillDifference] = []
        answers = self.stub.Reconcile(parts, timeout=30, metadata=OPERATOR)
        try:
            async for answer in answers:
                found += answer.differences
        except Exception as error:
            raise from_rpc_error(error) from error  # type: ignore[arg-type]
        return found, answer.result


@pytest.fixture
async def store(dsn: str) -> AsyncIterator[SqlStore]:
    database = open_database(dsn)
    opened = SqlStore(database)
    await opened.migrate(now=NOON)
    await ReconcileStore(database).migrate(now=NOON)
    yield opened
    await database.close()


@pytest.fixture
async def desk(store: SqlStore, tmp_path: Path) -> AsyncIterator[Desk]:
    server = RpcServer(RpcSettings(), "usage")
    chance = (SteppedClock(), SystemEntropy())
    servicer = ReconcileService(ReconcileStore(store.database), TOKEN, chance)
    server.add(reconcile_service_pb2_grpc.add_ReconcileServiceServicer_to_server, servicer)
    address = f"unix:{tmp_path}/u.sock"
    await server.start(address)
    async with channel(address, RpcSettings()) as opened:
        yield Desk(reconcile_service_pb2_grpc.ReconcileServiceStub(opened))
    await server.stop(1)


async def keep(store: SqlStore, *records: UsageRecord) -> None:
    await store.record(records, now_us=1)


def kinds(found: Iterable[pb.BillDifference]) -> dict[str, list[str]]:
    """How each place differs."""
    return {
        one.request_id or one.attempt_id or f"{one.day} {one.model} {one.credential}".strip(): [
            pb.BillDifferenceKind.Name(kind).removeprefix("BILL_DIFFERENCE_KIND_").lower()
            for kind in one.kinds
        ]
        for one in found
    }


@pytest.mark.anyio
async def test_every_difference_is_listed_by_request(store: SqlStore, desk: Desk) -> None:
    await keep(
        store,
        call(0, "same"),
        call(1, "tokens"),
        call(2, "cost", cost_nano_usd=1_001),
        call(3, "both", cost_nano_usd=5),
        call(4, "ours"),
        call(5, ""),
        call(6, "twice", cost_nano_usd=400),
        call(7, "other", provider="anthropic"),
    )
    found, result = await desk.compare(
        head_of(pb.BILL_MATCH_REQUEST, providers=["openai"]),
        line("same"),
        line("tokens", output_tokens=11),
        line("cost"),
        line("both", input_tokens=1),
        line("theirs"),
        line("twice", "0.0000002", input_tokens=60, output_tokens=10),
        line("twice", "0.0000002", input_tokens=40, output_tokens=0, cached_input_tokens=0),
    )
    assert kinds(found) == {
        "tokens": ["tokens"],
        "cost": ["cost"],
        "both": ["tokens", "cost"],
        "ours": ["only_ours"],
        attempt_id(5): ["only_ours"],
        "theirs": ["only_theirs"],
    }
    assert (result.agreed, result.only_theirs, result.only_ours) == (2, 1, 2)
    assert (result.tokens_differ, result.costs_differ) == (2, 2)
    assert (result.theirs.count, result.ours.count) == (7, 7)
    assert Decimal(result.theirs.cost_usd) == Decimal("0.0000054")
    assert Decimal(result.ours.cost_usd) == Decimal("0.000005406")
    by_name = {one.request_id: one for one in found}
    assert (by_name["cost"].day, by_name["cost"].model) == ("2026-11-21", "gpt-4o")
    assert by_name["cost"].ours.cost_usd == "0.000001001"


@pytest.mark.anyio
async def test_requests_at_the_edges_of_the_time_are_found_and_not_missed(
    store: SqlStore, desk: Desk
) -> None:
    before, after = call(0, "before"), call(1, "after")
    before.started_at.FromDatetime(DAY - timedelta(minutes=50))
    after.started_at.FromDatetime(DAY + timedelta(days=2, minutes=50))
    away = call(2, "away")
    away.started_at.FromDatetime(DAY - timedelta(minutes=70))
    await keep(store, before, after, away)
    head = head_of(pb.BILL_MATCH_REQUEST)
    found, result = await desk.compare(head, line("before"))
    assert (found, result.agreed, result.ours.count) == ([], 1, 1)
    found, _ = await desk.compare(head, line("before"), line("away"))
    assert kinds(found) == {"away": ["only_theirs"]}


@pytest.mark.anyio
async def test_calls_that_cost_nothing_are_missed_by_nobody(store: SqlStore, desk: Desk) -> None:
    failed = call(0, "", cost_nano_usd=0)
    failed.ClearField("tokens")
    await keep(store, failed)
    found, result = await desk.compare(head_of(pb.BILL_MATCH_REQUEST))
    assert (found, result.ours.count) == ([], 0)


@pytest.mark.anyio
async def test_buckets_are_compared_by_day_model_and_credential(
    store: SqlStore, desk: Desk
) -> None:
    second = call(2, "", model="openai/gpt-4o-2024-08-06", credential="b")
    second.started_at.FromDatetime(NOON + timedelta(days=1))
    await keep(store, call(0, ""), call(1, "", model="openai/o3"), second)
    by_model = head_of(pb.BILL_MATCH_BUCKET, by_model=True, providers=["openai"])
    tomorrow = NOON + timedelta(days=1)
    found, result = await desk.compare(
        by_model,
        line("", model="gpt-4o-2024-11-20"),
        line("", model="GPT-4o", at=tomorrow, output_tokens=9),
        line("", model="o4", at=tomorrow),
    )
    assert kinds(found) == {
        "2026-11-21 o3": ["only_ours"],
        "2026-11-22 gpt-4o": ["tokens"],
        "2026-11-22 o4": ["only_theirs"],
    }
    assert result.agreed == 1
    found, _ = await desk.compare(
        head_of(pb.BILL_MATCH_BUCKET),
        line("", "0.000002", input_tokens=200, output_tokens=20, cached_input_tokens=80),
        line("", at=tomorrow),
    )
    assert found == []
    by_credential = head_of(pb.BILL_MATCH_BUCKET, by_credential=True)
    found, _ = await desk.compare(by_credential, line("", credential="b", at=tomorrow))
    assert kinds(found) == {"2026-11-21": ["only_ours"]}
    exact = head_of(pb.BILL_MATCH_BUCKET, by_model=True, models_exact=True)
    found, _ = await desk.compare(exact, line("", model="gpt-4o", at=tomorrow))
    assert "2026-11-22 gpt-4o-2024-08-06" in kinds(found)


@pytest.mark.anyio
async def test_only_what_the_bill_says_is_compared_and_a_little_may_be_forgiven(
    store: SqlStore, desk: Desk
) -> None:
    await keep(store, call(0, "a"))
    costs = [pb.BILL_FIGURE_COST]
    off = line("a", "0.00000100000000000000000001", input_tokens=0, output_tokens=0)
    found, _ = await desk.compare(head_of(pb.BILL_MATCH_REQUEST, figures=costs), off)
    assert kinds(found) == {"a": ["cost"]}
    lenient = {"tolerance_usd": "0.00000000000000000000000001", "tolerance_tokens": 5}
    found, _ = await desk.compare(head_of(pb.BILL_MATCH_REQUEST, figures=costs, **lenient), off)
    assert found == []
    near = line("a", "9", input_tokens=105, cached_input_tokens=1, output_tokens=5)
    tokens = [pb.BILL_FIGURE_INPUT_TOKENS, pb.BILL_FIGURE_OUTPUT_TOKENS]
    found, _ = await desk.compare(head_of(pb.BILL_MATCH_REQUEST, figures=tokens, **lenient), near)
    assert found == []
    near.figures.output_tokens = 4
    found, _ = await desk.compare(head_of(pb.BILL_MATCH_REQUEST, figures=tokens, **lenient), near)
    assert kinds(found) == {"a": ["tokens"]}


@pytest.mark.anyio
async def test_results_are_kept_and_a_bill_that_comes_again_is_recognised(
    store: SqlStore, desk: Desk
) -> None:
    await keep(store, call(0, "a"))
    head = head_of(pb.BILL_MATCH_REQUEST)
    _, first = await desk.compare(head)
    assert first.earlier_id == ""
    _, second = await desk.compare(head, line("a"))
    assert second.earlier_id == first.id
    assert second.earlier_at == first.compared_at
    head.digest = b"e" * 32
    _, third = await desk.compare(head, line("a"))
    assert third.earlier_id == ""
    listed: list[str] = []
    request = pb.ListReconciliationsRequest(page_size=2)
    while True:
        page = await unary(desk.stub.ListReconciliations, request, timeout_s=10, metadata=OPERATOR)
        listed += [one.id for one in page.results]
        request.page_token = page.next_page_token
        if not page.next_page_token:
            break
    assert sorted(listed, reverse=True) == listed
    assert set(listed) == {first.id, second.id, third.id}


@pytest.mark.anyio
async def test_many_records_and_differences_come_in_pieces(
    store: SqlStore, desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reconcile_store, "PAGE_RECORDS", 7)
    monkeypatch.setattr(reconcile_service, "TOLD_MAX", 3)
    await keep(store, *(call(number, f"n{number}") for number in range(50)))
    found, result = await desk.compare(
        head_of(pb.BILL_MATCH_REQUEST), *(line(f"n{number}") for number in range(20, 70))
    )
    assert (result.agreed, result.only_theirs, result.only_ours) == (30, 20, 20)
    assert len(found) == 40


@pytest.mark.anyio
async def test_what_is_no_bill_is_refused(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    head = head_of(pb.BILL_MATCH_REQUEST)
    with pytest.raises(GatewayError, match="decimal number"):
        await desk.compare(head, line("a", "1e5"))
    with pytest.raises(GatewayError, match="at most 1,000"):
        await desk.compare(head, *(line("a") for _ in range(1_001)))
    monkeypatch.setattr(reconcile_service, "BILL_LINES_MAX", 2)
    with pytest.raises(GatewayError, match="a shorter time"):
        await desk.compare(head, *(line("a") for _ in range(3)))

    async def headless() -> AsyncIterator[pb.ReconcileRequest]:
        yield pb.ReconcileRequest(lines=pb.BillLines())

    with pytest.raises(GatewayError, match="must come first"):
        await desk.send(headless())
    # Whatever went wrong, the next bill finds the desk free.
    assert (await desk.compare(head))[1].agreed == 0


@pytest.mark.anyio
async def test_one_bill_at_a_time_and_only_for_the_operator(desk: Desk) -> None:
    waits, go_on = asyncio.Event(), asyncio.Event()

    async def slowly() -> AsyncIterator[pb.ReconcileRequest]:
        yield pb.ReconcileRequest(head=head_of(pb.BILL_MATCH_REQUEST))
        yield pb.ReconcileRequest(lines=pb.BillLines())
        waits.set()
        await go_on.wait()

    first = asyncio.create_task(desk.send(slowly()))
    await asyncio.wait_for(waits.wait(), 10)
    with pytest.raises(GatewayError) as refused:
        await desk.compare(head_of(pb.BILL_MATCH_REQUEST))
    assert refused.value.reason == error_pb2.ERROR_REASON_OVERLOADED
    go_on.set()
    assert (await first)[1].id

    async def parts() -> AsyncIterator[pb.ReconcileRequest]:
        yield pb.ReconcileRequest(head=head_of(pb.BILL_MATCH_REQUEST))

    with pytest.raises(Exception, match="operator"):
        async for _ in desk.stub.Reconcile(parts(), timeout=10):
            pass
    with pytest.raises(GatewayError, match="operator"):
        await unary(desk.stub.ListReconciliations, pb.ListReconciliationsRequest(), timeout_s=10)


@pytest.mark.parametrize(
    ("written", "named"),
    [
        ("gpt-4o-2024-08-06", "gpt-4o"),
        ("gpt-4o", "gpt-4o"),
        ("claude-haiku-4-5-20251001", "claude-haiku-4-5"),
        ("Claude Haiku 4.5", "claude-haiku-4-5"),
        ("claude-3-5-sonnet-latest", "claude-3-5-sonnet"),
        ("claude-sonnet-4@20250514", "claude-sonnet-4"),
        ("gpt-4-0613", "gpt-4-0613"),
        ("", ""),
    ],
)
def test_models_are_named_alike(written: str, named: str) -> None:
    assert model_name(written, exact=False) == named
    assert model_name(written, exact=True) == written


@given(st.lists(st.decimals(-(10**9), 10**9, places=25, allow_nan=False), max_size=20))
def test_amounts_add_up_exactly(amounts: list[Decimal]) -> None:
    total = "0"
    for amount in amounts:
        total = plus(total, format(amount, "f"))
    assert Fraction(total) == sum(map(Fraction, amounts))


def test_nano_usd_become_the_same_amount() -> None:
    assert usd_of(1) == "0.000000001"
    assert Decimal(usd_of(-(10**15) - 1)) == Decimal("-1000000.000000001")


@pytest.mark.parametrize("text", ["", "1e3", "nan", ".5", "1.", "+1", "1" * 13, "0." + "1" * 31])
def test_what_is_no_amount_is_refused(text: str) -> None:
    with pytest.raises(GatewayError):
        amount_of(text)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("match", 0),
        ("match", 9),
        ("digest", b"short"),
        ("name", ""),
        ("name", "n" * 513),
        ("tolerance_tokens", -1),
        ("tolerance_usd", "-1"),
        ("tolerance_usd", "much"),
    ],
)
def test_a_head_that_says_nonsense_is_refused(field: str, value: Any) -> None:
    head = head_of(pb.BILL_MATCH_REQUEST)
    check_head(head)
    setattr(head, field, value)
    with pytest.raises(GatewayError, match=r"head|cost"):
        check_head(head)


def test_a_head_names_figures_and_a_time() -> None:
    with pytest.raises(GatewayError, match="figures"):
        check_head(head_of(pb.BILL_MATCH_REQUEST, figures=[]))
    with pytest.raises(GatewayError, match="figures"):
        check_head(head_of(pb.BILL_MATCH_REQUEST, figures=[99]))
    head = head_of(pb.BILL_MATCH_REQUEST, providers=["p"] * 1_001)
    with pytest.raises(GatewayError, match="providers"):
        check_head(head)
    head = head_of(pb.BILL_MATCH_REQUEST)
    head.started_before.CopyFrom(head.started_from)
    with pytest.raises(GatewayError, match="started_before"):
        check_head(head)


SIDES = st.dictionaries(st.text(max_size=3), st.integers(-5, 5), max_size=12)


@given(SIDES, SIDES)
def test_both_sides_meet_at_every_place(theirs: dict[str, int], ours: dict[str, int]) -> None:
    theirs, ours = ({k.replace("\0", ""): v for k, v in s.items()} for s in (theirs, ours))
    scratch = Scratch()
    for side, given_ in ((Side.THEIRS, theirs), (Side.OURS, ours)):
        for half in (0, 1):
            scratch.add(
                side,
                [
                    Said(place, "a", Figures(count=half, input_tokens=n, cost_usd=f"{n}.5"))
                    for place, n in given_.items()
                ],
            )
    met = {}
    for pair in scratch.pairs():
        one = pair.theirs or pair.ours
        assert one is not None
        met[one.place] = [
            None if side is None else (side.figures.input_tokens, Decimal(side.figures.cost_usd))
            for side in (pair.theirs, pair.ours)
        ]
    scratch.close()
    doubled = [
        {k: (2 * n, 2 * Decimal(f"{n}.5")) for k, n in side.items()} for side in (theirs, ours)
    ]
    assert met == {k: [side.get(k) for side in doubled] for k in {*theirs, *ours}}
