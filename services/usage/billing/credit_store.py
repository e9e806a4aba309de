"""Where credits are kept, and what invoices drew on them.

What is left of a credit is its amount without its draws; an invoice that is credited in whole gives
back what it drew, by a draw of its credit note's below zero. Nothing is drawn beyond what is left:
draws are written by whoever issues invoices, one at a time.
"""

from collections.abc import Collection, Sequence
from typing import Any, Final

from sqlalchemy import Connection, Row, func, insert, or_, select, update

from onegate.common.v1 import error_pb2
from onegate.usage.v1.billing_pb2 import BillingPayer, Credit
from onegate.usage.v1.invoice_pb2 import InvoiceScope, InvoiceTerms
from runtime.errors import GatewayError
from runtime.sql import Database, serialise
from services.usage.billing.agreements import check_payer, invalid
from services.usage.billing.billing_schema import CREDITS, DRAWS
from services.usage.invoices.documents import NANO_USD_MAX, TEXT_CHARS_MAX, Drawn, Used
from services.usage.invoices.documents import payable_nano_usd as payable
from services.usage.ledger.ledger_store import NowUs

INVOICES_LOCK: Final = "onegate_invoices"
PREFIX: Final = "crd_"
_C, _D = CREDITS.c, DRAWS.c
_SECONDS: Final = range(1, 253_402_300_800)


class CreditStore:
    """Credits, in the database of the invoices that draw on them.

    Args:
        database: the database.
        now_us: the clock that all writers share.
    """

    def __init__(self, database: Database, now_us: NowUs) -> None:
        self._database = database
        self._now_us = now_us

    async def grant(self, wanted: Credit, request_id: str) -> Credit:
        """Keeps a credit; the same one for the same wish.

        Raises:
            GatewayError: INVALID_REQUEST, or IDEMPOTENCY_MISMATCH for another wish with the id.
        """
        if not 0 < len(request_id) <= 64 or not request_id.isascii():
            raise invalid("request_id", "must have 1 to 64 ASCII characters")
        _check(wanted)
        return await self._database.write(lambda c: self._grant(c, wanted, request_id))

    async def list(
        self, organization_id: str, before: int | None, count_max: int
    ) -> "list[tuple[int, Credit]]":
        """Numbers and credits, newest first."""
        query = select(CREDITS).order_by(_C.number.desc()).limit(count_max)
        if organization_id:
            query = query.where(_C.organization_id == organization_id)
        if before is not None:
            query = query.where(_C.number < before)

        def read(connection: Connection) -> "list[tuple[int, Credit]]":
            rows = connection.execute(query).all()
            drawn = _drawn(connection, [row.number for row in rows])
            return [(row.number, _message(row, drawn.get(row.number, 0))) for row in rows]

        return await self._database.read(read)

    async def revoke(self, credit_id: str) -> Credit:
        """Ends a credit; one that is ended stays as it is. Raises NOT_FOUND."""
        number = credit_id.removeprefix(PREFIX)
        if not credit_id.startswith(PREFIX) or not number.isdecimal() or len(number) > 18:
            raise _unknown(credit_id)
        return await self._database.write(lambda c: self._revoke(c, int(number), credit_id))

    def _grant(self, connection: Connection, wanted: Credit, request_id: str) -> Credit:
        serialise(connection, "onegate_credits")
        row = {
            "organization_id": wanted.payer.organization_id,
            "project_id": wanted.payer.project_id,
            "customer": wanted.payer.customer,
            "description": wanted.description,
            "amount_nano_usd": wanted.amount_nano_usd,
            "expires_at_us": (
                wanted.expires_at.ToMicroseconds() if wanted.HasField("expires_at") else None
            ),
        }
        known = connection.execute(select(CREDITS).where(_C.request_id == request_id)).first()
        if known is not None:
            if any(getattr(known, name) != value for name, value in row.items()):
                raise GatewayError(
                    error_pb2.ERROR_REASON_IDEMPOTENCY_MISMATCH,
                    "Something else was asked for with this request id: it became"
                    f" {PREFIX}{known.number}.",
                )
            return _message(known, _drawn(connection, [known.number]).get(known.number, 0))
        now_us = self._now_us(connection)
        more = {"request_id": request_id, "granted_at_us": now_us}
        made = connection.execute(insert(CREDITS).values({**row, **more}))
        (number,) = made.inserted_primary_key or (0,)
        return _message(_row(connection, number), 0)

    def _revoke(self, connection: Connection, number: int, credit_id: str) -> Credit:
        # No invoice draws on it meanwhile.
        serialise(connection, INVOICES_LOCK)
        if connection.execute(select(_C.number).where(_C.number == number)).first() is None:
            raise _unknown(credit_id)
        standing = _C.number == number, _C.revoked_at_us.is_(None)
        now_us = self._now_us(connection)
        connection.execute(update(CREDITS).where(*standing).values(revoked_at_us=now_us))
        return _message(_row(connection, number), _drawn(connection, [number]).get(number, 0))


