"""What the kernel knows of this process, under the names that every Prometheus client library gives
it (https://prometheus.io/docs/instrumenting/writing_clientlibs/#process-metrics).
"""

import resource
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from runtime.exposition import Family, Sample

_SELF: Final = Path("/proc/self")
_BOOT_LINE: Final = "btime "
_CPU_USER, _CPU_SYSTEM, _STARTED, _VIRTUAL, _RESIDENT = 11, 12, 19, 20, 21
"""Places in ``/proc/self/stat`` behind the command's closing parenthesis
(https://man7.org/linux/man-pages/man5/proc_pid_stat.5.html).
"""


class ProcessMetrics:
    """The process's memory, CPU time and open files; nothing on a system without ``/proc``.

    Args:
        ticks_per_s: in what the kernel counts CPU time.
        page_bytes: in what it counts memory.
    """

    def __init__(self, ticks_per_s: int, page_bytes: int) -> None:
        self._ticks_per_s = ticks_per_s
        self._page_bytes = page_bytes
        self._boot_s = _boot_s()

    def families(self) -> Iterable[Family]:
        """The metrics as they are now."""
        try:
            stat = (_SELF / "stat").read_text()
            files = sum(1 for _ in (_SELF / "fd").iterdir())
        except OSError:
            return
        fields = stat.rpartition(")")[2].split()
        cpu_ticks = int(fields[_CPU_USER]) + int(fields[_CPU_SYSTEM])
        started_s = self._boot_s + int(fields[_STARTED]) / self._ticks_per_s
        resident = int(fields[_RESIDENT]) * self._page_bytes
        yield _gauge("virtual_memory_bytes", "Virtual memory size in bytes.", int(fields[_VIRTUAL]))
        yield _gauge("resident_memory_bytes", "Resident memory size in bytes.", resident)
        yield _gauge(
            "start_time_seconds",
            "Start time of the process since unix epoch in seconds.",
            started_s,
        )
        yield Family(
            name="process_cpu_seconds_total",
            kind="counter",
            text="Total user and system CPU time spent in seconds.",
            samples=[Sample(value=cpu_ticks / self._ticks_per_s)],
        )
        yield _gauge("open_fds", "Number of open file descriptors.", files)
        limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        yield _gauge("max_fds", "Maximum number of open file descriptors.", limit)


def _boot_s() -> int:
    """When the machine started, in Unix seconds; 0 where nobody says."""
    try:
        lines = Path("/proc/stat").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line[len(_BOOT_LINE) :]) for line in lines if line.startswith(_BOOT_LINE)), 0)


def _gauge(name: str, text: str, value: float) -> Family:
    return Family(name=f"process_{name}", kind="gauge", text=text, samples=[Sample(value=value)])
