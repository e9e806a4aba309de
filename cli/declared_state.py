"""An organisation as it is, in the form of a file, with the ids behind its names."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import UTC
from typing import Any, Final

import grpc

from cli.declared_file import METERS, Declared
from cli.limits import limits_of, numbers
from cli.operator import Operator
from cli.projects import projects
from cli.users import users
from onegate.auth.v1 import (
    data_policy_service_pb2,
    data_policy_service_pb2_grpc,
    group_service_pb2,
    group_service_pb2_grpc,
    key_policy_service_pb2,
    key_policy_service_pb2_grpc,
    key_service_pb2,
    key_service_pb2_grpc,
    page_pb2,
    project_group_service_pb2,
    project_group_service_pb2_grpc,
    project_policy_service_pb2,
    project_policy_service_pb2_grpc,
    project_service_pb2_grpc,
    project_user_service_pb2,
    project_user_service_pb2_grpc,
    rate_limit_service_pb2,
    rate_limit_service_pb2_grpc,
    role_service_pb2,
    role_service_pb2_grpc,
    service_account_service_pb2,
    service_account_service_pb2_grpc,
    user_service_pb2_grpc,
)
from onegate.auth.v1.grant_pb2 import KEY_KIND_PROJECT, RateMeter
from runtime.clock import SystemClock

_PAGE_SIZE: Final = 1_000
METER_OF: Final = {name: RateMeter.Value(f"RATE_METER_{name.upper()}") for name in METERS}
_METER_NAMES: Final = {meter: name for name, meter in METER_OF.items()}
_MODES: Final = {
    project_policy_service_pb2.MODEL_PERMISSION_MODE_ALLOW: "allow",
    project_policy_service_pb2.MODEL_PERMISSION_MODE_DENY: "deny",
}


class AmbiguousError(ValueError):
    """Two objects have the name by which a file would know them."""


class Desks:
    """Auth's administrative services."""

    def __init__(self, line: grpc.aio.Channel) -> None:
        self.users = user_service_pb2_grpc.UserServiceStub(line)
        self.roles = role_service_pb2_grpc.RoleServiceStub(line)
        self.groups = group_service_pb2_grpc.GroupServiceStub(line)
        self.projects = project_service_pb2_grpc.ProjectServiceStub(line)
        self.members = project_user_service_pb2_grpc.ProjectUserServiceStub(line)
        self.entries = project_group_service_pb2_grpc.ProjectGroupServiceStub(line)
        self.accounts = service_account_service_pb2_grpc.ServiceAccountServiceStub(line)
        self.keys = key_service_pb2_grpc.KeyServiceStub(line)
        self.models = project_policy_service_pb2_grpc.ProjectPolicyServiceStub(line)
        self.limits = rate_limit_service_pb2_grpc.RateLimitServiceStub(line)
        self.data_policies = data_policy_service_pb2_grpc.DataPolicyServiceStub(line)
        self.key_policies = key_policy_service_pb2_grpc.KeyPolicyServiceStub(line)


@dataclass(slots=True, kw_only=True)
class Ids:
    """Ids by what an object is, where, and its name; grows while a file is applied."""

    known: dict[tuple[str, str, str], str] = field(default_factory=dict)

    def put(self, what: str, place: str, name: str, object_id: str) -> None:
        """Notes an id. Raises :class:`AmbiguousError` when the name has another one."""
        if self.known.setdefault((what, place, name), object_id) != object_id:
            where = f" in {place}" if place else ""
            raise AmbiguousError(
                f"two {what}s{where} are named {name!r}, and a file knows them by their names:"
                f" rename one of {self.known[what, place, name]} and {object_id}"
            )

    def of(self, what: str, place: str, name: str) -> str:
        """The id. Raises :class:`AmbiguousError` for a name that nobody has."""
        found = self.known.get((what, place, name))
        if found is None:
            raise AmbiguousError(f"there is no {what} {name!r}{f' in {place}' if place else ''}")
        return found

    def name(self, what: str, place: str, object_id: str) -> str:
        """The name of an id; the id itself where it has none."""
        for (kind, where, name), known in self.known.items():
            if (kind, where, known) == (what, place, object_id):
                return name
        return object_id


