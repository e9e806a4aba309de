"""What a key is told of models, routes and policies."""

from dataclasses import replace
from pathlib import Path

import pytest

from onegate.auth.v1 import data_policy_pb2
from onegate.router.v1 import model_service_pb2, model_service_pb2_grpc
from onegate.router.v1.model_service_pb2 import DataPolicy, Model, ModelRate
from onegate.usage.v1 import price_pb2
from runtime.config import CredentialSettings
from runtime.errors import GatewayError
from runtime.route_settings import PolicyModel, PolicySettings, RouteSettings, RouteTarget
from runtime.rpc import channel, unary
from services.router.models import catalog
from services.router.models.routed import routed
from tests.fake_provider import FakeProvider
from tests.services.router.rig import Rig, hello, provider, running, settings_in, sheet

PRICED = (sheet("openai/m"), sheet("openai/n"))


def model(name: str, **fields: object) -> Model:
    return Model(id=name, callable=True, **fields)  # type: ignore[arg-type]


def rates(**nano: int) -> list[ModelRate]:
    return [ModelRate(name=name, nano_usd_per_million=value) for name, value in nano.items()]


SMALL = model(
    "a/small",
    context_tokens_max=8_000,
    output_tokens_max=4_000,
    input_modalities=["text", "image"],
    supported_parameters=["tools", "temperature"],
    endpoints=["chat.completions"],
    rates=rates(prompt=5, completion=9, input_cache_read=1),
    data_policy=DataPolicy(region="eu", regions=["eu"], retention_days=0, training=False),
)
LARGE = model(
    "b/large",
    context_tokens_max=100_000,
    input_modalities=["text", "file"],
    supported_parameters=["temperature"],
    endpoints=["chat.completions"],
    rates=rates(prompt=3, completion=12),
    data_policy=DataPolicy(region="us", regions=["us"], retention_days=30, training=False),
)


def test_a_route_promises_what_all_of_its_deployments_can_do() -> None:
    told = routed("smart", [SMALL, LARGE], chosen=False)
    assert (told.id, told.owner, told.callable, told.free) == ("smart", "onegate", True, False)
    assert (told.context_tokens_max, told.output_tokens_max) == (8_000, 4_000)
    assert list(told.input_modalities) == ["text"]
    assert list(told.supported_parameters) == ["temperature"]
    assert list(told.deployments) == ["a/small", "b/large"]


def test_a_policy_promises_what_any_of_its_models_can_do() -> None:
    told = routed("onegate/auto", [SMALL, LARGE], chosen=True)
    assert told.context_tokens_max == 100_000
    assert list(told.input_modalities) == ["text", "image", "file"]
    assert list(told.supported_parameters) == ["tools", "temperature"]


def test_every_meter_has_a_word_in_the_list() -> None:
    named = {meter for meter in price_pb2.Meter.values() if meter}
    assert named == catalog._RATE_NAMES.keys()
    assert len({*catalog._RATE_NAMES.values()}) == len(named)


def test_a_price_is_the_highest_that_a_call_may_come_to() -> None:
    told = routed("smart", [SMALL, LARGE], chosen=False)
    # One of them has no price for reads from the cache: they cost what input costs there.
    assert list(told.rates) == rates(prompt=5, completion=12)
    free = model("c/free", free=True)
    assert list(routed("smart", [free, LARGE], chosen=False).rates) == list(LARGE.rates)
    assert routed("smart", [free], chosen=False).free
    unpriced = Model(id="d/new")
    assert not routed("smart", [unpriced], chosen=False).callable
    assert list(routed("smart", [unpriced, LARGE], chosen=False).rates) == list(LARGE.rates)


@pytest.mark.parametrize(
    ("policies", "worst"),
    [
        (
            [SMALL.data_policy, LARGE.data_policy],
            DataPolicy(region="eu", regions=["eu", "us"], retention_days=30, training=False),
        ),
        ([SMALL.data_policy, DataPolicy()], DataPolicy()),
        ([SMALL.data_policy, DataPolicy(training=True)], DataPolicy(training=True)),
    ],
)
def test_what_becomes_of_data_is_the_worst_of_all(
    policies: list[DataPolicy], worst: DataPolicy
) -> None:
    models = [model(f"a/{n}", data_policy=policy) for n, policy in enumerate(policies)]
    assert routed("smart", models, chosen=False).data_policy == worst


