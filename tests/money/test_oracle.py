"""The oracle of the kill matrix and the soak finds what is lost, doubled and overcharged."""

import pytest

from onegate.usage.v1 import usage_record_pb2
from onegate.usage.v1.usage_record_pb2 import Attribution, Reservation, UsageRecord
from tests.money.fleet import NANO_PER_TOKEN
from tests.money.oracle import Produced, compared

REPORTED = usage_record_pb2.CERTAINTY_REPORTED
UNCERTAIN = usage_record_pb2.CERTAINTY_UNCERTAIN


def record(
    attempt: str, tokens: int, *, upstream: str = "", certainty: int = REPORTED
) -> UsageRecord:
    return UsageRecord(
        attempt_id=attempt,
        upstream_request_id=upstream,
        cost_nano_usd=tokens * NANO_PER_TOKEN,
        certainty=usage_record_pb2.Certainty.ValueType(certainty),
        attribution=Attribution(end_user="me"),
        reservation=Reservation(amount_nano_usd=50 * NANO_PER_TOKEN),
    )


@pytest.mark.parametrize(
    ("records", "tally", "fault"),
    [
        ([record("1", 5, upstream="a")], [("a", "me", 5)], ""),
        ([record("1", 9, certainty=UNCERTAIN)], [("a", "me", 5)], ""),
        ([record("1", 9, certainty=UNCERTAIN)], [], ""),
        ([], [("a", "me", 5)], "have no record"),
        ([record("1", 5, upstream="a"), record("1", 5)], [("a", "me", 5)], "two records"),
        ([record("1", 5, upstream="a"), record("2", 5, upstream="a")], [("a", "me", 5)], "another"),
        ([record("1", 6, upstream="a")], [("a", "me", 5)], "costs 5000000"),
        ([record("1", 4, upstream="a")], [("a", "me", 5)], "costs 5000000"),
        ([record("1", 5)], [], "never sent"),
        ([record("1", 4, certainty=UNCERTAIN)], [("a", "me", 5)], "at least"),
        ([record("1", 51, certainty=UNCERTAIN)], [("a", "me", 5)], "exceeds its hold"),
    ],
)
def test_every_fault_is_found(
    records: list[UsageRecord], tally: list[Produced], fault: str
) -> None:
    faults = compared(records, tally).faults
    assert fault in "".join(faults) if fault else not faults
