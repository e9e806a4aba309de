"""What a fresh installation can call when its credentials are there and the network is not."""

import csv
import io
import json
from collections.abc import Iterator
from typing import Any

import openai
import pytest

from runtime.credentials import WELL_KNOWN
from tests.gateway import Gateway, running_gateway


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """A gateway with a dummy key for every vendor, none of which it ever reaches."""
    keys = {names[0]: "not-a-key" for names in WELL_KNOWN.values()}
    # Nothing listens there: a machine that has a network must not find the vendors either.
    config = "".join(
        f'[[provider]]\nname = "{kind}"\nkind = "{kind}"\n'
        f'base_url = "http://127.0.0.1:9"\napi_key_env = "{names[0]}"\n'
        for kind, names in WELL_KNOWN.items()
    )
    directory = tmp_path_factory.mktemp("catalogue")
    with running_gateway(directory, config, environment=keys) as running:
        yield running


def listed(gateway: Gateway, *arguments: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(
        gateway.cli("models", "list", *arguments, "-o", "json")
    )
    return found


def test_five_hundred_models_of_fourteen_providers_are_callable_with_prices_and_limits(
    gateway: Gateway,
) -> None:
    models = listed(gateway)
    assert len(models) >= 1_500
    assert all(model["callable"] for model in models)
    complete = [m for m in models if m["usd_per_million"] and m["context_length"]]
    assert len(complete) >= 900
    assert len({model["provider"] for model in complete}) >= 14
    assert all(model["sources"] for model in complete)


def test_a_key_sees_the_same_with_the_sdk(gateway: Gateway) -> None:
    with openai.OpenAI(base_url=gateway.base_url, api_key=gateway.api_key) as client:
        models = {model.id: model.to_dict() for model in client.models.list()}
        one = client.models.retrieve("anthropic/claude-opus-4-8").to_dict()
    assert set(models) == {model["id"] for model in listed(gateway)}
    assert models["anthropic/claude-opus-4-8"] == one
    assert (one["context_length"], one["max_output_tokens"]) == (1_000_000, 128_000)
    assert one["modalities"] == {"input": ["text", "image", "file"], "output": ["text"]}
    assert {"tools", "reasoning_effort"} <= {*one["supported_parameters"]}  # type: ignore[misc]
    assert one["pricing"]["prompt"] == "0.000005"  # type: ignore[index]
    assert one["knowledge"] == "2026-01"
    assert one["data_policy"] == {"region": None, "retention_days": 30, "training": False}
    assert models["openai/gpt-5"]["shutdown_date"] == "2026-12-11"


def test_a_narrow_key_lists_what_it_may_call(gateway: Gateway) -> None:
    made = json.loads(
        gateway.cli("keys", "create", "--name", "narrow", "--models", "xai/*", "-o", "json")
    )
    models = listed(gateway, "--key", made["value"])
    assert len(models) > 10
    assert {model["provider"] for model in models} == {"xai"}


def test_one_model_is_shown_with_its_sources(gateway: Gateway) -> None:
    text = gateway.cli("models", "show", "gpt-4o")
    for said in ("openai/gpt-4o", "128,000 tokens", "completion 10.00", "2027-01-14", "models.dev"):
        assert said in text
    (row,) = csv.DictReader(io.StringIO(gateway.cli("models", "show", "gpt-4o", "-o", "csv")))
    assert (row["usd_per_million_prompt"], row["input_modalities"]) == ("2.50", "text image file")
    table = gateway.cli("models", "list", "openai/gpt-4o*")
    assert "providers: 1" in table
    assert "USD for a million tokens" in table
