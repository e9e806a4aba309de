"""The log of administration: append-only, and chained so that nobody who can write the database
but does not have the pepper can change, drop or insert an entry unnoticed. Pure.

Each entry's ``mac`` is an HMAC over the entry and the ``mac`` before it. Cutting the end off, with
the head put back to match, leaves a whole chain: note the head elsewhere to notice that too.
"""

import hmac
import json
from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass, replace
from datetime import datetime
from typing import Any, Final

from runtime.redaction import redact
from services.auth.objects import AuditHeadRecord, AuditRecord

HEAD_ID: Final = "head"
_START: Final = "0" * 64
_HIDDEN: Final = frozenset({"version", "organization_id"})
"""What every row has and no reader of the log needs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """Where the chain breaks, and how."""

    sequence: int
    what: str


def chain_key(pepper: bytes) -> bytes:
    """The key of the chain."""
    return hmac.digest(pepper, b"onegate audit log", "sha256")


def chained(key: bytes, head: AuditHeadRecord | None, entry: AuditRecord) -> AuditRecord:
    """The entry as the next of the chain."""
    numbered = replace(entry, sequence=1 if head is None else head.sequence + 1)
    before = _START if head is None else head.mac
    return replace(numbered, mac=_mac(key, before, numbered))


class Verifier:
    """Walks the chain from its start, entry by entry."""

    def __init__(self, key: bytes) -> None:
        self._key = key
        self.mac = _START
        self.sequence = 0
        self.fault: Fault | None = None

    def take(self, entry: AuditRecord) -> None:
        """Checks the next entry; after a fault nothing more is looked at."""
        if self.fault is not None:
            return
        expected = self.sequence + 1
        if entry.sequence != expected:
            self.fault = Fault(sequence=expected, what="an entry is missing")
        elif not hmac.compare_digest(entry.mac, _mac(self._key, self.mac, entry)):
            self.fault = Fault(sequence=expected, what="an entry was changed or put in")
        else:
            self.sequence, self.mac = entry.sequence, entry.mac

    def finish(self, head: AuditHeadRecord | None) -> Fault | None:
        """Checks that the last entry is the one that was written last."""
        if self.fault is None:
            last = (0, _START) if head is None else (head.sequence, head.mac)
            if last != (self.sequence, self.mac):
                self.fault = Fault(
                    sequence=self.sequence + 1, what="entries at the end are missing"
                )
        return self.fault


def _mac(key: bytes, before: str, entry: AuditRecord) -> str:
    content = {**_plain(entry), "mac": before}
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hmac.digest(key, text.encode(), "sha256").hex()


def shown(record: object | None) -> str:
    """A record as the log keeps it: a JSON object without secrets; empty for nothing.

    Records hold no secrets; what people write into a name may be one, and is masked.
    """
    if record is None:
        return ""
    fields = {name: value for name, value in _plain(record).items() if name not in _HIDDEN}
    return redact(json.dumps(fields, ensure_ascii=False))


def _plain(record: Any) -> dict[str, Any]:
    return {field.name: _value(getattr(record, field.name)) for field in fields(record)}


def _value(value: object) -> Any:
    if is_dataclass(value):
        return _plain(value)
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, Mapping):
        return {name: _value(inner) for name, inner in value.items()}
    if isinstance(value, tuple | list):
        return [_value(inner) for inner in value]
    return value
