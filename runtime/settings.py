"""Every setting of every process, typed, with its default and the rule that its value obeys.

The TOML tables are the dataclasses below: ``[edge]`` is :class:`EdgeSettings`, each
``[[provider]]`` is one :class:`ProviderSettings`. ``onegate.example.toml`` says what each is for;
a test keeps it equal to this module. Import them from ``runtime.config``, which fills them.
"""

from dataclasses import dataclass, field, replace
from typing import Final

from runtime import rules
from runtime.route_settings import PolicySettings, RouteSettings
from runtime.rules import between, each, one_of, ruled

DAY_S: Final = 86_400.0
MIB: Final = 1024 * 1024
GIB: Final = 1024 * MIB

KINDS: Final = (
    "openai",
    "anthropic",
    "gemini",
    "vertex",
    "bedrock",
    "cohere",
    "azure",
    "azure-deployments",
    "deepseek",
    "xai",
    "mistral",
    "groq",
    "together",
    "fireworks",
    "openrouter",
    "cerebras",
    "perplexity",
    "alibaba",
    "moonshot",
    "zai",
    "nvidia",
    "deepinfra",
    "sambanova",
    "huggingface",
    "tgi",
    "tgi-native",
    "replicate",
    "github",
    "ollama",
    "ollama-native",
    "vllm",
    "llamacpp",
    "lmstudio",
    "compatible",
    "demo",
)
"""The words that ``kind`` of a provider may be. What they mean is the router's business."""

