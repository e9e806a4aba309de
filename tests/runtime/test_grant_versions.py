"""Grants only go forward: a property over every order of changes, pushes, questions and answers."""

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onegate.auth.v1 import grant_pb2
from runtime import apikeys
from runtime.clock import SystemClock, SystemEntropy
from runtime.config import RpcSettings
from runtime.grants import GrantClient
from runtime.rpc import channel
from tests.runtime.scripted_auth import Change, Response

pytestmark = pytest.mark.anyio

KEY = apikeys.mint(grant_pb2.KEY_KIND_PROJECT, SystemEntropy())

STEPS = st.lists(
    st.one_of(
        st.just(("change", 0)),
        st.just(("revoke", 0)),
        st.just(("push", 0)),
        st.just(("ask", 0)),
        st.tuples(st.just("answer"), st.integers(0, 5)),
    ),
    max_size=60,
)


async def test_whatever_overtakes_what_an_older_grant_never_replaces_a_newer() -> None:
    line = channel("unix:/nowhere", RpcSettings())

    @settings(max_examples=400, deadline=None)
    @given(steps=STEPS)
    def holds(steps: list[tuple[str, int]]) -> None:
        goes_only_forward(GrantClient(line, SystemClock(), 60, "t"), steps)

    holds()
    await line.close()


def goes_only_forward(client: GrantClient, steps: list[tuple[str, int]]) -> None:
    """Auth changes a key, pushes later, and answers in any order; what the client goes by is never
    older than the last push, and never goes back.
    """
    client._trusted_until = time.monotonic() + 3600
    digest = apikeys.digest(KEY)
    client._remember(KEY, digest)
    version, pushed, seen, revoked_at = 1, 1, 0, 0
    unpushed: list[Change] = []
    answers: list[tuple[grant_pb2.Grant, int]] = []
    for step, index in steps:
        match step:
            case "change" | "revoke" if not revoked_at:
                version += 1
                revoked_at = version if step == "revoke" else 0
                unpushed.append(Change(key_id="k", version=version, revoked=bool(revoked_at)))
            case "push" if unpushed:
                change = unpushed.pop(0)
                pushed = change.version
                client._apply(Response(revision=pushed, changes=[change]), fresh=False)
            case "ask" if not revoked_at:
                grant = grant_pb2.Grant(key_id="k", version=version)
                answers.append((grant, client._floors.count))
            case "answer" if answers:
                grant, asked_at = answers.pop(index % len(answers))
                client._taken(digest, grant, asked_at, time.monotonic())
        known = client.lookup(KEY)
        if known is not None:
            assert known.version >= max(pushed, seen)
            assert not revoked_at or pushed < revoked_at
            seen = known.version
