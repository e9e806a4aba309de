"""The router's journal on a real disk: cut, damaged, full, locked and killed."""

import json
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

from onegate.common.v1 import error_pb2
from onegate.common.v1.token_usage_pb2 import TokenUsage
from onegate.usage.v1 import usage_record_pb2
from onegate.usage.v1.usage_record_pb2 import UsageRecord
from runtime.errors import GatewayError
from services.router.money.journal import FINAL_ROOM_BYTES, Entry, Journal
from services.router.money.journal_files import JournalUnusableError, Position
from services.router.money.segments import Kind, frame, frames

MIB = 1024 * 1024
START = Position(0, 0)


def attempt(number: int) -> str:
    return f"01900000-0000-7000-8000-{number:012d}"


def dispatched(number: int, cost_nano_usd: int = 0) -> UsageRecord:
    return UsageRecord(
        attempt_id=attempt(number),
        request_id=f"req-{number}",
        key_id="key_1",
        model="openai/gpt-4o",
        price_version="source:openai/gpt-4o:1",
        cost_nano_usd=cost_nano_usd,
    )


def final(number: int, cost: int = 7) -> UsageRecord:
    record = dispatched(number, cost_nano_usd=cost)
    record.outcome = usage_record_pb2.OUTCOME_COMPLETED
    record.certainty = usage_record_pb2.CERTAINTY_REPORTED
    record.tokens.output_tokens = number
    return record


def interrupted(number: int, output_tokens: int | None = None, cost: int = 0) -> UsageRecord:
    record = dispatched(number, cost_nano_usd=cost)
    record.outcome = usage_record_pb2.OUTCOME_INTERRUPTED
    record.certainty = usage_record_pb2.CERTAINTY_UNCERTAIN
    record.error_reason = error_pb2.ERROR_REASON_ROUTER_UNAVAILABLE
    if output_tokens is not None:
        record.tokens.output_tokens = output_tokens
    return record


def sealed(record: UsageRecord) -> tuple[str, bytes]:
    """A record as the journal takes it."""
    return record.attempt_id, record.SerializeToString()


def segment_files(directory: Path) -> list[Path]:
    return sorted(directory.glob("*.journal"))


def kinds(path: Path) -> list[int]:
    return [one.kind for one in frames(path.read_bytes())]


def all_unacknowledged(journal: Journal) -> list[UsageRecord]:
    entries: list[Entry] = []
    place = journal.acknowledged
    while more := journal.unacknowledged(place, 3):
        entries += more
        place = more[-1].position
    return [UsageRecord.FromString(entry.record) for entry in entries]


def test_an_empty_journal_has_nothing_to_recover(tmp_path: Path) -> None:
    journal = Journal.open(tmp_path / "deep" / "journal", MIB)
    assert journal.recovered == []
    assert journal.epoch == 1
    assert (tmp_path / "deep" / "journal").stat().st_mode & 0o777 == 0o700
    journal.close()


def test_finals_come_back_until_they_are_acknowledged(tmp_path: Path) -> None:
    journal = Journal.open(tmp_path, MIB)
    entries = []
    for number in range(1, 4):
        journal.dispatched(*sealed(dispatched(number)))
        entries.append(journal.final(*sealed(final(number))))
    journal.acked(entries[0].position)
    assert all_unacknowledged(journal) == [final(2), final(3)]
    journal.close()

    again = Journal.open(tmp_path, MIB)
    assert again.recovered == [final(2), final(3)]
    assert again.acknowledged == entries[0].position
    again.acked(again.end)
    again.close()

    third = Journal.open(tmp_path, MIB)
    assert third.recovered == []
    assert third.epoch == 3
    third.close()


