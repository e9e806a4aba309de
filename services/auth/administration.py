"""How administration is done: who calls, what they may, and one transaction that checks, changes
and logs.

A :class:`Deed` is one call under way. It refuses to end well unless :meth:`Deed.allow` was asked
for an operation of the table: a method that forgets to ask answers nobody.
"""

import collections
import contextlib
import logging
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, TypeAlias, TypeVar

import grpc

from onegate.auth.v1 import grant_pb2, key_service_pb2
from onegate.common.v1 import error_pb2
from onegate.common.v1.access_pass_pb2 import AccessPass
from runtime import apikeys
from runtime.errors import GatewayError, reason_name
from runtime.networks import is_inside
from runtime.passes import sealed
from runtime.rpc import OPERATOR_KEY, require_operator
from runtime.rpc_server import metadata_of
from runtime.secrets import Secret
from services.auth import audit, key_rows, keys, rights_rows
from services.auth.identity import Identity, NewSecret
from services.auth.issuer import Issuer
from services.auth.objects import AuditHeadRecord, AuditRecord, UserRecord
from services.auth.permissions import OPERATIONS, OPERATOR, Rights
from services.auth.records import (
    KeyDraft,
    KeyRecord,
    Lineage,
    NewKey,
    OrganizationRecord,
    ProjectRecord,
    Session,
)
from services.auth.watch import Feed
from services.auth.watchers import Watchers

ADDRESS_KEY: Final = "x-onegate-client-address"
"""Metadata: the network address that the edge was called from."""

ORGANIZATION_KEY: Final = "x-onegate-organization"
"""Metadata: which organisation the operator means; the first when not sent."""

REFUSALS_LOGGED_MAX: Final = 60
"""How many refusals of one key are logged in a minute."""

BREAK_GLASS_S: Final = 3600.0
"""How often the alarm is raised about one key at most, in seconds."""

CALLERS_MAX: Final = 10_000
"""Of how many keys refusals are counted in a minute; those of any more are not logged."""

_LOGGED: Final = frozenset(
    {error_pb2.ERROR_REASON_SCOPE_MISSING, error_pb2.ERROR_REASON_ADDRESS_FORBIDDEN}
)
"""Which refusals are logged."""

_ADDRESS: Final = re.compile(r"[0-9A-Fa-f.:]{2,45}", re.ASCII)
_BEARER: Final = re.compile(r"bearer +(\S+)", re.IGNORECASE)
_LOG = logging.getLogger(__name__)

