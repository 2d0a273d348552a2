"""Opens what ``--store`` and ``--data`` name: a directory of JSON files, or a database.

It owns what a server has to know of its store beyond the store's own promise: how sessions are
listed, whether turns can be taken now, and the words for it. A secret in a DSN stays in it: nothing
here prints, logs or returns one.
"""

from __future__ import annotations

import logging
import re
from argparse import Namespace
from collections.abc import Callable
from contextlib import AsyncExitStack
from typing import NamedTuple

from kode_lab.errors import InvalidScenario
from kode_lab.server.session_limit import SessionsOf, in_thread
from kode_lab.sessions import JsonStore, Store
from kode_lab.sessions.postgres.schema import SCHEMA

__all__ = ["Storage", "check_storage", "opened"]

_DSN = re.compile(r"postgres(ql)?://", re.IGNORECASE)


class Storage(NamedTuple):
    """An open store and what a server asks of it.

    Attributes:
        is_ready: whether turns can be taken now.
        said: where sessions rest, for a person.
    """

    store: Store
    sessions_of: SessionsOf
    is_ready: Callable[[], bool]
    said: str


def check_storage(options: Namespace) -> None:
    """Say what does not go together, before anything is opened.

    Raises:
        InvalidScenario: the options contradict each other.
    """
    if options.store is None:
        if options.workers > 1 and options.durability == "power":
            raise InvalidScenario(
                "--durability power has one journal, which one process writes: leave out "
                "--workers, or use --store postgresql://…"
            )
        if options.ttl is not None or options.schema != SCHEMA:
            option = "--ttl" if options.ttl is not None else "--schema"
            raise InvalidScenario(
                f"{option} is of the database: leave it out, or say which one with --store or "
                "KODE_LAB_STORE"
            )
        return
    if not _DSN.match(options.store):
        # It may be a DSN with a typing error, and hold a password: it is not repeated.
        raise InvalidScenario("--store is no DSN: give postgresql://user@host/database")
    if options.layout != "user":
        raise InvalidScenario("--layout is of the data directory: leave it out with --store")
    if options.is_store_shown and re.search(r"//[^/@]*:[^/]*@|[?&]password=", options.store):
        logging.getLogger("kode_lab.server").warning(
            "--store holds a password, and who lists this machine's processes can read it: "
            "give the DSN in the environment, as KODE_LAB_STORE"
        )


async def opened(options: Namespace, stack: AsyncExitStack, *, open_sessions: int) -> Storage:
    """Open the store; whoever takes its manager closes it.

    Raises:
        StoreError: it cannot be used.
        InvalidConfig: the DSN is wrong, or other workers of the database go by other settings.
    """
    if options.store is None:
        files = JsonStore(
            options.data,
            layout=options.layout,
            durability=options.durability,
            open_sessions_limit=open_sessions,
        )
        return Storage(files, in_thread(files.sessions), lambda: True, str(options.data))
    from kode_lab.sessions.postgres.store import PostgresStore  # noqa: PLC0415 - only its users pay

    database = PostgresStore(options.store, schema=options.schema, ttl_s=options.ttl)
    stack.push_async_callback(database.aclose)
    await database.open()
    said = f"PostgreSQL, schema {options.schema}"
    return Storage(database, database.sessions, lambda: database.is_ready, said)
