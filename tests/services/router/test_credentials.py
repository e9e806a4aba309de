"""Several credentials of one provider: who is called with which, and what becomes of a bad one."""

import logging
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from runtime.config import CredentialSettings, RouteSettings, RouteTarget
from services.router.routing.observed import STREAK_MAX
from tests.fake_provider import FakeProvider, Reply, Taken
from tests.services.router.rig import PRICED, TEXT, Rig, hello, provider, running, settings_in

pytestmark = pytest.mark.anyio


def credential(name: str, directory: Path, **fields: Any) -> CredentialSettings:
    """A credential whose key is its own name."""
    place = directory / f"{name}.key"
    place.write_text(f"key-of-{name}\n")
    place.chmod(0o600)
    return CredentialSettings(name=name, api_key_file=str(place), **fields)


def used(taken: Iterable[Taken]) -> Counter[str]:
    """How often each credential was seen."""
    return Counter(one.headers["authorization"].removeprefix("Bearer key-of-") for one in taken)


def refusing(*names: str, status: int = 401, **fields: Any) -> Any:
    """Refuses these credentials, answers the others."""

    def choose(taken: Taken) -> Reply:
        key = taken.headers["authorization"].removeprefix("Bearer key-of-")
        return Reply(status=status, **fields) if key in names else Reply()

    return choose


async def called(rig: Rig, count: int, key: str | None = None) -> None:
    for _ in range(count):
        said = await rig.chat(hello(), key=key)
        assert (said.error, said.text) == (None, TEXT)


async def test_calls_are_spread_by_weight(tmp_path: Path) -> None:
    async with FakeProvider() as fake:
        keys = (credential("big", tmp_path, weight=9), credential("small", tmp_path))
        settings = settings_in(tmp_path, provider("a", fake, credential=keys))
        async with running(settings, PRICED) as rig:
            await called(rig, 200)
            records = await rig.records(200)
        counts = used(fake.chats)
        assert Counter(one.credential for one in records) == counts
        # Binomial with p = 0.1: outside of 4 to 45 once in ten million times.
        assert 4 <= counts["small"] <= 45
        assert counts.total() == 200


async def test_a_refused_credential_rests_alone_and_its_caller_sees_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with FakeProvider() as fake:
        fake.choose = refusing("bad")
        keys = (credential("bad", tmp_path, weight=1000), credential("good", tmp_path))
        settings = settings_in(tmp_path, provider("a", fake, credential=keys))
        with caplog.at_level(logging.ERROR):
            async with running(settings, PRICED) as rig:
                await called(rig, 30)
        assert used(fake.chats)["bad"] == 1
        alarms = [r.getMessage() for r in caplog.records if "refused" in r.getMessage()]
        assert len(alarms) == 1
        assert alarms[0].startswith("a#bad refused the gateway's credential (status 401)")
        assert "key-of" not in caplog.text


async def test_when_all_are_refused_the_caller_gets_no_401_and_no_name(tmp_path: Path) -> None:
    async with FakeProvider() as fake:
        fake.choose = refusing("one", "two")
        keys = (credential("one", tmp_path), credential("two", tmp_path))
        settings = settings_in(tmp_path, provider("a", fake, credential=keys))
        async with running(settings, PRICED) as rig:
            for _ in range(3):
                said = await rig.chat(hello())
                assert said.reason == "upstream_auth"
                assert said.error is not None
                assert "one" not in said.error.message
                assert "two" not in said.error.message
        assert used(fake.chats) == {"one": 1, "two": 1}


async def test_a_credential_that_is_slowed_down_is_left_alone_until_it_may(
    tmp_path: Path,
) -> None:
    async with FakeProvider() as fake:
        fake.choose = refusing("slow", status=429, headers=(("retry-after", "60"),))
        keys = (credential("slow", tmp_path, weight=1000), credential("quick", tmp_path))
        settings = settings_in(tmp_path, provider("a", fake, credential=keys))
        async with running(settings, PRICED) as rig:
            await called(rig, 30)
        assert used(fake.chats) == {"slow": 1, "quick": 30}


