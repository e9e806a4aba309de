"""Keys as administrators are shown them: with owners, and with earlier secrets that work on."""

from collections.abc import Iterable, Sequence

from onegate.auth.v1 import key_service_pb2 as pb
from services.auth import keys
from services.auth.administration import Deed
from services.auth.objects import (
    FormerSecretRecord,
    ProjectUserRecord,
    ServiceAccountRecord,
    UserRecord,
)
from services.auth.records import KeyRecord, Slice

FORMER_MAX = 5
"""How many earlier secrets of one key may work at once."""


def shown(deed: Deed, found: Sequence[KeyRecord]) -> list[pb.Key]:
    """Keys as messages."""
    known, former = owners(deed, found), former_secrets(deed, found)
    return [keys.key_message(key, known.get(key.id), former.get(key.id, ())) for key in found]


def former_secrets(deed: Deed, found: Iterable[KeyRecord]) -> dict[str, list[FormerSecretRecord]]:
    """The earlier secrets that still work, by the keys' ids, those of the last rotation first."""
    # Most keys have never been rotated, and of those nothing need be asked.
    ids = sorted(key.id for key in found if key.rotated_at is not None)
    former: dict[str, list[FormerSecretRecord]] = {}
    if ids:
        whole = Slice(size=(FORMER_MAX + 1) * len(ids))
        for secret in deed.session.select(FormerSecretRecord, {"key_id": ids}, whole):
            if secret.ends_at > deed.now:
                former.setdefault(secret.key_id, []).append(secret)
    return former


def owners(deed: Deed, found: Iterable[KeyRecord]) -> dict[str, pb.KeyOwner]:
    """Whose keys these are, by the keys' ids; keys of the organisation's own are left out."""
    wanted = {key.id: key for key in found if key.principal_id}
    ids = sorted({key.principal_id for key in wanted.values()})
    whole = Slice(size=len(ids) + 1)
    users = {user.id: user for user in deed.session.select(UserRecord, {"id": ids}, whole)}
    accounts = {
        row.id: row for row in deed.session.select(ServiceAccountRecord, {"id": ids}, whole)
    }
    known: dict[str, pb.KeyOwner] = {}
    for key in wanted.values():
        user, account = users.get(key.principal_id), accounts.get(key.principal_id)
        if user is not None:
            known[key.id] = _user_owner(deed, user, key.project_id)
        elif account is not None:
            known[key.id] = pb.KeyOwner(
                id=account.id,
                name=account.name,
                role=account.role,
                created_at=keys.timestamp(account.created_at),
            )
    return known


def _user_owner(deed: Deed, user: UserRecord, project_id: str | None) -> pb.KeyOwner:
    role = user.role
    if project_id:
        where = {"user_id": user.id, "project_id": project_id}
        membership = deed.session.find(ProjectUserRecord, where)
        role = membership.role if membership else "member"
    return pb.KeyOwner(
        id=user.id,
        name=user.name,
        email=user.email,
        role=role,
        created_at=keys.timestamp(user.created_at),
    )
