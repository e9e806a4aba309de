"""Every setting of every process, typed; the only place that knows the file, the environment and
their names.

The TOML tables are the dataclasses below: ``[edge]`` is :class:`EdgeSettings`, each
``[[provider]]`` is one :class:`ProviderSettings`. ``ONEGATE_<TABLE>_<KEY>`` in the environment
wins over the file, a command-line flag over both. ``onegate.example.toml`` documents every key; a
test keeps it equal to this module.
"""

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True, kw_only=True)
class EdgeSettings:
    """The REST edge. Addresses of peers are gRPC targets (``unix:…``, ``host:port``,
    ``dns:///…``).
    """

    host: str = "127.0.0.1"
    port: int = 8080
    auth: str = ""
    routers: tuple[str, ...] = ()
    usage: str = ""
    head_timeout_s: float = 10.0
    head_bytes_max: int = 64 * 1024
    headers_max: int = 100
    body_timeout_s: float = 30.0
    body_bytes_max: int = 8 * 1024 * 1024
    json_depth_max: int = 64
    keepalive_timeout_s: float = 75.0
    keepalive_comment_s: float = 10.0
    stall_timeout_s: float = 60.0
    call_timeout_s: float = 1800.0
    calls_max: int = 2000
    drain_notice_s: float = 5.0
    drain_timeout_s: float = 300.0


@dataclass(frozen=True, slots=True, kw_only=True)
class RouterSettings:
    """The router. ``journal_dir`` must be its own: one router process, one journal."""

    listen: str = ""
    auth: str = ""
    usage: str = ""
    journal_dir: str = ""
    journal_bytes_max: int = 1024 * 1024 * 1024
    name: str = "router-0"
    connect_timeout_s: float = 2.0
    first_byte_timeout_s: float = 30.0
    stall_timeout_s: float = 60.0
    call_timeout_s: float = 1800.0
    answer_bytes_max: int = 32 * 1024 * 1024
    attempts_max: int = 3
    retry_budget: float = 0.1
    calls_max: int = 2000
    discovery_interval_s: float = 3600.0
    drain_timeout_s: float = 300.0


@dataclass(frozen=True, slots=True, kw_only=True)
class AuthSettings:
    """The auth service. ``pepper_file`` holds the HMAC secret; made on the first start when
    absent.
    """

    listen: str = ""
    dsn: str = ""
    pepper_file: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class UsageSettings:
    """The usage service."""

    listen: str = ""
    dsn: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class RpcSettings:
    """gRPC in every process. ``operator_token_file`` holds the secret that admits
    administration.

    ``calls_max`` bounds the calls under way, per relay stream and for all plain RPCs of a
    process together; ``call_timeout_max_s`` ends calls that bring no deadline or a later one;
    ``relay_gather_s`` is the least time between two batches of a relay stream, 0 for none.
    """

    operator_token_file: str = ""
    reflection: bool = False
    revocation_grace_s: float = 60.0
    message_bytes_max: int = 64 * 1024 * 1024
    calls_max: int = 4096
    call_timeout_max_s: float = 3600.0
    relay_gather_s: float = 0.001


@dataclass(frozen=True, slots=True, kw_only=True)
class TelemetrySettings:
    """Logs and metrics. ``metrics_address`` (``host:port``) serves ``/metrics`` of a gRPC
    service.
    """

    log_level: str = "info"
    log_format: str = "text"
    access_log: bool = True
    metrics_address: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProviderSettings:
    """One ``[[provider]]``: a credential for one wire. ``name`` is the prefix of its model ids."""

    name: str
    kind: str
    base_url: str = ""
    api_key_env: str = ""
    api_key_file: str = ""
    models: tuple[str, ...] = ()
    free: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Everything."""

    data_dir: str = "./onegate-data"
    workers: int = 1
    edge: EdgeSettings = field(default_factory=EdgeSettings)
    router: RouterSettings = field(default_factory=RouterSettings)
    auth: AuthSettings = field(default_factory=AuthSettings)
    usage: UsageSettings = field(default_factory=UsageSettings)
    rpc: RpcSettings = field(default_factory=RpcSettings)
    telemetry: TelemetrySettings = field(default_factory=TelemetrySettings)
    providers: tuple[ProviderSettings, ...] = ()
