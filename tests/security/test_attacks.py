"""The attacks that have hit other gateways, one test each. ``docs/security.md`` lists every shape
with the tests that hold it, these and those that live beside what they test.
"""

import ast
import asyncio
import json
import re
import socket
import sqlite3
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from onegate.auth.v1 import grant_pb2
from onegate.common.v1 import error_pb2
from runtime import apikeys
from runtime.clock import SystemClock, SystemEntropy
from runtime.errors import GatewayError
from services.router.upstream.client import Upstream
from services.router.upstream.egress import is_forbidden, origin_of
from tests.edge.stage import KEY, staged
from tests.fake_provider import FakeProvider, running_in_thread
from tests.gateway import Gateway, free_port, running_gateway
from tests.services.router.rig import PRICED, hello, provider, running, settings_in
from tests.services.router.test_upstream import fetch

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "security.md"
PROVIDER_KEY = "sk-provider-attacked-0123456789"
CONFIG = """
[edge]
admin_address = "127.0.0.1:{admin}"

[[provider]]
name = "a"
kind = "compatible"
base_url = "{url}"
api_key_env = "ATTACKED_KEY"
models = ["m"]
free = true
"""
SQL = (
    "' OR '1'='1",
    "'; DROP TABLE keys; --",
    '" UNION SELECT mac FROM keys --',
    "%' OR 1=1 /*",
    "\\'; SELECT pg_sleep(9); --",
)
TEMPLATES = ("{{7*7}}", "${7*7}", "<%= 7*7 %>", "#{7*7}", "{0.__class__.__mro__}", "%(x)s {x}")


@pytest.fixture(scope="module")
def fake() -> Iterator[FakeProvider]:
    with running_in_thread(FakeProvider(models=("m",))) as running_fake:
        yield running_fake


@pytest.fixture(scope="module")
def evil() -> Iterator[FakeProvider]:
    with running_in_thread(FakeProvider()) as running_evil:
        yield running_evil


@pytest.fixture(scope="module")
def admin_port() -> int:
    return free_port()


@pytest.fixture(scope="module")
def gateway(
    tmp_path_factory: pytest.TempPathFactory, fake: FakeProvider, admin_port: int
) -> Iterator[Gateway]:
    config = CONFIG.format(url=fake.base_url, admin=admin_port)
    directory = tmp_path_factory.mktemp("attacked")
    environment = {"ATTACKED_KEY": PROVIDER_KEY}
    with running_gateway(directory, config, environment=environment) as running_one:
        yield running_one


def ask(
    url: str, key: str, body: Any = None, method: str = "", headers: dict[str, str] | None = None
) -> tuple[int, bytes]:
    """Status and body of one request."""
    encoded = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
    request = urllib.request.Request(url, data=encoded, method=method or None)
    for name, value in {
        "authorization": f"Bearer {key}",
        "content-type": "application/json",
        **(headers or {}),
    }.items():
        request.add_header(name, value)
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return int(answer.status), answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


