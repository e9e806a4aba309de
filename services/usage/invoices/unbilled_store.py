"""From when records are still to be billed."""

from collections import defaultdict
from typing import Final

from sqlalchemy import Connection, select

from onegate.usage.v1 import invoice_pb2 as pb
from services.usage.invoices.invoice_schema import INVOICES
from services.usage.reports.spans import DAY_US

GIVEN_UP_US: Final = 400 * DAY_US
"""After so long without an invoice nobody is thought to be billed any more, in microseconds."""

_I = INVOICES.c


def unbilled_from(connection: Connection, now_us: int) -> int | None:
    """The earliest end of what each scope was billed for last, in microseconds since 1970; the
    start of a period whose invoice was credited in whole and not issued again. ``None`` where
    nobody is billed.
    """
    issued = _I.issued_at_us > now_us - GIVEN_UP_US
    note = (_I.issuer, _I.credits_number)
    whole = select(*note).where(_I.kind == int(pb.INVOICE_KIND_CREDIT_NOTE), _I.whole.is_(True))
    credited = {(issuer, number) for issuer, number in connection.execute(whole)}
    rows = connection.execute(
        select(
            _I.issuer,
            _I.number,
            _I.organization_id,
            _I.project_id,
            _I.customer,
            _I.from_us,
            _I.before_us,
        ).where(_I.kind == int(pb.INVOICE_KIND_INVOICE), issued)
    )
    standing: dict[tuple[str, ...], set[tuple[int, int]]] = defaultdict(set)
    fallen: dict[tuple[str, ...], set[tuple[int, int]]] = defaultdict(set)
    for row in rows:
        kept = fallen if (row.issuer, row.number) in credited else standing
        scope = (row.issuer, row.organization_id, row.project_id, row.customer)
        kept[scope].add((row.from_us, row.before_us))
    ends = [max(before_us for _, before_us in spans) for spans in standing.values()]
    for of, spans in fallen.items():
        ends += [
            from_us
            for from_us, before_us in spans
            if not any(a < before_us and from_us < b for a, b in standing[of])
        ]
    return min(ends, default=None)
