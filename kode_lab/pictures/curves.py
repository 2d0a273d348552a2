"""The pictures of speed: the share of turns slower than x, and turns per second over concurrency.

A latency curve keeps its whole tail: both axes are logarithmic, and a turn that never got its
answer counts as slower than any time, so a system cannot look fast by failing. Throughput is drawn
beside what it would be if sessions did not cost each other anything; every repeat is a dot.

Idea: HdrHistogram's percentile plots (Gil Tene, http://hdrhistogram.org), turned by a quarter.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import fmean, median
from typing import NamedTuple

from kode_lab.errors import InvalidRecord
from kode_lab.lab.times import counted
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
    WIDTH_PT,
    WORK,
    WORK_SHADES,
)

__all__ = [
    "CURVE_LIMIT",
    "Latencies",
    "Rate",
    "draw_latency",
    "draw_percentiles",
    "draw_throughput",
]

# More curves than this no longer have room for a name each.
CURVE_LIMIT = 8
_PLOT_PT = 250.0
_LEFT_PT = 66.0
_TEXT_PT = 9.0
# One turn in a hundred: the tail that people complain about, where there are turns enough.
_TAIL_SHARE = 0.01
# What stands for it where there are too few turns to speak of a tail.
_NO_TAIL = 0.5
# Times this many times apart share no linear axis.
_LOG_FROM = 12
# Below this share of the ideal, sessions are said to cost each other something.
_FREE_SHARE = 0.9


class Latencies(NamedTuple):
    """How long the answered turns of one run took, and how many got no good answer."""

    answered_ns: Sequence[int]
    unanswered: int = 0

    @property
    def asked(self) -> int:
        """All turns."""
        return len(self.answered_ns) + self.unanswered


class Rate(NamedTuple):
    """One measurement: turns per second with so many sessions at work at once."""

    sessions: int
    turns_per_s: float


# ---------------------------------------------------------------- latency


def draw_latency(named: Mapping[str, Latencies]) -> Picture:
    """Draw a curve for each run: the share of its turns that took longer than x.

    Raises:
        InvalidRecord: no turn was answered, or there are more runs than ``CURVE_LIMIT``.
    """
    curves = _drawable(named)
    page = Page(*_latency_words(curves))
    times = [time for one in curves.values() for time in one.answered_ns]
    low, high = float(max(1, min(times))), float(max(times))
    if high < low * 1.5:
        low, high = low / 1.5, low * 1.5
    top = page.top_pt + 26
    x = Scale(low, high, MARGIN_PT + _LEFT_PT, WIDTH_PT - MARGIN_PT - 66, is_log=True)
    deepest = max(one.asked for one in curves.values())
    y = Scale(1.0, 1 / deepest, top, top + _PLOT_PT, is_log=True)
    page.text(MARGIN_PT, top - 14, "share of turns slower than …", color=INK, is_bold=True)
    _share_axis(page, y, x)
    drawn = [
        (name, one, _steps(one, x, y), color)
        for (name, one), color in zip(curves.items(), _shades(len(curves)), strict=True)
    ]
    for _, _, points, color in drawn:
        page.curve(points, color)
    for name, one, points, color in drawn:
        is_told = name in (drawn[0][0], drawn[-1][0])  # the title names these two
        _mark_tail(page, one, x, y, color, is_optional=not is_told)
        if len(drawn) > 1:
            _name_curve(page, name, points, color)
    bottom = top + _PLOT_PT + 12
    return page.finish(page.time_axis(x, bottom, _log_ticks(low, high), ["time of a turn"]))


def draw_percentiles(named: Mapping[str, Latencies]) -> Picture:  # noqa: C901 - top to bottom
    """Draw a curve for each run: how long a turn takes, over the percentile.

    Idea: the percentile axis of HdrHistogram, which gives each further nine the same room.

    Raises:
        InvalidRecord: no turn was answered, or there are more runs than ``CURVE_LIMIT``.
    """
    curves = _drawable(named)
    asked = sum(one.asked for one in curves.values())
    first = next(iter(curves.values()))
    told = [
        f"{label} {seconds(time_ns)}"
        for share, label in ((0.5, "median"), (0.95, "p95"), (0.99, "p99"))
        if (time_ns := _at_share(first, share)) is not None and first.asked * (1 - share) >= 1
    ]
    name = f" ({next(iter(curves))})" if len(curves) > 1 else ""
    reading = f"{counted(asked, 'turn')}. The curve: the turn at this percentile took so long."
    if any(one.unanswered for one in curves.values()):
        reading += " It ends where turns without a good answer begin."
    page = Page(f"Time of a turn: {', '.join(told) or seconds(max(first.answered_ns))}{name}",
                reading)  # fmt: skip
    top = page.top_pt + 26
    deepest = max(one.asked for one in curves.values())
    x = Scale(1.0, 1 / deepest, MARGIN_PT + _LEFT_PT, WIDTH_PT - MARGIN_PT - 66, is_log=True)
    high = max(max(one.answered_ns) for one in curves.values())
    low = min(median(one.answered_ns) for one in curves.values())
    is_log = high > _LOG_FROM * low and len(curves) > 1
    y = Scale(0.0, high * 1.08, top + _PLOT_PT, top)
    if is_log:
        y = Scale(max(1.0, min(min(one.answered_ns) for one in curves.values())) / 1.5,
                  high * 1.2, top + _PLOT_PT, top, is_log=True)  # fmt: skip
    unit, per_unit = ("seconds", 1e9) if high >= 1e9 else ("milliseconds", 1e6)
    heading = "time of a turn" if is_log else f"time of a turn, {unit}"
    page.text(MARGIN_PT, top - 14, heading, color=INK, is_bold=True)
    levels = [Tick(t.value * per_unit, t.label) for t in nice_ticks(high / per_unit, most=6)]
    if is_log:
        decades = range(math.floor(math.log10(y.low)), math.ceil(math.log10(y.high)) + 1)
        rounds = [10.0**n for n in decades if y.low <= 10.0**n <= y.high]
        levels = [Tick(value, _round_seconds(value)) for value in rounds]
    for tick in levels:
        at = y(tick.value)
        page.curve([(x.start_pt, at), (x.end_pt, at)], GUIDE, 0.5)
        page.text(x.start_pt - 8, at + 3, tick.label, color=SOFT, align="right")
    drawn = []
    for (name, one), color in zip(curves.items(), _shades(len(curves)), strict=True):
        ranked = sorted(one.answered_ns)
        points = [
            (x(max(1 / deepest, 1 - rank / one.asked)), y(time_ns))
            for rank, time_ns in enumerate(ranked)
        ]
        page.curve(points, color)
        drawn.append((name, one, points, color))
    for name, one, points, color in drawn:
        if len(drawn) > 1:
            end_x, end_y = points[-1]
            places = [(end_x + 6, end_y + 3 + step, "left") for step in (0, -12, 12, -24, 24)]
            page.text_where_free(places, name, color=_for_words(color), is_bold=True)
        for share in (0.5, 0.95, 0.99):
            time_ns = _at_share(one, share)
            if time_ns is None or one.asked * (1 - share) < 1:
                continue
            at_x, at_y = x(1 - (math.ceil(share * one.asked) - 1) / one.asked), y(time_ns)
            page.dots([(at_x, at_y)], color)
            places = [(at_x - 6, at_y - 6, "right"), (at_x - 6, at_y - 20, "right")]
            if at_y + 14 < y.start_pt:
                places += [(at_x + 6, at_y + 12, "left")]
            page.text_where_free(
                places, seconds(time_ns), color=_for_words(color), is_optional=len(drawn) > 1
            )
    ticks = [
        Tick(1 - share, label)
        for share, label in (
            (0.0, "0 %"), (0.5, "50 %"), (0.9, "90 %"), (0.95, "95 %"), (0.99, "99 %"),
            (0.999, "99.9 %"), (0.9999, "99.99 %"), (0.99999, "99.999 %"),
        )
        if 1 - share >= 1 / deepest
    ]  # fmt: skip
    return page.finish(page.time_axis(x, top + _PLOT_PT + 12, ticks, ["percentile of turns"]))


def _at_share(one: Latencies, share: float) -> int | None:
    """Return the time of the turn at this percentile; None where it was not answered."""
    rank = max(1, math.ceil(share * one.asked))
    ranked = sorted(one.answered_ns)
    return ranked[rank - 1] if rank <= len(ranked) else None


def _drawable(named: Mapping[str, Latencies]) -> dict[str, Latencies]:
    """Return the runs that have an answered turn.

    Raises:
        InvalidRecord: there are none, or too many to name.
    """
    curves = {name: one for name, one in named.items() if one.answered_ns}
    if not curves:
        raise InvalidRecord("there is no latency to draw: no turn was answered")
    if len(curves) > CURVE_LIMIT:
        raise InvalidRecord(
            f"{len(curves)} latency curves are too many to name (CURVE_LIMIT={CURVE_LIMIT}): "
            "draw fewer runs"
        )
    return curves


def _latency_words(curves: Mapping[str, Latencies]) -> tuple[str, str]:
    asked = sum(one.asked for one in curves.values())
    unanswered = sum(one.unanswered for one in curves.values())
    share, _ = _tail(next(iter(curves.values())))
    tails = [_tail(one) for one in curves.values()]
    reading = f"{counted(asked, 'turn')}. "
    if share == _NO_TAIL or len(curves) == 1:
        title = _half_and_rest(curves, share)
    else:
        title = _first_and_last(curves)
    if any(part != _NO_TAIL and not math.isinf(tail_ns) for part, tail_ns in tails):
        reading += f"The dot on a curve: {_share_words(share)} turns took longer than that. "
    if unanswered:
        reading += f"{unanswered:,} without a good answer count as slower than any time."
    return title, reading.strip()


def _half_and_rest(curves: Mapping[str, Latencies], share: float) -> str:
    """Return the title of one curve, or of turns too few for a tail."""
    answered = [time for one in curves.values() for time in one.answered_ns]
    unanswered = sum(one.unanswered for one in curves.values())
    whole = Latencies(answered, unanswered)
    middle_ns = median([*answered, *[math.inf] * unanswered])
    if math.isinf(middle_ns):
        return f"{_none(whole)}; half of the others took {seconds(median(answered))} or less"
    half = f"Half of the turns took {seconds(middle_ns)} or less"
    tail_ns = _tail(whole)[1]
    if share != _NO_TAIL and not math.isinf(tail_ns):
        return f"{half}; {_share_words(share)} took {seconds(tail_ns)} or more"
    return f"{half}; {_none(whole)}" if unanswered else f"{half}, the slowest {_slowest(answered)}"


def _first_and_last(curves: Mapping[str, Latencies]) -> str:
    """Return the title of several curves: the tails of the two that stand at the ends."""
    names = list(curves)
    (share, first_ns), (other, last_ns) = (_tail(curves[name]) for name in (names[0], names[-1]))
    if share == other and not math.isinf(max(first_ns, last_ns)):
        tails = f"took {seconds(first_ns)} or more ({names[0]}) and {seconds(last_ns)} or more"
        return f"{_share_words(share)} turns {tails} ({names[-1]})"
    return "; ".join(f"{_tail_words(curves[name])} ({name})" for name in (names[0], names[-1]))


def _tail_words(one: Latencies) -> str:
    share, tail_ns = _tail(one)
    if math.isinf(tail_ns):
        return _none(one)
    if share == _NO_TAIL:
        return f"the slowest of {one.asked:,} turns took {_slowest(one.answered_ns)}"
    return f"{_share_words(share)} turns took {seconds(tail_ns)} or more"


def _none(one: Latencies) -> str:
    return f"{one.unanswered:,} of {one.asked:,} turns got no good answer"


def _slowest(answered_ns: Sequence[int]) -> str:
    return seconds(max(answered_ns))


def _share_words(share: float) -> str:
    return f"1 in {round(1 / share):,}"


def _tail(one: Latencies) -> tuple[float, float]:
    """The share that has at least three turns in it, and how long the fastest of these took."""
    share = next((s for s in (_TAIL_SHARE, 0.1) if one.asked * s >= 3), _NO_TAIL)
    slower = sorted([*one.answered_ns, *[math.inf] * one.unanswered])
    return share, slower[min(len(slower) - 1, math.ceil(len(slower) * (1 - share)))]


def _steps(one: Latencies, x: Scale, y: Scale) -> list[tuple[float, float]]:
    """The curve as a staircase; steps too small to be seen are left out."""
    ranked = sorted(one.answered_ns)
    points = [(x(ranked[0]), y(1.0))]
    for rank, time in enumerate(ranked, 1):
        slower = one.asked - rank
        if not slower:
            points.append((x(time), points[-1][1]))
            break
        at = (x(max(1, time)), y(slower / one.asked))
        if at[0] - points[-1][0] >= 0.2 or at[1] - points[-1][1] >= 0.2 or rank == len(ranked):
            points += [(at[0], points[-1][1]), at]
    return points


def _mark_tail(
    page: Page, one: Latencies, x: Scale, y: Scale, color: str, *, is_optional: bool
) -> None:
    share, tail_ns = _tail(one)
    if math.isinf(tail_ns) or share == _NO_TAIL:
        return
    at_x, at_y = x(tail_ns), y(share)
    page.dots([(at_x, at_y)], color)
    places = _beside(at_x, at_y - 4) + _beside(at_x, at_y + 11) + _beside(at_x, at_y - 16)
    words = seconds(tail_ns)
    page.text_where_free(places, words, color=_for_words(color), is_optional=is_optional)


def _beside(x: float, y: float) -> list[tuple[float, float, str]]:
    return [(x + 6, y, "left"), (x - 6, y, "right")]


def _name_curve(page: Page, name: str, points: Sequence[tuple[float, float]], color: str) -> None:
    """Write a curve's name beside its upper part, or lower where other words or curves are."""
    places = []
    for step in range(18):
        level = points[0][1] + 16 + 7 * step
        x = next((x for x, y in points if y >= level), points[-1][0])
        places += _beside(x, level)
    page.text_where_free(places, name, color=_for_words(color), is_bold=True)


