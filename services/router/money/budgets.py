"""Which calls need money set aside before them, as usage has told this router. Pure."""

from collections.abc import Iterable
from typing import Final

from onegate.usage.v1 import budget_pb2, hold_service_pb2
from onegate.usage.v1.budget_pb2 import Budget

STRICT: Final = budget_pb2.BUDGET_MODE_STRICT
ESTIMATE: Final = budget_pb2.BUDGET_MODE_ESTIMATE
NO_HOLD: Final = budget_pb2.BUDGET_MODE_UNSPECIFIED
"""No budget applies, or none that refuses."""
EVERYONE: Final = "*"
"""The subject of a template."""

Payer = hold_service_pb2.Payer


class Budgets:
    """All budgets that refuse, by whom they count."""

    __slots__ = ("_budgets", "_places")

    def __init__(self, budgets: Iterable[Budget] = ()) -> None:
        self._budgets: dict[str, Budget] = {}
        # By organisation, then by scope and subject: the budgets of one place by their ids.
        self._places: dict[str, dict[tuple[int, str], dict[str, Budget]]] = {}
        for budget in budgets:
            self.put(budget)

    def __len__(self) -> int:
        return len(self._budgets)

    def concern(self, organization_id: str) -> bool:
        """Whether an organisation has any."""
        return organization_id in self._places

    def put(self, budget: Budget) -> None:
        """Adds a budget, or changes it; one that refuses nothing is as good as none."""
        self.drop(budget.id)
        if budget.mode not in {STRICT, ESTIMATE}:
            return
        self._budgets[budget.id] = budget
        places = self._places.setdefault(budget.organization_id, {})
        places.setdefault((budget.scope, budget.subject), {})[budget.id] = budget

    def drop(self, budget_id: str) -> None:
        """Forgets a budget."""
        budget = self._budgets.pop(budget_id, None)
        if budget is None:
            return
        places = self._places[budget.organization_id]
        there = places[budget.scope, budget.subject]
        del there[budget_id]
        if not there:
            del places[budget.scope, budget.subject]
        if not places:
            del self._places[budget.organization_id]

    def mode_of(self, payer: Payer) -> budget_pb2.BudgetMode.ValueType:
        """STRICT when any strict budget counts the call, else ESTIMATE when any other does, else
        ``NO_HOLD``.
        """
        places = self._places.get(payer.organization_id)
        if places is None:
            return NO_HOLD
        found = NO_HOLD
        for scope, subject in (
            (budget_pb2.BUDGET_SCOPE_ORGANIZATION, payer.organization_id),
            (budget_pb2.BUDGET_SCOPE_PROJECT, payer.project_id),
            (budget_pb2.BUDGET_SCOPE_KEY, payer.key_id),
            (budget_pb2.BUDGET_SCOPE_CUSTOMER, payer.customer),
            (budget_pb2.BUDGET_SCOPE_FEATURE, payer.feature),
            (budget_pb2.BUDGET_SCOPE_RUN, payer.run),
        ):
            if not subject:
                continue
            for name in (subject, EVERYONE):
                for budget in places.get((scope, name), {}).values():
                    if budget.project_id not in ("", payer.project_id):
                        continue
                    if budget.mode == STRICT:
                        return STRICT
                    found = ESTIMATE
        return found
