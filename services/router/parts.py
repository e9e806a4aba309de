"""What a call is served with: one value that holds every long-lived part of the router."""

from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol

from onegate.auth.v1 import grant_pb2
from onegate.common.v1 import token_usage_pb2
from onegate.router.v1 import chat_pb2
from onegate.usage.v1 import price_pb2
from runtime.calls import ServerCall
from runtime.clock import Clock, Entropy
from runtime.config import RouterSettings
from runtime.failpoints import OFF, Failpoints
from services.router.credentials.access import Credential
from services.router.idempotency.repeats import Repeats
from services.router.limits.waiting import Waiting
from services.router.limits.windows import Limits, Ticket
from services.router.meters import Meters
from services.router.models.catalog import Catalog
from services.router.money.purse import Purses
from services.router.providers.base import UpstreamRequest, Wire
from services.router.routing.health import Health, RetryBudget
from services.router.routing.observed import Observed
from services.router.routing.routes import Routes
from services.router.routing.standings import Standings
from services.router.upstream.client import Target, Upstream
from services.router.upstream.jobs import Jobs, JobWire
from services.router.upstream.watchdog import Watchdog


class Grants(Protocol):
    """Who a key is. ``runtime/grants.py``."""

    def lookup(self, key: str) -> grant_pb2.Grant | None:
        """The grant, when it is known and good now."""
        ...

    async def get(self, key: str) -> grant_pb2.Grant:
        """The grant. Raises INVALID_API_KEY, KEY_EXPIRED, AUTH_UNAVAILABLE."""
        ...


@dataclass(frozen=True, slots=True)
class OneGrant:
    """One grant, whatever key is presented: of calls that the gateway itself makes for somebody."""

    grant: grant_pb2.Grant

    def lookup(self, _key: str) -> grant_pb2.Grant | None:
        """The grant."""
        return self.grant

    async def get(self, _key: str) -> grant_pb2.Grant:
        """The grant."""
        return self.grant


class Prices(Protocol):
    """What a model costs. ``services/router/money/pricebook.py``."""

    @property
    def ready(self) -> bool:
        """Whether the prices have been heard since the start."""
        ...

    def find(self, model: str) -> price_pb2.PriceSheet | None:
        """The sheet in force for ``kind/model``; ``None`` when no price is known here."""
        ...

    async def get(self, model: str) -> price_pb2.PriceSheet | None:
        """The same, asked for where it must be. Raises BUDGET_UNAVAILABLE, OVERLOADED."""
        ...

    async def learn(self, models: Iterable[str]) -> None:
        """Asks for all of them that are not known here."""
        ...


class Journal(Protocol):
    """What must survive this process. ``services/router/money/journal.py``."""

    def dispatched(self, attempt_id: str, record: bytes) -> None:
        """An attempt is about to be sent. Raises JOURNAL_FULL."""
        ...

    def progress(
        self, attempt_id: str, tokens: token_usage_pb2.TokenUsage, cost_nano_usd: int = 0
    ) -> None:
        """How far it got."""
        ...


class Shipper(Protocol):
    """Where final records go. ``services/router/money/shipper.py``."""

    def post(self, attempt_id: str, record: bytes) -> None:
        """Writes the final to the journal and sends it on later."""
        ...


class SharedLimits(Protocol):
    """Limits that several routers count together. ``services/router/limits/shared_limits.py``."""

    async def admit(
        self, grant: grant_pb2.Grant, model: str, tokens: Callable[[], int], now_s: float
    ) -> Ticket:
        """Counts a call. Raises RATE_LIMIT_EXCEEDED, STORE_UNAVAILABLE."""
        ...


class Mirrors(Protocol):
    """What makes copies of calls. ``services/router/mirroring.py``."""

    def make(
        self,
        run: "Callable[[Parts, ServerCall], Awaitable[None]]",
        parts: "Parts",
        copy: chat_pb2.ChatRequest,
        grant: grant_pb2.Grant,
    ) -> None:
        """Makes one, if there is room."""
        ...


class SharedCooldowns(Protocol):
    """What providers asked any router. ``services/router/limits/cooldowns.py``."""

    async def tell(self, deployment: str, wait_s: float) -> None:
        """Tells all routers."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Shared:
    """What several routers know together; nothing where no Valkey is configured."""

    limits: SharedLimits | None = None
    cooldowns: SharedCooldowns | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Provider:
    """A configured provider, ready to be called."""

    name: str
    wire: Wire
    target: Target
    lists: tuple[tuple[Target, UpstreamRequest], ...] = ()
    """Where else its models are listed, and how to ask; empty for the wire's own list."""
    credentials: tuple[Credential, ...] = ()
    """What calls go out with; empty for ``target`` alone. ``target`` is the first of them, which
    models are listed with."""
    jobs: JobWire | None = None
    """The wire, when its vendor answers calls with jobs."""
    retired: bool = False
    """It was removed: calls that were planned before are not sent."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """Everything."""

    settings: RouterSettings
    clock: Clock
    entropy: Entropy
    grants: Grants
    prices: Prices
    catalog: Catalog
    providers: Mapping[str, Provider]
    limits: Limits
    health: Health
    observed: Observed
    routes: Routes
    standings: Standings
    retries: RetryBudget
    watchdog: Watchdog
    upstream: Upstream
    jobs: Jobs
    journal: Journal
    shipper: Shipper
    meters: Meters
    waiting: Waiting | None = None
    """Where calls above a limit wait; nowhere when they are refused at once."""
    shared_limits: SharedLimits | None = None
    """Where several routers count together."""
    purses: Purses | None = None
    """What sets money aside for calls that budgets count."""
    repeats: Repeats | None = None
    """What makes calls with an idempotency key once; absent where that is switched off."""
    cooldowns: SharedCooldowns | None = None
    """Where several routers tell each other who cools down."""
    mirrors: Mirrors | None = None
    """What makes copies of calls; absent for the copies themselves."""
    failpoints: Failpoints = OFF
    """Where a test may end this process."""
