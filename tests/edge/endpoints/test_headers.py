"""What headers say of a call on the way in, and of its answer on the way out."""

import pytest

from edge.endpoints import call_context as call_context_module
from edge.endpoints.call_context import call_context
from edge.endpoints.call_headers import duration, served_lines
from onegate.common.v1 import token_usage_pb2
from onegate.router.v1 import chat_pb2
from runtime.errors import GatewayError, reason_name


def context(**headers: bytes) -> chat_pb2.CallContext:
    named = {name.replace("_", "-").encode(): value for name, value in headers.items()}
    return call_context(named, request_id="req_1", client_address="10.0.0.1")


def test_a_call_without_headers_has_its_id_and_address() -> None:
    assert context() == chat_pb2.CallContext(request_id="req_1", client_address="10.0.0.1")


def test_every_header_has_its_place() -> None:
    made = context(
        x_onegate_tags=b" team = search,env=prod,urgent ,,",
        x_onegate_customer="Zoë".encode(),
        x_onegate_feature=b"chat",
        x_onegate_run=b"run-1",
        x_onegate_max_cost=b"0.05",
        x_onegate_data_class=b"internal",
        x_onegate_dry_run=b"true",
    )
    assert dict(made.tags) == {"team": "search", "env": "prod", "urgent": ""}
    assert (made.customer, made.feature, made.run) == ("Zoë", "chat", "run-1")
    assert made.cost_max_nano_usd == 50_000_000
    assert (made.data_class, made.dry_run) == ("internal", True)
    assert not context(x_onegate_dry_run=b"False").dry_run


@pytest.mark.parametrize(
    ("text", "nano_usd"),
    [(b"0", 0), (b"1", 10**9), (b"0.000000001", 1), (b" 12.5 ", 12_500_000_000)],
)
def test_a_cost_is_read_exactly(text: bytes, nano_usd: int) -> None:
    made = context(x_onegate_max_cost=text)
    assert made.HasField("cost_max_nano_usd")
    assert made.cost_max_nano_usd == nano_usd


@pytest.mark.parametrize(
    ("header", "value"),
    [
        ("x_onegate_max_cost", b"-1"),
        ("x_onegate_max_cost", b"1e3"),
        ("x_onegate_max_cost", b"0.0000000001"),
        ("x_onegate_max_cost", b"1" * 600),
        ("x_onegate_tags", b"=x"),
        ("x_onegate_tags", b"a" * 65),
        ("x_onegate_tags", b"a=" + b"b" * 513),
        ("x_onegate_tags", b",".join(b"t%d" % index for index in range(17))),
        ("x_onegate_tags", b"\xff"),
        ("x_onegate_customer", b"a" * 513),
    ],
)
def test_a_header_that_cannot_be_understood_is_refused_by_name(header: str, value: bytes) -> None:
    with pytest.raises(GatewayError) as caught:
        context(**{header: value})
    assert reason_name(caught.value.reason) == "invalid_request"
    assert caught.value.param == header.replace("_", "-")


def test_no_header_is_left_out_of_the_first_look() -> None:
    known = {value for value in vars(call_context_module).values() if isinstance(value, bytes)}
    assert known | set(call_context_module._TEXTS.values()) == call_context_module._OURS


def parsed(lines: str) -> dict[str, str]:
    """Header lines as a table."""
    return dict(line.split(": ", 1) for line in lines.removesuffix("\r\n").split("\r\n"))


@pytest.mark.parametrize("split", ["\r\nx-evil: 1", "\n", "\r", "\0"])
def test_no_model_name_makes_a_line_of_its_own(split: str) -> None:
    lines = served_lines(chat_pb2.Served(model=f"a{split}b"), None, 0.0)
    assert set(parsed(lines)) == {"server-timing", "x-onegate-model", "x-onegate-attempts"}
    assert "\0" not in lines