def drawable(connection: Connection, terms: InvoiceTerms, used: Used) -> list[Drawn]:
    """What an invoice draws: on credits of its payer that had not expired when its period ended,
    the soonest to expire first, until nothing is due or nothing is left.
    """
    left_due = payable(terms, used)
    drawn: list[Drawn] = []
    if left_due <= 0:
        return drawn
    rows = connection.execute(_eligible(terms.scope)).all()
    spent = _drawn(connection, [row.number for row in rows])
    for row in rows:
        left = int(row.amount_nano_usd) - spent.get(row.number, 0)
        amount = min(left, left_due)
        if amount > 0:
            name = f"{PREFIX}{row.number}"
            drawn.append(Drawn(credit_id=name, description=row.description, amount_nano_usd=amount))
            left_due -= amount
    return drawn


def draw(
    connection: Connection, invoice: tuple[str, str], drawn: Sequence[Drawn], now_us: int
) -> None:
    """Keeps what an invoice (issuer, number) draws."""
    issuer, number = invoice
    rows = [
        {
            "credit_number": int(one.credit_id.removeprefix(PREFIX)),
            "issuer": issuer,
            "invoice_number": number,
            "amount_nano_usd": one.amount_nano_usd,
            "drawn_at_us": now_us,
        }
        for one in drawn
    ]
    if rows:
        connection.execute(insert(DRAWS), rows)


def give_back(
    connection: Connection, invoice: tuple[str, str], note_number: str, now_us: int
) -> None:
    """A credit note takes back in whole what an invoice (issuer, number) drew."""
    issuer, number = invoice
    query = select(DRAWS).where(_D.issuer == issuer, _D.invoice_number == number)
    rows = [
        {
            "credit_number": row.credit_number,
            "issuer": issuer,
            "invoice_number": note_number,
            "amount_nano_usd": -int(row.amount_nano_usd),
            "drawn_at_us": now_us,
        }
        for row in connection.execute(query).all()
    ]
    if rows:
        connection.execute(insert(DRAWS), rows)


def _eligible(scope: InvoiceScope) -> Any:
    ends_us = scope.started_before.ToMicroseconds()
    return (
        select(CREDITS)
        .where(
            _C.organization_id == scope.organization_id,
            _C.project_id.in_(sorted({"", scope.project_id})),
            _C.customer.in_(sorted({"", scope.customer})),
            _C.revoked_at_us.is_(None),
            or_(_C.expires_at_us.is_(None), _C.expires_at_us >= ends_us),
        )
        .order_by(_C.expires_at_us.is_(None), _C.expires_at_us, _C.number)
    )


def _drawn(connection: Connection, numbers: Collection[int]) -> dict[int, int]:
    if not numbers:
        return {}
    query = select(_D.credit_number, func.sum(_D.amount_nano_usd)).group_by(_D.credit_number)
    found = connection.execute(query.where(_D.credit_number.in_(sorted(numbers))))
    return {number: int(amount) for number, amount in found}


def _row(connection: Connection, number: int) -> Row[Any]:
    return connection.execute(select(CREDITS).where(_C.number == number)).one()


def _message(row: Row[Any], drawn: int) -> Credit:
    made = Credit(
        id=f"{PREFIX}{row.number}",
        payer=BillingPayer(
            organization_id=row.organization_id, project_id=row.project_id, customer=row.customer
        ),
        description=row.description,
        amount_nano_usd=int(row.amount_nano_usd),
        drawn_nano_usd=drawn,
    )
    made.granted_at.FromMicroseconds(row.granted_at_us)
    if row.expires_at_us is not None:
        made.expires_at.FromMicroseconds(row.expires_at_us)
    if row.revoked_at_us is not None:
        made.revoked_at.FromMicroseconds(row.revoked_at_us)
    return made


def _check(wanted: Credit) -> None:
    check_payer(wanted.payer)
    if not 0 < wanted.amount_nano_usd <= NANO_USD_MAX:
        raise invalid("amount_nano_usd", "must be more than 0 and at most a thousand million USD")
    text = wanted.description
    if not 0 < len(text.strip()) <= TEXT_CHARS_MAX or not text.isprintable():
        raise invalid("description", f"must be one line of at most {TEXT_CHARS_MAX} characters")
    if wanted.HasField("expires_at") and wanted.expires_at.seconds not in _SECONDS:
        raise invalid("expires_at", "must lie between 1970 and 9999")


def _unknown(credit_id: str) -> GatewayError:
    return GatewayError(error_pb2.ERROR_REASON_NOT_FOUND, f"There is no credit {credit_id[:64]!r}.")
