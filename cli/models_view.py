"""How models are shown: as JSON and CSV for programs, as tables for people. Prices are exact."""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, Final, assert_never

from rich.table import Table
from rich.text import Text

from cli.keys_view import console, print_json
from cli.usage_view import Output, print_csv, usd
from onegate.router.v1.model_service_pb2 import Model

_PRICES: Final = {"prompt": "in", "input_cache_read": "cached", "completion": "out"}
"""The prices that a table has room for, in USD for a million tokens."""


def model_fields(model: Model) -> dict[str, Any]:
    """A model as JSON has it; what is not known is ``None`` or empty."""
    policy = model.data_policy
    return {
        "id": model.id,
        "provider": model.provider,
        "name": model.name,
        "owner": model.owner,
        "aliases": list(model.aliases),
        "deployments": list(model.deployments),
        "callable": model.callable,
        "free": model.free,
        "usd_per_million": {rate.name: usd(rate.nano_usd_per_million) for rate in model.rates},
        "tiers": [
            {
                "name": rate.name,
                "usd_per_million": usd(rate.nano_usd_per_million),
                "above_input_tokens": rate.above_input_tokens or None,
                "service_tier": rate.service_tier or None,
            }
            for rate in model.tier_rates
        ],
        "context_length": model.context_tokens_max or None,
        "max_output_tokens": model.output_tokens_max or None,
        "input_modalities": list(model.input_modalities),
        "output_modalities": list(model.output_modalities),
        "endpoints": list(model.endpoints),
        "supported_parameters": list(model.supported_parameters),
        "knowledge": model.knowledge or None,
        "created": _day(model.created_unix_s),
        "shutdown_date": model.shutdown_on or None,
        "deprecated": model.deprecated,
        "data_policy": {
            "region": policy.region or None,
            "retention_days": policy.retention_days if policy.HasField("retention_days") else None,
            "training": policy.training if policy.HasField("training") else None,
        },
        "sources": list(model.sources),
    }


def print_models(models: Sequence[Model], output: Output) -> None:
    """Models, a row each."""
    match output:
        case Output.JSON:
            print_json([model_fields(model) for model in models])
        case Output.CSV:
            print_csv([_flat(model) for model in models], list(_flat(Model())))
        case Output.TABLE:
            console().print(_table(models))
        case _:
            assert_never(output)


def print_model(model: Model, output: Output) -> None:
    """One model, a line for each thing that is known."""
    match output:
        case Output.JSON:
            print_json(model_fields(model))
        case Output.CSV:
            print_csv([_flat(model)], list(_flat(model)))
        case Output.TABLE:
            grid = Table.grid(padding=(0, 2))
            for name, value in _lines(model):
                # Names are other people's text, not markup.
                grid.add_row(Text(name, style="dim"), Text(value))
            console().print(grid)
        case _:
            assert_never(output)


def _flat(model: Model) -> dict[str, str]:
    """The fields as text, without a level below."""
    fields = model_fields(model)
    prices, policy = fields.pop("usd_per_million"), fields.pop("data_policy")
    del fields["tiers"]  # A row has no room for them; JSON has.
    for name in _PRICES:
        fields[f"usd_per_million_{name}"] = prices.get(name)
    fields.update(policy)
    return {name: _text(value) for name, value in fields.items()}


def _text(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)


def _table(models: Sequence[Model]) -> Table:
    made = Table(
        box=None, pad_edge=False, caption="USD for a million tokens", caption_justify="left"
    )
    made.add_column("model", no_wrap=True)
    for name in ("window", "answer", *_PRICES.values()):
        made.add_column(name, justify="right", no_wrap=True)
    made.add_column("reads")
    made.add_column("ends", no_wrap=True)
    for model in models:
        made.add_row(
            Text(model.id),
            f"{model.context_tokens_max:,}" if model.context_tokens_max else "-",
            f"{model.output_tokens_max:,}" if model.output_tokens_max else "-",
            *_prices(model),
            Text(" ".join(model.input_modalities) or "-"),
            Text(model.shutdown_on or ("deprecated" if model.deprecated else "-")),
        )
    return made


def _prices(model: Model) -> list[str]:
    if model.free:
        return ["free"] * len(_PRICES)
    known = {rate.name: usd(rate.nano_usd_per_million) for rate in model.rates}
    return [known.get(name, "-") for name in _PRICES]


def _lines(model: Model) -> list[tuple[str, str]]:
    policy = model_fields(model)["data_policy"]
    training = {None: "not known", True: "yes", False: "no"}[policy["training"]]
    kept = policy["retention_days"]
    at_most = "at most " if model.deployments else ""
    prices = [f"{rate.name} {usd(rate.nano_usd_per_million)}" for rate in model.rates]
    unpriced = "nothing" if model.free else "not known: it is refused until somebody prices it"
    return [
        ("id", model.id),
        ("name", model.name),
        ("owner", model.owner),
        ("aliases", ", ".join(model.aliases) or "-"),
        *([("leads to", "\n".join(model.deployments))] if model.deployments else []),
        ("endpoints", ", ".join(model.endpoints) or "-"),
        ("costs", f"{at_most}{', '.join(prices)} (USD a million)" if prices else unpriced),
        *([("otherwise", "\n".join(_tiers(model)))] if model.tier_rates else []),
        ("window", f"{model.context_tokens_max:,} tokens" if model.context_tokens_max else "-"),
        ("answer", f"{model.output_tokens_max:,} tokens" if model.output_tokens_max else "-"),
        ("reads", ", ".join(model.input_modalities) or "-"),
        ("writes", ", ".join(model.output_modalities) or "-"),
        ("parameters", ", ".join(model.supported_parameters) or "-"),
        ("knows until", model.knowledge or "-"),
        ("published", _day(model.created_unix_s) or "-"),
        ("ends", model.shutdown_on or ("deprecated" if model.deprecated else "-")),
        ("region", ", ".join(model.data_policy.regions) or "not known"),
        ("prompts kept", "not known" if kept is None else f"{kept} days"),
        ("trains on prompts", training),
        ("sources", "\n".join(model.sources) or "-"),
    ]


def _tiers(model: Model) -> list[str]:
    """The prices of long inputs and service tiers, a line for each."""
    found: dict[str, list[str]] = {}
    for rate in model.tier_rates:
        tier = f"{rate.service_tier}:" if rate.service_tier else "standard:"
        if rate.above_input_tokens:
            tier = f"{tier[:-1]}, above {rate.above_input_tokens:,} input tokens:"
        found.setdefault(tier, []).append(f"{rate.name} {usd(rate.nano_usd_per_million)}")
    return [f"{tier} {', '.join(prices)}" for tier, prices in found.items()]


def _day(unix_s: int) -> str | None:
    return f"{datetime.fromtimestamp(unix_s, UTC):%Y-%m-%d}" if unix_s else None
