"""What a key becomes for others (a grant, a message), when it is alive, and what a new one may say.

Pure.
"""

import hmac
import re
from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Final

from google.protobuf.timestamp_pb2 import Timestamp

from onegate.auth.v1 import grant_pb2, key_service_pb2, project_service_pb2
from onegate.common.v1 import error_pb2
from runtime.apikeys import KeyKind
from runtime.errors import GatewayError
from runtime.networks import normalised
from runtime.redaction import redact_keys
from services.auth.data_policy import policy_of
from services.auth.objects import FormerSecretRecord
from services.auth.permissions import checked_permissions
from services.auth.policy import NOTHING, Policy, RateLimit, effective
from services.auth.records import KeyRecord, Lineage, NewKey, ProjectRecord

ADMIN_SCOPE: Final = "admin"
"""What an admin key may do, and all that it may do."""

NAME_CHARS_MAX: Final = 200
REQUEST_ID_CHARS_MAX: Final = 64
EXPIRES_IN_S_MAX: Final = 10 * 366 * 86_400
PATTERNS_MAX: Final = 100
PATTERN_CHARS_MAX: Final = 200
PATTERN_STARS_MAX: Final = 4
RATE_LIMITS_MAX: Final = 20
RATE_AMOUNT_MAX: Final = 10**12
RATE_WINDOW_S_MAX: Final = 31 * 86_400
# The limits of OpenAI's metadata, which tags travel beside
# (https://platform.openai.com/docs/api-reference/chat/create#chat-create-metadata).
TAGS_MAX: Final = 16
TAG_NAME_CHARS_MAX: Final = 64
TAG_VALUE_CHARS_MAX: Final = 512

NETWORKS_MAX: Final = 50
ENDPOINTS: Final = (
    *("audio", "batches", "chat", "completions", "embeddings", "images", "moderations", "rerank"),
    "responses",
)
"""The families of endpoints that call models: ``model.chat.request`` allows one of them."""

_SCOPES: Final = (
    "model.request",
    "model.read",
    *(f"model.{endpoint}.request" for endpoint in ENDPOINTS),
)
INFERENCE_SCOPES: Final[Mapping[str, str]] = {
    **{scope: scope for scope in _SCOPES},
    **{f"api.{scope}": scope for scope in _SCOPES},
    "api.all.read": "model.read",
}
"""What a project's key may be held to: the scopes' names, and OpenAI's words for them."""

_WINDOWED: Final = frozenset(
    {
        grant_pb2.RATE_METER_REQUESTS,
        grant_pb2.RATE_METER_TOKENS,
        grant_pb2.RATE_METER_IMAGES,
        grant_pb2.RATE_METER_AUDIO_MEGABYTES,
    }
)
_PATTERN: Final = re.compile(r"[0-9A-Za-z*._:/@+~-]+", re.ASCII)


def mac(pepper: bytes, digest: bytes) -> bytes:
    """What is stored of a key: HMAC-SHA256 of its digest under the server's pepper."""
    return hmac.digest(pepper, digest, "sha256")


def pepper_fingerprint(pepper: bytes) -> bytes:
    """What the store keeps of the pepper, to notice when keys were stored under another one."""
    return hmac.digest(pepper, b"onegate auth pepper", "sha256")


def check_alive(key: KeyRecord, *, now: datetime, secret_ends_at: datetime | None = None) -> None:
    """Raises INVALID_API_KEY for a revoked key, KEY_DISABLED for a disabled one and KEY_EXPIRED for
    one that is past its time, or whose secret was replaced and is past its own.
    """
    if key.revoked_at is not None:
        raise invalid_key()
    if key.disabled_at is not None:
        raise GatewayError(
            error_pb2.ERROR_REASON_KEY_DISABLED,
            "This API key is disabled. Ask an administrator to enable it, or use another one.",
        )
    end = earlier(key.expires_at, secret_ends_at)
    if end is not None and end <= now:
        raise GatewayError(
            error_pb2.ERROR_REASON_KEY_EXPIRED,
            "This API key has expired. Ask an administrator for a new one.",
        )