def test_an_attempt_under_way_is_settled_from_its_last_progress_and_flagged(
    tmp_path: Path,
) -> None:
    journal = Journal.open(tmp_path, MIB)
    journal.dispatched(*sealed(dispatched(1)))
    journal.dispatched(*sealed(dispatched(2, cost_nano_usd=40)))
    journal.dispatched(*sealed(dispatched(3, cost_nano_usd=40)))
    journal.progress(attempt(1), TokenUsage(output_tokens=256), 11)
    journal.progress(attempt(1), TokenUsage(output_tokens=512), 22)
    journal.progress(attempt(3), TokenUsage(output_tokens=3), 2)
    journal.progress(attempt(9), TokenUsage(output_tokens=512), 22)
    journal.close()

    again = Journal.open(tmp_path, MIB)
    expected = [interrupted(1, 512, 22), interrupted(2, cost=40), interrupted(3, 3, cost=40)]
    assert again.recovered == expected
    again.close()

    # What was recovered is final: another death changes nothing about it.
    third = Journal.open(tmp_path, MIB)
    assert third.recovered == expected
    third.close()


def test_a_second_process_is_refused_and_told_what_to_do(tmp_path: Path) -> None:
    journal = Journal.open(tmp_path, MIB)
    with pytest.raises(JournalUnusableError, match="journal_dir of its own"):
        Journal.open(tmp_path, MIB)
    journal.close()
    journal.close()
    Journal.open(tmp_path, MIB).close()


def test_a_directory_that_cannot_be_made_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(JournalUnusableError, match="cannot be used"):
        Journal.open(tmp_path / "file" / "journal", MIB)


def expected_after(path: Path) -> list[UsageRecord]:
    """What must be recovered from one segment, by a reading of its own."""
    ended: dict[str, UsageRecord] = {}
    running: dict[str, UsageRecord] = {}
    acked = 0
    for one in frames(path.read_bytes()):
        record = UsageRecord.FromString(one.payload) if one.kind in (2, 3, 4) else UsageRecord()
        if one.kind == Kind.ACK:
            acked = int.from_bytes(one.payload[8:16], "little")
            ended = {k: v for k, v in ended.items() if v.duration_us > acked}
        elif one.kind == Kind.DISPATCHED:
            running[record.attempt_id] = record
        elif one.kind == Kind.PROGRESS:
            running[record.attempt_id].tokens.CopyFrom(record.tokens)
            running[record.attempt_id].cost_nano_usd = record.cost_nano_usd
        elif one.kind == Kind.FINAL:
            running.pop(record.attempt_id)
            record.duration_us = one.end
            ended[record.attempt_id] = record
    for record in ended.values():
        record.duration_us = 0
    for record in running.values():
        record.outcome = usage_record_pb2.OUTCOME_INTERRUPTED
        record.certainty = usage_record_pb2.CERTAINTY_UNCERTAIN
        record.error_reason = error_pb2.ERROR_REASON_ROUTER_UNAVAILABLE
    return [*ended.values(), *running.values()]


def busy_segment(directory: Path) -> bytes:
    """One segment with records of every kind."""
    journal = Journal.open(directory, MIB)
    journal.dispatched(*sealed(dispatched(1)))
    journal.dispatched(*sealed(dispatched(2)))
    journal.progress(attempt(2), TokenUsage(output_tokens=256), 5)
    first = journal.final(*sealed(final(1)))
    journal.dispatched(*sealed(dispatched(3)))
    journal.acked(first.position)
    journal.final(*sealed(final(3)))
    journal.progress(attempt(2), TokenUsage(output_tokens=512), 9)
    journal.dispatched(*sealed(dispatched(4)))
    journal.final(*sealed(final(2)))
    journal.close()
    (path,) = segment_files(directory)
    return path.read_bytes()


def test_a_journal_cut_at_any_byte_keeps_every_whole_record(tmp_path: Path) -> None:
    data = busy_segment(tmp_path / "whole")
    ends = [0, *(one.end for one in frames(data))]
    for cut in range(len(data) + 1):
        directory = tmp_path / str(cut)
        directory.mkdir()
        path = directory / "000000000001.journal"
        path.write_bytes(data[:cut])
        journal = Journal.open(directory, MIB)
        assert journal.skipped_bytes == 0
        remaining = path.read_bytes() if journal.end.segment == 2 else b""
        assert len(remaining) == max(end for end in ends if end <= cut)
        if remaining:
            assert journal.recovered == expected_after(path)
        # It goes on as if nothing had happened, and so does the next start.
        journal.dispatched(*sealed(dispatched(50)))
        before = journal.recovered
        journal.final(*sealed(final(50)))
        journal.close()
        again = Journal.open(directory, MIB)
        assert again.recovered == [*before, final(50)]
        again.close()


