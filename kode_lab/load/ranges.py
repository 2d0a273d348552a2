"""What numbers a load test may be given: one table for ``kode-lab load`` and for Locust itself.

Locust divides by what it is given, and would take a 0 for its default; its web page can change a
number after the start. So the table is looked at before anything starts, and again by each user.
"""

from __future__ import annotations

import math
from typing import Any

__all__ = ["RANGES", "problem_of"]

# The least and the most of each option, and whether 0 stands for "the load test's own".
RANGES: dict[str, tuple[float, float, bool]] = {
    "users": (1, math.inf, False),
    "spawn_rate": (0.001, 100_000, False),
    # Of one user: from one turn in three hours to more than a generator sends.
    "rate": (0.0001, 10_000, True),
    "slo_p99_ms": (0.001, math.inf, True),
    "patience": (0, math.inf, False),
    "processes": (1, 256, False),
    "kills": (0, math.inf, False),
}


def problem_of(options: Any, *, may_be_zero: bool = True) -> str:
    """Return the sentence about the first number that is not valid, or "".

    Args:
        options: parsed options; what is None or absent was not given.
        may_be_zero: 0 means "the load test's own" where the table says so.
    """
    for name, (least, most, has_default) in RANGES.items():
        value = getattr(options, name, None)
        if value is None or (value == 0 and has_default and may_be_zero):
            continue
        if not (least <= value <= most and math.isfinite(value)):
            upto = "or more" if math.isinf(most) else f"to {most:,.0f}"
            option = f"--{name.replace('_', '-')}"
            return f"{option} {value:g} is not valid: choose {least:g} {upto}"
    return ""
