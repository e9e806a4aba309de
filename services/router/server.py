"""The router's process: everything put together, started, drained and stopped."""

import asyncio
import importlib
import logging
from collections.abc import Callable
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path
from typing import Final, Protocol

import grpc

from onegate.auth.v1 import key_service_pb2_grpc
from onegate.router.v1 import (
    explain_service_pb2_grpc,
    model_service_pb2_grpc,
    provider_check_service_pb2_grpc,
)
from runtime.clock import Clock, Entropy, PooledEntropy, SystemClock
from runtime.config import RouterSettings, Settings, environment
from runtime.credentials import credential
from runtime.failpoints import Failpoints
from runtime.failpoints import configured as configured_failpoints
from runtime.grants import GrantClient
from runtime.metrics import Metrics, serve_metrics
from runtime.rpc import RpcServer, channel
from runtime.sealing import Keyring
from runtime.secrets import SecretError, read_secret
from services.router import demo
from services.router.credentials.configured import with_demo
from services.router.credentials.provider_check import ProviderCheckService
from services.router.credentials.provider_watch import ProviderWatch
from services.router.credentials.roster import Making, Roster
from services.router.execution import ChatExecution
from services.router.idempotency.repeats import Repeats
from services.router.limits.peer_cooldowns import EveryWay, PeerCooldowns
from services.router.limits.waiting import Waiting
from services.router.limits.windows import Limits
from services.router.meters import Meters
from services.router.mirroring import Mirrors
from services.router.models.catalog import Catalog
from services.router.models.discovery import Discovery
from services.router.models.model_service import ModelService
from services.router.money.budget_watch import BudgetWatch
from services.router.money.epochs import Epoch
from services.router.money.holds import Holds
from services.router.money.journal import Journal
from services.router.money.pricebook import PriceBook
from services.router.money.purse import Purses
from services.router.money.shipper import Shipper
from services.router.parts import Parts, Shared
from services.router.providers import PROVIDERS
from services.router.routing.explain_service import ExplainService
from services.router.routing.health import Health, RetryBudget
from services.router.routing.observed import Observed
from services.router.routing.policies import SetPolicies
from services.router.routing.routes import Routes
from services.router.routing.standings import Standings
from services.router.upstream.client import Upstream
from services.router.upstream.jobs import Jobs
from services.router.upstream.watchdog import Watchdog

CHAT_METHOD: Final = "/onegate.router.v1.ChatService/Chat"
"""The method of a chat call, over the relay and as a plain RPC."""
READY_CHECK_S: Final = 0.02
"""How often a starting router looks whether it has heard from its peers."""

_SHARING: Final = "services.router.limits.sharing"

_LOG = logging.getLogger(__name__)


async def run(settings: Settings, *, stop: asyncio.Event, ready: Callable[[], None]) -> None:
    """Serves until ``stop`` is set; calls ``ready`` once auth and usage have been heard.

    Then drains: takes no more calls, lets those under way finish for ``drain_timeout_s``, ends the
    rest with DRAINING, and hands over what the journal holds. Raises ``ConfigError`` for a provider
    that cannot be used, ``JournalUnusableError``, ``OSError`` for an address that is taken.
    """
    async with AsyncExitStack() as stack:
        router = await _Router.assemble(settings, stack)
        if not await _heard(router, stop):
            return
        stack.push_async_callback(router.providers.close)
        await router.providers.start()
        _keep_discovering(router.parts, router.roster.changed, stack)
        router.rpc.set_serving(True)
        ready()
        await stop.wait()
        router.rpc.set_serving(False)
        await router.rpc.stop(settings.router.drain_timeout_s)


class Share(Protocol):
    """Starts what is shared. ``services/router/limits/sharing.py``."""

    async def __call__(
        self, settings: Settings, stack: AsyncExitStack, metrics: Metrics, health: Health
    ) -> Shared:
        """Raises ``ConfigError`` for a password that cannot be read, ``OSError``."""
        ...


