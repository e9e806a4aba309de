"""Providers and their credentials as rows of a session: found, checked, made into messages."""

from dataclasses import replace
from typing import Final

from onegate.auth.v1 import provider_service_pb2 as pb
from runtime import rules
from runtime.clock import Entropy
from runtime.errors import GatewayError
from runtime.sealing import (
    KeyEncryptionKey,
    SealError,
    purpose_of_credential,
    seal,
    unseal,
)
from runtime.secrets import Secret, one_line
from runtime.settings import KINDS, NEED_BASE_URL
from services.auth import keys
from services.auth.administration import conflict, missing, refused
from services.auth.objects import CredentialRecord, ProviderRecord
from services.auth.records import Session, Slice

PROVIDERS_MAX: Final = 500
CREDENTIALS_MAX: Final = 100
"""Of one provider."""
WEIGHT_MAX: Final = 1000
RETENTION_DAYS_MAX: Final = 36_500
NAMES_MAX: Final = 1000
"""How many models, organisations or projects one entry may name."""

UPDATABLE: Final = frozenset({"models", "free", "regions", "retention_days", "trains"})
"""What is known of a provider and bound to no secret."""

ALL: Final = Slice(size=PROVIDERS_MAX * CREDENTIALS_MAX, ascending=True)
_DEMO: Final = "demo"
_PLACED: Final = frozenset({"bedrock", "vertex"})
"""Kinds whose address says a region, which here is nobody's environment."""


def messages(session: Session, *, sealed: bool) -> list[pb.StoredProvider]:
    """All providers by name, with their credentials by name."""
    by_provider: dict[str, list[CredentialRecord]] = {}
    for credential in session.select(CredentialRecord, {}, ALL):
        by_provider.setdefault(credential.provider_id, []).append(credential)
    providers = session.select(ProviderRecord, {}, ALL)
    return sorted(
        (message(one, by_provider.get(one.id, []), sealed=sealed) for one in providers),
        key=lambda one: one.name,
    )


def message(
    provider: ProviderRecord, credentials: list[CredentialRecord], *, sealed: bool = False
) -> pb.StoredProvider:
    """A provider as it is told."""
    return pb.StoredProvider(
        regions=provider.regions,
        retention_days=provider.retention_days,
        trains=None if provider.trains is None else bool(provider.trains),
        id=provider.id,
        name=provider.name,
        kind=provider.kind,
        base_url=provider.base_url,
        models=provider.models,
        free=bool(provider.free),
        created_at=keys.timestamp(provider.created_at),
        credentials=(
            credential_message(one, sealed=sealed)
            for one in sorted(credentials, key=lambda one: one.name)
        ),
    )


def credential_message(credential: CredentialRecord, *, sealed: bool) -> pb.StoredCredential:
    """A credential as it is told; its sealed secret only to who asks for that."""
    return pb.StoredCredential(
        id=credential.id,
        name=credential.name,
        weight=credential.weight,
        organizations=credential.organizations,
        projects=credential.projects,
        key_id=credential.key_id,
        sealed=credential.sealed if sealed else "",
        created_at=keys.timestamp(credential.created_at),
        rotated_at=keys.timestamp(credential.rotated_at),
    )


def named(session: Session, name: str) -> ProviderRecord:
    """The provider of this name. Raises NOT_FOUND."""
    found = session.find(ProviderRecord, {"name": name})
    if found is None:
        raise missing("provider kept by auth", "name")
    return found


def credentials_of(session: Session, provider: ProviderRecord) -> list[CredentialRecord]:
    """Its credentials."""
    return session.select(CredentialRecord, {"provider_id": provider.id}, ALL)


def credential_named(session: Session, provider: ProviderRecord, name: str) -> CredentialRecord:
    """Its credential of this name, or the only one without. Raises NOT_FOUND, INVALID_REQUEST."""
    found = credentials_of(session, provider)
    if not name and len(found) != 1:
        raise refused("credential", "must be named: the provider has not exactly one")
    for one in found:
        if name in ("", one.name):
            return one
    raise missing("credential", "credential")


def checked_provider(request: pb.AddProviderRequest) -> None:
    """Raises INVALID_REQUEST for what no router could call."""
    check("name", rules.provider_name(request.name))
    if request.kind not in KINDS or request.kind == _DEMO:
        raise refused("kind", f"must be one of {', '.join(k for k in KINDS if k != _DEMO)}")
    check_base_url(request.kind, request.base_url)
    check_known(request)


