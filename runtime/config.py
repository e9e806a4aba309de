"""The settings of this process, read from a file, the environment and flags, in that order of
rank; the only place that knows their names.

``ONEGATE_<TABLE>_<KEY>`` in the environment wins over the file, a flag over both. What is not
understood is refused, never ignored: :class:`ConfigError` lists every fault with file and line.
The dataclasses are in ``runtime/settings.py``, credentials in ``runtime/credentials.py``; import
both from here.
"""

import os
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from runtime.config_fields import TYPE_NAMES, Field, checked, fields_of
from runtime.config_routes import take_policies, take_routes
from runtime.credentials import (
    WELL_KNOWN,
    completed,
    credential,
    missing_credential,
    well_known_providers,
)
from runtime.local import nth_worker, with_local_defaults
from runtime.route_settings import (
    PolicyModel,
    PolicyRule,
    PolicySettings,
    RouteSettings,
    RouteTarget,
)
from runtime.rules import ConfigError, Problem, did_you_mean
from runtime.settings import (
    NEED_BASE_URL,
    AlertSettings,
    AuthSettings,
    CredentialSettings,
    EdgeSettings,
    InvoiceSettings,
    LimitsSettings,
    OidcSettings,
    ProviderSettings,
    RouterSettings,
    RpcSettings,
    SealingSettings,
    Settings,
    TelemetrySettings,
    UsageSettings,
)
from runtime.toml_lines import line_of

__all__ = [
    "DEFAULT_FILE",
    "WELL_KNOWN",
    "AlertSettings",
    "AuthSettings",
    "ConfigError",
    "CredentialSettings",
    "EdgeSettings",
    "InvoiceSettings",
    "LimitsSettings",
    "OidcSettings",
    "PolicyModel",
    "PolicyRule",
    "PolicySettings",
    "ProviderSettings",
    "RouteSettings",
    "RouteTarget",
    "RouterSettings",
    "RpcSettings",
    "SealingSettings",
    "Settings",
    "TelemetrySettings",
    "UsageSettings",
    "credential",
    "environment",
    "load",
    "nth_worker",
    "with_local_defaults",
]

DEFAULT_FILE: Final = "onegate.toml"
"""Read from the working directory when no other file is named and it is there."""

FILE_BYTES_MAX: Final = 1024 * 1024

_PREFIX: Final = "ONEGATE_"
_PROVIDER: Final = "provider"
_CREDENTIAL: Final = "credential"
_ROUTE: Final = "route"
_POLICY: Final = "policy"
_TYPO_LIKENESS: Final = 0.9
_SECTIONS: Final[Mapping[str, type[Any]]] = {
    "edge": EdgeSettings,
    "router": RouterSettings,
    "auth": AuthSettings,
    "oidc": OidcSettings,
    "usage": UsageSettings,
    "limits": LimitsSettings,
    "alerts": AlertSettings,
    "invoice": InvoiceSettings,
    "rpc": RpcSettings,
    "sealing": SealingSettings,
    "telemetry": TelemetrySettings,
}
_SERVICE_LINK: Final = re.compile(
    r"_SERVICE_HOST|_SERVICE_PORT(_\w+)?|_PORT_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?"
)
"""Names that Kubernetes sets in every pod for each service of the namespace, ``onegate-edge``
among them (https://kubernetes.io/docs/concepts/services-networking/service/#discovering-services).
"""


_FIELDS: Final[Mapping[str, Mapping[str, Field]]] = {
    "": {
        key: known for key, known in fields_of(Settings).items() if known.hint in (str, int, bool)
    },
    **{section: fields_of(cls) for section, cls in _SECTIONS.items()},
}
_PROVIDER_FIELDS: Final = fields_of(ProviderSettings)
_CREDENTIAL_FIELDS: Final = fields_of(CredentialSettings)
_VARIABLES: Final[Mapping[str, str]] = {
    _PREFIX + name.upper().replace(".", "_"): name
    for name in (
        f"{section}.{key}" if section else key
        for section, known in _FIELDS.items()
        for key in known
    )
}


def environment() -> Mapping[str, str]:
    """This process's environment, to hand to :func:`load` and :func:`credential`."""
    return dict(os.environ)


