"""The official SDK administers people, roles and the log of it all, as somebody with few rights
finds out too.
"""

import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import openai
import pytest
from openai.resources.admin.organization.organization import Organization

from tests.e2e.test_admin_sdk import client, gateway, http, http_as, organization, project_id
from tests.gateway import Gateway

__all__ = ["client", "gateway", "organization", "project_id"]

_NUMBERS = itertools.count()
MakeUser = Callable[..., str]


@pytest.fixture
def make_user(gateway: Gateway) -> MakeUser:
    """Adds a user and tells its id."""

    def make(role: str = "reader") -> str:
        email = f"u{next(_NUMBERS)}@example.com"
        status, user = http(gateway, "POST", "/organization/users", {"email": email, "role": role})
        assert status == 200, user
        return str(user["id"])

    return make


@contextmanager
def acting(gateway: Gateway, user_id: str, *scopes: str) -> Iterator[Organization]:
    """The SDK with an admin key of a user."""
    body = {"name": "own", "user_id": user_id, "scopes": list(scopes)}
    status, key = http(gateway, "POST", "/organization/admin_api_keys", body)
    assert status == 200, key
    with openai.OpenAI(
        base_url=gateway.base_url, api_key="", admin_api_key=key["value"], max_retries=0
    ) as made:
        yield made.admin.organization


def test_a_user_lives_from_being_added_to_being_taken_out(
    organization: Organization, gateway: Gateway, make_user: MakeUser
) -> None:
    user_id = make_user()
    user = organization.users.retrieve(user_id)
    assert (user.role, user.object) == ("reader", "organization.user")
    changed = organization.users.update(user_id, role="owner", developer_persona="backend")
    assert (changed.role, changed.developer_persona) == ("owner", "backend")
    assert user.email is not None
    assert [found.id for found in organization.users.list(emails=[user.email.upper()])] == [user_id]
    assert user_id in {found.id for found in organization.users.list(limit=1)}
    with acting(gateway, user_id) as own:
        assert own.users.list().data
        assert organization.users.delete(user_id).deleted
        with pytest.raises(openai.AuthenticationError):
            own.users.list()
    with pytest.raises(openai.NotFoundError):
        organization.users.retrieve(user_id)


def test_an_invite_is_accepted_when_its_owner_becomes_a_user(
    organization: Organization, gateway: Gateway, project_id: str
) -> None:
    email = f"guest{next(_NUMBERS)}@example.com"
    invite = organization.invites.create(
        email=email, role="reader", projects=[{"id": project_id, "role": "owner"}]
    )
    assert (invite.status, invite.projects[0].id) == ("pending", project_id)
    assert organization.invites.retrieve(invite.id) == invite
    assert invite.id in {found.id for found in organization.invites.list(limit=1)}
    _, user = http(gateway, "POST", "/organization/users", {"email": email})
    assert organization.invites.retrieve(invite.id).status == "accepted"
    assert organization.projects.users.retrieve(user["id"], project_id=project_id).role == "owner"
    with pytest.raises(openai.ConflictError):
        organization.invites.delete(invite.id)
    other = organization.invites.create(email="x" + email, role="owner")
    assert organization.invites.delete(other.id).deleted


def test_a_project_user_comes_changes_and_goes(
    organization: Organization, project_id: str, make_user: MakeUser
) -> None:
    members = organization.projects.users
    one, two = make_user(), make_user()
    added = members.create(project_id, user_id=one, role="member")
    email = organization.users.retrieve(two).email
    members.create(project_id, email=email, role="owner")
    assert members.retrieve(one, project_id=project_id) == added
    assert members.update(one, project_id=project_id, role="owner").role == "owner"
    assert {user.id for user in members.list(project_id, limit=1)} == {one, two}
    with pytest.raises(openai.ConflictError):
        members.create(project_id, user_id=one, role="member")
    assert members.delete(one, project_id=project_id).deleted
    with pytest.raises(openai.NotFoundError):
        members.retrieve(one, project_id=project_id)


