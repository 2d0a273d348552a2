"""What arrives late, what is gone after a restore, poolers, and workers that begin at once."""

import asyncio
import contextlib
import os
import pwd
import shutil
import subprocess
import tempfile
from functools import partial
from pathlib import Path
from random import Random

import asyncpg
import pytest
from house import ADA, Clerk, World, managing, prompts
from test_postgres_store import KEY, rows, stores, take, turn_of, until

from kode_lab.errors import (
    InvalidConfig,
    StaleLease,
    StoreUnreachable,
    Superseded,
    TurnsMissing,
)
from kode_lab.key import SessionKey
from kode_lab.message import Usage, assistant, user
from kode_lab.sessions.open_turn import OpenTurn
from kode_lab.sessions.postgres.connection import explained
from kode_lab.sessions.postgres.schema import FENCES
from kode_lab.sessions.postgres.store import PostgresStore, migrate_database
from kode_lab.storms.proxy import Proxy

# Two texts with one MD5, published by Marc Stevens in 2024.
SAME_MD5 = [
    f"TEXTCOLLBYfGiJUETHQ4h{letter}cKSMd5zYpgqf1YRDhkmxHkhPWptrkoyz28wnI9V0aHeAuaKnak"
    for letter in "AE"
]


async def append(store, lease):
    await store.append(lease, turn_of("late"), [])


async def journal(store, lease):
    turn = OpenTurn("late", user("Hello"), "v1")
    turn.add_reply(assistant("Good day"), Usage(3, 4))
    await store.journal(lease, turn, turn.reply_entry(turn.messages[-1], Usage(3, 4)))


async def delete(store, lease):
    await store.delete(lease)


async def rewind(store, lease):
    await store.rewind(lease, 0, "late", ["t1"])


# In each call of a statement that was prepared before.
CALL = b"__asyncpg_stmt"


@contextlib.asynccontextmanager
async def behind_a_door(dsn):
    """Return a DSN through a proxy, and its door."""
    with tempfile.TemporaryDirectory(prefix="kode-") as home:
        async with Proxy(dsn, Path(home), random=Random(0)) as proxy:
            yield await proxy.open("w"), proxy.doors["w"]


@pytest.mark.parametrize("is_early", [True, False], ids=["before the next", "after the next"])
@pytest.mark.parametrize("write", [append, journal, delete, rewind])
def test_a_write_that_arrives_after_its_sender_gave_up_changes_nothing(
    postgres, postgres_schema, write, is_early
):
    async def scenario():
        async with (
            behind_a_door(postgres) as (dsn, door),
            PostgresStore(dsn, schema=postgres_schema, patience_s=0.05) as store,
        ):
            beside = SessionKey("mia", "beside", "planner")
            for key in (beside, KEY):
                await take(store, "t1", key)
                lease = await store.hold(key, queue_limit=0)
                await store.load(lease)
                if key is beside:  # so that the statement is prepared
                    await write(store, lease)
                    store.release(lease)
            door.hold_next(CALL)
            door.is_refusing = True
            with pytest.raises(StoreUnreachable, match="whether the last step was saved"):
                await write(store, lease)
            assert door.has_held.is_set()
            door.is_refusing = False
            store.release(lease)
            # The next turn, under the same taking of the session.
            lease = await store.hold(KEY, queue_limit=0)
            assert [*(await store.load(lease)).finished] == ["t1"]
            if is_early:
                door.deliver()
                await door.was_delivered.wait()
            await store.append(lease, turn_of("t2"), [])
            store.release(lease)
            door.deliver()
            await door.was_delivered.wait()
            await take(store, "t3")
            again = await store.hold(KEY, queue_limit=0)
            found = await store.load(again)
            assert [*found.finished] == ["t1", "t2", "t3"]
            assert found.open is None
            assert len(await store.peek(KEY)) == 6

    asyncio.run(scenario())


def test_a_write_that_is_repeated_and_then_arrives_twice_is_saved_once(postgres, postgres_schema):
    async def scenario():
        async with (
            behind_a_door(postgres) as (dsn, door),
            PostgresStore(dsn, schema=postgres_schema) as store,
        ):
            await take(store, "t1")
            door.hold_next(b'"role"')
            await take(store, "t2")
            assert door.has_held.is_set()
            await take(store, "t3")
            door.deliver()
            await door.was_delivered.wait()
            await take(store, "t4")
            assert len(await store.peek(KEY)) == 8

    asyncio.run(scenario())


# ---- a database that was set back


