"""Carries out the steps by which an organisation becomes what a file says."""

from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final

from cli.declared_file import Declared
from cli.declared_plan import Step
from cli.declared_providers import ProviderActs
from cli.declared_state import METER_OF, Desks, Ids
from cli.limits import NUMBERS
from cli.operator import Operator
from onegate.auth.v1 import (
    data_policy_pb2,
    data_policy_service_pb2,
    group_service_pb2,
    key_policy_service_pb2,
    key_service_pb2,
    project_group_service_pb2,
    project_policy_service_pb2,
    project_service_pb2,
    project_user_service_pb2,
    rate_limit_service_pb2,
    role_service_pb2,
    service_account_service_pb2,
    user_service_pb2,
)
from onegate.auth.v1.grant_pb2 import KEY_KIND_PROJECT, RateLimit
from runtime.secrets import Secret

_MODES: Final = {
    "allow": project_policy_service_pb2.MODEL_PERMISSION_MODE_ALLOW,
    "deny": project_policy_service_pb2.MODEL_PERMISSION_MODE_DENY,
}


class Applier:
    """Does steps, one call or a few each.

    Attributes:
        secrets: of keys that were made, by project and name.
    """

    def __init__(self, operator: Operator, ids: Ids, secrets: Mapping[str, Secret]) -> None:
        """``secrets`` are those of providers' credentials, by ``provider#credential``."""
        self._operator = operator
        self._desks = Desks(operator.channel)
        self._ids = ids
        self.secrets: dict[tuple[str, str], str] = {}
        self._acts: Mapping[str, Callable[[Step], Awaitable[None]]] = {
            **ProviderActs(operator, ids, secrets).acts,
            "user.create": self._create_user,
            "user.role": self._user_role,
            "user.delete": self._delete_user,
            "role.create": self._create_role,
            "role.update": self._update_role,
            "role.delete": self._delete_role,
            "group.create": self._create_group,
            "group.members": self._group_members,
            "group.roles": self._group_roles,
            "group.delete": self._delete_group,
            "models.set": self._set_models,
            "limits.set": self._set_limits,
            "key_policy.set": self._set_key_policy,
            "data_policy.set": self._set_data_policy,
            "project.create": self._create_project,
            "project.delete": self._archive_project,
            "project_user.create": self._add_member,
            "project_user.role": self._member_role,
            "project_user.delete": self._remove_member,
            "project_group.create": self._let_in,
            "project_group.role": self._entry_role,
            "project_group.delete": self._keep_out,
            "service_account.create": self._create_account,
            "service_account.role": self._account_role,
            "service_account.delete": self._delete_account,
            "key.create": self._create_key,
            "key.update": self._update_key,
            "key.disabled": self._switch_key,
            "key.delete": self._revoke_key,
        }

    async def do(self, step: Step) -> None:
        """Carries out one step. Raises ``GatewayError``, ``AmbiguousError``."""
        await self._acts[step.does](step)

    async def _ask(self, method: Any, request: Any) -> Any:
        return await self._operator.call(method, request)

    def _project(self, place: str) -> str:
        return self._ids.of("project", "", place) if place else ""

    async def _create_user(self, step: Step) -> None:
        request = user_service_pb2.CreateUserRequest(email=step.name, role=step.after["role"])
        made = await self._ask(self._desks.users.CreateUser, request)
        self._ids.put("user", "", step.name, made.user.id)

    async def _user_role(self, step: Step) -> None:
        user_id = self._ids.of("user", "", step.name)
        request = user_service_pb2.UpdateUserRequest(id=user_id, role=step.after)
        await self._ask(self._desks.users.UpdateUser, request)

    async def _delete_user(self, step: Step) -> None:
        request = user_service_pb2.DeleteUserRequest(id=self._ids.of("user", "", step.name))
        await self._ask(self._desks.users.DeleteUser, request)

    async def _create_role(self, step: Step) -> None:
        request = role_service_pb2.CreateRoleRequest(
            project_id=self._project(step.place),
            name=step.name,
            description=step.after["description"],
            permissions=step.after["permissions"],
        )
        made = await self._ask(self._desks.roles.CreateRole, request)
        self._ids.put("role", step.place, step.name, made.role.id)

    async def _update_role(self, step: Step) -> None:
        request = role_service_pb2.UpdateRoleRequest(
            project_id=self._project(step.place), id=self._ids.of("role", step.place, step.name)
        )
        if "description" in step.after:
            request.description = step.after["description"]
        if "permissions" in step.after:
            names = role_service_pb2.RolePermissions(names=step.after["permissions"])
            request.permissions.CopyFrom(names)
        await self._ask(self._desks.roles.UpdateRole, request)

    async def _delete_role(self, step: Step) -> None:
        request = role_service_pb2.DeleteRoleRequest(
            project_id=self._project(step.place), id=self._ids.of("role", step.place, step.name)
        )
        await self._ask(self._desks.roles.DeleteRole, request)

    async def _create_group(self, step: Step) -> None:
        request = group_service_pb2.CreateGroupRequest(name=step.name)
        made = await self._ask(self._desks.groups.CreateGroup, request)
        self._ids.put("group", "", step.name, made.group.id)

    async def _group_members(self, step: Step) -> None:
        group_id = self._ids.of("group", "", step.name)
        for email in sorted({*step.after} - {*step.before}):
            user_id = self._ids.of("user", "", email)
            add = group_service_pb2.AddGroupUserRequest(group_id=group_id, user_id=user_id)
            await self._ask(self._desks.groups.AddGroupUser, add)
        for email in sorted({*step.before} - {*step.after}):
            user_id = self._ids.of("user", "", email)
            gone = group_service_pb2.RemoveGroupUserRequest(group_id=group_id, user_id=user_id)
            await self._ask(self._desks.groups.RemoveGroupUser, gone)

    async def _group_roles(self, step: Step) -> None:
        group_id = self._ids.of("group", "", step.name)
        principal = role_service_pb2.Principal(group_id=group_id)
        for name in sorted({*step.after} - {*step.before}):
            role_id = self._ids.of("role", "", name)
            add = role_service_pb2.AssignRoleRequest(principal=principal, role_id=role_id)
            await self._ask(self._desks.roles.AssignRole, add)
        for name in sorted({*step.before} - {*step.after}):
            role_id = self._ids.of("role", "", name)
            gone = role_service_pb2.UnassignRoleRequest(principal=principal, role_id=role_id)
            await self._ask(self._desks.roles.UnassignRole, gone)

    async def _delete_group(self, step: Step) -> None:
        request = group_service_pb2.DeleteGroupRequest(id=self._ids.of("group", "", step.name))
        await self._ask(self._desks.groups.DeleteGroup, request)

    async def _set_models(self, step: Step) -> None:
        permissions = project_policy_service_pb2.ModelPermissions(
            mode=_MODES[step.after["mode"]], models=step.after["patterns"]
        )
        request = project_policy_service_pb2.UpdateModelPermissionsRequest(
            project_id=self._project(step.place), permissions=permissions
        )
        await self._ask(self._desks.models.UpdateModelPermissions, request)

    async def _set_limits(self, step: Step) -> None:
        level = rate_limit_service_pb2.RateLimitLevel(project_id=self._project(step.place))
        limit_id = f"rl-{step.name}"
        dropped = [name for name in NUMBERS if name in step.before and name not in step.after]
        if dropped:
            unset = rate_limit_service_pb2.UnsetRateLimitRequest(
                level=level, id=limit_id, fields=dropped
            )
            await self._ask(self._desks.limits.UnsetRateLimit, unset)
        if step.after:
            limit = project_policy_service_pb2.ProjectRateLimit(id=limit_id, **step.after)
            request = rate_limit_service_pb2.SetRateLimitRequest(level=level, rate_limit=limit)
            await self._ask(self._desks.limits.SetRateLimit, request)

    async def _set_key_policy(self, step: Step) -> None:
        said = step.after
        request = key_policy_service_pb2.UpdateKeyPolicyRequest(
            project_id=self._project(step.place),
            max_lifetime_seconds=said["max_lifetime_seconds"],
            default_lifetime_seconds=said["default_lifetime_seconds"],
            networks_allowed=key_policy_service_pb2.PolicyNetworks(values=said["networks"]),
            tags=key_policy_service_pb2.PolicyTags(values=said["tags"]),
        )
        await self._ask(self._desks.key_policies.UpdateKeyPolicy, request)

    async def _set_data_policy(self, step: Step) -> None:
        demands = [
            data_policy_service_pb2.ClassDemands(
                data_class=said["class"],
                demands=data_policy_pb2.DataDemands(
                    regions=said.get("regions", ()),
                    storage_regions=said.get("storage_regions", ()),
                    retention_days_max=said.get("retention_days_max"),
                    no_training=said.get("no_training", False),
                ),
            )
            for said in step.after["demands"]
        ]
        settings = data_policy_service_pb2.DataPolicySettings(
            class_min=step.after["class_min"], demands=demands
        )
        request = data_policy_service_pb2.UpdateDataPolicyRequest(
            project_id=self._project(step.place), settings=settings
        )
        await self._ask(self._desks.data_policies.UpdateDataPolicy, request)

    async def _create_project(self, step: Step) -> None:
        request = project_service_pb2.CreateProjectRequest(name=step.place, residency=step.after)
        made = await self._ask(self._desks.projects.CreateProject, request)
        self._ids.put("project", "", step.place, made.project.id)
        roles = role_service_pb2.ListRolesRequest(project_id=made.project.id)
        for role in (await self._ask(self._desks.roles.ListRoles, roles)).roles:
            self._ids.put("role", step.place, role.name, role.id)

    async def _archive_project(self, step: Step) -> None:
        request = project_service_pb2.ArchiveProjectRequest(id=self._project(step.place))
        await self._ask(self._desks.projects.ArchiveProject, request)

    async def _add_member(self, step: Step) -> None:
        request = project_user_service_pb2.AddProjectUserRequest(
            project_id=self._project(step.place),
            user_id=self._ids.of("user", "", step.name),
            role=step.after["role"],
        )
        await self._ask(self._desks.members.AddProjectUser, request)

    async def _member_role(self, step: Step) -> None:
        request = project_user_service_pb2.UpdateProjectUserRequest(
            project_id=self._project(step.place),
            user_id=self._ids.of("user", "", step.name),
            role=step.after,
        )
        await self._ask(self._desks.members.UpdateProjectUser, request)

    async def _remove_member(self, step: Step) -> None:
        request = project_user_service_pb2.RemoveProjectUserRequest(
            project_id=self._project(step.place), user_id=self._ids.of("user", "", step.name)
        )
        await self._ask(self._desks.members.RemoveProjectUser, request)

    async def _enter(self, step: Step, role: str) -> None:
        request = project_group_service_pb2.AddProjectGroupRequest(
            project_id=self._project(step.place),
            group_id=self._ids.of("group", "", step.name),
            role=self._ids.of("role", step.place, role),
        )
        await self._ask(self._desks.entries.AddProjectGroup, request)

    async def _let_in(self, step: Step) -> None:
        await self._enter(step, step.after["role"])

    async def _entry_role(self, step: Step) -> None:
        await self._keep_out(step)
        await self._enter(step, step.after)

    async def _keep_out(self, step: Step) -> None:
        request = project_group_service_pb2.RemoveProjectGroupRequest(
            project_id=self._project(step.place), group_id=self._ids.of("group", "", step.name)
        )
        await self._ask(self._desks.entries.RemoveProjectGroup, request)

    async def _create_account(self, step: Step) -> None:
        request = service_account_service_pb2.CreateServiceAccountRequest(
            project_id=self._project(step.place), name=step.name, account_only=True
        )
        made = await self._ask(self._desks.accounts.CreateServiceAccount, request)
        self._ids.put("service account", step.place, step.name, made.service_account.id)
        if step.after["role"] != made.service_account.role:
            await self._set_account_role(step, step.after["role"])

    async def _account_role(self, step: Step) -> None:
        await self._set_account_role(step, step.after)

    async def _set_account_role(self, step: Step, role: str) -> None:
        request = service_account_service_pb2.UpdateServiceAccountRequest(
            project_id=self._project(step.place),
            id=self._ids.of("service account", step.place, step.name),
            role=role,
        )
        await self._ask(self._desks.accounts.UpdateServiceAccount, request)

    async def _delete_account(self, step: Step) -> None:
        request = service_account_service_pb2.DeleteServiceAccountRequest(
            project_id=self._project(step.place),
            id=self._ids.of("service account", step.place, step.name),
        )
        await self._ask(self._desks.accounts.DeleteServiceAccount, request)

    async def _create_key(self, step: Step) -> None:
        said = step.after
        project_id = self._project(step.place)
        update = _key_update("", said)
        if said["service_account"]:
            account_id = self._ids.of("service account", step.place, said["service_account"])
            own = service_account_service_pb2.CreateServiceAccountKeyRequest(
                project_id=project_id, service_account_id=account_id, name=step.name
            )
            made = await self._ask(self._desks.accounts.CreateServiceAccountKey, own)
            update.id = made.key.id
            await self._ask(self._desks.keys.UpdateKey, update)
        else:
            request = key_service_pb2.CreateKeyRequest(
                name=step.name,
                kind=KEY_KIND_PROJECT,
                project_id=project_id,
                models_allowed=update.models_allowed.values,
                models_denied=update.models_denied.values,
                networks_allowed=update.networks_allowed.values,
                scopes=update.scopes.names,
                tags=update.tags.values,
                rate_limits=update.rate_limits.values,
            )
            made = await self._ask(self._desks.keys.CreateKey, request)
        self.secrets[step.place, step.name] = made.value
        self._ids.put("key", step.place, step.name, made.key.id)

    async def _update_key(self, step: Step) -> None:
        key_id = self._ids.of("key", step.place, step.name)
        await self._ask(self._desks.keys.UpdateKey, _key_update(key_id, step.after))

    async def _switch_key(self, step: Step) -> None:
        key_id = self._ids.of("key", step.place, step.name)
        if step.after:
            off = key_service_pb2.DisableKeyRequest(id=key_id)
            await self._ask(self._desks.keys.DisableKey, off)
        else:
            on = key_service_pb2.EnableKeyRequest(id=key_id)
            await self._ask(self._desks.keys.EnableKey, on)

    async def _revoke_key(self, step: Step) -> None:
        request = key_service_pb2.RevokeKeyRequest(id=self._ids.of("key", step.place, step.name))
        await self._ask(self._desks.keys.RevokeKey, request)


def _key_update(key_id: str, said: Declared) -> key_service_pb2.UpdateKeyRequest:
    """What a file says of a key as a change of it."""
    request = key_service_pb2.UpdateKeyRequest(id=key_id)
    for name, field in (
        ("models", request.models_allowed),
        ("denied_models", request.models_denied),
        ("networks", request.networks_allowed),
    ):
        if name in said:
            field.CopyFrom(key_service_pb2.KeyTexts(values=said[name]))
    if "scopes" in said:
        request.scopes.CopyFrom(key_service_pb2.KeyScopes(names=said["scopes"]))
    if "tags" in said:
        request.tags.CopyFrom(key_service_pb2.KeyTags(values=said["tags"]))
    if "limits" in said:
        limits = [
            RateLimit(
                meter=METER_OF[limit["meter"]],
                amount=limit.get("amount", 0),
                window_s=limit.get("window_seconds", 0),
                model=limit.get("model", ""),
            )
            for limit in said["limits"]
        ]
        request.rate_limits.CopyFrom(key_service_pb2.KeyRateLimits(values=limits))
    return request
