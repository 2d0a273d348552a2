"""A report's turns put on one time line: when each began, what it waited for, when it ended.

It owns the arithmetic of a report: clock times against seconds, what the lock of a session explains
of a wait, and what it does not. A service that does one turn after another shows here: the time of
a turn then holds the whole time of another session's. Such a wait is never taken for model time.

It must never know a run: everything is computed from the report's own figures.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from kode_lab.key import shown
from kode_lab.lab.times import Moment, shown_s
from kode_lab.reports.report import ReportedTurn, Test

__all__ = ["Contradiction", "Placed", "contradictions_of", "placed_turns"]

# Times in reports are rounded: sums may be off by this.
_SLACK_S = 0.011
_SLACK_SHARE = 0.01
# How alike two times must be to be taken for the same work.
_ALIKE = 0.15
# A turn that took this many times what its model calls explain has waited for something.
_UNEXPLAINED = 2.5
# So many turns in a row, each as long as those before it and its own work: no coincidence.
_CHAIN = 3


class Placed(NamedTuple):
    """One turn on the time line; times are seconds of the report after the test's begin.

    Attributes:
        place: its number in the report's list.
        took_s: None where the report does not say.
        waited_own_s: for turns of its own session, as told or as the lock explains it.
        waited_other_s: for turns of other sessions, as told or as its time suggests.
        behind: the name of the turn of another session that it seems to have waited for, or "".
        is_told: the wait for another session is stated, or shows in a row of turns.
        model_s: what is left for the model.
    """

    turn: ReportedTurn
    place: int
    name: str
    at_s: float
    took_s: float | None
    waited_own_s: float = 0.0
    waited_other_s: float = 0.0
    behind: str = ""
    is_told: bool = False
    model_s: float | None = None

    @property
    def ended_s(self) -> float:
        """When it ended; its begin where its time is not told."""
        return self.at_s + (self.took_s or 0.0)


class Contradiction(NamedTuple):
    """Something in a report that cannot be, or that the lock of a session does not explain."""

    test: str
    what: str


def placed_turns(test: Test) -> tuple[Placed, ...]:
    """Return the test's turns in the order of their arrival."""
    clocks = [
        moment.at_s
        for turn in test.turns
        for moment in (turn.arrived, turn.ended)
        if moment is not None and moment.is_clock
    ]
    origin_s = min(clocks, default=0.0)
    if clocks and max(clocks) - origin_s > 43_200 and max(clocks) < 86_400:
        # Past midnight: the early hours belong to the next day.
        origin_s = min(clock for clock in clocks if clock > 43_200)

    def seconds(moment: Moment | None) -> float | None:
        if moment is None:
            return None
        at_s = moment.at_s - origin_s * moment.is_clock
        return at_s + 86_400 if at_s < -43_200 else at_s

    placed: list[Placed] = []
    last: dict[str, float] = {}
    numbers: dict[str, int] = {}
    names: set[str] = set()
    for place, turn in enumerate(test.turns):
        lock = turn.key.lock_name
        numbers[lock] = numbers.get(lock, 0) + 1
        count = f" {numbers[lock]}" if numbers[lock] > 1 else ""
        at_s, ended_s, took_s = seconds(turn.arrived), seconds(turn.ended), turn.took
        if took_s is None:
            took_s = _sum_of(turn)
        if at_s is None and ended_s is not None and took_s is not None:
            at_s = max(0.0, ended_s - took_s)
        if at_s is None:
            at_s = last.get(lock, 0.0) + (turn.think or 0.0)
        if took_s is None and ended_s is not None:
            took_s = max(0.0, ended_s - at_s)
        last[lock] = at_s + (took_s or 0.0)
        own = shown(turn.user) if turn.session is None else str(turn.key)
        name = turn.name or f"{own}{count}"
        if name in names:
            name = f"{name} ({place + 1})"
        names.add(name)
        placed.append(Placed(turn, place, name, at_s, took_s))
    return _with_waits(sorted(placed, key=lambda one: (one.at_s, one.place)))


