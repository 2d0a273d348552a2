"""``kode-lab``: the command line, one file a command.

It owns the order of the commands and how each can end. A command's file has ``add(commands)``,
which declares its options; it imports what it needs when it runs, so that ``kode-lab --help`` is
fast. The exit statuses are listed in ``status``.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from kode_lab import __version__
from kode_lab.cli import (
    adopt,
    audit,
    backup,
    check,
    doctor,
    faults,
    init_target,
    judge,
    load,
    postgres,
    proxy,
    record,
    report,
    reproduce,
    serve,
    simulate,
    storm,
)
from kode_lab.cli.status import INTERRUPTED, UNUSABLE
from kode_lab.errors import KodeLabError

__all__ = ["main"]

# In the order in which ``kode-lab --help`` lists them.
_COMMANDS = (
    judge,
    init_target,
    reproduce,
    simulate,
    proxy,
    postgres,
    serve,
    load,
    check,
    audit,
    faults,
    storm,
    report,
    record,
    backup,
    doctor,
    adopt,
)
_ARGPARSE_UNUSABLE = 2
# What a shell shows of a command whose reader went away (128 + SIGPIPE).
_UNREAD = 141


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command, and return its exit status."""
    try:
        options = _parser().parse_args(arguments)
    except SystemExit as ended:
        # argparse says 2 for what it cannot parse; 2 means unknown here.
        return UNUSABLE if ended.code == _ARGPARSE_UNUSABLE else 0
    try:
        status: int = options.run(options)
        sys.stdout.flush()
    except KodeLabError as error:
        sys.stderr.write(f"kode-lab: {type(error).__name__}: {error}\n")
        return UNUSABLE
    except KeyboardInterrupt:
        return INTERRUPTED
    except (BrokenPipeError, SystemExit):
        # After `| head`, flushing stdout at exit would complain. rich meets the same error, and
        # exits with 1, which means violated here.
        _discard_stdout()
        return _UNREAD
    except OSError as error:
        what = "" if error.filename is None else f"{error.filename}: "
        sys.stderr.write(f"kode-lab: {what}{error.strerror or error}\n")
        _discard_stdout()
        return UNUSABLE
    return status


def _discard_stdout() -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="kode-lab",
        description="Do sessions of LLM agents stay apart and in order under load, and how fast?",
        epilog="Exit status: 0 holds, 1 violated, 2 unknown, 3 unusable input, 130 interrupted.",
    )
    parser.add_argument("--version", action="version", version=f"kode-lab {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for command in _COMMANDS:
        command.add(commands)
    return parser
