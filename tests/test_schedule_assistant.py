"""The schedule book: each user's own, ids from 13039 never given twice, each change made once."""

import asyncio
import json
import os
import signal
import sqlite3
import subprocess
import sys
import threading
from itertools import count

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from kode_lab.errors import InvalidSchedule, NewerFormat, SessionDamaged, StoreUnwritable
from kode_lab.key import SessionKey
from kode_lab.message import ToolCall
from kode_lab.schedule_assistant import (
    AGENTS,
    FIRST_ID,
    PostgresBook,
    Schedule,
    ScheduleBook,
    toolbox,
)
from kode_lab.schedule_assistant.schedule import SCHEDULE_LIMIT, TITLE_LIMIT_CHARS
from kode_lab.sessions.agent import AgentShelf
from kode_lab.sessions.tool import ToolContext, use

NOON, ONE = "2026-07-15T12:00", "2026-07-15T13:00"


@pytest.fixture(params=["SQLite", "PostgreSQL"])
def new_book(request, tmp_path):
    """Opens the book of this test, which may be open already."""
    if request.param == "SQLite":
        return lambda: ScheduleBook(tmp_path / "book.sqlite")
    dsn, schema = map(request.getfixturevalue, ("postgres", "postgres_schema"))
    return lambda: PostgresBook(dsn, schema=schema)


@pytest.fixture
def book(new_book):
    book = new_book()
    yield book
    book.close()


@pytest.fixture
def key():
    numbers = count()
    return lambda: f"key{next(numbers)}"


# --- what it keeps ---------------------------------------------------------------------------


def test_ids_are_those_of_the_report_in_one_sequence_for_all_users(book, key):
    one = book.create("yeya", "meeting", NOON, idempotency_key=key())
    two = book.create("test_user", "study", NOON, idempotency_key=key())
    assert (one.id, two.id) == (13_039, 13_040)
    assert one == Schedule(FIRST_ID, "meeting", NOON, ONE)


def test_the_id_of_a_deleted_schedule_is_never_given_again(book, new_book, key):
    last = book.create("ada", "a", NOON, idempotency_key=key())
    book.delete("ada", last.id, idempotency_key=key())
    book.close()
    again = new_book()
    assert again.create("ada", "b", NOON, idempotency_key=key()).id == last.id + 1
    again.close()


def test_a_user_neither_sees_nor_touches_another_s_schedules(book, key):
    mine = book.create("ada", "mine", NOON, idempotency_key=key())
    assert book.query("bob") == []
    for user, schedule_id in (("bob", mine.id), ("bob", 99_999)):
        told = f"there is no schedule {schedule_id}: query"
        with pytest.raises(InvalidSchedule, match=told):
            book.update(user, schedule_id, title="taken", idempotency_key=key())
        with pytest.raises(InvalidSchedule, match=told):
            book.delete(user, schedule_id, idempotency_key=key())
    assert book.query("ada") == [mine]


def test_two_users_may_use_the_same_idempotency_key(book):
    one = book.create("ada", "a", NOON, idempotency_key="k")
    other = book.create("bob", "a", NOON, idempotency_key="k")
    assert one.id != other.id


def test_a_query_finds_by_day_and_by_text_earliest_first(book, key):
    def enter(title, start, end=None):
        return book.create("ada", title, start, end, idempotency_key=key())

    night = enter("Night train", "2026-07-15T22:00", "2026-07-16T06:00")
    lunch = enter("Straße lunch", "2026-07-15T12:00")
    until_midnight = enter("party", "2026-07-14T20:00", "2026-07-15T00:00")
    assert book.query("ada") == [until_midnight, lunch, night]
    assert book.query("ada", "2026-07-15") == [lunch, night]
    assert book.query("ada", "2026-07-16") == [night]
    assert book.query("ada", "2026-07-14") == [until_midnight]
    assert book.query("ada", "2026-07-13") == []
    assert book.query("ada", text="STRASSE") == [lunch]
    assert book.query("ada", "2026-07-16", "lunch") == []
    assert book.query("ada", text="%") == []


