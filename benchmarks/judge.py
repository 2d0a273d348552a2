"""The judge measured: how often it errs where that can be known, and how fast it is.

It owns the way from figures to the bench's rows: the judge's own (``benchmarks.selftest``), and
the laboratory's: faults convicted, right plays of the real manager acquitted, schedules explored.
"""

from __future__ import annotations

import time

from benchmarks.bench import Row, row
from benchmarks.selftest import HISTORIES, RUNS, SIZES, Figure, judge_figures, speed_figures
from kode_lab.faults.catalogue import CATALOGUE
from kode_lab.faults.honest import honest_runs
from kode_lab.faults.laboratory import SEEDS, try_all
from kode_lab.faults.scenario import KEYS, Scenario
from kode_lab.faults.site import Parts
from kode_lab.faults.stage import Stage

__all__ = ["check"]

# Plays in which too little happened to be judged: few, or the others say less than they seem to.
_THIN_BAR = 0.05
# Two turns that meet, the probe and the read: the least that can show a race of one session.
_SMALLEST = Scenario(keys=KEYS[:1], turns=1)
_SCHEDULES = 1_000


def check(effort: float = 1.0) -> list[Row]:
    """Return the judge's errors (none) and its speed; ``effort`` scales how much is tried."""
    figures: list[Figure] = [
        *judge_figures(
            histories=max(100, int(HISTORIES * effort)), runs=max(10, int(RUNS * effort))
        ),
        *_honest_figures(max(9, int(RUNS * effort))),
        *_fault_figures(effort),
        *_exploring_figures(max(10, int(_SCHEDULES * effort))),
        *speed_figures([max(1_000, int(size * min(effort, 1.0))) for size in SIZES]),
    ]
    return [
        row(f"check: {f.name}", f.value, f.unit, baseline=f.baseline, bar=f.bar) for f in figures
    ]


def _honest_figures(runs: int) -> list[Figure]:
    honest = honest_runs(runs)
    where = f"of {runs:,}"
    return [
        Figure(
            f"false alarms on plays of the real manager ({honest.turns:,} turns, "
            f"{honest.crashes:,} crashes)",
            honest.statuses["invalid"],
            where,
            bar="value <= 0",
        ),
        Figure(
            "these plays, too thin to judge",
            honest.statuses["unknown"] / runs,
            "share",
            bar=f"value <= {_THIN_BAR}",
        ),
    ]


def _fault_figures(effort: float) -> list[Figure]:
    names = list(CATALOGUE)[: max(2, int(len(CATALOGUE) * effort))]
    seeds = max(1, int(SEEDS * effort))
    outcomes = list(try_all(names, seeds))
    convicted = sum(not outcome.missing for outcome in outcomes)
    acquitted = sum(outcome.acquitted for outcome in outcomes)
    return [
        Figure(
            f"faults convicted within {seeds} seeds", convicted, "faults", len(names), "ratio >= 1"
        ),
        Figure("plays of honest twins acquitted", acquitted, "plays", len(names) * seeds,
               "ratio >= 1"),
    ]  # fmt: skip


def _exploring_figures(count: int) -> list[Figure]:
    with Stage(_SMALLEST, Parts()) as stage:
        stage.play(0)  # imports are not the explorer's speed
        began_s = time.process_time()
        passes = sum(stage.play(seed).passes for seed in range(count))
        spent_s = time.process_time() - began_s
    return [
        Figure("schedules of the real manager, on files", count / spent_s, "schedules/CPU-s"),
        Figure("steps of such a schedule", passes / count, "passes of the loop"),
    ]
