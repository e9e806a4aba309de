"""``onegate budgets``: who may spend how much, and where each stands.

A budget is named by whom it is for: ``onegate budgets set 100 --customer acme --per month``.
"""

import enum
from decimal import ROUND_FLOOR, Decimal, InvalidOperation
from typing import Annotated, Any, Final

import typer
from rich.markup import escape
from rich.table import Table

from cli.context import fail
from cli.keys_view import console, print_json
from cli.operator import Operator, run
from cli.usage import Usage, run_with_usage
from cli.usage_view import usd
from onegate.auth.v1 import organization_service_pb2, organization_service_pb2_grpc, page_pb2
from onegate.usage.v1 import budget_pb2, budget_service_pb2
from onegate.usage.v1.budget_pb2 import Balance, Budget, BudgetAlert, BudgetFilter
from runtime.money import NANO_PER_USD

app = typer.Typer(no_args_is_help=True, help="Set and show who may spend how much.")

_PAGE_SIZE: Final = 1_000
_USD_MAX: Final = 10**9


class Per(enum.StrEnum):
    """How often a budget begins anew."""

    DAY = "day"
    WEEK = "week"
    MONTH = "month"
    TOTAL = "total"


class Mode(enum.StrEnum):
    """What a budget does at its limit."""

    STRICT = "strict"
    ESTIMATE = "estimate"
    ALERT = "alert"


