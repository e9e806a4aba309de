"""The log of administration: it grows with what happens, and tells when somebody touches it."""

from pathlib import Path

import pytest

from onegate.auth.v1 import audit_service_pb2 as pb
from onegate.auth.v1 import audit_service_pb2_grpc, project_service_pb2
from runtime import apikeys
from runtime.errors import GatewayError, reason_name
from runtime.rpc import unary
from services.auth.administration import ADDRESS_KEY, REFUSALS_LOGGED_MAX
from tests.services.auth.ports import run_statements, stored_bytes
from tests.services.auth.serving import OPERATOR, Auth, auth, bearer

pytestmark = pytest.mark.anyio


async def fill(at: Auth, count: int) -> None:
    """Makes projects, each an entry."""
    for number in range(count):
        request = project_service_pb2.CreateProjectRequest(name=f"p{number}")
        await unary(at.projects.CreateProject, request, timeout_s=5, metadata=OPERATOR)


async def verified(at: Auth, sequence: int = 0, mac: bytes = b"") -> pb.VerifyAuditLogResponse:
    """What the check finds."""
    stub = audit_service_pb2_grpc.AuditServiceStub(at.channel)
    request = pb.VerifyAuditLogRequest(noted_sequence=sequence, noted_mac=mac)
    return await unary(stub.VerifyAuditLog, request, timeout_s=5, metadata=OPERATOR)


async def entries(at: Auth, outcome: pb.AuditOutcome.ValueType) -> list[pb.AuditEvent]:
    """The newest entries."""
    stub = audit_service_pb2_grpc.AuditServiceStub(at.channel)
    request = pb.ListAuditEventsRequest(outcome=outcome)
    listed = await unary(stub.ListAuditEvents, request, timeout_s=5, metadata=OPERATOR)
    return list(listed.events)


async def test_an_untouched_log_is_whole(tmp_path: Path) -> None:
    async with auth(tmp_path) as at:
        empty = await verified(at)
        assert (empty.intact, empty.entries) == (True, 0)
        await fill(at, 5)
        found = await verified(at)
        assert (found.intact, found.entries, len(found.head_mac)) == (True, 5, 32)
        await fill(at, 2)
        assert (await verified(at, found.entries, found.head_mac)).intact


TOUCHED = {
    "an entry is changed": (3, "UPDATE audit_events SET resource_id = 'x' WHERE sequence = 3"),
    "who did it is changed": (2, "UPDATE audit_events SET key_id = 'key_me' WHERE sequence = 2"),
    "the time is changed": (
        4,
        "UPDATE audit_events SET effective_at_us = effective_at_us + 1 WHERE sequence = 4",
    ),
    "an entry is taken out": (3, "DELETE FROM audit_events WHERE sequence = 3"),
    "the first is taken out": (1, "DELETE FROM audit_events WHERE sequence = 1"),
    "the last is taken out": (5, "DELETE FROM audit_events WHERE sequence = 5"),
    "all are taken out": (1, "DELETE FROM audit_events"),
    "the head is forgotten": (6, "DELETE FROM audit_heads"),
    "two are exchanged": (
        2,
        "UPDATE audit_events SET sequence = 5 - sequence + 100 WHERE sequence IN (2, 3)",
        "UPDATE audit_events SET sequence = sequence - 100 WHERE sequence > 100",
    ),
    "one is taken out and the others move up": (
        3,
        "DELETE FROM audit_events WHERE sequence = 3",
        "UPDATE audit_events SET sequence = sequence - 1 WHERE sequence > 3",
    ),
}


@pytest.mark.parametrize("how", TOUCHED)
async def test_a_touched_log_is_broken_where_it_was_touched(tmp_path: Path, how: str) -> None:
    sequence, *statements = TOUCHED[how]
    async with auth(tmp_path) as at:
        await fill(at, 5)
        await run_statements(tmp_path, *(str(statement) for statement in statements))
        found = await verified(at)
        if how == "the head is forgotten":
            # Nothing says that there was a log: only a head that was noted elsewhere does.
            assert found.entries == 0
            found = await verified(at, 5, bytes(32))
            sequence = 5
        assert not found.intact
        assert (found.broken_sequence, bool(found.fault)) == (sequence, True)


