"""The picture of a witness: the fewest operations that show what the judge found wrong.

Each is a bar, from its client's sending to its answer, with the turns that it was shown under it as
a row of numbers. What cannot be stands out in vermillion, in words and marks: a number where it has
no place, or the place where it is missing. That two bars overlap is drawn in grey, because it
proves nothing; only what a trace saw at work at once is a violation by itself. What is wrong and
why is the judge's to say: this room only draws its anomaly.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from kode_lab.check.verdict import ANOMALIES, Anomaly
from kode_lab.check.witness import sentences
from kode_lab.history.operation import Operation
from kode_lab.history.span import Span
from kode_lab.pictures.finding import unit_of
from kode_lab.pictures.page import (
    MARGIN_PT,
    Page,
    Picture,
    Scale,
    Tick,
    nice_ticks,
    seconds,
)
from kode_lab.pictures.style import (
    BAND,
    GUIDE,
    INK,
    MODEL,
    SOFT,
    VIOLATION,
    VIOLATION_TINT,
    VIOLATION_WORD,
    WIDTH_PT,
    WORK,
    shortened,
    width_pt,
    wrapped,
)

__all__ = ["SHOWN_LIMIT", "draw_witness"]

# Numbers in one row; earlier ones are told by their count.
SHOWN_LIMIT = 12
_OPERATIONS_LIMIT = 6
_NAME_LIMIT_PT = 118.0
_BAR_PT = 16.0
_ROW_PT = 58.0
_CHIP_PT = 15.0
_MARKER_LIMIT_PT = 80.0
_TEXT_PT = 9.0
_MARKER = re.compile(r"#m[0-9a-f]+-[0-9a-f]+")
# Anomalies that a list shows by lacking its element, not by holding it.
_ABSENT = {"lost write", "lost after acknowledgement", "stale read", "lost update"}
_BY_CLIENTS = (
    "Each bar is one request, from its client’s sending to its answer; below it the turns of the "
    "session that it was shown. Red: what cannot be."
)
_BY_SYSTEM = "Each bar is a turn at work, as the system’s own trace tells it. Red: what cannot be."


class _Lane(NamedTuple):
    """One operation of the witness, and what it is called: as in the argument, and by number."""

    one: Operation | Span
    letter: str
    called: str

    @property
    def start_ns(self) -> int:
        return self.one.start_ns if isinstance(self.one, Span) else self.one.invoke_ns

    @property
    def end_ns(self) -> float:
        return self.one.end_ns if isinstance(self.one, Span) else self.one.complete_ns


class _Shown(NamedTuple):
    """A row of numbers: what an operation was shown, and what is wrong with it."""

    position: int
    earlier: int
    markers: tuple[str, ...]
    foreign: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()


def draw_witness(anomaly: Anomaly) -> Picture:
    """Draw an anomaly's witness, by time, with the end of the judge's argument below it."""
    lanes = _lanes(anomaly)
    start_ns = min(lane.start_ns for lane in lanes)
    ends = [lane.end_ns for lane in lanes if not math.isinf(lane.end_ns)]
    end_ns = max([*ends, *(lane.start_ns for lane in lanes), start_ns + 1])
    names_pt = max(_names_width(lane) for lane in lanes)
    scale = Scale(start_ns, end_ns, MARGIN_PT + names_pt + 10, WIDTH_PT - MARGIN_PT - 96)
    by_system = all(isinstance(lane.one, Span) for lane in lanes)
    page = Page(_title(anomaly, lanes), _BY_SYSTEM if by_system else _BY_CLIENTS)
    rise = page.top_pt + 6
    together = _together(lanes, scale)
    top = rise + (20 if together or "crash_ns" in anomaly.facts else 6)
    bottom = top + _ROW_PT * len(lanes) - 6
    if together:
        _draw_together(page, anomaly, together, len(lanes), scale, (rise, bottom))
    _draw_crash(page, anomaly, scale, (rise, bottom))
    for number, lane in enumerate(lanes):
        _draw_lane(page, lane, anomaly, top + number * _ROW_PT, scale)
    bottom = _draw_axis(page, anomaly, lanes, scale, bottom)
    bottom += 6
    for sentence in sentences(anomaly)[-2:]:
        bottom += 2
        for line in wrapped(_readable(sentence, anomaly), WIDTH_PT - 2 * MARGIN_PT, _TEXT_PT):
            bottom += 13
            page.text(MARGIN_PT, bottom, line)
    return page.finish(bottom)


def _lanes(anomaly: Anomaly) -> list[_Lane]:
    """The operations by time, each with the letter that the argument gives it."""
    counts: Counter[str] = Counter()
    lanes: list[_Lane] = []
    for one in anomaly.witness[:_OPERATIONS_LIMIT]:
        letter = "S" if isinstance(one, Span) else "T" if one.f == "turn" else "R"
        counts[letter] += 1
        lanes.append(_Lane(one, f"{letter}{counts[letter]}", _called(one)))
    return sorted(lanes, key=lambda lane: lane.start_ns)


def _draw_axis(
    page: Page, anomaly: Anomaly, lanes: Sequence[_Lane], scale: Scale, bottom: float
) -> float:
    unit, per_unit = unit_of(round(scale.high - scale.low))
    high = (scale.high - scale.low) / per_unit
    times = (time for lane in lanes for time in (lane.start_ns, lane.end_ns))
    telling = sorted({(t - scale.low) / per_unit for t in times if scale.low < t <= scale.high})
    ticks = [Tick(value, f"{value:.2f}", is_telling=True) for value in telling]
    caption = f"{unit} since {lanes[0].called} began"
    left_out = len(anomaly.witness) - len(lanes)
    if left_out:
        caption += f"; {left_out} more operations of this witness are not drawn"
    in_unit = scale._replace(low=0.0, high=high)
    return page.time_axis(in_unit, bottom, [*ticks, *nice_ticks(high)], [caption])


def _title(anomaly: Anomaly, lanes: Sequence[_Lane]) -> str:
    called = {lane.letter: lane.called for lane in lanes}
    said = ANOMALIES[anomaly.name][1]
    if anomaly.name == "lost update" and {"T1", "T2"} <= called.keys():
        said = (
            f"{called['T1']} and {called['T2']} both took position {anomaly.facts.get('position')}"
        )
        said += f", and {called['T1']} is gone" if anomaly.facts.get("lost") else ""
    elif anomaly.name in {"lost write", "lost after acknowledgement"} and "T1" in called:
        said = f"{called['T1']} was acknowledged, and is gone"
        said += " after a crash" if anomaly.name != "lost write" else ""
    elif anomaly.name == "overtaking" and "T1" in called:
        overtook, limit = anomaly.facts.get("overtook"), anomaly.facts.get("limit")
        said = f"{overtook} turns overtook {called['T1']}; no more than {limit} may"
    elif anomaly.name == "cross-session leak":
        said = f"{anomaly.key} was shown another session’s words"
    return f"FAIL  {anomaly.name}: {said}"


def _readable(sentence: str, anomaly: Anomaly) -> str:
    """Return the sentence with its markers as the picture writes them."""
    own = _tag(anomaly)

    def short(found: re.Match[str]) -> str:
        whose = "" if not own or found[0].startswith(f"{own}-") else " of another session"
        return f"turn {_suffix(found[0])}{whose}"

    return _MARKER.sub(short, sentence)


# ---------------------------------------------------------------- names and rows


def _suffix(marker: str) -> str:
    """Return the end of a marker, as the printed witness writes it; another name as it is."""
    if _MARKER.fullmatch(marker):
        return f"…{marker.rpartition('-')[2]}"
    return shortened(marker, _MARKER_LIMIT_PT, _TEXT_PT, keeps_end=True)


def _tag(anomaly: Anomaly) -> str:
    """What the markers of the anomaly's own session begin with."""
    own = (
        one.marker.partition("-")[0]
        for one in anomaly.witness
        if isinstance(one, Operation) and one.key == anomaly.key and one.marker
    )
    return next(own, "")


