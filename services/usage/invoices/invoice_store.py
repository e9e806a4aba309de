"""Where invoices are kept: numbered without gaps, frozen, and never two for the same usage.

A number is taken in the transaction that keeps the document, so that a failure leaves no gap. What
an invoice bills is kept as shares: one for its own period, one for each earlier invoice whose
period gained postings since. Rows are only ever inserted.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any, Final

from sqlalchemy import (
    Connection,
    Row,
    Select,
    and_,
    func,
    insert,
    or_,
    select,
)

from onegate.common.v1 import error_pb2
from onegate.usage.v1 import invoice_pb2 as pb
from onegate.usage.v1 import invoice_service_pb2
from runtime.errors import GatewayError
from runtime.sql import Database, serialise
from services.usage.billing import billing_schema, credit_store
from services.usage.invoices import documents
from services.usage.invoices.documents import Correction, Used, invalid
from services.usage.invoices.invoice_schema import INVOICES, MIGRATIONS, SHARES, WHOLE
from services.usage.invoices.used_store import shares_of, used_by
from services.usage.ledger.ledger_store import NowUs

REQUEST_ID_CHARS_MAX: Final = 64

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_I, _S = INVOICES.c, SHARES.c


@dataclass(frozen=True, slots=True, kw_only=True)
class _Wish:
    """Who asks for a document; asked again with the same id, it is the same wish."""

    issuer: str
    kind: pb.InvoiceKind.ValueType
    request_id: str
    digest: bytes


class InvoiceStore:
    """Invoices, in the database of the usage that they bill.

    Args:
        database: the database.
        now_us: the clock that all writers share.
    """

    def __init__(self, database: Database, now_us: NowUs) -> None:
        self._database = database
        self._now_us = now_us

    async def migrate(self, *, now: datetime) -> None:
        """Brings the schema up to date; the records' own must be there."""
        await self._database.migrate("usage_billing", billing_schema.MIGRATIONS, now=now)
        await self._database.migrate("usage_invoices", MIGRATIONS, now=now)

    async def draft(self, terms: pb.InvoiceTerms) -> pb.Invoice:
        """What an invoice would say. ``terms`` are checked. Raises CONFLICT, INVALID_REQUEST."""
        made: pb.Invoice = await self._database.read(lambda c: self._draft(c, terms))
        return made

    async def issue(self, terms: pb.InvoiceTerms, request_id: str) -> pb.Invoice:
        """Numbers and freezes an invoice; the same one for the same wish.

        Raises:
            GatewayError: CONFLICT, INVALID_REQUEST, or IDEMPOTENCY_MISMATCH for another wish with
                the same id.
        """
        wish = _wish(terms.issuer, pb.INVOICE_KIND_INVOICE, request_id, terms)
        return await self._database.write(lambda c: self._issue(c, terms, wish))

    async def credit(self, request: invoice_service_pb2.CreditInvoiceRequest) -> pb.Invoice:
        """Numbers and freezes a credit note. Raises as :meth:`issue`, and NOT_FOUND."""
        issuer = documents.issuer_of(request.issuer)
        wish = _wish(issuer, pb.INVOICE_KIND_CREDIT_NOTE, request.request_id, request)
        return await self._database.write(lambda c: self._credit(c, request, wish))

    async def get(self, issuer: str, number: str) -> pb.Invoice:
        """A document. Raises NOT_FOUND, and INTERNAL when it is not what was frozen."""
        return await self._database.read(lambda c: _message(_found(c, issuer, number)))

    async def list(
        self, issuer: str, organization_id: str, after: tuple[int, str, str] | None, count_max: int
    ) -> "list[pb.Invoice]":
        """Documents older than ``after`` (when, issuer, number), newest first, without content."""
        query = _rows()
        if issuer:
            query = query.where(_I.issuer == issuer)
        if organization_id:
            query = query.where(_I.organization_id == organization_id)
        if after is not None:
            at, of, number = after
            later = or_(_I.issuer > of, and_(_I.issuer == of, _I.number > number))
            query = query.where(or_(_I.issued_at_us < at, and_(_I.issued_at_us == at, later)))
        query = query.order_by(_I.issued_at_us.desc(), _I.issuer, _I.number).limit(count_max)
        found = await self._database.read(lambda c: c.execute(query).all())
        made = [_message(row) for row in found]
        for one in made:
            one.ClearField("document")
        return made

    def _draft(self, connection: Connection, terms: pb.InvoiceTerms) -> pb.Invoice:
        _refuse_overlap(connection, terms.scope)
        used = _billed(connection, terms)
        content = documents.document(terms, used, number="", issued_at=None)
        raw, sha256 = documents.frozen(content)
        return pb.Invoice(
            kind=pb.INVOICE_KIND_INVOICE,
            issuer=terms.issuer,
            scope=terms.scope,
            currency=terms.currency,
            total_minor=documents.minor_of(Decimal(content["totals"]["total"]), terms.currency),
            usage_nano_usd=used.total_nano_usd,
            document=raw,
            sha256=sha256,
        )

    def _issue(self, connection: Connection, terms: pb.InvoiceTerms, wish: _Wish) -> pb.Invoice:
        serialise(connection, "onegate_invoices")
        if (known := _known(connection, wish)) is not None:
            return known
        now_us = self._now_us(connection)
        before_us = terms.scope.started_before.ToMicroseconds()
        if before_us > now_us:
            raise invalid("scope.started_before", "lies ahead: draft it, and issue it afterwards")
        _refuse_overlap(connection, terms.scope)
        used = _billed(connection, terms)
        sequence = _next(connection, wish)
        number = f"{terms.number_prefix}{sequence:06d}"
        content = documents.document(terms, used, number=number, issued_at=_moment(now_us))
        raw, sha256 = documents.frozen(content)
        row = {
            **_scope_row(terms.scope),
            **_wish_row(wish),
            "sequence": sequence,
            "number": number,
            "currency": terms.currency,
            "total_minor": _minor(content),
            "usage_nano_usd": used.total_nano_usd,
            "credits_number": "",
            "whole": False,
            "issued_at_us": now_us,
            "sha256": sha256,
            "document": raw,
        }
        _refuse_same_number(connection, terms.issuer, number)
        connection.execute(insert(INVOICES).values(row))
        connection.execute(insert(SHARES), shares_of(terms.issuer, number, used))
        credit_store.draw(connection, (terms.issuer, number), used.drawn, now_us)
        return _message(_found(connection, terms.issuer, number))

    def _credit(
        self,
        connection: Connection,
        request: invoice_service_pb2.CreditInvoiceRequest,
        wish: _Wish,
    ) -> pb.Invoice:
        serialise(connection, "onegate_invoices")
        if (known := _known(connection, wish)) is not None:
            return known
        invoice = _message(_found(connection, wish.issuer, request.number))
        if invoice.kind != pb.INVOICE_KIND_INVOICE:
            raise _conflict(f"{request.number} is a credit note; invoices are credited.")
        now_us = self._now_us(connection)
        sequence = _next(connection, wish)
        number = f"{documents.prefix_of(request.number_prefix, 'CN-')}{sequence:06d}"
        amount = request.net_amount
        left = _left(connection, invoice, whole=not amount)
        content = documents.credit_document(
            documents.thawed(invoice.document, invoice.sha256),
            Correction(
                number=number,
                reason=request.reason,
                net_amount=documents.decimal_of(amount, "net_amount") if amount else None,
                issued_at=_moment(now_us),
                sha256=invoice.sha256,
                left=Decimal(left).scaleb(-documents.places_of(invoice.currency)),
            ),
        )
        raw, sha256 = documents.frozen(content)
        row = {
            **_scope_row(invoice.scope),
            **_wish_row(wish),
            "sequence": sequence,
            "number": number,
            "currency": invoice.currency,
            "total_minor": _minor(content),
            "usage_nano_usd": 0,
            "credits_number": invoice.number,
            "whole": not amount,
            "issued_at_us": now_us,
            "sha256": sha256,
            "document": raw,
        }
        _refuse_same_number(connection, wish.issuer, number)
        connection.execute(insert(INVOICES).values(row))
        if not amount:
            credit_store.give_back(connection, (wish.issuer, invoice.number), number, now_us)
        return _message(_found(connection, wish.issuer, number))


