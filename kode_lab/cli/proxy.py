"""``kode-lab proxy``: pass requests to a real model and record what it is shown."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

__all__ = ["add"]


def add(commands: Any) -> None:
    """Add the command ``proxy``."""
    command = commands.add_parser("proxy", help="record what a service shows its real model")
    add_option = command.add_argument
    add_option("--upstream", required=True, metavar="URL", help="of the model's API")
    add_option("--port", type=int, default=8766, help="0 is any free one (default: 8766)")
    add_option("--content", type=Path, metavar="FILE", help="append requests and replies to it")
    command.set_defaults(run=_proxy)


def _proxy(options: argparse.Namespace) -> int:
    from kode_lab.claude.proxy import run_proxy  # noqa: PLC0415 - --help needs none of it

    return run_proxy(options)
