"""What an invoice says: exact sums, one rounding, and the document that is frozen. Pure.

Usage is in nano-USD and is what the ledger says, to the nano. Margin, exchange and tax are decimals
that are carried out exactly; the total alone is rounded, half up to the currency's smallest coin,
and the difference is a line of its own.
"""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import ROUND_HALF_UP, Context, Decimal, Inexact, InvalidOperation, localcontext
from typing import Any, Final

from onegate.common.v1 import error_pb2
from onegate.usage.v1 import usage_service_pb2
from onegate.usage.v1.invoice_pb2 import InvoiceParty, InvoiceScope, InvoiceTerms
from runtime.errors import GatewayError

SCHEMA: Final = "onegate.invoice/1"
NANO: Final = Decimal(10) ** -9
TEXT_CHARS_MAX: Final = 500
LINES_MAX: Final = 2_000
PARTY_LINES_MAX: Final = 12
CREDITS_MAX: Final = 50
DUE_DAYS_MAX: Final = 365
NANO_USD_MAX: Final = 10**18
MINOR_MAX: Final = 2**62

_EXACT: Final = Context(prec=120, traps=[Inexact, InvalidOperation])
"""Any step that would lose a digit is an error instead."""

_WITHOUT_COINS: Final = "BIF CLP DJF GNF ISK JPY KMF KRW PYG RWF UGX UYI VND VUV XAF XOF XPF"
_THOUSANDTHS: Final = "BHD IQD JOD KWD LYD OMR TND"
"""Currencies by their decimal places, after ISO 4217's table; all others have two."""

_CURRENCY: Final = re.compile(r"[A-Z]{3}", re.ASCII)
_ISSUER: Final = re.compile(r"[a-z0-9][a-z0-9_-]{0,31}", re.ASCII)
_PREFIX: Final = re.compile(r"[A-Za-z0-9/_.-]{1,24}", re.ASCII)
_DECIMAL: Final = re.compile(r"-?[0-9]{1,12}(\.[0-9]{1,12})?", re.ASCII)

_NO_LINES: Final = frozenset({usage_service_pb2.USAGE_DIMENSION_UNSPECIFIED})


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """What one model (or project, key …) used, as the ledger says."""

    name: str
    calls: int
    input_tokens: int
    cached_input_tokens: int
    output_tokens: int
    amount_nano_usd: int
    covered_nano_usd: int = 0
    margin_nano_usd: int = 0

    @property
    def charged_nano_usd(self) -> int:
        """What is charged for it: what it cost, and what agreements make of that."""
        return self.amount_nano_usd + self.margin_nano_usd


@dataclass(frozen=True, slots=True, kw_only=True)
class Late:
    """What was posted to an invoice's period after it was issued; the same figures as a line's."""

    issuer: str
    number: str
    amount_nano_usd: int
    covered_nano_usd: int = 0
    margin_nano_usd: int = 0

    @property
    def charged_nano_usd(self) -> int:
        """What is charged for it."""
        return self.amount_nano_usd + self.margin_nano_usd


@dataclass(frozen=True, slots=True, kw_only=True)
class Drawn:
    """What an invoice draws on a credit that was granted."""

    credit_id: str
    description: str
    amount_nano_usd: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Used:
    """What an invoice is about: its period's lines, what came late for earlier ones, and what
    credits pay of it.

    Amounts are what the ledger says; ``covered`` is the part of them to which agreements apply, and
    ``margin`` what these charge beyond it.
    """

    lines: Sequence[Line]
    late: Sequence[Late] = ()
    drawn: Sequence[Drawn] = ()

    @property
    def own_nano_usd(self) -> int:
        """What the period's lines add up to."""
        return sum(line.amount_nano_usd for line in self.lines)

    @property
    def total_nano_usd(self) -> int:
        """The same with what came late."""
        return self.own_nano_usd + sum(one.amount_nano_usd for one in self.late)

    @property
    def own_covered_nano_usd(self) -> int:
        """The part of the period's lines to which agreements apply."""
        return sum(line.covered_nano_usd for line in self.lines)

    @property
    def own_margin_nano_usd(self) -> int:
        """What agreements charge beyond the period's lines."""
        return sum(line.margin_nano_usd for line in self.lines)

    @property
    def covered_nano_usd(self) -> int:
        """The same with what came late."""
        return self.own_covered_nano_usd + sum(one.covered_nano_usd for one in self.late)

    @property
    def agreed_nano_usd(self) -> int:
        """What agreements charge in all beyond the ledger's sum; less than nothing for less."""
        return self.own_margin_nano_usd + sum(one.margin_nano_usd for one in self.late)


