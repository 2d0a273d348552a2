"""Sessions in PostgreSQL: for as many processes and machines as share one database.

Steps and turns of all sessions of this process travel to the database in batches. Each write
carries the fence of its holder and the number of the turn that it expects, and is refused in the
statement that saves it unless both are still right. So a holder that was overtaken writes nothing,
and neither does a statement that arrives long after its sender gave up. What is acknowledged
survives what the database survives.

This file owns rows and their statements. It never knows what a turn says. Reads go to the database
that is written to.

Source: the design was chosen by measurement over advisory locks, row locks, Redis, NATS, Restate
and DBOS; fencing tokens, Kleppmann 2016.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections import OrderedDict
from collections.abc import Awaitable, Mapping, Sequence
from typing import Any, NamedTuple, Self

from kode_lab.errors import SessionDamaged, StaleLease, StoreError, StoreUnreachable, TurnsMissing
from kode_lab.key import SessionKey
from kode_lab.message import Message, Usage
from kode_lab.sessions.conversation import decode, encode
from kode_lab.sessions.lock import LockStatistics
from kode_lab.sessions.open_turn import Finished, OpenTurn
from kode_lab.sessions.postgres.connection import PostgresConnection
from kode_lab.sessions.postgres.group_commit import GroupCommit
from kode_lab.sessions.postgres.leases import LocalSession, PostgresLeases, name_hash, sql_text
from kode_lab.sessions.postgres.schema import FENCES, SCHEMA, checked_name, migrate
from kode_lab.sessions.postgres.worker import PostgresWorker
from kode_lab.sessions.store import Lease, Stored, UserMemory

__all__ = ["Known", "PostgresStore", "Write", "migrate_database", "save_query", "turn_write"]

_NO_FACTS: dict[str, Any] = {}
_REWOUND = (False, Usage(), "", True)
_LOG = logging.getLogger("kode_lab.sessions")
_WARM_SESSIONS = 10_000
# Leases need no sync of their own: a turn is saved after them, and its sync takes them along. What
# a crash of the database takes back was never written under.
_LEASE_SETTINGS = {"synchronous_commit": "off"}


class PostgresStore:
    """The sessions of one schema in one database, as one of its workers.

    It opens itself with the first call; ``open`` does it at once, to see errors early.

    Args:
        dsn: as libpq understands it: ``postgresql://user:password@host:port/database``.
        schema: made if it is not there; several can share a database.
        ttl_s: how long a worker that is paused or cut off keeps its sessions from others; all
            workers must say the same; None takes what the schema says (30 s when it is made).
        warm_sessions_limit: how many sessions stay with this worker between their turns.
        patience_s: how long a database that does not answer is retried.
        address: where this worker's server answers, for the other workers.

    Raises:
        InvalidConfig: the DSN cannot be used, ``ttl_s`` is not what the others share, or a pooler
            does not keep one server connection for each client.
        StoreUnreachable: the database does not answer.
        StoreUnwritable: the role may not write, or the database is read-only.
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
        self._work = PostgresConnection(
            dsn, schema=schema, settings=_LEASE_SETTINGS, patience_s=patience_s
        )
        self._saving = PostgresConnection(dsn, schema=schema, patience_s=patience_s)
        self._leases = PostgresLeases(self._worker, self._work, limit=warm_sessions_limit)
        self._saves: GroupCommit[Write, None] = GroupCommit(self._save, may_be_one=_may_be_one)
        self._loads: GroupCommit[_Load, list[Any]] = GroupCommit(self._load)
        # What was known of a conversation when its last lease here ended, and that lease's fence.
        self._left: OrderedDict[SessionKey, tuple[int, Known]] = OrderedDict()
        self._left_limit = warm_sessions_limit

    async def open(self) -> Self:
        """Connect now, and raise what is wrong; doing it twice does nothing."""
        await self._worker.open()
        return self

    async def __aenter__(self) -> Self:
        return await self.open()

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    @property
    def worker_id(self) -> int:
        """The id of this worker in the database, 0 before it is open."""
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
        local = self._leases.local(lease)
        if local is not None and (known := local.known.get(lease.key.agent_id)) is not None:
            self._left[lease.key] = (lease.fence, known)
            self._left.move_to_end(lease.key)
            if len(self._left) > self._left_limit:
                self._left.popitem(last=False)
        self._leases.release(lease)

    async def load(self, lease: Lease) -> Stored:
        """Return what is stored of the session; raises what ``load_since`` raises."""
        return (await self.load_since(lease, 0))[0]

    async def load_since(self, lease: Lease, since: int) -> tuple[Stored, bool]:
        """Return what came since an earlier lease of this worker, and whether it is only that.

        It is all that is stored where the lease is not known, or what was there has changed.

        Raises:
            StaleLease: another worker held the session since.
            TurnsMissing: turns that this worker saved are gone; the next load returns what is left.
            SessionDamaged: a row is not what this store writes.
            StoreUnreachable: the database does not answer.
        """
        local, agent_id = self._local(lease), lease.key.agent_id
        before: Known | None = local.known.get(agent_id)
        # The first load of an epoch needs no higher fence: nothing was sent before it.
        fence = local.write_fence if not local.known else local.raised_fence()
        at, left = self._left.get(lease.key, (0, None))
        if left is None or at != since or not left.is_certain:
            left = Known(0)
        order = (left.turns, left.fence, left.revision)
        where = (local.id, fence, sql_text(agent_id), name_hash(agent_id))
        rows = await self._loads.do(_Load(*where, *order))
        if not rows:
            self._lose(lease, local)
            raise _stale(lease)
        try:
            stored, known = stored_of(rows, left)
        except (ValueError, KeyError, TypeError, IndexError) as error:
            raise SessionDamaged(
                f"{lease.key}: conversation {rows[0]['conversation']} in the database cannot be "
                f"read ({error}); nothing was changed: correct or delete its rows"
            ) from error
        self._local(lease).known[agent_id] = known
        before = before or self._leases.rolled_back.pop(tuple(lease.key), None)
        if before is not None and known.turns < before.turns:
            raise _missing(lease, known.turns, before)
        return stored, rows[0]["number"] > 0

    async def journal(self, lease: Lease, turn: OpenTurn, entry: dict[str, Any]) -> None:
        """Save one step of the turn; when it returns, the step survives.

        Raises:
            StaleLease: another worker held the session since.
            TurnsMissing: turns that this worker saved are gone.
            StoreUnreachable: no answer; the step may be saved or not.
            StoreUnwritable: the database refused.
        """
        local, known = await self._where(lease)
        entries = [entry] if known.steps else [turn.opening(lease.fence), entry]
        row = step_write(local, known, entries)
        known.steps += 1  # the turn's other tool calls come after this one
        await self._saved(lease, local, known, self._saves.do(row))

    async def append(
        self, lease: Lease, turn: OpenTurn, entries: Sequence[dict[str, Any]]
    ) -> Finished:
        """Append the turn's messages, all or nothing; its steps end with it.

        The ``entries`` need no row of their own: one statement saves the turn and ends its steps.

        Raises:
            StaleLease: another worker held the session since; nothing was appended.
            TurnsMissing: turns that this worker saved are gone; nothing was appended.
            StoreUnreachable: no answer; the turn may be appended, whole, or not.
            StoreUnwritable: the database refused.
        """
        del entries
        local, known = await self._where(lease)
        row = turn_write(local, known, turn)
        await self._saved(lease, local, known, self._saves.do(row))
        known.took(row)
        return turn.finished(row.first)

    async def discard(self, lease: Lease) -> None:
        """Forget the unfinished turn."""
        await self._forget(lease, is_all=False)

    async def delete(self, lease: Lease) -> None:
        """Forget the conversation; the fence goes on growing."""
        await self._forget(lease, is_all=True)

    async def rewind(
        self, lease: Lease, count: int, rewind_id: str, turn_ids: Sequence[str]
    ) -> None:
        """Keep the first ``count`` messages; the ids of removed turns stay known."""
        local, known = await self._where(lease)
        facts = encode({"rewound": [*turn_ids]}).decode()
        arguments = (known.turns, known.fence, count, sql_text(rewind_id), facts)
        fence = await self._changed(lease, local, known, "rewind", *arguments)
        known.turns, known.messages, known.steps = known.turns + 1, count, 0
        known.fence, known.last_turn_id = fence, rewind_id

    async def fill(
        self, lease: Lease, messages: Sequence[Message], turns: Sequence[Finished]
    ) -> None:
        """Save a whole conversation in a session that has none, all or nothing."""
        local, known = await self._where(lease)
        columns = [list(column) for column in zip(*_filling(messages, turns), strict=True)]
        await self._changed(lease, local, known, "fill", *columns)
        known.is_certain = False  # the next write reads what there is

    async def amend(self, lease: Lease, at: int, message: Message) -> None:
        """Replace message ``at`` of the conversation."""
        local, known = await self._where(lease)
        await self._changed(lease, local, known, "amend", at, encode(message).decode())

    async def read_memory(self, user_id: str) -> UserMemory:
        """Return what the sessions of a user share."""
        await self._worker.open()
        rows = await self._saving.fetch(_MEMORY, name_hash(user_id))
        return UserMemory(rows[0][0], decode(rows[0][1].encode())) if rows else UserMemory(0, {})

    async def write_memory(self, user_id: str, entries: Mapping[str, Any], *, version: int) -> bool:
        """Replace a user's memory if ``version`` is still the newest; return whether it was."""
        await self._worker.open()
        new = encode(dict(entries)).decode()
        query = "SELECT write_memory($1, $2, $3, $4, $5)"
        where = (sql_text(user_id), name_hash(user_id), version, os.urandom(12).hex())
        ((was_newest,),) = await self._saving.fetch(query, *where, new)
        return bool(was_newest)

    async def peek(self, key: SessionKey) -> list[Message]:
        """Return the conversation for reading only, without waiting for its holder."""
        await self._worker.open()
        rows = await self._work.fetch(_PEEK, *_found_by(key))
        return [message for row in rows for message in decode(row[0].encode())]

    async def sessions(self, user_id: str | None = None) -> list[SessionKey]:
        """Return the sessions that are stored here, of one user or of all, in any order."""
        await self._worker.open()
        rows = await self._work.fetch(_SESSIONS, None if user_id is None else sql_text(user_id))
        return [SessionKey(*map(_name_of, row)) for row in rows]

    async def has(self, key: SessionKey) -> bool:
        """Return whether anything of this session is stored here."""
        await self._worker.open()
        return bool(await self._work.fetch(_HAS, *_found_by(key)))

    def statistics(self) -> LockStatistics:
        """Return what the locks of this process are doing."""
        return self._leases.statistics()

    async def aclose(self) -> None:
        """Return everything; leases that are still out are void."""
        with contextlib.suppress(StoreError):
            await self._saves.settled()
        await self._leases.aclose()
        await self._worker.aclose()
        await self._work.aclose()
        await self._saving.aclose()

    # ---- inside

    def _local(self, lease: Lease) -> LocalSession:
        local = self._leases.local(lease)
        if local is None:
            raise _stale(lease)
        return local

    def _lose(self, lease: Lease, local: LocalSession) -> None:
        if self._leases.local(lease) is local:
            self._leases.lose(local)

    async def _where(self, lease: Lease) -> tuple[LocalSession, Known]:
        """Return the session and what is known of its conversation, read again if in doubt."""
        local, agent_id = self._local(lease), lease.key.agent_id
        known = local.known.get(agent_id)
        if known is not None and known.is_certain:
            return local, known
        async with local.reading:  # else two tool calls would count their steps alike
            if local is not self._local(lease):
                raise _stale(lease)
            known = local.known.get(agent_id)
            if known is None or not known.is_certain:
                await self.load(lease)
            return self._local(lease), local.known[agent_id]

    async def _saved(
        self, lease: Lease, local: LocalSession, known: Known, saving: Awaitable[None]
    ) -> None:
        """Wait for what is on its way; after an error, the rows are read before the next write."""
        try:
            await saving
        except _Refusal as refusal:
            before = known.copy()
            known.is_certain, known.turns = False, min(known.turns, refusal.turns)
            if refusal.reason != "missing":
                self._lose(lease, local)
            if refusal.reason in ("missing", "older") and refusal.turns < before.turns:
                raise _missing(lease, refusal.turns, before) from None
            raise _stale(lease) from None
        except BaseException:
            known.is_certain = False
            raise

    async def _changed(
        self, lease: Lease, local: LocalSession, known: Known, function: str, *arguments: Any
    ) -> int:
        """Call a function that raises the fence, and return the new one."""
        under, becomes = local.write_fence, local.raised_fence()
        known.is_certain = False
        places = ", ".join(f"${number}" for number in range(1, 6 + len(arguments)))
        ((is_done,),) = await self._saving.fetch(
            f"SELECT {function}({places})",
            *(self._worker.id, local.id, under, becomes, known.id),
            *arguments,
        )
        if not is_done:
            self._lose(lease, local)
            raise _stale(lease)
        known.is_certain = True
        return becomes

    async def _forget(self, lease: Lease, *, is_all: bool) -> None:
        local, known = await self._where(lease)
        await self._changed(lease, local, known, "forget", is_all)
        known.steps = 0
        if is_all:
            known.turns = known.messages = known.fence = 0

    async def _save(self, rows: Sequence[Write]) -> list[Exception | None]:
        me, answers = self._worker.id, list[Exception | None]([None] * len(rows))
        for kind in dict.fromkeys(row.kind for row in rows):
            places = sorted(
                (place for place, row in enumerate(rows) if row.kind is kind),
                key=lambda place: rows[place].session,
            )
            if len(places) == 1:
                query, arguments = _SAVE_ONE[kind], kind.of(rows[places[0]])
            else:
                query = _SAVE_MANY[kind]
                columns = zip(*(kind.of(rows[place]) for place in places), strict=True)
                arguments = [list(column) for column in columns]
            saved = {(row[0], row[1]) for row in await self._saving.fetch(query, me, *arguments)}
            for place in places:
                row = rows[place]
                if (row.conversation, row.number) not in saved:
                    answers[place] = await self._refused(row)
        return answers

    async def _refused(self, row: Write) -> Exception | None:
        """Return why a row was refused; None where an earlier sending had saved it."""
        ((reason, turns),) = await self._saving.fetch(
            "SELECT * FROM refusal($1, $2, $3, $4, $5, $6, $7, $8)",
            self._worker.id,
            row.session,
            row.fence,
            row.conversation,
            row.turn,
            row.number,
            row.turn_id,
            row.body,
        )
        return None if reason == "saved" else _Refusal(reason, turns)

    async def _load(self, orders: Sequence[_Load]) -> list[list[Any]]:
        places = sorted(range(len(orders)), key=orders.__getitem__)
        columns = [list(column) for column in zip(*(orders[n] for n in places), strict=True)]
        answers: list[list[Any]] = [[] for _ in orders]
        query = "SELECT * FROM load($1, $2, $3, $4, $5, $6, $7, $8)"
        for row in await self._work.fetch(query, self._worker.id, *columns):
            answers[places[row[0] - 1]].append(row)
        return answers