def _called(one: Operation | Span) -> str:
    if isinstance(one, Span):
        return f"turn {one.turn_id}"
    return f"turn {_suffix(one.marker)}" if one.f == "turn" else f"a {one.f}"


def _names(lane: _Lane) -> tuple[str, str]:
    called = f"{lane.letter}  {lane.called}"
    first = shortened(called, _NAME_LIMIT_PT, 10.5, is_bold=True, keeps_end=True)
    return first, shortened(str(lane.one.key), _NAME_LIMIT_PT, _TEXT_PT, keeps_end=True)


def _names_width(lane: _Lane) -> float:
    first, second = _names(lane)
    return max(60.0, width_pt(first, 10.5, is_bold=True), width_pt(second, _TEXT_PT))


def _shown(one: Operation, anomaly: Anomaly) -> _Shown | None:
    """What an operation was shown of its session, and what it should have been shown besides."""
    if one.markers is not None:
        everything, position = one.markers, len(one.markers)
        foreign: tuple[str, ...] = ()
    elif one.read is not None:
        everything, position, foreign = one.read.tail, one.read.position, one.read.foreign
    else:
        return None
    listed = everything[-SHOWN_LIMIT:]
    wanted: list[str] = list(anomaly.facts.get("lost") or [anomaly.element])
    is_accused = one is anomaly.witness[0] if anomaly.name == "stale read" else one.f == "read"
    missing = [m for m in wanted if m and m not in everything and m != one.marker]
    if anomaly.name not in _ABSENT or not is_accused:
        missing = []
    return _Shown(position, max(0, position - len(listed)), listed, foreign, tuple(missing))


