"""Every way in which an answer can end, under a strict budget: billed as the provider's tally says,
or flagged.

    python -m tests.money.endings
"""

import contextlib
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import httpx2

from tests.fake_provider import Fault, Reply
from tests.money.fleet import NANO_PER_TOKEN
from tests.money.kills import CAP, PLAIN, SETTLED_S, STREAM, World, wait, world
from tests.money.oracle import compared

SLOWLY = replace(STREAM, chunk_delay_s=0.01)
STALLS = {"ONEGATE_ROUTER_STALL_TIMEOUT_S": "1", "ONEGATE_ROUTER_FIRST_BYTE_TIMEOUT_S": "2"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Ending:
    """How one answer ends.

    Args:
        name: who the call says that it is.
        reply: what the provider does.
        stream: whether a stream is asked for.
        leaves_after: after how many lines of the stream the caller leaves; -1 for never.
        reported: the tokens that the provider says, where that is not what it produced.
    """

    name: str
    reply: Reply
    stream: bool = True
    leaves_after: int = -1
    reported: int | None = None


@dataclass(slots=True)
class Replies:
    """What the provider does with each caller."""

    by_name: dict[str, Reply] = field(default_factory=dict)

    def choose(self, taken: Any) -> Reply:
        """By the request's ``user``."""
        return self.by_name[taken.json["user"]]


def usage(tokens: int) -> Mapping[str, int]:
    """What a provider says that it used."""
    return {"prompt_tokens": 7, "completion_tokens": tokens, "total_tokens": 7 + tokens}


BREAKS = (Fault.CLOSE, Fault.RESET, Fault.END, Fault.ERROR_EVENT)
LEAVES = (0, 1, 2, 3, 5, 8, 13, 21, 34, 48, 60, 63)
ABSURD = 50_000
ENDINGS = (
    *(Ending(name=f"leaves.{n}", reply=SLOWLY, leaves_after=n) for n in LEAVES),
    *(
        Ending(name=f"{fault.name}.{after}", reply=replace(STREAM, fault=fault, fault_after=after))
        for fault in BREAKS
        for after in (1, 2, 16, 31)
    ),
    *(
        Ending(
            name=f"{fault.name}.plain",
            reply=replace(PLAIN, fault=fault, fault_after=200),
            stream=False,
        )
        for fault in (Fault.CLOSE, Fault.RESET)
    ),
    *(
        Ending(name=f"missing.{stream}", reply=replace(STREAM, usage=None), stream=stream)
        for stream in (True, False)
    ),
    *(
        Ending(
            name=f"says.{said}.{stream}",
            reply=replace(STREAM, usage=dict(usage(said))),
            stream=stream,
            reported=said,
        )
        for said in (0, ABSURD)
        for stream in (True, False)
    ),
)
STALLING = tuple(
    Ending(name=f"HANG.{after}", reply=replace(STREAM, fault=Fault.HANG, fault_after=after))
    for after in (0, 1, 2, 16, 31)
)


def run_ending(given: World, ending: Ending, replies: Replies) -> tuple[str, list[str]]:
    """One call; how it is on record, and what is wrong with that."""
    replies.by_name[ending.name] = ending.reply
    spent = given.spent()
    call(given, ending)

    def faults() -> list[str]:
        records = [r for r in given.books.records(50) if r.attribution.end_user == ending.name]
        tally = [one for one in given.tally.read() if one[1] == ending.name]
        if ending.reported is not None:
            tally = [(name, user, ending.reported) for name, user, _ in tally]
        verdict = compared(records, tally)
        if given.held():
            verdict.faults.append("something is held")
        if given.spent() - spent != verdict.charged_nano_usd:
            verdict.faults.append("the budget was charged something else")
        kind = "exact" if verdict.exact else "flagged" if verdict.flagged else "none"
        said[:] = [f"{kind} {verdict.charged_nano_usd // NANO_PER_TOKEN}"]
        return verdict.faults

    said: list[str] = [""]
    with contextlib.suppress(AssertionError):
        wait(lambda: not faults(), SETTLED_S / 4, "the settlement")
    return said[0], faults()


def call(given: World, ending: Ending) -> None:
    """The caller's part."""
    body = {
        "model": "fake/m",
        "messages": [{"role": "user", "content": "Hello!"}],
        "max_completion_tokens": CAP,
        "user": ending.name,
        "stream": ending.stream,
    }
    with (
        contextlib.suppress(httpx2.HTTPError),
        httpx2.stream(
            "POST",
            f"{given.fleet.url()}/v1/chat/completions",
            json=body,
            headers={"authorization": f"Bearer {given.fleet.api_key}"},
            timeout=30,
        ) as answer,
    ):
        for number, _ in enumerate(answer.iter_lines()):
            if number == ending.leaves_after:
                return


def main() -> int:
    """Prints the table; 1 when a line is wrong."""
    wrong = 0
    began = time.monotonic()
    for endings, environment in ((ENDINGS, {}), (STALLING, STALLS)):
        replies = Replies()
        with world("sqlite", environment) as given:
            given.provider.choose = replies.choose
            for ending in endings:
                said, faults = run_ending(given, ending, replies)
                print(f"{ending.name:20}{said:16}{'; '.join(faults) or 'right'}", flush=True)
                wrong += bool(faults)
    count = len(ENDINGS) + len(STALLING)
    print(f"{count} endings, {wrong} wrong, {time.monotonic() - began:.0f} s")
    return 1 if wrong else 0


if __name__ == "__main__":
    raise SystemExit(main())
