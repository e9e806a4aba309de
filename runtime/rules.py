"""What a setting's value must be, as small pure functions that are declared beside the field.

A rule takes a value of the field's own type and answers ``None``, or what is wrong with it in
words that follow the setting's name. No rule repeats a value that may hold a credential.
"""

import difflib
import ipaddress
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import urlsplit

Rule = Callable[[Any], str | None]

UNIX_PATH_BYTES_MAX: Final = 100
"""The longest path of a unix socket. Linux takes 107 bytes, macOS 103
(https://man7.org/linux/man-pages/man7/unix.7.html).
"""

DAYS_KEPT_MIN: Final = 62
DAYS_KEPT_MAX: Final = 36_500
"""How long single records are kept at least and at most, in days, when not for ever."""

_RULE: Final = "rule"
_PORT_MAX: Final = 65535
_HOST: Final = re.compile(r"[A-Za-z0-9._-]{1,253}", re.ASCII)
_HOST_PORT: Final = re.compile(
    r"(?:[A-Za-z0-9._-]{1,253}|\[(?P<v6>[^\]]+)\]):(?P<port>[0-9]{1,5})", re.ASCII
)
_NAMED_TARGET: Final = re.compile(r"(?:dns|ipv4|ipv6):\S+")
_PROVIDER_NAME: Final = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")
_MODEL: Final = re.compile(r"[A-Za-z0-9._~:/@+-]{1,200}")
_REGION: Final = re.compile(r"[a-z0-9][a-z0-9-]{0,63}", re.ASCII)
_CLASS: Final = re.compile(r"[a-z][a-z0-9_-]{0,31}", re.ASCII)
_CLASSES_MAX: Final = 16
_DOMAIN: Final = re.compile(r"(?:[a-z0-9-]+\.)+[a-z0-9-]+", re.ASCII)
_VARIABLE: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,254}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """One fault of the configuration: ``where`` is ``file:line``, a variable or a flag."""

    where: str
    message: str


class ConfigError(Exception):
    """The configuration cannot be used. Its text lists every problem, one a line, no secret."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        super().__init__("\n".join(f"{p.where}: {p.message}" for p in problems))
        self.problems = tuple(problems)


def ruled(rule: Rule) -> Mapping[str, Rule]:
    """The metadata of a dataclass field whose value obeys ``rule``."""
    return {_RULE: rule}


def rule_of(metadata: Mapping[Any, Any]) -> Rule | None:
    """The rule in a field's metadata, if any."""
    rule: Rule | None = metadata.get(_RULE)
    return rule


def between(low: float, high: float) -> Mapping[str, Rule]:
    """A number from ``low`` to ``high``, both included."""

    def check(value: float) -> str | None:
        return None if low <= value <= high else f"must be between {low:,} and {high:,}"

    return ruled(check)


def one_of(choices: Iterable[str]) -> Mapping[str, Rule]:
    """One of a few words."""
    return ruled(word_of(choices))


def word_of(choices: Iterable[str]) -> Rule:
    """The rule of one of a few words."""
    words = tuple(choices)

    def check(value: str) -> str | None:
        if value in words:
            return None
        return f"must be one of {', '.join(words)}{did_you_mean(value, words)}"

    return check


def each(rule: Rule) -> Mapping[str, Rule]:
    """A list whose every entry obeys ``rule``."""

    def check(values: tuple[str, ...]) -> str | None:
        for value in values:
            complaint = rule(value) if value else "must not be empty"
            if complaint is not None:
                return f"{complaint} (in entry {values.index(value) + 1})"
        return None

    return ruled(check)


def did_you_mean(word: str, known: Iterable[str], *, likeness: float = 0.6) -> str:
    """``; did you mean "port"?`` when one of the known words is close, else nothing."""
    close = difflib.get_close_matches(word, sorted(known), n=1, cutoff=likeness)
    return f'; did you mean "{close[0]}"?' if close else ""


def host(value: str) -> str | None:
    """A name or address to listen on, without a port."""
    if _HOST.fullmatch(value) or _is_ipv6(value):
        return None
    return "must be a host name or an IP address, without brackets or a port"