T = TypeVar("T")
Context: TypeAlias = grpc.aio.ServicerContext[Any, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """Who calls: a key, or the operator (``mac`` is ``None``).

    Args:
        mac: by which the key is found.
        kind: what the key says that it is for.
        organization: what the operator names; empty for all.
        address: where the call came from; empty when nobody said.
    """

    mac: bytes | None
    kind: apikeys.KeyKind
    organization: str
    address: str


class Deed:
    """One administrative call in its transaction."""

    def __init__(self, identity: Identity, session: Session, caller: Caller) -> None:
        self._identity = identity
        self._caller = caller
        self._operation = ""
        self.session = session
        self.now: datetime = identity.clock.now()
        self.key: KeyRecord | None = None
        self.user: UserRecord | None = None
        self.rights: Rights = OPERATOR
        self.scope: str | None = caller.organization or None

    def enter(self) -> None:
        """Finds out who calls. Raises INVALID_API_KEY, KEY_EXPIRED, KEY_DISABLED,
        ADDRESS_FORBIDDEN, or SCOPE_MISSING for a key that calls models.
        """
        if self._caller.mac is None:
            if self.scope and self.session.find(OrganizationRecord, {"id": self.scope}) is None:
                raise missing("organisation", ORGANIZATION_KEY)
            return
        self.rights = Rights()
        lineage: Lineage | None = self.session.lineage(self._caller.mac)
        is_admin = self._caller.kind == grant_pb2.KEY_KIND_ADMIN
        if lineage is None and is_admin:
            raise keys.invalid_key()
        if lineage is not None:
            keys.check_alive(lineage.key, now=self.now, secret_ends_at=lineage.secret_ends_at)
            self.key = lineage.key
            self.scope = lineage.organization.id
        if lineage is None or not is_admin:
            raise GatewayError(
                error_pb2.ERROR_REASON_SCOPE_MISSING,
                "This key calls models; administration needs an admin key (sk-og-admin-…).",
            )
        networks = lineage.key.policy.networks
        if networks and not is_inside(self._caller.address, networks):
            raise GatewayError(
                error_pb2.ERROR_REASON_ADDRESS_FORBIDDEN,
                f"This key does not work from {self._caller.address or 'an unknown address'}.",
            )
        self.rights, self.user = rights_rows.rights_of(self.session, lineage.key)

    @property
    def organization_id(self) -> str:
        """The organisation that new objects are made in."""
        return self.scope or key_rows.first_organization(self.session)

    def allow(self, operation: str, project_id: str = "") -> None:
        """Raises SCOPE_MISSING unless the caller may do this."""
        self._operation = operation
        self.rights.check(operation, project_id)

    def organization(self) -> OrganizationRecord:
        """The organisation that the call is about. Raises NOT_FOUND."""
        found = self.session.find(OrganizationRecord, {"id": self.organization_id})
        if found is None:
            raise missing("organisation")
        return found

    def project(self, operation: str, project_id: str) -> ProjectRecord:
        """The project in which the caller may do this.

        Raises NOT_FOUND for one of another organisation, SCOPE_MISSING.
        """
        self._operation = operation
        where = {"id": project_id, **key_rows.within(self.scope)}
        project = self.session.find(ProjectRecord, where)
        if project is None:
            raise missing("project", "project_id")
        self.scope = project.organization_id
        self.allow(operation, project.id)
        return project

    def active_project(self, operation: str, project_id: str) -> ProjectRecord:
        """Like :meth:`project`; raises CONFLICT when it is archived."""
        project = self.project(operation, project_id)
        key_rows.check_active(project)
        return project

    def place(self, operation: str, project_id: str) -> str:
        """The project's id, or the empty one for the organisation, where the caller may do this."""
        if project_id:
            return self.project(operation, project_id).id
        self.allow(operation)
        return ""

    def new_id(self, prefix: str) -> str:
        """A new public id."""
        return self._identity.new_id(prefix)

    def mint(self, asked: NewKey) -> tuple[str, KeyDraft]:
        """A new secret and what may be kept of it."""
        return self._identity.mint(asked, self.scope)

    def new_secret(self, kind: apikeys.KeyKind) -> NewSecret:
        """A new secret for a key that there is."""
        return self._identity.new_secret(kind)

    def note(
        self,
        resource_id: str,
        before: object | None,
        after: object | None,
        project_id: str = "",
    ) -> None:
        """Logs what the operation has changed."""
        self._append(resource_id=resource_id, before=before, after=after, project_id=project_id)
        _LOG.info("%s: %s", OPERATIONS[self._operation].event, resource_id)

    def refused(self, operation: str, error: GatewayError) -> None:
        """Logs what was refused to a key that is known."""
        with contextlib.suppress(GatewayError):
            self.enter()
        if self.key is None:
            return
        self._operation = operation
        self._append(resource_id="", refusal=reason_name(error.reason))

    def turned_away(self, who: str, error: GatewayError) -> None:
        """Logs a sign-in that was refused; ``who`` as the identity provider says."""
        self._append(resource_id=who, refusal=reason_name(error.reason))

    def break_glass(self) -> None:
        """Logs that a key is used that is of the organisation itself."""
        self.enter()
        self.own("break_glass")
        self._append(resource_id=self.key.id if self.key else "")

    def own(self, operation: str) -> None:
        """Does what is about the caller alone, and needs no permission."""
        self._operation = operation

    def _append(
        self,
        *,
        resource_id: str,
        before: object | None = None,
        after: object | None = None,
        project_id: str = "",
        refusal: str = "",
    ) -> None:
        operation = OPERATIONS.get(self._operation)
        entry = AuditRecord(
            id=self.new_id("audit_log"),
            sequence=0,
            organization_id=self.organization_id,
            project_id=project_id,
            type=(operation.event if operation else "") or self._operation or "login.failed",
            effective_at=self.now,
            key_id=self.key.id if self.key else "",
            user_id=self.user.id if self.user else "",
            email=self.user.email if self.user else "",
            address=self._caller.address,
            resource_id=resource_id,
            before_json=audit.shown(before),
            after_json=audit.shown(after),
            refusal=refusal,
            mac="",
        )
        head = self.session.find(AuditHeadRecord, {"id": audit.HEAD_ID})
        key = audit.chain_key(self._identity.pepper.reveal().encode())
        entry = audit.chained(key, head, entry)
        self.session.insert(entry)
        kept = AuditHeadRecord(id=audit.HEAD_ID, sequence=entry.sequence, mac=entry.mac)
        if head is None:
            self.session.insert(kept)
        else:
            self.session.replace(kept)

    def finish(self) -> None:
        """Raises INTERNAL for a method that never asked whether it may."""
        if not self._operation:
            raise GatewayError(
                error_pb2.ERROR_REASON_INTERNAL, "This method does not say what it asks for."
            )

    @property
    def operation(self) -> str:
        """What was asked for last."""
        return self._operation


class Administration:
    """Does what callers ask, each in one transaction, and tells watchers of it."""

    def __init__(
        self,
        identity: Identity,
        operator_token: Secret,
        feed: Feed,
        watchers: Watchers,
        issuer: Issuer | None = None,
    ) -> None:
        self.identity = identity
        self.issuer = issuer
        self._people_sign_in = issuer is not None
        self._break_glass: dict[str, float] = {}
        self._operator_token = operator_token
        self.feed = feed
        self.watchers = watchers
        self._minute = 0
        self._refusals: collections.Counter[bytes | None] = collections.Counter()

    def seal(self, access: AccessPass) -> str:
        """A pass as text."""
        return sealed(access, self._operator_token, self.identity.clock)

    async def read(self, context: Context, work: Callable[[Deed], T]) -> T:
        """What ``work`` finds out. Raises what it raises; refusals are logged."""
        return await self._perform(self._caller(context), work, self.identity.store.view)

    async def change(self, context: Context, work: Callable[[Deed], T]) -> T:
        """What ``work`` does. When this returns, every watcher of this process has been told."""
        return await self._change(self._caller(context), work)

    async def admit(self, context: Context, organization: str, work: Callable[[Deed], T]) -> T:
        """What ``work`` does for somebody who has no key yet, with the rights of the gateway
        itself: it must let nobody have more than they have a right to.
        """
        return await self._change(self._gateway(context, organization), work)

    async def failed_sign_in(
        self, context: Context, organization: str, who: str, error: GatewayError
    ) -> None:
        """Logs that somebody was not let in; so many in a minute."""
        caller = self._gateway(context, organization)
        if self._is_news(caller):
            await self.identity.store.change(
                lambda session: Deed(self.identity, session, caller).turned_away(who, error)
            )

    async def _change(self, caller: Caller, work: Callable[[Deed], T]) -> T:
        answer = await self._perform(caller, work, self.identity.store.change)
        try:
            await self.feed.refresh()
        except GatewayError as error:
            # The change is kept whatever happens here: a log that cannot be read just now is
            # read again soon.
            _LOG.warning("watchers will learn of a change later: %s", error.message)
        return answer

    async def unconfirmed(
        self, revision: int, wait_max_ms: int
    ) -> list[key_service_pb2.UnconfirmedWatcher]:
        """Waits until a change that was made is in force at every router and edge, or can only be
        in force by now. Says who had not confirmed it when the wait ended.

        Args:
            revision: of the change.
            wait_max_ms: the longest to wait; 0 for as long as it takes.

        Raises STORE_UNAVAILABLE when it cannot be known; the change is kept all the same.
        """
        wait_max_s = wait_max_ms / 1000 if wait_max_ms > 0 else float("inf")
        since_s = self.watchers.now_s()
        behind = await self.watchers.confirmed(revision, since_s, wait_max_s)
        found = []
        for watcher in behind:
            found.append(key_service_pb2.UnconfirmedWatcher(name=watcher.name))
            found[-1].refuses_by.FromDatetime(watcher.refuses_by)
        return found

    async def _perform(self, caller: Caller, work: Callable[[Deed], T], transact: Any) -> T:
        deeds: list[Deed] = []

        def done(session: Session) -> T:
            deed = Deed(self.identity, session, caller)
            deeds.append(deed)
            deed.enter()
            answer = work(deed)
            deed.finish()
            return answer

        try:
            answer: T = await transact(done)
        except GatewayError as error:
            if error.reason in _LOGGED and self._is_news(caller):
                await self._log_refusal(caller, deeds[-1].operation, error)
            raise
        await self._note_break_glass(caller, deeds[-1].key)
        return answer

    async def _note_break_glass(self, caller: Caller, key: KeyRecord | None) -> None:
        """Raises the alarm when, where people sign in, a key is used that is nobody's."""
        if not self._people_sign_in or key is None or key.principal_id:
            return
        now_s = self.identity.clock.monotonic()
        if now_s - self._break_glass.get(key.id, float("-inf")) < BREAK_GLASS_S:
            return
        self._break_glass[key.id] = now_s
        _LOG.warning("break glass: the key %s (%r) administers", key.id, key.name)
        try:
            await self.identity.store.change(
                lambda session: Deed(self.identity, session, caller).break_glass()
            )
        except GatewayError as error:
            # What the key was used for is done: the alarm is raised at its next use.
            del self._break_glass[key.id]
            _LOG.warning("the alarm could not be logged: %s", error.message)

    def _is_news(self, caller: Caller) -> bool:
        """Whether a refusal is logged: so many in a minute of each key, or somebody could fill the
        database with them.
        """
        minute = int(self.identity.clock.monotonic() // 60)
        if minute != self._minute:
            self._minute = minute
            self._refusals.clear()
        if len(self._refusals) >= CALLERS_MAX and caller.mac not in self._refusals:
            return False
        self._refusals[caller.mac] += 1
        return self._refusals[caller.mac] <= REFUSALS_LOGGED_MAX

    async def _log_refusal(self, caller: Caller, operation: str, error: GatewayError) -> None:
        await self.identity.store.change(
            lambda session: Deed(self.identity, session, caller).refused(operation, error)
        )

    def _gateway(self, context: Context, organization: str) -> Caller:
        return Caller(
            mac=None,
            kind=grant_pb2.KEY_KIND_UNSPECIFIED,
            organization=organization,
            address=_address(metadata_of(context)),
        )

    def _caller(self, context: Context) -> Caller:
        """Who calls. Raises INVALID_API_KEY for nobody."""
        metadata = metadata_of(context)
        address = _address(metadata)
        if OPERATOR_KEY in metadata:
            require_operator(metadata, self._operator_token.reveal())
            organization = metadata.get(ORGANIZATION_KEY, "")
            return Caller(
                mac=None,
                kind=grant_pb2.KEY_KIND_UNSPECIFIED,
                organization=organization,
                address=address,
            )
        bearer = _BEARER.fullmatch(metadata.get("authorization", ""))
        kind = apikeys.kind_of(bearer[1]) if bearer else None
        if bearer is None or kind is None:
            raise keys.invalid_key()
        mac = self.identity.mac(apikeys.digest(bearer[1]))
        return Caller(mac=mac, kind=kind, organization="", address=address)


def _address(metadata: Mapping[str, str]) -> str:
    address = metadata.get(ADDRESS_KEY, "")
    return address if _ADDRESS.fullmatch(address) else ""


def missing(what: str, param: str = "id") -> GatewayError:
    """NOT_FOUND, the same for what never was and for what is another organisation's."""
    return GatewayError(
        error_pb2.ERROR_REASON_NOT_FOUND, f"There is no such {what}: list them.", param=param
    )


def refused(param: str, rule: str) -> GatewayError:
    """INVALID_REQUEST with the field at fault."""
    return GatewayError(error_pb2.ERROR_REASON_INVALID_REQUEST, f"`{param}` {rule}.", param=param)


def conflict(message: str, param: str = "") -> GatewayError:
    """CONFLICT: it is there already, or has changed."""
    return GatewayError(error_pb2.ERROR_REASON_CONFLICT, message, param=param)