def test_a_warm_worker_notices_turns_that_a_copy_lacks_says_how_many_and_goes_on(
    postgres, postgres_schema, tmp_path
):
    """As after a fail-over to a copy that lagged: the grant is there, the last turns are not."""

    async def scenario():
        store = PostgresStore(postgres, schema=postgres_schema)
        async with managing(tmp_path, Clerk(), store=store) as manager:
            for number in range(4):
                await manager.turn(ADA, f"q{number}", turn_id=f"t{number}")
            await rows(postgres, postgres_schema, "DELETE FROM turn WHERE number >= 2")
            with pytest.raises(TurnsMissing, match=r"4 turns were saved, .*'t3'.*database has 2"):
                await manager.turn(ADA, "q4", turn_id="t4")
            assert prompts(await manager.history(ADA)) == ["q0", "q1"]
            await manager.turn(ADA, "q4", turn_id="t4")
            await manager.turn(ADA, "q3", turn_id="t3")
            assert prompts(await manager.history(ADA)) == ["q0", "q1", "q4", "q3"]

    asyncio.run(scenario())


def test_a_worker_whose_grant_is_gone_says_what_is_missing(postgres, postgres_schema):
    async def scenario():
        async with stores(postgres, postgres_schema, 1) as (store,):
            await take(store, "t1")
            await take(store, "t2")
            await rows(postgres, postgres_schema, "DELETE FROM turn")
            await rows(postgres, postgres_schema, "UPDATE session SET fence = 0, holder = NULL")
            lease = await store.hold(KEY, queue_limit=0)
            with pytest.raises(TurnsMissing, match="2 turns were saved"):
                await store.append(lease, turn_of("t3"), [])
            await take(store, "t3")
            # And where it notices with its sign of life, before the next write.
            await rows(postgres, postgres_schema, "DELETE FROM turn")
            await rows(postgres, postgres_schema, "UPDATE session SET fence = 0, holder = NULL")
            before = store._leases._sessions[KEY[:2]]
            store._worker.connection.cut()
            await until(lambda: not before.fence)
            with pytest.raises(TurnsMissing, match="1 turns were saved"):
                await take(store, "t4")
            await take(store, "t4")
            assert len(await store.peek(KEY)) == 2

    asyncio.run(scenario())


def test_a_session_whose_number_was_given_to_another_one_is_not_mistaken_for_it(
    postgres, postgres_schema
):
    async def scenario():
        async with stores(postgres, postgres_schema, 2) as (one, two):
            await take(one, "t1")
            # As after a restore of a time at which the session did not exist yet.
            for query in ("DELETE FROM turn", "DELETE FROM conversation", "DELETE FROM session"):
                await rows(postgres, postgres_schema, query)
            await rows(postgres, postgres_schema, "ALTER TABLE session ALTER id RESTART")
            await rows(postgres, postgres_schema, "ALTER TABLE conversation ALTER id RESTART")
            other = SessionKey("bob", "work", "planner")
            await take(two, "b1", other)
            lease = await one.hold(KEY, queue_limit=0)
            with pytest.raises((StaleLease, TurnsMissing)):
                await one.append(lease, turn_of("t2"), [])
            assert len(await two.peek(other)) == 2
            await take(one, "t2")
            assert [len(await one.peek(key)) for key in (KEY, other)] == [2, 2]

    asyncio.run(scenario())


def test_fences_do_not_repeat_when_a_session_is_made_again(postgres, postgres_schema):
    async def scenario():
        async with stores(postgres, postgres_schema, 1) as (store,):
            first, _ = await take(store, "t1")
            assert first.fence // FENCES > 1_700_000_000, "it begins with the clock"
            assert first.fence < 2**53, "JavaScript reads it"

    asyncio.run(scenario())


# ---- workers


def test_many_workers_open_an_empty_schema_at_once(postgres, postgres_schema):
    async def scenario():
        opened = [PostgresStore(postgres, schema=postgres_schema) for _ in range(8)]
        try:
            await asyncio.gather(*(store.open() for store in opened))
            assert len({store.worker_id for store in opened}) == 8
            await take(opened[3], "t1")
        finally:
            for store in opened:
                await store.aclose()

    asyncio.run(scenario())


def test_a_cloned_worker_gets_an_id_of_its_own(postgres, postgres_schema):
    """As after a virtual machine was cloned while its worker ran: both have one memory."""

    async def scenario():
        async with stores(postgres, postgres_schema, 2) as (one, two):
            await take(one, "t1")
            was = two._worker.id = one.worker_id
            two._worker.connection.cut()
            await until(lambda: two._worker.is_sure and two.worker_id != was)
            assert one.worker_id == was
            await take(two, "t2")
            await take(one, "t3")
            assert one.worker_id == was
            assert len(await one.peek(KEY)) == 6

    asyncio.run(scenario())


