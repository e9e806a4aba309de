"""What becomes of a key after it was made: changed, rotated, disabled and enabled."""

from dataclasses import replace
from datetime import datetime, timedelta
from typing import Final

from onegate.auth.v1 import grant_pb2
from onegate.auth.v1 import key_service_pb2 as pb
from services.auth import key_rows, keys, lifetimes, rights_rows
from services.auth.administration import Deed, conflict, refused
from services.auth.desks.key_messages import FORMER_MAX, former_secrets
from services.auth.objects import FormerSecretRecord
from services.auth.policy import Policy
from services.auth.records import KeyRecord, OrganizationRecord, ProjectRecord

GRACE_S: Final = 86_400
"""For how long a rotated key's old secret works on when nobody says, in seconds."""

GRACE_S_MAX: Final = 30 * 86_400
"""For how long it may at most, in seconds."""


def changed(deed: Deed, key: KeyRecord, request: pb.UpdateKeyRequest) -> KeyRecord:
    """The key as it is asked to be. Raises CONFLICT for one that works no more, SCOPE_MISSING for
    an admin key that may what the caller may not.
    """
    _check_living(deed, key)
    _check_covered(deed, key)
    policy = _changed_policy(key, request)
    if key.kind == grant_pb2.KEY_KIND_ADMIN and policy.scopes != key.policy.scopes:
        own = deed.key.policy.scopes if deed.key else ()
        if own:
            deed.rights.check_within(policy.scopes, own)
        policy = replace(policy, scopes=policy.scopes or own)
    said = replace(key, policy=policy)
    if request.HasField("name"):
        said = replace(said, name=keys.checked_name(request.name))
    if request.HasField("expires_in_seconds") or request.never_expires:
        end = _asked_end(deed, request)
        lifetimes.check_expiry(_levels(deed, key), key.rotated_at or key.created_at, end)
        said = replace(said, expires_at=end)
    _check_covered(deed, said)
    return said


def rotated(deed: Deed, key: KeyRecord, request: pb.RotateKeyRequest) -> tuple[KeyRecord, str]:
    """The key with a new secret, and that secret. The one before works on for the grace period,
    earlier ones no longer than it.
    """
    _check_living(deed, key)
    _check_covered(deed, key)
    grace_s = request.grace_seconds if request.HasField("grace_seconds") else GRACE_S
    if not 0 <= grace_s <= GRACE_S_MAX:
        raise refused("grace_seconds", f"must be 0 to {GRACE_S_MAX}")
    levels = _levels(deed, key)
    if request.HasField("expires_in_seconds"):
        _check_seconds(request.expires_in_seconds)
        end = lifetimes.first_expiry(levels, request.expires_in_seconds, deed.now)
    else:
        end = lifetimes.kept_expiry(levels, key.expires_at, deed.now)
    _let_go(deed, key, deed.now + timedelta(seconds=grace_s))
    secret = deed.new_secret(key.kind)
    renewed = replace(
        key, redacted_value=secret.redacted_value, rotated_at=deed.now, expires_at=end
    )
    kept = key_rows.keep_key(deed.session, renewed, now=deed.now, mac=secret.mac)
    return kept, secret.value


def switched(deed: Deed, key: KeyRecord, *, on: bool) -> KeyRecord:
    """The key enabled or disabled, told to everybody; as it is when it is so already."""
    _check_living(deed, key)
    if on:
        _check_covered(deed, key)
    if on == (key.disabled_at is None):
        return key
    turned = replace(key, disabled_at=None if on else deed.now)
    kept = key_rows.keep_key(deed.session, turned, now=deed.now)
    deed.note(key.id, key, kept, key.project_id or "")
    return kept


def _let_go(deed: Deed, key: KeyRecord, end: datetime) -> None:
    """Lets the present secret work until then, and no earlier one for longer."""
    living = former_secrets(deed, [key]).get(key.id, [])
    deed.session.delete(FormerSecretRecord, {"key_id": key.id})
    if end <= deed.now:
        return
    if len(living) >= FORMER_MAX:
        raise conflict(
            f"{FORMER_MAX} earlier secrets of this key still work: wait until one has ended, or"
            " rotate with a grace of 0, which ends them all.",
            "grace_seconds",
        )
    present = FormerSecretRecord(
        id=deed.new_id("secret"),
        organization_id=key.organization_id,
        key_id=key.id,
        mac=deed.session.secret_mac(key.id).hex(),
        redacted_value=key.redacted_value,
        created_at=deed.now,
        ends_at=end,
    )
    for secret in (*living, present):
        deed.session.insert(replace(secret, ends_at=min(secret.ends_at, end)))


def _changed_policy(key: KeyRecord, request: pb.UpdateKeyRequest) -> Policy:
    policy = key.policy
    calls_models = ("models_allowed", "models_denied", "rate_limits")
    if key.kind == grant_pb2.KEY_KIND_ADMIN:
        for field in calls_models:
            if request.HasField(field):  # type: ignore[arg-type]
                raise refused(field, "must be left out: an admin key calls no models")
    if request.HasField("scopes"):
        scopes = keys.checked_scopes(request.scopes.names, key.kind)
        policy = replace(policy, scopes=scopes)
    if request.HasField("models_allowed"):
        allowed = keys.checked_patterns(request.models_allowed.values, "models_allowed")
        policy = replace(policy, models_allowed=allowed)
    if request.HasField("models_denied"):
        denied = keys.checked_patterns(request.models_denied.values, "models_denied")
        policy = replace(policy, models_denied=denied)
    if request.HasField("networks_allowed"):
        networks = keys.checked_networks(request.networks_allowed.values)
        policy = replace(policy, networks=networks)
    if request.HasField("tags"):
        policy = replace(policy, tags=keys.checked_tags(request.tags.values))
    if request.HasField("rate_limits"):
        limits = keys.checked_limits(request.rate_limits.values)
        policy = replace(policy, rate_limits=limits)
    return policy


def _asked_end(deed: Deed, request: pb.UpdateKeyRequest) -> datetime | None:
    if request.never_expires:
        if request.HasField("expires_in_seconds"):
            raise refused("never_expires", "contradicts expires_in_seconds: send one of them")
        return None
    _check_seconds(request.expires_in_seconds)
    return deed.now + timedelta(seconds=request.expires_in_seconds)


def _check_seconds(expires_in_s: int) -> None:
    if expires_in_s < 1:
        raise refused("expires_in_seconds", "must be at least 1")
    keys.check_expiry(expires_in_s)


def _check_living(deed: Deed, key: KeyRecord) -> None:
    """Raises CONFLICT for a key that works no more and never will."""
    if key.revoked_at is not None or (key.expires_at is not None and key.expires_at <= deed.now):
        raise conflict("The key has ended: make a new one.", "id")


def _check_covered(deed: Deed, key: KeyRecord) -> None:
    """Raises SCOPE_MISSING for an admin key that may more than the caller: whoever holds its new
    secret, or could widen it, would rise.
    """
    if key.kind == grant_pb2.KEY_KIND_ADMIN:
        deed.rights.check_covers(rights_rows.rights_of(deed.session, key)[0])


def _levels(deed: Deed, key: KeyRecord) -> list[OrganizationRecord | ProjectRecord]:
    project = None
    if key.project_id:
        project = deed.session.find(ProjectRecord, {"id": key.project_id})
    return key_rows.levels_of(deed.session, key.organization_id, project)
