"""Colours, sizes, fonts and measuring: what every picture is drawn with.

One colour has one meaning in every picture, and a word beside the mark always repeats it. Nothing
here knows what is drawn. The fonts are shipped, and registered under names of our own, so that the
same input gives the same bytes whatever fonts a machine has.

Source: the hues are Okabe and Ito's (https://jfly.uni-koeln.de/color/), which colour-blind readers
can tell apart; the tint and the darker shades for words are ours, checked in the tests.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib import font_manager
from matplotlib.backends.backend_agg import RendererAgg
from matplotlib.font_manager import FontEntry, FontProperties
from matplotlib.ft2font import FT2Font

__all__ = [
    "BAND",
    "DPI",
    "FAINT",
    "FAMILIES",
    "GUIDE",
    "INK",
    "MODEL",
    "PALETTE",
    "PAPER",
    "PASS",
    "SOFT",
    "TYPE_LIMIT_PT",
    "VIOLATION",
    "VIOLATION_TINT",
    "VIOLATION_WORD",
    "WAIT",
    "WAIT_WORD",
    "WIDTH_PT",
    "WORK",
    "WORK_DEEP",
    "WORK_SHADES",
    "font",
    "inked",
    "legible",
    "shortened",
    "width_pt",
    "wrapped",
]

PAPER = "#FFFFFF"
INK = "#1A1A1A"
SOFT = "#595959"  # words of second rank: 7 to 1 on paper
GUIDE = "#BFBFBF"
FAINT = "#E3E3E3"  # time of a turn that no step accounts for
BAND = "#F2F2F2"
WORK = "#0072B2"
MODEL = "#A9CFE6"
WORK_DEEP = "#003A5C"
# Light to dark: more of the same thing (sessions, runs), never another thing.
WORK_SHADES = ("#7FB8D9", "#3F95C6", WORK, "#00558A", WORK_DEEP)
WAIT = "#E69F00"
WAIT_WORD = "#8A5A00"  # the orange of a mark is too light for words (2.2 to 1)
VIOLATION = "#D55E00"
VIOLATION_TINT = "#FBE7DA"
VIOLATION_WORD = "#B34700"
PASS = "#009E73"  # noqa: S105 - a verdict, not a password
PALETTE = frozenset(
    {
        *(PAPER, INK, SOFT, GUIDE, FAINT, BAND, MODEL, WAIT, WAIT_WORD, PASS),
        *(VIOLATION, VIOLATION_TINT, VIOLATION_WORD),
        *WORK_SHADES,
    }
)

WIDTH_PT = 8.4 * 72
TYPE_LIMIT_PT = 8.0
# Twice the 100 dots an inch at which a notebook shows them: 1,680 dots across.
DPI = 200

_FONTS = Path(__file__).parent / "fonts"
_DEJAVU = Path(mpl.get_data_path()) / "fonts" / "ttf"
_FILES = (
    (_FONTS / "SourceSans3-Regular.otf", "kode_lab sans", 400),
    (_FONTS / "SourceSans3-Semibold.otf", "kode_lab sans", 600),
    (_FONTS / "KodeLabHan-Regular.otf", "kode_lab han", 400),
    (_FONTS / "KodeLabHan-Regular.otf", "kode_lab han", 600),  # one cut serves: it has no bold
    (_DEJAVU / "DejaVuSans.ttf", "kode_lab rest", 400),
    (_DEJAVU / "DejaVuSans-Bold.ttf", "kode_lab rest", 600),
)
FAMILIES = ["kode_lab sans", "kode_lab han", "kode_lab rest"]
for _path, _name, _weight in _FILES:
    # Not addfont: it would take the family's public name, which a machine may have in another cut.
    font_manager.fontManager.ttflist.append(FontEntry(str(_path), name=_name, weight=_weight))

_HAN = "\u2e80-\ua4cf\uac00-\ud7a3\uf900-\ufaff\uff00-\uffef"
# A word, or one Chinese character with the punctuation that may not begin a line.
_PIECE = re.compile(rf" *(?:[{_HAN}][、。，．：；？！）」』”’]*|[^ {_HAN}]+)")

_SETTINGS: Any = {
    "text.hinting": "none",  # widths then do not depend on the resolution
    "text.usetex": False,
    "svg.fonttype": "path",
    "svg.hashsalt": "kode_lab",  # ids inside an SVG are otherwise random
    "figure.facecolor": PAPER,
    "savefig.facecolor": PAPER,
}
# matplotlib's settings belong to the whole process; two pictures drawn at once would mix them.
_SETTINGS_LOCK = threading.RLock()


@contextmanager
def inked() -> Iterator[None]:
    """Draw with our settings alone, whatever the user's matplotlibrc says; restored afterwards."""
    with _SETTINGS_LOCK, mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update(_SETTINGS)
        yield