async def migrate_database(dsn: str, *, schema: str = SCHEMA, ttl_s: float | None = None) -> str:
    """Make the schema in the database, or bring it up to date; return a sentence that says so.

    Raises:
        InvalidConfig: the DSN, the schema's name or ``ttl_s`` cannot be used.
        StoreError: the database does not answer, refuses, or was made by a newer kode_lab.
    """
    checked_name(schema)
    said: list[str] = []

    async def prepare(connection: Any) -> None:
        said.append(await migrate(connection, schema=schema, ttl_s=ttl_s))

    connection = PostgresConnection(dsn, schema=schema, prepare=prepare)
    try:
        await connection.fetch("SELECT")
    finally:
        await connection.aclose()
    return said[-1]


# ---- refusals


class _Refusal(Exception):
    """A write was refused, for a reason of the schema's function; ``turns`` are there."""

    def __init__(self, reason: str, turns: int) -> None:
        super().__init__(reason)
        self.reason = reason
        self.turns = turns


def _stale(lease: Lease) -> StaleLease:
    return StaleLease(
        f"{lease.key}: the lease was released, or another worker held the session since (fence "
        f"{lease.fence}); nothing was written: send the turn again with the same turnId"
    )


def _missing(lease: Lease, turns: int, before: Known) -> TurnsMissing:
    error = TurnsMissing(
        f"{lease.key}: {before.turns} turns were saved, the last one {before.last_turn_id!r:.60}, "
        f"and the database has {turns}: it was set back to an earlier state (a restore, or a "
        "fail-over to a copy that lagged). Nothing was written now; the session goes on from turn "
        f"{turns}: send the turn again with the same turnId, and the missing ones if need be"
    )
    _LOG.warning("%s", error)
    return error