def host_port(value: str) -> str | None:
    """``host:port``; empty for none."""
    match = _HOST_PORT.fullmatch(value)
    if not value:
        return None
    if match and int(match["port"]) <= _PORT_MAX and (not match["v6"] or _is_ipv6(match["v6"])):
        return None
    return "must look like 127.0.0.1:9090 or [::1]:9090"


def _is_ipv6(value: str) -> bool:
    try:
        ipaddress.IPv6Address(value)
    except ValueError:
        return False
    return True


def listen_address(value: str) -> str | None:
    """Where a gRPC server listens; empty to have it derived."""
    if value.startswith("unix:"):
        return unix_path(value.removeprefix("unix:"))
    if host_port(value) is None:
        return None
    return "must look like 0.0.0.0:50051 or unix:/run/onegate/auth.sock"


def target(value: str) -> str | None:
    """Where a gRPC client connects to; empty to have it derived
    (https://github.com/grpc/grpc/blob/master/doc/naming.md).
    """
    if value.startswith("unix:"):
        return unix_path(value.removeprefix("unix:"))
    if host_port(value) is None or _NAMED_TARGET.fullmatch(value):
        return None
    return "must look like dns:///auth:50051, 10.0.0.1:50051 or unix:/run/onegate/auth.sock"


def unix_path(path: str) -> str | None:
    """The path of a unix socket, as gRPC reads it: ``#``, ``?`` and ``%`` mean something else
    there.
    """
    size = len(path.encode())
    if not path.strip("/"):
        return "must name a socket, like unix:/run/onegate/auth.sock"
    if size > UNIX_PATH_BYTES_MAX:
        return f"has a socket path of {size} bytes: at most {UNIX_PATH_BYTES_MAX} work"
    if re.search(r"[#?%\x00]", path):
        return "has a socket path with one of # ? %, which gRPC cannot take"
    return None


def dsn(value: str) -> str | None:
    """Where a service keeps its data; empty to have it derived."""
    if not value or re.fullmatch(r"sqlite:///+[^/].*", value):
        return None
    if value.startswith("postgresql://"):
        if value.isprintable() and not re.search(r" |%(?![0-9A-Fa-f]{2})", value):
            return None
        return "must have : / @ % and spaces in a password written as %3A %2F %40 %25 %20"
    return "must look like sqlite:///var/lib/onegate/auth.db or postgresql://host/database"


def days_kept(value: int) -> str | None:
    """For how many days records are kept: a month must be over, and time be left to bill it."""
    if value == 0 or DAYS_KEPT_MIN <= value <= DAYS_KEPT_MAX:
        return None
    return f"must be 0 (for ever) or between {DAYS_KEPT_MIN} and {DAYS_KEPT_MAX:,} days"


def spend_floor(value: str) -> str | None:
    """Above what a project's or key's spending is looked at: ``id=dollars`` or ``id=off``."""
    if re.fullmatch(r"[A-Za-z0-9_-]{1,64}=(off|[0-9]{1,9})", value, re.ASCII):
        return None
    return "must look like proj_…=25 (dollars) or key_…=off"


def mail_address(value: str) -> str | None:
    """Whom mail is sent to."""
    if "@" in value and value.isprintable() and " " not in value and len(value) <= 320:
        return None
    return "must be an e-mail address"


def valkey_url(value: str) -> str | None:
    """Where Valkey is; empty for nowhere."""
    if not value:
        return None
    try:
        parts = urlsplit(value)
        _ = parts.port
    except ValueError:
        return "is not a URL"
    if parts.password is not None:
        return "must not hold a password: put it into the file that valkey_password_file names"
    schemes = ("valkey", "valkeys", "redis", "rediss")
    is_place = parts.hostname if parts.scheme in schemes else parts.path.strip("/")
    if parts.scheme not in (*schemes, "unix") or not is_place or "?" in value or "#" in value:
        return "must look like valkey://host:6379/0, valkeys://host (TLS) or unix:///path"
    return None


