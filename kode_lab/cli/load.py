"""``kode-lab load``: start a Locust load test and judge what it recorded."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

__all__ = ["add"]


def add(commands: Any) -> None:
    """Add the command ``load``."""
    command = commands.add_parser("load", help="load a server with sessions, and judge what came")
    option = command.add_argument
    option("name", metavar="NAME", help="a load test (a wrong one lists them), a file, or faults")
    option("--for", dest="run_time", metavar="TIME", help="10s, 2m, 1h (default: the test's own)")
    option("--users", type=int, help="sources of turns (default: the test's own)")
    option("--spawn-rate", type=float, help="users a second (default: all at once)")
    option("--rate", type=float, help="turns a second of each user (default: the test's own)")
    option("--closed-loop", action="store_true", help="wait for each answer before the next turn")
    option("--slo-p99-ms", type=float, help="exit with 4 when turns are slower")
    option("--processes", type=int, help="of the generator (default: one)")
    option("--seed", type=int, default=0, help="of arrivals and choices (default: 0)")
    option("--web", action="store_true", help="with Locust's web UI; Ctrl-C ends it")
    option("--host", help="a server that runs already (default: one is started, with its model)")
    option("--target", help="any service instead: mine.toml, agent.py:chat, a shipped name")
    option(
        "--server-pid", help="with --host: the file with its pid, for tests that kill or watch it"
    )
    option("--model-url", help="with --host: its simulated model, for tests that break that")
    option("--profile", help="latencies of the simulated model: instant, report, a TOML file")
    option("--fault", help="start a server that makes this mistake (see kode-lab faults --list)")
    option("--in-process", action="store_true", help="simulate the model inside the server")
    option("--no-pictures", action="store_true", help="write no report")
    option("--kills", type=int, help="of the server, in chaos (default: 20)")
    option("--no-trace", action="store_true", help="the server records no steps")
    option("--results", type=Path, default=Path("results"), help="where runs go (default: results)")
    command.set_defaults(run=_load)


def _load(options: argparse.Namespace) -> int:
    if options.name == "faults":
        from kode_lab.load.fault_table import run_table  # noqa: PLC0415

        return run_table(options)
    from kode_lab.load.command import run_load  # noqa: PLC0415

    return run_load(options)