class StateReader:
    """Reads an organisation."""

    def __init__(self, operator: Operator) -> None:
        self._operator = operator
        self._desks = Desks(operator.channel)
        self.ids = Ids()

    async def read(self) -> Declared:
        """The whole organisation, in the order and the form of a file."""
        people = sorted(await users(self._operator), key=lambda user: user.email)
        for user in people:
            self.ids.put("user", "", user.email, user.id)
        return {
            "version": 1,
            "organization": await self._level(""),
            "users": [{"email": user.email, "role": user.role} for user in people],
            "roles": await self._roles("", ""),
            "groups": await self._groups(),
            "projects": await self._projects(),
        }

    async def _pages(
        self, method: Any, request: Callable[[page_pb2.Page], Any], rows: str, cursor: str = "id"
    ) -> list[Any]:
        found: list[Any] = []
        while True:
            after = getattr(found[-1], cursor) if found else ""
            page = page_pb2.Page(size=_PAGE_SIZE, after=after)
            answer = await self._operator.call(method, request(page))
            found += getattr(answer, rows)
            if not answer.has_more:
                return found

    async def _level(self, project_id: str) -> Declared:
        """What an organisation and a project may both say."""
        permissions = await self._operator.call(
            self._desks.models.GetModelPermissions,
            project_policy_service_pb2.GetModelPermissionsRequest(project_id=project_id),
        )
        level = rate_limit_service_pb2.RateLimitLevel(project_id=project_id)
        limits = await limits_of(self._operator, level)
        policy = await self._operator.call(
            self._desks.key_policies.GetKeyPolicy,
            key_policy_service_pb2.GetKeyPolicyRequest(project_id=project_id),
        )
        data = await self._operator.call(
            self._desks.data_policies.GetDataPolicy,
            data_policy_service_pb2.GetDataPolicyRequest(project_id=project_id),
        )
        return {
            "models": {
                "mode": _MODES[permissions.permissions.mode],
                "patterns": sorted(permissions.permissions.models),
            },
            "limits": [
                {"model": limit.model, **numbers(limit)}
                for limit in sorted(limits, key=lambda limit: limit.model)
                if numbers(limit)
            ],
            "key_policy": {
                "max_lifetime_seconds": policy.policy.max_lifetime_seconds,
                "default_lifetime_seconds": policy.policy.default_lifetime_seconds,
                "networks": sorted(policy.policy.networks_allowed),
                "tags": dict(sorted(policy.policy.tags.items())),
            },
            "data_policy": _data_policy(data.settings),
        }

    async def _roles(self, place: str, project_id: str) -> list[Declared]:
        """The roles that somebody made; the others' ids are noted too."""
        found = await self._pages(
            self._desks.roles.ListRoles,
            lambda page: role_service_pb2.ListRolesRequest(project_id=project_id, page=page),
            "roles",
        )
        for role in found:
            self.ids.put("role", place, role.name, role.id)
        return [
            {
                "name": role.name,
                "description": role.description,
                "permissions": sorted(role.permissions),
            }
            for role in sorted(found, key=lambda role: str(role.name))
            if not role.predefined
        ]

    async def _groups(self) -> list[Declared]:
        found = await self._pages(
            self._desks.groups.ListGroups,
            lambda page: group_service_pb2.ListGroupsRequest(page=page),
            "groups",
        )
        declared = []
        for group in sorted(found, key=lambda group: str(group.name)):
            self.ids.put("group", "", group.name, group.id)
            declared.append(await self._group(group))
        return declared

    async def _group(self, group: group_service_pb2.Group) -> Declared:
        members = await self._pages(
            self._desks.groups.ListGroupUsers,
            lambda page: group_service_pb2.ListGroupUsersRequest(group_id=group.id, page=page),
            "users",
        )
        principal = role_service_pb2.Principal(group_id=group.id)
        held: list[Any] = []
        while True:
            after = held[-1].role.id if held else ""
            request = role_service_pb2.ListAssignedRolesRequest(
                principal=principal, page=page_pb2.Page(size=_PAGE_SIZE, after=after)
            )
            answer = await self._operator.call(self._desks.roles.ListAssignedRoles, request)
            held += answer.assigned
            if not answer.has_more:
                break
        return {
            "name": group.name,
            "members": sorted(user.email for user in members),
            "roles": sorted(assigned.role.name for assigned in held),
        }

    async def _projects(self) -> list[Declared]:
        declared = []
        found = await projects(self._operator)
        for project in sorted(found, key=lambda project: project.name):
            self.ids.put("project", "", project.name, project.id)
            place = project.name
            declared.append(
                {
                    "name": place,
                    "residency": project.residency,
                    **await self._level(project.id),
                    "roles": await self._roles(place, project.id),
                    "users": await self._members(project.id),
                    "groups": await self._entries(place, project.id),
                    "service_accounts": await self._accounts(place, project.id),
                    "keys": await self._keys(place, project.id),
                }
            )
        return declared

    async def _members(self, project_id: str) -> list[Declared]:
        found = await self._pages(
            self._desks.members.ListProjectUsers,
            lambda page: project_user_service_pb2.ListProjectUsersRequest(
                project_id=project_id, page=page
            ),
            "users",
            "user_id",
        )
        return _by("email", ({"email": user.email, "role": user.role} for user in found))

    async def _entries(self, place: str, project_id: str) -> list[Declared]:
        found = await self._pages(
            self._desks.entries.ListProjectGroups,
            lambda page: project_group_service_pb2.ListProjectGroupsRequest(
                project_id=project_id, page=page
            ),
            "groups",
            "group_id",
        )
        return _by(
            "name",
            (
                {"name": entry.group_name, "role": self.ids.name("role", place, entry.role_id)}
                for entry in found
            ),
        )

    async def _accounts(self, place: str, project_id: str) -> list[Declared]:
        found = await self._pages(
            self._desks.accounts.ListServiceAccounts,
            lambda page: service_account_service_pb2.ListServiceAccountsRequest(
                project_id=project_id, page=page
            ),
            "service_accounts",
        )
        for account in found:
            self.ids.put("service account", place, account.name, account.id)
        return _by("name", ({"name": account.name, "role": account.role} for account in found))

    async def _keys(self, place: str, project_id: str) -> list[Declared]:
        found: list[key_service_pb2.Key] = []
        request = key_service_pb2.ListKeysRequest(
            project_id=project_id, kind=KEY_KIND_PROJECT, page_size=_PAGE_SIZE
        )
        while True:
            page = await self._operator.call(self._desks.keys.ListKeys, request)
            found += page.keys
            request.page_token = page.next_page_token
            if not page.next_page_token:
                break
        now = SystemClock().now()
        living = [
            key
            for key in found
            if not key.HasField("expires_at") or key.expires_at.ToDatetime(UTC) > now
        ]
        for key in living:
            self.ids.put("key", place, key.name, key.id)
        return _by("name", map(key_fields, living))


