"""Providers as the operator configured them, made ready to be called: wire, place, credential."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final, cast

from runtime.clock import Clock
from runtime.config import ProviderSettings
from runtime.errors import GatewayError
from runtime.rules import ConfigError, Problem
from runtime.secrets import Secret
from services.router import demo
from services.router.credentials.access import Credential
from services.router.credentials.tokens import TokenKeeper, buyer_of
from services.router.models.catalog import ConfiguredProvider
from services.router.parts import Provider
from services.router.providers.base import (
    Headers,
    ListsElsewhere,
    RunsJobs,
    ShortLived,
    Signer,
    Wire,
)
from services.router.routing.data_rules import DataHandling
from services.router.upstream.client import target_of
from services.router.upstream.egress import origin_of
from services.router.upstream.jobs import JobWire

SecretOf = Callable[[ProviderSettings, str], Secret | None]
"""Reads the secret of a provider with one credential, given that credential's name, empty for the
provider's own. May raise ``ConfigError``."""

DEMO: Final = ProviderSettings(
    name=demo.NAME,
    kind=demo.NAME,
    models=(demo.MODEL,),
    free=True,
    retention_days=0,
    trains=False,
)
"""What is configured when nothing is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Configured:
    """Every provider, for the catalogue and for calls."""

    known: tuple[ConfiguredProvider, ...]
    callable: Mapping[str, Provider]
    keepers: tuple[TokenKeeper, ...] = ()
    """What buys tokens for them; to be started."""


def with_demo(providers: Sequence[ProviderSettings]) -> tuple[ProviderSettings, ...]:
    """The demo provider alone when there is no other; a configured one is free in any case."""
    return tuple(
        replace(
            provider,
            free=True,
            models=provider.models or DEMO.models,
            # It answers from this very machine, remembers nothing and learns nothing.
            retention_days=0,
            trains=False,
        )
        if provider.kind == demo.NAME
        else provider
        for provider in providers
    ) or (DEMO,)


def configure(
    providers: Sequence[ProviderSettings],
    wires: Mapping[str, Wire],
    secret_of: SecretOf,
    demo_url: str,
    clock: Clock,
) -> Configured:
    """Makes providers ready.

    Args:
        providers: from the settings, after :func:`with_demo`.
        wires: by kind.
        secret_of: reads a provider's credential; may raise ``ConfigError``.
        demo_url: where the demo listens.
        clock: how long a bought token is good.

    Raises ``ConfigError`` when a base URL or a credential cannot be used.
    """
    callable_: dict[str, Provider] = {}
    keepers: list[TokenKeeper] = []

    def authorized(provider: ProviderSettings, name: str) -> Headers | Signer:
        secret = secret_of(provider, name.partition("#")[2])
        credential = wires[provider.kind].authorize(secret.reveal() if secret else "")
        if not isinstance(credential, ShortLived):
            return credential
        keepers.append(TokenKeeper(name, buyer_of(credential), clock))
        return keepers[-1].sign

    for provider in providers:
        try:
            callable_[provider.name] = _ready(provider, wires[provider.kind], authorized, demo_url)
        except GatewayError as error:
            where = f'provider "{provider.name}"'
            raise ConfigError([Problem(where=where, message=error.message)]) from None
    known = tuple(
        ConfiguredProvider(
            name=provider.name,
            kind=provider.kind,
            models=provider.models,
            free=provider.free,
            data=DataHandling(
                regions=provider.region,
                retention_days=provider.retention_days,
                training=provider.trains,
            ),
            at_vendor=provider.base_url.rstrip("/") in ("", wires[provider.kind].base_url),
        )
        for provider in providers
    )
    return Configured(known=known, callable=callable_, keepers=tuple(keepers))


Authorize = Callable[[ProviderSettings, str], Headers | Signer]
"""What a provider's key becomes in a request; the second argument is what to call it."""


def _ready(
    provider: ProviderSettings, wire: Wire, authorized: Authorize, demo_url: str
) -> Provider:
    """One provider. Only an address that the operator wrote, or one of the wire's own that is
    meant for this machine, may be private.
    """
    base_url = provider.base_url or (demo_url if provider.kind == demo.NAME else wire.base_url)
    private = bool(provider.base_url) or base_url.startswith("http://")
    origin = origin_of(base_url, private_allowed=private)
    elsewhere = wire.lists(base_url) if isinstance(wire, ListsElsewhere) else ()
    shares = [
        (one, authorized(provider.with_key_of(one), f"{provider.name}#{one.name}"))
        for one in provider.credential
    ]
    first = shares[0][1] if shares else authorized(provider, provider.name)
    return Provider(
        name=provider.name,
        wire=wire,
        jobs=cast("JobWire", wire) if isinstance(wire, RunsJobs) else None,
        target=target_of(origin, first),
        lists=tuple(
            (target_of(origin_of(place, private_allowed=private), first), request)
            for place, request in elsewhere
        ),
        credentials=tuple(
            Credential(
                name=one.name,
                target=target_of(origin, key),
                weight=one.weight,
                organizations=frozenset(one.organizations),
                projects=frozenset(one.projects),
            )
            for one, key in shares
        ),
    )
