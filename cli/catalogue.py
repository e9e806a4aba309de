"""``onegate models refresh``, ``diff``, ``undo``, ``versions``: the catalogue, and how it changes.

Nothing changes by itself and nothing is fetched that nobody named. A refresh shows what it would
change, asks, and holds at once in every process; every version is kept and can be brought back.
"""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, Final

import typer
from rich.markup import escape

from cli.catalogue_fetch import FetchError
from cli.catalogue_sources import actor, from_content, from_url, installed, read_file
from cli.catalogue_view import print_changes, print_versions
from cli.context import fail
from cli.keys_view import console
from cli.models import OutputOption
from cli.models import app as models_app
from cli.usage import Usage, run_with_usage
from cli.usage_view import Output
from onegate.usage.v1 import catalogue_service_pb2 as pb
from runtime.clock import SystemClock
from services.usage.prices import catalogue_document
from services.usage.prices.catalogue_changes import ModelChange, changes
from services.usage.prices.catalogue_document import Document
from services.usage.prices.catalogue_import import Wanted

app = models_app

_PAGE_SIZE: Final = 1_000

FileOption = Annotated[
    Path | None,
    typer.Option(
        "--from",
        help="A file: genai-prices' data, model_facts.json, models.dev's api.json, or LiteLLM's "
        "price map.",
    ),
]
UrlOption = Annotated[
    str, typer.Option("--url", help="The https:// address of such a file; it is fetched once.")
]
ModelsOption = Annotated[
    str,
    typer.Option("--models", help="Only prices of models that match, such as 'mistral/*'."),
]
NewOption = Annotated[bool, typer.Option("--new-only", help="Only prices of models without one.")]
DropOption = Annotated[
    bool, typer.Option("--drop-imports", help="Without the prices that files have brought.")
]
YesOption = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """A version, and what it says."""

    version: pb.CatalogueVersion
    document: Document


@app.command("refresh")
def refresh_command(
    context: typer.Context,
    file: FileOption = None,
    url: UrlOption = "",
    models: ModelsOption = "*",
    new_only: NewOption = False,
    drop_imports: DropOption = False,
    yes: YesOption = False,
) -> None:
    """Put a newer catalogue in force, after showing what changes: what is installed, or a file."""
    source = _source(file, url, Wanted(models=models, new_only=new_only), not drop_imports)
    before = _kept(context, 0)
    after = source(before.document)
    found = _compared(before.document, after)
    print_changes(found, Output.TABLE)
    content = catalogue_document.packed(after)
    digest = catalogue_document.digest_of(after)
    if digest == before.version.digest:
        console().print("Nothing changes: it is in force already.")
        return
    console().print(escape(f"from {catalogue_document.source_of(after)}"), style="dim")
    console().print(f"sha256:{digest}", style="dim")
    if not yes:
        typer.confirm("Put it in force, for everybody, at once?", abort=True)

    async def work(usage: Usage) -> pb.CatalogueVersion:
        request = pb.RefreshCatalogueRequest(
            document=content, in_force=before.version.digest, actor=actor()
        )
        answer: pb.RefreshCatalogueResponse = await usage.call(
            usage.catalogue.RefreshCatalogue, request
        )
        return answer.version

    _say(run_with_usage(context, work))


@app.command("diff")
def diff_command(
    context: typer.Context,
    versions: Annotated[
        list[int] | None,
        typer.Argument(help="Two versions to compare, or one with that in force."),
    ] = None,
    file: FileOption = None,
    url: UrlOption = "",
    models: ModelsOption = "*",
    new_only: NewOption = False,
    drop_imports: DropOption = False,
    output: OutputOption = Output.TABLE,
) -> None:
    """Show what a refresh would change, or what differs between versions."""
    numbers = versions or []
    if len(numbers) > 2 or (numbers and (file or url)):
        raise typer.BadParameter("name one or two versions, or a file, or an address")
    if numbers:
        old = _kept(context, numbers[0]).document
        new = _kept(context, numbers[1] if len(numbers) > 1 else 0).document
    else:
        source = _source(file, url, Wanted(models=models, new_only=new_only), not drop_imports)
        old = _kept(context, 0).document
        new = source(old)
    print_changes(_compared(old, new), output)


