"""One connection to PostgreSQL that comes back: what is asked of it is asked again when it breaks.

So everything that goes through a link must be safe to send twice; the functions of the schema
are. It owns how long one tries, what each of the database's errors means for the caller, and the
one import of ``asyncpg``. It knows nothing of sessions.

Source: the classes of errors are those of PostgreSQL's appendix A.
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

__all__ = ["PostgresLink"]

# The first attempts come quickly: a database that was restarted answers after some 100 ms.
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.02, 0.5
_CONNECT_S = 5.0


def _asyncpg() -> Any:
    try:
        import asyncpg  # noqa: PLC0415 - an extra, and 60 ms that only its users pay
    except ImportError:
        raise InvalidConfig(
            "PostgreSQL needs the extra: pip install 'kode-lab[postgres]'"
        ) from None
    return asyncpg


class PostgresLink:
    """One connection, used by one at a time.

    Args:
        dsn: as libpq understands it.
        prepare: is given each new connection before anything else uses it.
        answer_s: how long one answer may take before the connection counts as broken.
        patience_s: how long a broken connection is tried again before the caller is told.
    """

    def __init__(
        self,
        dsn: str,
        *,
        schema: str,
        prepare: Callable[[Any], Awaitable[None]] | None = None,
        answer_s: float = 30.0,
        patience_s: float = 10.0,
    ) -> None:
        self._dsn = dsn
        self._schema = schema
        self._prepare = prepare
        self._answer_s = answer_s
        self._patience_s = patience_s
        self._connection: Any = None
        self._was_up = False
        self._free = asyncio.Lock()

    @property
    def is_up(self) -> bool:
        """Whether the connection stands, as far as this side knows."""
        return self._connection is not None and not self._connection.is_closed()

    async def fetch(self, query: str, *arguments: Any) -> list[Any]:
        """Return the rows; the query may be sent more than once.

        Raises:
            StoreUnreachable: no answer within ``patience_s``; it says whether anything was sent.
            StoreUnwritable: the database refuses to write.
            StoreError: it answered something else that is an error.
        """
        async with self._free:
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
                    # What asyncpg raises when it is cut off in the middle may be anything.
                    was_cut = self._connection is not None and not self.is_up
                    is_hopeless = not (was_cut or _is_broken(error))
                    if not is_hopeless:
                        self.cut()
                        is_hopeless = time.monotonic() + pause_s > until_s
                    if is_hopeless:
                        told = explained(error, self._dsn, was_sent=was_sent)
                        if self._was_up and isinstance(told, InvalidConfig):
                            # The caller configured nothing: it is the database that changed.
                            told = StoreError(f"{told}; then start this server again")
                        raise told from error
                else:
                    return rows
                await asyncio.sleep(pause_s)
                pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)

    async def _connected(self) -> Any:
        connection = await _asyncpg().connect(
            self._dsn,
            timeout=_CONNECT_S,
            server_settings={
                "application_name": "kode-lab",
                "search_path": self._schema,
                "jit": "off",
                # A plan made for an empty table would scan a full one; these never do.
                "plan_cache_mode": "force_generic_plan",
                "enable_seqscan": "off",
                "enable_hashjoin": "off",
                "enable_mergejoin": "off",
                # Who went without a word is noticed in seconds, not hours.
                "tcp_keepalives_idle": "5",
                "tcp_keepalives_interval": "2",
                "tcp_keepalives_count": "3",
            },
        )
        try:
            if self._prepare is not None:
                await self._prepare(connection)
        except BaseException:
            connection.terminate()
            raise
        return connection

    def cut(self) -> None:
        """Drop the connection as it stands; the next call makes a new one."""
        if self._connection is not None:
            self._connection.terminate()

    async def aclose(self) -> None:
        """End the connection in good order."""
        if self._connection is not None:
            with contextlib.suppress(Exception):
                await self._connection.close(timeout=2.0)
            self.cut()


def _is_broken(error: Exception) -> bool:
    """Whether another attempt may help: the connection broke, or the server starts or ends."""
    asyncpg = _asyncpg()
    return isinstance(
        error,
        OSError  # TimeoutError, too
        | asyncpg.PostgresConnectionError
        | asyncpg.InterfaceError
        | asyncpg.AdminShutdownError
        | asyncpg.CrashShutdownError
        | asyncpg.CannotConnectNowError
        | asyncpg.TooManyConnectionsError
        | asyncpg.DeadlockDetectedError
        | asyncpg.SerializationError,
    ) and not isinstance(error, asyncpg.ClientConfigurationError)


_REFUSED = {
    "28": "check user and password in the DSN, and the server's pg_hba.conf",
    "3D": "create the database, or mend its name in the DSN",
    "42501": "give this role the right: kode-lab migrate as its owner, then GRANT",
    "53100": "free some space on the database's disk, then send it again with the same turnId",
    "25006": "the database is read-only or in recovery: give the DSN of the primary",
    "42P01": "the schema is not what it was: run kode-lab migrate",
    "42883": "the schema is not what it was: run kode-lab migrate",
    "3F000": "the schema is gone: run kode-lab migrate",
}


def _secrets(dsn: str) -> list[str]:
    """Return the pieces of a DSN that may be its password, as it stands there and as it is meant.

    A DSN with a typing error is cut elsewhere than its writer thought, and a part of the password
    comes back as a port that is no number; so everything before the last @ is looked at.
    """
    pieces = re.split(r"[:/@?#&=]", dsn.rpartition("@")[0].partition("://")[2])[1:]
    pieces += re.findall(r"password=([^&]*)", dsn)
    return [each for piece in pieces if piece for each in {piece, unquote(piece)}]


def explained(error: Exception, dsn: str, *, was_sent: bool) -> StoreError | InvalidConfig:
    """Return the error that says what the database said, and what to do, without the password."""
    if isinstance(error, StoreError | InvalidConfig):
        return error
    said = str(error).partition("\n")[0] or type(error).__name__
    if any(secret in said for secret in _secrets(dsn)):
        said = type(error).__name__
    if _is_broken(error):
        known = "whether the last step was saved is not known" if was_sent else "nothing was begun"
        return StoreUnreachable(
            f"PostgreSQL does not answer ({said}): {known}; see that it runs, then send it again "
            "with the same turnId"
        )
    if isinstance(error, _asyncpg().ClientConfigurationError | ValueError | OverflowError):
        return InvalidConfig(f"the DSN cannot be used ({said}): postgresql://user@host/database")
    state = str(getattr(error, "sqlstate", None) or "")
    for prefix, hint in _REFUSED.items():
        if state.startswith(prefix):
            return StoreUnwritable(f"PostgreSQL refused ({said}): {hint}")
    return StoreError(f"PostgreSQL said {said} ({state or type(error).__name__})")
