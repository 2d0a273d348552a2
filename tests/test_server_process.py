"""``kode-lab serve`` as a process: how it begins, how it ends, and what goes on after it."""

import asyncio
import json
import signal
import socket
import subprocess
import sys
from pathlib import Path

import aiohttp
import pytest
from house import PATIENCE_S, assert_legal, prompts, run
from served import command, patient, serving

from kode_lab.cli import main
from kode_lab.http import is_loopback

CREATE = "Create a meeting tomorrow at 15:00"


def test_on_sigterm_what_was_accepted_is_answered_and_a_restart_goes_on(tmp_path):
    async def first():
        with serving(tmp_path, ttft_s=0.3) as child:
            async with patient() as client:
                turns = [asyncio.create_task(child.post(client, f"{CREATE} a"))]
                await child.until(client, lambda told: told["turnsInFlight"] == 1)
                turns.append(asyncio.create_task(child.post(client, f"{CREATE} b")))
                await child.until(client, lambda told: told["turnsInFlight"] == 2)
                turns.append(asyncio.create_task(child.post(client, "hello", "s2", stream=True)))
                await child.until(client, lambda told: told["turnsInFlight"] == 3)
                child.signal(signal.SIGTERM)
                assert [(await turn)[0] for turn in turns] == [200, 200, 200]
                assert "event: done" in (await turns[2])[1]
                assert await child.ended() == 0
                try:
                    status, told = await child.post(client, "too late")
                    raise AssertionError((status, told))
                except aiohttp.ClientConnectorError:
                    pass

    async def second():
        with serving(tmp_path) as child:
            async with patient() as client:
                messages = await child.messages(client)
                assert prompts(messages) == [f"{CREATE} a", f"{CREATE} b"]
                status, told = await child.post(client, "hello")
                assert (status, told["isReplay"]) == (200, False)
                child.signal(signal.SIGINT)
                assert await child.ended() == 0

    run(first())
    run(second())
    assert "Traceback" not in (tmp_path / "stderr").read_text()


def test_while_it_drains_a_connection_ends_with_its_answer(tmp_path):
    async def scenario():
        with serving(tmp_path, ttft_s=0.5) as child:
            async with patient() as client:
                port = int(child.url.rpartition(":")[2])
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
                body = json.dumps(
                    {"userId": "ada", "agentId": "schedule-assistant", "message": "hello"}
                ).encode()
                head = (
                    b"POST /v1/turns HTTP/1.1\r\nHost: localhost\r\n"
                    b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(body)
                )
                writer.write(head + body)
                await child.until(client, lambda told: told["turnsInFlight"] == 1)
                child.signal(signal.SIGTERM)
                lines = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
                assert " 200 " in lines
                assert "connection: close" in lines
                assert await child.ended() == 0
                writer.close()

    run(scenario())


def test_a_turn_that_outlasts_the_drain_is_told_so_and_goes_on_after_a_restart(tmp_path):
    async def first():
        with serving(tmp_path, "--drain", "0.2", ttft_s=20) as child:
            async with patient() as client:
                turn = asyncio.create_task(child.post(client, CREATE, turnId="t1"))
                await child.until(client, lambda told: told["turnsInFlight"] == 1)
                child.signal(signal.SIGTERM)
                status, told = await turn
                assert (status, told["error"]["type"]) == (503, "Draining")
                assert told["error"]["turnId"] == "t1"
                assert await child.ended() == 0

    async def second():
        with serving(tmp_path) as child:
            async with patient() as client:
                assert await child.messages(client) == []
                status, told = await child.post(client, CREATE, turnId="t1")
                assert (status, told["isReplay"], len(told["toolCalls"])) == (200, False, 1)
                assert prompts(await child.messages(client)) == [CREATE]

    run(first())
    run(second())


