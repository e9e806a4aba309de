"""``onegate apply``, ``diff`` and ``export``: an organisation as a file in git."""

import sys
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Annotated, Final, TypeVar

import typer
from rich.markup import escape
from rich.text import Text

from cli import declared_file
from cli.context import CliContext, fail
from cli.declared_file import Declared, DeclaredError
from cli.declared_plan import PlanError, Step, plan
from cli.declared_providers import providers_of, secrets_of
from cli.declared_state import AmbiguousError, StateReader
from cli.declared_steps import Applier
from cli.keys import Output, OutputOption
from cli.keys_view import console, print_json
from cli.operator import Operator, run
from cli.projects import OrganizationOption
from runtime.errors import GatewayError

T = TypeVar("T")

FILE_MISTAKE: Final = 2
"""The exit code for a file that cannot be read or asks for what cannot be done."""

FileOption = Annotated[
    Path, typer.Option("--file", "-f", help="The file, such as org.yaml; - for standard input.")
]
PruneOption = Annotated[
    bool,
    typer.Option("--prune", help="End what the file does not have, in lists that the file has."),
]

apply_app = typer.Typer()
diff_app = typer.Typer()
export_app = typer.Typer()


@export_app.command()
def export_command(context: typer.Context, organization: OrganizationOption = "") -> None:
    """Write the organisation as a file: projects, keys without secrets, limits, models, roles; to
    the operator the gateway's providers, too.
    """

    async def read(operator: Operator) -> Declared:
        return await _live(operator, StateReader(operator))

    typer.echo(declared_file.write(_run(context.obj, read, organization)), nl=False)


@diff_app.command()
def diff_command(
    context: typer.Context,
    file: FileOption,
    prune: PruneOption = False,
    organization: OrganizationOption = "",
    output: OutputOption = Output.TABLE,
) -> None:
    """Show what `onegate apply` would change. Exits 1 when it would change anything."""
    wanted = _wanted(file)

    async def planned(operator: Operator) -> list[Step]:
        return plan(await _live(operator, StateReader(operator)), wanted, prune=prune)

    steps = _run(context.obj, planned, organization)
    _show(steps, output)
    if steps:
        raise typer.Exit(1)


@apply_app.command()
def apply_command(
    context: typer.Context,
    file: FileOption,
    prune: PruneOption = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask before deleting.")] = False,
    organization: OrganizationOption = "",
    output: OutputOption = Output.TABLE,
) -> None:
    """Make the organisation what the file says. Twice is the same as once.

    What the file does not name stays. Keys that are made show their secrets this once.
    """
    wanted = _wanted(file)

    async def applied(operator: Operator) -> tuple[list[Step], Applier]:
        reader = StateReader(operator)
        steps = plan(await _live(operator, reader), wanted, prune=prune)
        applier = Applier(operator, reader.ids, secrets_of(steps))
        _confirm([step for step in steps if step.is_deletion], yes=yes)
        done: list[Step] = []
        try:
            for step in steps:
                await applier.do(step)
                done.append(step)
        except (GatewayError, AmbiguousError) as error:
            _show(done, Output.TABLE)
            _show_secrets(applier)
            why = error.message if isinstance(error, GatewayError) else str(error)
            fail(escape(f"stopped at `{steps[len(done)].text()}`: {why} Mend it and apply again."))
        return steps, applier

    steps, applier = _run(context.obj, applied, organization)
    if output is Output.JSON:
        secrets = [
            {"project": place, "name": name, "value": value}
            for (place, name), value in applier.secrets.items()
        ]
        print_json({"changes": _rows(steps), "keys": secrets})
        return
    _show(steps, output)
    _show_secrets(applier)


async def _live(operator: Operator, reader: StateReader) -> Declared:
    """The organisation, and to the operator the gateway's providers."""
    found = await reader.read()
    providers = await providers_of(operator, reader.ids)
    return found if providers is None else {**found, "providers": providers}


def _run(cli: CliContext, work: Callable[[Operator], Awaitable[T]], organization: str) -> T:
    try:
        return run(cli, work, organization)
    except (AmbiguousError, PlanError) as error:
        fail(escape(str(error)), FILE_MISTAKE)


def _wanted(file: Path) -> Declared:
    name = "standard input" if str(file) == "-" else str(file)
    try:
        text = sys.stdin.read() if str(file) == "-" else file.read_text()
        return declared_file.read(text, name)
    except DeclaredError as error:
        fail(escape(str(error)), FILE_MISTAKE)
    except (OSError, UnicodeDecodeError) as error:
        fail(escape(f"{name} cannot be read: {error}"), FILE_MISTAKE)


def _confirm(deletions: Sequence[Step], *, yes: bool) -> None:
    if not deletions or yes:
        return
    out = console()
    for step in deletions:
        out.print(Text(step.text()))
    typer.confirm(f"End these {len(deletions)} for good?", abort=True)


def _rows(steps: Sequence[Step]) -> list[dict[str, object]]:
    return [
        {
            "does": step.does,
            "project": step.place or None,
            "name": step.name or None,
            "before": step.before,
            "after": step.after,
        }
        for step in steps
    ]


def _show(steps: Sequence[Step], output: Output) -> None:
    if output is Output.JSON:
        print_json(_rows(steps))
        return
    out = console()
    for step in steps:
        # Names are other people's text, not markup.
        out.print(Text(step.text()), soft_wrap=True)
    if not steps:
        out.print("Nothing to change.")


def _show_secrets(applier: Applier) -> None:
    out = console()
    if applier.secrets:
        out.print("\nThe keys that were made, shown this once:")
    for (place, name), value in applier.secrets.items():
        out.print(Text(f"  {place}/{name}: {value}"), soft_wrap=True)
