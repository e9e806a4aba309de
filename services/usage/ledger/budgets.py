"""Which budgets a call counts on, and what a budget may say. Pure.

A subject has an account for each budget and period. Periods are calendar days, weeks and months
in UTC; a new period is a new account, so that no reset can be missed.
"""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final, Protocol

from onegate.common.v1 import error_pb2
from onegate.usage.v1 import budget_pb2 as pb
from onegate.usage.v1.budget_pb2 import Budget, BudgetFilter
from runtime.errors import GatewayError

EVERYONE: Final = "*"
"""The subject of a template."""

LIMIT_NANO_USD_MAX: Final = 10**18
"""A thousand million dollars: sums of it stay far from 64 bits."""

SUBJECT_CHARS_MAX: Final = 256
PERCENTS_MAX: Final = 20
PERCENT_MAX: Final = 1_000
RECIPIENTS_MAX: Final = 50

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND: Final = timedelta(microseconds=1)
_DAY: Final = timedelta(days=1)

_WORDS: Final[Mapping[int, str]] = {
    pb.BUDGET_SCOPE_ORGANIZATION: "organization",
    pb.BUDGET_SCOPE_PROJECT: "project",
    pb.BUDGET_SCOPE_KEY: "key",
    pb.BUDGET_SCOPE_CUSTOMER: "customer",
    pb.BUDGET_SCOPE_FEATURE: "feature",
    pb.BUDGET_SCOPE_RUN: "run",
}
HARD: Final = frozenset({pb.BUDGET_MODE_STRICT, pb.BUDGET_MODE_ESTIMATE})
"""Modes that refuse, for which money is set aside before a call."""

_WITH_HISTORY: Final = frozenset(
    {pb.BUDGET_SCOPE_ORGANIZATION, pb.BUDGET_SCOPE_PROJECT, pb.BUDGET_SCOPE_KEY}
)
"""Scopes whose records are found by an index, so that a template's new account can count what was
spent in the period before it was set."""


class Payer(Protocol):
    """Who pays for a call: the fields that the contract's ``Payer`` has."""

    @property
    def organization_id(self) -> str: ...
    @property
    def project_id(self) -> str: ...
    @property
    def key_id(self) -> str: ...
    @property
    def customer(self) -> str: ...
    @property
    def feature(self) -> str: ...
    @property
    def run(self) -> str: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """A period, in microseconds since 1970; ``end_us`` is ``None`` where it never ends."""

    start_us: int
    end_us: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """Where one subject's spending on one budget is counted in one period."""

    id: str
    budget: Budget
    subject: str
    span: Span

    @property
    def history_from_us(self) -> int | None:
        """From when records of before the budget count; ``None`` when none do."""
        budget, start_us = self.budget, self.span.start_us
        if budget.period == pb.BUDGET_PERIOD_TOTAL:
            return None
        if start_us >= budget.created_at.ToMicroseconds():
            return None
        found = budget.subject != EVERYONE or budget.scope in _WITH_HISTORY
        return start_us if found else None


class Book:
    """All budgets in force, by whom they count.

    Args:
        budgets: the budgets.
        revision: grows with every change of any budget; 0 when there never was one.
    """

    def __init__(self, budgets: Iterable[Budget] = (), revision: int = 0) -> None:
        self.revision = revision
        self.budgets: Mapping[str, Budget] = {budget.id: budget for budget in budgets}
        self._by_organization: dict[str, dict[tuple[int, str], list[Budget]]] = {}
        for budget in self.budgets.values():
            subjects = self._by_organization.setdefault(budget.organization_id, {})
            subjects.setdefault((budget.scope, budget.subject), []).append(budget)

    def concerns(self, organization_id: str) -> bool:
        """Whether an organisation has any budget."""
        return organization_id in self._by_organization

    def matching(self, payer: Payer) -> list[tuple[Budget, str]]:
        """The budgets that a call counts on, each with its subject."""
        subjects = self._by_organization.get(payer.organization_id)
        if subjects is None:
            return []
        found: list[tuple[Budget, str]] = []
        for scope, subject in (
            (pb.BUDGET_SCOPE_ORGANIZATION, payer.organization_id),
            (pb.BUDGET_SCOPE_PROJECT, payer.project_id),
            (pb.BUDGET_SCOPE_KEY, payer.key_id),
            (pb.BUDGET_SCOPE_CUSTOMER, payer.customer),
            (pb.BUDGET_SCOPE_FEATURE, payer.feature),
            (pb.BUDGET_SCOPE_RUN, payer.run),
        ):
            if not subject:
                continue
            for name in (subject, EVERYONE):
                found += [
                    (budget, subject)
                    for budget in subjects.get((scope, name), ())
                    if budget.project_id in ("", payer.project_id)
                ]
        return found


def account(budget: Budget, subject: str, now_us: int) -> Account:
    """The account of a subject in the period that ``now_us`` lies in."""
    span = span_of(budget.period, now_us)
    name = subject
    if len(name) > SUBJECT_CHARS_MAX:
        # Names are the callers' own and may be long; an id may not.
        name = f"sha256-{hashlib.sha256(subject.encode()).hexdigest()}"
    return Account(
        id=f"{budget.id}/{span.start_us}/{name}", budget=budget, subject=subject, span=span
    )


