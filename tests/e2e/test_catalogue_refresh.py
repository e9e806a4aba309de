"""A newer catalogue over a whole gateway: shown, put in force while it runs, and taken back."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from genai_prices import data

from services.usage.prices.genai_file import document_of
from tests.fake_provider import FakeProvider, running_in_thread
from tests.gateway import Gateway, running_gateway, wait_until

HELLO: Any = [{"role": "user", "content": "Hello!"}]


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    with running_in_thread(FakeProvider(models=("gpt-4o", "gpt-next"))) as fake:
        config = (
            '[[provider]]\nname = "openai"\nkind = "openai"\n'
            f'base_url = "{fake.base_url}"\napi_key_env = "OPENAI_API_KEY"\n'
        )
        directory = tmp_path_factory.mktemp("refresh")
        environment = {"OPENAI_API_KEY": "not-a-key"}
        with running_gateway(directory, config, environment=environment) as running:
            yield running


@pytest.fixture
def newer(tmp_path: Path) -> Path:
    """A later file of the price source: a price has changed, a model is new, one is gone."""
    providers = document_of(data.providers)
    ours = next(provider for provider in providers if provider["id"] == "openai")
    for model in ours["models"]:
        if model["id"] == "gpt-4o":
            model["prices"] = {"input_mtok": 40, "output_mtok": 200}
    ours["models"] = [model for model in ours["models"] if model["id"] != "gpt-4"]
    prices = {"input_mtok": 1.5, "output_mtok": 2}
    ours["models"].append({"id": "gpt-next", "match": {"equals": "gpt-next"}, "prices": prices})
    file = tmp_path / "data.json"
    file.write_text(json.dumps(providers))
    return file


def cost_of(client: openai.OpenAI, model: str) -> float | str:
    """What a call costs, in USD; why it is refused when it is."""
    try:
        answer = client.chat.completions.create(model=model, messages=HELLO)
    except openai.APIStatusError as error:
        return str(error.code)
    assert answer.usage is not None
    return float((answer.usage.model_extra or {})["cost"])


def told(gateway: Gateway, *arguments: str) -> Any:
    return json.loads(gateway.cli("models", *arguments, "-o", "json"))


# Seven input tokens and five output tokens.
BEFORE, AFTER = pytest.approx((7 * 2.5 + 5 * 10) / 1e6), pytest.approx((7 * 40 + 5 * 200) / 1e6)


def test_a_refresh_shows_what_changes_holds_at_once_and_can_be_undone(
    gateway: Gateway, newer: Path
) -> None:
    assert "Nothing changes" in gateway.cli("models", "refresh", "--yes")
    with openai.OpenAI(base_url=gateway.base_url, api_key=gateway.api_key, max_retries=0) as client:
        assert cost_of(client, "gpt-4o") == BEFORE
        assert cost_of(client, "openai/gpt-next") == "model_price_unknown"

        changes = {one["model"]: one for one in told(gateway, "diff", "--from", str(newer))}
        assert changes["openai/gpt-next"]["verdict"] == "added"
        assert changes["openai/gpt-4"]["verdict"] in ("removed", "changed")
        assert changes["openai/gpt-4o"]["fields"]["input_tokens"] == {
            "before": "2.50",
            "after": "40.00",
        }
        said = gateway.cli("models", "refresh", "--from", str(newer), "--yes")
        assert "Version 2 is in force" in said
        assert "sha256:" in said
        wait_until(lambda: cost_of(client, "gpt-4o") == AFTER, 10, "the new price")
        assert cost_of(client, "openai/gpt-next") == pytest.approx((7 * 1.5 + 5 * 2) / 1e6)
        # A dated name, which no list has, costs what its model does.
        assert cost_of(client, "openai/gpt-4o-2024-08-06") == AFTER

        versions = told(gateway, "versions")
        assert [(v["version"], v["restores"]) for v in versions] == [(2, None), (1, None)]
        assert versions[0]["source"].startswith("genai-prices data.json sha256:")

        assert "Version 3 is in force" in gateway.cli("models", "undo", "--yes")
        wait_until(lambda: cost_of(client, "gpt-4o") == BEFORE, 10, "the former price")
        assert cost_of(client, "openai/gpt-next") == "model_price_unknown"
        assert told(gateway, "diff", "1", "3") == []
        assert told(gateway, "versions")[0]["restores"] == 1


def test_what_a_file_brought_is_kept_by_a_refresh_until_it_is_dropped(
    gateway: Gateway, tmp_path: Path
) -> None:
    file = tmp_path / "prices.json"
    prices = {"input_cost_per_token": 1e-6, "output_cost_per_token": 2e-6}
    row = {"litellm_provider": "dashscope", "mode": "chat", **prices}
    file.write_text(json.dumps({"dashscope/qwen-next": row}))
    gateway.cli("models", "refresh", "--from", str(file), "--yes")
    assert "Nothing changes" in gateway.cli("models", "refresh", "--yes")
    (gone,) = told(gateway, "diff", "--drop-imports")
    assert (gone["model"], gone["verdict"]) == ("alibaba/qwen-next", "removed")
    assert "1 models removed" in gateway.cli("models", "refresh", "--drop-imports", "--yes")
