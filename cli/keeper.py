"""What ``onegate up`` becomes once all is said and made: the keeper of its processes.

``cli.up`` reads flags and settings, makes the first keys and words what is to be told; then its
process runs this module instead, which holds nothing but what keeping processes takes and lives as
long as the gateway. Libraries of the command line would cost 20 MB all that time.
"""

import asyncio
import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final, NoReturn

from cli.supervisor import Child, Program, StartError, supervise
from runtime.clock import SystemClock
from runtime.resident import give_back

TUNING: Final = {
    "MALLOC_ARENA_MAX": "2",
    "GRPC_EXPERIMENTS": "-event_engine_client,-event_engine_listener",
}
"""What every process that is kept is tuned with; who sets the same variables otherwise has their
way. The C library is to be sparing with memory
(https://www.gnu.org/software/libc/manual/html_node/Memory-Allocation-Tunables.html). gRPC is to
poll without a pool of threads of its own, which wake each other for every message: a request makes
a third fewer system calls. The image has the same (``Dockerfile``).
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Orders:
    """What the keeper is told.

    Attributes:
        stages: who is started after whom.
        ready_text: what is said once all serve.
        failed_text: what is said when one never does.
    """

    stages: Sequence[Sequence[Program]]
    ready_text: str
    failed_text: str

    def to_json(self) -> bytes:
        """For the way to the keeper."""
        return json.dumps(asdict(self)).encode()

    @classmethod
    def from_json(cls, raw: bytes) -> "Orders":
        """As they were."""
        fields: dict[str, Any] = json.loads(raw)
        stages = [[Program(**program) for program in stage] for stage in fields.pop("stages")]
        return cls(stages=stages, **fields)


def become(
    orders: Orders, lock: int, arguments: Sequence[str], environment: Mapping[str, str]
) -> NoReturn:
    """Runs the keeper in place of this process.

    Args:
        orders: what it is told. It goes through a pipe: there are keys in it, which neither a
            command line nor a file may show.
        lock: the descriptor that holds the data directory's lock; stays open.
        arguments: the flags of ``onegate up``, for whoever looks at the list of processes.
        environment: of the keeper and its processes.
    """
    reading, writing = os.pipe()
    with os.fdopen(writing, "wb") as pipe:
        os.set_blocking(writing, False)  # More than a pipe holds raises, and does not hang.
        pipe.write(orders.to_json())
    for descriptor in (reading, lock):
        os.set_inheritable(descriptor, True)
    sys.stdout.flush()
    sys.stderr.flush()
    command = [sys.executable, "-m", "cli.keeper", str(reading), "up", *arguments]
    os.execve(sys.executable, command, {**TUNING, **environment})  # noqa: S606 - ourselves


def main(arguments: Sequence[str]) -> None:
    """Keeps the processes of the orders in the pipe until Ctrl-C."""
    with os.fdopen(int(arguments[0]), "rb") as pipe:
        orders = Orders.from_json(pipe.read())

    def on_ready(_: Sequence[Child]) -> None:
        _say(orders.ready_text)
        give_back()

    try:
        asyncio.run(supervise(orders.stages, clock=SystemClock(), on_ready=on_ready))
    except StartError as error:
        # Keys are made, and nothing shows them a second time.
        _say(f"{orders.failed_text}error: {error}; the log above says why\n")
        sys.exit(1)


def _say(text: str) -> None:
    """In one piece, between log lines."""
    sys.stderr.write(text)
    sys.stderr.flush()


if __name__ == "__main__":
    main(sys.argv[1:])
