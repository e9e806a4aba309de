"""The router's memory of money: every attempt is written down before its first byte goes upstream,
and again before the caller is told that it is done.

A plain ``write`` survives the death of the process, kill -9 included, and costs a few µs; the
death of the host may lose the last moments. Records are appended to segments. Whatever runs is
carried over into each new segment, so an old one matters only for finals that the usage service
has not acknowledged; the acknowledged ones go, oldest first. One process, one journal: a lock on
the directory sees to it, and the kernel drops the lock with the process.

All calls are synchronous and belong to one thread.
"""

import logging
import struct
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final, NamedTuple, Self

from google.protobuf.message import DecodeError

from onegate.common.v1 import error_pb2
from onegate.common.v1.token_usage_pb2 import TokenUsage
from onegate.usage.v1 import usage_record_pb2
from onegate.usage.v1.usage_record_pb2 import UsageRecord
from runtime.errors import GatewayError
from runtime.failpoints import OFF, Failpoint, Failpoints
from services.router.money import segments
from services.router.money.journal_files import Files, JournalUnusableError, Position
from services.router.money.segments import DamageError, Frame, Kind

_LOG = logging.getLogger(__name__)

SEGMENT_BYTES_MAX: Final = 16 * 1024 * 1024
SEGMENTS_MIN: Final = 16
"""A small journal has small segments: at least so many fit into it."""

FINAL_ROOM_BYTES: Final = 2048
"""How much longer than its DISPATCHED record a FINAL is taken to be."""

_EPOCH: Final = struct.Struct("<Q")
_PLACE: Final = struct.Struct("<QQ")


class Entry(NamedTuple):
    """A final as it lies in the journal, with the position behind it."""

    record: bytes
    position: Position


class _Flight(NamedTuple):
    """An attempt under way: its DISPATCHED and its last PROGRESS payload."""

    dispatched: bytes
    room: int
    """What must stay free for it (:func:`_room`)."""
    progress: bytes = b""

    def frames(self) -> Iterator[bytes]:
        """The records that say the same again."""
        yield segments.frame(Kind.DISPATCHED, self.dispatched)
        if self.progress:
            yield segments.frame(Kind.PROGRESS, self.progress)

    def interrupted(self) -> UsageRecord:
        """The final of an attempt whose router died: what is known, marked as uncertain."""
        record = UsageRecord.FromString(self.dispatched)
        progress = UsageRecord.FromString(self.progress)
        if progress.HasField("tokens"):
            record.tokens.CopyFrom(progress.tokens)
        record.cost_nano_usd = max(record.cost_nano_usd, progress.cost_nano_usd)
        record.outcome = usage_record_pb2.OUTCOME_INTERRUPTED
        record.certainty = usage_record_pb2.CERTAINTY_UNCERTAIN
        record.error_reason = error_pb2.ERROR_REASON_ROUTER_UNAVAILABLE
        return record


