"""The fault laboratory: every mistake is convicted by what it must show, its honest twin never."""

import asyncio
import errno
import json
import os
import re
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

from benchmarks.histories import valid_run
from kode_lab.check import ANOMALIES, check, check_path
from kode_lab.cli import main
from kode_lab.errors import InvalidScenario
from kode_lab.faults import honest
from kode_lab.faults.catalogue import CATALOGUE, PLAIN, Fault, fault_of
from kode_lab.faults.disks import LabDisk
from kode_lab.faults.laboratory import (
    SEEDS,
    as_json,
    convict,
    found_in,
    judged,
    replay,
    table,
)
from kode_lab.faults.scenario import KEYS, Scenario
from kode_lab.faults.serving import SERVABLE
from kode_lab.faults.shrinking import play_small, shrink
from kode_lab.faults.site import Parts
from kode_lab.faults.stage import Stage
from kode_lab.faults.stores import unsynced
from kode_lab.faults.world import World
from kode_lab.key import SessionKey
from kode_lab.sessions import JsonStore

TWIN_SEEDS = 1


@pytest.mark.parametrize("name", CATALOGUE)
def test_each_fault_is_convicted_within_ten_seeds_of_all_that_it_must_show(name):
    fault = CATALOGUE[name]
    with Stage(fault.scenario, fault.parts) as stage:
        found = set()
        for seed in range(SEEDS):
            found.update(found_in(judged(fault, stage.play(seed))))
            if found.issuperset(fault.shows):
                return
    pytest.fail(f"{name} shows {sorted(found)}, not all of {fault.shows}")


@pytest.mark.parametrize("name", CATALOGUE)
def test_the_honest_twin_of_each_fault_is_valid(name):
    fault = CATALOGUE[name]
    with Stage(fault.scenario, Parts()) as stage:
        for seed in range(TWIN_SEEDS):
            verdict = judged(fault, stage.play(seed))
            assert verdict.status == "valid", f"seed {seed}: {verdict}"


def test_every_anomaly_but_reading_the_future_is_shown_by_some_fault():
    """Others need a clock that errs, or a client that sees what the model's server was sent."""
    shown = {name for fault in CATALOGUE.values() for name in fault.shows}
    drawn_only = {"future read", "interleaved turn", "garbage read"}
    assert shown == set(ANOMALIES) - drawn_only


def test_no_fault_is_a_flag_of_the_product():
    """The rooms that serve know nothing of faults: wrapping is the laboratory's affair."""
    package = Path(__file__).parent.parent / "kode_lab"
    for room in ("sessions", "server", "schedule_assistant"):
        for path in (package / room).glob("*.py"):
            assert "experiment" not in path.read_text(encoding="utf-8").replace("experimental", "")


def test_a_replayed_seed_is_the_same_play_with_the_same_witness():
    fault = fault_of("no-lock")
    (one, first), (other, second) = replay(fault, 4), replay(fault, 4)
    assert one == other
    assert str(first) == str(second)
    assert "lost update" in str(first)
    assert replay(fault, 5)[0] != one


def test_a_fault_shrinks_to_a_small_play_that_still_convicts_it(tmp_path, monkeypatch):
    fault = fault_of("no-lock")
    fault = fault._replace(scenario=fault.scenario._replace(keys=KEYS[:2], turns=2))
    monkeypatch.chdir(tmp_path)
    small = shrink(fault, plays_limit=80)
    assert list(tmp_path.iterdir()) == []
    assert (small.sessions, small.clients, small.turns) == (1, 2, 1)
    played, verdict = play_small(fault, small)
    assert "lost update" in found_in(verdict)
    assert len(played.history) < 12


def test_what_cannot_be_convicted_is_not_shrunk_but_refused():
    innocent = Fault("innocent", "nothing is wrong", ("lost update",), PLAIN, Parts())
    with pytest.raises(InvalidScenario, match="innocent: no small play convicts it within"):
        shrink(innocent, plays_limit=3)


def test_a_fault_that_is_none_is_not_convicted_and_the_table_says_so():
    innocent = Fault("innocent", "nothing is wrong", ("lost update",), PLAIN, Parts())
    outcome = convict(innocent, 2)
    assert (outcome.ok, outcome.convicted, outcome.acquitted) == (False, 0, 2)
    assert "NOT CONVICTED" in table([outcome])
    assert as_json([outcome])[0]["first_seed"] is None


def test_a_twin_that_is_not_valid_is_an_objection():
    thin = Fault("thin", "no two turns meet", ("lost update",), Scenario(clients=1), Parts())
    outcome = convict(thin, 1)
    assert not outcome.ok
    assert outcome.objection.startswith("seed 0: unknown: needs turns of one session that overlap")
    assert outcome.objection in table([outcome])


def test_a_memory_that_is_written_by_compare_and_set_loses_nothing():
    with Stage(PLAIN, Parts(tools="memory")) as stage:
        for seed in range(5):
            played = stage.play(seed)
            assert check(played.history, played.trace).status == "valid"