@dataclass(frozen=True, slots=True, kw_only=True)
class Totals:
    """The sums of a document; all but ``total`` are exact. USD, then the currency's own units."""

    margin_usd: Decimal
    credits_usd: Decimal
    net_usd: Decimal
    net: Decimal
    tax: Decimal
    rounding: Decimal
    total: Decimal


def checked(terms: InvoiceTerms) -> InvoiceTerms:
    """Terms with their defaults filled in. Raises INVALID_REQUEST for what makes no sense."""
    kept = InvoiceTerms()
    kept.CopyFrom(terms)
    kept.issuer = issuer_of(kept.issuer)
    kept.number_prefix = prefix_of(kept.number_prefix, "INV-")
    kept.currency = kept.currency or "USD"
    kept.lines_by = kept.lines_by or usage_service_pb2.USAGE_DIMENSION_MODEL
    _check_scope(kept.scope)
    if kept.lines_by not in set(usage_service_pb2.UsageDimension.values()) - _NO_LINES:
        raise invalid("lines_by", "is not known to this version")
    if not _CURRENCY.fullmatch(kept.currency):
        raise invalid("currency", "must be an ISO 4217 code such as EUR")
    if kept.currency == "USD" and kept.exchange_rate not in ("", "1"):
        raise invalid("exchange_rate", "is 1 for USD")
    if kept.currency != "USD" and not kept.exchange_rate:
        raise invalid("exchange_rate", f"must say how many {kept.currency} one USD is")
    kept.exchange_rate = kept.exchange_rate or "1"
    if decimal_of(kept.exchange_rate, "exchange_rate") <= 0:
        raise invalid("exchange_rate", "must be more than 0")
    if not -100 <= decimal_of(kept.margin_percent, "margin_percent") <= 1000:
        raise invalid("margin_percent", "must be -100 to 1000")
    if not 0 <= decimal_of(kept.tax_percent, "tax_percent") <= 100:
        raise invalid("tax_percent", "must be 0 to 100")
    if not 0 <= kept.due_days <= DUE_DAYS_MAX:
        raise invalid("due_days", f"must be 0 to {DUE_DAYS_MAX}")
    _check_credits(kept)
    for name, party in (("seller", kept.seller), ("buyer", kept.buyer)):
        _check_party(name, party)
    _check_texts("notes", kept.notes)
    _check_texts("tax_name", [kept.tax_name])
    _check_texts("exchange_source", [kept.exchange_source])
    return kept


def _check_scope(scope: InvoiceScope) -> None:
    if not scope.organization_id:
        raise invalid("scope.organization_id", "must be set")
    if max(len(scope.organization_id), len(scope.project_id), len(scope.customer)) > 256:
        raise invalid("scope", "holds a name that is too long")
    span = [scope.started_from, scope.started_before]
    if not all(0 < moment.seconds < 253_402_300_800 for moment in span):
        raise invalid("scope", "must say from when and before when, between 1970 and 9999")
    if scope.started_from.ToMicroseconds() >= scope.started_before.ToMicroseconds():
        raise invalid("scope.started_before", "must lie after `scope.started_from`")


def _check_credits(terms: InvoiceTerms) -> None:
    if len(terms.credits) > CREDITS_MAX:
        raise invalid("credits", f"may hold at most {CREDITS_MAX}")
    for credit in terms.credits:
        if not 0 < credit.amount_nano_usd <= NANO_USD_MAX:
            raise invalid("credits", "must be more than 0 and at most a thousand million dollars")
    _check_texts("credits", [credit.description for credit in terms.credits])


