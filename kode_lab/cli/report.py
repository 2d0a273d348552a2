"""``kode-lab report``: write a run as one HTML page."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

__all__ = ["add"]


def add(commands: Any) -> None:
    """Add the command ``report``."""
    command = commands.add_parser("report", help="write a run as one HTML page to send to somebody")
    command.add_argument(
        "run_id",
        metavar="RUN_OR_JSONL",
        nargs="?",
        default="latest",
        help="id, directory or a history alone (docs/history-format.md)",
    )
    command.add_argument("--output", type=Path, help="the page (default: report.html in the run)")
    command.add_argument("--results", type=Path, default=Path("results"), help="(default: results)")
    command.set_defaults(run=_report)


def _report(options: argparse.Namespace) -> int:
    from kode_lab.lab.records import Run  # noqa: PLC0415
    from kode_lab.reports.page import report  # noqa: PLC0415

    run = Run.load(options.run_id, options.results)
    page = report(run)
    name = f"{run.id}.html" if "history" in run.facts else "report.html"
    print(f"{page.title}\n{page.save(options.output or run.path / name)}")
    return {"valid": 0, "invalid": 1}.get(page.status, 2)