class _Router:
    """The long-lived parts, as far as starting and stopping needs them."""

    def __init__(
        self,
        heard: tuple[GrantClient, PriceBook, Purses],
        parts: Parts,
        rpc: RpcServer,
        roster: Roster,
        providers: ProviderWatch,
    ) -> None:
        self.grants, self.prices, self.purses = heard
        self.parts = parts
        self.rpc = rpc
        self.roster = roster
        self.providers = providers

    @classmethod
    async def assemble(cls, settings: Settings, stack: AsyncExitStack) -> "_Router":
        """Opens and starts everything; ``stack`` closes it in the opposite order."""
        clock, entropy, own = SystemClock(), PooledEntropy(), settings.router
        metrics = Metrics("router")
        if settings.telemetry.metrics_address:
            page = await serve_metrics(settings.telemetry.metrics_address, metrics)
            stack.push_async_callback(page.close)
        failpoints = configured_failpoints(settings)
        journal = _journal(own, failpoints)
        stack.callback(journal.close)
        auth, usage = channel(own.auth, settings.rpc), channel(own.usage, settings.rpc)
        stack.push_async_callback(auth.close)
        stack.push_async_callback(usage.close)
        grants = GrantClient(auth, clock, settings.rpc.revocation_grace_s, own.name)
        prices = PriceBook(usage, clock, own.name)
        shipper = Shipper(journal, usage, clock, failpoints)
        for part in (grants, prices, shipper):
            part.start()
            stack.push_async_callback(part.close)
        health = Health()
        shared = await _shared(settings, stack, metrics, health)
        upstream = Upstream(clock, connect_timeout_s=own.connect_timeout_s, failpoints=failpoints)
        stack.callback(upstream.close)
        jobs = Jobs(upstream, clock, own.answer_bytes_max)
        stack.push_async_callback(jobs.close)
        roster = await _roster(settings, stack, health)
        catalog = roster.catalog = Catalog(roster.known, prices)
        peers = PeerCooldowns(usage, health, clock, own.name)
        stack.push_async_callback(peers.close)
        purses = _purses(journal, usage, (settings, clock, entropy, failpoints), stack, peers)
        mirrors = Mirrors(Standings(catalog, prices, health))
        stack.push_async_callback(mirrors.close)
        parts = Parts(
            settings=own,
            clock=clock,
            entropy=entropy,
            grants=grants,
            prices=prices,
            catalog=catalog,
            providers=roster.providers,
            limits=Limits(),
            health=health,
            observed=Observed(),
            routes=Routes(settings.routes, SetPolicies(settings.policies)),
            standings=Standings(catalog, prices, health),
            retries=RetryBudget(own.retry_budget),
            watchdog=Watchdog(clock),
            upstream=upstream,
            jobs=jobs,
            journal=journal,
            shipper=shipper,
            meters=Meters(metrics),
            waiting=_waiting(own, clock),
            shared_limits=shared.limits,
            cooldowns=EveryWay((shared.cooldowns, peers)) if shared.cooldowns else peers,
            purses=purses,
            failpoints=failpoints,
            mirrors=mirrors,
            repeats=_repeats(own, journal, usage, (clock, entropy), stack),
        )
        metrics.reading(
            "credentials_refused", "Credentials that were refused last.", health.refused
        )
        token = partial(_operator_token, settings.rpc.operator_token_file)
        providers = ProviderWatch(auth, clock, own.name, roster, token)
        explain = ExplainService(parts, key_service_pb2_grpc.KeyServiceStub(auth))
        rpc = await _serve(settings, parts, explain, stack)
        return cls((grants, prices, purses), parts, rpc, roster, providers)


def _journal(own: RouterSettings, failpoints: Failpoints) -> Journal:
    return Journal.open(
        own.journal_dir,
        own.journal_bytes_max,
        salvage=own.journal_salvage,
        failpoints=failpoints,
    )


def _waiting(own: RouterSettings, clock: Clock) -> Waiting | None:
    return Waiting(clock, own.queue_wait_s, own.queue_calls_max) if own.queue_wait_s else None


async def _shared(
    settings: Settings, stack: AsyncExitStack, metrics: Metrics, health: Health
) -> Shared:
    """What routers share where a Valkey is configured. Imported by name then: its library costs
    each router 5 MB.
    """
    if not settings.limits.valkey_url:
        return Shared()
    share: Share = importlib.import_module(_SHARING).share
    return await share(settings, stack, metrics, health)


