"""People at the command line: a browser, another device, a session that every command and the SDK
use, and its end. The gateway, the identity provider, the browser and the command are processes or
sockets of their own.
"""

import json
import stat
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import openai
import pytest

from cli import session
from tests.gateway import Gateway, clean_environment, running_gateway, wait_until
from tests.oidc_provider import CLIENT, Provider, provider

BROWSER = """
import sys, urllib.request
urllib.request.urlopen(sys.argv[1], timeout=20).read()
"""


@dataclass
class Desk:
    """Somebody's machine: their configuration and their browser."""

    gateway: Gateway
    idp: Provider
    home: Path
    extra: dict[str, str] = field(default_factory=dict)

    def start(self, *arguments: str) -> "subprocess.Popen[str]":
        """A command under way."""
        browser = self.home / "browser.py"
        browser.write_text(BROWSER)
        environment = {
            "XDG_CONFIG_HOME": str(self.home),
            "BROWSER": f"{sys.executable} {browser} %s",
            **self.extra,
        }
        command = [sys.executable, "-m", "cli.main", "--data-dir", str(self.gateway.data_dir)]
        return subprocess.Popen(
            [*command, *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=clean_environment(environment),
        )

    def ran(self, *arguments: str) -> tuple[int, str, str]:
        """A command that is over: its status and what it said."""
        started = self.start(*arguments)
        out, err = started.communicate(timeout=60)
        return started.returncode, out, err

    def run(self, *arguments: str) -> str:
        """What a command prints."""
        status, out, err = self.ran(*arguments)
        assert status == 0, out + err
        return out

    @property
    def file(self) -> Path:
        return self.home / "onegate" / session.FILE

    @property
    def key(self) -> str:
        """The session's key."""
        found: str = json.loads(self.file.read_text())["key"]
        return found


@pytest.fixture(scope="module")
def idp() -> Iterator[Provider]:
    """An identity provider."""
    with provider() as made:
        yield made


@pytest.fixture(scope="module")
def gateway(idp: Provider, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """A gateway that people sign in to."""
    config = f"""
    [oidc]
    issuer = "{idp.issuer}"
    client_id = "{CLIENT}"
    create_users = true
    group_roles = ["admins=owner", "staff=reader"]
    """
    with running_gateway(tmp_path_factory.mktemp("login"), config) as running:
        yield running


@pytest.fixture
def desk(gateway: Gateway, idp: Provider, tmp_path: Path) -> Desk:
    idp.person["groups"] = ["admins"]
    return Desk(gateway, idp, tmp_path)


def test_a_session_serves_commands_rest_and_the_sdk_until_it_is_ended(desk: Desk) -> None:
    assert json.loads(desk.run("whoami", "-o", "json"))["kind"] == "operator"
    assert "Signed in as ada@example.com (owner)" in desk.run("login")
    assert stat.S_IMODE(desk.file.stat().st_mode) == 0o600
    who = json.loads(desk.run("whoami", "-o", "json"))
    assert (who["kind"], who["email"], who["role"]) == ("user", "ada@example.com", "owner")
    made = json.loads(desk.run("projects", "create", "mine", "-o", "json"))
    json.loads(desk.run("keys", "create", "--name", "k", "--project", made["id"], "-o", "json"))
    key = desk.key
    with openai.OpenAI(
        base_url=desk.gateway.base_url, api_key="none", admin_api_key=key, max_retries=0
    ) as client:
        projects = client.admin.organization.projects.list(limit=100)
        assert made["id"] in {project.id for project in projects.data}
        log = client.admin.organization.audit_logs.list(limit=100).data
        by = {entry.type: entry.actor for entry in log}
        assert "ada@example.com" in str(by["project.created"])
        assert "ada@example.com" in str(by["login.succeeded"])
        assert "Signed out" in desk.run("logout")
        with pytest.raises(openai.AuthenticationError):
            client.admin.organization.projects.list()
    assert not desk.file.exists()
    assert "Nobody is signed in" in desk.run("logout")
    assert key not in desk.gateway.log.read_text()


def test_another_device_signs_in_without_a_browser_here(desk: Desk) -> None:
    desk.idp.person["groups"] = ["staff"]
    asked = desk.idp.asked.count("/token")
    started = desk.start("login", "--device")
    wait_until(lambda: desk.idp.asked.count("/token") > asked, 30, "the first question")
    desk.idp.approve()
    out, err = started.communicate(timeout=60)
    assert started.returncode == 0, out + err
    assert "WDJB-MJHT" in out
    assert "(reader)" in out
    status, _, err = desk.ran("projects", "create", "not mine")
    assert (status, "api.projects.write" in err) == (1, True)
    assert desk.ran("orgs", "list")[0] == 1
    assert "default" in desk.run("--as-operator", "orgs", "list")


def test_a_browser_that_brings_no_state_of_ours_is_not_listened_to(desk: Desk) -> None:
    started = desk.start("login", "--no-browser")
    assert started.stdout is not None
    lines: list[str] = []
    reader = threading.Thread(target=lambda: lines.extend(started.stdout or ()))
    reader.start()
    wait_until(lambda: any(f"{desk.idp.issuer}/authorize" in line for line in lines), 30, "a URL")
    url = next(line.strip() for line in lines if "/authorize" in line)
    back = desk.idp.authorize(url)
    forged = back.partition("&state=")[0] + "&state=" + "x" * 43
    for wrong in (forged, forged.partition("&state=")[0], f"{back}&state=2", back + "/../x"):
        with pytest.raises(urllib.error.HTTPError) as caught:
            urllib.request.urlopen(wrong, timeout=20)
        assert caught.value.code == 400
        caught.value.close()
    with urllib.request.urlopen(back, timeout=20) as page:
        assert b"Thank you" in page.read()
    assert started.wait(60) == 0
    reader.join()
    started.stdout.close()
    assert started.stderr is not None
    started.stderr.close()


def test_who_is_not_let_in_is_told_why_and_keeps_nothing(desk: Desk) -> None:
    desk.idp.person["groups"] = ["guests"]
    status, _, err = desk.ran("login")
    assert (status, "none of your groups" in err) == (1, True), err
    assert "Traceback" not in err
    assert not desk.file.exists()


def test_the_glass_can_be_broken_and_that_is_heard(desk: Desk) -> None:
    desk.run("login")
    desk.extra = {session.ADMIN_KEY_VARIABLE: desk.gateway.credentials["admin_key"]}
    assert json.loads(desk.run("whoami", "-o", "json"))["kind"] == "admin key"
    desk.extra = {}
    log = desk.run("audit", "list", "-o", "json")
    assert "break_glass.used" in log


def test_a_session_file_that_is_not_as_it_must_be_is_not_used(desk: Desk) -> None:
    desk.run("login")
    kept = json.loads(desk.file.read_text())
    over = {**kept, "expires_at": "2026-01-01T00:00:00+00:00"}
    elsewhere = {**kept, "auth": "unix:/somewhere/else.sock"}
    for content, said in (({"auth": 1}, "onegate login"), (over, "session has ended")):
        desk.file.write_text(json.dumps(content))
        status, _, err = desk.ran("projects", "list")
        assert (status, said in err) == (1, True), err
    desk.file.write_text(json.dumps(elsewhere))
    assert json.loads(desk.run("whoami", "-o", "json"))["kind"] == "operator"
    desk.file.write_text(json.dumps(kept))
    desk.file.chmod(0o644)
    status, _, err = desk.ran("whoami")
    assert (status, "chmod 600" in err) == (1, True), err
