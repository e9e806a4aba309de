"""Bars made of letters, across and upright. Pure.

Lengths are exact to an eighth of a letter where the terminal has blocks
(https://www.unicode.org/charts/PDF/U2580.pdf), and to a whole one where it has none.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

_ACROSS: Final = " ▏▎▍▌▋▊▉█"
_UPRIGHT: Final = " ▁▂▃▄▅▆▇█"
_EIGHTHS: Final = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Pen:
    """What can be drawn with: blocks, or plain letters."""

    blocks: bool

    def bar(self, value: int, most: int, width: int) -> str:
        """A bar across, as long as ``value`` is of ``most``; what is not nothing can be seen."""
        eighths = self._eighths(value, most, width)
        if not self.blocks:
            return "#" * -(-eighths // _EIGHTHS)
        whole, rest = divmod(eighths, _EIGHTHS)
        return _ACROSS[-1] * whole + (_ACROSS[rest] if rest else "")

    def columns(self, values: Sequence[int], height: int, width: int) -> list[str]:
        """Bars upright, the top line first, each ``width`` letters wide."""
        most = max(values, default=0)
        filled = [self._eighths(value, most, height) for value in values]
        lines = []
        for level in reversed(range(height)):
            signs = (self._level(count - level * _EIGHTHS) for count in filled)
            lines.append("".join(sign * width for sign in signs))
        return lines

    def _level(self, eighths: int) -> str:
        if not self.blocks:
            return "#" if eighths > 0 else " "
        return _UPRIGHT[min(max(eighths, 0), _EIGHTHS)]

    def _eighths(self, value: int, most: int, length: int) -> int:
        if value <= 0 or most <= 0:
            return 0
        return max(min(value, most) * length * _EIGHTHS // most, 1)


def short_usd(nano_usd: int) -> str:
    """An amount as people read it beside a bar: ``$1.2k``, ``$12.34``, ``$0.0012``. Not exact."""
    sign, rest = "-" if nano_usd < 0 else "", abs(nano_usd)
    for unit, word in ((10**15, "M"), (10**12, "k")):
        if rest >= unit * 10 or (word == "M" and rest >= unit):
            return f"{sign}${rest / unit:,.1f}{word}"
    dollars = rest / 10**9
    if rest == 0 or rest >= 10**7:
        return f"{sign}${dollars:,.2f}"
    return f"{sign}${dollars:.2g}" if dollars >= 0.0001 else f"{sign}${dollars:.1e}"


def short_count(count: int) -> str:
    """A count as people read it: ``950``, ``12.3k``, ``4.5M``."""
    for unit, word in ((10**9, "G"), (10**6, "M"), (10**3, "k")):
        if count >= unit:
            return f"{count / unit:.1f}{word}"
    return str(count)
