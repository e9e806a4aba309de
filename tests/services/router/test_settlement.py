"""One attempt's record: whatever happens, the figures and how sure they are."""

from dataclasses import dataclass

import pytest

from onegate.auth.v1 import grant_pb2
from onegate.common.v1 import error_pb2
from onegate.common.v1.token_usage_pb2 import TokenUsage
from onegate.router.v1 import chat_pb2
from onegate.usage.v1 import price_pb2, usage_record_pb2
from runtime.errors import GatewayError
from services.router.models.catalog import Deployment
from services.router.money.settlement import Attempt, Caller, NoProgress, Terms

SHEET = price_pb2.PriceSheet(
    version="v7",
    rates=[
        price_pb2.Rate(meter=price_pb2.METER_INPUT_TOKENS, nano_usd_per_million=1_000_000),
        price_pb2.Rate(meter=price_pb2.METER_OUTPUT_TOKENS, nano_usd_per_million=10_000_000),
    ],
)
"""One nano-USD for an input token, ten for an output token."""
DEPLOYMENT = Deployment(
    id="openai/gpt-5", provider="openai", model="gpt-5", price_name="openai/gpt-5", free=False
)
GRANT = grant_pb2.Grant(
    key_id="key_1", project_id="p", organization_id="o", tags={"team": "a", "who": "key"}
)


@dataclass
class Said:
    """How far an answer got."""

    usage: TokenUsage | None = None
    finish_reason: str = ""
    upstream_id: str = ""
    output_bytes: int = 0


def request() -> chat_pb2.ChatRequest:
    asked = chat_pb2.ChatRequest(
        model="gpt-5",
        stream=True,
        metadata={"who": "metadata", "m": "1"},
        context=chat_pb2.CallContext(tags={"who": "call"}, customer="c", feature="f", run="r"),
        safety_identifier="s",
        native=chat_pb2.NativeRequest(body=b"x" * 40, input_tokens_bound=60),
    )
    asked.output_tokens_max = 100
    return asked


def begun(status: int = 0, sheet: price_pb2.PriceSheet | None = SHEET) -> Attempt:
    attempt = Attempt(Caller(GRANT, request(), "req_1"), Terms(GRANT, "gpt-5", DEPLOYMENT, sheet))
    attempt.begin("att_1", 2, 1_800_000_000.25, 100.0)
    if status:
        attempt.first_byte(status, 101.0)
    return attempt


def name(enum: object, value: int) -> str:
    return str(enum.Name(value)).partition("_")[2]  # type: ignore[attr-defined]


def outcome(attempt: Attempt) -> str:
    return name(usage_record_pb2.Outcome, attempt.record.outcome)


def certainty(attempt: Attempt) -> str:
    return name(usage_record_pb2.Certainty, attempt.record.certainty)


def test_before_it_is_sent_the_record_knows_who_and_what() -> None:
    attempt = begun()
    record = attempt.record
    assert (record.attempt_id, record.attempt_number, record.request_id) == ("att_1", 2, "req_1")
    assert (record.key_id, record.project_id, record.organization_id) == ("key_1", "p", "o")
    assert (record.model_requested, record.model, record.provider) == (
        "gpt-5",
        "openai/gpt-5",
        "openai",
    )
    assert (record.endpoint, record.stream, record.price_version) == (
        "chat.completions",
        True,
        "v7",
    )
    assert (record.started_at.seconds, record.started_at.nanos) == (1_800_000_000, 250_000_000)
    assert dict(record.tags) == {"team": "a", "who": "call", "m": "1"}
    who = record.attribution
    assert (who.end_user, who.customer, who.feature, who.run) == ("s", "c", "f", "r")
    assert (record.tokens.input_tokens, record.tokens.estimated, record.cost_nano_usd) == (
        10,
        True,
        10,
    )
    assert not attempt.finished


def test_a_whole_answer_is_what_the_provider_reported() -> None:
    attempt = begun(200)
    attempt.first_token(102.5)
    usage = TokenUsage(input_tokens=7, output_tokens=3)
    attempt.complete(Said(usage, "stop", "chatcmpl-1", 900), 103.0)
    record = attempt.record
    assert (outcome(attempt), certainty(attempt)) == ("COMPLETED", "REPORTED")
    assert (record.tokens, record.cost_nano_usd) == (usage, 37)
    assert (record.duration_us, record.first_token_us) == (3_000_000, 2_500_000)
    assert (record.finish_reason, record.upstream_request_id) == ("stop", "chatcmpl-1")
    assert (record.upstream_status, record.error_reason) == (200, 0)
    assert attempt.finished
    assert not attempt.overran()


