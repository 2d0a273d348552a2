"""``kode-lab check``: judge a run or a history."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from kode_lab.cli.status import found

__all__ = ["add"]


def add(commands: Any) -> None:
    """Add the command ``check``."""
    command = commands.add_parser(
        "check", help="judge a run or a history: valid, invalid or unknown, with witnesses"
    )
    command.add_argument(
        "path", type=Path, metavar="RUN_OR_JSONL", help="id, directory or docs/history-format.md"
    )
    command.add_argument("--results", type=Path, default=Path("results"), help="(default: results)")
    command.add_argument(
        "--guarantee", action="append", metavar="NAME", help="claim only this (G1 or apart, ...)"
    )
    command.add_argument(
        "--overtaking-limit", type=int, metavar="N",
        help="claim that no more than N turns sent after one stand before it",
    )  # fmt: skip
    command.add_argument(
        "--keep", action="store_true",
        help="write the history's columns beside it, so that it is judged faster the next time",
    )  # fmt: skip
    command.add_argument("--json", action="store_true", help="print the verdict as JSON")
    command.set_defaults(run=_check)


def _check(options: argparse.Namespace) -> int:
    from kode_lab.check import main as judge  # noqa: PLC0415

    return judge(
        found(options.path, options.results),
        as_json=options.json,
        guarantees=options.guarantee,
        overtaking_limit=options.overtaking_limit,
        keep=options.keep,
    )
