"""What every command is given: how to load the settings, and how a user's mistake is shown."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import typer
from rich.console import Console

from cli.settings import read_settings
from runtime.config import ConfigError, Settings


@dataclass(frozen=True, slots=True, kw_only=True)
class CliContext:
    """Set by the main command as ``typer.Context.obj``."""

    load: Callable[[], Settings]
    """Reads file, environment and flags once more; raises ``ConfigError`` with file and line."""

    as_operator: bool = False
    """Whether to act as the operator although somebody is signed in."""


def fail(message: str, code: int = 1) -> NoReturn:
    """Ends the command with one line on standard error and no traceback."""
    Console(stderr=True, soft_wrap=True).print(f"[red]error:[/red] {message}", highlight=False)
    raise typer.Exit(code)


def load(
    config_file: Path | None, overrides: dict[str, object], *, calls_providers: bool = False
) -> Settings:
    """The settings from file, environment and flags, with this machine's defaults filled in.

    A mistake in them ends the command. Only who calls providers needs their credentials.
    """
    try:
        return read_settings(config_file, overrides, calls_providers=calls_providers)
    except ConfigError as error:
        fail(str(error), 2)
