"""Who may administer what: permissions, the roles that come with the gateway, and one table of
operations. Pure.

Nothing is allowed that :data:`OPERATIONS` does not name, and nobody gives what they have not got:
:meth:`Rights.check_gives` stands before every call that could widen somebody's rights.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Final

from onegate.common.v1 import error_pb2
from runtime.errors import GatewayError

_PROJECT_RESOURCES: Final = (
    "projects",
    "api_keys",
    "service_accounts",
    "rate_limits",
    "model_permissions",
    "data_retention",
    "users",
    "groups",
    "roles",
    "spend_limit",
    "spend_alerts",
)
_ORGANIZATION_RESOURCES: Final = (*_PROJECT_RESOURCES, "admin_api_keys", "invites", "audit_logs")


def _named(resources: Iterable[str], *actions: str) -> frozenset[str]:
    return frozenset(f"api.{resource}.{action}" for resource in resources for action in actions)


PROJECT_PERMISSIONS: Final = _named(_PROJECT_RESOURCES, "read", "write") | {"api.usage.read"}
"""What may be permitted in one project."""

PERMISSIONS: Final = PROJECT_PERMISSIONS | (
    _named(_ORGANIZATION_RESOURCES, "read", "write") - {"api.audit_logs.write"}
)
"""What may be permitted in a whole organisation, each of its projects included."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PredefinedRole:
    """A role that comes with the gateway. ``word`` is what OpenAI's API calls it."""

    id: str
    word: str
    permissions: frozenset[str]
    description: str


ORGANIZATION_ROLES: Final[Mapping[str, PredefinedRole]] = {
    role.word: role
    for role in (
        PredefinedRole(
            id="role_organization_owner",
            word="owner",
            permissions=PERMISSIONS,
            description="Administers everything in the organisation.",
        ),
        PredefinedRole(
            id="role_organization_reader",
            word="reader",
            permissions=_named(("projects", "users", "groups", "roles"), "read"),
            description="Sees projects and people.",
        ),
    )
}
"""By OpenAI's word, which is what a user's ``role`` holds."""

PROJECT_ROLES: Final[Mapping[str, PredefinedRole]] = {
    role.word: role
    for role in (
        PredefinedRole(
            id="role_project_owner",
            word="owner",
            permissions=PROJECT_PERMISSIONS,
            description="Administers everything in the project.",
        ),
        PredefinedRole(
            id="role_project_member",
            word="member",
            permissions=_named((*_PROJECT_RESOURCES, "usage"), "read"),
            description="Sees everything in the project.",
        ),
    )
}
"""By OpenAI's word, which is what a project user's ``role`` holds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """What an operation asks of its caller.

    Args:
        permission: which permission; empty for what the operator alone may do.
        event: what the audit log calls it; empty for what changes nothing.
    """

    permission: str
    event: str = ""


def _family(resource: str, reads: str, **events: str) -> dict[str, Operation]:
    """The operations of one resource: those that read, and what each other one is logged as."""
    permission = f"api.{resource.rpartition('.')[2]}"
    return {
        **{
            f"{resource}.{name}": Operation(permission=f"{permission}.read")
            for name in reads.split()
        },
        **{
            f"{resource}.{name}": Operation(permission=f"{permission}.write", event=event)
            for name, event in events.items()
        },
    }


def _borrowed(operations: Mapping[str, Operation], resource: str) -> dict[str, Operation]:
    """The same operations under another resource's permissions."""
    return {
        name: Operation(
            permission=f"api.{resource}.{operation.permission.rpartition('.')[2]}",
            event=operation.event,
        )
        for name, operation in operations.items()
    }


_ASSIGNMENTS: Final = {"assign": "role.assignment.created", "unassign": "role.assignment.deleted"}

_OWN: Final = dict.fromkeys(("create", "update", "delete"), "organization.updated")
_PROJECT_S: Final = dict.fromkeys(("create", "update", "delete"), "project.updated")
"""What is a part of the organisation or of a project has no events of its own in OpenAI's log."""

