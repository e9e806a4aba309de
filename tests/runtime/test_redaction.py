"""Nothing that looks like a credential is written down, and prose is left alone."""

from datetime import UTC, datetime

import pytest

from runtime.clock import SystemEntropy
from runtime.redaction import one_line, redact, timestamp
from runtime.secrets import Secret

CANARY = "c4n4ryC4N4RYc4n4ry99"


@pytest.mark.parametrize(
    "text",
    [
        f"Authorization: Bearer {CANARY}",
        f"authorization:{CANARY}",
        f"AUTHORIZATION = Basic {CANARY}",
        f"Authorization: Digest username=x, response={CANARY}",
        f"Authorization: AWS4-HMAC-SHA256 Credential=AKIA, Signature={CANARY}",
        f"Proxy-Authorization: Basic {CANARY}",
        f"{{'authorization': 'Bearer {CANARY}', 'accept': '*/*'}}",
        f'{{"authorization": "Bearer {CANARY}"}}',
        f'{{\\"authorization\\": \\"Bearer {CANARY}\\"}}',
        f"[(b'authorization', b'Bearer {CANARY}'), (b'accept', b'*/*')]",
        f"('x-api-key', '{CANARY}')",
        f"x-api-key: {CANARY}",
        f"api-key={CANARY}",
        f"api_key='{CANARY}'",
        f"x-goog-api-key: {CANARY}",
        f"x-onegate-operator: {CANARY}",
        f"cookie: a=1; session={CANARY}; b=2",
        f"set-cookie: session={CANARY}; HttpOnly",
        f'{{"password": "{CANARY}"}}',
        f"client_secret={CANARY}&grant_type=x",
        f"it said: bearer {CANARY}!",
        f"sk-{CANARY}",
        f"sk-ant-api03-{CANARY}",
        f"sk-og-admin-{CANARY}",
        f"sk-or-v1-{CANARY}",
        f"key=sk-proj-{CANARY}, next",
        f"/v1/sk-{CANARY}/models",
        f"csk-{CANARY}",
        f"gsk_{CANARY}",
        f"xai-{CANARY}",
        f"pplx-{CANARY}",
        f"nvapi-{CANARY}",
        f"hf_{CANARY}",
        f"AIza{CANARY}",
        f"ghp_{CANARY} github_pat_{CANARY}",
        f"https://host/v1beta/models?key={CANARY}&alt=sse",
        f"https://host/x?a=1&token={CANARY}",
        f"postgresql://onegate:{CANARY}@db/onegate",
        f"https://user:p:ss/{CANARY}@host/x",
    ],
)
def test_a_credential_is_masked_in_any_notation(text: str) -> None:
    shown = redact(text)
    assert CANARY not in shown
    assert CANARY[4:16] not in shown
    assert "***" in shown


@pytest.mark.parametrize(
    "text",
    [
        "the key sk-og-AbCd…wxyz was revoked",
        "the key sk-og-admin-AbCd…wxyz was revoked",
        "provider openai: the environment variable OPENAI_API_KEY is not set",
        'api_key_env = "OPENAI_API_KEY"',
        "task-force-one and risk-assessment-document",
        "keep it secret, please; the bearer of this",
        f"secret={Secret(CANARY)}",
        "authorization=***",
        "model=openai/gpt-4o-mini tokens=12",
        "http://127.0.0.1:8080/v1/models?limit=10&order=asc",
        "unix:/run/onegate/auth.sock",
    ],
)
def test_what_is_no_credential_stays(text: str) -> None:
    assert redact(text) == text


def test_redacting_twice_changes_nothing() -> None:
    text = f"Authorization: Bearer {CANARY} and ?key={CANARY} for sk-{CANARY}"
    assert redact(redact(text)) == redact(text)


def test_random_keys_of_every_length_are_masked() -> None:
    entropy = SystemEntropy()
    for length in range(8, 60):
        key = entropy.bytes(length).hex()[:length]
        assert key not in redact(f"failed with sk-{key} today")


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a\nb\r\nc", "a\\x0ab\\x0d\\x0ac"),
        ("\x1b[31mred\x1b[0m", "\\x1b[31mred\\x1b[0m"),
        ("a\u2028b\x85c\x00", "a\\x2028b\\x85c\\x00"),
        ("plain ünïcode …", "plain ünïcode …"),
    ],
)
def test_a_text_stays_on_its_line(text: str, shown: str) -> None:
    assert one_line(text) == shown


def test_moments_are_shown_to_the_millisecond_in_utc() -> None:
    assert timestamp(datetime(2026, 11, 21, 1, 2, 3, 45999, tzinfo=UTC)) == (
        "2026-11-21T01:02:03.045Z"
    )
    assert timestamp(datetime(2026, 11, 21, tzinfo=UTC)) == "2026-11-21T00:00:00.000Z"
