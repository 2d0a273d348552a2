"""The command line as a user types it: what it prints, what it leaves, and its exit status."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import redirect_stdout
from pathlib import Path

import pytest

from kode_lab.cli import main
from kode_lab.lab.records import Run

KODE_LAB = (sys.executable, "-W", "error", "-m", "kode_lab")
# Claims that no busy machine can break: they compare no times.
UNTIMED = re.compile("tool calls|schedule id|no interference|stored in")


def environment(**more):
    bare = {name: value for name, value in os.environ.items() if not name.startswith("ANTHROPIC")}
    return bare | more


def kode_lab(*arguments, cwd, **env):
    return subprocess.run(
        [*KODE_LAB, *map(str, arguments)],
        capture_output=True,
        check=False,
        text=True,
        cwd=cwd,
        env=environment(**env),
        timeout=120,
    )


@pytest.fixture
def typed(tmp_path, capsys, monkeypatch):
    """Run a command in this process: most of a command's cost is starting Python."""
    for name in [name for name in os.environ if name.startswith("ANTHROPIC")]:
        monkeypatch.delenv(name)

    def run(*arguments, cwd=tmp_path):
        monkeypatch.chdir(cwd)
        status = main([str(argument) for argument in arguments])
        return subprocess.CompletedProcess(arguments, status, *capsys.readouterr())

    return run


@pytest.fixture(scope="module")
def reproduced(tmp_path_factory):
    """One reproduction, typed once, looked at by several tests."""
    cwd = tmp_path_factory.mktemp("reproduced")
    return cwd, kode_lab("reproduce", "--speed", 20, cwd=cwd)


def test_help_and_version_need_nothing_of_the_laboratory(tmp_path):
    shown = kode_lab("--help", cwd=tmp_path)
    assert shown.returncode == 0
    assert "reproduce" in shown.stdout
    script = (
        "import sys, kode_lab.cli as cli\n"
        "cli.main(['--version'])\n"
        "print([m for m in ('rich', 'anthropic', 'asyncio', 'pydantic') if m in sys.modules])"
    )
    loaded = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    version, modules = loaded.stdout.splitlines()
    assert re.fullmatch(r"kode-lab \d+\.\d+\.\d+", version)
    assert modules == "[]"


@pytest.mark.parametrize(
    "arguments",
    [(), ("fly",), ("reproduce", "--speed", "fast"), ("reproduce", "--speed", "0"),
     ("reproduce", "--speed", "nan"), ("reproduce", "--model", "m", "--speed", "2"),
     ("reproduce", "--profile", "nowhere.toml"), ("simulate", "--port", "99999"),
     ("simulate", "--profile", "nowhere.toml")],
)  # fmt: skip
def test_arguments_that_make_no_sense_end_with_status_3_and_a_reason(tmp_path, typed, arguments):
    refused = typed(*arguments)
    assert refused.returncode == 3
    assert "kode-lab" in refused.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_reproduction_judges_each_claim_and_says_where_everything_lies(reproduced):
    cwd, done = reproduced
    assert done.stderr == ""
    assert done.returncode in (0, 1, 2)  # on a busy machine a time can be inconclusive
    run = Run.load("latest", cwd / "results")
    claims = json.loads((run.path / "claims.json").read_bytes())["claims"]
    for claim in claims:
        assert claim["what"] in done.stdout
        if UNTIMED.search(claim["what"]):
            assert claim["verdict"] == "holds", claim
    for line in ("Simulated: the model.", "Measured: everything else", ".kode/", "13039", "13040"):
        assert line in done.stdout
    figures = {path.name for path in (run.path / "figures").iterdir()}
    assert {"two-sessions.png", "two-sessions.svg"} <= figures
    assert f"results/{run.id}/figures/two-sessions.png" in done.stdout
    for name in ("run.json", "history.jsonl", "trace.jsonl", "trace.perfetto.json"):
        assert (run.path / name).stat().st_size > 0


def test_the_exit_status_is_the_verdict(reproduced):
    cwd, done = reproduced
    verdict = json.loads((cwd / "results/latest/claims.json").read_bytes())["verdict"]
    assert done.returncode == {"holds": 0, "violated": 1, "inconclusive": 2}[verdict]


