"""Signing in through an identity provider: whoever it vouches for gets a short session."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from onegate.auth.v1 import (
    audit_service_pb2,
    audit_service_pb2_grpc,
    group_service_pb2,
    group_service_pb2_grpc,
    invite_service_pb2,
    invite_service_pb2_grpc,
    organization_service_pb2,
    organization_service_pb2_grpc,
    project_service_pb2,
    sign_in_service_pb2_grpc,
    user_service_pb2,
    user_service_pb2_grpc,
)
from onegate.auth.v1 import sign_in_service_pb2 as pb
from runtime.rpc import unary
from services.auth import key_rows
from services.auth.admitting import Mapped, mapped
from services.auth.records import OrganizationRecord
from tests.oidc_provider import (
    RSA_KEY,
    SigningKey,
    ec_key,
)
from tests.services.auth.ports import stored_bytes
from tests.services.auth.serving import OPERATOR, auth, bearer
from tests.services.auth.sign_in_door import BACK, CHALLENGE, STATE, door, refusal

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize("key", [RSA_KEY, ec_key("ec-1")], ids=["RSA", "EC"])
async def test_a_user_signs_in_and_has_their_own_rights_for_a_while(
    tmp_path: Path, key: SigningKey
) -> None:
    async with door(tmp_path, session_s=3600) as at:
        at.idp.keys = [key]
        user_id = await at.add_user(role="owner")
        session = await at.sign_in()
        assert session.value.startswith("sk-og-admin-")
        assert (session.identity.user_id, session.identity.role) == (user_id, "owner")
        assert session.identity.expires_at.seconds == int(at.clock.now().timestamp()) + 3600
        assert (await at.who(session.value)) == session.identity
        request = project_service_pb2.CreateProjectRequest(name="made by a person")
        await unary(
            at.at.projects.CreateProject, request, timeout_s=5, metadata=bearer(session.value)
        )
        newest = (await at.log())[0]
        assert newest.type == "project.created"
        assert newest.actor.email == "ada@example.com"
        at.clock.passed_s += 3601
        assert (await refusal(at.who(session.value)))[0] == "key_expired"
        assert session.value.encode() not in stored_bytes(tmp_path)


async def test_rights_are_those_of_the_user_at_the_time_of_the_call(tmp_path: Path) -> None:
    async with door(tmp_path) as at:
        user_id = await at.add_user(role="owner")
        key = (await at.sign_in()).value
        users = user_service_pb2_grpc.UserServiceStub(at.at.channel)
        demoted = user_service_pb2.UpdateUserRequest(id=user_id, role="reader")
        await unary(users.UpdateUser, demoted, timeout_s=5, metadata=OPERATOR)
        assert (await at.who(key)).role == "reader"
        request = project_service_pb2.CreateProjectRequest(name="no more")
        refused = unary(at.at.projects.CreateProject, request, timeout_s=5, metadata=bearer(key))
        assert (await refusal(refused))[0] == "scope_missing"
        gone = user_service_pb2.DeleteUserRequest(id=user_id)
        await unary(users.DeleteUser, gone, timeout_s=5, metadata=OPERATOR)
        assert (await refusal(at.who(key)))[0] == "invalid_api_key"


async def test_who_signs_out_has_no_session_any_more(tmp_path: Path) -> None:
    async with door(tmp_path) as at:
        await at.add_user()
        key = (await at.sign_in()).value
        await unary(at.stub.SignOut, pb.SignOutRequest(), timeout_s=5, metadata=bearer(key))
        assert (await refusal(at.who(key)))[0] == "invalid_api_key"
        assert (await at.log())[0].type == "logout.succeeded"
        own = unary(
            at.stub.SignOut,
            pb.SignOutRequest(),
            timeout_s=5,
            metadata=bearer(at.at.first.admin_key),
        )
        assert (await refusal(own))[0] == "conflict"


async def test_another_device_is_waited_for_as_slowly_as_the_provider_wants(
    tmp_path: Path,
) -> None:
    async with door(tmp_path) as at:
        await at.add_user()
        begun = await at.begin_device()
        assert (begun.user_code, begun.interval_s) == ("WDJB-MJHT", 1)
        code = begun.device_code
        assert (await at.finish(begun.id, device_code=code)).interval_s == 1
        asked = len(at.idp.asked)
        assert (await at.finish(begun.id, device_code=code)).interval_s == 1
        assert len(at.idp.asked) == asked, "asked again before its time"
        at.clock.passed_s += 1
        at.idp.slow_down = True
        assert (await at.finish(begun.id, device_code=code)).interval_s == 6
        at.clock.passed_s += 6
        at.idp.approve()
        wrong = at.finish(begun.id, device_code=code, code_verifier="w" * 43)
        assert (await refusal(wrong))[0] == "invalid_request"
        session = await at.finish(begun.id, device_code=code)
        assert (await at.who(session.value)).email == "ada@example.com"
        again = at.finish(begun.id, device_code=code)
        assert (await refusal(again))[0] == "invalid_request"


async def test_a_code_works_once_and_only_for_who_began(tmp_path: Path) -> None:
    async with door(tmp_path) as at:
        await at.add_user()
        begun = await at.begin()
        code = at.browse(begun)
        stolen = at.finish(begun.id, code=code, code_verifier="w" * 43)
        assert (await refusal(stolen))[0] == "invalid_request"
        assert (await at.finish(begun.id, code=code)).value
        assert (await refusal(at.finish(begun.id, code=code)))[0] == "invalid_request"
        other = await at.begin()
        assert (await refusal(at.finish(other.id, code=code)))[0] == "upstream_auth"
        late = await at.begin()
        late_code = at.browse(late)
        at.clock.passed_s += 601
        assert (await refusal(at.finish(late.id, code=late_code)))[0] == "invalid_request"


async def test_a_code_of_another_sign_in_is_refused_by_its_nonce(tmp_path: Path) -> None:
    async with door(tmp_path) as at:
        await at.add_user()
        mine, theirs = await at.begin(), await at.begin()
        reason, message = await refusal(at.finish(mine.id, code=at.browse(theirs)))
        assert (reason, "another sign-in" in message) == ("upstream_auth", True)


WRONG_BEGINNINGS = (
    {"redirect_uri": "https://evil.example/"},
    {"redirect_uri": "http://127.0.0.1.evil.example:80/"},
    {"redirect_uri": "http://127.0.0.1:80@evil.example/"},
    {"redirect_uri": "http://localhost:80/"},
    {"code_challenge": "short"},
    {"code_challenge": "=" * 43},
    {"state": "short"},
    {"state": "&nonce=12345678901234567890"},
)


async def test_a_sign_in_begins_on_this_machine_and_with_proof(tmp_path: Path) -> None:
    async with door(tmp_path) as at:
        for fields in WRONG_BEGINNINGS:
            assert (await refusal(at.begin(**fields)))[0] == "invalid_request", fields
        assert at.idp.asked == []


PEOPLE: dict[str, tuple[dict[str, Any], dict[str, Any], str | None]] = {
    "a stranger": ({}, {"email": "eve@example.com"}, "no user"),
    "a stranger whom the settings make a user": (
        {"create_users": True, "allowed_domains": ("example.com",)},
        {"email": "eve@example.com"},
        None,
    ),
    "a stranger from elsewhere": (
        {"create_users": True, "allowed_domains": ("example.com",)},
        {"email": "eve@evil.example"},
        "evil.example",
    ),
    "a domain that ends alike": (
        {"create_users": True, "allowed_domains": ("example.com",)},
        {"email": "eve@notexample.com"},
        "notexample.com",
    ),
    "an address nobody vouches for": ({}, {"email_verified": False}, "vouch"),
    "an address that is said to be verified, wrongly": ({}, {"email_verified": 1}, "vouch"),
    "no address": ({}, {"email": None}, "vouch"),
    "no group that counts": (
        {"group_roles": ("admins=owner",)},
        {"groups": ["others"]},
        "none of your groups",
    ),
    "a group that counts": ({"group_roles": ("admins=owner",)}, {"groups": ["admins"]}, None),
}


@pytest.mark.parametrize("who", PEOPLE)
async def test_who_is_let_in(tmp_path: Path, who: str) -> None:
    settings, person, why = PEOPLE[who]
    async with door(tmp_path, **settings) as at:
        await at.add_user()
        at.idp.person |= person
        if why is None:
            assert (await at.sign_in()).value
            return
        if person.get("email_verified") == 1:
            at.idp.spoil = lambda good: {**good, "email_verified": "yes"}
        reason, message = await refusal(at.sign_in())
        assert (reason, why in message) == ("scope_missing", True), message
        failed = (await at.log())[0]
        assert (failed.type, failed.refusal) == ("login.failed", "scope_missing")


async def test_an_address_that_was_given_to_somebody_else_opens_nothing(tmp_path: Path) -> None:
    async with door(tmp_path) as at:
        await at.add_user(role="owner")
        await at.sign_in()
        at.idp.person["sub"] = "subject-2"
        reason, message = await refusal(at.sign_in())
        assert (reason, "somebody else" in message) == ("scope_missing", True)
        at.idp.person |= {"sub": "subject-1", "email": "ada.new@example.com"}
        assert (await at.sign_in()).identity.email == "ada@example.com"


async def test_an_invite_is_accepted_by_signing_in(tmp_path: Path) -> None:
    async with door(tmp_path) as at:
        stub = invite_service_pb2_grpc.InviteServiceStub(at.at.channel)
        request = invite_service_pb2.CreateInviteRequest(email="ada@example.com", role="owner")
        await unary(stub.CreateInvite, request, timeout_s=5, metadata=OPERATOR)
        assert (await at.sign_in()).identity.role == "owner"


async def test_groups_of_the_provider_decide_at_every_sign_in(tmp_path: Path) -> None:
    rules = ("admins=owner", "staff=reader", "ml=group:ML team")
    async with door(tmp_path, group_roles=rules, create_users=True) as at:
        groups = group_service_pb2_grpc.GroupServiceStub(at.at.channel)
        made = await unary(
            groups.CreateGroup,
            group_service_pb2.CreateGroupRequest(name="ML team"),
            timeout_s=5,
            metadata=OPERATOR,
        )

        async def members() -> int:
            request = group_service_pb2.ListGroupUsersRequest(group_id=made.group.id)
            listed = await unary(groups.ListGroupUsers, request, timeout_s=5, metadata=OPERATOR)
            return len(listed.users)

        at.idp.person["groups"] = ["admins", "ml"]
        first = await at.sign_in()
        assert (first.identity.role, await members()) == ("owner", 1)
        at.idp.person["groups"] = "staff"
        assert (await at.sign_in()).identity.role == "reader"
        assert (await at.who(first.value)).role == "reader"
        assert await members() == 0


async def test_a_session_lives_no_longer_than_keys_may(tmp_path: Path) -> None:
    async with door(tmp_path) as at:
        await at.add_user()
        record = at.at.identity.store

        def shorten(session: Any) -> None:
            found = session.find(OrganizationRecord, {})
            short = replace(found, key_lifetime_max_s=600)
            key_rows.keep_organization(session, short, now=at.clock.now())

        await record.change(shorten)
        ends = (await at.sign_in()).identity.expires_at.seconds
        assert ends == int(at.clock.now().timestamp()) + 600


async def test_a_key_that_is_nobodys_raises_the_alarm_where_people_sign_in(tmp_path: Path) -> None:
    async with door(tmp_path) as at:
        await at.who(at.at.first.admin_key)
        await at.who(at.at.first.admin_key)
        entries = await at.log()
        assert [entry.type for entry in entries] == ["break_glass.used"]
        at.clock.passed_s += 3600
        await at.who(at.at.first.admin_key)
        assert len(await at.log()) == 2


async def test_where_nobody_signs_in_there_is_no_door_and_no_alarm(tmp_path: Path) -> None:
    async with auth(tmp_path) as at:
        stub = sign_in_service_pb2_grpc.SignInServiceStub(at.channel)
        asked = pb.BeginSignInRequest(code_challenge=CHALLENGE, redirect_uri=BACK, state=STATE)
        assert (await refusal(unary(stub.BeginSignIn, asked, timeout_s=5)))[0] == "not_found"
        who = unary(
            stub.WhoAmI, pb.WhoAmIRequest(), timeout_s=5, metadata=bearer(at.first.admin_key)
        )
        await who
        log = audit_service_pb2_grpc.AuditServiceStub(at.channel)
        listed = await unary(
            log.ListAuditEvents,
            audit_service_pb2.ListAuditEventsRequest(),
            timeout_s=5,
            metadata=OPERATOR,
        )
        assert not listed.events


async def test_people_sign_in_to_the_organisation_of_the_settings(tmp_path: Path) -> None:
    async with auth(tmp_path) as at:
        stub = organization_service_pb2_grpc.OrganizationServiceStub(at.channel)
        request = organization_service_pb2.CreateOrganizationRequest(name="client")
        made = await unary(stub.CreateOrganization, request, timeout_s=5, metadata=OPERATOR)
    wanted = made.organization.id
    domains = ("example.com",)
    async with door(
        tmp_path, organization=wanted, create_users=True, allowed_domains=domains
    ) as again:
        assert (await again.sign_in()).identity.organization_id == wanted


def test_groups_map_to_the_widest_role() -> None:
    rules = ("a=reader", "b=owner", "c=group:C", "d=x=group:D")
    found = mapped(rules, frozenset({"a", "b"}))
    assert found == Mapped(role="owner", groups=frozenset(), others=frozenset({"C", "D"}))
    assert mapped(rules, frozenset({"d=x"})) == Mapped(
        role="reader", groups=frozenset({"D"}), others=frozenset({"C"})
    )
    assert mapped(rules, frozenset({"e"})) is None
    assert mapped((), frozenset({"e"})) == Mapped(role=None)