def test_right_plays_under_all_hard_conditions_raise_no_false_alarm():
    runs = 2 * len(honest.HARD_CONDITIONS)
    found = honest.honest_runs(runs)
    assert found.objections == {}
    assert found.statuses["valid"] > 0.8 * runs
    assert found.turns > 10 * runs
    assert found.crashes > 0


def test_the_hard_conditions_do_what_they_say():
    """Turns are refused, left, retried and broken off, or nothing was hard about them."""
    errors, types, turns = set(), set(), []
    for seed in range(len(honest.HARD_CONDITIONS)):
        played, _ = honest.honest_play(seed)
        errors |= {operation.error for operation in played.history}
        types |= {(operation.f, operation.type) for operation in played.history}
        turns += [operation.turn_id for operation in played.history if operation.f == "turn"]
    assert errors >= {"the client left", "connection lost", "ModelUnavailable", "Superseded"}
    assert errors >= {"connection refused", "SessionBusy", "DeadlineExceeded"}
    assert {("kill", "info"), ("power-cut", "info"), ("turn", "fail"), ("read", "ok")} <= types
    assert len(set(turns)) < len(turns)


def test_generated_and_played_runs_are_judged_by_the_same_judge():
    """What is valid on paper and what is valid in play have the same kinds of operations."""
    played, _ = honest.honest_play(1)
    kinds = {operation.f for operation in played.history}
    assert kinds >= {operation.f for operation in valid_run(0)}


# --- disks, worlds, stages -----------------------------------------------------------------------


def test_a_killed_process_reaches_no_file_and_holds_no_lock(tmp_path):
    disk = LabDisk(tmp_path)

    async def scenario():
        dead = JsonStore(tmp_path / "sessions", disk=disk)
        lease = await dead.hold(KEYS[0], queue_limit=1)
        disk.kill()
        with pytest.raises(OSError, match="killed"):
            disk.open(tmp_path / "new", create=True)
        alive = JsonStore(tmp_path / "sessions")
        again = await alive.hold(KEYS[0], queue_limit=0)
        assert again.fence > lease.fence
        dead.release(lease)
        assert (await alive.load(again)).messages == []
        alive.release(again)
        await alive.aclose()

    asyncio.run(scenario())


def test_a_power_cut_leaves_what_was_synced_under_names_that_were(tmp_path):
    disk = LabDisk(tmp_path, remembers=True)
    for name in ("synced", "nameless", "unsynced"):
        disk.make_directory(tmp_path / name)
        fd = disk.open(tmp_path / name / "file", create=True)
        disk.write(fd, b"first", 0)
        if name != "unsynced":
            disk.sync(fd)
        if name != "nameless":
            disk.sync_directory(tmp_path / name)
        disk.write(fd, b"later", 5)
        disk.close(fd)
    disk.sync_directory(tmp_path)
    assert disk.image() == {"synced/file": b"first"}


def test_a_disk_that_lies_about_directories_loses_every_name(tmp_path):
    disk = LabDisk(tmp_path, remembers=True)
    liar = unsynced(disk, None)
    fd = liar.open(tmp_path / "file", create=True)
    liar.write(fd, b"x", 0)
    liar.sync(fd)
    liar.sync_directory(tmp_path)
    liar.close(fd)
    assert disk.image() == {}


def test_a_full_disk_lets_nothing_grow_and_everything_be_overwritten(tmp_path):
    disk = LabDisk(tmp_path)
    fd = disk.open(tmp_path / "file", create=True)
    disk.write(fd, b"12345", 0)
    disk.is_full = True
    disk.write(fd, b"abc", 1)
    with pytest.raises(OSError, match="space") as refused:
        disk.write(fd, b"xyz", 3)
    assert refused.value.errno == errno.ENOSPC
    assert disk.read(fd, 10, 0) == b"1abc5"
    disk.close(fd)


def test_tools_that_do_not_exist_are_refused_by_name():
    with pytest.raises(InvalidScenario, match="no tools 'left-handed': name one of right"):
        World("left-handed")


def test_a_stage_leaves_nothing_behind():
    with Stage(PLAIN, Parts()) as stage:
        stage.play(0)
        root = stage.root
        assert root.exists()
        assert not (root / "1").exists()
    assert not root.exists()


# --- the command ----------------------------------------------------------------------------------


def test_the_command_prints_a_table_and_ends_well_when_all_are_convicted(capsys):
    assert main(["faults", "no-lock", "stored-without-user", "--seeds", "1"]) == 0
    told = capsys.readouterr().out
    assert "| no-lock " in told
    assert "2 of 2 faults convicted of all that they must show; 0 of 2 plays" in told


