"""An invoice as people read it: what stands where, before it becomes HTML or PDF. Pure.

Takes the frozen document and nothing else, so that the same document is the same page for ever.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any, Final

_NANO_PLACES: Final = 9
_HEADINGS: Final[Mapping[str, str]] = {
    "model": "Model",
    "key": "Key",
    "project": "Project",
    "provider": "Provider",
    "feature": "Feature",
    "customer": "Customer",
    "day": "Day",
}
_MONTHS: Final = (
    "January February March April May June July August September October November December"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """A heading and lines below it."""

    heading: str
    lines: Sequence[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sum:
    """One line of the sums; ``strong`` for the last one, ``detail`` in smaller letters."""

    label: str
    amount: str
    detail: str = ""
    strong: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """Everything that is printed, as text."""

    title: str
    number: str
    draft: bool
    seller: Block
    buyer: Block
    facts: Sequence[tuple[str, str]]
    headings: Sequence[str]
    rows: Sequence[Sequence[str]]
    sums: Sequence[Sum]
    blocks: Sequence[Block]
    fingerprint: str


def page(made: Mapping[str, Any], sha256: str) -> Page:
    """The page of a document.

    Args:
        made: the document.
        sha256: its hash, in hex; printed, so that a page can be held against what is kept.
    """
    credit = made["kind"] == "credit_note"
    draft = made["number"] is None
    blocks = [Block(heading="Payment", lines=made["seller"]["payment"])] if not credit else []
    blocks += [Block(heading="Notes", lines=made["notes"])]
    return Page(
        title="Credit note" if credit else "Invoice",
        number=made["number"] or "Draft",
        draft=draft,
        seller=_party("From", made["seller"]),
        buyer=_party("Billed to", made["buyer"]),
        facts=_facts(made),
        headings=() if credit else _headings(made),
        rows=() if credit else _rows(made),
        sums=_credit_sums(made) if credit else _sums(made),
        blocks=[block for block in blocks if block.lines],
        fingerprint="" if draft else sha256,
    )


def money(amount: Decimal, places: int = 2) -> str:
    """With thousands apart and at least so many places; no digit is lost."""
    exponent = amount.normalize().as_tuple().exponent
    needed = max(-exponent if isinstance(exponent, int) else 0, places)
    return f"{amount:,.{needed}f}".replace("-", "\N{MINUS SIGN}")


def _party(heading: str, party: Mapping[str, Any]) -> Block:
    lines = [party["name"], *party["address"]]
    lines += [f"Tax id {party['tax_id']}"] if party["tax_id"] else []
    lines += [party["email"]] if party["email"] else []
    return Block(heading=heading, lines=lines)


def _facts(made: Mapping[str, Any]) -> list[tuple[str, str]]:
    facts = []
    if made["issued_at"]:
        facts.append(("Issued", _day(made["issued_at"])))
    if credited := made.get("credits_invoice"):
        facts.append(("Corrects", f"{credited['number']} of {_day(credited['issued_at'])}"))
    facts.append(("Period", _period(made["scope"])))
    if made.get("due_on"):
        facts.append(("Due", _day(made["due_on"])))
    scope = made["scope"]
    facts += [
        (label, scope[name])
        for label, name in (("Project", "project_id"), ("Customer", "customer"))
        if scope[name]
    ]
    return facts


def _headings(made: Mapping[str, Any]) -> Sequence[str]:
    first = _HEADINGS.get(made["lines_by"], "Item")
    return (first, "Calls", "Input tokens", "Cached", "Output tokens", "Amount (USD)")


def _rows(made: Mapping[str, Any]) -> list[Sequence[str]]:
    amounts = [_usd(_charged(line)) for line in (*made["lines"], *made["late"])]
    # All lines with as many places as one of them needs, so that the points stand in a column.
    places = max((_places(amount) for amount in amounts), default=2)
    rows: list[Sequence[str]] = [
        (
            line["name"] or "(none)",
            *(
                f"{line[name]:,}"
                for name in ("calls", "input_tokens", "cached_input_tokens", "output_tokens")
            ),
            money(_usd(_charged(line)), places),
        )
        for line in made["lines"]
    ]
    rows += [
        (
            f"Earlier usage, posted after {one['number']}",
            *("",) * 4,
            money(_usd(_charged(one)), places),
        )
        for one in made["late"]
    ]
    return rows


def _charged(line: Mapping[str, Any]) -> int:
    """What a payer owes for a line: under agreements not what it cost. Documents from before there
    were any say only what it cost.
    """
    charged: int = line.get("charged_nano_usd", line["amount_nano_usd"])
    return charged


def _sums(made: Mapping[str, Any]) -> list[Sum]:
    sums, currency = made["totals"], made["currency"]
    charged = sums.get("charged_nano_usd", sums["usage_nano_usd"])
    found = [Sum(label="Usage", amount=f"{money(_usd(charged))} USD")]
    if Decimal(made["margin_percent"]):
        found.append(_line(f"Margin {made['margin_percent']} %", sums["margin_usd"], "USD"))
    found += [
        Sum(
            label=credit["description"] or "Credit",
            amount=f"{money(-_usd(credit['amount_nano_usd']))} USD",
        )
        for credit in made["credits"]
    ]
    if len(found) > 1 and currency != "USD":
        found.append(_line("Net", sums["net_usd"], "USD"))
    if currency != "USD":
        found.append(
            Sum(
                label=f"Net in {currency}",
                amount=f"{money(Decimal(sums['net']))} {currency}",
                detail=_exchange(made),
            )
        )
    elif len(found) > 1:
        found.append(_line("Net", sums["net"], currency))
    return [*found, *_last(made, "Total due")]


def _credit_sums(made: Mapping[str, Any]) -> list[Sum]:
    whole = made["credits_invoice"]["whole"]
    number = made["credits_invoice"]["number"]
    label = f"{number} in whole" if whole else f"Part of {number}"
    net = f"{money(Decimal(made['totals']['net']))} {made['currency']}"
    first = Sum(label=label, amount=net, detail=made["reason"])
    return [first, *_last(made, "Total credited")]


def _last(made: Mapping[str, Any], label: str) -> list[Sum]:
    sums, currency, tax = made["totals"], made["currency"], made["tax"]
    found = []
    if Decimal(tax["percent"]):
        found.append(_line(f"{tax['name']} {tax['percent']} %", sums["tax"], currency))
    if Decimal(sums["rounding"]):
        found.append(_line("Rounding", sums["rounding"], currency))
    total = f"{_grouped(sums['total'])} {currency}"
    return [*found, Sum(label=label, amount=total, strong=True)]


def _line(label: str, amount: str, currency: str) -> Sum:
    return Sum(label=label, amount=f"{money(Decimal(amount))} {currency}")


def _grouped(total: str) -> str:
    """A rounded total with the places that it has."""
    _, _, cents = total.partition(".")
    return f"{Decimal(total):,.{len(cents)}f}".replace("-", "\N{MINUS SIGN}")


def _exchange(made: Mapping[str, Any]) -> str:
    rate = f"1 USD = {made['exchange']['rate']} {made['currency']}"
    source = made["exchange"]["source"]
    return f"{rate}, {source}" if source else rate


def _usd(nano_usd: int) -> Decimal:
    return Decimal(nano_usd).scaleb(-_NANO_PLACES)


def _places(amount: Decimal) -> int:
    exponent = amount.normalize().as_tuple().exponent
    return max(-exponent if isinstance(exponent, int) else 0, 2)


def _period(scope: Mapping[str, Any]) -> str:
    start, end = _moment(scope["from"]), _moment(scope["before"])
    if any((one.hour, one.minute, one.second, one.microsecond) != (0,) * 4 for one in (start, end)):
        return f"{start:%Y-%m-%d %H:%M} to {end:%Y-%m-%d %H:%M} UTC"
    last = end - timedelta(days=1)
    if start.day == 1 and end.day == 1 and (start.year, start.month) == (last.year, last.month):
        return f"{_month(start)} {start.year}"
    if start == last:
        return _written(start)
    return f"{_written(start)} \N{EN DASH} {_written(last)}"


def _day(text: str) -> str:
    return _written(_moment(text))


def _written(moment: datetime) -> str:
    return f"{moment.day} {_month(moment)} {moment.year}"


def _month(moment: datetime) -> str:
    return _MONTHS.split()[moment.month - 1]


def _moment(text: str) -> datetime:
    moment = datetime.fromisoformat(text)
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)