OrganizationOption = Annotated[
    str, typer.Option("--org", help="The organisation's id; not needed where there is one.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="JSON for programs.")]
ProjectOption = Annotated[
    str, typer.Option(help="A project's id; with a customer, feature or run: only its calls.")
]
KeyOption = Annotated[str, typer.Option(help="A key's id, or '*' for each of them.")]
CustomerOption = Annotated[str, typer.Option(help="A customer, or '*' for each of them.")]
FeatureOption = Annotated[str, typer.Option(help="A feature, or '*' for each of them.")]
RunOption = Annotated[str, typer.Option(help="An agent run, or '*' for each of them.")]


@app.command("set")
def set_command(
    context: typer.Context,
    limit: Annotated[str, typer.Argument(metavar="USD", help="How much, in USD.")],
    per: Annotated[Per, typer.Option(help="How often it begins anew (UTC).")] = Per.MONTH,
    mode: Annotated[Mode, typer.Option(help="What happens at the limit.")] = Mode.STRICT,
    org: OrganizationOption = "",
    project: ProjectOption = "",
    key: KeyOption = "",
    customer: CustomerOption = "",
    feature: FeatureOption = "",
    run_: Annotated[str, typer.Option("--run", help="A run, or '*' for each of them.")] = "",
    at: Annotated[list[int] | None, typer.Option(help="Tell people at this percentage.")] = None,
    mail: Annotated[list[str] | None, typer.Option(help="Whom to tell, by e-mail.")] = None,
) -> None:
    """Set a budget; of a project, key, customer, feature or run, or else of the organisation."""
    scope, subject, within = _place(project, key, customer, feature, run_)
    budget = Budget(
        organization_id=org or only_organization(context),
        scope=scope,
        subject=subject,
        project_id=within,
        period=budget_pb2.BudgetPeriod.Value(f"BUDGET_PERIOD_{per.name}"),
        mode=budget_pb2.BudgetMode.Value(f"BUDGET_MODE_{mode.name}"),
        limit_nano_usd=nano_usd(limit),
        alert=BudgetAlert(percents=at, recipients=mail),
    )

    async def work(usage: Usage) -> Budget:
        request = budget_service_pb2.SetBudgetRequest(budget=budget)
        answer: budget_service_pb2.SetBudgetResponse = await usage.call(
            usage.budgets.SetBudget, request
        )
        return answer.budget

    kept = run_with_usage(context, work)
    console().print(escape(f"{kept.id}: {_whose(kept, kept.subject)} has {_limit(kept)}."))


@app.command("list")
def list_command(
    context: typer.Context, org: OrganizationOption = "", json_: JsonOption = False
) -> None:
    """List budgets."""
    chosen = BudgetFilter(organization_id=org)

    async def work(usage: Usage) -> list[Budget]:
        found: list[Budget] = []
        token = ""
        while True:
            request = budget_service_pb2.ListBudgetsRequest(
                filter=chosen, page_size=_PAGE_SIZE, page_token=token
            )
            page: budget_service_pb2.ListBudgetsResponse = await usage.call(
                usage.budgets.ListBudgets, request
            )
            found += page.budgets
            token = page.next_page_token
            if not token:
                return found

    budgets = run_with_usage(context, work)
    if json_:
        print_json([_fields(budget) for budget in budgets])
        return
    table = Table("id", "whose", "limit (USD)", "mode")
    for budget in budgets:
        row = (budget.id, _whose(budget, budget.subject), _limit(budget), _mode(budget))
        table.add_row(*map(escape, row))
    console().print(table)


@app.command("show")
def show_command(
    context: typer.Context,
    budget_id: Annotated[str, typer.Argument(help="Only this budget.")] = "",
    subject: Annotated[str, typer.Option(help="Only of this key, customer, run …")] = "",
    json_: JsonOption = False,
) -> None:
    """Show what is spent and set aside in the current periods, fullest first."""
    chosen = BudgetFilter(budget_id=budget_id)

    async def work(usage: Usage) -> list[Balance]:
        found: list[Balance] = []
        token = ""
        while True:
            request = budget_service_pb2.ListBalancesRequest(
                filter=chosen, subject=subject, page_size=_PAGE_SIZE, page_token=token
            )
            page: budget_service_pb2.ListBalancesResponse = await usage.call(
                usage.budgets.ListBalances, request
            )
            found += page.balances
            token = page.next_page_token
            if not token:
                return found

    balances = sorted(run_with_usage(context, work), key=_used, reverse=True)
    if json_:
        print_json([_balance_fields(balance) for balance in balances])
        return
    table = Table("whose", "limit (USD)", "spent", "held", "left", "resets")
    for balance in balances:
        fields = _balance_fields(balance)
        row = [_whose(balance.budget, balance.subject), _limit(balance.budget)]
        row += [fields[name] for name in ("spent_usd", "held_usd", "left_usd")]
        table.add_row(*map(escape, [*row, fields["resets_at"] or "never"]))
    console().print(table)


@app.command("delete")
def delete_command(
    context: typer.Context, budget_id: Annotated[str, typer.Argument(help="Its id (bud_…).")]
) -> None:
    """Delete a budget; what it counted stays in the ledger."""
    request = budget_service_pb2.DeleteBudgetRequest(budget_id=budget_id)
    run_with_usage(context, lambda usage: usage.call(usage.budgets.DeleteBudget, request))
    console().print(escape(f"{budget_id} is deleted."))


def _place(
    project: str, key: str, customer: str, feature: str, run_: str
) -> tuple[budget_pb2.BudgetScope.ValueType, str, str]:
    """Whose budget is meant: scope, subject, and the project whose calls count alone."""
    named = [
        (scope, subject)
        for scope, subject in (
            (budget_pb2.BUDGET_SCOPE_KEY, key),
            (budget_pb2.BUDGET_SCOPE_CUSTOMER, customer),
            (budget_pb2.BUDGET_SCOPE_FEATURE, feature),
            (budget_pb2.BUDGET_SCOPE_RUN, run_),
        )
        if subject
    ]
    if len(named) > 1:
        fail("Name one of --key, --customer, --feature and --run.")
    if named:
        return (*named[0], project)
    if project:
        return budget_pb2.BUDGET_SCOPE_PROJECT, project, ""
    return budget_pb2.BUDGET_SCOPE_ORGANIZATION, "", ""


def only_organization(context: typer.Context) -> str:
    async def work(operator: Operator) -> list[str]:
        stub = organization_service_pb2_grpc.OrganizationServiceStub(operator.channel)
        request = organization_service_pb2.ListOrganizationsRequest(page=page_pb2.Page(size=2))
        answer: organization_service_pb2.ListOrganizationsResponse = await operator.call(
            stub.ListOrganizations, request
        )
        return [organization.id for organization in answer.organizations]

    found = run(context.obj, work)
    if len(found) != 1:
        fail("There are several organisations: name one with --org (see `onegate orgs list`).")
    return found[0]


def nano_usd(amount: str) -> int:
    """Ends the command for what is no amount."""
    try:
        given = Decimal(amount)
    except InvalidOperation:
        given = Decimal("NaN")
    # Comparing with what is no number is an error of its own kind.
    if not given.is_finite() or not 0 <= given <= _USD_MAX:
        fail(escape(f"{amount} is no amount of USD from 0 to {_USD_MAX:,}."))
    return int((given * NANO_PER_USD).to_integral_value(ROUND_FLOOR))


def _word(enumeration: Any, value: int) -> str:
    return str(enumeration.Name(value)).rpartition("_")[2].lower()


def _mode(budget: Budget) -> str:
    return _word(budget_pb2.BudgetMode, budget.mode)


def _limit(budget: Budget) -> str:
    period = _word(budget_pb2.BudgetPeriod, budget.period)
    return f"{usd(budget.limit_nano_usd)} {'in all' if period == 'total' else f'a {period}'}"


def _whose(budget: Budget, subject: str) -> str:
    within = f" in {budget.project_id}" if budget.project_id else ""
    who = "each" if subject == "*" else subject
    return f"{_word(budget_pb2.BudgetScope, budget.scope)} {who}{within}"


def _used(balance: Balance) -> float:
    limit = max(balance.budget.limit_nano_usd, 1)
    return (balance.spent_nano_usd + balance.held_nano_usd) / limit


def _fields(budget: Budget) -> dict[str, Any]:
    return {
        "id": budget.id,
        "organization_id": budget.organization_id,
        "scope": _word(budget_pb2.BudgetScope, budget.scope),
        "subject": budget.subject,
        "project_id": budget.project_id or None,
        "per": _word(budget_pb2.BudgetPeriod, budget.period),
        "mode": _mode(budget),
        "limit_usd": usd(budget.limit_nano_usd),
        "alert_percents": list(budget.alert.percents),
        "alert_recipients": list(budget.alert.recipients),
    }


def _balance_fields(balance: Balance) -> dict[str, Any]:
    limit = balance.budget.limit_nano_usd
    ends = balance.resets_at.ToJsonString() if balance.HasField("resets_at") else None
    return {
        "budget_id": balance.budget.id,
        "scope": _word(budget_pb2.BudgetScope, balance.budget.scope),
        "subject": balance.subject,
        "limit_usd": usd(limit),
        "spent_usd": usd(balance.spent_nano_usd),
        "held_usd": usd(balance.held_nano_usd),
        "left_usd": usd(limit - balance.spent_nano_usd - balance.held_nano_usd),
        "resets_at": ends,
    }
