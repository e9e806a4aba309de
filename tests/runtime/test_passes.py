"""Passes: made by auth alone, for one purpose, one organisation and one minute."""

from base64 import urlsafe_b64decode, urlsafe_b64encode
from datetime import UTC, datetime, timedelta

import pytest

from onegate.common.v1 import error_pb2
from onegate.common.v1.access_pass_pb2 import AccessPass
from runtime.errors import GatewayError
from runtime.passes import LIFE_S, check_covers, opened, sealed
from runtime.secrets import Secret

TOKEN = Secret("t" * 64)
NOON = datetime(2026, 11, 21, 12, tzinfo=UTC)


class Clock:
    def __init__(self) -> None:
        self.passed_s = 0.0

    def now(self) -> datetime:
        return NOON + timedelta(seconds=self.passed_s)

    def monotonic(self) -> float:
        return self.passed_s

    async def sleep(self, delay_s: float) -> None:
        raise AssertionError("passes do not sleep")


def access(**fields: object) -> AccessPass:
    given = {"organization_id": "org_1", "purpose": "spending", **fields}
    return AccessPass(**given)  # type: ignore[arg-type]


def test_a_pass_says_what_auth_said_for_a_minute() -> None:
    clock = Clock()
    text = sealed(access(project_ids=["proj_1"], writes=True), TOKEN, clock)
    found = opened(text, TOKEN, clock)
    assert (found.organization_id, list(found.project_ids)) == ("org_1", ["proj_1"])
    assert (found.writes, found.whole, found.purpose) == (True, False, "spending")
    clock.passed_s = LIFE_S
    with pytest.raises(GatewayError, match="has ended") as refused:
        opened(text, TOKEN, clock)
    assert refused.value.reason == error_pb2.ERROR_REASON_INVALID_API_KEY


def test_no_byte_of_a_pass_can_be_changed() -> None:
    raw = urlsafe_b64decode(sealed(access(), TOKEN, Clock()))
    for place in range(len(raw)):
        forged = bytearray(raw)
        forged[place] ^= 1
        with pytest.raises(GatewayError):
            opened(urlsafe_b64encode(bytes(forged)).decode(), TOKEN, Clock())


@pytest.mark.parametrize("text", ["é", "!", "AAAA", "A" * 100_000])
def test_what_is_no_pass_opens_nothing(text: str) -> None:
    with pytest.raises(GatewayError):
        opened(text, TOKEN, Clock())


@pytest.mark.parametrize("token", [Secret("u" * 64), Secret("")])
def test_a_pass_of_another_gateway_opens_nothing(token: Secret) -> None:
    with pytest.raises(GatewayError):
        opened(sealed(access(whole=True), TOKEN, Clock()), token, Clock())


@pytest.mark.parametrize(
    ("given", "organization_id", "project_id", "covered"),
    [
        (None, "org_9", "", True),
        (access(whole=True), "org_1", "", True),
        (access(whole=True), "org_1", "proj_1", True),
        (access(whole=True), "org_2", "", False),
        (access(whole=True), "", "", False),
        (access(project_ids=["proj_1"]), "org_1", "proj_1", True),
        (access(project_ids=["proj_1"]), "org_1", "proj_2", False),
        (access(project_ids=["proj_1"]), "org_1", "", False),
        (access(project_ids=[""]), "org_1", "", False),
    ],
)
def test_a_pass_covers_what_it_names_and_nothing_else(
    given: AccessPass | None, organization_id: str, project_id: str, covered: bool
) -> None:
    if covered:
        check_covers(given, organization_id, project_id)
        return
    with pytest.raises(GatewayError) as refused:
        check_covers(given, organization_id, project_id)
    assert refused.value.reason == error_pb2.ERROR_REASON_SCOPE_MISSING
