"""The first five minutes: start, paste the printed call, get an answer, see it in the usage
table.
"""

import asyncio
import json
import os
import re
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import openai
import pytest

from tests.gateway import Gateway, running_gateway, wait_until

MODEL = "demo/echo"
HELLO: Any = [{"role": "user", "content": "Hello!"}]
NODE = Path(__file__).parent / "node"


def test_the_printed_curl_call_answers(demo_gateway: Gateway) -> None:
    printed = demo_gateway.log.read_text()
    found = re.search(r"^  (curl .*?)\n\n", printed, re.MULTILINE | re.DOTALL)
    assert found is not None, printed
    answered = subprocess.run(
        ["sh", "-c", found[1]], capture_output=True, check=True, timeout=30
    ).stdout
    assert json.loads(answered)["choices"][0]["message"]["content"]


def test_the_printed_python_call_answers(demo_gateway: Gateway) -> None:
    printed = demo_gateway.log.read_text()
    found = re.search(r"(?ms)^  (from openai import.*?print\(.*?\)\n)", printed)
    assert found is not None, printed
    script = re.sub(r"^  ", "", found[1], flags=re.MULTILINE)
    run = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True
    )
    assert "demo" in run.stdout


def test_the_sync_client_gets_an_answer_and_a_stream(demo_gateway: Gateway) -> None:
    with openai.OpenAI(base_url=demo_gateway.base_url, api_key=demo_gateway.api_key) as client:
        answer = client.chat.completions.create(model=MODEL, messages=HELLO)
        content = answer.choices[0].message.content
        assert content
        assert "Hello!" in content
        assert answer.usage is not None
        assert answer.usage.total_tokens > 0
        with client.chat.completions.create(
            model=MODEL, messages=HELLO, stream=True, stream_options={"include_usage": True}
        ) as stream:
            chunks = list(stream)
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == content
    assert chunks[-1].choices == []
    assert chunks[-1].usage == answer.usage.model_copy(update={"cost": 0})


@pytest.mark.anyio
async def test_the_async_client_gets_fifty_answers_at_once(demo_gateway: Gateway) -> None:
    async with openai.AsyncOpenAI(
        base_url=demo_gateway.base_url, api_key=demo_gateway.api_key
    ) as client:
        answers = await asyncio.gather(
            *(
                client.chat.completions.create(
                    model=MODEL, messages=[{"role": "user", "content": f"number {number}."}]
                )
                for number in range(50)
            )
        )
    for number, answer in enumerate(answers):
        assert f"number {number}." in (answer.choices[0].message.content or "")


def test_the_node_client_gets_an_answer_a_stream_and_a_typed_error(demo_gateway: Gateway) -> None:
    run = subprocess.run(
        ["node", "first_call.mjs"],
        cwd=NODE,
        env={
            **os.environ,
            "BASE_URL": demo_gateway.base_url,
            "API_KEY": demo_gateway.api_key,
            "MODEL": MODEL,
        },
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    got = json.loads(run.stdout)
    assert got["content"] == got["streamed"]
    assert got["usage"]["total_tokens"] > 0
    assert MODEL in got["models"]
    assert got["refused"] == {
        "name": "AuthenticationError",
        "status": 401,
        "code": "invalid_api_key",
    }


def test_the_models_are_listed_and_one_is_found_by_id(demo_gateway: Gateway) -> None:
    with openai.OpenAI(base_url=demo_gateway.base_url, api_key=demo_gateway.api_key) as client:
        listed = [model.id for model in client.models.list()]
        assert listed == [MODEL]
        assert client.models.retrieve(MODEL).id == MODEL
        with pytest.raises(openai.NotFoundError) as refused:
            client.models.retrieve("demo/none")
    assert refused.value.code == "model_not_found"


def test_every_call_is_in_the_usage_table_with_its_tokens(demo_gateway: Gateway) -> None:
    with openai.OpenAI(base_url=demo_gateway.base_url, api_key=demo_gateway.api_key) as client:
        raw = client.chat.completions.with_raw_response.create(model=MODEL, messages=HELLO)
    answer = raw.parse()
    request_id = raw.headers["x-request-id"]

    def row() -> dict[str, object]:
        rows = json.loads(demo_gateway.cli("usage", "--request", request_id, "-o", "json"))
        return dict(rows[0]) if rows else {}

    wait_until(row, what="the usage row")
    assert answer.usage is not None
    found = row()
    assert found["model"] == MODEL
    assert found["input_tokens"] == answer.usage.prompt_tokens
    assert found["output_tokens"] == answer.usage.completion_tokens
    assert found["outcome"] == "completed"


def test_the_credentials_file_is_private_and_no_key_is_stored(demo_gateway: Gateway) -> None:
    credentials = demo_gateway.log.parent / "credentials.json"
    assert stat.S_IMODE(credentials.stat().st_mode) == 0o600
    secrets = [demo_gateway.credentials[name].encode() for name in ("admin_key", "api_key")]
    for path in demo_gateway.data_dir.rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            assert not any(secret in content for secret in secrets), path


def test_a_second_start_keeps_the_keys_and_shows_none(tmp_path: Path) -> None:
    with running_gateway(tmp_path) as first:
        key = first.api_key
    assert first.process.returncode == 0
    log = first.log
    with running_gateway(tmp_path) as second:
        assert second.api_key == key
        assert "sk-og-" not in log.read_text()
        with openai.OpenAI(base_url=second.base_url, api_key=key) as client:
            assert client.chat.completions.create(model=MODEL, messages=HELLO).choices
