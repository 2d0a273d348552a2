"""A file is judged, or refused by the line that is wrong; never passed over, never a crash."""

import contextlib
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
from judge_spec import SPECS

from benchmarks.histories import declared_run, valid_run
from kode_lab.check import ANOMALIES, GUARANTEES, check, check_path, judge
from kode_lab.check.ascii_history import drawn
from kode_lab.check.columns import kept_columns, read_columns
from kode_lab.cli import main
from kode_lab.errors import InvalidRecord
from kode_lab.history.operation import (
    NEMESIS,
    Effect,
    HistoryWriter,
    Operation,
    Read,
    digest_of,
)
from kode_lab.history.reader import LINE_LIMIT_BYTES, read_operations
from kode_lab.history.span import Span, span_line

DOCS = Path(__file__).parent.parent / "docs"
A_LINE = Draft202012Validator(json.loads((DOCS / "history.schema.json").read_text()))
A_SPAN = Draft202012Validator(json.loads((DOCS / "trace.schema.json").read_text()))
FINE = drawn(SPECS["two turns, one after the other"].picture)
WRONG = drawn(SPECS["two turns at one position, one gone"].picture)
UNKNOWN = drawn(SPECS["no two turns met"].picture)


OVERTAKEN = drawn(SPECS["a turn that two overtook, of which one is allowed"].picture)


def write(path, operations):
    """Write operations as their clients would have."""
    writer = HistoryWriter(path)
    events = []
    for number, op in enumerate(operations):
        events.append((op.invoke_ns, 0, number, op))
        if op.process != NEMESIS and op.complete_ns != float("inf"):
            events.append((op.complete_ns, 1, number, op))
    for time_ns, is_end, number, op in sorted(events, key=lambda event: event[:3]):
        process = f"p{number}"
        if op.process == NEMESIS:
            writer.fault(op.f, time_ns)
        elif is_end:
            facts = {"answered": op.answered, "config": op.config, "effects": op.effects}
            facts |= {"is_suffix": op.is_suffix, "details": op.details, "markers": op.markers}
            writer.complete(process, time_ns, op.type, read=op.read, **facts)
        else:
            told = {"marker": op.marker, "turn_id": op.turn_id, "details": op.details}
            writer.invoke(op.key, process, time_ns, f=op.f, **told)
    writer.close()
    return path


INVOKE = {
    "type": "invoke", "process": "p", "time_ns": 1, "userId": "u", "agentId": "a", "marker": "m",
    "turn_id": "t",
}  # fmt: skip
OK = {"type": "ok", "process": "p", "time_ns": 2}
READ = {"position": 0, "digest": "0"}
AGAIN = INVOKE | {"process": "q", "time_ns": 3}
MINUTE_NS = 60 * 10**9


@pytest.mark.parametrize(
    ("lines", "number", "told"),
    [
        ([INVOKE, OK, AGAIN | {"turn_id": "t2"}], 3, "already sent by another turn"),
        ([INVOKE, OK, AGAIN | {"turn_id": None}], 3, "already sent by another turn"),
        ([INVOKE, OK, AGAIN | {"userId": "v"}], 3, "already sent by another turn"),
        ([INVOKE, OK | {"time_ns": 0}], 2, "completes before it invoked"),
        ([INVOKE | {"time_ns": 2 * MINUTE_NS}, AGAIN], 2, "two clocks"),
        ([INVOKE | {"clock": "A"}, OK | {"clock": "B"}], 2, "times of two clocks have no order"),
        ([OK], 1, "completes what it never invoked"),
        ([INVOKE, OK, OK], 3, "completes what it never invoked"),
        ([INVOKE, INVOKE], 2, "invokes again before its last one ended"),
        ([INVOKE, OK | {"reed": READ}], 2, "reed is no field: did you mean 'read'"),
        ([INVOKE, OK | {"read": READ | {"foregin": []}}], 2, "did you mean 'foreign'"),
        ([INVOKE, OK | {"effects": [{"name": "x"}]}], 2, "each with its id"),
        ([INVOKE, OK | {"effects": [7]}], 2, "each with its id"),
        ([INVOKE, OK | {"effects": [{"id": "1", "user": "x"}]}], 2, "effects.user is no field"),
        ([INVOKE, OK | {"marker": "other"}], 2, "not that of the invoke"),
        ([INVOKE, OK | {"read": READ | {"position": -1}}], 2, "read needs markers, or position"),
        ([INVOKE, OK | {"read": READ | {"position": True}}], 2, "position is a whole number"),
        (
            [INVOKE, OK | {"read": READ | {"digest": "f" * 17}}],
            2,
            "read needs markers, or position",
        ),
        ([INVOKE, OK | {"read": READ | {"tail": "m"}}], 2, "read.tail is a list of texts"),
        ([INVOKE, OK | {"time_ns": True}], 2, "time_ns is "),
        ([INVOKE, OK | {"time_ns": 2**63}], 2, "TIME_LIMIT_NS"),
        ([INVOKE | {"f": "trun"}], 1, "f 'trun' is none of turn, read, effects"),
        ([{"type": "info", "process": "nemesis", "time_ns": 1}], 1, "f None names no fault"),
        ([{**OK, "process": "nemesis", "f": "turn"}], 1, "f 'turn' names no fault"),
        ([INVOKE | {"marker": "\ud800"}], 1, "not JSON"),
        (["\x00\x01\x02"], 1, "not JSON"),
        (["[" * 200_000], 1, "not JSON"),
        (['{"type": "ok", "process": "p", "time_ns": ' + "9" * 5000 + "}"], 1, "not JSON"),
        (["x" * 1_000_000], 1, "not JSON"),
        (["\ufeff" + json.dumps(INVOKE)], 1, "not JSON"),
    ],
)
def test_what_is_wrong_with_a_history_is_told_by_its_line(tmp_path, lines, number, told):
    path = tmp_path / "history.jsonl"
    text = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    path.write_text("\n".join(text) + "\n", encoding="utf-8")
    for engine in ("rules", "columns"):
        with pytest.raises(InvalidRecord, match=re.escape(told)) as caught:
            check_path(path, engine=engine)
        assert caught.value.line == number
        assert len(str(caught.value)) < 400


