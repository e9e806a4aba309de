"""Bedrock through a whole router: signed requests, binary streams and both lists, over a socket."""

import asyncio
import json
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from onegate.common.v1 import error_pb2
from onegate.router.v1 import chat_pb2
from runtime.config import ProviderSettings
from services.router.providers.aws_sigv4 import AwsCredential, AwsSigner
from services.router.providers.base import UpstreamRequest
from tests.providers import aws_frames
from tests.services.router.rig import (
    hello,
    outcome,
    reason,
    running,
    settings_in,
    until,
)

pytestmark = pytest.mark.anyio

STREAM = [
    aws_frames.event("messageStart", {"role": "assistant"}),
    aws_frames.event("contentBlockDelta", {"contentBlockIndex": 0, "delta": {"text": "Hei "}}),
    aws_frames.event("contentBlockDelta", {"contentBlockIndex": 0, "delta": {"text": "på deg."}}),
    aws_frames.event("contentBlockStop", {"contentBlockIndex": 0}),
    aws_frames.event("messageStop", {"stopReason": "end_turn"}),
    aws_frames.event("metadata", {"usage": {"inputTokens": 5, "outputTokens": 3}}),
]
ANSWER = {
    "output": {"message": {"role": "assistant", "content": [{"text": "Hei."}]}},
    "stopReason": "end_turn",
    "usage": {"inputTokens": 5, "outputTokens": 2, "totalTokens": 7},
}
LISTS = {
    "/foundation-models": {
        "modelSummaries": [
            {
                "modelId": "amazon.titan-text-express-v1",
                "outputModalities": ["TEXT"],
                "inferenceTypesSupported": ["ON_DEMAND"],
            }
        ]
    },
    "/inference-profiles": {
        "inferenceProfileSummaries": [
            {"inferenceProfileId": "us.anthropic.claude-opus-5", "status": "ACTIVE"}
        ]
    },
}
KEYS = {
    "AccessKeyId": "AKIACANARY",
    "SecretAccessKey": "canary",
    "SessionToken": "token",
    "Region": "eu-north-1",
}


@dataclass
class FakeBedrock:
    """Answers calls and lists; keeps what was asked."""

    pieces: list[bytes] = field(default_factory=lambda: list(STREAM))
    base_url: str = ""
    asked: list[tuple[UpstreamRequest, dict[str, str]]] = field(default_factory=list)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode()
                length = re.search(r"content-length: (\d+)", head)
                body = await reader.readexactly(int(length[1]) if length else 0)
                self._answer(head, body, writer)
                await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError):
            writer.close()

    def _answer(self, head: str, body: bytes, writer: asyncio.StreamWriter) -> None:
        method, path, _ = head.split(" ", 2)
        lines = [line.partition(": ")[::2] for line in head.split("\r\n")[1:] if line]
        asked = UpstreamRequest(method=method, path=path, headers=[], body=body)
        self.asked.append((asked, dict(lines)))
        if path.endswith("/converse-stream"):
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: application/vnd.amazon.eventstream\r\n")
            writer.write(b"transfer-encoding: chunked\r\n\r\n")
            raw = b"".join(self.pieces)
            for start in range(0, len(raw), 37):
                piece = raw[start : start + 37]
                writer.write(b"%x\r\n%s\r\n" % (len(piece), piece))
            writer.write(b"0\r\n\r\n")
            return
        told = json.dumps(LISTS.get(path.partition("?")[0], ANSWER)).encode()
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%s" % (len(told), told))

    def calls(self) -> list[tuple[UpstreamRequest, dict[str, str]]]:
        return [each for each in self.asked if each[0].method == "POST"]


@asynccontextmanager
async def fake_bedrock() -> AsyncIterator[FakeBedrock]:
    fake = FakeBedrock()
    server = await asyncio.start_server(fake.serve, "127.0.0.1", 0)
    fake.base_url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield fake
    finally:
        server.close()


