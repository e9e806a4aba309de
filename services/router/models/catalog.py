"""Which models exist here: configured providers, and what operator, vendor and price table say of
their models.

A *deployment* is one model at one configured provider, ``provider/model``. Pure: discovery and the
price book tell it what they found.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final, NoReturn, Protocol

from onegate.common.v1 import error_pb2
from onegate.router.v1 import chat_pb2, model_service_pb2
from onegate.usage.v1 import price_pb2, price_service_pb2
from runtime.errors import GatewayError
from services.router.providers.base import ListedModel
from services.router.routing.data_rules import UNKNOWN, DataHandling

NAME: Final = re.compile(r"[A-Za-z0-9._~:/@+-]{1,200}")
"""What a model's name may be made of; it becomes a part of paths and of reports."""
RESOLVED_MAX: Final = 10_000
"""How many answers are remembered; callers choose the names."""
LISTED_MAX: Final = 10_000
"""How many models of one vendor's list are taken."""

_SHOWN_MAX: Final = 8
_RATE_NAMES: Final = {
    price_pb2.METER_INPUT_TOKENS: "prompt",
    price_pb2.METER_OUTPUT_TOKENS: "completion",
    price_pb2.METER_CACHED_INPUT_TOKENS: "input_cache_read",
    price_pb2.METER_CACHE_WRITE_TOKENS: "input_cache_write",
    price_pb2.METER_CACHE_WRITE_1H_TOKENS: "input_cache_write_1h",
    price_pb2.METER_REASONING_TOKENS: "internal_reasoning",
    price_pb2.METER_INPUT_AUDIO_TOKENS: "audio",
    price_pb2.METER_OUTPUT_AUDIO_TOKENS: "audio_output",
    price_pb2.METER_INPUT_IMAGE_TOKENS: "image",
    price_pb2.METER_OUTPUT_IMAGE_TOKENS: "image_output",
    price_pb2.METER_REQUESTS: "request",
    price_pb2.METER_WEB_SEARCHES: "web_search",
    price_pb2.METER_CACHED_INPUT_AUDIO_TOKENS: "input_audio_cache",
    price_pb2.METER_IMAGES: "images",
    price_pb2.METER_INPUT_AUDIO_SECONDS: "audio_seconds",
    price_pb2.METER_OUTPUT_AUDIO_SECONDS: "audio_output_seconds",
    price_pb2.METER_INPUT_VIDEO_SECONDS: "video_seconds",
    price_pb2.METER_OUTPUT_VIDEO_SECONDS: "video_output_seconds",
    price_pb2.METER_INPUT_CHARACTERS: "characters",
    price_pb2.METER_OUTPUT_CHARACTERS: "output_characters",
    price_pb2.METER_PAGES: "pages",
    price_pb2.METER_SEARCHES: "searches",
}
"""The words for meters in a model's ``pricing``
(https://openrouter.ai/docs/guides/overview/models), with our own where OpenRouter has none."""

_NO_FACTS: Final = price_service_pb2.ModelFacts()


class Prices(Protocol):
    """What the catalogue asks of the price book. Names are ``kind/model``."""

    def find(self, model: str) -> price_pb2.PriceSheet | None:
        """The sheet in force; ``None`` when no price is known."""
        ...

    def facts(self, model: str) -> price_service_pb2.ModelFacts | None:
        """What is known beside the price."""
        ...

    def names(self, kind: str) -> Iterable[str]:
        """The models of a kind that have a price, without the kind."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfiguredProvider:
    """A provider as the operator configured it; ``models`` empty for all that exist.

    ``data`` is what the operator says of what becomes of the data there. What its vendor says is
    believed beside it only when ``at_vendor``: it speaks of the vendor's own address.
    """

    name: str
    kind: str
    models: tuple[str, ...] = ()
    free: bool = False
    data: DataHandling = UNKNOWN
    at_vendor: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Deployment:
    """A model at a provider. ``model`` is the provider's own name of it."""

    id: str
    provider: str
    model: str
    price_name: str
    free: bool
    output_tokens_max: int = 0
    """The most output tokens; 0 when unknown."""
    context_tokens_max: int = 0
    """The most tokens, input and output together; 0 when unknown."""
    data: DataHandling = UNKNOWN
    """What becomes of the data there."""


