"""What a bill may say, and how one of its lines differs from the records. Pure.

Money is decimal and exact on both sides: the provider's amounts may be finer than a nano-USD, and
nothing is rounded before it is compared.
"""

import re
from dataclasses import dataclass
from decimal import Context, Decimal, Inexact, InvalidOperation
from typing import Final, NamedTuple

from onegate.common.v1 import error_pb2
from onegate.usage.v1 import reconcile_service_pb2 as pb
from runtime.errors import GatewayError

LINES_MAX: Final = 1_000
"""Lines of one message."""
BILL_LINES_MAX: Final = 5_000_000
COUNT_MAX: Final = 10**12
"""The most tokens of a line: sums over all lines of a bill stay within 64 bits."""
TEXT_CHARS_MAX: Final = 512
DIGEST_BYTES: Final = 32
PROVIDERS_MAX: Final = 1_000

_EXACT: Final = Context(prec=60, traps=[Inexact, InvalidOperation])
"""Sums of amounts, which have at most 30 digits before and after the point; a sum that would have
to be rounded is an error.
"""
_AMOUNT: Final = re.compile(r"-?[0-9]{1,12}(\.[0-9]{1,30})?")
_NANO: Final = Decimal("1E-9")
_DATED: Final = re.compile(r"[-@](20\d{2}-?[01]\d-?[0-3]\d|latest)$")
_MATCHES: Final = {pb.BILL_MATCH_REQUEST, pb.BILL_MATCH_BUCKET}


@dataclass(slots=True, kw_only=True)
class Figures:
    """What one side says of a key: how much, over how many lines or records."""

    count: int = 0
    input_tokens: int = 0
    cached_input_tokens: int = 0
    output_tokens: int = 0
    cost_usd: str = "0"

    def add(self, other: "Figures") -> None:
        """Adds another's."""
        self.count += other.count
        self.input_tokens += other.input_tokens
        self.cached_input_tokens += other.cached_input_tokens
        self.output_tokens += other.output_tokens
        self.cost_usd = plus(self.cost_usd, other.cost_usd)

    def to_proto(self) -> pb.BillFigures:
        """As it is told."""
        return pb.BillFigures(
            count=self.count,
            input_tokens=self.input_tokens,
            cached_input_tokens=self.cached_input_tokens,
            output_tokens=self.output_tokens,
            cost_usd=self.cost_usd,
        )


class Said(NamedTuple):
    """What one side says of a place, with what else is known about it."""

    place: str
    about: str
    figures: Figures


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """What both sides say of one place; ``None`` where one is silent."""

    theirs: Said | None
    ours: Said | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """What is compared, and how closely.

    Attributes:
        tokens: fields of :class:`Figures` that hold counts and are compared.
        cost: whether costs are.
        tolerance_usd, tolerance_tokens: by how much a line may differ.
    """

    tokens: tuple[str, ...]
    cost: bool
    tolerance_usd: Decimal
    tolerance_tokens: int

    def kinds(
        self, theirs: Figures | None, ours: Figures | None
    ) -> list[pb.BillDifferenceKind.ValueType]:
        """How two sides differ; empty when they agree."""
        if ours is None:
            return [pb.BILL_DIFFERENCE_KIND_ONLY_THEIRS]
        if theirs is None:
            return [pb.BILL_DIFFERENCE_KIND_ONLY_OURS]
        found: list[pb.BillDifferenceKind.ValueType] = []
        for name in self.tokens:
            if abs(getattr(theirs, name) - getattr(ours, name)) > self.tolerance_tokens:
                found.append(pb.BILL_DIFFERENCE_KIND_TOKENS)
                break
        if self.cost and self._cost_differs(theirs, ours):
            found.append(pb.BILL_DIFFERENCE_KIND_COST)
        return found

    def says(self, figures: Figures) -> bool:
        """Whether there is anything that could be compared."""
        counts = any(getattr(figures, name) for name in self.tokens)
        return counts or (self.cost and Decimal(figures.cost_usd) != 0)

    def _cost_differs(self, theirs: Figures, ours: Figures) -> bool:
        apart = _EXACT.subtract(Decimal(theirs.cost_usd), Decimal(ours.cost_usd))
        return abs(apart) > self.tolerance_usd


