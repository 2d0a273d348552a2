"""Bench of the crash proof: 300 kills for each store and for PostgreSQL; what they lost."""

from __future__ import annotations

from benchmarks.bench import Row, row
from benchmarks.sampling import scratch, share
from kode_lab.storms.crash import KILLS, STORES, TURNS_A_LIFE, CrashCount, crash_proof

__all__ = ["crash"]


def crash(effort: float) -> list[Row]:
    """Return the rows of 300 kills for each store: ``python -m benchmarks crash``."""
    kills = share(KILLS, effort, least=2)
    rows = []
    for store in STORES:
        with scratch() as directory:
            count = crash_proof(
                kills, 1, directory, store=store, turns_a_life=share(TURNS_A_LIFE, effort, least=10)
            )
        rows += _rows(store, count, is_full=kills == KILLS)
    return rows


def _rows(store: str, count: CrashCount, *, is_full: bool) -> list[Row]:
    least = "value >= 50000" if is_full else None
    none = "value <= 0"
    return [
        row(f"{store}: kill -9", count.kills, "kills"),
        row(f"{store}: acknowledged turns", count.acknowledged, "turns", bar=least),
        row(f"{store}: turns sent again after a kill", count.resent, "turns"),
        row(f"{store}: turns given up after a kill", count.given_up, "turns"),
        row(f"{store}: acknowledged turns lost", count.lost, "turns", bar=none),
        row(f"{store}: turns doubled", count.doubled, "turns", bar=none),
        row(f"{store}: out of order", count.misordered, "looks", bar=none),
        row(f"{store}: illegal for the Messages API", count.illegal, "looks", bar=none),
        row(f"{store}: tool effects lost", count.effects_lost, "effects", bar=none),
        row(f"{store}: tool effects doubled", count.effects_doubled, "effects", bar=none),
        row(f"{store}: files torn by a kill", count.torn, "files"),
        row(f"{store}: of these not mended", count.torn - count.mended, "files", bar=none),
    ]
