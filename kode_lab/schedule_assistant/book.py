"""The schedule book: all schedules in one SQLite database; each user sees only their own.

Ids come from one sequence for all users and are never used twice. A change carries an idempotency
key: repeated under the same key it changes nothing and returns the first answer, so that a turn
that continues after a crash may repeat its calls. The answer is recorded in the transaction that
makes the change, and is never deleted: a change whose answer is deleted could happen twice.

Several threads and several processes may use one file. What was answered survives the death of the
process; the last changes before a power cut may be missing, whole ones, never parts
(``synchronous=NORMAL``). It knows nothing of agents or sessions, only of users.

Source: ids from 13039 on are those of the concurrency report; https://sqlite.org/wal.html.
"""

from __future__ import annotations

import contextlib
import json
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from kode_lab.errors import InvalidSchedule, NewerFormat, SessionDamaged, StoreUnwritable
from kode_lab.schedule_assistant.schedule import (
    FIRST_ID,
    SCHEDULE_LIMIT,
    Schedule,
    check_order,
    checked_change,
    checked_entry,
    day_bounds,
    having,
    moved_end,
)

__all__ = ["BUSY_TIMEOUT_S", "ScheduleBook"]

# How long a change waits for another process's; each takes well under a millisecond.
BUSY_TIMEOUT_S = 10.0
_OPEN_ATTEMPTS = 200
_OPEN_PAUSE_S = 0.02
_FORMAT = 1
_ID_LIMIT = 2**63  # of SQLite

_SCHEMA = """
CREATE TABLE schedules (
    id      INTEGER PRIMARY KEY AUTOINCREMENT,  -- AUTOINCREMENT: an id of the deleted never returns
    user_id TEXT NOT NULL,
    title   TEXT NOT NULL,
    start   TEXT NOT NULL,
    "end"   TEXT NOT NULL
) STRICT;
CREATE INDEX schedules_of_user ON schedules (user_id, start);
CREATE TABLE answers (
    user_id         TEXT NOT NULL,
    idempotency_key TEXT NOT NULL,
    request         TEXT NOT NULL,
    answer          TEXT NOT NULL,
    PRIMARY KEY (user_id, idempotency_key)
) STRICT, WITHOUT ROWID;
INSERT INTO sqlite_sequence (name, seq) VALUES ('schedules', ?);
"""


