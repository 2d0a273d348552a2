"""One connection to PostgreSQL that reconnects and repeats its query when it breaks.

A query may therefore arrive more than once, and the first copy may arrive last: everything sent
through here must be safe against both. This file owns how long a query is retried, what each
error of the database means for the caller, poolers, and the one import of ``asyncpg``. It knows
nothing of sessions.

Source: error classes are those of PostgreSQL's appendix A.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import time
from collections.abc import Awaitable, Callable
from typing import Any
from urllib.parse import unquote

from kode_lab.errors import InvalidConfig, StoreError, StoreUnreachable, StoreUnwritable

__all__ = ["PostgresConnection", "refuse_transaction_pooling"]

# The first retries are quick: a database that restarts answers after some 100 ms.
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.02, 0.5
_CONNECT_S = 5.0
# A probe misses only if a third client takes the backend between its two steps.
_POOLER_PROBES = 3
_SETTINGS = {
    "jit": "off",
    # A plan made for an empty table would scan a full one; these settings forbid such plans.
    "plan_cache_mode": "force_generic_plan",
    "enable_seqscan": "off",
    "enable_hashjoin": "off",
    "enable_mergejoin": "off",
    # A peer that disappeared is noticed in seconds, not hours.
    "tcp_keepalives_idle": "5",
    "tcp_keepalives_interval": "2",
    "tcp_keepalives_count": "3",
}
_POOLED = (
    "a connection pooler (PgBouncer or similar) between this worker and PostgreSQL does not keep "
    "one server connection per client: leases need LISTEN and an advisory lock, which live on a "
    "connection. Set pool_mode = session for this database, or use the DSN of PostgreSQL itself"
)


def _asyncpg() -> Any:
    try:
        import asyncpg  # noqa: PLC0415 - an extra, and 60 ms that only its users pay
    except ImportError:
        raise InvalidConfig(
            "PostgreSQL needs the extra: pip install 'kode-lab[postgres]'"
        ) from None
    return asyncpg


class PostgresConnection:
    """One connection; queries wait for each other.

    Args:
        dsn: as libpq understands it.
        prepare: is called with each new connection before anything else uses it.
        settings: run-time parameters of PostgreSQL for this connection, beside the usual ones.
        answer_s: a query that takes longer counts as a broken connection.
        patience_s: how long a query is retried on a broken connection before it fails.
    """

    def __init__(
        self,
        dsn: str,
        *,
        schema: str,
        prepare: Callable[[Any], Awaitable[None]] | None = None,
        settings: dict[str, str] | None = None,
        answer_s: float = 30.0,
        patience_s: float = 10.0,
    ) -> None:
        self._dsn = dsn
        self._settings = {"search_path": schema, **_SETTINGS, **(settings or {})}
        self._prepare = prepare
        self._answer_s = answer_s
        self._patience_s = patience_s
        self._connection: Any = None
        self._was_up = False
        self._is_free = asyncio.Lock()

    @property
    def is_up(self) -> bool:
        """Whether the connection is open, as far as this side knows."""
        return self._connection is not None and not self._connection.is_closed()

    async def fetch(self, query: str, *arguments: Any) -> list[Any]:
        """Return the rows of a query, which may be sent more than once.

        Raises:
            StoreUnreachable: no answer within ``patience_s``; the message says whether the query
                was sent.
            StoreUnwritable: the database refuses to write.
            StoreError: the database answered with another error.
        """
        async with self._is_free:
            until_s = time.monotonic() + self._patience_s
            pause_s = _FIRST_PAUSE_S
            was_sent = False
            while True:
                try:
                    if not self.is_up:
                        self._connection = None
                        self._connection = await self._connected()
                    was_sent = self._was_up = True
                    async with asyncio.timeout(self._answer_s):
                        rows: list[Any] = await self._connection.fetch(query, *arguments)
                except Exception as error:
                    # A connection that breaks inside a message can raise almost anything.
                    was_cut = self._connection is not None and not self.is_up
                    is_final = not (was_cut or _is_broken(error))
                    if not is_final:
                        self.cut()
                        is_final = time.monotonic() + pause_s > until_s
                    if is_final:
                        raise self._explained(error, was_sent=was_sent) from error
                else:
                    return rows
                await asyncio.sleep(pause_s)
                pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)

    def _explained(self, error: Exception, *, was_sent: bool) -> StoreError | InvalidConfig:
        told = explained(error, self._dsn, was_sent=was_sent)
        if self._was_up and isinstance(told, InvalidConfig):
            # This connection worked before, so not the caller but the database has changed.
            return StoreError(f"{told}; then restart this server")
        return told

    async def _connected(self) -> Any:
        connection = await _asyncpg().connect(
            self._dsn, timeout=_CONNECT_S, server_settings={"application_name": "kode-lab"}
        )
        try:
            # Not as startup parameters: PgBouncer refuses a connection that brings any of these.
            async with asyncio.timeout(_CONNECT_S):
                await connection.execute(
                    "; ".join(f"SET {name} = {value}" for name, value in self._settings.items())
                )
            if self._prepare is not None:
                await self._prepare(connection)
        except BaseException:
            connection.terminate()
            raise
        return connection

    def cut(self) -> None:
        """Drop the connection; the next query makes a new one."""
        if self._connection is not None:
            self._connection.terminate()

    async def aclose(self) -> None:
        """Close the connection in good order."""
        if self._connection is not None:
            with contextlib.suppress(Exception):
                await self._connection.close(timeout=2.0)
            self.cut()


async def refuse_transaction_pooling(connection: Any, dsn: str) -> None:
    """Check that this client keeps its server connection between transactions.

    Behind a pooler in session mode it does. In transaction mode a second client is served by the
    very backend that the first one has just used, although the first one is still connected.

    Raises:
        InvalidConfig: a pooler shares server connections between clients.
    """
    asyncpg = _asyncpg()
    query = "SELECT pg_backend_pid()"
    try:
        backend = await connection.fetchval(query)
        if backend == connection.get_server_pid():
            return  # PostgreSQL itself answers; a pooler announces a number of its own
        for _ in range(_POOLER_PROBES):
            other = await asyncpg.connect(dsn, timeout=_CONNECT_S, statement_cache_size=0)
            try:
                async with asyncio.timeout(_CONNECT_S), other.transaction():
                    others = await other.fetchval(query)
            finally:
                other.terminate()
            if others == backend or await connection.fetchval(query) != backend:
                raise InvalidConfig(_POOLED)
    except (
        asyncpg.PostgresConnectionError,  # "transaction blocks not allowed in statement pooling"
        asyncpg.InvalidSQLStatementNameError,
        asyncpg.DuplicatePreparedStatementError,
    ) as error:
        if isinstance(error, asyncpg.PostgresConnectionError) and "pooling" not in str(error):
            raise
        raise InvalidConfig(f"{_POOLED} (it said: {error})") from error
    except TimeoutError:
        return  # in session mode, a second connection waits while the pool is exhausted


def _is_broken(error: Exception) -> bool:
    """Whether a retry may help: the connection broke, or the server is starting or stopping."""
    asyncpg = _asyncpg()
    return isinstance(
        error,
        OSError  # TimeoutError, too
        | asyncpg.PostgresConnectionError
        | asyncpg.InterfaceError
        | asyncpg.InternalClientError
        | asyncpg.AdminShutdownError
        | asyncpg.CrashShutdownError
        | asyncpg.CannotConnectNowError
        | asyncpg.TooManyConnectionsError
        | asyncpg.DeadlockDetectedError
        | asyncpg.SerializationError,
    ) and not isinstance(error, asyncpg.ClientConfigurationError)


_REFUSED = {
    "28": "check user and password in the DSN, and the server's pg_hba.conf",
    "3D": "create the database, or correct its name in the DSN",
    "42501": "grant this role the right: kode-lab migrate as its owner, then GRANT",
    "53100": "free some space on the database's disk, then send it again with the same turnId",
    "25006": "the database is read-only or in recovery: use the DSN of the primary",
    "26000": _POOLED,
    "42P05": _POOLED,
    "42P01": "the schema is not what it was: run kode-lab migrate",
    "42703": "the schema is not what it was: run kode-lab migrate",
    "42883": "the schema is not what it was: run kode-lab migrate",
    "3F000": "the schema is gone: run kode-lab migrate",
}


def _secrets(dsn: str) -> list[str]:
    """Return the pieces of a DSN that may be its password, as written and decoded.

    A DSN with a typing error is split elsewhere than its writer thought, and a part of the password
    is reported as an invalid port; so everything before the last @ counts.
    """
    pieces = re.split(r"[:/@?#&=]", dsn.rpartition("@")[0].partition("://")[2])[1:]
    pieces += re.findall(r"password=([^&]*)", dsn)
    return [each for piece in pieces if piece for each in {piece, unquote(piece)}]


def explained(error: Exception, dsn: str, *, was_sent: bool) -> StoreError | InvalidConfig:
    """Return the error that says what the database said and what to do, without the password."""
    if isinstance(error, StoreError | InvalidConfig):
        return error
    asyncpg = _asyncpg()
    said = str(error).partition("\n")[0] or type(error).__name__
    if any(secret in said for secret in _secrets(dsn)):
        said = type(error).__name__
    if _is_broken(error):
        known = "whether the last step was saved is not known" if was_sent else "nothing was begun"
        return StoreUnreachable(
            f"PostgreSQL does not answer ({said}): {known}; check that it runs, then send it again "
            "with the same turnId"
        )
    if isinstance(error, asyncpg.ClientConfigurationError | ValueError | OverflowError):
        return InvalidConfig(f"the DSN cannot be used ({said}): postgresql://user@host/database")
    state = str(getattr(error, "sqlstate", None) or "")
    for prefix, hint in _REFUSED.items():
        if state.startswith(prefix):
            return StoreUnwritable(f"PostgreSQL refused ({said}): {hint}")
    return StoreError(f"PostgreSQL said {said} ({state or type(error).__name__})")