@dataclass(slots=True)
class _Provider:
    configured: ConfiguredProvider
    allowed: frozenset[str]
    listed: dict[str, ListedModel] = field(default_factory=dict)


class Catalog:
    """All deployments."""

    def __init__(self, providers: Sequence[ConfiguredProvider], prices: Prices) -> None:
        self._providers = {
            provider.name: _Provider(provider, frozenset(provider.models)) for provider in providers
        }
        self._prices = prices
        self._resolved: dict[str, Deployment] = {}

    def put(self, provider: ConfiguredProvider) -> None:
        """The provider is new, or another than before; what its vendor listed stays known."""
        former = self._providers.get(provider.name)
        there = _Provider(provider, frozenset(provider.models))
        if former is not None and former.configured.kind == provider.kind:
            there.listed = former.listed
        self._providers[provider.name] = there
        self._resolved.clear()

    def drop(self, provider: str) -> None:
        """There is no such provider any more."""
        self._providers.pop(provider, None)
        self._resolved.clear()

    def discovered(self, provider: str, models: Sequence[ListedModel]) -> None:
        """The vendor's own list replaces the last one. Names that nobody could ask for are left
        out.
        """
        known = self._providers.get(provider)
        if known is None:
            return  # removed while it was asked
        usable = [model for model in models if _is_name(model.id)]
        known.listed = {model.id: model for model in usable[:LISTED_MAX]}
        self._resolved.clear()

    def resolve(self, model: str) -> Deployment:
        """The deployment that a caller means by ``provider/model`` or an unambiguous bare name.

        Raises MODEL_NOT_FOUND. A model whose price is unknown resolves where its provider may
        well have it: whether it may be called is a policy's question.
        """
        found = self._resolved.get(model)
        if found is None:
            found = self._resolve(model)
            if len(self._resolved) >= RESOLVED_MAX:
                self._resolved.clear()
            self._resolved[model] = found
        return found

    def resolved(self, model: str) -> Deployment | None:
        """What :meth:`resolve` said of the name, as long as it would say the same again."""
        return self._resolved.get(model)

    def offering(self, model: str) -> tuple[str, ...]:
        """The deployments that have a bare name, in the order of their providers."""
        if not _is_name(model):
            return ()
        return tuple(f"{provider.configured.name}/{model}" for provider in self._having(model))

    def lacks(self, deployment: Deployment, needs: frozenset[int]) -> bool:
        """Whether the deployment is known not to have one of some ``ChatFeature``; what is not
        known lacks nothing.
        """
        facts = self._facts(self._providers[deployment.provider], deployment.model)
        return any(
            feature in needs and bool(known) and word not in known
            for feature, word, known in (
                (chat_pb2.CHAT_FEATURE_IMAGE_INPUT, "image", facts.input_modalities),
                (chat_pb2.CHAT_FEATURE_AUDIO_INPUT, "audio", facts.input_modalities),
                (chat_pb2.CHAT_FEATURE_VIDEO_INPUT, "video", facts.input_modalities),
                (chat_pb2.CHAT_FEATURE_TOOLS, "tools", facts.supported_parameters),
            )
        )

    def price_names(self, model: str) -> tuple[str, ...]:
        """The prices to ask for before :meth:`resolve`, for a name that this catalogue cannot
        place by what it knows: ``kind/model``, nothing when it need not know more.
        """
        found = self._resolved.get(model)
        if found is not None:
            return () if found.free else (found.price_name,)
        if not _is_name(model):
            return ()
        prefix, _, name = model.partition("/")
        provider = self._providers.get(prefix)
        if provider is not None and name:
            return () if provider.configured.free else (f"{provider.configured.kind}/{name}",)
        if self._having(model):
            return ()
        return tuple(
            f"{provider.configured.kind}/{model}"
            for provider in self._providers.values()
            if not provider.allowed and not provider.configured.free
        )

    def unpriced(self, provider: str) -> list[str]:
        """The models of the vendor's list whose price nobody has asked for, as ``kind/model``."""
        found = self._providers.get(provider)
        if found is None or found.configured.free:
            return []
        names = found.allowed or found.listed
        return [f"{found.configured.kind}/{n}" for n in names if not self._priced(found, n)]

    def models(
        self,
        shown: Callable[[str], bool],
        fits: Callable[[DataHandling], bool] = lambda _: True,
    ) -> Iterator[model_service_pb2.Model]:
        """The known models whose id ``shown`` and whose way with data ``fits`` let through."""
        # A list: the reader may pause, and a provider come or go meanwhile.
        for provider in list(self._providers.values()):
            for name in self._known(provider):
                if shown(f"{provider.configured.name}/{name}") and fits(
                    self._handling(provider, name)
                ):
                    yield self._described(provider, name)

    def model(self, deployment: Deployment) -> model_service_pb2.Model:
        """What is known about one deployment."""
        return self._described(self._providers[deployment.provider], deployment.model)

    def _resolve(self, model: str) -> Deployment:
        if not _is_name(model):
            raise GatewayError(
                error_pb2.ERROR_REASON_MODEL_NOT_FOUND,
                "That is no model's name: use provider/model, as GET /v1/models lists them.",
                param="model",
            )
        prefix, _, name = model.partition("/")
        provider = self._providers.get(prefix)
        if provider is not None and name:
            return self._exact(provider, name)
        return self._bare(model)

    def _exact(self, provider: _Provider, name: str) -> Deployment:
        configured = provider.configured
        if provider.allowed:
            if name not in provider.allowed:
                shown = ", ".join(sorted(provider.allowed)[:_SHOWN_MAX])
                _not_found(
                    f"{configured.name} is configured to serve only some models, and {name!r} is "
                    f"not among them: {shown}."
                )
        elif (
            provider.listed
            and name not in provider.listed
            and not configured.free
            and not self._priced(provider, name)
        ):
            _not_found(f"{configured.name} has no model {name!r}; see GET /v1/models.")
        return self._deployment(provider, name)

    def _bare(self, model: str) -> Deployment:
        having = self._having(model)
        if not having:
            _not_found(
                f"No configured provider has a model {model!r}; GET /v1/models lists what can be "
                "called."
            )
        if len(having) > 1:
            ids = ", ".join(f"{p.configured.name}/{model}" for p in having[:_SHOWN_MAX])
            _not_found(f"The name {model!r} is ambiguous; say which: {ids}.")
        return self._deployment(having[0], model)

    def _having(self, model: str) -> list[_Provider]:
        """Whoever says that it has the model counts; the price table only when nobody does."""
        return [
            provider
            for provider in self._providers.values()
            if model in (provider.allowed or provider.listed)
        ] or [
            provider
            for provider in self._providers.values()
            if not provider.allowed and self._priced(provider, model)
        ]

    def _deployment(self, provider: _Provider, name: str) -> Deployment:
        configured = provider.configured
        listed = provider.listed.get(name) or ListedModel(name)
        facts = self._facts(provider, name)
        return Deployment(
            id=f"{configured.name}/{name}",
            provider=configured.name,
            model=name,
            price_name=f"{configured.kind}/{name}",
            free=configured.free,
            output_tokens_max=listed.output_tokens_max or facts.output_tokens_max,
            context_tokens_max=listed.context_tokens_max or facts.context_tokens_max,
            data=self._handling(provider, name),
        )

    def _handling(self, provider: _Provider, name: str) -> DataHandling:
        """What the operator says of the data, and what the vendor says where it is the vendor."""
        configured = provider.configured
        if not configured.at_vendor:
            return configured.data
        said = self._facts(provider, name).data_handling
        return configured.data.over(
            DataHandling(
                regions=(said.region,) if said.region else (),
                retention_days=said.retention_days if said.HasField("retention_days") else None,
                training=said.training if said.HasField("training") else None,
            )
        )

    def _priced(self, provider: _Provider, name: str) -> bool:
        return self._prices.find(f"{provider.configured.kind}/{name}") is not None

    def _known(self, provider: _Provider) -> list[str]:
        if provider.allowed:
            return sorted(provider.allowed)
        names = {name for name in self._prices.names(provider.configured.kind) if _is_name(name)}
        return sorted(names.union(provider.listed))

    def _described(self, provider: _Provider, name: str) -> model_service_pb2.Model:
        configured = provider.configured
        listed = provider.listed.get(name) or ListedModel(name)
        facts = self._facts(provider, name)
        sheet = self._prices.find(f"{configured.kind}/{name}")
        free = configured.free or (sheet is not None and sheet.free)
        return model_service_pb2.Model(
            id=f"{configured.name}/{name}",
            provider=configured.name,
            name=listed.name or facts.name or name,
            owner=listed.owner or configured.kind,
            created_unix_s=listed.created_unix_s,
            context_tokens_max=listed.context_tokens_max or facts.context_tokens_max,
            output_tokens_max=listed.output_tokens_max or facts.output_tokens_max,
            input_modalities=facts.input_modalities,
            output_modalities=facts.output_modalities,
            endpoints=["chat.completions"],
            supported_parameters=facts.supported_parameters,
            rates=_rates(sheet, standard=True) if sheet is not None and not free else [],
            tier_rates=_rates(sheet, standard=False) if sheet is not None and not free else [],
            free=free,
            callable=free or sheet is not None,
            data_policy=_data_policy(self._handling(provider, name)),
            aliases=self._aliases(provider, name),
            knowledge=facts.knowledge,
            shutdown_on=listed.shutdown_on or facts.shutdown_on,
            deprecated=facts.deprecated or bool(listed.shutdown_on),
            sources=_sources(sheet, facts),
        )

    def _facts(self, provider: _Provider, name: str) -> price_service_pb2.ModelFacts:
        return self._prices.facts(f"{provider.configured.kind}/{name}") or _NO_FACTS

    def _aliases(self, provider: _Provider, name: str) -> list[str]:
        """The bare name, where it means this deployment."""
        if name.partition("/")[0] in self._providers:
            return []
        try:
            bare = self._bare(name)
        except GatewayError:
            return []
        return [name] if bare.provider == provider.configured.name else []