def test_the_price_of_all_attempts_on_the_same_terms_is_one() -> None:
    terms, caller = Terms(GRANT, "gpt-5", DEPLOYMENT, SHEET), Caller(GRANT, request(), "req_1")
    attempts = [Attempt(caller, terms) for _ in range(2)]
    usage = TokenUsage(input_tokens=7, output_tokens=3)
    assert [attempt.cost(usage) for attempt in attempts] == [37, 37]
    usage.output_tokens = 4
    assert attempts[0].cost(usage) == 47
    assert attempts[0].cost(TokenUsage()) == 0


def test_an_explicit_zero_stays_zero() -> None:
    attempt = begun(200)
    attempt.complete(Said(TokenUsage(), output_bytes=400), 103.0)
    assert (attempt.record.cost_nano_usd, certainty(attempt)) == (0, "REPORTED")


@pytest.mark.parametrize(
    "usage", [None, TokenUsage(input_tokens=-1, output_tokens=5), TokenUsage(output_tokens=-5)]
)
def test_a_missing_or_impossible_usage_is_counted_here(usage: TokenUsage | None) -> None:
    attempt = begun(200)
    attempt.complete(Said(usage, output_bytes=41), 103.0)
    tokens = attempt.record.tokens
    assert (tokens.input_tokens, tokens.output_tokens, tokens.estimated) == (10, 11, True)
    assert (attempt.record.cost_nano_usd, certainty(attempt)) == (120, "ESTIMATED")
    assert not attempt.overran()


def test_a_wires_own_estimate_is_flagged() -> None:
    attempt = begun(200)
    attempt.complete(Said(TokenUsage(output_tokens=1, estimated=True)), 103.0)
    assert certainty(attempt) == "ESTIMATED"


def test_an_absurd_usage_is_posted_and_noticed() -> None:
    attempt = begun(200)
    attempt.complete(Said(TokenUsage(input_tokens=10**15, output_tokens=1)), 103.0)
    assert attempt.record.cost_nano_usd == 10**15 + 10
    assert attempt.overran()
    attempt = begun(200)
    attempt.complete(Said(TokenUsage(input_tokens=2**62, output_tokens=2**62)), 103.0)
    assert attempt.record.cost_nano_usd == 2**63 - 1


@pytest.mark.parametrize(
    ("reason", "failure_status", "status"),
    [
        ("UPSTREAM_UNREACHABLE", 0, 0),
        ("UPSTREAM_ERROR", 500, 500),
        ("UPSTREAM_RATE_LIMITED", 429, 429),
        ("UPSTREAM_AUTH", 401, 401),
        ("INVALID_REQUEST", 400, 400),
        ("UPSTREAM_TIMEOUT", 408, 408),
        ("UPSTREAM_ERROR", 0, 200),
        ("CONTENT_POLICY", 0, 200),
    ],
)
def test_what_certainly_was_not_done_costs_nothing(
    reason: str, failure_status: int, status: int
) -> None:
    attempt = begun(status)
    value = error_pb2.ErrorReason.Value(f"ERROR_REASON_{reason}")
    attempt.fail(GatewayError(value, "x", upstream_status=failure_status), NoProgress(), 103.0)
    record = attempt.record
    assert (outcome(attempt), certainty(attempt)) == ("FAILED", "REPORTED")
    assert (record.cost_nano_usd, record.tokens) == (0, TokenUsage())
    assert (record.error_reason, record.upstream_status) == (value, status)


@pytest.mark.parametrize(
    ("reason", "status"),
    [
        ("UPSTREAM_ERROR", 0),
        ("UPSTREAM_TIMEOUT", 0),
        ("DEADLINE_EXCEEDED", 0),
        ("UPSTREAM_PROTOCOL", 200),
        ("UPSTREAM_TOO_LARGE", 200),
        ("INTERNAL", 200),
    ],
)
def test_what_may_have_been_done_is_uncertain(reason: str, status: int) -> None:
    attempt = begun(status)
    value = error_pb2.ErrorReason.Value(f"ERROR_REASON_{reason}")
    attempt.fail(GatewayError(value, "x"), NoProgress(), 103.0)
    assert (outcome(attempt), certainty(attempt)) == ("FAILED", "UNCERTAIN")
    assert (attempt.record.tokens.input_tokens, attempt.record.cost_nano_usd) == (10, 10)


