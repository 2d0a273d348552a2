"""Load tests as their users start them: Locust's own command, several processes, its web UI.

All runs of the right server go on at once, against one server; each test waits for its own and asks
what it left behind.
"""

import errno
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
from served import serving

from kode_lab.cli import main
from kode_lab.history.reader import read_operations
from kode_lab.load.command import SETTINGS, seconds_of
from kode_lab.load.services import Service
from kode_lab.targets.http_target import free_port

LOADTESTS = Path(__file__).parent.parent / "loadtests"
PATIENCE_S = 240.0
# Turns of each process, before a run is ended as Ctrl-C would: a busy machine needs longer.
ENOUGH = 20


class Run:
    """One command and what it left in its directory."""

    def __init__(self, path, *words, workers=()):
        self.path = path
        self.workers = workers
        path.mkdir()
        with (path / "stderr").open("wb") as stderr, (path / "stdout").open("wb") as stdout:
            self.process = subprocess.Popen(
                [sys.executable, "-m", *words],
                stdin=subprocess.DEVNULL,
                stdout=stdout,
                stderr=stderr,
            )

    def has_answers(self, workers):
        """Whether each of these processes has had some turns acknowledged."""
        if not (self.path / "history.jsonl").exists():
            return False
        said = (self.path / "history.jsonl").read_text()
        return all(
            len(re.findall(rf'"type":"ok","process":"{worker}\.', said)) >= ENOUGH
            for worker in workers
        )

    def ended(self):
        """Return the exit status and all that was said on stdout; end it once it has enough."""
        limit_s = time.monotonic() + PATIENCE_S
        while self.workers and self.process.poll() is None:
            assert time.monotonic() < limit_s, self.words()
            if self.has_answers(self.workers):
                self.process.terminate()
                break
            time.sleep(0.05)
        status = self.process.wait(PATIENCE_S)
        return status, (self.path / "stdout").read_text()

    def words(self):
        return (self.path / "stderr").read_text()[-3000:]

    def told(self, name):
        return json.loads((self.path / name).read_text())

    def operations(self):
        with (self.path / "history.jsonl").open() as lines:
            return list(read_operations(lines))

    def close(self):
        if self.process.poll() is None:
            self.process.terminate()
        self.process.wait(PATIENCE_S)


def locust(path, name, url, *words, users=8, workers=(0,)):
    file = ("-f", str(LOADTESTS / f"{name}.py"), "--only-summary")
    load = ("-u", str(users), "-r", "100", "--host", url, "--run-dir", str(path))
    return Run(path, "locust", *file, *load, *words, workers=workers)


def load(path, *words):
    return Run(path, "kode_lab", "load", *words, "--results", str(path))


def two_processes():
    """Words for two generator processes, which meet at a port of their own."""
    port = str(free_port())
    return "--processes", "2", "--master-bind-port", port, "--master-port", port


def fetched(url, data=None):
    with urllib.request.urlopen(url, data, timeout=30) as answer:
        return answer.read().decode()


@pytest.fixture(scope="module")
def url(tmp_path_factory):
    with serving(tmp_path_factory.mktemp("server"), ttft_s=0.03) as child:
        yield child.url


@pytest.fixture(scope="module")
def runs(url, tmp_path_factory):
    path, port, web = tmp_path_factory.mktemp("runs"), str(free_port()), str(free_port())
    headless = "--headless"
    everywhere = ("--master-bind-host", "127.0.0.1", "--master-bind-port", port)
    started = {
        "plain": locust(path / "plain", "same_name", url, headless, users=20),
        "processes": locust(
            path / "processes", "tools", url,
            headless, *two_processes(), users=12, workers=(1, 2),
        ),
        "master": locust(
            path / "master", "hot_session", url,
            headless, "--master", "--expect-workers", "1", *everywhere, workers=(1,),
        ),
        "worker": locust(
            path / "worker", "hot_session", url, "--worker", "--master-port", port, workers=()
        ),
        "streaming": locust(
            path / "streaming", "streaming", url,
            headless, "--closed-loop", "--slo-p99-ms", "0.001",
        ),
        "web": locust(
            path / "web", "churn", url,
            "--autostart", "--web-host", "127.0.0.1", "--web-port", web,
        ),
        "unreachable": locust(
            path / "unreachable", "spike", f"http://127.0.0.1:{free_port()}",
            headless, "-t", "3s", workers=(),
        ),
        "chaos": load(
            path / "chaos", "chaos",
            *("--for", "4s", "--users", "6", "--kills", "1", "--no-pictures", "--in-process"),
        ),
        "faulty": load(
            path / "faulty", "hot_session", "--for", "3s", "--in-process", "--fault", "no-lock"
        ),
    }  # fmt: skip
    started["web"].url = f"http://127.0.0.1:{web}"
    yield started
    for run in started.values():
        run.close()


