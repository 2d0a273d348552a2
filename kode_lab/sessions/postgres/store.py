"""Sessions in PostgreSQL: for as many processes and machines as share one database.

It puts the parts together: the worker that this process is, the leases that it holds, and the
conversations, whose steps and turns travel to the database in batches, all sessions of the process
together. Every step is refused there unless its fence is still the newest, in the statement that
saves it, so a holder that was paused past its time, or cut off, writes nothing after another one
came. What is acknowledged survives what the database survives.

It never knows what a turn says. Reads go to the database that is written to.

Source: the design was chosen by measurement over advisory locks, row locks, Redis, NATS, Restate
and DBOS; fencing tokens, Kleppmann 2016.
"""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Sequence
from typing import Any, Self

from kode_lab.errors import SessionDamaged, StaleLease, StoreError, StoreUnreachable
from kode_lab.key import SessionKey
from kode_lab.message import Message
from kode_lab.sessions.files.format import decode
from kode_lab.sessions.group_commit import GroupCommit
from kode_lab.sessions.lock import LockStatistics
from kode_lab.sessions.open_turn import Finished, OpenTurn
from kode_lab.sessions.postgres.connection import PostgresLink
from kode_lab.sessions.postgres.leases import PostgresLeases
from kode_lab.sessions.postgres.rows import Known, Row, step_row, stored_of, text, turn_row, untext
from kode_lab.sessions.postgres.schema import SCHEMA, checked_name, migrate
from kode_lab.sessions.postgres.wait_queue import Line
from kode_lab.sessions.postgres.worker import PostgresWorker
from kode_lab.sessions.store import Lease, Stored

__all__ = ["PostgresStore", "migrate_database"]

_WARM_SESSIONS = 10_000


