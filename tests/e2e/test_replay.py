"""Every recorded chat exchange through the whole gateway, over real sockets, with the official SDK.

What OpenAI-compatible providers and those with wires of their own really answered is served by a
local stand-in; the SDK asks the gateway; what comes out must say what the provider said, and be
what OpenAI's API description allows.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import openai
import pytest
from openai.types.chat.completion_create_params import CompletionCreateParamsBase

from tests import replay_oracle as oracle
from tests.e2e import foreign_answers
from tests.e2e.replay_server import ReplayServer, content_of, replaying
from tests.gateway import Gateway, running_gateway
from tests.openapi_oracle import CHAT_CHUNK, CHAT_COMPLETION, faults
from tests.providers.feature_table import FeatureTable
from tests.recordings import exchanges, needs_recordings, needs_specs

pytestmark = [needs_recordings, needs_specs]

OPENAI = "openai.chat.completions"
FOREIGN = {
    "anthropic.messages": ("anthropic", foreign_answers.anthropic),
    "google.generateContent": ("gemini", foreign_answers.gemini),
    "google.streamGenerateContent": ("gemini", foreign_answers.gemini),
    "bedrock.converse": ("bedrock", foreign_answers.bedrock),
    "bedrock.converseStream": ("bedrock", foreign_answers.bedrock),
    "cohere.chat": ("cohere", foreign_answers.cohere),
    "ollama.chat": ("ollama-native", foreign_answers.ollama),
}
STREAMS = ("event-stream", "eventstream", "ndjson")
KINDS = {"moonshotai": "moonshot"}
ROWLESS = {"anthropic", "bedrock", "crusoe", "google", "heroku", "local", "snowflake"}
"""Who was recorded in OpenAI's dialect and has no row: any OpenAI-compatible URL."""
PROVIDER = """
[[provider]]
name = "{name}"
kind = "{kind}"
base_url = "http://127.0.0.1:{port}"
api_key_env = "REPLAY_KEY"
free = true
"""
KNOWN = frozenset(CompletionCreateParamsBase.__annotations__) | {"stream"}
GATEWAYS_OWN = {"models", "provider", "route"}
"""Members of OpenRouter's dialect that steer the gateway itself."""
AZURES_OWN = '"prompt_filter_results"'
"""A member that Azure adds to OpenAI's answers."""
RESTING = {401, 403, 429}
SHARE_MIN = 0.99
PROVIDER_SHARE_MIN = 0.95

Recorded = Mapping[str, Any]


def recorded() -> dict[str, Recorded]:
    """All recorded chat exchanges that this gateway speaks the API of, by id."""
    apis = (OPENAI, *FOREIGN)
    found = [e for api in apis for e in exchanges("", api)]
    return {e["id"]: e for e in found}


def name_of(exchange: Recorded) -> str:
    """The configured provider that stands for a recorded one; a refusal that makes the gateway rest
    a provider gets one of its own.
    """
    foreign = exchange["api"] in FOREIGN
    name = kind_of(exchange) if foreign else f"{vendor_of(exchange)}-chat"
    resting = exchange["status"] in RESTING
    return f"{name}-{exchange['id'].rsplit('/', 1)[-1]}" if resting else name


def key_of(exchange: Recorded) -> str:
    """The model's name that stands for an exchange: its id, without slashes (for paths)."""
    return str(exchange["id"]).replace("/", "--")


def vendor_of(exchange: Recorded) -> str:
    """Who answered. Where only the answer was recorded, its address was inferred from the client;
    what Azure alone says of a prompt is said by Azure.
    """
    azure = exchange["origin"] == "recorded-response" and AZURES_OWN in exchange["response_body"]
    return "azure" if azure else str(exchange["provider"])


def kind_of(exchange: Recorded) -> str:
    if exchange["provider"] == "vertexai":
        return "vertex"
    if exchange["api"] in FOREIGN:
        return FOREIGN[exchange["api"]][0]
    provider = vendor_of(exchange)
    return "compatible" if provider in ROWLESS else KINDS.get(provider, provider)


