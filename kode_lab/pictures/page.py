"""The sheet that a picture is drawn on: points from the top left corner, and nothing automatic.

A page owns where a title, a reading, a time axis and a mark stand. It is laid out in points (1/72
inch) because words are: a label can then be asked how wide it is before it is placed. It knows
nothing of turns and sessions. A ``Picture`` is a finished page.

Idea: Tufte's direct labels and range frames (The Visual Display of Quantitative Information, 1983).
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import LineCollection, PolyCollection
from matplotlib.figure import Figure
from matplotlib.patches import Circle, Polygon, Rectangle

from kode_lab.pictures.style import (
    DPI,
    INK,
    PAPER,
    SOFT,
    WIDTH_PT,
    font,
    inked,
    legible,
    width_pt,
    wrapped,
)

__all__ = ["MARGIN_PT", "Page", "Picture", "Scale", "Tick", "between", "nice_ticks", "seconds"]

MARGIN_PT = 6.0
_TITLE_PT = 13.5
_READING_PT = 10.0
_LABEL_GAP_PT = 7.0
_WORD_GAP_PT = 3.0
# How finely a curve is followed when words look for a place.
_CURVE_STEP_PT = 2.0

_Box = tuple[float, float, float, float]  # left, top, right, bottom


@dataclass(frozen=True, slots=True)
class Picture:
    """A finished picture; a notebook shows it, ``save`` writes it.

    Attributes:
        figure: the matplotlib figure.
        title: the finding, in one sentence.
        reading: how to read the marks.
    """

    figure: Figure
    title: str
    reading: str

    def png(self) -> bytes:
        """Return the picture as PNG, 1,680 dots wide; the same picture gives the same bytes."""
        return self._written("png", {"Software": None, "Title": self.title})

    def svg(self) -> bytes:
        """Return the picture as SVG with its words as paths, so that no reader needs the fonts."""
        facts = {"Date": None, "Creator": None, "Title": self.title, "Description": self.reading}
        return self._written("svg", facts)

    def save(self, stem: Path) -> tuple[Path, Path]:
        """Write ``stem``.png and ``stem``.svg, and give their paths."""
        paths = (stem.with_name(f"{stem.name}.png"), stem.with_name(f"{stem.name}.svg"))
        stem.parent.mkdir(parents=True, exist_ok=True)
        for path, content in zip(paths, (self.png(), self.svg()), strict=True):
            path.write_bytes(content)
        return paths

    def _written(self, form: str, facts: dict[str, str | None]) -> bytes:
        sink = io.BytesIO()
        with inked():
            self.figure.savefig(sink, format=form, dpi=DPI, metadata=facts)
        return sink.getvalue()

    def __repr__(self) -> str:
        return f"<Picture: {self.title}>"

    def _repr_mimebundle_(self, **_: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        width = round(WIDTH_PT / 72 * DPI / 2)
        shown = {"image/png": self.png(), "text/plain": f"{self.title}\n{self.reading}"}
        return shown, {"image/png": {"width": width}}


class Scale(NamedTuple):
    """Where a value stands on the page: linear, or logarithmic."""

    low: float
    high: float
    start_pt: float
    end_pt: float
    is_log: bool = False

    def __call__(self, value: float) -> float:
        """Return the place of ``value`` in points."""
        low, high = self.low, self.high
        if self.is_log:
            value, low, high = math.log(value), math.log(low), math.log(high)
        share = (value - low) / (high - low) if high != low else 0.0
        return self.start_pt + share * (self.end_pt - self.start_pt)


class Tick(NamedTuple):
    """A tick of an axis; a telling one names a value of the finding and gives way to none."""

    value: float
    label: str
    is_telling: bool = False


class Page:
    """A sheet 8.4 inches wide that grows downwards; ``finish`` trims it and gives the picture.

    Marks are noted, and made in one go at the end: matplotlib reads its settings whenever it makes
    one, and these have to be ours.
    """

    def __init__(self, title: str, reading: str) -> None:
        self.title, self.reading = legible(title), legible(reading)
        self._marks: list[Callable[[Axes], object]] = []
        self._words: list[_Box] = []
        self._curves: list[tuple[float, float]] = []
        self.top_pt = self._head()

    def _head(self) -> float:
        y = MARGIN_PT + _TITLE_PT * 0.8
        room = WIDTH_PT - 2 * MARGIN_PT
        for line in wrapped(self.title, room, _TITLE_PT, is_bold=True):
            self.text(MARGIN_PT, y, line, _TITLE_PT, is_bold=True)
            y += _TITLE_PT * 1.25
        y += 4
        for line in wrapped(self.reading, room, _READING_PT):
            self.text(MARGIN_PT, y, line, _READING_PT, color=SOFT)
            y += _READING_PT * 1.35
        return y

    def text(
        self,
        x: float,
        y: float,
        words: str,
        size_pt: float = 9.0,
        *,
        color: str = INK,
        align: str = "left",
        is_bold: bool = False,
    ) -> None:
        """Write on the baseline ``y``; ``x`` is the left end, the middle or the right end."""
        style: dict[str, Any] = {"color": color, "ha": align, "va": "baseline", "zorder": 10}
        style["fontproperties"] = font(size_pt, is_bold=is_bold)
        shown = legible(words)
        self._words.append(_box_of(x, y, shown, size_pt, align, is_bold=is_bold))
        self._marks.append(lambda axes: axes.text(x, y, shown, parse_math=False, **style))

    def text_where_free(
        self,
        places: Sequence[tuple[float, float, str]],
        words: str,
        size_pt: float = 9.0,
        *,
        color: str = INK,
        is_bold: bool = False,
        is_optional: bool = False,
    ) -> None:
        """Write at the first ``(x, y, align)`` that meets no words, no edge and no curve.

        Where all do, an optional label is left out; another stands on a plate of paper at the first
        place that meets no words, or at the last place.
        """
        boxes = [
            _box_of(x, y, legible(words), size_pt, align, is_bold=is_bold) for x, y, align in places
        ]
        free = [
            number
            for number, box in enumerate(boxes)
            if box[0] >= MARGIN_PT
            and box[2] <= WIDTH_PT - MARGIN_PT
            and not any(_meet(box, other) for other in self._words)
        ]
        clear = (n for n in free if not any(_holds(boxes[n], point) for point in self._curves))
        chosen = next(clear, -1)
        if chosen < 0:
            if is_optional:
                return
            chosen = free[0] if free else len(places) - 1
            left, top, right, bottom = boxes[chosen]
            style: dict[str, Any] = {"facecolor": PAPER, "linewidth": 0, "zorder": 9}
            self._marks.append(
                lambda axes: axes.add_patch(
                    Rectangle((left - 1, top), right - left + 2, bottom - top, **style)
                )
            )
        x, y, align = places[chosen]
        self.text(x, y, words, size_pt, color=color, align=align, is_bold=is_bold)

    def box(
        self,
        x: float,
        y: float,
        width: float,
        height: float,
        color: str,
        *,
        edge: str | None = None,
    ) -> None:
        """Fill a rectangle whose top left corner is ``x, y``; with an edge it lies above lines."""
        style: dict[str, Any] = {"facecolor": color, "linewidth": 0, "snap": True}
        if edge is not None:
            style |= {"edgecolor": edge, "linewidth": 0.8, "zorder": 8}
        self._marks.append(lambda axes: axes.add_patch(Rectangle((x, y), width, height, **style)))

    def outline(self, x: float, y: float, width: float, height: float, color: str) -> None:
        """Draw an empty, dashed rectangle: something that is known only by its ends."""
        style: dict[str, Any] = {"edgecolor": color, "linewidth": 0.8, "linestyle": (0, (4, 3))}
        self._marks.append(
            lambda axes: axes.add_patch(Rectangle((x, y), width, height, fill=False, **style))
        )

    def boxes(self, places: Sequence[tuple[float, float, float, float]], color: str) -> None:
        """Fill many rectangles ``(x, y, width, height)`` as one mark: for thousands."""
        corners = [
            ((x, y), (x + width, y), (x + width, y + height), (x, y + height))
            for x, y, width, height in places
        ]
        self._marks.append(
            lambda axes: axes.add_collection(
                PolyCollection(corners, facecolors=[color], linewidths=[0]), autolim=False
            )
        )

    def area(self, points: Sequence[tuple[float, float]], color: str) -> None:
        """Fill a polygon."""
        style: dict[str, Any] = {"facecolor": color, "linewidth": 0}
        self._marks.append(lambda axes: axes.add_patch(Polygon(points, closed=True, **style)))

    def line(
        self, points: Sequence[tuple[float, float]], color: str = SOFT, width: float = 0.8
    ) -> None:
        """Draw a line through the points."""
        self.lines([points], color, width)

    def curve(self, points: Sequence[tuple[float, float]], color: str, width: float = 1.5) -> None:
        """Draw a line that ``text_where_free`` keeps off."""
        self.line(points, color, width)
        for (x, y), (to_x, to_y) in pairwise(points):
            count = max(1, math.ceil(max(abs(to_x - x), abs(to_y - y)) / _CURVE_STEP_PT))
            self._curves += [
                (x + (to_x - x) * n / count, y + (to_y - y) * n / count) for n in range(count + 1)
            ]

    def lines(
        self, many: Sequence[Sequence[tuple[float, float]]], color: str = SOFT, width: float = 0.8
    ) -> None:
        """Draw many lines as one mark."""
        paths = [list(points) for points in many]
        style: dict[str, Any] = {"colors": [color], "linewidths": [width], "capstyle": "butt"}
        self._marks.append(
            lambda axes: axes.add_collection(LineCollection(paths, **style), autolim=False)
        )

    def dots(self, places: Sequence[tuple[float, float]], color: str, radius: float = 2.6) -> None:
        """Draw a dot at each place."""

        def mark(axes: Axes) -> None:
            for place in places:
                axes.add_patch(Circle(place, radius, facecolor=color, linewidth=0, zorder=5))

        self._marks.append(mark)

    def time_axis(
        self, scale: Scale, y: float, ticks: Sequence[Tick], captions: Sequence[str]
    ) -> float:
        """Draw a horizontal axis that spans the data, and give where the next thing may stand.

        A tick whose label would touch a telling one, or one already placed, is left out.
        """
        self.line([(scale.start_pt, y), (scale.end_pt, y)])
        for tick in _placed(ticks, scale):
            at = scale(tick.value)
            self.line([(at, y), (at, y + 4)])
            color = INK if tick.is_telling else SOFT
            self.text(at, y + 15, tick.label, color=color, align="center")
        y += 32
        for caption in captions:
            for line in wrapped(caption, WIDTH_PT - MARGIN_PT - scale.start_pt, 9.0):
                self.text(scale.start_pt, y, line, color=SOFT)
                y += 12.5
        return y - 12.5

    def finish(self, bottom_pt: float) -> Picture:
        """Trim the sheet below ``bottom_pt``, make the marks, and give the picture."""
        height_pt = bottom_pt + MARGIN_PT
        with inked():
            figure = Figure(figsize=(WIDTH_PT / 72, height_pt / 72), dpi=DPI, facecolor=PAPER)
            FigureCanvasAgg(figure)
            axes = figure.add_axes((0, 0, 1, 1))
            axes.set_axis_off()
            axes.set_xlim(0, WIDTH_PT)
            axes.set_ylim(height_pt, 0)
            for mark in self._marks:
                mark(axes)
        return Picture(figure, self.title, self.reading)


def _box_of(x: float, y: float, words: str, size_pt: float, align: str, *, is_bold: bool) -> _Box:
    """About where words stand: left, top, right, bottom."""
    width = width_pt(words, size_pt, is_bold=is_bold)
    left = x - width * {"left": 0.0, "center": 0.5, "right": 1.0}[align]
    return left, y - 0.75 * size_pt, left + width, y + 0.25 * size_pt


def _holds(box: _Box, point: tuple[float, float]) -> bool:
    return box[0] - 1 < point[0] < box[2] + 1 and box[1] < point[1] < box[3]


def _meet(one: _Box, other: _Box) -> bool:
    return (
        one[0] < other[2] + _WORD_GAP_PT
        and other[0] < one[2] + _WORD_GAP_PT
        and one[1] < other[3] + 1
        and other[1] < one[3] + 1
    )


def _placed(ticks: Sequence[Tick], scale: Scale) -> list[Tick]:
    """The ticks that have room: telling ones first (the last of them before all), then the rest."""
    kept: list[tuple[float, float, Tick]] = []
    ranked = sorted(ticks, key=lambda tick: (not tick.is_telling, -tick.value * tick.is_telling))
    for tick in ranked:
        half = width_pt(tick.label, 9.0) / 2
        left, right = scale(tick.value) - half, scale(tick.value) + half
        if all(right + _LABEL_GAP_PT < a or b + _LABEL_GAP_PT < left for a, b, _ in kept):
            kept.append((left, right, tick))
    return [tick for _, _, tick in sorted(kept, key=lambda place: place[0])]


def nice_ticks(high: float, most: int = 9) -> list[Tick]:
    """Return round values from 0 up to ``high``, at most ``most`` steps, labelled alike."""
    if not (math.isfinite(high) and high > 0):
        return [Tick(0.0, "0")]
    step = 10.0 ** math.floor(math.log10(high / most))
    while high / step > most:
        step *= 2.5 if f"{step:e}".startswith("2") else 2
    places = max(0, -math.floor(math.log10(step)))
    if f"{step:e}".startswith("2.5"):
        places += 1
    count = math.floor(high / step + 1e-9)
    # Rounded, and never beyond the data: 7 * 0.1 is a little more than 0.7.
    values = [min(high, round(n * step, places)) for n in range(count + 1)]
    return [Tick(value, f"{value:.{places}f}" if value else "0") for value in values]


def seconds(duration_ns: float) -> str:
    """Return a duration for people: ``16.73 s``, ``3.1 ms``, ``40 µs``; about three digits."""
    if abs(duration_ns) < 50:
        return "0 s"
    value = duration_ns / 1e9
    for factor, unit in ((1.0, "s"), (1e3, "ms"), (1e6, "µs")):
        scaled = value * factor
        if abs(scaled) >= 1 or unit == "µs":
            break
    # A turn of 16.73 s is told as the report tells it; 100 s and more need no hundredths.
    places = 2 if unit == "s" and abs(scaled) < 100 else 1 if abs(scaled) < 10 else 0
    return f"{scaled:,.{places}f} {unit}"


def between(durations_ns: Sequence[float]) -> str:
    """Return the range of some durations: ``3.0 to 4.9 ms``, or the one that all have."""
    low, high = seconds(min(durations_ns)), seconds(max(durations_ns))
    if low == high:
        return low
    if low.split()[1] == high.split()[1]:
        low = low.split()[0]
    return f"{low} to {high}"
