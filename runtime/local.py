"""What a single machine needs not be told: sockets, databases and secrets under one directory."""

from dataclasses import replace
from pathlib import Path
from typing import Final

from runtime.rules import ConfigError, Problem, unix_path
from runtime.settings import RouterSettings, Settings

_FIRST_NAME: Final = RouterSettings().name


def with_local_defaults(settings: Settings) -> Settings:
    """The settings with everything that is left empty placed under ``data_dir``, made absolute.

    ``router`` is the first of ``workers`` routers; :func:`nth_worker` makes it another. Raises
    ``ConfigError`` when the path of a socket is too long or cannot be one.
    """
    data = Path(settings.data_dir).absolute()
    local = _Local(data)
    edge, router, auth, usage = settings.edge, settings.router, settings.auth, settings.usage
    auth_listen = auth.listen or local.socket("auth")
    usage_listen = usage.listen or local.socket("usage")
    if router.listen:
        routers: tuple[str, ...] = (router.listen,)
    else:
        routers = tuple(local.socket(f"router-{index}") for index in range(settings.workers))
    return replace(
        settings,
        data_dir=str(data),
        auth=replace(
            auth,
            listen=auth_listen,
            dsn=auth.dsn or ("" if auth.dsn_file else f"sqlite://{data / 'auth.db'}"),
            pepper_file=auth.pepper_file or str(data / "pepper"),
        ),
        usage=replace(
            usage,
            listen=usage_listen,
            dsn=usage.dsn or ("" if usage.dsn_file else f"sqlite://{data / 'usage.db'}"),
        ),
        router=replace(
            router,
            listen=routers[0],
            auth=router.auth or auth_listen,
            usage=router.usage or usage_listen,
            journal_dir=router.journal_dir or local.journal(0),
        ),
        edge=replace(
            edge,
            auth=edge.auth or auth_listen,
            usage=edge.usage or usage_listen,
            routers=edge.routers or routers,
        ),
        sealing=replace(
            settings.sealing,
            key_file=settings.sealing.key_file or str(data / "provider.kek"),
            former_key_file=settings.sealing.former_key_file or str(data / "provider.kek.former"),
        ),
        rpc=replace(
            settings.rpc,
            operator_token_file=settings.rpc.operator_token_file
            or str(data / "run" / "operator.token"),
        ),
    )


def nth_worker(settings: Settings, index: int) -> Settings:
    """The settings of the router with number ``index``, from 0, on one machine.

    ``settings`` come from :func:`with_local_defaults`. Raises ``ConfigError`` when an address or
    a journal was configured by hand: two routers cannot share one.
    """
    if index == 0:
        return settings
    local = _Local(Path(settings.data_dir))
    router = settings.router
    first = (local.socket("router-0"), local.journal(0), _FIRST_NAME)
    if (router.listen, router.journal_dir, router.name) != first:
        message = "with several workers, router.listen, journal_dir and name must be left out"
        raise ConfigError([Problem(where="workers", message=message)])
    return replace(
        settings,
        router=replace(
            router,
            listen=local.socket(f"router-{index}"),
            journal_dir=local.journal(index),
            name=f"router-{index}",
        ),
    )


class _Local:
    """The places below a data directory."""

    def __init__(self, data: Path) -> None:
        self._data = data

    def socket(self, name: str) -> str:
        """The gRPC address of a process."""
        path = str(self._data / "run" / f"{name}.sock")
        complaint = unix_path(path)
        if complaint is not None:
            message = f"{complaint} ({path}); choose another --data-dir"
            raise ConfigError([Problem(where="data_dir", message=message)])
        return f"unix:{path}"

    def journal(self, index: int) -> str:
        """The directory of a router's journal."""
        return str(self._data / "journal" / f"router-{index}")