def load(
    path: Path | None,
    environ: Mapping[str, str],
    overrides: Mapping[str, object],
    *,
    check_credentials: bool = True,
) -> Settings:
    """The settings of a file, an environment and flags.

    Args:
        path: the TOML file; ``None`` for none.
        environ: the environment; read for ``ONEGATE_…`` and for credentials.
        overrides: flags by dotted name (``edge.port``); ``None`` values are not given.
        check_credentials: whether the variables and files that providers name must be there. A
            process that calls no provider need not have them.

    Raises ``ConfigError`` with every fault that was found.
    """
    draft = _Draft()
    file = None if path is None else _File.read(path)
    if file is not None:
        _take_file(draft, file)
    _take_environment(draft, environ)
    for name, value in overrides.items():
        if value is not None:
            _take_override(draft, name, value)
    providers = [] if file is None else _take_providers(draft, file)
    configured = [completed(provider, environ) for _, provider in providers]
    if check_credentials:
        for (place, _), provider in zip(providers, configured, strict=True):
            complaint = missing_credential(provider, environ)
            if complaint is not None:
                draft.refuse(place, complaint)
    taken = {provider.name for provider in configured}
    providers_all = (
        *configured,
        *(p for p in well_known_providers(environ) if p.name not in taken),
    )
    routes: tuple[RouteSettings, ...] = ()
    policies: tuple[PolicySettings, ...] = ()
    # A process that calls no provider does not have what the environment says of them.
    known = {provider.name for provider in providers_all} if check_credentials else None
    if file is not None and _ROUTE in file.document:
        routes = take_routes(file.document, file.where, draft.refuse, known)
    if file is not None and _POLICY in file.document:
        policies = take_policies(file.document, file.where, draft.refuse, known)
    draft.check_together()
    if draft.problems:
        raise ConfigError(draft.problems)
    return replace(draft.settings(), providers=providers_all, routes=routes, policies=policies)


class _File:
    """A parsed file that can say where each of its settings stands."""

    def __init__(self, path: Path, text: str, document: dict[str, Any]) -> None:
        self._path = path
        self._text = text
        self.document = document

    @classmethod
    def read(cls, path: Path) -> "_File":
        """Reads and parses. Raises ``ConfigError`` when it cannot."""
        try:
            with path.open("rb") as opened:
                content = opened.read(FILE_BYTES_MAX + 1)
        except OSError as error:
            raise _file_error(path, f"cannot be read: {error.strerror}") from None
        if len(content) > FILE_BYTES_MAX:
            raise _file_error(path, f"is longer than {FILE_BYTES_MAX:,} bytes")
        try:
            text = content.decode("utf-8").replace("\r\n", "\n")
        except UnicodeDecodeError as error:
            line = content.count(b"\n", 0, error.start) + 1
            raise _file_error(path, "is not UTF-8", line) from None
        try:
            return cls(path, text, tomllib.loads(text))
        except tomllib.TOMLDecodeError as error:
            found = re.search(r" \(at (?:line (\d+), column \d+|end of document)\)", str(error))
            line = int(found[1]) if found and found[1] else text.count("\n") + 1
            message = str(error).replace(found[0], "") if found else str(error)
            raise _file_error(path, f"is not TOML: {message}", line) from None

    def where(self, *path: str | int) -> str:
        """``file:line`` of a setting."""
        return f"{self._path}:{line_of(self._text, path)}"


def _file_error(path: Path, message: str, line: int | None = None) -> ConfigError:
    where = str(path) if line is None else f"{path}:{line}"
    return ConfigError([Problem(where=where, message=f"the file {message}")])