def base_url(value: str) -> str | None:
    """A provider's URL, to which paths are appended; empty for the vendor's own."""
    if not value:
        return None
    try:
        parts = urlsplit(value)
        port = parts.port
    except ValueError:
        return "is not a URL"
    if parts.scheme not in ("http", "https") or not parts.hostname or port == 0:
        return "must start with https:// or http:// and name a host"
    if parts.username is not None or parts.password is not None:
        return "must not hold a user or password: use api_key_env or api_key_file"
    if "?" in value or "#" in value:
        return "must not hold a query or a fragment: paths are appended to it"
    if not value.isascii() or not value.isprintable() or " " in value or "\\" in value:
        return "must be plain ASCII without spaces or backslashes"
    return None


def issuer(value: str) -> str | None:
    """The issuer of an identity provider; empty for none. Plain HTTP on this machine alone."""
    complaint = base_url(value)
    if complaint is not None or not value or is_safe_url(value):
        return complaint
    return "must start with https://: what it says decides who may administer"


def is_safe_url(value: str) -> bool:
    """Whether what is fetched from there was not put in on the way: HTTPS, or this machine."""
    try:
        parts = urlsplit(value)
    except ValueError:
        return False
    if parts.scheme == "https":
        return bool(parts.hostname)
    return parts.scheme == "http" and parts.hostname in ("127.0.0.1", "::1", "localhost")


def domain(value: str) -> str | None:
    """What stands behind the @ of an address."""
    if _DOMAIN.fullmatch(value):
        return None
    return "must be domains like example.com, in lower case and without an @"


def group_role(value: str) -> str | None:
    """What members of an identity provider's group are here."""
    group, equals, target = value.rpartition("=")
    if equals and group.strip() and target in ("owner", "reader"):
        return None
    if equals and group.strip() and re.fullmatch(r"group:.*\S.*", target):
        return None
    return "must look like platform=owner, everybody=reader or ml=group:NAME"


def text(value: str) -> str | None:
    """One line; empty for nothing."""
    return None if value.isprintable() else "must be one line of printable text"


def provider_name(value: str) -> str | None:
    """The prefix of a provider's model ids."""
    if _PROVIDER_NAME.fullmatch(value):
        return None
    return "must be 1 to 64 lower-case letters, digits, - or _, and not start with - or _"


def model_name(value: str) -> str | None:
    """What callers may name as a model."""
    if _MODEL.fullmatch(value) and ".." not in value:
        return None
    return "must be a model's name: letters, digits and . _ ~ : / @ + -"


def deployment(value: str) -> str | None:
    """A model at a provider."""
    provider, slash, model = value.partition("/")
    if slash and model and provider_name(provider) is None and model_name(value) is None:
        return None
    return "must be a model at a provider, like openai/gpt-4o-mini"


def region(value: str) -> str | None:
    """A place where data may be."""
    if _REGION.fullmatch(value):
        return None
    return "must be words like eu, us or eu-west-1: lower-case letters, digits and -"


def class_names(values: tuple[str, ...]) -> str | None:
    """The classes of data, the least sensitive first."""
    if not 1 <= len(values) <= _CLASSES_MAX or not all(map(_CLASS.fullmatch, values)):
        return (
            f"must be 1 to {_CLASSES_MAX} names of lower-case letters, digits, - and _, the least"
            " sensitive first"
        )
    return None if len(set(values)) == len(values) else "must name each class once"


def variable_name(value: str) -> str | None:
    """The name of an environment variable; empty for none."""
    if not value or _VARIABLE.fullmatch(value):
        return None
    return "must be the name of a variable, like OPENAI_API_KEY, not the key itself"


def path(value: str) -> str | None:
    """A path; empty to have it derived, or for none."""
    return None if value.isprintable() else "must be a path of printable characters"


def given_path(value: str) -> str | None:
    """A path that must be there."""
    return path(value) if value else "must not be empty"


def word(value: str) -> str | None:
    """A short name without spaces."""
    if value and value.isprintable() and " " not in value:
        return None
    return "must be a name without spaces"