def _check_party(name: str, party: InvoiceParty) -> None:
    if not party.name.strip():
        raise invalid(f"{name}.name", "must be set: an invoice says who sends it and who pays")
    _check_texts(name, [party.name, party.tax_id, party.email])
    _check_texts(f"{name}.address", party.address)
    _check_texts(f"{name}.payment", party.payment)


def _check_texts(name: str, texts: Sequence[str]) -> None:
    if len(texts) > CREDITS_MAX:
        raise invalid(name, "has too many lines")
    if name.endswith((".address", ".payment")) and len(texts) > PARTY_LINES_MAX:
        raise invalid(name, f"may have at most {PARTY_LINES_MAX} lines")
    for text in texts:
        if len(text) > TEXT_CHARS_MAX or any(ord(char) < 32 or ord(char) == 127 for char in text):
            raise invalid(name, f"must be lines of at most {TEXT_CHARS_MAX} printable characters")


def issuer_of(text: str) -> str:
    """Who counts numbers. Raises INVALID_REQUEST."""
    if not _ISSUER.fullmatch(text or "default"):
        raise invalid("issuer", "must be a word of lower-case letters, digits, - and _")
    return text or "default"


def prefix_of(text: str, usual: str) -> str:
    """What numbers begin with. Raises INVALID_REQUEST."""
    if not _PREFIX.fullmatch(text or usual):
        raise invalid("number_prefix", "must be 1 to 24 letters, digits, -, _, / and .")
    return text or usual


def decimal_of(text: str, name: str) -> Decimal:
    """A decimal as it is written; 0 for nothing. Raises INVALID_REQUEST."""
    if text and not _DECIMAL.fullmatch(text):
        raise invalid(name, "must be a decimal such as 12.5, with at most 12 places")
    return Decimal(text or 0)


def places_of(currency: str) -> int:
    """How many decimal places the currency's smallest coin has."""
    if currency in _WITHOUT_COINS:
        return 0
    return 3 if currency in _THOUSANDTHS else 2


def totals(terms: InvoiceTerms, used: Used) -> Totals:
    """The sums of an invoice. Raises INVALID_REQUEST when credits are more than there is."""
    with localcontext(_EXACT):
        usage = (used.total_nano_usd + used.agreed_nano_usd) * NANO
        # What an agreement covers has its margin already.
        plain_usage = (used.total_nano_usd - used.covered_nano_usd) * NANO
        margin = plain_usage * Decimal(terms.margin_percent or 0) / 100
        off = sum(credit.amount_nano_usd for credit in terms.credits) * NANO
        off += sum(one.amount_nano_usd for one in used.drawn) * NANO
        net_usd = usage + margin - off
        if net_usd < 0 and not off:
            raise invalid(
                "scope",
                f"comes to less than nothing ({plain(usage)} USD), because earlier usage turned out"
                " to cost less: bill a longer period, or credit the earlier invoice",
            )
        if net_usd < 0:
            raise invalid("credits", f"are more than the invoice is about ({plain(usage)} USD)")
        net = net_usd * Decimal(terms.exchange_rate)
        tax = net * Decimal(terms.tax_percent or 0) / 100
        total = rounded(net + tax, terms.currency)
        return Totals(
            margin_usd=margin,
            credits_usd=Decimal(off),
            net_usd=net_usd,
            net=net,
            tax=tax,
            rounding=total - (net + tax),
            total=total,
        )


def payable_nano_usd(terms: InvoiceTerms, used: Used) -> int:
    """How much granted credits may pay of an invoice that draws on none yet: rounded down, at least
    nothing. Raises as :func:`totals`.
    """
    with localcontext(Context(prec=120)):
        return int(totals(terms, used).net_usd / NANO)


