"""What a body may be as JSON, and that the check does not change what is read."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge.endpoints.strict_json import encode, read_object
from runtime.errors import GatewayError, reason_name

VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**60), 2**60)
    | st.text()
    | st.floats(allow_nan=False, allow_infinity=False),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)

REFUSED = {
    "nothing": (b"", "truncated"),
    "half of it": (b'{"a":', "truncated"),
    "more than it": (b'{"a":1}x', "trailing"),
    "a list": (b"[]", "must be a JSON object"),
    "a string": (b'"a"', "must be a JSON object"),
    "null": (b"null", "must be a JSON object"),
    "NaN": (b'{"a":NaN}', "invalid character"),
    "Infinity": (b'{"a":Infinity}', "invalid character"),
    "a number out of range": (b'{"a":1e400}', "out of range"),
    "an endless number": (b'{"a":1' + b"0" * 5000 + b"}", "out of range"),
    "a leading zero": (b'{"a":01}', "invalid number"),
    "a bare control character": (b'{"a":"\x01"}', "invalid character"),
    "a byte-order mark": (b"\xef\xbb\xbf{}", "invalid character"),
    "another encoding": ('{"a":1}'.encode("utf-16-le"), "not valid JSON"),
    "bytes that are no text": (b'{"a":"\xff"}', "UTF-8"),
    "a surrogate in UTF-8": (b'{"a":"\xed\xa0\x80"}', "UTF-8"),
    "half a surrogate pair": (b'{"a":"\\ud800"}', "surrogate"),
    "half a surrogate pair in a longer text": (b'{"a":"\\ud800 and more", "b":1}', "surrogate"),
    "the other half": (b'{"a":"\\udc00"}', "surrogate"),
    "a key twice": (b'{"a":1,"a":2}', "'a' appears twice"),
    "a key twice, spaced": (b'{ "a": 1, "a": 1 }', "'a' appears twice"),
    "a key twice, spelled twice": (b'{"a":1,"\\u0061":2}', "'a' appears twice"),
    "a key twice, and a colon escaped": (b'{"a":1,"a":"\\u003a"}', "'a' appears twice"),
    "a key twice, and a colon escaped elsewhere": (b'{"b":"\\u003A","a":1,"a":2}', "appears twice"),
    "a key twice, with colons": (b'{"a:":":","a:":":"}', "'a:' appears twice"),
    "a key twice, deep": (b'{"a":[{"b":{"c":1,"d":1,"c":1}}]}', "'c' appears twice"),
    "65 levels": (b'{"a":' + b"[" * 64 + b"]" * 64 + b"}", "deeper than 64"),
    "65 levels of objects": (b'{"a":' * 65 + b"1" + b"}" * 65, "deeper than 64"),
    "levels without an end": (b"[" * 100_000, "deeper than 64"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_two_parsers_could_understand_differently_is_refused(case: str) -> None:
    body, why = REFUSED[case]
    with pytest.raises(GatewayError, match=why) as caught:
        read_object(body, depth_max=64)
    assert reason_name(caught.value.reason) == "invalid_request"


@pytest.mark.parametrize(
    "body",
    [
        b"{}",
        b' {"a" : 1.0 , "b":[{"a":2},{"a":3}]} ',
        b'{"a":' + b"[" * 63 + b"]" * 63 + b"}",
        b'{"a":"\\u003a:","b\\u003A":{"a":":"}}',
        b'{"a":"\\ud83d\\ude00","b":"\\u0000","c":"\\/"}',
        b'{"a":18446744073709551616,"b":-0,"c":1E5}',
        b'{"a":"[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[["}',
    ],
)
def test_what_is_sound_is_read_as_any_parser_reads_it(body: bytes) -> None:
    assert read_object(body, depth_max=64) == json.loads(body)


@given(st.dictionaries(st.text(), VALUES, max_size=5), st.booleans())
def test_any_object_is_read_in_any_spelling(value: dict[str, object], spaced: bool) -> None:
    body = json.dumps(value, indent=1 if spaced else None, ensure_ascii=spaced).encode(
        "utf-8", "surrogatepass"
    )
    assert read_object(body, depth_max=64) == value


@given(st.dictionaries(st.text(), VALUES, min_size=1, max_size=5), st.data())
def test_any_object_with_a_member_twice_is_refused(
    value: dict[str, object], data: st.DataObject
) -> None:
    key = data.draw(st.sampled_from(sorted(value)))
    body = encode(value)[:-1] + b"," + encode(key) + b":" + encode(value[key]) + b"}"
    with pytest.raises(GatewayError, match="twice"):
        read_object(body, depth_max=64)