@app.command("undo")
def undo_command(
    context: typer.Context,
    to: Annotated[
        int, typer.Option("--to", min=0, help="The version; default: the one before this one.")
    ] = 0,
    yes: YesOption = False,
) -> None:
    """Go back to a former version of the catalogue."""
    before = _kept(context, 0)
    if to and not yes:
        print_changes(_compared(before.document, _kept(context, to).document), Output.TABLE)
    if not yes:
        what = f"version {to}" if to else "the version before"
        typer.confirm(f"Go back to {what}, for everybody, at once?", abort=True)

    async def work(usage: Usage) -> pb.CatalogueVersion:
        request = pb.RestoreCatalogueRequest(
            number=to, in_force=before.version.digest, actor=actor()
        )
        answer: pb.RestoreCatalogueResponse = await usage.call(
            usage.catalogue.RestoreCatalogue, request
        )
        return answer.version

    _say(run_with_usage(context, work))


@app.command("versions")
def versions_command(context: typer.Context, output: OutputOption = Output.TABLE) -> None:
    """List the versions of the catalogue, the one in force first."""

    async def work(usage: Usage) -> list[pb.CatalogueVersion]:
        request = pb.ListCatalogueVersionsRequest(page_size=_PAGE_SIZE)
        found: list[pb.CatalogueVersion] = []
        while True:
            page: pb.ListCatalogueVersionsResponse = await usage.call(
                usage.catalogue.ListCatalogueVersions, request
            )
            found += page.versions
            request.page_token = page.next_page_token
            if not page.next_page_token:
                return found

    print_versions(run_with_usage(context, work), output)


def _source(
    file: Path | None, url: str, wanted: Wanted, imports: bool
) -> Callable[[Document], dict[str, Any]]:
    """What makes the next version from the one in force. Ends the command when it cannot."""
    if file is not None and url:
        raise typer.BadParameter("name a file or an address, not both")
    clock = SystemClock()
    if file is None and not url:
        return lambda before: installed(before, imports=imports)
    name = url or (file.name if file is not None else "")
    try:
        content = from_url(url, clock) if file is None else read_file(file)
    except OSError as error:
        fail(escape(f"{file} cannot be read: {error.strerror}"))
    except (FetchError, ValueError) as error:
        fail(escape(f"{name} is not taken: {error}"))
    return lambda before: _made(before, content, name, wanted, clock.now())


def _made(
    before: Document, content: bytes, name: str, wanted: Wanted, at: datetime
) -> dict[str, Any]:
    try:
        return from_content(before, content, name, wanted, at)
    except ValueError as error:
        fail(escape(f"{name} is not taken: {error}"))


def _kept(context: typer.Context, number: int) -> Kept:
    """A version of the catalogue; the one in force for 0."""

    async def work(usage: Usage) -> pb.GetCatalogueResponse:
        request = pb.GetCatalogueRequest(number=number)
        answer: pb.GetCatalogueResponse = await usage.call(usage.catalogue.GetCatalogue, request)
        return answer

    answer = run_with_usage(context, work)
    return Kept(version=answer.version, document=catalogue_document.unpacked(answer.document))


def _compared(old: Document, new: Document) -> list[ModelChange]:
    """What differs, with the prices that apply now. Ends the command for what is no catalogue."""
    at = SystemClock().now()
    try:
        readings = [catalogue_document.read(document) for document in (old, new)]
    except ValueError as error:
        fail(escape(f"that is no catalogue: {error}"))
    return list(changes(readings[0], readings[1], at))


def _say(version: pb.CatalogueVersion) -> None:
    console().print(
        f"Version {version.number} is in force: {version.models:,} models with a price."
    )
