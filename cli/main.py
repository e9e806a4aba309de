"""The ``onegate`` command and its flags. Everything else of the command line hangs below."""

import sys
from dataclasses import replace
from importlib.metadata import version as installed_version
from pathlib import Path
from typing import Annotated

import typer

from cli import audit, keys, models, organizations, prices, projects, serve, usage
from cli.context import CliContext, fail, load
from cli.up import UpOptions, up
from runtime.config import ConfigError, nth_worker

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="One API key, one OpenAI-compatible endpoint, hundreds of models.",
)
app.add_typer(keys.app, name="keys")
app.add_typer(projects.app, name="projects")
app.add_typer(organizations.app, name="orgs")
app.add_typer(audit.app, name="audit")
app.add_typer(models.app, name="models")
app.add_typer(usage.app, name="usage")
app.add_typer(prices.app, name="prices")

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
    context: typer.Context, config_file: ConfigOption = None, data_dir: DataDirOption = None
) -> None:
    """Options that administration commands share."""
    context.obj = CliContext(
        load=lambda: load(config_file, {"data_dir": _text(data_dir)}),
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
    overrides: dict[str, object] = {
        "edge.host": host,
        "edge.port": port,
        "data_dir": _text(data_dir),
        "workers": workers,
        "router.journal_salvage": salvage or None,
    }
    settings = load(config_file, overrides, calls_providers=True)
    arguments = [
        *_flag("--host", host),
        *_flag("--port", port),
        *_flag("--data-dir", data_dir),
        *_flag("--config", config_file),
        *_flag("--workers", workers),
        *(["--salvage"] if salvage else []),
    ]
    up(settings, UpOptions(arguments=arguments, credentials_file=credentials_file))


@app.command("serve")
def serve_command(
    service: Annotated[str, typer.Argument(help="auth, usage, router or edge.")],
    host: Annotated[str | None, typer.Option(help="edge: address to listen on.")] = None,
    port: Annotated[int | None, typer.Option(help="edge: port to listen on.")] = None,
    data_dir: DataDirOption = None,
    config_file: ConfigOption = None,
    workers: Annotated[int | None, typer.Option(help="How many routers there are.")] = None,
    salvage: SalvageOption = False,
    index: Annotated[int, typer.Option(help="Which of several; names the router's journal.")] = 0,
    link_descriptor: Annotated[int | None, typer.Option(hidden=True)] = None,
) -> None:
    """Run one service."""
    if service not in serve.SERVICES:
        fail(f"there is no service {service!r}: choose one of {', '.join(serve.SERVICES)}", 2)
    overrides: dict[str, object] = {
        "edge.host": host,
        "edge.port": port,
        "data_dir": _text(data_dir),
        "workers": workers,
        "router.journal_salvage": salvage or None,
    }
    settings = load(config_file, overrides, calls_providers=service == "router")
    try:
        settings = nth_worker(settings, index)
    except ConfigError as error:
        fail(str(error), 2)
    if link_descriptor is not None:
        # Under `onegate up` no balancer watches readiness: Ctrl-C need not wait for one.
        settings = replace(settings, edge=replace(settings.edge, drain_notice_s=0.0))
    serve.serve(service, settings, link_descriptor)


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
