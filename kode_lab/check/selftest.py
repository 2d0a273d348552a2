"""The judge judged: against the search, against runs that are right, and against the clock.

Each function gives rows that say what was found, what it must be, and whether it is; the suite runs
small samples of them, ``kode-lab bench check`` the full amounts.
"""

from __future__ import annotations

import math
import pickle
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

from kode_lab.check.generate import large_history, random_history, valid_run
from kode_lab.check.judge import check
from kode_lab.check.search import Model, search
from kode_lab.digest import digest_of
from kode_lab.operation import Operation

__all__ = [
    "SESSION",
    "Row",
    "disagreements",
    "false_alarms",
    "is_searchable",
    "judge_rows",
    "speed_rows",
]

HISTORIES, RUNS = 50_000, 3_000
SIZES = (10_000, 100_000, 1_000_000)
# What the page of the judge asks for, in operations per CPU-second.
PYTHON_BAR, NUMPY_BAR = 300_000.0, 1_500_000.0
LINEAR_BAR, INDETERMINATE_BAR = 1.5, 1.5


class Row(NamedTuple):
    """One measured figure, what it is compared with, and the bar it must reach.

    Attributes:
        ratio: ``value`` to ``baseline``, where there is one.
        bar: the least value (or, for what should be small, the greatest) that is good enough.
    """

    name: str
    value: float
    unit: str
    baseline: float | None
    ratio: float | None
    bar: float
    ok: bool


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
    """Give the seeds of random histories that judge and search see differently, and how many were
    right.

    The judge's other rules (retries, crashes, strangers) never speak of these histories.
    """
    wrong: list[int] = []
    valid = 0
    for number in range(seed, seed + count):
        history = random_history(number, size=size)
        found = is_searchable(history)
        verdict = check(history, engine="python")
        valid += bool(found)
        if found is None or found == bool(verdict.anomalies):
            wrong.append(number)
    return wrong, valid


def false_alarms(count: int, *, seed: int = 0) -> list[int]:
    """Give the seeds of right runs that the judge does not call valid, by either engine."""
    return [
        number
        for number in range(seed, seed + count)
        for engine in ("python", "numpy")
        if check(valid_run(number), engine=engine).status != "valid"
    ]


def judge_rows(*, histories: int = HISTORIES, runs: int = RUNS) -> list[Row]:
    """Give how often the judge was wrong, where it can be known."""
    wrong, valid = disagreements(histories)
    alarms = false_alarms(runs)
    share = valid / histories
    return [
        Row("random histories compared with the search", histories, "histories", None, None, 1,
            histories >= 1),
        Row("of these explained by some order", share, "share", None, None, 0.2, 0.2 < share < 0.8),
        Row("disagreements with the search", len(wrong), "histories", None, None, 0, not wrong),
        Row("false alarms on valid runs", len(alarms), f"of {runs}", None, None, 0, not alarms),
    ]  # fmt: skip


def speed_rows(
    sizes: Sequence[int] = SIZES,
    *,
    repeats: int = 5,
    clock: Callable[[], float] = time.process_time,
) -> list[Row]:
    """Give operations per CPU-second for both engines, and how they change with size and doubt.

    Histories are laid out in memory as a file leaves them. Engines and histories take turns, and
    the best of the repeats counts: a shared machine only ever makes code slower.
    """
    rows: list[Row] = []
    for engine, bar in (("python", PYTHON_BAR), ("numpy", NUMPY_BAR)):
        check(large_history(1_000), engine=engine)  # imports are not the judge's speed
        speeds: dict[int, float] = {}
        for size in sizes:
            sure, unsure = (_laid_out(large_history(size, indeterminate=d)) for d in (0.0, 0.2))
            best = {"sure": math.inf, "unsure": math.inf}
            for _ in range(repeats if size < 1_000_000 else max(2, repeats // 2)):
                for name, history in (("sure", sure), ("unsure", unsure)):
                    best[name] = min(best[name], _cost_s(history, engine, clock))
            speeds[size] = len(sure) / best["sure"]
            rows.append(_at_least(f"{engine}, {size:,} operations", speeds[size], bar))
            slower = best["unsure"] * len(sure) / (best["sure"] * len(unsure))
            name = f"{engine}, {size:,}: cost with 20 % indeterminate"
            rows.append(_at_most(name, slower, INDETERMINATE_BAR))
        ratio = speeds[min(sizes)] / speeds[max(sizes)]
        name = f"{engine}: cost an operation, {max(sizes):,} against {min(sizes):,}"
        rows.append(_at_most(name, ratio, LINEAR_BAR))
    return rows


def _laid_out(history: list[Operation]) -> list[Operation]:
    copied: list[Operation] = pickle.loads(pickle.dumps(history))  # noqa: S301 - our own bytes
    return copied


def _cost_s(history: list[Operation], engine: str, clock: Callable[[], float]) -> float:
    began = clock()
    verdict: Any = check(history, engine=engine)
    cost_s = clock() - began
    assert verdict.status == "valid", str(verdict)
    return cost_s


def _at_least(name: str, value: float, bar: float) -> Row:
    return Row(name, value, "operations/CPU-s", bar, value / bar, bar, value >= bar)


def _at_most(name: str, value: float, bar: float) -> Row:
    return Row(name, value, "times", 1.0, value, bar, value <= bar)