async def listed(rig: Rig, key: str) -> dict[str, Model]:
    async with channel(rig.settings.router.listen, rig.settings.rpc) as line:
        answer: model_service_pb2.ListModelsResponse = await unary(
            model_service_pb2_grpc.ModelServiceStub(line).ListModels,
            model_service_pb2.ListModelsRequest(),
            timeout_s=5,
            metadata=(("authorization", f"Bearer {key}"),),
        )
    return {one.id: one for one in answer.models}


async def got(rig: Rig, key: str, name: str) -> Model | None:
    async with channel(rig.settings.router.listen, rig.settings.rpc) as line:
        try:
            answer: model_service_pb2.GetModelResponse = await unary(
                model_service_pb2_grpc.ModelServiceStub(line).GetModel,
                model_service_pb2.GetModelRequest(id=name),
                timeout_s=5,
                metadata=(("authorization", f"Bearer {key}"),),
            )
        except GatewayError:
            return None
    return answer.model


ROUTES = (
    RouteSettings(
        name="smart",
        to=(RouteTarget(model="a/m"), RouteTarget(model="b/m")),
        fallbacks=("spare", "gone/x"),
    ),
    RouteSettings(name="spare", to=(RouteTarget(model="b/n"),)),
    RouteSettings(name="m", to=(RouteTarget(model="a/m"),)),
    RouteSettings(name="a/n", to=(RouteTarget(model="b/n"),)),
)
AUTO = PolicySettings(name="onegate/auto", model=(PolicyModel(model="b/m"),))


@pytest.mark.anyio
async def test_a_key_sees_the_routes_and_policies_of_which_it_may_use_a_part(
    tmp_path: Path,
) -> None:
    async with FakeProvider() as fake:
        providers = [provider(name, fake, models=("m", "n")) for name in "ab"]
        settings = replace(settings_in(tmp_path, *providers, routes=ROUTES), policies=(AUTO,))
        async with running(settings, PRICED) as rig:
            every = await listed(rig, rig.key)
            names = ["a/m", "a/n", "b/m", "b/n", "m", "onegate/auto", "smart", "spare"]
            assert list(every) == names
            assert list(every["smart"].deployments) == ["a/m", "b/m", "b/n"]
            # Calls of this name go to the route that is named so.
            assert list(every["a/n"].deployments) == ["b/n"]
            assert "m" not in every["a/m"].aliases
            assert every["smart"] == await got(rig, rig.key, "smart")

            narrow = rig.add_key(models_allowed=["a/*"])
            seen = await listed(rig, narrow)
            assert list(seen) == ["a/m", "m", "smart"]
            assert list(seen["smart"].deployments) == ["a/m"]
            assert await got(rig, narrow, "onegate/auto") is None
            # What is listed answers, and what is not does not.
            for name in names:
                said = await rig.chat(hello(name), key=narrow)
                assert (said.error is None) is (name in seen), (name, said.error)


@pytest.mark.anyio
async def test_a_key_does_not_see_what_its_data_policy_or_its_credentials_keep_from_it(
    tmp_path: Path,
) -> None:
    async with FakeProvider() as fake:
        (tmp_path / "b.key").touch(0o600)
        (tmp_path / "b.key").write_text("secret")
        ours = provider("a", fake, models=("m",), trains=False)
        own = CredentialSettings(
            name="own", api_key_file=str(tmp_path / "b.key"), projects=("proj_2",)
        )
        theirs = provider("b", fake, models=("m",), credential=(own,))
        settings = settings_in(tmp_path, ours, theirs, routes=ROUTES[:1])
        async with running(settings, PRICED) as rig:
            seen = await listed(rig, rig.key)
            assert list(seen) == ["a/m", "smart"]
            assert list(seen["smart"].deployments) == ["a/m"]
            assert list(await listed(rig, rig.add_key(project_id="proj_2"))) == [
                "a/m",
                "b/m",
                "smart",
            ]
            rule = data_policy_pb2.DataRule(demands=data_policy_pb2.DataDemands(no_training=True))
            policy = data_policy_pb2.DataPolicy(version="dp-1", rules=[rule])
            strict = rig.add_key(project_id="proj_2", data_policy=policy)
            assert list(await listed(rig, strict)) == ["a/m", "smart"]
