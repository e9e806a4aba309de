"""What sums of usage are grouped by, as the command line names it."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import typer

from onegate.usage.v1 import usage_service_pb2 as pb

WORDS: Final = (
    "model",
    "provider",
    "credential",
    "project",
    "key",
    "team",
    "feature",
    "customer",
    "end_user",
    "run",
    "endpoint",
    "service_tier",
    "organization",
    "day",
)
_TAG: Final = "tag:"
_TAG_NAME: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_./ -]{0,63}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Groups:
    """Checked.

    Attributes:
        names: as they were asked for, each once.
        tag: the name of the tag among them; empty without one.
    """

    names: tuple[str, ...]
    tag: str = ""

    @property
    def dimensions(self) -> list[pb.UsageDimension.ValueType]:
        """As the contract names them."""
        words = (name.partition(":")[0].upper() for name in self.names)
        return [pb.UsageDimension.Value(f"USAGE_DIMENSION_{word}") for word in words]


def groups_of(asked: Sequence[str]) -> Groups:
    """What ``--by`` says, once or often, or with commas. Ends the command when it is unknown."""
    names = list(dict.fromkeys(name.strip() for text in asked for name in text.split(",")))
    tags = [name.removeprefix(_TAG) for name in names if name.startswith(_TAG)]
    for name in names:
        tag = name.removeprefix(_TAG)
        if name not in WORDS and (tag == name or not _TAG_NAME.fullmatch(tag)):
            raise typer.BadParameter(
                f"{name!r} is not one of {', '.join(WORDS)} or tag:NAME.", param_hint="--by"
            )
    if len(tags) > 1:
        raise typer.BadParameter("one tag can be grouped by at a time.", param_hint="--by")
    return Groups(names=tuple(names), tag=tags[0] if tags else "")
