"""A whole router between real sockets: fake auth and usage services at the wire, providers of the
tests' own, and a relay to call it through.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import grpc

from onegate.auth.v1 import grant_pb2, grant_service_pb2, grant_service_pb2_grpc
from onegate.common.v1 import content_pb2, error_pb2
from onegate.router.v1 import chat_pb2, chat_service_pb2
from onegate.usage.v1 import (
    budget_service_pb2,
    budget_service_pb2_grpc,
    idempotency_service_pb2_grpc,
    price_pb2,
    price_service_pb2,
    price_service_pb2_grpc,
    usage_record_pb2,
    usage_service_pb2,
    usage_service_pb2_grpc,
)
from runtime import apikeys
from runtime.clock import SystemClock, SystemEntropy
from runtime.config import ProviderSettings, RouterSettings, RouteSettings, RpcSettings, Settings
from runtime.errors import GatewayError, reason_name
from runtime.relay import RelayCall, RelayPool
from runtime.rpc import RpcServer
from services.router import server
from tests.fake_provider import INPUT_TOKENS, FakeProvider, Reply, pieces_of

Context = grpc.aio.ServicerContext[Any, Any]
Record = usage_record_pb2.UsageRecord
HEARTBEAT_S = 0.5

RATES = (
    price_pb2.Rate(meter=price_pb2.METER_INPUT_TOKENS, nano_usd_per_million=1_000_000),
    price_pb2.Rate(meter=price_pb2.METER_OUTPUT_TOKENS, nano_usd_per_million=10_000_000),
)
"""One nano-USD for an input token, ten for an output token."""


def sheet(model: str) -> price_pb2.PriceSheet:
    """A price of ``kind/model``."""
    return price_pb2.PriceSheet(model=model, version=f"{model}@1", rates=RATES)


TEXT = Reply().text
OUTPUT_TOKENS = len(pieces_of(TEXT))
COST = INPUT_TOKENS + 10 * OUTPUT_TOKENS
"""What the fake provider's usual answer says, has and costs."""
PRICED = (sheet("openai/m"), sheet("deepseek/m"))


def outcome(record: Record) -> str:
    """How an attempt ended."""
    return usage_record_pb2.Outcome.Name(record.outcome).removeprefix("OUTCOME_")


def certainty(record: Record) -> str:
    """How sure its figures are."""
    return usage_record_pb2.Certainty.Name(record.certainty).removeprefix("CERTAINTY_")


def reason(record: Record) -> str:
    """Why it failed; empty when it did not."""
    return reason_name(record.error_reason) if record.error_reason else ""


class FakeAuth(grant_service_pb2_grpc.GrantServiceServicer):
    """Knows the keys that the test made, and pushes what it is told to."""

    def __init__(self) -> None:
        self.grants: dict[bytes, grant_pb2.Grant] = {}
        self.asked = 0

    async def GetGrant(  # noqa: N802
        self, request: grant_service_pb2.GetGrantRequest, context: Context
    ) -> grant_service_pb2.GetGrantResponse:
        self.asked += 1
        grant = self.grants.get(request.key_digest)
        if grant is None:
            raise GatewayError(error_pb2.ERROR_REASON_INVALID_API_KEY, "unknown")
        return grant_service_pb2.GetGrantResponse(grant=grant)

    async def ReportUse(  # noqa: N802
        self, request: grant_service_pb2.ReportUseRequest, context: Context
    ) -> grant_service_pb2.ReportUseResponse:
        return grant_service_pb2.ReportUseResponse()

    async def AckGrants(  # noqa: N802
        self, request: grant_service_pb2.AckGrantsRequest, context: Context
    ) -> grant_service_pb2.AckGrantsResponse:
        return grant_service_pb2.AckGrantsResponse()

    async def WatchGrants(  # noqa: N802
        self, request: grant_service_pb2.WatchGrantsRequest, context: Context
    ) -> AsyncIterator[grant_service_pb2.WatchGrantsResponse]:
        while True:
            yield grant_service_pb2.WatchGrantsResponse(revision=1)
            await asyncio.sleep(HEARTBEAT_S)


