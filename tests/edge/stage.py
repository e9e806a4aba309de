"""An edge on real sockets between a router and an auth that do what a test wants."""

# ruff: noqa: N802 - methods are named as the contract names them

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from edge.app import Edge, open_edge
from onegate.auth.v1 import grant_pb2
from onegate.common.v1 import error_pb2, token_usage_pb2
from onegate.router.v1 import (
    chat_pb2,
    chat_service_pb2,
    model_service_pb2,
    model_service_pb2_grpc,
)
from runtime import apikeys
from runtime.calls import ServerCall
from runtime.clock import SystemEntropy
from runtime.config import EdgeSettings, RpcSettings, Settings, TelemetrySettings
from runtime.errors import GatewayError
from runtime.rpc import RpcServer
from tests.edge.wire import Client, until
from tests.runtime.scripted_auth import ScriptedAuth, served

CHAT = "/onegate.router.v1.ChatService/Chat"
KEY = apikeys.mint(grant_pb2.KEY_KIND_PROJECT, SystemEntropy())
MODEL = "openai/gpt-4o-mini"

Event = chat_pb2.ChatEvent
Script = Callable[[ServerCall, chat_pb2.ChatRequest], Awaitable[None]]

SERVED = chat_pb2.Served(
    model=MODEL,
    attempts=2,
    upstream_us=1500,
    requests=chat_pb2.LimitStatus(limit=100, remaining=99, reset_ms=600),
    tokens=chat_pb2.LimitStatus(limit=10_000, remaining=9_000, reset_ms=61_500),
)
METERED = chat_pb2.Metered(
    tokens=token_usage_pb2.TokenUsage(input_tokens=9, output_tokens=3), cost_nano_usd=3_150
)
BODY = (
    b'{"id":"chatcmpl-1","object":"chat.completion","created":1,"model":"gpt-4o-mini",'
    b'"choices":[{"index":0,"message":{"role":"assistant","content":"Hi","refusal":null},'
    b'"finish_reason":"stop","logprobs":null}]}'
)


def chunk(text: str, finish: str = "null") -> bytes:
    """A stream chunk as a provider of the dialect writes it."""
    return (
        b'data: {"id":"chatcmpl-1","object":"chat.completion.chunk","created":1,"model":"m",'
        b'"choices":[{"index":0,"delta":{"content":"%b"},"finish_reason":%b}]}\n\n'
    ) % (text.encode(), finish.encode())


async def send(call: ServerCall, *events: Event) -> None:
    """Sends events that are ready together."""
    await call.send(chat_service_pb2.ChatResponse(events=events).SerializeToString())


async def answer_natively(call: ServerCall, request: chat_pb2.ChatRequest) -> None:
    """What a router does whose provider speaks OpenAI's dialect."""
    if not request.stream:
        await send(call, Event(served=SERVED), Event(native=BODY), Event(metered=METERED))
        return
    await send(call, Event(served=SERVED), Event(native=chunk("Hel")))
    await send(call, Event(native=chunk("lo")), Event(native=chunk("", '"stop"')))
    await send(call, Event(metered=METERED))


class ScriptedRouter(model_service_pb2_grpc.ModelServiceServicer):
    """Plays ``script`` for each chat call and knows ``models``."""

    def __init__(self, name: str = "router-0") -> None:
        self.name = name
        self.script: Script = answer_natively
        self.requests: list[chat_pb2.ChatRequest] = []
        self.metadata: list[dict[str, str]] = []
        self.cancelled = 0
        self.ended = 0
        self.models = [
            model_service_pb2.Model(id=MODEL, provider="openai", owner="openai", callable=True)
        ]
        self.page_size = 1000
        self.failure: GatewayError | None = None
        self.server: RpcServer | None = None

    async def chat(self, call: ServerCall) -> None:
        request = chat_pb2.ChatRequest.FromString(call.request)
        self.requests.append(request)
        self.metadata.append(dict(call.metadata))
        try:
            await self.script(call, request)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        finally:
            self.ended += 1

    async def ListModels(
        self, request: model_service_pb2.ListModelsRequest, context: Any
    ) -> model_service_pb2.ListModelsResponse:
        self.metadata.append(dict(context.invocation_metadata()))
        if self.failure is not None:
            raise self.failure
        start = int(request.page_token or 0)
        end = start + self.page_size
        token = str(end) if end < len(self.models) else ""
        return model_service_pb2.ListModelsResponse(
            models=self.models[start:end], next_page_token=token
        )

    async def GetModel(
        self, request: model_service_pb2.GetModelRequest, context: Any
    ) -> model_service_pb2.GetModelResponse:
        for model in self.models:
            if model.id == request.id:
                return model_service_pb2.GetModelResponse(model=model)
        raise GatewayError(error_pb2.ERROR_REASON_MODEL_NOT_FOUND, f"no model {request.id}")

    async def serve(self, directory: Path) -> None:
        """Lets the router be there."""
        self.server = RpcServer(RpcSettings(), self.name)
        self.server.add(model_service_pb2_grpc.add_ModelServiceServicer_to_server, self)
        self.server.add_calls({CHAT: self.chat})
        await self.server.start(f"unix:{directory}/{self.name}.sock")

    async def leave(self) -> None:
        """Lets it go away at once."""
        assert self.server is not None
        await self.server.stop(0)


@dataclass
class Stage:
    """An edge and who it talks to."""

    edge: Edge
    port: int
    auth: ScriptedAuth
    routers: list[ScriptedRouter]
    clients: list[Client] = field(default_factory=list)

    @property
    def router(self) -> ScriptedRouter:
        return self.routers[0]

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    async def connect(self) -> Client:
        client = Client(*await asyncio.open_connection("127.0.0.1", self.port))
        self.clients.append(client)
        return client


@contextlib.asynccontextmanager
async def staged(
    directory: Path, *, routers: int = 1, access_log: bool = False, **edge: Any
) -> AsyncIterator[Stage]:
    """A running edge whose auth knows :data:`KEY`."""
    auth = ScriptedAuth()
    auth.add(KEY)
    scripted = [ScriptedRouter(f"router-{index}") for index in range(routers)]
    settings = Settings(
        edge=replace(
            EdgeSettings(port=0, drain_notice_s=0, drain_timeout_s=0),
            auth=f"unix:{directory}/auth.sock",
            routers=tuple(f"unix:{directory}/{router.name}.sock" for router in scripted),
            **edge,
        ),
        telemetry=TelemetrySettings(access_log=access_log),
    )
    async with AsyncExitStack() as closing:
        auth_server = await served(auth, directory)
        closing.push_async_callback(auth_server.stop, 0)
        for router in scripted:
            await router.serve(directory)
            closing.push_async_callback(router.leave)
        made = await open_edge(settings, closing)
        stage = Stage(made, await made.start(), auth, scripted)
        closing.push_async_callback(made.drain)
        await until(lambda: all(made.checks().values()))
        try:
            yield stage
        finally:
            for client in stage.clients:
                await client.leave()