def _share_axis(page: Page, y: Scale, x: Scale) -> None:
    ticks = [(1.0, "all"), (0.5, "half")]
    ticks += [(10.0**-n, f"1 in {10**n:,}") for n in range(1, 9)]
    for share, label in ticks:
        if share < y.high * 0.999:
            break
        at = y(share)
        page.curve([(x.start_pt, at), (x.end_pt, at)], GUIDE, 0.5)
        page.text(x.start_pt - 8, at + 3, label, color=SOFT, align="right")


def _log_ticks(low: float, high: float) -> list[Tick]:
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    values = [digit * 10.0**n for n in decades for digit in (1, 2, 5)]
    round_values = [v for v in values if low <= v <= high]
    ends = [Tick(value, seconds(value), is_telling=True) for value in (low, high)]
    return ends + [Tick(value, _round_seconds(value)) for value in round_values]


def _round_seconds(value_ns: float) -> str:
    number, unit = seconds(value_ns).split()
    return f"{float(number.replace(',', '')):g} {unit}"


def _shades(count: int) -> list[str]:
    if count == 1:
        return [WORK]
    last = len(WORK_SHADES) - 1
    return [WORK_SHADES[round(n * last / (count - 1))] for n in range(count)]


def _for_words(shade: str) -> str:
    """The lightest shades are too light for words: these take the middle one."""
    return shade if WORK_SHADES.index(shade) >= 2 else WORK