def test_what_broke_off_costs_what_was_seen() -> None:
    attempt = begun(200)
    failure = GatewayError(error_pb2.ERROR_REASON_UPSTREAM_PROTOCOL, "x")
    attempt.fail(failure, Said(output_bytes=40), 103.0)
    assert (outcome(attempt), certainty(attempt)) == ("TRUNCATED", "ESTIMATED")
    assert (attempt.record.tokens.output_tokens, attempt.record.cost_nano_usd) == (10, 110)


def test_a_usage_from_the_beginning_is_topped_up_by_what_came_since() -> None:
    attempt = begun(200)
    early = TokenUsage(input_tokens=33, cached_input_tokens=3, output_tokens=1)
    attempt.abandon(Said(early, output_bytes=40), 103.0)
    tokens = attempt.record.tokens
    assert (tokens.input_tokens, tokens.cached_input_tokens, tokens.output_tokens) == (33, 3, 10)
    assert (outcome(attempt), certainty(attempt)) == ("CANCELLED", "ESTIMATED")
    assert attempt.record.error_reason == error_pb2.ERROR_REASON_CANCELLED
    attempt = begun(200)
    late = TokenUsage(input_tokens=33, output_tokens=50)
    attempt.abandon(Said(late, output_bytes=40), 103.0)
    assert attempt.record.tokens.output_tokens == 50


def test_a_failure_after_a_usage_keeps_it() -> None:
    attempt = begun(200)
    failure = GatewayError(error_pb2.ERROR_REASON_UPSTREAM_ERROR, "x")
    attempt.fail(failure, Said(TokenUsage(input_tokens=33)), 103.0)
    assert (outcome(attempt), certainty(attempt)) == ("FAILED", "ESTIMATED")
    assert attempt.record.cost_nano_usd == 33


def test_a_free_model_costs_nothing_and_names_no_price() -> None:
    attempt = begun(200, sheet=None)
    attempt.complete(Said(TokenUsage(input_tokens=7, output_tokens=3)), 103.0)
    assert (attempt.record.cost_nano_usd, attempt.record.price_version) == (0, "")
    assert attempt.record.tokens.output_tokens == 3


def test_a_call_without_names_has_no_attribution() -> None:
    asked = chat_pb2.ChatRequest(model="m", end_user="u")
    nobody = grant_pb2.Grant()
    attempt = Attempt(Caller(nobody, asked, "r"), Terms(nobody, "m", DEPLOYMENT, None))
    attempt.begin("a", 1, 1.0, 1.0)
    assert attempt.record.attribution.end_user == "u"
    unnamed = Caller(nobody, chat_pb2.ChatRequest(), "r")
    bare = Attempt(unnamed, Terms(nobody, "", DEPLOYMENT, None))
    bare.begin("a", 1, 1.0, 1.0)
    assert not bare.record.HasField("attribution")
    assert not bare.record.tags
    assert bare.duration_ms(1.5) == 500


def under_a_budget() -> Attempt:
    attempt = Attempt(Caller(GRANT, request(), "req_1"), Terms(GRANT, "gpt-5", DEPLOYMENT, SHEET))
    attempt.reservation = usage_record_pb2.Reservation(amount_nano_usd=5_000)
    attempt.begin("att_1", 1, 1_800_000_000.25, 100.0)
    return attempt


def test_what_was_sent_and_never_heard_of_again_costs_all_that_was_set_aside() -> None:
    assert under_a_budget().record.cost_nano_usd == 5_000
    failed = under_a_budget()
    failed.fail(GatewayError(error_pb2.ERROR_REASON_UPSTREAM_TIMEOUT, "x"), NoProgress(), 103.0)
    left = under_a_budget()
    left.abandon(NoProgress(), 103.0)
    for attempt in (failed, left):
        assert (certainty(attempt), attempt.record.cost_nano_usd) == ("UNCERTAIN", 5_000)


def test_who_leaves_in_mid_answer_pays_for_what_came() -> None:
    attempt = under_a_budget()
    attempt.abandon(Said(output_bytes=11), 103.0)
    assert (certainty(attempt), attempt.record.cost_nano_usd) == ("ESTIMATED", 10 + 30)
