"""Vertex AI and Azure through a whole router, with tokens that are bought over a socket."""

import asyncio
import json
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from onegate.common.v1 import error_pb2
from runtime.config import ProviderSettings
from tests.services.router.rig import hello, running, settings_in, until

pytestmark = pytest.mark.anyio

PLACE = "/v1/projects/acme/locations/europe-west4"
GEMINI = {
    "candidates": [
        {"content": {"role": "model", "parts": [{"text": "Hei."}]}, "finishReason": "STOP"}
    ],
    "usageMetadata": {"promptTokenCount": 5, "candidatesTokenCount": 2, "totalTokenCount": 7},
}
CLAUDE = {
    "id": "msg_1",
    "type": "message",
    "role": "assistant",
    "model": "claude-sonnet-4-5",
    "content": [{"type": "text", "text": "Hei."}],
    "stop_reason": "end_turn",
    "usage": {"input_tokens": 5, "output_tokens": 2},
}
OPENAI = {
    "id": "c",
    "object": "chat.completion",
    "created": 1,
    "model": "m",
    "choices": [
        {
            "index": 0,
            "message": {"role": "assistant", "content": "Hei."},
            "finish_reason": "stop",
        }
    ],
    "usage": {"prompt_tokens": 5, "completion_tokens": 2, "total_tokens": 7},
}
ANSWERS = {":generateContent": GEMINI, ":rawPredict": CLAUDE, "/chat/completions": OPENAI}


@dataclass
class Cloud:
    """Sells tokens and answers calls; keeps what was asked."""

    base_url: str = ""
    lives_s: int = 3600
    refusals: int = 0
    sold: list[dict[str, str]] = field(default_factory=list)
    calls: list[tuple[str, dict[str, str], Any]] = field(default_factory=list)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode()
                length = re.search(r"(?i)content-length: (\d+)", head)
                body = await reader.readexactly(int(length[1]) if length else 0)
                status, told = self._answer(head, body)
                raw = json.dumps(told).encode()
                writer.write(b"HTTP/1.1 %d X\r\ncontent-type: application/json\r\n" % status)
                writer.write(b"content-length: %d\r\n\r\n%s" % (len(raw), raw))
                await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError):
            writer.close()

    def _answer(self, head: str, body: bytes) -> tuple[int, Any]:
        path = head.split(" ", 2)[1]
        if path.endswith("/token"):
            self.sold.append({k: v[0] for k, v in parse_qs(body.decode()).items()})
            if self.refusals:
                self.refusals -= 1
                return 401, {"error": "invalid_client", "error_description": "secret canary"}
            return 200, {
                "access_token": f"token-{len(self.sold)}",
                "expires_in": self.lives_s,
                "token_type": "Bearer",
            }
        lines = [line.partition(": ")[::2] for line in head.split("\r\n")[1:] if line]
        self.calls.append((path, dict(lines), json.loads(body)))
        return 200, next(told for end, told in ANSWERS.items() if path.split("?")[0].endswith(end))


@asynccontextmanager
async def cloud() -> AsyncIterator[Cloud]:
    made = Cloud()
    server = await asyncio.start_server(made.serve, "127.0.0.1", 0)
    made.base_url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield made
    finally:
        server.close()


@pytest.fixture(scope="module")
def rsa_key() -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(public_exponent=65537, key_size=2048)


def provider(kind: str, base_url: str, directory: Path, secret: Any) -> ProviderSettings:
    path = directory / "cloud.key"
    path.write_text(secret if isinstance(secret, str) else json.dumps(secret, indent=2))
    path.chmod(0o600)
    return ProviderSettings(
        name="v", kind=kind, base_url=base_url, api_key_file=str(path), free=True
    )


def key_file(made: Cloud, key: rsa.RSAPrivateKey) -> dict[str, str]:
    pem = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    return {
        "type": "service_account",
        "project_id": "acme",
        "private_key_id": "k1",
        "private_key": pem.decode(),
        "client_email": "gateway@acme.iam.gserviceaccount.com",
        "client_id": "1",
        "token_uri": f"{made.base_url}/token",
    }


