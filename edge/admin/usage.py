"""Usage and costs in OpenAI's shape
(https://platform.openai.com/docs/api-reference/usage). Pure.

auth says whose usage the caller may see, and usage sums up exactly that. Beside OpenAI's words,
``group_by`` takes ``provider``, ``team``, ``feature``, ``customer``, ``run``, ``end_user``,
``endpoint``, ``credential`` and ``tag:<name>``; each is a field of the results then. Costs carry
their exact sum in nano-USD beside OpenAI's float.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final

from edge.admin.asked import Asked, refused
from edge.admin.route import AnyRoute, Json, Route, Usage
from onegate.auth.v1 import usage_access_service_pb2 as access_pb
from onegate.usage.v1 import report_service_pb2 as pb
from onegate.usage.v1 import usage_service_pb2

_WIDTHS_S: Final = {"1d": 86_400, "1h": 3_600, "1m": 60}
_LIMITS: Final = {"1d": (7, 31), "1h": (24, 168), "1m": (60, 1440)}
"""How many buckets a page holds when nothing is said, and at most."""

_COSTS_LIMITS: Final = (7, 180)
_TIME_S_MAX: Final = 253_402_300_799
_TAG: Final = "tag:"
_NANO_DIGITS: Final = 9

_OURS: Final = {
    "provider": usage_service_pb2.USAGE_DIMENSION_PROVIDER,
    "team": usage_service_pb2.USAGE_DIMENSION_TEAM,
    "feature": usage_service_pb2.USAGE_DIMENSION_FEATURE,
    "customer": usage_service_pb2.USAGE_DIMENSION_CUSTOMER,
    "run": usage_service_pb2.USAGE_DIMENSION_RUN,
    "end_user": usage_service_pb2.USAGE_DIMENSION_END_USER,
    "endpoint": usage_service_pb2.USAGE_DIMENSION_ENDPOINT,
    "credential": usage_service_pb2.USAGE_DIMENSION_CREDENTIAL,
}
_DIMENSIONS: Final = {
    "project_id": usage_service_pb2.USAGE_DIMENSION_PROJECT,
    "api_key_id": usage_service_pb2.USAGE_DIMENSION_KEY,
    # auth knows whose key a key is: sums by key become sums by user.
    "user_id": usage_service_pb2.USAGE_DIMENSION_KEY,
    "model": usage_service_pb2.USAGE_DIMENSION_MODEL,
    "line_item": usage_service_pb2.USAGE_DIMENSION_MODEL,
    "service_tier": usage_service_pb2.USAGE_DIMENSION_SERVICE_TIER,
    **_OURS,
}
_SAME: Final[Mapping[str, object]] = {
    # There are no batches and no agents' API here.
    "batch": False,
    "api_source": "unlabeled",
    # Nothing that has these is served yet: they are there for the day when it is.
    "size": None,
    "source": None,
    "vector_store_id": None,
    "context_level": None,
}
"""Groups of which there is only one, and its value."""

_WHO: Final = ("project_id", "user_id", "api_key_id")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Family:
    """One of OpenAI's kinds of usage.

    Attributes:
        path: the last part of the path.
        object: what a result is.
        kind: what is counted; ``None`` for what this gateway does not serve.
        groups: what OpenAI lets it be grouped by.
        filters: which filters it has beyond those of all, each with its singular's values to be
            none here.
        fields: the sums of one row.
    """

    path: str
    object: str
    kind: pb.ReportKind.ValueType | None
    groups: tuple[str, ...]
    filters: tuple[str, ...]
    fields: Callable[[pb.ReportRow], Json]


def _tokens(row: pb.ReportRow) -> Json:
    written = row.cache_write_tokens + row.cache_write_1h_tokens
    uncached = row.input_tokens - row.cached_input_tokens - written
    audio = row.input_audio_tokens - row.cached_input_audio_tokens
    return {
        "input_tokens": row.input_tokens,
        "output_tokens": row.output_tokens,
        "num_model_requests": row.attempts,
        "input_cached_tokens": row.cached_input_tokens,
        "input_cache_write_tokens": written,
        "input_uncached_tokens": uncached,
        # Providers report no images among what was cached: it counts as text.
        "input_cached_text_tokens": row.cached_input_tokens - row.cached_input_audio_tokens,
        "input_cached_audio_tokens": row.cached_input_audio_tokens,
        "input_cached_image_tokens": 0,
        "input_text_tokens": uncached - audio - row.input_image_tokens,
        "input_audio_tokens": audio,
        "input_image_tokens": row.input_image_tokens,
        "output_text_tokens": row.output_tokens - row.output_audio_tokens - row.output_image_tokens,
        "output_audio_tokens": row.output_audio_tokens,
        "output_image_tokens": row.output_image_tokens,
    }


def _inputs(row: pb.ReportRow) -> Json:
    return {"input_tokens": row.input_tokens, "num_model_requests": row.attempts}


def _searches(row: pb.ReportRow) -> Json:
    return {"num_requests": row.web_searches, "num_model_requests": row.attempts_searching}


def _nothing(_row: pb.ReportRow) -> Json:
    return {}


def _money(row: pb.ReportRow) -> Json:
    value = row.cost_nano_usd / 10**_NANO_DIGITS
    amount: Json = {"value": value, "currency": "usd", "nano_usd": row.cost_nano_usd}
    if row.uncertain_nano_usd:
        amount["uncertain_nano_usd"] = row.uncertain_nano_usd
    return {"amount": amount}


def _family(
    path: str,
    kind: pb.ReportKind.ValueType | None,
    fields: Callable[[pb.ReportRow], Json],
    *,
    groups: Sequence[str] = (),
    filters: Sequence[str] = (),
) -> _Family:
    return _Family(
        path=path,
        object=f"organization.usage.{path}.result",
        kind=kind,
        groups=tuple(groups),
        filters=tuple(filters),
        fields=fields,
    )


_TEXT: Final = (*_WHO, "model", "batch", "service_tier", "api_source")
_MODEL: Final = (*_WHO, "model")
_KEYS: Final = ("api_key_ids", "user_ids")
_MODELS: Final = (*_KEYS, "models")

_FAMILIES: Final = (
    _family(
        "completions",
        pb.REPORT_KIND_COMPLETIONS,
        _tokens,
        groups=_TEXT,
        filters=(*_MODELS, "batch"),
    ),
    _family("decisions", None, _nothing, groups=_TEXT, filters=(*_MODELS, "batch")),
    _family("embeddings", pb.REPORT_KIND_EMBEDDINGS, _inputs, groups=_MODEL, filters=_MODELS),
    _family("moderations", pb.REPORT_KIND_MODERATIONS, _inputs, groups=_MODEL, filters=_MODELS),
    _family(
        "images",
        None,
        _nothing,
        groups=(*_MODEL, "size", "source"),
        filters=(*_MODELS, "sizes", "sources"),
    ),
    _family("audio_speeches", None, _nothing, groups=_MODEL, filters=_MODELS),
    _family("audio_transcriptions", None, _nothing, groups=_MODEL, filters=_MODELS),
    _family("vector_stores", None, _nothing, groups=("project_id",)),
    _family("code_interpreter_sessions", None, _nothing, groups=("project_id",)),
    _family(
        "file_search_calls",
        None,
        _nothing,
        groups=(*_WHO, "vector_store_id"),
        filters=(*_KEYS, "vector_store_ids"),
    ),
    _Family(
        path="web_search_calls",
        object="organization.usage.web_searches.result",
        kind=pb.REPORT_KIND_WEB_SEARCHES,
        groups=(*_MODEL, "context_level", "api_source"),
        filters=(*_MODELS, "context_levels"),
        fields=_searches,
    ),
)
_COSTS: Final = _Family(
    path="costs",
    object="organization.costs.result",
    kind=pb.REPORT_KIND_COSTS,
    groups=(*_WHO, "line_item", "api_source"),
    filters=("api_key_ids", "line_items"),
    fields=_money,
)


def _groups(asked: Asked, family: _Family) -> list[str]:
    """What to group by, each once. Raises INVALID_REQUEST."""
    known = {*family.groups, *(_OURS if family.kind is not None else ())}
    found = list(dict.fromkeys(asked.filters("group_by")))
    for name in found:
        is_tag = name.startswith(_TAG) and family.kind is not None
        if name not in known and not is_tag:
            words = ", ".join(sorted(known))
            raise refused("group_by", f"must be of {words} or tag:<name>")
    if sum(name.startswith(_TAG) for name in found) > 1:
        raise refused("group_by", "may name one tag")
    return found


def _permit(asked: Asked, family: _Family) -> access_pb.AuthorizeUsageRequest:
    # What is wrong with the question is said before anybody is asked.
    _request(access_pb.AuthorizeUsageResponse(), asked, family)
    users = asked.filters("user_ids") if "user_ids" in family.filters else []
    return access_pb.AuthorizeUsageRequest(
        project_ids=asked.filters("project_ids"),
        user_ids=users,
        owners="user_id" in asked.filters("group_by"),
    )


def _dimensions(groups: Sequence[str]) -> list[usage_service_pb2.UsageDimension.ValueType]:
    """The dimensions of some groups, each once."""
    wanted = [
        usage_service_pb2.USAGE_DIMENSION_TAG if name.startswith(_TAG) else _DIMENSIONS[name]
        for name in groups
        if name not in _SAME
    ]
    return list(dict.fromkeys(wanted))


def _request(
    permit: access_pb.AuthorizeUsageResponse, asked: Asked, family: _Family
) -> pb.ReportUsageRequest:
    width, limit = _page(asked, family)
    groups = _groups(asked, family)
    start_s, end_s = _time(asked, "start_time"), _time(asked, "end_time")
    if start_s is None:
        raise refused("start_time", "must be set")
    request = pb.ReportUsageRequest(
        kind=family.kind or pb.REPORT_KIND_UNSPECIFIED,
        organization_id=permit.organization_id,
        models=asked.filters("models") if "models" in family.filters else (),
        bucket_s=_WIDTHS_S[width],
        limit=limit,
        page_token=asked.filter("page"),
        group_by=_dimensions(groups),
        tag=next((name.removeprefix(_TAG) for name in groups if name.startswith(_TAG)), ""),
    )
    request.started_from.seconds = start_s
    if end_s is not None:
        request.started_before.seconds = end_s
    _choose(request, permit, asked, family)
    return request


def _choose(
    request: pb.ReportUsageRequest,
    permit: access_pb.AuthorizeUsageResponse,
    asked: Asked,
    family: _Family,
) -> None:
    """Sets which projects and keys count."""
    if permit.project_ids or not permit.whole:
        request.project_ids.ids.extend(permit.project_ids)
    if "line_items" in family.filters:
        request.models.extend(asked.filters("line_items"))
    keys = asked.filters("api_key_ids") if "api_key_ids" in family.filters else []
    users = asked.filters("user_ids") if "user_ids" in family.filters else []
    if keys:
        request.key_ids.ids.extend(keys)
    if users:
        owned = {key.key_id for key in permit.keys if key.user_id in users}
        kept = owned.intersection(keys) if keys else owned
        request.key_ids.CopyFrom(pb.ReportIds(ids=sorted(kept)))
    # What is nowhere here chooses nothing.
    absent = {*family.filters} - {*_MODELS, "line_items", "batch"}
    chosen = [name for name in sorted(absent) if asked.filters(name)]
    only_batches = "batch" in family.filters and asked.filter_word("batch", "", "true", "false")
    if chosen or only_batches == "true" or family.kind is None:
        request.project_ids.CopyFrom(pb.ReportIds())


def _page(asked: Asked, family: _Family) -> tuple[str, int]:
    """How wide buckets are and how many a page holds. Raises INVALID_REQUEST."""
    costs = family is _COSTS
    width = asked.filter_word("bucket_width", *(("1d",) if costs else tuple(_WIDTHS_S)))
    default, most = _COSTS_LIMITS if costs else _LIMITS[width]
    limit = asked.filter_whole("limit") or default
    if limit > most:
        raise refused("limit", f"must be 0 (for {default}) to {most}")
    return width, limit


def _time(asked: Asked, name: str) -> int | None:
    seconds = asked.filter_whole(name)
    if seconds is not None and seconds > _TIME_S_MAX:
        raise refused(name, "must be a time before the year 10000")
    return seconds


def _answer(
    permit: access_pb.AuthorizeUsageResponse,
    answer: pb.ReportUsageResponse,
    asked: Asked,
    family: _Family,
) -> Json:
    groups = _groups(asked, family)
    users = {key.key_id: key.user_id for key in permit.keys}
    data = [
        {
            "object": "bucket",
            "start_time": bucket.started_from.seconds,
            "end_time": bucket.started_before.seconds,
            "results": _results(bucket.rows, groups, users, family),
        }
        for bucket in answer.buckets
    ]
    token = answer.next_page_token
    return {"object": "page", "data": data, "has_more": bool(token), "next_page": token or None}


def _results(
    rows: Iterable[pb.ReportRow], groups: Sequence[str], users: Mapping[str, str], family: _Family
) -> list[Json]:
    dimensions = _dimensions(groups)
    merged: dict[tuple[object, ...], pb.ReportRow] = {}
    for row in rows:
        found: dict[int, str] = dict(zip(dimensions, row.group, strict=True))
        values = tuple(_value(name, found, users) for name in groups)
        _add(merged.setdefault(values, pb.ReportRow()), row)
    made = []
    for values, row in merged.items():
        if family.kind == pb.REPORT_KIND_WEB_SEARCHES and not row.web_searches:
            continue
        blank: Json = dict.fromkeys(family.groups)
        named = dict(zip(groups, values, strict=True))
        made.append({"object": family.object, **blank, **named, **family.fields(row)})
        if "line_item" in named:
            made[-1] |= {
                "quantity": row.input_tokens + row.output_tokens,
                "quantity_unit": "tokens",
            }
    return made


def _value(name: str, found: Mapping[int, str], users: Mapping[str, str]) -> object:
    if name in _SAME:
        return _SAME[name]
    if name.startswith(_TAG):
        return found[usage_service_pb2.USAGE_DIMENSION_TAG]
    value = found[_DIMENSIONS[name]]
    return users.get(value, "") or None if name == "user_id" else value


def _add(total: pb.ReportRow, row: pb.ReportRow) -> None:
    for field in pb.ReportRow.DESCRIPTOR.fields[1:]:
        setattr(total, field.name, getattr(total, field.name) + getattr(row, field.name))


async def _onward(
    usage: Usage, permit: access_pb.AuthorizeUsageResponse, asked: Asked, *, family: _Family
) -> Json:
    """Asks usage for exactly what auth permits."""
    request = _request(permit, asked, family)
    answer = await usage.ask("ReportService/ReportUsage", request, pb.ReportUsageResponse)
    return _answer(permit, answer, asked, family)


def _route(family: _Family, path: str) -> AnyRoute:
    return Route(
        name="usage.read",
        method="GET",
        path=path,
        rpc="UsageAccessService/AuthorizeUsage",
        request=partial(_permit, family=family),
        response=access_pb.AuthorizeUsageResponse,
        onward=partial(_onward, family=family),
    )


ROUTES: Final[tuple[AnyRoute, ...]] = (
    *(_route(family, f"/v1/organization/usage/{family.path}") for family in _FAMILIES),
    _route(_COSTS, "/v1/organization/costs"),
)
