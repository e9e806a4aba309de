"""``onegate up``: the whole gateway on one machine, supervised, with SQLite in one directory."""

import asyncio
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from rich.console import Console

from cli.context import fail
from cli.keeper import Orders, become
from cli.supervisor import Program, StartError, exclusive
from runtime.config import Settings, environment

STOP_TIMEOUT_S: Final = 15.0
"""How long auth and usage may take to stop, in seconds; edge and router have their drain beside
it.
"""
FOUND_TIMEOUT_S: Final = 30.0
"""How long making the first keys may take, in seconds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Founded:
    """The first keys. They exist here and nowhere else: show them once."""

    admin_key: str = field(repr=False)
    api_key: str = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class UpOptions:
    """What the command line says beside the settings."""

    arguments: Sequence[str]
    """Flags that every child gets so that it reads the same settings."""
    credentials_file: Path | None


def up(settings: Settings, options: UpOptions) -> None:
    """Runs all four services until Ctrl-C."""
    data_dir = Path(settings.data_dir)
    try:
        (data_dir / "run").mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = exclusive(str(data_dir / "run" / "up.lock"))
    except BlockingIOError:
        fail(f"another `onegate up` runs on {data_dir}: stop it or choose another --data-dir")
    except OSError as error:
        fail(f"cannot use {data_dir} as data directory: {error.strerror}")
    try:
        first = asyncio.run(_found(options.arguments))
    except StartError as error:
        fail(f"{error}; the log above says why")
    if first is not None and options.credentials_file is not None:
        _write_credentials(options.credentials_file, settings, first)
    become(_orders(settings, options, first), lock, options.arguments, environment())


def _orders(settings: Settings, options: UpOptions, first: Founded | None) -> Orders:
    """What is left to do and to say."""
    stages = _stages(settings, options.arguments)
    console = _console()
    with console.capture() as ready:
        _say(console, settings, options, first, sum(map(len, stages)))
    with console.capture() as failed:
        if first is not None:
            _show_keys(console, first)
    return Orders(stages=stages, ready_text=ready.get(), failed_text=failed.get())


async def _found(arguments: Sequence[str]) -> Founded | None:
    """The first keys, made by a process of its own; ``None`` on every later start."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "cli.founding", *arguments, stdout=asyncio.subprocess.PIPE
    )
    try:
        printed, _ = await asyncio.wait_for(process.communicate(), FOUND_TIMEOUT_S)
    except TimeoutError:
        process.kill()
        raise StartError("the store of keys did not open in time") from None
    if process.returncode != 0:
        raise StartError("the store of keys could not be opened")
    keys = json.loads(printed)
    return None if keys is None else Founded(**keys)


def _stages(settings: Settings, arguments: Sequence[str]) -> list[list[Program]]:
    """Who is started after whom; stopping goes the other way round."""

    def program(service: str, stop_timeout_s: float, index: int | None = None) -> Program:
        place = [] if index is None else ["--index", str(index)]
        return Program(
            name=service if index is None else f"{service}-{index}",
            command=[sys.executable, "-m", "cli", "serve", service, *arguments, *place],
            stop_timeout_s=stop_timeout_s,
        )

    edge_stop_s = settings.edge.drain_notice_s + settings.edge.drain_timeout_s + STOP_TIMEOUT_S
    router_stop_s = settings.router.drain_timeout_s + STOP_TIMEOUT_S
    workers = range(settings.workers)
    return [
        [program("auth", STOP_TIMEOUT_S), program("usage", STOP_TIMEOUT_S)],
        [program("router", router_stop_s, index) for index in workers],
        [program("edge", edge_stop_s, index) for index in workers],
    ]


def base_url(settings: Settings) -> str:
    """Where clients of this machine find the gateway."""
    host = settings.edge.host
    host = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)
    return f"http://{host}:{settings.edge.port}/v1"


def _write_credentials(path: Path, settings: Settings, first: Founded) -> None:
    """Writes the first keys for scripts, readable by this user alone."""
    content = json.dumps(
        {
            "base_url": base_url(settings),
            "admin_key": first.admin_key,
            "api_key": first.api_key,
        },
        indent=2,
    )
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        os.fchmod(descriptor, 0o600)
        file.write(content + "\n")


def _say(
    console: Console,
    settings: Settings,
    options: UpOptions,
    first: Founded | None,
    processes: int,
) -> None:
    """Says where the gateway is and, once, what its keys are."""
    url = base_url(settings)
    console.print(f"\n[bold green]onegate is up[/] at [bold]{url}[/]  (Ctrl-C stops it)")
    console.print(f"  data in {settings.data_dir}, {processes} processes", style="dim")
    if first is None:
        if options.credentials_file is not None and not options.credentials_file.exists():
            console.print(
                f"  [yellow]{options.credentials_file} was not written: keys are shown only on the"
                " first start; make another with `onegate keys create`[/]"
            )
        return
    _show_keys(console, first)
    model = first_model(settings)
    console.print("\nThe first call, with curl:")
    console.print(
        f"""  curl {url}/chat/completions \\
    -H "Authorization: Bearer {first.api_key}" -H "Content-Type: application/json" \\
    -d '{{"model": "{model}", "messages": [{{"role": "user", "content": "Hello!"}}]}}'""",
        markup=False,
    )
    console.print("\nor from Python (pip install openai):")
    console.print(
        f"""  from openai import OpenAI
  client = OpenAI(base_url="{url}", api_key="{first.api_key}")
  answer = client.chat.completions.create(
      model="{model}", messages=[{{"role": "user", "content": "Hello!"}}])
  print(answer.choices[0].message.content)
""",
        markup=False,
    )


def _console() -> Console:
    return Console(stderr=True, soft_wrap=True, highlight=False)


def _show_keys(console: Console, first: Founded) -> None:
    console.print("\nYour keys, shown this once:")
    console.print(f"  admin key    [bold]{first.admin_key}[/]")
    console.print(f"  project key  [bold]{first.api_key}[/]")


FIRST_MODELS: Final = {
    "openai": "gpt-4o-mini",
    "anthropic": "claude-haiku-4-5",
    "gemini": "gemini-2.5-flash",
    "deepseek": "deepseek-chat",
    "groq": "llama-3.3-70b-versatile",
    "mistral": "mistral-small-latest",
}
"""A small model of the best-known vendors, for the call that is printed on the first start."""


def first_model(settings: Settings) -> str:
    """A model that the printed call can use with what is configured; the demo's without a
    credential.
    """
    for provider in settings.providers:
        if provider.models:
            return f"{provider.name}/{provider.models[0]}"
        if provider.kind in FIRST_MODELS:
            return f"{provider.name}/{FIRST_MODELS[provider.kind]}"
    if settings.providers:
        return f"{settings.providers[0].name}/MODEL"
    return "demo/echo"
