"""The picture of a run with faults: when it answered, when it was down, and how it came back.

A band begins with a fault of the process ``nemesis`` and ends with the first answer to a request
that was sent after it: the time in which clients got nothing new. It shows what clients saw;
whether anything was lost is the judge's to say. A turn that was sent several times is one turn, as
it is for the judge.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from kode_lab.errors import InvalidRecord
from kode_lab.history.operation import HEALS, NEMESIS, QUIET, Operation
from kode_lab.key import SessionKey
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
from kode_lab.pictures.style import FAINT, INK, SOFT, WIDTH_PT, WORK, width_pt

__all__ = ["Band", "bands_of", "draw_crash_bands"]

# What a nemesis writes when a fault is over; any other name begins one.
_ENDS = frozenset({*HEALS.values(), QUIET})
_LEFT_PT = 92.0
_BARS_PT = 88.0
_MARKS_PT = 30.0
_COLUMN_PT = 3.0


class Band(NamedTuple):
    """One fault: its name, when it began, and when a client first got an answer again.

    Attributes:
        back_ns: the first acknowledgement of a turn sent after ``start_ns``; infinity if none.
    """

    name: str
    start_ns: int
    back_ns: float


def bands_of(operations: Sequence[Operation]) -> list[Band]:
    """Return the faults of a history, by time."""
    answered = sorted(
        ((o.invoke_ns, o.complete_ns) for o in operations if _is_turn(o) and o.type == "ok"),
    )
    sent = [invoke_ns for invoke_ns, _ in answered]
    # The earliest answer among all turns sent from here on.
    earliest = [math.inf] * (len(answered) + 1)
    for at in range(len(answered) - 1, -1, -1):
        earliest[at] = min(earliest[at + 1], answered[at][1])
    faults = sorted(
        (o for o in operations if o.process == NEMESIS and o.f not in _ENDS),
        key=lambda fault: fault.invoke_ns,
    )
    return [
        Band(fault.f, fault.invoke_ns, earliest[bisect_left(sent, fault.invoke_ns)])
        for fault in faults
    ]


def draw_crash_bands(operations: Sequence[Operation]) -> Picture:
    """Draw acknowledged turns over time with a band for each fault, and the unknown outcomes below.

    Raises:
        InvalidRecord: the history has no turn, or no fault.
    """
    sendings = [operation for operation in operations if _is_turn(operation)]
    bands = bands_of(operations)
    if not sendings or not bands:
        missing = "fault" if sendings else "turn"
        raise InvalidRecord(f"there is no {missing} in this history: nothing to draw bands of")
    turns = _merged(sendings)
    times = [o.invoke_ns for o in sendings] + [band.start_ns for band in bands]
    ends = [o.complete_ns for o in sendings if not math.isinf(o.complete_ns)]
    start_ns, end_ns = min(times), int(max([*times, *ends, min(times) + 1]))
    scale = Scale(start_ns, end_ns, MARGIN_PT + _LEFT_PT, WIDTH_PT - MARGIN_PT - 20)
    page = Page(*_words(turns, sendings, bands))
    top = page.top_pt + 40
    base = top + _BARS_PT
    bottom = base + _MARKS_PT
    for band in bands:
        left, right = scale(band.start_ns), scale(min(band.back_ns, scale.high))
        page.box(left, top - 12, max(1.6, right - left), bottom - top + 12, FAINT)
        page.line([(left, top - 12), (left, bottom)], INK, 1.2)
    _draw_answers(page, turns, scale, base)
    noun = "unknown" if len(sendings) == len(turns) else "sendings"
    _draw_unknown(page, sendings, noun, scale, base + 8)
    _name_bands(page, bands, scale, top - 16)
    unit, per_unit = unit_of(end_ns - start_ns)
    high = (end_ns - start_ns) / per_unit
    begun = [Tick((b.start_ns - start_ns) / per_unit, "", is_telling=True) for b in bands]
    told = [tick._replace(label=f"{tick.value:.1f}") for tick in begun]
    in_unit = scale._replace(low=0.0, high=high)
    captions = [f"{unit} since the first request"]
    return page.finish(page.time_axis(in_unit, bottom, [*told, *nice_ticks(high)], captions))


def _is_turn(operation: Operation) -> bool:
    return operation.f == "turn" and operation.process != NEMESIS


def _merged(sendings: Sequence[Operation]) -> list[Operation]:
    """Return one attempt a turn: the first acknowledged, or the first possibly accepted."""
    by_turn: dict[tuple[SessionKey, str], list[Operation]] = {}
    for sending in sendings:
        by_turn.setdefault((sending.key, sending.turn_id or sending.marker), []).append(sending)
    rank = {"ok": 0, "info": 1, "fail": 2}
    return [min(of, key=lambda o: (rank[o.type], o.complete_ns)) for of in by_turn.values()]


def _words(
    turns: Sequence[Operation], sendings: Sequence[Operation], bands: Sequence[Band]
) -> tuple[str, str]:
    lost = [band for band in bands if math.isinf(band.back_ns)]
    unknown = sum(turn.type == "info" for turn in turns)
    left = f"{unknown:,} of {len(turns):,} turns have no known outcome."
    if len(sendings) != len(turns):
        cut = sum(sending.type == "info" for sending in sendings)
        ends = f"{unknown:,} of {len(turns):,} turns stayed so."
        left = f"{cut:,} of {len(sendings):,} sendings had no known outcome; {ends}"
    counts = Counter(band.name for band in bands)
    begun = " and ".join(f"{count:,} × {name}" for name, count in sorted(counts.items())[:4])
    if lost:
        found = f"after {len(lost):,} of them no client was answered again"
        found = "no client was answered again" if len(lost) == len(bands) else found
    else:
        slowest = max(band.back_ns - band.start_ns for band in bands)
        most = "" if len(bands) == 1 else " at most"
        found = f"clients were answered again after {seconds(slowest)}{most}"
    reading = (
        "Blue: turns acknowledged. Grey: from a fault to the first answer to a turn sent after it. "
        f"Ticks: {left}"
    )
    return f"{begun}: {found}", reading


def _draw_answers(page: Page, turns: Sequence[Operation], scale: Scale, base: float) -> None:
    count = max(1, round((scale.end_pt - scale.start_pt) / _COLUMN_PT))
    columns = [0] * count
    for turn in turns:
        if turn.type == "ok":
            share = (scale(turn.complete_ns) - scale.start_pt) / (scale.end_pt - scale.start_pt)
            columns[min(count - 1, int(share * count))] += 1
    tallest = max(columns) or 1
    width = (scale.end_pt - scale.start_pt) / count
    page.boxes(
        [
            (
                scale.start_pt + n * width,
                base - _BARS_PT * many / tallest,
                width,
                _BARS_PT * many / tallest,
            )
            for n, many in enumerate(columns)
            if many
        ],
        WORK,
    )
    column_ns = (scale.high - scale.low) / count
    rate = tallest / (column_ns / 1e9)
    answered = sum(columns)
    x = scale.start_pt - 8
    page.text(x, base - _BARS_PT + 8, f"{answered:,} answered", color=WORK, align="right")
    page.text(x, base - _BARS_PT + 21, f"{rate:,.3g} per second", color=SOFT, align="right")
    page.text(x, base - _BARS_PT + 33, "at the busiest", color=SOFT, align="right")


def _draw_unknown(
    page: Page, sendings: Sequence[Operation], noun: str, scale: Scale, top: float
) -> None:
    unknown = [sending for sending in sendings if sending.type == "info"]
    page.lines(
        [[(scale(turn.invoke_ns), top), (scale(turn.invoke_ns), top + 10)] for turn in unknown],
        INK,
        0.9,
    )
    page.text(scale.start_pt - 8, top + 8, f"{len(unknown):,} {noun}", color=INK, align="right")


def _name_bands(page: Page, bands: Sequence[Band], scale: Scale, y: float) -> None:
    """The name of each fault and how long it lasted, as far as there is room beside each other."""
    for band in bands:
        took = band.back_ns - band.start_ns
        lasted = "no answer since" if math.isinf(took) else f"back after {seconds(took)}"
        for level, words in ((y - 12, band.name), (y, lasted)):
            at = scale(band.start_ns)
            room = WIDTH_PT - MARGIN_PT - width_pt(words, 9.0) - 2
            page.text_where_free(
                [(min(at, room), level, "left")],
                words,
                is_optional=True,
                color=INK if words == band.name else SOFT,
                is_bold=words == band.name,
            )
