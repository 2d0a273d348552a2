"""What several workers tell of themselves, as what one server tells: sums, and the busiest of all.

It owns the arithmetic, and knows nobody who tells. The figures of two workers were not taken in the
same moment, no more than two figures of one worker are.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from kode_lab.server.live_state import RECENT_LIMIT

__all__ = ["joint_live", "joint_statistics"]


def joint_statistics(told: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """Return the statistics of all: counts added, the longest queue and time, any drain."""
    joint, *others = told
    for other in others:
        joint = _added(joint, other)
    return joint


def _added(one: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    sums: dict[str, Any] = {}
    for name in {**one, **other}:
        here, there = one.get(name), other.get(name)
        if here is None or there is None:
            sums[name] = there if here is None else here
        elif isinstance(here, dict):
            sums[name] = _added(here, there)
        elif name in ("uptimeS", "longestQueue", "isDraining"):
            sums[name] = max(here, there)
        else:
            sums[name] = here + there
    return sums


def joint_live(told: Iterable[dict[str, Any]], *, limit: int) -> dict[str, Any]:
    """Return the busiest sessions of all, ``limit`` at most, and the latest turns, oldest first."""
    parts = list(told)
    sessions = [line for part in parts for line in part["sessions"]]
    sessions.sort(key=lambda line: line["waiting"] + (line["holder"] is not None), reverse=True)
    recent = [turn for part in parts for turn in part["recent"]]
    recent.sort(key=lambda turn: turn["agoS"], reverse=True)
    return {
        "sessions": sessions[:limit],
        "notShown": sum(part["notShown"] for part in parts) + max(0, len(sessions) - limit),
        "recent": recent[-RECENT_LIMIT:],
    }