_COUNTS: Final = {
    pb.BILL_FIGURE_INPUT_TOKENS: "input_tokens",
    pb.BILL_FIGURE_CACHED_INPUT_TOKENS: "cached_input_tokens",
    pb.BILL_FIGURE_OUTPUT_TOKENS: "output_tokens",
}


def rules_of(head: pb.BillHead) -> Rules:
    """What a checked head wants."""
    return Rules(
        tokens=tuple(name for figure, name in _COUNTS.items() if figure in head.figures),
        cost=pb.BILL_FIGURE_COST in head.figures,
        tolerance_usd=Decimal(head.tolerance_usd or "0"),
        tolerance_tokens=head.tolerance_tokens,
    )


def check_head(head: pb.BillHead) -> None:
    """Raises INVALID_REQUEST for a head that says nonsense."""
    if head.match not in _MATCHES:
        raise _invalid("head.match", "must be by request or by bucket")
    known = set(pb.BillFigure.values()) - {pb.BILL_FIGURE_UNSPECIFIED}
    if not head.figures or not known.issuperset(head.figures):
        raise _invalid("head.figures", "must name what the bill says")
    if len(head.digest) != DIGEST_BYTES:
        raise _invalid("head.digest", "must be a SHA-256")
    if not 0 < len(head.name) <= TEXT_CHARS_MAX or "\0" in head.name:
        raise _invalid("head.name", f"must have 1 to {TEXT_CHARS_MAX} characters")
    if len(head.providers) > PROVIDERS_MAX:
        raise _invalid("head.providers", f"may name at most {PROVIDERS_MAX}")
    from_us, before_us = (
        head.started_from.ToMicroseconds(),
        head.started_before.ToMicroseconds(),
    )
    if not 0 <= from_us < before_us < 2**62:
        raise _invalid("head.started_before", "must lie after `head.started_from`, both set")
    if head.tolerance_tokens < 0:
        raise _invalid("head.tolerance_tokens", "must be 0 or more")
    if head.tolerance_usd and amount_of(head.tolerance_usd) < 0:
        raise _invalid("head.tolerance_usd", "must be 0 or more")


def figures_of(line: pb.BillLine) -> Figures:
    """What a line says. Raises INVALID_REQUEST for what no bill says."""
    said = line.figures
    counts = (said.input_tokens, said.cached_input_tokens, said.output_tokens)
    if not all(-COUNT_MAX <= count <= COUNT_MAX for count in counts):
        raise _invalid("lines", f"may count at most {COUNT_MAX:,} tokens a line")
    if max(map(len, (line.request_id, line.model, line.credential))) > TEXT_CHARS_MAX:
        raise _invalid("lines", f"may hold texts of at most {TEXT_CHARS_MAX} characters")
    cost = said.cost_usd or "0"
    amount_of(cost)
    return Figures(
        count=1,
        input_tokens=said.input_tokens,
        cached_input_tokens=said.cached_input_tokens,
        output_tokens=said.output_tokens,
        cost_usd=cost,
    )


def amount_of(text: str) -> Decimal:
    """An amount in USD. Raises INVALID_REQUEST for what is none, or has too many digits."""
    if not _AMOUNT.fullmatch(text):
        raise _invalid("cost_usd", "must be a decimal number with at most 30 digits of a fraction")
    return Decimal(text)


def plus(one: str, other: str) -> str:
    """The exact sum of two amounts."""
    return format(_EXACT.add(Decimal(one), Decimal(other)), "f")


def usd_of(nano_usd: int) -> str:
    """Nano-USD as an amount."""
    return format(_EXACT.multiply(Decimal(nano_usd), _NANO), "f")


def model_name(model: str, *, exact: bool) -> str:
    """A model's name, as both sides can be brought to say it.

    Providers write the dated name of what a call's shorter name meant, and consoles names for
    people (``Claude Opus 4.1``). So dates at the end are taken off, spaces and dots are dashes,
    and case does not matter; not so when names are to be ``exact``.
    """
    if exact:
        return model
    plain = re.sub(r"[ ._]+", "-", model.strip().lower())
    return _DATED.sub("", plain)


def _invalid(param: str, what: str) -> GatewayError:
    return GatewayError(error_pb2.ERROR_REASON_INVALID_REQUEST, f"`{param}` {what}.", param=param)
