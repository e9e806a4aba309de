"""``onegate alerts``: what people were told of budgets and spending, and whether it arrives."""

import json
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from cli.keys_view import console, print_json
from cli.usage import Usage, run_with_usage
from onegate.usage.v1 import alert_service_pb2 as pb

app = typer.Typer(no_args_is_help=True, help="See and try alerts.")


@app.callback()
def alerts_command() -> None:
    """See and try alerts."""


@app.command("list")
def list_command(
    context: typer.Context,
    dead: Annotated[bool, typer.Option("--dead", help="Only what was given up.")] = False,
    limit: Annotated[int, typer.Option(min=1, max=1000, help="How many to show.")] = 50,
    json_: Annotated[bool, typer.Option("--json", help="JSON for programs.")] = False,
) -> None:
    """List the latest messages."""
    state = pb.ALERT_STATE_DEAD if dead else pb.ALERT_STATE_UNSPECIFIED
    request = pb.ListAlertsRequest(state=state, count_max=limit)

    async def work(usage: Usage) -> list[pb.Alert]:
        answer: pb.ListAlertsResponse = await usage.call(usage.alerts.ListAlerts, request)
        return list(answer.alerts)

    found = [_fields(one) for one in run_with_usage(context, work)]
    if json_:
        print_json(found)
        return
    table = Table("id", "decided", "what", "about", "to", "state", "tries", "error")
    for one in found:
        names = ("id", "created_at", "type", "about", "target", "state", "attempts", "error")
        table.add_row(*(escape(str(one[name] or "")) for name in names))
    console().print(table)


@app.command("test")
def trial_command(
    context: typer.Context,
    mail: Annotated[list[str] | None, typer.Option(help="Also send mail there.")] = None,
) -> None:
    """Send a trial to the webhook and to the recipients."""
    request = pb.TestAlertRequest(recipients=mail)

    async def work(usage: Usage) -> list[str]:
        answer: pb.TestAlertResponse = await usage.call(usage.alerts.TestAlert, request)
        return list(answer.ids)

    for one in run_with_usage(context, work):
        console().print(escape(f"{one} is in the outbox; see `onegate alerts list`."))


def _about(payload: dict[str, Any]) -> str:
    """Whom a message is about, the nearest name of several."""
    data = payload["data"]
    named = (data.get(name) for name in ("subject", "key_id", "project_id", "organization_id"))
    return str(next(filter(None, named), ""))


def _fields(one: pb.Alert) -> dict[str, Any]:
    payload = json.loads(one.payload)
    return {
        "id": one.id,
        "type": one.type,
        "about": _about(payload),
        "target": one.target,
        "state": pb.AlertState.Name(one.state)[12:].lower(),
        "attempts": one.attempts,
        "created_at": one.created_at.ToJsonString(),
        "error": one.error or None,
        "payload": payload,
    }