def _is_name(text: str) -> bool:
    return NAME.fullmatch(text) is not None and ".." not in text


def _rates(sheet: price_pb2.PriceSheet, *, standard: bool) -> list[model_service_pb2.ModelRate]:
    """The standard rates, or those of long inputs and service tiers."""
    return [
        model_service_pb2.ModelRate(
            name=_RATE_NAMES[rate.meter],
            nano_usd_per_million=rate.nano_usd_per_million,
            above_input_tokens=rate.above_input_tokens,
            service_tier=rate.service_tier,
        )
        for rate in sheet.rates
        if rate.meter in _RATE_NAMES
        and standard is not bool(rate.above_input_tokens or rate.service_tier)
    ]


def _data_policy(handling: DataHandling) -> model_service_pb2.DataPolicy:
    return model_service_pb2.DataPolicy(
        region=handling.regions[0] if handling.regions else "",
        regions=handling.regions,
        retention_days=handling.retention_days,
        training=handling.training,
    )


def _sources(
    sheet: price_pb2.PriceSheet | None, facts: price_service_pb2.ModelFacts
) -> Iterable[str]:
    """Where the price and the rest are from, each once."""
    priced = [sheet.source] if sheet is not None and sheet.source else []
    return dict.fromkeys([*priced, *facts.sources])


def _not_found(message: str) -> NoReturn:
    raise GatewayError(error_pb2.ERROR_REASON_MODEL_NOT_FOUND, message, param="model")
