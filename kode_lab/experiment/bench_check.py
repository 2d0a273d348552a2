"""The judge measured: how often it errs where that can be known, and how fast it is.

It owns only the way from the judge's own figures (``kode_lab.check.selftest``) to the bench's rows.
"""

from __future__ import annotations

from kode_lab.check.selftest import HISTORIES, RUNS, SIZES, Figure, judge_figures, speed_figures
from kode_lab.experiment.bench import Row, row

__all__ = ["check"]


def check(effort: float = 1.0) -> list[Row]:
    """Give the judge's errors (none) and its speed; ``effort`` scales how much is tried."""
    figures: list[Figure] = [
        *judge_figures(
            histories=max(100, int(HISTORIES * effort)), runs=max(10, int(RUNS * effort))
        ),
        *speed_figures([max(1_000, int(size * min(effort, 1.0))) for size in SIZES]),
    ]
    return [row(f.name, f.value, f.unit, baseline=f.baseline, bar=f.bar) for f in figures]