async def test_a_log_that_was_cut_and_mended_is_noticed_by_a_noted_head(tmp_path: Path) -> None:
    async with auth(tmp_path) as at:
        await fill(at, 5)
        noted = await verified(at)
        await run_statements(
            tmp_path,
            "DELETE FROM audit_events WHERE sequence > 3",
            "UPDATE audit_heads SET sequence = 3,"
            " mac = (SELECT mac FROM audit_events WHERE sequence = 3)",
        )
        assert (await verified(at)).intact
        await fill(at, 3)
        found = await verified(at, noted.entries, noted.head_mac)
        assert (found.intact, found.broken_sequence) == (False, 5)


async def test_an_entry_says_who_from_where_and_what_was_before_and_after(tmp_path: Path) -> None:
    async with auth(tmp_path) as at:
        metadata = (*bearer(at.first.admin_key), (ADDRESS_KEY, "192.0.2.7"))
        request = project_service_pb2.UpdateProjectRequest(id=at.first.project_id, name="new")
        await unary(at.projects.UpdateProject, request, timeout_s=5, metadata=metadata)
        (entry,) = await entries(at, pb.AUDIT_OUTCOME_DONE)
        assert (entry.type, entry.resource_id) == ("project.updated", at.first.project_id)
        assert entry.actor.address == "192.0.2.7"
        assert entry.actor.key_id.startswith("key_")
        assert b'"name": "default"' in entry.before_json
        assert b'"name": "new"' in entry.after_json


async def test_no_secret_is_in_the_log_or_the_database(tmp_path: Path) -> None:
    async with auth(tmp_path) as at:
        # A key is refused where it is recognised; a password that is pasted is masked.
        with pytest.raises(GatewayError, match="must not hold a key"):
            await at.create(name=f"pasted {at.first.api_key}")
        value, _ = await at.create(name="pasted password=hunter2hunter2")
        for entry in await entries(at, pb.AUDIT_OUTCOME_ANY):
            shown = (entry.before_json + entry.after_json).decode()
            assert value not in shown
            assert at.first.api_key[-20:] not in shown
            assert "hunter2" not in shown
        stored = stored_bytes(tmp_path)
        assert value.encode() not in stored
        assert apikeys.digest(value) not in stored


async def test_refusals_are_logged_but_cannot_fill_the_database(tmp_path: Path) -> None:
    async with auth(tmp_path) as at:
        request = project_service_pb2.ListProjectsRequest()
        for _ in range(REFUSALS_LOGGED_MAX + 5):
            with pytest.raises(GatewayError) as caught:
                await unary(
                    at.projects.ListProjects,
                    request,
                    timeout_s=5,
                    metadata=bearer(at.first.api_key),
                )
            assert reason_name(caught.value.reason) == "scope_missing"
        found = await entries(at, pb.AUDIT_OUTCOME_REFUSED)
        assert len(found) == REFUSALS_LOGGED_MAX
        assert {(entry.type, entry.refusal) for entry in found} == {
            ("login.failed", "scope_missing")
        }
        assert (await verified(at)).intact


async def test_only_the_operator_checks_the_log(tmp_path: Path) -> None:
    async with auth(tmp_path) as at:
        stub = audit_service_pb2_grpc.AuditServiceStub(at.channel)
        with pytest.raises(GatewayError) as caught:
            await unary(
                stub.VerifyAuditLog,
                pb.VerifyAuditLogRequest(),
                timeout_s=5,
                metadata=bearer(at.first.admin_key),
            )
        assert reason_name(caught.value.reason) == "scope_missing"