def earlier(one: datetime | None, other: datetime | None) -> datetime | None:
    """The earlier of two moments; ``None`` is never."""
    return min((moment for moment in (one, other) if moment is not None), default=None)


def invalid_key() -> GatewayError:
    """The one answer to a key that is unknown, revoked or not a key: it tells nothing apart."""
    return GatewayError(
        error_pb2.ERROR_REASON_INVALID_API_KEY,
        "This API key is not valid. Check that it was copied whole and has not been revoked.",
    )


def grant(lineage: Lineage, classes: tuple[str, ...]) -> grant_pb2.Grant:
    """What the key may do, as routers and edges cache it; ``classes`` are those of data."""
    key, project, organization = lineage.key, lineage.project, lineage.organization
    levels = (organization.policy, *((project.policy,) if project else ()), key.policy)
    rights = effective(*levels)
    is_admin = key.kind == grant_pb2.KEY_KIND_ADMIN
    return grant_pb2.Grant(
        key_id=key.id,
        project_id=key.project_id or "",
        organization_id=key.organization_id,
        principal_id=key.principal_id,
        kind=key.kind,
        version=max(key.version, project.version if project else 0, organization.version),
        expires_at=timestamp(earlier(key.expires_at, lineage.secret_ends_at)),
        models_allowed=() if is_admin else rights.models_allowed,
        models_denied=(NOTHING,) if is_admin else rights.models_denied,
        scopes=(ADMIN_SCOPE,) if is_admin else rights.scopes,
        rate_limits=map(_limit_message, rights.rate_limits),
        tags=rights.tags,
        name=key.name,
        data_policy=(
            None if is_admin else policy_of(organization, project, key.policy.data, classes)
        ),
        networks_allowed=key.policy.networks if is_admin else rights.networks,
        disabled=key.disabled_at is not None,
    )


def key_message(
    key: KeyRecord,
    owner: key_service_pb2.KeyOwner | None = None,
    former: Iterable[FormerSecretRecord] = (),
) -> key_service_pb2.Key:
    """The key as administrators see it: its own policy, not what it inherits."""
    return key_service_pb2.Key(
        id=key.id,
        name=key.name,
        kind=key.kind,
        redacted_value=key.redacted_value,
        project_id=key.project_id or "",
        organization_id=key.organization_id,
        models_allowed=key.policy.models_allowed,
        rate_limits=map(_limit_message, key.policy.rate_limits),
        tags=key.policy.tags,
        created_at=timestamp(key.created_at),
        expires_at=timestamp(key.expires_at),
        revoked_at=timestamp(key.revoked_at),
        version=key.version,
        scopes=key.policy.scopes,
        owner=owner,
        disabled_at=timestamp(key.disabled_at),
        last_used_at=timestamp(key.last_used_at),
        models_denied=key.policy.models_denied,
        networks_allowed=key.policy.networks,
        former_secrets=[
            key_service_pb2.FormerSecret(
                redacted_value=secret.redacted_value, ends_at=timestamp(secret.ends_at)
            )
            for secret in former
        ],
        rotated_at=timestamp(key.rotated_at),
    )


def project_message(project: ProjectRecord) -> project_service_pb2.Project:
    """The project as administrators see it."""
    return project_service_pb2.Project(
        id=project.id,
        organization_id=project.organization_id,
        name=project.name,
        created_at=timestamp(project.created_at),
        archived_at=timestamp(project.archived_at),
        residency=project.residency,
    )


