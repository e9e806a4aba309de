"""Prometheus' text format, version 0.0.4: pure
(https://prometheus.io/docs/instrumenting/exposition_formats/).

Written here because ``prometheus-client`` comes with an HTTP server and a WSGI framework: 4.6 MB in
each process, for this page.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
"""What :func:`page` makes."""

_LABEL_ESCAPES: Final = str.maketrans({"\\": r"\\", "\n": r"\n", '"': r"\""})
_HELP_ESCAPES: Final = str.maketrans({"\\": r"\\", "\n": r"\n"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One line.

    Attributes:
        labels: names and values.
        value: the number.
        suffix: what comes behind the family's name (``_bucket``).
    """

    labels: Sequence[tuple[str, str]] = ()
    value: float
    suffix: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """One metric with all its series.

    Attributes:
        name: the name, with ``_total`` behind a counter's.
        kind: ``counter``, ``gauge`` or ``histogram``.
        text: what it means, in one sentence.
        samples: its lines.
    """

    name: str
    kind: str
    text: str
    samples: Sequence[Sample]


def page(families: Iterable[Family]) -> bytes:
    """All metrics, one after the other."""
    return "".join(line for family in families for line in _lines(family)).encode()


def _lines(family: Family) -> Iterable[str]:
    name = family.name
    yield f"# HELP {name} {family.text.translate(_HELP_ESCAPES)}\n# TYPE {name} {family.kind}\n"
    for sample in family.samples:
        # Go's notation, which is also Python's but for infinity and "not a number"; neither comes.
        yield f"{name}{sample.suffix}{_labels(sample.labels)} {float(sample.value)!r}\n"


def _labels(labels: Sequence[tuple[str, str]]) -> str:
    if not labels:
        return ""
    pairs = (f'{name}="{value.translate(_LABEL_ESCAPES)}"' for name, value in labels)
    return f"{{{','.join(pairs)}}}"