@pytest.mark.parametrize(
    ("model", "path"),
    [
        ("gemini-2.5-flash", "/publishers/google/models/gemini-2.5-flash:generateContent"),
        (
            "claude-sonnet-4-5@20250929",
            "/publishers/anthropic/models/claude-sonnet-4-5@20250929:rawPredict",
        ),
        ("meta/llama-4", "/endpoints/openapi/chat/completions"),
    ],
)
async def test_a_service_account_calls_every_family_of_vertex(
    tmp_path: Path, rsa_key: rsa.RSAPrivateKey, model: str, path: str
) -> None:
    async with cloud() as made:
        given = provider("vertex", made.base_url + PLACE, tmp_path, key_file(made, rsa_key))
        async with running(settings_in(tmp_path, given)) as rig:
            said = await rig.chat(hello(f"v/{model}"))
        assert (said.error, said.text) == (None, "Hei.")
        (asked, headers, body) = made.calls[0]
        assert asked == PLACE + path
        assert headers["authorization"] == "Bearer token-1"
        assert ("model" in body) == model.startswith("meta/")
        if model.startswith("claude"):
            assert body["anthropic_version"] == "vertex-2023-10-16"
            assert "anthropic-version" not in headers
        (bought,) = made.sold
        claims = jwt.decode(
            bought["assertion"],
            rsa_key.public_key(),
            algorithms=["RS256"],
            audience="https://oauth2.googleapis.com/token",
        )
        assert claims["iss"] == "gateway@acme.iam.gserviceaccount.com"
        assert claims["scope"] == "https://www.googleapis.com/auth/cloud-platform"


async def test_an_api_key_of_vertex_is_sent_as_it_is(tmp_path: Path) -> None:
    async with cloud() as made:
        given = provider("vertex", made.base_url + PLACE, tmp_path, "vertex-key")
        async with running(settings_in(tmp_path, given)) as rig:
            said = await rig.chat(hello("v/gemini-2.5-flash"))
        assert said.error is None
        assert made.calls[0][1]["x-goog-api-key"] == "vertex-key"
        assert made.sold == []


@pytest.mark.parametrize(
    ("kind", "path"),
    [
        ("azure", "/openai/v1/chat/completions"),
        (
            "azure-deployments",
            "/openai/deployments/my-gpt/chat/completions?api-version=2024-10-21",
        ),
    ],
)
@pytest.mark.parametrize("federated", [False, True])
async def test_an_entra_identity_calls_azure(
    tmp_path: Path, kind: str, path: str, federated: bool
) -> None:
    async with cloud() as made:
        identity = {"tenant_id": "t-1", "client_id": "c-1", "authority": made.base_url}
        if federated:
            (tmp_path / "pod.jwt").write_text("pod-token\n")
            identity["federated_token_file"] = str(tmp_path / "pod.jwt")
        else:
            identity["client_secret"] = "canary"
        given = provider(kind, made.base_url, tmp_path, identity)
        async with running(settings_in(tmp_path, given)) as rig:
            said = await rig.chat(hello("v/my-gpt"))
        assert (said.error, said.text) == (None, "Hei.")
        assert made.calls[0][0] == path
        assert made.calls[0][1]["authorization"] == "Bearer token-1"
        (bought,) = made.sold
        assert bought["scope"] == "https://cognitiveservices.azure.com/.default"
        assert bought.get("client_secret") == (None if federated else "canary")
        assert bought.get("client_assertion") == ("pod-token" if federated else None)


async def test_a_token_about_to_end_is_not_used_and_the_next_one_is_bought(tmp_path: Path) -> None:
    async with cloud() as made:
        made.lives_s = 1
        identity = {
            "tenant_id": "t",
            "client_id": "c",
            "client_secret": "canary",
            "authority": made.base_url,
        }
        given = provider("azure", made.base_url, tmp_path, identity)
        async with running(settings_in(tmp_path, given)) as rig:
            said = await rig.chat(hello("v/gpt"))
            assert said.reason == "upstream_auth"
            made.lives_s = 3600
            await until(lambda: len(made.sold) >= 2)
            assert made.calls == []


async def test_a_refused_identity_fails_its_calls_and_tells_no_secret(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with cloud() as made:
        made.refusals = 1
        identity = {
            "tenant_id": "t",
            "client_id": "c",
            "client_secret": "canary",
            "authority": made.base_url,
        }
        given = provider("azure", made.base_url, tmp_path, identity)
        async with running(settings_in(tmp_path, given)) as rig:
            said = await rig.chat(hello("v/gpt"))
            assert said.error is not None
            assert said.error.reason == error_pb2.ERROR_REASON_UPSTREAM_AUTH
            await until(lambda: len(made.sold) >= 2)
            assert "invalid_client" in caplog.text
            assert "canary" not in caplog.text
            assert made.calls == []
