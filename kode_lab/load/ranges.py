"""What Locust is told of ours, looked at before anything starts: it divides by what it is given."""

from __future__ import annotations

import math
from typing import Any

__all__ = ["wrong_in"]

# A rate in one user's turns a second; 0 is the load test's own.
RATE_LEAST, RATE_LIMIT = 0.0001, 10_000


def wrong_in(options: Any) -> str:
    """Return a sentence about what makes no sense, or nothing."""
    if options.rate and not RATE_LEAST <= options.rate <= RATE_LIMIT:  # nan is not, either
        return (
            f"--rate {options.rate:g} makes no sense: give from {RATE_LEAST:g} to {RATE_LIMIT:g} "
            "turns a second, or 0 for the load test's own"
        )
    for option, value in (
        ("--patience", options.patience),
        ("--slo-p99-ms", options.slo_p99_ms),
        ("--kills", getattr(options, "kills", 0)),  # of chaos alone
    ):
        if not 0 <= value < math.inf:
            return f"{option} {value:g} makes no sense: give 0 or more"
    return ""