def test_moving_the_start_keeps_the_length_and_an_end_changes_it(book, key):
    old = book.create("ada", "a", NOON, "2026-07-15T12:30", idempotency_key=key())
    moved = book.update("ada", old.id, start="2026-07-15T23:45", idempotency_key=key())
    assert moved == (old.id, "a", "2026-07-15T23:45", "2026-07-16T00:15")
    longer = book.update("ada", old.id, end="2026-07-16T02:00", title="b", idempotency_key=key())
    assert longer == (old.id, "b", "2026-07-15T23:45", "2026-07-16T02:00")
    assert book.query("ada") == [longer]


def test_a_time_is_normalised_to_the_minute(book, key):
    made = book.create("ada", "  a \n b ", "2026-07-15 12:00:59", idempotency_key=key())
    assert made == (FIRST_ID, "a b", NOON, ONE)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("", NOON), "the title is ''"),
        (("  ", NOON), "the title is ''"),
        (("a\0b", NOON), "printable"),
        (("a\ud800", NOON), "printable"),
        (("x" * (TITLE_LIMIT_CHARS + 1), NOON), f"TITLE_LIMIT_CHARS={TITLE_LIMIT_CHARS}"),
        (("a", "this afternoon"), "start is 'this afternoon': use local time"),
        (("a", ""), "start is ''"),
        (("a", "2026-07-15"), "start is '2026-07-15'"),
        (("a", "2026-02-30T12:00"), "start is"),
        (("a", "2026-07-15T12:00Z"), "use local time"),
        (("a", "2026-07-15T12:00+02:00"), "use local time"),
        (("a", NOON, "later"), "end is 'later'"),
        (("a", NOON, NOON), "not after its start"),
        (("a", ONE, NOON), "not after its start"),
        (("a", "9999-12-31T23:30"), "year 9999"),
    ],
)
def test_a_schedule_that_cannot_be_is_refused_and_leaves_nothing(book, arguments, told):
    with pytest.raises(InvalidSchedule, match=told):
        book.create("ada", *arguments, idempotency_key="k")
    assert book.query("ada") == []
    # Nothing happened under that key, so it is free, and no id was used up.
    assert book.create("ada", "a", NOON, idempotency_key="k").id == FIRST_ID


def test_a_change_that_cannot_be_is_refused_and_changes_nothing(book, key):
    old = book.create("ada", "👨‍👩‍👧 lunch", NOON, idempotency_key=key())
    for change, told in (
        ({}, "nothing to change"),
        ({"end": NOON}, "not after its start"),
        ({"title": "\x07"}, "printable"),
        ({"start": "soon"}, "start is 'soon'"),
    ):
        with pytest.raises(InvalidSchedule, match=told):
            book.update("ada", old.id, **change, idempotency_key=key())
    for schedule_id in (0, -1, 2**63, 2**80):
        with pytest.raises(InvalidSchedule, match="there is no schedule"):
            book.delete("ada", schedule_id, idempotency_key=key())
    with pytest.raises(InvalidSchedule, match="day is 'today': use a date"):
        book.query("ada", "today")
    with pytest.raises(InvalidSchedule, match="day is '9999-12-31'"):
        book.query("ada", "9999-12-31")
    assert book.query("ada") == [old]


def test_a_full_book_refuses_by_the_name_of_its_limit(book, key):
    fill(book, "ada", SCHEDULE_LIMIT)
    with pytest.raises(InvalidSchedule, match=f"SCHEDULE_LIMIT={SCHEDULE_LIMIT}"):
        book.create("ada", "one more", NOON, idempotency_key=key())
    assert book.create("bob", "his first", NOON, idempotency_key=key())


