"""What a fresh installation can call when its credentials are there and the network is not."""

import csv
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from runtime.credentials import WELL_KNOWN
from tests.fake_provider import FakeProvider, running_in_thread
from tests.gateway import Gateway, running_gateway, wait_until

ROUTES = """
[[route]]
name = "smart"
[[route.to]]
model = "openai/gpt-4o"
[[route.to]]
model = "xai/grok-3"
[[policy]]
name = "onegate/auto"
[[policy.model]]
model = "anthropic/claude-opus-4-8"
"""


@pytest.fixture(scope="module")
def fake() -> Iterator[FakeProvider]:
    """A provider of the operator's own, whose models nobody has priced."""
    with running_in_thread(FakeProvider(models=("m",))) as running:
        yield running


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory, fake: FakeProvider) -> Iterator[Gateway]:
    """A gateway with a dummy key for every vendor, none of which it ever reaches."""
    keys = {names[0]: "not-a-key" for names in WELL_KNOWN.values()}
    # Nothing listens there: a machine that has a network must not find the vendors either.
    config = "".join(
        f'[[provider]]\nname = "{kind}"\nkind = "{kind}"\n'
        f'base_url = "http://127.0.0.1:9"\napi_key_env = "{names[0]}"\n'
        for kind, names in WELL_KNOWN.items()
    )
    config += f'[[provider]]\nname = "mine"\nkind = "compatible"\nbase_url = "{fake.base_url}"\n'
    config = "[router]\ndiscovery_interval_s = 0.5\n" + config + ROUTES
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
    called = {model_id for model_id, model in models.items() if model["callable"]}
    assert called == {model["id"] for model in listed(gateway)}
    assert models["anthropic/claude-opus-4-8"] == one
    assert (one["context_length"], one["max_output_tokens"]) == (1_000_000, 128_000)
    assert one["modalities"] == {"input": ["text", "image", "file"], "output": ["text"]}
    assert {"tools", "reasoning_effort"} <= {*one["supported_parameters"]}  # type: ignore[misc]
    assert one["pricing"]["prompt"] == "0.000005"  # type: ignore[index]
    assert one["knowledge"] == "2026-01"
    # What a vendor's document promises is believed of the vendor's own address only.
    unknown: dict[str, object] = {
        "region": None,
        "regions": [],
        "retention_days": None,
        "training": None,
    }
    assert one["data_policy"] == unknown
    assert models["openai/gpt-5"]["shutdown_date"] == "2026-12-11"
    smart, auto = models["smart"], models["onegate/auto"]
    assert (smart["owned_by"], smart["deployments"]) == ("onegate", ["openai/gpt-4o", "xai/grok-3"])
    assert smart["context_length"] == 128_000
    assert smart["pricing"]["prompt"] == "0.000003"  # type: ignore[index]
    assert auto["context_length"] == one["context_length"]


def test_a_narrow_key_lists_what_it_may_call(gateway: Gateway) -> None:
    made = json.loads(
        gateway.cli("keys", "create", "--name", "narrow", "--models", "xai/*", "-o", "json")
    )
    models = listed(gateway, "--key", made["value"])
    assert len(models) > 10
    assert {model["provider"] for model in models} == {"xai", ""}
    with openai.OpenAI(base_url=gateway.base_url, api_key=made["value"], max_retries=0) as client:
        seen = {model.id: model.to_dict() for model in client.models.list()}
        # The route leads to one model that the key may use; the policy to none.
        assert seen["smart"]["deployments"] == ["xai/grok-3"]
        assert client.models.retrieve("smart").to_dict() == seen["smart"]
        with pytest.raises(openai.NotFoundError):
            client.models.retrieve("onegate/auto")


def test_one_model_is_shown_with_its_sources(gateway: Gateway) -> None:
    text = gateway.cli("models", "show", "gpt-4o")
    for said in ("openai/gpt-4o", "128,000 tokens", "completion 10.00", "2027-01-14", "models.dev"):
        assert said in text
    (gemini,) = listed(gateway, "gemini/gemini-2.5-pro")
    assert {
        "name": "prompt",
        "usd_per_million": "2.50",
        "above_input_tokens": 200_000,
        "service_tier": None,
    } in gemini["tiers"]
    long = gateway.cli("models", "show", "gemini/gemini-2.5-pro")
    assert "standard, above 200,000 input tokens: " in long
    (row,) = csv.DictReader(io.StringIO(gateway.cli("models", "show", "gpt-4o", "-o", "csv")))
    assert (row["usd_per_million_prompt"], row["input_modalities"]) == ("2.50", "text image file")
    table = gateway.cli("models", "list", "openai/gpt-4o*")
    assert "providers: 1" in table
    assert "USD for a million tokens" in table


HELLO: Any = [{"role": "user", "content": "Hello!"}]


def refusal(client: openai.OpenAI, model: str) -> str:
    """Why a call is refused; empty when it is answered."""
    try:
        client.chat.completions.create(model=model, messages=HELLO)
    except openai.APIStatusError as error:
        return str(error.code)
    return ""


