"""The first start: fills an empty store with what a first call needs."""

from dataclasses import dataclass, field
from typing import Final

from onegate.auth.v1 import grant_pb2
from runtime.apikeys import KeyKind
from runtime.clock import Clock, Entropy
from runtime.config import Settings
from services.auth.identity import Identity, open_identity
from services.auth.policy import Policy
from services.auth.records import Founding, NewKey

FIRST_NAME: Final = "default"
"""The name of the first organisation, project and keys."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bootstrap:
    """What the first start made. The secrets exist here and nowhere else: show them once."""

    organization_id: str
    project_id: str
    admin_key: str = field(repr=False)
    api_key: str = field(repr=False)


async def bootstrap(settings: Settings, clock: Clock, entropy: Entropy) -> Bootstrap | None:
    """Makes an organisation, a project and a key of each kind; ``None`` when there is an
    organisation already. Of several processes that try at once, one succeeds.
    """
    identity = await open_identity(settings.auth, clock, entropy)
    try:
        return await _found(identity)
    finally:
        await identity.store.close()


async def ensure_organization(identity: Identity) -> None:
    """Makes an organisation and a project, without keys, when there are none: what a service needs
    that nobody has set up. Its operator makes the keys (``onegate keys create``).
    """
    founding = Founding(
        organization_id=identity.new_id("org"),
        project_id=identity.new_id("proj"),
        name=FIRST_NAME,
        keys=(),
        now=identity.clock.now(),
    )
    await identity.store.found(founding)


async def _found(identity: Identity) -> Bootstrap | None:
    organization_id, project_id = identity.new_id("org"), identity.new_id("proj")
    admin = _asked(grant_pb2.KEY_KIND_ADMIN, "")
    project = _asked(grant_pb2.KEY_KIND_PROJECT, project_id)
    admin_key, admin_draft = identity.mint(admin, organization_id)
    api_key, project_draft = identity.mint(project, organization_id)
    founding = Founding(
        organization_id=organization_id,
        project_id=project_id,
        name=FIRST_NAME,
        keys=(admin_draft, project_draft),
        now=identity.clock.now(),
    )
    if not await identity.store.found(founding):
        return None
    return Bootstrap(
        organization_id=organization_id,
        project_id=project_id,
        admin_key=admin_key,
        api_key=api_key,
    )


def _asked(kind: KeyKind, project_id: str) -> NewKey:
    return NewKey(
        name=FIRST_NAME,
        kind=kind,
        project_id=project_id,
        expires_in_s=None,
        policy=Policy(),
        request_id="",
    )