def fill(book, user_id, number):
    """Enter that many schedules past the book, which would take a minute."""
    if isinstance(book, PostgresBook):
        query = (
            'INSERT INTO schedule (user_id, title, start, "end") '
            "SELECT $1, 'x', $2, $3 FROM generate_series(1, $4)"
        )
        book._run(book._connection.fetch(query, user_id, NOON, ONE, number))
        return
    with sqlite3.connect(book.path) as other:
        other.execute(
            'INSERT INTO schedules (user_id, title, start, "end") '
            "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < ?) "
            "SELECT ?, 'x', ?, ? FROM n",
            [number, user_id, NOON, ONE],
        )
    other.close()


# --- once ------------------------------------------------------------------------------------


def test_a_repeated_key_gives_the_first_answer_again(book, key):
    def create():
        return book.create("ada", "a", NOON, idempotency_key="create")

    def update():
        return book.update("ada", FIRST_ID, title="b", idempotency_key="update")

    def delete():
        return book.delete("ada", FIRST_ID, idempotency_key="delete")

    answers = [change() for change in (create, update, delete)]
    assert [change() for change in (create, update, delete)] == answers
    assert [answer.title for answer in answers] == ["a", "b", "b"]
    assert book.query("ada") == []
    with pytest.raises(InvalidSchedule, match="there is no schedule"):
        book.delete("ada", FIRST_ID, idempotency_key=key())


def test_a_key_used_for_another_change_is_refused(book):
    book.create("ada", "a", NOON, idempotency_key="k")
    for change in (
        lambda: book.create("ada", "b", NOON, idempotency_key="k"),
        lambda: book.delete("ada", FIRST_ID, idempotency_key="k"),
        lambda: book.update("ada", FIRST_ID, title="b", idempotency_key="k"),
    ):
        with pytest.raises(InvalidSchedule, match="'k' was used for another change"):
            change()
    assert [schedule.title for schedule in book.query("ada")] == ["a"]


users = st.sampled_from(["ada", "bob"])
hours = st.integers(0, 22).map(lambda hour: f"2026-07-15T{hour:02}:00")


class Model(RuleBasedStateMachine):
    """The book against a dictionary, with changes repeated under their keys at any later time."""

    def __init__(self):
        super().__init__()
        self.directory = self.fresh_directory()
        self.book = ScheduleBook(self.directory / "book.sqlite")
        self.schedules = {}  # id -> (user, Schedule)
        self.next_id = FIRST_ID
        self.answered = {}  # key -> (change, answer)

    def make(self, change):
        key = f"k{len(self.answered)}"
        answer = change(key)
        self.answered[key] = (change, answer)
        return answer

    @rule(user=users, title=st.sampled_from("abc"), start=hours)
    def create(self, user, title, start):
        made = self.make(lambda key: self.book.create(user, title, start, idempotency_key=key))
        assert made == (self.next_id, title, start, f"{start[:11]}{int(start[11:13]) + 1:02}:00")
        self.schedules[made.id] = (user, made)
        self.next_id += 1

    @rule(user=users, back=st.integers(1, 4), title=st.sampled_from("xyz"))
    def update(self, user, back, title):
        schedule_id = self.next_id - back
        owner, old = self.schedules.get(schedule_id, (None, None))
        if owner != user:
            with pytest.raises(InvalidSchedule):
                self.book.update(user, schedule_id, title=title, idempotency_key="none")
            return
        new = self.make(
            lambda key: self.book.update(user, schedule_id, title=title, idempotency_key=key)
        )
        assert new == old._replace(title=title)
        self.schedules[schedule_id] = (user, new)

    @rule(user=users, back=st.integers(1, 4))
    def delete(self, user, back):
        schedule_id = self.next_id - back
        owner, old = self.schedules.get(schedule_id, (None, None))
        if owner != user:
            with pytest.raises(InvalidSchedule):
                self.book.delete(user, schedule_id, idempotency_key="none")
            return
        gone = self.make(lambda key: self.book.delete(user, schedule_id, idempotency_key=key))
        assert gone == old
        del self.schedules[schedule_id]

    @rule(number=st.integers(0, 20))
    def repeat(self, number):
        if f"k{number}" in self.answered:
            change, answer = self.answered[f"k{number}"]
            assert change(f"k{number}") == answer

    @rule()
    def open_again(self):
        self.book.close()
        self.book = ScheduleBook(self.directory / "book.sqlite")

    @invariant()
    def each_user_sees_exactly_their_own(self):
        for user in ("ada", "bob"):
            own = [schedule for owner, schedule in self.schedules.values() if owner == user]
            assert self.book.query(user) == sorted(own, key=lambda s: (s.start, s.id))

    def teardown(self):
        self.book.close()


