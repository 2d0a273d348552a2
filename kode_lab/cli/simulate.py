"""``kode-lab simulate``: serve the simulated model on loopback."""

from __future__ import annotations

import argparse
from typing import Any

__all__ = ["add"]


def add(commands: Any) -> None:
    """Add the command ``simulate``."""
    command = commands.add_parser("simulate", help="serve the simulated model on loopback")
    command.add_argument("--port", type=int, default=8765, help="0 is any free one (default: 8765)")
    command.add_argument("--speed", type=float, help="this much faster than the profile says")
    command.add_argument("--profile", help="report (default), instant, or a TOML file")
    command.add_argument(
        "--context-limit", type=int, metavar="TOKENS", help="refuse longer conversations"
    )
    command.set_defaults(run=_simulate)


def _simulate(options: argparse.Namespace) -> int:
    from kode_lab.claude.simulated import run_simulated  # noqa: PLC0415

    return run_simulated(options)
