"""Settings: three sources with a rank, and no way to be wrong in silence."""

import dataclasses
import re
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from runtime import config
from runtime.config import ConfigError, CredentialSettings, ProviderSettings, Settings, load
from runtime.settings import KINDS

EXAMPLE = Path(__file__).resolve().parents[2] / "onegate.example.toml"
NO_ENVIRONMENT: Mapping[str, str] = {}
Write = Callable[[str], Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Writes ``onegate.toml``."""

    def written(text: str) -> Path:
        path = tmp_path / "onegate.toml"
        path.write_text(text)
        return path

    return written


def _refused(path: Path | None, environ: Mapping[str, str] = NO_ENVIRONMENT) -> str:
    with pytest.raises(ConfigError) as caught:
        load(path, environ, {})
    return str(caught.value).replace(f"{path}:", "line ") if path else str(caught.value)


def _as_toml(value: Any) -> Any:
    """A settings value as TOML would hold it."""
    if dataclasses.is_dataclass(value):
        return {f.name: _as_toml(getattr(value, f.name)) for f in dataclasses.fields(value)}
    return [_as_toml(entry) for entry in value] if isinstance(value, tuple) else value


def test_the_example_holds_every_setting_with_its_default_and_no_other() -> None:
    expected = _as_toml(Settings())
    assert expected.pop("providers") == []
    assert expected.pop("routes") == []
    assert expected.pop("policies") == []
    assert tomllib.loads(EXAMPLE.read_text()) == expected


def test_the_example_loads_and_changes_nothing() -> None:
    assert load(EXAMPLE, {}, {}) == Settings()


def _provider_examples() -> str:
    """The commented-out ``[[provider]]`` tables of the example."""
    return _commented_out().partition("[[route]]")[0]


def _commented_out() -> str:
    """All commented-out tables of the example."""
    lines = EXAMPLE.read_text().splitlines()
    return "\n".join(
        line[2:] for line in lines if re.match(r"# (\[\[[a-z.]+\]\]$|[a-z_]+ = )", line)
    )


def test_the_example_shows_every_setting_of_a_provider(tmp_path: Path) -> None:
    tables = tomllib.loads(_provider_examples())["provider"]
    shown = {key for table in tables for key in table}
    assert shown == {f.name for f in dataclasses.fields(ProviderSettings)}
    keys = {key for table in tables for one in table.get("credential", ()) for key in one}
    assert keys == {f.name for f in dataclasses.fields(CredentialSettings)}
    text = EXAMPLE.read_text()
    assert all(re.search(rf"\b{kind}\b", text) for kind in KINDS)


def test_the_example_s_providers_load(tmp_path: Path) -> None:
    key = tmp_path / "local.key"
    key.write_text("k")
    key.chmod(0o600)
    path = tmp_path / "onegate.toml"
    text = re.sub("/etc/onegate/(local|research).key", str(key), _provider_examples())
    path.write_text(text)
    loaded = load(path, {"OPENAI_API_KEY": "sk-x", "LOCAL_API_KEY": "l"}, {})
    assert [p.name for p in loaded.providers] == ["openai", "local", "shared"]
    assert [(c.name, c.weight) for c in loaded.providers[2].credential] == [
        ("main", 3),
        ("research", 1),
    ]


_PROVIDER = "[[provider]]\nname='a'\nkind='openai'\n"
_CREDENTIAL = "[[provider.credential]]\nname='x'\napi_key_env='X'\n"


@pytest.mark.parametrize(
    ("text", "refusal"),
    [
        (f"{_PROVIDER}[[provider.credential]]\napi_key_env='X'", "line 4: a credential needs name"),
        (
            f"{_PROVIDER}[[provider.credential]]\nname='x'",
            "line 4: a credential has api_key_env or api_key_file",
        ),
        (
            f"{_PROVIDER}{_CREDENTIAL}api_key_file='/x'",
            "line 4: a credential has api_key_env or api_key_file",
        ),
        (
            f"{_PROVIDER}{_CREDENTIAL}{_CREDENTIAL}",
            'line 7: there is already a credential "x"',
        ),
        (
            f"{_PROVIDER}{_CREDENTIAL}weight=0",
            "line 7: provider.credential.weight must be between 1 and 1,000",
        ),
        (
            f"{_PROVIDER}{_CREDENTIAL}wieght=1",
            'line 7: there is no setting provider.credential.wieght; did you mean "weight"?',
        ),
        (
            f"{_PROVIDER}api_key_env='Y'\n{_CREDENTIAL}",
            "line 1: a provider has a key of its own or credentials, not both",
        ),
        (f"{_PROVIDER}credential=5", "line 4: credentials are written as [[provider.credential]]"),
        (f"{_PROVIDER}{_CREDENTIAL}", "line 1: The environment variable X is not set."),
    ],
)
def test_a_credential_that_is_not_understood_is_refused_with_its_line(
    write: Write, text: str, refusal: str
) -> None:
    assert refusal in _refused(write(text))


def test_every_setting_of_the_example_says_what_it_is_for() -> None:
    bare = []
    said = ""
    for line in EXAMPLE.read_text().splitlines():
        if line.startswith("#"):
            said = line
        elif not line:
            said = ""
        elif not line.startswith("[") and not said:
            bare.append(line)
    assert bare == []


def test_without_any_source_the_defaults_hold() -> None:
    assert load(None, {}, {}) == Settings()


def test_the_environment_wins_over_the_file_and_a_flag_over_both(write: Write) -> None:
    path = write("workers = 2\n[edge]\nport = 1\nhost = 'a'\ncalls_max = 5\n")
    environ = {"ONEGATE_EDGE_PORT": "2", "ONEGATE_EDGE_HOST": "b"}
    loaded = load(path, environ, {"edge.port": 3, "edge.host": None})
    assert (loaded.workers, loaded.edge.calls_max) == (2, 5)
    assert (loaded.edge.host, loaded.edge.port) == ("b", 3)


@pytest.mark.parametrize(
    ("variable", "text", "section", "key", "value"),
    [
        ("ONEGATE_DATA_DIR", "/data", "", "data_dir", "/data"),
        ("ONEGATE_WORKERS", "3", "", "workers", 3),
        ("ONEGATE_EDGE_DRAIN_NOTICE_S", "0", "edge", "drain_notice_s", 0.0),
        ("ONEGATE_EDGE_ROUTERS", "dns:///a:1, b:2", "edge", "routers", ("dns:///a:1", "b:2")),
        ("ONEGATE_EDGE_ROUTERS", " ", "edge", "routers", ()),
        ("ONEGATE_RPC_REFLECTION", "True", "rpc", "reflection", True),
        ("ONEGATE_TELEMETRY_ACCESS_LOG", "0", "telemetry", "access_log", False),
        ("ONEGATE_AUTH_DSN", "sqlite:///a/b.db", "auth", "dsn", "sqlite:///a/b.db"),
        ("ONEGATE_ROUTER_RETRY_BUDGET", "0.5", "router", "retry_budget", 0.5),
    ],
)
def test_a_variable_is_read_by_the_type_of_its_setting(
    variable: str, text: str, section: str, key: str, value: object
) -> None:
    loaded = load(None, {variable: text}, {})
    assert getattr(getattr(loaded, section) if section else loaded, key) == value


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("[edge]\nhead_timeout_s = 5", 5.0),
        ("[edge]\nauth = 'dns:///auth:50051'", "dns:///auth:50051"),
        ("[edge]\nauth = 'dns://8.8.8.8/auth:50051'", "dns://8.8.8.8/auth:50051"),
        ("[edge]\nauth = 'ipv4:10.0.0.1:1,10.0.0.2:1'", "ipv4:10.0.0.1:1,10.0.0.2:1"),
        ("[edge]\nauth = 'auth.internal:50051'", "auth.internal:50051"),
        ("[edge]\nauth = '[fd00::1]:50051'", "[fd00::1]:50051"),
        ("[edge]\nauth = 'unix:///run/auth.sock'", "unix:///run/auth.sock"),
        ("[edge]\nhost = '::'", "::"),
        ("[edge]\nhost = 'fe80::1%eth0'", "fe80::1%eth0"),
        ("[edge]\nport = 0", 0),
        ("[auth]\nlisten = '[::]:50051'", "[::]:50051"),
        ("[auth]\nlisten = 'unix:/run/auth.sock'", "unix:/run/auth.sock"),
        ("[auth]\ndsn = 'sqlite:////var/lib/auth.db'", "sqlite:////var/lib/auth.db"),
        ("[auth]\ndsn = 'postgresql://u:p@db/x'", "postgresql://u:p@db/x"),
        ("[telemetry]\nmetrics_address = '0.0.0.0:9090'", "0.0.0.0:9090"),
        ("[router]\nretry_budget = 0", 0.0),
    ],
)
def test_a_good_value_is_taken_as_it_is(write: Write, text: str, value: object) -> None:
    loaded = load(write(text), {}, {})
    section, key = re.fullmatch(r"\[(\w+)\]\n(\w+) = .*", text).groups()  # type: ignore[union-attr]
    taken = getattr(getattr(loaded, section), key)
    assert (taken, type(taken)) == (value, type(value))


def test_every_setting_has_a_variable_and_a_flag() -> None:
    for field in dataclasses.fields(Settings):
        section = getattr(Settings(), field.name)
        if not dataclasses.is_dataclass(section):
            continue
        for key in dataclasses.fields(section):
            default = getattr(section, key.name)
            text = ",".join(default) if isinstance(default, tuple) else str(default)
            variable = f"ONEGATE_{field.name}_{key.name}".upper()
            assert load(None, {variable: text}, {}) == Settings()
            assert load(None, {}, {f"{field.name}.{key.name}": default}) == Settings()
            assert load(None, {}, {f"{field.name}.{key.name}": text}) == Settings()


def test_a_flag_that_is_no_setting_is_a_defect() -> None:
    with pytest.raises(LookupError, match=r"'edge\.prot'"):
        load(None, {}, {"edge.prot": 1})


@pytest.mark.parametrize(
    ("text", "refusal"),
    [
        # Names.
        ("[edge]\nprot = 1", 'line 2: there is no setting edge.prot; did you mean "port"?'),
        ("\n[egde]\nport = 1", 'line 2: there is no setting egde; did you mean "edge"?'),
        ("[[providers]]\nname='x'", 'line 1: there is no setting providers; did you mean "prov'),
        ("wokers = 1", 'line 1: there is no setting wokers; did you mean "workers"?'),
        ("port = 1", "line 1: there is no setting port; it belongs to [edge]"),
        ("[edge]\nworkers = 1", "line 2: there is no setting edge.workers; it belongs to the top"),
        (
            "[auth]\nattempts_max = 1",
            "line 2: there is no setting auth.attempts_max; it bel",
        ),
        ("qqqqqq = 1", "line 1: there is no setting qqqqqq"),
        ("providers = 1", "line 1: there is no setting providers"),
        ("edge = 5", "line 1: edge must be a table: [edge]"),
        # Types.
        ("[edge]\nport = '80'", "line 2: edge.port must be a whole number"),
        ("[edge]\nport = 80.0", "line 2: edge.port must be a whole number"),
        ("[edge]\nport = true", "line 2: edge.port must be a whole number"),
        ("[edge]\nhost = 5", "line 2: edge.host must be text"),
        ("[rpc]\nreflection = 1", "line 2: rpc.reflection must be true or false"),
        ("[edge]\nrouters = 'a:1'", "line 2: edge.routers must be a list of texts"),
        ("[edge]\nrouters = ['a:1', 2]", "line 2: edge.routers must be a list of texts"),
        ("[edge]\nhead_timeout_s = '1'", "line 2: edge.head_timeout_s must be a number"),
        ("[edge]\nhead_timeout_s = true", "line 2: edge.head_timeout_s must be a number"),
        # Ranges.
        ("[edge]\nport = 65536", "line 2: edge.port must be between 0 and 65,535"),
        ("[edge]\nport = -1", "line 2: edge.port must be between"),
        ("workers = 0", "line 1: workers must be between 1 and 64"),
        ("[edge]\nhead_timeout_s = nan", "line 2: edge.head_timeout_s must be between"),
        ("[edge]\nhead_timeout_s = " + "9" * 400, "line 2: edge.head_timeout_s must be between"),
        ("[edge]\nport = " + "9" * 400, "line 2: edge.port must be between"),
        ("[edge]\nhead_timeout_s = inf", "line 2: edge.head_timeout_s must be between"),
        ("[router]\nretry_budget = 1.1", "line 2: router.retry_budget must be between 0 and 1"),
        ("[telemetry]\nlog_level = 'inof'", "must be one of debug, info, warning, error; did you"),
        (
            "[telemetry]\nlog_format = 'xml'",
            "line 2: telemetry.log_format must be one of text, json",
        ),
        ("[edge]\nbody_bytes_max = 100_000_000", "line 2: edge.body_bytes_max must not be above"),
        ("[rpc]\nmessage_bytes_max = 1_000_000", "line 2: edge.body_bytes_max must not be above"),
        # Addresses.
        ("[edge]\nhost = 'a:80'", "line 2: edge.host must be a host name or an IP address"),
        ("[edge]\nhost = ''", "line 2: edge.host must be a host name"),
        ("[edge]\nhost = '[::1]'", "line 2: edge.host must be a host name"),
        ("[edge]\nauth = 'auth'", "line 2: edge.auth must look like dns:///auth:50051"),
        ("[edge]\nauth = 'http://auth:1'", "line 2: edge.auth must look like"),
        ("[edge]\nauth = 'a:99999'", "line 2: edge.auth must look like"),
        ("[edge]\nrouters = ['a:1', 'b']", "must look like dns:///auth:50051, 10.0.0.1:50051 or"),
        ("[edge]\nrouters = ['a:1', 'b']", "(in entry 2)"),
        ("[edge]\nrouters = ['']", "line 2: edge.routers must not be empty (in entry 1)"),
        ("[auth]\nlisten = '[zz]:1'", "line 2: auth.listen must look like 0.0.0.0:50051"),
        ("[auth]\nlisten = 'dns:///a:1'", "line 2: auth.listen must look like 0.0.0.0:50051"),
        ("[auth]\nlisten = 'unix:'", "line 2: auth.listen must name a socket"),
        ("[auth]\nlisten = 'unix:/a?b'", "line 2: auth.listen has a socket path with one of # ? %"),
        (f"[auth]\nlisten = 'unix:/{'x' * 100}'", "has a socket path of 101 bytes: at most 100"),
        ("[telemetry]\nmetrics_address = '9090'", "must look like 127.0.0.1:9090 or [::1]:9090"),
        (
            "[oidc]\nissuer = 'http://login.example.com'",
            "line 2: oidc.issuer must start with https",
        ),
        ("[oidc]\nissuer = 'https://a.example'", "line 2: oidc.issuer needs oidc.client_id"),
        (
            "[oidc]\nissuer = 'https://a.example'\nclient_id = 'c'\nscopes = ['email']",
            "name openid",
        ),
        ("[oidc]\ncreate_users = true", "line 2: oidc.create_users needs allowed_domains or"),
        (
            "[oidc]\nallowed_domains = ['@a.example']",
            "line 2: oidc.allowed_domains must be domains",
        ),
        ("[oidc]\ngroup_roles = ['a=admin']", "line 2: oidc.group_roles must look like platform"),
        ("[oidc]\ngroup_roles = ['a=group:']", "line 2: oidc.group_roles must look like platform"),
        ("[auth]\ndsn = 'auth.db'", "line 2: auth.dsn must look like sqlite:///var/lib/onegate"),
        ("[auth]\ndsn = 'sqlite:///'", "line 2: auth.dsn must look like"),
        ("[auth]\ndsn = 'mysql://x'", "line 2: auth.dsn must look like"),
        (
            "[auth]\ndsn = 'postgresql://a:canary@b/c'\ndsn_file = '/x'",
            "line 3: auth has dsn or dsn_file, not both",
        ),
        ("[auth]\ndsn = 'postgresql://a:b%c@d/e'", "line 2: auth.dsn must have : / @ % and spaces"),
        ("[auth]\ndsn = 'postgresql://a:b c@d/e'", "line 2: auth.dsn must have : / @ % and spaces"),
        ("[usage]\nconnections_max = 2", "line 2: usage.connections_max must be"),
        ("data_dir = ''", "line 1: data_dir must not be empty"),
        ('data_dir = "a\\u0000b"', "line 1: data_dir must be a path of printable characters"),
        ("[router]\nname = 'a b'", "line 2: router.name must be a name without spaces"),
        # The file itself.
        ("[edge\nport = 1", "line 1: the file is not TOML: Expected ']' at the end of a table"),
        ("a = 1\na = 2", "line 2: the file is not TOML: Cannot overwrite a value"),
        ("a = 1\n[edge]\nport = ", "line 3: the file is not TOML: Invalid value"),
        ("a = [1,", "line 1: the file is not TOML"),
        ("[edge]\nport = 1\n[edge]", "line 3: the file is not TOML: Cannot declare"),
    ],
)
def test_what_is_not_understood_is_refused_with_its_line(
    write: Write, text: str, refusal: str
) -> None:
    assert refusal in _refused(write(text))


def test_settings_that_are_printed_show_no_dsn(write: Write) -> None:
    loaded = load(write("[auth]\ndsn = 'postgresql://a:canary@b/c'"), {}, {})
    assert loaded.auth.dsn == "postgresql://a:canary@b/c"
    assert "canary" not in repr(loaded)


def test_every_fault_is_told_at_once(write: Write) -> None:
    path = write("wokers = 1\n[edge]\nport = 'x'\n[[provider]]\nname = 'A'\nkind = 'nope'\n")
    with pytest.raises(ConfigError) as caught:
        load(path, {"ONEGATE_EDGE_HOST": ""}, {"workers": 0})
    assert [problem.where.rpartition(":")[2] for problem in caught.value.problems] == [
        "1",
        "3",
        "ONEGATE_EDGE_HOST",
        "flag for workers",
        "5",
        "6",
    ]


def test_line_ends_of_windows_do_not_move_the_lines(tmp_path: Path) -> None:
    path = tmp_path / "onegate.toml"
    path.write_bytes(b"workers = 1\r\n\r\n[edge]\r\nprot = 1\r\n")
    assert _refused(path).startswith("line 4: ")


def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    assert "cannot be read: No such file" in _refused(tmp_path / "absent.toml")
    assert "cannot be read: Is a directory" in _refused(tmp_path)
    (tmp_path / "binary.toml").write_bytes(b"a = 1\nb = '\xff'\n")
    assert _refused(tmp_path / "binary.toml") == "line 2: the file is not UTF-8"
    (tmp_path / "big.toml").write_bytes(b"#" * (config.FILE_BYTES_MAX + 1))
    assert "longer than 1,048,576 bytes" in _refused(tmp_path / "big.toml")


@pytest.mark.parametrize(
    ("variable", "text", "refusal"),
    [
        ("ONEGATE_EDGE_PROT", "1", 'there is no such setting; did you mean "ONEGATE_EDGE_PORT"?'),
        ("ONEGATE_EDGE_QQQQQQQQQQQQQ", "1", "there is no such setting"),
        ("ONEGATE_DATADIR", "/x", 'there is no such setting; did you mean "ONEGATE_DATA_DIR"?'),
        ("ONEGATE_EGDE_PORT", "1", 'there is no such setting; did you mean "ONEGATE_EDGE_PORT"?'),
        ("ONEGATE_PROVIDER_NAME", "x", "providers are configured in the file: [[provider]]"),
        ("ONEGATE_EDGE_PORT", "", "edge.port must be a whole number"),
        ("ONEGATE_EDGE_PORT", "http", "edge.port must be a whole number"),
        ("ONEGATE_EDGE_PORT", "70000", "edge.port must be between 0 and 65,535"),
        ("ONEGATE_EDGE_HEAD_TIMEOUT_S", "soon", "edge.head_timeout_s must be a number"),
        ("ONEGATE_EDGE_HEAD_TIMEOUT_S", "nan", "edge.head_timeout_s must be between"),
        ("ONEGATE_RPC_REFLECTION", "yes", "rpc.reflection must be true or false"),
        ("ONEGATE_EDGE_ROUTERS", "a:1,,b:2", "edge.routers must not be empty (in entry 2)"),
    ],
)
def test_a_variable_that_is_not_understood_is_refused(
    variable: str, text: str, refusal: str
) -> None:
    assert f"{variable}: {refusal}" in _refused(None, {variable: text})


@pytest.mark.parametrize(
    ("variable", "text"),
    [
        ("ONEGATE_EDGE_PORT", "tcp://10.0.0.1:8080"),
        ("ONEGATE_EDGE_PORT_8080_TCP", "tcp://10.0.0.1:8080"),
        ("ONEGATE_EDGE_PORT_8080_TCP_PROTO", "tcp"),
        ("ONEGATE_EDGE_PORT_8080_TCP_ADDR", "10.0.0.1"),
        ("ONEGATE_ROUTER_SERVICE_HOST", "10.0.0.1"),
        ("ONEGATE_ROUTER_SERVICE_PORT", "50051"),
        ("ONEGATE_ROUTER_SERVICE_PORT_GRPC", "50051"),
        ("ONEGATE_SHARED", "/somewhere"),
        ("ONEGATE_API_KEY", "sk-og-x"),
        ("ONEGATE_BASE_URL", "http://127.0.0.1:8080/v1"),
        ("EDGE_PORT", "1"),
    ],
)
def test_a_variable_that_is_somebody_else_s_is_left_alone(variable: str, text: str) -> None:
    assert load(None, {variable: text}, {}) == Settings()


def test_this_process_s_environment_is_handed_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ONEGATE_WORKERS", "7")
    assert load(None, config.environment(), {}).workers == 7


NAMES = st.sampled_from(["edge", "router", "port", "host", "provider", "name", "kind", "x", "free"])
VALUES = st.recursive(
    st.one_of(st.booleans(), st.integers(-5, 70000), st.sampled_from(["'a:1'", "'x'", "nan"])),
    lambda inner: st.lists(inner, max_size=3),
    max_leaves=4,
)


def _text(value: object) -> str:
    match value:
        case bool():
            return str(value).lower()
        case list():
            return f"[{', '.join(map(_text, value))}]"
        case _:
            return str(value)


LINES = st.one_of(
    NAMES.map(lambda name: f"[{name}]"),
    NAMES.map(lambda name: f"[[{name}]]"),
    st.tuples(NAMES, VALUES).map(lambda pair: f"{pair[0]} = {_text(pair[1])}"),
)


def _places_of_faults(path: Path) -> list[str]:
    try:
        load(path, {}, {})
    except ConfigError as error:
        return [problem.where for problem in error.problems]
    return []


@given(st.lists(LINES, max_size=8))
@hypothesis_settings(max_examples=300, deadline=None)
def test_any_file_loads_or_is_refused_with_lines(
    tmp_path_factory: pytest.TempPathFactory, lines: list[str]
) -> None:
    path = tmp_path_factory.getbasetemp() / "any.toml"
    path.write_text("\n".join(lines))
    assert all(
        re.fullmatch(rf"{re.escape(str(path))}:\d+", place) for place in _places_of_faults(path)
    )
