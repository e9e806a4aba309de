"""Answers reports: buckets of time, page by page."""

# ruff: noqa: N802 - methods are named as the contract names them

import re
from collections.abc import Sequence
from datetime import UTC
from typing import Any, Final, TypeAlias

import grpc
from google.protobuf.timestamp_pb2 import Timestamp

from onegate.common.v1 import error_pb2
from onegate.common.v1.access_pass_pb2 import AccessPass
from onegate.usage.v1 import report_service_pb2 as pb
from onegate.usage.v1 import report_service_pb2_grpc, usage_service_pb2
from onegate.usage.v1.usage_service_pb2 import UsageDimension
from runtime.clock import Clock
from runtime.errors import GatewayError
from runtime.passes import Gate, check_covers
from runtime.sql import unix_micros
from services.usage.reports import queries
from services.usage.reports.queries import Selection
from services.usage.reports.report_store import START, TAG, Question, ReportStore, Total
from services.usage.reports.rollup_schema import MEASURES
from services.usage.reports.spans import DAY_US, HOUR_US
from services.usage.store import STARTED_AT_US_MAX

BUCKETS_MAX: Final = 1_440
VALUES_MAX: Final = 50_000
"""How many ids or models one question may name."""

_MINUTE_US: Final = 60_000_000
_UNITS_US: Final = (_MINUTE_US, HOUR_US, DAY_US)

_COLUMNS: Final = {
    usage_service_pb2.USAGE_DIMENSION_MODEL: "model",
    usage_service_pb2.USAGE_DIMENSION_KEY: "key_id",
    usage_service_pb2.USAGE_DIMENSION_PROJECT: "project_id",
    usage_service_pb2.USAGE_DIMENSION_PROVIDER: "provider",
    usage_service_pb2.USAGE_DIMENSION_DAY: START,
    usage_service_pb2.USAGE_DIMENSION_FEATURE: "feature",
    usage_service_pb2.USAGE_DIMENSION_CUSTOMER: "customer",
    usage_service_pb2.USAGE_DIMENSION_TEAM: "team",
    usage_service_pb2.USAGE_DIMENSION_RUN: "run",
    usage_service_pb2.USAGE_DIMENSION_TAG: TAG,
    usage_service_pb2.USAGE_DIMENSION_END_USER: "end_user",
    usage_service_pb2.USAGE_DIMENSION_ORGANIZATION: "organization_id",
    usage_service_pb2.USAGE_DIMENSION_ENDPOINT: "endpoint",
    usage_service_pb2.USAGE_DIMENSION_SERVICE_TIER: "service_tier",
    usage_service_pb2.USAGE_DIMENSION_CREDENTIAL: "credential",
}
"""What each dimension groups by; days are whole days since 1970."""

_ENDPOINTS: Final = {
    pb.REPORT_KIND_EMBEDDINGS: ("embeddings",),
    pb.REPORT_KIND_MODERATIONS: ("moderations",),
}
_NO_TEXT: Final = (
    "embeddings",
    "moderations",
    "images.generations",
    "images.edits",
    "images.variations",
    "audio.speech",
    "audio.transcriptions",
    "audio.translations",
)
"""Endpoints whose answers are no generated text."""

_COST: Final = ("attempts", "cost_nano_usd", "input_tokens", "output_tokens")
_TAG_NAME: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_./ -]{0,63}")

Context: TypeAlias = grpc.aio.ServicerContext[Any, Any]


def columns_of(group_by: Sequence[UsageDimension.ValueType], tag: str) -> tuple[str, ...]:
    """What to group by. Raises INVALID_REQUEST for what is unknown, named twice, or a tag without
    its name.
    """
    dimensions = queries.dimensions_of(group_by)
    if usage_service_pb2.USAGE_DIMENSION_TAG in dimensions:
        if not _TAG_NAME.fullmatch(tag):
            raise _invalid("tag", "must name the tag to group by, with letters, digits and _./-")
    elif tag:
        raise _invalid("tag", "is only for grouping by a tag")
    return tuple(_COLUMNS[dimension] for dimension in dimensions)


def question_of(selection: Selection, groups: tuple[str, ...], tag: str) -> Question:
    """The question that a selection of records means."""
    before_us = selection.before_us
    return Question(
        from_us=max(selection.from_us or 0, 0),
        before_us=STARTED_AT_US_MAX if before_us is None else max(before_us, 0),
        where={name: [value] for name, value in selection.wanted().items()},
        groups=groups,
        tag=tag,
    )