def new_key(request: key_service_pb2.CreateKeyRequest) -> NewKey:
    """The request, checked. Raises INVALID_REQUEST with the field at fault."""
    kind = request.kind or grant_pb2.KEY_KIND_PROJECT
    if kind not in (grant_pb2.KEY_KIND_PROJECT, grant_pb2.KEY_KIND_ADMIN):
        raise _refused("kind", "must be PROJECT or ADMIN")
    check_expiry(request.expires_in_seconds)
    if len(request.request_id) > REQUEST_ID_CHARS_MAX:
        raise _refused("request_id", f"must have at most {REQUEST_ID_CHARS_MAX} characters")
    if kind == grant_pb2.KEY_KIND_ADMIN:
        for field in ("project_id", "models_allowed", "models_denied", "rate_limits"):
            if getattr(request, field):
                raise _refused(field, "must be left out: an admin key calls no models")
    return NewKey(
        name=checked_name(request.name),
        kind=kind,
        project_id=request.project_id,
        expires_in_s=request.expires_in_seconds or None,
        policy=Policy(
            models_allowed=checked_patterns(request.models_allowed, "models_allowed"),
            models_denied=checked_patterns(request.models_denied, "models_denied"),
            rate_limits=checked_limits(request.rate_limits),
            tags=checked_tags(request.tags),
            scopes=checked_scopes(request.scopes, kind),
            networks=checked_networks(request.networks_allowed),
        ),
        request_id=request.request_id,
    )


def check_expiry(expires_in_s: int) -> None:
    """Raises INVALID_REQUEST for what is no number of seconds from now; 0 stands for never."""
    if not 0 <= expires_in_s <= EXPIRES_IN_S_MAX:
        raise _refused("expires_in_seconds", f"must be 0 (never) to {EXPIRES_IN_S_MAX}")


def checked_scopes(scopes: Iterable[str], kind: KeyKind) -> tuple[str, ...]:
    """Known scopes, each once: permissions for an admin key. Raises INVALID_REQUEST."""
    if kind == grant_pb2.KEY_KIND_ADMIN:
        return checked_permissions(scopes, project=False, param="scopes")
    found: dict[str, None] = {}
    for place, scope in enumerate(scopes):
        if scope not in INFERENCE_SCOPES:
            known = ", ".join(sorted(INFERENCE_SCOPES))
            raise _refused(f"scopes[{place}]", f"must be one of {known}")
        found[INFERENCE_SCOPES[scope]] = None
    return tuple(found)


def checked_name(name: str) -> str:
    """A name for people, without blanks around it. Raises INVALID_REQUEST."""
    name = name.strip()
    if not 1 <= len(name) <= NAME_CHARS_MAX:
        raise _refused("name", f"must have 1 to {NAME_CHARS_MAX} characters")
    if not name.isprintable():
        raise _refused("name", "must be one line without control characters")
    if redact_keys(name) != name:
        raise _refused("name", "must not hold a key: names are shown to many")
    return name


def checked_patterns(patterns: Iterable[str], param: str) -> tuple[str, ...]:
    """Model patterns, each once. Raises INVALID_REQUEST."""
    found = tuple(dict.fromkeys(re.sub(r"\*+", "*", pattern) for pattern in patterns))
    if len(found) > PATTERNS_MAX:
        raise _refused(param, f"must have at most {PATTERNS_MAX} patterns")
    for place, pattern in enumerate(found):
        check_pattern(f"{param}[{place}]", pattern)
    return found


def check_pattern(param: str, pattern: str) -> None:
    """Raises INVALID_REQUEST for what is no model pattern."""
    if not _PATTERN.fullmatch(pattern) or len(pattern) > PATTERN_CHARS_MAX:
        raise _refused(
            param,
            f"must be a model pattern such as openai/gpt-* of at most {PATTERN_CHARS_MAX}"
            " characters: letters, digits, * . _ : / @ + ~ -",
        )
    if pattern.count("*") > PATTERN_STARS_MAX:
        raise _refused(param, f"must have at most {PATTERN_STARS_MAX} stars")


