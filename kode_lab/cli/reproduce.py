"""``kode-lab reproduce``: run the concurrency report again, or a report of the user."""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

from kode_lab.cli.status import INTERRUPTED, STATUS_OF_VERDICT, found

__all__ = ["add"]

# The width of the summary in a pipe or a log, where COLUMNS is not set.
_UNWATCHED_CHARS = 100


def add(commands: Any) -> None:
    """Add the command ``reproduce``."""
    command = commands.add_parser(
        "reproduce", help="run the concurrency report's two tests and compare number by number"
    )
    command.add_argument(
        "report", nargs="?", type=Path, metavar="REPORT",
        help="instead: a JSON of arrivals, times and tool calls (see record), or a run to repeat",
    )  # fmt: skip
    command.add_argument(
        "--speed", type=float, default=1.0, help="make the simulated model faster (default: 1)"
    )
    command.add_argument("--model", help="ask this real model; needs ANTHROPIC_API_KEY")
    command.add_argument(
        "--profile", type=Path, help="other latencies for the simulated model (a TOML file)"
    )
    command.add_argument(
        "--results", type=Path, default=Path("results"), help="where runs go (default: results)"
    )
    command.add_argument("--json", action="store_true", help="print the claims as JSON")
    command.set_defaults(run=_reproduce)


def _reproduce(options: argparse.Namespace) -> int:
    if options.report is not None:
        from kode_lab.reports.replay import replay_command  # noqa: PLC0415

        options.report = found(options.report, options.results)
        return replay_command(options)
    from rich.console import Console  # noqa: PLC0415 - here and below: --help needs none of it

    from kode_lab.claude.profile import profile_of  # noqa: PLC0415
    from kode_lab.lab.live import Progress, card_for  # noqa: PLC0415
    from kode_lab.reports.reproduce import reproduce  # noqa: PLC0415
    from kode_lab.reports.summary import print_summary  # noqa: PLC0415

    progress = Progress("")
    handle = reproduce(
        speed=options.speed,
        model=options.model,
        profile=profile_of(options.profile) if options.profile else None,
        results=options.results,
        progress=progress,
        # With --json, stdout is the document's alone.
        card=card_for(sys.stderr if options.json else sys.stdout),
    )
    try:
        recording = handle.result()
    except KeyboardInterrupt:
        sys.stderr.write(f"kode-lab: interrupted; what there is is kept in {progress.where}\n")
        return INTERRUPTED
    if options.json:
        claims = json.loads((recording.run.path / "claims.json").read_bytes())
        print(json.dumps({"run": str(recording.run.path), **claims}, ensure_ascii=False, indent=1))
    else:
        width = None if sys.stdout.isatty() or "COLUMNS" in os.environ else _UNWATCHED_CHARS
        print_summary(recording.run, recording.claims, Console(width=width, highlight=False))
    return STATUS_OF_VERDICT[recording.verdict]
