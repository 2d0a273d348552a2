"""First come, first served, as far as clients can tell: who stands before a turn sent earlier.

Turn U *overtook* turn T if U was sent after T was, by their clients' clock, and yet stands before T
in their session. Networks reorder too, so this alone breaks no promise; how many turns overtook one
is a figure of every verdict, and a breach only beyond the limit that somebody claims.

Only turns that were acknowledged count, and of these only such as were tried once, beside refusals:
when anything else was let in, if at all, nobody knows. So the figure may be too small, never too
large.

It owns the counting and the one rule that needs a limit, and never says where an order comes from.
"""

from __future__ import annotations

import math
from bisect import bisect_right, insort
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import count
from operator import sub

from kode_lab.check.case import Case
from kode_lab.check.guarantee import Anomaly
from kode_lab.history.operation import Operation

__all__ = ["WITNESS_OVERTAKERS", "most_overtaken", "overtakings"]

# A witness names the limit and one more, but no more than this: the number of them is a fact.
WITNESS_OVERTAKERS = 8


def most_overtaken(case: Case) -> int:
    """Return the most turns that overtook one turn of the session.

    Whoever was overtaken most has nobody behind it who was sent earlier, or that one would have
    been overtaken by one more. So its place is its rank by time plus those who overtook it; of all
    others, place minus rank is no more than that, and the largest difference is the answer.
    """
    if case.invokes == case.latest_invoke:
        return 0
    invokes: Sequence[float] = case.invokes
    if case.attempts or len(case.place) < len(case.order) or math.inf in case.completes:
        invokes = [turn.invoke_ns for turn in _counted(case)]
    by_time = sorted(range(len(invokes)), key=invokes.__getitem__)
    return max(map(sub, by_time, count()), default=0)


def overtakings(case: Case, limit: int) -> Iterator[Anomaly]:
    """Return the turns that more than ``limit`` others overtook, each with those sent last."""
    if most_overtaken(case) <= limit:
        return
    turns = _counted(case)
    sent: list[tuple[int, int]] = []
    shown = min(limit + 1, WITNESS_OVERTAKERS)
    for at, turn in enumerate(turns):
        overtook = at - bisect_right(sent, (turn.invoke_ns, at))
        if overtook > limit:
            witness = (turn, *(turns[place] for _, place in sent[-shown:]))
            facts = {"overtook": overtook, "limit": limit}
            yield Anomaly("overtaking", case.key, witness, turn.marker, facts)
        insort(sent, (turn.invoke_ns, at))


def _counted(case: Case) -> list[Operation]:
    """Return the acknowledged turns that one request only can have brought in, as they stand."""
    tries = Counter(attempt.marker for attempt in case.attempts if attempt.type != "fail")
    return [
        case.turns[marker]
        for at, marker in enumerate(case.order)
        if case.completes[at] < math.inf and case.place[marker] == at and tries[marker] < 2
    ]
