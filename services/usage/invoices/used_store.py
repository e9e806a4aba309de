"""What the ledger says that a scope used, cost and is charged: records, what changed their prices
since, and what agreements made of them.
"""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from sqlalchemy import Column, ColumnElement, Connection, Row, and_, func, literal_column, select

from onegate.usage.v1 import invoice_pb2 as pb
from onegate.usage.v1 import usage_service_pb2
from onegate.usage.v1.usage_record_pb2 import UsageRecord
from services.usage.billing.billing_schema import CHARGES
from services.usage.invoices import documents
from services.usage.invoices.documents import Late, Line, Used, invalid
from services.usage.invoices.invoice_schema import INVOICES, SHARES, WHOLE
from services.usage.reports.report_store import marks
from services.usage.reports.rollup_schema import ADJUSTMENTS
from services.usage.reports.spans import DAY_US
from services.usage.store import RECORDS

LATE_INVOICES_MAX: Final = 13
"""How many earlier invoices of a scope are looked at for what came late: a year of months."""

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_I, _S, _R = INVOICES.c, SHARES.c, RECORDS.c
_J, _C = ADJUSTMENTS.c, CHARGES.c
_SHARED: Final = ("amount_nano_usd", "covered_nano_usd", "margin_nano_usd")

_LINES: Final[Mapping[int, ColumnElement[Any]]] = {
    usage_service_pb2.USAGE_DIMENSION_MODEL: _R.model,
    usage_service_pb2.USAGE_DIMENSION_KEY: _R.key_id,
    usage_service_pb2.USAGE_DIMENSION_PROJECT: _R.project_id,
    usage_service_pb2.USAGE_DIMENSION_PROVIDER: _R.provider,
    usage_service_pb2.USAGE_DIMENSION_DAY: _R.started_at_us // literal_column(str(DAY_US)),
    usage_service_pb2.USAGE_DIMENSION_FEATURE: _R.feature,
    usage_service_pb2.USAGE_DIMENSION_CUSTOMER: _R.customer,
}


def standing_invoices(connection: Connection, records: Sequence[UsageRecord]) -> "list[str]":
    """The numbers of invoices that stand and bill some of these records, oldest first."""
    if not records:
        return []
    times = [record.started_at.ToMicroseconds() for record in records]
    query = select(INVOICES).where(
        _I.kind == int(pb.INVOICE_KIND_INVOICE),
        _I.organization_id.in_(sorted({record.organization_id for record in records})),
        _I.before_us > min(times),
        _I.from_us <= max(times),
        ~WHOLE,
    )
    found = connection.execute(query.order_by(_I.issued_at_us)).all()
    return [row.number for row in found if any(_bills(row, record) for record in records)]


def _bills(row: Row[Any], record: UsageRecord) -> bool:
    return (
        row.organization_id == record.organization_id
        and row.project_id in ("", record.project_id)
        and row.customer in ("", record.attribution.customer)
        and row.from_us <= record.started_at.ToMicroseconds() < row.before_us
    )


def _of(
    scope: pb.InvoiceScope | Row[Any], span: tuple[int, int], of: Any = RECORDS.c
) -> ColumnElement[bool]:
    """The records of a scope in a span, or the rows of another table with the same columns."""
    wanted = [
        of.organization_id == scope.organization_id,
        of.started_at_us >= span[0],
        of.started_at_us < span[1],
    ]
    if scope.project_id:
        wanted.append(of.project_id == scope.project_id)
    if scope.customer:
        wanted.append(of.customer == scope.customer)
    return and_(*wanted)


def used_by(connection: Connection, terms: pb.InvoiceTerms) -> Used:
    """What the ledger says of a scope and of what came late before it. Raises INVALID_REQUEST."""
    scope = terms.scope
    span = (scope.started_from.ToMicroseconds(), scope.started_before.ToMicroseconds())
    kept_us = marks(connection).kept_us
    if span[0] < kept_us:
        raise invalid("scope.started_from", "lies before the time of which records are kept")
    name = _LINES[terms.lines_by]
    counted = (
        func.count(),
        func.sum(_R.input_tokens),
        func.sum(_R.cached_input_tokens),
        func.sum(_R.output_tokens),
        func.sum(_R.cost_nano_usd),
    )
    query = select(name, *counted).where(_of(scope, span)).group_by(name)
    rows = connection.execute(query.limit(documents.LINES_MAX + 1)).all()
    if len(rows) > documents.LINES_MAX:
        raise invalid("lines_by", f"makes more than {documents.LINES_MAX} lines: choose another")
    changed = _by_line(connection, name, (_J.amount_nano_usd,), (scope, span))
    agreed = _by_line(connection, name, (_C.cost_nano_usd, _C.margin_nano_usd), (scope, span))
    by_day = terms.lines_by == usage_service_pb2.USAGE_DIMENSION_DAY
    lines = []
    for row in rows:
        covered, margin = agreed.get(row[0], (0, 0))
        lines.append(
            Line(
                name=(_date(row[0]) if by_day else row[0]),
                calls=int(row[1]),
                input_tokens=int(row[2]),
                cached_input_tokens=int(row[3]),
                output_tokens=int(row[4]),
                amount_nano_usd=int(row[5]) + changed.get(row[0], (0,))[0],
                covered_nano_usd=covered,
                margin_nano_usd=margin,
            )
        )
    if by_day:
        lines.sort(key=lambda line: line.name)
    else:
        lines.sort(key=lambda line: (-line.charged_nano_usd, line.name))
    return Used(lines=lines, late=_late(connection, scope, kept_us))


