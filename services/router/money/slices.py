"""Money that is held in advance: a payer who calls often is admitted here, without asking usage.

Pure: the caller brings the times and makes the calls. A slice belongs to one payer. What an
attempt takes of it stays taken; the attempt's record settles it.
"""

from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Final

PAYERS_MAX: Final = 10_000
"""Payers that are remembered; the one that has not called for longest is forgotten."""
BUSY_HOLDS: Final = 8
"""So many holds within ``BUSY_S`` make a slice worth its while."""
BUSY_S: Final = 1.0
CALLS: Final = 64
"""A slice is asked for that serves so many calls like the last."""
CALLS_LEAST: Final = 8
REFUSED_S: Final = 5.0
"""How long no slice is asked for after one was refused: there is not plenty of room."""
IDLE_S: Final = 2.0
"""How long a slice may lie unused before it goes back."""
LEASE_S: Final = 30.0
MARGIN_S: Final = 10.0
"""So long before its lease or its period ends, a slice goes back."""

PayerKey = tuple[str, str, str, str, str, str]
"""Organisation, project, key, customer, feature, run."""


@dataclass(slots=True, kw_only=True)
class Slice:
    """What is left of one."""

    id: str
    left_nano_usd: int
    good_until_s: float
    used_s: float


@dataclass(slots=True)
class _Payer:
    slice: Slice | None = None
    asking: bool = False
    not_before_s: float = 0.0
    holds: int = 0
    since_s: float = field(default=0.0)


class Slices:
    """The slices of one router."""

    def __init__(self) -> None:
        self._payers: OrderedDict[PayerKey, _Payer] = OrderedDict()
        self._done: list[Slice] = []

    def take(self, key: PayerKey, amount_nano_usd: int, now_s: float) -> str:
        """The id of the slice that the amount was taken from; empty when there is none."""
        payer = self._payers.get(key)
        if payer is None or payer.slice is None:
            return ""
        held = payer.slice
        if now_s >= held.good_until_s or held.left_nano_usd < amount_nano_usd:
            self._end(payer)
            return ""
        held.left_nano_usd -= amount_nano_usd
        held.used_s = now_s
        return held.id

    def give_back(self, key: PayerKey, slice_id: str, amount_nano_usd: int) -> None:
        """Nothing was dispatched after all. Only in the same turn of the loop as the take."""
        payer = self._payers.get(key)
        if payer is not None and payer.slice is not None and payer.slice.id == slice_id:
            payer.slice.left_nano_usd += amount_nano_usd

    def wanted(self, key: PayerKey, amount_nano_usd: int, now_s: float) -> int:
        """A hold is being placed one by one: how large a slice to ask for, in nano-USD; 0 for
        none. Whoever asks says what became of it with :meth:`put` or :meth:`refused`.
        """
        payer = self._payers.get(key)
        if payer is None:
            payer = self._payers[key] = _Payer(since_s=now_s)
            self._forget()
        self._payers.move_to_end(key)
        if now_s - payer.since_s > BUSY_S:
            payer.since_s, payer.holds = now_s, 0
        payer.holds += 1
        if payer.holds < BUSY_HOLDS or payer.asking or now_s < payer.not_before_s:
            return 0
        if payer.slice is not None or amount_nano_usd == 0:
            return 0
        payer.asking = True
        return amount_nano_usd * CALLS

    def put(self, key: PayerKey, given: Slice) -> None:
        """The slice that was asked for."""
        payer = self._payers.get(key)
        if payer is None:
            self._done.append(given)
            return
        payer.asking = False
        payer.slice = given

    def refused(self, key: PayerKey, now_s: float) -> None:
        """There was none to be had."""
        payer = self._payers.get(key)
        if payer is not None:
            payer.asking = False
            payer.not_before_s = now_s + REFUSED_S

    def recall(self, slice_ids: frozenset[str], now_s: float) -> None:
        """Usage wants them back."""
        for payer in self._payers.values():
            if payer.slice is not None and payer.slice.id in slice_ids:
                self._end(payer)
                payer.not_before_s = now_s + REFUSED_S

    def returnable(self, now_s: float) -> list[Slice]:
        """The slices that are to be given back now; from none of them anything is taken again."""
        for payer in self._payers.values():
            held = payer.slice
            if held is not None and (now_s >= held.good_until_s or now_s - held.used_s >= IDLE_S):
                self._end(payer)
        done, self._done = self._done, []
        return done

    def close(self) -> None:
        """All of them are to be given back."""
        for payer in self._payers.values():
            self._end(payer)

    def _end(self, payer: _Payer) -> None:
        if payer.slice is not None:
            self._done.append(payer.slice)
            payer.slice = None

    def _forget(self) -> None:
        if len(self._payers) > PAYERS_MAX:
            _, payer = self._payers.popitem(last=False)
            self._end(payer)