def test_a_group_gives_its_users_its_roles_and_takes_them_back(
    organization: Organization, gateway: Gateway, project_id: str, make_user: MakeUser
) -> None:
    groups = organization.groups
    group = groups.create(name="Support")
    assert groups.update(group.id, name="Help").name == "Help"
    assert groups.retrieve(group.id).name == "Help"
    assert group.id in {found.id for found in groups.list(limit=1)}
    user_id = make_user()
    with acting(gateway, user_id) as own:
        with pytest.raises(openai.PermissionDeniedError):
            own.projects.update(project_id, name="mine")
        entered = organization.projects.groups.create(
            project_id, group_id=group.id, role="role_project_owner"
        )
        inside = organization.projects.groups
        assert inside.retrieve(group.id, project_id=project_id) == entered
        assert [row.group_id for row in inside.list(project_id)] == [group.id]
        groups.users.create(group.id, user_id=user_id)
        assert groups.users.retrieve(user_id, group_id=group.id).id == user_id
        assert [user.id for user in groups.users.list(group.id)] == [user_id]
        assert own.projects.update(project_id, name="ours").name == "ours"
        other = organization.projects.create(name="not theirs").id
        with pytest.raises(openai.PermissionDeniedError):
            own.projects.update(other, name="mine")
        held = organization.projects.users.roles.list(user_id, project_id=project_id).data
        assert [role.id for role in held] == ["role_project_owner"]
        assert held[0].assignment_sources is not None
        assert groups.users.delete(user_id, group_id=group.id).deleted
        with pytest.raises(openai.PermissionDeniedError):
            own.projects.update(project_id, name="mine")
    assert inside.delete(group.id, project_id=project_id).deleted
    assert groups.delete(group.id).deleted
    with pytest.raises(openai.NotFoundError):
        groups.retrieve(group.id)


def test_a_role_is_made_given_and_taken_in_the_organisation_and_in_a_project(
    organization: Organization, gateway: Gateway, project_id: str, make_user: MakeUser
) -> None:
    roles = organization.roles
    name = f"Groups {next(_NUMBERS)}"
    role = roles.create(role_name=name, permissions=["api.groups.read", "api.groups.write"])
    assert (role.predefined_role, role.resource_type) == (False, "api.organization")
    assert roles.retrieve(role.id) == role
    assert roles.update(role.id, description="Makes groups").description == "Makes groups"
    listed = {found.name for found in roles.list(limit=1)}
    assert {"owner", "reader", name} <= listed
    user_id, group = make_user(), organization.groups.create(name="g")
    with acting(gateway, user_id) as own:
        with pytest.raises(openai.PermissionDeniedError):
            own.groups.create(name="mine")
        given = organization.users.roles.create(user_id, role_id=role.id)
        assert (given.object, given.user.id) == ("user.role", user_id)
        assert own.groups.create(name="mine").name == "mine"
        assert organization.users.roles.retrieve(role.id, user_id=user_id).id == role.id
        own_roles = [held.id for held in organization.users.roles.list(user_id, order="asc")]
        assert sorted(own_roles) == sorted([role.id, "role_organization_reader"])
        assert organization.users.roles.delete(role.id, user_id=user_id).deleted
        with pytest.raises(openai.PermissionDeniedError):
            own.groups.create(name="mine")
    held = organization.groups.roles.create(group.id, role_id=role.id)
    assert (held.object, held.group.id) == ("group.role", group.id)
    assert organization.groups.roles.retrieve(role.id, group_id=group.id).id == role.id
    assert [found.id for found in organization.groups.roles.list(group.id)] == [role.id]
    assert organization.groups.roles.delete(role.id, group_id=group.id).deleted
    assert roles.delete(role.id).deleted
    inside = organization.projects.roles.create(
        project_id, role_name="Keys", permissions=["api.api_keys.write"]
    )
    assert inside.resource_type == "api.project"
    in_project = organization.projects.users.roles.create(
        user_id, project_id=project_id, role_id=inside.id
    )
    assert in_project.role.id == inside.id
    with pytest.raises(openai.NotFoundError):
        organization.users.roles.create(user_id, role_id=inside.id)
    with pytest.raises(openai.BadRequestError):
        organization.projects.roles.create(
            project_id, role_name="Wide", permissions=["api.audit_logs.read"]
        )
    with pytest.raises(openai.BadRequestError):
        roles.delete("role_organization_owner")