def _billed(connection: Connection, terms: pb.InvoiceTerms) -> Used:
    """What an invoice is about, with what credits pay of it."""
    used = used_by(connection, terms)
    return replace(used, drawn=credit_store.drawable(connection, terms, used))


def _wish(issuer: str, kind: pb.InvoiceKind.ValueType, request_id: str, asked: Any) -> _Wish:
    if not 0 < len(request_id) <= REQUEST_ID_CHARS_MAX or not request_id.isascii():
        raise invalid("request_id", f"must have 1 to {REQUEST_ID_CHARS_MAX} ASCII characters")
    digest = hashlib.sha256(asked.SerializeToString(deterministic=True)).digest()
    return _Wish(issuer=issuer, kind=kind, request_id=request_id, digest=digest)


def _wish_row(wish: _Wish) -> dict[str, object]:
    return {
        "issuer": wish.issuer,
        "kind": int(wish.kind),
        "request_id": wish.request_id,
        "request_digest": wish.digest,
    }


def _scope_row(scope: pb.InvoiceScope) -> dict[str, object]:
    return {
        "organization_id": scope.organization_id,
        "project_id": scope.project_id,
        "customer": scope.customer,
        "from_us": scope.started_from.ToMicroseconds(),
        "before_us": scope.started_before.ToMicroseconds(),
    }


