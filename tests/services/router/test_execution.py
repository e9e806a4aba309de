"""Calls through a whole router: what comes out, what the provider saw, and what is on the bill."""

import asyncio
import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from onegate.auth.v1 import grant_pb2
from onegate.common.v1 import token_usage_pb2
from onegate.router.v1 import chat_pb2
from onegate.usage.v1 import usage_record_pb2
from runtime.config import ProviderSettings
from runtime.errors import reason_name
from tests.fake_provider import INPUT_TOKENS, FakeProvider, Fault, Outcome, Reply, pieces_of
from tests.services.router.rig import Record, hello, native, provider, running, settings_in, sheet

pytestmark = pytest.mark.anyio

TEXT = Reply().text
OUTPUT_TOKENS = len(pieces_of(TEXT))
COST = INPUT_TOKENS + 10 * OUTPUT_TOKENS
PRICED = (sheet("openai/m"), sheet("deepseek/m"))


def outcome(record: Record) -> str:
    return usage_record_pb2.Outcome.Name(record.outcome).removeprefix("OUTCOME_")


def certainty(record: Record) -> str:
    return usage_record_pb2.Certainty.Name(record.certainty).removeprefix("CERTAINTY_")


def reason(record: Record) -> str:
    return reason_name(record.error_reason) if record.error_reason else ""


async def test_a_call_is_answered_metered_and_posted(tmp_path: Path) -> None:
    async with (
        FakeProvider() as fake,
        running(settings_in(tmp_path, provider("a", fake)), PRICED) as rig,
    ):
        said = await rig.chat(hello())
        assert (said.error, said.text, said.messages) == (None, TEXT, 1)
        kinds = [event.WhichOneof("event") for event in said.events]
        assert kinds == ["served", "native", "metered"]
        assert (said.served.model, said.served.attempts) == ("a/m", 1)
        assert said.served.upstream_us > 0
        assert said.metered.cost_nano_usd == COST
        assert json.loads(said.native)["usage"]["cost"] == COST / 1e9
        (record,) = await rig.records(1)
        assert (outcome(record), certainty(record), reason(record)) == ("COMPLETED", "REPORTED", "")
        assert (record.model, record.provider, record.key_id) == ("a/m", "a", "key_0")
        assert (record.tokens.input_tokens, record.tokens.output_tokens) == (
            INPUT_TOKENS,
            OUTPUT_TOKENS,
        )
        assert (record.cost_nano_usd, record.price_version) == (COST, "openai/m@1")
        assert record.duration_us > 0
        assert record.first_token_us > 0
        assert record.request_id
        assert fake.chats[0].json == hello("m")


async def test_a_stream_is_passed_on_as_it_comes(tmp_path: Path) -> None:
    async with (
        FakeProvider() as fake,
        running(settings_in(tmp_path, provider("a", fake)), PRICED) as rig,
    ):
        fake.default = Reply(chunk_delay_s=0.02)
        said = await rig.chat(hello(stream=True, stream_options={"include_usage": True}))
        assert (said.error, said.text) == (None, TEXT)
        assert said.messages >= OUTPUT_TOKENS
        kinds = [event.WhichOneof("event") for event in said.events]
        assert (kinds[0], kinds[-1]) == ("served", "metered")
        assert set(kinds[1:-1]) == {"native"}
        assert b"[DONE]" not in said.native
        last = json.loads(said.native.rstrip().rpartition(b"data: ")[2])
        assert last["usage"]["cost"] == COST / 1e9
        (record,) = await rig.records(1)
        assert (outcome(record), record.cost_nano_usd, record.stream) == ("COMPLETED", COST, True)
        assert 0 < record.first_token_us < record.duration_us
        assert record.finish_reason == "stop"


async def test_usage_is_metered_though_the_caller_does_not_ask_for_it(tmp_path: Path) -> None:
    async with (
        FakeProvider() as fake,
        running(settings_in(tmp_path, provider("a", fake)), PRICED) as rig,
    ):
        said = await rig.chat(hello(stream=True))
        assert b'"usage"' not in said.native
        assert said.metered.cost_nano_usd == COST
        assert fake.chats[0].json["stream_options"] == {"include_usage": True}


