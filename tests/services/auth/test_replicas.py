"""Several auth processes on one PostgreSQL: one order, one chain, one truth; and what they do while
it is away.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc  # type: ignore[import-untyped]

from onegate.auth.v1 import audit_service_pb2 as audit_pb
from onegate.auth.v1 import (
    audit_service_pb2_grpc,
    grant_service_pb2,
    project_service_pb2,
    user_service_pb2_grpc,
)
from onegate.auth.v1 import user_service_pb2 as user_pb
from onegate.common.v1 import error_pb2
from runtime import apikeys, readiness
from runtime.errors import GatewayError
from runtime.rpc import unary
from services.auth import watch
from services.auth.server import run
from tests.postgres import PostgresServer
from tests.services.auth.ports import DSN_FILE, until
from tests.services.auth.serving import OPERATOR, Auth, Peer, auth, settings_of

pytestmark = pytest.mark.anyio

DEADLINE_S = 60.0


@asynccontextmanager
async def replicas(directory: Path, dsn: str, count: int) -> AsyncIterator[list[Auth]]:
    """Auth processes of one installation, each with connections of its own."""
    (directory / DSN_FILE).write_text(dsn)
    async with AsyncExitStack() as running:
        yield [
            await running.enter_async_context(auth(directory, name=f"auth-{number}"))
            for number in range(count)
        ]


async def reasons(calls: list[Awaitable[Any]]) -> list[int]:
    """Why each call was refused; 0 for one that was not."""
    answers = await asyncio.gather(*calls, return_exceptions=True)
    found = []
    for answer in answers:
        if isinstance(answer, BaseException) and not isinstance(answer, GatewayError):
            raise answer
        found.append(answer.reason if isinstance(answer, GatewayError) else 0)
    return found


async def test_replicas_that_write_at_once_leave_one_order_and_a_whole_chain(
    tmp_path: Path, postgres_dsn: str
) -> None:
    async with replicas(tmp_path, postgres_dsn, 3) as peers:
        start = (await peers[0].identity.store.changes_after(0, rows_max=1)).revision

        async def work(at: Auth, number: int) -> None:
            request = project_service_pb2.CreateProjectRequest(name=f"p{number}")
            await unary(at.projects.CreateProject, request, timeout_s=30, metadata=OPERATOR)
            _, key = await at.create(name=f"k{number}")
            await at.revoke(key.id)

        await asyncio.gather(*(work(at, n) for n in range(8) for at in peers))
        log = await peers[1].identity.store.changes_after(start, rows_max=1000)
        # Of each round's three revisions, one is a project's, which no watcher needs.
        assert log.revision == start + 3 * 24
        revisions = [change.revision for change in log.rows]
        assert revisions == sorted({*revisions})
        assert len(revisions) == 2 * 24
        stub = audit_service_pb2_grpc.AuditServiceStub(peers[2].channel)
        verify = audit_pb.VerifyAuditLogRequest()
        found = await unary(stub.VerifyAuditLog, verify, timeout_s=30, metadata=OPERATOR)
        assert (found.intact, found.entries) == (True, 3 * 24)


async def test_of_replicas_that_make_the_same_user_one_does(
    tmp_path: Path, postgres_dsn: str
) -> None:
    async with replicas(tmp_path, postgres_dsn, 3) as peers:
        request = user_pb.CreateUserRequest(email="a@example.com", role="reader")
        made = await reasons(
            [
                unary(
                    user_service_pb2_grpc.UserServiceStub(at.channel).CreateUser,
                    request,
                    timeout_s=30,
                    metadata=OPERATOR,
                )
                for at in peers * 3
            ]
        )
        assert sorted(made) == [0, *[error_pb2.ERROR_REASON_CONFLICT] * 8]


async def test_watchers_of_one_replica_hear_at_once_of_what_another_changed(
    tmp_path: Path, postgres_dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Nothing is looked for: what is heard was announced.
    monkeypatch.setattr(watch, "POLL_S", 600.0)
    async with replicas(tmp_path, postgres_dsn, 2) as (one, two), two.clients(1) as [client]:
        key, made = await one.create()
        await client.get(key)
        await one.revoke(made.id)
        await until(lambda: client.lookup(key) is None, "the end of the key")


async def is_serving(peer: Peer) -> bool:
    """What the health check says; false while nobody listens."""
    stub = health_pb2_grpc.HealthStub(peer.channel)
    try:
        answer = await stub.Check(health_pb2.HealthCheckRequest(), timeout=5, wait_for_ready=False)
    except grpc.aio.AioRpcError:
        return False
    return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)


async def until_serving(peer: Peer, expected: bool) -> None:
    async with asyncio.timeout(DEADLINE_S):
        while await is_serving(peer) is not expected:  # noqa: ASYNC110
            await asyncio.sleep(0.05)


async def test_auth_waits_for_its_database_is_unready_without_it_and_keeps_what_it_said(
    tmp_path: Path, own_server: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(readiness, "STALE_S", 0.6)
    monkeypatch.setattr(readiness, "RETRY_S", 0.1)
    (tmp_path / DSN_FILE).write_text(own_server.dsn("postgres"))
    settings, stop, ready = settings_of(tmp_path), asyncio.Event(), asyncio.Event()
    await asyncio.to_thread(own_server.stop)
    running = asyncio.create_task(run(settings, stop=stop, ready=ready.set))
    peer = Peer(settings.auth.listen)
    try:
        await asyncio.sleep(0)
        assert not ready.is_set()
        await asyncio.to_thread(own_server.start)
        await until(ready.is_set, "the start", DEADLINE_S)
        key, _ = await peer.create()
        request = grant_service_pb2.GetGrantRequest(key_digest=apikeys.digest(key))
        await asyncio.to_thread(own_server.stop)
        (reason,) = await reasons([unary(peer.grants.GetGrant, request, timeout_s=30)])
        assert reason == error_pb2.ERROR_REASON_STORE_UNAVAILABLE
        (reason,) = await reasons([peer.create()])
        assert reason == error_pb2.ERROR_REASON_STORE_UNAVAILABLE
        await until_serving(peer, False)
        await asyncio.to_thread(own_server.start)
        await until_serving(peer, True)
        await unary(peer.grants.GetGrant, request, timeout_s=30)
        await peer.create()
    finally:
        stop.set()
        await peer.channel.close()
        await asyncio.wait_for(running, DEADLINE_S)


async def test_auth_that_waits_for_its_database_can_be_stopped(
    tmp_path: Path, postgres: PostgresServer
) -> None:
    (tmp_path / DSN_FILE).write_text(postgres.dsn("nowhere"))
    stop = asyncio.Event()
    running = asyncio.create_task(run(settings_of(tmp_path), stop=stop, ready=lambda: None))
    await asyncio.sleep(0.2)
    assert not running.done()
    stop.set()
    await asyncio.wait_for(running, DEADLINE_S)