class FakePrices(price_service_pb2_grpc.PriceServiceServicer):
    """Knows the prices that the test names."""

    def __init__(self, sheets: Iterable[price_pb2.PriceSheet]) -> None:
        self.sheets = list(sheets)
        self.hidden: list[price_pb2.PriceSheet] = []
        self.asked: list[str] = []

    async def WatchPrices(  # noqa: N802
        self, request: price_service_pb2.WatchPricesRequest, context: Context
    ) -> AsyncIterator[price_service_pb2.WatchPricesResponse]:
        yield price_service_pb2.WatchPricesResponse(prices=self.sheets, complete=True)
        while True:
            await asyncio.sleep(HEARTBEAT_S)
            yield price_service_pb2.WatchPricesResponse()

    async def GetPrice(  # noqa: N802
        self, request: price_service_pb2.GetPriceRequest, context: Context
    ) -> price_service_pb2.GetPriceResponse:
        self.asked.append(request.model)
        found = [one for one in (*self.sheets, *self.hidden) if one.model == request.model]
        return price_service_pb2.GetPriceResponse(prices=found)

    async def ListPrices(  # noqa: N802
        self, request: price_service_pb2.ListPricesRequest, context: Context
    ) -> price_service_pb2.ListPricesResponse:
        return price_service_pb2.ListPricesResponse(prices=self.sheets)

    async def SetPrices(  # noqa: N802
        self, request: price_service_pb2.SetPricesRequest, context: Context
    ) -> price_service_pb2.SetPricesResponse:
        raise NotImplementedError

    async def ListPriceChanges(  # noqa: N802
        self, request: price_service_pb2.ListPriceChangesRequest, context: Context
    ) -> price_service_pb2.ListPriceChangesResponse:
        raise NotImplementedError


class FakeBudgets(budget_service_pb2_grpc.BudgetServiceServicer):
    """There are none."""

    async def WatchBudgets(  # noqa: N802
        self, request: budget_service_pb2.WatchBudgetsRequest, context: Any
    ) -> AsyncIterator[budget_service_pb2.WatchBudgetsResponse]:
        yield budget_service_pb2.WatchBudgetsResponse(complete=True)
        while True:
            await asyncio.sleep(2)
            yield budget_service_pb2.WatchBudgetsResponse()

    async def SetBudget(  # noqa: N802
        self, request: budget_service_pb2.SetBudgetRequest, context: Any
    ) -> budget_service_pb2.SetBudgetResponse:
        raise AssertionError("routers set no budgets")

    async def ListBudgets(  # noqa: N802
        self, request: budget_service_pb2.ListBudgetsRequest, context: Any
    ) -> budget_service_pb2.ListBudgetsResponse:
        raise AssertionError("routers follow budgets")

    async def DeleteBudget(  # noqa: N802
        self, request: budget_service_pb2.DeleteBudgetRequest, context: Any
    ) -> budget_service_pb2.DeleteBudgetResponse:
        raise AssertionError("routers end no budgets")

    async def ListBalances(  # noqa: N802
        self, request: budget_service_pb2.ListBalancesRequest, context: Any
    ) -> budget_service_pb2.ListBalancesResponse:
        raise AssertionError("routers ask for holds, not for balances")


class FakeUsage(usage_service_pb2_grpc.UsageServiceServicer):
    """Keeps what is recorded, once for each attempt."""

    def __init__(self) -> None:
        self.records: dict[str, Record] = {}
        self.away = False
        self.changed = asyncio.Event()

    async def RecordUsage(  # noqa: N802
        self, request: usage_service_pb2.RecordUsageRequest, context: Context
    ) -> usage_service_pb2.RecordUsageResponse:
        if self.away:
            raise GatewayError(error_pb2.ERROR_REASON_STORE_UNAVAILABLE, "away")
        new = [r for r in request.records if r.attempt_id not in self.records]
        self.records.update((record.attempt_id, record) for record in new)
        self.changed.set()
        return usage_service_pb2.RecordUsageResponse(inserted=len(new))

    async def ListUsage(  # noqa: N802
        self, request: usage_service_pb2.ListUsageRequest, context: Context
    ) -> usage_service_pb2.ListUsageResponse:
        return usage_service_pb2.ListUsageResponse(records=self.records.values())

    async def SummarizeUsage(  # noqa: N802
        self, request: usage_service_pb2.SummarizeUsageRequest, context: Context
    ) -> usage_service_pb2.SummarizeUsageResponse:
        return usage_service_pb2.SummarizeUsageResponse()


