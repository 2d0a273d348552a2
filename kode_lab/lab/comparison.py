"""Several runs side by side: a row a run, with the judge's word first.

It owns which figures stand beside each other and how they look; it measures nothing and judges
nothing anew. A share and a percentile are of answered turns, as their clients saw them.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import NamedTuple

from kode_lab.errors import InvalidRecord
from kode_lab.lab.records import Run
from kode_lab.lab.turn_view import turns_of

__all__ = ["Comparison", "Figures", "compare"]

_RUNS_LIMIT = 100
_COLOURS = {"valid": "#009E73", "invalid": "#D55E00"}
_WORDS = {"valid": "PASS", "invalid": "FAIL", "unknown": "UNKNOWN"}
_PROBE = "probe-"


class Figures(NamedTuple):
    """What one run came to.

    Attributes:
        verdict: ``valid``, ``invalid`` or ``unknown``, as the run's own judge said.
        turns_per_s: acknowledged turns a second, from the first request to the last answer.
        p50_s: half of the answered turns were faster; ``p99_s``: all but one in a hundred.
    """

    name: str
    verdict: str
    sessions: int
    turns: int
    ok: int
    fail: int
    info: int
    turns_per_s: float
    p50_s: float
    p99_s: float
    slowest_s: float


_HEADS = {
    "name": "run", "verdict": "verdict", "sessions": "sessions", "turns": "turns", "ok": "ok",
    "fail": "refused", "info": "unknown end", "turns_per_s": "turns/s", "p50_s": "median, s",
    "p99_s": "p99, s", "slowest_s": "slowest, s",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Comparison:
    """Runs side by side, in the order in which they were given."""

    rows: tuple[Figures, ...]

    def __repr__(self) -> str:
        table = [list(_HEADS.values()), *(_cells(row) for row in self.rows)]
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        return "\n".join(
            "  ".join(
                cell.ljust(width) if at < 2 else cell.rjust(width)
                for at, (cell, width) in enumerate(zip(row, widths, strict=True))
            ).rstrip()
            for row in table
        )

    def _repr_html_(self) -> str:
        head = "".join(f"<th>{word}</th>" for word in _HEADS.values())
        body = "".join(
            "<tr>" + "".join(_td(cell, row.verdict) for cell in _cells(row)) + "</tr>"
            for row in self.rows
        )
        return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def compare(runs: Mapping[str, Run] | Iterable[Run]) -> Comparison:
    """Return runs side by side, under the names given or their own.

    Raises:
        InvalidRecord: a run's history cannot be read, or there are too many runs.
    """
    named = list(runs.items() if isinstance(runs, Mapping) else ((run.id, run) for run in runs))
    if len(named) > _RUNS_LIMIT:
        raise InvalidRecord(
            f"{len(named)} runs are too many to compare: give _RUNS_LIMIT={_RUNS_LIMIT}"
        )
    return Comparison(tuple(_figures(str(name), run) for name, run in named))


def _figures(name: str, run: Run) -> Figures:
    turns = [
        turn
        for turn in turns_of((), run.operations())
        if not turn.operations[0].process.startswith(_PROBE)
    ]
    counts = Counter(turn.outcome for turn in turns)
    answered = [turn for turn in turns if turn.outcome == "ok"]
    latencies = sorted(turn.latency_ns / 1e9 for turn in answered)
    took_s = 0.0
    if answered:
        first_ns = min(turn.start_ns for turn in turns)
        took_s = (max(turn.end_ns for turn in answered) - first_ns) / 1e9
    verdict = str(run.facts.get("summary", {}).get("verdict", "unknown"))
    return Figures(
        name,
        {"holds": "valid", "violated": "invalid"}.get(verdict, verdict),
        len({turn.key for turn in turns}),
        len(turns),
        counts["ok"],
        counts["fail"],
        counts["info"],
        len(answered) / took_s if took_s else 0.0,
        _percentile(latencies, 0.5),
        _percentile(latencies, 0.99),
        latencies[-1] if latencies else math.nan,
    )


def _percentile(ordered: Sequence[float], share: float) -> float:
    """The nearest rank: a value that was measured, never one between two."""
    return ordered[math.ceil(share * len(ordered)) - 1] if ordered else math.nan


def _cells(row: Figures) -> list[str]:
    word = _WORDS.get(row.verdict, row.verdict)
    return [row.name, word, *(_cell(value) for value in row[2:])]


def _cell(value: float) -> str:
    if math.isnan(value):
        return ""
    return f"{value:.3g}" if isinstance(value, float) and value < 100 else f"{value:,.0f}"


def _td(cell: str, verdict: str) -> str:
    colour = _COLOURS.get(verdict) if cell == _WORDS.get(verdict) else None
    style = f' style="color:{colour};font-weight:bold"' if colour else ""
    return f"<td{style}>{escape(cell)}</td>"
