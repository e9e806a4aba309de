"""The files of a journal: numbered segments in one directory, a lock, and a spare file whose room
is given back when the disk is full.

What the records mean is the journal's business (:mod:`services.router.money.journal`).
"""

import errno
import fcntl
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

from services.router.money import segments
from services.router.money.segments import DamageError, Frame

_LOG = logging.getLogger(__name__)

_CHUNK_BYTES: Final = 256 * 1024
_SUFFIX: Final = ".journal"


class JournalUnusableError(Exception):
    """The journal cannot be opened; the message says why and what to do."""


class Position(NamedTuple):
    """A place between two records: the segment's number and the byte. Later is greater."""

    segment: int
    offset: int


class Files:
    """The segments of one directory; the last one is written.

    Attributes:
        directory: where they lie.
        last: the number of the last segment; 0 when there is none.
        bytes_used: how long they are together.
    """

    def __init__(self, directory: Path, spare_bytes: int) -> None:
        self.directory = directory
        self._spare_bytes = spare_bytes
        self._spare = directory / "reserve"
        self._spared = False
        self._descriptor = -1
        self._carried = 0
        self._lock = _locked(directory)
        self._sizes = {
            int(path.stem): path.stat().st_size for path in sorted(directory.glob(f"*{_SUFFIX}"))
        }
        self.last = max(self._sizes, default=0)
        self.bytes_used = sum(self._sizes.values())

    @property
    def end(self) -> Position:
        """Behind the last byte."""
        return Position(self.last, self._sizes[self.last])

    @property
    def written(self) -> int:
        """How many bytes were appended to the last segment since it began."""
        return self._sizes[self.last] - self._carried

    def numbers(self) -> list[int]:
        """The segments, oldest first."""
        return sorted(self._sizes)

    def path(self, number: int) -> Path:
        """Where a segment lies."""
        return self.directory / f"{number:012d}{_SUFFIX}"

    def read(self, number: int) -> bytes:
        """All of a segment."""
        return self.path(number).read_bytes()

    def frames(self, number: int, start: int) -> Iterator[Frame]:
        """A segment's records from byte ``start``, read in pieces; damage is skipped."""
        size = self._sizes[number]
        chunk = _CHUNK_BYTES
        while start < size:
            data = self._piece(number, start, min(chunk, size - start))
            done = 0
            try:
                for one in segments.frames(data):
                    done = one.end
                    yield one._replace(start=start + one.start, end=start + one.end)
            except DamageError:
                if start + len(data) < size:
                    # The piece ends within a record: it comes whole with the next, or larger, one.
                    chunk = chunk if done else 2 * chunk
                else:
                    _LOG.error("%s is damaged at byte %d", self.path(number), start + done)
                    resume = segments.next_record(data, done)
                    done = len(data) if resume is None else resume
            start += done

    def _piece(self, number: int, start: int, count: int) -> bytes:
        with self.path(number).open("rb", buffering=0) as file:
            return os.pread(file.fileno(), count, start)

    def begin(self, data: bytes) -> None:
        """Begins a new segment with ``data``. Leaves everything as it was on ``OSError``."""
        number = self.last + 1
        path = self.path(number)
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        descriptor = os.open(path, flags, 0o600)
        try:
            _write(descriptor, data, 0)
        except OSError:
            os.close(descriptor)
            path.unlink()
            raise
        if self._descriptor >= 0:
            os.close(self._descriptor)
        self._descriptor = descriptor
        self.last = number
        self._carried = self._sizes[number] = len(data)
        self.bytes_used += len(data)

    def append(self, data: bytes) -> None:
        """Writes one record behind the last. Leaves everything as it was on ``OSError``."""
        last = self.last
        _write(self._descriptor, data, self._sizes[last])
        self._sizes[last] += len(data)
        self.bytes_used += len(data)

    def truncate(self, number: int, size: int) -> None:
        """Cuts a segment's tail off; an empty one goes altogether."""
        _LOG.warning("The journal drops %d unfinished bytes", self._sizes[number] - size)
        self.bytes_used -= self._sizes[number] - size
        if size:
            os.truncate(self.path(number), size)
            self._sizes[number] = size
        else:
            self.path(number).unlink()
            del self._sizes[number]
            self.last = max(self._sizes, default=0)

    def delete_before(self, number: int) -> None:
        """Lets go of all segments before ``number``."""
        for old in [n for n in self._sizes if n < number and n != self.last]:
            self.path(old).unlink(missing_ok=True)
            self.bytes_used -= self._sizes.pop(old)

    def reserve(self) -> bool:
        """Sees to it that the spare file occupies its room; whether it does."""
        if not self._spared:
            try:
                room = os.statvfs(self.directory)
                if room.f_bavail * room.f_frsize >= 2 * self._spare_bytes:
                    self._spare.write_bytes(bytes(self._spare_bytes))
                    self._spared = True
            except OSError:
                self._spare.unlink(missing_ok=True)
        return self._spared

    def release(self) -> None:
        """Gives the spare file's room back to the disk."""
        self._spare.unlink(missing_ok=True)
        self._spared = False

    def close(self) -> None:
        """Closes the files; the lock goes with them."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1


def _locked(directory: Path) -> int:
    """Makes the directory and takes its lock."""
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise JournalUnusableError(
            f"The journal needs {directory}, which cannot be used: {error.strerror}."
        ) from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(descriptor)
        raise JournalUnusableError(
            f"Another process uses the journal in {directory}: stop it, or give this router a"
            " journal_dir of its own."
        ) from error
    return descriptor


def _write(descriptor: int, data: bytes, size: int) -> None:
    """Appends ``data`` to a file of ``size`` bytes, all of it or nothing."""
    try:
        written = os.write(descriptor, data)
    except OSError:
        os.ftruncate(descriptor, size)
        raise
    if written < len(data):
        os.ftruncate(descriptor, size)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
