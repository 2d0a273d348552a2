"""``kode-lab postgres``: run a throwaway PostgreSQL until Ctrl-C."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

__all__ = ["add"]


def add(commands: Any) -> None:
    """Add the command ``postgres``."""
    command = commands.add_parser("postgres", help="run a PostgreSQL that is thrown away")
    command.add_argument("--port", type=int, help="also on loopback; 0 is any free one")
    command.add_argument("--data", type=Path, help="keep what is stored in this directory")
    command.set_defaults(run=_postgres)


def _postgres(options: argparse.Namespace) -> int:
    from kode_lab.testing.postgres.command import run_postgres  # noqa: PLC0415

    return run_postgres(options)
