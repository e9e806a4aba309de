"""One machine needs no addresses: they follow from the data directory."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from runtime.config import ConfigError, Settings, load, nth_worker, with_local_defaults


@pytest.fixture
def short_directory() -> Iterator[Path]:
    """A directory that is not too deep for sockets."""
    with tempfile.TemporaryDirectory(prefix="og") as directory:
        yield Path(directory)


def test_everything_that_is_left_empty_is_placed_under_the_data_directory() -> None:
    local = with_local_defaults(load(None, {}, {"data_dir": "/data", "workers": 2}))
    assert local.data_dir == "/data"
    assert (local.auth.listen, local.auth.dsn) == (
        "unix:/data/run/auth.sock",
        "sqlite:///data/auth.db",
    )
    assert local.auth.pepper_file == "/data/pepper"
    assert (local.usage.listen, local.usage.dsn) == (
        "unix:/data/run/usage.sock",
        "sqlite:///data/usage.db",
    )
    assert local.router.listen == "unix:/data/run/router-0.sock"
    assert (local.router.auth, local.router.usage) == (local.auth.listen, local.usage.listen)
    assert local.router.journal_dir == "/data/journal/router-0"
    assert (local.edge.auth, local.edge.usage) == (local.auth.listen, local.usage.listen)
    assert local.edge.routers == ("unix:/data/run/router-0.sock", "unix:/data/run/router-1.sock")
    assert local.rpc.operator_token_file == "/data/run/operator.token"


def test_what_is_configured_stays(tmp_path: Path) -> None:
    path = tmp_path / "onegate.toml"
    path.write_text(
        "data_dir = '/data'\n"
        "[auth]\nlisten = '127.0.0.1:1'\ndsn = 'sqlite:///a.db'\npepper_file = '/p'\n"
        "[usage]\nlisten = '127.0.0.1:2'\ndsn = 'postgresql://h/u'\n"
        "[router]\nlisten = '127.0.0.1:3'\nauth = 'dns:///a:1'\nusage = 'dns:///u:1'\n"
        "journal_dir = '/j'\n"
        "[edge]\nauth = 'dns:///a:2'\nusage = 'dns:///u:2'\nrouters = ['dns:///r:1']\n"
        "[rpc]\noperator_token_file = '/t'\n"
        "[sealing]\nkey_file = '/k'\nformer_key_file = '/f'\n"
    )
    loaded = load(path, {}, {})
    assert with_local_defaults(loaded) == loaded


def test_peers_are_found_where_they_were_told_to_listen() -> None:
    given = {"auth.listen": "127.0.0.1:1", "usage.listen": "127.0.0.1:2", "router.listen": "h:3"}
    local = with_local_defaults(load(None, {}, given))
    assert (local.router.auth, local.edge.auth) == ("127.0.0.1:1", "127.0.0.1:1")
    assert (local.router.usage, local.edge.usage) == ("127.0.0.1:2", "127.0.0.1:2")
    assert local.edge.routers == ("h:3",)


def test_a_relative_data_directory_is_made_absolute(
    short_directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(short_directory)
    assert with_local_defaults(Settings()).data_dir == str(Path.cwd() / "onegate-data")


def test_filling_in_twice_changes_nothing() -> None:
    once = with_local_defaults(load(None, {}, {"data_dir": "/data", "workers": 3}))
    assert with_local_defaults(once) == once


def test_each_router_has_a_socket_a_journal_and_a_name_of_its_own() -> None:
    local = with_local_defaults(load(None, {}, {"data_dir": "/data", "workers": 3}))
    routers = [nth_worker(local, index).router for index in range(3)]
    assert [router.listen for router in routers] == list(local.edge.routers)
    assert [router.name for router in routers] == ["router-0", "router-1", "router-2"]
    assert len({router.journal_dir for router in routers}) == 3
    assert nth_worker(local, 2).edge == local.edge


@pytest.mark.parametrize(
    "given",
    [{"router.listen": "h:1"}, {"router.journal_dir": "/j"}, {"router.name": "mine"}],
)
def test_several_routers_cannot_share_what_was_configured_for_one(
    given: dict[str, object],
) -> None:
    local = with_local_defaults(load(None, {}, {**given, "workers": 2}))
    assert nth_worker(local, 0) == local
    with pytest.raises(ConfigError, match="must be left out"):
        nth_worker(local, 1)


@pytest.mark.parametrize(
    ("data_dir", "refusal"),
    [
        ("/" + "x" * 90, "has a socket path of 105 bytes: at most 100 work"),
        ("/" + "ü" * 45, "has a socket path of 105 bytes"),
        ("/a#b", "has a socket path with one of # ? %"),
        ("/a?b", "has a socket path with one of # ? %"),
        ("/a%20b", "has a socket path with one of # ? %"),
    ],
)
def test_a_data_directory_that_cannot_hold_sockets_is_refused(data_dir: str, refusal: str) -> None:
    with pytest.raises(ConfigError) as caught:
        with_local_defaults(load(None, {}, {"data_dir": data_dir}))
    assert str(caught.value).startswith(f"data_dir: {refusal}")
    assert "choose another --data-dir" in str(caught.value)


def test_sockets_are_not_needed_where_addresses_are_given() -> None:
    given = {"data_dir": "/" + "x" * 200, "auth.listen": "h:2", "usage.listen": "h:3"}
    local = with_local_defaults(load(None, {}, {**given, "router.listen": "h:1"}))
    assert local.edge.routers == ("h:1",)


@pytest.mark.anyio
@pytest.mark.parametrize("name", ["plain", "with space", "ünïcode", "a:b", "a+b=c@d"])
async def test_grpc_takes_the_addresses_as_they_are_made(short_directory: Path, name: str) -> None:
    local = with_local_defaults(load(None, {}, {"data_dir": str(short_directory / name)}))
    Path(local.data_dir, "run").mkdir(parents=True)  # noqa: ASYNC240
    server = grpc.aio.server()
    server.add_insecure_port(local.auth.listen)
    await server.start()
    async with grpc.aio.insecure_channel(local.edge.auth) as channel:
        await channel.channel_ready()
    await server.stop(0)
