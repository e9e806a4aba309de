"""An invoice as PDF: A4, in DejaVu Sans, which ships with the package.

The font holds Latin, Greek, Cyrillic, Hebrew, Arabic, Armenian and Georgian letters and most signs.
For others an operator names a further font; what no font holds becomes U+FFFD and is told, so that
no name can keep an invoice from being printed.
"""

import logging
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from fontTools.ttLib import TTFont, TTLibError
from fpdf import FPDF
from fpdf.enums import WrapMode, XPos, YPos
from fpdf.fonts import TTFFont

from services.usage.invoices.invoice_page import Block, Page, Sum

logging.getLogger("fontTools").setLevel(logging.ERROR)

_TABLES: Final = ("head", "hhea", "hmtx", "maxp", "cmap", "name", "post", "OS/2")
_BROKEN: Final = (
    TTLibError,
    AssertionError,
    LookupError,
    TypeError,
    ValueError,
    struct.error,
)
"""What reading a font raises that was cut off or changed: fontTools checks little of its own."""
_FONTS: Final = Path(__file__).parent / "fonts"
_FAMILY: Final = "text"
_FURTHER: Final = "further"
_REPLACEMENT: Final = "\N{REPLACEMENT CHARACTER}"

_LEFT, _RIGHT, _TOP, _BOTTOM = 20.0, 190.0, 20.0, 272.0
"""The edges of what is printed, in millimetres."""

_WIDTHS: Final = (60.0, 17.0, 25.0, 21.0, 24.0, 23.0)
"""The columns, in millimetres, for amounts with few places; the first gives way to the last."""
_PAD: Final = 3.0
_ROW: Final = 4.3

_MAGIC: Final = (b"\0\1\0\0", b"OTTO", b"true", b"ttcf")
"""How files of fonts begin
(https://learn.microsoft.com/en-us/typography/opentype/spec/otff#organization-of-an-opentype-font).
"""

_INK: Final = (22, 32, 46)
_SOFT: Final = (102, 112, 133)
_HAIR: Final = (228, 231, 236)
_ACCENT: Final = (15, 107, 92)


@dataclass(frozen=True, slots=True, kw_only=True)
class Print:
    """A PDF, and the characters that no font holds."""

    pdf: bytes
    missing: str


class FontError(Exception):
    """The further font cannot be used. Its text says why."""


def pdf(page: Page, *, issued_at: str | None, further_font: Path | None = None) -> Print:
    """The page as PDF; the same page makes the same bytes.

    Args:
        page: the page.
        issued_at: what the file says of its making, in ISO 8601; ``None`` for a draft.
        further_font: a TrueType or OpenType font for characters that DejaVu Sans does not hold.

    Raises:
        FontError: the further font cannot be read.
    """
    sheet = _Sheet(page)
    try:
        return _printed(sheet, issued_at, further_font)
    finally:
        sheet.close_fonts()


def _printed(sheet: "_Sheet", issued_at: str | None, further_font: Path | None) -> Print:
    sheet.take_fonts(further_font)
    moment = datetime.fromisoformat(issued_at) if issued_at else datetime(1970, 1, 1, tzinfo=UTC)
    sheet.set_creation_date(moment)
    sheet.set_title(f"{sheet.content.title} {sheet.content.number}")
    sheet.set_author(sheet.content.seller.lines[0])
    sheet.set_producer("onegate")
    sheet.add_page()
    sheet.draw()
    return Print(pdf=bytes(sheet.output()), missing="".join(sorted(sheet.missing)))


def _check(font: Path) -> None:
    """Reads what drawing needs of a font. fpdf2 leaves the file open of one that it cannot read."""
    try:
        with font.open("rb") as file:
            if file.read(4) not in _MAGIC:
                raise FontError(f"{font} is no TrueType or OpenType font.")
            file.seek(0)
            tables = TTFont(file, fontNumber=0)
            for tag in _TABLES:
                tables[tag]
    except OSError as error:
        raise FontError(f"{font} cannot be read: {error.strerror}") from None
    except _BROKEN as error:
        raise FontError(f"{font} is no font that can be used: {error}") from error


