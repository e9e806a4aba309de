"""Where a line of a bill and a record meet, and what is told when they do not agree. Pure."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Final

from onegate.usage.v1 import reconcile_service_pb2 as pb
from services.usage.reconcile.bills import Figures, Pair, Rules, Said, figures_of, model_name

REQUEST: Final = "r"
"""How the places of the provider's ids of requests begin."""
ATTEMPT: Final = "s"
"""How those of records without one begin."""

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_APART: Final = "\x1f"
_INSIDE, _OUTSIDE = "in", "out"


def line_of(line: pb.BillLine, head: pb.BillHead) -> Said:
    """A line of a bill and its place. Raises INVALID_REQUEST for what no bill says."""
    figures = figures_of(line)
    model = model_name(line.model, exact=head.models_exact)
    day = ""
    if line.HasField("started_at"):
        day = day_of(line.started_at.ToMicroseconds() // 86_400_000_000)
    if head.match == pb.BILL_MATCH_REQUEST:
        return Said(REQUEST + line.request_id, _joined(_INSIDE, day, line.model), figures)
    return Said(bucket(head, day, model, line.credential), "", figures)


def bucket(head: pb.BillHead, day: str, model: str, credential: str) -> str:
    """The place of a day, by what the bill tells apart."""
    return _joined(day, model if head.by_model else "", credential if head.by_credential else "")


def own_model(model: str, *, exact: bool) -> str:
    """A record's model as its provider calls it: without the gateway's name of the provider."""
    return model_name(model.partition("/")[2] or model, exact=exact)


def about_record(day: int, model: str, credential: str, *, inside: bool) -> str:
    """What is known about a record; whether it started within the bill's time."""
    place = _INSIDE if inside else _OUTSIDE
    return _joined(place, day_of(day), model.partition("/")[2] or model, credential)


def day_of(number: int) -> str:
    """A day since 1970 as a date."""
    return (_EPOCH + timedelta(days=number)).date().isoformat()


@dataclass(slots=True, kw_only=True)
class Outcome:
    """What came of a comparison so far."""

    agreed: int = 0
    only_theirs: int = 0
    only_ours: int = 0
    tokens_differ: int = 0
    costs_differ: int = 0
    theirs: Figures = field(default_factory=Figures)
    ours: Figures = field(default_factory=Figures)

    def count(self, kinds: Iterable[pb.BillDifferenceKind.ValueType]) -> None:
        """Counts one place by how its sides differ."""
        found = set(kinds)
        self.agreed += not found
        self.only_theirs += pb.BILL_DIFFERENCE_KIND_ONLY_THEIRS in found
        self.only_ours += pb.BILL_DIFFERENCE_KIND_ONLY_OURS in found
        self.tokens_differ += pb.BILL_DIFFERENCE_KIND_TOKENS in found
        self.costs_differ += pb.BILL_DIFFERENCE_KIND_COST in found


def differences(
    pairs: Iterable[Pair], head: pb.BillHead, rules: Rules, outcome: Outcome
) -> Iterator[pb.BillDifference]:
    """Every difference, in the order of the places; ``outcome`` is counted up meanwhile."""
    for pair in pairs:
        theirs, ours = pair.theirs, pair.ours
        if theirs is None and ours is not None and ours.about.startswith(_OUTSIDE):
            # A record from around the bill's time is looked at for what the bill has, and only so.
            continue
        said = [one.figures for one in (theirs, ours) if one is not None]
        if len(said) == 1 and not rules.says(said[0]):
            # A call that failed and cost nothing is on no bill, and an empty bucket on no record.
            continue
        if theirs is not None:
            outcome.theirs.add(theirs.figures)
        if ours is not None:
            outcome.ours.add(ours.figures)
        kinds = rules.kinds(
            theirs.figures if theirs is not None else None,
            ours.figures if ours is not None else None,
        )
        outcome.count(kinds)
        if kinds:
            yield _difference(kinds, pair, head)


def _difference(
    kinds: list[pb.BillDifferenceKind.ValueType], pair: Pair, head: pb.BillHead
) -> pb.BillDifference:
    told = pb.BillDifference(kinds=kinds)
    one = pair.theirs or pair.ours
    if one is not None:
        about = one.place
        if head.match == pb.BILL_MATCH_REQUEST:
            name = one.place[1:]
            if one.place.startswith(REQUEST):
                told.request_id = name
            else:
                told.attempt_id = name
            # Records know more than bills.
            about = (pair.ours or one).about.partition(_APART)[2]
        told.day, told.model, told.credential = (*about.split(_APART), "", "", "")[:3]
    if pair.theirs is not None:
        told.theirs.CopyFrom(pair.theirs.figures.to_proto())
    if pair.ours is not None:
        told.ours.CopyFrom(pair.ours.figures.to_proto())
    return told


def _joined(*parts: str) -> str:
    return _APART.join(part.replace(_APART, " ") for part in parts)