def test_piped_output_has_no_colour_and_fits_a_hundred_columns(reproduced):
    _, done = reproduced
    assert "\x1b" not in done.stdout
    table = [line for line in done.stdout.splitlines() if "results/" not in line]
    assert max(map(len, table)) <= 100


def test_the_records_hold_no_machine_path(reproduced):
    cwd, _ = reproduced
    for path in (cwd / "results").rglob("*"):
        if path.is_file() and path.suffix in (".json", ".jsonl", ".toml", ".svg"):
            assert str(cwd) not in path.read_text("utf-8"), path
            assert str(Path.home()) + "/" not in path.read_text("utf-8"), path


def test_a_slower_model_violates_the_reports_times_and_ends_with_status_1(tmp_path, typed):
    profile = tmp_path / "slow.toml"
    plans = {"create": [6.0, 4.0], "query": [3.0] * 9, "create-meeting": [2.0, 2.0]}
    plans["create-study"] = [3.0, 3.0]
    words = {"create-meeting": '["meeting"]', "create-study": '["study"]'}
    profile.write_text(
        "".join(
            f'[[plans]]\nname = "{name}"\nintent = "{name.split("-")[0]}"\n'
            f"words = {words.get(name, '[]')}\ncalls_s = {calls_s}\n"
            for name, calls_s in sorted(plans.items(), key=lambda plan: -len(plan[0]))
        )
    )
    done = typed("reproduce", "--speed", 20, "--profile", profile, "--json")
    assert done.returncode == 1
    told = json.loads(done.stdout)  # with --json, stdout is the document's alone
    assert "answered" in done.stderr
    assert {"test", "what", "reported", "measured", "verdict", "how"} == set(told["claims"][0])
    verdicts = {(c["test"], c["what"]): c["verdict"] for c in told["claims"]}
    assert told["verdict"] == "violated"
    assert verdicts["test-1", "session 1 answered in"] == "violated"
    assert verdicts["test-1", "session 2 answered in"] == "violated"
    assert verdicts["test-1", "session 2 tool calls"] == "holds"
    assert Run.load(tmp_path / told["run"]).status == "complete"


def test_a_real_model_without_a_key_is_an_error_that_names_the_key(tmp_path, typed):
    refused = typed("reproduce", "--model", "claude-sonnet-5-5")
    assert refused.returncode == 3
    assert "MissingApiKey" in refused.stderr
    assert "ANTHROPIC_API_KEY" in refused.stderr
    assert list(tmp_path.iterdir()) == []


def test_results_that_cannot_be_written_are_an_error_that_says_what_to_do(tmp_path, typed):
    (tmp_path / "results").write_text("a file")
    refused = typed("reproduce")
    assert refused.returncode == 3
    assert "--results" in refused.stderr
    assert (tmp_path / "results").read_text() == "a file"