def check_known(request: pb.AddProviderRequest | pb.UpdateProviderRequest) -> None:
    """Raises INVALID_REQUEST for what cannot be known of a provider."""
    check_names("models", list(request.models))
    if len(request.regions) > NAMES_MAX:
        raise refused("regions", f"must have at most {NAMES_MAX} entries")
    for region in request.regions:
        check("regions", rules.region(region))
    if not 0 <= request.retention_days <= RETENTION_DAYS_MAX:
        raise refused("retention_days", f"must be between 0 and {RETENTION_DAYS_MAX}")


def updated(was: ProviderRecord, request: pb.UpdateProviderRequest) -> ProviderRecord:
    """The provider with what the request means to change. Raises INVALID_REQUEST."""
    check_known(request)
    meant = set(request.update_mask.paths)
    if not meant or not meant <= UPDATABLE:
        raise refused("update_mask", f"must name some of {', '.join(sorted(UPDATABLE))}")
    return replace(
        was,
        models=tuple(request.models) if "models" in meant else was.models,
        free=int(request.free) if "free" in meant else was.free,
        regions=tuple(request.regions) if "regions" in meant else was.regions,
        retention_days=retention_of(request) if "retention_days" in meant else was.retention_days,
        trains=trains_of(request) if "trains" in meant else was.trains,
    )


def retention_of(request: pb.AddProviderRequest | pb.UpdateProviderRequest) -> int | None:
    """How long data is kept, in days, if that is known."""
    return request.retention_days if request.HasField("retention_days") else None


def trains_of(request: pb.AddProviderRequest | pb.UpdateProviderRequest) -> int | None:
    """Whether data is learnt from, if that is known."""
    return int(request.trains) if request.HasField("trains") else None


def check_base_url(kind: str, base_url: str) -> None:
    """Raises INVALID_REQUEST for an address that is none, or that the kind needs."""
    if base_url:
        check("base_url", rules.base_url(base_url))
    elif kind in NEED_BASE_URL | _PLACED:
        raise refused("base_url", f"is needed for a provider of kind {kind}")


def checked_credential(asked: pb.NewCredential, there: list[CredentialRecord]) -> None:
    """Raises INVALID_REQUEST, CONFLICT when there is one of its name."""
    check("credential.name", rules.provider_name(asked.name))
    if not 0 <= asked.weight <= WEIGHT_MAX:
        raise refused("credential.weight", f"must be between 1 and {WEIGHT_MAX}")
    check_names("credential.organizations", list(asked.organizations))
    check_names("credential.projects", list(asked.projects))
    if any(one.name == asked.name for one in there):
        raise conflict(
            f"The provider has a credential {asked.name!r}: rotate it, or name another.",
            "credential.name",
        )
    if len(there) >= CREDENTIALS_MAX:
        raise refused("credential", f"is one too many: a provider has at most {CREDENTIALS_MAX}")


def check(param: str, complaint: str | None) -> None:
    """Raises INVALID_REQUEST with what a rule says."""
    if complaint is not None:
        raise refused(param, complaint)


def check_names(param: str, names: list[str]) -> None:
    """Raises INVALID_REQUEST for what are no names."""
    if len(names) > NAMES_MAX:
        raise refused(param, f"must have at most {NAMES_MAX} entries")
    for name in names:
        check(param, rules.word(name))


def sealed_for(
    provider: ProviderRecord,
    credential: CredentialRecord,
    secret: str,
    key: KeyEncryptionKey,
    entropy: Entropy,
) -> str:
    """The secret, sealed for this provider's address and this credential's owners.

    Raises INVALID_REQUEST for what is no secret, CONFLICT when it cannot be sealed.
    """
    text = one_line(secret)
    if not text:
        raise refused("secret", "must be one line of printable text, or a JSON object")
    told = message(provider, [])
    purpose = purpose_of_credential(told, credential_message(credential, sealed=False))
    try:
        sealed = seal(Secret(text), purpose, key, entropy)
        # What does not open again must not be kept.
        unseal(sealed, purpose, [key])
    except SealError as error:
        raise unsealable(error) from None
    return sealed.to_text()


def unsealable(error: SealError) -> GatewayError:
    """What the operator is told when sealing fails."""
    return conflict(str(error))
