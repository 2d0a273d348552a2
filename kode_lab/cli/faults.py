"""``kode-lab faults``: make mistakes on purpose and see whether the judge convicts them."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

__all__ = ["add"]


def add(commands: Any) -> None:
    """Add the command ``faults``."""
    command = commands.add_parser(
        "faults", help="make mistakes on purpose, and see whether the judge convicts them"
    )
    option = command.add_argument
    option(
        "names", nargs="*", metavar="NAME",
        help="only these (default: all); or: serve NAME",
    )  # fmt: skip
    option("--list", action="store_true", help="say what there is")
    option(
        "--seeds", type=int, default=10, help="schedules of each fault and its twin (default: 10)"
    )
    option(
        "--replay", type=int, metavar="SEED", help="play this schedule again, and tell the witness"
    )
    option("--shrink", action="store_true", help="find the smallest play that convicts")
    option("--keep", type=Path, metavar="DIR", help="keep the play's history and trace there")
    option("--json", action="store_true", help="print the outcomes as one JSON list")
    option(
        "--save", action="store_true", help="keep them in RESULTS/faults, as JSON and as a table"
    )
    option("--results", type=Path, default=Path("results"), help="(default: results)")
    serve = command.add_argument_group("with serve NAME: a server that has the fault")
    option = serve.add_argument
    option("--port", type=int, default=8000, help="0 is any free one (default: 8000)")
    option("--data", type=Path, default=Path(".kode"), help="where sessions rest (default: .kode)")
    option("--model-url", help="ask the Messages API at this address (default: simulated, no HTTP)")
    option("--profile", help="latencies of the simulation: instant (default), report, a TOML file")
    command.set_defaults(run=_faults)


def _faults(options: argparse.Namespace) -> int:
    if options.names[:1] == ["serve"]:
        from kode_lab.faults.serving import serve_fault  # noqa: PLC0415

        return serve_fault(options)
    from kode_lab.faults.command import run_faults  # noqa: PLC0415

    return run_faults(options)
