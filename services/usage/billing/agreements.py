"""What a payer is charged for a call, beside what it costs: exact, rounded up once. Pure.

Of all agreements that fit a call one applies: the customer's before the project's before the
organisation's, then the one that names the model most closely, then a price before a mark-up. For
the same payer and pattern the last one in force counts. What was agreed replaces the cost; nothing
is added to an agreed price.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from onegate.common.v1 import error_pb2
from onegate.usage.v1 import usage_record_pb2
from onegate.usage.v1.billing_pb2 import Agreement, BillingPayer
from onegate.usage.v1.price_pb2 import PriceSheet
from onegate.usage.v1.usage_record_pb2 import UsageRecord
from runtime.errors import GatewayError
from runtime.money import COST_NANO_USD_MAX, cost_nano_usd
from runtime.patterns import matches
from services.usage.prices.price_changes import check_rates

WHOLE: Final = 100_000
"""Thousandths of a percent in one."""
MARKUP_MAX: Final = 1_000 * 1_000
"""A thousand percent; more is a mistake."""
NAME_CHARS_MAX: Final = 256
SOURCE_CHARS_MAX: Final = 500
_SECONDS: Final = range(1, 253_402_300_800)


@dataclass(frozen=True, slots=True, kw_only=True)
class Charged:
    """What an attempt is charged, and under which agreement."""

    agreement_id: str
    amount_nano_usd: int


class AgreementBook:
    """All agreements that were ever made.

    Args:
        agreements: in the order in which they were said.
        revision: grows with each; 0 when there never was one.
    """

    def __init__(self, agreements: Iterable[Agreement] = (), revision: int = 0) -> None:
        self.revision = revision
        self._by_organization: dict[str, list[Agreement]] = {}
        for one in agreements:
            self._by_organization.setdefault(one.payer.organization_id, []).append(one)

    def concerns(self, organization_id: str) -> bool:
        """Whether an organisation has any agreement."""
        return organization_id in self._by_organization

    def standing(self, agreement: Agreement) -> Agreement | None:
        """What is in force for the same payer and pattern when an agreement is to begin."""
        place, at_us = _place(agreement), agreement.valid_from.ToMicroseconds()
        found = self._in_force(agreement.payer.organization_id, at_us)
        return found.get(place)

    def charged(self, record: UsageRecord, cost: int) -> Charged | None:
        """What an attempt is charged that costs so much; ``None`` where nothing was agreed on."""
        if record.organization_id not in self._by_organization:
            return None
        found = self._in_force(record.organization_id, record.started_at.ToMicroseconds())
        fitting = [one for one in found.values() if _fits(one, record)]
        if not fitting:
            return None
        best = max(fitting, key=_closeness)
        match best.WhichOneof("charge"):
            case "markup_millipercent":
                # Rounded up, as every cost is.
                amount = -(-cost * (WHOLE + best.markup_millipercent) // WHOLE)
            case "price":
                amount = cost_nano_usd(best.price, record.tokens)
            case _:
                return None
        return Charged(agreement_id=best.id, amount_nano_usd=min(amount, COST_NANO_USD_MAX))

    def _in_force(self, organization_id: str, at_us: int) -> dict[tuple[str, ...], Agreement]:
        """By payer and pattern, the last one at a moment."""
        found: dict[tuple[str, ...], Agreement] = {}
        for one in self._by_organization.get(organization_id, ()):
            start_us = one.valid_from.ToMicroseconds()
            if start_us > at_us:
                continue
            before = found.get(_place(one))
            if before is None or start_us >= before.valid_from.ToMicroseconds():
                found[_place(one)] = one
        return found


def _place(one: Agreement) -> tuple[str, ...]:
    payer = one.payer
    return payer.organization_id, payer.project_id, payer.customer, one.model


def _fits(one: Agreement, record: UsageRecord) -> bool:
    payer, kind = one.payer, one.WhichOneof("charge")
    if kind is None or payer.project_id not in ("", record.project_id):
        return False
    if payer.customer not in ("", record.attribution.customer):
        return False
    if kind == "price" and record.certainty == usage_record_pb2.CERTAINTY_UNCERTAIN:
        # Nobody knows what it used, so that no price can be charged; what it cost stands in.
        return False
    names: Sequence[str] = (record.model, record.price_model)
    return any(name and matches(one.model, name) for name in names)


def _closeness(one: Agreement) -> tuple[bool, bool, bool, int, bool, int]:
    payer = one.payer
    return (
        bool(payer.customer),
        bool(payer.project_id),
        "*" not in one.model,
        len(one.model),
        one.WhichOneof("charge") == "price",
        one.valid_from.ToMicroseconds(),
    )


def checked(agreement: Agreement, now_us: int) -> Agreement:
    """An agreement as it is kept. Raises INVALID_REQUEST for one that makes no sense."""
    kept = Agreement()
    kept.CopyFrom(agreement)
    kept.ClearField("id")
    kept.model = kept.model or "*"
    check_payer(kept.payer)
    if len(kept.model) > NAME_CHARS_MAX or not kept.model.isprintable():
        raise invalid("model", f"must be a name or pattern of at most {NAME_CHARS_MAX} characters")
    if not 0 < len(kept.source.strip()) <= SOURCE_CHARS_MAX or not kept.source.isprintable():
        raise invalid("source", f"must say in at most {SOURCE_CHARS_MAX} characters who agreed")
    match kept.WhichOneof("charge"):
        case "markup_millipercent":
            if not -WHOLE <= kept.markup_millipercent <= MARKUP_MAX:
                raise invalid("markup_millipercent", "must be -100 to 1,000 percent")
        case "price":
            if kept.price.ListFields() and kept.price.HasField("valid_from"):
                raise invalid("price.valid_from", "is the agreement's own")
            sheet = PriceSheet(model=kept.model, rates=kept.price.rates, free=kept.price.free)
            check_rates(sheet)
            kept.price.CopyFrom(PriceSheet(rates=sheet.rates, free=sheet.free))
        case _:
            pass
    kept.recorded_at.FromMicroseconds(now_us)
    if not kept.HasField("valid_from"):
        kept.valid_from.FromMicroseconds(now_us)
    if kept.valid_from.seconds not in _SECONDS:
        raise invalid("valid_from", "must lie between 1970 and 9999")
    return kept


def check_payer(payer: BillingPayer) -> None:
    """Raises INVALID_REQUEST for a payer that is none."""
    if not payer.organization_id:
        raise invalid("payer.organization_id", "must be set")
    names = (payer.organization_id, payer.project_id, payer.customer)
    if max(map(len, names)) > NAME_CHARS_MAX or "\0" in "".join(names):
        raise invalid("payer", "holds a name that is none")


def same(one: Agreement, other: Agreement) -> bool:
    """Whether two agreements for the same payer and pattern say the same."""
    fields = ("markup_millipercent", "price", "source")
    kinds = one.WhichOneof("charge"), other.WhichOneof("charge")
    return kinds[0] == kinds[1] and all(getattr(one, f) == getattr(other, f) for f in fields)


def invalid(param: str, what: str) -> GatewayError:
    """INVALID_REQUEST about a field."""
    return GatewayError(error_pb2.ERROR_REASON_INVALID_REQUEST, f"`{param}` {what}.", param=param)
