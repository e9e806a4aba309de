"""What providers' exports look like, as tables of their words. Pure.

- OpenAI, usage and costs API (https://platform.openai.com/docs/api-reference/usage,
  https://developers.openai.com/api/reference/resources/admin): pages of buckets with ``start_time``
  and ``end_time`` in seconds; of completions ``input_tokens`` with ``input_cached_tokens`` among
  them and ``output_tokens``; of costs ``amount.value`` in ``amount.currency`` by ``line_item``
  (``gpt-4o-2024-08-06, input``).
- OpenAI, the dashboard's exports (https://help.openai.com/en/articles/10478918-api-usage-dashboard):
  CSV with the same words, a bucket a row, amounts as ``amount_value`` and ``amount_currency``.
- Anthropic, usage report (https://platform.claude.com/docs/en/api/admin/usage_report): buckets with
  ``starting_at`` and ``ending_at``; ``uncached_input_tokens``, ``cache_read_input_tokens`` and
  ``cache_creation`` are apart.
- Anthropic, cost report (https://platform.claude.com/docs/en/api/admin/cost_report): ``amount`` is
  a decimal text in cents.
- Anthropic, the console's exports
  (https://support.anthropic.com/en/articles/9534590-cost-and-usage-reporting-in-console): CSV by
  ``usage_date_utc``; tokens as ``usage_input_tokens_no_cache`` and so on, costs as ``cost_usd``.
- Anything else with a line for each request, by the names of its columns.
"""

import enum
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from cli.bill_rows import (
    EXACT,
    FieldError,
    Row,
    count_of,
    span_of,
    text_of,
    time_of,
    usd_of,
)


class Figure(enum.Enum):
    """What a bill says of a line."""

    INPUT = enum.auto()
    CACHED = enum.auto()
    OUTPUT = enum.auto()
    COST = enum.auto()


TOKENS: Final = frozenset({Figure.INPUT, Figure.CACHED, Figure.OUTPUT})
COST: Final = frozenset({Figure.COST})

Item = Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Format:
    """A kind of export.

    Attributes:
        name: for people.
        providers: which configured provider it is of, as it is usually called; none for any.
        figures: what it says.
        by_request: whether a line is a request, found by the provider's id of it.
        rows: the lines of one element or row. Raises FieldError.
    """

    name: str
    providers: tuple[str, ...]
    figures: frozenset[Figure]
    by_request: bool
    rows: Callable[[Item], Iterator[Row]]


COLUMNS: Final[Mapping[str, tuple[str, ...]]] = {
    "id": ("request_id", "upstream_request_id", "generation_id", "id"),
    "time": ("started_at", "created_at", "timestamp", "created", "time", "date"),
    "model": ("model", "model_permaslug", "model_id"),
    "input": ("input_tokens", "native_tokens_prompt", "prompt_tokens", "tokens_prompt"),
    "cached": ("cached_input_tokens", "native_tokens_cached", "cached_tokens"),
    "output": (
        "output_tokens",
        "native_tokens_completion",
        "completion_tokens",
        "tokens_completion",
    ),
    "cost": ("cost_usd", "total_cost", "cost_total", "cost", "amount_usd"),
    "owner": ("api_key_id", "api_key", "key_id", "project_id"),
}
"""Where a line of an unknown export has what, unless it is said: the first that there is."""

_FIGURE_OF: Final = {
    "input": Figure.INPUT,
    "cached": Figure.CACHED,
    "output": Figure.OUTPUT,
    "cost": Figure.COST,
}


def format_of(names: Collection[str], columns: Mapping[str, str]) -> Format:
    """The format of rows or objects with these names. Raises FieldError when it is not known."""
    if columns:
        return _named(names, columns)
    known = next((made for words, made in _KNOWN if words <= set(names)), None)
    return known or _named(names, columns)


def _openai_bucket(item: Item) -> Iterator[Row]:
    from_us = time_of(item["start_time"], "start_time")
    before_us = time_of(item["end_time"], "end_time")
    yield Row(from_us, before_us, says=False)
    for result in _objects(item["results"], "results"):
        row = _openai_cost(result) if "amount" in result else _openai_usage(result)
        yield row._replace(from_us=from_us, before_us=before_us)