async def test_what_arrives_together_travels_together(tmp_path: Path) -> None:
    async with (
        FakeProvider() as fake,
        running(settings_in(tmp_path, provider("a", fake)), PRICED) as rig,
    ):
        fake.default = Reply(text="word " * 500)
        said = await rig.chat(hello(stream=True))
        assert said.text == "word " * 500
        assert said.messages < 250


async def test_a_wire_that_does_not_speak_the_dialect_gets_the_typed_form(tmp_path: Path) -> None:
    async with FakeProvider() as fake:
        settings = settings_in(tmp_path, provider("a", fake, kind="deepseek"))
        async with running(settings, PRICED) as rig:
            whole = await rig.chat(hello())
            streamed = await rig.chat(hello(stream=True))
            assert (whole.typed_asked, whole.text, whole.metered.cost_nano_usd) == (1, TEXT, COST)
            assert (streamed.typed_asked, streamed.text) == (1, TEXT)
            assert {"answer"} < {event.WhichOneof("event") for event in whole.events}
            assert fake.chats[0].json["messages"] == [{"role": "user", "content": "Hi"}]


async def test_calls_share_connections_and_do_not_wait_for_each_other(tmp_path: Path) -> None:
    async with (
        FakeProvider() as fake,
        running(settings_in(tmp_path, provider("a", fake)), PRICED) as rig,
    ):
        fake.default = Reply(first_byte_delay_s=0.2)
        loop = asyncio.get_running_loop()
        started = loop.time()
        answers = await asyncio.gather(*(rig.chat(hello()) for _ in range(40)))
        assert all(said.text == TEXT for said in answers)
        assert loop.time() - started < 2.0
        for _ in range(5):
            await rig.chat(hello(stream=True))
        assert fake.connections <= 40
        assert len(await rig.records(45)) == 45


FAILURES: list[tuple[str, Reply, str, int, str, str]] = [
    ("500", Reply(status=500), "upstream_error", 500, "REPORTED", "FAILED"),
    ("503", Reply(status=503), "upstream_error", 503, "REPORTED", "FAILED"),
    ("529", Reply(status=529), "upstream_error", 529, "REPORTED", "FAILED"),
    ("429", Reply(status=429), "upstream_rate_limited", 429, "REPORTED", "FAILED"),
    ("401", Reply(status=401), "upstream_auth", 401, "REPORTED", "FAILED"),
    ("403", Reply(status=403), "upstream_auth", 403, "REPORTED", "FAILED"),
    ("400", Reply(status=400), "invalid_request", 400, "REPORTED", "FAILED"),
    ("422", Reply(status=422), "invalid_request", 422, "REPORTED", "FAILED"),
    ("404", Reply(status=404), "upstream_error", 404, "REPORTED", "FAILED"),
    ("redirect", Reply(status=302), "upstream_error", 302, "REPORTED", "FAILED"),
    ("not JSON", Reply(body=b"{nope"), "upstream_protocol", 0, "UNCERTAIN", "FAILED"),
    (
        "HTML",
        Reply(body=b"<html>hello</html>", headers=(("content-type", "text/html"),)),
        "upstream_protocol",
        0,
        "UNCERTAIN",
        "FAILED",
    ),
    ("204", Reply(status=204, body=b""), "upstream_protocol", 0, "UNCERTAIN", "FAILED"),
    (
        "bomb",
        Reply(body=gzip.compress(b"0" * (64 << 20)), headers=(("content-encoding", "gzip"),)),
        "upstream_too_large",
        0,
        "UNCERTAIN",
        "FAILED",
    ),
    ("too large", Reply(body=b"x" * 3_000_000), "upstream_too_large", 0, "UNCERTAIN", "FAILED"),
    ("hangs", Reply(fault=Fault.HANG), "upstream_timeout", 0, "UNCERTAIN", "FAILED"),
    ("hangs up", Reply(fault=Fault.CLOSE), "upstream_error", 0, "UNCERTAIN", "FAILED"),
    ("resets", Reply(fault=Fault.RESET), "upstream_error", 0, "UNCERTAIN", "FAILED"),
]