class ScheduleBook:
    """Opens the book at ``path``, making it where there is none.

    Every method blocks for a moment; call it from a thread. A book is not carried through ``fork``:
    open one in each process.

    Raises:
        StoreUnwritable: the file cannot be opened or written.
        SessionDamaged: the file is not a schedule book; it was left as it is.
        NewerFormat: a newer kode_lab made it.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        # One connection in turns: within a process SQLite then never meets itself.
        self._lock = threading.Lock()
        with self._errors():
            self._db = sqlite3.connect(
                self.path,
                timeout=BUSY_TIMEOUT_S,
                isolation_level=None,
                check_same_thread=False,
            )
            try:
                self._prepare()
            except BaseException:
                self._db.close()
                raise

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
        """
        title, start, end = checked_entry(title, start, end)

        def change() -> Schedule:
            row = self._db.execute("SELECT count(*) FROM schedules WHERE user_id = ?", [user_id])
            if row.fetchone()[0] >= SCHEDULE_LIMIT:
                raise InvalidSchedule(
                    f"the book is full: delete schedules first (SCHEDULE_LIMIT={SCHEDULE_LIMIT})"
                )
            cursor = self._db.execute(
                'INSERT INTO schedules (user_id, title, start, "end") VALUES (?, ?, ?, ?)',
                [user_id, title, start, end],
            )
            assert cursor.lastrowid is not None
            return Schedule(cursor.lastrowid, title, start, end)

        return self._once(user_id, idempotency_key, ["create", title, start, end], change)

    def query(
        self, user_id: str, day: str | None = None, text: str | None = None
    ) -> list[Schedule]:
        """Return the user's schedules by start: on ``day``, with ``text`` in the title.

        Raises:
            InvalidSchedule: ``day`` is not a date.
        """
        condition, values = "user_id = ?", [user_id]
        if day is not None:
            first, after = day_bounds(day)
            condition += ' AND start < ? AND "end" > ?'
            values += [after, first]
        with self._lock, self._errors():
            rows = self._db.execute(
                f'SELECT id, title, start, "end" FROM schedules WHERE {condition}'  # noqa: S608 - constants
                " ORDER BY start, id",
                values,
            ).fetchall()
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
        """Change the fields that are not None; a new ``start`` without ``end`` keeps the length.

        Raises:
            InvalidSchedule: nothing is to be changed, the user has no such schedule, or as
                ``create``.
        """
        title, start, end = checked_change(title, start, end)

        def change() -> Schedule:
            old = self._own(user_id, schedule_id)
            new_start = start or old.start
            new_end = end or moved_end(old, new_start)
            check_order(new_start, new_end)
            new = Schedule(schedule_id, title or old.title, new_start, new_end)
            self._db.execute(
                'UPDATE schedules SET title = ?, start = ?, "end" = ? WHERE id = ?',
                [new.title, new.start, new.end, schedule_id],
            )
            return new

        request = ["update", schedule_id, title, start, end]
        return self._once(user_id, idempotency_key, request, change)

    def delete(self, user_id: str, schedule_id: int, *, idempotency_key: str) -> Schedule:
        """Remove a schedule and return what it was.

        Raises:
            InvalidSchedule: the user has no such schedule, or the key was used for another change.
        """

        def change() -> Schedule:
            old = self._own(user_id, schedule_id)
            self._db.execute("DELETE FROM schedules WHERE id = ?", [schedule_id])
            return old

        return self._once(user_id, idempotency_key, ["delete", schedule_id], change)

    def close(self) -> None:
        """Close the book; it is not used again."""
        with self._lock:
            self._db.close()

    def _once(
        self, user_id: str, key: str, request: list[Any], change: Callable[[], Schedule]
    ) -> Schedule:
        """Make the change under its key, or return the answer of the first time."""
        asked = json.dumps(request, ensure_ascii=False)
        with self._lock, self._errors(), self._transaction():
            before = self._db.execute(
                "SELECT request, answer FROM answers WHERE user_id = ? AND idempotency_key = ?",
                [user_id, key],
            ).fetchone()
            if before is not None:
                if before[0] != asked:
                    raise InvalidSchedule(
                        f"the idempotency key {key!r:.80} was used for another change"
                    )
                return Schedule(*json.loads(before[1]))
            answer = change()
            self._db.execute(
                "INSERT INTO answers VALUES (?, ?, ?, ?)",
                [user_id, key, asked, json.dumps(answer, ensure_ascii=False)],
            )
            return answer

    def _own(self, user_id: str, schedule_id: int) -> Schedule:
        row = None
        if 0 < schedule_id < _ID_LIMIT:
            row = self._db.execute(
                'SELECT id, title, start, "end" FROM schedules WHERE id = ? AND user_id = ?',
                [schedule_id, user_id],
            ).fetchone()
        if row is None:
            # The same words whether there is none or it is another user's: ids stay private.
            raise InvalidSchedule(
                f"there is no schedule {schedule_id}: query to see which there are"
            )
        return Schedule(*row)

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        # IMMEDIATE: a transaction that begins by reading could not become a writer if another
        # process wrote in between.
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            if self._db.in_transaction:  # a full disk has rolled it back already
                self._db.execute("ROLLBACK")
            raise
        self._db.execute("COMMIT")

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.ProgrammingError as error:
            raise StoreUnwritable(f"schedule book {self.path}: {error}: open it again") from error
        except sqlite3.OperationalError as error:
            raise StoreUnwritable(
                f"schedule book {self.path}: {error}: check its directory, its mode and the space"
            ) from error
        except sqlite3.DatabaseError as error:
            raise SessionDamaged(
                f"schedule book {self.path} cannot be read ({error}): move it away to begin anew"
            ) from error

    def _prepare(self) -> None:
        self._is_new()  # refuses what is not ours before anything is written
        self._switch_to_wal()
        self._db.execute("PRAGMA synchronous = NORMAL")
        with self._transaction():
            if self._is_new():  # asked again: another process may have been first
                *statements, first_id, _ = _SCHEMA.split(";\n")
                for statement in statements:
                    self._db.execute(statement)
                self._db.execute(first_id, [FIRST_ID - 1])
                self._db.execute(f"PRAGMA user_version = {_FORMAT}")

    def _is_new(self) -> bool:
        # In this order: both are made in one transaction, which may come between the two looks.
        has_tables = self._db.execute("SELECT count(*) FROM sqlite_schema").fetchone()[0] > 0
        version: int = self._db.execute("PRAGMA user_version").fetchone()[0]
        if version > _FORMAT:
            raise NewerFormat(
                f"schedule book {self.path} has format {version}, this is {_FORMAT}: upgrade"
            )
        if has_tables and version == 0:
            raise SessionDamaged(
                f"{self.path} is a database but not a schedule book: choose another path"
            )
        return version == 0

    def _switch_to_wal(self) -> None:
        # SQLite does not wait here for another process that is just doing the same.
        for attempt in range(1, _OPEN_ATTEMPTS + 1):
            try:
                self._db.execute("PRAGMA journal_mode = WAL")
            except sqlite3.OperationalError as error:
                is_busy = error.sqlite_errorcode & 0xFF in (
                    sqlite3.SQLITE_BUSY,
                    sqlite3.SQLITE_LOCKED,
                )
                if not is_busy or attempt == _OPEN_ATTEMPTS:
                    raise
                time.sleep(_OPEN_PAUSE_S)
            else:
                return
