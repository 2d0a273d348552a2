"""What a picture of a few sessions says in words: title, reading, endings, captions, ticks.

A title may claim only what was recorded: that no turn waited, for example, only where every turn
told its wait. All functions here are pure, and know nothing of where anything is drawn.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from kode_lab.key import SessionKey
from kode_lab.lab.turn_view import TurnView
from kode_lab.pictures.page import Tick, between, nice_ticks, seconds
from kode_lab.pictures.style import shortened
from kode_lab.pictures.tool_marks import tool_marks

__all__ = [
    "SEEN_PT",
    "Lane",
    "both_in_flight",
    "captions_of",
    "ending_of",
    "finding_of",
    "is_long",
    "lanes_of",
    "reading_of",
    "ticks_of",
    "unit_of",
]

# 1.6 points are about four dots of a 2x picture: the thinnest mark that is not taken for an edge.
SEEN_PT = 1.6
# Waits below this share of the picture cannot be drawn to scale, and are told in words alone.
_WAIT_SEEN_SHARE = 0.004
_ERROR_LIMIT_PT = 260.0


class Lane(NamedTuple):
    """One session: its turns in order, and how it is called."""

    name: str
    key: SessionKey
    turns: list[TurnView]


def finding_of(turns: Sequence[TurnView]) -> str:
    """Return the title: what the recorded turns show, in one sentence with its numbers."""
    names = {lane.key: lane.name for lane in lanes_of(turns)}
    failed = next((turn for turn in turns if turn.outcome != "ok"), None)
    waited = max(turns, key=lambda turn: turn.time_in("wait"))
    if failed is not None:
        return _failure(failed, names[failed.key], len(turns))
    if len(turns) == 1:
        return f"One turn was answered in {seconds(turns[0].latency_ns)}"
    if is_long(waited.time_in("wait"), turns):
        return _waiting(waited, turns, names)
    return _side_by_side(turns, names) + _calm(turns)


def _side_by_side(turns: Sequence[TurnView], names: Mapping[SessionKey, str]) -> str:
    if len(turns) > 2:
        longest = seconds(max(turn.latency_ns for turn in turns))
        plural = "s" if len(names) > 1 else ""
        at_once = max(
            sum(other.start_ns <= turn.start_ns < other.end_ns for other in turns) for turn in turns
        )
        met = f"{at_once} at once" if at_once > 1 else "one after the other"
        return f"{len(turns)} turns of {len(names)} session{plural}, {met}, the longest {longest}"
    first, last = sorted(turns, key=lambda turn: turn.end_ns)
    if not both_in_flight(turns):
        times = f"{seconds(first.latency_ns)} and {seconds(last.latency_ns)}"
        of_one = "Two turns of one session" if len(names) == 1 else "The two sessions"
        return f"{of_one} ran one after the other, {times}"
    begun = f"{names[first.key]} was answered in {seconds(first.latency_ns)}"
    if first.latency_ns * 2 > last.latency_ns:
        other = names[last.key].lower()
        return f"{begun} and {other} in {seconds(last.latency_ns)}, side by side"
    return f"{begun} while {names[last.key].lower()} worked for {seconds(last.latency_ns)}"


def _failure(failed: TurnView, name: str, count: int) -> str:
    ending = (
        f"failed after {seconds(failed.latency_ns)}"
        if failed.outcome == "fail"
        else "has no answer"
    )
    why = (
        f": {shortened(failed.error, _ERROR_LIMIT_PT, 13.5, is_bold=True)}" if failed.error else ""
    )
    return f"A turn of {name.lower()} {ending}{why}" if count > 1 else f"The turn {ending}{why}"


def _waiting(waited: TurnView, turns: Sequence[TurnView], names: Mapping[SessionKey, str]) -> str:
    of_same = [turn for turn in turns if turn.key == waited.key]
    ordinal = f"turn {of_same.index(waited) + 1} of " if len(of_same) > 1 else ""
    who = ordinal + ("its session" if len(names) == 1 else names[waited.key].lower())
    return f"{who[0].upper()}{who[1:]} waited {seconds(waited.time_in('wait'))} for its lock"


def _calm(turns: Sequence[TurnView]) -> str:
    """Return the claim that no turn waited: only where every wait was recorded and short."""
    if not all(turn.steps_named("wait") for turn in turns):
        return ""
    return ": neither waited" if len(turns) == 2 else ": none waited"


def is_long(wait_ns: int, turns: Sequence[TurnView]) -> bool:
    """Say whether a wait is long enough to be drawn to scale."""
    spread = max(turn.end_ns for turn in turns) - min(turn.start_ns for turn in turns)
    return wait_ns > _WAIT_SEEN_SHARE * spread


def both_in_flight(turns: Sequence[TurnView]) -> tuple[int, int] | None:
    """Return the time in which every turn was in flight, or None (also for one session alone)."""
    start, end = max(turn.start_ns for turn in turns), min(turn.end_ns for turn in turns)
    several = len({turn.key for turn in turns}) > 1
    return (start, end) if several and start < end else None


def reading_of(turns: Sequence[TurnView], seen_ns: float, speed: float) -> str:
    """Return the line that says how to read the marks: only those that are there.

    A tool call shorter than ``seen_ns`` has to be drawn wider than it was.
    """
    steps = Counter(step.step for turn in turns for step in turn.steps)
    words = ["Each bar is one turn."]
    if steps["ask"]:
        words.append("Light: the model is at work.")
    if steps["tool"]:
        words.append(f"Dark: a tool call{_widened(turns, seen_ns)}.")
    if any(is_long(turn.time_in("wait"), turns) for turn in turns):
        words.append("Orange, half as high: waiting for the session’s lock.")
    if any(not turn.steps and not turn.is_open for turn in turns):
        words.append("Dashed: no steps were recorded.")
    if any(turn.is_open for turn in turns):
        words.append("Dashed to the end: no answer ever came.")
    if speed != 1:
        words.append(f"Run at speed {speed:g}: one second here is {speed:g} of the original.")
    return " ".join(words)


def _widened(turns: Sequence[TurnView], seen_ns: float) -> str:
    took = [mark.end_ns - mark.start_ns for turn in turns for mark in tool_marks(turn)]
    short = [duration for duration in took if duration < seen_ns]
    if not short:
        return ""
    if len(short) < len(took):
        if len(short) == 1:
            return f" (the one that sticks out took {between(short)}, and is drawn wider)"
        return f" (the {len(short)} that stick out took {between(short)}, and are drawn wider)"
    each = " each" if len(took) > 1 else ""
    return f" ({between(took)}{each}, drawn wider to be seen)"


def ending_of(turn: TurnView) -> str:
    """Return what stands at the end of a bar: how it ended, and how long it took."""
    took = seconds(turn.latency_ns)
    return {"ok": took, "fail": f"failed, {took}"}.get(turn.outcome, "no answer")


def captions_of(turns: Sequence[TurnView], unit: str) -> list[str]:
    """Return what stands under the axis: its unit, then what the picture is too coarse to show."""
    words = [f"{unit} since the first request"]
    if len(turns) == 2:
        gap = turns[1].start_ns - turns[0].start_ns
        words[0] += f"; the second came {seconds(gap)} after it"
    facts: list[str] = []
    if both_in_flight(turns) and all(turn.outcome == "ok" for turn in turns):
        alone = sum(turn.latency_ns - turn.time_in("wait") for turn in turns)
        together = max(t.end_ns for t in turns) - min(t.start_ns for t in turns)
        facts.append(f"together {seconds(together)}, one after the other {seconds(alone)}")
    waits = [turn.time_in("wait") for turn in turns if turn.steps_named("wait")]
    if len(waits) == len(turns) > 1 and not any(is_long(wait, turns) for wait in waits):
        facts.append(f"longest wait for a lock {seconds(max(waits))}")
    return [*words, "; ".join(facts)] if facts else words


def unit_of(spread_ns: int) -> tuple[str, float]:
    """Return the unit of the axis, and how many nanoseconds it has."""
    return ("seconds", 1e9) if spread_ns >= 1e9 else ("milliseconds", 1e6)


def ticks_of(turns: Sequence[TurnView]) -> list[Tick]:
    """Return the ticks: when each turn ended, then round values."""
    start_ns = min(turn.start_ns for turn in turns)
    spread_ns = max(turn.end_ns for turn in turns) - start_ns
    _, per_unit = unit_of(spread_ns)
    places = 2 if spread_ns >= 1e9 else 0 if spread_ns >= 1e8 else 1
    ends = ((turn.end_ns - start_ns) / per_unit for turn in turns if not turn.is_open)
    telling = [Tick(value, f"{value:.{places}f}", is_telling=True) for value in ends]
    return [*telling, *nice_ticks(spread_ns / per_unit)]


def lanes_of(turns: Sequence[TurnView]) -> list[Lane]:
    """Return the sessions in the order of their first requests, numbered from 1."""
    by_key: dict[SessionKey, list[TurnView]] = {}
    for turn in turns:
        by_key.setdefault(turn.key, []).append(turn)
    return [
        Lane(f"Session {number}", key, of_key)
        for number, (key, of_key) in enumerate(by_key.items(), 1)
    ]