def chat(gateway: Gateway, body: dict[str, Any], **headers: str) -> tuple[int, bytes]:
    """One call with the gateway's first key."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    url = f"{gateway.base_url}/chat/completions"
    return ask(url, gateway.api_key, body, headers=named)


def test_every_shape_names_tests_that_are_there() -> None:
    named = re.findall(r"`(tests/[\w/]+\.py)::(test_\w+)`", PAGE.read_text())
    assert len(named) > 30
    for file, test in named:
        tree = ast.parse((ROOT / file).read_text())
        names = {
            node.name
            for node in ast.walk(tree)
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        }
        assert test in names, f"{file}::{test}"
    # Every test of this room is in the list, so that none is lost when a shape moves.
    own = re.findall(r"^(?:async )?def (test_\w+)", Path(__file__).read_text(), re.MULTILINE)
    assert {test for test in own if "every_shape" not in test} <= {test for _, test in named}


@pytest.mark.parametrize("payload", SQL)
def test_sql_in_a_key_a_model_a_path_or_a_filter_is_only_text(
    gateway: Gateway, admin_port: int, payload: str
) -> None:
    admin = gateway.credentials["admin_key"]
    base = f"http://127.0.0.1:{admin_port}/v1/organization"
    quoted = urllib.parse.quote(payload, safe="")
    body = {"model": payload, "messages": [{"role": "user", "content": payload}]}
    assert ask(f"{gateway.base_url}/chat/completions", f"sk-og-{quoted}", body)[0] == 401
    assert chat(gateway, body)[0] == 404
    assert chat(gateway, {**body, "model": "a/m"}, x_onegate_customer=quoted)[0] == 200
    assert ask(f"{base}/projects/{quoted}", admin)[0] == 404
    assert ask(f"{base}/projects/proj_x/api_keys/{quoted}", admin)[0] == 404
    for name in ("after", "limit", "order", "actor_ids[]"):
        status, said = ask(f"{base}/audit_logs?{urllib.parse.quote(name)}={quoted}", admin)
        assert status in (200, 400), said
        assert status == 400 or json.loads(said)["data"] == []
    assert ask(f"{base}/users?emails={quoted}", admin)[0] in (200, 400)
    status, said = ask(f"{base}/projects", admin, {"name": payload})
    assert status == 200, said
    assert json.loads(said)["name"] == payload.strip()
    with closing(sqlite3.connect(f"file:{gateway.data_dir}/auth.db?mode=ro", uri=True)) as database:
        (keys,) = database.execute("SELECT count(*) FROM keys").fetchone()
    assert keys >= 2


def test_no_statement_is_put_together_from_what_somebody_sent() -> None:
    """What is executed is built by SQLAlchemy, or is a constant: never text with values in it."""
    found = set()
    for room in ("runtime", "services"):
        for path in (ROOT / room).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if not (isinstance(node, ast.Call) and node.args):
                    continue
                called = getattr(node.func, "attr", getattr(node.func, "id", ""))
                given = node.args[0]
                formatted = isinstance(given, ast.JoinedStr | ast.BinOp) or (
                    isinstance(given, ast.Call) and getattr(given.func, "attr", "") == "format"
                )
                if called in ("execute", "exec_driver_sql", "text", "executescript") and formatted:
                    found.add(f"{path.relative_to(ROOT)}: {ast.unparse(given)}")
    assert found == OF_OUR_OWN


OF_OUR_OWN = {
    "runtime/sql_sqlite.py: f'PRAGMA {pragma}'",
    "runtime/sql_postgres.py: f'SELECT {settings}'",
    "runtime/sql_postgres.py: psycopg.sql.SQL('LISTEN {}').format(psycopg.sql.Identifier(channel))",
    "runtime/sql_postgres.py: f'SET LOCAL statement_timeout = {limit}'",
    "runtime/sql_postgres.py: f'SET LOCAL lock_timeout = {limit}'",
    "services/usage/ledger/ledger_store.py: f'SELECT {asked}'",
    "services/usage/reconcile/scratch_sql.py: f'PRAGMA cache_size = -{_CACHE_KIB}'",
    "services/usage/reconcile/scratch_sql.py: _READ.format(side=side)",
    "services/usage/reconcile/scratch_sql.py: _TABLE.format(side=side)",
    "services/usage/retention/partition_store.py: f'LOCK TABLE {REST} IN ACCESS EXCLUSIVE MODE'",
    (
        "services/usage/retention/partition_store.py:"
        " f'CREATE TABLE {month.part} (LIKE {RECORDS.name} INCLUDING ALL)'"
    ),
    (
        'services/usage/retention/partition_store.py: f"ALTER TABLE {RECORDS.name} ATTACH PARTITION'
        " {month.part} FOR VALUES FROM ('{bounds[0]}') TO ('{bounds[1]}')\""
    ),
}
"""Statements that take no parameters, made of this program's own constants, names of months, bounds
of months as UUIDs, and whole numbers.
"""


def test_nothing_that_a_caller_sends_chooses_where_the_gateway_calls(
    gateway: Gateway, fake: FakeProvider, evil: FakeProvider
) -> None:
    url = evil.base_url
    plain = {"model": "a/m", "messages": [{"role": "user", "content": "Hi"}]}
    fields = ("api_base", "base_url", "api_url", "endpoint", "azure_endpoint", "custom_api_base")
    before = len(fake.chats)
    for body in (
        {**plain, **dict.fromkeys(fields, url), "api_key": "sk-theirs", "api_version": "1"},
        {**plain, "extra_body": {"api_base": url}, "litellm_params": {"api_base": url}},
        {**plain, "metadata": {"api_base": url, "base_url": url}},
    ):
        chat(gateway, body)
    for name in ("host", "x-forwarded-host", "x-api-base", "x-base-url", "forwarded", "location",
                 "x-onegate-base-url", "x-portkey-custom-host", "helicone-target-url"):  # fmt: skip
        chat(gateway, plain, **{name: f"127.0.0.1:{evil.port}"})
    parts = [{"type": "image_url", "image_url": {"url": f"{url}/picture.png"}}]
    chat(gateway, {**plain, "messages": [{"role": "user", "content": parts}]})
    for model in (f"{url}/m", f"a/m#@127.0.0.1:{evil.port}", f"a/../../{url}", f"a/m?x={url}"):
        assert chat(gateway, {**plain, "model": model})[0] in (400, 404)
    assert evil.connections == 0
    assert len(fake.chats) > before
    for taken in fake.chats:
        assert taken.headers["host"] == f"127.0.0.1:{fake.port}"
        assert taken.headers["authorization"] == f"Bearer {PROVIDER_KEY}"
        assert taken.path == "/v1/chat/completions"


@pytest.mark.parametrize(
    ("address", "forbidden"),
    [
        ("169.254.169.254", True),
        ("::ffff:169.254.169.254", True),
        ("64:ff9b::a9fe:a9fe", True),
        ("2002:a9fe:a9fe::", True),
        ("fe80::1%eth0", True),
        ("0.0.0.0", True),
        ("::", True),
        ("224.0.0.1", True),
        ("not an address", True),
        ("10.0.0.7", False),
        ("8.8.8.8", False),
        ("::1", False),
    ],
)
def test_an_address_where_clouds_keep_credentials_is_never_called(
    address: str, forbidden: bool
) -> None:
    assert is_forbidden(address) == forbidden


@pytest.mark.anyio
async def test_a_name_that_turns_to_a_forbidden_address_later_is_not_called(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    answers: list[Any] = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("169.254.169.254", 80))]

    async def rebound(*_: Any, **__: Any) -> list[Any]:
        return answers

    loop = asyncio.get_running_loop()
    connect, connected = loop.create_connection, list[str]()

    async def watched(factory: Any, host: str, *rest: Any, **named: Any) -> Any:
        connected.append(host)
        return await connect(factory, host, *rest, **named)

    monkeypatch.setattr(loop, "create_connection", watched)
    upstream = Upstream(SystemClock(), connect_timeout_s=2.0)
    try:
        async with FakeProvider() as good:
            base_url = f"http://provider.example:{good.port}/v1"
            assert origin_of(base_url, private_allowed=False).host == "provider.example"
            monkeypatch.setattr(loop, "getaddrinfo", rebound)
            with pytest.raises(GatewayError) as caught:
                await fetch(upstream, base_url)
            assert connected == []
            assert caught.value.reason == error_pb2.ERROR_REASON_UPSTREAM_UNREACHABLE
            # The same name, once it leads where one may go.
            answers[:] = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", good.port))]
            status, _ = await fetch(upstream, base_url)
            assert (status, connected) == (200, ["127.0.0.1"])
    finally:
        upstream.close()


@pytest.mark.anyio
@pytest.mark.parametrize(
    "grant",
    [
        grant_pb2.Grant(),
        grant_pb2.Grant(key_id="key_1"),
        grant_pb2.Grant(key_id="key_1", kind=grant_pb2.KEY_KIND_ADMIN),
        grant_pb2.Grant(key_id="key_1", kind=77),  # type: ignore[arg-type]
    ],
)
async def test_an_answer_of_auth_that_says_nothing_lets_nothing_through(
    tmp_path: Path, grant: grant_pb2.Grant
) -> None:
    async with FakeProvider() as fake:
        settings = settings_in(tmp_path, provider("a", fake))
        async with running(settings, PRICED) as rig:
            rig.auth.grants[apikeys.digest(rig.key)] = grant
            assert (await rig.chat(hello())).reason == "scope_missing"
            assert fake.chats == []


@pytest.mark.anyio
@pytest.mark.parametrize(
    "reason",
    [
        error_pb2.ERROR_REASON_INTERNAL,
        error_pb2.ERROR_REASON_STORE_UNAVAILABLE,
        error_pb2.ERROR_REASON_UNSPECIFIED,
        error_pb2.ERROR_REASON_NOT_FOUND,
    ],
)
async def test_a_failure_inside_auth_is_no_success_and_no_verdict(
    tmp_path: Path, reason: error_pb2.ErrorReason.ValueType
) -> None:
    async with staged(tmp_path) as stage:
        stage.auth.failure = GatewayError(reason, "a defect")
        other = apikeys.mint(grant_pb2.KEY_KIND_PROJECT, SystemEntropy())
        url = f"{stage.base_url}/chat/completions"
        body = {"model": "m", "messages": [{"role": "user", "content": "Hi"}]}
        status, said = await asyncio.to_thread(ask, url, other, body)
        assert (status, json.loads(said)["error"]["code"]) == (503, "auth_unavailable")
        assert stage.router.requests == []
        assert other != KEY


@pytest.mark.anyio
async def test_one_tenants_answer_is_never_anothers(tmp_path: Path) -> None:
    """The same words from two organisations are two calls, and nothing is decided once for both."""
    async with FakeProvider() as fake:
        settings = settings_in(tmp_path, provider("a", fake))
        async with running(settings, PRICED) as rig:
            theirs = rig.add_key(organization_id="org_2", project_id="proj_2")
            walled = rig.add_key(organization_id="org_3", models_denied=["a/*"])
            for key in (rig.key, theirs):
                assert (await rig.chat(hello(), key=key)).error is None
            assert (await rig.chat(hello(), key=walled)).reason == "model_forbidden"
            assert len(fake.chats) == 2
            owners = {record.organization_id for record in await rig.records(2)}
            assert owners == {"org_1", "org_2"}


def test_what_looks_like_a_template_stays_what_it_is(gateway: Gateway, fake: FakeProvider) -> None:
    for text in TEMPLATES:
        before = len(fake.chats)
        body = {"model": "a/m", "messages": [{"role": "user", "content": text}]}
        chat(gateway, body, x_onegate_customer=text)
        assert fake.chats[before].json["messages"][0]["content"] == text
        status, said = chat(gateway, {**body, "model": text})
        assert status == 404
        assert b"49" not in said


def test_no_name_that_is_sent_reaches_the_file_system(gateway: Gateway) -> None:
    """There is no upload yet: a form is refused, and nothing is written under its file's name."""
    form = (
        b'--x\r\ncontent-disposition: form-data; name="file"; filename="../../../evil.py"\r\n\r\n'
        b"print(1)\r\n--x--\r\n"
    )
    kind = {"content-type": "multipart/form-data; boundary=x"}
    for path in ("/files", "/uploads", "/audio/transcriptions", "/chat/completions"):
        url = f"{gateway.base_url}{path}"
        assert ask(url, gateway.api_key, form, headers=kind)[0] in (400, 404)
    for place in (gateway.data_dir, gateway.data_dir.parent, ROOT):
        assert not list(place.glob("evil*"))


