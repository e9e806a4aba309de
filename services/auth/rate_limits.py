"""Rate limits as administrators set them, one row of numbers for each model pattern, and as they
are counted. Pure.

A project's rows are kept as they are. An organisation's and a key's are kept in their policies, as
what is counted, and shown as rows again.
"""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Final, TypeAlias

from onegate.auth.v1 import grant_pb2
from onegate.auth.v1 import project_policy_service_pb2 as pb
from onegate.common.v1 import error_pb2
from runtime.errors import GatewayError
from services.auth import keys
from services.auth.objects import RateLimitRecord
from services.auth.policy import RateLimit

ID_PREFIX: Final = "rl-"
EVERY_MODEL: Final = "*"

Scope: TypeAlias = grant_pb2.RateScope.ValueType

_MINUTE_S: Final = 60
_DAY_S: Final = 86_400
COUNTED: Final = {
    "requests_per_minute": (grant_pb2.RATE_METER_REQUESTS, _MINUTE_S),
    "tokens_per_minute": (grant_pb2.RATE_METER_TOKENS, _MINUTE_S),
    "requests_per_day": (grant_pb2.RATE_METER_REQUESTS, _DAY_S),
    "tokens_per_day": (grant_pb2.RATE_METER_TOKENS, _DAY_S),
    "images_per_minute": (grant_pb2.RATE_METER_IMAGES, _MINUTE_S),
    "audio_megabytes_per_minute": (grant_pb2.RATE_METER_AUDIO_MEGABYTES, _MINUTE_S),
    "concurrent_calls": (grant_pb2.RATE_METER_CONCURRENCY, 0),
}
"""The numbers that are counted: of what, in how many seconds."""

KEPT: Final = "batch_input_tokens_per_day"
"""A project's number that is kept for batches, and not counted in calls."""

NUMBERS: Final = (*COUNTED, KEPT)
_FIELD_OF: Final = {counted: field for field, counted in COUNTED.items()}


def meanings(model: str) -> tuple[str, ...]:
    """A bare name stands for that model of any provider, as people mean it who know one only."""
    return (model,) if "/" in model or model == EVERY_MODEL else (model, f"*/{model}")


def model_of(limit_id: str) -> str:
    """The model pattern that a limit's id names. Raises NOT_FOUND, INVALID_REQUEST."""
    model = limit_id.removeprefix(ID_PREFIX)
    if model == limit_id or not model:
        raise GatewayError(
            error_pb2.ERROR_REASON_NOT_FOUND,
            f"There is no such rate limit: an id is {ID_PREFIX} and a model, such as {ID_PREFIX}*.",
            param="id",
        )
    keys.check_pattern("rate_limit_id", model)
    return model


def unlimited(organization_id: str, project_id: str, model: str, row_id: str) -> RateLimitRecord:
    """A row that limits nothing."""
    return RateLimitRecord(
        id=row_id,
        organization_id=organization_id,
        project_id=project_id,
        model=model,
        requests_per_minute=None,
        tokens_per_minute=None,
        images_per_minute=None,
        audio_megabytes_per_minute=None,
        requests_per_day=None,
        batch_input_tokens_per_day=None,
    )


def changed(row: RateLimitRecord, asked: pb.ProjectRateLimit) -> RateLimitRecord:
    """The row with what is set in the request. Raises INVALID_REQUEST."""
    for name in NUMBERS:
        if asked.HasField(name):  # type: ignore[arg-type]
            value: int = getattr(asked, name)
            if not 0 <= value <= keys.RATE_AMOUNT_MAX:
                raise _refused(name, f"must be 0 to {keys.RATE_AMOUNT_MAX}")
            row = replace(row, **{name: value})  # type: ignore[arg-type]
    return row


def without(row: RateLimitRecord, fields: Sequence[str]) -> RateLimitRecord:
    """The row without some of its numbers; without any when none is named."""
    for name in fields or NUMBERS:
        if name not in NUMBERS:
            raise _refused("fields", f"must be among {', '.join(NUMBERS)}")
        row = replace(row, **{name: None})  # type: ignore[arg-type]
    return row


def is_empty(row: RateLimitRecord) -> bool:
    """Whether the row limits nothing."""
    return all(getattr(row, name) is None for name in NUMBERS)


def counted(row: RateLimitRecord, scope: Scope) -> tuple[RateLimit, ...]:
    """What a row means for calls."""
    model = "" if row.model == EVERY_MODEL else meanings(row.model)[-1]
    found = []
    for field, (meter, window_s) in COUNTED.items():
        amount: int | None = getattr(row, field)
        if amount is not None:
            found.append(
                RateLimit(meter=meter, amount=amount, window_s=window_s, scope=scope, model=model)
            )
    return tuple(found)


def rows(limits: Iterable[RateLimit]) -> dict[str, RateLimitRecord]:
    """What is counted as rows, by model; what has no place in a row (a window of ten seconds) is
    left out.
    """
    found: dict[str, RateLimitRecord] = {}
    for limit in limits:
        field = _FIELD_OF.get((limit.meter, limit.window_s))
        if field is not None:
            model = limit.model or EVERY_MODEL
            row = found.get(model) or unlimited("", "", model, "")
            found[model] = replace(row, **{field: limit.amount})  # type: ignore[arg-type]
    return dict(sorted(found.items()))


def with_row(
    limits: Sequence[RateLimit], row: RateLimitRecord, scope: Scope
) -> tuple[RateLimit, ...]:
    """The limits with a row in the place of those of its model."""
    if row.batch_input_tokens_per_day is not None:
        raise _refused(KEPT, "must be left out: it is a project's alone")
    kept = [
        limit
        for limit in limits
        if (limit.model or EVERY_MODEL) != row.model
        or (limit.meter, limit.window_s) not in _FIELD_OF
    ]
    return (*kept, *counted(row, scope))


def message(row: RateLimitRecord) -> pb.ProjectRateLimit:
    """A row as administrators see it."""
    return pb.ProjectRateLimit(
        id=f"{ID_PREFIX}{row.model}",
        model=row.model,
        requests_per_minute=row.requests_per_minute,
        tokens_per_minute=row.tokens_per_minute,
        images_per_minute=row.images_per_minute,
        audio_megabytes_per_minute=row.audio_megabytes_per_minute,
        requests_per_day=row.requests_per_day,
        batch_input_tokens_per_day=row.batch_input_tokens_per_day,
        tokens_per_day=row.tokens_per_day,
        concurrent_calls=row.concurrent_calls,
    )


def _refused(param: str, rule: str) -> GatewayError:
    return GatewayError(error_pb2.ERROR_REASON_INVALID_REQUEST, f"`{param}` {rule}.", param=param)