def test_a_journal_damaged_at_any_byte_of_its_middle_refuses_to_start(tmp_path: Path) -> None:
    data = busy_segment(tmp_path / "whole")
    last = list(frames(data))[-1]
    directory = tmp_path / "damaged"
    directory.mkdir()
    path = directory / "000000000001.journal"
    for byte in range(0, last.start, 3):
        changed = bytearray(data)
        changed[byte] ^= 0xFF
        path.write_bytes(changed)
        with pytest.raises(JournalUnusableError, match="--salvage"):
            Journal.open(directory, MIB)
        assert path.read_bytes() == changed


def test_salvage_keeps_every_record_that_is_whole(tmp_path: Path) -> None:
    data = busy_segment(tmp_path / "whole")
    broken = [one for one in frames(data) if one.kind == Kind.FINAL][1]
    directory = tmp_path / "damaged"
    directory.mkdir()
    changed = bytearray(data)
    changed[broken.start + 20] ^= 0xFF
    (directory / "000000000001.journal").write_bytes(changed)
    journal = Journal.open(directory, MIB, salvage=True)
    assert journal.skipped_bytes == broken.end - broken.start
    # The final of attempt 3 is gone; that it was dispatched is not.
    assert sorted(r.attempt_id for r in journal.recovered) == [attempt(2), attempt(3), attempt(4)]
    assert interrupted(3) in journal.recovered
    assert all_unacknowledged(journal) == journal.recovered
    journal.close()


def small(directory: Path, **options: Any) -> Journal:
    """A journal with segments of 4 KiB."""
    return Journal.open(directory, 64 * 1024, **options)


def test_a_missing_segment_is_damage_too(tmp_path: Path) -> None:
    journal = small(tmp_path)
    for number in range(60):
        journal.dispatched(*sealed(dispatched(number)))
        journal.final(*sealed(final(number)))
    journal.close()
    assert len(segment_files(tmp_path)) > 2
    segment_files(tmp_path)[1].unlink()
    with pytest.raises(JournalUnusableError, match="missing"):
        small(tmp_path)
    journal = small(tmp_path, salvage=True)
    assert 20 < len(journal.recovered) < 60
    journal.close()


def test_a_torn_end_before_another_segment_is_damage(tmp_path: Path) -> None:
    journal = small(tmp_path)
    for number in range(60):
        journal.dispatched(*sealed(dispatched(number)))
        journal.final(*sealed(final(number)))
    journal.close()
    first = segment_files(tmp_path)[0]
    os.truncate(first, first.stat().st_size - 1)
    with pytest.raises(JournalUnusableError, match=r"000001\.journal is damaged at byte"):
        small(tmp_path)


def test_what_a_newer_version_wrote_is_not_guessed_at(tmp_path: Path) -> None:
    opening = frame(Kind.OPEN, bytes(8))
    for unknown in (frame(Kind.DISPATCHED, b"\xff\xff"), frame(99, b"")):  # type: ignore[arg-type]
        (tmp_path / "000000000001.journal").write_bytes(opening + unknown + opening)
        with pytest.raises(JournalUnusableError, match="version"):
            Journal.open(tmp_path, MIB)


def test_a_segment_that_cannot_be_read_is_said(tmp_path: Path) -> None:
    (tmp_path / "000000000001.journal").mkdir()
    with pytest.raises(JournalUnusableError, match="fails"):
        Journal.open(tmp_path, MIB)


