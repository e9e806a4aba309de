"""``?wait=true`` of revoking and disabling: what is asked of auth, and what is answered."""

import pytest

from edge.admin.asked import Asked
from edge.admin.table import ROUTES
from onegate.auth.v1 import key_service_pb2 as pb
from runtime.errors import GatewayError

PATH = {"key_id": "key_1", "api_key_id": "key_1", "project_id": "proj_1"}
NAMES = (
    "admin_api_keys.revoke",
    "admin_api_keys.disable",
    "api_keys.revoke",
    "api_keys.disable",
)


def asked(query: str) -> Asked:
    return Asked(PATH, query.encode(), b"")


@pytest.mark.parametrize("name", NAMES)
def test_a_key_can_be_refused_everywhere_before_the_answer(name: str) -> None:
    (route,) = [route for route in ROUTES if route.name == name]
    plain = route.request(asked(""))
    assert (plain.wait, route.wait_s(plain)) == (False, 0)
    waiting = asked("wait=true&wait_seconds_max=7")
    request = route.request(waiting)
    waiting.finish()
    assert (request.wait, request.wait_max_ms, route.wait_s(request)) == (True, 7000, 7)
    assert route.request(asked("wait=true")).wait_max_ms == 100_000
    assert route.answer is not None
    answer = route.response(key=pb.Key(id="key_1"))
    assert "confirmed" not in route.answer(answer, asked(""))
    assert route.answer(answer, waiting)["confirmed"] is True
    answer.unconfirmed.add(name="edge-7").refuses_by.FromSeconds(99)
    shown = route.answer(answer, waiting)
    assert shown["confirmed"] is False
    assert shown["unconfirmed"] == [{"name": "edge-7", "refuses_by": 99}]


@pytest.mark.parametrize(
    "query", ["wait=yes", "wait=true&wait_seconds_max=0", "wait_seconds_max=a"]
)
def test_a_wait_that_makes_no_sense_is_refused(query: str) -> None:
    (route,) = [route for route in ROUTES if route.name == "api_keys.revoke"]
    with pytest.raises(GatewayError):
        route.request(asked(query))
