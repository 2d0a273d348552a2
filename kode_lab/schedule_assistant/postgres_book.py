"""The schedule book in PostgreSQL: for workers on several machines, beside their sessions.

It promises what ``ScheduleBook`` does: ids of one sequence, schedules that only their user sees,
and a change under an idempotency key that is made once, in the transaction that records its answer.
Each change is one function of the database, and the key makes it once even if it is sent again.

Tools block in threads of their own, and a connection belongs to a loop: one thread runs that loop.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine
from typing import Any, NoReturn, Self, TypeVar

from kode_lab.errors import InvalidSchedule
from kode_lab.schedule_assistant.schedule import (
    FIRST_ID,
    SCHEDULE_LIMIT,
    Schedule,
    checked_change,
    checked_entry,
    day_bounds,
    having,
)
from kode_lab.sessions.postgres.connection import PostgresConnection
from kode_lab.sessions.postgres.leases import sql_text as words
from kode_lab.sessions.postgres.schema import SCHEMA, checked_name

__all__ = ["PostgresBook"]

T = TypeVar("T")
_ID_LIMIT = 2**63
_MIGRATION_LOCK = 0x626F6F6B


class PostgresBook:
    """The book of one schema in one database; it is made where there is none.

    Every method blocks for a moment; call it from a thread.

    Args:
        dsn: as libpq understands it.
        schema: where the sessions are, too.
        patience_s: how long a database that does not answer is retried.
    """

    def __init__(self, dsn: str, *, schema: str = SCHEMA, patience_s: float = 10.0) -> None:
        self._schema = checked_name(schema)
        self._connection = PostgresConnection(
            dsn, schema=schema, prepare=self._prepare, patience_s=patience_s
        )
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(
            target=self._loop.run_forever, name="kode-lab-book", daemon=True
        )
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def open(self) -> None:
        """Connect now and create what is missing; the first change would do the same.

        Raises:
            StoreError: the database cannot be used.
        """
        self._run(self._connection.fetch("SELECT"))

    def create(
        self,
        user_id: str,
        title: str,
        start: str,
        end: str | None = None,
        *,
        idempotency_key: str,
    ) -> Schedule:
        """Enter a schedule; without ``end`` it lasts an hour.

        Raises:
            InvalidSchedule: the title or a time cannot be used, the user has ``SCHEDULE_LIMIT``
                schedules, or the key was used for another change.
            StoreUnreachable: the database does not answer.
        """
        title, start, end = checked_entry(title, start, end)
        return self._once(user_id, idempotency_key, "create", None, title, start, end)

    def query(
        self, user_id: str, day: str | None = None, text: str | None = None
    ) -> list[Schedule]:
        """Return the user's schedules by start: on ``day``, with ``text`` in the title.

        Raises:
            InvalidSchedule: ``day`` is not a date.
        """
        first, after = (None, None) if day is None else day_bounds(day)
        rows = self._run(self._connection.fetch(_QUERY, words(user_id), first, after))
        return having(text, (Schedule(*row) for row in rows))

    def update(
        self,
        user_id: str,
        schedule_id: int,
        *,
        title: str | None = None,
        start: str | None = None,
        end: str | None = None,
        idempotency_key: str,
    ) -> Schedule:
        """Change what is given; a new ``start`` without ``end`` keeps the length.

        Raises:
            InvalidSchedule: nothing is to be changed, the user has no such schedule, or as
                ``create``.
        """
        title, start, end = checked_change(title, start, end)
        return self._once(user_id, idempotency_key, "update", schedule_id, title, start, end)

    def delete(self, user_id: str, schedule_id: int, *, idempotency_key: str) -> Schedule:
        """Remove a schedule and return what it was.

        Raises:
            InvalidSchedule: the user has no such schedule, or the key was used for another change.
        """
        return self._once(user_id, idempotency_key, "delete", schedule_id, None, None, None)

    def close(self) -> None:
        """Close the book; it is not used again."""
        if self._thread.is_alive():
            self._run(self._connection.aclose())
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop.close()

    def _once(
        self,
        user_id: str,
        key: str,
        what: str,
        schedule_id: int | None,
        title: str | None,
        start: str | None,
        end: str | None,
    ) -> Schedule:
        """Make the change under its key, or return the answer of the first time."""
        if schedule_id is not None and not 0 < schedule_id < _ID_LIMIT:
            _refuse("none", schedule_id, key, "")
        change = (what, schedule_id, title, start, end)
        row = self._run(self._connection.fetch(_CHANGE, words(user_id), words(key), *change))[0]
        if row[0] is not None:
            _refuse(row[0], schedule_id, key, row[4])
        return Schedule(*row[1:])

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    async def _prepare(self, connection: Any) -> None:
        """Create what is missing; several workers may do this at once."""
        async with connection.transaction():
            await connection.execute("SELECT pg_advisory_xact_lock($1)", _MIGRATION_LOCK)
            # Not to_regproc: it may answer from a cache that is older than the wait for the lock.
            if not await connection.fetchval(_IS_MADE, self._schema):
                await connection.execute(f"CREATE SCHEMA IF NOT EXISTS {self._schema}")
                await connection.execute(_TABLES)


def _refuse(problem: str, schedule_id: int | None, key: str, end: str | None) -> NoReturn:
    """Raise what the database found wrong, in the words of the SQLite book."""
    raise InvalidSchedule(
        {
            "key": f"the idempotency key {key!r:.80} was used for another change",
            "full": f"the book is full: delete schedules first (SCHEDULE_LIMIT={SCHEDULE_LIMIT})",
            "none": f"there is no schedule {schedule_id}: query to see which there are",
            "late": "it would end after the year 9999: choose an earlier start",
            "order": f"it would end at {end}, not after its start",
        }[problem]
    )


_IS_MADE = """
    SELECT EXISTS (SELECT FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace
        WHERE n.nspname = $1 AND p.proname = 'change_schedule')"""
_CHANGE = "SELECT * FROM change_schedule($1, $2, $3, $4, $5, $6, $7)"
_QUERY = """
    SELECT id, title, start, "end" FROM schedule
    WHERE md5(user_id) = md5($1) AND user_id = $1
        AND ($2::text IS NULL OR (start < $3 AND "end" > $2))
    ORDER BY start, id"""

# Times are text of one length, so their order is that of time. A failed change keeps no answer.
_TABLES = f"""
CREATE TABLE schedule (
    id      bigint GENERATED ALWAYS AS IDENTITY (START WITH {FIRST_ID}) PRIMARY KEY,
    user_id text COLLATE "C" NOT NULL,
    title   text COLLATE "C" NOT NULL,
    start   text COLLATE "C" NOT NULL,
    "end"   text COLLATE "C" NOT NULL
);
CREATE INDEX schedule_of_user ON schedule (md5(user_id), start);
CREATE TABLE schedule_answer (
    user_id text COLLATE "C" NOT NULL,
    key     text COLLATE "C" NOT NULL,
    request text NOT NULL,
    id      bigint,
    title   text,
    start   text,
    "end"   text
);
CREATE UNIQUE INDEX schedule_answer_of_key ON schedule_answer (md5(user_id), md5(key));

