"""The official SDK reads usage and costs; every figure is that of the posted records."""

import asyncio
import json
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from fractions import Fraction
from typing import Any

import openai
import pytest
from openai.resources.admin.organization.usage import Usage

from onegate.usage.v1 import usage_service_pb2, usage_service_pb2_grpc
from onegate.usage.v1.usage_record_pb2 import UsageRecord
from runtime.config import RpcSettings
from runtime.rpc import channel, unary
from tests.e2e.test_admin_sdk import http_as
from tests.gateway import Gateway, running_gateway
from tests.services.usage.records import record

DAY = 86_400
START = int(datetime(2026, 9, 1, tzinfo=UTC).timestamp())
END = START + 5 * DAY
EMPTY = (
    "audio_speeches",
    "audio_transcriptions",
    "code_interpreter_sessions",
    "decisions",
    "file_search_calls",
    "images",
    "vector_stores",
)
ENDPOINTS = ("chat.completions", "chat.completions", "responses", "embeddings", "moderations")


@dataclass(frozen=True)
class Place:
    """A gateway, what was posted to it, and its SDK."""

    gateway: Gateway
    records: list[UsageRecord]
    client: openai.OpenAI
    user_id: str
    others_key: str

    @property
    def usage(self) -> Usage:
        return self.client.admin.organization.usage