def test_acknowledged_segments_go_and_the_journal_stays_small(tmp_path: Path) -> None:
    journal = small(tmp_path)
    journal.dispatched(*sealed(dispatched(10_000)))
    for number in range(2000):
        journal.dispatched(*sealed(dispatched(number)))
        journal.progress(attempt(10_000), TokenUsage(output_tokens=number), number)
        journal.acked(journal.final(*sealed(final(number))).position)
        assert journal.bytes_used < 16 * 1024
    assert journal.bytes_used == sum(path.stat().st_size for path in segment_files(tmp_path))
    assert journal.end.segment > 50
    journal.close()
    # A call that has run all the time was carried along, its progress too.
    again = small(tmp_path)
    assert again.recovered == [interrupted(10_000, 1999, 1999)]
    again.close()


def test_a_segment_stays_until_its_last_final_is_acknowledged(tmp_path: Path) -> None:
    journal = small(tmp_path)
    entries = [journal.final(*sealed(final(number))) for number in range(100)]
    acknowledged = next(
        number
        for number, entry in enumerate(entries)
        if entry.position.segment == 2 and entries[number + 1].position.segment == 2
    )
    journal.acked(entries[acknowledged].position)
    assert all_unacknowledged(journal) == [final(n) for n in range(acknowledged + 1, 100)]
    journal.close()
    again = small(tmp_path)
    assert again.recovered == [final(n) for n in range(acknowledged + 1, 100)]
    again.close()


def test_a_final_in_an_old_segment_is_found_behind_a_chunk_of_reading(tmp_path: Path) -> None:
    journal = Journal.open(tmp_path, 64 * MIB)
    long = final(1)
    long.tokens.extra_json = b"x" * 1_000_000
    journal.final(*sealed(final(0)))
    journal.final(*sealed(long))
    journal.final(*sealed(final(2)))
    assert all_unacknowledged(journal) == [final(0), long, final(2)]
    journal.close()


def test_damage_that_comes_while_it_runs_is_skipped_when_read(tmp_path: Path) -> None:
    journal = Journal.open(tmp_path, MIB)
    for number in range(4):
        journal.final(*sealed(final(number)))
    (path,) = segment_files(tmp_path)
    data = bytearray(path.read_bytes())
    second = [one for one in frames(bytes(data)) if one.kind == Kind.FINAL][1]
    data[second.start + 15] ^= 1
    path.write_bytes(data)
    assert all_unacknowledged(journal) == [final(0), final(2), final(3)]
    last = list(frames(bytes(data[second.end :])))[-1]
    data[second.end + last.start + 15] ^= 1
    path.write_bytes(data)
    assert all_unacknowledged(journal) == [final(0), final(2)]
    journal.close()


def test_a_full_journal_refuses_new_attempts_and_still_takes_every_final(tmp_path: Path) -> None:
    journal = small(tmp_path)
    running: list[int] = []

    def fill() -> None:
        while True:
            journal.dispatched(*sealed(dispatched(len(running))))
            running.append(len(running))

    with pytest.raises(GatewayError) as refused:
        fill()
    assert refused.value.reason == error_pb2.ERROR_REASON_JOURNAL_FULL
    assert refused.value.retry_after_ms > 0
    assert len(running) > 10
    journal.progress(attempt(0), TokenUsage(output_tokens=1), 1)
    for number in running:
        record = final(number)
        record.tokens.extra_json = b"x" * (FINAL_ROOM_BYTES - 100)
        journal.final(*sealed(record))
    assert journal.bytes_used <= 64 * 1024
    with pytest.raises(GatewayError):
        fill()
    assert journal.bytes_used <= 64 * 1024
    for number in running:
        journal.acked(journal.final(*sealed(final(number))).position)
    journal.acked(journal.end)
    journal.dispatched(*sealed(dispatched(1000)))
    journal.close()


def test_an_attempt_that_is_dispatched_twice_keeps_room_once(tmp_path: Path) -> None:
    journal = small(tmp_path)
    for _ in range(200):
        journal.dispatched(*sealed(dispatched(1)))
        journal.acked(journal.end)
    journal.final(*sealed(final(1)))
    assert journal.unacknowledged(START, 9)[0].record == final(1).SerializeToString()
    journal.close()


HEAD = "import sys\nfrom tests.services.router.test_journal import *\n"