def rounded(amount: Decimal, currency: str) -> Decimal:
    """Half up (away from zero) to the currency's smallest coin."""
    coin = Decimal(1).scaleb(-places_of(currency))
    with localcontext(Context(prec=120)):
        return amount.quantize(coin, ROUND_HALF_UP)


def minor_of(total: Decimal, currency: str) -> int:
    """A rounded amount in the smallest coins. Raises INVALID_REQUEST for one beyond all reason."""
    minor = int(total.scaleb(places_of(currency)))
    if abs(minor) > MINOR_MAX:
        raise invalid("exchange_rate", "makes a total that is absurd")
    return minor


def plain(amount: Decimal) -> str:
    """A decimal without exponent and without zeros at its end."""
    text = f"{amount:f}"
    if "." in text:
        text = text.rstrip("0").rstrip(".")
    return "0" if text in ("-0", "") else text


def document(
    terms: InvoiceTerms, used: Used, *, number: str, issued_at: datetime | None
) -> dict[str, Any]:
    """What is frozen, as JSON values; money is decimal text, nano-USD are whole numbers.

    Args:
        terms: checked.
        used: what the ledger says.
        number: empty for a draft.
        issued_at: ``None`` for a draft.
    """
    sums = totals(terms, used)
    due = issued_at + timedelta(days=terms.due_days) if issued_at and terms.due_days else None
    return {
        "schema": SCHEMA,
        "kind": "invoice",
        "issuer": terms.issuer,
        "number": number or None,
        "issued_at": _iso(issued_at),
        "due_on": due.date().isoformat() if due else None,
        "scope": scope_fields(terms.scope),
        "seller": party_fields(terms.seller),
        "buyer": party_fields(terms.buyer),
        "currency": terms.currency,
        "exchange": {"rate": terms.exchange_rate, "source": terms.exchange_source or None},
        "lines_by": usage_service_pb2.UsageDimension.Name(terms.lines_by)[16:].lower(),
        "lines": _line_fields(used),
        "late": _late_fields(used),
        "margin_percent": terms.margin_percent or "0",
        "credits": _credit_fields(terms, used),
        "tax": {"name": terms.tax_name or "Tax", "percent": terms.tax_percent or "0"},
        "totals": {
            "usage_nano_usd": used.total_nano_usd,
            "agreed_nano_usd": used.agreed_nano_usd,
            "charged_nano_usd": used.total_nano_usd + used.agreed_nano_usd,
            "margin_usd": plain(sums.margin_usd),
            "credits_usd": plain(sums.credits_usd),
            "net_usd": plain(sums.net_usd),
            "net": plain(sums.net),
            "tax": plain(sums.tax),
            "rounding": plain(sums.rounding),
            "total": f"{sums.total:f}",
        },
        "notes": list(terms.notes),
    }


def _line_fields(used: Used) -> list[dict[str, Any]]:
    return [
        {
            "name": line.name,
            "calls": line.calls,
            "input_tokens": line.input_tokens,
            "cached_input_tokens": line.cached_input_tokens,
            "output_tokens": line.output_tokens,
            "amount_nano_usd": line.amount_nano_usd,
            "charged_nano_usd": line.charged_nano_usd,
        }
        for line in used.lines
    ]


def _late_fields(used: Used) -> list[dict[str, Any]]:
    return [
        {
            "issuer": one.issuer,
            "number": one.number,
            "amount_nano_usd": one.amount_nano_usd,
            "charged_nano_usd": one.charged_nano_usd,
        }
        for one in used.late
    ]


def _credit_fields(terms: InvoiceTerms, used: Used) -> list[dict[str, Any]]:
    own = [
        {"description": credit.description, "amount_nano_usd": credit.amount_nano_usd}
        for credit in terms.credits
    ]
    granted = [
        {
            "description": one.description,
            "amount_nano_usd": one.amount_nano_usd,
            "credit": one.credit_id,
        }
        for one in used.drawn
    ]
    return own + granted


