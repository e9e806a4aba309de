"""A native stream under way: its chunks are passed on where they come in, without its task.

Most chunks of a stream that is forwarded as it is come alone, are one event, and are sent on byte
for byte. To wake the call's task for each would cost more than all that is done with it. Whatever
is not so plain is left to the task: it alone waits, fails and settles.
"""

from collections.abc import Callable
from dataclasses import dataclass

from runtime.calls import ServerCall
from runtime.lone_native import packed
from runtime.sse import SseParser
from services.router.money.settlement import PROGRESS_BYTES, PROGRESS_S, Attempt
from services.router.parts import Journal
from services.router.providers.base import Stream
from services.router.upstream.watchdog import Watch


class Notes:
    """Tells the journal now and then how far a stream got."""

    __slots__ = ("_attempt", "_journal", "cost_nano_usd", "next_bytes", "next_s")

    def __init__(self, journal: Journal, attempt: Attempt, now_s: float) -> None:
        self._journal = journal
        self._attempt = attempt
        self.next_bytes = PROGRESS_BYTES
        self.next_s = now_s + PROGRESS_S
        self.cost_nano_usd = 0
        """What the last note says."""

    def take(self, stream: Stream, now_s: float) -> bool:
        """Writes a note when one is due; whether it was."""
        if stream.output_bytes < self.next_bytes and now_s < self.next_s:
            return False
        self.next_bytes = stream.output_bytes + PROGRESS_BYTES
        self.next_s = now_s + PROGRESS_S
        attempt = self._attempt
        tokens = attempt.at_least(stream)
        self.cost_nano_usd = attempt.cost(tokens)
        self._journal.progress(attempt.attempt_id, tokens, self.cost_nano_usd)
        return True


@dataclass(slots=True, kw_only=True)
class Forwarder:
    """Takes a stream's chunks in while its task waits for them."""

    call: ServerCall
    watch: Watch
    deadline_s: float
    """The call's own."""
    stall_s: float
    """How long the stream may pause."""
    stream: Stream
    parser: SseParser
    notes: Notes
    monotonic: Callable[[], float]

    def take(self, chunk: bytes) -> bool:
        """Sends a chunk on that is one ordinary event. False, and nothing has changed, when the
        task has to look at it: to wait for the caller, to write a note, to end the stream.
        """
        send = self.call.send_now
        if send is None or not self.parser.is_line(chunk):
            return False
        stream, notes = self.stream, self.notes
        now_s = self.monotonic()
        # No more can be said in it than it has bytes.
        if stream.output_bytes + len(chunk) >= notes.next_bytes or now_s >= notes.next_s:
            return False
        if not stream.forwards(chunk):
            return False
        self.watch.deadline_s = min(now_s + self.stall_s, self.deadline_s)
        send(packed(chunk))
        return True