def test_ids_with_one_md5_are_two_sessions(postgres, postgres_schema):
    async def scenario():
        async with stores(postgres, postgres_schema, 1) as (store,):
            keys = [SessionKey(SAME_MD5[0], name, "planner") for name in SAME_MD5]
            keys += [SessionKey(SAME_MD5[1], SAME_MD5[0], "planner")]
            leases = [await store.hold(key, queue_limit=0) for key in keys]
            for number, lease in enumerate(leases):
                await store.append(lease, turn_of(f"t{number}"), [])
            assert [len(await store.peek(key)) for key in keys] == [2, 2, 2]

    asyncio.run(scenario())


# ---- rewind and fork


def test_a_rewind_and_a_fork_are_there_for_every_worker(postgres, postgres_schema, tmp_path):
    async def scenario():
        world, fork = World(), SessionKey(ADA.user_id, "fork", ADA.agent_id)
        make = partial(PostgresStore, postgres, schema=postgres_schema)
        async with managing(tmp_path, Clerk(), world, store=make()) as manager:
            for number in range(3):
                await manager.turn(ADA, f"q{number}", turn_id=f"t{number}")
            assert await manager.fork(ADA, fork, at_turn="t1") == 4
            assert await manager.rewind(ADA, "t0", turn_id="back") == ("t1", "t2")
            await manager.turn(ADA, "again", turn_id="new")
        async with managing(tmp_path / "b", Clerk(), world, store=make()) as manager:
            assert prompts(await manager.history(ADA)) == ["q0", "again"]
            assert await manager.rewind(ADA, "t0", turn_id="back") == ("t1", "t2")
            with pytest.raises(Superseded, match="removed by a rewind"):
                await manager.turn(ADA, "q1", turn_id="t1")
            assert (await manager.turn(ADA, "again", turn_id="new")).is_replay
            assert prompts(await manager.history(fork)) == ["q0", "q1"]
            assert (await manager.turn(fork, "q1", turn_id="t1")).is_replay
            await manager.turn(fork, "further")

    asyncio.run(scenario())


# ---- PgBouncer


@pytest.fixture(scope="module")
def pgbouncer(postgres):
    """A function that starts PgBouncer in a pool mode and returns the DSN through it."""
    program = shutil.which("pgbouncer", path=os.environ["PATH"] + ":/usr/sbin")
    if program is None:
        pytest.skip("needs pgbouncer")
    asked = dict(part.split("=") for part in postgres.partition("?")[2].split("&"))
    user, name = postgres.partition("//")[2].partition("@")[0], "kode"
    with contextlib.ExitStack() as stack:

        def start(mode):
            home = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="kode-pgb-")))
            (home / "users").write_text(f'"{user}" ""\n')
            (home / "ini").write_text(
                f"[databases]\n{name} = host={asked['host'].replace('%2F', '/')} "
                f"port={asked['port']} user={user}\n"
                f"[pgbouncer]\nlisten_port = 6432\nlisten_addr =\nunix_socket_dir = {home}\n"
                f"auth_type = any\nauth_file = {home}/users\npool_mode = {mode}\n"
            )
            account = None
            if os.geteuid() == 0:  # it refuses to run as root, and so does the server
                account = pwd.getpwnam("postgres").pw_uid
                for path in (home, *home.iterdir()):
                    os.chown(path, account, -1)
            process = subprocess.Popen(
                [program, "-q", str(home / "ini")], user=account, stderr=subprocess.DEVNULL
            )
            stack.callback(process.wait)
            stack.callback(process.terminate)
            return process, home, f"postgresql://{user}@/{name}?host={home}&port=6432"

        yield start


async def bouncing(pgbouncer, mode):
    process, home, dsn = pgbouncer(mode)
    await until(lambda: (home / ".s.PGSQL.6432").exists() or process.poll() is not None)
    return dsn


def test_pgbouncer_in_session_mode_carries_workers(pgbouncer, postgres, postgres_schema):
    async def scenario():
        dsn = await bouncing(pgbouncer, "session")
        async with stores(dsn, postgres_schema) as (one, two):
            await take(one, "t1")
            await take(two, "t2")
            await take(one, "t3")
            async with stores(postgres, postgres_schema, 1) as (direct,):
                await take(direct, "t4")
            assert len(await two.peek(KEY)) == 8

    asyncio.run(scenario())


