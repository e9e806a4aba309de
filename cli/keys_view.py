"""How keys are shown: as JSON for programs, as tables for people."""

import json
from collections.abc import Sequence
from datetime import UTC
from typing import Any, Final

import typer
from google.protobuf.timestamp_pb2 import Timestamp
from rich.console import Console
from rich.table import Table
from rich.text import Text

from onegate.auth.v1 import grant_pb2, key_service_pb2
from runtime.clock import SystemClock

PIPE_WIDTH: Final = 220
"""How wide a table is where no terminal says it, in characters."""


def fields(key: key_service_pb2.Key) -> dict[str, Any]:
    """The key as JSON has it."""
    return {
        "id": key.id,
        "name": key.name,
        "kind": _word(grant_pb2.KeyKind.Name(key.kind)),
        "state": _state(key),
        "redacted_value": key.redacted_value,
        "project_id": key.project_id or None,
        "organization_id": key.organization_id,
        "models_allowed": list(key.models_allowed),
        "models_denied": list(key.models_denied),
        "scopes": list(key.scopes),
        "networks_allowed": list(key.networks_allowed),
        "rate_limits": [
            {
                "meter": _word(grant_pb2.RateMeter.Name(limit.meter)),
                "amount": limit.amount,
                "window_s": limit.window_s,
                "scope": _word(grant_pb2.RateScope.Name(limit.scope)),
                "model": limit.model or None,
            }
            for limit in key.rate_limits
        ],
        "tags": dict(key.tags),
        "created_at": _iso(key.created_at),
        "expires_at": _iso(key.expires_at) if key.HasField("expires_at") else None,
        "revoked_at": _iso(key.revoked_at) if key.HasField("revoked_at") else None,
        "disabled_at": _iso(key.disabled_at) if key.HasField("disabled_at") else None,
        "rotated_at": _iso(key.rotated_at) if key.HasField("rotated_at") else None,
        "last_used_at": _iso(key.last_used_at) if key.HasField("last_used_at") else None,
        "former_secrets": [
            {"redacted_value": secret.redacted_value, "ends_at": _iso(secret.ends_at)}
            for secret in key.former_secrets
        ],
        "version": key.version,
    }


def _word(enum_name: str) -> str:
    """``RATE_METER_REQUESTS`` as ``requests``."""
    return "_".join(enum_name.split("_")[2:]).lower()


def _iso(moment: Timestamp) -> str:
    return moment.ToDatetime(UTC).isoformat(timespec="seconds")


def _state(key: key_service_pb2.Key) -> str:
    if key.HasField("revoked_at"):
        return "revoked"
    if key.HasField("disabled_at"):
        return "disabled"
    if key.HasField("expires_at") and key.expires_at.ToDatetime(UTC) <= SystemClock().now():
        return "expired"
    return "active"


def print_json(value: object) -> None:
    """The value on standard output, for programs."""
    typer.echo(json.dumps(value, indent=2, ensure_ascii=False))


def console() -> Console:
    """Standard output; wide where nobody says how wide, so that no id is cut in a pipe."""
    made = Console(highlight=False)
    return made if made.is_terminal else Console(highlight=False, width=PIPE_WIDTH)


def details(key: key_service_pb2.Key) -> Table:
    """One key, a line for each thing that it says."""
    grid = Table.grid(padding=(0, 2))
    for name, value in _lines(key):
        # Names and tags are other people's text, not markup.
        grid.add_row(Text(name, style="dim"), Text(value))
    return grid


def _lines(key: key_service_pb2.Key) -> list[tuple[str, str]]:
    limits = [
        f"{limit.amount} {_word(grant_pb2.RateMeter.Name(limit.meter))} in {limit.window_s} s"
        + (f" ({limit.model})" if limit.model else "")
        for limit in key.rate_limits
    ]
    return [
        ("id", key.id),
        ("name", key.name),
        ("kind", _word(grant_pb2.KeyKind.Name(key.kind))),
        ("state", _state(key)),
        ("key", key.redacted_value),
        ("project", key.project_id or "-"),
        ("models", ", ".join(key.models_allowed) or "all" if key.project_id else "none"),
        ("not", ", ".join(key.models_denied) or "-"),
        ("scopes", ", ".join(key.scopes) or "all"),
        ("networks", ", ".join(key.networks_allowed) or "all"),
        ("limits", ", ".join(limits) or "-"),
        ("tags", ", ".join(f"{name}={value}" for name, value in key.tags.items()) or "-"),
        ("made", _iso(key.created_at)),
        ("expires", _iso(key.expires_at) if key.HasField("expires_at") else "never"),
        ("used", _iso(key.last_used_at) if key.HasField("last_used_at") else "never"),
        *(
            ("earlier secret", f"{secret.redacted_value} until {_iso(secret.ends_at)}")
            for secret in key.former_secrets
        ),
    ]


def table(keys: Sequence[key_service_pb2.Key]) -> Table:
    """Keys, a row each."""
    shown = ("id", "name", "kind", "state", "key", "project", "models", "expires", "used")
    made = Table(box=None, pad_edge=False)
    for column in shown:
        made.add_column(column, no_wrap=column == "id")
    for key in keys:
        lines = dict(_lines(key))
        made.add_row(*(Text(lines[column]) for column in shown))
    return made