def test_locusts_own_web_ui_has_a_tab_with_the_verdict_and_its_charts(runs):
    run = runs["web"]
    state, limit_s = {}, time.monotonic() + PATIENCE_S
    while state.get("state") != "over" and run.process.poll() is None:
        assert time.monotonic() < limit_s, (state, run.words())
        try:
            page = fetched(f"{run.url}/")
            state = json.loads(fetched(f"{run.url}/verdict/state"))
            if state["state"] == "running" and state["counts"].get("ok", 0) >= ENOUGH:
                fetched(f"{run.url}/stop", data=b"")
        except OSError:
            pass
        time.sleep(0.2)
    assert state["state"] == "over", run.words()
    assert '"extended_tabs": [{"key": "verdict", "title": "Verdict"}]' in page
    assert 'src="./verdict"' in page
    assert "verdict/state" in fetched(f"{run.url}/verdict")
    assert state["status"] == "valid"
    assert state["headline"].startswith("PASS")
    assert sum(second[1] for second in state["seconds"]) == state["counts"]["ok"] > 0
    assert state["ms"]["p50"] <= state["ms"]["p99"]
    assert run.ended()[0] == 0


def test_a_plain_run_ends_with_the_verdict_as_its_last_words_and_its_exit_status(runs, capsys):
    run = runs["plain"]
    status, said = run.ended()
    assert status == 0, run.words()
    told = run.told("verdict.json")
    assert told["status"] == "valid"
    assert main(["check", str(run.path)]) == 0
    judged = capsys.readouterr().out
    assert judged.startswith(told["headline"])
    assert said.rstrip().endswith(judged.rstrip())
    assert "concurrent pair" in told["headline"]


def test_every_session_is_asked_once_more_and_then_read(runs):
    run = runs["plain"]
    run.ended()
    operations = run.operations()
    (quiet,) = (o.invoke_ns for o in operations if o.f == "quiet")
    turns = {o.key for o in operations if o.f == "turn" and o.invoke_ns < quiet}
    assert turns == {o.key for o in operations if o.f == "turn" and o.invoke_ns > quiet}
    assert turns == {o.key for o in operations if o.f == "read" and o.type == "ok"}
    assert len(turns) > 5


def test_turns_tell_what_the_model_was_shown_and_which_prompt_was_answered(runs):
    run = runs["plain"]
    run.ended()
    acknowledged = [o for o in run.operations() if o.f == "turn" and o.type == "ok"]
    assert acknowledged
    assert all(o.read is not None and o.answered == o.marker and o.config for o in acknowledged)