def test_an_interrupt_keeps_what_there_is_and_says_where(tmp_path):
    with subprocess.Popen(
        [*KODE_LAB, "reproduce", "--speed", "5"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        cwd=tmp_path, env=environment(),
    ) as running:  # fmt: skip
        # The first answer is there and the second turn is under way.
        assert "session 1" in running.stdout.readline()
        running.send_signal(signal.SIGINT)
        _, told = running.communicate(timeout=60)
        assert running.returncode == 130
    run = Run.load("latest", tmp_path / "results")
    assert f"results/{run.id}" in told
    assert "Traceback" not in told
    assert run.status == "interrupted"
    outcomes = {operation.turn_id: operation.type for operation in run.operations()}
    assert outcomes == {"test-1/session-1": "ok", "test-1/session-2": "info"}
    assert any(span.turn_id == "test-1/session-2" and span.error for span in run.spans())
    claims = json.loads((run.path / "claims.json").read_bytes())["claims"]
    verdicts = {(c["test"], c["what"]): c["verdict"] for c in claims}
    assert verdicts["test-1", "session 1 tool calls"] == "holds"
    assert verdicts["test-1", "session 2 tool calls"] == "inconclusive"


def test_an_interrupted_replay_says_where_what_there_is_lies(tmp_path):
    turns = [{"userId": "ada", "arrived_s": 0, "took_s": 60}]
    (tmp_path / "long.json").write_text(json.dumps({"turns": turns}))
    results = tmp_path / "results"
    with subprocess.Popen(
        [*KODE_LAB, "reproduce", "long.json"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        cwd=tmp_path, env=environment(),
    ) as running:  # fmt: skip
        while not any(path.stat().st_size for path in results.glob("*/history.jsonl")):
            assert running.poll() is None
            time.sleep(0.02)
        running.send_signal(signal.SIGINT)
        _, told = running.communicate(timeout=60)
        assert running.returncode == 130
    run = Run.load("latest", results)
    assert f"what was recorded is in results/{run.id}" in told
    assert "Traceback" not in told
    assert run.status == "interrupted"


def test_check_and_reproduce_take_the_id_of_a_run_as_report_does(reproduced, typed):
    cwd, _ = reproduced
    run = Run.load("latest", cwd / "results")
    for which in ("latest", run.id):
        judged = typed("check", which, cwd=cwd)
        assert judged.returncode == run.verdict().exit_status, judged.stderr
    elsewhere = typed("check", run.id, "--results", cwd / "results", cwd=cwd.parent)
    assert elsewhere.stdout == judged.stdout
    again = typed("reproduce", run.id, "--speed", 5, "--json", cwd=cwd)
    assert len(json.loads(again.stdout)["claims"]) == 26


@pytest.fixture
def simulated():
    """``kode-lab simulate`` as a process, and where it listens."""
    with subprocess.Popen(
        [*KODE_LAB, "simulate", "--port", "0", "--profile", "instant"],
        stdout=subprocess.PIPE, text=True, env=environment(),
    ) as server:  # fmt: skip
        yield re.search(r"http://127\.0\.0\.1:\d+", server.stdout.readline()).group()
        server.send_signal(signal.SIGINT)
        assert server.wait(30) == 0


def test_another_api_is_judged_without_the_profiles_times(simulated, typed, tmp_path, monkeypatch):
    # The real API's place is taken by a server of our own: same client, same path through the code.
    monkeypatch.setenv("ANTHROPIC_API_KEY", "a key")
    monkeypatch.setenv("ANTHROPIC_BASE_URL", simulated)
    done = typed("reproduce", "--model", "claude-sonnet-5-5", "--json")
    told = json.loads(done.stdout)
    verdicts = {(c["test"], c["what"]): c["verdict"] for c in told["claims"]}
    assert verdicts["test-1", "session 2 answered in"] == "not applicable"
    assert verdicts["test-1", "time beyond the model's"] == "not applicable"
    assert verdicts["test-2", "session 1 schedule id"] in ("holds", "violated")
    assert verdicts["test-2", "session 1 stored in"] == "holds"
    run = Run.load(tmp_path / told["run"])
    models = {s.attributes["gen_ai.request.model"] for s in run.spans() if s.step == "ask"}
    assert models == {"claude-sonnet-5-5"}
    assert "a key" not in "".join(p.read_text("utf-8") for p in run.path.glob("*.json*"))


def test_an_occupied_port_is_an_error_that_names_it(typed):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        refused = typed("simulate", "--port", port)
    assert refused.returncode == 3
    assert "PortOccupied" in refused.stderr
    assert str(port) in refused.stderr


def test_a_reader_that_leaves_early_is_no_error(tmp_path, monkeypatch):
    reads, writes = os.pipe()

    def read_a_line():
        with os.fdopen(reads) as reader:
            reader.readline()

    reader = threading.Thread(target=read_a_line)
    reader.start()
    monkeypatch.chdir(tmp_path)
    with os.fdopen(writes, "w") as stdout, redirect_stdout(stdout):
        assert main(["reproduce", "--speed", "50"]) == 141  # as a shell says of SIGPIPE
    reader.join()
    assert Run.load("latest", tmp_path / "results").status == "complete"
