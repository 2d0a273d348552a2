"""Reads a figure as a strict reader would, and tells what is wrong with it.

The figure is drawn once with a listener in the renderer's place: every word is noted instead of
drawn, every colour is noted while it is drawn. So only what really reaches the page is judged, and
what lies under a word is known to the dot. It knows no picture in particular.

Idea: a linter for pages; the contrast measure is WCAG 2.2's (https://www.w3.org/TR/WCAG22/).
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import combinations
from typing import Any, NamedTuple

import numpy as np
from matplotlib.backends.backend_agg import RendererAgg
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from kode_lab.pictures.style import (
    FAMILIES,
    PALETTE,
    TYPE_LIMIT_PT,
    WIDTH_PT,
    inked,
    legible,
)

__all__ = ["contrast", "figure_lint"]

# Words closer than this beside each other read as one; the ink of stacked lines may come closer.
_GAP_PT = 2.0
_LEADING_PT = 0.5
# WCAG asks 4.5 of running text and 3 of large; labels on tints are short, so 3 is the floor.
_CONTRAST_LIMIT = 3.0
# The edge of a band may run behind a word; a bar, or a line through its length, may not.
_COVERED_SHARE = 0.04
_PALETTE = frozenset(color.lower() for color in PALETTE)


class _Word(NamedTuple):
    """One line of text as it stands on the page, in points from the top left."""

    text: str
    left: float
    top: float
    right: float
    bottom: float
    size_pt: float
    color: tuple[float, ...]
    angle: float
    families: list[str]


def figure_lint(figure: Figure) -> list[str]:
    """Return what is wrong with a figure, a sentence each; nothing is wrong with an empty list.

    It looks for words that leave the page, touch each other, are smaller than 8 points, turned,
    hard to read on what lies under them, or set in a font that is not shipped; for colours that
    are not in the palette; for a page that is not 8.4 inches of opaque white.
    """
    with inked():
        words, colors, under = _heard(figure)
    height_pt = figure.get_figheight() * 72
    found = _page_faults(figure)
    for word in words:
        found += _word_faults(word, height_pt)
        covered = _covered_share(word, under, figure.get_dpi() / 72)
        if covered > _COVERED_SHARE:
            found.append(
                f"hard to read: {covered:.0%} of what is under “{word.text}” is too like its colour"
            )
    for one, other in combinations(words, 2):
        if _touch(one, other):
            found.append(f"words touch: “{one.text}” and “{other.text}”")
    found += [f"not in the palette: {color}" for color in sorted(colors - _PALETTE)]
    return found


def _page_faults(figure: Figure) -> list[str]:
    faults = []
    width_pt = figure.get_figwidth() * 72
    if abs(width_pt - WIDTH_PT) > 0.01:
        faults.append(f"the page is {width_pt / 72:.2f} inches wide, not {WIDTH_PT / 72}")
    if to_hex(figure.get_facecolor(), keep_alpha=True) != "#ffffffff":
        faults.append("the page is not opaque white")
    return faults


def _word_faults(word: _Word, height_pt: float) -> list[str]:
    faults = []
    over = max(-word.left, -word.top, word.right - WIDTH_PT, word.bottom - height_pt)
    if over > 0.25:
        faults.append(f"leaves the page by {over:.1f} points: “{word.text}”")
    if word.size_pt < TYPE_LIMIT_PT:
        faults.append(f"type of {word.size_pt:g} points, under {TYPE_LIMIT_PT:g}: “{word.text}”")
    if word.angle:
        faults.append(f"turned by {word.angle:g} degrees: “{word.text}”")
    if word.families != FAMILIES:
        faults.append(f"not in the shipped font: “{word.text}”")
    elif legible(word.text) != " ".join(word.text.split()):
        faults.append(f"the fonts cannot show it: {word.text!a}")
    return faults


def _touch(one: _Word, other: _Word) -> bool:
    return (
        one.left < other.right + _GAP_PT
        and other.left < one.right + _GAP_PT
        and one.top < other.bottom + _LEADING_PT
        and other.top < one.bottom + _LEADING_PT
    )


def _covered_share(word: _Word, under: np.ndarray[Any, Any], dots: float) -> float:
    """The share of the dots under a word whose contrast with its colour is too low."""
    rows = slice(max(0, round(word.top * dots)), round(word.bottom * dots) + 1)
    columns = slice(max(0, round(word.left * dots)), round(word.right * dots) + 1)
    # A band is one colour over thousands of dots: judge each colour once.
    red, green, blue = np.moveaxis(under[rows, columns, :3].astype(np.uint32), 2, 0)
    colors, counts = np.unique(red << 16 | green << 8 | blue, return_counts=True)
    low = [contrast(word.color, _parts(color)) < _CONTRAST_LIMIT for color in colors.tolist()]
    return float(counts[low].sum() / max(1, counts.sum()))


def _parts(color: int) -> tuple[float, float, float]:
    return (color >> 16) / 255, (color >> 8 & 255) / 255, (color & 255) / 255


def contrast(one: Iterable[float], other: Iterable[float]) -> float:
    """Return the contrast of two colours (red, green, blue from 0 to 1): 1 for none, 21 at most.

    Source: WCAG 2.2, relative luminance and contrast ratio.
    """
    low, high = sorted((_luminance(one), _luminance(other)))
    return (high + 0.05) / (low + 0.05)


def _luminance(color: Iterable[float]) -> float:
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in color]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def _heard(figure: Figure) -> tuple[list[_Word], set[str], np.ndarray[Any, Any]]:
    """Draw everything but the words: the words as they would stand, the colours, the dots."""
    dots = figure.get_dpi() / 72
    size = figure.bbox.width, figure.bbox.height, figure.get_dpi()
    renderer: Any = RendererAgg(*size)  # type: ignore[no-untyped-call]
    words: list[_Word] = []
    colors: set[str] = set()

    def draw_text(*given: Any, **_: Any) -> None:
        gc, x, y, s, prop, angle = given[:6]
        width, height, descent = renderer.get_text_width_height_descent(s, prop, ismath=False)
        box = (x, y - height + descent, x + width, y + descent)
        left, top, right, bottom = (value / dots for value in box)
        color = tuple(gc.get_rgb()[:3])
        colors.add(to_hex(color))
        size = prop.get_size_in_points()
        words.append(_Word(s, left, top, right, bottom, size, color, angle, prop.get_family()))

    renderer.draw_text = draw_text
    _listen(renderer, colors)
    figure.draw(renderer)
    return words, colors, np.asarray(renderer.buffer_rgba())


def _listen(renderer: Any, colors: set[str]) -> None:
    draw_path, draw_markers = renderer.draw_path, renderer.draw_markers
    draw_collection = renderer.draw_path_collection

    def hear(gc: Any, face: Any) -> None:
        if gc.get_linewidth() > 0:
            colors.add(to_hex(gc.get_rgb()[:3]))
        if face is not None:
            colors.add(to_hex(face[:3]))

    def path(gc: Any, path: Any, transform: Any, face: Any = None) -> None:
        hear(gc, face)
        draw_path(gc, path, transform, face)

    def markers(*given: Any) -> None:
        hear(given[0], given[5] if len(given) > 5 else None)
        draw_markers(*given)

    def collection(*given: Any, **named: Any) -> None:
        # matplotlib's signature has the faces, the edges and their widths at these places.
        faces, edges, widths = given[6], given[7], given[8]
        colors.update(to_hex(face[:3]) for face in faces)
        if any(width > 0 for width in widths):
            colors.update(to_hex(edge[:3]) for edge in edges)
        draw_collection(*given, **named)

    renderer.draw_path, renderer.draw_markers = path, markers
    renderer.draw_path_collection = collection