@dataclass
class Stage:
    """The gateway, the stand-in behind it, and a client before it."""

    gateway: Gateway
    replay: ReplayServer
    client: openai.OpenAI


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    everything = recorded()
    with replaying({key_of(e): e for e in everything.values()}) as replay:
        names = {name_of(e): kind_of(e) for e in everything.values()}
        config = "".join(
            PROVIDER.format(name=name, kind=kind, port=replay.port) for name, kind in names.items()
        )
        directory = tmp_path_factory.mktemp("replay")
        environment = {"REPLAY_KEY": "replay-key"}
        with (
            running_gateway(directory, config, environment=environment) as gateway,
            openai.OpenAI(
                base_url=gateway.base_url, api_key=gateway.api_key, max_retries=0, timeout=30
            ) as client,
        ):
            yield Stage(gateway, replay, client)


def is_stream(exchange: Recorded) -> bool:
    headers = {k.lower(): v for k, v in exchange["response_headers"].items()}
    return any(kind in headers.get("content-type", "") for kind in STREAMS)


def request_of(exchange: Recorded) -> dict[str, Any]:
    """The recorded request where it is in OpenAI's dialect, else a plain question."""
    asked: dict[str, Any] = {"messages": [{"role": "user", "content": "Hello!"}]}
    if exchange["api"] == OPENAI and exchange["request_body_encoding"] == "json":
        asked = {k: v for k, v in exchange["request_body"].items() if k not in GATEWAYS_OWN}
    asked["model"] = f"{name_of(exchange)}/{key_of(exchange)}"
    if is_stream(exchange):
        asked["stream"] = True
        asked["stream_options"] = {"include_usage": True}
    else:
        asked.pop("stream", None)
        asked.pop("stream_options", None)
    return asked


def ask(stage: Stage, asked: dict[str, Any]) -> tuple[list[dict[str, Any]], bool]:
    """The answer's JSON values, chunk by chunk for a stream, and whether it was one."""
    known = {k: v for k, v in asked.items() if k in KNOWN}
    extra = {k: v for k, v in asked.items() if k not in KNOWN}
    made = stage.client.chat.completions.create(**known, extra_body=extra)
    if asked.get("stream"):
        with made as chunks:
            return [chunk.model_dump(exclude_unset=True, by_alias=True) for chunk in chunks], True
    return [made.model_dump(exclude_unset=True, by_alias=True)], False


def folded(values: list[dict[str, Any]], *, stream: bool) -> oracle.Folded:
    if stream:
        return oracle.fold_stream("".join(f"data: {json.dumps(v)}\n\n" for v in values))
    return oracle.fold_whole(values[0])


def fault_of_openai(exchange: Recorded, got: oracle.Folded) -> str:
    """What differs between the recorded answer and the gateway's."""
    body = content_of(exchange).decode()
    want = oracle.expected(oracle.fold(body, stream=is_stream(exchange)), exchange["provider"])
    for index, choice in want["choices"].items():
        mine = got["choices"].get(index)
        if mine is None:
            return f"choice {index} is missing"
        for member in ("text", "thinking", "refusal", "calls", "finish"):
            if (mine[member] or None) != (choice[member] or None):
                return f"{member}: {choice[member]!r:.90} became {mine[member]!r:.90}"
    if want["usage"] and got["usage"] != want["usage"]:
        return f"usage: {want['usage']} became {got['usage']}"
    return "" if got["usage"] or not is_stream(exchange) else "no usage"


def fault_of_foreign(exchange: Recorded, got: oracle.Folded) -> str:
    want = FOREIGN[exchange["api"]][1](content_of(exchange))
    mine = got["choices"][0]
    calls = [(call["name"], call["arguments"]) for call in mine["calls"]]
    have = {
        "text": mine["text"],
        "calls": [(name, arguments or {}) for name, arguments in calls],
        "finish": mine["finish"],
        "tokens": (got["usage"]["input"], got["usage"]["output"]),
    }
    for member, value in want.items():
        if have[member] != value:
            return f"{member}: {value!r:.90} became {have[member]!r:.90}"
    return ""


