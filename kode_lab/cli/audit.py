"""``kode-lab audit``: a verdict from traces, request logs or transcripts."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

__all__ = ["add"]

_STATUS = {"valid": 0, "invalid": 1, "unknown": 2}


def add(commands: Any) -> None:
    """Add the command ``audit``."""
    command = commands.add_parser(
        "audit", help="judge the model calls in traces or request logs, without a load test"
    )
    option = command.add_argument
    option("files", nargs="+", type=Path, metavar="FILE", help="see docs/audit.md; gzip is fine")
    option("--sessions-per-user", action="store_true", help="two users never share a session here")
    option("--show-words", action="store_true", help="print what users asked in the witnesses")
    option("--json", action="store_true", help="print the verdict as JSON, without words of users")
    command.set_defaults(run=_audit)


def _audit(options: argparse.Namespace) -> int:
    from kode_lab.audit import audit  # noqa: PLC0415 - --help needs none of it

    verdict = audit(*options.files, sessions_per_user=options.sessions_per_user)
    if options.json:
        print(json.dumps(verdict.to_json(), ensure_ascii=False, indent=1))
    else:
        print(verdict.text(show_words=options.show_words))
    return _STATUS[verdict.status]
