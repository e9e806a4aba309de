"""Points at which tests end a process: refused to everybody else, and off unless they are armed."""

import logging
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from runtime.config import ConfigError, Settings
from runtime.failpoints import DIRECTORY, OFF, Failpoint, FileFailpoints, configured
from tests.gateway import wait_until

DIES = """
import sys
from pathlib import Path
from runtime.failpoints import Failpoint, FileFailpoints
points = FileFailpoints(Path(sys.argv[1]))
points.hit(Failpoint.SENT)
print("alive", flush=True)
points.hit(Failpoint.JOURNALLED)
print("still alive", flush=True)
"""


def test_they_are_off_unless_they_are_asked_for(tmp_path: Path) -> None:
    (tmp_path / DIRECTORY).mkdir()
    assert configured(Settings(data_dir=str(tmp_path))) is OFF


def test_a_data_directory_that_was_not_made_for_them_refuses_them(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="for tests only"):
        configured(Settings(data_dir=str(tmp_path), failpoints=True))


def test_a_process_that_has_them_on_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / DIRECTORY).mkdir()
    with caplog.at_level(logging.CRITICAL):
        configured(Settings(data_dir=str(tmp_path), failpoints=True))
    assert "FAILPOINTS ARE ON" in caplog.text


def test_an_armed_point_kills_the_first_process_that_comes_by(tmp_path: Path) -> None:
    (tmp_path / "journalled").write_text("kill")

    def run() -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", DIES, str(tmp_path)]
        return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)

    first, second = run(), run()
    assert (first.returncode, first.stdout) == (-signal.SIGKILL, "alive\n")
    assert (second.returncode, second.stdout) == (0, "alive\nstill alive\n")
    assert [path.name for path in tmp_path.iterdir()] == ["journalled.reached"]


def test_a_delayed_process_goes_on_when_it_is_told_to(tmp_path: Path) -> None:
    (tmp_path / "sent").write_text("delay 60")
    points = FileFailpoints(tmp_path)
    stands = threading.Thread(target=points.hit, args=(Failpoint.SENT,))
    stands.start()
    reached = tmp_path / "sent.reached"
    wait_until(reached.exists, what="the point")
    assert stands.is_alive()
    reached.unlink()
    stands.join(30)
    assert not stands.is_alive()


def test_a_delay_ends_by_itself(tmp_path: Path) -> None:
    (tmp_path / "sent").write_text("delay 0.01")
    FileFailpoints(tmp_path).hit(Failpoint.SENT)
    assert list(tmp_path.iterdir()) == []