def _may_be_one(error: Exception) -> bool:
    """Return whether a row, and not the connection or the disk, made the whole batch fail."""
    return isinstance(error, StoreError) and not isinstance(error, StoreUnreachable)


# ---- rows


class Known:
    """What the holder of a conversation knows of its rows.

    Attributes:
        id: the conversation's number.
        turns: how many it has.
        messages: how many these hold.
        steps: rows of its unfinished turn.
        fence: of its last turn.
        revision: how often turns that are there were changed.
        is_certain: no write of ours has an unknown outcome.
    """

    __slots__ = (
        "fence",
        "id",
        "is_certain",
        "last_turn_id",
        "messages",
        "revision",
        "steps",
        "turns",
    )

    def __init__(self, number: int) -> None:
        self.id = number
        self.turns = self.messages = self.steps = self.fence = self.revision = 0
        self.last_turn_id = ""
        self.is_certain = True

    def took(self, row: Write) -> None:
        """Note a turn that was saved."""
        self.turns, self.messages, self.steps = self.turns + 1, row.last + 1, 0
        self.fence = row.fence
        self.last_turn_id = row.turn_id or ""

    def copy(self) -> Known:
        """Return the same, on its own."""
        other = Known(self.id)
        for name in self.__slots__:
            setattr(other, name, getattr(self, name))
        return other


