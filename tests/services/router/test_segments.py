"""The framing of a journal's records."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.router.money.segments import (
    MAGIC,
    DamageError,
    Frame,
    Kind,
    frame,
    frames,
    next_record,
)

records = st.lists(st.tuples(st.sampled_from(Kind), st.binary(max_size=60)), max_size=6)


def written(pairs: list[tuple[Kind, bytes]]) -> tuple[bytes, list[Frame]]:
    data, expected = b"", []
    for kind, payload in pairs:
        start = len(data)
        data += frame(kind, payload)
        expected.append(Frame(kind, payload, start, len(data)))
    return data, expected


@given(records)
def test_what_was_written_is_read(pairs: list[tuple[Kind, bytes]]) -> None:
    data, expected = written(pairs)
    assert list(frames(data)) == expected


@given(records, st.data())
def test_a_cut_file_gives_its_whole_records_and_says_where_it_ends(
    pairs: list[tuple[Kind, bytes]], chosen: st.DataObject
) -> None:
    data, expected = written(pairs)
    cut = chosen.draw(st.integers(0, len(data)))
    whole = [one for one in expected if one.end <= cut]
    kept = whole[-1].end if whole else 0
    assert list(frames(data[:kept])) == whole
    assert next_record(data[:cut], kept) is None
    if cut > kept:
        with pytest.raises(DamageError) as damage:
            list(frames(data[:cut]))
        assert damage.value.offset == kept


@pytest.mark.parametrize("payload", [b"", b"x", b"a record that is longer", MAGIC])
def test_no_changed_bit_goes_unnoticed(payload: bytes) -> None:
    data = frame(Kind.FINAL, payload)
    for bit in range(len(data) * 8):
        changed = bytearray(data)
        changed[bit // 8] ^= 1 << bit % 8
        with pytest.raises(DamageError):
            list(frames(bytes(changed)))


def test_the_next_record_behind_damage_is_found_past_what_only_looks_like_one() -> None:
    good = frame(Kind.FINAL, b"good")
    data = b"rubbish" + MAGIC + b"more rubbish" + good
    assert next_record(data, 0) == len(data) - len(good)
    assert next_record(data, len(data) - len(good) + 1) is None