def fault_of_request(exchange: Recorded, asked: dict[str, Any], stage: Stage) -> str:
    """What reached a provider of the same dialect otherwise than it was asked."""
    if kind_of(exchange) != "openai":
        return ""
    arrived = dict(stage.replay.asked[key_of(exchange)])
    wanted = {k: v for k, v in asked.items() if k != "model"}
    arrived.pop("model")
    return "" if arrived == wanted else f"request: {wanted!r:.90} arrived as {arrived!r:.90}"


STATUS_OF = {401: 502, 403: 502}
"""What the caller sees of a provider's refusal, where it is not the same."""


def fault_of_error(exchange: Recorded, error: openai.APIError) -> str:
    status = exchange["status"]
    if status < 300:
        body = content_of(exchange).decode()
        broken = (
            exchange["api"] == OPENAI and oracle.fold(body, stream=is_stream(exchange))["error"]
        )
        return "" if broken else f"refused: {error}"[:200]
    if not isinstance(error, openai.APIStatusError):
        return f"no status: {error!r}"[:200]
    # Google says 400 of a key that it does not know: the gateway's own, not the caller's.
    body = content_of(exchange).decode()
    wanted = 502 if "API key" in body else STATUS_OF.get(status, status)
    if "model identifier is invalid" in body:
        wanted = 404  # Amazon's way to say that it has no such model
    return (
        "" if error.status_code == wanted else f"{status} became {error.status_code}: {error}"[:200]
    )


def replay(exchange: Recorded, stage: Stage) -> str:
    """Runs one exchange; gives what was wrong, or nothing."""
    asked = request_of(exchange)
    try:
        values, stream = ask(stage, asked)
    except openai.APIError as error:
        return fault_of_error(exchange, error)
    if exchange["status"] >= 300:
        return f"{exchange['status']} became an answer"
    got = folded(values, stream=stream)
    compare = fault_of_openai if exchange["api"] == OPENAI else fault_of_foreign
    shape = CHAT_CHUNK if stream else CHAT_COMPLETION
    found = [compare(exchange, got), fault_of_request(exchange, asked, stage)]
    found += [fault for value in values for fault in faults(shape, value)]
    return next((fault for fault in found if fault), "")


def inapplicable(exchange: Recorded) -> str:
    """Why an exchange says nothing of the gateway; empty when it does."""
    if exchange["response_body_encoding"] == "none" or not exchange["response_body"]:
        return "no response was recorded"
    if (
        '"partialArgs"' in exchange["response_body"]
        or '"willContinue"' in exchange["response_body"]
    ):
        return "arguments in pieces, which Vertex alone sends and only when asked"
    if exchange["api"] == "cohere.chat" and "api.cohere.com/v2/" not in exchange["url"]:
        return "another API: Cohere's version 1, or Writer's"
    if "serverContent" in exchange["response_body"]:
        return "frames of a live session, not of a chat"
    if exchange["status"] < 300 and not is_stream(exchange):
        try:
            answer = json.loads(content_of(exchange))
        except ValueError:
            return "the recorded body is not JSON and not marked as a stream"
        if not isinstance(answer, dict):
            return "the recorded body is no answer"
    return ""


def test_recorded_exchanges_come_out_as_the_provider_meant_them(
    stage: Stage, capsys: pytest.CaptureFixture[str]
) -> None:
    tables: dict[str, FeatureTable] = {}
    for identity, exchange in recorded().items():
        name = f"{vendor_of(exchange)} ({exchange['api']})"
        table = tables.setdefault(name, FeatureTable(name))
        if reason := inapplicable(exchange):
            table.skip(reason)
            continue
        table.add(identity, exchange["features"], replay(exchange, stage))
    with capsys.disabled():
        print()
        for table in tables.values():
            print(table)
        passed = sum(table.passed["all"] for table in tables.values())
        failed = sum(len(table.failed) for table in tables.values())
        print(f"replayed end to end: {passed} passed, {failed} failed")
    assert passed / (passed + failed) >= SHARE_MIN
    shares = {
        name: table.passed["all"] / max(table.passed["all"] + len(table.failed), 1)
        for name, table in tables.items()
        if table.passed["all"] + len(table.failed)
    }
    assert {name: share for name, share in shares.items() if share < PROVIDER_SHARE_MIN} == {}