@lru_cache(maxsize=64)
def font(size_pt: float, *, is_bold: bool = False) -> FontProperties:
    """Return the shipped font in a size, with its fall-backs for Chinese and for symbols."""
    return FontProperties(family=FAMILIES, size=size_pt, weight=600 if is_bold else 400)


@lru_cache(maxsize=1)
def _drawable() -> frozenset[int]:
    fonts = (FT2Font(str(path)) for path, _, weight in _FILES if weight == 400)
    return frozenset(code for face in fonts for code in face.get_charmap())


def legible(text: str) -> str:
    """Return the text on one line, with what the fonts lack or a page cannot show spelled out."""
    drawable = _drawable()
    return "".join(
        letter
        if letter.isprintable() and ord(letter) in drawable
        else letter.encode("unicode_escape").decode()
        for letter in " ".join(text.split())
    )


@lru_cache(maxsize=1)
def _measurer() -> Any:
    return RendererAgg(8, 8, 72)  # type: ignore[no-untyped-call]


@lru_cache(maxsize=8192)
def width_pt(text: str, size_pt: float, *, is_bold: bool = False) -> float:
    """Return how wide the text will stand, in points."""
    with inked():
        shape = _measurer().get_text_width_height_descent(
            text, font(size_pt, is_bold=is_bold), ismath=False
        )
    return float(shape[0])


def shortened(
    text: str, limit_pt: float, size_pt: float, *, is_bold: bool = False, keeps_end: bool = False
) -> str:
    """Return the legible text, cut with an ellipsis where it is wider than ``limit_pt``.

    With ``keeps_end`` it is cut in the middle, for names whose ends tell them apart.
    """
    text = legible(text[:2_000])

    def cut(kept: int) -> str:
        tail = kept // 2 if keeps_end else 0
        return f"{text[: kept - tail].rstrip()}…{text[len(text) - tail :].lstrip()}"

    if width_pt(text, size_pt, is_bold=is_bold) <= limit_pt:
        return text
    low, high = 0, len(text) - 1
    while low < high:
        middle = (low + high + 1) // 2
        if width_pt(cut(middle), size_pt, is_bold=is_bold) <= limit_pt:
            low = middle
        else:
            high = middle - 1
    return cut(low)


def wrapped(
    text: str, limit_pt: float, size_pt: float, *, is_bold: bool = False, at: str = ""
) -> list[str]:
    """Return the text in lines of at most ``limit_pt``; a piece wider than a line is cut.

    A line may end at each ``at``; by default at spaces, and between Chinese characters.
    """
    text = legible(text)
    pieces = [f"{at}{piece}" for piece in text.split(at)] if at else _PIECE.findall(text)
    lines: list[str] = []
    for piece in pieces:
        joined = f"{lines[-1]}{piece}" if lines else ""
        if joined and width_pt(joined, size_pt, is_bold=is_bold) <= limit_pt:
            lines[-1] = joined
        else:
            bare = piece.removeprefix(at).lstrip()
            lines.append(shortened(bare, limit_pt, size_pt, is_bold=is_bold))
    return lines
