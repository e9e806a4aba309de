"""What keeps credentials and forged lines out of whatever this gateway writes down. Pure."""

import re
from datetime import datetime
from typing import Final

_MASK: Final = "***"
_KEY_CHARS: Final = r"[A-Za-z0-9_\-]"
_QUOTE: Final = r"(?:b?\\*[\"'])?"
_SEPARATOR: Final = rf"{_QUOTE}(?:\s*[:=]|(?<=[\"'])\s*,)\s*{_QUOTE}(?!\*\*\*|Secret\()(?=\S)"
_LINES: Final = r"(?:proxy-)?authorization|(?:set-)?cookie"
"""Headers whose value may hold spaces: everything behind them goes."""

_FIELDS: Final = (
    r"x-api-key|x-goog-api-key|api[-_]?key|x-onegate-operator|passw(?:or)?d"
    r"|(?:client_)?secret|pepper|(?:access_|refresh_)token"
)
_KEY_PREFIXES: Final = (
    r"xai-|pplx-|nvapi-|gsk_|hf_|fw_|r8_|tgp_v1_|gh[pousr]_|github_pat_|glpat-|akia|aiza|aq\."
)
_KEYS: Final = tuple(
    re.compile(pattern, re.IGNORECASE)
    for pattern in (
        # Keys by their vendors' prefixes. A key that is cut short to be recognised may stay.
        rf"(\b[rpc]?sk-)(?!{_KEY_CHARS}*…){_KEY_CHARS}{{8,}}()",
        rf"(\b(?:{_KEY_PREFIXES})){_KEY_CHARS}{{16,}}()",
    )
)
_NAMED: Final = tuple(
    re.compile(pattern, re.IGNORECASE)
    for pattern in (
        # A header or field by name, in any notation: `name: v`, `"name": "v"`, `(b'name', b'v')`.
        rf"(\b(?:{_LINES}){_SEPARATOR})[^\r\n\"']+()",
        rf"(\b(?:{_FIELDS}){_SEPARATOR})[^\s\"',;)}}\]&]+()",
        r"(\bbearer\s+)(?!\*\*\*)[A-Za-z0-9._~+/=\-]{6,}()",
    )
)
_IN_URLS: Final = tuple(
    re.compile(pattern, re.IGNORECASE)
    for pattern in (
        # Query parameters and passwords in URLs.
        r"([?&](?:key|token|sig|signature|code)=)[^&\s\"']+()",
        r"(://[^/\s:@\"']*:)[^\s@\"']+(@)",
    )
)
_SECRETS: Final = (*_NAMED, *_KEYS, *_IN_URLS)
_LINE_BREAKS: Final = re.compile(r"[\x00-\x1f\x7f\x85\u2028\u2029]")


def redact(text: str) -> str:
    """The text with everything that looks like a credential masked."""
    for pattern in _SECRETS:
        text = pattern.sub(rf"\1{_MASK}\2", text)
    return text


def redact_keys(text: str) -> str:
    """The text with every key masked that its vendor's prefix, or ours, gives away: for sentences
    of our own, which may speak of headers.
    """
    for pattern in _KEYS:
        text = pattern.sub(rf"\1{_MASK}\2", text)
    return text


def one_line(text: str) -> str:
    """The text with line breaks and control characters escaped, so that nobody forges a line."""
    return _LINE_BREAKS.sub(lambda found: f"\\x{ord(found[0]):02x}", text)


def timestamp(moment: datetime) -> str:
    """A moment in UTC as every line shows it: ``2026-11-21T12:00:00.123Z``."""
    return moment.isoformat(timespec="milliseconds").removesuffix("+00:00") + "Z"