class PostgresStore:
    """The sessions of one schema in one database, as one of its workers.

    It opens itself with the first call; ``open`` does it at once, to hear of errors early.

    Args:
        dsn: as libpq understands it: ``postgresql://user:password@host:port/database``.
        schema: made if it is not there; several can share a database.
        ttl_s: how long a worker that is paused or cut off keeps its sessions from others; all
            workers must say the same; None takes what the schema says (30 s when it is made).
        warm_sessions_limit: how many sessions stay with this worker between their turns.
        patience_s: how long a database that does not answer is tried again.
        address: where this worker's server answers, for the other workers.

    Raises:
        InvalidConfig: the DSN cannot be used, or ``ttl_s`` is not what the others share.
        StoreUnreachable: the database does not answer.
        StoreUnwritable: the role may not, or the database is read-only.
        NewerFormat: a newer kode_lab made the schema.
    """

    def __init__(
        self,
        dsn: str,
        *,
        schema: str = SCHEMA,
        ttl_s: float | None = None,
        warm_sessions_limit: int = _WARM_SESSIONS,
        patience_s: float = 10.0,
        address: str | None = None,
    ) -> None:
        checked_name(schema)
        self._worker = PostgresWorker(
            dsn,
            schema=schema,
            ttl_s=ttl_s,
            address=address,
            patience_s=patience_s,
        )
        self._work = PostgresLink(dsn, schema=schema, patience_s=patience_s)
        self._saving = PostgresLink(dsn, schema=schema, patience_s=patience_s)
        self._leases = PostgresLeases(self._worker, self._work, limit=warm_sessions_limit)
        self._saves: GroupCommit[Row, None] = GroupCommit(self._save, may_be_one=_may_be_one)
        self._loads: GroupCommit[tuple[int, str], list[Any]] = GroupCommit(self._load)

    async def open(self) -> Self:
        """Connect now, and say what is wrong; doing it twice does nothing."""
        await self._worker.open()
        return self

    async def __aenter__(self) -> Self:
        return await self.open()

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    @property
    def worker_id(self) -> int:
        """The number of this worker in the database, 0 before it is open."""
        return self._worker.id

    @property
    def is_ready(self) -> bool:
        """Whether the database answers, as far as this side knows."""
        return self._worker.is_sure

    async def hold(self, key: SessionKey, *, queue_limit: int) -> Lease:
        """Return the lease of the session, after everyone who asked before, in any process.

        Raises:
            WaitingRoomFull: ``queue_limit`` wait already, or it is 0 and a turn is running.
            StoreUnreachable: the database does not answer; nothing was begun.
        """
        if not self._worker.id:
            await self._worker.open()
        return await self._leases.hold(key, queue_limit=queue_limit)

    def release(self, lease: Lease) -> None:
        """End the lease; ending it twice does nothing."""
        self._leases.release(lease)

    async def load(self, lease: Lease) -> Stored:
        """Return what rests of the session.

        Raises:
            StaleLease: somebody held the session since.
            SessionDamaged: a row is not what this store writes.
            StoreUnreachable: the database does not answer.
        """
        line = self._line(lease)
        rows = await self._loads.do((line.id, text(lease.key.agent_id)))
        try:
            stored, known = stored_of(rows)
        except (ValueError, KeyError, TypeError, IndexError) as error:
            raise SessionDamaged(
                f"{lease.key}: conversation {rows[0]['conversation']} in the database cannot be "
                f"read ({error}); nothing was changed: mend or delete its rows"
            ) from error
        self._line(lease).known[lease.key.agent_id] = known
        return stored

    async def journal(self, lease: Lease, turn: OpenTurn, entry: dict[str, Any]) -> None:
        """Save one step of the turn; when it returns, the step survives.

        Raises:
            StaleLease: somebody held the session since.
            StoreUnreachable: no answer; the step may be saved or not.
            StoreUnwritable: the database refused.
        """
        line, known = await self._where(lease)
        entries = [entry] if known.steps else [turn.opening(lease.fence), entry]
        row = step_row(line.id, lease.fence, known, entries)
        known.steps += 1  # the turn's other tool calls come after this one
        await self._saved(lease, line, self._saves.do(row))

    async def append(
        self, lease: Lease, turn: OpenTurn, entries: Sequence[dict[str, Any]]
    ) -> Finished:
        """Append the turn's messages, all or nothing; its steps end with it.

        The ``entries`` need no row of their own: one statement brings the turn and ends its steps.

        Raises:
            StaleLease: somebody held the session since; nothing was appended.
            StoreUnreachable: no answer; the turn may be appended, whole, or not.
            StoreUnwritable: the database refused.
        """
        del entries
        line, known = await self._where(lease)
        row = turn_row(line.id, lease.fence, known, turn)
        await self._saved(lease, line, self._saves.do(row))
        known.turns, known.messages, known.steps = known.turns + 1, row.last + 1, 0
        return Finished(turn.turn_id, row.first, row.last, turn.is_sealed, turn.usage, turn.version)

    async def discard(self, lease: Lease) -> None:
        """Forget the unfinished turn."""
        await self._forget(lease, is_all=False)

    async def delete(self, lease: Lease) -> None:
        """Forget the conversation; the fence goes on growing."""
        await self._forget(lease, is_all=True)

    async def peek(self, key: SessionKey) -> list[Message]:
        """Return the conversation for reading only, without waiting for its holder."""
        await self._worker.open()
        rows = await self._work.fetch(_PEEK, *map(text, key))
        return [message for row in rows for message in decode(row[0].encode())]

    async def sessions(self, user_id: str | None = None) -> list[SessionKey]:
        """Return the sessions that rest here, of one user or of all, in no promised order."""
        await self._worker.open()
        rows = await self._work.fetch(_SESSIONS, None if user_id is None else text(user_id))
        return [SessionKey(*map(untext, row)) for row in rows]

    async def has(self, key: SessionKey) -> bool:
        """Say whether something of this session rests here."""
        await self._worker.open()
        return bool(await self._work.fetch(_HAS, *map(text, key)))

    def statistics(self) -> LockStatistics:
        """Return what the locks of this process are doing."""
        return self._leases.statistics()

    async def aclose(self) -> None:
        """Return everything back; leases that are still out are void."""
        with contextlib.suppress(StoreError):
            await self._saves.settled()
        await self._leases.aclose()
        await self._worker.aclose()
        await self._work.aclose()
        await self._saving.aclose()

    # ---- inside

    def _line(self, lease: Lease) -> Line:
        line = self._leases.line(lease)
        if line is None:
            raise _stale(lease)
        return line

    async def _where(self, lease: Lease) -> tuple[Line, Known]:
        """Return where the session and its conversation are; without a load it is looked up."""
        line = self._line(lease)
        known = line.known.get(lease.key.agent_id)
        if known is None:
            await self.load(lease)
            line = self._line(lease)
            known = line.known[lease.key.agent_id]
        return line, known

    async def _saved(self, lease: Lease, line: Line, saving: Awaitable[None]) -> None:
        """Wait for what is on its way; where its end is not known, look again before going on."""
        try:
            await saving
        except StaleLease:
            if self._leases.line(lease) is line:
                self._leases.lost(line)
            raise _stale(lease) from None
        except BaseException:
            line.known.pop(lease.key.agent_id, None)
            raise

    async def _forget(self, lease: Lease, *, is_all: bool) -> None:
        line, known = await self._where(lease)
        rows = await self._saving.fetch(
            "SELECT forget($1, $2, $3, $4)", line.id, lease.fence, known.id, is_all
        )
        if not rows[0][0]:
            self._leases.lost(line)
            raise _stale(lease)
        known.steps = 0
        if is_all:
            known.turns = known.messages = 0

    async def _save(self, rows: Sequence[Row]) -> list[Exception | None]:
        columns = [list(column) for column in zip(*rows, strict=True)]
        refused = {row[0] for row in await self._saving.fetch(_SAVE, *columns)}
        answers: list[Exception | None] = [None] * len(rows)
        for place in refused:
            # It may be the second sending, whose first went down before another one came.
            row = rows[place - 1]
            query = _WAS_STEP_SAVED if row.turn_id is None else _WAS_TURN_SAVED
            if not await self._saving.fetch(query, row.conversation, row.number, row.fence):
                answers[place - 1] = StaleLease()
        return answers

    async def _load(self, orders: Sequence[tuple[int, str]]) -> list[list[Any]]:
        columns = [list(column) for column in zip(*orders, strict=True)]
        answers: list[list[Any]] = [[] for _ in orders]
        for row in await self._work.fetch("SELECT * FROM load($1, $2)", *columns):
            answers[row[0] - 1].append(row)
        return answers