def test_administration_can_be_taken_off_the_port_that_calls_come_to(
    gateway: Gateway, admin_port: int
) -> None:
    admin = gateway.credentials["admin_key"]
    here, there = gateway.base_url, f"http://127.0.0.1:{admin_port}/v1"
    assert ask(f"{here}/organization/projects", admin)[0] == 404
    assert ask(f"{there}/organization/projects", admin)[0] == 200
    assert ask(f"{there}/organization/projects", gateway.api_key)[0] == 403
    assert ask(f"{there}/models", gateway.api_key)[0] == 404
    assert ask(f"{here}/models", gateway.api_key)[0] == 200
    ready = f"http://127.0.0.1:{admin_port}/readyz"
    assert ask(ready, "")[0] == 200


def test_every_package_that_is_installed_is_pinned_by_its_hash() -> None:
    locks = sorted(ROOT.glob("requirements*.lock"))
    assert len(locks) >= 4
    for lock in locks:
        for entry in re.split(r"\n(?=\S)", lock.read_text().strip()):
            assert re.match(r"[A-Za-z0-9._-]+(\[[a-z,-]+\])?==\S+", entry), (lock.name, entry[:80])
            assert "--hash=sha256:" in entry, (lock.name, entry[:80])
    installs = [
        line
        for name in ("Makefile", "Dockerfile", "tools/setup-tests")
        for line in (ROOT / name).read_text().replace("\\\n", " ").splitlines()
        if re.search(r"pip (install|download)", line)
    ]
    assert len(installs) >= 5
    for line in installs:
        assert "--require-hashes" in line or "--no-deps" in line, line
    packages = json.loads((ROOT / "tests/e2e/node/package-lock.json").read_text())["packages"]
    assert all(package.get("integrity") for name, package in packages.items() if name)
    assert "npm ci" in (ROOT / "tools/setup-tests").read_text()
