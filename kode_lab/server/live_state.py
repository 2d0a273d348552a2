"""What goes on in a server at this moment: who holds, who waits, how long things took.

It is told of turns by the server (accepted, ended) and of their steps by the trace, and decides
nothing: a turn is taken in the same way whether or not anybody writes it here. Counts are for ever;
what is kept of single turns is bounded. It knows no HTTP and no metrics library.
"""

from __future__ import annotations

import time
from bisect import bisect_left
from collections import OrderedDict, deque
from collections.abc import Iterator
from typing import NamedTuple

from kode_lab.history.span import Span, Trace
from kode_lab.key import SessionKey

__all__ = ["BOUNDS_S", "Board", "Ended", "Histogram", "Ticket"]

RECENT_LIMIT = 500
LAST_LIMIT = 10_000
# From what a resident's turn without a model takes to what a patient user bears.
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


class Ticket:
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


class Ended(NamedTuple):
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


class Board:
    """The turns in flight by session, the last ones that ended, and the counts.

    Attributes:
        outcomes: how many turns ended how.
        refusals: how many requests were refused before they became turns, by type of error.
        waits, turns, asks, tools: how long these took.
        recent: the latest turns that ended.
    """

    def __init__(self, trace: Trace | None = None) -> None:
        """Begin with nothing; ``trace`` gets every span after the board has seen it."""
        self._trace = trace
        self._lines: dict[tuple[str, ...], dict[Ticket, None]] = {}
        self._last: OrderedDict[SessionKey, Ended] = OrderedDict()
        self.started_s = time.monotonic()
        self.outcomes: dict[str, int] = {}
        self.refusals: dict[str, int] = {}
        self.waits, self.turns = Histogram(), Histogram()
        self.asks, self.tools = Histogram(), Histogram()
        self.recent: deque[Ended] = deque(maxlen=RECENT_LIMIT)

    def accept(self, key: SessionKey, turn_id: str) -> Ticket:
        """Write down a turn that is about to be taken."""
        ticket = Ticket(key, turn_id, time.monotonic())
        self._lines.setdefault(key[:2], {})[ticket] = None
        return ticket

    def end(self, ticket: Ticket, outcome: str) -> None:
        """Write down how it ended."""
        line = self._lines[ticket.key[:2]]
        del line[ticket]
        if not line:
            del self._lines[ticket.key[:2]]
        now_s = time.monotonic()
        took_s = now_s - ticket.accepted_s
        waited_s = took_s if ticket.held_s is None else ticket.held_s - ticket.accepted_s
        ended = Ended(ticket.key, ticket.turn_id, outcome, now_s, waited_s, took_s)
        self.outcomes[outcome] = self.outcomes.get(outcome, 0) + 1
        self.turns.add(took_s)
        self.recent.append(ended)
        self._last[ticket.key] = ended
        self._last.move_to_end(ticket.key)
        if len(self._last) > LAST_LIMIT:
            self._last.popitem(last=False)

    def refuse(self, kind: str) -> None:
        """Count a request that never became a turn."""
        self.refusals[kind] = self.refusals.get(kind, 0) + 1

    def see(self, span: Span) -> None:
        """Take one step of a turn: the manager's ``trace``."""
        step = span.step
        if step == "wait":
            self.waits.add((span.end_ns - span.start_ns) / 1e9)
            ticket = self._find(span, is_held=False)
            if ticket is not None:
                ticket.held_s = span.end_ns / 1e9
        elif step == "ask":
            self.asks.add((span.end_ns - span.start_ns) / 1e9)
            ticket = self._find(span, is_held=True)
            if ticket is not None:
                ticket.asks += 1
        elif step == "tool":
            self.tools.add((span.end_ns - span.start_ns) / 1e9)
            ticket = self._find(span, is_held=True)
            if ticket is not None:
                ticket.tools += 1
        if self._trace is not None:
            self._trace(span)

    def line(self, key: SessionKey) -> tuple[Ticket, ...]:
        """Return the turns in flight of this user's session, in the order in which they came."""
        return tuple(self._lines.get(key[:2], ()))

    def lines(self) -> Iterator[tuple[Ticket, ...]]:
        """Return the turns in flight of each session that has any."""
        return (tuple(line) for line in self._lines.values())

    def last(self, key: SessionKey) -> Ended | None:
        """Return the session's latest turn that ended here, if it is still remembered."""
        return self._last.get(key)

    def _find(self, span: Span, *, is_held: bool) -> Ticket | None:
        """Return the ticket of a span's turn; the one concerned stands near the front."""
        for ticket in self._lines.get(span.key[:2], ()):
            if ticket.turn_id == span.turn_id and (ticket.held_s is not None) == is_held:
                return ticket
        return None
