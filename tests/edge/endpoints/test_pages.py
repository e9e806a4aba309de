"""Models and health as JSON."""

import json

from edge.endpoints.health import alive_body, ready_body
from edge.endpoints.models import model_body, models_body
from onegate.router.v1 import model_service_pb2
from tests.openapi_oracle import MODEL, MODEL_LIST, faults
from tests.recordings import needs_specs

FULL = model_service_pb2.Model(
    id="openai/gpt-4o",
    provider="openai",
    name="GPT-4o",
    owner="openai",
    created_unix_s=1_715_367_049,
    context_tokens_max=128_000,
    output_tokens_max=16_384,
    input_modalities=["text", "image"],
    output_modalities=["text"],
    endpoints=["chat.completions"],
    supported_parameters=["temperature"],
    rates=[
        model_service_pb2.ModelRate(name="prompt", nano_usd_per_million=2_500_000_000),
        model_service_pb2.ModelRate(name="request", nano_usd_per_million=10**15),
        model_service_pb2.ModelRate(name="completion", nano_usd_per_million=1),
    ],
    callable=True,
    data_policy=model_service_pb2.DataPolicy(
        region="eu", regions=["eu"], retention_days=0, training=False
    ),
    aliases=["gpt-4o"],
    knowledge="2023-10",
    shutdown_on="2027-01-14",
    deprecated=True,
)
BARE = model_service_pb2.Model(id="local/m", provider="local")
FREE = model_service_pb2.Model(id="local/f", provider="local", free=True)


def test_a_model_says_all_that_is_known_of_it() -> None:
    assert json.loads(model_body(FULL)) == {
        "id": "openai/gpt-4o",
        "object": "model",
        "created": 1_715_367_049,
        "owned_by": "openai",
        "name": "GPT-4o",
        "context_length": 128_000,
        "max_output_tokens": 16_384,
        "supported_parameters": ["temperature"],
        "aliases": ["gpt-4o"],
        "knowledge": "2023-10",
        "shutdown_date": "2027-01-14",
        "deprecated": True,
        "modalities": {"input": ["text", "image"], "output": ["text"]},
        "endpoints": ["chat.completions"],
        "pricing": {"prompt": "0.0000025", "request": "1", "completion": "0.000000000000001"},
        "callable": True,
        "data_policy": {
            "region": "eu",
            "regions": ["eu"],
            "retention_days": 0,
            "training": False,
        },
    }


def test_what_is_not_known_is_left_out() -> None:
    made = json.loads(model_body(BARE))
    unknown = {"context_length", "knowledge", "shutdown_date", "deprecated"}
    assert not unknown & made.keys()
    assert made["owned_by"] == "local"
    assert made["pricing"] is None
    assert made["data_policy"] == {
        "region": None,
        "regions": [],
        "retention_days": None,
        "training": None,
    }
    assert json.loads(model_body(FREE))["pricing"] == {"prompt": "0", "completion": "0"}


@needs_specs
def test_models_are_what_openais_description_says() -> None:
    assert faults(MODEL, json.loads(model_body(FULL))) == []
    assert faults(MODEL_LIST, json.loads(models_body([FULL, BARE, FREE]))) == []


def test_health_is_said_in_words() -> None:
    assert json.loads(alive_body()) == {"status": "ok"}
    assert json.loads(ready_body({"router": True})) == {"status": "ok", "checks": {"router": "ok"}}
    assert json.loads(ready_body({"router": True, "auth": False})) == {
        "status": "not ready",
        "checks": {"router": "ok", "auth": "missing"},
    }
