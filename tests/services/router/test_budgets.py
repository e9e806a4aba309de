"""Which calls need money set aside before them."""

import pytest

from onegate.usage.v1 import budget_pb2 as pb
from onegate.usage.v1.hold_service_pb2 import Payer
from services.router.money.budgets import ESTIMATE, NO_HOLD, STRICT, Budgets

PAYER = Payer(
    organization_id="org",
    project_id="proj",
    key_id="key",
    customer="acme",
    feature="search",
    run="r-1",
)
SUBJECTS = {
    pb.BUDGET_SCOPE_ORGANIZATION: "org",
    pb.BUDGET_SCOPE_PROJECT: "proj",
    pb.BUDGET_SCOPE_KEY: "key",
    pb.BUDGET_SCOPE_CUSTOMER: "acme",
    pb.BUDGET_SCOPE_FEATURE: "search",
    pb.BUDGET_SCOPE_RUN: "r-1",
}


def budget(number: int = 1, **fields: object) -> pb.Budget:
    given = {
        "organization_id": "org",
        "scope": pb.BUDGET_SCOPE_KEY,
        "subject": "key",
        "mode": STRICT,
        **fields,
    }
    return pb.Budget(id=f"bud_{number}", **given)  # type: ignore[arg-type]


def test_every_scope_is_known() -> None:
    assert {*SUBJECTS, 0} == set(pb.BudgetScope.values())


@pytest.mark.parametrize(("scope", "subject"), SUBJECTS.items())
@pytest.mark.parametrize("template", [False, True])
def test_a_budget_counts_the_calls_of_its_subject(
    scope: pb.BudgetScope.ValueType, subject: str, template: bool
) -> None:
    budgets = Budgets([budget(scope=scope, subject="*" if template else subject)])
    assert budgets.mode_of(PAYER) == STRICT
    budgets.put(budget(scope=scope, subject="another"))
    assert budgets.mode_of(PAYER) == NO_HOLD


def test_a_call_that_names_no_customer_counts_on_no_customer_s_template() -> None:
    budgets = Budgets([budget(scope=pb.BUDGET_SCOPE_CUSTOMER, subject="*")])
    assert budgets.mode_of(Payer(organization_id="org", key_id="key")) == NO_HOLD


def test_a_strict_budget_wins_over_an_estimating_one() -> None:
    budgets = Budgets([budget(1, mode=ESTIMATE)])
    assert budgets.mode_of(PAYER) == ESTIMATE
    budgets.put(budget(2, scope=pb.BUDGET_SCOPE_RUN, subject="r-1"))
    assert budgets.mode_of(PAYER) == STRICT
    budgets.drop("bud_2")
    assert budgets.mode_of(PAYER) == ESTIMATE


def test_a_budget_of_another_project_or_organisation_counts_nothing() -> None:
    budgets = Budgets(
        [
            budget(1, project_id="other"),
            budget(2, organization_id="other"),
            budget(3, mode=pb.BUDGET_MODE_ALERT),
        ]
    )
    assert budgets.mode_of(PAYER) == NO_HOLD
    assert len(budgets) == 2, "one that only alerts needs no hold"
    budgets.put(budget(1, project_id="proj"))
    assert budgets.mode_of(PAYER) == STRICT


def test_what_is_dropped_leaves_nothing_behind() -> None:
    budgets = Budgets([budget(1), budget(2, mode=ESTIMATE)])
    for name in ("bud_1", "bud_2", "bud_2", "unknown"):
        budgets.drop(name)
    assert len(budgets) == 0
    assert not budgets.concern("org")
    budgets.put(budget(1))
    budgets.put(budget(1, mode=pb.BUDGET_MODE_ALERT))
    assert not budgets.concern("org")