def _sum_of(turn: ReportedTurn) -> float | None:
    """Return the turn's time from its parts, where the report has them."""
    if not turn.calls and turn.model is None:
        return None
    model_s = turn.model if turn.model is not None else sum(turn.calls)
    return model_s + sum(tool.took_s for tool in turn.tools) + (turn.waited or 0.0)


def _with_waits(placed: list[Placed]) -> tuple[Placed, ...]:
    """Return the turns with what each waited for, and what that leaves to its model."""
    done: list[Placed] = []
    for one in placed:
        turn = one.turn
        if one.took_s is None:
            done.append(one)
            continue
        own = [p for p in done if p.turn.key[:2] == turn.key[:2] and p.ended_s > one.at_s]
        lock_s = max((p.ended_s for p in own), default=one.at_s) - one.at_s
        waited_own_s = lock_s if lock_s < one.took_s else 0.0
        waited_other_s, behind, is_told = 0.0, "", False
        if turn.waited is not None:
            own_part_s = min(turn.waited, waited_own_s if own else 0.0)
            if turn.waited_for == "own session":
                own_part_s = turn.waited
            elif turn.waited_for == "another session":
                own_part_s = 0.0
            waited_own_s, waited_other_s = own_part_s, turn.waited - own_part_s
            is_told = True
        elif turn.model is None and not turn.calls:
            behind, waited_other_s = _suspected(one, done, waited_own_s)
            chain = [p for p in done if p.behind]
            is_told = bool(behind) and len(chain) >= _CHAIN - 2
        tools_s = sum(tool.took_s for tool in turn.tools)
        model_s = one.took_s - waited_own_s - waited_other_s - tools_s
        if turn.calls:
            model_s = sum(turn.calls)
        elif turn.model is not None:
            model_s = turn.model
        done.append(
            one._replace(
                waited_own_s=waited_own_s,
                waited_other_s=waited_other_s,
                behind=behind,
                is_told=is_told,
                model_s=max(0.0, model_s),
            )
        )
    return tuple(done)


def _suspected(one: Placed, before: Sequence[Placed], waited_own_s: float) -> tuple[str, float]:
    """Return the turn of another session that this one seems to have waited for, and how long."""
    assert one.took_s is not None
    others = [
        p
        for p in before
        if p.turn.key[:2] != one.turn.key[:2]
        and p.took_s
        and one.at_s < p.ended_s < one.ended_s + _SLACK_S
    ]
    if not others or waited_own_s:
        return "", 0.0
    last = max(others, key=lambda p: p.ended_s)
    rest_s, work_s = one.ended_s - last.ended_s, last.model_s or last.took_s or 0.0
    calls, last_calls = one.turn.tool_count + 1, last.turn.tool_count + 1
    is_same = calls == last_calls and one.turn.prompt == last.turn.prompt
    is_alike = is_same and abs(rest_s - work_s) <= _ALIKE * work_s
    expected_s = work_s / last_calls * calls
    is_unexplained = (
        one.took_s > _UNEXPLAINED * expected_s
        and rest_s <= _UNEXPLAINED * expected_s
        and calls <= last_calls
    )
    if work_s > 0.1 and (is_alike or is_unexplained):
        return last.name, last.ended_s - one.at_s
    return "", 0.0


def contradictions_of(test: Test) -> tuple[Contradiction, ...]:
    """Return what in the report's turns cannot be, or no lock of a session explains."""
    found: list[str] = []
    placed = placed_turns(test)
    for one in placed:
        found += _inside(one)
    for place, one in enumerate(placed):
        if one.took_s is None:
            continue
        own = [
            p
            for p in placed[:place]
            if p.turn.key[:2] == one.turn.key[:2] and p.ended_s > one.at_s + _slack(p.took_s)
        ]
        found += _against_lock(one, own)
        if one.behind:
            found.append(
                f"{one.name} took {shown_s(one.took_s)}, of which {shown_s(one.waited_other_s)} "
                f"are until {one.behind} of another session ended: this looks like waiting, not "
                "like work. It is not replayed as model time; if it is, state waited = 0 or model"
            )
        elif one.waited_other_s > _slack(one.turn.waited):
            why = (
                "for another session"
                if one.turn.waited_for == "another session"
                else (
                    "while no turn of its session ran"
                    if not own
                    else "longer than its session's turns"
                )
            )
            found.append(
                f"{one.name} waited {shown_s(one.turn.waited or 0.0)} {why}: the lock of a session "
                "does not explain it"
            )
    return tuple(Contradiction(test.name, text) for text in found)