class _Load(NamedTuple):
    session: int
    fence: int
    agent: str
    hash: bytes
    turns: int
    before: int
    revision: int


class _Kind(NamedTuple):
    """One kind of write: the columns that its statement needs, and their types."""

    name: str
    columns: tuple[tuple[str, str], ...]

    def of(self, row: Write) -> list[Any]:
        """Return the row's values for these columns."""
        return [getattr(row, name) for name, _ in self.columns]


_WHERE = (
    ("session", "bigint"),
    ("fence", "bigint"),
    ("conversation", "bigint"),
    ("turn", "int"),
    ("before", "bigint"),
    ("number", "int"),
    ("body", "text"),
)
_TURN_COLUMNS = (
    *_WHERE,
    ("turn_id", "text"),
    ("first", "int"),
    ("last", "int"),
    ("is_sealed", "boolean"),
    ("version", "text"),
    ("input_tokens", "bigint"),
    ("output_tokens", "bigint"),
    ("facts", "text"),
)
_STEP = _Kind("step", _WHERE)
_TURN = _Kind("turn", _TURN_COLUMNS)
_TURN_WITH_STEPS = _Kind("turn with steps", _TURN_COLUMNS)


class Write(NamedTuple):
    """A step or a turn on its way.

    Attributes:
        fence: the holder's; the session's row must have no newer one.
        turn: the number of the turn, which must not exist yet.
        before: the fence of the turn before it, which must exist.
        number: of the step, or of the turn.
    """

    kind: _Kind
    session: int
    fence: int
    conversation: int
    turn: int
    before: int
    number: int
    body: str
    turn_id: str | None = None
    first: int = 0
    last: int = 0
    is_sealed: bool = False
    version: str = ""
    input_tokens: int = 0
    output_tokens: int = 0
    facts: str = "{}"


