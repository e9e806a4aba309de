"""The two sides of one comparison, side by side on disk, so that a bill of any length needs little
memory.

It is a database of SQLite's that has no name, lives in a temporary file and is gone when it is
closed (https://www.sqlite.org/inmemorydb.html#temp_db): nothing in it is worth keeping.
"""

import enum
import sqlite3
from collections.abc import Iterable, Iterator
from typing import Final

from services.usage.reconcile.bills import Figures, Pair, Said, plus

_CACHE_KIB: Final = 16 * 1024

_TABLE: Final = (
    "CREATE TABLE {side} (place TEXT PRIMARY KEY, about TEXT NOT NULL, count INTEGER NOT NULL,"
    " input_tokens INTEGER NOT NULL, cached_input_tokens INTEGER NOT NULL,"
    " output_tokens INTEGER NOT NULL, cost_usd TEXT NOT NULL) WITHOUT ROWID"
)
_ADD: Final = (
    "INSERT INTO {side} VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT (place) DO UPDATE SET"
    " count = count + excluded.count,"
    " input_tokens = input_tokens + excluded.input_tokens,"
    " cached_input_tokens = cached_input_tokens + excluded.cached_input_tokens,"
    " output_tokens = output_tokens + excluded.output_tokens,"
    " cost_usd = plus(cost_usd, excluded.cost_usd)"
)
_READ: Final = (
    "SELECT place, about, count, input_tokens, cached_input_tokens, output_tokens, cost_usd"
    " FROM {side} ORDER BY place"
)


class Side(enum.StrEnum):
    """Who says it."""

    THEIRS = "theirs"
    OURS = "ours"


class Scratch:
    """Adds up what two sides say, by place. Blocks: runs on a thread that may wait, one call at a
    time.
    """

    def __init__(self) -> None:
        # Each call comes from a thread of its own, never two at once.
        self._line = sqlite3.connect("", isolation_level=None, check_same_thread=False)
        self._line.create_function("plus", 2, plus, deterministic=True)
        self._line.execute(f"PRAGMA cache_size = -{_CACHE_KIB}")
        self._line.execute("PRAGMA journal_mode = OFF")
        self._line.execute("PRAGMA synchronous = OFF")
        for side in Side:
            self._line.execute(_TABLE.format(side=side))

    def add(self, side: Side, said: Iterable[Said]) -> None:
        """Adds what one side says of some places; what is known about a place is said first."""
        self._line.execute("BEGIN")
        self._line.executemany(
            _ADD.format(side=side),
            (
                (
                    place,
                    about,
                    one.count,
                    one.input_tokens,
                    one.cached_input_tokens,
                    one.output_tokens,
                    one.cost_usd,
                )
                for place, about, one in said
            ),
        )
        self._line.execute("COMMIT")

    def pairs(self) -> Iterator[Pair]:
        """All places in order, each with what both sides say of it."""
        theirs, ours = (self._side(side) for side in Side)
        one, other = next(theirs, None), next(ours, None)
        while one is not None or other is not None:
            place = min(found.place for found in (one, other) if found is not None)
            mine = one if one is not None and one.place == place else None
            own = other if other is not None and other.place == place else None
            yield Pair(theirs=mine, ours=own)
            if mine is not None:
                one = next(theirs, None)
            if own is not None:
                other = next(ours, None)

    def close(self) -> None:
        """Forgets everything."""
        self._line.close()

    def _side(self, side: Side) -> Iterator[Said]:
        rows = self._line.execute(_READ.format(side=side))
        for place, about, count, all_input, cached, output, cost in rows:
            figures = Figures(
                count=count,
                input_tokens=all_input,
                cached_input_tokens=cached,
                output_tokens=output,
                cost_usd=cost,
            )
            yield Said(place, about, figures)