def key_fields(key: key_service_pb2.Key) -> Declared:
    """A key as a file has it: what it may, not its secret and not when that ends."""
    limits = [
        {
            "meter": _METER_NAMES[limit.meter],
            "amount": limit.amount,
            **({"window_seconds": limit.window_s} if limit.window_s else {}),
            **({"model": limit.model} if limit.model else {}),
        }
        for limit in key.rate_limits
    ]
    return {
        "name": key.name,
        "service_account": key.owner.name if key.HasField("owner") else "",
        "models": sorted(key.models_allowed),
        "denied_models": sorted(key.models_denied),
        "networks": sorted(key.networks_allowed),
        "scopes": sorted(key.scopes),
        "tags": dict(sorted(key.tags.items())),
        "limits": sorted(limits, key=limit_identity),
        "disabled": key.HasField("disabled_at"),
    }


def limit_identity(limit: Declared) -> list[str]:
    """What tells a key's limits apart, in the order of a file."""
    return [str(limit.get(name) or "") for name in ("meter", "window_seconds", "model")]


def _by(name: str, rows: Iterable[Declared]) -> list[Declared]:
    return sorted(rows, key=lambda row: str(row[name]))


def _data_policy(settings: data_policy_service_pb2.DataPolicySettings) -> Declared:
    """What a level demands of whoever is given its data; only what is said."""
    declared = []
    for row in sorted(settings.demands, key=lambda row: row.data_class):
        said = row.demands
        found: Declared = {"class": row.data_class}
        for name, values in (
            ("regions", said.regions),
            ("storage_regions", said.storage_regions),
        ):
            if values:
                found[name] = sorted(values)
        if said.HasField("retention_days_max"):
            found["retention_days_max"] = said.retention_days_max
        if said.no_training:
            found["no_training"] = True
        declared.append(found)
    return {"class_min": settings.class_min, "demands": declared}