def test_the_figures_are_the_historys_in_nanoseconds_beside_locusts(runs):
    run = runs["plain"]
    run.ended()
    operations, figures = run.operations(), run.told("load.json")
    (quiet,) = (o.invoke_ns for o in operations if o.f == "quiet")
    took = sorted(
        o.complete_ns - o.invoke_ns
        for o in operations
        if o.f == "turn" and o.type == "ok" and o.invoke_ns < quiet
    )
    assert figures["turns"] == len(took)
    assert figures["ms"]["max"] == took[-1] / 1e6
    assert figures["ms"]["p50"] == took[len(took) // 2] / 1e6
    assert figures["locust_ms"]["p50"] > 0
    assert figures["generator"]["late_p99_ms"] > 0
    assert 0 < figures["generator"]["cpu_share"] < 3


def test_several_processes_write_one_history_whose_markers_are_unique(runs):
    run = runs["processes"]
    status, _ = run.ended()
    assert status == 0, run.words()
    operations = run.operations()
    turns = [o for o in operations if o.f == "turn"]
    assert {o.process.partition(".")[0] for o in turns} == {"0", "1", "2"}
    assert len({o.marker for o in turns}) == len(turns)


def test_what_tools_did_is_told_by_the_sessions_and_by_the_book(runs):
    run = runs["processes"]
    run.ended()
    operations = run.operations()
    asked = {o.marker for o in operations if o.f == "turn" and o.type == "ok"}
    of_sessions = {e.marker for o in operations if o.f == "read" for e in o.effects or ()}
    of_world = {e.marker for o in operations if o.f == "effects" for e in o.effects or ()}
    assert asked
    assert of_sessions == of_world == asked
    (tools,) = (g for g in run.told("verdict.json")["guarantees"] if g["name"] == "tools")
    assert tools["status"] == "valid"


def test_a_master_judges_what_its_workers_did(runs):
    status, said = runs["master"].ended()
    assert status == 0, runs["master"].words()
    assert "PASS" in said
    assert runs["worker"].ended()[0] == 0, runs["worker"].words()
    assert "PASS" not in runs["worker"].ended()[1]
    loaded = {o.process.partition(".")[0] for o in runs["master"].operations() if o.f == "turn"}
    assert loaded == {"0", "1"}


def test_streams_are_timed_to_their_first_token_and_a_missed_slo_is_said(runs):
    run = runs["streaming"]
    status, said = run.ended()
    figures = run.told("load.json")
    assert figures["times_ms"]["time to first token"]["p50"] > 25
    assert "between tokens" in figures["times_ms"]
    # A generator that was late itself cannot say that the server was slow.
    assert status == (3 if figures["generator"]["is_bound"] else 4), run.words()
    assert "closed loop" in said
    assert "correct goodput: 0.0 turns/s" in said


def test_a_server_that_cannot_be_reached_is_unknown_and_never_valid(runs):
    run = runs["unreachable"]
    status, said = run.ended()
    assert status == 2, run.words()
    assert "UNKNOWN: needs an acknowledged turn" in said
    assert all(o.type == "fail" for o in run.operations() if o.f == "turn")


def test_a_server_that_forgets_the_lock_is_convicted_with_exit_status_1(runs):
    run = runs["faulty"]
    status, said = run.ended()
    assert status == 1, run.words()
    assert "FAIL: " in said
    assert "lost update" in said
    assert "a contradiction" in said.rstrip().splitlines()[-1]
    kept = run.path / "latest"
    facts = json.loads((kept / "run.json").read_text())
    assert (facts["status"], facts["summary"]) == ("complete", {"exit_status": 1})
    assert (kept / "figures" / "witness.svg").exists()
    assert "lost update" in (kept / "report.html").read_text()


def test_chaos_kills_the_server_and_nothing_acknowledged_is_lost(runs):
    run = runs["chaos"]
    status, said = run.ended()
    assert status == 0, said + run.words()
    assert "1 crash." in said
    assert "G5 durable  valid" in said
    assert "G6 tools    valid" in said
    with (run.path / "latest" / "history.jsonl").open() as lines:
        faults = [o.f for o in read_operations(lines) if o.process == "nemesis"]
    assert faults == ["kill", "restart", "quiet"]


def test_a_service_is_started_again_when_it_dies_and_ends_when_it_is_closed(tmp_path):
    pid_file = tmp_path / "pid"
    words = ["serve", "--in-process", "--data", str(tmp_path / "data")]
    service = Service(words, tmp_path / "log", pid_file=pid_file)
    try:
        first = service.pid
        assert int(pid_file.read_text()) == first
        os.kill(first, signal.SIGKILL)
        while int(pid_file.read_text()) == first:
            time.sleep(0.01)
        ready = ""
        while not ready:
            try:
                ready = fetched(f"{service.url}/readyz")
            except OSError:
                time.sleep(0.02)
        assert service.restarts == 1
    finally:
        service.close()
    with pytest.raises(OSError, match="refused"):
        fetched(f"{service.url}/readyz")


def is_refused(where):
    with socket.socket() as probe:
        return probe.connect_ex(where) == errno.ECONNREFUSED


def test_no_service_outlives_a_load_test_that_is_killed(tmp_path):
    script = (
        "import os, signal, sys\nfrom pathlib import Path\n"
        "from kode_lab.load.services import Service\n"
        "here = Path(sys.argv[1])\n"
        "service = Service(['simulate'], here / 'log')\n"
        "print(service.url, flush=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    ran = subprocess.run(
        [sys.executable, "-c", script, tmp_path], capture_output=True, text=True, check=False
    )
    assert ran.returncode == -signal.SIGKILL
    where = ("127.0.0.1", int(ran.stdout.rpartition(":")[2]))
    until_s = time.monotonic() + 20
    while time.monotonic() < until_s and not is_refused(where):
        pass
    assert is_refused(where)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["nothing"], "there is no load test 'nothing': choose hot_session, same_name"),
        (["hot_session", "--for", "soon"], "--for 'soon' is no duration"),
        (["hot_session", "--for", "0s"], "--for '0s' is no duration"),
        (["hot_session", "--profile", "missing.toml"], "simulate did not start"),
    ],
)
def test_what_cannot_be_run_is_said_in_one_line(tmp_path, capsys, words, told):
    assert main(["load", *words, "--results", str(tmp_path)]) == 3
    assert told in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize(
    ("option", "value"),
    [
        *(("--rate", value) for value in ("-1", "0", "nan", "inf")),
        *(("--users", value) for value in ("0", "-1")),
        *(("--processes", value) for value in ("0", "-1")),
        *(("--spawn-rate", value) for value in ("0", "nan")),
        ("--slo-p99-ms", "-5"),
        ("--kills", "-1"),
        ("--for", "nonsense"),
        ("--fault", "nope"),
        ("--fault", "directory-not-synced"),
        ("--fault", "no-lock --host=http://127.0.0.1:1"),
    ],
)
def test_an_option_that_makes_no_sense_is_named_before_anything_starts(
    tmp_path, capsys, option, value
):
    began_s = time.monotonic()
    words = [f"{option}={word}" if word[:2] != "--" else word for word in value.split()]
    assert main(["load", "chaos", *words, "--results", str(tmp_path)]) == 3
    (said,) = capsys.readouterr().err.splitlines()
    assert option in said or f"there is no fault {value!r}" in said
    assert list(tmp_path.iterdir()) == []
    assert time.monotonic() - began_s < 10


@pytest.mark.parametrize("words", [("--rate=nan", *two_processes()), ("--kills=-1",)])
def test_locust_itself_begins_nothing_with_an_option_that_makes_no_sense(tmp_path, words):
    run = locust(
        tmp_path / "run", "chaos", "http://127.0.0.1:1", "--headless", "-t", "60s", *words,
        workers=(),
    )  # fmt: skip
    status, _ = run.ended()
    assert status == 3, run.words()
    option = words[0].partition("=")[0]
    assert run.words().count(f"kode-lab: {option} ") == 1
    assert "Traceback" not in run.words()
    assert not (run.path / "history.jsonl").exists()


def test_every_load_test_has_its_setting_and_its_page():
    places = {path.stem for path in LOADTESTS.glob("*.py") if "task" not in path.stem}
    assert set(SETTINGS) <= places
    page = (LOADTESTS.parent / "docs" / "loadtests.md").read_text()
    assert all(f"`{name}`" in page for name in SETTINGS)


@pytest.mark.parametrize(("text", "seconds"), [("10s", 10), ("2m", 120), ("1.5h", 5400), ("7", 7)])
def test_durations_are_read_with_their_unit(text, seconds):
    assert seconds_of(text) == seconds
