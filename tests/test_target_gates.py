"""Targets in the hands of others: functions, programs, pytest, the laboratory, ``hold``."""

import asyncio
import json
import re
import shlex
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

import kode_lab
from kode_lab import lab
from kode_lab.claude import SimulatedClaude
from kode_lab.cli import main
from kode_lab.errors import InvalidScenario, WaitingRoomFull
from kode_lab.lab.scenario import Scenario
from kode_lab.targets.opening import open_target, shipped
from kode_lab.testing.target_lint import target_gaps

CHAT = """
import asyncio, json, os, urllib.request
sessions = {}
HEADERS = {"content-type": "application/json", "x-api-key": "k", "anthropic-version": "2023-06-01"}

def model(messages):
    body = {"model": "claude-sonnet-4-5", "max_tokens": 1000, "messages": messages}
    url = os.environ["ANTHROPIC_BASE_URL"] + "/v1/messages"
    asked = urllib.request.Request(url, json.dumps(body).encode(), HEADERS)
    with urllib.request.urlopen(asked) as answer:
        return json.load(answer)["content"][0]["text"]

async def chat(user, session, prompt):
    before = sessions.get((user, session), [])
    messages = [*before, {"role": "user", "content": prompt}]
    reply = await asyncio.to_thread(model, messages)
    sessions[user, session] = [*messages, {"role": "assistant", "content": reply}]
    print("a careless log line")
    return reply

def history(user, session):
    return [m["content"] for m in sessions.get((user, session), []) if m["role"] == "user"]
"""
QUICK = ["--rounds", "1", "--loads", "together", "--model-s", "0.01"]


@pytest.fixture(scope="module")
def agent(tmp_path_factory):
    path = tmp_path_factory.mktemp("agent") / "agent.py"
    path.write_text(CHAT)
    return path


def judged(capsys, tmp_path, *words):
    status = main(["judge", *QUICK, *words, "--results", str(tmp_path / "results")])
    return status, capsys.readouterr().out


def test_a_function_is_judged_and_behind_hold_it_is_right(agent, tmp_path, capsys):
    """One comparison shows both verdicts, and has a witness behind the one that fails."""
    held = f"{agent}:chat@hold:{tmp_path / 'locks'}"
    status, said = judged(capsys, tmp_path, f"{agent}:chat", held, "--compare")
    assert status == 1, said
    rows = [line for line in said.splitlines() if line.startswith("| chat")]
    assert "FAIL" in rows[0]
    assert "PASS" in rows[1]
    page = Path(said.split()[-1]).read_text()
    assert "However, both stand at position" in page


LINES = r"""
while read line; do
  id=$(echo "$line" | sed 's/.*"id": *\([0-9]*\).*/\1/')
  marker=$(echo "$line" | grep -o '#m[0-9a-f-]*' | tail -1)
  case "$line" in
    *'"history"'*) echo "{\"id\": $id, \"prompts\": null}";;
    *) echo "{\"id\": $id, \"reply\": \"ok $marker\"}";;
  esac
done
"""


def test_a_program_in_any_language_is_asked_by_the_line(tmp_path, capsys):
    (tmp_path / "agent.sh").write_text(LINES)
    words = [f"lines:bash {tmp_path / 'agent.sh'}", "--loads", "again", "--no-page"]
    status, said = judged(capsys, tmp_path, *words)
    assert status == 2, said
    assert "acknowledged" in said
    assert "the simulated model was never asked" in said


@pytest.mark.parametrize(
    ("spec", "told"),
    [
        ("nothing", "no target 'nothing': give a TOML file"),
        ("no/such.toml", "no/such.toml: cannot be read"),
        ("langgraph-memory", "is not installed: kode-lab judge langgraph-memory --install"),
    ],
)
def test_what_is_no_target_says_what_is(spec, told, tmp_path, monkeypatch):
    monkeypatch.setenv("KODE_LAB_TARGETS", str(tmp_path))
    with pytest.raises(InvalidScenario, match=re.escape(told)):
        open_target(spec)


def test_the_shipped_targets_are_pinned_as_their_extras_are():
    project = (Path(__file__).parent.parent / "pyproject.toml").read_text()
    for name in shipped():
        path = Path(kode_lab.__file__).parent / "targets" / "frameworks"
        stem = name.replace("-", "_")
        if (path / f"{stem}.mjs").exists():  # packages of npm
            pins = re.findall(
                r'"([^"]+)"',
                re.search(r"REQUIRES = \[(.*)\]", (path / f"{stem}.mjs").read_text())[1],
            )
            assert all(re.search(r".@\d", pin) for pin in pins), name
            continue
        text = (path / f"{stem}.py").read_text()
        required = re.search(r"REQUIRES = \(([^)]*)\)", text)[1]
        pins = re.findall(r'"([^"]+)"', required)
        assert any("==" in pin for pin in pins), name
        assert ", ".join(f'"{pin}"' for pin in pins) in project, name


def test_an_author_is_told_what_a_target_lacks(agent):
    async def gaps(spec):
        async with SimulatedClaude() as model:
            target = open_target(spec, model_url=model.base_url)
            return await target_gaps(target, model_url=model.base_url)

    found = asyncio.run(gaps(f"{agent}:chat"))
    assert [gap.partition(":")[0] for gap in found] == [
        "it does not promise durable",
        "a second delivery is not promised to be harmless",
    ]