def made(number: int, organization_id: str, keys: list[str]) -> UsageRecord:
    """A record that differs from its neighbours in everything that is grouped by."""
    one = record(
        number,
        organization_id=organization_id,
        project_id=f"proj_{number % 2}",
        key_id=keys[number % len(keys)],
        endpoint=ENDPOINTS[number % len(ENDPOINTS)],
        model=f"openai/m{number % 3}",
        provider=("openai", "azure")[number % 2],
        cost_nano_usd=10**9 + number * 7 + 1,
    )
    one.started_at.FromSeconds(START + number * 1800)
    tokens = one.tokens
    tokens.input_tokens, tokens.output_tokens = 1000 + number, 200 + number
    tokens.cached_input_tokens, tokens.cached_input_audio_tokens = 300, 20
    tokens.cache_write_tokens, tokens.cache_write_1h_tokens = 50, 5
    tokens.input_audio_tokens, tokens.input_image_tokens = 60, 70
    tokens.output_audio_tokens, tokens.output_image_tokens = 8, 9
    tokens.web_searches = (0, 0, 3)[number % 3]
    tokens.service_tier = ("default", "flex")[number % 2]
    one.tags["team"] = ("search", "ads")[number // 7 % 2]
    one.tags["cost.center"] = f"c{number % 4}"
    one.attribution.feature = f"f{number % 2}"
    one.attribution.customer = f"u{number % 5}"
    one.attribution.run = f"r{number % 6}"
    return one


async def post(gateway: Gateway, records: list[UsageRecord]) -> None:
    """As routers do."""
    async with channel(f"unix:{gateway.data_dir}/run/usage.sock", RpcSettings()) as line:
        stub = usage_service_pb2_grpc.UsageServiceStub(line)
        request = usage_service_pb2.RecordUsageRequest(records=records)
        answer = await unary(stub.RecordUsage, request, timeout_s=30)
        assert answer.inserted == len(records)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """A gateway with five days of usage, and some of another organisation."""
    with running_gateway(tmp_path_factory.mktemp("usage")) as gateway:
        admin = gateway.credentials["admin_key"]
        organization_id = organization_of(gateway)

        def ask(path: str, body: dict[str, Any]) -> Any:
            status, answer = http_as(gateway, admin, "POST", path, body)
            assert status == 200, answer
            return answer

        user = ask("/organization/users", {"email": "one@example.com"})
        keys = [
            ask("/organization/admin_api_keys", {"name": "a", "user_id": user["id"]}),
            ask("/organization/admin_api_keys", {"name": "b"}),
        ]
        member = ask("/organization/users", {"email": "two@example.com", "role": "reader"})
        others = ask("/organization/admin_api_keys", {"name": "c", "user_id": member["id"]})
        names = [str(key["id"]) for key in keys]
        records = [made(number, organization_id, names) for number in range(240)]
        foreign = [made(number, "org_other", names) for number in range(240, 260)]
        asyncio.run(post(gateway, [*records, *foreign]))
        with openai.OpenAI(
            base_url=gateway.base_url,
            api_key=gateway.api_key,
            admin_api_key=admin,
            max_retries=0,
            _strict_response_validation=True,
        ) as client:
            yield Place(gateway, records, client, str(user["id"]), str(others["value"]))


def organization_of(gateway: Gateway) -> str:
    """Whose the first keys are."""
    (found,) = json.loads(gateway.cli("orgs", "list", "-o", "json"))
    return str(found["id"])


def summed(records: list[UsageRecord], width_s: int, start: int, **groups: Any) -> Any:
    """What a report has to say, from the records alone: the sums by bucket and group."""
    sums: dict[tuple[Any, ...], dict[str, int]] = defaultdict(lambda: defaultdict(int))
    for one in records:
        at = one.started_at.seconds
        tokens = one.tokens
        row = sums[(max(at // width_s * width_s, start), *(of(one) for of in groups.values()))]
        row["input_tokens"] += tokens.input_tokens
        row["output_tokens"] += tokens.output_tokens
        row["num_model_requests"] += 1
        row["input_cached_tokens"] += tokens.cached_input_tokens
        written = tokens.cache_write_tokens + tokens.cache_write_1h_tokens
        row["input_cache_write_tokens"] += written
        row["input_uncached_tokens"] += tokens.input_tokens - tokens.cached_input_tokens - written
        row["input_cached_audio_tokens"] += tokens.cached_input_audio_tokens
        row["input_audio_tokens"] += tokens.input_audio_tokens - tokens.cached_input_audio_tokens
        row["input_image_tokens"] += tokens.input_image_tokens
        row["output_audio_tokens"] += tokens.output_audio_tokens
        row["output_image_tokens"] += tokens.output_image_tokens
        row["searches"] += tokens.web_searches
        row["searching"] += tokens.web_searches > 0
        row["cost"] += one.cost_nano_usd
    return {key: dict(row) for key, row in sums.items()}


def answered(data: Any, *groups: str) -> dict[tuple[Any, ...], dict[str, Any]]:
    """What a report says, by bucket and group."""
    found = {}
    for bucket in data:
        for result in bucket.results:
            fields = result.to_dict()
            found[(bucket.start_time, *(fields[name] for name in groups))] = fields
    return found


def text(records: list[UsageRecord]) -> list[UsageRecord]:
    return [one for one in records if one.endpoint not in ("embeddings", "moderations")]


def check(found: Any, expected: Any, *, fields: tuple[str, ...] = ()) -> None:
    assert found.keys() == expected.keys()
    for key, row in expected.items():
        names = fields or tuple(set(row) - {"searches", "searching", "cost"})
        assert {name: found[key][name] for name in names} == {name: row[name] for name in names}


@pytest.mark.parametrize(("width", "width_s", "end"), [("1d", DAY, END), ("1h", 3600, START + DAY)])
def test_completions_are_the_sums_of_the_records(
    place: Place, width: Any, width_s: int, end: int
) -> None:
    start = START + 600
    answer = place.usage.completions(
        start_time=start,
        end_time=end,
        bucket_width=width,
        group_by=["model", "api_key_id", "project_id", "service_tier", "batch", "api_source"],
    )
    assert (answer.has_more, answer.next_page) == (False, None)
    assert answer.data[0].start_time == start
    assert answer.data[-1].end_time == end
    assert len(answer.data) == -(-(end - start) // width_s)
    wanted = [one for one in text(place.records) if start <= one.started_at.seconds < end]
    expected = summed(
        wanted,
        width_s,
        start,
        model=lambda one: one.model,
        key=lambda one: one.key_id,
        project=lambda one: one.project_id,
        tier=lambda one: one.tokens.service_tier,
    )
    found = answered(answer.data, "model", "api_key_id", "project_id", "service_tier")
    check(found, expected)
    assert {(row["batch"], row["api_source"]) for row in found.values()} == {(False, "unlabeled")}


def test_minutes_are_told_apart(place: Place) -> None:
    answer = place.usage.completions(start_time=START, end_time=START + 7200, bucket_width="1m")
    assert (len(answer.data), answer.has_more) == (60, True)
    half_hour = [True, *29 * [False]]
    assert [bool(bucket.results) for bucket in answer.data] == half_hour * 2


def test_pages_hold_every_bucket_once(place: Place) -> None:
    one = place.usage.completions(start_time=START + 60, end_time=END, bucket_width="1h", limit=168)
    buckets: list[Any] = []
    page: str | None = None
    while True:
        answer = place.usage.completions(
            start_time=START + 60,
            end_time=END,
            bucket_width="1h",
            limit=50,
            page=page or openai.omit,
        )
        buckets += answer.data
        page = answer.next_page
        if not answer.has_more:
            break
    assert buckets == one.data
    assert len(buckets) == 120
    with pytest.raises(openai.BadRequestError):
        place.usage.completions(start_time=START, page="made up")


def test_filters_choose(place: Place) -> None:
    first = place.records[0]
    answer = place.usage.completions(
        start_time=START,
        end_time=END,
        project_ids=["proj_0"],
        api_key_ids=[first.key_id],
        models=["openai/m0", "openai/m1"],
        user_ids=[place.user_id],
        batch=False,
    )
    wanted = [
        one
        for one in text(place.records)
        if (one.project_id, one.key_id) == ("proj_0", first.key_id)
        and one.model in ("openai/m0", "openai/m1")
    ]
    assert wanted
    check(answered(answer.data), summed(wanted, DAY, START))
    nothing: list[Any] = [{"batch": True}, {"user_ids": ["nobody"]}, {"project_ids": ["proj_9"]}]
    for none in nothing:
        answer = place.usage.completions(start_time=START, end_time=END, **none)
        assert [bucket.results for bucket in answer.data] == 5 * [[]]


def test_a_users_keys_are_summed_together(place: Place) -> None:
    answer = place.usage.completions(start_time=START, end_time=END, group_by=["user_id"])
    own = place.records[0].key_id
    expected = summed(
        text(place.records),
        DAY,
        START,
        user=lambda one: place.user_id if one.key_id == own else None,
    )
    check(answered(answer.data, "user_id"), expected)


@pytest.mark.parametrize(
    ("group", "of"),
    [
        ("provider", lambda one: one.provider),
        ("team", lambda one: one.tags["team"]),
        ("feature", lambda one: one.attribution.feature),
        ("customer", lambda one: one.attribution.customer),
        ("run", lambda one: one.attribution.run),
        ("endpoint", lambda one: one.endpoint),
        ("tag:cost.center", lambda one: one.tags["cost.center"]),
    ],
)
def test_what_openai_does_not_group_by_is_grouped_by(place: Place, group: Any, of: Any) -> None:
    answer = place.usage.completions(start_time=START, end_time=END, group_by=[group, "model"])
    expected = summed(text(place.records), DAY, START, group=of, model=lambda one: one.model)
    check(answered(answer.data, group, "model"), expected)


@pytest.mark.parametrize("family", ["embeddings", "moderations"])
def test_embeddings_and_moderations_are_their_own(place: Place, family: str) -> None:
    answer = getattr(place.usage, family)(start_time=START, end_time=END, group_by=["model"])
    wanted = [one for one in place.records if one.endpoint == family]
    expected = summed(wanted, DAY, START, model=lambda one: one.model)
    check(answered(answer.data, "model"), expected, fields=("input_tokens", "num_model_requests"))


def test_web_searches_are_counted(place: Place) -> None:
    answer = place.usage.web_search_calls(start_time=START, end_time=END, group_by=["project_id"])
    wanted = [one for one in place.records if one.tokens.web_searches]
    expected = summed(wanted, DAY, START, project=lambda one: one.project_id)
    found = answered(answer.data, "project_id")
    assert {
        key: (row["num_requests"], row["num_model_requests"]) for key, row in found.items()
    } == {key: (row["searches"], row["searching"]) for key, row in expected.items()}


@pytest.mark.parametrize("family", EMPTY)
def test_what_the_gateway_does_not_serve_is_empty(place: Place, family: str) -> None:
    answer = getattr(place.usage, family)(start_time=START, end_time=END)
    assert [bucket.results for bucket in answer.data] == 5 * [[]]


def test_costs_are_exact(place: Place) -> None:
    answer = place.usage.costs(start_time=START, end_time=END, limit=180, group_by=["line_item"])
    expected = summed(place.records, DAY, START, model=lambda one: one.model)
    found = answered(answer.data, "line_item")
    assert found.keys() == expected.keys()
    for key, row in expected.items():
        amount = found[key]["amount"]
        assert amount["nano_usd"] == row["cost"]
        assert round(Fraction(amount["value"]) * 10**9) == row["cost"]
        assert amount["currency"] == "usd"
        assert found[key]["quantity"] == row["input_tokens"] + row["output_tokens"]
    customer: Any = "customer"
    by_customer = place.usage.costs(start_time=START, end_time=END, group_by=[customer])
    rows = answered(by_customer.data, "customer")
    check_costs = {key: row["amount"]["nano_usd"] for key, row in rows.items()}
    expected = summed(place.records, DAY, START, customer=lambda one: one.attribution.customer)
    assert check_costs == {key: row["cost"] for key, row in expected.items()}


@pytest.mark.parametrize(
    "query",
    [
        "",
        "start_time=x",
        "start_time=0&limit=32",
        "start_time=0&bucket_width=1w",
        "start_time=0&group_by=colour",
        "start_time=0&group_by=tag:",
        "start_time=0&group_by=tag:a&group_by=tag:b",
        "start_time=0&group_by=tag:a'b",
        "start_time=0&sizes=256x256",
        "start_time=99999999999999",
    ],
)
def test_a_wrong_question_is_refused(place: Place, query: str) -> None:
    key = place.gateway.credentials["admin_key"]
    path = f"/organization/usage/completions?{query}"
    status, answer = http_as(place.gateway, key, "GET", path)
    assert (status, answer["error"]["type"]) == (400, "invalid_request_error")


def test_who_may_not_see_usage_does_not(place: Place) -> None:
    for path in ("usage/completions?start_time=0", "costs?start_time=0&project_ids=proj_0"):
        status, _ = http_as(place.gateway, place.others_key, "GET", f"/organization/{path}")
        assert status in (403, 404)
