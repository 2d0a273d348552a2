"""The pictures: each takes a recorded run (or anything with spans and operations) and argues once.

The title is the finding with its numbers, the line under it says how to read the marks. The only
place that imports matplotlib; nothing here runs or judges anything.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

from kode_lab.check.verdict import Anomaly
from kode_lab.key import SessionKey
from kode_lab.lab.turn_view import Recorded, turns_of
from kode_lab.pictures.crash_bands import draw_crash_bands
from kode_lab.pictures.curves import (
    Latencies,
    Rate,
    draw_latency,
    draw_percentiles,
    draw_throughput,
)
from kode_lab.pictures.many_sessions import draw_many
from kode_lab.pictures.page import Picture
from kode_lab.pictures.two_sessions import draw_sessions
from kode_lab.pictures.witness import draw_witness

__all__ = [
    "Picture",
    "crash_bands",
    "latency",
    "many_sessions",
    "percentiles",
    "throughput",
    "two_sessions",
    "witness",
]


def two_sessions(
    run: Recorded,
    *,
    keys: Collection[SessionKey] | None = None,
    prompts: Mapping[str, str] | None = None,
    speed: float = 1.0,
) -> Picture:
    """Draw a few sessions as lanes over time: waits, model calls and tool calls.

    Args:
        run: what was recorded.
        keys: the sessions to draw; all of them where it is not given.
        prompts: what was asked, by turn id.
        speed: how many times faster than the original the run was; told, never applied.

    Raises:
        InvalidRecord: there is nothing to draw, or more than lanes can show.
    """
    turns = turns_of(run.spans(), run.operations())
    if keys is not None:
        turns = [turn for turn in turns if turn.key in keys]
    return draw_sessions(turns, prompts=prompts, speed=speed)


def many_sessions(run: Recorded) -> Picture:
    """Draw a row for each session, sorted by how long its turns waited, and how busy it was in all.

    Of more than a thousand sessions the fifty that waited longest are drawn.

    Raises:
        InvalidRecord: there is nothing to draw.
    """
    return draw_many(turns_of(run.spans(), run.operations()))


def latency(runs: Recorded | Mapping[str, Recorded]) -> Picture:
    """Draw the share of turns slower than x, a curve a run.

    Args:
        runs: one run, or several by the names that their curves shall have.

    Raises:
        InvalidRecord: no turn was answered, or there are too many runs to name.
    """
    named = {"": runs} if isinstance(runs, Recorded) else runs
    return draw_latency({name: _latencies(run) for name, run in named.items()})


def percentiles(runs: Recorded | Mapping[str, Recorded]) -> Picture:
    """Draw how long a turn takes over the percentile (50, 90, 95, 99, ...), a curve a run.

    Args:
        runs: one run, or several by the names that their curves shall have.

    Raises:
        InvalidRecord: no turn was answered, or there are too many runs to name.
    """
    named = {"": runs} if isinstance(runs, Recorded) else runs
    return draw_percentiles({name: _latencies(run) for name, run in named.items()})


def throughput(runs: Iterable[Recorded]) -> Picture:
    """Draw turns per second over the number of sessions, beside the ideal; each run is a dot.

    Raises:
        InvalidRecord: the runs do not have two numbers of sessions.
    """
    return draw_throughput([rate for run in runs if (rate := _rate(run)) is not None])


def crash_bands(run: Recorded) -> Picture:
    """Draw acknowledged turns over time, with a band from each fault to the first answer after it.

    Raises:
        InvalidRecord: the history has no turn, or no fault.
    """
    return draw_crash_bands(tuple(run.operations()))


def witness(anomaly: Anomaly) -> Picture:
    """Draw the operations that show an anomaly, what each was shown, and what of it cannot be."""
    return draw_witness(anomaly)


def _latencies(run: Recorded) -> Latencies:
    turns = turns_of(run.spans(), run.operations())
    answered = [turn.latency_ns for turn in turns if turn.outcome == "ok"]
    return Latencies(answered, len(turns) - len(answered))


def _rate(run: Recorded) -> Rate | None:
    """Good turns per second, from the first request to the last answer."""
    turns = [t for t in turns_of(run.spans(), run.operations()) if t.outcome == "ok"]
    if not turns:
        return None
    took_ns = max(turn.end_ns for turn in turns) - min(turn.start_ns for turn in turns)
    sessions = len({turn.key for turn in turns})
    return Rate(sessions, len(turns) / (max(took_ns, 1) / 1e9))