def step_write(local: LocalSession, known: Known, entries: Sequence[dict[str, Any]]) -> Write:
    """Return the row of one or more entries of the journal."""
    body = encode(entries).decode()
    at = (local.id, local.write_fence, known.id, known.turns, known.fence)
    return Write(_STEP, *at, known.steps, body)


def turn_write(local: LocalSession, known: Known, turn: OpenTurn) -> Write:
    """Return the row of a finished turn."""
    return Write(
        _TURN_WITH_STEPS if known.steps else _TURN,
        local.id,
        local.write_fence,
        known.id,
        known.turns,
        known.fence,
        known.turns,
        (b"[" + b",".join(turn.encoded) + b"]").decode(),
        sql_text(turn.turn_id),
        known.messages,
        known.messages + len(turn.messages) - 1,
        turn.is_sealed,
        sql_text(turn.version),
        turn.usage.input_tokens,
        turn.usage.output_tokens,
        encode(turn.facts).decode() if turn.facts else "{}",
    )


def _filling(messages: Sequence[Message], turns: Sequence[Finished]) -> list[tuple[Any, ...]]:
    """Return the columns of each turn of a copied conversation; the rest is in rows without id."""
    rows: list[tuple[Any, ...]] = []
    start = 0
    nothing = Finished("", 0, 0, False, Usage(), "")
    for turn in [*turns, nothing._replace(first=len(messages), last=len(messages) - 1)]:
        if turn.first > start:
            rows.append(_filled(messages, nothing._replace(first=start, last=turn.first - 1)))
        if turn.turn_id:
            rows.append(_filled(messages, turn))
        start = turn.last + 1
    return rows