@dataclass(slots=True)
class _Draft:
    """What has been understood so far, and what has not."""

    values: dict[str, dict[str, Any]] = field(default_factory=dict)
    origins: dict[str, str] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)

    def refuse(self, where: str, message: str) -> None:
        """Notes a fault."""
        self.problems.append(Problem(where=where, message=message))

    def put(self, where: str, name: str, value: object) -> None:
        """Takes the value of a known setting, or notes what is wrong with it."""
        section, _, key = name.rpartition(".")
        try:
            taken = checked(value, _FIELDS[section][key])
        except ValueError as error:
            self.refuse(where, f"{name} {error}")
            return
        self.values.setdefault(section, {})[key] = taken
        self.origins[name] = where

    def check_together(self) -> None:
        """Rules over several settings."""
        settings = self.settings()
        if settings.edge.body_bytes_max > settings.rpc.message_bytes_max:
            names = ("edge.body_bytes_max", "rpc.message_bytes_max")
            where = next(self.origins[name] for name in names if name in self.origins)
            self.refuse(where, "edge.body_bytes_max must not be above rpc.message_bytes_max")
        for section, values in (("auth", settings.auth), ("usage", settings.usage)):
            if values.dsn and values.dsn_file:
                where = self.origins[f"{section}.dsn_file"]
                self.refuse(where, f"{section} has dsn or dsn_file, not both")
        self._check_oidc(settings.oidc)

    def _check_oidc(self, oidc: OidcSettings) -> None:
        if oidc.issuer and not oidc.client_id:
            self.refuse(self.origins["oidc.issuer"], "oidc.issuer needs oidc.client_id")
        if oidc.issuer and "openid" not in oidc.scopes:
            self.refuse(self.origins["oidc.scopes"], "oidc.scopes must name openid")
        if oidc.create_users and not oidc.allowed_domains and not oidc.group_roles:
            message = "oidc.create_users needs allowed_domains or group_roles, or anybody gets in"
            self.refuse(self.origins["oidc.create_users"], message)

    def settings(self) -> Settings:
        """The settings, without providers."""
        sections = {name: cls(**self.values.get(name, {})) for name, cls in _SECTIONS.items()}
        return Settings(**self.values.get("", {}), **sections)


def _take_file(draft: _Draft, file: _File) -> None:
    for name, value in file.document.items():
        if name in (_PROVIDER, _ROUTE, _POLICY):
            continue
        if name in _FIELDS[""]:
            draft.put(file.where(name), name, value)
        elif name not in _SECTIONS:
            draft.refuse(file.where(name), _unknown("", name))
        elif not isinstance(value, dict):
            draft.refuse(file.where(name), f"{name} must be a table: [{name}]")
        else:
            for key, inner in value.items():
                if key in _FIELDS[name]:
                    draft.put(file.where(name, key), f"{name}.{key}", inner)
                else:
                    draft.refuse(file.where(name, key), _unknown(name, key))


def _take_environment(draft: _Draft, environ: Mapping[str, str]) -> None:
    for variable, text in environ.items():
        if not variable.startswith(_PREFIX) or _is_service_link(variable, text):
            continue
        if variable in _VARIABLES:
            _put_text(draft, variable, _VARIABLES[variable], text)
        elif variable.startswith(f"{_PREFIX}PROVIDER_"):
            draft.refuse(variable, "providers are configured in the file: [[provider]]")
        else:
            ours = any(variable.startswith(f"{_PREFIX}{s.upper()}_") for s in _SECTIONS)
            guess = did_you_mean(variable, _VARIABLES)
            alike = did_you_mean(variable, _VARIABLES, likeness=_TYPO_LIKENESS)
            if ours or alike:
                draft.refuse(variable, f"there is no such setting{guess}")


def _is_service_link(variable: str, text: str) -> bool:
    """Whether Kubernetes, not an operator, set the variable."""
    links = text.startswith(("tcp://", "udp://", "sctp://"))
    return links or _SERVICE_LINK.search(variable) is not None


def _take_override(draft: _Draft, name: str, value: object) -> None:
    section, _, key = name.rpartition(".")
    if key not in _FIELDS.get(section, {}):
        raise LookupError(f"There is no setting {name!r}.")
    if isinstance(value, str):
        _put_text(draft, f"flag for {name}", name, value)
    else:
        draft.put(f"flag for {name}", name, value)


def _put_text(draft: _Draft, where: str, name: str, text: str) -> None:
    """A setting that comes as text, whatever its type."""
    section, _, key = name.rpartition(".")
    hint = _FIELDS[section][key].hint
    value: object = text
    try:
        if hint is int:
            value = int(text)
        elif hint is float:
            value = float(text)
        elif hint is bool:
            value = {"true": True, "1": True, "false": False, "0": False}[text.lower()]
        elif hint is not str:
            value = [part.strip() for part in text.split(",")] if text.strip() else []
    except (ValueError, KeyError):
        draft.refuse(where, f"{name} must be {TYPE_NAMES[hint]}")
    else:
        draft.put(where, name, value)