async def migrate_database(dsn: str, *, schema: str = SCHEMA, ttl_s: float | None = None) -> str:
    """Make the schema in the database, or bring it up to date, and give a sentence that says so.

    Raises:
        InvalidConfig: the DSN, the schema's name or ``ttl_s`` cannot be used.
        StoreError: the database does not answer, refuses, or was made by a newer kode_lab.
    """
    said: list[str] = []

    async def prepare(connection: Any) -> None:
        said.append(await migrate(connection, schema=schema, ttl_s=ttl_s))

    link = PostgresLink(dsn, schema=schema, prepare=prepare)
    try:
        await link.fetch("SELECT")
    finally:
        await link.aclose()
    return said[-1]


def _stale(lease: Lease) -> StaleLease:
    return StaleLease(
        f"{lease.key}: the lease was released, or somebody held the session since (fence "
        f"{lease.fence}); nothing was written: send the turn again with the same turnId"
    )


def _may_be_one(error: Exception) -> bool:
    """Whether a row, and not the connection or the disk, made the whole batch fail."""
    return isinstance(error, StoreError) and not isinstance(error, StoreUnreachable)


_SAVE = "SELECT * FROM save($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13)"
_WAS_TURN_SAVED = "SELECT FROM turn WHERE conversation = $1 AND number = $2 AND fence = $3"
_WAS_STEP_SAVED = "SELECT FROM step WHERE conversation = $1 AND number = $2 AND fence = $3"
_PEEK = """
    SELECT t.messages::text FROM session s
    JOIN conversation c ON c.session = s.id AND md5(c.agent_id) = md5($3) AND c.agent_id = $3
    JOIN turn t ON t.conversation = c.id
    WHERE md5(s.user_id) = md5($1) AND md5(s.session_id) = md5($2)
        AND s.user_id = $1 AND s.session_id = $2
    ORDER BY t.number"""
_HAS = """
    SELECT FROM session s
    JOIN conversation c ON c.session = s.id AND md5(c.agent_id) = md5($3) AND c.agent_id = $3
    WHERE md5(s.user_id) = md5($1) AND md5(s.session_id) = md5($2)
        AND s.user_id = $1 AND s.session_id = $2
        AND (EXISTS (SELECT FROM turn t WHERE t.conversation = c.id)
            OR EXISTS (SELECT FROM step t WHERE t.conversation = c.id))"""
_SESSIONS = """
    SELECT s.user_id, s.session_id, c.agent_id FROM session s
    JOIN conversation c ON c.session = s.id
    WHERE ($1::text IS NULL OR (md5(s.user_id) = md5($1) AND s.user_id = $1))
        AND (EXISTS (SELECT FROM turn t WHERE t.conversation = c.id)
            OR EXISTS (SELECT FROM step t WHERE t.conversation = c.id))"""
