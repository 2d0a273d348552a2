"""The report of a load test: one HTML file with its verdict, its figures and its pictures.

The pictures are those of the notebooks, drawn from the same records; what cannot be drawn of a run
is left out. It judges nothing: verdict and figures are read from the run's files.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from html import escape
from typing import Any

from kode_lab.check.render import anomaly_of
from kode_lab.errors import KodeLabError
from kode_lab.lab.records import Run
from kode_lab.pictures import Picture, crash_bands, latency, many_sessions, witness
from kode_lab.reports.page import figure_of, heading_of, page_of

__all__ = ["write_report"]

# Of more turns than this a picture says no more than of these, and takes minutes.
DRAWN_LIMIT_BYTES = 60_000_000
_PICTURES: dict[str, Callable[[Run], Picture]] = {
    "latency": latency,
    "sessions": many_sessions,
    "crashes": crash_bands,
}


def write_report(run: Run) -> int:
    """Draw what can be drawn of the run and write ``report.html``; give the number of pictures."""
    try:
        said = (run.path / "summary.txt").read_text("utf-8")
        verdict = json.loads((run.path / "verdict.json").read_bytes())
    except (OSError, ValueError):
        return 0
    pictures = [*(_witness(run, verdict) if verdict["status"] == "invalid" else ()), *_drawn(run)]
    run.path.joinpath("report.html").write_text(_page(run, said, verdict, pictures), "utf-8")
    return len(pictures)


def _drawn(run: Run) -> list[Picture]:
    """Return the pictures that can be drawn, saved as files, too."""
    names = ("history.jsonl", "trace.jsonl")
    sizes = [p.stat().st_size for n in names if (p := run.path / n).exists()]
    if sum(sizes) > DRAWN_LIMIT_BYTES:
        return []
    drawn = []
    for name, draw in _PICTURES.items():
        with suppress(KodeLabError):  # nothing of that kind is in this run
            drawn.append(draw(run))
            drawn[-1].save(run.path / "figures" / name)
    return drawn


def _witness(run: Run, verdict: dict[str, Any]) -> list[Picture]:
    """Return the smallest proof of what was broken, drawn."""
    picture = witness(anomaly_of(verdict["anomalies"][0]))
    picture.save(run.path / "figures" / "witness")
    return [picture]


def _page(run: Run, said: str, verdict: dict[str, Any], pictures: list[Picture]) -> str:
    title, _, accepted = str(verdict["headline"]).partition(" Accepted: ")
    return page_of(
        f"{title[:120]} ({run.id})",
        [
            *heading_of(run, title, verdict["status"], accepted and f"Accepted: {accepted}"),
            f"<p><code>{escape(str(run.facts['command']))}</code></p>",
            *map(figure_of, pictures),
            "<h2>As it was printed</h2>",
            f'<pre class="columns">{escape(said.strip())}</pre>',
        ],
    )
