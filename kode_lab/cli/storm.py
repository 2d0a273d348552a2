"""``kode-lab storm``: faults on real processes: PostgreSQL's workers, and the crash proof."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

__all__ = ["add"]


def add(commands: Any) -> None:
    """Add the command ``storm`` with its two kinds."""
    command = commands.add_parser("storm", help="kill, stop and cut off real processes, and judge")
    kinds = command.add_subparsers(title="kinds", metavar="KIND", required=True)
    kind = kinds.add_parser("postgres", help="faults of workers that share a PostgreSQL")
    option = kind.add_argument
    option("names", nargs="*", metavar="NAME", help="only these storms (default: all)")
    option("--list", action="store_true", help="list the storms")
    option("--turns", type=int, help="the least number of turns (default: the storm's own)")
    option("--sessions", type=int, help="(default: 240)")
    option("--workers", type=int, help="processes (default: 4)")
    option("--times", type=int, help="how often each fault happens (default: the storm's own)")
    option("--seed", type=int, help="of what is drawn (default: 0)")
    option("--json", action="store_true", help="print the outcomes as one JSON list")
    option("--save", action="store_true", help="write them to RESULTS/faults")
    option("--results", type=Path, default=Path("results"), help="(default: results)")
    kind.set_defaults(run=_storms)
    kind = kinds.add_parser("crash", help="kill -9 a process full of turns again and again")
    option = kind.add_argument
    option("stores", nargs="*", metavar="STORE", help="process, power, postgres (default: all)")
    option("--kills", type=int, default=300, help="for each store (default: 300)")
    option("--seed", type=int, default=0, help="of the moments of the kills (default: 0)")
    option("--save", action="store_true", help="write the table to RESULTS/faults/crash.md")
    option("--results", type=Path, default=Path("results"), help="(default: results)")
    kind.set_defaults(run=_crash)


def _storms(options: argparse.Namespace) -> int:
    from kode_lab.storms.command import run_storms  # noqa: PLC0415

    return run_storms(options)


def _crash(options: argparse.Namespace) -> int:
    from kode_lab.storms.command import run_crash_proofs  # noqa: PLC0415

    return run_crash_proofs(options)