def _rows() -> Select[Any]:
    return select(INVOICES, WHOLE.label("credited"))


def _known(connection: Connection, wish: _Wish) -> pb.Invoice | None:
    query = _rows().where(_I.issuer == wish.issuer, _I.request_id == wish.request_id)
    row = connection.execute(query).first()
    if row is None:
        return None
    if row.request_digest != wish.digest or row.kind != wish.kind:
        raise GatewayError(
            error_pb2.ERROR_REASON_IDEMPOTENCY_MISMATCH,
            f"Something else was asked for with this request id: it became {row.number}.",
        )
    return _message(row)


def _found(connection: Connection, issuer: str, number: str) -> Row[Any]:
    row = connection.execute(_rows().where(_I.issuer == issuer, _I.number == number)).first()
    if row is None:
        raise GatewayError(
            error_pb2.ERROR_REASON_NOT_FOUND, f"There is no invoice {number[:64]!r}."
        )
    return row


def _next(connection: Connection, wish: _Wish) -> int:
    """The next number; the caller holds everybody else back."""
    query = select(func.coalesce(func.max(_I.sequence), 0) + 1).where(
        _I.issuer == wish.issuer, _I.kind == int(wish.kind)
    )
    return int(connection.execute(query).scalar_one())


def _refuse_same_number(connection: Connection, issuer: str, number: str) -> None:
    query = select(_I.number).where(_I.issuer == issuer, _I.number == number)
    if connection.execute(query).first() is not None:
        raise _conflict(f"{number} is taken: give invoices and credit notes prefixes of their own.")


def _refuse_overlap(connection: Connection, scope: pb.InvoiceScope) -> None:
    """Raises CONFLICT when a call may be on another invoice that stands."""
    span = _scope_row(scope)
    query = select(INVOICES).where(
        _I.kind == int(pb.INVOICE_KIND_INVOICE),
        _I.organization_id == scope.organization_id,
        _I.before_us > span["from_us"],
        _I.from_us < span["before_us"],
        ~WHOLE,
    )
    for row in connection.execute(query.order_by(_I.issued_at_us)):
        other = pb.InvoiceScope(
            organization_id=row.organization_id, project_id=row.project_id, customer=row.customer
        )
        if documents.may_overlap(scope, other):
            raise _conflict(
                f"{row.number} bills some of the same usage. Choose another period or scope, or"
                " credit that invoice in whole first."
            )


def _left(connection: Connection, invoice: pb.Invoice, *, whole: bool) -> int:
    """What may still be credited, in the currency's smallest coins. Raises CONFLICT."""
    notes = connection.execute(
        select(_I.number, _I.total_minor, _I.whole).where(
            _I.issuer == invoice.issuer, _I.credits_number == invoice.number
        )
    ).all()
    if any(note.whole for note in notes):
        raise _conflict(f"{invoice.number} is credited in whole already, by {notes[0].number}.")
    if whole and notes:
        raise _conflict(
            f"A part of {invoice.number} is credited already, by {notes[0].number}: credit the"
            " rest by its amount."
        )
    query = (
        select(_S.number)
        .join(INVOICES, and_(_I.issuer == _S.issuer, _I.number == _S.number))
        .where(
            _S.of_issuer == invoice.issuer,
            _S.of_number == invoice.number,
            or_(_S.issuer != invoice.issuer, _S.number != invoice.number),
            ~WHOLE,
        )
    )
    if whole and (later := connection.execute(query).scalar()) is not None:
        raise _conflict(f"{later} bills what came late for {invoice.number}: credit {later} first.")
    return invoice.total_minor + sum(int(note.total_minor) for note in notes)


def _minor(content: Mapping[str, Any]) -> int:
    return documents.minor_of(Decimal(content["totals"]["total"]), str(content["currency"]))


def _message(row: Row[Any]) -> pb.Invoice:
    documents.thawed(row.document, row.sha256)
    made = pb.Invoice(
        kind=pb.InvoiceKind.ValueType(row.kind),
        issuer=row.issuer,
        number=row.number,
        scope=pb.InvoiceScope(
            organization_id=row.organization_id, project_id=row.project_id, customer=row.customer
        ),
        currency=row.currency,
        total_minor=row.total_minor,
        usage_nano_usd=row.usage_nano_usd,
        document=row.document,
        sha256=row.sha256,
        credits_number=row.credits_number,
        credited=bool(row.credited),
    )
    made.scope.started_from.FromMicroseconds(row.from_us)
    made.scope.started_before.FromMicroseconds(row.before_us)
    made.issued_at.FromMicroseconds(row.issued_at_us)
    return made


def _moment(at_us: int) -> datetime:
    return _EPOCH + timedelta(microseconds=at_us)


def _conflict(what: str) -> GatewayError:
    return GatewayError(error_pb2.ERROR_REASON_CONFLICT, what)
