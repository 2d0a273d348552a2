"""The runs below one directory, as a list that a notebook or a terminal shows.

It owns how runs are found and told in one line each; it reads only each run's small ``run.json``,
never its records. A directory that is no run, or cannot be read, is left out and counted.
"""

from __future__ import annotations

from dataclasses import dataclass
from html import escape
from pathlib import Path

from kode_lab.errors import KodeLabError
from kode_lab.lab.records import Run

__all__ = ["RunList", "run_list"]

_SHOWN_LIMIT = 50


@dataclass(frozen=True, slots=True)
class RunList:
    """Recorded runs, the newest first.

    Attributes:
        unreadable: directories with a ``run.json`` that is not one; names and reasons.
    """

    runs: tuple[Run, ...]
    unreadable: tuple[tuple[str, str], ...] = ()

    def __len__(self) -> int:
        return len(self.runs)

    def __getitem__(self, at: int) -> Run:
        return self.runs[at]

    def __repr__(self) -> str:
        lines = [f"{len(self.runs)} runs"]
        lines += [f"  {run.id}  {run.status}  {_said(run)}" for run in self.runs[:_SHOWN_LIMIT]]
        lines += [f"  {name}  unreadable: {why}" for name, why in self.unreadable]
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        rows = "".join(
            f"<tr><td>{escape(run.id)}</td><td>{escape(run.status)}</td>"
            f'<td style="text-align:left">{escape(_said(run))}</td></tr>'
            for run in self.runs[:_SHOWN_LIMIT]
        )
        rows += "".join(
            f'<tr><td>{escape(name)}</td><td>unreadable</td><td style="text-align:left">'
            f"{escape(why)}</td></tr>"
            for name, why in self.unreadable
        )
        return f"<table><caption>{len(self.runs)} runs</caption>{rows}</table>"


def run_list(results: Path) -> RunList:
    """Return the runs below ``results``, the newest first."""
    found: list[Run] = []
    unreadable: list[tuple[str, str]] = []
    for path in sorted((p.parent for p in results.glob("*/run.json")), reverse=True):
        if path.is_symlink():
            continue
        try:
            found.append(Run.load(path))
        except KodeLabError as error:
            unreadable.append((path.name, str(error)))
    found.sort(key=lambda run: str(run.facts.get("started_at", "")), reverse=True)
    return RunList(tuple(found), tuple(unreadable))


def _said(run: Run) -> str:
    summary = run.facts.get("summary", {})
    return str(summary.get("finding") or summary.get("verdict") or "")