def test_the_command_gives_json_that_says_what_was_tried(capsys):
    assert main(["faults", "racing-ids", "--seeds", "2", "--json"]) == 0
    (outcome,) = json.loads(capsys.readouterr().out)
    assert (outcome["fault"], outcome["seeds"], outcome["ok"]) == ("racing-ids", 2, True)
    assert outcome["anomalies"]["duplicate id"] == 2


def test_what_is_saved_names_its_command_and_commit(tmp_path, capsys):
    assert main(["faults", "no-lock", "--seeds", "1", "--save", "--results", str(tmp_path)]) == 0
    capsys.readouterr()
    kept = json.loads((tmp_path / "faults" / "no-lock.json").read_text())
    assert kept["command"] == "kode-lab faults no-lock --seeds 1 --save"
    assert kept["commit"]
    assert kept["outcomes"][0]["ok"]
    assert kept["command"] in (tmp_path / "faults" / "no-lock.md").read_text()


def test_replaying_tells_the_witness_and_how_to_see_it_again(capsys):
    assert main(["faults", "lagging-replica", "--replay", "0"]) == 0
    told = capsys.readouterr().out
    assert "kode-lab faults lagging-replica --replay 0" in told
    assert "a contradiction" in told
    assert main(["faults", "lagging-replica", "--replay", "0", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["verdict"]["status"] == "invalid"


@pytest.mark.parametrize("name", ["acknowledged-before-write", "racing-ids", "one-global-lock"])
def test_a_kept_play_is_judged_alike_from_its_files(name, tmp_path, capsys):
    assert main(["faults", name, "--replay", "2", "--keep", str(tmp_path / "play")]) == 0
    told = capsys.readouterr()
    assert "kode-lab check" in told.err
    verdict = check_path(tmp_path / "play")
    assert verdict.status == "invalid"
    # A file's operations have lines.
    assert re.sub(r", line \d+", "", str(verdict)) in told.out


def test_every_fault_is_listed_with_what_it_is(capsys):
    assert main(["faults", "--list"]) == 0
    told = capsys.readouterr().out
    assert all(f"{name} " in told for name in CATALOGUE)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["no-such"], "there is no fault 'no-such': name one of no-lock"),
        (["no-lock", "--seeds", "0"], "--seeds 0: choose 1 to SEEDS_LIMIT=10000"),
        (["--replay", "1"], "--replay and --shrink take one fault"),
        (["no-lock", "racing-ids", "--shrink"], "--replay and --shrink take one fault"),
        (["no-lock", "--keep", "somewhere"], "--keep keeps one play: say which"),
    ],
)
def test_what_cannot_be_done_is_one_line_and_status_three(words, told, capsys):
    assert main(["faults", *words]) == 3
    assert told in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ([], "required: NAME"),
        (["no-such"], "there is no fault 'no-such'"),
        (["racing-ids"], "racing-ids needs tools, disks, crashes or processes"),
    ],
)
def test_a_fault_that_cannot_be_served_is_refused(words, told, capsys, tmp_path):
    assert main(["serve-fault", *words, "--data", str(tmp_path)]) == 3
    assert told in capsys.readouterr().err


def test_faults_that_need_no_laboratory_can_be_served():
    assert {"no-lock", "one-global-lock", "stored-without-user", "racing-ids"} - set(SERVABLE) == {
        "racing-ids"
    }
    assert len(SERVABLE) > 20


def test_a_served_fault_answers_over_http_until_it_is_told_to_stop(tmp_path):
    command = [sys.executable, "-m", "kode_lab", "serve-fault", "no-lock", "--port", "0"]
    server = subprocess.Popen(
        [*command, "--data", str(tmp_path / "data")], stdout=subprocess.PIPE, text=True
    )
    try:
        said = server.stdout.readline()
        assert "WRONG on purpose" in said
        key = SessionKey("ada", "s", "schedule-assistant")
        body = json.dumps(key.to_json() | {"message": "hello"}).encode()
        asked = urllib.request.Request(
            said.split()[2].rstrip(",") + "/v1/turns",
            data=body,
            headers={"content-type": "application/json"},
        )
        with urllib.request.urlopen(asked, timeout=30) as answer:
            assert "hello" in json.load(answer)["text"]
        server.send_signal(signal.SIGTERM)
        assert server.wait(timeout=30) == 0
    finally:
        if server.poll() is None:
            os.kill(server.pid, signal.SIGKILL)
        server.communicate()


def test_the_page_lists_every_fault_with_what_is_wrong():
    page = (Path(__file__).parent.parent / "docs" / "faults.md").read_text(encoding="utf-8")
    for name, fault in CATALOGUE.items():
        assert f"| `{name}` | {fault.about} | {', '.join(fault.shows)} |" in page
    listed = re.findall(r"^\| `([^`]+)` \|", page.partition("## Storms")[0], re.MULTILINE)
    rest = page.partition("## Storms")[2].partition("\n## ")[2]
    listed += re.findall(r"^\| `([^`]+)` \|", rest, re.MULTILINE)
    assert sorted(listed) == sorted(CATALOGUE)