OPERATIONS: Final[Mapping[str, Operation]] = MappingProxyType(
    {
        "organizations.create": Operation(permission="", event="organization.created"),
        "organizations.list": Operation(permission=""),
        "audit_logs.verify": Operation(permission=""),
        "sign_in.begin": Operation(permission=""),
        "sign_in.finish": Operation(permission="", event="login.succeeded"),
        "sign_in.who": Operation(permission=""),
        "sign_in.out": Operation(permission="", event="logout.succeeded"),
        "break_glass": Operation(permission="", event="break_glass.used"),
        # A provider's secret is the operator's: no organisation's key reaches it.
        "providers.list": Operation(permission=""),
        "providers.add": Operation(permission="", event="provider.created"),
        "providers.update": Operation(permission="", event="provider.updated"),
        "providers.move": Operation(permission="", event="provider.updated"),
        "providers.remove": Operation(permission="", event="provider.deleted"),
        "providers.credentials.add": Operation(permission="", event="provider.credential.created"),
        "providers.credentials.rotate": Operation(
            permission="", event="provider.credential.updated"
        ),
        "providers.credentials.remove": Operation(
            permission="", event="provider.credential.deleted"
        ),
        "providers.credentials.rekey": Operation(
            permission="", event="provider.credentials.rekeyed"
        ),
        **_family("audit_logs", "list"),
        **_family("usage", "read"),
        **_family(
            "projects",
            "list get",
            create="project.created",
            update="project.updated",
            archive="project.archived",
        ),
        **_family(
            "api_keys",
            "list get",
            create="api_key.created",
            update="api_key.updated",
            rotate="api_key.updated",
            disable="api_key.updated",
            enable="api_key.updated",
            revoke="api_key.deleted",
        ),
        **_family(
            "admin_api_keys",
            "list get",
            create="tenant.admin_api_key.created",
            update="tenant.admin_api_key.updated",
            rotate="tenant.admin_api_key.updated",
            disable="tenant.admin_api_key.updated",
            enable="tenant.admin_api_key.updated",
            revoke="tenant.admin_api_key.deleted",
        ),
        **_family(
            "service_accounts",
            "list get",
            create="service_account.created",
            update="service_account.updated",
            delete="service_account.deleted",
        ),
        **_borrowed(
            _family("service_accounts.api_keys", "", create="api_key.created"), "service_accounts"
        ),
        **_family("rate_limits", "list", update="rate_limit.updated", delete="rate_limit.deleted"),
        **_family(
            "organization.rate_limits",
            "list",
            update="rate_limit.updated",
            delete="rate_limit.deleted",
        ),
        **_borrowed(
            _family(
                "api_keys.rate_limits", "list", update="api_key.updated", delete="api_key.updated"
            ),
            "api_keys",
        ),
        **_family("model_permissions", "get", update="project.updated", delete="project.updated"),
        **_family(
            "organization.model_permissions",
            "get",
            update="organization.updated",
            delete="organization.updated",
        ),
        **_borrowed(_family("key_policy", "get", update="organization.updated"), "projects"),
        **_borrowed(_family("projects.key_policy", "get", update="project.updated"), "projects"),
        **_family("data_retention", "get", update="organization.updated"),
        **_family("projects.data_retention", "get", update="project.updated"),
        # Who sets how long data may be kept sets what else holds for it.
        **_borrowed(
            {
                **_family("data_policy", "get", update="organization.updated"),
                **_family("projects.data_policy", "get", update="project.updated"),
                **_family("api_keys.data_policy", "get", update="api_key.updated"),
            },
            "data_retention",
        ),
        **_family(
            "spend_limit", "get", update="organization.updated", delete="organization.updated"
        ),
        **_family(
            "projects.spend_limit", "get", update="project.updated", delete="project.updated"
        ),
        **_family("spend_alerts", "list get", **_OWN),
        **_family("projects.spend_alerts", "list get", **_PROJECT_S),
        **_family(
            "users",
            "list get",
            create="user.added",
            update="user.updated",
            delete="user.deleted",
        ),
        **_family(
            "projects.users",
            "list get",
            add="user.added",
            update="user.updated",
            remove="user.deleted",
        ),
        **_family("invites", "list get", create="invite.sent", delete="invite.deleted"),
        **_family(
            "groups",
            "list get",
            create="group.created",
            update="group.updated",
            delete="group.deleted",
        ),
        **_borrowed(
            _family("groups.users", "list get", add="group.updated", remove="group.updated"),
            "groups",
        ),
        **_family("projects.groups", "list get", add="group.updated", remove="group.updated"),
        **_family(
            "roles",
            "list get",
            create="role.created",
            update="role.updated",
            delete="role.deleted",
        ),
        **_borrowed(_family("roles.assigned", "list get", **_ASSIGNMENTS), "roles"),
    }
)
"""Every administrative operation. The edge's routes and auth's methods name them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rights:
    """What somebody may do.

    Args:
        organization: permissions that hold in the organisation and in all of its projects.
        projects: further permissions, by project.
        is_operator: whether this is the operator of the gateway, who may do everything.
    """

    organization: frozenset[str] = frozenset()
    projects: Mapping[str, frozenset[str]] = field(default_factory=lambda: MappingProxyType({}))
    is_operator: bool = False

    def at(self, project_id: str) -> frozenset[str]:
        """The permissions that hold in a project, or, with an empty id, in the organisation."""
        if not project_id:
            return self.organization
        return self.organization | self.projects.get(project_id, frozenset())

    def may(self, operation: str, project_id: str = "") -> bool:
        """Whether an operation is allowed; what is not in the table is not."""
        asked = OPERATIONS.get(operation)
        if asked is None:
            return False
        if self.is_operator:
            return True
        return asked.permission in self.at(project_id)

    def check(self, operation: str, project_id: str = "") -> None:
        """Raises SCOPE_MISSING for what is not allowed."""
        if not self.may(operation, project_id):
            asked = OPERATIONS.get(operation)
            needed = asked.permission if asked is not None and asked.permission else "the operator"
            raise GatewayError(
                error_pb2.ERROR_REASON_SCOPE_MISSING,
                f"This needs {needed}, which your key does not have"
                f"{f' in {project_id}' if project_id else ''}: ask an owner of the organisation.",
            )

    def check_gives(self, permissions: Iterable[str], project_id: str = "") -> None:
        """Raises SCOPE_MISSING when somebody would be given what the caller has not got."""
        if self.is_operator:
            return
        missing = sorted(set(permissions) - self.at(project_id))
        if missing:
            raise GatewayError(
                error_pb2.ERROR_REASON_SCOPE_MISSING,
                f"You cannot give what you do not have yourself: {', '.join(missing[:5])}.",
            )

    def check_within(self, permissions: Iterable[str], held: Iterable[str]) -> None:
        """Raises SCOPE_MISSING unless all ``permissions`` are among those ``held``."""
        Rights(organization=frozenset(held), is_operator=self.is_operator).check_gives(permissions)

    def check_covers(self, other: "Rights") -> None:
        """Raises SCOPE_MISSING when the other may do something that these do not allow."""
        self.check_gives(other.organization)
        for project_id, permissions in other.projects.items():
            self.check_gives(permissions, project_id)

    def narrowed(self, permissions: Iterable[str]) -> "Rights":
        """The rights of a key that says what it may do at most; an empty list says nothing."""
        kept = frozenset(permissions)
        if not kept:
            return self
        return Rights(
            organization=self.organization & kept,
            projects={place: held & kept for place, held in self.projects.items()},
        )


OPERATOR: Final = Rights(organization=PERMISSIONS, is_operator=True)
OWNER: Final = Rights(organization=PERMISSIONS)
"""The rights of an organisation's own key."""


def checked_permissions(names: Iterable[str], *, project: bool, param: str) -> tuple[str, ...]:
    """Known permissions, sorted, each once. Raises INVALID_REQUEST."""
    known = PROJECT_PERMISSIONS if project else PERMISSIONS
    found = frozenset(names)
    unknown = sorted(found - known)
    if unknown:
        raise GatewayError(
            error_pb2.ERROR_REASON_INVALID_REQUEST,
            f"`{param}` has no such permission here: {unknown[0][:80]!r}. They are:"
            f" {', '.join(sorted(known))}.",
            param=param,
        )
    return tuple(sorted(found))