async def test_a_429_without_a_time_moves_on_to_the_other_credential(tmp_path: Path) -> None:
    async with FakeProvider() as fake:
        fake.choose = refusing("full", status=429)
        keys = (credential("full", tmp_path, weight=1000), credential("free", tmp_path))
        settings = settings_in(tmp_path, provider("a", fake, credential=keys))
        async with running(settings, PRICED) as rig:
            await called(rig, 5)
        assert used(fake.chats)["free"] == 5


async def test_who_has_a_credential_of_its_own_uses_no_other(tmp_path: Path) -> None:
    async with FakeProvider() as fake:
        keys = (
            credential("all", tmp_path, weight=1000),
            credential("org", tmp_path, organizations=("org_2",)),
            credential("proj", tmp_path, projects=("proj_3",)),
        )
        settings = settings_in(tmp_path, provider("a", fake, credential=keys))
        async with running(settings, PRICED) as rig:
            second = rig.add_key(organization_id="org_2", project_id="proj_2")
            third = rig.add_key(organization_id="org_2", project_id="proj_3")
            for key, name in ((None, "all"), (second, "org"), (third, "proj")):
                fake.taken.clear()
                await called(rig, 5, key)
                assert used(fake.chats) == {name: 5}
            # Not even when its own is refused.
            fake.choose = refusing("proj")
            fake.taken.clear()
            assert (await rig.chat(hello(), key=third)).reason == "upstream_auth"
            assert used(fake.chats) == {"proj": 1}
            await called(rig, 2, second)


async def test_who_has_none_is_told_so_and_nothing_is_sent(tmp_path: Path) -> None:
    async with FakeProvider() as fake:
        keys = (credential("theirs", tmp_path, projects=("proj_9",)),)
        settings = settings_in(tmp_path, provider("a", fake, credential=keys))
        async with running(settings, PRICED) as rig:
            said = await rig.chat(hello())
            assert said.reason == "model_forbidden"
            assert said.error is not None
            assert "no credential that is for this project" in said.error.message
            mine = rig.add_key(project_id="proj_9")
            await called(rig, 1, mine)
        assert used(fake.chats) == {"theirs": 1}


FULL = (
    ("x-ratelimit-limit-requests", "60"),
    ("x-ratelimit-remaining-requests", "0"),
    ("x-ratelimit-reset-requests", "1m0s"),
)


async def test_calls_leave_a_credential_before_its_first_429(tmp_path: Path) -> None:
    async with FakeProvider() as fake:
        fake.choose = refusing("full", status=200, headers=FULL)
        keys = (credential("full", tmp_path, weight=1000), credential("other", tmp_path))
        settings = settings_in(tmp_path, provider("a", fake, credential=keys))
        async with running(settings, PRICED) as rig:
            await called(rig, 20)
        # By weight the first call goes out with it; the others do not, for a minute.
        assert used(fake.chats) == {"full": 1, "other": 19}


async def test_one_that_keeps_failing_is_left_for_the_others_and_then_looked_at(
    tmp_path: Path,
) -> None:
    async with FakeProvider() as fake:
        fake.choose = refusing("bad", status=500)
        keys = (credential("bad", tmp_path, weight=1000), credential("good", tmp_path))
        settings = settings_in(tmp_path, provider("a", fake, credential=keys))
        async with running(settings, PRICED) as rig:
            said = [(await rig.chat(hello())).reason for _ in range(30)]
        assert used(fake.chats)["bad"] == STREAK_MAX
        assert said[-20:] == [""] * 20


async def test_a_deployment_is_used_up_when_every_credential_is(tmp_path: Path) -> None:
    route = RouteSettings(
        name="r", to=(RouteTarget(model="a/m"), RouteTarget(model="b/m", priority=1))
    )
    async with FakeProvider() as fake, FakeProvider() as other:
        fake.choose = refusing("one", "two", status=200, headers=FULL)
        keys = (credential("one", tmp_path), credential("two", tmp_path))
        settings = settings_in(
            tmp_path, provider("a", fake, credential=keys), provider("b", other), routes=(route,)
        )
        async with running(settings, PRICED) as rig:
            models = [(await rig.chat(hello("r"))).served.model for _ in range(6)]
        assert models == ["a/m", "a/m", "b/m", "b/m", "b/m", "b/m"]
        assert used(fake.chats) == {"one": 1, "two": 1}
