"""Spend limits and spend alerts in OpenAI's shape
(https://platform.openai.com/docs/api-reference/spend-limits). Pure.

They are budgets, which lie in usage: a limit is a strict monthly budget of the organisation or the
project, an alert one that only tells people. Auth says who may; its pass opens usage. Amounts are
cents, as OpenAI has them.
"""

from typing import Any, Final

from edge.admin.asked import Asked, refused
from edge.admin.route import AnyRoute, Json, Route, Usage
from onegate.auth.v1 import spending_access_service_pb2 as access
from onegate.common.v1 import error_pb2
from onegate.usage.v1 import budget_pb2
from onegate.usage.v1 import budget_service_pb2 as pb
from runtime.errors import GatewayError

NANO_PER_CENT: Final = 10_000_000
CENTS_MAX: Final = 10**11
LIST_MAX: Final = 1_000
"""So many limits or alerts of one place are looked through."""

_PAGE: Final = 20

_SERVICE: Final = "SpendingAccessService/AuthorizeSpending"
_PLACES: Final = (
    ("", "/v1/organization"),
    ("projects.", "/v1/organization/projects/{project_id}"),
)
_MONTH: Final = budget_pb2.BUDGET_PERIOD_MONTH
_STRICT: Final = budget_pb2.BUDGET_MODE_STRICT
_ALERT: Final = budget_pb2.BUDGET_MODE_ALERT

_LIMIT: Final = access.SPENDING_KIND_LIMIT
_WARNING: Final = access.SPENDING_KIND_ALERT

Allowed = access.AuthorizeSpendingResponse


def _access(asked: Asked, kind: Any, action: Any) -> access.AuthorizeSpendingRequest:
    return access.AuthorizeSpendingRequest(
        kind=kind,
        action=action,
        project_id=asked.path.get("project_id", ""),
        alert_id=asked.path.get("alert_id", ""),
    )


def _see(kind: Any, action: Any) -> Any:
    """What is asked of auth to see, or to end, something."""

    def request(asked: Asked) -> access.AuthorizeSpendingRequest:
        return _access(asked, kind, action)

    return request


def _see_all(asked: Asked) -> access.AuthorizeSpendingRequest:
    """What is asked of auth to see all alerts; how they are to be listed is read later."""
    asked.page(_PAGE)
    asked.filter("before")
    return _access(asked, _WARNING, access.SPENDING_ACTION_LIST)


def _set(kind: Any, action: Any) -> Any:
    """What is asked of auth to set something: with what the log shall say of it."""

    def request(asked: Asked) -> access.AuthorizeSpendingRequest:
        found = _access(asked, kind, action)
        found.amount_nano_usd = _amount(asked)
        if kind == access.SPENDING_KIND_ALERT:
            found.recipients.extend(_channel(asked).recipients)
        return found

    return request


def _amount(asked: Asked) -> int:
    """The threshold in nano-USD, of a body that says what it is in."""
    if asked.text("currency") != "USD":
        raise refused("currency", "must be USD")
    if asked.text("interval") != "month":
        raise refused("interval", "must be month")
    cents = asked.whole("threshold_amount")
    if cents is None or cents > CENTS_MAX:
        raise refused("threshold_amount", f"must be 0 to {CENTS_MAX:,} cents")
    return cents * NANO_PER_CENT


def _channel(asked: Asked) -> budget_pb2.BudgetAlert:
    channel = asked.object("notification_channel")
    if channel.text("type") != "email":
        raise refused("notification_channel.type", "must be email")
    recipients = channel.texts("recipients")
    if not recipients:
        raise refused("notification_channel.recipients", "must name somebody")
    alert = budget_pb2.BudgetAlert(percents=[100], recipients=recipients)
    prefix = channel.text_or("subject_prefix")
    if prefix is not None:
        alert.subject_prefix = prefix
    channel.finish()
    return alert


def _budget(allowed: Allowed, asked: Asked) -> budget_pb2.Budget:
    """The monthly budget of the place that the path names."""
    project_id = asked.path.get("project_id", "")
    if project_id:
        scope, subject = budget_pb2.BUDGET_SCOPE_PROJECT, project_id
    else:
        scope, subject = budget_pb2.BUDGET_SCOPE_ORGANIZATION, allowed.organization_id
    return budget_pb2.Budget(
        organization_id=allowed.organization_id, scope=scope, subject=subject, period=_MONTH
    )