def test_any_sequence_of_changes_and_repetitions_is_as_a_dictionary_says(tmp_path_factory):
    Model.fresh_directory = staticmethod(lambda: tmp_path_factory.mktemp("book"))
    Model.TestCase.settings = settings(max_examples=12, stateful_step_count=25, deadline=None)
    Model.TestCase().runTest()


# --- many at once ----------------------------------------------------------------------------


def test_threads_creating_at_once_get_different_ids_and_a_repeated_key_one(book):
    together = threading.Barrier(8)
    made = []

    def work(n):
        together.wait(60)
        for at in range(20):
            made.append(book.create(f"user{n % 4}", "own", NOON, idempotency_key=f"{n}-{at}").id)
            book.create("all", "same", NOON, idempotency_key=f"same-{at}")

    threads = [threading.Thread(target=work, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(made)) == 160
    assert len(book.query("all")) == 20
    ids = [
        schedule.id
        for user in ("all", *(f"user{n}" for n in range(4)))
        for schedule in book.query(user)
    ]
    assert sorted(ids) == list(range(FIRST_ID, FIRST_ID + 180))


WORKER = """
import sys
from kode_lab.schedule_assistant import ScheduleBook
path, name, number = sys.argv[1], sys.argv[2], int(sys.argv[3])
sys.stdin.readline()
book = ScheduleBook(path)
for at in range(number):
    made = book.create("ada", name, "2026-07-15T12:00", idempotency_key=f"{name}-{at}")
    book.create("ada", "same", "2026-07-15T12:00", idempotency_key=f"same-{at}")
    print(made.id, flush=True)
"""


def worker(path, name, number):
    return subprocess.Popen(
        [sys.executable, "-c", WORKER, path, name, str(number)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def test_processes_opening_and_creating_at_once_share_one_sequence(tmp_path):
    path = tmp_path / "book.sqlite"  # not there yet: they also make it at once
    workers = [worker(path, f"w{n}", 25) for n in range(4)]
    for process in workers:
        process.stdin.write("go\n")
        process.stdin.flush()
    ids = [int(line) for process in workers for line in process.communicate(timeout=120)[0].split()]
    assert [process.returncode for process in workers] == [0] * 4
    assert len(set(ids)) == len(ids) == 100
    book = ScheduleBook(path)
    assert sorted(schedule.id for schedule in book.query("ada")) == list(
        range(FIRST_ID, FIRST_ID + 125)
    )
    book.close()


def test_what_was_answered_survives_kill_9_and_its_key_still_stands(tmp_path):
    path = tmp_path / "book.sqlite"
    process = worker(path, "w", 100_000)
    process.stdin.write("go\n")
    process.stdin.flush()
    answered = [int(process.stdout.readline()) for _ in range(50)]
    os.kill(process.pid, signal.SIGKILL)
    answered += [int(line) for line in process.stdout]
    assert process.wait() == -signal.SIGKILL
    process.stdin.close()
    process.stdout.close()
    book = ScheduleBook(path)
    kept = [schedule.id for schedule in book.query("ada", text="w")]
    assert len(kept) - len(answered) in (0, 1)  # one more may be made, and not yet answered
    assert set(answered) <= set(kept)
    for at, schedule_id in enumerate(answered):
        assert book.create("ada", "w", NOON, idempotency_key=f"w-{at}").id == schedule_id
    assert len(book.query("ada", text="w")) == len(kept)
    book.close()


# --- what cannot be used ---------------------------------------------------------------------


def test_a_place_where_no_book_can_be_is_refused_by_name(tmp_path):
    with pytest.raises(StoreUnwritable, match=r"nowhere/book\.sqlite: unable to open"):
        ScheduleBook(tmp_path / "nowhere" / "book.sqlite")
    with pytest.raises(StoreUnwritable, match="unable to open"):
        ScheduleBook(tmp_path)


def test_a_file_that_is_no_book_is_left_as_it_is(tmp_path):
    text = tmp_path / "notes.txt"
    text.write_text("buy milk " * 1000)
    with pytest.raises(SessionDamaged, match="not a database"):
        ScheduleBook(text)
    assert text.read_text() == "buy milk " * 1000
    other = tmp_path / "other.sqlite"
    with sqlite3.connect(other) as db:
        db.execute("CREATE TABLE milk (litres)")
    db.close()
    before = other.read_bytes()
    with pytest.raises(SessionDamaged, match="a database but not a schedule book"):
        ScheduleBook(other)
    assert other.read_bytes() == before


def test_a_newer_book_is_not_touched(tmp_path):
    ScheduleBook(tmp_path / "book.sqlite").close()
    with sqlite3.connect(tmp_path / "book.sqlite") as db:
        db.execute("PRAGMA user_version = 2")
    db.close()
    with pytest.raises(NewerFormat, match="has format 2, this is 1: upgrade"):
        ScheduleBook(tmp_path / "book.sqlite")


def test_a_closed_book_says_so(tmp_path):
    book = ScheduleBook(tmp_path / "book.sqlite")
    book.close()
    with pytest.raises(StoreUnwritable, match=r"closed database.*: open it again"):
        book.query("ada")


# --- the tools -------------------------------------------------------------------------------


def test_the_tools_work_on_the_book_of_the_user_of_their_session_only(book):
    config = AgentShelf(AGENTS, toolbox(book)).current("schedule-assistant")

    async def ask(user, name, /, key="", **arguments):
        context = ToolContext(SessionKey.of(user, "schedule-assistant"), "t", "c", key)
        result = await use(config.tool(name), ToolCall("c", name, arguments), context, 60)
        return result.content if result.is_error else json.loads(result.content)

    async def scenario():
        made = await ask("ada", "create_schedule", "1", title="meeting", start=NOON)
        assert made == {"schedule_id": 13_039, "title": "meeting", "start": NOON, "end": ONE}
        assert await ask("ada", "create_schedule", "1", title="meeting", start=NOON) == made
        assert await ask("ada", "query_schedules") == {"count": 1, "schedules": [made]}
        assert await ask("bob", "query_schedules") == {"count": 0, "schedules": []}
        assert await ask("bob", "delete_schedule", "2", schedule_id=13_039) == (
            "delete_schedule failed: InvalidSchedule: "
            "there is no schedule 13039: query to see which there are"
        )
        renamed = await ask("ada", "update_schedule", "3", schedule_id=13_039, title="call")
        assert renamed == made | {"title": "call"}
        for _ in range(2):
            gone = await ask("ada", "delete_schedule", "4", schedule_id=13_039)
            assert gone == {"deleted": renamed}
        told = await ask("ada", "create_schedule", "5", title="x", start=NOON, user_id="bob")
        assert "argument 'user_id': Extra inputs are not permitted" in told
        for hour in range(10):
            for minute in range(0, 60, 10):
                start = f"2026-07-16T{hour:02}:{minute:02}"
                await ask("ada", "create_schedule", start, title="many", start=start)
        many = await ask("ada", "query_schedules", day="2026-07-16", text="man")
        assert many["count"] == 60
        assert len(many["schedules"]) == 50
        assert many["note"] == "only the first 50 are shown: ask for one day"

    asyncio.run(scenario())


def test_no_argument_of_any_tool_names_a_user_a_session_or_a_key(book):
    for tool in toolbox(book):
        names = set(tool.input_schema["properties"])
        assert names <= {"title", "start", "end", "day", "text", "schedule_id"}
        assert all(argument["description"] for argument in tool.input_schema["properties"].values())
        assert tool.description