def _unknown(section: str, key: str) -> str:
    """What to say about a name that is not ours."""
    if section:
        guess = did_you_mean(key, _FIELDS[section])
    else:
        guess = did_you_mean(key, {*_FIELDS[""], *_SECTIONS, _PROVIDER, _ROUTE, _POLICY})
    homes = [name for name, known in _FIELDS.items() if key in known]
    if homes:
        guess = (
            f"; it belongs to {' or '.join(f'[{home}]' if home else 'the top' for home in homes)}"
        )
    name = f"{section}.{key}" if section else key
    return f"there is no setting {name}{guess}"


def _take_providers(draft: _Draft, file: _File) -> list[tuple[str, ProviderSettings]]:
    """Every ``[[provider]]`` that can be understood, with where it stands."""
    tables = file.document.get(_PROVIDER, [])
    if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
        draft.refuse(file.where(_PROVIDER), "providers are written as [[provider]] tables")
        return []
    taken: list[tuple[str, ProviderSettings]] = []
    for index, table in enumerate(tables):
        provider = _take_provider(draft, file, index, table)
        if provider is None:
            continue
        if any(provider.name == other.name for _, other in taken):
            where = file.where(_PROVIDER, index, "name")
            draft.refuse(where, f'there is a provider "{provider.name}" already')
        taken.append((file.where(_PROVIDER, index), provider))
    return taken


def _take_provider(
    draft: _Draft, file: _File, index: int, table: Mapping[str, object]
) -> ProviderSettings | None:
    faults = len(draft.problems)
    path = (_PROVIDER, index)
    plain = {key: value for key, value in table.items() if key != _CREDENTIAL}
    values = _take_table(draft, file, path, plain, _PROVIDER_FIELDS)
    place = file.where(*path)
    for key in ("name", "kind"):
        if key not in table:
            draft.refuse(place, f"a provider needs {key}")
    if "api_key_env" in table and "api_key_file" in table:
        draft.refuse(place, "a provider has api_key_env or api_key_file, not both")
    if values.get("kind") in NEED_BASE_URL and not table.get("base_url"):
        draft.refuse(place, f"a provider of kind {values['kind']} needs base_url")
    if _CREDENTIAL in table:
        values[_CREDENTIAL] = _take_credentials(draft, file, index, table[_CREDENTIAL])
        if "api_key_env" in table or "api_key_file" in table:
            draft.refuse(place, "a provider has a key of its own or credentials, not both")
    return ProviderSettings(**values) if len(draft.problems) == faults else None


def _take_credentials(
    draft: _Draft, file: _File, index: int, tables: object
) -> tuple[CredentialSettings, ...]:
    """The credentials of a provider; faults are noted."""
    place = file.where(_PROVIDER, index, _CREDENTIAL)
    if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
        draft.refuse(place, "credentials are written as [[provider.credential]] tables")
        return ()
    taken: list[CredentialSettings] = []
    for number, table in enumerate(tables):
        faults = len(draft.problems)
        path = (_PROVIDER, index, _CREDENTIAL, number)
        values = _take_table(draft, file, path, table, _CREDENTIAL_FIELDS)
        where = file.where(*path)
        if "name" not in table:
            draft.refuse(where, "a credential needs name")
        if ("api_key_env" in table) == ("api_key_file" in table):
            draft.refuse(where, "a credential has api_key_env or api_key_file")
        if any(table.get("name") == other.name for other in taken):
            draft.refuse(where, f'there is already a credential "{table["name"]}"')
        if len(draft.problems) == faults:
            taken.append(CredentialSettings(**values))
    return tuple(taken)


def _take_table(
    draft: _Draft,
    file: _File,
    path: tuple[str | int, ...],
    table: Mapping[str, object],
    known: Mapping[str, Field],
) -> dict[str, Any]:
    """The good values of one of several tables; faults are noted."""
    label = ".".join(part for part in path if isinstance(part, str))
    values: dict[str, Any] = {}
    for key, value in table.items():
        where = file.where(*path, key)
        if key not in known:
            guess = did_you_mean(key, known)
            draft.refuse(where, f"there is no setting {label}.{key}{guess}")
            continue
        try:
            values[key] = checked(value, known[key])
        except ValueError as error:
            draft.refuse(where, f"{label}.{key} {error}")
    return values