# ---------------------------------------------------------------- throughput


def draw_throughput(rates: Sequence[Rate]) -> Picture:
    """Draw turns per second over the number of sessions at work, beside the ideal.

    The ideal is what so many sessions would do if each went on as fast as the fewest did.

    Raises:
        InvalidRecord: there are fewer than two numbers of sessions.
    """
    by_count: dict[int, list[Rate]] = {}
    for rate in sorted(rates):
        by_count.setdefault(rate.sessions, []).append(rate)
    if len(by_count) < 2:
        raise InvalidRecord("throughput over concurrency needs two numbers of sessions at least")
    means = {count: fmean(r.turns_per_s for r in of) for count, of in by_count.items()}
    fewest, most = min(means), max(means)
    per_session = means[fewest] / fewest
    page = Page(*_throughput_words(means, per_session, by_count))
    top = page.top_pt + 26
    tallest = max(rate.turns_per_s for rate in rates)
    x = Scale(0.0, float(most), MARGIN_PT + _LEFT_PT, WIDTH_PT - MARGIN_PT - 80)
    y = Scale(0.0, tallest * 1.15, top + _PLOT_PT, top)
    page.text(MARGIN_PT, top - 14, "turns per second", is_bold=True)
    _rate_axis(page, y, x, tallest)
    crossing = min(float(most), y.high / per_session)
    page.curve([(x(0.0), y(0.0)), (x(crossing), y(crossing * per_session))], GUIDE)
    page.curve([(x(count), y(mean)) for count, mean in means.items()], WORK)
    page.dots([(x(rate.sessions), y(rate.turns_per_s)) for rate in rates], WORK)
    page.text(
        x(most) + 8, y(means[most]) + 3, f"{means[most]:,.3g} per second", color=WORK, is_bold=True
    )
    at = x(crossing), y(crossing * per_session)
    places = [(at[0] + 6, at[1] + 3 - 12 * step, "left") for step in range(4)]
    page.text_where_free(places, f"ideal: {per_session:.3g} a session", color=SOFT)
    ticks = [Tick(float(count), f"{count:,}", is_telling=True) for count in means]
    return page.finish(page.time_axis(x, y.start_pt, ticks, ["sessions at work at once"]))


