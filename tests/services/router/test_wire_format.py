"""Messages around messages, as protobuf itself writes them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from onegate.router.v1 import chat_pb2, chat_service_pb2
from onegate.usage.v1 import usage_service_pb2
from onegate.usage.v1.usage_record_pb2 import UsageRecord
from services.router.wire_format import repeated, varint


@pytest.mark.parametrize("size", [0, 1, 120, 127, 128, 16_370, 16_383, 16_384, 3_000_000])
def test_events_are_put_together_as_protobuf_does_it(size: int) -> None:
    events = [
        chat_pb2.ChatEvent(served=chat_pb2.Served(model="a/b", attempts=1)),
        chat_pb2.ChatEvent(native=b"x" * size),
        chat_pb2.ChatEvent(),
    ]
    whole = chat_service_pb2.ChatResponse(events=events)
    assert repeated(event.SerializeToString() for event in events) == whole.SerializeToString()


def test_nothing_is_an_empty_message() -> None:
    assert repeated(()) == b""


@given(st.integers(0, 2**63 - 1))
def test_a_number_is_written_as_protobuf_writes_it(number: int) -> None:
    assert b"\x68" + varint(number) == UsageRecord(duration_us=number).SerializeToString() or (
        not number
    )


@pytest.mark.parametrize("size", [0, 1, 127, 128, 300, 16_383, 16_384, 70_000])
def test_records_are_put_together_as_protobuf_does_it(size: int) -> None:
    given_ = [UsageRecord(attempt_id=str(number)) for number in range(3)]
    given_[1].tokens.extra_json = b"x" * size
    request = usage_service_pb2.RecordUsageRequest(records=given_)
    assert repeated(one.SerializeToString() for one in given_) == request.SerializeToString()
