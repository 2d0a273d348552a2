"""Several processes work on one directory, and any of them may be killed at any moment."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from house import PATIENCE_S, assert_legal, managing, prompts, run, shelf

from kode_lab.errors import InvalidScenario, PostgresMissing
from kode_lab.key import SessionKey
from kode_lab.storms.crash import CrashCount, _CrashWorker, crash_proof
from kode_lab.testing.postgres import find_binaries

# Takes so many turns of each session, and says each that was acknowledged.
HAMMER = """
import asyncio, os, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from house import SessionKey, managing

async def hammer(manager, name, key, turns):
    for number in range(turns):
        await manager.turn(key, f"{name} {number}", turn_id=f"{name}{number}")
        os.write(1, f"{key.user_id} {name} {number}\\n".encode())

async def main(path, name, sessions, turns):
    async with managing(path) as manager:
        print("ready", flush=True)
        sys.stdin.readline()  # all begin together
        keys = [SessionKey.of(f"user{n}", "clerk") for n in range(sessions)]
        await asyncio.gather(*(hammer(manager, name, key, turns) for key in keys))

asyncio.run(main(Path(sys.argv[2]), sys.argv[3], int(sys.argv[4]), int(sys.argv[5])))
"""


def hammers(path, count, sessions, turns):
    """Start that many processes; they begin at a line on their stdin."""
    shelf(path / "agents")
    here = str(Path(__file__).parent)
    started = [
        subprocess.Popen(
            [sys.executable, "-c", HAMMER, here, path, f"p{n}", str(sessions), str(turns)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        for n in range(count)
    ]
    for process in started:
        assert process.stdout.readline() == b"ready\n"
    for process in started:
        process.stdin.write(b"go\n")
        process.stdin.flush()
    return started


def said_by(process):
    """Return what a process acknowledged until its end, as (user, prompt)."""
    out, _ = process.communicate(timeout=PATIENCE_S)
    lines = [line.split() for line in out.decode().splitlines()]
    return [(user, f"{name} {number}") for user, name, number in lines]


@pytest.mark.parametrize(("count", "sessions", "turns"), [(3, 1, 40), (2, 6, 20)])
def test_several_processes_on_one_directory_lose_and_double_no_turn(
    tmp_path, count, sessions, turns
):
    said = [said_by(process) for process in hammers(tmp_path, count, sessions, turns)]
    assert all(len(one) == sessions * turns for one in said)

    async def scenario():
        async with managing(tmp_path) as manager:
            for number in range(sessions):
                messages = await manager.history(SessionKey.of(f"user{number}", "clerk"))
                assert_legal(messages)
                found = prompts(messages)
                assert len(found) == len(set(found)) == count * turns
                for name in range(count):
                    mine = [prompt for prompt in found if prompt.startswith(f"p{name} ")]
                    assert mine == [f"p{name} {n}" for n in range(turns)]
            return found

    found = run(scenario())
    # No process starves: while all hammer one session, each comes to it again and again.
    if sessions == 1:
        middle = found[len(found) // 4 : len(found) * 3 // 4]
        for name in range(count):
            assert sum(prompt.startswith(f"p{name} ") for prompt in middle) >= 5


def test_one_of_three_processes_is_killed_and_the_others_go_on(tmp_path):
    processes = hammers(tmp_path, 3, 2, 60)
    victim = processes[0]
    seen = [victim.stdout.readline() for _ in range(10)]
    os.kill(victim.pid, signal.SIGKILL)
    last_words = seen + victim.communicate(timeout=PATIENCE_S)[0].splitlines(keepends=True)
    said = [said_by(process) for process in processes[1:]]
    assert all(len(one) == 2 * 60 for one in said)

    async def scenario():
        acknowledged = [line.decode().split() for line in last_words if line.endswith(b"\n")]
        async with managing(tmp_path) as manager:
            for number in range(2):
                messages = await manager.history(SessionKey.of(f"user{number}", "clerk"))
                assert_legal(messages)
                found = prompts(messages)
                assert len(found) == len(set(found))
                for user, name, turn in acknowledged:
                    assert user != f"user{number}" or f"{name} {turn}" in found
                assert sum(not prompt.startswith("p0") for prompt in found) == 120

    run(scenario())


@pytest.mark.parametrize(("store", "kills"), [("process", 12), ("power", 4), ("postgres", 5)])
def test_a_process_killed_at_random_moments_loses_and_doubles_nothing(tmp_path, store, kills):
    """A few kills here; 300 of each store by ``kode-lab storm crash``."""
    if store == "postgres":
        pytest.importorskip("asyncpg")
        try:
            find_binaries()
        except PostgresMissing as error:
            pytest.skip(f"needs PostgreSQL: {error}")
    count = crash_proof(kills, 7, tmp_path, store=store, turns_a_life=30)
    assert count.kills == kills
    assert count.acknowledged > 15 * kills
    assert count.resent > kills
    assert count.given_up > 0 or kills < 10
    assert count.harm == 0, count
    assert min(count.steered, count.approved, count.rewound, count.forked) > 0, count


def lose(messages):
    del messages[2:4]


def double(messages):
    messages += messages[:2]


def swap(messages):
    messages[0], messages[2] = messages[2], messages[0]


def break_off(messages):
    call = {"type": "tool_use", "id": "open", "name": "create_schedule", "input": {}}
    messages[-1] = {"role": "assistant", "content": [call]}


@pytest.mark.parametrize(
    ("name", "change"),
    [("lost", lose), ("doubled", double), ("misordered", swap), ("illegal", break_off)],
)
def test_the_proof_sees_what_is_lost_doubled_or_out_of_order(tmp_path, name, change):
    """A proof that cannot fail proves nothing: the sessions are changed behind its back."""

    def told(count):
        if count.kills == 1:
            for path in tmp_path.rglob("messages.json"):
                messages = json.loads(path.read_bytes())
                change(messages)
                lines = ",\n".join(map(json.dumps, messages))
                path.write_text(f"[\n{lines}\n]\n")  # as the store writes it

    count = crash_proof(2, 3, tmp_path, turns_a_life=20, told=told)
    assert getattr(count, name) > 0, count
    assert count.harm > 0


def test_a_worker_that_dies_by_itself_is_no_proof(tmp_path):
    (tmp_path / "store").write_text("a file where the store should be")
    with pytest.raises(InvalidScenario, match=r"died by itself: .*StoreUnwritable"):
        crash_proof(1, 1, tmp_path)


class Unkind:
    """A limit that breaks what compares with it: in the middle of the worker's life."""

    def __le__(self, _):
        raise KeyError("in the middle of a life")


def test_what_breaks_the_proof_ends_its_worker(tmp_path):
    with pytest.raises(KeyError), _CrashWorker(tmp_path, "process") as worker:
        worker.live(0, {"ada-0": 0}, Unkind(), 0.0)
    assert not worker._child.is_running


def test_harm_counts_everything_that_must_not_happen():
    done = ("steered", "approved", "rewound", "forked", "compacted")
    harmless = ("kills", "acknowledged", "resent", "given_up", "torn", "mended", *done)
    for name in CrashCount._fields:
        count = CrashCount()._replace(**{name: 1})
        expected = 1 if name not in harmless or name == "torn" else 0
        assert max(count.harm, 0) == expected, name