def test_an_answer_says_who_served_at_what_cost_and_what_is_left() -> None:
    served = chat_pb2.Served(
        model="a/b",
        attempts=3,
        upstream_us=1_500,
        requests=chat_pb2.LimitStatus(limit=5, remaining=4, reset_ms=120),
        tokens=chat_pb2.LimitStatus(limit=50, remaining=0, reset_ms=61_500),
    )
    metered = chat_pb2.Metered(tokens=token_usage_pb2.TokenUsage(), cost_nano_usd=1)
    assert parsed(served_lines(served, metered, 0.002)) == {
        "server-timing": "gateway;dur=0.50, upstream;dur=1.50",
        "x-onegate-model": "a/b",
        "x-onegate-attempts": "3",
        "x-onegate-cost": "0.000000001",
        "x-ratelimit-limit-requests": "5",
        "x-ratelimit-remaining-requests": "4",
        "x-ratelimit-reset-requests": "120ms",
        "x-ratelimit-limit-tokens": "50",
        "x-ratelimit-remaining-tokens": "0",
        "x-ratelimit-reset-tokens": "1m1.5s",
    }
    plain = parsed(served_lines(chat_pb2.Served(model="m", upstream_us=5_000), None, 0.001))
    assert plain["server-timing"] == "gateway;dur=0.00, upstream;dur=5.00"
    assert set(plain) == {"server-timing", "x-onegate-model", "x-onegate-attempts"}


@pytest.mark.parametrize(
    ("milliseconds", "text"),
    [
        (0, "0ms"),
        (999, "999ms"),
        (8_640, "8.64s"),
        (360_000, "6m0s"),
        (3_600_000, "1h0m0s"),
        (90_061_000, "25h1m1s"),
    ],
)
def test_times_are_written_as_openai_writes_them(milliseconds: int, text: str) -> None:
    assert duration(milliseconds) == text


def test_a_route_is_named_on_one_line_and_only_when_there_is_one() -> None:
    routed = chat_pb2.Served(model="a/m", route="smart; weight\r\nx-evil: 1")
    assert "x-onegate-route: smart; weightx-evil: 1\r\n" in served_lines(routed, None, 0.1)
    assert "x-onegate-route" not in served_lines(chat_pb2.Served(model="a/m"), None, 0.1)


def test_an_idempotency_key_is_taken_as_it_is() -> None:
    assert context(idempotency_key=b' "9f1c" ').idempotency_key == ' "9f1c" '


@pytest.mark.parametrize("key", [b"", b"k" * 256, b"a\tb", b"\xff"])
def test_an_idempotency_key_that_would_protect_nothing_is_refused(key: bytes) -> None:
    with pytest.raises(GatewayError) as caught:
        context(idempotency_key=key)
    assert reason_name(caught.value.reason) == "invalid_request"
    assert caught.value.param == "idempotency-key"


@pytest.mark.parametrize("metered", [None, chat_pb2.Metered(cost_nano_usd=5)])
def test_a_replayed_answer_says_whose_it_is_and_that_it_costs_nothing(
    metered: chat_pb2.Metered | None,
) -> None:
    repetition = chat_pb2.Repetition(replayed=True, request_id="req_1\r\nx: y")
    lines = served_lines(chat_pb2.Served(model="a/m", repetition=repetition), metered, 1.0)
    assert "x-onegate-replayed: true\r\n" in lines
    assert "x-onegate-original-request-id: req_1x: y\r\n" in lines
    assert [line for line in lines.split("\r\n") if line.startswith("x-onegate-cost")] == [
        "x-onegate-cost: 0"
    ]


def test_a_first_answer_with_a_key_says_that_it_was_made() -> None:
    served = chat_pb2.Served(model="a/m", repetition=chat_pb2.Repetition(request_id="req_1"))
    lines = served_lines(served, chat_pb2.Metered(cost_nano_usd=5), 1.0)
    assert "x-onegate-replayed: false\r\n" in lines
    assert "x-onegate-cost: 0.000000005\r\n" in lines
    assert "original" not in lines
    plain = served_lines(chat_pb2.Served(model="a/m"), None, 1.0)
    assert "replayed" not in plain


@pytest.mark.parametrize(
    ("wait", "milliseconds"), [(b"0", 0), (b"2.5", 2500), (b" 20 ", 20_000), (b"0.001", 1)]
)
def test_how_long_and_with_which_priority_a_call_waits(wait: bytes, milliseconds: int) -> None:
    asked = context(x_onegate_wait=wait, x_onegate_priority=b"7")
    assert (asked.wait_max_ms, asked.priority) == (milliseconds, 7)
    assert not context().HasField("wait_max_ms")


@pytest.mark.parametrize(
    ("header", "value"),
    [
        ("x_onegate_wait", b"soon"),
        ("x_onegate_wait", b"-1"),
        ("x_onegate_wait", b"99999"),
        ("x_onegate_priority", b"10"),
        ("x_onegate_priority", "²".encode()),
    ],
)
def test_a_wait_that_cannot_be_understood_is_refused(header: str, value: bytes) -> None:
    with pytest.raises(GatewayError) as raised:
        context(**{header: value})
    assert raised.value.param == header.replace("_", "-")
