"""``kode-lab backup``: a good copy of a store's directory, in use or not."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

__all__ = ["add"]


def add(commands: Any) -> None:
    """Add the command ``backup``."""
    command = commands.add_parser("backup", help="copy a store's directory while it is in use")
    command.add_argument("data", metavar="DIR", type=Path, help="the store's directory")
    command.add_argument("to", metavar="COPY", type=Path, help="the copy, which must not exist")
    command.set_defaults(run=_backup)


def _backup(options: argparse.Namespace) -> int:
    from kode_lab.sessions.files.upkeep import back_up  # noqa: PLC0415

    count = back_up(options.data, options.to)
    print(f"{options.to}: {count} sessions; start a server on it to go on from there")
    return 0
