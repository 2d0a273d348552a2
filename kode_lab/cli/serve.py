"""``kode-lab serve`` and what belongs to it: ``token``, ``migrate``, and its own worker processes.

It owns the words of these commands and does no work, as ``cli``, whose part it is.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kode_lab.errors import InvalidScenario

if TYPE_CHECKING:
    from kode_lab.schedule_assistant import PostgresBook, ScheduleBook

__all__ = ["add"]

# The list of processes does not show a DSN that is in the environment.
_STORE_VARIABLE = "KODE_LAB_STORE"
_SCHEMA = "kode_lab"


def add(commands: Any) -> None:
    """Add ``serve``, which has the most options, and its companions."""
    command = commands.add_parser("serve", help="serve sessions over HTTP")
    option = command.add_argument
    option("--host", default="127.0.0.1", help="another address needs --auth (default: 127.0.0.1)")
    option("--port", type=int, default=8000, help="0 is any free one (default: 8000)")
    option("--data", type=Path, default=Path(".kode"), help="where sessions rest (default: .kode)")
    option(
        "--store", metavar="DSN", help=f"postgresql://…: sessions rest there ({_STORE_VARIABLE})"
    )
    option("--schema", default=_SCHEMA, help=f"of the database (default: {_SCHEMA})")
    option("--ttl", type=float, help="seconds, as the database's other servers have them")
    option("--workers", type=int, default=1, help="processes behind the port (default: 1)")
    option(
        "--agents", type=Path, help="directory of <agentId>.toml (default: the schedule assistant)"
    )
    option(
        "--auth",
        type=Path,
        help="TOML file of tokens; without it any local program may ask",
    )
    option(
        "--durability", choices=("process", "power"), default="process", help="what turns survive"
    )
    option("--layout", choices=("user", "report"), default="user", help="of the data directory")
    model = command.add_mutually_exclusive_group()
    model.add_argument("--model-url", help="ask the Messages API at this address")
    model.add_argument("--simulated", action="store_true", help="simulate the API (without a key)")
    model.add_argument("--in-process", action="store_true", help="simulate it without HTTP")
    option("--model", help="its name, instead of what the agents' files say")
    option("--profile", help="latencies of the simulation: instant (default), report, a TOML file")
    option("--speed", type=float, help="this much faster than the profile says")
    option("--turns-limit", type=int, default=10_000, help="turns in flight (default: 10000)")
    option("--sessions-per-user", type=int, default=10_000, help="at rest (default: 10000)")
    option("--residents", type=int, help="sessions kept at hand in memory (default: 10000)")
    option("--drain", type=float, default=30.0, help="seconds for turns in flight at the end")
    option("--trace", type=Path, help="append every step of every turn to this JSON-Lines file")
    command.set_defaults(run=_serve)

    # Without help it is not listed: only ``serve --workers`` starts it.
    commands.add_parser("worker").set_defaults(run=_worker)

    command = commands.add_parser("migrate", help="make a database ready, or bring it up to date")
    option = command.add_argument
    option("store", nargs="?", metavar="DSN", help=f"postgresql://… (default: {_STORE_VARIABLE})")
    option("--schema", default=_SCHEMA, help=f"(default: {_SCHEMA})")
    option("--ttl", type=float, metavar="S", help="how long a paused server keeps its sessions")
    command.set_defaults(run=_migrate)

    command = commands.add_parser("token", help="make a token for serve --auth")
    command.add_argument("--user", required=True, help="whose sessions it opens")
    command.add_argument("--operator", action="store_true", help="may see the whole server")
    command.set_defaults(run=_token)


def _serve(options: argparse.Namespace) -> int:
    from kode_lab.server.serve import check_options  # noqa: PLC0415 - as everywhere below

    options.is_store_shown = options.store is not None
    options.store = options.store or os.environ.get(_STORE_VARIABLE) or None
    check_options(options)
    if options.workers != 1:
        from kode_lab.server.workers import run_workers  # noqa: PLC0415

        return run_workers(options)
    return _alone(options)


def _worker(_: argparse.Namespace) -> int:
    from kode_lab.server.workers import read_options  # noqa: PLC0415

    return _alone(read_options(sys.stdin.buffer))


def _alone(options: argparse.Namespace) -> int:
    """Be one server process, by itself or among others."""
    from kode_lab.schedule_assistant import AGENTS, toolbox  # noqa: PLC0415
    from kode_lab.server.serve import run_server  # noqa: PLC0415

    with contextlib.closing(_book(options)) as book:
        return run_server(options, toolbox(book), options.agents or AGENTS)


def _book(options: argparse.Namespace) -> ScheduleBook | PostgresBook:
    """Open the schedule book beside the sessions."""
    from kode_lab.schedule_assistant import PostgresBook, ScheduleBook  # noqa: PLC0415

    if options.store:
        return PostgresBook(options.store, schema=options.schema)
    with contextlib.suppress(OSError):  # the book says what is wrong with it
        options.data.mkdir(parents=True, exist_ok=True)
    # No user's directory is ever called so: "+" is encoded in names.
    return ScheduleBook(options.data / "+schedules.sqlite")


def _migrate(options: argparse.Namespace) -> int:
    import asyncio  # noqa: PLC0415

    from kode_lab.schedule_assistant import PostgresBook  # noqa: PLC0415
    from kode_lab.sessions.postgres.store import migrate_database  # noqa: PLC0415

    store = options.store or os.environ.get(_STORE_VARIABLE)
    if not store:
        raise InvalidScenario(f"which database? Give its DSN, or set {_STORE_VARIABLE}")
    said = asyncio.run(migrate_database(store, schema=options.schema, ttl_s=options.ttl))
    with PostgresBook(store, schema=options.schema) as book:
        book.open()
    sys.stdout.write(f"{said}\n")
    return 0


def _token(options: argparse.Namespace) -> int:
    from kode_lab.server.auth import new_token, token_entry  # noqa: PLC0415

    token, digest = new_token()
    # The file that stdout goes to must not hold the token itself.
    sys.stderr.write(f"the token, shown only now: {token}\n")
    sys.stdout.write(token_entry(options.user, digest, is_operator=options.operator) + "\n")
    return 0