@dataclass(frozen=True, slots=True, kw_only=True)
class Correction:
    """What a credit note says: ``net_amount`` is ``None`` for the whole invoice."""

    number: str
    reason: str
    net_amount: Decimal | None
    issued_at: datetime
    sha256: str
    left: Decimal


def credit_document(invoice: Mapping[str, Any], correction: Correction) -> dict[str, Any]:
    """A credit note for an invoice's document: the same, turned round, or a part of it.

    Raises INVALID_REQUEST for more than is left of the invoice (``left``, tax included).
    """
    currency, sums = str(invoice["currency"]), invoice["totals"]
    if correction.net_amount is None:
        net, tax = Decimal(sums["net"]), Decimal(sums["tax"])
        total = Decimal(sums["total"])
    else:
        net = correction.net_amount
        with localcontext(_EXACT):
            tax = net * Decimal(invoice["tax"]["percent"]) / 100
            total = rounded(net + tax, currency)
    part = correction.net_amount is not None
    if (part and net <= 0) or total > correction.left:
        raise invalid(
            "net_amount", f"must be more than 0, and with tax at most {correction.left} {currency}"
        )
    with localcontext(_EXACT):
        rounding = total - (net + tax)
    return {
        **{name: invoice[name] for name in ("schema", "issuer", "scope", "seller", "buyer")},
        "kind": "credit_note",
        "number": correction.number,
        "issued_at": _iso(correction.issued_at),
        "currency": currency,
        "exchange": invoice["exchange"],
        "tax": invoice["tax"],
        "credits_invoice": {
            "number": invoice["number"],
            "issued_at": invoice["issued_at"],
            "sha256": correction.sha256,
            "whole": correction.net_amount is None,
        },
        "reason": correction.reason,
        "totals": {
            "net": plain(-net),
            "tax": plain(-tax),
            "rounding": plain(-rounding),
            "total": f"{-total:f}",
        },
        "notes": [],
    }


def frozen(made: Mapping[str, Any]) -> tuple[bytes, str]:
    """A document as bytes, one way of writing for one content, and their SHA-256 in hex."""
    text = json.dumps(made, ensure_ascii=False, sort_keys=True, separators=(",", ":"))
    raw = text.encode()
    return raw, hashlib.sha256(raw).hexdigest()


def thawed(raw: bytes, sha256: str) -> dict[str, Any]:
    """A frozen document. Raises INTERNAL when it is not what was frozen."""
    if hashlib.sha256(raw).hexdigest() != sha256:
        raise GatewayError(
            error_pb2.ERROR_REASON_INTERNAL,
            "The document is not what was frozen: its hash differs. Restore it from a backup.",
        )
    found: dict[str, Any] = json.loads(raw)
    return found


def may_overlap(one: InvoiceScope, other: InvoiceScope) -> bool:
    """Whether a call may belong to both, times aside."""
    apart = (one.project_id, other.project_id), (one.customer, other.customer)
    return one.organization_id == other.organization_id and not any(
        mine and yours and mine != yours for mine, yours in apart
    )


def scope_fields(scope: InvoiceScope) -> dict[str, Any]:
    """A scope as JSON values."""
    return {
        "organization_id": scope.organization_id,
        "project_id": scope.project_id or None,
        "customer": scope.customer or None,
        "from": _iso(scope.started_from.ToDatetime(UTC)),
        "before": _iso(scope.started_before.ToDatetime(UTC)),
    }


def party_fields(party: InvoiceParty) -> dict[str, Any]:
    """A seller or buyer as JSON values."""
    return {
        "name": party.name,
        "address": list(party.address),
        "tax_id": party.tax_id or None,
        "email": party.email or None,
        "payment": list(party.payment),
    }


def _iso(moment: datetime | None) -> str | None:
    return None if moment is None else moment.isoformat().replace("+00:00", "Z")


def invalid(param: str, what: str) -> GatewayError:
    """INVALID_REQUEST about a field."""
    return GatewayError(error_pb2.ERROR_REASON_INVALID_REQUEST, f"`{param}` {what}.", param=param)
