"""``kode-lab doctor``: examine the sessions below a directory, and repair them on request."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

__all__ = ["add"]


def add(commands: Any) -> None:
    """Add the command ``doctor``."""
    command = commands.add_parser(
        "doctor",
        help="find and repair damaged sessions",
        epilog="Exit status: 0 nothing is damaged (any more), 1 something is.",
    )
    command.add_argument("data", metavar="DIR", type=Path, help="the store's directory")
    command.add_argument(
        "--repair", action="store_true", help="repair what can be; the original files are kept"
    )
    command.add_argument(
        "--kode-sdk",
        metavar="MODEL",
        help="write the meta.json with which the Kode SDK resumes a session with this model",
    )
    command.add_argument("--tools", nargs="*", default=(), help="names of its tools")
    command.set_defaults(run=_doctor)


def _doctor(options: argparse.Namespace) -> int:
    from kode_lab.sessions.files.upkeep import (  # noqa: PLC0415
        examine,
        repair,
        session_places,
        write_meta,
    )

    for finding in repair(options.data) if options.repair else ():
        print(f"{finding.place}: repaired: {finding.what}")
    if options.kode_sdk is not None:
        for place in session_places(options.data):
            if write_meta(place, model=options.kode_sdk, tools=options.tools):
                print(f"{place.relative_to(options.data)}: wrote meta.json for the Kode SDK")
    found = examine(options.data)
    for finding in found:
        hint = " (kode-lab doctor --repair)" if finding.is_repairable else ""
        print(f"{finding.place}: {'DAMAGED: ' if finding.is_damage else ''}{finding.what}{hint}")
    damaged = sum(finding.is_damage for finding in found)
    print(f"{options.data}: {damaged} damaged, {len(found) - damaged} remarks")
    return 1 if damaged else 0
