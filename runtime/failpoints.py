"""Places at which a test makes a process die or stand still, to see that no money is lost there.

They are compiled in and off: only a data directory with a directory ``failpoints`` in it can have
them on, and the process says so as loudly as it can. A point is armed by a file there that bears
its name and holds ``kill`` or ``delay`` and a number of seconds. The first process that comes by
takes the file away, so that one life ends and the next does not, writes ``<point>.reached`` with
its process id, and then kills itself with SIGKILL, or stands still until that file is gone or the
time is over.
"""

import contextlib
import logging
import os
import signal
import threading
from enum import Enum
from pathlib import Path
from typing import Final, Protocol

from runtime.rules import ConfigError, Problem
from runtime.settings import Settings

DIRECTORY: Final = "failpoints"
"""Below the data directory. Nothing but tests makes it."""

_POLL_S: Final = 0.005
_LOG = logging.getLogger(__name__)


class Failpoint(Enum):
    """Where a process can be made to die, in the order of a call's life."""

    HOLD_ASKED = "hold_asked"
    """Router: a hold is about to be asked for."""
    HOLD_UNCOMMITTED = "hold_uncommitted"
    """Usage: inside the transaction that places a hold, all but committed."""
    HOLD_PLACED = "hold_placed"
    """Usage: the hold is committed, its answer not sent."""
    HOLD_ANSWERED = "hold_answered"
    """Router: usage has said that the hold is placed."""
    JOURNALLED = "journalled"
    """Router: the attempt is in the journal, nothing is sent."""
    SENT = "sent"
    """Router: the request has gone to the provider, not a byte has come back."""
    MID_ANSWER = "mid_answer"
    """Router: an answer is under way; of a stream the journal knows some progress."""
    USAGE_SEEN = "usage_seen"
    """Router: the provider has said what it used."""
    FINAL_UNWRITTEN = "final_unwritten"
    """Router: the figures are made up, the journal does not know them."""
    FINAL_WRITTEN = "final_written"
    """Router: the final is in the journal, neither shipped nor told to anybody."""
    RECORD_UNCOMMITTED = "record_uncommitted"
    """Usage: inside the transaction that settles, all but committed."""
    SHIPPED = "shipped"
    """Usage: records are committed, the acknowledgement is not sent."""
    ACKED = "acked"
    """Router: usage has acknowledged, the journal does not know it."""
    HALF_REPLAYED = "half_replayed"
    """Router: a start has read the journal and written nothing yet."""
    EPOCH_OPENED = "epoch_opened"
    """Router: its new epoch is open, those of its former lives are not closed."""


class Failpoints(Protocol):
    """What the code passes through."""

    def hit(self, point: Failpoint) -> None:
        """The process is at this point. Blocks, or never returns, where a test says so."""
        ...


class NoFailpoints:
    """Off: passing through costs a call that does nothing."""

    __slots__ = ()

    def hit(self, point: Failpoint) -> None:
        """Goes on."""


OFF: Final = NoFailpoints()


class FileFailpoints:
    """On: armed by files in a directory."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def hit(self, point: Failpoint) -> None:
        """See the module."""
        armed = self._directory / point.value
        taken = self._directory / f"{point.value}.taken-{os.getpid()}"
        try:
            armed.rename(taken)
        except FileNotFoundError:
            return
        action = taken.read_text().split()
        reached = self._directory / f"{point.value}.reached"
        begun = self._directory / f"{point.value}.begun-{os.getpid()}"
        begun.write_text(str(os.getpid()))
        begun.rename(reached)
        taken.unlink()
        if action[0] == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        _stand_still(reached, float(action[1]))


def configured(settings: Settings) -> Failpoints:
    """The failpoints that the settings ask for. Raises ``ConfigError`` where they may not be on."""
    if not settings.failpoints:
        return OFF
    directory = Path(settings.data_dir) / DIRECTORY
    if not directory.is_dir():
        message = (
            "failpoints kill this process on purpose and are for tests only: they are refused in"
            f" a data directory without a directory {DIRECTORY!r} in it. Leave the setting out"
        )
        raise ConfigError([Problem(where="failpoints", message=message)])
    _LOG.critical(
        "FAILPOINTS ARE ON: whoever can write to %s kills this process. This is a test, or a"
        " mistake: unset ONEGATE_FAILPOINTS",
        directory,
    )
    return FileFailpoints(directory)


def _stand_still(reached: Path, seconds: float) -> None:
    """Until the file is gone, at most so long. The whole thread stands: that is what is asked."""
    turns = int(seconds / _POLL_S)
    never = threading.Event()
    while turns and reached.exists():
        turns -= 1
        never.wait(_POLL_S)
    with contextlib.suppress(FileNotFoundError):
        reached.unlink()