def _throughput_words(
    means: Mapping[int, float], per_session: float, by_count: Mapping[int, Sequence[Rate]]
) -> tuple[str, str]:
    free = [n for n, mean in means.items() if mean >= _FREE_SHARE * n * per_session]
    # Only an unbroken row of counts from the fewest on is a claim about "up to".
    upto = [n for n, known in zip(means, free, strict=False) if n == known]
    most = max(means)
    if upto[-1] == most:
        title = f"Sessions do not slow each other down: {means[most]:,.3g} turns per second"
        title += f" with {most:,} of them"
    else:
        share = means[most] / (most * per_session)
        reached = f"{share:.0%}" if share >= 0.01 else "under 1%"
        title = f"Up to {upto[-1]:,} sessions go at full speed; {most:,} reach {reached} of it"
        if upto[-1] == min(means):
            slowed = sorted(means)[1]
            title = f"Already {slowed:,} sessions slow each other down; {most:,} reach {reached}"
            title += " of full speed"
    repeats = sorted({len(of) for of in by_count.values()})
    many = f"{repeats[0]}" if len(repeats) == 1 else f"{repeats[0]} to {repeats[-1]}"
    plural = "s" if repeats[-1] > 1 else ""
    reading = (
        f"Each dot is one run ({many} run{plural} for each number of sessions); the line joins "
        f"their means. Grey: if each session went on as fast as {min(means):,} did."
    )
    return title, reading


def _rate_axis(page: Page, y: Scale, x: Scale, tallest: float) -> None:
    for tick in nice_ticks(tallest, most=5):
        page.line([(x.start_pt - 4, y(tick.value)), (x.start_pt, y(tick.value))])
        page.text(x.start_pt - 8, y(tick.value) + 3, tick.label, color=SOFT, align="right")
    page.line([(x.start_pt, y(0.0)), (x.start_pt, y(tallest))])
