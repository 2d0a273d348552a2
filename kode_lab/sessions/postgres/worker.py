"""This process as the database knows it: a worker with a number, a sign of life, and an ear.

It owns the one connection on which all of that rests. The advisory lock on it is the death signal:
when the process dies, the server frees the lock within milliseconds. The row's ``alive_until`` is
for pauses and partitions, in which the connection lives on and the process does not; it is
renewed here, by the database's clock. When the connection breaks, the worker comes back under its
old number and looks what is still its own. It knows numbers of sessions, and nothing of turns.

Source: leases, Gray and Cheriton 1989; the lock as a sign of life: ephemeral nodes of ZooKeeper.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import time
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

from kode_lab.errors import InvalidConfig, StoreError, StoreUnreachable
from kode_lab.sessions.postgres.connection import PostgresLink
from kode_lab.sessions.postgres.schema import FORMAT, lock_class, migrate, read_meta

__all__ = ["PostgresWorker"]

# So many signs of life within one time to live: two may be lost.
_SIGNS = 3
_RENEW = """
    UPDATE worker SET alive_until = clock_timestamp() + $2 * interval '1 second'
    WHERE id = $1 RETURNING id"""
_REGISTER = """
    INSERT INTO worker (name, address, alive_until)
    VALUES ($1, $2, clock_timestamp() + $3 * interval '1 second') RETURNING id"""
_REGISTER_AGAIN = """
    INSERT INTO worker (id, name, address, alive_until) OVERRIDING SYSTEM VALUE
    VALUES ($4, $1, $2, clock_timestamp() + $3 * interval '1 second')
    ON CONFLICT (id) DO UPDATE SET alive_until = excluded.alive_until"""
_END_OTHERS = """
    SELECT pg_terminate_backend(pid) FROM pg_locks
    WHERE locktype = 'advisory' AND objsubid = 2 AND mode = 'ExclusiveLock'
        AND classid = $1::bigint::oid AND objid = $2::bigint::oid AND pid <> pg_backend_pid()"""
Fetch = Callable[..., Awaitable[list[Any]]]


class Listener(Protocol):
    """Who wants to know what this worker hears."""

    def heard(self, words: list[str]) -> None:
        """Take what another worker or the database has to say."""
        ...

    async def look_again(self, fetch: Fetch) -> None:
        """See what is still ours, before anybody may be sure again."""
        ...


class PostgresWorker:
    """One worker; its number is never given twice.

    Args:
        ttl_s: must be what the schema says; None takes it from there.
        address: where this worker's server answers, for those who would send it a request.
        patience_s: how long a database that does not answer is tried again.
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
        self.link = PostgresLink(dsn, schema=schema, prepare=self._prepare, patience_s=patience_s)
        self.id = 0
        self.ttl_s = 0.0
        self._wanted_ttl_s = ttl_s
        self._schema = schema
        self._address = address
        self._patience_s = patience_s
        self._listener: Listener | None = None
        self._sure_until_s = 0.0
        self._is_sure = asyncio.Event()
        self._trouble = ""  # why the last sign of life could not be given
        self._is_lost = asyncio.Event()
        self._opening: asyncio.Task[None] | None = None
        self._living: asyncio.Task[None] | None = None

    def listen(self, listener: Listener) -> None:
        """Tell it what is heard from now on."""
        self._listener = listener

    async def open(self) -> None:
        """Register, once however many ask; a failure is told to all who asked, and forgotten.

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
        """Whether nobody can have taken this worker for gone."""
        return self.link.is_up and time.monotonic() < self._sure_until_s

    async def sure(self) -> None:
        """Return when nobody can have taken this worker for gone since the last look.

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
                    "was begun: see that it runs, then send the turn again"
                ) from None

    async def aclose(self) -> None:
        """Leave: what this worker still holds is free from now on."""
        for task in (self._opening, self._living):
            if task is not None:
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError, Exception):
                    await task
        if self.id and self.link.is_up:
            with contextlib.suppress(StoreError):
                await self.link.fetch("DELETE FROM worker WHERE id = $1", self.id)
        await self.link.aclose()

    # ---- inside

    async def _live(self) -> None:
        """Return signs of life for as long as there is life."""
        while True:
            self._is_lost.clear()
            if self.is_sure:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(self.ttl_s / _SIGNS):
                        await self._is_lost.wait()
            try:
                await self._renew()
            except StoreError as error:
                self._trouble = str(error)
                await asyncio.sleep(min(self.ttl_s / _SIGNS, 1.0))

    async def _renew(self) -> None:
        start_s = time.monotonic()
        was_late = start_s >= self._sure_until_s
        rows = await self.link.fetch(_RENEW, self.id, self.ttl_s)
        if not rows:  # its row was removed as one long gone
            self.link.cut()
            await self.link.fetch(_RENEW, self.id, self.ttl_s)
        elif was_late:
            await self._look_again(self.link.fetch)
        self._sure_until_s = start_s + self.ttl_s
        self._trouble = ""
        self._is_sure.set()

    async def _prepare(self, connection: Any) -> None:
        """Make a new connection the worker's: number, lock, ear, and what is still its own."""
        self.ttl_s = await self._agreed_ttl_s(connection)
        await connection.execute(
            "DELETE FROM worker WHERE alive_until < clock_timestamp() - interval '1 day'"
        )
        name = f"{socket.gethostname()}:{os.getpid()}"
        if not self.id:
            self.id = await connection.fetchval(_REGISTER, name, self._address, self.ttl_s)
        else:
            await connection.execute(_REGISTER_AGAIN, name, self._address, self.ttl_s, self.id)
        # The connection before may still stand on the server, and with it the lock.
        number = lock_class(self._schema)
        await connection.execute(_END_OTHERS, number, self.id)
        await connection.execute(f"SELECT pg_advisory_lock({number}, {self.id})")
        connection.add_termination_listener(lambda _: self._is_lost.set())
        await connection.add_listener(f"{self._schema}_{self.id}", self._heard)
        await self._look_again(connection.fetch)

    async def _agreed_ttl_s(self, connection: Any) -> float:
        """Return the time to live that all workers of this schema share; make the schema if needed.

        Raises:
            InvalidConfig: this worker was given another one, or the schema is an older one.
        """
        meta = await read_meta(connection, self._schema)
        if meta is None:
            await migrate(connection, schema=self._schema, ttl_s=self._wanted_ttl_s)
            meta = await read_meta(connection, self._schema)
            assert meta is not None
        if meta.format < FORMAT:
            raise InvalidConfig(
                f"schema {self._schema} has format {meta.format}, this kode_lab needs {FORMAT}: "
                "run kode-lab migrate"
            )
        agreed_s = float(meta.settings["ttl_s"])
        if self._wanted_ttl_s not in (None, agreed_s):
            raise InvalidConfig(
                f"ttl_s={self._wanted_ttl_s:g} here, but the workers of schema {self._schema} "
                f"share ttl_s={agreed_s:g}: give the same, or change it for all with kode-lab "
                "migrate --ttl"
            )
        return agreed_s

    def _heard(self, _connection: object, _pid: int, _channel: str, words: str) -> None:
        if self._listener is not None:
            self._listener.heard(words.split(" "))

    async def _look_again(self, fetch: Fetch) -> None:
        if self._listener is not None:
            await self._listener.look_again(fetch)
