"""The picture of very many sessions: a row each, what waited, and how busy it was in all.

Rows are sorted by how long their turns waited, so that the worst stand together at the top. That a
turn waited *only for its own session* is checked, not assumed: time in which a turn waited although
no other turn of its session ran is counted apart, and the title tells it.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from itertools import islice
from statistics import median
from typing import NamedTuple

import numpy as np

from kode_lab.errors import InvalidRecord
from kode_lab.key import SessionKey
from kode_lab.lab.times import counted
from kode_lab.lab.turn_view import TurnView
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
    GUIDE,
    INK,
    SOFT,
    TYPE_LIMIT_PT,
    WAIT,
    WAIT_WORD,
    WIDTH_PT,
    WORK,
    shortened,
    width_pt,
)

__all__ = ["ROWS_LIMIT", "WORST_ROWS", "draw_many"]

# Above this a row is thinner than a dot.
ROWS_LIMIT = 1_000
WORST_ROWS = 50
# Waits as short as this happen on a busy machine to turns whose session is free.
_NEEDLESS_NS = 10_000_000
_LEFT_PT, _RIGHT_PT = 92.0, 86.0
_STRIP_PT = 62.0
_ROWS_PT = 430.0
_NAMED_PITCH_PT = 10.5
_TEXT_PT = 9.0

_Interval = tuple[int, int]


class _Session(NamedTuple):
    """One row: when turns of the session ran, when turns waited, and for how long in all."""

    key: SessionKey
    runs: list[_Interval]
    waits: list[_Interval]
    waited_ns: int
    needless_ns: int
    waiting_turns: int


def draw_many(turns: Sequence[TurnView]) -> Picture:
    """Draw a row for each session, with a strip of how many turns ran and waited.

    Raises:
        InvalidRecord: there is no turn.
    """
    if not turns:
        raise InvalidRecord("there is no turn to draw: neither history nor trace has one")
    sessions = sorted(_sessions(turns), key=lambda one: (-one.waited_ns, one.runs[0], one.key))
    rows = sessions if len(sessions) <= ROWS_LIMIT else sessions[:WORST_ROWS]
    start_ns = min(turn.start_ns for turn in turns)
    end_ns = max(*(turn.end_ns for turn in turns), start_ns + 1)
    scale = Scale(start_ns, end_ns, MARGIN_PT + _LEFT_PT, WIDTH_PT - MARGIN_PT - _RIGHT_PT)
    page = Page(*_words(turns, sessions, rows))

    top = page.top_pt + 14
    _draw_strip(page, sessions, scale, top)
    top += _STRIP_PT + 22
    pitch = min(_NAMED_PITCH_PT + 4, _ROWS_PT / len(rows))
    if len(rows) <= WORST_ROWS:
        pitch = max(pitch, _NAMED_PITCH_PT)
    _draw_rows(page, rows, scale, top, pitch)
    bottom = top + pitch * len(rows) + 6
    if pitch >= _NAMED_PITCH_PT:
        _name_rows(page, rows, scale, top, pitch)
    else:
        _name_groups(page, rows, scale, top, pitch)
    _draw_margin(page, rows, scale, top, pitch)
    unit, per_unit = unit_of(end_ns - start_ns)
    high = (end_ns - start_ns) / per_unit
    last = Tick(high, f"{high:.1f}", is_telling=True)
    in_unit = scale._replace(low=0.0, high=high)
    captions = [f"{unit} since the first request"]
    return page.finish(page.time_axis(in_unit, bottom, [last, *nice_ticks(high)], captions))


def _sessions(turns: Sequence[TurnView]) -> list[_Session]:
    by_key: dict[SessionKey, list[TurnView]] = {}
    for turn in turns:
        by_key.setdefault(turn.key, []).append(turn)
    return [_session(key, of_key) for key, of_key in by_key.items()]


def _session(key: SessionKey, turns: list[TurnView]) -> _Session:
    runs: list[_Interval] = []
    waits: list[_Interval] = []
    for turn in turns:
        of_turn = [(wait.start_ns, wait.end_ns) for wait in turn.steps_named("wait")]
        waits += of_turn
        if not turn.is_open or turn.steps:
            runs.append((max([turn.start_ns, *(end for _, end in of_turn)]), turn.end_ns))
    runs = _union(runs) or [(turns[0].start_ns, turns[0].start_ns)]
    # The lock changes hands in the gaps between runs; that is no needless wait either.
    busy = _union(runs, _NEEDLESS_NS)
    counted = waiting = needless = 0
    for start, end in waits:
        behind = _overlap(busy, start, end)
        if behind or end - start > _NEEDLESS_NS:
            waiting += 1
            counted += end - start
        if end - start - behind > _NEEDLESS_NS:
            needless += end - start - behind
    return _Session(key, runs, waits, counted, needless, waiting)


def _union(intervals: list[_Interval], gap_ns: int = 0) -> list[_Interval]:
    """The time that the intervals cover, with gaps of at most ``gap_ns`` filled."""
    joined: list[_Interval] = []
    for start, end in sorted(intervals):
        if joined and start <= joined[-1][1] + gap_ns:
            joined[-1] = (joined[-1][0], max(joined[-1][1], end))
        else:
            joined.append((start, end))
    return joined


def _overlap(disjoint: list[_Interval], start: int, end: int) -> int:
    first = max(0, bisect_right(disjoint, (start, start)) - 1)
    overlap = 0
    for left, right in islice(disjoint, first, None):
        if left >= end:
            break
        overlap += max(0, min(end, right) - max(start, left))
    return overlap


def _words(
    turns: Sequence[TurnView], sessions: Sequence[_Session], rows: Sequence[_Session]
) -> tuple[str, str]:
    """The title and the reading."""
    waiting = sum(one.waiting_turns for one in sessions)
    needless = sum(one.needless_ns for one in sessions)
    at_once = _peak([run for one in sessions for run in one.runs])
    begun = f"{len(sessions):,} sessions, {at_once:,} at work at once: "
    if len(sessions) == 1:
        begun = "1 session: "
    of_all = f"{waiting:,} of {counted(len(turns), 'turn')}"
    if not any(one.waits for one in sessions):
        found = counted(len(turns), "turn")
    elif needless:
        waited = sum(one.waited_ns for one in sessions)
        found = (
            f"{of_all} waited, {seconds(waited)} in all, and {seconds(needless)} of that while "
            "their own session was free"
        )
    elif waiting:
        found = f"{of_all} waited, each only for its own session"
    else:
        found = f"none of {counted(len(turns), 'turn')} waited"
    reading = "Each row is a session. Blue: a turn runs."
    if waiting and not needless:
        reading += " Orange: it runs, and another turn of the session waits behind it."
    elif waiting:
        reading += " Orange: a turn waits for the session’s lock."
    if len(rows) < len(sessions):
        reading += (
            f" Shown are the {len(rows)} sessions that waited longest; "
            f"the other {len(sessions) - len(rows):,} are in the strip only."
        )
    return begun + found, reading


# ---------------------------------------------------------------- the strip of all sessions


def _peak(intervals: Sequence[_Interval]) -> int:
    _, counts = _counts(intervals)
    return int(counts.max(initial=0))


def _counts(intervals: Sequence[_Interval]) -> tuple[np.ndarray, np.ndarray]:
    """When the number of open intervals changes, and what it is from then on."""
    starts = np.array([start for start, _ in intervals], dtype=np.int64)
    ends = np.array([end for _, end in intervals], dtype=np.int64)
    times = np.concatenate([starts, ends])
    deltas = np.concatenate([np.ones_like(starts), -np.ones_like(ends)])
    order = np.lexsort((deltas, times))
    return times[order], np.cumsum(deltas[order])


def _draw_strip(page: Page, sessions: Sequence[_Session], scale: Scale, top: float) -> None:
    """Running turns below, waiting turns on them; each column is the mean over its time."""
    running = [run for one in sessions for run in one.runs]
    waiting = [wait for one in sessions for wait in one.waits]
    edges = np.linspace(scale.low, scale.high, round(scale.end_pt - scale.start_pt) + 1)
    ran, waited = _means(running, edges), _means(waiting, edges)
    tallest = max(float((ran + waited).max()), 1e-9)
    base = top + _STRIP_PT
    xs = [scale(float(edge)) for edge in edges]

    def outline(heights: np.ndarray) -> list[tuple[float, float]]:
        points = [(xs[0], base)]
        for left, right, height in zip(xs, xs[1:], heights, strict=False):
            y = base - _STRIP_PT * float(height) / tallest
            points += [(left, y), (right, y)]
        return [*points, (xs[-1], base)]

    page.area(outline(ran + waited), WAIT)
    page.area(outline(ran), WORK)
    page.line([(xs[0], base), (xs[-1], base)], WORK)
    words = f"{_peak(running):,} running at most"
    page.text(xs[0], top - 5, words, color=WORK, is_bold=True)
    if waited.max() > 0.01 * tallest:
        at = xs[0] + width_pt(words, _TEXT_PT, is_bold=True) + 10
        words = f"{_peak(waiting):,} waiting at most"
        page.text(at, top - 5, words, color=WAIT_WORD, is_bold=True)


def _means(intervals: Sequence[_Interval], edges: np.ndarray) -> np.ndarray:
    """How many intervals are open in each column, on average over its time."""
    if not intervals:
        return np.zeros(len(edges) - 1)
    times, counts = _counts(intervals)
    area = np.concatenate([[0.0], np.cumsum(counts[:-1] * np.diff(times))])
    at_edges = np.interp(edges, times, area)
    means: np.ndarray = np.diff(at_edges) / np.diff(edges)
    return means


# ---------------------------------------------------------------- rows


def _draw_rows(
    page: Page, rows: Sequence[_Session], scale: Scale, top: float, pitch: float
) -> None:
    thick = max(min(pitch * 0.72, 7.0), min(pitch, 0.9))
    blue: list[tuple[float, float, float, float]] = []
    orange: list[tuple[float, float, float, float]] = []
    for number, one in enumerate(rows):
        y = top + number * pitch + (pitch - thick) / 2
        for marks, intervals in ((blue, one.runs), (orange, one.waits)):
            for start, end in intervals:
                width = scale(end) - scale(start)
                # A wait of microseconds is no mark; a run is always to be seen.
                if width > 0.15 or marks is blue:
                    marks.append((scale(start), y, max(width, 0.4), thick))
    page.boxes(blue, WORK)
    page.boxes(orange, WAIT)


def _name_rows(
    page: Page, rows: Sequence[_Session], scale: Scale, top: float, pitch: float
) -> None:
    for number, one in enumerate(rows):
        name = shortened(str(one.key), _LEFT_PT - 8, TYPE_LIMIT_PT, keeps_end=True)
        y = top + (number + 0.5) * pitch + 2.8
        page.text(scale.start_pt - 8, y, name, TYPE_LIMIT_PT, color=SOFT, align="right")


def _name_groups(
    page: Page, rows: Sequence[_Session], scale: Scale, top: float, pitch: float
) -> None:
    waited = sum(one.waiting_turns > 0 for one in rows)
    groups = ((0, waited, "waited"), (waited, len(rows) - waited, "never waited"))
    for first, count, verb in groups:
        if not count:
            continue
        # A group of few rows at the bottom has its words beside its first row or a little above.
        y = min(top + first * pitch + 9, top + len(rows) * pitch - 22)
        if first:
            page.line([(MARGIN_PT + 20, y - 9), (scale.start_pt - 4, y - 9)], GUIDE)
        x = scale.start_pt - 8
        page.text(x, y + 1, f"{count:,} sessions", color=INK, align="right")
        page.text(x, y + 13, verb, color=INK, align="right")


def _draw_margin(
    page: Page, rows: Sequence[_Session], scale: Scale, top: float, pitch: float
) -> None:
    """How long each session waited in all, beside its row."""
    most = max(one.waited_ns for one in rows)
    if not most:
        return
    left, right = scale.end_pt + 10, WIDTH_PT - MARGIN_PT
    waited = [one.waited_ns for one in rows if one.waited_ns]
    page.text(left, top - 30, "waited in all", color=SOFT)
    page.text(left, top - 18, f"median {seconds(median(waited))}", color=SOFT)
    page.text(left, top - 6, f"{seconds(most)} at most", color=WAIT_WORD, is_bold=True)
    thick = max(min(pitch * 0.72, 7.0), min(pitch, 0.9))
    places = [
        (
            left,
            top + number * pitch + (pitch - thick) / 2,
            (right - left) * one.waited_ns / most,
            thick,
        )
        for number, one in enumerate(rows)
        if one.waited_ns
    ]
    page.boxes(places, WAIT)
