"""What alerts say and how they are signed. Pure.

Webhooks are signed as Standard Webhooks says
(https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md):
HMAC-SHA256 over ``id.timestamp.body``, in base64, after ``v1,``.
"""

import base64
import binascii
import hashlib
import hmac
import ipaddress
import json
from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import urlsplit

from services.usage.ledger.budgets import Account, described

SPEND_RATE: Final = "spend.rate"
"""The type of what is told when somebody spends far more than usual."""

ATTEMPTS_MAX: Final = 12
"""After so many a message is given up: about 20 hours after the first."""

_BACKOFF_S: Final = 5.0
_BACKOFF_MAX_S: Final = 4 * 3600.0
_SECRET_BYTES_MIN: Final = 16
_PREFIX: Final = "whsec_"
_NAT64: Final = ipaddress.IPv6Network("64:ff9b::/96")


def secret_of(text: str) -> bytes:
    """The key of signatures: base64 after ``whsec_``, else the text itself.

    Raises ``ValueError`` for one that is empty or too short to be a secret.
    """
    key = text.encode()
    if text.startswith(_PREFIX):
        try:
            key = base64.b64decode(text.removeprefix(_PREFIX), validate=True)
        except binascii.Error:
            raise ValueError("The webhook's secret is no base64 after whsec_.") from None
    if len(key) < _SECRET_BYTES_MIN:
        raise ValueError(f"The webhook's secret needs at least {_SECRET_BYTES_MIN} bytes.")
    return key


def signature(key: bytes, message_id: str, at_s: int, body: bytes) -> str:
    """The header ``webhook-signature``. ``at_s`` is what ``webhook-timestamp`` says."""
    signed = f"{message_id}.{at_s}.".encode() + body
    digest = hmac.new(key, signed, hashlib.sha256).digest()
    return f"v1,{base64.b64encode(digest).decode()}"


def backoff_s(attempts: int, chance: float) -> float:
    """How long to wait after so many attempts, in seconds: doubling from 5 s up to four hours, a
    fifth of it by chance (0 to 1).
    """
    return float(min(_BACKOFF_S * 2 ** (2 * (attempts - 1)), _BACKOFF_MAX_S) * (0.8 + 0.2 * chance))


def fault_of_url(url: str) -> str:
    """What is wrong with a webhook's URL; empty for nothing."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        return "is not a URL"
    if parts.scheme not in ("http", "https") or not parts.hostname or port == 0:
        return "must start with https:// or http:// and name a host"
    if "@" in parts.netloc or parts.fragment:
        return "must not hold a user, password or fragment"
    return "" if url.isascii() and url.isprintable() and " " not in url else "holds odd characters"


def fault_of_address(text: str, *, private_allowed: bool) -> str:
    """Why nothing is sent to an address that a name led to; empty when it may be."""
    found: ipaddress.IPv4Address | ipaddress.IPv6Address
    found = ipaddress.ip_address(text.partition("%")[0])
    if isinstance(found, ipaddress.IPv6Address):
        inner = found.ipv4_mapped or found.sixtofour
        if inner is None and found in _NAT64:
            inner = ipaddress.IPv4Address(int(found) & 0xFFFF_FFFF)
        found = inner or found
    if found.is_link_local or found.is_multicast or found.is_unspecified:
        return f"{text} is an address that nothing is sent to"
    if not found.is_global and not private_allowed:
        return f"{text} is private; alerts.webhook_private allows that"
    return ""


def threshold(account: Account, percent: int, spent_nano_usd: int, at: str) -> dict[str, Any]:
    """What is told when a part of a budget is spent; money in nano-USD, ``at`` in ISO 8601."""
    budget = account.budget
    return {
        "type": "budget.threshold",
        "timestamp": at,
        "data": {
            "budget_id": budget.id,
            "organization_id": budget.organization_id,
            "subject": described(budget, account.subject),
            "percent": percent,
            "limit_nano_usd": budget.limit_nano_usd,
            "spent_nano_usd": spent_nano_usd,
            "period_starts_us": account.span.start_us,
            "period_ends_us": account.span.end_us,
        },
    }


def trial(at: str) -> dict[str, Any]:
    """What a trial says."""
    return {"type": "test", "timestamp": at, "data": {"text": "Alerts of onegate arrive here."}}


def message_id(*parts: object) -> str:
    """An id that is the same for the same alert, way and recipient."""
    text = "\0".join(map(str, parts))
    return f"msg_{hashlib.sha256(text.encode()).hexdigest()[:32]}"


def body_of(payload: Mapping[str, Any]) -> bytes:
    """A payload as it is kept, signed and sent."""
    return json.dumps(payload, ensure_ascii=False, separators=(",", ":")).encode()


def mail_of(payload: Mapping[str, Any]) -> tuple[str, str]:
    """The subject and the text of a mail; each on lines that hold no line break of a name."""
    data = payload["data"]
    if payload["type"] == SPEND_RATE:
        return _rate_mail(data)
    if payload["type"] != "budget.threshold":
        return "onegate: alerts arrive here", f"{data['text']}\n"
    who = " ".join(str(data["subject"]).split())
    subject = f"onegate: {data['percent']} % of the budget of {who} is spent"
    lines = [
        f"{subject}.",
        "",
        f"Spent: {_usd(data['spent_nano_usd'])} USD of {_usd(data['limit_nano_usd'])} USD.",
        f"Budget: {data['budget_id']} of {data['organization_id']}.",
    ]
    return subject, "\n".join(lines) + "\n"


def _rate_mail(data: Mapping[str, Any]) -> tuple[str, str]:
    named = ("key_id", "project_id", "organization_id")
    ids = [" ".join(str(data[name]).split()) for name in named if data[name]]
    subject = f"onegate: {ids[0]} spends more than usual"
    this = f"this {data['period']}"
    usual, limit = _usd(data["usual_nano_usd"]), _usd(data["limit_nano_usd"])
    lines = [
        f"{' of '.join(ids)} has spent {_usd(data['spent_nano_usd'])} USD {this} (UTC).",
        "",
        f"Usual: {usual} USD, up to {limit} USD (of {data['samples']} like it).",
    ]
    return subject, "\n".join(lines) + "\n"


def _usd(nano_usd: int) -> str:
    return f"{nano_usd // 10**9:,}.{nano_usd % 10**9 // 10**7:02d}"