class _Sheet(FPDF):
    """One invoice while it is drawn."""

    def __init__(self, content: Page) -> None:
        super().__init__(format="A4")
        self.content = content
        self.missing: set[str] = set()
        self._known: set[int] = set()
        self.set_auto_page_break(auto=False)
        self.set_margins(_LEFT, _TOP, 210 - _RIGHT)
        self.c_margin = 0

    def take_fonts(self, further_font: Path | None) -> None:
        """Opens the fonts. Raises ``FontError`` for the further one."""
        for style, name in (("", "DejaVuSans.ttf"), ("B", "DejaVuSans-Bold.ttf")):
            self.add_font(_FAMILY, style, _FONTS / name)
        if further_font is not None:
            _check(further_font)
            self.add_font(_FURTHER, "", further_font)
            self.set_fallback_fonts([_FURTHER], exact_match=False)
        for font in self.fonts.values():
            if isinstance(font, TTFFont):
                self._known |= font.cmap.keys()

    def close_fonts(self) -> None:
        """Closes their files."""
        for font in self.fonts.values():
            if isinstance(font, TTFFont):
                font.ttfont.close()

    def header(self) -> None:
        """What begins every page; all but the first say what they continue."""
        self.set_fill_color(*_ACCENT)
        self.rect(0, 0, 210, 2, style="F")
        if self.page_no() == 1:
            return
        self._style(8, _SOFT)
        self._at(_LEFT, 12, f"{self.content.title} {self.content.number}")
        self._right(_RIGHT, 12, self.content.seller.lines[0])
        self.set_xy(_LEFT, _TOP + 2)

    def footer(self) -> None:
        """What ends every page."""
        self._hair(281)
        self._style(6.5, _SOFT)
        told = "This is a draft and asks for nothing."
        if self.content.fingerprint:
            told = f"SHA-256 of the document: {self.content.fingerprint}"
        self._at(_LEFT, 283, told)
        self._right(_RIGHT, 283, f"Page {self.page_no()} of {{nb}}")

    def draw(self) -> None:
        """Everything, from top to bottom."""
        page = self.content
        self._head()
        if page.headings:
            self._table(page.headings, page.rows)
        self._sums(page.sums)
        for block in page.blocks:
            self._notes(block)

    def _head(self) -> None:
        page = self.content
        self._style(24, _INK, "B")
        self._at(_LEFT, 20, page.title)
        self._style(11, _SOFT)
        self._at(_LEFT, 31, page.number)
        self._style(11, _INK, "B")
        self.set_xy(100, 21)
        self._wrapped(90, 5.5, page.seller.lines[0], align="R")
        top = max(46.0, self.get_y() + 10)
        ends = [self._block(_LEFT, top, 56, page.buyer), self._block(80, top, 50, page.seller)]
        ends.append(self._facts(136, top))
        self.set_y(max(ends) + 10)

    def _block(self, left: float, top: float, width: float, block: Block) -> float:
        """Draws it; where it ends."""
        self._heading(left, top, block.heading)
        self.set_xy(left, top + 5)
        for place, line in enumerate(block.lines):
            self._style(9, _INK, "B" if place == 0 else "")
            self.set_x(left)
            self._wrapped(width, 4.6, line)
        return self.get_y()

    def _facts(self, left: float, top: float) -> float:
        self._heading(left, top, "Details")
        y = top + 5
        for label, value in self.content.facts:
            self._style(9, _SOFT)
            self._at(left, y, label)
            self._style(9, _INK)
            self.set_xy(left + 18, y)
            self._wrapped(_RIGHT - left - 18, 4.6, value)
            y = self.get_y()
        return y

    def _table(self, headings: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        self._style(8, _INK)
        widest = max((self.get_string_width(row[-1]) for row in rows), default=0.0) + _PAD
        last = min(max(_WIDTHS[-1], widest), 50.0)
        widths = [_WIDTHS[0] + _WIDTHS[-1] - last, *_WIDTHS[1:-1], last]
        self._headings(headings, widths)
        for row in rows:
            self._style(8, _INK)
            name = self._fitting(row[0])
            # What came late has no counts: its name may take their room.
            room = widths[0] if row[1] else sum(widths[:-1]) - _PAD
            lines = self._lines(room, name)
            height = _ROW * len(lines) + 2.6
            if self.get_y() + height > _BOTTOM:
                self.add_page()
                self._headings(headings, widths)
                self._style(8, _INK)
            top = self.get_y() + 1.3
            for place, line in enumerate(lines):
                self._at(_LEFT, top + place * _ROW, line)
            edge = _LEFT + widths[0]
            for text, width in zip(row[1:], widths[1:], strict=True):
                edge += width
                self._right(edge, top, text)
            self.set_y(top + height - 1.3)
            self._hair(self.get_y())

    def _headings(self, headings: Sequence[str], widths: Sequence[float]) -> None:
        y = self.get_y()
        self._style(6.5, _SOFT, "B")
        self._at(_LEFT, y, headings[0].upper())
        edge = _LEFT + widths[0]
        for text, width in zip(headings[1:], widths[1:], strict=True):
            edge += width
            self._right(edge, y, text.upper())
        self.set_draw_color(*_INK)
        self.set_line_width(0.35)
        self.line(_LEFT, y + 5.6, _RIGHT, y + 5.6)
        self.set_y(y + 5.6)

    def _sums(self, sums: Sequence[Sum]) -> None:
        left = 96.0
        heights = [self._sum_height(one, left) for one in sums]
        # The sums stand together: a total alone on a page would say nothing.
        if self.get_y() + 6 + sum(heights) > _BOTTOM:
            self.add_page()
        self.set_y(self.get_y() + 6)
        for one, height in zip(sums, heights, strict=True):
            y = self.get_y()
            size = 12 if one.strong else 9
            if one.strong:
                self.set_draw_color(*_INK)
                self.set_line_width(0.35)
                self.line(left, y + 1, _RIGHT, y + 1)
                y += 3.5
            self._style(size, _INK, "B" if one.strong else "")
            width = self._right(_RIGHT, y, one.amount)
            self.set_xy(left, y)
            self._wrapped(_RIGHT - left - width - _PAD, 5, one.label)
            if one.detail:
                self._style(7.5, _SOFT)
                self.set_x(left)
                self._wrapped(_RIGHT - left, 4, one.detail)
            self.set_y(max(self.get_y(), y + height - (3.5 if one.strong else 0)))

    def _sum_height(self, one: Sum, left: float) -> float:
        self._style(12 if one.strong else 9, _INK, "B" if one.strong else "")
        room = _RIGHT - left - self.get_string_width(self._fitting(one.amount)) - _PAD
        height = 5.6 * len(self._lines(room, self._fitting(one.label)))
        if one.detail:
            self._style(7.5, _SOFT)
            height += 4.2 * len(self._lines(_RIGHT - left, self._fitting(one.detail)))
        return height + (6 if one.strong else 0)

    def _notes(self, block: Block) -> None:
        self._style(9, _INK)
        height = 5 + sum(4.6 * len(self._lines(120, self._fitting(one))) for one in block.lines)
        if self.get_y() + 10 + height > _BOTTOM:
            self.add_page()
        top = self.get_y() + 10
        self._heading(_LEFT, top, block.heading)
        self.set_xy(_LEFT, top + 5)
        self._style(9, _INK)
        for line in block.lines:
            for part in self._lines(120, self._fitting(line)):
                if self.get_y() + 4.6 > _BOTTOM:
                    self.add_page()
                    self._style(9, _INK)
                self._at(_LEFT, self.get_y(), part)
                self.set_y(self.get_y() + 4.6)

    def _heading(self, left: float, top: float, text: str) -> None:
        self._style(6.5, _SOFT, "B")
        self._at(left, top, text.upper())

    def _style(self, size: float, color: tuple[int, int, int], weight: str = "") -> None:
        self.set_font(_FAMILY, "B" if weight else "", size)
        self.set_text_color(*color)

    def _hair(self, y: float) -> None:
        self.set_draw_color(*_HAIR)
        self.set_line_width(0.2)
        self.line(_LEFT, y, _RIGHT, y)

    def _at(self, left: float, y: float, text: str) -> None:
        fitting = self._fitting(text)
        self.set_xy(left, y)
        # A width of its own: fpdf takes no empty text without one.
        width = max(float(self.get_string_width(fitting)), _PAD)
        self.cell(w=width, text=fitting, h=4.6, new_x=XPos.LEFT, new_y=YPos.TOP)

    def _right(self, edge: float, y: float, text: str) -> float:
        """Writes up to an edge; how wide it is."""
        fitting = self._fitting(text)
        width = float(self.get_string_width(fitting))
        self.set_xy(edge - width, y)
        self.cell(w=max(width, _PAD), text=fitting, h=4.6, new_x=XPos.LEFT, new_y=YPos.TOP)
        return width

    def _wrapped(self, width: float, height: float, text: str, align: str = "L") -> None:
        self.multi_cell(
            width,
            height,
            self._fitting(text),
            align=align,
            new_x=XPos.LEFT,
            new_y=YPos.NEXT,
            wrapmode=self._mode(width, self._fitting(text)),
        )

    def _lines(self, width: float, text: str) -> list[str]:
        """A text as lines that fit."""
        found = self.multi_cell(
            width,
            text=text,
            dry_run=True,
            output="LINES",
            align="L",
            wrapmode=self._mode(width, text),
        )
        return [str(line) for line in found] if isinstance(found, list) and found else [""]

    def _mode(self, width: float, text: str) -> WrapMode:
        """Words are kept whole unless one alone is too wide."""
        words: Iterable[str] = text.split(" ")
        wide = any(self.get_string_width(word) > width for word in words)
        return WrapMode.CHAR if wide else WrapMode.WORD

    def _fitting(self, text: str) -> str:
        """The text with what no font holds replaced."""
        gone = {char for char in text if ord(char) not in self._known}
        self.missing |= gone
        for char in gone:
            text = text.replace(char, _REPLACEMENT)
        return text
