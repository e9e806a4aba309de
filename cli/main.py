"""The ``onegate`` command and its flags. Everything else of the command line hangs below."""

import importlib
import sys
from importlib.metadata import version as installed_version
from pathlib import Path
from typing import Annotated, Any, Final

import typer
from typer.core import TyperGroup
from typer.main import get_command, get_group

from cli.context import CliContext, load
from cli.settings import RunFlags
from cli.up import UpOptions, up

GROUPS: Final = {
    "keys": "cli.keys_change",
    "users": "cli.users",
    "limits": "cli.limits",
    "projects": "cli.projects",
    "orgs": "cli.organizations",
    "policy": "cli.policy",
    "audit": "cli.audit",
    "providers": "cli.providers",
    "models": "cli.catalogue",
    "usage": "cli.usage_calls",
    "prices": "cli.prices",
    "credits": "cli.credits",
    "budgets": "cli.budgets",
    "ledger": "cli.ledger",
    "invoice": "cli.invoices",
    "alerts": "cli.alerts",
}
"""The module of each group of commands, whose ``app`` it is. Imported when it is used: ``onegate
up`` runs for as long as the gateway and holds none of them.
"""


COMMANDS: Final = {
    "apply": ("cli.declared", "apply_app"),
    "diff": ("cli.declared", "diff_app"),
    "export": ("cli.declared", "export_app"),
    "reconcile": ("cli.reconcile", "reconcile_app"),
    "login": ("cli.login", "login_app"),
    "logout": ("cli.login", "logout_app"),
    "whoami": ("cli.login", "whoami_app"),
}
"""Single commands of that kind: their module, and what they are called there."""


class Commands(TyperGroup):
    """The commands here, and those of ``GROUPS`` and ``COMMANDS``."""

    def list_commands(self, ctx: Any) -> list[str]:
        """All names."""
        return [*super().list_commands(ctx), *GROUPS, *COMMANDS]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """A command by name."""
        if cmd_name in COMMANDS:
            module, name = COMMANDS[cmd_name]
            found: Any = get_command(getattr(importlib.import_module(module), name))
        elif cmd_name in GROUPS:
            found = get_group(importlib.import_module(GROUPS[cmd_name]).app)
        else:
            return super().get_command(ctx, cmd_name)
        found.name = cmd_name
        return found

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """The command that the arguments name; the nearest ones are told to who mistypes one."""
        apart = {**GROUPS, **COMMANDS}
        if args[0] not in {*self.commands, *apart}:
            self.commands.update({name: self.get_command(ctx, name) for name in apart})
        return super().resolve_command(ctx, args)


app = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="One API key, one OpenAI-compatible endpoint, hundreds of models.",
)
ConfigOption = Annotated[
    Path | None,
    typer.Option("--config", "-c", help="Configuration file; default: onegate.toml if it exists."),
]
DataDirOption = Annotated[
    Path | None, typer.Option("--data-dir", help="Where databases, journal and sockets live.")
]

SalvageOption = Annotated[
    bool, typer.Option("--salvage", help="Start with a damaged journal: keep what is whole.")
]


@app.callback()
def main_options(
    context: typer.Context,
    config_file: ConfigOption = None,
    data_dir: DataDirOption = None,
    as_operator: Annotated[
        bool,
        typer.Option("--as-operator", help="Act as this machine's operator, not as who signed in."),
    ] = False,
) -> None:
    """Options that administration commands share."""
    context.obj = CliContext(
        load=lambda: load(config_file, {"data_dir": _text(data_dir)}), as_operator=as_operator
    )


@app.command("up")
def up_command(
    host: Annotated[str | None, typer.Option(help="Address to listen on.")] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on.")] = None,
    data_dir: DataDirOption = None,
    config_file: ConfigOption = None,
    workers: Annotated[
        int | None, typer.Option(help="How many edge and how many router processes.")
    ] = None,
    credentials_file: Annotated[
        Path | None,
        typer.Option(help="On the first start, also write base_url and keys here, as JSON."),
    ] = None,
    salvage: SalvageOption = False,
) -> None:
    """Run the whole gateway on this machine."""
    flags = RunFlags(host=host, port=port, data_dir=data_dir, workers=workers, salvage=salvage)
    settings = load(config_file, flags.overrides(), calls_providers=True)
    arguments = [
        *_flag("--host", host),
        *_flag("--port", port),
        *_flag("--data-dir", data_dir),
        *_flag("--config", config_file),
        *_flag("--workers", workers),
        *(["--salvage"] if salvage else []),
    ]
    up(settings, UpOptions(arguments=arguments, credentials_file=credentials_file))


@app.command(
    "serve",
    add_help_option=False,
    context_settings={"ignore_unknown_options": True, "allow_extra_args": True},
)
def serve_command(context: typer.Context) -> None:
    """Run one service: auth, usage, router or edge."""
    importlib.import_module("cli.serve").main(context.args)


@app.command("version")
def version_command() -> None:
    """Print the version."""
    typer.echo(installed_version("onegate"))


def _text(path: Path | None) -> str | None:
    return None if path is None else str(path)


def _flag(name: str, value: object | None) -> list[str]:
    return [] if value is None else [name, str(value)]


def main() -> None:
    """Runs the command; Ctrl-C ends it without a traceback."""
    try:
        app()
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
