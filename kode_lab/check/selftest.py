"""The judge judged: against the search, against runs that are right, and against the clock.

Each function gives what was found and the bar that it must reach; the suite runs small samples,
``python -m benchmarks check`` the full amounts.
"""

from __future__ import annotations

import json
import math
import pickle
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import product
from operator import itemgetter
from typing import NamedTuple

from kode_lab.check.columns import History, history_of
from kode_lab.check.generate import large_history, random_history, valid_run
from kode_lab.check.judge import check
from kode_lab.check.search import Model, search
from kode_lab.history.digest import digest_of
from kode_lab.history.operation import Operation
from kode_lab.history.reader import read_operations

__all__ = [
    "SESSION",
    "Figure",
    "disagreements",
    "false_alarms",
    "is_searchable",
    "judge_figures",
    "speed_figures",
]

HISTORIES, RUNS = 50_000, 3_000
SIZES = (10_000, 100_000, 1_000_000)
# What the page of the judge asks for, in operations per CPU-second.
PYTHON_BAR, NUMPY_BAR = 300_000, 1_500_000
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


def _session_step(state: tuple[int, int], operation: Operation) -> tuple[bool, tuple[int, int]]:
    """Allow what a list does: a turn is shown all of it and adds itself, a read shows all of it."""
    if operation.f == "read":
        markers = operation.markers or ()
        return state == (len(markers), digest_of(markers)), state
    is_allowed = operation.read is None or operation.read[:2] == state
    return is_allowed, (state[0] + 1, digest_of((operation.marker,), state[1]))


SESSION = Model("session", (0, 0), _session_step)


def is_searchable(history: Iterable[Operation], *, budget_s: float = 10.0) -> bool | None:
    """Tell whether some order of the operations explains the history; None if not within budget.

    Refused operations are left out, and every turn must be tried once only.
    """
    calls = [o for o in history if o.type != "fail" and (o.f != "read" or o.type == "ok")]
    status = search(SESSION, calls, budget_s=budget_s).status
    return None if status == "unknown" else status == "valid"


def disagreements(count: int, *, seed: int = 0, size: int = 5) -> tuple[list[int], int]:
    """Return the seeds of random histories that judge and search see differently, and how many were
    right.

    The judge's other rules (retries, crashes, strangers) never speak of these histories.
    """
    wrong: list[int] = []
    valid = 0
    for number in range(seed, seed + count):
        history = random_history(number, size=size)
        found = is_searchable(history)
        verdict = check(history, engine="rules")
        valid += bool(found)
        if found is None or found == bool(verdict.anomalies):
            wrong.append(number)
    return wrong, valid


def false_alarms(count: int, *, seed: int = 0) -> list[int]:
    """Return the seeds of right runs that the judge does not call valid, by any engine."""
    return [
        number
        for number in range(seed, seed + count)
        for engine in ("rules", "python", "numpy")
        if check(valid_run(number), engine=engine).status != "valid"
    ]


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
    """Return operations per CPU-second for both engines, and how they change with size and doubt.

    What is inside: everything from a history in memory, with its columns, to the verdict. Reading
    it and filling the columns, which is done on the way, are rows of their own. Histories are laid
    out in memory as a file leaves them. Sure and doubtful ones take turns, and the best of the
    repeats counts: a shared machine only ever makes code slower.
    """
    bars = {"python": PYTHON_BAR, "numpy": NUMPY_BAR}
    for engine in bars:
        check(large_history(1_000), engine=engine)  # imports are not the judge's speed
    costs_ns: dict[tuple[str, int, int], float] = {}
    figures = [_reading(min(sizes), clock)]
    for size in sizes:
        histories: list[History] = []
        for share in (0.0, 0.2):
            operations = _laid_out(large_history(size, indeterminate=share))
            began = clock()
            histories.append(history_of(operations))
            filled_ns = 1e9 * (clock() - began) / len(operations)
            filled = f"columns, {size:,} operations" + (", 20 % indeterminate" if share else "")
            figures.append(Figure(filled, filled_ns, "CPU-ns an operation"))
        # As many operations for every size, so that each has its chance of a quiet moment.
        for _ in range(repeats * max(1, max(sizes) // (10 * size))):
            for engine, (at, history) in product(bars, enumerate(histories)):
                cost_ns = 1e9 * _cost_s(history, engine, clock) / len(history.operations)
                name = engine, size, at
                costs_ns[name] = min(cost_ns, costs_ns.get(name, math.inf))
    for engine, bar in bars.items():
        figures += _speeds(engine, bar, sizes, costs_ns)
    return figures


def _reading(size: int, clock: Callable[[], float]) -> Figure:
    """Return how fast lines become a history with its columns."""
    lines = _lines_of(large_history(size))
    began = clock()
    read = history_of(read_operations(lines))
    cost_s = clock() - began
    assert read.columns is not None
    name = f"reading lines, columns filled, {size:,} operations"
    return Figure(name, len(read.operations) / cost_s, "operations/CPU-s")


def _lines_of(history: Sequence[Operation]) -> list[str]:
    """Return what the clients would have written."""
    timed: list[tuple[float, str]] = []
    for number, o in enumerate(history):
        own = {"process": f"p{number}"}
        begun = own | {"type": "invoke", "f": o.f, "time_ns": o.invoke_ns, **o.key.to_json()}
        if o.marker:
            begun |= {"marker": o.marker, "turn_id": o.turn_id}
        ended: dict[str, object] = own | {"type": o.type, "time_ns": o.complete_ns}
        if o.read is not None:
            shown = {"position": o.read.position, "digest": f"{o.read.digest:016x}"}
            ended["read"] = shown | {"tail": o.read.tail}
        if o.markers is not None:
            ended["markers"] = o.markers
        timed += [(o.invoke_ns, json.dumps(begun)), (o.complete_ns, json.dumps(ended))]
    timed.sort(key=itemgetter(0))
    return [line for _, line in timed]


def _speeds(
    engine: str, bar: int, sizes: Sequence[int], costs_ns: Mapping[tuple[str, int, int], float]
) -> Iterator[Figure]:
    each = "CPU-ns an operation"
    for size in sizes:
        sure, doubtful = costs_ns[engine, size, 0], costs_ns[engine, size, 1]
        name = f"{engine}, {size:,} operations"
        yield Figure(name, 1e9 / sure, "operations/CPU-s", bar=f"value >= {bar}")
        limit = f"ratio <= {INDETERMINATE_BAR}"
        yield Figure(f"{name}, 20 % indeterminate", doubtful, each, sure, limit)
    small, large = costs_ns[engine, min(sizes), 0], costs_ns[engine, max(sizes), 0]
    name = f"{engine}, {max(sizes):,} operations against {min(sizes):,}"
    yield Figure(name, large, each, small, f"ratio <= {LINEAR_BAR}")


def _laid_out(history: list[Operation]) -> list[Operation]:
    copied: list[Operation] = pickle.loads(pickle.dumps(history))  # noqa: S301 - our own bytes
    # A line that was read has its own words, also those that other lines have too.
    return [
        o if o.markers is None else o._replace(markers=tuple(json.loads(json.dumps(o.markers))))
        for o in copied
    ]


def _cost_s(history: History, engine: str, clock: Callable[[], float]) -> float:
    began = clock()
    verdict = check(history, engine=engine)
    cost_s = clock() - began
    assert verdict.status == "valid", str(verdict)
    return cost_s
