"""Logs: one readable or one JSON line a record, and no secret in either."""

import io
import json
import logging
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator

import pytest

from runtime import telemetry
from runtime.secrets import Secret
from runtime.settings import TelemetrySettings
from runtime.telemetry import configure_logging

CANARY = "sk-canary-0123456789"
Lines = Callable[[], list[str]]
LOG = logging.getLogger("onegate.test")


@pytest.fixture(autouse=True)
def logging_as_before() -> Iterator[None]:
    """Puts the process's logging back as it was."""
    root = logging.getLogger()
    before = root.handlers[:], root.level, sys.excepthook
    yield
    root.handlers[:], sys.excepthook = before[0], before[2]
    root.setLevel(before[1])
    logging.captureWarnings(False)
    for name in telemetry._NOISY:
        logging.getLogger(name).setLevel(logging.NOTSET)


def _started(**settings: str) -> Lines:
    stream = io.StringIO()
    configure_logging("router", TelemetrySettings(**settings), stream=stream)  # type: ignore[arg-type]
    return lambda: stream.getvalue().splitlines()


def _fail(message: str) -> None:
    raise ValueError(message)


def test_a_text_line_says_when_how_bad_who_and_what() -> None:
    lines = _started()
    LOG.warning("provider %s is away", "groq", extra={"attempts": 3, "why": "no route"})
    (line,) = lines()
    time, level, service, rest = line.split(None, 3)
    assert len(time) == len("2026-11-21T12:00:00.123Z")
    assert (level, service) == ("WARNING", "router")
    assert rest == 'provider groq is away attempts=3 why="no route"'


def test_a_json_line_is_one_object() -> None:
    lines = _started(log_format="json")
    LOG.info("served %d", 2, extra={"model": "openai/gpt", "ms": 1.5, "ok": True, "none": None})
    (line,) = lines()
    content = json.loads(line)
    assert content.pop("time").endswith("Z")
    assert content == {
        "level": "info",
        "service": "router",
        "logger": "onegate.test",
        "message": "served 2",
        "model": "openai/gpt",
        "ms": 1.5,
        "ok": True,
        "none": None,
    }


def test_an_extra_cannot_pass_for_the_record_s_own_field() -> None:
    lines = _started(log_format="json")
    LOG.info("x", extra={"level": "forged", "service": "forged"})
    content = json.loads(lines()[0])
    assert (content["level"], content["service"]) == ("info", "router")


@pytest.mark.parametrize(
    ("level", "count"), [("debug", 4), ("info", 3), ("warning", 2), ("error", 1)]
)
def test_what_is_below_the_level_is_not_logged(level: str, count: int) -> None:
    lines = _started(log_level=level)
    for severity in (logging.DEBUG, logging.INFO, logging.WARNING, logging.ERROR):
        LOG.log(severity, "x")
    assert len(lines()) == count


def test_chatty_libraries_are_heard_only_when_something_is_wrong() -> None:
    lines = _started(log_level="debug")
    logging.getLogger("httpx2").info("HTTP Request: GET …")
    logging.getLogger("httpx2").warning("broken")
    assert [line.split()[-1] for line in lines()] == ["broken"]


def test_setting_up_twice_logs_once() -> None:
    _started()
    lines = _started()
    LOG.info("x")
    assert len(lines()) == 1


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_no_way_of_logging_lets_a_secret_through(log_format: str) -> None:
    lines = _started(log_format=log_format, log_level="debug")
    LOG.info("key %s", CANARY)
    LOG.info("Authorization: Bearer %s", "abcdefghijkl")
    LOG.info("x", extra={"authorization": "Bearer abcdefghijkl", "headers": {"x-api-key": CANARY}})
    LOG.info("%r", Secret(CANARY), extra={"secret": Secret(CANARY)})
    try:
        _fail(f"sent {CANARY} to https://u:{CANARY}@host/?key=abcdefghijkl")
    except ValueError:
        LOG.exception("failed with %s", CANARY, stack_info=True)
    text = "\n".join(lines())
    assert "canary" not in text
    assert "abcdefghijkl" not in text
    assert text.count("***") >= 7


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_nobody_forges_a_line(log_format: str) -> None:
    lines = _started(log_format=log_format)
    LOG.info("model %s", "x\n2026-11-21T12:00:00.000Z INFO forged", extra={"tag": "a\r\nb"})
    assert len(lines()) == 1


def test_a_traceback_follows_its_line_indented() -> None:
    lines = _started()
    try:
        _fail("first\nsecond")
    except ValueError:
        LOG.exception("broken")
    first, *trace = lines()
    assert first.endswith("broken")
    assert all(line.startswith("    ") for line in trace)
    assert any("ValueError: first" in line for line in trace)


def test_a_traceback_is_a_field_in_json() -> None:
    lines = _started(log_format="json")
    try:
        _fail("x")
    except ValueError:
        LOG.exception("broken")
    assert "ValueError: x" in json.loads(lines()[0])["error"]


def test_warnings_are_logged() -> None:
    lines = _started()
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        logging.captureWarnings(True)
        warnings.warn("old", UserWarning, stacklevel=1)
    logging.captureWarnings(False)
    assert "UserWarning: old" in lines()[0]


def test_what_ends_a_process_is_logged_and_redacted() -> None:
    program = (
        "from runtime.telemetry import configure_logging\n"
        "from runtime.settings import TelemetrySettings\n"
        "configure_logging('auth', TelemetrySettings(log_format='json'))\n"
        f"raise SystemError('{CANARY}')\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    content = json.loads(ended.stderr)
    assert ended.returncode == 1
    assert content["level"] == "critical"
    assert "SystemError: sk-***" in content["error"]


def test_what_ends_a_process_is_one_line() -> None:
    lines = _started(log_format="json")
    telemetry.log_uncaught(SystemError, SystemError(CANARY), None)
    content = json.loads(lines()[0])
    assert (content["level"], content["message"]) == ("critical", "stopped")
    assert "canary" not in content["error"]


def test_an_interrupt_is_no_error() -> None:
    lines = _started()
    telemetry.log_uncaught(KeyboardInterrupt, KeyboardInterrupt(), None)
    assert lines() == []


def test_everything_about_telemetry_is_had_from_one_place() -> None:
    assert all(hasattr(telemetry, name) for name in telemetry.__all__)