@dataclass
class Said:
    """What one call brought."""

    events: list[chat_pb2.ChatEvent] = field(default_factory=list)
    messages: int = 0
    error: GatewayError | None = None
    typed_asked: int = 0

    @property
    def reason(self) -> str:
        """Why it failed; empty when it did not."""
        return reason_name(self.error.reason) if self.error else ""

    @property
    def native(self) -> bytes:
        """All native bytes."""
        return b"".join(event.native for event in self.events)

    @property
    def text(self) -> str:
        """The text, of a native answer or stream, or of a typed one."""
        kinds = {event.WhichOneof("event") for event in self.events}
        if "answer" in kinds:
            answer = next(e.answer for e in self.events if e.HasField("answer"))
            return "".join(part.text.text for part in answer.choices[0].message.parts)
        if "delta" in kinds:
            return "".join(c.text for e in self.events for c in e.delta.choices)
        if not self.native.startswith(b"data: "):
            return str(json.loads(self.native)["choices"][0]["message"]["content"])
        chunks = [json.loads(line[6:]) for line in self.native.split(b"\n\n") if line]
        return "".join(
            choice["delta"].get("content") or "" for chunk in chunks for choice in chunk["choices"]
        )

    @property
    def served(self) -> chat_pb2.Served:
        """Who served."""
        (found,) = [event.served for event in self.events if event.HasField("served")]
        return found

    @property
    def metered(self) -> chat_pb2.Metered:
        """What it consumed."""
        (found,) = [event.metered for event in self.events if event.HasField("metered")]
        return found


def native(body: Mapping[str, Any], **fields: Any) -> chat_pb2.ChatRequest:
    """A call in OpenAI's dialect, as the edge makes it."""
    encoded = json.dumps(body).encode()
    options = body.get("stream_options") or {}
    request = chat_pb2.ChatRequest(
        model=body["model"],
        stream=bool(body.get("stream")),
        stream_usage=bool(options.get("include_usage")),
        output_tokens_max=body.get("max_completion_tokens"),
        native=chat_pb2.NativeRequest(
            dialect=chat_pb2.DIALECT_OPENAI_CHAT, body=encoded, input_tokens_bound=len(encoded)
        ),
    )
    request.MergeFrom(chat_pb2.ChatRequest(**fields))
    return request


def typed(body: Mapping[str, Any]) -> chat_pb2.ChatRequest:
    """The same in no dialect; messages of plain text only."""
    request = native(body)
    request.ClearField("native")
    for message in body["messages"]:
        part = content_pb2.Part(text=content_pb2.TextPart(text=message["content"]))
        role = content_pb2.Role.Value(f"ROLE_{message['role'].upper()}")
        request.messages.append(content_pb2.Message(role=role, parts=[part]))
    return request


def hello(model: str = "a/m", **fields: Any) -> dict[str, Any]:
    """A small body."""
    return {"model": model, "messages": [{"role": "user", "content": "Hi"}], **fields}


class Rig:
    """The router under test and everything around it."""

    def __init__(self, settings: Settings, prices: Iterable[price_pb2.PriceSheet]) -> None:
        self.settings = settings
        self.auth = FakeAuth()
        self.prices = FakePrices(prices)
        self.usage = FakeUsage()
        self.stop = asyncio.Event()
        self.pool = RelayPool([settings.router.listen], settings.rpc, SystemClock())
        self.key = self.add_key()
        self.running: asyncio.Task[None] | None = None

    def add_key(self, **fields: Any) -> str:
        """A new key with this grant."""
        key = apikeys.mint(grant_pb2.KEY_KIND_PROJECT, SystemEntropy())
        grant = grant_pb2.Grant(
            key_id=f"key_{len(self.auth.grants)}",
            project_id="proj_1",
            organization_id="org_1",
            kind=grant_pb2.KEY_KIND_PROJECT,
            version=1,
        )
        grant.MergeFrom(grant_pb2.Grant(**fields))
        self.auth.grants[apikeys.digest(key)] = grant
        return key

    def open(self, request: chat_pb2.ChatRequest, key: str | None = None) -> RelayCall:
        """Starts a call."""
        metadata = {"authorization": f"Bearer {self.key if key is None else key}"}
        return self.pool.call(
            server.CHAT_METHOD, request.SerializeToString(), metadata=metadata, timeout_s=30.0
        )

    async def chat(self, body: Mapping[str, Any], *, key: str | None = None, **fields: Any) -> Said:
        """A whole call, in the caller's dialect and typed when the router asks for that."""
        said = Said()
        call: RelayCall | None = None
        try:
            call = self.open(native(body, **fields), key)
            while (payload := await call.receive()) is not None:
                said.messages += 1
                for event in chat_service_pb2.ChatResponse.FromString(payload).events:
                    if event.HasField("typed_required"):
                        said.typed_asked += 1
                        await call.send(typed(body).SerializeToString())
                    else:
                        said.events.append(event)
        except GatewayError as error:
            said.error = error
        finally:
            if call is not None:
                call.cancel()
        return said

    async def records(self, count: int) -> list[Record]:
        """The usage rows, once there are so many, by their start."""
        async with asyncio.timeout(10):
            while len(self.usage.records) < count:
                self.usage.changed.clear()
                await self.usage.changed.wait()
        found = sorted(
            self.usage.records.values(), key=lambda record: record.started_at.ToNanoseconds()
        )
        assert len(found) == count, found
        return found


