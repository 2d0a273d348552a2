"""The judge judged: against a search, against runs that are right, and against the clock.

Each function returns what was found and the bar that it must reach; the suite runs small samples,
``python -m benchmarks check`` the full amounts.

``is_explained`` is the reference: it tries orders of the operations one by one, on plain lists of
markers, and shares no code with the rules, the screen, or the search of the judge.
"""

from __future__ import annotations

import json
import math
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from operator import itemgetter
from pathlib import Path
from typing import NamedTuple

from benchmarks.histories import (
    declared_run,
    large_history,
    random_declared,
    random_history,
    valid_run,
)
from kode_lab.check.columns import KEPT_SUFFIX, columns_beside
from kode_lab.check.judge import check, check_path
from kode_lab.history.operation import Operation, completion_event, invoke_event
from kode_lab.key import SessionKey

__all__ = [
    "Figure",
    "disagreements",
    "false_alarms",
    "is_explained",
    "judge_figures",
    "speed_figures",
    "write_lines",
]

HISTORIES, RUNS = 50_000, 3_000
SIZES = (10_000, 100_000, 1_000_000)
# What a file may cost from its lines to the printed verdict, and from the columns beside it.
LINES_BAR_US, KEPT_BAR_US = 8.0, 2.0
LINEAR_BAR, INDETERMINATE_BAR = 1.5, 1.5


class Figure(NamedTuple):
    """One measured figure.

    Attributes:
        baseline: what it is compared with, measured in the same run and unit, or None.
        bar: what has to hold, as ``value >= 300000`` or ``ratio <= 1.5``, or None.
    """

    name: str
    value: float
    unit: str
    baseline: float | None = None
    bar: str | None = None


def is_explained(history: Iterable[Operation]) -> bool:
    """Return whether some order of each session's operations explains all that was shown.

    For small histories: turns are tried once, and tell all that they were shown in their tails.
    What an unanswered turn was shown is not looked at.
    """
    sessions: dict[SessionKey, list[Operation]] = defaultdict(list)
    for operation in history:
        if operation.type == "ok" or (operation.type == "info" and operation.f != "read"):
            sessions[operation.key].append(operation)
    return all(_has_order(session) for session in sessions.values())


_List = tuple[tuple[str, ...], frozenset[int]]


def _has_order(calls: Sequence[Operation]) -> bool:
    """Try all orders that the intervals allow, and remember from where it is impossible."""
    ends = [call.complete_ns if call.type == "ok" else math.inf for call in calls]
    needed = sum(1 << at for at, call in enumerate(calls) if call.type == "ok")
    tried: set[tuple[int, _List]] = set()
    stack: list[tuple[int, _List]] = [(0, ((), frozenset((0,))))]
    while stack:
        done, state = stack.pop()
        if done & needed == needed:
            return True
        if (done, state) in tried:
            continue
        tried.add((done, state))
        rest = [at for at in range(len(calls)) if not done >> at & 1]
        first_end = min(ends[at] for at in rest)
        for at in rest:
            if calls[at].invoke_ns <= first_end:
                after = _after(state, calls[at])
                if after is not None:
                    stack.append((done | 1 << at, after))
    return False


def _after(state: _List, call: Operation) -> _List | None:
    """Return the list after a call, or None if the call cannot come now."""
    markers, starts = state
    if call.f in ("delete", "reset"):
        return (), frozenset((0,))
    if call.f == "compact":
        upto = call.details.upto
        return markers, starts | {at + 1 for at, m in enumerate(markers) if m == upto}
    if call.f == "read":
        return state if _is_shown(state, call.markers or (), is_suffix=call.is_suffix) else None
    replaced = call.details.replaces
    if replaced:
        if replaced not in markers:
            return None
        markers = markers[: markers.index(replaced)]
        starts = frozenset(start for start in starts if start <= len(markers))
    read = call.read if call.type == "ok" else None
    is_suffix = read is not None and read.is_suffix
    if read is not None and not _is_shown((markers, starts), read.tail, is_suffix=is_suffix):
        return None
    return (*markers, call.marker), starts


def _is_shown(state: _List, shown: Sequence[str], *, is_suffix: bool) -> bool:
    markers, starts = state
    start = len(markers) - len(shown)
    return start >= 0 and markers[start:] == tuple(shown) and (is_suffix or start in starts)


def disagreements(count: int, *, seed: int = 0, size: int = 5) -> tuple[list[int], int]:
    """Return the seeds of random histories that judge and search see differently, and how many are
    right.

    Every third has declarations; every fourth has a second session, into whose list a turn of the
    first may have moved. Both engines are tried.
    """
    wrong: list[int] = []
    valid = 0
    for number in range(seed, seed + count):
        history = _tried(number, size)
        found = is_explained(history)
        valid += found
        verdicts = [check(history, engine=engine) for engine in ("rules", "columns")]
        if found == bool(verdicts[0].anomalies) or verdicts[0] != verdicts[1]:
            wrong.append(number)
    return wrong, valid


