"""Who this router is among those that share limits, and what it may admit alone.

A router is a member by its id, which lies in its journal's directory: whoever holds the journal's
lock is that member, so a router that is started again takes its own place. The pool in Valkey
counts a member as present until its lease ends; only after that may the member use its share alone.
Commands prove how fresh they are by the last server time that was heard, so the end of the lease is
known here even when an answer is lost. It touches nothing but that one small file.
"""

from pathlib import Path
from typing import Any, Final, Self

from runtime.clock import Entropy

FRESH_S: Final = 0.75
"""How old the proof in a command may be when Valkey runs it."""
LEASE_S: Final = 0.75
"""How long a member is present after a beat."""
FORGET_S: Final = 300.0
"""How long a missing member's share is kept free for it."""
FILE: Final = "member"


class Member:
    """This router's membership. Times are monotonic seconds, except the server's."""

    def __init__(self, member_id: str, share: float, now_s: float, file: Path | None) -> None:
        self.id = member_id
        self.share = share
        self.live = 0
        self.epoch = "0"
        self.lease_until_s = now_s + FRESH_S + LEASE_S
        self.proof = "0"
        self._proof_at_s = float("-inf")
        self._known: list[str] = []
        self._file = file

    @classmethod
    def open(cls, directory: Path, entropy: Entropy, now_s: float) -> Self:
        """The member whose journal lies in the directory, whose lock must be held; a new one when
        there is none. Raises ``OSError``.
        """
        file = directory / FILE
        try:
            member_id, share = file.read_text().split()
            return cls(member_id, min(max(float(share), 0.0), 1.0), now_s, file)
        except (FileNotFoundError, ValueError):
            return cls(entropy.bytes(8).hex(), 0.0, now_s, file)

    def is_fresh(self, now_s: float) -> bool:
        """Whether Valkey could still take a command with the proof at hand."""
        return now_s - self._proof_at_s <= FRESH_S

    def beat(self, now_s: float) -> list[str]:
        """The arguments of a beat that is sent now."""
        proof = self.proof if self.is_fresh(now_s) else "0"
        if proof != "0":
            until_s = self._proof_at_s + FRESH_S + LEASE_S
            self.lease_until_s = max(self.lease_until_s, until_s)
        times = [_us(FRESH_S), self.id, _us(LEASE_S), _us(FORGET_S)]
        return [proof, *times, repr(self.share), self.epoch, *self._known]

    def prove(self, server_us: bytes, now_s: float) -> None:
        """The server has told its time."""
        self.proof, self._proof_at_s = server_us.decode(), now_s

    def heard(self, reply: list[Any], now_s: float) -> None:
        """A beat was taken: what ``limit_scripts.BEAT`` answers."""
        self.prove(reply[1], now_s)
        self.live = int(reply[3])
        self.epoch = reply[4].decode()
        self._known = [part.decode() for part in reply[5:]]
        share = float(reply[2])
        if share != self.share:
            self.share = share
            self._save()

    def _save(self) -> None:
        """A share that could not be written is not there after a restart, which is safe; an old one
        may be too large, so it goes first.
        """
        if self._file is None:
            return
        try:
            self._file.unlink(missing_ok=True)
            self._file.write_text(f"{self.id} {self.share!r}\n")
        except OSError:
            return


def _us(seconds: float) -> str:
    return str(round(seconds * 1_000_000))
