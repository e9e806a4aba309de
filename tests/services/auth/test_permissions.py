"""Rights: nothing that the table does not name, and nobody gives what they have not got."""

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.errors import GatewayError, reason_name
from services.auth.administration import Deed
from services.auth.permissions import (
    OPERATIONS,
    OPERATOR,
    ORGANIZATION_ROLES,
    PERMISSIONS,
    PROJECT_PERMISSIONS,
    PROJECT_ROLES,
    Rights,
    checked_permissions,
)

SETS = st.frozensets(st.sampled_from(sorted(PERMISSIONS)), max_size=6)
PLACES = st.dictionaries(st.sampled_from(["proj_1", "proj_2"]), SETS)
RIGHTS = st.builds(Rights, organization=SETS, projects=PLACES)


def refused(work: Callable[[], object]) -> bool:
    """Whether it is refused for want of rights."""
    try:
        work()
    except GatewayError as error:
        reason = reason_name(error.reason)
    else:
        return False
    assert reason == "scope_missing"
    return True


def test_an_operation_that_no_table_names_is_nobodys() -> None:
    for rights in (OPERATOR, Rights(organization=PERMISSIONS)):
        assert not rights.may("everything.delete")
        assert refused(lambda: rights.check("everything.delete"))  # noqa: B023


def test_what_asks_for_no_permission_is_the_operators_alone() -> None:
    own = [name for name, operation in OPERATIONS.items() if not operation.permission]
    assert set(own) == {
        "organizations.create",
        "organizations.list",
        "audit_logs.verify",
        "sign_in.begin",
        "sign_in.finish",
        "sign_in.who",
        "sign_in.out",
        "break_glass",
        *(name for name in OPERATIONS if name.startswith("providers.")),
    }
    for name in own:
        assert OPERATOR.may(name)
        assert not Rights(organization=PERMISSIONS).may(name)


def test_every_operation_asks_for_a_permission_that_a_role_can_have() -> None:
    asked = {operation.permission for operation in OPERATIONS.values()} - {""}
    assert asked <= PERMISSIONS
    assert PROJECT_PERMISSIONS <= PERMISSIONS
    for role in ORGANIZATION_ROLES.values():
        assert role.permissions <= PERMISSIONS
    for role in PROJECT_ROLES.values():
        assert role.permissions <= PROJECT_PERMISSIONS


@given(RIGHTS, SETS)
def test_a_key_that_says_what_it_may_do_never_may_more(
    rights: Rights, said: frozenset[str]
) -> None:
    narrowed = rights.narrowed(said)
    for place in ("", "proj_1", "proj_2", "proj_3"):
        assert narrowed.at(place) <= rights.at(place)
        assert not said or narrowed.at(place) <= said
    rights.check_covers(narrowed)


@given(RIGHTS, RIGHTS)
def test_rights_cover_others_only_when_they_hold_each_of_them(one: Rights, other: Rights) -> None:
    holds = all(other.at(place) <= one.at(place) for place in ("", *other.projects))
    assert refused(lambda: one.check_covers(other)) is not holds


@given(SETS, SETS)
def test_scopes_are_within_what_is_held_or_refused(
    wanted: frozenset[str], held: frozenset[str]
) -> None:
    assert refused(lambda: Rights().check_within(wanted, held)) is not wanted.issubset(held)


def test_permissions_are_known_sorted_and_each_once() -> None:
    names = ["api.users.read", "api.groups.read", "api.users.read"]
    found = checked_permissions(names, project=False, param="p")
    assert found == ("api.groups.read", "api.users.read")
    for wrong, project in (("api.all", False), ("api.audit_logs.read", True)):
        with pytest.raises(GatewayError, match="no such permission"):
            checked_permissions([wrong], project=project, param="p")


def test_a_method_that_asks_for_nothing_answers_nobody() -> None:
    deed = Deed.__new__(Deed)
    deed._operation = ""
    with pytest.raises(GatewayError) as caught:
        deed.finish()
    assert reason_name(caught.value.reason) == "internal"
