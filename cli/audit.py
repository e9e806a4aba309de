"""``onegate audit``: shows the log of administration and checks that nobody has touched it."""

import json
import re
from typing import Annotated, Any, Final

import typer
from rich.table import Table
from rich.text import Text

from cli.context import fail
from cli.keys import Output, OutputOption
from cli.keys_view import console, print_json
from cli.operator import Operator, run
from onegate.auth.v1 import audit_service_pb2 as pb
from onegate.auth.v1 import audit_service_pb2_grpc, page_pb2

VERIFY_TIMEOUT_S: Final = 60.0
"""How long the check of the whole log may take, in seconds."""

_PAGE_SIZE: Final = 500
_HEAD: Final = re.compile(r"([1-9][0-9]{0,17}):([0-9a-f]{64})", re.ASCII)

app = typer.Typer(no_args_is_help=True, help="Show and check the log of administration.")


@app.command("list")
def list_command(
    context: typer.Context,
    limit: Annotated[int, typer.Option(min=1, help="At most so many.")] = 100,
    refused: Annotated[
        bool, typer.Option("--refused", help="Only what was tried and refused.")
    ] = False,
    organization: Annotated[str, typer.Option("--org", help="Only of this organisation.")] = "",
    project: Annotated[str, typer.Option(help="Only about this project.")] = "",
    output: OutputOption = Output.TABLE,
) -> None:
    """List what was changed and what was refused, newest first."""
    outcome = pb.AUDIT_OUTCOME_REFUSED if refused else pb.AUDIT_OUTCOME_ANY

    async def listed(operator: Operator) -> list[pb.AuditEvent]:
        stub = audit_service_pb2_grpc.AuditServiceStub(operator.channel)
        found: list[pb.AuditEvent] = []
        while len(found) < limit:
            size = min(limit - len(found), _PAGE_SIZE)
            after = found[-1].id if found else ""
            request = pb.ListAuditEventsRequest(
                page=page_pb2.Page(size=size, after=after),
                outcome=outcome,
                project_ids=[project] if project else [],
            )
            page: pb.ListAuditEventsResponse = await operator.call(stub.ListAuditEvents, request)
            found += page.events
            if not page.has_more:
                break
        return found

    events = run(context.obj, listed, organization)
    if output is Output.JSON:
        print_json([_fields(event) for event in events])
    else:
        console().print(_table(events))


@app.command("verify")
def verify_command(
    context: typer.Context,
    head: Annotated[
        str, typer.Option(help="A head that was noted before, as printed by this command.")
    ] = "",
    output: OutputOption = Output.TABLE,
) -> None:
    """Check that no entry was changed, taken out or put in; exit status 1 when one was."""
    noted = _HEAD.fullmatch(head)
    if head and noted is None:
        raise typer.BadParameter(
            "write a head as this command prints it: a number, a colon, 64 hexadecimal digits.",
            param_hint="--head",
        )
    request = pb.VerifyAuditLogRequest()
    if noted is not None:
        request.noted_sequence = int(noted[1])
        request.noted_mac = bytes.fromhex(noted[2])

    async def verify(operator: Operator) -> pb.VerifyAuditLogResponse:
        stub = audit_service_pb2_grpc.AuditServiceStub(operator.channel)
        found: pb.VerifyAuditLogResponse = await operator.call(
            stub.VerifyAuditLog, request, timeout_s=VERIFY_TIMEOUT_S
        )
        return found

    found = run(context.obj, verify)
    last = f"{found.entries}:{found.head_mac.hex()}" if found.entries else None
    if output is Output.JSON:
        fault = {"sequence": found.broken_sequence, "fault": found.fault}
        broken = None if found.intact else fault
        print_json(
            {"intact": found.intact, "entries": found.entries, "head": last, "broken": broken}
        )
        if not found.intact:
            raise typer.Exit(1)
        return
    if not found.intact:
        fail(f"the log is broken at entry {found.broken_sequence}: {found.fault}")
    console().print(f"The log is whole: {found.entries} entries.")
    if last is not None:
        console().print(f"Note its head elsewhere, for --head: {last}", soft_wrap=True)


def _fields(event: pb.AuditEvent) -> dict[str, Any]:
    return {
        "sequence": event.sequence,
        "id": event.id,
        "effective_at": event.effective_at.ToJsonString(),
        "type": event.type,
        "outcome": "refused" if event.refusal else "done",
        "reason": event.refusal or None,
        "organization_id": event.organization_id or None,
        "project_id": event.project_id or None,
        "resource_id": event.resource_id or None,
        "key_id": event.actor.key_id or None,
        "user_id": event.actor.user_id or None,
        "email": event.actor.email or None,
        "address": event.actor.address or None,
        "before": json.loads(event.before_json) if event.before_json else None,
        "after": json.loads(event.after_json) if event.after_json else None,
    }


def _table(events: list[pb.AuditEvent]) -> Table:
    table = Table(box=None, pad_edge=False)
    for column in ("when", "what", "outcome", "about", "by", "from"):
        table.add_column(column, no_wrap=column == "when")
    for event in events:
        by = event.actor.email or event.actor.user_id or event.actor.key_id or "operator"
        row = (
            event.effective_at.ToJsonString(),
            event.type,
            event.refusal or "done",
            event.resource_id or "-",
            by,
            event.actor.address or "-",
        )
        table.add_row(*(Text(value) for value in row))
    return table
