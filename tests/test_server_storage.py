"""``kode-lab serve --store`` and ``migrate``: what a database is asked, and what is said of it."""

import asyncio
import re
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from urllib.parse import urlsplit

import aiohttp
import asyncpg
import pytest
from house import PATIENCE_S, run
from served import patient, serving

from kode_lab.cli import main
from kode_lab.errors import InvalidConfig, PostgresMissing
from kode_lab.key import SessionKey
from kode_lab.message import user
from kode_lab.sessions import PostgresStore
from kode_lab.sessions.open_turn import OpenTurn
from kode_lab.sessions.postgres.schema import checked_name
from kode_lab.testing.postgres import ThrowawayPostgres

SECRET = "s3cr3t"


@asynccontextmanager
async def connected(dsn):
    connection = await asyncpg.connect(dsn)
    try:
        yield connection
    finally:
        await connection.close()


async def done(dsn, *statements):
    async with connected(dsn) as connection:
        for statement in statements:
            await connection.execute(statement)


def changed(dsn, *, role=None, database=None):
    """Return the DSN with another role or database."""
    parts = urlsplit(dsn)
    return parts._replace(
        netloc=parts.netloc if role is None else f"{role}@",
        path=parts.path if database is None else f"/{database}",
    ).geturl()


@pytest.fixture
def refused(tmp_path, monkeypatch, capsys):
    """Return the one sentence with which a server that does not begin ends."""

    def refuse(dsn, *options, command="serve"):
        monkeypatch.setenv("KODE_LAB_STORE", dsn)
        own = ("--in-process", "--port", "0", "--data", str(tmp_path / "data"))
        assert main([command, *(own if command == "serve" else ()), *options]) == 3
        out, err = capsys.readouterr()
        assert (out, err.count("\n")) == ("", 1)
        assert SECRET not in err
        return err

    return refuse


# ---- what is wrong is said


@pytest.mark.parametrize(
    ("dsn", "said"),
    [
        (f"mysql://root:{SECRET}@host/database", "--store is not a DSN: write postgresql://"),
        (f"postgresql//root:{SECRET}@host/database", "--store is not a DSN"),
        # The password is cut where its slash is, and its half taken for a port.
        (f"postgresql://root:{SECRET}/x@host/database", "the DSN cannot be used"),
        (f"postgresql://root:{SECRET}@[::1/database", "the DSN cannot be used"),
        (f"postgresql://root:{SECRET}@host/database?sslmode=shy", "the DSN cannot be used"),
    ],
)
def test_a_dsn_that_is_none_is_refused_and_its_password_not_repeated(refused, dsn, said):
    assert said in refused(dsn)


def test_what_does_not_go_together_is_refused(refused, tmp_path):
    assert "--layout is for the data directory" in refused(
        "postgresql://u@h/d", "--layout", "report"
    )
    options = ("--data", str(tmp_path), "--durability", "power", "--workers", "2")
    assert "one journal" in refused("", *options)
    assert "WORKERS_LIMIT=64" in refused("", "--workers", "65")
    assert "KODE_LAB_STORE" in refused("", command="migrate")


def test_a_database_that_cannot_be_used_says_why_in_one_sentence(
    refused, postgres, postgres_schema
):
    schema = ("--schema", postgres_schema)
    poor, guarded = f"poor_{postgres_schema}", f"guarded_{postgres_schema}"
    asyncio.run(
        done(
            postgres,
            f"CREATE ROLE {poor} LOGIN",
            f"CREATE DATABASE {guarded}",
            f"ALTER DATABASE {guarded} SET default_transaction_read_only = on",
        )
    )
    for command in ("serve", "migrate"):
        for dsn, said in (
            (changed(postgres, database="nowhere"), "create the database"),
            (changed(postgres, role="no_server_here"), "check user and password"),
            (changed(postgres, role=poor), "grant this role the right"),
            (changed(postgres, database=guarded), "read-only or in recovery"),
        ):
            assert said in refused(dsn, *schema, command=command)
        assert "use a to z" in refused(postgres, "--schema", "No;1", command=command)


def test_a_database_that_only_follows_another_is_refused(refused, monkeypatch, capsys):
    try:
        server = ThrowawayPostgres(settings={"fsync": "off"})
    except PostgresMissing as error:
        pytest.skip(f"needs PostgreSQL: {error}")
    with server:
        monkeypatch.setenv("KODE_LAB_STORE", server.dsn)
        assert main(["migrate"]) == 0
        capsys.readouterr()
        server.kill9()
        (server.data / "standby.signal").touch()
        server.start()
        for command in ("serve", "migrate"):
            said = refused(server.dsn, command=command)
            assert "in recovery: use the DSN of the primary" in said


def test_a_schema_of_another_format_or_other_settings_is_refused(
    refused, postgres, postgres_schema, capsys, monkeypatch
):
    schema = ("--schema", postgres_schema)
    monkeypatch.setenv("KODE_LAB_STORE", postgres)
    assert main(["migrate", *schema, "--ttl", "7"]) == 0
    assert main(["migrate", *schema]) == 0
    assert capsys.readouterr().out == (
        f"schema {postgres_schema}: made, format 3, ttl_s=7\n"
        f"schema {postgres_schema}: up to date, format 3, ttl_s=7\n"
    )
    assert "share ttl_s=7" in refused(postgres, *schema, "--ttl", "8")
    poor = f"poor_{postgres_schema}"
    asyncio.run(done(postgres, f"CREATE ROLE {poor} LOGIN"))
    assert "kode-lab migrate as its owner, then GRANT" in refused(
        changed(postgres, role=poor), *schema
    )
    asyncio.run(done(postgres, f"UPDATE {postgres_schema}.meta SET format = 0"))
    assert "run kode-lab migrate" in refused(postgres, *schema)
    asyncio.run(done(postgres, f"UPDATE {postgres_schema}.meta SET format = 99"))
    for command in ("serve", "migrate"):
        assert "format 99" in refused(postgres, *schema, command=command)