def _filled(messages: Sequence[Message], turn: Finished) -> tuple[Any, ...]:
    body = encode(list(messages[turn.first : turn.last + 1])).decode()
    facts = encode(dict(turn.facts)).decode()
    where = (sql_text(turn.turn_id), turn.first, turn.last, turn.is_sealed, sql_text(turn.version))
    return (*where, *turn.usage, body, facts)


def stored_of(rows: Sequence[Any], left: Known) -> tuple[Stored, Known]:
    """Return what the rows of one conversation hold, and what its holder must know of them.

    Where the first row says so, they are only those after what was known before.

    Raises:
        ValueError, KeyError, TypeError, IndexError: it is not what this store writes.
    """
    known = left.copy() if rows[0]["number"] else Known(rows[0]["conversation"])
    known.revision, known.steps = rows[0]["last"], 0
    messages: list[Message] = []
    finished: dict[str, Finished] = {}
    open_turn: OpenTurn | None = None
    for row in rows[1:]:
        body = decode(row["body"].encode())
        if row["kind"] == "t":
            follows = row["is_rewound"] or row["first"] == known.messages + len(messages)
            if not follows or row["number"] != known.turns:
                raise ValueError(f"turn {row['number']} does not follow the one before")
            messages.extend(body)
            turn_id = _name_of(row["turn_id"])
            facts = decode(row["facts"].encode()) if row["facts"] != "{}" else _NO_FACTS
            for gone in facts.get("rewound", ()) if row["is_rewound"] else ():
                if gone not in finished:  # an unfinished turn
                    finished[gone] = Finished(gone, row["first"], row["last"], *_REWOUND)
            finished[turn_id] = Finished(
                turn_id,
                row["first"],
                row["last"],
                row["is_sealed"],
                Usage(row["input_tokens"], row["output_tokens"]),
                _name_of(row["version"]),
                row["is_rewound"],
                facts,
            )
            if not turn_id:  # messages of a fork that belong to no turn
                del finished[turn_id]
            known.turns += 1
            known.fence, known.last_turn_id = row["fence"], turn_id
            continue
        known.steps += 1
        for entry in body:
            if open_turn is None:
                open_turn = OpenTurn.reopened(entry)
            else:
                open_turn.replay(entry)
    known.messages += len(messages)
    return Stored(messages, finished, open_turn), known


def _name_of(word: str) -> str:
    """Return what ``sql_text`` was called with."""
    if "\\" not in word:
        return word
    return "\\".join(part.replace("\\0", "\0") for part in word.split("\\\\"))