def _purses(
    journal: Journal,
    usage: grpc.aio.Channel,
    given: tuple[Settings, Clock, Entropy, Failpoints],
    stack: AsyncExitStack,
    cooling: PeerCooldowns,
) -> Purses:
    """What holds money at usage: this life's epoch, its holds, and the budgets that want them."""
    settings, clock, entropy, failpoints = given
    own = settings.router
    epoch = Epoch(own.name, journal, usage, clock, failpoints)
    holds = Holds(usage, epoch, clock, entropy, failpoints)
    epoch.recall = holds.recall
    watch = BudgetWatch(usage, clock, own.name, holds.recall)
    watch.cooling = cooling
    for part in (epoch, holds, watch):
        part.start()
        stack.push_async_callback(part.close)
    return Purses(watch, holds, (clock, entropy), own.output_tokens_cap)


def _repeats(
    own: RouterSettings,
    journal: Journal,
    usage: grpc.aio.Channel,
    ports: tuple[Clock, Entropy],
    stack: AsyncExitStack,
) -> Repeats | None:
    """What makes calls with an idempotency key once, unless the operator does not want it."""
    if not own.idempotency_window_s:
        return None
    repeats = Repeats(usage, journal, own, ports)
    repeats.start()
    stack.push_async_callback(repeats.close)
    return repeats


async def _roster(settings: Settings, stack: AsyncExitStack, health: Health) -> Roster:
    """The providers; the demo's server is started where one of them is the demo."""
    clock, entropy = SystemClock(), PooledEntropy()
    environ = environment()
    wanted = with_demo(settings.providers)
    demo_url = ""
    if any(provider.kind == demo.NAME for provider in wanted):
        server = demo.DemoServer(clock, entropy)
        demo_url = await server.start()
        stack.push_async_callback(server.close)
    if not settings.providers:
        _LOG.warning("no provider is configured: the built-in demo answers, as demo/echo only")
    making = Making(
        wires=PROVIDERS,
        secret_of=lambda provider, _: credential(provider, environ),
        demo_url=demo_url,
        clock=clock,
    )
    roster = Roster(wanted, making, Keyring(settings.sealing, environ, entropy), health)
    stack.push_async_callback(roster.close)
    await roster.start()
    return roster


def _keep_discovering(parts: Parts, changed: asyncio.Event, stack: AsyncExitStack) -> None:
    discovery = Discovery(parts.providers, parts.catalog, parts.prices, parts.upstream, parts.clock)
    task = asyncio.create_task(discovery.run(parts.settings.discovery_interval_s, changed))
    task.add_done_callback(_report)
    stack.push_async_callback(_cancelled, task)


async def _serve(
    settings: Settings, parts: Parts, explain: ExplainService, stack: AsyncExitStack
) -> RpcServer:
    rpc = RpcServer(settings.rpc, settings.router.name)
    rpc.set_serving(False)
    token = partial(_operator_token, settings.rpc.operator_token_file)
    rpc.add_calls({CHAT_METHOD: ChatExecution(parts).chat})
    rpc.add(
        model_service_pb2_grpc.add_ModelServiceServicer_to_server,
        ModelService(parts, token),
    )
    rpc.add(
        provider_check_service_pb2_grpc.add_ProviderCheckServiceServicer_to_server,
        ProviderCheckService(parts.providers, parts.upstream, parts.clock, token),
    )
    rpc.add(explain_service_pb2_grpc.add_ExplainServiceServicer_to_server, explain)
    await rpc.start(settings.router.listen)
    stack.push_async_callback(rpc.stop, 0.0)
    return rpc


def _operator_token(file: str) -> str:
    """The operator's token; empty where there is none. Read when it is needed: on one machine auth
    makes the file, and in a cluster routers may do without.
    """
    try:
        return read_secret(Path(file)).reveal() if file else ""
    except SecretError:
        return ""


async def _heard(router: _Router, stop: asyncio.Event) -> bool:
    """Waits until auth and usage have been heard; false when the process is to stop before."""
    while not (router.grants.ready and router.prices.ready and router.purses.ready):
        try:
            async with asyncio.timeout(READY_CHECK_S):
                await stop.wait()
            return False
        except TimeoutError:
            continue
    return True


async def _cancelled(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


def _report(task: asyncio.Task[None]) -> None:
    """Discovery never ends by itself: if it does, that is a defect worth a line."""
    if not task.cancelled() and task.exception() is not None:
        _LOG.error("discovery stopped; the models known stay", exc_info=task.exception())