def test_a_new_model_is_refused_until_it_is_priced_and_then_answers_at_once(
    gateway: Gateway, fake: FakeProvider
) -> None:
    fake.models = ("m", "brand-new")
    with openai.OpenAI(base_url=gateway.base_url, api_key=gateway.api_key, max_retries=0) as client:
        wait_until(
            lambda: refusal(client, "mine/brand-new") == "model_price_unknown", 5, "discovery"
        )
        unpriced = {model["id"] for model in listed(gateway, "--unpriced")}
        assert unpriced == {"mine/m", "mine/brand-new"}
        arguments = [
            "--input",
            "1.5",
            "--output",
            "6",
            "--cached",
            "0.15",
            "--source",
            "contract 7",
        ]
        gateway.cli("prices", "set", "compatible/brand-new", *arguments)
        wait_until(lambda: refusal(client, "mine/brand-new") == "", 1, "the price")
        answer = client.chat.completions.create(model="mine/brand-new", messages=HELLO)
    assert answer.usage is not None
    # Seven input tokens and five output tokens.
    cost = answer.usage.model_extra["cost"] if answer.usage.model_extra else None
    assert cost == pytest.approx((7 * 1.5 + 5 * 6) / 1e6)
    (row,) = json.loads(gateway.cli("prices", "history", "-o", "json"))
    assert (row["model"], row["input"], row["cached"]) == ("compatible/brand-new", "1.50", "0.15")
    assert row["source"] == "contract 7"
    # With the file at hand the command knows what the operator called the provider.
    config = ("--config", str(gateway.log.parent / "onegate.toml"))
    said = gateway.cli(*config, "prices", "reset", "mine/brand-new")
    assert "compatible/brand-new has no price now" in said
    with openai.OpenAI(base_url=gateway.base_url, api_key=gateway.api_key, max_retries=0) as client:
        wait_until(
            lambda: refusal(client, "mine/brand-new") == "model_price_unknown", 1, "the reset"
        )


def test_an_import_shows_what_it_changes_and_changes_nothing_twice(
    gateway: Gateway, tmp_path: Path
) -> None:
    def row(provider: str, usd: float, **more: Any) -> dict[str, Any]:
        prices = {"input_cost_per_token": usd, "output_cost_per_token": 2 * usd}
        return {"litellm_provider": provider, "mode": "chat", **prices, **more}

    file = tmp_path / "prices.json"
    rows = {
        "gpt-4o": row("openai", 9e-06),
        "dashscope/qwen-new": row("dashscope", 4e-07),
        "xai/odd": row("xai", 1e-06, output_cost_per_image=0.1),
    }
    file.write_text(json.dumps(rows))
    found = json.loads(gateway.cli("prices", "diff", "--litellm", str(file), "-o", "json"))
    assert {one["model"]: one["verdict"] for one in found} == {
        "alibaba/qwen-new": "new",
        "openai/gpt-4o": "changed",
        "xai/odd": "left out",
    }
    command = ["prices", "import", "--litellm", str(file), "--yes"]
    assert "1 prices were set" in gateway.cli(*command, "--new-only")
    assert "1 new, 0 changed, 0 same" not in gateway.cli("prices", "diff", "--litellm", str(file))
    assert "1 prices were set" in gateway.cli(*command)
    assert "were set" not in gateway.cli(*command)
    (shown,) = listed(gateway, "alibaba/qwen-new")
    assert shown["usd_per_million"] == {"prompt": "0.40", "completion": "0.80"}
    assert "litellm:prices.json" in shown["sources"]
    gateway.cli("prices", "reset", "openai/gpt-4o")
    (back,) = json.loads(gateway.cli("prices", "list", "openai/gpt-4o", "-o", "json"))
    assert back["rates"][0]["usd_per_million"] == "2.50"


def test_a_file_of_our_own_sets_every_meter_and_the_difference_to_what_ships_is_listed(
    gateway: Gateway, tmp_path: Path
) -> None:
    file = tmp_path / "prices.toml"
    file.write_text(
        """
        [[price]]
        model = "openai/pictures"
        source = "a contract"
        [[price.rate]]
        meter = "images"
        size = "1024x1024"
        usd = "0.04"

        [[price]]
        model = "openai/gpt-4o"
        source = "a contract"
        [[price.rate]]
        meter = "input_tokens"
        usd = "2"
        [[price.rate]]
        meter = "output_tokens"
        usd = "10"
        """
    )
    assert "2 prices were set" in gateway.cli("prices", "import", "--file", str(file), "--yes")
    assert "1024x1024" in gateway.cli("prices", "show", "openai/pictures")
    found = json.loads(gateway.cli("prices", "diff", "--models", "openai/*", "-o", "json"))
    assert [(one["model"], one["verdict"]) for one in found] == [
        ("openai/gpt-4o", "changed"),
        ("openai/pictures", "new"),
    ]
    (changed, added) = found
    rates = {line["rate"]: (line["usd_before"], line["usd_after"]) for line in changed["rates"]}
    assert rates["input_tokens"] == ("2.50", "2.00")
    assert rates["cached_input_tokens"][1] is None
    assert "output_tokens" not in rates
    assert added["rates"][0]["per"] == "image"
    config = ("prices", "set", "openai/pictures", "--rate", "images=0.05", "--source", "a contract")
    gateway.cli(*config)
    for model in ("openai/pictures", "openai/gpt-4o"):
        gateway.cli("prices", "reset", model)
    assert gateway.cli("prices", "diff", "--models", "openai/*", "-o", "json").strip() == "[]"
