"""``wait=true``: a revocation that returns when the key is refused everywhere, or says who may not
have heard.
"""

import time
from pathlib import Path

import pytest

from runtime.errors import GatewayError
from runtime.grants import SILENCE_S, GrantClient
from tests.services.auth.cut import Cut
from tests.services.auth.serving import auth

pytestmark = pytest.mark.anyio


async def is_admitted(client: GrantClient, key: str) -> bool:
    """Whether a caller of that process gets through now."""
    if client.lookup(key) is not None:
        return True
    try:
        await client.get(key)
    except GatewayError:
        return False
    return True


async def test_nobody_is_admitted_once_a_waiting_revocation_has_returned(tmp_path: Path) -> None:
    async with (
        auth(tmp_path) as one,
        auth(tmp_path, name="auth-2", tcp=True) as two,
        one.clients(3) as near,
        two.clients(2) as far,
    ):
        clients = [*near, *far]
        for turn in range(20):
            key, made = await one.create()
            for client in clients:
                assert await is_admitted(client, key)
            answer = await (one, two)[turn % 2].revoke_everywhere(made.id)
            assert not answer.unconfirmed
            assert not [client for client in clients if client.lookup(key)]
            for client in clients:
                assert not await is_admitted(client, key)


async def test_a_wait_that_ends_early_names_who_has_not_confirmed(tmp_path: Path) -> None:
    async with auth(tmp_path) as at, at.clients(1) as [near], Cut(at.target) as cut:
        far = await cut.client("edge-7")
        key, made = await at.create()
        assert await is_admitted(near, key)
        assert await is_admitted(far, key)
        cut.stall()
        answer = await at.revoke_everywhere(made.id, wait_max_ms=300)
        (behind,) = answer.unconfirmed
        assert behind.name == "edge-7"
        left_s = behind.refuses_by.ToDatetime().timestamp() - time.time()
        assert left_s < 2 * SILENCE_S
        assert not await is_admitted(near, key)
        assert far.lookup(key) is not None  # it cannot know, and says so by not confirming


async def test_a_wait_for_someone_cut_off_lasts_until_he_can_only_refuse(tmp_path: Path) -> None:
    async with auth(tmp_path) as at, Cut(at.target) as cut:
        far = await cut.client("edge-7")
        key, made = await at.create()
        assert await is_admitted(far, key)
        cut.stall()
        answer = await at.revoke_everywhere(made.id)
        assert not answer.unconfirmed
        assert far.lookup(key) is None
        assert not await is_admitted(far, key)


async def test_who_leaves_in_order_is_not_waited_for(tmp_path: Path) -> None:
    async with auth(tmp_path) as at:
        async with at.clients(2):
            pass
        _, made = await at.create()
        started = time.monotonic()
        answer = await at.revoke_everywhere(made.id)
        assert not answer.unconfirmed
        assert time.monotonic() - started < SILENCE_S


async def test_a_restart_of_auth_forgets_no_watcher(tmp_path: Path) -> None:
    async with auth(tmp_path) as at, Cut(at.target) as cut:
        await cut.client("edge-7")
        cut.stall()
        async with auth(tmp_path, name="auth-2") as again:
            _, made = await again.create()
            answer = await again.revoke_everywhere(made.id, wait_max_ms=200)
            assert [watcher.name for watcher in answer.unconfirmed] == ["edge-7"]
