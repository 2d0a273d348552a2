"""The report of a load test: one HTML file with its verdict, its figures and its pictures.

The pictures are those of the notebooks, drawn from the same records; what cannot be drawn of a run
is left out. It judges nothing: verdict and figures are read from the run's files.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from html import escape
from typing import Any

from kode_lab.check import check_path
from kode_lab.errors import KodeLabError
from kode_lab.experiment.figures import Picture, crash_bands, latency, many_sessions, witness
from kode_lab.experiment.run import Run

__all__ = ["write_report"]

# Of more turns than this a picture says no more than of these, and takes minutes.
DRAWN_LIMIT_BYTES = 60_000_000
_PICTURES: dict[str, Callable[[Run], Picture]] = {
    "latency": latency,
    "sessions": many_sessions,
    "crashes": crash_bands,
}
_STYLE = (
    "body{font:15px/1.5 system-ui,sans-serif;max-width:60em;margin:2em auto;padding:0 1em;"
    "color:#222}pre{overflow-x:auto;background:#f6f6f6;padding:1em}"
    "img{max-width:100%;display:block;margin:2em 0}"
)


def write_report(run: Run) -> int:
    """Draw what can be drawn of the run and write ``report.html``; give the number of pictures."""
    try:
        said = (run.path / "summary.txt").read_text("utf-8")
        verdict = json.loads((run.path / "verdict.json").read_bytes())
    except (OSError, ValueError):
        return 0
    pictures = _drawn(run) if verdict["status"] != "invalid" else [*_witness(run), *_drawn(run)]
    run.path.joinpath("report.html").write_text(_page(run, said, verdict, pictures), "utf-8")
    return len(pictures)


def _drawn(run: Run) -> list[tuple[str, str]]:
    """Give the name and the title of each picture that could be drawn."""
    names = ("history.jsonl", "trace.jsonl")
    sizes = [p.stat().st_size for n in names if (p := run.path / n).exists()]
    if sum(sizes) > DRAWN_LIMIT_BYTES:
        return []
    drawn = []
    for name, draw in _PICTURES.items():
        try:
            picture = draw(run)
        except KodeLabError:  # nothing of that kind is in this run
            continue
        picture.save(run.path / "figures" / name)
        drawn.append((name, picture.title))
    return drawn


def _witness(run: Run) -> list[tuple[str, str]]:
    """Draw the smallest proof of what was broken."""
    anomalies = check_path(run.path).anomalies
    if not anomalies:
        return []
    picture = witness(anomalies[0])
    picture.save(run.path / "figures" / "witness")
    return [("witness", picture.title)]


def _page(run: Run, said: str, verdict: dict[str, Any], pictures: list[tuple[str, str]]) -> str:
    shown = "".join(
        f'<img src="figures/{name}.svg" alt="{escape(title)}">' for name, title in pictures
    )
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{escape(run.id)}</title>'
        f"<style>{_STYLE}</style><h1>{escape(verdict['headline'])}</h1>"
        f"<p>Run {escape(run.id)}: <code>{escape(str(run.facts['command']))}</code></p>"
        f"{shown}<pre>{escape(said.strip())}</pre></html>\n"
    )