def _openai_cost(result: Item) -> Row:
    amount = result["amount"]
    if not isinstance(amount, Mapping):
        raise FieldError("amount must be an object")
    return Row(
        model=_line_item(result.get("line_item")),
        owners=_owners(result, "api_key_id", "project_id"),
        cost_usd=usd_of(amount.get("value"), amount.get("currency"), "amount.value"),
    )


def _openai_usage(result: Item) -> Row:
    return Row(
        model=text_of(result.get("model"), "model"),
        owners=_owners(result, "api_key_id", "project_id"),
        input_tokens=count_of(result.get("input_tokens"), "input_tokens"),
        cached_input_tokens=count_of(result.get("input_cached_tokens"), "input_cached_tokens"),
        output_tokens=count_of(result.get("output_tokens"), "output_tokens"),
    )


def _openai_row(item: Item) -> Iterator[Row]:
    """A row of the dashboard's CSV; one without figures says that a bucket was empty."""
    from_us = time_of(item["start_time"], "start_time")
    before_us = time_of(item["end_time"], "end_time")
    if "amount_value" in item:
        said = bool(item["amount_value"])
        row = Row(
            model=_line_item(item.get("line_item")),
            owners=_owners(item, "api_key_id", "project_id"),
            cost_usd=usd_of(item["amount_value"], item.get("amount_currency"), "amount_value"),
        )
    else:
        said = bool(item["num_model_requests"] or item["input_tokens"])
        row = _openai_usage(item)
    yield row._replace(from_us=from_us, before_us=before_us, says=said)


def _line_item(value: Any) -> str:
    """The model that a line item is about: ``gpt-4o-2024-08-06, cached input``."""
    return text_of(value, "line_item").partition(",")[0].strip()


def _anthropic_bucket(item: Item) -> Iterator[Row]:
    from_us = time_of(item["starting_at"], "starting_at")
    before_us = time_of(item["ending_at"], "ending_at")
    yield Row(from_us, before_us, says=False)
    for result in _objects(item["results"], "results"):
        row = _anthropic_cost(result) if "amount" in result else _anthropic_usage(result)
        yield row._replace(from_us=from_us, before_us=before_us)


def _anthropic_cost(result: Item) -> Row:
    cents = usd_of(result["amount"], result.get("currency"), "amount")
    return Row(
        # What is no token is of no model; its description says what it is.
        model=text_of(result.get("model") or result.get("description"), "model"),
        owners=_owners(result, "workspace_id"),
        cost_usd=cents.scaleb(-2, EXACT),
    )


def _anthropic_usage(result: Item) -> Row:
    created = result.get("cache_creation") or {}
    if not isinstance(created, Mapping):
        raise FieldError("cache_creation must be an object")
    written = sum(
        count_of(created.get(name), name)
        for name in ("ephemeral_1h_input_tokens", "ephemeral_5m_input_tokens")
    )
    cached = count_of(result.get("cache_read_input_tokens"), "cache_read_input_tokens")
    fresh = count_of(result.get("uncached_input_tokens"), "uncached_input_tokens")
    return Row(
        model=text_of(result.get("model"), "model"),
        owners=_owners(result, "api_key_id", "workspace_id"),
        input_tokens=fresh + cached + written,
        cached_input_tokens=cached,
        output_tokens=count_of(result.get("output_tokens"), "output_tokens"),
    )


def _console_usage(item: Item) -> Iterator[Row]:
    from_us, before_us = span_of(item["usage_date_utc"], "usage_date_utc")
    prefix = "usage_input_tokens_"
    names = ("no_cache", "cache_write_5m", "cache_write_1h", "cache_write", "cache_read")
    counts = {name: count_of(item.get(prefix + name), prefix + name) for name in names}
    yield Row(
        from_us,
        before_us,
        model=text_of(item["model_version"], "model_version"),
        owners=_owners(item, "api_key_id", "api_key", "workspace"),
        input_tokens=sum(counts.values()),
        cached_input_tokens=counts["cache_read"],
        output_tokens=count_of(item["usage_output_tokens"], "usage_output_tokens"),
    )


def _console_cost(item: Item) -> Iterator[Row]:
    from_us, before_us = span_of(item["usage_date_utc"], "usage_date_utc")
    yield Row(
        from_us,
        before_us,
        model=text_of(item["model"] or item.get("cost_type"), "model"),
        owners=_owners(item, "api_key_id", "api_key", "workspace"),
        cost_usd=usd_of(item["cost_usd"], None, "cost_usd"),
    )