CREATE FUNCTION change_schedule(
    who text, under text, what text, which bigint, new_title text, new_start text, new_end text
) RETURNS TABLE (problem text, id bigint, title text, start text, "end" text)
LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
    asked text := concat_ws(' ', what, which, quote_nullable(new_title), quote_nullable(new_start),
        quote_nullable(new_end));
    old schedule;
    s schedule;
    a schedule_answer;
    moved timestamp;
BEGIN
    PERFORM pg_advisory_xact_lock(hashtextextended(who, {FIRST_ID}));
    SELECT * INTO a FROM schedule_answer
        WHERE md5(user_id) = md5(who) AND md5(key) = md5(under) AND user_id = who AND key = under;
    IF FOUND THEN
        RETURN QUERY SELECT CASE WHEN a.request <> asked THEN 'key' END,
            a.id, a.title, a.start, a."end";
        RETURN;
    END IF;
    IF what = 'create' THEN
        IF (SELECT count(*) FROM schedule WHERE md5(user_id) = md5(who) AND user_id = who)
                >= {SCHEDULE_LIMIT} THEN
            RETURN QUERY SELECT 'full', NULL::bigint, NULL, NULL, NULL;
            RETURN;
        END IF;
        INSERT INTO schedule (user_id, title, start, "end")
            VALUES (who, new_title, new_start, new_end) RETURNING * INTO s;
    ELSE
        SELECT * INTO old FROM schedule WHERE schedule.id = which AND user_id = who;
        IF NOT FOUND THEN
            RETURN QUERY SELECT 'none', NULL::bigint, NULL, NULL, NULL;
            RETURN;
        END IF;
        s := old;
        IF what = 'delete' THEN
            DELETE FROM schedule WHERE schedule.id = which;
        ELSE
            s.title := coalesce(new_title, old.title);
            s.start := coalesce(new_start, old.start);
            IF new_end IS NOT NULL THEN
                s."end" := new_end;
            ELSE
                moved := s.start::timestamp + (old."end"::timestamp - old.start::timestamp);
                s."end" := to_char(moved, 'YYYY-MM-DD"T"HH24:MI');
                IF moved >= '10000-01-01' THEN
                    RETURN QUERY SELECT 'late', NULL::bigint, NULL, NULL, NULL;
                    RETURN;
                END IF;
            END IF;
            IF s.start >= s."end" THEN
                RETURN QUERY SELECT 'order', NULL::bigint, NULL, NULL, s."end";
                RETURN;
            END IF;
            UPDATE schedule SET title = s.title, start = s.start, "end" = s."end"
                WHERE schedule.id = which;
        END IF;
    END IF;
    INSERT INTO schedule_answer VALUES (who, under, asked, s.id, s.title, s.start, s."end");
    RETURN QUERY SELECT NULL, s.id, s.title, s.start, s."end";
END $$;
"""  # noqa: S608 - two numbers
