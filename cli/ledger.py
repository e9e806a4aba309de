"""``onegate ledger``: checks that the books add up."""

from typing import Annotated

import typer
from rich.markup import escape

from cli.context import fail
from cli.keys_view import console, print_json
from cli.usage import Usage, run_with_usage
from cli.usage_view import usd
from onegate.usage.v1 import ledger_service_pb2 as pb

app = typer.Typer(no_args_is_help=True, help="Check the ledger.")


@app.callback()
def ledger_command() -> None:
    """Check the ledger."""


@app.command("verify")
def verify_command(
    context: typer.Context,
    rebuild: Annotated[
        bool, typer.Option("--rebuild", help="Put the balances that differ right.")
    ] = False,
    json_: Annotated[bool, typer.Option("--json", help="JSON for programs.")] = False,
) -> None:
    """Rebuild every balance from its entries and holds, and compare; fails when one differs."""

    async def work(usage: Usage) -> pb.VerifyLedgerResponse:
        found: pb.VerifyLedgerResponse = await usage.call(
            usage.ledger.VerifyLedger, pb.VerifyLedgerRequest(rebuild=rebuild)
        )
        return found

    found = run_with_usage(context, work)
    if json_:
        print_json(
            {
                "accounts": found.accounts,
                "transactions": found.transactions,
                "holds": found.holds,
                "overruns": found.overruns,
                "rebuilt": found.rebuilt,
                "uncertain_usd": usd(found.uncertain_nano_usd),
                "faults": [
                    {
                        "subject": fault.subject,
                        "what": fault.what,
                        "kept_nano_usd": fault.kept_nano_usd,
                        "rebuilt_nano_usd": fault.rebuilt_nano_usd,
                    }
                    for fault in found.faults
                ],
            }
        )
    else:
        uncertain = usd(found.uncertain_nano_usd)
        console().print(
            f"{found.accounts:,} accounts, {found.transactions:,} transactions,"
            f" {found.holds:,} open holds, {found.overruns:,} overruns, {uncertain} USD uncertain."
        )
    if found.rebuilt:
        console().print(f"{found.rebuilt:,} accounts were put right.")
    if found.faults:
        first = found.faults[0]
        fail(
            escape(
                f"{len(found.faults)} balances do not add up: {first.what} of {first.subject} is"
                f" kept as {first.kept_nano_usd} and adds up to {first.rebuilt_nano_usd} nano-USD."
            )
        )