def _named(names: Collection[str], columns: Mapping[str, str]) -> Format:
    """A line for each request, or for each day and model, by the names of its columns."""
    places: dict[str, str] = {}
    for part, usual in COLUMNS.items():
        wanted = (columns[part],) if part in columns else usual
        found = next((name for name in wanted if name in names), "")
        if part in columns and not found:
            raise FieldError(f"there is no column {columns[part]!r}, only {_listed(names)}")
        if found:
            places[part] = found
    figures = frozenset(figure for part, figure in _FIGURE_OF.items() if part in places)
    if not figures:
        raise FieldError(
            f"this is no export that is known, with the columns {_listed(names)}. Name its columns"
            " with --column, such as --column id=request_id --column cost=total"
        )
    if "id" not in places and "time" not in places:
        raise FieldError("there is neither an id of the request (--column id=…) nor a time")
    by_request = "id" in places

    def rows(item: Item) -> Iterator[Row]:
        yield _named_row(item, places, by_request=by_request)

    return Format(
        name="requests" if by_request else "days",
        providers=(),
        figures=figures,
        by_request=by_request,
        rows=rows,
    )


def _named_row(item: Item, places: Mapping[str, str], *, by_request: bool) -> Row:
    def said(part: str) -> Any:
        return item.get(places[part]) if part in places else None

    from_us = before_us = None
    if said("time") not in (None, ""):
        from_us, before_us = span_of(said("time"), places["time"])
    request_id = text_of(said("id"), places.get("id", "id"))
    if by_request and not request_id:
        raise FieldError(f"{places['id']} is empty")
    if by_request and from_us is not None:
        before_us = from_us + 1
    return Row(
        from_us,
        before_us,
        request_id=request_id,
        model=text_of(said("model"), places.get("model", "model")),
        owners=_owners(item, places.get("owner", "")),
        input_tokens=count_of(said("input"), places.get("input", "input")),
        cached_input_tokens=count_of(said("cached"), places.get("cached", "cached")),
        output_tokens=count_of(said("output"), places.get("output", "output")),
        cost_usd=usd_of(said("cost"), None, places.get("cost", "cost")),
    )


def _owners(item: Item, *names: str) -> tuple[str, ...]:
    found = (text_of(item.get(name), name) for name in names)
    return tuple(owner for owner in found if owner)


def _objects(value: Any, name: str) -> list[Item]:
    if not isinstance(value, list) or not all(isinstance(one, dict) for one in value):
        raise FieldError(f"{name} must be a list of objects")
    return value


def _listed(names: Collection[str]) -> str:
    return ", ".join(repr(name[:40]) for name in list(names)[:12])


def _bucketed(
    name: str, provider: str, figures: frozenset[Figure], rows: Callable[[Item], Iterator[Row]]
) -> Format:
    return Format(name=name, providers=(provider,), figures=figures, by_request=False, rows=rows)


_KNOWN: Final[tuple[tuple[set[str], Format], ...]] = (
    (
        {"start_time", "end_time", "results"},
        _bucketed("OpenAI's API", "openai", frozenset(), _openai_bucket),
    ),
    (
        {"starting_at", "ending_at", "results"},
        _bucketed("Anthropic's API", "anthropic", frozenset(), _anthropic_bucket),
    ),
    (
        {"start_time", "end_time", "amount_value"},
        _bucketed("OpenAI's costs", "openai", COST, _openai_row),
    ),
    (
        {"start_time", "end_time", "num_model_requests", "input_tokens", "output_tokens"},
        _bucketed("OpenAI's usage", "openai", TOKENS, _openai_row),
    ),
    (
        {"usage_date_utc", "model_version", "usage_input_tokens_no_cache", "usage_output_tokens"},
        _bucketed("Anthropic's usage", "anthropic", TOKENS, _console_usage),
    ),
    (
        {"usage_date_utc", "model", "cost_usd"},
        _bucketed("Anthropic's costs", "anthropic", COST, _console_cost),
    ),
)
"""The words that tell a format from others. A bucket's figures are said by its results."""


def figures_of(item: Item) -> frozenset[Figure]:
    """What the results of a bucket say."""
    found: frozenset[Figure] = frozenset()
    results = item.get("results")
    for result in results if isinstance(results, list) else ():
        found |= COST if isinstance(result, dict) and "amount" in result else TOKENS
    return found
