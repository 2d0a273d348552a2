"""Bench of the crash proof: 300 kills for each durability, and what they lost."""

from __future__ import annotations

from benchmarks.bench import Row, row
from benchmarks.sampling import scratch, share
from kode_lab.storms.crash import KILLS, CrashCount, crash_proof

__all__ = ["crash"]


def crash(effort: float) -> list[Row]:
    """Return the rows of 300 kills for each durability: ``python -m benchmarks crash``."""
    kills = share(KILLS, effort, least=4)
    rows = []
    for durability in ("process", "power"):
        with scratch() as directory:
            count = crash_proof(kills, 1, directory, durability=durability)
        rows += _rows(durability, count, is_full=kills == KILLS)
    return rows


def _rows(durability: str, count: CrashCount, *, is_full: bool) -> list[Row]:
    least = "value >= 50000" if is_full else None
    none = "value <= 0"
    return [
        row(f"{durability}: kill -9", count.kills, "kills"),
        row(f"{durability}: acknowledged turns", count.acknowledged, "turns", bar=least),
        row(f"{durability}: turns sent again after a kill", count.resent, "turns"),
        row(f"{durability}: turns given up after a kill", count.given_up, "turns"),
        row(f"{durability}: acknowledged turns lost", count.lost, "turns", bar=none),
        row(f"{durability}: turns doubled", count.doubled, "turns", bar=none),
        row(f"{durability}: out of order", count.misordered, "looks", bar=none),
        row(f"{durability}: illegal for the Messages API", count.illegal, "looks", bar=none),
        row(f"{durability}: tool effects lost", count.effects_lost, "effects", bar=none),
        row(f"{durability}: tool effects doubled", count.effects_doubled, "effects", bar=none),
        row(f"{durability}: files torn by a kill", count.torn, "files"),
        row(f"{durability}: of these not mended", count.torn - count.mended, "files", bar=none),
    ]