def test_a_name_that_postgresql_keeps_for_itself_is_refused(refused, postgres):
    async def reserved():
        async with connected(postgres) as connection:
            return [
                row[0]
                for row in await connection.fetch(
                    "SELECT word FROM pg_get_keywords() WHERE catcode::text IN ('R', 'T')"
                )
            ]

    for command in ("serve", "migrate"):
        for schema in ("select", "pg_x", "pg_catalog", "information_schema"):
            said = refused(postgres, "--schema", schema, command=command)
            assert f"schema '{schema}': PostgreSQL keeps this name for itself" in said
    for word in asyncio.run(reserved()):
        with pytest.raises(InvalidConfig, match="for itself"):
            checked_name(word)


def test_a_word_that_postgresql_only_uses_is_a_name(postgres, monkeypatch, capsys):
    monkeypatch.setenv("KODE_LAB_STORE", postgres)
    # One of each kind that may be a name: unreserved, and a column's.
    for schema in ("action", "values"):
        assert main(["migrate", "--schema", schema]) == 0
        assert capsys.readouterr().out.startswith(f"schema {schema}: made")


@pytest.mark.parametrize(
    ("done_to_it", "said"),
    [
        ("DELETE FROM meta", "its table meta has no row"),
        ("ALTER TABLE meta DROP COLUMN format", "its table meta says no format"),
        ("ALTER TABLE meta DROP COLUMN settings", "its table meta says no ttl_s"),
        ("UPDATE meta SET settings = '{}'", "its table meta says no ttl_s"),
        ("UPDATE meta SET settings = '[1]'", "its table meta says no ttl_s"),
    ],
)
def test_a_schema_that_says_nothing_of_itself_is_damaged(
    refused, postgres, postgres_schema, monkeypatch, capsys, done_to_it, said
):
    monkeypatch.setenv("KODE_LAB_STORE", postgres)
    assert main(["migrate", "--schema", postgres_schema]) == 0
    capsys.readouterr()
    asyncio.run(done(postgres, f"SET search_path = {postgres_schema}", done_to_it))
    for command in ("serve", "migrate"):
        told = refused(postgres, "--schema", postgres_schema, command=command)
        assert f"schema {postgres_schema} is damaged: {said}" in told


# ---- while it serves


def test_a_server_whose_database_went_away_is_not_ready_and_goes_on_when_it_is_back(tmp_path):
    try:
        database = ThrowawayPostgres(settings={"fsync": "off"}, port=0)
    except PostgresMissing as error:
        pytest.skip(f"needs PostgreSQL: {error}")

    async def scenario():
        options = {"KODE_LAB_STORE": database.tcp_dsn()}
        password = re.search(r":([^:@]+)@", database.tcp_dsn())[1]
        with serving(tmp_path, "--workers", "2", **options) as child:
            async with patient() as client:
                status, told = await child.post(client, "hello", turnId="t1")
                assert (status, told["isReplay"]) == (200, False)
                database.kill9()
                await readiness(child, 503)
                database.start()
                await readiness(child, 200)
                status, told = await child.post(client, "hello", turnId="t1")
                assert (status, told["isReplay"]) == (200, True)
                status, told = await child.post(client, "hello again")
                assert (status, told["isReplay"]) == (200, False)
            assert not any(password.encode() in command for command in commands())
            child.process.terminate()
            assert await child.ended() == 0
        assert password not in (tmp_path / "stderr").read_text()

    async def readiness(child, wanted):
        async with asyncio.timeout(PATIENCE_S):
            status = 0
            while status != wanted:
                # Each time to whichever worker takes it.
                path = f"{child.url}/readyz"
                async with aiohttp.ClientSession() as stranger, stranger.get(path) as answer:
                    status = answer.status
                await asyncio.sleep(0.01)

    with database:
        run(scenario())


def commands():
    """Return the command line of every process that there is."""
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            yield path.read_bytes()


def test_a_password_on_the_command_line_is_warned_of_and_not_repeated(refused, caplog):
    dsn = f"postgresql://root:{SECRET}@host/database?sslmode=shy"
    assert "the DSN cannot be used" in refused("", "--store", dsn)
    assert "KODE_LAB_STORE" in caplog.text
    assert SECRET not in caplog.text


def test_sessions_that_were_deleted_or_never_said_anything_are_not_listed(
    postgres, postgres_schema
):
    async def scenario():
        kept, deleted, empty = (SessionKey.of("ada", "clerk", name) for name in "kde")
        async with PostgresStore(postgres, schema=postgres_schema) as store:
            for key in (kept, deleted, empty):
                lease = await store.hold(key, queue_limit=1)
                await store.load(lease)
                if key != empty:
                    turn = OpenTurn("t1", user("hello"), "v1")
                    await store.append(lease, turn, [])
                if key == deleted:
                    await store.delete(lease)
                store.release(lease)
            assert await store.sessions("ada") == [kept]
            assert await store.sessions("bob") == []

    run(scenario())