def checked_networks(networks: Iterable[str]) -> tuple[str, ...]:
    """Networks as they are kept, each once. Raises INVALID_REQUEST."""
    found: dict[str, None] = {}
    for place, text in enumerate(networks):
        try:
            found[normalised(text)] = None
        except ValueError as error:
            raise _refused(f"networks_allowed[{place}]", str(error)) from None
    if len(found) > NETWORKS_MAX:
        raise _refused("networks_allowed", f"must have at most {NETWORKS_MAX} entries")
    return tuple(found)


def checked_limits(limits: Iterable[grant_pb2.RateLimit]) -> tuple[RateLimit, ...]:
    """A key's own limits. Raises INVALID_REQUEST."""
    found = tuple(_limit(f"rate_limits[{place}]", limit) for place, limit in enumerate(limits))
    if len(found) > RATE_LIMITS_MAX:
        raise _refused("rate_limits", f"must have at most {RATE_LIMITS_MAX} entries")
    if len({(limit.meter, limit.window_s, limit.model) for limit in found}) < len(found):
        raise _refused("rate_limits", "must name each meter, window and model only once")
    return found


def _limit(param: str, limit: grant_pb2.RateLimit) -> RateLimit:
    windowed = limit.meter in _WINDOWED
    if not windowed and limit.meter != grant_pb2.RATE_METER_CONCURRENCY:
        words = "REQUESTS, TOKENS, IMAGES, AUDIO_MEGABYTES or CONCURRENCY"
        raise _refused(f"{param}.meter", f"must be {words}")
    if not 1 <= limit.amount <= RATE_AMOUNT_MAX:
        raise _refused(
            f"{param}.amount",
            f"must be 1 to {RATE_AMOUNT_MAX}; leave the limit out to have none",
        )
    if windowed and not 1 <= limit.window_s <= RATE_WINDOW_S_MAX:
        raise _refused(f"{param}.window_s", f"must be 1 to {RATE_WINDOW_S_MAX} seconds")
    if not windowed and limit.window_s:
        raise _refused(f"{param}.window_s", "must be left out: concurrent calls have no window")
    if limit.scope not in (grant_pb2.RATE_SCOPE_UNSPECIFIED, grant_pb2.RATE_SCOPE_KEY):
        raise _refused(f"{param}.scope", "must be KEY: a key limits nobody else's calls")
    if limit.model:
        check_pattern(f"{param}.model", limit.model)
    return RateLimit(
        meter=limit.meter,
        amount=limit.amount,
        window_s=limit.window_s,
        scope=grant_pb2.RATE_SCOPE_KEY,
        model=limit.model,
    )


def checked_tags(tags: Mapping[str, str]) -> Mapping[str, str]:
    """Tags as they are kept. Raises INVALID_REQUEST."""
    if len(tags) > TAGS_MAX:
        raise _refused("tags", f"must have at most {TAGS_MAX} entries")
    for name, value in tags.items():
        if not 1 <= len(name) <= TAG_NAME_CHARS_MAX or not name.isprintable():
            raise _refused("tags", f"must have names of 1 to {TAG_NAME_CHARS_MAX} characters")
        if len(value) > TAG_VALUE_CHARS_MAX or not value.isprintable():
            raise _refused(
                "tags", f"must have values of at most {TAG_VALUE_CHARS_MAX} characters, one line"
            )
    return dict(tags)


def _limit_message(limit: RateLimit) -> grant_pb2.RateLimit:
    return grant_pb2.RateLimit(
        meter=limit.meter,
        amount=limit.amount,
        window_s=limit.window_s,
        scope=limit.scope,
        model=limit.model,
    )


def timestamp(moment: datetime | None) -> Timestamp | None:
    """A moment as messages have it."""
    if moment is None:
        return None
    timestamp = Timestamp()
    timestamp.FromDatetime(moment)
    return timestamp


def _refused(param: str, rule: str) -> GatewayError:
    return GatewayError(error_pb2.ERROR_REASON_INVALID_REQUEST, f"`{param}` {rule}.", param=param)
