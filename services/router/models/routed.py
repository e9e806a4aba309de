"""What a route or a policy looks like in the list of models: what is known of those behind it.

Pure. Who calls a route cannot tell which of its deployments answers, so it is promised what all of
them can do. A policy looks at the call and leaves out whoever cannot take it, so it is promised
what any of them can. Prices and the way with data are the worst of all: a bound is a bound.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Final

from onegate.router.v1 import model_service_pb2
from onegate.router.v1.model_service_pb2 import DataPolicy, Model, ModelRate

OWNER: Final = "onegate"
"""Who made what only exists here."""


def routed(name: str, models: Sequence[Model], *, chosen: bool) -> Model:
    """One entry for a name and the models behind it.

    Args:
        name: the route's or policy's.
        models: at least one, those that the caller may use.
        chosen: by what a call is like (a policy).
    """
    bound: Callable[[Iterable[int]], int] = max if chosen else min
    callable_ = [model for model in models if model.callable] or models
    return Model(
        id=name,
        name=name,
        owner=OWNER,
        context_tokens_max=_bound(bound, (m.context_tokens_max for m in models)),
        output_tokens_max=_bound(bound, (m.output_tokens_max for m in models)),
        input_modalities=_words([m.input_modalities for m in models], any_of=chosen),
        output_modalities=_words([m.output_modalities for m in models], any_of=chosen),
        endpoints=_words([m.endpoints for m in models], any_of=chosen),
        supported_parameters=_words([m.supported_parameters for m in models], any_of=chosen),
        rates=_dearest(callable_),
        free=all(model.free for model in callable_),
        callable=any(model.callable for model in models),
        data_policy=_worst([model.data_policy for model in models]),
        deprecated=all(model.deprecated for model in models),
        deployments=[model.id for model in models],
        sources=dict.fromkeys(source for model in models for source in model.sources),
    )


def _bound(bound: Callable[[Iterable[int]], int], counts: Iterable[int]) -> int:
    """The bound of those that are known; 0 when none is."""
    known = [count for count in counts if count]
    return bound(known) if known else 0


def _words(lists: Sequence[Iterable[str]], *, any_of: bool) -> list[str]:
    """What all that say anything say, or what any of them says; in the order of the first."""
    known = [list(words) for words in lists]
    known = [words for words in known if words]
    every = dict.fromkeys(word for words in known for word in words)
    return [word for word in every if any_of or all(word in words for words in known)]


def _dearest(models: Sequence[Model]) -> list[ModelRate]:
    """The highest price of each meter that all of them price; what is free costs nothing."""
    sheets = [
        {rate.name: rate.nano_usd_per_million for rate in model.rates}
        for model in models
        if not model.free
    ]
    first = sheets[0] if sheets else {}
    return [
        ModelRate(name=name, nano_usd_per_million=max(sheet[name] for sheet in sheets))
        for name in first
        if all(name in sheet for sheet in sheets)
    ]


def _worst(policies: Sequence[DataPolicy]) -> DataPolicy:
    """What holds wherever the call goes; what one of them does not say is not known."""
    regions = dict.fromkeys(region for policy in policies for region in policy.regions)
    if not all(policy.regions for policy in policies):
        regions = {}
    worst = model_service_pb2.DataPolicy(region=next(iter(regions), ""), regions=regions)
    if all(policy.HasField("retention_days") for policy in policies):
        worst.retention_days = max(policy.retention_days for policy in policies)
    if any(policy.training for policy in policies):
        worst.training = True
    elif all(policy.HasField("training") for policy in policies):
        worst.training = False
    return worst
