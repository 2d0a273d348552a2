"""What goes on in a server at this moment: who holds, who waits, how long things took.

The server reports turns (accepted, ended) and the trace reports their steps; nothing is decided
here, and a turn runs in the same way whether it is recorded or not. Counts only grow; what is kept
of single turns is bounded. The figures of several workers are merged here as well. This module
knows no HTTP and no metrics library.
"""

from __future__ import annotations

import time
from bisect import bisect_left
from collections import OrderedDict, deque
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from kode_lab.history.span import Span, Trace
from kode_lab.key import SessionKey

__all__ = [
    "BOUNDS_S",
    "EndedTurn",
    "Histogram",
    "LiveState",
    "LiveTurn",
    "merged_live",
    "merged_statistics",
]

RECENT_LIMIT = 500
LAST_LIMIT = 10_000
# From a warm turn without a model to as long as a patient user waits.
BOUNDS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)


class Histogram:
    """Counts of durations by ``BOUNDS_S``, and their sum."""

    __slots__ = ("counts", "sum_s")

    def __init__(self) -> None:
        self.counts = [0] * (len(BOUNDS_S) + 1)
        self.sum_s = 0.0

    def add(self, duration_s: float) -> None:
        """Count one."""
        self.counts[bisect_left(BOUNDS_S, duration_s)] += 1
        self.sum_s += duration_s


class LiveTurn:
    """One turn in flight.

    Attributes:
        held_s: when it got the session, or None while it waits.
        asks: model calls so far.
        tools: tool calls so far.
    """

    __slots__ = ("accepted_s", "asks", "held_s", "key", "tools", "turn_id")

    def __init__(self, key: SessionKey, turn_id: str, accepted_s: float) -> None:
        self.key = key
        self.turn_id = turn_id
        self.accepted_s = accepted_s
        self.held_s: float | None = None
        self.asks = 0
        self.tools = 0


class EndedTurn(NamedTuple):
    """One turn that ended; monotonic times.

    Attributes:
        outcome: ``ok``, ``replay``, or the name of the error.
    """

    key: SessionKey
    turn_id: str
    outcome: str
    ended_s: float
    waited_s: float
    took_s: float


class LiveState:
    """The turns in flight by session, the last ones that ended, and the counts.

    Attributes:
        outcomes: how many turns ended how.
        refusals: how many requests were refused before they became turns, by type of error.
        waits, turns, asks, tools: how long these took.
        loop_lags: how late the event loop ran a timer, measured all the time.
        recent: the latest turns that ended.
    """

    def __init__(self, trace: Trace | None = None) -> None:
        """Begin empty; ``trace`` gets every span after it was recorded here."""
        self._trace = trace
        self._queues: dict[tuple[str, ...], dict[LiveTurn, None]] = {}
        self._last: OrderedDict[SessionKey, EndedTurn] = OrderedDict()
        self.started_s = time.monotonic()
        self.outcomes: dict[str, int] = {}
        self.refusals: dict[str, int] = {}
        self.waits, self.turns = Histogram(), Histogram()
        self.asks, self.tools = Histogram(), Histogram()
        self.loop_lags = Histogram()
        self.recent: deque[EndedTurn] = deque(maxlen=RECENT_LIMIT)

    def accept(self, key: SessionKey, turn_id: str) -> LiveTurn:
        """Record a turn that is about to be taken."""
        turn = LiveTurn(key, turn_id, time.monotonic())
        self._queues.setdefault(key[:2], {})[turn] = None
        return turn

    def end(self, turn: LiveTurn, outcome: str) -> None:
        """Record how a turn ended."""
        queue = self._queues[turn.key[:2]]
        del queue[turn]
        if not queue:
            del self._queues[turn.key[:2]]
        now_s = time.monotonic()
        took_s = now_s - turn.accepted_s
        waited_s = took_s if turn.held_s is None else turn.held_s - turn.accepted_s
        ended = EndedTurn(turn.key, turn.turn_id, outcome, now_s, waited_s, took_s)
        self.outcomes[outcome] = self.outcomes.get(outcome, 0) + 1
        self.turns.add(took_s)
        self.recent.append(ended)
        self._last[turn.key] = ended
        self._last.move_to_end(turn.key)
        if len(self._last) > LAST_LIMIT:
            self._last.popitem(last=False)

    def refuse(self, kind: str) -> None:
        """Count a request that never became a turn."""
        self.refusals[kind] = self.refusals.get(kind, 0) + 1

    def see(self, span: Span) -> None:
        """Record one step of a turn: the manager's ``trace``."""
        step = span.step
        if step == "wait":
            self.waits.add((span.end_ns - span.start_ns) / 1e9)
            turn = self._find(span, is_held=False)
            if turn is not None:
                turn.held_s = span.end_ns / 1e9
        elif step == "ask":
            # While a tool blocked the loop, an answer of the model could not be seen.
            blocked_s = span.attributes.get("kode_lab.loop.blocked_s", 0.0)
            self.asks.add(max(0.0, (span.end_ns - span.start_ns) / 1e9 - blocked_s))
            turn = self._find(span, is_held=True)
            if turn is not None:
                turn.asks += 1
        elif step == "tool":
            self.tools.add((span.end_ns - span.start_ns) / 1e9)
            turn = self._find(span, is_held=True)
            if turn is not None:
                turn.tools += 1
        if self._trace is not None:
            self._trace(span)

    def queue(self, key: SessionKey) -> tuple[LiveTurn, ...]:
        """Return the turns in flight of this user's session, in the order of their arrival."""
        return tuple(self._queues.get(key[:2], ()))

    def queues(self) -> Iterator[tuple[LiveTurn, ...]]:
        """Return the turns in flight of each session that has any."""
        return (tuple(queue) for queue in self._queues.values())

    def last(self, key: SessionKey) -> EndedTurn | None:
        """Return the session's latest turn that ended here, if it is still known."""
        return self._last.get(key)

    def _find(self, span: Span, *, is_held: bool) -> LiveTurn | None:
        """Return the turn of a span, which is near the front of its queue."""
        for turn in self._queues.get(span.key[:2], ()):
            if turn.turn_id == span.turn_id and (turn.held_s is not None) == is_held:
                return turn
        return None


def merged_statistics(reports: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """Return the statistics of all workers: counts added; the longest queue, uptime and drain."""
    first, *others = reports
    for other in others:
        first = _added(first, other)
    return first


def _added(one: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    sums: dict[str, Any] = {}
    for name in {**one, **other}:
        here, there = one.get(name), other.get(name)
        if here is None or there is None:
            sums[name] = there if here is None else here
        elif isinstance(here, dict):
            sums[name] = _added(here, there)
        elif name in ("uptimeS", "longestQueue", "isDraining"):
            sums[name] = max(here, there)
        else:
            sums[name] = here + there
    return sums


def merged_live(reports: Iterable[dict[str, Any]], *, limit: int) -> dict[str, Any]:
    """Return the busiest sessions of all workers, ``limit`` at most, and the latest turns."""
    parts = list(reports)
    sessions = [session for part in parts for session in part["sessions"]]
    sessions.sort(key=lambda one: one["waiting"] + (one["holder"] is not None), reverse=True)
    recent = [turn for part in parts for turn in part["recent"]]
    recent.sort(key=lambda turn: turn["agoS"], reverse=True)
    return {
        "sessions": sessions[:limit],
        "notShown": sum(part["notShown"] for part in parts) + max(0, len(sessions) - limit),
        "recent": recent[-RECENT_LIMIT:],
    }
