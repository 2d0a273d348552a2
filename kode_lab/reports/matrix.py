"""Several targets side by side: backend by anomaly, with a witness behind every cell.

It owns the table and its page; verdicts and witnesses are the judge's. It is worded as a record of
runs: what was asked for, what was seen, and the command that repeats it.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path

from kode_lab.check import explain
from kode_lab.lab.judging import Judged
from kode_lab.reports.page import page_of

__all__ = ["matrix_html", "matrix_text", "save_matrix"]

_WORDS = {"valid": "PASS", "invalid": "FAIL", "unknown": "UNKNOWN"}


def matrix_text(judged: Sequence[Judged]) -> str:
    """Return the table as Markdown: a row a target, a column an anomaly that was seen."""
    names = _anomalies(judged)
    lines = [
        " | ".join(["| target", "version", "verdict", *names, "acknowledged", "not judged |"]),
        "|" + " --- |" * (len(names) + 5),
    ]
    lines += [
        " | ".join([f"| {row[0]}", *row[1:-1], f"{row[-1]} |"]) for row in _rows(judged, names)
    ]
    return "\n".join(lines) + "\n"


def matrix_html(judged: Sequence[Judged]) -> str:
    """Return the page: the table, and below it the smallest witness of each cell."""
    names = _anomalies(judged)
    heads = ("target", "version", "verdict", *names, "acknowledged", "not judged")
    parts = ["<h1>Targets side by side</h1>", "<table><thead><tr>"]
    parts += [f"<th>{escape(head)}</th>" for head in heads]
    parts.append("</tr></thead><tbody>")
    for one, row in zip(judged, _rows(judged, names), strict=True):
        cells = list(map(escape, row))
        for at, name in enumerate(names, 3):
            if one.verdict.counts.get(name):
                cells[at] = f'<a href="#{_anchor(one, name)}">{cells[at]}</a>'
        parts.append("<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>")
    parts.append("</tbody></table>")
    for one in judged:
        title = f"{one.declaration.name} {one.declaration.version}".strip()
        parts.append(f"<h2>{escape(title)}</h2>")
        parts.append(f"<p><code>{escape(str(one.run.facts['command']))}</code></p>")
        if one.declaration.notes:
            parts.append(f"<p>{escape(one.declaration.notes)}</p>")
        shown: set[str] = set()
        for anomaly in one.verdict.anomalies:
            if anomaly.name not in shown:
                shown.add(anomaly.name)
                parts.append(f'<pre class="columns" id="{_anchor(one, anomaly.name)}">')
                parts.append(f"{escape(explain(anomaly))}</pre>")
        for name, why in one.not_done.items():
            parts.append(f"<p>Not done: {escape(name)}: {escape(why)}.</p>")
    return page_of("Targets side by side", parts)


def save_matrix(judged: Sequence[Judged], results: Path) -> Path:
    """Write the page beside the newest run, and return its path."""
    path = results / f"{judged[-1].run.id}-matrix.html"
    path.write_text(matrix_html(judged), encoding="utf-8")
    return path


def _anomalies(judged: Sequence[Judged]) -> list[str]:
    return list(
        dict.fromkeys(name for one in judged for name, n in one.verdict.counts.items() if n)
    )


def _rows(judged: Sequence[Judged], names: Sequence[str]) -> list[list[str]]:
    rows = []
    for one in judged:
        found = one.verdict
        unknown = [f.code for f in found.findings if f.status == "unknown"]
        rows.append(
            [
                one.declaration.name,
                one.declaration.version,
                _WORDS[found.status],
                *(str(found.counts[name]) if found.counts.get(name) else "" for name in names),
                f"{found.evidence.acknowledged} of {found.evidence.turns}",
                ", ".join(unknown),
            ]
        )
    return rows


def _anchor(one: Judged, anomaly: str) -> str:
    return f"{one.run.id}-{anomaly.replace(' ', '-')}"
