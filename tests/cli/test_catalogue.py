"""``onegate models refresh`` where what it is given is wrong, and what it fetches; ``tests/e2e``
has the rest.
"""

import http.server
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from cli import catalogue, catalogue_fetch
from cli.catalogue_fetch import FetchError, fetched
from cli.catalogue_sources import installed
from cli.catalogue_view import print_changes
from cli.context import CliContext
from cli.usage_view import Output
from runtime.clock import SystemClock
from runtime.config import Settings
from services.usage.prices import catalogue_document
from services.usage.prices.catalogue_changes import Field, ModelChange, Verdict
from tests.services.router.test_upstream import certificate, trusting


class Site(http.server.BaseHTTPRequestHandler):
    """What is to be fetched."""

    def do_GET(self) -> None:
        if self.path == "/away":
            self.redirect("https://elsewhere.test/file")
        elif self.path == "/plain":
            self.redirect(f"http://{self.headers['host']}/file")
        elif self.path == "/moved":
            self.redirect("/file")
        elif self.path == "/round":
            self.redirect("/round")
        elif self.path == "/gone":
            self.send_error(404)
        else:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"content")

    def redirect(self, where: str) -> None:
        self.send_response(302)
        self.send_header("location", where)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the library's name
        """Says nothing."""


@contextmanager
def site(directory: Path) -> Iterator[str]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Site)
    context = certificate(directory, "localhost")
    server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield f"https://localhost:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.mark.parametrize("path", ["/file", "/moved"])
def test_a_named_address_is_fetched(tmp_path: Path, path: str) -> None:
    with site(tmp_path) as url:
        assert fetched(url + path, SystemClock(), trusting(tmp_path)) == b"content"


@pytest.mark.parametrize(
    ("path", "why"),
    [
        ("/away", "it redirects to https://elsewhere.test"),
        ("/plain", "it redirects to http://"),
        ("/round", "redirects without end"),
        ("/gone", "answers 404"),
    ],
)
def test_no_other_host_is_ever_asked(tmp_path: Path, path: str, why: str) -> None:
    with site(tmp_path) as url, pytest.raises(FetchError, match=why):
        fetched(url + path, SystemClock(), trusting(tmp_path))


@pytest.mark.parametrize("url", ["http://localhost/x", "file:///etc/passwd", "x", "https://"])
def test_only_https_is_fetched(url: str) -> None:
    with pytest.raises(FetchError, match="https://"):
        fetched(url, SystemClock())


def test_a_certificate_that_nobody_trusts_is_refused(tmp_path: Path) -> None:
    with site(tmp_path) as url, pytest.raises(FetchError, match="certificate"):
        fetched(url + "/file", SystemClock())


def test_what_is_too_long_or_takes_too_long_is_let_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with site(tmp_path) as url:
        monkeypatch.setattr(catalogue_fetch, "BYTES_MAX", 3)
        with pytest.raises(FetchError, match="longer than 3 bytes"):
            fetched(url + "/file", SystemClock(), trusting(tmp_path))
        monkeypatch.undo()
        monkeypatch.setattr(catalogue_fetch, "DEADLINE_S", -1.0)
        with pytest.raises(FetchError, match="takes longer than"):
            fetched(url + "/file", SystemClock(), trusting(tmp_path))


def said(*arguments: str) -> str:
    app = typer.Typer()
    app.add_typer(catalogue.app, name="models")
    result = CliRunner().invoke(app, ["models", *arguments], obj=CliContext(load=Settings))
    assert result.exit_code != 0
    assert "Traceback" not in result.output
    return " ".join(result.output.split())


def test_what_cannot_be_read_is_explained(tmp_path: Path) -> None:
    assert "cannot be read" in said("refresh", "--from", str(tmp_path / "none.json"))
    assert "it must be an https:// address" in said("refresh", "--url", "http://x/y")
    both = said("diff", "--from", "x", "--url", "https://x/y")
    assert "not both" in both
    assert "name one or two versions" in said("diff", "1", "2", "3")


def test_what_is_installed_is_what_ships_and_imports_stay_unless_they_shall_not() -> None:
    shipped = catalogue_document.shipped()
    assert catalogue_document.digest_of(installed(shipped, imports=True)) == (
        catalogue_document.digest_of(shipped)
    )
    rates = [["METER_INPUT_TOKENS", "1", 0], ["METER_OUTPUT_TOKENS", "1", 0]]
    before = {**shipped, "sheets": {"openai/x": {"source": "s", "rates": rates}}}
    assert installed(before, imports=True)["sheets"] == before["sheets"]
    assert installed(before, imports=False) == shipped


def test_names_are_shown_as_they_are_and_a_long_comparison_is_cut(
    capsys: pytest.CaptureFixture[str],
) -> None:
    field = Field(name="input_tokens", before="1.00", after="2.00")
    many = [
        ModelChange(model=f"openai/[bold]{n}", verdict=Verdict.CHANGED, fields=(field,))
        for n in range(250)
    ]
    print_changes(many, Output.TABLE)
    told = capsys.readouterr().out
    assert "openai/[bold]0" in told
    assert "50 lines more" in told
    assert "250 models changed" in told