def account_named(book: Book, name: str) -> Account:
    """An account by its id; of its budget only the id is known once that has ended."""
    budget_id, start_us, subject = name.split("/", 2)
    budget = book.budgets.get(budget_id) or Budget(id=budget_id)
    span = span_of(budget.period, int(start_us))
    return Account(id=name, budget=budget, subject=subject, span=span)


def span_of(period: pb.BudgetPeriod.ValueType, now_us: int) -> Span:
    """The period that a moment lies in."""
    now = _EPOCH + now_us * _MICROSECOND
    day = now.replace(hour=0, minute=0, second=0, microsecond=0)
    match period:
        case pb.BUDGET_PERIOD_DAY:
            start, end = day, day + _DAY
        case pb.BUDGET_PERIOD_WEEK:
            start = day - now.weekday() * _DAY
            end = start + 7 * _DAY
        case pb.BUDGET_PERIOD_MONTH:
            start = day.replace(day=1)
            end = (start + 31 * _DAY).replace(day=1)
        case _:
            return Span(start_us=0, end_us=None)
    return Span(start_us=(start - _EPOCH) // _MICROSECOND, end_us=(end - _EPOCH) // _MICROSECOND)


def holds_at(span: Span, now_us: int) -> bool:
    """Whether a moment lies in a period."""
    return span.start_us <= now_us and (span.end_us is None or now_us < span.end_us)


def described(budget: Budget, subject: str) -> str:
    """Whose account it is, for people."""
    return f"{_WORDS.get(budget.scope, 'budget')} {subject[:SUBJECT_CHARS_MAX]}"


def checked(budget: Budget) -> Budget:
    """A budget as it is kept, without dates. Raises INVALID_REQUEST for one that says nonsense."""
    kept = Budget()
    kept.CopyFrom(budget)
    kept.ClearField("created_at")
    kept.ClearField("updated_at")
    kept.mode = kept.mode or pb.BUDGET_MODE_STRICT
    if not kept.organization_id:
        raise _invalid("organization_id", "must be set")
    if kept.scope not in _WORDS:
        raise _invalid("scope", "must be organization, project, key, customer, feature or run")
    if kept.scope == pb.BUDGET_SCOPE_ORGANIZATION:
        if kept.subject not in ("", kept.organization_id) or kept.project_id:
            raise _invalid("subject", "is the organisation itself for an organisation's budget")
        kept.subject = kept.organization_id
    if not 0 < len(kept.subject) <= SUBJECT_CHARS_MAX:
        raise _invalid("subject", f"must have 1 to {SUBJECT_CHARS_MAX} characters")
    if not pb.BUDGET_PERIOD_DAY <= kept.period <= pb.BUDGET_PERIOD_TOTAL:
        raise _invalid("period", "must be day, week, month or total")
    if kept.mode not in pb.BudgetMode.values():
        raise _invalid("mode", "must be strict, estimate or alert")
    if not 0 <= kept.limit_nano_usd <= LIMIT_NANO_USD_MAX:
        raise _invalid("limit_nano_usd", "must be 0 to a thousand million dollars")
    _check_alert(kept)
    return kept


def same_place(one: Budget, other: Budget) -> bool:
    """Whether two budgets count the same."""
    return all(
        getattr(one, name) == getattr(other, name)
        for name in ("organization_id", "scope", "subject", "project_id", "period")
    )


def wanted(budget: Budget, chosen: BudgetFilter) -> bool:
    """Whether a filter means a budget."""
    return (
        chosen.organization_id in ("", budget.organization_id)
        and chosen.scope in (pb.BUDGET_SCOPE_UNSPECIFIED, budget.scope)
        and chosen.subject in ("", budget.subject)
        and chosen.project_id in ("", budget.project_id)
        and chosen.budget_id in ("", budget.id)
        and (not chosen.modes or budget.mode in chosen.modes)
    )


def thresholds(budget: Budget) -> list[tuple[int, int]]:
    """At which percents somebody is told, and how much that is, in nano-USD, rounded up."""
    percents = list(budget.alert.percents)
    if not percents and budget.mode == pb.BUDGET_MODE_ALERT:
        percents = [100]
    return [(percent, -(-budget.limit_nano_usd * percent // 100)) for percent in percents]


def _check_alert(budget: Budget) -> None:
    alert = budget.alert
    if len(alert.percents) > PERCENTS_MAX or not all(0 < p <= PERCENT_MAX for p in alert.percents):
        raise _invalid(
            "alert.percents", f"may hold {PERCENTS_MAX} numbers, each from 1 to {PERCENT_MAX}"
        )
    if len(alert.recipients) > RECIPIENTS_MAX:
        raise _invalid("alert.recipients", f"may hold at most {RECIPIENTS_MAX}")
    if not all(0 < len(r) <= 320 and "@" in r and r.isprintable() for r in alert.recipients):
        raise _invalid("alert.recipients", "must be e-mail addresses")
    if len(alert.subject_prefix) > SUBJECT_CHARS_MAX or not alert.subject_prefix.isprintable():
        raise _invalid("alert.subject_prefix", "must be one short line")
    if len(set(alert.percents)) < len(alert.percents):
        raise _invalid("alert.percents", "names a part twice")


def _invalid(param: str, what: str) -> GatewayError:
    return GatewayError(error_pb2.ERROR_REASON_INVALID_REQUEST, f"`{param}` {what}.", param=param)
