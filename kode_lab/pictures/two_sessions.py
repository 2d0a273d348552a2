"""The picture of a few sessions side by side: lanes over time, with every step at its place.

It draws what was recorded and nothing else: a turn without a trace is an empty outline, and a mark
that had to be widened to be seen sticks out of its bar and is said to be wider. What the picture
says in words is ``finding``'s.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from kode_lab.errors import InvalidRecord
from kode_lab.history.span import Span
from kode_lab.lab.turn_view import TurnView
from kode_lab.pictures.finding import (
    SEEN_PT,
    Lane,
    both_in_flight,
    captions_of,
    ending_of,
    finding_of,
    lanes_of,
    reading_of,
    ticks_of,
    unit_of,
)
from kode_lab.pictures.page import MARGIN_PT, Page, Picture, Scale, seconds
from kode_lab.pictures.style import (
    BAND,
    FAINT,
    INK,
    MODEL,
    SOFT,
    TYPE_LIMIT_PT,
    WAIT,
    WAIT_WORD,
    WIDTH_PT,
    WORK,
    legible,
    shortened,
    width_pt,
    wrapped,
)
from kode_lab.pictures.tool_marks import ToolMark, label_of, tool_marks, tools_line

__all__ = ["TURN_LIMIT", "draw_sessions"]

# More rows than this are no longer read one by one; many_sessions draws any number.
TURN_LIMIT = 12
_NAME_LIMIT_PT = 128.0
_PROMPT_LIMIT_CHARS = 200
# Lines of the list of tools under a bar.
_LIST_LIMIT = 3
_BAR_PT = 20.0
_LINE_PT = 13.0
_TEXT_PT = 9.0
_BIG_PT = 10.5
_GAP_PT = 5.0


class _Label(NamedTuple):
    """Words under a bar."""

    at_pt: float
    words: str
    color: str = WORK


class _Row(NamedTuple):
    """One turn of a lane, laid out: its tool marks, and the words under its bar."""

    turn: TurnView
    marks: list[ToolMark]
    labels: list[list[_Label]]

    @property
    def height(self) -> float:
        return _BAR_PT + 6 + _LINE_PT * len(self.labels)


def draw_sessions(
    turns: Sequence[TurnView], *, prompts: Mapping[str, str] | None = None, speed: float = 1.0
) -> Picture:
    """Draw the turns as lanes, a session each, in the order of their first requests.

    ``prompts`` (by turn id) are shown beside the lanes; ``speed`` is told, never applied.

    Raises:
        InvalidRecord: there is no turn, or there are more than ``TURN_LIMIT``.
    """
    if not turns:
        raise InvalidRecord("there is no turn to draw: neither history nor trace has one")
    if len(turns) > TURN_LIMIT:
        raise InvalidRecord(
            f"{len(turns)} turns are too many for lanes; draw them with many_sessions, "
            f"or give keys= to choose some (TURN_LIMIT={TURN_LIMIT})"
        )
    start_ns = min(turn.start_ns for turn in turns)
    end_ns = max(*(turn.end_ns for turn in turns), start_ns + 1)
    lanes = [(lane, _names(lane, prompts or {})) for lane in lanes_of(turns)]
    names_pt = max(name.width_pt for _, names in lanes for name in names)
    endings_pt = max(width_pt(ending_of(turn), _BIG_PT, is_bold=True) for turn in turns)
    left = MARGIN_PT + names_pt + 10
    scale = Scale(start_ns, end_ns, left, WIDTH_PT - MARGIN_PT - endings_pt - 8)

    seen_ns = (end_ns - start_ns) * SEEN_PT / (scale.end_pt - scale.start_pt)
    page = Page(finding_of(turns), reading_of(turns, seen_ns, speed))
    both = both_in_flight(turns)
    top = page.top_pt + (24 if both else 12)
    rows = [[_row(turn, scale) for turn in lane.turns] for lane, _ in lanes]
    heights = [
        max(sum(row.height for row in of_lane), _LINE_PT * len(names) + 4) + 10
        for of_lane, (_, names) in zip(rows, lanes, strict=True)
    ]
    bottom = top + sum(heights) - 8
    if both:
        _draw_both(page, both, len(turns), scale, (page.top_pt + 8, bottom))
    for of_lane, (_, names), height in zip(rows, lanes, heights, strict=True):
        _draw_lane(page, names, of_lane, top, scale)
        top += height
    unit, per_unit = unit_of(end_ns - start_ns)
    in_unit = scale._replace(low=0.0, high=(end_ns - start_ns) / per_unit)
    return page.finish(page.time_axis(in_unit, bottom, ticks_of(turns), captions_of(turns, unit)))


class _Name(NamedTuple):
    """A line beside a lane."""

    words: str
    size_pt: float
    color: str = SOFT
    is_bold: bool = False

    @property
    def width_pt(self) -> float:
        return width_pt(self.words, self.size_pt, is_bold=self.is_bold)


def _names(lane: Lane, prompts: Mapping[str, str]) -> list[_Name]:
    """What stands beside a lane: its name, its key, and what was asked where it is known."""
    limit = _NAME_LIMIT_PT
    key = shortened(str(lane.key), limit, _TEXT_PT, keeps_end=True)
    names = [_Name(lane.name, _BIG_PT, INK, is_bold=True), _Name(key, _TEXT_PT)]
    asked = prompts.get(lane.turns[0].turn_id)
    if asked and len(lane.turns) == 1:
        quoted = wrapped(f"“{asked[:_PROMPT_LIMIT_CHARS]}”", limit, TYPE_LIMIT_PT)
        if len(quoted) > 2:
            rest = f"{quoted[1]} {quoted[2]}"
            room = limit - width_pt("”", TYPE_LIMIT_PT)
            quoted[1:] = [f"{shortened(rest, room, TYPE_LIMIT_PT)}”"]
        names += [_Name(line, TYPE_LIMIT_PT) for line in quoted]
    return names


def _draw_both(
    page: Page, both: tuple[int, int], count: int, scale: Scale, rise: tuple[float, float]
) -> None:
    start, top = scale(both[0]), rise[0]
    page.box(start, top, scale(both[1]) - start, rise[1] - top, BAND)
    who = "both" if count == 2 else f"all {count}"
    words = f"{who} in flight: {seconds(both[1] - both[0])}"
    # A band at the far right leaves no room beside its left edge.
    start = min(start + 4, WIDTH_PT - MARGIN_PT - width_pt(words, _TEXT_PT))
    page.text(start, top + 11, words, color=SOFT)


def _draw_lane(page: Page, names: list[_Name], rows: list[_Row], top: float, scale: Scale) -> None:
    for line, name in enumerate(names):
        page.text(
            scale.start_pt - 10,
            top + 9 + line * _LINE_PT,
            name.words,
            name.size_pt,
            color=name.color,
            align="right",
            is_bold=name.is_bold,
        )
    for row in rows:
        _draw_row(page, row, top, scale)
        top += row.height


def _draw_row(page: Page, row: _Row, top: float, scale: Scale) -> None:
    turn = row.turn
    start, end = scale(turn.start_ns), scale(turn.end_ns)
    waits = turn.steps_named("wait")
    if turn.is_open:
        end = scale.end_pt
    if turn.is_open or not turn.steps:
        page.outline(start, top, end - start, _BAR_PT, SOFT)
    else:
        begun = max((scale(wait.end_ns) for wait in waits), default=start)
        page.box(begun, top, end - begun, _BAR_PT, FAINT)
    for wait in waits:
        width = scale(wait.end_ns) - scale(wait.start_ns)
        if width >= SEEN_PT:
            page.box(scale(wait.start_ns), top + _BAR_PT / 4, width, _BAR_PT / 2, WAIT)
            if _is_named_inside(wait, scale):
                page.text(scale(wait.start_ns) + 4, top + _BAR_PT / 2 + 3.2, _wait_words(wait))
    for ask in turn.steps_named("ask"):
        page.box(scale(ask.start_ns), top, scale(ask.end_ns) - scale(ask.start_ns), _BAR_PT, MODEL)
    for mark in row.marks:
        at = scale(mark.start_ns)
        width = scale(mark.end_ns) - at
        # A widened mark sticks out, so that it is never taken for one drawn to scale.
        overhang = 4 if width < SEEN_PT else 0
        page.box(at, top, max(SEEN_PT, width), _BAR_PT + overhang, WORK)
    page.text(end + 6, top + _BAR_PT / 2 + 3.8, ending_of(turn), _BIG_PT, is_bold=True)
    for line, labels in enumerate(row.labels, 1):
        for label in labels:
            page.text(label.at_pt, top + _BAR_PT + line * _LINE_PT, label.words, color=label.color)


# ---------------------------------------------------------------- the words under a bar


def _row(turn: TurnView, scale: Scale) -> _Row:
    marks = tool_marks(turn)
    labels = _wait_labels(turn, scale)
    if marks:
        labels += _tool_labels(marks, scale)
    return _Row(turn, marks, labels)


def _wait_words(wait: Span) -> str:
    return f"waited {seconds(wait.end_ns - wait.start_ns)}"


def _is_named_inside(wait: Span, scale: Scale) -> bool:
    room = scale(wait.end_ns) - scale(wait.start_ns) - 8
    return width_pt(_wait_words(wait), _TEXT_PT) <= room


def _wait_labels(turn: TurnView, scale: Scale) -> list[list[_Label]]:
    """Waits that are drawn but too short to be named inside the mark, a row each."""
    return [
        [_Label(scale(wait.start_ns), _wait_words(wait), WAIT_WORD)]
        for wait in turn.steps_named("wait")
        if scale(wait.end_ns) - scale(wait.start_ns) >= SEEN_PT
        and not _is_named_inside(wait, scale)
    ]


def _tool_labels(marks: list[ToolMark], scale: Scale) -> list[list[_Label]]:
    """Each tool at its mark where all fit in one row; else numbers there, and a list below."""
    room_end = WIDTH_PT - MARGIN_PT
    direct = [_Label(scale(mark.start_ns), label_of(mark)) for mark in marks]
    # The last one may begin left of its mark, so that it ends on the page.
    last = room_end - width_pt(legible(direct[-1].words), _TEXT_PT)
    direct[-1] = direct[-1]._replace(at_pt=max(scale.start_pt, min(direct[-1].at_pt, last)))
    if _has_room(direct, room_end):
        return [direct]
    numbers = [
        _Label(scale(mark.start_ns) + SEEN_PT / 2 - width_pt(str(n), _TEXT_PT) / 2, str(n))
        for n, mark in enumerate(marks, 1)
    ]
    is_numbered = _has_room(numbers, room_end)
    words = tools_line(marks, is_numbered=is_numbered)
    start = max(
        scale.start_pt, min(numbers[0].at_pt, room_end - width_pt(legible(words), _TEXT_PT))
    )
    lines = wrapped(words, room_end - start, _TEXT_PT, at=" · ")
    if len(lines) > _LIST_LIMIT:
        lines[_LIST_LIMIT - 1 :] = [f"… and {len(lines) - _LIST_LIMIT + 1} lines more"]
    listed = [[_Label(start, line)] for line in lines]
    return [numbers, *listed] if is_numbered else listed


def _has_room(labels: list[_Label], room_end: float) -> bool:
    begins = [label.at_pt for label in labels[1:]] + [room_end + _GAP_PT]
    return all(
        label.at_pt + width_pt(legible(label.words), _TEXT_PT) + _GAP_PT <= begin
        for label, begin in zip(labels, begins, strict=True)
    )