NEED_BASE_URL: Final = frozenset({"azure", "azure-deployments", "tgi", "tgi-native", "compatible"})
"""Kinds without an address of their own: the operator must say where they are."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EdgeSettings:
    """The REST edge. Addresses of peers are gRPC targets (``unix:…``, ``host:port``,
    ``dns:///…``). ``admin_address`` takes the administrative API off the port that calls come to.
    """

    host: str = field(default="127.0.0.1", metadata=ruled(rules.host))
    port: int = field(default=8080, metadata=between(0, 65535))
    admin_address: str = field(default="", metadata=ruled(rules.host_port))
    auth: str = field(default="", metadata=ruled(rules.target))
    routers: tuple[str, ...] = field(default=(), metadata=each(rules.target))
    usage: str = field(default="", metadata=ruled(rules.target))
    head_timeout_s: float = field(default=10.0, metadata=between(0.1, 300))
    head_bytes_max: int = field(default=64 * 1024, metadata=between(1024, MIB))
    headers_max: int = field(default=100, metadata=between(8, 1000))
    body_timeout_s: float = field(default=30.0, metadata=between(0.1, 3600))
    body_bytes_max: int = field(default=8 * MIB, metadata=between(1024, GIB))
    json_depth_max: int = field(default=64, metadata=between(8, 512))
    keepalive_timeout_s: float = field(default=75.0, metadata=between(0.1, 3600))
    keepalive_comment_s: float = field(default=10.0, metadata=between(0.1, 300))
    stall_timeout_s: float = field(default=60.0, metadata=between(0.1, 3600))
    call_timeout_s: float = field(default=1800.0, metadata=between(0.1, DAY_S))
    calls_max: int = field(default=2000, metadata=between(1, 1_000_000))
    connections_max: int = field(default=10_000, metadata=between(1, 1_000_000))
    behind_max_s: float = field(default=0.2, metadata=between(0.01, 3600))
    drain_notice_s: float = field(default=5.0, metadata=between(0, 300))
    drain_timeout_s: float = field(default=300.0, metadata=between(0, 3600))


@dataclass(frozen=True, slots=True, kw_only=True)
class RouterSettings:
    """The router. ``journal_dir`` must be its own: one router process, one journal."""

    listen: str = field(default="", metadata=ruled(rules.listen_address))
    auth: str = field(default="", metadata=ruled(rules.target))
    usage: str = field(default="", metadata=ruled(rules.target))
    journal_dir: str = field(default="", metadata=ruled(rules.path))
    journal_bytes_max: int = field(default=GIB, metadata=between(64 * 1024, 1024 * GIB))
    journal_salvage: bool = False
    name: str = field(default="router-0", metadata=ruled(rules.word))
    connect_timeout_s: float = field(default=2.0, metadata=between(0.05, 60))
    first_byte_timeout_s: float = field(default=30.0, metadata=between(0.05, 3600))
    answer_timeout_s: float = field(default=600.0, metadata=between(0.05, DAY_S))
    stall_timeout_s: float = field(default=60.0, metadata=between(0.05, 3600))
    call_timeout_s: float = field(default=1800.0, metadata=between(0.1, DAY_S))
    answer_bytes_max: int = field(default=32 * MIB, metadata=between(1024, GIB))
    attempts_max: int = field(default=3, metadata=between(1, 10))
    retry_budget: float = field(default=0.1, metadata=between(0, 1))
    queue_wait_s: float = field(default=0.0, metadata=between(0, 600))
    queue_calls_max: int = field(default=500, metadata=between(1, 100_000))
    calls_max: int = field(default=2000, metadata=between(1, 1_000_000))
    output_tokens_cap: int = field(default=8192, metadata=between(256, 10_000_000))
    idempotency_window_s: float = field(default=DAY_S, metadata=between(0, 31 * DAY_S))
    idempotency_answer_bytes_max: int = field(default=4 * MIB, metadata=between(1024, 64 * MIB))
    discovery_interval_s: float = field(default=3600.0, metadata=between(0.1, 7 * DAY_S))
    drain_timeout_s: float = field(default=300.0, metadata=between(0, 3600))


@dataclass(frozen=True, slots=True, kw_only=True)
class LimitsSettings:
    """Rate limits that routers share. ``valkey_deadline_s`` is the most that asking Valkey may add
    to a call; after it, this router keeps to its share of each limit.
    """

    valkey_url: str = field(default="", metadata=ruled(rules.valkey_url))
    valkey_password_file: str = field(default="", metadata=ruled(rules.path))
    valkey_deadline_s: float = field(default=0.05, metadata=between(0.01, 1))
    valkey_namespace: str = field(default="onegate", metadata=ruled(rules.provider_name))


@dataclass(frozen=True, slots=True, kw_only=True)
class AuthSettings:
    """The auth service. ``pepper_file`` holds the HMAC secret; made on the first start when
    absent. ``dsn`` may hold a password and is never shown; ``dsn_file`` names a file that holds it.
    ``data_classes`` are the names of classes of data, the least sensitive first.
    """

    listen: str = field(default="", metadata=ruled(rules.listen_address))
    dsn: str = field(default="", repr=False, metadata=ruled(rules.dsn))
    dsn_file: str = field(default="", metadata=ruled(rules.path))
    connections_max: int = field(default=8, metadata=between(3, 1000))
    pepper_file: str = field(default="", metadata=ruled(rules.path))
    data_classes: tuple[str, ...] = field(
        default=("public", "internal", "confidential"), metadata=ruled(rules.class_names)
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class OidcSettings:
    """How people sign in through an identity provider (OpenID Connect). ``group_roles`` are entries
    ``group=owner``, ``group=reader`` or ``group=group:NAME``; ``client_secret_file`` is for a
    client that is not public.
    """

    issuer: str = field(default="", metadata=ruled(rules.issuer))
    client_id: str = field(default="", metadata=ruled(rules.text))
    client_secret_file: str = field(default="", metadata=ruled(rules.path))
    audience: str = field(default="", metadata=ruled(rules.text))
    scopes: tuple[str, ...] = field(
        default=("openid", "email", "profile"), metadata=each(rules.word)
    )
    organization: str = field(default="", metadata=ruled(rules.text))
    allowed_domains: tuple[str, ...] = field(default=(), metadata=each(rules.domain))
    create_users: bool = False
    group_claim: str = field(default="groups", metadata=ruled(rules.word))
    group_roles: tuple[str, ...] = field(default=(), metadata=each(rules.group_role))
    session_s: int = field(default=8 * 3600, metadata=between(300, 7 * DAY_S))


@dataclass(frozen=True, slots=True, kw_only=True)
class UsageSettings:
    """The usage service. ``dsn`` may hold a password and is never shown; ``dsn_file`` names a file
    that holds it. ``records_days`` is for how many days records are kept at least, 0 for ever.
    """

    listen: str = field(default="", metadata=ruled(rules.listen_address))
    dsn: str = field(default="", repr=False, metadata=ruled(rules.dsn))
    dsn_file: str = field(default="", metadata=ruled(rules.path))
    connections_max: int = field(default=8, metadata=between(3, 1000))
    records_days: int = field(default=0, metadata=ruled(rules.days_kept))


@dataclass(frozen=True, slots=True, kw_only=True)
class InvoiceSettings:
    """Invoices. ``file`` says who sends them and who pays them (docs/invoices.md)."""

    file: str = field(default="", metadata=ruled(rules.path))


@dataclass(frozen=True, slots=True, kw_only=True)
class AlertSettings:
    """How people are told about budgets (docs/alerts.md). ``webhook_private`` lets the webhook's
    name lead into a private network; ``smtp_security`` is how mail is encrypted on its way. The
    ``spend_rate`` ones are about who spends far more than usual: beyond ``factor`` times the
    median and ``floor_usd``, once ``days`` are known; ``floors`` are ``id=dollars`` or ``id=off``.
    """

    webhook_url: str = field(default="", metadata=ruled(rules.base_url))
    webhook_secret_file: str = field(default="", metadata=ruled(rules.path))
    webhook_private: bool = False
    smtp_host: str = field(default="", metadata=ruled(rules.path))
    smtp_port: int = field(default=587, metadata=between(1, 65535))
    smtp_security: str = field(default="starttls", metadata=one_of(("starttls", "tls", "none")))
    smtp_username: str = field(default="", metadata=ruled(rules.path))
    smtp_password_file: str = field(default="", metadata=ruled(rules.path))
    smtp_ca_file: str = field(default="", metadata=ruled(rules.path))
    mail_from: str = field(default="", metadata=ruled(rules.path))
    timeout_s: float = field(default=10.0, metadata=between(0.1, 30))
    spend_rate: bool = True
    spend_rate_factor: float = field(default=3.0, metadata=between(1.1, 1000))
    spend_rate_floor_usd: int = field(default=10, metadata=between(0, 1_000_000))
    spend_rate_days: int = field(default=7, metadata=between(1, 28))
    spend_rate_floors: tuple[str, ...] = field(default=(), metadata=each(rules.spend_floor))
    spend_rate_mail: tuple[str, ...] = field(default=(), metadata=each(rules.mail_address))


@dataclass(frozen=True, slots=True, kw_only=True)
class RpcSettings:
    """gRPC in every process. ``operator_token_file`` holds the secret that admits
    administration.

    ``calls_max`` bounds the calls under way, per relay stream and for all plain RPCs of a
    process together; ``call_timeout_max_s`` ends calls that bring no deadline or a later one;
    ``relay_gather_s`` is the least time between two batches of a relay stream, 0 for none.
    """

    operator_token_file: str = field(default="", metadata=ruled(rules.path))
    reflection: bool = False
    revocation_grace_s: float = field(default=60.0, metadata=between(0, DAY_S))
    message_bytes_max: int = field(default=64 * MIB, metadata=between(64 * 1024, GIB))
    calls_max: int = field(default=4096, metadata=between(1, 1_000_000))
    call_timeout_max_s: float = field(default=3600.0, metadata=between(0.1, DAY_S))
    relay_gather_s: float = field(default=0.002, metadata=between(0, 0.1))


@dataclass(frozen=True, slots=True, kw_only=True)
class TelemetrySettings:
    """Logs and metrics. ``metrics_address`` (``host:port``) serves ``/metrics`` of a gRPC
    service.
    """

    log_level: str = field(default="info", metadata=one_of(("debug", "info", "warning", "error")))
    log_format: str = field(default="text", metadata=one_of(("text", "json")))
    access_log: bool = True
    metrics_address: str = field(default="", metadata=ruled(rules.host_port))


@dataclass(frozen=True, slots=True, kw_only=True)
class SealingSettings:
    """The key-encryption key of stored credentials, in a file or a variable, and the one before it
    while secrets are moved from one to the other. ``key_file`` is made when it is first needed.
    """

    key_file: str = field(default="", metadata=ruled(rules.path))
    key_env: str = field(default="", metadata=ruled(rules.variable_name))
    former_key_file: str = field(default="", metadata=ruled(rules.path))
    former_key_env: str = field(default="", metadata=ruled(rules.variable_name))


@dataclass(frozen=True, slots=True, kw_only=True)
class CredentialSettings:
    """One ``[[provider.credential]]``: a key of several. ``weight`` is its share of the calls.

    ``organizations`` and ``projects`` are ids of those whom alone it is for; without either, it is
    for everybody who has none of their own.
    """

    name: str = field(metadata=ruled(rules.provider_name))
    weight: int = field(default=1, metadata=between(1, 1000))
    api_key_env: str = field(default="", metadata=ruled(rules.variable_name))
    api_key_file: str = field(default="", metadata=ruled(rules.path))
    organizations: tuple[str, ...] = field(default=(), metadata=each(rules.word))
    projects: tuple[str, ...] = field(default=(), metadata=each(rules.word))


@dataclass(frozen=True, slots=True, kw_only=True)
class ProviderSettings:
    """One ``[[provider]]``: an account at a vendor. ``name`` is the prefix of its model ids.

    It has one key, or several in ``credential``. ``region``, ``retention_days`` and ``trains`` are
    what is known of where its data goes: empty and ``None`` for what the operator does not know.
    """

    name: str = field(metadata=ruled(rules.provider_name))
    kind: str = field(metadata=one_of(KINDS))
    base_url: str = field(default="", metadata=ruled(rules.base_url))
    api_key_env: str = field(default="", metadata=ruled(rules.variable_name))
    api_key_file: str = field(default="", metadata=ruled(rules.path))
    models: tuple[str, ...] = field(default=(), metadata=each(rules.word))
    free: bool = False
    region: tuple[str, ...] = field(default=(), metadata=each(rules.region))
    retention_days: int | None = field(default=None, metadata=between(0, 36_500))
    trains: bool | None = None
    credential: tuple[CredentialSettings, ...] = ()

    def with_key_of(self, credential: CredentialSettings) -> "ProviderSettings":
        """The provider with this one of its keys as its only one."""
        return replace(
            self,
            api_key_env=credential.api_key_env,
            api_key_file=credential.api_key_file,
            credential=(),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Everything."""

    data_dir: str = field(default="./onegate-data", metadata=ruled(rules.given_path))
    workers: int = field(default=1, metadata=between(1, 64))
    failpoints: bool = False
    edge: EdgeSettings = field(default_factory=EdgeSettings)
    router: RouterSettings = field(default_factory=RouterSettings)
    auth: AuthSettings = field(default_factory=AuthSettings)
    oidc: OidcSettings = field(default_factory=OidcSettings)
    usage: UsageSettings = field(default_factory=UsageSettings)
    limits: LimitsSettings = field(default_factory=LimitsSettings)
    alerts: AlertSettings = field(default_factory=AlertSettings)
    invoice: InvoiceSettings = field(default_factory=InvoiceSettings)
    rpc: RpcSettings = field(default_factory=RpcSettings)
    sealing: SealingSettings = field(default_factory=SealingSettings)
    telemetry: TelemetrySettings = field(default_factory=TelemetrySettings)
    providers: tuple[ProviderSettings, ...] = ()
    routes: tuple[RouteSettings, ...] = ()
    policies: tuple[PolicySettings, ...] = ()
