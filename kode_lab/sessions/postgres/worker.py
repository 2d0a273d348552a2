"""This process as the database knows it: a worker with an id, a sign of life, and notifications.

It owns the one connection on which all of that rests. The advisory lock on it is the death signal:
when the process dies, the server frees the lock within milliseconds. The row's ``alive_until`` is
for pauses and partitions, in which the connection lives on and the process does not; it is renewed
here, by the database's clock. When the connection breaks, the worker reconnects under its id and
checks which sessions it still holds. The id is random, so a database that is restored to an earlier
state cannot give it to another worker. This file knows ids of sessions, and nothing of turns.

Source: leases, Gray and Cheriton 1989; the lock as a sign of life: ephemeral nodes of ZooKeeper.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import socket
import time
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

from kode_lab.errors import InvalidConfig, StoreError, StoreUnreachable
from kode_lab.sessions.postgres.connection import PostgresConnection, refuse_transaction_pooling
from kode_lab.sessions.postgres.schema import FORMAT, migrate, read_meta

__all__ = ["Fetch", "PostgresWorker"]

# Signs of life within one time to live: two may be lost.
_SIGNS = 3
_ID_BITS = 62
_RENEW = """
    UPDATE worker SET alive_until = clock_timestamp() + $2 * interval '1 second'
    WHERE id = $1 RETURNING pg_backend_pid()"""
_REGISTER = """
    INSERT INTO worker (id, name, address, alive_until)
    VALUES ($1, $2, $3, clock_timestamp() + $4 * interval '1 second')
    ON CONFLICT (id) DO UPDATE SET alive_until = excluded.alive_until"""
_LOCKED_BY = """
    SELECT pid FROM pg_locks
    WHERE locktype = 'advisory' AND objsubid = 1 AND mode = 'ExclusiveLock'
        AND classid = ($1::bigint >> 32)::oid AND objid = ($1::bigint & 4294967295)::oid
        AND pid <> pg_backend_pid()"""
Fetch = Callable[..., Awaitable[list[Any]]]


class Listener(Protocol):
    """What receives the notifications of this worker."""

    def heard(self, words: list[str]) -> None:
        """Handle a message of another worker or of the database."""
        ...

    async def look_again(self, fetch: Fetch) -> None:
        """Check which sessions are still held, before the worker counts as alive again."""
        ...


class PostgresWorker:
    """One worker.

    Args:
        ttl_s: must be what the schema says; None takes it from there.
        address: where this worker's server answers, for workers that would send it a request.
        patience_s: how long a database that does not answer is retried.
    """

    def __init__(
        self,
        dsn: str,
        *,
        schema: str,
        ttl_s: float | None,
        address: str | None,
        patience_s: float,
    ) -> None:
        self.connection = PostgresConnection(
            dsn, schema=schema, prepare=self._prepare, patience_s=patience_s
        )
        self.id = 0
        self.ttl_s = 0.0
        self._dsn = dsn
        self._wanted_ttl_s = ttl_s
        self._schema = schema
        self._address = address
        self._patience_s = patience_s
        self._listener: Listener | None = None
        self._backend = 0
        self._sure_until_s = 0.0
        self._is_sure = asyncio.Event()
        self._trouble = ""  # why the last sign of life failed
        self._is_lost = asyncio.Event()
        self._opening: asyncio.Task[None] | None = None
        self._living: asyncio.Task[None] | None = None

    def listen(self, listener: Listener) -> None:
        """Send it what is heard from now on."""
        self._listener = listener

    async def open(self) -> None:
        """Register once, however many callers; all of them get an error, and the next one retries.

        Raises:
            StoreError: the database cannot be used.
            InvalidConfig: the DSN or ``ttl_s`` is wrong.
        """
        if self._living is not None:
            return
        if self._opening is None:
            self._opening = asyncio.create_task(self._open())
        opening = self._opening
        try:
            await asyncio.shield(opening)
        finally:
            if opening.done():
                self._opening = None

    async def _open(self) -> None:
        await self._renew()
        self._living = asyncio.create_task(self._live())

    @property
    def is_sure(self) -> bool:
        """Whether no other worker can have taken this one for dead."""
        return self.connection.is_up and time.monotonic() < self._sure_until_s

    async def sure(self) -> None:
        """Return when no other worker can have taken this one for dead.

        Raises:
            StoreUnreachable: the database did not answer in time.
        """
        while not self.is_sure:
            self._is_sure.clear()
            try:
                async with asyncio.timeout(self._patience_s):
                    await self._is_sure.wait()
            except TimeoutError:
                raise StoreUnreachable(
                    self._trouble
                    or f"PostgreSQL did not answer within patience_s={self._patience_s:g}; nothing "
                    "was begun: check that it runs, then send the turn again"
                ) from None

    async def aclose(self) -> None:
        """Leave: what this worker still holds is free from now on."""
        for task in (self._opening, self._living):
            if task is not None:
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError, Exception):
                    await task
        if self.id and self.connection.is_up:
            with contextlib.suppress(StoreError):
                await self.connection.fetch("DELETE FROM worker WHERE id = $1", self.id)
        await self.connection.aclose()

    # ---- inside

    async def _live(self) -> None:
        """Renew the sign of life until cancelled."""
        while True:
            self._is_lost.clear()
            if self.is_sure:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(self.ttl_s / _SIGNS):
                        await self._is_lost.wait()
            try:
                await self._renew()
            except (StoreError, InvalidConfig) as error:
                self._trouble = str(error)
                await asyncio.sleep(min(self.ttl_s / _SIGNS, 1.0))

    async def _renew(self) -> None:
        start_s = time.monotonic()
        was_late = start_s >= self._sure_until_s
        rows = await self.connection.fetch(_RENEW, self.id, self.ttl_s)
        if not rows or rows[0][0] != self._backend:
            # The row was removed as one of a dead worker, the database is an older copy, or a
            # pooler answers by another backend than that of our lock.
            self.connection.cut()
            await self.connection.fetch(_RENEW, self.id, self.ttl_s)
        elif was_late:
            await self._look_again(self.connection.fetch)
        self._sure_until_s = start_s + self.ttl_s
        self._trouble = ""
        self._is_sure.set()

    async def _prepare(self, connection: Any) -> None:
        """Make a new connection the worker's own: lock, notifications, and what is still held."""
        await refuse_transaction_pooling(connection, self._dsn)
        self.ttl_s = await self._agreed_ttl_s(connection)
        await connection.execute(
            "DELETE FROM worker WHERE alive_until < clock_timestamp() - interval '1 day'"
        )
        number = self.id or _new_id()
        for row in await connection.fetch(_LOCKED_BY, number):
            if (
                row["pid"] == self._backend
            ):  # our connection before: the server has not seen its end
                await connection.execute("SELECT pg_terminate_backend($1)", self._backend)
            else:  # a copy of this process (a virtual machine that was cloned) has the same id
                number = _new_id()
        name = f"{socket.gethostname()}:{os.getpid()}"
        await connection.execute(_REGISTER, number, name, self._address, self.ttl_s)
        await connection.execute(f"SELECT pg_advisory_lock({number})")
        self._backend = await connection.fetchval("SELECT pg_backend_pid()")
        self.id = number
        connection.add_termination_listener(lambda _: self._is_lost.set())
        await connection.add_listener(f"{self._schema}_{number}", self._heard)
        await self._look_again(connection.fetch)

    async def _agreed_ttl_s(self, connection: Any) -> float:
        """Return the time to live that all workers of this schema share; make a missing schema.

        Raises:
            InvalidConfig: this worker was configured with another one, or the schema is older.
        """
        meta = await read_meta(connection, self._schema)
        if meta is None:
            await migrate(
                connection, schema=self._schema, ttl_s=self._wanted_ttl_s, only_if_missing=True
            )
            meta = await read_meta(connection, self._schema)
            assert meta is not None
        if meta.format < FORMAT:
            raise InvalidConfig(
                f"schema {self._schema} has format {meta.format}, this kode_lab needs {FORMAT}: "
                "stop the other workers and run kode-lab migrate"
            )
        agreed_s = float(meta.settings["ttl_s"])
        if self._wanted_ttl_s not in (None, agreed_s):
            raise InvalidConfig(
                f"ttl_s={self._wanted_ttl_s:g} here, but the workers of schema {self._schema} "
                f"share ttl_s={agreed_s:g}: use the same, or change it for all with kode-lab "
                "migrate --ttl"
            )
        return agreed_s

    def _heard(self, _connection: object, _pid: int, _channel: str, words: str) -> None:
        if self._listener is not None:
            self._listener.heard(words.split(" "))

    async def _look_again(self, fetch: Fetch) -> None:
        if self._listener is not None:
            await self._listener.look_again(fetch)


def _new_id() -> int:
    return secrets.randbits(_ID_BITS) + 1