def _filter(budget: budget_pb2.Budget, mode: budget_pb2.BudgetMode.ValueType) -> Any:
    return budget_pb2.BudgetFilter(
        organization_id=budget.organization_id,
        scope=budget.scope,
        subject=budget.subject,
        modes=[mode],
    )


def limit_json(budget: budget_pb2.Budget, spent_nano_usd: int) -> Json:
    """A limit; it is being enforced once nothing is left."""
    return {
        "object": f"{_kind(budget)}.spend_limit",
        "currency": "USD",
        "interval": "month",
        "threshold_amount": budget.limit_nano_usd // NANO_PER_CENT,
        "enforcement": {
            "status": "enforcing" if spent_nano_usd >= budget.limit_nano_usd else "inactive"
        },
    }


def alert_json(budget: budget_pb2.Budget) -> Json:
    """An alert."""
    prefix = budget.alert.subject_prefix if budget.alert.HasField("subject_prefix") else None
    return {
        "id": budget.id,
        "object": f"{_kind(budget)}.spend_alert",
        "currency": "USD",
        "interval": "month",
        "threshold_amount": budget.limit_nano_usd // NANO_PER_CENT,
        "notification_channel": {
            "type": "email",
            "recipients": list(budget.alert.recipients),
            "subject_prefix": prefix,
        },
    }


def _kind(budget: budget_pb2.Budget) -> str:
    return "project" if budget.scope == budget_pb2.BUDGET_SCOPE_PROJECT else "organization"


async def _limit(usage: Usage, allowed: Allowed, asked: Asked) -> pb.ListBalancesResponse:
    wanted = _filter(_budget(allowed, asked), _STRICT)
    request = pb.ListBalancesRequest(filter=wanted, page_size=LIST_MAX)
    return await usage.ask("BudgetService/ListBalances", request, pb.ListBalancesResponse)


async def _get_limit(usage: Usage, allowed: Allowed, asked: Asked) -> Json:
    for balance in (await _limit(usage, allowed, asked)).balances:
        if balance.budget.period == _MONTH:
            return limit_json(balance.budget, balance.spent_nano_usd)
    raise GatewayError(error_pb2.ERROR_REASON_NOT_FOUND, "There is no spend limit here.")


async def _set_limit(usage: Usage, allowed: Allowed, asked: Asked) -> Json:
    budget = _budget(allowed, asked)
    budget.mode, budget.limit_nano_usd = _STRICT, _amount(asked)
    request = pb.SetBudgetRequest(budget=budget)
    await usage.ask("BudgetService/SetBudget", request, pb.SetBudgetResponse)
    return await _get_limit(usage, allowed, asked)


async def _delete_limit(usage: Usage, allowed: Allowed, asked: Asked) -> Json:
    for balance in (await _limit(usage, allowed, asked)).balances:
        budget = balance.budget
        if budget.period == _MONTH:
            await _end(usage, allowed, budget.id)
            return {"object": f"{_kind(budget)}.spend_limit.deleted", "deleted": True}
    raise GatewayError(error_pb2.ERROR_REASON_NOT_FOUND, "There is no spend limit here.")


async def _end(usage: Usage, allowed: Allowed, budget_id: str) -> None:
    request = pb.DeleteBudgetRequest(budget_id=budget_id, organization_id=allowed.organization_id)
    await usage.ask("BudgetService/DeleteBudget", request, pb.DeleteBudgetResponse)


async def _alerts(usage: Usage, allowed: Allowed, asked: Asked) -> list[budget_pb2.Budget]:
    request = pb.ListBudgetsRequest(
        filter=_filter(_budget(allowed, asked), _ALERT), page_size=LIST_MAX
    )
    found = await usage.ask("BudgetService/ListBudgets", request, pb.ListBudgetsResponse)
    return [budget for budget in found.budgets if budget.period == _MONTH]


