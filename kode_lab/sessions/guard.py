"""``hold``: the held session as a thin guard around somebody else's call.

    async with kode_lab.hold("ada", "main"):     # one turn at a time, in order of arrival
        await agent.run(...)

``store="locks"`` guards among all processes of this machine, ``store="postgresql://..."`` among all
machines.

It owns which store guards a name, one for each event loop, and nothing of what is called. A guard
serialises; it cannot make a write atomic: what the call saves must be saved when it returns. What
a lost lease would still write is not refused, because a foreign store knows no fence: over files
and in process the lease cannot be lost while the process lives, over PostgreSQL it can.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from weakref import WeakKeyDictionary

from kode_lab.key import SessionKey
from kode_lab.sessions.lock import KeyedLock
from kode_lab.sessions.store import Lease, Store

__all__ = ["hold"]

QUEUE_LIMIT = 1_000
_AGENT = "guarded"


class _Guards:
    """The locks and stores of one event loop."""

    def __init__(self) -> None:
        self.lock: KeyedLock[SessionKey] = KeyedLock()
        self.stores: dict[str, Store] = {}
        self.fence = 0


_guards: WeakKeyDictionary[asyncio.AbstractEventLoop, _Guards] = WeakKeyDictionary()


@asynccontextmanager
async def hold(
    user: str,
    session: str,
    *,
    store: Store | Path | str | None = None,
    queue_limit: int = QUEUE_LIMIT,
) -> AsyncIterator[Lease]:
    """Hold a session while the block runs: first come, first served.

    Args:
        user: whose session it is.
        session: its name.
        store: None guards within this event loop; a directory, all processes that share it; a
            ``postgresql://`` address, all that share the database; or a store of your own.
        queue_limit: so many may wait; 0 does not wait.

    Raises:
        WaitingRoomFull: ``queue_limit`` wait already.
        InvalidKey: a name is empty or too long.
        StoreError: the directory or database cannot be used.
    """
    key = SessionKey.of(user, _AGENT, session)
    guards = _guards.setdefault(asyncio.get_running_loop(), _Guards())
    if store is None:
        await guards.lock.hold(key, queue_limit=queue_limit)
        guards.fence += 1
        try:
            yield Lease(key, guards.fence)
        finally:
            guards.lock.release(key)
        return
    held = _opened(guards, store) if isinstance(store, str | Path) else store
    lease = await held.hold(key, queue_limit=queue_limit)
    try:
        yield lease
    finally:
        held.release(lease)


def _opened(guards: _Guards, where: str | Path) -> Store:
    """Return the store at an address, opened once for each loop; it is closed with the process."""
    name = str(where)
    if name not in guards.stores:
        if name.startswith(("postgresql://", "postgres://")):
            from kode_lab.sessions.postgres.store import PostgresStore  # noqa: PLC0415 - asyncpg

            guards.stores[name] = PostgresStore(name)
        else:
            from kode_lab.sessions.files.store import JsonStore  # noqa: PLC0415 - orjson

            guards.stores[name] = JsonStore(name)
    return guards.stores[name]