def run(program: str, *arguments: str) -> "subprocess.CompletedProcess[str]":
    """A process of its own that has this module's records at hand."""
    return subprocess.run(
        [sys.executable, "-c", HEAD + textwrap.dedent(program), *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def test_on_a_full_disk_attempts_are_refused_and_finals_take_the_reserve(tmp_path: Path) -> None:
    """The disk is full in so far as no file may grow beyond what is there: the same error path,
    without a file system of our own.
    """
    done = run(
        """
        import resource
        journal = Journal.open(sys.argv[1], 1024 * 1024)
        for number in range(20):
            journal.dispatched(*sealed(dispatched(number)))
        path, = segment_files(Path(sys.argv[1]))
        hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
        resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 1000, hard))
        refused = []
        def refuse(number):
            try:
                while True:
                    journal.dispatched(*sealed(dispatched(number)))
                    number += 1
            except GatewayError as error:
                refused.append(error.reason)
        refuse(100)
        assert (Path(sys.argv[1]) / "reserve").exists()
        journal.progress(attempt(1), TokenUsage(extra_json=bytes(200)), 1)
        for offset in range(1, 9):
            journal.acked(Position(1, offset))
        finals = 0
        for number in range(8):
            journal.final(*sealed(final(number)))
            finals += 1
        refuse(101)
        assert not (Path(sys.argv[1]) / "reserve").exists()
        resource.setrlimit(resource.RLIMIT_FSIZE, (50, hard))
        try:
            journal.final(*sealed(final(8)))
        except GatewayError as error:
            refused.append(error.reason)
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
        journal.dispatched(*sealed(dispatched(200)))
        journal.close()
        print(json.dumps([finals, refused]))
        """,
        str(tmp_path),
    )
    assert done.returncode == 0, done.stderr
    finals, refused = json.loads(done.stdout)
    assert finals >= 8
    assert refused == [error_pb2.ERROR_REASON_JOURNAL_FULL] * 3
    journal = Journal.open(tmp_path, MIB)
    assert {r.attempt_id for r in journal.recovered} >= {attempt(n) for n in range(finals)}
    assert [r for r in journal.recovered if r.outcome == 1] == [final(n) for n in range(finals)]
    journal.close()


KILLED = """
    journal = Journal.open(sys.argv[1], 1024 * 1024)
    for number in range(10_000_000):
        journal.dispatched(*sealed(dispatched(number)))
        print("d", number, flush=True)
        ending = number if number % 3 else number - 30
        if ending >= 0:
            entry = journal.final(*sealed(final(ending)))
            print("f", ending, flush=True)
            if number % 4 == 0:
                print("a", ending, flush=True)
                journal.acked(entry.position)
"""


@pytest.mark.parametrize("after", [1, 20, 333, 1500])
def test_kill_9_loses_no_record_whose_call_returned(tmp_path: Path, after: int) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", HEAD + textwrap.dedent(KILLED), str(tmp_path)],
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        seen = [process.stdout.readline() for _ in range(after)]
        process.send_signal(signal.SIGKILL)
        seen += process.stdout.readlines()
    assert process.returncode == -signal.SIGKILL

    told = [(line[0], int(line[2:])) for line in seen if line.endswith("\n")]
    ended = [number for what, number in told if what == "f"]
    # An acknowledgement is told before it is made: what it covers may be there or not.
    acked = [number for what, number in told if what == "a"]
    may_be_gone = set(ended[: ended.index(acked[-1]) + 1]) if acked else set()
    gone = set(ended[: ended.index(acked[-2]) + 1]) if acked[1:] else set()

    journal = Journal.open(tmp_path, 64 * 1024)
    recovered = {record.attempt_id: record for record in journal.recovered}
    journal.close()
    assert not recovered.keys() & {attempt(number) for number in gone}
    for number in {n for what, n in told if what == "d"} - may_be_gone:
        record = recovered[attempt(number)]
        if number in ended:
            assert record == final(number)
        else:
            assert record in (interrupted(number), final(number))
