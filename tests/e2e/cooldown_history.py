"""What a provider saw of two routers that it had asked for quiet: a whole gateway, called without a
pause through both of its routers, against a provider that answers every fourth call with 429.

A call that comes before the time that some 429 has named was under way when its router was told.
How old that 429 was is the lag; it must stay below a bound. As a command:

    python -m tests.e2e.cooldown_history --seconds 60 [--valkey]
"""

import argparse
import contextlib
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import grpc

from cli.context import load
from onegate.common.v1 import content_pb2
from onegate.router.v1 import chat_pb2, chat_service_pb2
from tests.fake_provider import FakeProvider, Reply, Taken, running_in_thread
from tests.gateway import Gateway, running_gateway
from tests.services.router.valkey_server import ValkeyServer

QUIET_S = 1
"""What the provider asks for."""
CALLERS = 3
"""How many call each router at a time."""
LAG_MAX_S = 0.5
"""How long after a 429 a call of another router may still come, on a slow and busy machine."""

PROVIDER = """
[[provider]]
name = "fake"
kind = "openai"
base_url = "{base_url}"
api_key_env = "FAKE_KEY"
models = ["m"]
free = true
[telemetry]
access_log = false
"""


@dataclass(frozen=True)
class Seen:
    """What the provider saw.

    Attributes:
        calls: how many it took.
        asked: how many of them it answered with 429.
        early: how many came before the time that an answered 429 had named.
        lag_s: the age of the oldest 429 that such a call had not heard of; 0 without any.
        refused: how many calls the routers refused without asking it.
    """

    calls: int
    asked: int
    early: int
    lag_s: float
    refused: int


def seen_of(taken: list[Taken], asked: list[Taken], refused: int) -> Seen:
    """The provider's own log, judged."""
    lags = [
        max(
            (
                one.taken_at - busy.taken_at
                for busy in asked
                if busy.taken_at < one.taken_at < busy.taken_at + QUIET_S
            ),
            default=None,
        )
        for one in taken
    ]
    early = [lag for lag in lags if lag is not None]
    return Seen(len(taken), len(asked), len(early), max(early, default=0.0), refused)


@contextlib.contextmanager
def gateway_over(directory: Path, fake: FakeProvider, *, valkey: bool) -> Iterator[Gateway]:
    """A gateway with two routers in processes of their own."""
    config = PROVIDER.format(base_url=fake.base_url)
    with contextlib.ExitStack() as stack:
        if valkey:
            server = ValkeyServer(Path(stack.enter_context(tempfile.TemporaryDirectory())))
            server.start()
            stack.callback(server.kill)
            config += f'[limits]\nvalkey_url = "{server.url}"\n'
        yield stack.enter_context(
            running_gateway(directory, config, workers=2, environment={"FAKE_KEY": "key"})
        )


def routers_of(gateway: Gateway) -> list[str]:
    """Where its routers listen."""
    path = gateway.log.with_name("onegate.toml")
    settings = load(path, {"data_dir": str(gateway.data_dir), "workers": 2})
    return list(settings.edge.routers)


def ask(line: grpc.Channel, key: str, model: str = "fake/m") -> grpc.StatusCode | None:
    """One call; ``None`` when it went well."""
    part = content_pb2.Part(text=content_pb2.TextPart(text="Hi"))
    message = content_pb2.Message(role=content_pb2.ROLE_USER, parts=[part])
    request = chat_pb2.ChatRequest(model=model, messages=[message])
    asked = line.unary_stream(
        "/onegate.router.v1.ChatService/Chat",
        request_serializer=chat_pb2.ChatRequest.SerializeToString,
        response_deserializer=chat_service_pb2.ChatResponse.FromString,
    )
    try:
        list(asked(request, timeout=30, metadata=(("authorization", f"Bearer {key}"),)))
    except grpc.RpcError as error:
        return error.code()
    return None


def measure(directory: Path, seconds: float, *, valkey: bool) -> Seen:
    """Calls both routers for so long."""
    asked: list[Taken] = []
    counts = [0]
    fake = FakeProvider(models=("m",))

    def choose(taken: Taken) -> Reply:
        counts[0] += 1
        if counts[0] % 4:
            return Reply()
        asked.append(taken)
        return Reply(status=429, headers=(("retry-after", str(QUIET_S)),))

    fake.choose = choose
    refused: list[grpc.StatusCode] = []
    over = threading.Event()

    def call(target: str, key: str) -> None:
        with grpc.insecure_channel(target) as line:
            while not over.is_set():
                status = ask(line, key)
                if status is grpc.StatusCode.RESOURCE_EXHAUSTED:
                    refused.append(status)
                    over.wait(0.005)

    with running_in_thread(fake), gateway_over(directory, fake, valkey=valkey) as gateway:
        callers = [
            threading.Thread(target=call, args=(target, gateway.api_key))
            for target in routers_of(gateway)
            for _ in range(CALLERS)
        ]
        for caller in callers:
            caller.start()
        time.sleep(seconds)
        over.set()
        for caller in callers:
            caller.join()
    return seen_of(fake.chats, asked, len(refused))


def main() -> None:
    """Prints what was seen; fails when a call came too late after a 429."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--valkey", action="store_true")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        seen = measure(Path(directory), given.seconds, valkey=given.valkey)
    print(seen)
    if seen.lag_s > LAG_MAX_S or not seen.asked or not seen.refused:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
