"""What a router or an edge knows of keys, and when it stops believing it."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path

import pytest
from google.protobuf.timestamp_pb2 import Timestamp

from onegate.auth.v1 import grant_pb2
from onegate.common.v1 import error_pb2
from runtime import apikeys, grants
from runtime.clock import SystemClock, SystemEntropy
from runtime.config import RpcSettings
from runtime.errors import GatewayError, reason_name
from runtime.grants import GrantClient
from runtime.rpc import channel
from tests.runtime.scripted_auth import Change, Response, Scene, scene
from tests.services.auth.ports import NOON, until

pytestmark = pytest.mark.anyio

ENTROPY = SystemEntropy()
KEY = apikeys.mint(grant_pb2.KEY_KIND_PROJECT, ENTROPY)
OTHER = apikeys.mint(grant_pb2.KEY_KIND_PROJECT, ENTROPY)
GARBAGE = ["", "sk-og-", "Bearer x", "sk-og-" + "a" * 46, KEY[:-1] + "#", KEY + "a", "\udcff"]


@pytest.fixture(scope="module")
def anyio_backend() -> tuple[str, dict[str, bool]]:
    """The loop that the processes use, one for all tests here: gRPC may complete what a closed
    channel left under way only after its test is over.
    """
    return ("asyncio", {"use_uvloop": True})


@pytest.fixture(scope="module", autouse=True)
async def one_loop(anyio_backend: object) -> AsyncIterator[None]:
    """Keeps the loop until the last test."""
    yield  # noqa: PT022 - returning would let go of the loop


async def refusal(client: GrantClient, key: str = KEY) -> str:
    """Why the key is refused."""
    with pytest.raises(GatewayError) as caught:
        await client.get(key)
    assert key not in caught.value.message or key == ""
    return reason_name(caught.value.reason)


def changed(grant: grant_pb2.Grant, version: int, *, revoked: bool = False) -> Change:
    return Change(key_id=grant.key_id, version=version, revoked=revoked)


async def test_garbage_is_refused_without_asking(tmp_path: Path) -> None:
    async with scene(tmp_path) as at:
        for key in GARBAGE * 100:
            assert at.client.lookup(key) is None
            assert await refusal(at.client, key) == "invalid_api_key"
        assert at.auth.asked == []


async def test_a_key_is_asked_for_once_and_then_known(tmp_path: Path) -> None:
    async with scene(tmp_path, grants=[KEY]) as at:
        assert at.client.lookup(KEY) is None
        grant = await at.client.get(KEY)
        assert grant.key_id == f"key_{KEY[-8:]}"
        assert at.client.lookup(KEY) is grant
        assert await at.client.get(KEY) is grant
        assert at.auth.asked == [apikeys.digest(KEY)]


async def test_callers_that_want_the_same_key_share_one_question(tmp_path: Path) -> None:
    async with scene(tmp_path, grants=[KEY, OTHER]) as at:
        at.auth.gate.clear()
        waiting = [asyncio.create_task(at.client.get(key)) for key in [KEY, OTHER] * 50]
        await until(lambda: len(at.auth.asked) == 2, "two questions")
        waiting[0].cancel()
        at.auth.gate.set()
        results = await asyncio.gather(*waiting, return_exceptions=True)
        assert isinstance(results[0], asyncio.CancelledError)
        assert all(isinstance(grant, grant_pb2.Grant) for grant in results[1:])
        assert len(at.auth.asked) == 2


async def test_a_key_that_nobody_has_is_asked_for_every_ten_seconds_at_most(
    tmp_path: Path,
) -> None:
    async with scene(tmp_path) as at:
        for _ in range(5):
            assert await refusal(at.client) == "invalid_api_key"
        assert len(at.auth.asked) == 1
        at.auth.add(KEY)
        at.clock.passed_s += grants.UNKNOWN_S
        assert (await at.client.get(KEY)).key_id
        assert len(at.auth.asked) == 2


async def test_a_change_of_any_key_ends_the_memory_of_unknown_ones(tmp_path: Path) -> None:
    async with scene(tmp_path) as at:
        assert await refusal(at.client) == "invalid_api_key"
        grant = at.auth.add(KEY, version=12)
        at.auth.push(changed(grant, 12))
        await at.seen()
        assert (await at.client.get(KEY)).version == 12


async def test_a_revoked_key_is_refused_on_the_next_call_without_asking(tmp_path: Path) -> None:
    async with scene(tmp_path, grants=[KEY, OTHER]) as at:
        await at.client.get(KEY)
        await at.client.get(OTHER)
        at.auth.revoke(KEY)
        await at.seen()
        assert at.client.lookup(KEY) is None
        assert await refusal(at.client) == "invalid_api_key"
        assert at.client.lookup(OTHER) is not None
        assert len(at.auth.asked) == 2


async def test_a_changed_key_is_asked_for_again(tmp_path: Path) -> None:
    async with scene(tmp_path, grants=[KEY]) as at:
        await at.client.get(KEY)
        grant = at.auth.add(KEY, version=11, models_allowed=["openai/*"])
        at.auth.push(changed(grant, 11))
        await at.seen()
        assert at.client.lookup(KEY) is None
        assert list((await at.client.get(KEY)).models_allowed) == ["openai/*"]


async def test_a_push_of_the_known_version_changes_nothing(tmp_path: Path) -> None:
    async with scene(tmp_path) as at:
        grant = at.auth.add(KEY, version=11)
        await at.client.get(KEY)
        at.auth.push(changed(grant, 11), changed(grant, 3))
        await at.seen()
        assert at.client.lookup(KEY) is not None


async def test_a_key_expires_by_the_local_clock(tmp_path: Path) -> None:
    async with scene(tmp_path) as at:
        expires_at = Timestamp()
        expires_at.FromDatetime(NOON + timedelta(seconds=30))
        at.auth.add(KEY, expires_at=expires_at)
        await at.client.get(KEY)
        at.clock.passed_s = 29.9
        assert at.client.lookup(KEY) is not None
        at.clock.passed_s = 30.0
        assert at.client.lookup(KEY) is None
        assert await refusal(at.client) == "key_expired"
        assert len(at.auth.asked) == 1


async def test_an_answer_that_a_revocation_overtakes_is_not_used(tmp_path: Path) -> None:
    async with scene(tmp_path, grants=[KEY]) as at:
        at.auth.gate.clear()
        waiting = asyncio.create_task(at.client.get(KEY))
        await until(lambda: at.auth.asked, "the question")
        at.auth.revoke(KEY)
        await at.seen()
        at.auth.gate.set()
        with pytest.raises(GatewayError) as caught:
            await waiting
        assert caught.value.reason == error_pb2.ERROR_REASON_INVALID_API_KEY
        assert at.client.lookup(KEY) is None
        assert len(at.auth.asked) == 2


async def test_no_answer_brings_a_revoked_key_back(tmp_path: Path) -> None:
    async with scene(tmp_path, grants=[KEY], grace_s=0) as at:
        await at.client.get(KEY)
        at.clock.passed_s += 100
        at.auth.gate.clear()
        at.auth.answers = [at.auth.add(KEY, version=at.auth.revision + 1)]
        waiting = asyncio.create_task(at.client.get(KEY))
        await until(lambda: len(at.auth.asked) == 2, "the question")
        at.auth.revoke(KEY)
        await at.seen()
        at.auth.gate.set()
        with pytest.raises(GatewayError) as caught:
            await waiting
        assert caught.value.reason == error_pb2.ERROR_REASON_INVALID_API_KEY
        assert await refusal(at.client) == "invalid_api_key"


async def test_an_answer_that_a_change_overtakes_is_asked_for_again(tmp_path: Path) -> None:
    async with scene(tmp_path, grants=[KEY]) as at:
        at.auth.gate.clear()
        waiting = asyncio.create_task(at.client.get(KEY))
        await until(lambda: at.auth.asked, "the question")
        grant = at.auth.add(KEY, version=12)
        at.auth.push(changed(grant, 12))
        await at.seen()
        at.auth.gate.set()
        assert (await waiting).version == 12
        assert len(at.auth.asked) == 2


async def test_an_answer_that_a_reset_overtakes_is_asked_for_again(tmp_path: Path) -> None:
    async with scene(tmp_path, grants=[KEY]) as at:
        at.auth.gate.clear()
        waiting = asyncio.create_task(at.client.get(KEY))
        await until(lambda: at.auth.asked, "the question")
        at.auth.push(reset=True)
        await at.seen()
        at.auth.gate.set()
        await waiting
        assert len(at.auth.asked) == 2


async def test_an_answer_under_way_for_longer_than_pushes_are_remembered_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(grants, "FLOORS_MAX", 2)
    async with scene(tmp_path, grants=[KEY]) as at:
        at.auth.gate.clear()
        waiting = asyncio.create_task(at.client.get(KEY))
        await until(lambda: at.auth.asked, "the question")
        at.auth.revoke(KEY)
        at.auth.push(*(Change(key_id=f"key_{n}", version=50) for n in range(2)))
        await at.seen()
        at.auth.gate.set()
        with pytest.raises(GatewayError) as caught:
            await waiting
        assert caught.value.reason == error_pb2.ERROR_REASON_INVALID_API_KEY


async def test_auth_that_only_has_old_answers_counts_as_away(tmp_path: Path) -> None:
    async with scene(tmp_path) as at:
        old, new = at.auth.add(KEY, version=3), at.auth.add(KEY, version=20)
        at.auth.push(changed(new, 20))
        await at.seen()
        at.auth.answers = [old] * grants.LOOKUP_TRIES_MAX
        assert await refusal(at.client) == "auth_unavailable"
        assert (await at.client.get(KEY)).version == 20


async def test_an_older_grant_never_replaces_a_newer_one(tmp_path: Path) -> None:
    async with scene(tmp_path, grace_s=0) as at:
        old, _ = at.auth.add(KEY, version=3), at.auth.add(KEY, version=5)
        await at.client.get(KEY)
        at.clock.passed_s += 100
        at.auth.answers = [old] * grants.LOOKUP_TRIES_MAX
        assert await refusal(at.client) == "auth_unavailable"
        assert (await at.client.get(KEY)).version == 5


async def test_a_reset_voids_everything_that_is_known(tmp_path: Path) -> None:
    async with scene(tmp_path, grants=[KEY]) as at:
        await at.client.get(KEY)
        at.auth.revoke(KEY)
        await at.seen()
        at.auth.add(KEY, version=1)
        at.auth.push(reset=True)
        await at.seen()
        assert at.client.lookup(KEY) is None
        assert (await at.client.get(KEY)).version == 1


async def test_the_first_word_of_auth_voids_what_was_asked_before_it(tmp_path: Path) -> None:
    at = Scene(tmp_path, 60.0)
    at.auth.add(KEY)
    await at.serve()
    await at.client.get(KEY)
    assert at.client.lookup(KEY) is not None
    assert not at.client.ready
    at.client.start()
    await at.watched()
    assert at.client.lookup(KEY) is None
    await at.client.close()
    await at.channel.close()
    assert at.server is not None
    await at.server.stop(0)


async def test_while_auth_is_away_known_keys_work_for_the_grace_period(tmp_path: Path) -> None:
    async with scene(tmp_path, grants=[KEY], grace_s=60) as at:
        await at.client.get(KEY)
        at.clock.passed_s += 5
        at.auth.push()
        await at.seen()
        await at.leave()
        at.clock.passed_s += 60
        assert at.client.lookup(KEY) is not None
        assert (await at.client.get(KEY)).version == 1
        at.clock.passed_s += 0.001
        assert at.client.lookup(KEY) is None
        assert await refusal(at.client) == "auth_unavailable"
        assert at.client.ready


async def test_while_auth_is_away_an_unknown_key_is_unavailable_and_never_refused(
    tmp_path: Path,
) -> None:
    async with scene(tmp_path, grants=[KEY]) as at:
        await at.client.get(KEY)
        await at.leave()
        assert await refusal(at.client, OTHER) == "auth_unavailable"
        assert await refusal(at.client, GARBAGE[3]) == "invalid_api_key"


async def test_a_revoked_key_stays_refused_when_auth_is_away(tmp_path: Path) -> None:
    async with scene(tmp_path, grants=[KEY]) as at:
        await at.client.get(KEY)
        at.auth.revoke(KEY)
        await at.seen()
        await at.leave()
        at.clock.passed_s += 3600
        assert await refusal(at.client) == "invalid_api_key"


async def test_what_was_missed_is_known_before_a_grant_is_trusted_again(tmp_path: Path) -> None:
    async with scene(tmp_path, grants=[KEY, OTHER]) as at:
        grant = await at.client.get(KEY)
        await at.client.get(OTHER)
        await at.leave()
        at.clock.passed_s += 61
        assert at.client.lookup(KEY) is None
        before = at.auth.revision
        at.auth.revoke(KEY)
        missed = Response(
            revision=at.auth.revision, changes=[changed(grant, before + 1, revoked=True)]
        )
        at.auth.first = lambda: missed
        await at.serve()
        await at.seen()
        assert at.auth.after[-1] == before
        assert at.client.lookup(OTHER) is not None
        assert at.client.lookup(KEY) is None
        assert await refusal(at.client) == "invalid_api_key"
        assert len(at.auth.asked) == 2


async def test_a_grant_asked_for_while_the_watch_is_down_works_for_the_grace_period(
    tmp_path: Path,
) -> None:
    async with scene(tmp_path, grants=[KEY]) as at:
        await at.leave()
        at.clock.passed_s += 1000
        at.auth.failure = GatewayError(error_pb2.ERROR_REASON_OVERLOADED, "no watches")
        await at.serve()
        await until(lambda: at.auth.after[1:], "another attempt to watch")
        at.auth.failure = None
        granted = await _eventually_granted(at)
        at.auth.failure = GatewayError(error_pb2.ERROR_REASON_OVERLOADED, "no watches")
        assert at.client.lookup(KEY) is granted


async def _eventually_granted(at: Scene) -> grant_pb2.Grant:
    """The grant, once the channel has found its peer again."""
    for _ in range(500):
        with contextlib.suppress(GatewayError):
            return await at.client.get(KEY)
        await asyncio.sleep(0.01)
    raise AssertionError("auth was not reached again")


async def test_a_stopped_process_does_not_trust_what_it_knew_when_it_goes_on(
    tmp_path: Path,
) -> None:
    async with scene(tmp_path, grants=[KEY], grace_s=0) as at:
        await at.client.get(KEY)
        assert at.client.lookup(KEY) is not None
        at.clock.passed_s += grants.SILENCE_S + 0.001
        assert at.auth.watches
        assert at.client.lookup(KEY) is None


async def test_auth_that_falls_silent_counts_as_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(grants, "SILENCE_S", 0.2)
    async with scene(tmp_path, grants=[KEY], grace_s=60) as at:
        await at.client.get(KEY)
        await until(lambda: len(at.auth.after) > 1, "a new watch")
        assert at.client.lookup(KEY) is not None
        await until(lambda: len(at.auth.watches) == 1, "the end of the first watch")


async def test_auth_that_ends_the_watch_is_watched_again(tmp_path: Path) -> None:
    async with scene(tmp_path, grants=[KEY]) as at:
        await at.client.get(KEY)
        at.auth.end()
        await until(lambda: len(at.auth.after) > 1, "a new watch")
        assert at.auth.after[-1] == at.auth.revision
        assert at.client.lookup(KEY) is not None


async def test_a_watch_that_fails_by_a_defect_is_said_and_ends_trust(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with scene(tmp_path, grants=[KEY], grace_s=60) as at:
        await at.client.get(KEY)
        at.clock.broken = True
        at.auth.end()
        await until(lambda: "the watch on auth has failed" in caplog.text, "the notice")
        at.clock.passed_s += 61
        assert at.client.lookup(KEY) is None


async def test_auth_that_does_not_answer_is_waited_for_two_seconds(tmp_path: Path) -> None:
    async with scene(tmp_path, grants=[KEY]) as at:
        at.auth.gate.clear()
        start = time.monotonic()
        assert await refusal(at.client) == "auth_unavailable"
        assert 1.5 < time.monotonic() - start < 20
        at.auth.gate.set()
        assert (await at.client.get(KEY)).key_id


@pytest.mark.parametrize(
    "reason",
    [
        error_pb2.ERROR_REASON_STORE_UNAVAILABLE,
        error_pb2.ERROR_REASON_INTERNAL,
        error_pb2.ERROR_REASON_OVERLOADED,
        error_pb2.ERROR_REASON_SCOPE_MISSING,
    ],
)
async def test_only_a_definite_answer_of_auth_refuses_a_key(tmp_path: Path, reason: int) -> None:
    async with scene(tmp_path, grants=[KEY]) as at:
        at.auth.failure = GatewayError(reason, "something is wrong")
        assert await refusal(at.client) == "auth_unavailable"
        at.auth.failure = None
        assert (await at.client.get(KEY)).key_id


async def test_auth_taking_back_a_key_while_unwatched_ends_it(tmp_path: Path) -> None:
    async with scene(tmp_path, grants=[KEY], grace_s=0) as at:
        await at.client.get(KEY)
        at.auth.grants.clear()
        at.clock.passed_s += 100
        assert await refusal(at.client) == "invalid_api_key"
        at.auth.push()
        await at.seen()
        assert at.client.lookup(KEY) is None


async def test_questions_under_way_are_bounded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(grants, "LOOKUPS_MAX", 1)
    async with scene(tmp_path, grants=[KEY, OTHER]) as at:
        at.auth.gate.clear()
        waiting = asyncio.create_task(at.client.get(KEY))
        await until(lambda: at.auth.asked, "the question")
        assert await refusal(at.client, OTHER) == "overloaded"
        at.auth.gate.set()
        await waiting
        assert (await at.client.get(OTHER)).key_id


async def test_the_key_unused_for_longest_is_forgotten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(grants, "GRANTS_MAX", 2)
    third = apikeys.mint(grant_pb2.KEY_KIND_PROJECT, ENTROPY)
    async with scene(tmp_path, grants=[KEY, OTHER, third]) as at:
        await at.client.get(KEY)
        await at.client.get(OTHER)
        assert at.client.lookup(KEY) is not None
        await at.client.get(third)
        assert at.client.lookup(OTHER) is None
        assert (await at.client.get(KEY)).key_id
        assert at.auth.asked.count(apikeys.digest(KEY)) == 1
        assert len(at.client._known) == len(at.client._digests) == 2
        assert len(at.client._cache._digests) == 2
        at.auth.revoke(OTHER)
        await at.seen()
        assert await refusal(at.client, OTHER) == "invalid_api_key"


async def test_unknown_keys_are_remembered_up_to_a_bound(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(grants, "UNKNOWN_MAX", 1)
    async with scene(tmp_path) as at:
        for key in (KEY, OTHER, KEY):
            assert await refusal(at.client, key) == "invalid_api_key"
        assert len(at.auth.asked) == 3
        assert len(at.client._unknown) == 1


async def test_two_secrets_of_one_key_end_together(tmp_path: Path) -> None:
    async with scene(tmp_path) as at:
        grant = at.auth.add(KEY)
        at.auth.grants[apikeys.digest(OTHER)] = grant
        await at.client.get(KEY)
        await at.client.get(OTHER)
        at.auth.push(changed(grant, 11))
        await at.seen()
        assert at.client.lookup(KEY) is None
        assert at.client.lookup(OTHER) is None


async def test_keys_that_differ_in_one_character_are_different_keys(tmp_path: Path) -> None:
    client = GrantClient(channel(f"unix:{tmp_path}/none", RpcSettings()), SystemClock(), 60, "t")
    client._trusted_until = time.monotonic() + 3600
    stem = KEY[:40]
    made = []
    for n in range(grants.GRANTS_MAX):
        body = stem + apikeys._base62(n, 6)
        key = body + apikeys._checksum(body)
        assert apikeys.kind_of(key)
        digest = apikeys.digest(key)
        client._keep(digest, grant_pb2.Grant(key_id=f"key_{n}", version=1), time.monotonic())
        client._remember(key, digest)
        made.append(key)
    for n, key in enumerate(made):
        grant = client.lookup(key)
        assert grant is not None
        assert grant.key_id == f"key_{n}"


async def test_a_lookup_costs_a_few_microseconds(tmp_path: Path) -> None:
    client = GrantClient(channel(f"unix:{tmp_path}/none", RpcSettings()), SystemClock(), 60, "t")
    digest = apikeys.digest(KEY)
    client._keep(digest, grant_pb2.Grant(key_id="key_1", version=1), time.monotonic())
    client._remember(KEY, digest)
    # A header's text is never the same object, so its hash is not known.
    presented = [bytes(KEY, "ascii") for _ in range(20_000)]
    texts = [text.decode("ascii") for text in presented]
    start = time.perf_counter()
    for text in texts:
        client.lookup(text)
    cost_us = (time.perf_counter() - start) / len(texts) * 1e6
    print(f"lookup: {cost_us:.2f} µs")
    assert cost_us < 20


async def test_a_disabled_key_says_so_until_it_is_enabled(tmp_path: Path) -> None:
    async with scene(tmp_path, grants=[KEY]) as at:
        await at.client.get(KEY)
        at.auth.push(changed(at.auth.add(KEY, version=11, disabled=True), 11))
        await at.seen()
        for _ in range(2):
            assert at.client.lookup(KEY) is None
            assert await refusal(at.client) == "key_disabled"
        at.auth.push(changed(at.auth.add(KEY, version=12), 12))
        await at.seen()
        assert (await at.client.get(KEY)).version == 12


async def test_auth_is_told_of_a_used_key_at_most_once_a_minute(tmp_path: Path) -> None:
    async with scene(tmp_path, grants=[KEY, OTHER]) as at:
        used, unused = await at.client.get(KEY), await at.client.get(OTHER)
        at.clock.passed_s += 3
        for _ in range(100):
            at.client.lookup(KEY)
        await at.client.report_uses()
        moment = int(NOON.timestamp())
        assert at.auth.uses == [{used.key_id: moment + 3, unused.key_id: moment}]
        at.clock.passed_s += 10
        at.client.lookup(KEY)
        await at.client.report_uses()
        assert len(at.auth.uses) == 1
        at.clock.passed_s += 50
        await at.client.report_uses()
        assert at.auth.uses[1:] == [{used.key_id: moment + 13}]


async def test_a_use_is_told_although_the_key_has_changed_or_auth_was_away(tmp_path: Path) -> None:
    async with scene(tmp_path, grants=[KEY]) as at:
        grant = await at.client.get(KEY)
        at.auth.push(changed(at.auth.add(KEY, version=11), 11))
        await at.seen()
        at.auth.failure = GatewayError(error_pb2.ERROR_REASON_STORE_UNAVAILABLE, "away")
        await at.client.report_uses()
        assert at.auth.uses == []
        at.auth.failure = None
        await at.client.report_uses()
        assert at.auth.uses == [{grant.key_id: int(NOON.timestamp())}]