def test_after_kill_9_a_turn_goes_on_from_its_journal_and_its_tool_ran_once(tmp_path):
    async def first():
        # The first answer asks for the tool; the second never comes.
        profile = 'ttft_s = 0.0\n[[plans]]\nname = "p"\nintent = "create"\ncalls_s = [0.0, 60.0]\n'
        (tmp_path / "plan.toml").write_text(profile)
        with serving(tmp_path, "--profile", str(tmp_path / "plan.toml")) as child:
            async with patient() as client:
                turn = asyncio.create_task(child.post(client, CREATE, turnId="t1"))
                state = {"turns": []}
                while not any(turn["toolCalls"] for turn in state["turns"]):
                    path = "/v1/sessions/ada/s1/schedule-assistant/state"
                    state = await child.get(client, path)
                child.signal(signal.SIGKILL)
                assert await child.ended() == -signal.SIGKILL
                try:
                    raise AssertionError(await turn)
                except aiohttp.ClientError:
                    pass

    async def second():
        with serving(tmp_path) as child:
            async with patient() as client:
                status, told = await child.post(client, CREATE, turnId="t1")
                assert (status, told["isReplay"]) == (200, False)
                assert "13039" in told["text"]
                _, told = await child.post(client, "Create lunch tomorrow at 12:00")
                assert "13040" in told["text"]
                messages = await child.messages(client)
                assert prompts(messages)[0] == CREATE
                assert_legal(messages)

    run(first())
    run(second())


def test_a_second_signal_does_not_wait_for_the_turns(tmp_path):
    async def scenario():
        with serving(tmp_path, ttft_s=60) as child:
            async with patient() as client:
                turn = asyncio.create_task(child.post(client, "hello"))
                await child.until(client, lambda told: told["turnsInFlight"] == 1)
                child.signal(signal.SIGTERM)
                while "stopping" not in (tmp_path / "stderr").read_text():  # noqa: ASYNC110
                    await asyncio.sleep(0.005)
                child.signal(signal.SIGTERM)
                status, told = await turn
                assert (status, told["error"]["type"]) == (503, "Draining")
                assert await child.ended() == 130

    run(scenario())


@pytest.fixture
def refused(tmp_path, monkeypatch, capsys):
    """Return what a server that does not begin says on stderr."""
    monkeypatch.delenv("KODE_LAB_STORE", raising=False)

    def said(*options):
        assert main([*command(tmp_path)[3:], *options]) == 3
        out, err = capsys.readouterr()
        assert "Traceback" not in err
        assert out == ""
        return err

    return said


def test_an_occupied_port_is_said_in_a_sentence(refused):
    with socket.create_server(("127.0.0.1", 0)) as occupant:
        port = occupant.getsockname()[1]
        said = refused("--port", str(port))
    assert f"port {port} on 127.0.0.1 is occupied" in said


def test_an_address_that_others_reach_needs_tokens(tmp_path, refused):
    assert "--auth" in refused("--host", "0.0.0.0")
    assert not (tmp_path / "data" / "+store").exists()
    for host in ("0.0.0.0", "::", "192.0.2.1", "example.com", "127.0.0.1.example.com", ""):
        assert not is_loopback(host)
    for host in ("127.0.0.1", "127.8.9.10", "::1", "localhost"):
        assert is_loopback(host)


def test_what_cannot_be_used_is_said_in_a_sentence(tmp_path, refused):
    (tmp_path / "empty.toml").write_text("")
    (tmp_path / "file").write_text("in the way")
    for options, said in (
        (("--auth", str(tmp_path / "empty.toml")), "lists no [[token]]"),
        (("--data", str(tmp_path / "file" / "below")), "file"),
        (("--trace", str(tmp_path / "gone" / "trace")), "the trace"),
        (("--port", "70000"), "70000"),
    ):
        assert said in refused(*options)