def _room(dispatched: bytes) -> int:
    """What must stay free for an attempt: its final, to carry it over once, and half as much again
    for what is carried over while finals are written (:meth:`Journal._append`).
    """
    return 3 * (len(dispatched) + segments.HEAD_BYTES + FINAL_ROOM_BYTES // 2)


class Journal:
    """An open journal; :meth:`open` makes one.

    Attributes:
        epoch: grows with every opening; names this life of the router.
        known_epoch: the last one that was written down before this opening; 0 for none.
        skipped_bytes: what ``salvage`` had to leave out.
    """

    def __init__(self, files: Files, replay: "_Replay", bytes_max: int) -> None:
        self.known_epoch = replay.epoch
        self.epoch = replay.epoch + 1
        self.skipped_bytes = replay.skipped_bytes
        self._files = files
        self._bytes_max = bytes_max
        self._segment_bytes = _segment_bytes(bytes_max)
        self._flights: dict[str, _Flight] = {}
        self._room = 0
        self._acked = replay.acked
        finals = [flight.interrupted() for flight in replay.flights.values()]
        self._begin(segments.frame(Kind.FINAL, r.SerializeToString()) for r in finals)
        self._opened = files.end
        files.reserve()

    @classmethod
    def open(
        cls,
        directory: str | Path,
        bytes_max: int,
        *,
        salvage: bool = False,
        failpoints: Failpoints = OFF,
    ) -> Self:
        """Takes the directory's lock and replays what lies in it.

        A record that was cut off at the very end is dropped: its writer died. Anything else that
        is damaged raises ``JournalUnusableError``, unless ``salvage`` says to skip it.
        """
        files = Files(Path(directory), _segment_bytes(bytes_max))
        try:
            replay = _Replay(salvage=salvage)
            for number in files.numbers():
                replay.segment(files, number)
            failpoints.hit(Failpoint.HALF_REPLAYED)
            return cls(files, replay, bytes_max)
        except OSError as error:
            files.close()
            raise JournalUnusableError(f"The journal in {directory} fails: {error}.") from error
        except JournalUnusableError:
            files.close()
            raise

    @property
    def acknowledged(self) -> Position:
        """Up to where every final is safe in the usage service."""
        return self._acked

    @property
    def end(self) -> Position:
        """Behind the last record."""
        return self._files.end

    @property
    def bytes_used(self) -> int:
        """How long all segments are together."""
        return self._files.bytes_used

    @property
    def settled(self) -> bool:
        """Whether every final of former lives is acknowledged."""
        return self._acked >= self._opened or not self.unacknowledged(self._acked, 1)

    def opened(self, epoch: int) -> None:
        """Writes down that usage calls this life by a later number. Raises JOURNAL_FULL."""
        self.epoch = max(self.epoch, epoch)
        try:
            self._append(segments.frame(Kind.OPEN, _EPOCH.pack(self.epoch)))
        except OSError as error:
            raise _full(f"cannot be written: {error.strerror}") from error

    @property
    def recovered(self) -> list[UsageRecord]:
        """The finals that were not acknowledged when the journal was opened, oldest first; among
        them, as INTERRUPTED and UNCERTAIN, those of attempts that were under way. They lie in the
        journal: the shipper finds them by itself, nobody posts them again.
        """
        found: list[UsageRecord] = []
        place = self._acked
        while place < self._opened and (entries := self.unacknowledged(place, 1000)):
            found += [
                UsageRecord.FromString(e.record) for e in entries if e.position <= self._opened
            ]
            place = entries[-1].position
        return found

    def dispatched(self, attempt_id: str, record: bytes) -> None:
        """Writes that the attempt goes upstream; nothing may be sent before this returns.

        What ``record``, a serialised ``UsageRecord``, says of tokens and cost stands in if the
        router dies before it knows more. Raises JOURNAL_FULL while the journal or its disk is
        full.
        """
        room = _room(record)
        if self._files.bytes_used + self._room + room > self._bytes_max:
            raise _full(
                "is full, because the usage service has not taken its records for long."
                " Nothing was sent; try again later, or another router"
            )
        if not self._files.reserve():
            raise _full("has no room on its disk. Nothing was sent; try another router")
        try:
            self._append(segments.frame(Kind.DISPATCHED, record))
        except OSError as error:
            raise _full(f"cannot be written: {error.strerror}. Nothing was sent") from error
        self._land(attempt_id)
        self._flights[attempt_id] = _Flight(record, room)
        self._room += room

    def progress(self, attempt_id: str, tokens: TokenUsage, cost_nano_usd: int = 0) -> None:
        """Writes how far an attempt got: all tokens so far and what they cost, not the difference.

        Skipped for an attempt that is not under way and while the journal is full.
        """
        flight = self._flights.get(attempt_id)
        if flight is None:
            return
        record = UsageRecord(attempt_id=attempt_id, tokens=tokens, cost_nano_usd=cost_nano_usd)
        payload = record.SerializeToString()
        if self._files.bytes_used + self._room + len(payload) > self._bytes_max:
            return
        try:
            self._append(segments.frame(Kind.PROGRESS, payload))
        except OSError as error:
            _LOG.warning("The journal took no progress: %s", error.strerror)
        else:
            self._flights[attempt_id] = flight._replace(progress=payload)

    def final(self, attempt_id: str, record: bytes) -> Entry:
        """Writes how an attempt ended; the caller is told only after this returned.

        There is room for it, kept free when the attempt was dispatched, also on a full disk.
        Raises JOURNAL_FULL when even that is gone.
        """
        data = segments.frame(Kind.FINAL, record)
        self._land(attempt_id)
        try:
            try:
                self._append(data)
            except OSError as error:
                _LOG.error("The journal gives up its reserve: %s", error.strerror)
                self._files.release()
                self._begin((data,))
        except OSError as error:
            raise _full(f"lost the end of a call: {error.strerror}") from error
        return Entry(record, self._files.end)

    def acked(self, through: Position) -> None:
        """Notes that every final up to ``through`` is safe elsewhere, and lets go of segments that
        nothing else needs.
        """
        if through <= self._acked:
            return
        self._acked = through
        try:
            self._append(segments.frame(Kind.ACK, _PLACE.pack(*through)))
        except OSError as error:
            # After a restart these finals are sent once more, and known there.
            _LOG.warning("The journal took no acknowledgement: %s", error.strerror)
        self._files.delete_before(through.segment)

    def unacknowledged(self, after: Position, count_max: int) -> list[Entry]:
        """Up to ``count_max`` finals behind ``after``, oldest first."""
        found: list[Entry] = []
        for number in self._files.numbers():
            if number < after.segment:
                continue
            start = after.offset if number == after.segment else 0
            for one in self._files.frames(number, start):
                if one.kind == Kind.FINAL:
                    found.append(Entry(one.payload, Position(number, one.end)))
                    if len(found) == count_max:
                        return found
        return found

    def close(self) -> None:
        """Lets go of files and lock; what is not acknowledged stays for the next start."""
        self._files.close()

    def _land(self, attempt_id: str) -> None:
        """The attempt is no longer under way, if it was."""
        if flight := self._flights.pop(attempt_id, None):
            self._room -= flight.room

    def _append(self, data: bytes) -> None:
        # To carry over costs at most half of ``_room``: it must not come more often than that pays.
        if self._files.written >= max(self._segment_bytes, self._room):
            self._begin()
        self._files.append(data)

    def _begin(self, more: Iterable[bytes] = ()) -> None:
        """Begins a segment that stands for itself: all that is still needed, then ``more``."""
        carried = [segments.frame(Kind.OPEN, _EPOCH.pack(self.epoch))]
        carried.append(segments.frame(Kind.ACK, _PLACE.pack(*self._acked)))
        for flight in self._flights.values():
            carried += flight.frames()
        self._files.begin(b"".join([*carried, *more]))


def _segment_bytes(bytes_max: int) -> int:
    """When a segment is long enough; small journals have small ones."""
    return min(SEGMENT_BYTES_MAX, bytes_max // SEGMENTS_MIN)


def _full(what: str) -> GatewayError:
    return GatewayError(
        error_pb2.ERROR_REASON_JOURNAL_FULL,
        f"The router's journal {what}.",
        retry_after_ms=1000,
    )


class _Replay:
    """What the segments say, read in their order."""

    def __init__(self, *, salvage: bool) -> None:
        self.epoch = 0
        self.acked = Position(0, 0)
        self.flights: dict[str, _Flight] = {}
        self.skipped_bytes = 0
        self._salvage = salvage
        self._previous: int | None = None

    def segment(self, files: Files, number: int) -> None:
        """Reads one segment; cuts off what its writer did not finish."""
        if self._previous is not None and number != self._previous + 1:
            self._damaged(files, f"segments {self._previous + 1} to {number - 1} are missing", 0)
        self._previous = number
        data = files.read(number)
        place = 0
        while place < len(data):
            try:
                for one in segments.frames(data, place):
                    self._apply(one)
                return
            except DamageError as damage:
                resume = segments.next_record(data, damage.offset)
                if resume is None and number == files.last:
                    files.truncate(number, damage.offset)
                    return
                place = len(data) if resume is None else resume
                where = f"{files.path(number).name} is damaged at byte {damage.offset}"
                self._damaged(files, where, place - damage.offset)

    def _damaged(self, files: Files, what: str, skipped: int) -> None:
        if not self._salvage:
            raise JournalUnusableError(
                f"The journal in {files.directory} is damaged in its middle: {what}. Calls that"
                " were made may be missing from the usage table. Restore the directory from a"
                " copy, or start once with --salvage, which keeps every record that is whole."
            )
        _LOG.error("The journal skips %d bytes: %s", skipped, what)
        self.skipped_bytes += skipped

    def _apply(self, one: Frame) -> None:
        match one.kind:
            case Kind.OPEN:
                self.epoch = max(self.epoch, *_EPOCH.unpack(one.payload))
            case Kind.ACK:
                self.acked = max(self.acked, Position(*_PLACE.unpack(one.payload)))
            case Kind.DISPATCHED:
                self.flights[_attempt_of(one)] = _Flight(one.payload, _room(one.payload))
            case Kind.PROGRESS:
                if flight := self.flights.get(attempt := _attempt_of(one)):
                    self.flights[attempt] = flight._replace(progress=one.payload)
            case Kind.FINAL:
                self.flights.pop(_attempt_of(one), None)
            case _:
                raise JournalUnusableError(
                    f"The journal has a record of kind {one.kind}, which a newer version wrote:"
                    " run that version."
                )


def _attempt_of(one: Frame) -> str:
    try:
        return UsageRecord.FromString(one.payload).attempt_id
    except DecodeError as error:
        raise JournalUnusableError(
            f"The journal has a record that this version cannot read: {error}. Run the version"
            " that wrote it."
        ) from error