def _tried(seed: int, size: int) -> list[Operation]:
    if seed % 3 == 0:
        return random_declared(seed, size=size)
    history = random_history(seed, size=size)
    if seed % 4 == 0:
        other = [
            one._replace(
                key=one.key._replace(session_id="t"),
                process=f"other {one.process}",
                marker=one.marker and f"{one.marker}'",
                turn_id=one.marker and f"{one.marker}'",
                read=None,
                markers=one.markers and tuple(f"{m}'" for m in one.markers),
            )
            for one in random_history(seed, size=size)
        ]
        moved = history[-1].markers
        if moved and seed % 8 == 0:
            final = other[-1]
            history[-1] = history[-1]._replace(markers=moved[:-1])
            other[-1] = final._replace(markers=(*(final.markers or ()), moved[-1]))
        history += other
    return history


def false_alarms(count: int, *, seed: int = 0) -> list[int]:
    """Return the seeds of right runs that the judge does not call valid, by any engine.

    Every second run declares windows, compactions, resets, deletions, edits and a fork.
    """
    alarms: list[int] = []
    for number in range(seed, seed + count):
        run = declared_run(number) if number % 2 else valid_run(number)
        found = {check(run, engine=engine).status for engine in ("rules", "columns")}
        if found != {"valid"}:
            alarms.append(number)
    return alarms


def judge_figures(*, histories: int = HISTORIES, runs: int = RUNS) -> list[Figure]:
    """Return how often the judge was wrong, where it can be known."""
    wrong, valid = disagreements(histories)
    alarms = false_alarms(runs)
    return [
        Figure("disagreements with the search", len(wrong), f"of {histories:,}", bar="value <= 0"),
        # Were nearly all valid, or nearly none, agreement would mean little.
        Figure("these histories, valid", valid / histories, "share", bar="value <= 0.8"),
        Figure("these histories, invalid", 1 - valid / histories, "share", bar="value <= 0.8"),
        Figure("false alarms on valid runs", len(alarms), f"of {runs:,}", bar="value <= 0"),
    ]


def speed_figures(
    sizes: Sequence[int] = SIZES,
    *,
    repeats: int = 3,
    clock: Callable[[], float] = time.process_time,
) -> list[Figure]:
    """Return what a file costs from its bytes to the printed verdict, in CPU-microseconds.

    Without and with the columns beside it, without and with 20 % unanswered turns. The best of the
    repeats counts: a shared machine only ever makes code slower.
    """
    each = "CPU-us an operation"
    figures: list[Figure] = []
    with tempfile.TemporaryDirectory(prefix="kode-lab-judge-") as folder:
        costs: dict[tuple[int, float, bool], float] = {}
        for size in sizes:
            for share in (0.0, 0.2):
                path = Path(folder) / "history.jsonl"
                count = write_lines(path, large_history(size, indeterminate=share))
                for is_kept in (False, True):
                    if is_kept:
                        columns_beside(path, keep=True)
                    costs[size, share, is_kept] = min(
                        _cost_us(path, clock) / count for _ in range(repeats)
                    )
                path.with_name(path.name + KEPT_SUFFIX).unlink()
    for is_kept, bar in ((False, LINES_BAR_US), (True, KEPT_BAR_US)):
        name = "from the columns beside it" if is_kept else "from JSON Lines to the verdict"
        for size in sizes:
            sure, doubtful = costs[size, 0.0, is_kept], costs[size, 0.2, is_kept]
            is_small = size < SIZES[0]  # fixed costs would hide the rest
            limit = None if is_small else f"value <= {bar}"
            figures.append(Figure(f"{name}, {size:,} operations", sure, each, bar=limit))
            limit = None if is_small else f"ratio <= {INDETERMINATE_BAR}"
            figures.append(
                Figure(f"{name}, {size:,}, 20 % unanswered", doubtful, each, sure, limit)
            )
        small, large = costs[min(sizes), 0.0, is_kept], costs[max(sizes), 0.0, is_kept]
        figures.append(
            Figure(f"{name}, {max(sizes):,} operations against {min(sizes):,}", large, each, small,
                   f"ratio <= {LINEAR_BAR}")
        )  # fmt: skip
    return figures


def _cost_us(path: Path, clock: Callable[[], float]) -> float:
    began = clock()
    verdict = check_path(path, engine="columns")
    text = str(verdict)
    cost_s = clock() - began
    assert verdict.status == "valid", text
    return 1e6 * cost_s


def write_lines(path: Path, history: Sequence[Operation]) -> int:
    """Write what the clients would have written, and return how many operations."""
    with path.open("w", encoding="utf-8") as file:
        file.writelines(f"{line}\n" for line in _lines_of(history))
    return len(history)


def _lines_of(history: Sequence[Operation]) -> Iterator[str]:
    timed: list[tuple[float, str]] = []
    for number, operation in enumerate(history):
        own = operation._replace(process=f"p{number}")
        timed.append((own.invoke_ns, json.dumps(invoke_event(own))))
        if own.complete_ns != math.inf:
            timed.append((own.complete_ns, json.dumps(completion_event(own))))
    timed.sort(key=itemgetter(0))
    return (line for _, line in timed)