def test_what_is_no_text_at_all_is_refused_by_its_line(tmp_path):
    path = tmp_path / "history.jsonl"
    path.write_bytes(json.dumps(INVOKE).encode() + b"\n\xff\xfe\n")
    with pytest.raises(InvalidRecord, match=r"^line 2: not UTF-8"):
        check_path(path)
    path.write_bytes(b" " * (LINE_LIMIT_BYTES + 1))
    with pytest.raises(InvalidRecord, match=r"^line 1: longer than LINE_LIMIT_BYTES=32000000"):
        check_path(path)


@given(st.binary(max_size=300))
@settings(max_examples=20, deadline=None)
def test_no_bytes_crash_the_judge_or_please_it(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("any") / "history.jsonl"
    path.write_bytes(data)
    with contextlib.suppress(InvalidRecord):
        assert check_path(path).status == "unknown"


def test_a_last_line_that_was_cut_is_as_if_it_had_never_been_written(tmp_path):
    whole = write(tmp_path / "whole.jsonl", FINE).read_bytes()
    path = tmp_path / "history.jsonl"
    start = whole[:-1].rindex(b"\n") + 1
    for end in range(start, len(whole) - 1):
        path.write_bytes(whole[:end])
        assert check_path(path).evidence.lists == 0  # the final read has not been answered
    path.write_bytes(whole[:-1])
    assert check_path(path).status == "valid"


def test_a_history_survives_its_file_with_all_its_evidence(tmp_path):
    picture = """
        ada:1  |--a--|                    -> a      config v1  did 7 create a ada
        ada:1    |--b--|                  -> a/ b   answers a
        ada:1      |--c--?
        nemesis     !kill !restart
        ada:1             |-=-|           -> a b/
        """
    history = drawn(picture)
    path = write(tmp_path / "history.jsonl", history)
    with path.open() as lines:
        again = {(o.f, o.marker or o.f): o for o in read_operations(lines)}
    for operation in history:
        copy = again[operation.f, operation.marker or operation.f]
        assert copy == operation._replace(process=copy.process, line=copy.line)
    assert check_path(path).counts == check(history).counts


def test_what_the_writer_writes_follows_the_schema(tmp_path):
    runs = [valid_run(1), *(drawn(spec.picture) for spec in SPECS.values())]
    for number, run in enumerate(runs):
        for line in write(tmp_path / f"{number}.jsonl", run).read_text().splitlines():
            A_LINE.validate(json.loads(line))
    span = Span(FINE[0].key, "t", "tool", 1, 2, {"gen_ai.tool.name": "x"}, "ValueError")
    A_SPAN.validate(json.loads(span_line(span)))


@pytest.mark.parametrize(
    "line",
    [
        OK | {"reed": READ},
        OK | {"read": {}},
        OK | {"model": {"calls": [[1]]}},
        OK | {"read": READ | {"digest": "x"}},
        OK | {"type": "maybe"},
        OK | {"time_ns": -1},
        INVOKE | {"marker": ""},
        {k: v for k, v in INVOKE.items() if k != "userId"},
        INVOKE | {"f": "trun"},
    ],
)
def test_what_the_reader_refuses_in_a_line_the_schema_refuses_too(line):
    with pytest.raises(InvalidRecord):
        list(read_operations([json.dumps(INVOKE), json.dumps(line)]))
    assert not A_LINE.is_valid(line)


def examples(kind):
    text = (DOCS / "history-format.md").read_text(encoding="utf-8")
    return re.findall(rf"<!-- example: {kind} -->\n```json\n(.*?)```", text, re.DOTALL)


@pytest.mark.parametrize(("kind", "counts"), [("invalid", {"lost update": 1}), ("valid", {})])
def test_the_examples_of_the_format_s_page_are_what_it_says(tmp_path, kind, counts):
    (example,) = examples(kind)
    path = tmp_path / "history.jsonl"
    path.write_text(example, encoding="utf-8")
    verdict = check_path(path)
    assert (verdict.status, verdict.counts) == (kind, counts)
    for line in example.splitlines():
        A_LINE.validate(json.loads(line))
    A_SPAN.validate(json.loads(examples("span")[0]))


ASKS = {  # two turns that meet, a refusal, and a read: by a service that is right
    "python": """
from concurrent.futures import ThreadPoolExecutor
from writer import History
import threading
history, both = History("history.jsonl"), threading.Barrier(2)
def ask(*shown):
    both.wait(60)
    return {"type": "ok", "read": {"markers": list(shown)}}
with ThreadPoolExecutor(2) as pool:
    pool.submit(history.run, "turn", "ada", "s", lambda: ask(), marker="a1")
    pool.submit(history.run, "turn", "ada", "s", lambda: ask("a1", "a2"), marker="a2")
try:
    history.run("turn", "ada", "s", lambda: 1 / 0, marker="a3")
except ZeroDivisionError:
    pass
history.run("read", "ada", "s", lambda: {"type": "ok", "markers": ["a1", "a2"]})
""",
    "javascript": """
import { History } from "./writer.mjs";
const history = new History("history.jsonl");
const ask = (...markers) => async () => ({ type: "ok", read: { markers } });
await Promise.all([
  history.run("turn", "ada", "s", ask(), { marker: "a1" }),
  history.run("turn", "ada", "s", ask("a1", "a2"), { marker: "a2" }),
]);
await history.run("turn", "ada", "s", () => Promise.reject(1), { marker: "a3" }).catch(() => 0);
await history.run("read", "ada", "s", async () => ({ type: "ok", markers: ["a1", "a2"] }));
""",
    "go": """
package main

import ("os"; "sync"; "time")

func main() {
	file, _ := os.Create("history.jsonl")
	h := &History{File: file, Begun: time.Now()}
	var both, done sync.WaitGroup
	both.Add(2)
	ask := func(shown ...string) func() Event {
		return func() Event {
			both.Done()
			both.Wait()
			return Event{"type": "ok", "read": Event{"markers": append([]string{}, shown...)}}
		}
	}
	turn := func(f, marker string) Event {
		return Event{"f": f, "userId": "ada", "sessionId": "s", "marker": marker}
	}
	done.Add(2)
	go func() { h.Run(turn("turn", "a1"), ask()); done.Done() }()
	go func() { h.Run(turn("turn", "a2"), ask("a1", "a2")); done.Done() }()
	done.Wait()
	func() {
		defer func() { recover() }()
		h.Run(turn("turn", "a3"), func() Event { panic("lost") })
	}()
	h.Run(turn("read", ""), func() Event {
		return Event{"type": "ok", "markers": []string{"a1", "a2"}}
	})
}
""",
}
RUNS = {
    "python": ("writer.py", "ask.py", [sys.executable, "ask.py"]),
    "javascript": ("writer.mjs", "ask.mjs", ["node", "ask.mjs"]),
    "go": ("writer.go", "ask.go", ["go", "run", "writer.go", "ask.go"]),
}


@pytest.mark.parametrize("language", RUNS)
def test_the_writers_of_the_format_s_page_write_what_the_judge_reads(tmp_path, language):
    writer, ask, command = RUNS[language]
    if shutil.which(command[0]) is None:
        pytest.skip(f"{command[0]} is not installed")
    text = (DOCS / "history-format.md").read_text(encoding="utf-8")
    (code,) = re.findall(rf"<!-- writer: {language} -->\n```\w+\n(.*?)```", text, re.DOTALL)
    assert len(code.splitlines()) <= 25
    (tmp_path / writer).write_text(code)
    (tmp_path / ask).write_text(ASKS[language])
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for line in (tmp_path / "history.jsonl").read_text().splitlines():
        A_LINE.validate(json.loads(line))
    verdict = check_path(tmp_path / "history.jsonl")
    assert (verdict.status, verdict.evidence.indeterminate) == ("valid", 1)


def test_the_digests_of_the_format_s_page_are_right():
    text = (DOCS / "history-format.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\[.*?\])` \| `([0-9a-f]{16})` \|$", text, re.MULTILINE)
    assert len(rows) == 5
    for markers, digest in rows:
        assert digest_of(json.loads(markers)) == int(digest, 16)


@given(st.integers(0, 10**6), st.sampled_from([7, 40, 10**6]))
@settings(max_examples=4, deadline=None)
def test_suspects_heard_in_portions_give_the_verdict_of_the_whole(tmp_path_factory, seed, portion):
    run = [*valid_run(seed, turns=30, sessions=5), *(declared_run(seed) if seed % 2 else ())]
    others = [o for o in run if o.marker and o.read is not None and o.read.markers is None]
    victim, owner = others[0], others[-1]
    at = run.index(victim)
    run[at] = victim._replace(read=victim.read._replace(foreign=(owner.marker,)))
    effects = tuple(Effect("7", "create", o.marker, "stranger") for o in (victim, owner))
    run.append(Operation(victim.key, "effects", "w", "ok", 10**12, 10**12 + 1, effects=effects))
    path = write(tmp_path_factory.mktemp("run") / "history.jsonl", run)
    judge.PORTION_OPERATIONS, whole = portion, judge.PORTION_OPERATIONS
    try:
        for limit in (None, 1):
            rules = check_path(path, overtaking_limit=limit, engine="rules")
            assert check_path(path, overtaking_limit=limit, engine="columns") == rules
    finally:
        judge.PORTION_OPERATIONS = whole


def test_columns_that_are_kept_are_used_only_for_the_bytes_that_they_are_of(tmp_path):
    path = write(tmp_path / "history.jsonl", [*FINE, *drawn("nemesis  !kill !restart")])
    first = check_path(path, engine="columns", keep=True)
    assert {p.name for p in tmp_path.iterdir()} == {"history.jsonl", "history.jsonl.columns.npz"}
    assert kept_columns(path) is not None
    assert check_path(path, engine="columns") == first
    assert first == check_path(path, engine="rules")
    text = path.read_text()
    path.write_text(text.replace('"b"', '"c"'))
    assert kept_columns(path) is None
    path.write_text(text)
    assert kept_columns(path) is not None
    path.with_name("history.jsonl.columns.npz").write_bytes(b"PK")
    assert check_path(path, engine="columns") == first


@pytest.mark.parametrize("change", ["x_own", "null", "space", "blank", "repeated", "short digest"])
def test_unusual_lines_are_read_as_carefully_by_columns_as_by_the_reader(tmp_path, change):
    path = write(tmp_path / "history.jsonl", FINE)
    events = [json.loads(line) for line in path.read_text().splitlines()]
    for event in events:
        if change == "x_own":
            event["x_mine"] = {"type": [1]}
            if "read" in event:
                event["read"]["x_mine"] = 7
        elif change == "null":
            event["error" if event["type"] != "invoke" else "clock"] = None
        elif change == "repeated" and event["type"] != "invoke" and "markers" not in event:
            event["f"] = "turn"
        elif change == "short digest" and "read" in event:
            event["read"]["digest"] = event["read"]["digest"].lstrip("0") or "0x0"
    separators = (" , ", " : ") if change == "space" else (",", ":")
    lines = [json.dumps(event, separators=separators) for event in events]
    path.write_text(("\n\n" if change == "blank" else "\n").join(lines) + "\n")
    assert read_columns(path) is not None
    assert check_path(path, engine="columns") == check_path(path, engine="rules")
    assert check_path(path, engine="columns").status == "valid"


# ---- the command


def run_command(capsys, *arguments):
    status = main(["check", *map(str, arguments)])
    return status, *capsys.readouterr()


@pytest.mark.parametrize(
    ("operations", "status", "word"),
    [(FINE, 0, "PASS"), (WRONG, 1, "FAIL"), (UNKNOWN, 2, "UNKNOWN")],
)
def test_the_command_says_the_verdict_by_word_and_by_status(
    tmp_path, capsys, operations, status, word
):
    path = write(tmp_path / "history.jsonl", operations)
    for target in (path, tmp_path):
        code, out, err = run_command(capsys, target)
        assert (code, out.partition(":")[0], err) == (status, word, "")
    code, out, _ = run_command(capsys, path, "--json")
    assert (code, json.loads(out)["status"]) == (status, check(operations).status)


def test_the_command_names_the_line_of_unusable_input_and_says_so_by_its_status(tmp_path, capsys):
    path = tmp_path / "history.jsonl"
    path.write_text(json.dumps(INVOKE) + '\n{"type": "ok"}\n')
    status, out, err = run_command(capsys, path)
    assert (status, out) == (3, "")
    assert err == "kode-lab: InvalidRecord: line 2: process is missing: write text\n"
    status, _, err = run_command(capsys, tmp_path / "nowhere")
    assert (status, err.count("\n")) == (3, 1)
    assert "cannot be read" in err
    status, _, err = run_command(capsys, path, "--guarantee", "G17")
    assert status == 3


def test_the_command_judges_the_trace_beside_the_history_and_claims_what_is_asked(tmp_path, capsys):
    write(tmp_path / "history.jsonl", FINE)
    key = FINE[0].key
    spans = [Span(key, f"t{n}", "ask", 10 * n, 10 * n + 15) for n in range(2)]
    trace = tmp_path / "trace.jsonl"
    trace.write_text("".join(span_line(span) + "\n" for span in spans))
    status, out, _ = run_command(capsys, tmp_path)
    assert (status, out.startswith("FAIL: 1 overlap")) == (1, True)
    assert run_command(capsys, tmp_path, "--guarantee", "G2", "--guarantee", "whole")[0] == 0
    assert run_command(capsys, tmp_path, "--guarantee", "durable")[0] == 2
    trace.write_text("{}\n")
    status, _, err = run_command(capsys, tmp_path)
    assert (status, "trace.jsonl: line 1: a span needs" in err) == (3, True)


def test_the_command_claims_a_limit_of_overtaking(tmp_path, capsys):
    path = write(tmp_path / "history.jsonl", OVERTAKEN)
    assert run_command(capsys, path)[0] == 0
    assert run_command(capsys, path, "--overtaking-limit", "2")[0] == 0
    status, out, _ = run_command(capsys, path, "--overtaking-limit", "1", "--guarantee", "whole")
    assert (status, out.startswith("FAIL: 1 overtaking in ")) == (1, True)
    status, _, err = run_command(capsys, path, "--overtaking-limit", "-1")
    assert (status, "overtaking_limit=-1 is below 0" in err) == (3, True)


@pytest.mark.parametrize(("operations", "status"), [(FINE, 0), (WRONG, 1)])
def test_a_report_is_made_of_a_history_alone_with_its_pictures(
    tmp_path, capsys, operations, status
):
    path = write(tmp_path / "mine.jsonl", operations)
    assert main(["report", str(path)]) == status
    page = (tmp_path / "mine.html").read_text()
    assert capsys.readouterr().out.splitlines()[-1] == str(tmp_path / "mine.html")
    assert page.count("<img") >= 1 + status
    assert "What is guaranteed" in page
    assert "How to repeat it" not in page


def test_the_command_as_a_user_types_it(tmp_path):
    path = write(tmp_path / "history.jsonl", WRONG)
    command = [sys.executable, "-m", "kode_lab", "check", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "Then one of T1 and T2 is first" in done.stdout
    assert done.stderr == ""


def test_reads_are_what_their_fields_say():
    read = Read(2, digest_of("ab"), ("a", "b"), ("x",), ("b",))
    line = {"position": 2, "digest": f"{read.digest:x}", "tail": ["a", "b"], "foreign": ["x"]}
    lines = [json.dumps(INVOKE), json.dumps(OK | {"read": line | {"half": ["b"], "x_mine": 1}})]
    (operation,) = read_operations(lines)
    assert operation.read == read


def test_the_judge_s_page_names_every_guarantee_and_every_anomaly_with_what_it_breaks():
    page = (DOCS / "judge.md").read_text(encoding="utf-8")
    for code, name, promise in GUARANTEES:
        (row,) = [line for line in page.splitlines() if line.startswith(f"| {code} ")]
        assert row.startswith(f"| {code} | {name} | {promise} | ")
        told = set(row.split("|")[4].strip().split(", "))
        assert told == {anomaly for anomaly, (broken, _) in ANOMALIES.items() if name in broken}