# ---------------------------------------------------------------- what is drawn


def _together(lanes: Sequence[_Lane], scale: Scale) -> tuple[float, float] | None:
    """When all turns of the witness were under way, if it is turns that it has, and several."""
    start = max(lane.start_ns for lane in lanes)
    end = min([scale.high, *(lane.end_ns for lane in lanes)])
    is_turns = all(isinstance(lane.one, Span) or lane.one.f == "turn" for lane in lanes)
    return (start, end) if len(lanes) > 1 and is_turns and start < end else None


def _draw_together(
    page: Page,
    anomaly: Anomaly,
    together: tuple[float, float],
    count: int,
    scale: Scale,
    rise: tuple[float, float],
) -> None:
    """The time in which all were under way: grey, or red where the trace itself is the proof."""
    start, end = together
    is_proof = anomaly.name == "overlap"
    tint = VIOLATION_TINT if is_proof else BAND
    page.box(scale(start), rise[0], scale(end) - scale(start), rise[1] - rise[0], tint)
    many = "both" if count == 2 else f"all {count}"
    words = f"{many} {'at work' if is_proof else 'in flight'}: {seconds(end - start)}"
    color = VIOLATION_WORD if is_proof else SOFT
    at = min(scale(start) + 4, WIDTH_PT - MARGIN_PT - width_pt(words, _TEXT_PT))
    page.text(at, rise[0] + 11, words, color=color)


def _draw_crash(page: Page, anomaly: Anomaly, scale: Scale, rise: tuple[float, float]) -> None:
    crash_ns = anomaly.facts.get("crash_ns")
    if crash_ns is None or not scale.low <= crash_ns <= scale.high:
        return
    at = scale(crash_ns)
    page.line([(at, rise[0]), (at, rise[1])], INK, 1.2)
    page.text_where_free(
        [(at + 4, rise[0] + 4, "left"), (at - 4, rise[0] + 4, "right")], "crash", is_bold=True
    )