@pytest.mark.parametrize("streamed", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize(
    ("reply", "why", "status", "sure", "ended"),
    [case[1:] for case in FAILURES],
    ids=[case[0] for case in FAILURES],
)
async def test_a_failing_provider_is_told_and_billed_for_what_it_did(
    tmp_path: Path, reply: Reply, why: str, status: int, sure: str, ended: str, streamed: bool
) -> None:  # fmt: skip
    async with FakeProvider() as fake:
        fake.default = reply
        settings = settings_in(
            tmp_path,
            provider("a", fake),
            attempts_max=1,
            first_byte_timeout_s=0.2,
            answer_timeout_s=0.2 if reply.fault is Fault.HANG else 30.0,
            answer_bytes_max=2 << 20,
        )
        async with running(settings, PRICED) as rig:
            said = await rig.chat(hello(stream=streamed))
            if streamed and why == "upstream_too_large":
                why = "upstream_protocol"  # a stream is bounded by event, not as a whole
            assert (said.reason, said.events) == (why, [])
            assert said.error is not None
            assert said.error.upstream_status == status
            (attempt,) = said.error.attempts
            assert (attempt.model, attempt.upstream_status) == ("a/m", status)
            (record,) = await rig.records(1)
            assert (reason(record), certainty(record), outcome(record)) == (why, sure, ended)
            assert (record.cost_nano_usd == 0) == (sure == "REPORTED")
            assert len(fake.chats) == 1


async def test_a_provider_that_cannot_be_reached_is_told_at_once_and_costs_nothing(
    tmp_path: Path,
) -> None:
    async with FakeProvider() as fake:
        closed = provider("a", fake)
    nowhere = ProviderSettings(name="b", kind="openai", base_url="http://no-such-host.invalid/v1")
    settings = settings_in(tmp_path, closed, nowhere)
    async with running(settings, PRICED) as rig:
        loop = asyncio.get_running_loop()
        for model in ("a/m", "b/m"):
            started = loop.time()
            said = await rig.chat(hello(model))
            assert said.reason == "upstream_unreachable"
            assert loop.time() - started < 2.5
        for record in await rig.records(6):
            assert (outcome(record), certainty(record)) == ("FAILED", "REPORTED")
            assert (record.cost_nano_usd, record.upstream_status) == (0, 0)


MID_STREAM: list[tuple[str, Reply, str]] = [
    ("cut", Reply(fault=Fault.CLOSE, fault_after=3), "upstream_protocol"),
    ("reset", Reply(fault=Fault.RESET, fault_after=3), "upstream_protocol"),
    ("ends early", Reply(fault=Fault.END, fault_after=3), "upstream_protocol"),
    ("error event", Reply(fault=Fault.ERROR_EVENT, fault_after=3), "upstream_error"),
    ("stalls", Reply(fault=Fault.HANG, fault_after=3), "upstream_timeout"),
]


@pytest.mark.parametrize(
    ("reply", "why"), [case[1:] for case in MID_STREAM], ids=[case[0] for case in MID_STREAM]
)
async def test_a_stream_that_breaks_off_ends_in_an_error_and_is_billed_for_what_came(
    tmp_path: Path, reply: Reply, why: str
) -> None:
    async with FakeProvider() as fake:
        fake.default = reply
        settings = settings_in(tmp_path, provider("a", fake), stall_timeout_s=0.3)
        async with running(settings, PRICED) as rig:
            said = await rig.chat(hello(stream=True))
            assert (said.reason, said.text) == (why, "Hello from ")
            assert said.served.model == "a/m"
            assert not any(event.HasField("metered") for event in said.events)
            (record,) = await rig.records(1)
            assert (outcome(record), certainty(record)) == ("TRUNCATED", "ESTIMATED")
            assert reason(record) == why
            assert record.tokens.output_tokens == 3  # eleven bytes
            assert len(fake.chats) == 1
            await fake.until(lambda: fake.chats[0].outcome is not Outcome.RUNNING)


USAGES: list[tuple[str, dict[str, Any] | None, int, int, str]] = [
    ("missing", None, 22, 8, "ESTIMATED"),
    ("zero", {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}, 0, 0, "REPORTED"),
    (
        "absurd",
        {"prompt_tokens": 10**12, "completion_tokens": 10**12, "total_tokens": 2 * 10**12},
        10**12,
        10**12,
        "REPORTED",
    ),
]


@pytest.mark.parametrize("streamed", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize(
    ("usage", "input_tokens", "output_tokens", "sure"),
    [case[1:] for case in USAGES],
    ids=[case[0] for case in USAGES],
)
async def test_a_missing_zero_or_absurd_usage_is_settled_truthfully(
    tmp_path: Path,
    usage: dict[str, Any] | None,
    input_tokens: int,
    output_tokens: int,
    sure: str,
    streamed: bool,
) -> None:  # fmt: skip
    async with (
        FakeProvider() as fake,
        running(settings_in(tmp_path, provider("a", fake)), PRICED) as rig,
    ):
        fake.default = Reply(usage=usage)
        said = await rig.chat(hello(stream=streamed))
        assert said.text == TEXT
        (record,) = await rig.records(1)
        if usage is None:
            input_tokens = -(-len(json.dumps(hello(stream=streamed))) // 4)
        assert (record.tokens.input_tokens, record.tokens.output_tokens) == (
            input_tokens,
            output_tokens,
        )
        assert certainty(record) == sure
        assert record.cost_nano_usd == input_tokens + 10 * output_tokens
        assert said.metered.tokens.estimated == (sure == "ESTIMATED")


@pytest.mark.parametrize(
    ("reply", "streamed", "pieces"),
    [
        (Reply(fault=Fault.HANG), False, 0),
        (Reply(fault=Fault.HANG), True, 0),
        (Reply(fault=Fault.HANG, fault_after=1), True, 1),
        (Reply(fault=Fault.HANG, fault_after=3), True, 3),
    ],
    ids=["before the answer", "before the stream", "after the role", "in mid-stream"],
)
async def test_a_caller_who_leaves_stops_the_provider_and_pays_for_what_was_made(
    tmp_path: Path, reply: Reply, streamed: bool, pieces: int
) -> None:
    async with (
        FakeProvider() as fake,
        running(settings_in(tmp_path, provider("a", fake)), PRICED) as rig,
    ):
        fake.default = reply
        call = rig.open(native(hello(stream=streamed)))
        if pieces == 3:
            await call.receive()
        await fake.until(lambda: bool(fake.chats) and fake.chats[0].pieces_sent == pieces)
        loop = asyncio.get_running_loop()
        left_at = loop.time()
        call.cancel()
        await fake.until(lambda: fake.chats[0].outcome is Outcome.ABANDONED)
        assert fake.chats[0].ended_at - left_at < 1.0
        (record,) = await rig.records(1)
        assert (outcome(record), certainty(record)) == ("CANCELLED", "ESTIMATED")
        assert record.tokens.output_tokens == (3 if pieces == 3 else 0)
        assert record.tokens.input_tokens > 0


async def test_a_caller_who_stops_reading_stops_the_provider_in_the_end(tmp_path: Path) -> None:
    async with FakeProvider() as fake:
        fake.default = Reply(text="word " * 100_000)
        settings = settings_in(tmp_path, provider("a", fake), stall_timeout_s=0.5)
        async with running(settings, PRICED) as rig:
            call = rig.open(native(hello(stream=True)))
            await fake.until(
                lambda: bool(fake.chats) and fake.chats[0].outcome is Outcome.ABANDONED, 10.0
            )
            assert fake.chats[0].bytes_sent < 12 << 20
            (record,) = await rig.records(1)
            assert (outcome(record), certainty(record)) == ("CANCELLED", "ESTIMATED")
            call.cancel()


async def test_a_call_may_not_outlast_its_deadline(tmp_path: Path) -> None:
    async with FakeProvider() as fake:
        fake.default = Reply(chunk_delay_s=0.05, text="word " * 1000)
        settings = settings_in(tmp_path, provider("a", fake), call_timeout_s=0.5)
        async with running(settings, PRICED) as rig:
            said = await rig.chat(hello(stream=True))
            assert said.reason == "deadline_exceeded"
            assert said.text.startswith("word word")
            (record,) = await rig.records(1)
            assert outcome(record) == "TRUNCATED"
            assert fake.chats[0].outcome is Outcome.ABANDONED


async def test_the_next_deployment_takes_over_unseen(tmp_path: Path) -> None:
    async with FakeProvider() as one, FakeProvider() as two:
        settings = settings_in(
            tmp_path, provider("a", one), provider("b", two), stall_timeout_s=0.3,
            first_byte_timeout_s=0.3, answer_timeout_s=0.3,
        )  # fmt: skip
        wishes = chat_pb2.RoutingPreferences(fallback_models=["b/m"])
        async with running(settings, PRICED) as rig:
            for count, (reply, streamed) in enumerate(
                [
                    (Reply(status=500), False),
                    (Reply(status=429), True),
                    (Reply(fault=Fault.HANG), False),
                    (Reply(fault=Fault.HANG), True),
                    (Reply(fault=Fault.HANG, fault_after=1), True),
                    (Reply(fault=Fault.CLOSE, fault_after=1), True),
                    (Reply(fault=Fault.ERROR_EVENT, fault_after=1), True),
                    (Reply(body=b"<html>"), False),
                    (Reply(status=403), False),
                ],
                start=1,
            ):
                one.script(reply)
                said = await rig.chat(hello(stream=streamed), routing=wishes)
                assert (said.error, said.text) == (None, TEXT), reply
                assert (said.served.model, said.served.attempts) == ("b/m", 2)
                assert (len(one.chats), len(two.chats)) == (count, count)
            records = await rig.records(18)
            for failed, served in zip(records[::2], records[1::2], strict=True):
                assert failed.request_id == served.request_id
                assert (failed.attempt_number, served.attempt_number) == (1, 2)
                assert (outcome(failed), outcome(served)) == ("FAILED", "COMPLETED")


async def test_a_broken_request_is_not_tried_elsewhere(tmp_path: Path) -> None:
    async with FakeProvider() as one, FakeProvider() as two:
        settings = settings_in(tmp_path, provider("a", one), provider("b", two))
        wishes = chat_pb2.RoutingPreferences(fallback_models=["b/m"])
        async with running(settings, PRICED) as rig:
            one.default = Reply(status=400)
            said = await rig.chat(hello(), routing=wishes)
            assert said.reason == "invalid_request"
            assert (len(one.chats), len(two.chats)) == (1, 0)


async def test_a_refusal_is_asked_again_a_little_later(tmp_path: Path) -> None:
    async with FakeProvider() as fake:
        settings = settings_in(tmp_path, provider("a", fake), retry_budget=1.0)
        async with running(settings, PRICED) as rig:
            fake.script(Reply(status=503), Reply(status=429))
            said = await rig.chat(hello())
            assert (said.text, said.served.attempts) == (TEXT, 3)
            fake.script(*[Reply(status=500)] * 3)
            said = await rig.chat(hello())
            assert said.error is not None
            assert [a.upstream_status for a in said.error.attempts] == [500, 500, 500]
            assert len(fake.chats) == 6


async def test_what_may_have_been_done_is_not_asked_again(tmp_path: Path) -> None:
    async with FakeProvider() as fake:
        settings = settings_in(
            tmp_path, provider("a", fake), first_byte_timeout_s=0.2, answer_timeout_s=0.2
        )
        async with running(settings, PRICED) as rig:
            for fault in (Fault.HANG, Fault.CLOSE):
                fake.script(Reply(fault=fault))
                assert (await rig.chat(hello())).error is not None
            assert len(fake.chats) == 2


async def test_retries_stay_within_their_budget(tmp_path: Path) -> None:
    async with FakeProvider() as fake:
        fake.default = Reply(status=500)
        settings = settings_in(tmp_path, provider("a", fake), retry_budget=0.0)
        async with running(settings, PRICED) as rig:
            await asyncio.gather(*(rig.chat(hello()) for _ in range(40)))
            assert 40 < len(fake.chats) <= 40 + 3 + 3 * 2


async def test_a_deployment_that_asked_for_quiet_is_left_alone(tmp_path: Path) -> None:
    async with FakeProvider() as one, FakeProvider() as two:
        settings = settings_in(tmp_path, provider("a", one), provider("b", two))
        async with running(settings, PRICED) as rig:
            one.script(Reply(status=429, headers=(("retry-after", "1"),)))
            said = await rig.chat(hello())
            assert said.reason == "upstream_rate_limited"
            assert said.error is not None
            assert said.error.retry_after_ms == 1000
            again = await rig.chat(hello())
            assert again.reason == "upstream_rate_limited"
            assert again.error is not None
            assert 0 < again.error.retry_after_ms <= 1001
            assert [out.model for out in again.error.excluded] == ["a/m"]
            wishes = chat_pb2.RoutingPreferences(fallback_models=["b/m"])
            other = await rig.chat(hello(), routing=wishes)
            assert (other.served.model, other.served.attempts) == ("b/m", 1)
            assert (await rig.chat(hello("a/other"))).reason == "model_price_unknown"
            assert len(one.chats) == 1
            await asyncio.sleep(again.error.retry_after_ms / 1000)
            assert (await rig.chat(hello())).text == TEXT
            first, second = one.chats
            assert second.taken_at - first.taken_at >= 1.0


async def test_a_refused_credential_rests_and_is_reported_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with (
        FakeProvider() as fake,
        running(settings_in(tmp_path, provider("a", fake)), PRICED) as rig,
    ):
        fake.default = Reply(status=401)
        for _ in range(3):
            said = await rig.chat(hello())
            assert said.reason == "upstream_auth"
        assert len(fake.chats) == 1
        lines = [r for r in caplog.records if "refused the gateway's credential" in r.getMessage()]
        assert len(lines) == 1


async def test_a_model_that_a_credential_may_not_use_does_not_stop_the_others(
    tmp_path: Path,
) -> None:
    async with FakeProvider() as fake:
        settings = settings_in(tmp_path, provider("a", fake, free=True))
        async with running(settings) as rig:
            fake.script(Reply(status=403))
            assert (await rig.chat(hello("a/x"))).reason == "upstream_auth"
            assert (await rig.chat(hello("a/x"))).reason == "upstream_auth"
            assert (await rig.chat(hello("a/y"))).text == TEXT
            assert len(fake.chats) == 2


async def test_prices_of_names_that_were_never_needed_are_asked_for(tmp_path: Path) -> None:
    async with (
        FakeProvider() as fake,
        running(settings_in(tmp_path, provider("a", fake)), PRICED) as rig,
    ):
        rig.prices.hidden.append(sheet("openai/m-2026-01-01"))
        for model in ("a/m-2026-01-01", "m-2026-01-01", "a/m-2026-01-01"):
            assert (await rig.chat(hello(model))).text == TEXT
        assert rig.prices.asked == ["openai/m-2026-01-01"]
        for _ in range(2):
            assert (await rig.chat(hello("a/new"))).reason == "model_price_unknown"
            assert (await rig.chat(hello("new"))).reason == "model_not_found"
        assert rig.prices.asked == ["openai/m-2026-01-01", "openai/new"]


REFUSALS: list[tuple[dict[str, Any], dict[str, Any], str]] = [
    ({"kind": grant_pb2.KEY_KIND_ADMIN}, {}, "scope_missing"),
    ({"models_denied": ["a/*"]}, {}, "model_forbidden"),
    ({"networks_allowed": ["10.0.0.0/8"]}, {}, "address_forbidden"),
    ({"scopes": ["model.read"]}, {}, "scope_missing"),
    ({}, {"context": chat_pb2.CallContext(cost_max_nano_usd=5)}, "invalid_request"),
    ({}, {"routing": chat_pb2.RoutingPreferences(provider_only=["z"])}, "invalid_request"),
]


@pytest.mark.parametrize(("grant", "fields", "why"), REFUSALS, ids=lambda v: str(v)[:30])
async def test_what_may_not_be_is_refused_before_anything_is_sent(
    tmp_path: Path, grant: dict[str, Any], fields: dict[str, Any], why: str
) -> None:
    async with (
        FakeProvider() as fake,
        running(settings_in(tmp_path, provider("a", fake)), PRICED) as rig,
    ):
        key = rig.add_key(**grant)
        said = await rig.chat(hello(), key=key, **fields)
        assert (said.reason, said.events) == (why, [])
        assert said.error is not None
        assert [out.model for out in said.error.excluded] == ["a/m"]
        assert fake.chats == []


@pytest.mark.parametrize("key", ["", "sk-og-garbage", "nonsense"])
async def test_a_key_that_is_none_is_refused_without_a_lookup(tmp_path: Path, key: str) -> None:
    async with (
        FakeProvider() as fake,
        running(settings_in(tmp_path, provider("a", fake)), PRICED) as rig,
    ):
        assert (await rig.chat(hello(), key=key)).reason == "invalid_api_key"
        assert rig.auth.asked == 0


async def test_a_call_within_its_cost_goes_through_and_retries_count_against_it(
    tmp_path: Path,
) -> None:
    async with FakeProvider() as one, FakeProvider() as two:
        settings = settings_in(
            tmp_path, provider("a", one), provider("b", two), answer_timeout_s=0.2
        )
        async with running(settings, PRICED) as rig:
            body = hello(max_completion_tokens=20)
            bound = len(json.dumps(body)) + 200
            exact = chat_pb2.CallContext(cost_max_nano_usd=bound)
            assert (await rig.chat(body, context=exact)).text == TEXT
            one.default = Reply(fault=Fault.HANG)
            wishes = chat_pb2.RoutingPreferences(fallback_models=["b/m"])
            said = await rig.chat(body, context=exact, routing=wishes)
            assert said.reason == "upstream_timeout"
            assert said.error is not None
            assert "x-onegate-max-cost leaves" in said.error.excluded[0].detail
            more = chat_pb2.CallContext(cost_max_nano_usd=2 * bound)
            assert (await rig.chat(body, context=more, routing=wishes)).text == TEXT


async def test_limits_are_counted_told_and_corrected(tmp_path: Path) -> None:
    async with (
        FakeProvider() as fake,
        running(settings_in(tmp_path, provider("a", fake)), PRICED) as rig,
    ):
        rates = [
            grant_pb2.RateLimit(meter=grant_pb2.RATE_METER_REQUESTS, amount=2, window_s=60),
            grant_pb2.RateLimit(meter=grant_pb2.RATE_METER_TOKENS, amount=100_000, window_s=60),
            grant_pb2.RateLimit(meter=grant_pb2.RATE_METER_CONCURRENCY, amount=1),
        ]
        key = rig.add_key(rate_limits=rates)
        fake.script(Reply(first_byte_delay_s=0.3))
        first = asyncio.create_task(rig.chat(hello(), key=key))
        await fake.until(lambda: len(fake.chats) == 1)
        busy = await rig.chat(hello(), key=key)
        assert busy.reason == "rate_limit_exceeded"
        assert busy.error is not None
        assert "at the same time" in busy.error.message
        said = await first
        assert (said.served.requests.limit, said.served.requests.remaining) == (2, 1)
        assert said.served.tokens.limit == 100_000
        second = await rig.chat(hello(), key=key)
        left = second.served.tokens.remaining
        assert left < 100_000 - INPUT_TOKENS - OUTPUT_TOKENS
        assert left > 97_000  # the first call's reservation came back
        third = await rig.chat(hello(), key=key)
        assert third.reason == "rate_limit_exceeded"
        assert third.error is not None
        assert 0 < third.error.retry_after_ms <= 60_000


async def test_too_many_calls_are_refused_at_once(tmp_path: Path) -> None:
    async with FakeProvider() as fake:
        fake.default = Reply(first_byte_delay_s=0.5)
        settings = settings_in(tmp_path, provider("a", fake), calls_max=2)
        async with running(settings, PRICED) as rig:
            answers = await asyncio.gather(*(rig.chat(hello()) for _ in range(5)))
            assert sorted(said.reason for said in answers) == ["", ""] + ["overloaded"] * 3
            assert (await rig.chat(hello())).text == TEXT


async def test_what_is_no_request_is_refused(tmp_path: Path) -> None:
    async with (
        FakeProvider() as fake,
        running(settings_in(tmp_path, provider("a", fake)), PRICED) as rig,
    ):
        said = await rig.chat(hello("a/../m"))
        assert said.reason == "model_not_found"
        said = await rig.chat({**hello(), "n": 1}, routing=chat_pb2.RoutingPreferences())
        assert said.text == TEXT


async def test_tags_and_attribution_reach_the_bill(tmp_path: Path) -> None:
    async with (
        FakeProvider() as fake,
        running(settings_in(tmp_path, provider("a", fake)), PRICED) as rig,
    ):
        key = rig.add_key(tags={"team": "x"})
        context = chat_pb2.CallContext(
            request_id="req_7", tags={"job": "y"}, customer="c", feature="f", run="r"
        )
        await rig.chat(hello(), key=key, context=context, end_user="u")
        (record,) = await rig.records(1)
        assert (record.request_id, dict(record.tags)) == ("req_7", {"team": "x", "job": "y"})
        who = record.attribution
        assert (who.end_user, who.customer, who.feature, who.run) == ("u", "c", "f", "r")
        assert record.tokens == token_usage_pb2.TokenUsage(
            input_tokens=INPUT_TOKENS, output_tokens=OUTPUT_TOKENS
        )