class ReportService(report_service_pb2_grpc.ReportServiceServicer):
    """Reports of one organisation at a time."""

    def __init__(self, store: ReportStore, gate: Gate, clock: Clock) -> None:
        self._store = store
        self._gate = gate
        self._clock = clock

    async def ReportUsage(
        self, request: pb.ReportUsageRequest, context: Context
    ) -> pb.ReportUsageResponse:
        """A page of buckets, oldest first."""
        _check_covers(self._gate.admit(context), request)
        unit_us = request.bucket_s * 1_000_000
        if unit_us not in _UNITS_US:
            raise _invalid("bucket_s", "must be 60, 3600 or 86400")
        if not 1 <= request.limit <= BUCKETS_MAX:
            raise _invalid("limit", f"must be 1 to {BUCKETS_MAX:,}")
        if not request.organization_id:
            raise _invalid("organization_id", "must be set")
        from_us = _micros(request.started_from)
        before_us = (unix_micros(self._clock.now()) // unit_us + 1) * unit_us
        if request.HasField("started_before"):
            before_us = _micros(request.started_before)
        asked = _seal(request)
        place = queries.place_of(request.page_token, asked)
        page_us = from_us if place is None else int(place)
        # The first bucket may be a part of one: it begins where the report does.
        end_us = min((page_us // unit_us + request.limit) * unit_us, before_us)
        if end_us <= page_us:
            return pb.ReportUsageResponse()
        found = await self._store.page(_question(request, unit_us, page_us, end_us))
        token = queries.token_of(str(end_us), asked) if end_us < before_us else ""
        return pb.ReportUsageResponse(
            buckets=_buckets(found, page_us, end_us, unit_us), next_page_token=token
        )


def _check_covers(access: AccessPass | None, request: pb.ReportUsageRequest) -> None:
    """Raises SCOPE_MISSING when a pass does not cover all that is asked for."""
    if access is None:
        return
    asked = request.project_ids.ids if request.HasField("project_ids") else [""]
    if not asked:
        # Nothing is chosen, and nothing is told but whose it would be.
        asked = access.project_ids
    for project_id in asked or [""]:
        check_covers(access, request.organization_id, project_id)


def _question(
    request: pb.ReportUsageRequest, unit_us: int, from_us: int, before_us: int
) -> Question:
    where: dict[str, Sequence[str]] = {"organization_id": [request.organization_id]}
    if request.HasField("project_ids"):
        where["project_id"] = _values("project_ids", request.project_ids.ids)
    if request.HasField("key_ids"):
        where["key_id"] = _values("key_ids", request.key_ids.ids)
    if request.models:
        where["model"] = _values("models", request.models)
    if request.kind in _ENDPOINTS:
        where["endpoint"] = _ENDPOINTS[request.kind]
    groups = columns_of(request.group_by, request.tag)
    if START in groups:
        raise _invalid("group_by", "must not hold days: a report is in buckets already")
    without = _NO_TEXT if request.kind == pb.REPORT_KIND_COMPLETIONS else ()
    return Question(
        from_us=from_us,
        before_us=before_us,
        where=where,
        not_endpoints=without,
        groups=(START, *groups),
        tag=request.tag,
        unit_us=unit_us,
        # Of which kind an attempt was, only its record says.
        uncertain=request.kind in (pb.REPORT_KIND_UNSPECIFIED, pb.REPORT_KIND_COSTS),
        measures=_COST if request.kind == pb.REPORT_KIND_COSTS else MEASURES,
    )


def _values(name: str, values: Sequence[str]) -> list[str]:
    if len(values) > VALUES_MAX:
        raise _invalid(name, f"may name at most {VALUES_MAX:,}")
    return sorted(set(values))


def _seal(request: pb.ReportUsageRequest) -> bytes:
    """What a page token is for."""
    asked = pb.ReportUsageRequest()
    asked.CopyFrom(request)
    asked.page_token = ""
    # The end of a report that has none moves on from page to page.
    asked.ClearField("started_before")
    return asked.SerializeToString(deterministic=True)


def _buckets(
    found: Sequence[Total], from_us: int, before_us: int, unit_us: int
) -> list[pb.ReportBucket]:
    numbers = range(from_us // unit_us, -(-before_us // unit_us))
    made = {
        number: pb.ReportBucket(
            started_from=_timestamp(max(number * unit_us, from_us)),
            started_before=_timestamp(min((number + 1) * unit_us, before_us)),
        )
        for number in numbers
    }
    for total in found:
        number, *group = total.group
        made[int(number)].rows.append(
            pb.ReportRow(group=[str(value) for value in group], **total.sums)
        )
    return list(made.values())


def _micros(moment: Timestamp) -> int:
    try:
        moment.ToDatetime(UTC)
    except (ValueError, OverflowError):
        raise _invalid("started_from", "must be a time between the years 1 and 9999") from None
    return max(moment.ToMicroseconds(), 0)


def _timestamp(micros: int) -> Timestamp:
    made = Timestamp()
    made.FromMicroseconds(micros)
    return made


def _invalid(param: str, what: str) -> GatewayError:
    return GatewayError(error_pb2.ERROR_REASON_INVALID_REQUEST, f"`{param}` {what}.", param=param)
