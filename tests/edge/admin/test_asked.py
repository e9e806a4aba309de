"""What a request asks for is read field by field, and nothing else gets past."""

from collections.abc import Callable
from typing import Any

import pytest

from edge.admin.asked import Asked
from runtime.errors import GatewayError


def asked(query: bytes = b"", body: bytes = b"") -> Asked:
    return Asked({}, query, body)


def fault(work: Callable[[], object]) -> str:
    """The field that is refused."""
    with pytest.raises(GatewayError) as caught:
        work()
    return caught.value.param


def test_each_kind_of_field_is_read_as_it_was_sent() -> None:
    body = b'{"t":"x","n":7,"f":true,"l":["a"],"m":{"a":"b"},"o":[{"t":"y"}],"z":null,"e":[],"q":0}'
    read = asked(b"a=1&b[]=x&b[]=y&w=two&g=true", body)
    assert (read.text("t"), read.whole("n"), read.flag("f"), read.texts("l")) == (
        "x",
        7,
        True,
        ["a"],
    )
    assert (read.mapping("m"), read.text_or("z"), read.texts("e")) == ({"a": "b"}, None, [])
    assert (read.has("q"), read.has("z")) == (True, False)
    (inner,) = read.objects("o")
    assert inner.text("t") == "y"
    inner.finish()
    assert (read.filter_whole("a"), read.filters("b")) == (1, ["x", "y"])
    assert read.filter_word("w", "one", "two") == "two"
    assert read.filter_flag("g") is True
    read.finish()


def test_what_is_not_there_is_its_default() -> None:
    read = asked()
    assert (read.text_or("t"), read.whole("n"), read.flag("f"), read.texts("l")) == (
        None,
        None,
        False,
        None,
    )
    assert (read.mapping("m"), read.objects("o"), read.filter("x"), read.filter_whole("y")) == (
        {},
        [],
        "",
        None,
    )
    page = read.page(20)
    assert (page.size, page.after, page.ascending) == (20, "", False)
    assert read.page(20, order="asc").ascending
    read.finish()


@pytest.mark.parametrize(
    ("query", "body", "param"),
    [
        (b"", b'{"role":"owner"}', "role"),
        (b"admin=true", b"", "admin"),
        (b"a=1&a=2", b"", "a"),
        (b"n=-1", b"", "n"),
        (b"n=1.5", b"", "n"),
        (b"n=" + b"9" * 19, b"", "n"),
        (b"w=three", b"", "w"),
        (b"limit=1001", b"", "limit"),
        (b"order=up", b"", "order"),
        (b"", b'{"t":1}', "t"),
        (b"", b'{"n":true}', "n"),
        (b"", b'{"n":-1}', "n"),
        (b"", b'{"n":9223372036854775808}', "n"),
        (b"", b'{"f":1}', "f"),
        (b"", b'{"l":[1]}', "l"),
        (b"", b'{"l":"a"}', "l"),
        (b"", b'{"m":{"a":1}}', "m"),
        (b"", b'{"o":["a"]}', "o"),
    ],
)
def test_what_is_no_field_or_of_another_kind_is_refused_by_name(
    query: bytes, body: bytes, param: str
) -> None:
    def read() -> None:
        found = asked(query, body)
        found.filter("a")
        found.filter_whole("n")
        found.filter_word("w", "one", "two")
        found.page(20)
        found.text_or("t")
        found.whole("n")
        found.flag("f")
        found.texts("l")
        found.mapping("m")
        found.objects("o")
        found.finish()

    assert fault(read) == param


def test_a_field_that_must_be_there_is_missed_by_name() -> None:
    assert fault(lambda: asked().text("name")) == "name"
    (inner,) = asked(body=b'{"o":[{"x":1}]}').objects("o")
    assert fault(inner.finish) == "x"


@pytest.mark.parametrize(
    ("query", "body"),
    [
        (b"a=%ff", b""),
        (b"&".join(b"a=1" for _ in range(501)), b""),
        (b"", b"[]"),
        (b"", b'{"a":1,"a":2}'),
        (b"", b'{"a":' * 9 + b"1" + b"}" * 9),
    ],
)
def test_what_cannot_be_read_in_one_way_is_refused(query: bytes, body: bytes) -> None:
    arguments: Any = (query, body)
    with pytest.raises(GatewayError):
        asked(*arguments)