def _slack(time_s: float | None) -> float:
    return max(_SLACK_S, _SLACK_SHARE * (time_s or 0.0))


def _inside(one: Placed) -> list[str]:
    """Return what does not fit together within one turn."""
    turn, found = one.turn, list[str]()
    if one.took_s is None:
        return found
    slack_s = _slack(one.took_s)
    if None not in (turn.took, turn.ended, turn.arrived):
        assert turn.ended is not None
        assert turn.arrived is not None
        span_s = turn.ended.at_s - turn.arrived.at_s
        span_s += 86_400 * (span_s < -43_200)
        off_s = turn.ended.resolution_s + turn.arrived.resolution_s
        if turn.ended.is_clock == turn.arrived.is_clock and not (
            span_s - off_s - slack_s <= one.took_s <= span_s + off_s + slack_s
        ):
            found.append(
                f"{one.name} took {shown_s(one.took_s)}, and between its arrival and its end are "
                f"{shown_s(span_s)}"
            )
    parts = [
        ("its model calls", sum(turn.calls)),
        ("its model", turn.model or 0.0),
        ("its first token", turn.first_token or 0.0),
        ("its wait", turn.waited or 0.0),
        ("its longest tool", max((tool.took_s for tool in turn.tools), default=0.0)),
    ]
    for what, part_s in parts:
        if part_s > one.took_s + slack_s:
            found.append(f"{one.name} took {shown_s(one.took_s)}, and {what} {shown_s(part_s)}")
    model_s = turn.model if turn.model is not None else sum(turn.calls)
    together_s = model_s + (turn.waited or 0.0)
    if model_s and turn.waited and together_s > one.took_s + slack_s:
        found.append(
            f"{one.name} took {shown_s(one.took_s)}, and its wait and its model are "
            f"{shown_s(together_s)} together"
        )
    return found


def _against_lock(one: Placed, own: Sequence[Placed]) -> list[str]:
    """Return what cannot be, because turns of one session come one after another."""
    if not own or one.took_s is None:
        return []
    last = max(own, key=lambda p: p.ended_s)
    both = f"{one.name} and {last.name} are turns of one session ({one.turn.key}) and"
    work_s = one.turn.model if one.turn.model is not None else sum(one.turn.calls)
    lock_s, rest_s = last.ended_s - one.at_s, one.ended_s - last.ended_s
    waited_s = one.turn.waited
    other_s = last.model_s or last.took_s or 0.0
    is_same = (one.turn.tool_count, one.turn.prompt) == (last.turn.tool_count, last.turn.prompt)
    is_alike = abs(one.took_s - other_s) <= _ALIKE * other_s and rest_s < (1 - _ALIKE) * other_s
    text = ""
    if rest_s < -_slack(last.took_s):
        text = f"{both} overlap: {one.name} came second and ended {shown_s(-rest_s)} earlier"
    elif waited_s is not None and waited_s < lock_s - _slack(lock_s):
        text = (
            f"{both} overlap: {one.name} waited {shown_s(waited_s)}, and the session was taken "
            f"for {shown_s(lock_s)}"
        )
    elif work_s and rest_s < work_s - _slack(one.took_s):
        text = (
            f"{both} overlap: {one.name} ended {shown_s(rest_s)} after the other, and its model "
            f"took {shown_s(work_s)}"
        )
    elif is_same and is_alike and waited_s is None and not work_s:
        text = (
            f"{both} seem to overlap: both took {shown_s(one.took_s)}, as if neither waited, and "
            f"{shown_s(lock_s)} of it are the same"
        )
    return [text] if text else []
