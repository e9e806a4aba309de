"""The gateway's providers in the file of an organisation: read, made, changed, ended.

They are the gateway's, not an organisation's, and so only the operator's file can have them. A
file names where a secret is, a variable or another file, and never the secret. It is read when a
credential is made or its provider moves, and at no other time: a file that is applied again
needs no secrets.
"""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from google.protobuf.field_mask_pb2 import FieldMask

from cli.declared_file import Declared
from cli.declared_plan import PlanError, Step
from cli.declared_state import Ids
from cli.operator import Operator
from onegate.auth.v1 import provider_service_pb2 as pb
from onegate.auth.v1 import provider_service_pb2_grpc
from runtime.config import environment
from runtime.secrets import Secret, SecretError, read_secret

_NEEDY: Final = frozenset({"provider.create", "provider.move", "provider_credential.create"})


async def providers_of(operator: Operator, ids: Ids) -> list[Declared] | None:
    """The providers that auth keeps, without secrets; ``None`` to who is not the operator, and for
    an organisation that was named: they are everybody's.
    """
    if operator.organization or not operator.credential.is_operator:
        return None
    stub = provider_service_pb2_grpc.ProviderServiceStub(operator.channel)
    answer = await operator.call(stub.ListProviders, pb.ListProvidersRequest())
    return [_declared(provider, ids) for provider in answer.providers]


def secrets_of(steps: Sequence[Step]) -> dict[str, Secret]:
    """The secrets that the steps need, by ``provider#credential``.

    Raises :class:`PlanError` for one that is not named or not there, before anything is done.
    """
    found: dict[str, Secret] = {}
    for step in steps:
        if step.does in _NEEDY:
            for credential in step.after["credentials"]:
                place = f"{step.after['name']}#{credential['name']}"
                found[place] = _secret(credential, place)
    return found


class ProviderActs:
    """Carries out the steps that are about providers."""

    def __init__(self, operator: Operator, ids: Ids, secrets: Mapping[str, Secret]) -> None:
        self._operator = operator
        self._stub = provider_service_pb2_grpc.ProviderServiceStub(operator.channel)
        self._ids = ids
        self._secrets = secrets
        self.acts: Mapping[str, Callable[[Step], Awaitable[None]]] = {
            "provider.create": self._create,
            "provider.update": self._update,
            "provider.move": self._move,
            "provider.delete": self._delete,
            "provider_credential.create": self._add,
            "provider_credential.delete": self._drop,
        }

    async def _create(self, step: Step) -> None:
        said = step.after
        request = pb.AddProviderRequest(
            name=said["name"],
            kind=said["kind"],
            base_url=said["base_url"],
            models=said["models"],
            free=said["free"],
            regions=said["regions"],
            retention_days=said.get("retention_days"),
            trains=said.get("trains"),
            credential=self._new(said["name"], said["credentials"][0]),
        )
        await self._operator.call(self._stub.AddProvider, request)
        for one in said["credentials"][1:]:
            await self._join(said["name"], one)

    async def _update(self, step: Step) -> None:
        request = pb.UpdateProviderRequest(
            name=step.name, update_mask=FieldMask(paths=list(step.after))
        )
        for field in ("models", "regions"):
            getattr(request, field).extend(step.after.get(field, ()))
        for field in ("free", "retention_days", "trains"):
            if field in step.after:
                setattr(request, field, step.after[field])
        await self._operator.call(self._stub.UpdateProvider, request)

    async def _move(self, step: Step) -> None:
        said = step.after
        secrets = {
            one["name"]: self._secrets[f"{said['name']}#{one['name']}"].reveal()
            for one in said["credentials"]
        }
        request = pb.MoveProviderRequest(
            name=said["name"], base_url=said["base_url"], secrets=secrets
        )
        await self._operator.call(self._stub.MoveProvider, request)

    async def _delete(self, step: Step) -> None:
        await self._operator.call(
            self._stub.RemoveProvider, pb.RemoveProviderRequest(name=step.name)
        )

    async def _add(self, step: Step) -> None:
        await self._join(step.after["name"], step.after["credentials"][0])

    async def _drop(self, step: Step) -> None:
        provider, _, credential = step.name.partition("#")
        request = pb.RemoveCredentialRequest(provider=provider, credential=credential)
        await self._operator.call(self._stub.RemoveCredential, request)

    async def _join(self, provider: str, credential: Declared) -> None:
        request = pb.AddCredentialRequest(
            provider=provider, credential=self._new(provider, credential)
        )
        await self._operator.call(self._stub.AddCredential, request)

    def _new(self, provider: str, said: Declared) -> pb.NewCredential:
        return pb.NewCredential(
            name=said["name"],
            weight=said.get("weight", 1),
            organizations=said.get("organizations", ()),
            projects=[self._project(name) for name in said.get("projects", ())],
            secret=self._secrets[f"{provider}#{said['name']}"].reveal(),
        )

    def _project(self, name: str) -> str:
        """A project of the file; one of another organisation is known by its id."""
        return name if name.startswith("proj_") else self._ids.of("project", "", name)


def _declared(provider: pb.StoredProvider, ids: Ids) -> Declared:
    known: dict[str, Any] = {
        field: getattr(provider, field)
        for field in ("retention_days", "trains")
        if provider.HasField(field)
    }
    return {
        "name": provider.name,
        "kind": provider.kind,
        "base_url": provider.base_url,
        "models": sorted(provider.models),
        "free": provider.free,
        "regions": sorted(provider.regions),
        **known,
        "credentials": [
            {
                "name": one.name,
                "weight": one.weight,
                "organizations": sorted(one.organizations),
                "projects": sorted(ids.name("project", "", project) for project in one.projects),
            }
            for one in provider.credentials
        ],
    }


def _secret(credential: Declared, place: str) -> Secret:
    variable, file = credential.get("secret_env", ""), credential.get("secret_file", "")
    if bool(variable) == bool(file):
        raise PlanError(f"{place}: needs its secret now: name one of secret_env and secret_file")
    if variable:
        text = environment().get(variable, "")
        if not text:
            raise PlanError(f"{place}: the variable {variable} is not set")
        return Secret(text)
    try:
        return read_secret(Path(file))
    except SecretError as error:
        raise PlanError(f"{place}: {error}") from None
