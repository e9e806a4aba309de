"""Streams of JSON lines: cut anywhere, ended anywhere, bounded."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onegate.common.v1 import error_pb2
from runtime.errors import GatewayError
from runtime.sse import EVENT_BYTES_MAX
from services.router.providers.json_lines import JsonLinesParser


@settings(max_examples=100, deadline=None)
@given(
    lines=st.lists(st.binary(max_size=20).map(lambda raw: raw.replace(b"\n", b""))),
    size=st.integers(1, 50),
    closed=st.booleans(),
)
def test_lines_come_whole_wherever_they_are_cut(
    lines: list[bytes], size: int, closed: bool
) -> None:
    stream = b"\n".join(lines) + (b"\n" if closed else b"")
    parser = JsonLinesParser()
    got = []
    for start in range(0, len(stream), size):
        got += parser.feed(stream[start : start + size])
    got += parser.end()
    assert [event.data for event in got] == [line for line in lines if line.strip()]
    assert parser.end() == []


@pytest.mark.parametrize("closed", [True, False])
def test_a_line_has_a_bound(closed: bool) -> None:
    parser = JsonLinesParser()
    assert parser.feed(b"x" * EVENT_BYTES_MAX) == []
    with pytest.raises(GatewayError) as raised:
        parser.feed(b"x\n" if closed else b"x")
    assert raised.value.reason == error_pb2.ERROR_REASON_UPSTREAM_PROTOCOL