def _draw_lane(page: Page, lane: _Lane, anomaly: Anomaly, top: float, scale: Scale) -> None:
    start, end = scale(lane.start_ns), scale(min(lane.end_ns, scale.high))
    first, second = _names(lane)
    page.text(scale.start_pt - 10, top + 11, first, 10.5, align="right", is_bold=True)
    page.text(scale.start_pt - 10, top + 25, second, color=SOFT, align="right")
    if math.isinf(lane.end_ns):
        page.outline(start, top, scale.end_pt - start, _BAR_PT, SOFT)
        ending = "no answer"
    else:
        page.box(start, top, max(end - start, 1.6), _BAR_PT, MODEL)
        page.box(start, top, 1.6, _BAR_PT, WORK)
        page.box(max(start, end - 1.6), top, 1.6, _BAR_PT, WORK)
        ending = seconds(lane.end_ns - lane.start_ns)
        if isinstance(lane.one, Operation):
            ending = f"{lane.one.type}, {ending}"
    page.text(max(end, start + 1.6) + 6, top + 11.5, ending, 9.5)
    if isinstance(lane.one, Span):
        return
    shown = _shown(lane.one, anomaly)
    if shown is None:
        page.text(start, top + _BAR_PT + 15, "what it was shown was not seen", color=SOFT)
    else:
        _draw_shown(page, lane.one, shown, anomaly, (start, top + _BAR_PT + 15, scale.start_pt))


def _draw_shown(
    page: Page, one: Operation, shown: _Shown, anomaly: Anomaly, place: tuple[float, float, float]
) -> None:
    x, y, left = place
    room = WIDTH_PT - MARGIN_PT - left
    while _row_width(one, shown, anomaly) > room and shown.markers:
        shown = shown._replace(earlier=shown.earlier + 1, markers=shown.markers[1:])
    # Long rows begin further left, where the page has room for them.
    x = max(left, min(x, left + room - _row_width(one, shown, anomaly)))
    lead = _lead(one, shown)
    page.text(x, y, lead, color=SOFT)
    x += width_pt(lead, _TEXT_PT) + 6
    for words, is_wrong in _chips(one, shown, anomaly):
        x = _draw_chip(page, words, x, y, is_wrong=is_wrong)


def _lead(one: Operation, shown: _Shown) -> str:
    lead = "holds" if one.markers is not None else "was shown"
    if shown.earlier:
        return f"{lead} {shown.earlier:,} earlier,"
    return lead if shown.markers or shown.foreign else f"{lead} nothing"


def _row_width(one: Operation, shown: _Shown, anomaly: Anomaly) -> float:
    chips = sum(_chip_width(words) + 3 for words, _ in _chips(one, shown, anomaly))
    return width_pt(_lead(one, shown), _TEXT_PT) + 6 + chips


def _chips(one: Operation, shown: _Shown, anomaly: Anomaly) -> list[tuple[str, bool]]:
    """The words of a row, and which of them are wrong."""
    holds_wrong = anomaly.name not in _ABSENT
    chips = [(_suffix(m), holds_wrong and m == anomaly.element) for m in shown.markers]
    chips += [(f"{_suffix(marker)} of another session", True) for marker in shown.foreign[:3]]
    chips += [(f"{_suffix(marker)} is missing", True) for marker in shown.missing]
    if anomaly.name == "lost update" and one.f == "turn":
        chips.append((f"so {_suffix(one.marker)} took position {shown.position}", True))
    return chips


def _chip_width(words: str) -> float:
    return max(_CHIP_PT, width_pt(words, _TEXT_PT, is_bold=True) + 8)


def _draw_chip(page: Page, words: str, x: float, y: float, *, is_wrong: bool) -> float:
    width = _chip_width(words)
    fill, edge = (VIOLATION_TINT, VIOLATION) if is_wrong else (BAND, GUIDE)
    page.box(x, y - 10.5, width, 14.0, fill, edge=edge)
    color = VIOLATION_WORD if is_wrong else INK
    page.text(x + width / 2, y, words, color=color, align="center", is_bold=is_wrong)
    return x + width + 3
