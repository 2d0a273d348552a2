"""``kode-lab faults`` and ``kode-lab serve-fault``: mistakes made on purpose, judged or served."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

__all__ = ["add"]


def add(commands: Any) -> None:
    """Add the commands ``faults`` and ``serve-fault``."""
    command = commands.add_parser(
        "faults", help="make mistakes on purpose, and see whether the judge convicts them"
    )
    option = command.add_argument
    option("names", nargs="*", metavar="NAME", help="only these faults (default: all)")
    option("--list", action="store_true", help="list the faults")
    option(
        "--seeds", type=int, default=10, help="schedules of each fault and its twin (default: 10)"
    )
    option(
        "--replay", type=int, metavar="SEED", help="play this schedule again, and print the witness"
    )
    option("--shrink", action="store_true", help="find the smallest play that convicts")
    option("--keep", type=Path, metavar="DIR", help="keep the play's history and trace there")
    option("--json", action="store_true", help="print the outcomes as one JSON list")
    option(
        "--save", action="store_true", help="keep them in RESULTS/faults, as JSON and as a table"
    )
    option("--results", type=Path, default=Path("results"), help="(default: results)")
    command.set_defaults(run=_run_faults)
    command = commands.add_parser("serve-fault", help="serve sessions with one of the mistakes")
    option = command.add_argument
    option("name", metavar="NAME", help="which fault (kode-lab faults --list)")
    option("--port", type=int, default=8000, help="0 is any free one (default: 8000)")
    option("--data", type=Path, default=Path(".kode"), help="where sessions rest (default: .kode)")
    option("--model-url", help="ask the Messages API at this address (default: simulated, no HTTP)")
    option("--profile", help="latencies of the simulation: instant (default), report, a TOML file")
    command.set_defaults(run=_serve_fault)


def _run_faults(options: argparse.Namespace) -> int:
    from kode_lab.faults.command import run_faults  # noqa: PLC0415

    return run_faults(options)


def _serve_fault(options: argparse.Namespace) -> int:
    from kode_lab.faults.serving import serve_fault  # noqa: PLC0415

    return serve_fault(options)