@pytest.mark.parametrize(
    "option",
    [
        *("--turns-limit=-3", "--turns-limit=0", "--sessions-per-user=0", "--residents=-1"),
        *("--residents=0", "--drain=nan", "--drain=-1", "--drain=inf", "--model="),
        *("--ttl=5", "--schema=other"),
    ],
)
def test_an_option_that_makes_no_sense_is_named_before_anything_is_opened(
    tmp_path, monkeypatch, capsys, option
):
    monkeypatch.delenv("KODE_LAB_STORE", raising=False)
    assert main([*command(tmp_path)[3:], option]) == 3
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert f"kode-lab: InvalidScenario: {option.partition('=')[0]} " in err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("words", [b"", b"[1]\n"])
def test_a_worker_that_was_not_told_its_place_says_who_starts_it(words):
    ended = subprocess.run(
        (sys.executable, "-m", "kode_lab", "worker"),
        input=words,
        capture_output=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert (ended.returncode, ended.stdout) == (3, b"")
    assert b"a worker is started by kode-lab serve --workers N" in ended.stderr
    assert b"Traceback" not in ended.stderr


def test_the_trace_has_every_step_of_every_turn(tmp_path):
    async def scenario():
        trace = tmp_path / "trace.jsonl"
        with serving(tmp_path, "--trace", str(trace)) as child:
            async with patient() as client:
                assert (await child.post(client, CREATE, turnId="t1"))[0] == 200
        steps = [json.loads(line)["step"] for line in trace.read_text().splitlines()]
        assert steps == ["wait", "load", "ask", "tool", "ask", "commit", "turn"]

    run(scenario())


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
def test_a_turn_never_fails_for_its_trace(tmp_path):
    async def scenario():
        with serving(tmp_path, "--trace", "/dev/full") as child:
            async with patient() as client:
                for number in range(3):
                    status, told = await child.post(client, CREATE, f"s{number}")
                    assert (status, len(told["toolCalls"])) == (200, 1)
                    assert prompts(await child.messages(client, f"s{number}")) == [CREATE]
                child.signal(signal.SIGTERM)
                assert await child.ended() == 0

    run(scenario())
    said = (tmp_path / "stderr").read_text()
    assert said.count("No space left on device: its steps are dropped") == 1
    assert "the trace full lacks 21 steps" in said
    assert "Traceback" not in said


CUT = """
import resource, signal, sys
from pathlib import Path
from kode_lab.key import SessionKey
from kode_lab.server.serve import TraceFile
from kode_lab.history.span import Span

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
path, span = Path(sys.argv[1]), Span(SessionKey.of("ada", "clerk"), "t1", "wait", 1, 2)
hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
with TraceFile(path) as trace:
    trace.write(span)
    resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 20, hard))
    trace.write(span)
    trace.write(span)
    resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    trace.write(span)
    print(trace.dropped)
"""


def test_a_line_that_a_full_disk_cut_spoils_no_other_one(tmp_path):
    path = tmp_path / "trace.jsonl"
    command = (sys.executable, "-c", CUT, path)
    assert subprocess.check_output(command, timeout=PATIENCE_S) == b"2\n"
    whole, torn, again, end = path.read_text().split("\n")
    assert json.loads(whole)["step"] == "wait"
    assert (torn, again, end) == (whole[:20], whole, "")


@pytest.mark.parametrize("files_limit", [64, 1_024])
def test_turns_of_new_sessions_are_answered_however_few_files_may_be_open(tmp_path, files_limit):
    async def scenario():
        with serving(tmp_path, files_limit=files_limit) as child:
            async with patient() as client:

                async def turns(number):
                    told = [await child.post(client, "hello", f"s{number}-{n}") for n in range(3)]
                    return [status for status, _ in told]

                # As many clients as there may be connections: 14 of 64 files, 400 of 1,024.
                count = 12 if files_limit == 64 else 60
                for statuses in await asyncio.gather(*map(turns, range(count))):
                    assert statuses == [200] * 3
            # One client too many is answered, not cut off.
            port = int(child.url.rpartition(":")[2])
            opened = [
                await asyncio.open_connection("127.0.0.1", port)
                for _ in range(40 if files_limit == 64 else 0)
            ]
            said = [await reader.read(100) for reader, _ in opened[-2:]]
            assert all(b" 503 " in line for line in said)
            for _, writer in opened:
                writer.transport.abort()
        assert "Traceback" not in (tmp_path / "stderr").read_text()

    run(scenario())