def _by_line(
    connection: Connection,
    name: ColumnElement[Any],
    amounts: Sequence[Column[Any]],
    of: tuple[pb.InvoiceScope, tuple[int, int]],
) -> dict[Any, tuple[int, ...]]:
    """Sums of a table beside the records, by line."""
    table = amounts[0].table
    sums = [func.sum(amount) for amount in amounts]
    query = (
        select(name, *sums)
        .select_from(table.join(RECORDS, _R.attempt_id == table.c.attempt_id))
        .where(table.c.started_at_us >= of[1][0], table.c.started_at_us < of[1][1], _of(*of))
        .group_by(name)
    )
    return {row[0]: tuple(map(int, row[1:])) for row in connection.execute(query)}


def _late(connection: Connection, scope: pb.InvoiceScope, kept_us: int) -> Sequence[Late]:
    """What the periods of earlier invoices gained since, and no invoice bills yet. Nothing comes
    late any more to one of whose period records are gone.
    """
    earlier = connection.execute(
        select(INVOICES)
        .where(
            _I.kind == int(pb.INVOICE_KIND_INVOICE),
            _I.organization_id == scope.organization_id,
            _I.project_id == scope.project_id,
            _I.customer == scope.customer,
            _I.before_us <= scope.started_from.ToMicroseconds(),
            _I.from_us >= kept_us,
            ~WHOLE,
        )
        .order_by(_I.before_us.desc())
        .limit(LATE_INVOICES_MAX)
    ).all()
    found = []
    for row in reversed(earlier):
        billed = connection.execute(
            select(*(func.coalesce(func.sum(_S[name]), 0) for name in _SHARED))
            .join(INVOICES, and_(_I.issuer == _S.issuer, _I.number == _S.number))
            .where(_S.of_issuer == row.issuer, _S.of_number == row.number, ~WHOLE)
        ).one()
        now = _sums(connection, row, (row.from_us, row.before_us))
        gained = [sum_ - int(before) for sum_, before in zip(now, billed, strict=True)]
        if any(gained):
            found.append(
                Late(
                    issuer=row.issuer,
                    number=row.number,
                    amount_nano_usd=gained[0],
                    covered_nano_usd=gained[1],
                    margin_nano_usd=gained[2],
                )
            )
    return found


def _sums(
    connection: Connection, scope: pb.InvoiceScope | Row[Any], span: tuple[int, int]
) -> tuple[int, int, int]:
    """What a scope cost in a span, how much of it agreements cover, and the margin beyond it."""
    cost = select(func.coalesce(func.sum(_R.cost_nano_usd), 0)).where(_of(scope, span))
    changed = (
        select(func.coalesce(func.sum(_J.amount_nano_usd), 0))
        .join(RECORDS, _R.attempt_id == _J.attempt_id)
        .where(_J.started_at_us >= span[0], _J.started_at_us < span[1], _of(scope, span))
    )
    agreed = select(
        func.coalesce(func.sum(_C.cost_nano_usd), 0),
        func.coalesce(func.sum(_C.margin_nano_usd), 0),
    ).where(_of(scope, span, _C))
    total = sum(int(connection.execute(query).scalar_one()) for query in (cost, changed))
    covered, margin = connection.execute(agreed).one()
    return total, int(covered), int(margin)


def shares_of(issuer: str, number: str, used: Used) -> list[dict[str, object]]:
    """What an invoice bills, as rows: of its own period, and of each earlier invoice's."""
    own = (issuer, number, used.own_nano_usd, used.own_covered_nano_usd, used.own_margin_nano_usd)
    late = [
        (o.issuer, o.number, o.amount_nano_usd, o.covered_nano_usd, o.margin_nano_usd)
        for o in used.late
    ]
    return [
        {
            "issuer": issuer,
            "number": number,
            "of_issuer": of_issuer,
            "of_number": of_number,
            "amount_nano_usd": amount,
            "covered_nano_usd": covered,
            "margin_nano_usd": margin,
        }
        for of_issuer, of_number, amount, covered, margin in (own, *late)
    ]


def _date(day: int) -> str:
    return (_EPOCH + timedelta(days=day)).date().isoformat()