async def _alert(usage: Usage, allowed: Allowed, asked: Asked) -> budget_pb2.Budget:
    for budget in await _alerts(usage, allowed, asked):
        if budget.id == asked.path["alert_id"]:
            return budget
    raise GatewayError(error_pb2.ERROR_REASON_NOT_FOUND, "There is no such spend alert here.")


async def _list_alerts(usage: Usage, allowed: Allowed, asked: Asked) -> Json:
    page, before = asked.page(_PAGE), asked.filter("before")
    found = await _alerts(usage, allowed, asked)
    if not page.ascending:
        found.reverse()
    ids = [budget.id for budget in found]
    start = ids.index(page.after) + 1 if page.after in ids else 0
    end = ids.index(before) if before in ids else len(ids)
    shown = found[start:end]
    cut = shown[-page.size :] if before else shown[: page.size]
    data = [alert_json(budget) for budget in cut]
    return {
        "object": "list",
        "data": data,
        "first_id": data[0]["id"] if data else None,
        "last_id": data[-1]["id"] if data else None,
        "has_more": len(shown) > len(cut),
    }


async def _get_alert(usage: Usage, allowed: Allowed, asked: Asked) -> Json:
    return alert_json(await _alert(usage, allowed, asked))


async def _create_alert(usage: Usage, allowed: Allowed, asked: Asked) -> Json:
    return await _keep_alert(usage, _budget(allowed, asked), asked)


async def _update_alert(usage: Usage, allowed: Allowed, asked: Asked) -> Json:
    return await _keep_alert(usage, await _alert(usage, allowed, asked), asked)


async def _keep_alert(usage: Usage, budget: budget_pb2.Budget, asked: Asked) -> Json:
    budget.mode, budget.limit_nano_usd = _ALERT, _amount(asked)
    budget.alert.CopyFrom(_channel(asked))
    request = pb.SetBudgetRequest(budget=budget)
    kept = await usage.ask("BudgetService/SetBudget", request, pb.SetBudgetResponse)
    return alert_json(kept.budget)


async def _delete_alert(usage: Usage, allowed: Allowed, asked: Asked) -> Json:
    budget = await _alert(usage, allowed, asked)
    await _end(usage, allowed, budget.id)
    return {"id": budget.id, "object": f"{_kind(budget)}.spend_alert.deleted", "deleted": True}


def _route(name: str, method: str, path: str, request: Any, onward: Any) -> AnyRoute:
    return Route(
        name=name,
        method=method,
        path=path,
        rpc=_SERVICE,
        request=request,
        response=access.AuthorizeSpendingResponse,
        onward=onward,
    )


_ROWS: Final = (
    (
        "spend_limit.get",
        "GET",
        "/spend_limit",
        _see(_LIMIT, access.SPENDING_ACTION_GET),
        _get_limit,
    ),
    (
        "spend_limit.update",
        "POST",
        "/spend_limit",
        _set(_LIMIT, access.SPENDING_ACTION_UPDATE),
        _set_limit,
    ),
    (
        "spend_limit.delete",
        "DELETE",
        "/spend_limit",
        _see(_LIMIT, access.SPENDING_ACTION_DELETE),
        _delete_limit,
    ),
    (
        "spend_alerts.list",
        "GET",
        "/spend_alerts",
        _see_all,
        _list_alerts,
    ),
    (
        "spend_alerts.create",
        "POST",
        "/spend_alerts",
        _set(_WARNING, access.SPENDING_ACTION_CREATE),
        _create_alert,
    ),
    (
        "spend_alerts.get",
        "GET",
        "/spend_alerts/{alert_id}",
        _see(_WARNING, access.SPENDING_ACTION_GET),
        _get_alert,
    ),
    (
        "spend_alerts.update",
        "POST",
        "/spend_alerts/{alert_id}",
        _set(_WARNING, access.SPENDING_ACTION_UPDATE),
        _update_alert,
    ),
    (
        "spend_alerts.delete",
        "DELETE",
        "/spend_alerts/{alert_id}",
        _see(_WARNING, access.SPENDING_ACTION_DELETE),
        _delete_alert,
    ),
)

ROUTES: Final[tuple[AnyRoute, ...]] = tuple(
    _route(f"{prefix}{name}", method, f"{place}{path}", request, onward)
    for prefix, place in _PLACES
    for name, method, path, request, onward in _ROWS
)
