"""Gives back memory that only starting needed. Linux with the GNU C library; nothing elsewhere.

Two kinds: what the C library keeps of freed blocks, and pages of program code. Starting runs
through much of the interpreter's and the libraries' code once, and a page that was touched stays
mapped for good, counted in every process that has it, though hardly any of it is used again. What
is given back is not lost: a page that is needed after all is mapped again from the page cache.
"""

import ctypes
import gc
import re
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

GIVE_BACK_S: Final = 5.0
"""How long after it serves a process should do so, in seconds: starting goes on for a moment."""

_DONTNEED: Final = 4
"""``MADV_DONTNEED`` (https://man7.org/linux/man-pages/man2/madvise.2.html)."""
_MAPPING: Final = re.compile(r"([0-9a-f]+)-([0-9a-f]+) (\S{4}) \S+ \S+ (\d+)\s*(.*)")


def code_of(smaps: Iterable[str]) -> Iterator[tuple[int, int]]:
    """Addresses and lengths of what programs and libraries have of code and constants.

    Only what may not be written and has no page of this process's own: giving back a page that
    was changed would undo the change.

    Args:
        smaps: the lines of ``/proc/self/smaps``
            (https://man7.org/linux/man-pages/man5/proc_pid_smaps.5.html).
    """
    place: tuple[int, int] | None = None
    for line in smaps:
        if found := _MAPPING.match(line):
            start, end = int(found[1], 16), int(found[2], 16)
            is_code = found[3] in ("r-xp", "r--p") and found[4] != "0" and found[5].startswith("/")
            place = (start, end - start) if is_code else None
        elif place is not None and line.startswith("Anonymous:"):
            if line.split()[1] == "0":
                yield place
            place = None


def give_back() -> None:
    """Collects garbage, then gives back what is free and what is code. Takes some ms."""
    gc.collect()
    if sys.platform != "linux":
        return
    library = ctypes.CDLL(None)
    try:
        trim, advise = library.malloc_trim, library.madvise
        smaps = Path("/proc/self/smaps").read_text("ascii", "replace")
    except (AttributeError, OSError):
        return  # Another C library, or a /proc that tells nothing.
    trim(0)
    for address, length in list(code_of(smaps.splitlines())):
        advise(ctypes.c_void_p(address), ctypes.c_size_t(length), _DONTNEED)
