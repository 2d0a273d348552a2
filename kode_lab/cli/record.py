"""``kode-lab record``: print a run as a report file that ``reproduce`` can replay."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

__all__ = ["add"]


def add(commands: Any) -> None:
    """Add the command ``record``."""
    command = commands.add_parser("record", help="print a run as a JSON that reproduce can replay")
    command.add_argument(
        "run_id", metavar="RUN", nargs="?", default="latest", help="id or directory"
    )
    command.add_argument("--results", type=Path, default=Path("results"), help="(default: results)")
    command.set_defaults(run=_record)


def _record(options: argparse.Namespace) -> int:
    from kode_lab.lab.records import Run  # noqa: PLC0415
    from kode_lab.reports.record import left_out_of, recorded  # noqa: PLC0415

    run = Run.load(options.run_id, options.results)
    fields = recorded(run)
    print(json.dumps(fields, ensure_ascii=False, indent=1))
    if missing := left_out_of(fields):
        sys.stderr.write(f"kode-lab: {run.id}: {missing}\n")
    return 0