def test_nobody_gives_more_than_they_have(
    organization: Organization, gateway: Gateway, make_user: MakeUser
) -> None:
    role = organization.roles.create(
        role_name=f"People {next(_NUMBERS)}",
        permissions=["api.users.write", "api.roles.write", "api.admin_api_keys.write"],
    )
    user_id, friend = make_user(), make_user("owner")
    organization.users.roles.create(user_id, role_id=role.id)
    with acting(gateway, user_id) as own:
        attempts: list[Callable[[], object]] = [
            lambda: own.users.update(user_id, role="owner"),
            lambda: own.users.update(user_id, role_id="role_organization_owner"),
            lambda: own.users.roles.create(user_id, role_id="role_organization_owner"),
            lambda: own.roles.update(role.id, permissions=["api.projects.write"]),
            lambda: own.roles.create(role_name="all", permissions=["api.projects.write"]),
        ]
        for attempt in attempts:
            with pytest.raises(openai.PermissionDeniedError):
                attempt()
        key = own.admin_api_keys.create(name="as wide as I am")
        body = {"name": "friend", "user_id": friend}
        assert http_as(gateway, key.value, "POST", "/organization/admin_api_keys", body)[0] == 403
        status, _ = http_as(gateway, key.value, "POST", "/organization/projects", {"name": "x"})
        assert status == 403
    with acting(gateway, friend, "api.admin_api_keys.write", "api.users.read") as narrow:
        with pytest.raises(openai.PermissionDeniedError):
            narrow.projects.create(name="x")
        child = narrow.admin_api_keys.create(name="child")
        status, _ = http_as(gateway, child.value, "POST", "/organization/projects", {"name": "x"})
        assert status == 403
        wider = {"name": "wider", "scopes": ["api.projects.write"]}
        assert (
            http_as(gateway, child.value, "POST", "/organization/admin_api_keys", wider)[0] == 403
        )


def test_every_change_and_every_refusal_is_in_the_log(
    organization: Organization, gateway: Gateway, project_id: str, make_user: MakeUser
) -> None:
    with pytest.raises(openai.BadRequestError):
        # A key pasted where a name belongs would be kept in the clear, and here.
        organization.projects.update(project_id, name="sk-og-" + "a" * 46)
    organization.projects.update(project_id, name="renamed")
    changes = organization.audit_logs.list(project_ids=[project_id]).data
    assert [change.type for change in changes] == ["project.updated", "project.created"]
    assert changes[0].actor is not None
    assert changes[0].actor.api_key is not None
    shown = changes[0].to_dict()
    assert shown["address"] == "127.0.0.1"
    assert shown["before"]["name"] == "test"  # type: ignore[index]
    assert "a" * 20 not in str(shown)
    only = organization.audit_logs.list(
        project_ids=[project_id], event_types=["project.created"], effective_at={"gte": 0}
    )
    assert [change.id for change in only] == [changes[1].id]
    assert not organization.audit_logs.list(project_ids=[project_id], effective_at={"lt": 1}).data
    paged = organization.audit_logs.list(project_ids=[project_id], limit=1)
    assert [change.id for change in paged] == [change.id for change in changes]
    user_id = make_user()
    with acting(gateway, user_id) as own, pytest.raises(openai.PermissionDeniedError):
        own.projects.update(project_id, name="x")
    assert http_as(gateway, gateway.api_key, "GET", "/organization/users")[0] == 403
    path = f"/organization/audit_logs?outcome=refused&actor_ids[]={user_id}"
    _, found = http(gateway, "GET", path)
    assert [(row["type"], row["reason"]) for row in found["data"]] == [
        ("project.updated", "scope_missing")
    ]
    _, everything = http(gateway, "GET", "/organization/audit_logs?outcome=refused")
    assert "login.failed" in {row["type"] for row in everything["data"]}