@pytest.mark.parametrize("mode", ["transaction", "statement"])
def test_pgbouncer_that_shares_connections_is_refused_by_name(pgbouncer, postgres_schema, mode):
    async def scenario():
        dsn = await bouncing(pgbouncer, mode)
        store = PostgresStore(dsn, schema=postgres_schema)
        try:
            with pytest.raises(InvalidConfig, match=r"PgBouncer.*pool_mode = session"):
                await store.open()
        finally:
            await store.aclose()

    asyncio.run(scenario())


def test_errors_of_the_driver_itself_are_explained():
    for error in (asyncpg.InternalClientError("odd state"), asyncpg.InterfaceError("busy")):
        told = explained(error, "postgresql://kode@host/kode", was_sent=True)
        assert isinstance(told, StoreUnreachable), told
    told = explained(
        asyncpg.InvalidSQLStatementNameError("no statement"), "postgresql://h/d", was_sent=True
    )
    assert "PgBouncer" in str(told)


# ---- the format before


FORMAT_1 = """
CREATE TABLE meta (format int NOT NULL, settings jsonb NOT NULL);
INSERT INTO meta VALUES (1, '{"ttl_s": 30}');
CREATE TABLE worker (id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, name text NOT NULL,
    address text, alive_until timestamptz NOT NULL);
INSERT INTO worker (name, alive_until) VALUES ('old', now() + interval '1 hour');
CREATE TABLE session (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    user_id text COLLATE "C" NOT NULL, session_id text COLLATE "C" NOT NULL,
    fence bigint NOT NULL DEFAULT 0, holder int, granted bigint) WITH (fillfactor = 80);
CREATE UNIQUE INDEX session_of_user ON session (md5(user_id), md5(session_id));
INSERT INTO session (user_id, session_id, fence, holder, granted)
    VALUES ('mia', 'work', 2000000000, 1, 1);
CREATE TABLE conversation (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    session bigint NOT NULL, agent_id text COLLATE "C" NOT NULL);
CREATE UNIQUE INDEX conversation_of_session ON conversation (session, md5(agent_id));
INSERT INTO conversation (session, agent_id) VALUES (1, 'planner');
CREATE TABLE ticket (session bigint NOT NULL, place bigint GENERATED ALWAYS AS IDENTITY,
    worker int NOT NULL, number bigint NOT NULL, is_patient boolean NOT NULL,
    PRIMARY KEY (session, place));
CREATE UNIQUE INDEX ticket_of_worker ON ticket (worker, number);
CREATE TABLE turn (conversation bigint NOT NULL, number int NOT NULL, turn_id text NOT NULL,
    fence bigint NOT NULL, first int NOT NULL, last int NOT NULL, is_sealed boolean NOT NULL,
    version text NOT NULL, input_tokens bigint NOT NULL, output_tokens bigint NOT NULL,
    messages json NOT NULL, PRIMARY KEY (conversation, number));
INSERT INTO turn VALUES (1, 0, 't1', 2000000001, 0, 1, false, 'v1', 1, 1,
    '[{"role":"user","content":"Hello"},{"role":"assistant","content":"Good day"}]');
CREATE TABLE step (conversation bigint NOT NULL, number int NOT NULL, fence bigint NOT NULL,
    entry json NOT NULL, PRIMARY KEY (conversation, number));
INSERT INTO step VALUES (1, 0, 2000000002, '[{"open":"t2","fence":2000000002,"version":"v1",
    "prompt":{"role":"user","content":"And?"}}]');
CREATE FUNCTION is_gone(who int) RETURNS boolean LANGUAGE sql AS 'SELECT true';
"""


def test_a_schema_of_format_1_is_migrated_with_all_that_it_holds(postgres, postgres_schema):
    async def scenario():
        connection = await asyncpg.connect(postgres)
        await connection.execute(
            f"CREATE SCHEMA {postgres_schema}; SET search_path = {postgres_schema}; {FORMAT_1}"
        )
        await connection.close()
        with pytest.raises(InvalidConfig, match="run kode-lab migrate"):
            await PostgresStore(postgres, schema=postgres_schema).open()
        said = await migrate_database(postgres, schema=postgres_schema)
        assert "format 3" in said
        async with stores(postgres, postgres_schema, 1) as (store,):
            lease = await store.hold(KEY, queue_limit=0)
            assert lease.fence > 2_000_000_001
            found = await store.load(lease)
            assert [*found.finished] == ["t1"]
            assert found.open.turn_id == "t2"
            await store.discard(lease)
            await store.append(lease, turn_of("t3"), [])
            assert len(await store.peek(KEY)) == 4

    asyncio.run(scenario())