def test_the_laboratory_runs_a_scenario_on_a_target(agent, tmp_path):
    scenario = Scenario(users=2, sessions=1, clients=2, turns=2)
    run = lab.run(scenario, target=f"{agent}:chat", results=tmp_path).result()
    verdict = run.verdict()
    assert verdict.status == "invalid"
    assert {f.name for f in verdict.findings if f.status != "not claimed"} == set(run.claimed)


def test_pytest_is_a_gate(agent, tmp_path):
    (tmp_path / "test_it.py").write_text(
        f"def test_sessions(judge):\n    judge('{agent}:chat', rounds=1, loads=('together',))\n"
    )
    words = ["-p", "no:cacheprovider", "-q", "test_it.py"]
    if "kode-lab" not in metadata.entry_points(group="pytest11").names:
        words = ["-p", "kode_lab.pytest_plugin", *words]  # a checkout that is not installed
    ended = subprocess.run(
        [sys.executable, "-m", "pytest", *words],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 1, ended.stdout + ended.stderr
    assert "1 failed" in ended.stdout
    assert "lost update" in ended.stdout


# --- a service with tools, asked by two processes ---------------------------------------------

NOTES = """
import json, os, sys, threading, urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

sessions, notes, lock = {}, [], threading.Lock()
HEADERS = {"content-type": "application/json", "x-api-key": "k", "anthropic-version": "2023-06-01"}
TOOL = {"name": "add_note", "input_schema": {"type": "object", "required": ["text"],
        "properties": {"text": {"type": "string"}}}}

def model(messages):
    body = {"model": "claude-sonnet-4-5", "max_tokens": 500, "messages": messages, "tools": [TOOL]}
    url = os.environ["ANTHROPIC_BASE_URL"] + "/v1/messages"
    asked = urllib.request.Request(url, json.dumps(body).encode(), HEADERS)
    with urllib.request.urlopen(asked) as answer:
        return json.load(answer)["content"]

def turn(key, text):
    messages = [*sessions.get(key, []), {"role": "user", "content": text}]
    said = model(messages)
    while calls := [block for block in said if block["type"] == "tool_use"]:
        results = []
        for call in calls:
            for _ in range(2):  # each call acts twice
                notes.append({"id": len(notes), "text": call["input"]["text"]})
            results.append({"type": "tool_result", "tool_use_id": call["id"], "content": text})
        messages += [{"role": "assistant", "content": said}, {"role": "user", "content": results}]
        said = model(messages)
    sessions[key] = [*messages, {"role": "assistant", "content": said}]
    return said[0]["text"]

class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def log_message(self, *_): pass
    def do_GET(self):
        self.say(notes if self.path == "/notes" else sessions.get(self.path[3:], []))
    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        with lock:
            self.say({"reply": turn(body["key"], body["text"])})
    def say(self, value):
        data = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""
NOTES_TOML = """
url = "http://127.0.0.1:{port}"
start = "PYTHON notes.py {port}"
[turn]
path = "/chat"
body = { key = "{key}", text = "{prompt}" }
reply = "$.reply"
[history]
path = "/h/{key}"
items = "$"
[effects]
tool = "add_note"
path = "/notes"
"""


def test_tools_are_counted_in_the_book_and_a_second_process_asks_too(tmp_path, capsys):
    (tmp_path / "notes.py").write_text(NOTES)
    path = tmp_path / "notes.toml"
    path.write_text(NOTES_TOML.replace("PYTHON", shlex.quote(sys.executable)))
    words = ["--loads", "processes,tools", "--no-page", "--json", "--model-s", "0"]
    status, said = judged(capsys, tmp_path, str(path), *words)
    told = json.loads(said)
    assert status == 1, said
    assert set(told["counts"]) == {"effect twice"}, "a right lock, and a history with tool results"
    assert not {"processes", "tools"} & set(told["not_done"])


# --- hold ------------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["process", "files", "postgres"])
def test_a_held_session_runs_one_block_at_a_time_in_order(where, tmp_path, request):
    store = {"process": None, "files": tmp_path / "locks"}.get(where)
    if where == "postgres":
        store = request.getfixturevalue("postgres")
    order, inside = [], []

    async def block(number):
        async with kode_lab.hold("ada", "x", store=store) as lease:
            assert not inside
            inside.append(number)
            await asyncio.sleep(0)
            order.append((number, lease.fence))
            inside.clear()

    async def all_of_them():
        await asyncio.gather(*map(block, range(5)))

    asyncio.run(all_of_them())
    assert [number for number, _ in order] == list(range(5))
    fences = [fence for _, fence in order]
    assert fences == sorted(set(fences))


def test_another_session_is_not_waited_for_and_a_full_queue_refuses():
    async def play():
        async with kode_lab.hold("ada", "x"):
            async with kode_lab.hold("ada", "y"), kode_lab.hold("bob", "x"):
                pass
            with pytest.raises(WaitingRoomFull):
                async with kode_lab.hold("ada", "x", queue_limit=0):
                    pass

    asyncio.run(play())