def provider(
    name: str, fake: FakeProvider, kind: str = "openai", **fields: Any
) -> ProviderSettings:
    """A configured provider that is really a fake one."""
    return ProviderSettings(name=name, kind=kind, base_url=fake.base_url, **fields)


def settings_in(
    directory: Path,
    *providers: ProviderSettings,
    routes: tuple[RouteSettings, ...] = (),
    **router: Any,
) -> Settings:
    """Settings with every socket in the directory, and deadlines that a test can wait for."""
    own = RouterSettings(
        listen=f"unix:{directory}/router.sock",
        auth=f"unix:{directory}/auth.sock",
        usage=f"unix:{directory}/usage.sock",
        journal_dir=str(directory / "journal"),
        drain_timeout_s=5.0,
    )
    return Settings(
        data_dir=str(directory),
        router=replace(own, **router),
        rpc=RpcSettings(),
        providers=providers,
        routes=routes,
    )


async def until(condition: Callable[[], bool], timeout_s: float = 10.0) -> None:
    """Waits until the condition holds, for what has no event to wait for."""
    async with asyncio.timeout(timeout_s):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


@asynccontextmanager
async def running(
    settings: Settings,
    prices: Iterable[price_pb2.PriceSheet] = (),
    answers: idempotency_service_pb2_grpc.IdempotencyServiceServicer | None = None,
    more: Callable[[RpcServer], None] = lambda _: None,
    money: Callable[[RpcServer], None] = lambda _: None,
) -> AsyncIterator[Rig]:
    """A router that is ready, with the services that it needs; usage keeps no answers unless
    ``answers`` does, ``more`` adds services to auth, and ``money`` adds to usage, in place of what
    is there.
    """
    rig = Rig(settings, prices)
    async with AsyncExitStack() as stack:
        auth = RpcServer(settings.rpc, "auth")
        more(auth)
        auth.add(grant_service_pb2_grpc.add_GrantServiceServicer_to_server, rig.auth)
        usage = RpcServer(settings.rpc, "usage")
        usage.add(budget_service_pb2_grpc.add_BudgetServiceServicer_to_server, FakeBudgets())
        usage.add(price_service_pb2_grpc.add_PriceServiceServicer_to_server, rig.prices)
        usage.add(usage_service_pb2_grpc.add_UsageServiceServicer_to_server, rig.usage)
        money(usage)
        if answers is not None:
            add = idempotency_service_pb2_grpc.add_IdempotencyServiceServicer_to_server
            usage.add(add, answers)
        for peer, address in ((auth, settings.router.auth), (usage, settings.router.usage)):
            await peer.start(address)
            stack.push_async_callback(peer.stop, 0.0)
        ready = asyncio.Event()
        rig.running = asyncio.create_task(
            server.run(settings, stop=rig.stop, ready=ready.set), name="router"
        )
        stack.push_async_callback(_stopped, rig)
        waiting = asyncio.create_task(ready.wait())
        async with asyncio.timeout(20):
            await asyncio.wait((waiting, rig.running), return_when=asyncio.FIRST_COMPLETED)
        if not ready.is_set():
            waiting.cancel()
            await rig.running
        await rig.pool.start()
        stack.push_async_callback(rig.pool.close)
        await until(lambda: rig.pool.ready)
        yield rig


async def _stopped(rig: Rig) -> None:
    rig.stop.set()
    assert rig.running is not None
    async with asyncio.timeout(30):
        await rig.running
