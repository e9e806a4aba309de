"""An organisation as a file: which fields there are, read from YAML with the line of every mistake,
in one canonical form, and written again.

What a file does not name is left as it is. Nothing in it is a secret.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, Final, TypeAlias, assert_never

import yaml

from cli.limits import NUMBERS
from runtime.networks import normalised

BYTES_MAX: Final = 4 * 1024 * 1024
NODES_MAX: Final = 500_000
METERS: Final = ("requests", "tokens", "concurrency", "images", "audio_megabytes")

Declared: TypeAlias = dict[str, Any]


class DeclaredError(ValueError):
    """A mistake in a file, with its line."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scalar:
    """One value.

    Args:
        tag: YAML's word for its type.
        what: how the type is called to people.
        words: the only values that there are; empty for any.
        form: brings a value into its canonical form; raises ``ValueError``.
    """

    tag: str
    what: str
    words: tuple[str, ...] = ()
    form: Callable[[Any], Any] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Texts:
    """A list of texts of which each counts once and the order says nothing."""

    form: Callable[[str], str] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Tags:
    """Texts by name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fields:
    """An object.

    Args:
        of: its fields.
        identity: the fields that must be there and tell objects of a list apart.
    """

    of: Mapping[str, "Kind"]
    identity: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Many:
    """A list of objects."""

    item: Fields


Kind: TypeAlias = Scalar | Texts | Tags | Fields | Many


def _pattern(text: str) -> str:
    return re.sub(r"\*+", "*", text)


def _scope(text: str) -> str:
    return "model.read" if text == "api.all.read" else text.removeprefix("api.")


TEXT: Final = Scalar(tag="str", what="a text")
WHOLE: Final = Scalar(tag="int", what="a whole number")
FLAG: Final = Scalar(tag="bool", what="true or false")
PATTERNS: Final = Texts(form=_pattern)
NETWORKS: Final = Texts(form=normalised)
EMAIL: Final = Scalar(tag="str", what="an address", form=str.lower)

MODELS: Final = Fields(
    of={"mode": Scalar(tag="str", what="a word", words=("allow", "deny")), "patterns": PATTERNS},
    identity=("mode", "patterns"),
)
LIMITS: Final = Many(
    item=Fields(
        of={
            "model": Scalar(tag="str", what="a text", form=_pattern),
            **dict.fromkeys(NUMBERS, WHOLE),
        },
        identity=("model",),
    )
)
KEY_POLICY: Final = Fields(
    of={
        "max_lifetime_seconds": WHOLE,
        "default_lifetime_seconds": WHOLE,
        "networks": NETWORKS,
        "tags": Tags(),
    }
)
DATA_POLICY: Final = Fields(
    of={
        "class_min": TEXT,
        "demands": Many(
            item=Fields(
                of={
                    "class": TEXT,
                    "regions": Texts(),
                    "storage_regions": Texts(),
                    "retention_days_max": WHOLE,
                    "no_training": FLAG,
                },
                identity=("class",),
            )
        ),
    }
)
ROLES: Final = Many(
    item=Fields(of={"name": TEXT, "description": TEXT, "permissions": Texts()}, identity=("name",))
)
KEYS: Final = Many(
    item=Fields(
        of={
            "name": TEXT,
            "service_account": TEXT,
            "models": PATTERNS,
            "denied_models": PATTERNS,
            "networks": NETWORKS,
            "scopes": Texts(form=_scope),
            "tags": Tags(),
            "limits": Many(
                item=Fields(
                    of={
                        "meter": Scalar(tag="str", what="a word", words=METERS),
                        "amount": WHOLE,
                        "window_seconds": WHOLE,
                        "model": TEXT,
                    },
                    identity=("meter", "window_seconds", "model"),
                )
            ),
            "disabled": FLAG,
        },
        identity=("name",),
    )
)
PROJECT_FIELDS: Final[Mapping[str, Kind]] = {
    "name": TEXT,
    "residency": TEXT,
    "models": MODELS,
    "limits": LIMITS,
    "key_policy": KEY_POLICY,
    "data_policy": DATA_POLICY,
    "roles": ROLES,
    "users": Many(item=Fields(of={"email": EMAIL, "role": TEXT}, identity=("email",))),
    "groups": Many(item=Fields(of={"name": TEXT, "role": TEXT}, identity=("name",))),
    "service_accounts": Many(item=Fields(of={"name": TEXT, "role": TEXT}, identity=("name",))),
    "keys": KEYS,
}
PROVIDERS: Final = Many(
    item=Fields(
        of={
            "name": TEXT,
            "kind": TEXT,
            "base_url": TEXT,
            "models": Texts(),
            "free": FLAG,
            "regions": Texts(),
            "retention_days": WHOLE,
            "trains": FLAG,
            "credentials": Many(
                item=Fields(
                    of={
                        "name": TEXT,
                        "weight": WHOLE,
                        "organizations": Texts(),
                        "projects": Texts(),
                        "secret_env": TEXT,
                        "secret_file": TEXT,
                    },
                    identity=("name",),
                )
            ),
        },
        identity=("name",),
    )
)
FILE: Final = Fields(
    of={
        "version": Scalar(tag="int", what="the number 1"),
        "organization": Fields(
            of={
                "models": MODELS,
                "limits": LIMITS,
                "key_policy": KEY_POLICY,
                "data_policy": DATA_POLICY,
            }
        ),
        "users": Many(item=Fields(of={"email": EMAIL, "role": TEXT}, identity=("email",))),
        "roles": ROLES,
        "groups": Many(
            item=Fields(
                of={"name": TEXT, "members": Texts(form=str.lower), "roles": Texts()},
                identity=("name",),
            )
        ),
        "projects": Many(item=Fields(of=PROJECT_FIELDS, identity=("name",))),
        "providers": PROVIDERS,
    },
    identity=("version",),
)
ELSEWHERE: Final = ("routes",)
"""What is configured in ``onegate.toml``."""


def read(text: str, name: str) -> Declared:
    """The file in its canonical form. Raises :class:`DeclaredError` with name and line."""
    if len(text) > BYTES_MAX:
        raise DeclaredError(f"{name}: is longer than {BYTES_MAX} characters")
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise DeclaredError(f"{name}:{line}: {error.problem or 'is no YAML'}") from None
    except yaml.YAMLError as error:
        raise DeclaredError(f"{name}: is no YAML: {error}") from None
    if node is None:
        raise DeclaredError(f"{name}:1: is empty: begin with `version: 1`")
    found: Declared = _Reader(name).value(node, FILE, "the file")
    if found["version"] != 1:
        raise DeclaredError(f"{name}: `version` must be 1")
    return found


def write(declared: Declared) -> str:
    """The file of what is declared, ready to be applied."""
    text: str = yaml.safe_dump(declared, sort_keys=False, allow_unicode=True, width=100)
    return text


class _Reader:
    """Turns nodes into values, and knows where they stand."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._nodes = 0

    def value(self, node: yaml.Node, kind: Kind, place: str) -> Any:
        """One value of its kind."""
        self._nodes += 1
        if self._nodes > NODES_MAX:
            raise self._error(node, f"there are more than {NODES_MAX} values")
        match kind:
            case Scalar():
                return self._scalar(node, kind, place)
            case Texts():
                item = Scalar(tag="str", what="a text", form=kind.form)
                values = [self.value(inner, item, place) for inner in self._items(node, place)]
                return sorted(dict.fromkeys(values))
            case Tags():
                return {
                    name: self.value(inner, TEXT, f"{place}.{name}")
                    for name, _, inner in sorted(self._pairs(node, place))
                }
            case Fields():
                return self._object(node, kind, place)
            case Many():
                return self._objects(node, kind, place)
            case never:
                assert_never(never)

    def _scalar(self, node: yaml.Node, kind: Scalar, place: str) -> Any:
        if not isinstance(node, yaml.ScalarNode) or node.tag != f"tag:yaml.org,2002:{kind.tag}":
            quote = ": write it in quotes" if kind.tag == "str" else ""
            raise self._error(node, f"`{place}` must be {kind.what}{quote}")
        found = yaml.SafeLoader("").construct_object(node)
        if kind.words and found not in kind.words:
            raise self._error(node, f"`{place}` must be one of {', '.join(kind.words)}")
        if kind.tag == "int" and not 0 <= found < 2**63:
            raise self._error(node, f"`{place}` must not be negative, or larger than 64 bits")
        try:
            return found if kind.form is None else kind.form(found)
        except ValueError as error:
            raise self._error(node, f"`{place}` {error}") from None

    def _object(self, node: yaml.Node, kind: Fields, place: str) -> Declared:
        found: Declared = {}
        for name, at, inner in self._pairs(node, place):
            if name not in kind.of:
                raise self._error(at, self._unknown(name, kind))
            found[name] = self.value(inner, kind.of[name], name)
        for name in kind.identity:
            if name not in found and name not in ("window_seconds", "model"):
                raise self._error(node, f"`{name}` is missing")
        # In the order of the schema, whatever the order in the file.
        return {name: found[name] for name in kind.of if name in found}

    def _unknown(self, name: str, kind: Fields) -> str:
        if name in ELSEWHERE:
            return f"`{name}` are configured in onegate.toml for now"
        near = get_close_matches(name, kind.of, 1)
        meant = f": did you mean `{near[0]}`?" if near else f"; there are {', '.join(kind.of)}"
        return f"there is no field `{name}` here{meant}"

    def _objects(self, node: yaml.Node, kind: Many, place: str) -> list[Declared]:
        seen: dict[tuple[Any, ...], Declared] = {}
        for inner in self._items(node, place):
            found = self.value(inner, kind.item, place)
            identity = tuple(found.get(name) or "" for name in kind.item.identity)
            if identity in seen:
                raise self._error(inner, f"`{place}` has {identity[0]!r} twice")
            seen[identity] = found
        return [seen[identity] for identity in sorted(seen, key=lambda parts: [*map(str, parts)])]

    def _items(self, node: yaml.Node, place: str) -> list[yaml.Node]:
        if not isinstance(node, yaml.SequenceNode):
            raise self._error(node, f"`{place}` must be a list")
        items: list[yaml.Node] = node.value
        return items

    def _pairs(self, node: yaml.Node, place: str) -> list[tuple[str, yaml.Node, yaml.Node]]:
        if not isinstance(node, yaml.MappingNode):
            raise self._error(node, f"`{place}` must have fields")
        found: dict[str, tuple[str, yaml.Node, yaml.Node]] = {}
        for key, inner in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise self._error(key, f"`{place}` must have texts as names")
            if key.value in found:
                raise self._error(key, f"`{key.value}` is there twice")
            found[key.value] = (key.value, key, inner)
        return list(found.values())

    def _error(self, node: yaml.Node, what: str) -> DeclaredError:
        return DeclaredError(f"{self._name}:{node.start_mark.line + 1}: {what}")
