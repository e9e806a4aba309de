"""``onegate credits``: money that a payer need not pay."""

from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, Final

import typer
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from cli.agreements import CustomerOption, OrgOption, ProjectOption, payer_of
from cli.budgets import nano_usd
from cli.keys_view import console, print_json
from cli.usage import OutputOption, Usage, moment, run_with_usage
from cli.usage_view import Output, print_csv, usd
from onegate.usage.v1 import billing_service_pb2 as pb
from onegate.usage.v1.billing_pb2 import Credit
from runtime.clock import SystemClock, SystemEntropy, uuid7

_PAGE_SIZE: Final = 1_000
_DAY_CHARS: Final = len("2026-12-31")

app = typer.Typer(no_args_is_help=True, help="Grant credits that invoices draw on.")


@app.callback()
def credits_command() -> None:
    """Grant credits that invoices draw on."""


@app.command("grant")
def grant_command(
    context: typer.Context,
    amount: Annotated[str, typer.Argument(metavar="USD", help="How much.")],
    description: Annotated[str, typer.Option(help="What for; it stands on the invoices.")],
    org: OrgOption = "",
    project: ProjectOption = "",
    customer: CustomerOption = "",
    until: Annotated[
        str, typer.Option(help="The last day on which it counts, or a time (UTC); default: ever.")
    ] = "",
    request_id: Annotated[
        str, typer.Option(help="Names this wish: with the same one again, the same credit comes.")
    ] = "",
    output: OutputOption = Output.TABLE,
) -> None:
    """Grant a payer a credit."""
    wanted = Credit(
        payer=payer_of(context, org, project, customer),
        description=description,
        amount_nano_usd=nano_usd(amount),
    )
    if until:
        wanted.expires_at.FromDatetime(_expiry(until))
    now = SystemClock().now()
    name = request_id or uuid7(int(now.timestamp() * 1000), SystemEntropy())

    async def work(usage: Usage) -> Credit:
        request = pb.GrantCreditRequest(credit=wanted, request_id=name)
        answer: pb.GrantCreditResponse = await usage.call(usage.billing.GrantCredit, request)
        return answer.credit

    _print([run_with_usage(context, work)], output)


@app.command("list")
def list_command(
    context: typer.Context,
    org: Annotated[str, typer.Option("--org", help="Only of this organisation.")] = "",
    output: OutputOption = Output.TABLE,
) -> None:
    """List credits and what is left of them, newest first."""

    async def work(usage: Usage) -> list[Credit]:
        request = pb.ListCreditsRequest(organization_id=org, page_size=_PAGE_SIZE)
        found: list[Credit] = []
        while True:
            page: pb.ListCreditsResponse = await usage.call(usage.billing.ListCredits, request)
            found += page.credits
            request.page_token = page.next_page_token
            if not page.next_page_token:
                return found

    _print(run_with_usage(context, work), output)


@app.command("revoke")
def revoke_command(
    context: typer.Context,
    credit: Annotated[str, typer.Argument(help="Its id.")],
    output: OutputOption = Output.TABLE,
) -> None:
    """End a credit; what invoices drew stays drawn."""

    async def work(usage: Usage) -> Credit:
        request = pb.RevokeCreditRequest(credit_id=credit)
        answer: pb.RevokeCreditResponse = await usage.call(usage.billing.RevokeCredit, request)
        return answer.credit

    _print([run_with_usage(context, work)], output)


def _expiry(text: str) -> datetime:
    """A day counts until it is over."""
    found = moment(text, SystemClock().now(), "--until")
    return found + timedelta(days=1) if len(text) == _DAY_CHARS else found


def _fields(one: Credit) -> dict[str, Any]:
    state = "revoked" if one.HasField("revoked_at") else "granted"
    if state == "granted" and one.HasField("expires_at"):
        expired = one.expires_at.ToDatetime(UTC) <= SystemClock().now()
        state = "expired" if expired else state
    return {
        "id": one.id,
        "organization_id": one.payer.organization_id,
        "project_id": one.payer.project_id,
        "customer": one.payer.customer,
        "description": one.description,
        "amount_usd": usd(one.amount_nano_usd),
        "drawn_usd": usd(one.drawn_nano_usd),
        "left_usd": usd(one.amount_nano_usd - one.drawn_nano_usd),
        "expires_at": one.expires_at.ToJsonString() if one.HasField("expires_at") else "",
        "granted_at": one.granted_at.ToJsonString(),
        "state": state,
    }


def _print(found: list[Credit], output: Output) -> None:
    rows = [_fields(one) for one in found]
    if output is Output.JSON:
        print_json(rows)
    elif output is Output.CSV:
        print_csv(rows, list(_fields(Credit())))
    else:
        made = Table(box=None, pad_edge=False)
        for name in _fields(Credit()):
            made.add_column(escape(name.replace("_", " ")), no_wrap=True)
        for row in rows:
            made.add_row(*(Text(str(value)) for value in row.values()))
        console().print(made)
