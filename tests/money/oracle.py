"""Compares what was charged with what the provider itself says that it produced, by attempt."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from onegate.usage.v1.usage_record_pb2 import CERTAINTY_REPORTED, UsageRecord
from tests.money.fleet import NANO_PER_TOKEN

Produced = tuple[str, str, int]
"""An answer's id, who asked, and its tokens."""


@dataclass(slots=True)
class Verdict:
    """What a comparison found, in nano-USD."""

    attempts: int = 0
    exact: int = 0
    flagged: int = 0
    unsent: int = 0
    produced_nano_usd: int = 0
    """What everything cost by the provider's tally."""
    flagged_produced_nano_usd: int = 0
    """The part of it whose records are flagged."""
    charged_nano_usd: int = 0
    flagged_nano_usd: int = 0
    """The part of what was charged that is flagged."""
    faults: list[str] = field(default_factory=list)


def compared(records: Iterable[UsageRecord], tally: Sequence[Produced]) -> Verdict:
    """Every answer of the provider has exactly one record: of what it said, or flagged and between
    what it produced and what was set aside.

    Records that know their answer's id are joined by it; the others, whose router died before it
    came, by who asked and in what order.
    """
    verdict = Verdict()
    records = sorted(records, key=lambda record: record.attempt_id)
    verdict.attempts = len(records)
    if len({record.attempt_id for record in records}) != len(records):
        verdict.faults.append("an attempt has two records")
    answers = {name: (user, tokens) for name, user, tokens in tally}
    vague: dict[str, list[UsageRecord]] = defaultdict(list)
    for record in records:
        verdict.charged_nano_usd += record.cost_nano_usd
        known = answers.pop(record.upstream_request_id, None)
        if known is not None:
            _compare(record, known[1], verdict)
        elif record.upstream_request_id:
            verdict.faults.append(f"{_named(record)}: its answer has another record already")
        else:
            vague[record.attribution.end_user].append(record)
    rest: dict[str, list[int]] = defaultdict(list)
    for user, tokens in answers.values():
        rest[user].append(tokens)
    for user in vague.keys() | rest.keys():
        _compare_in_order(vague[user], rest[user], user, verdict)
    return verdict


def _compare_in_order(
    records: list[UsageRecord], produced: list[int], user: str, verdict: Verdict
) -> None:
    """Attempts of one caller: those that were never sent are at any place among them."""
    if len(produced) > len(records):
        verdict.faults.append(f"{user}: {len(produced) - len(records)} answers have no record")
    # The dearest answers to the dearest records: every other order fits no better.
    records = sorted(records, key=lambda record: -record.cost_nano_usd)
    counts = sorted(produced, reverse=True)
    for record, tokens in zip(records, counts, strict=False):
        _compare(record, tokens, verdict)
    for record in records[len(counts) :]:
        verdict.unsent += 1
        verdict.flagged_nano_usd += record.cost_nano_usd
        _bounded(record, verdict)
        if record.certainty == CERTAINTY_REPORTED and record.cost_nano_usd:
            verdict.faults.append(f"{_named(record)}: is charged and was never sent")


def _compare(record: UsageRecord, tokens: int, verdict: Verdict) -> None:
    cost = tokens * NANO_PER_TOKEN
    verdict.produced_nano_usd += cost
    if record.certainty == CERTAINTY_REPORTED:
        verdict.exact += 1
        if record.cost_nano_usd != cost:
            verdict.faults.append(f"{_named(record)}: costs {cost}")
        return
    verdict.flagged += 1
    verdict.flagged_nano_usd += record.cost_nano_usd
    verdict.flagged_produced_nano_usd += cost
    _bounded(record, verdict)
    if record.cost_nano_usd < cost:
        verdict.faults.append(f"{_named(record)}: costs {cost} at least")


def _bounded(record: UsageRecord, verdict: Verdict) -> None:
    if record.cost_nano_usd > record.reservation.amount_nano_usd:
        verdict.faults.append(
            f"{_named(record)}: exceeds its hold of {record.reservation.amount_nano_usd}"
        )


def _named(record: UsageRecord) -> str:
    return (
        f"{record.attempt_id} of {record.attribution.end_user}"
        f" (outcome {record.outcome}, certainty {record.certainty}) at {record.cost_nano_usd}"
    )
