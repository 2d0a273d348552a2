"""The rules that only the system's own account can show: overlap, and waiting for no reason.

A turn *holds* its session from the first to the last of its inner steps (load, ask, tool, commit);
waiting is not holding. A turn that was killed leaves steps without a turn around them; each of
these is a hold of its own, because nobody knows what lies between.

Sessions are named here as the lock names them (``userId:sessionId``): two agents of one session
share its lock, and waiting for each other is what they should do.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from kode_lab.check.guarantee import Anomaly
from kode_lab.history.span import Span

__all__ = ["Hold", "holds_of", "needless_serialisation", "overlaps"]

# So many waits of a group of sessions must each have ended only when another session's turn did,
# and none of its turns may ever have overlapped, before the lock is called too coarse: one such
# wait may be chance.
CHANCES_NEEDED = 3
_GROUPS: tuple[Callable[[Span], str], ...] = (
    lambda _: "all sessions",
    lambda span: f"sessions of user {span.key.user_id}",
    lambda span: f"sessions named {span.key.session_id}",
)


class Hold(NamedTuple):
    """One turn's hold of its session, and its wait for it.

    Attributes:
        span: the turn's span, or the step's that has no turn around it.
        wait_ns: when it began to wait, or ``start_ns`` when it did not.
    """

    start_ns: int
    end_ns: int
    wait_ns: int
    span: Span


def holds_of(spans: Iterable[Span]) -> dict[str, list[Hold]]:
    """Return each session's holds by their start; sessions by the names of their locks."""
    by_turn: dict[tuple[str, str], list[Span]] = defaultdict(list)
    for span in spans:
        by_turn[span.key.lock_name, span.turn_id].append(span)
    holds: dict[str, list[Hold]] = defaultdict(list)
    for (lock_name, _), steps in by_turn.items():
        holds[lock_name] += _holds(steps)
    for session in holds.values():
        session.sort(key=lambda hold: hold[:3])
    return {lock_name: session for lock_name, session in holds.items() if session}


def _holds(steps: list[Span]) -> Iterator[Hold]:
    around = sorted((s for s in steps if s.step == "turn"), key=lambda s: s.start_ns)
    waits = [step for step in steps if step.step == "wait"]
    inner = [step for step in steps if step.step not in ("turn", "wait")]
    for turn in around:
        within = [s for s in inner if turn.start_ns <= s.start_ns and s.end_ns <= turn.end_ns]
        inner = [step for step in inner if step not in within]
        waited = [w for w in waits if turn.start_ns <= w.start_ns and w.end_ns <= turn.end_ns]
        if within:
            start_ns = min(step.start_ns for step in within)
            wait_ns = min([start_ns, *(wait.start_ns for wait in waited)])
            yield Hold(start_ns, max(step.end_ns for step in within), wait_ns, turn)
    for step in inner:
        yield Hold(step.start_ns, step.end_ns, step.start_ns, step)


def overlaps(holds: dict[str, list[Hold]]) -> Iterator[Anomaly]:
    """Return for each session the first two turns that held it at once."""
    for lock_name, session in holds.items():
        longest = session[0]
        for hold in session[1:]:
            # Steps of one killed turn may overlap each other: tools run together.
            is_other = hold.span.turn_id != longest.span.turn_id or (
                hold.span.step == longest.span.step == "turn"
            )
            if hold.start_ns < longest.end_ns and is_other:
                facts = {
                    "lock": lock_name,
                    "overlap_ns": min(hold.end_ns, longest.end_ns) - hold.start_ns,
                }
                witness = (longest.span, hold.span)
                yield Anomaly("overlap", hold.span.key, witness, hold.span.turn_id, facts)
                break
            if hold.end_ns > longest.end_ns:
                longest = hold


def needless_serialisation(holds: dict[str, list[Hold]]) -> Iterator[Anomaly]:
    """Return groups of sessions that never work at once, although their turns wait for each other.

    A wait counts when no turn of its own session held the lock meanwhile, while another session of
    the group did, and gave it up just before. A right lock lets such turns overlap.
    """
    for group_of in _GROUPS:
        groups: dict[str, dict[str, list[Hold]]] = defaultdict(dict)
        for lock_name, session in holds.items():
            groups[group_of(session[0].span)][lock_name] = session
        serial = [(name, _serial(sessions)) for name, sessions in groups.items()]
        found = [(name, *waits) for name, waits in serial if waits is not None]
        for name, count, waiting, working in found:
            facts = {
                "group": name,
                "waits": count,
                "waited_ns": waiting.start_ns - waiting.wait_ns,
            }
            witness, key = (waiting.span, working.span), waiting.span.key
            yield Anomaly("needless serialisation", key, witness, waiting.span.turn_id, facts)
        if found:
            return  # a smaller group would only say the same again


def _serial(sessions: dict[str, list[Hold]]) -> tuple[int, Hold, Hold] | None:
    """Return how many waits were needless, and the longest with whom it waited for.

    None, if turns of different sessions overlap, or if the waits are too few to tell.
    """
    ordered = [(hold, name) for name, session in sessions.items() for hold in session]
    ordered.sort(key=lambda pair: pair[0][:3])
    last_of: dict[str, int] = {}
    chances: list[tuple[int, Hold, Hold]] = []
    for at, (hold, name) in enumerate(ordered):
        if at:
            before, _ = ordered[at - 1]
            if hold.start_ns < before.end_ns:
                return None
            is_own_cause = last_of.get(name, -1) > hold.wait_ns
            waited_ns = before.end_ns - hold.wait_ns
            # A lock that is given up is taken soon; a grant that always takes its time is no cause.
            is_soon = hold.start_ns - before.end_ns <= waited_ns
            if waited_ns > 0 and is_soon and not is_own_cause:
                chances.append((hold.start_ns - hold.wait_ns, hold, before))
        last_of[name] = hold.end_ns
    if len(chances) < CHANCES_NEEDED:
        return None
    _, waiting, working = max(chances, key=lambda chance: chance[0])
    return len(chances), waiting, working