def _found_by(key: SessionKey) -> tuple[str, bytes, bytes]:
    return sql_text(key.user_id), name_hash(*key[:2]), name_hash(key.agent_id)


# ---- statements


def save_query(kind: _Kind, *, is_many: bool) -> str:
    """Return the statement that saves one row of a kind, or arrays of them, if they are allowed.

    It returns conversation and number of each row that it saved. Not a function of the schema: one
    row costs a third less in this form.
    """
    places = [f"${number}::{kind_}" for number, (_, kind_) in enumerate(kind.columns, 2)]
    names = ", ".join(name for name, _ in kind.columns)
    if is_many:
        arrays = ", ".join(f"{place}[]" for place in places)
        source = f"unnest({arrays}) AS w ({names})"
    else:
        values = ", ".join(f"{p} AS {n}" for p, (n, _) in zip(places, kind.columns, strict=True))
        source = f"(SELECT {values}) AS w"
    if kind is _STEP:
        columns = "conversation, turn, number, fence, body::json"
        allowed = """NOT EXISTS (SELECT FROM turn t
                WHERE t.conversation = g.conversation AND t.number = g.turn)
            AND (g.number = 0 OR EXISTS (SELECT FROM step t WHERE t.conversation = g.conversation
                    AND t.turn = g.turn AND t.number = g.number - 1)
                OR EXISTS (SELECT FROM good o
                    WHERE o.conversation = g.conversation AND o.number = g.number - 1))"""
    else:
        columns = """conversation, turn, turn_id, fence, first, last, is_sealed, version,
            input_tokens, output_tokens, body::json, facts::json"""
        allowed = "true"
    query = f"""
    WITH good AS MATERIALIZED (
        SELECT w.* FROM {source} JOIN session s ON s.id = w.session
        WHERE s.holder = $1 AND s.fence <= w.fence AND s.fence / {FENCES} = w.fence / {FENCES}
        FOR NO KEY UPDATE OF s
    ), saved AS (
        INSERT INTO {"step" if kind is _STEP else "turn"} SELECT {columns} FROM good g
        WHERE (g.turn = 0 OR g.before = (SELECT t.fence FROM turn t
                WHERE t.conversation = g.conversation AND t.number = g.turn - 1))
            AND {allowed}
        ON CONFLICT DO NOTHING RETURNING conversation, number
    )"""  # noqa: S608 - names and types of this module
    if kind is _TURN_WITH_STEPS:
        query += """, ended AS (
        DELETE FROM step t USING saved WHERE t.conversation = saved.conversation
    )"""
    return query + " SELECT * FROM saved"  # noqa: S608 - as above


_SAVE_ONE = {k: save_query(k, is_many=False) for k in (_STEP, _TURN, _TURN_WITH_STEPS)}
_SAVE_MANY = {k: save_query(k, is_many=True) for k in (_STEP, _TURN, _TURN_WITH_STEPS)}
_CONVERSATION = """
    FROM session s JOIN conversation c ON c.session = s.id AND c.hash = $3"""
_THIS = "WHERE md5(s.user_id) = md5($1) AND s.hash = $2"
_IS_NOT_EMPTY = """
    (EXISTS (SELECT FROM turn t WHERE t.conversation = c.id)
        OR EXISTS (SELECT FROM step t WHERE t.conversation = c.id))"""
_PEEK = f"""
    SELECT t.messages::text {_CONVERSATION} JOIN turn t ON t.conversation = c.id
    {_THIS} ORDER BY t.number"""
_MEMORY = "SELECT version, entries::text FROM memory WHERE hash = $1"
_HAS = f"SELECT {_CONVERSATION} {_THIS} AND {_IS_NOT_EMPTY}"
_SESSIONS = f"""
    SELECT s.user_id, s.session_id, c.agent_id
    FROM session s JOIN conversation c ON c.session = s.id
    WHERE ($1::text IS NULL OR (md5(s.user_id) = md5($1) AND s.user_id = $1))
        AND {_IS_NOT_EMPTY}"""  # noqa: S608
