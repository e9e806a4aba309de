"""Whatever somebody with few rights tries, in whatever order, they end with no more than before."""

import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from onegate.auth.v1 import (
    grant_pb2,
    group_service_pb2,
    group_service_pb2_grpc,
    invite_service_pb2,
    invite_service_pb2_grpc,
    key_service_pb2,
    project_group_service_pb2,
    project_group_service_pb2_grpc,
    project_service_pb2,
    project_user_service_pb2,
    project_user_service_pb2_grpc,
    role_service_pb2,
    role_service_pb2_grpc,
    user_service_pb2,
    user_service_pb2_grpc,
)
from onegate.common.v1 import error_pb2
from runtime.errors import GatewayError
from runtime.rpc import unary
from services.auth import key_rows, rights_rows
from services.auth.permissions import (
    ORGANIZATION_ROLES,
    PERMISSIONS,
    PROJECT_PERMISSIONS,
    PROJECT_ROLES,
    Rights,
)
from tests.services.auth.serving import OPERATOR, Auth, auth, bearer

pytestmark = pytest.mark.anyio

TRIES = 250
Attempt = tuple[Any, Any]
Secrets = key_service_pb2.CreateKeyResponse | key_service_pb2.RotateKeyResponse


@dataclass
class World:
    """An organisation full of people, groups and roles, and who is in it."""

    at: Auth
    dice: random.Random
    users: list[str] = field(default_factory=list)
    groups: list[str] = field(default_factory=list)
    roles: list[tuple[str, str]] = field(default_factory=list)
    projects: list[str] = field(default_factory=list)
    keys: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        line = self.at.channel
        self.user_calls = user_service_pb2_grpc.UserServiceStub(line)
        self.group_calls = group_service_pb2_grpc.GroupServiceStub(line)
        self.role_calls = role_service_pb2_grpc.RoleServiceStub(line)
        self.invite_calls = invite_service_pb2_grpc.InviteServiceStub(line)
        self.member_calls = project_user_service_pb2_grpc.ProjectUserServiceStub(line)
        self.entry_calls = project_group_service_pb2_grpc.ProjectGroupServiceStub(line)

    async def operate(self, method: Any, request: Any) -> Any:
        """What the operator does."""
        return await unary(method, request, timeout_s=5, metadata=OPERATOR)

    async def populate(self) -> None:
        """Makes everything that somebody could use to rise."""
        for name in ("one", "two"):
            request = project_service_pb2.CreateProjectRequest(name=name)
            made = await self.operate(self.at.projects.CreateProject, request)
            self.projects.append(made.project.id)
        for number in range(4):
            user = user_service_pb2.CreateUserRequest(
                email=f"u{number}@example.com", role="owner" if number == 3 else "reader"
            )
            self.users.append((await self.operate(self.user_calls.CreateUser, user)).user.id)
        for place in ("", *self.projects):
            known = sorted(PROJECT_PERMISSIONS if place else PERMISSIONS)
            for number in range(3):
                role = role_service_pb2.CreateRoleRequest(
                    project_id=place, name=f"r{number}", permissions=self.dice.sample(known, 4)
                )
                role_id = (await self.operate(self.role_calls.CreateRole, role)).role.id
                self.roles.append((place, role_id))
            words = PROJECT_ROLES if place else ORGANIZATION_ROLES
            self.roles += [(place, role.id) for role in words.values()]
        for number in range(3):
            group = group_service_pb2.CreateGroupRequest(name=f"g{number}")
            self.groups.append((await self.operate(self.group_calls.CreateGroup, group)).group.id)
            place, role_id = self.dice.choice(self.roles)
            await self.operate(
                self.role_calls.AssignRole,
                role_service_pb2.AssignRoleRequest(
                    project_id=place,
                    principal=role_service_pb2.Principal(group_id=self.groups[-1]),
                    role_id=role_id,
                ),
            )

    async def climber(self) -> tuple[str, str]:
        """A user with some rights to give rights, and a key of theirs."""
        await self.operate(
            self.role_calls.AssignRole,
            role_service_pb2.AssignRoleRequest(
                principal=role_service_pb2.Principal(user_id=self.users[0]),
                role_id=(await self._power()).id,
            ),
        )
        request = key_service_pb2.CreateKeyRequest(
            name="climber", kind=grant_pb2.KEY_KIND_ADMIN, owner_id=self.users[0]
        )
        made = await self.operate(self.at.keys.CreateKey, request)
        for owner_id in ("", self.users[3]):
            # The organisation's own key and an owner's: whoever got hold of them would rise.
            other = key_service_pb2.CreateKeyRequest(
                name="other", kind=grant_pb2.KEY_KIND_ADMIN, owner_id=owner_id
            )
            self.keys.append((await self.operate(self.at.keys.CreateKey, other)).key.id)
        self.keys.append(made.key.id)
        return made.value, made.key.id

    async def _power(self) -> role_service_pb2.Role:
        """All the rights that change people's rights, and a few by chance."""
        names = ("users", "groups", "roles", "invites", "admin_api_keys")
        powers = [f"api.{name}.write" for name in names if self.dice.random() < 0.8]
        powers += self.dice.sample(sorted(PERMISSIONS), 2)
        role = role_service_pb2.CreateRoleRequest(name="power", permissions=powers)
        made: role_service_pb2.Role = (await self.operate(self.role_calls.CreateRole, role)).role
        return made

    def attempt(self) -> Attempt:
        """One call that could change somebody's rights, with arguments by chance."""
        tries: list[Callable[[], Attempt]] = [
            self._update_user,
            self._create_user,
            self._enter_group,
            self._assign,
            self._update_role,
            self._create_role,
            self._enter_project,
            self._let_group_in,
            self._mint,
            self._rotate,
            self._update_key,
            self._enable,
            self._invite,
        ]
        return self.dice.choice(tries)()

    def _user(self) -> str:
        # Mostly themselves.
        return self.users[0] if self.dice.random() < 0.6 else self.dice.choice(self.users)

    def _principal(self) -> role_service_pb2.Principal:
        if self.dice.random() < 0.5:
            return role_service_pb2.Principal(group_id=self.dice.choice(self.groups))
        return role_service_pb2.Principal(user_id=self._user())

    def _permissions(self) -> list[str]:
        return self.dice.sample(sorted(PERMISSIONS), self.dice.randint(1, 4))

    def _update_user(self) -> Attempt:
        request = user_service_pb2.UpdateUserRequest(id=self._user())
        if self.dice.random() < 0.5:
            request.role = self.dice.choice(["owner", "reader"])
        else:
            request.role_id = self.dice.choice(self.roles)[1]
        return self.user_calls.UpdateUser, request

    def _create_user(self) -> Attempt:
        email = f"n{self.dice.randrange(20)}@example.com"
        role = self.dice.choice(["", "owner", "reader"])
        return self.user_calls.CreateUser, user_service_pb2.CreateUserRequest(
            email=email, role=role
        )

    def _enter_group(self) -> Attempt:
        return self.group_calls.AddGroupUser, group_service_pb2.AddGroupUserRequest(
            group_id=self.dice.choice(self.groups), user_id=self._user()
        )

    def _assign(self) -> Attempt:
        place, role_id = self.dice.choice(self.roles)
        return self.role_calls.AssignRole, role_service_pb2.AssignRoleRequest(
            project_id=place, principal=self._principal(), role_id=role_id
        )

    def _update_role(self) -> Attempt:
        place, role_id = self.dice.choice(self.roles)
        permissions = role_service_pb2.RolePermissions(names=self._permissions())
        return self.role_calls.UpdateRole, role_service_pb2.UpdateRoleRequest(
            project_id=place, id=role_id, permissions=permissions
        )

    def _create_role(self) -> Attempt:
        return self.role_calls.CreateRole, role_service_pb2.CreateRoleRequest(
            project_id=self.dice.choice(["", *self.projects]),
            name=f"n{self.dice.randrange(10**6)}",
            permissions=self._permissions(),
        )

    def _enter_project(self) -> Attempt:
        request = project_user_service_pb2.AddProjectUserRequest(
            project_id=self.dice.choice(self.projects),
            user_id=self._user(),
            role=self.dice.choice(["owner", "member"]),
        )
        return self.member_calls.AddProjectUser, request

    def _let_group_in(self) -> Attempt:
        place, role_id = self.dice.choice([entry for entry in self.roles if entry[0]])
        request = project_group_service_pb2.AddProjectGroupRequest(
            project_id=place, group_id=self.dice.choice(self.groups), role=role_id
        )
        return self.entry_calls.AddProjectGroup, request

    def _mint(self) -> Attempt:
        scopes = self._permissions() if self.dice.random() < 0.5 else []
        return self.at.keys.CreateKey, key_service_pb2.CreateKeyRequest(
            name="child",
            kind=grant_pb2.KEY_KIND_ADMIN,
            owner_id=self.dice.choice(["", *self.users]),
            scopes=scopes,
        )

    def _rotate(self) -> Attempt:
        return self.at.keys.RotateKey, key_service_pb2.RotateKeyRequest(
            id=self.dice.choice(self.keys), grace_seconds=60
        )

    def _update_key(self) -> Attempt:
        names = self._permissions() if self.dice.random() < 0.5 else []
        return self.at.keys.UpdateKey, key_service_pb2.UpdateKeyRequest(
            id=self.dice.choice(self.keys),
            kind=grant_pb2.KEY_KIND_ADMIN,
            scopes=key_service_pb2.KeyScopes(names=names),
        )

    def _enable(self) -> Attempt:
        return self.at.keys.EnableKey, key_service_pb2.EnableKeyRequest(
            id=self.dice.choice(self.keys)
        )

    def _invite(self) -> Attempt:
        projects = [
            invite_service_pb2.InviteProject(
                id=self.dice.choice(self.projects), role=self.dice.choice(["owner", "member"])
            )
        ]
        return self.invite_calls.CreateInvite, invite_service_pb2.CreateInviteRequest(
            email=f"n{self.dice.randrange(20)}@example.com",
            role=self.dice.choice(["owner", "reader"]),
            projects=projects,
        )

    async def rights(self, key_id: str) -> Rights:
        """What the holder of a key may do now."""

        def read(session: Any) -> Rights:
            key = key_rows.find_key(session, None, key_id)
            assert key is not None
            return rights_rows.rights_of(session, key)[0]

        return await self.at.identity.store.view(read)


@pytest.mark.parametrize("seed", range(6))
async def test_no_call_raises_its_callers_rights(tmp_path: Path, seed: int) -> None:
    async with auth(tmp_path) as at:
        world = World(at, random.Random(seed))
        await world.populate()
        value, key_id = await world.climber()
        before = await world.rights(key_id)
        keys = {value: key_id}
        done: set[str] = set()
        reasons: Counter[int] = Counter()
        for _ in range(TRIES):
            method, request = world.attempt()
            credential = world.dice.choice(sorted(keys))
            try:
                answer = await unary(method, request, timeout_s=5, metadata=bearer(credential))
            except GatewayError as error:
                reasons[error.reason] += 1
                continue
            done.add(type(request).__name__)
            if isinstance(answer, Secrets):
                keys[answer.value] = answer.key.id
                world.keys.append(answer.key.id)
            for held in keys.values():
                after = await world.rights(held)
                for place in ("", *world.projects):
                    assert after.at(place) <= before.at(place)
        # What cannot fail proves nothing: some calls worked, and many were refused.
        assert reasons[error_pb2.ERROR_REASON_SCOPE_MISSING] > TRIES // 10
        assert reasons[error_pb2.ERROR_REASON_INTERNAL] == 0
        assert len(done) >= 2