def configured(
    fake: FakeBedrock, directory: Path, secret: dict[str, Any] | str
) -> ProviderSettings:
    path = directory / "aws.key"
    path.write_text(secret if isinstance(secret, str) else json.dumps(secret))
    path.chmod(0o600)
    return ProviderSettings(
        name="b", kind="bedrock", base_url=fake.base_url, api_key_file=str(path), free=True
    )


async def test_a_binary_stream_is_passed_on_and_every_request_is_signed(tmp_path: Path) -> None:
    async with (
        fake_bedrock() as fake,
        running(settings_in(tmp_path, configured(fake, tmp_path, KEYS))) as rig,
    ):
        said = await rig.chat(hello("b/us.anthropic.claude-opus-5:0", stream=True))
        assert said.error is None
        assert said.text == "Hei på deg."
        (record,) = await rig.records(1)
        assert outcome(record) == "COMPLETED"
        assert (record.tokens.input_tokens, record.tokens.output_tokens) == (5, 3)
        await until(lambda: len(fake.asked) >= 3)
    signer = AwsSigner(
        credential=AwsCredential(
            access_key_id="AKIACANARY",
            secret_access_key="canary",
            session_token="token",
            region="eu-north-1",
        ),
        service="bedrock",
    )
    for asked, headers in fake.asked:
        at = datetime.strptime(headers["x-amz-date"], "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC)
        told = [("content-type", headers["content-type"])] if "content-type" in headers else []
        again = UpstreamRequest(method=asked.method, path=asked.path, headers=told, body=asked.body)
        signed = dict(signer.sign(fake.base_url + asked.path, again, at))
        assert headers["authorization"] == signed["authorization"]
        assert headers["x-amz-security-token"] == "token"


async def test_a_whole_answer_and_both_lists_come_with_an_api_key(tmp_path: Path) -> None:
    async with (
        fake_bedrock() as fake,
        running(settings_in(tmp_path, configured(fake, tmp_path, "ABSK-canary"))) as rig,
    ):
        said = await rig.chat(hello("b/amazon.titan-text-express-v1"))
        assert (said.error, said.text) == (None, "Hei.")
        asked, headers = fake.calls()[0]
        assert asked.path == "/model/amazon.titan-text-express-v1/converse"
        assert headers["authorization"] == "Bearer ABSK-canary"
        await until(lambda: len(fake.asked) >= 3)
        bare = await rig.chat(hello("us.anthropic.claude-opus-5"))
        assert bare.served.model == "b/us.anthropic.claude-opus-5"


@pytest.mark.parametrize("cut", [1, 40, 400])
async def test_a_stream_that_breaks_off_is_an_error_and_is_settled(
    tmp_path: Path, cut: int
) -> None:
    async with (
        fake_bedrock() as fake,
        running(settings_in(tmp_path, configured(fake, tmp_path, "k"), attempts_max=1)) as rig,
    ):
        whole = b"".join(STREAM[:-1])
        fake.pieces = [whole[: len(whole) - cut]]
        said = await rig.chat(hello("b/m", stream=True))
        assert said.error is not None
        assert said.error.reason == error_pb2.ERROR_REASON_UPSTREAM_PROTOCOL
        (record,) = await rig.records(1)
        assert (outcome(record), reason(record)) == ("TRUNCATED", "upstream_protocol")


async def test_an_exception_before_any_content_lets_another_serve(tmp_path: Path) -> None:
    async with fake_bedrock() as fake, fake_bedrock() as well:
        fake.pieces = [STREAM[0], aws_frames.exception("throttlingException", {"message": "slow"})]
        first = configured(fake, tmp_path, "k")
        second = ProviderSettings(name="w", kind="bedrock", base_url=well.base_url, free=True)
        async with running(settings_in(tmp_path, first, second)) as rig:
            wishes = chat_pb2.RoutingPreferences(fallback_models=["w/m"])
            said = await rig.chat(hello("b/m", stream=True), routing=wishes)
            assert (said.error, said.text) == (None, "Hei på deg.")
            assert (said.served.model, said.served.attempts) == ("w/m", 2)
            assert "authorization" not in well.calls()[0][1]
