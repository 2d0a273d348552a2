"""A run's directory: what it holds, what it must not hold, and what is said of a damaged one."""

import getpass
import json
import socket
from datetime import UTC, datetime
from pathlib import Path

import pytest

from kode_lab.errors import InvalidRecord, NewerFormat, StoreUnwritable
from kode_lab.history.operation import Read, marker_of
from kode_lab.history.span import Span
from kode_lab.key import SessionKey
from kode_lab.lab.exports import chrome_trace
from kode_lab.lab.records import SCHEMA, Run, RunRecorder

ADA = SessionKey.of("ada", "helper")
BOB = SessionKey.of("bob", "helper")


def span(key, step, start, end, turn_id="t1", **attributes):
    return Span(key, turn_id, step, start, end, attributes)


@pytest.fixture
def recorder(tmp_path):
    recorder = RunRecorder(
        tmp_path / "results",
        "reproduce",
        parameters={"speed": 10.0},
        seed=7,
        command="kode-lab reproduce --speed 10",
        now=lambda: datetime(2026, 3, 2, 14, 5, 6, tzinfo=UTC),
    )
    yield recorder
    recorder.close()


def test_a_run_is_named_by_its_time_its_kind_and_four_digits(recorder):
    stem, _, digits = recorder.path.name.rpartition("-")
    assert stem == "20260302T140506Z-reproduce"
    assert len(digits) == 4
    assert int(digits, 16) >= 0


def test_what_was_written_is_read_again(recorder, tmp_path):
    marker = marker_of(ADA, 0)
    read = Read(0, 0)
    recorder.history.invoke(ADA, "c1", 10, marker=marker, turn_id="t1")
    recorder.history.complete("c1", 20, "ok", read=read)
    step = span(ADA, "turn", 11, 19)
    recorder.trace(step)
    recorder.finish("complete", verdict="holds")

    run = Run.load(recorder.path)
    assert run.status == "complete"
    assert run.parameters == {"speed": 10.0}
    assert run.spans() == (step,)
    (operation,) = run.operations()
    assert (operation.key, operation.marker, operation.read) == (ADA, marker, read)
    for again in (run.id, "latest"):
        assert Run.load(again, tmp_path / "results").facts == run.facts


def test_an_invoke_is_on_disk_before_its_request_could_leave(recorder):
    recorder.history.invoke(ADA, "c1", 10, marker=marker_of(ADA, 0))
    (operation,) = Run.load(recorder.path).operations()
    assert operation.type == "info"


def test_a_run_that_still_runs_or_was_killed_can_be_loaded(recorder):
    assert Run.load(recorder.path).status == "running"
    assert Run.load(recorder.path).spans() == ()


def test_collected_spans_are_on_disk_after_a_batch(recorder):
    for number in range(1000):
        recorder.trace(span(ADA, "ask", number, number + 1))
    assert 700 < len(Run.load(recorder.path).spans()) <= 1000


def test_the_index_has_a_line_for_each_finished_run(recorder, tmp_path):
    recorder.finish("interrupted", verdict="unknown")
    second = RunRecorder(tmp_path / "results", "reproduce", parameters={})
    second.finish("complete", verdict="holds")
    lines = (tmp_path / "results" / "index.jsonl").read_text().splitlines()
    assert [(json.loads(x)["id"], json.loads(x)["verdict"]) for x in lines] == [
        (recorder.path.name, "unknown"),
        (second.path.name, "holds"),
    ]
    assert Run.load("latest", tmp_path / "results").id == second.path.name


def test_the_facts_tell_how_to_do_it_again_and_nothing_about_whose_machine_it_was(recorder):
    recorder.finish("complete")
    text = (recorder.path / "run.json").read_text()
    facts = json.loads(text)
    assert facts["command"] == "kode-lab reproduce --speed 10"
    assert facts["seed"] == 7
    assert facts["machine"]["cores"] >= 1
    assert facts["versions"]["python"]
    assert facts["clock"]["monotonic_ns"] > 0
    for private in (str(Path.home()), str(recorder.path.parent), socket.gethostname()):
        assert private not in text
    if len(user := getpass.getuser()) > 4:
        assert user not in text


@pytest.mark.parametrize("obstacle", ["a file in its place", "a file above it"])
def test_results_that_cannot_be_written_are_an_error_that_says_what_to_do(tmp_path, obstacle):
    (tmp_path / "taken").write_text("")
    results = tmp_path / "taken" / "below" if "above" in obstacle else tmp_path / "taken"
    with pytest.raises(StoreUnwritable, match="--results"):
        RunRecorder(results, "reproduce", parameters={})


def test_an_unknown_run_is_an_error_that_names_those_there_are(recorder, tmp_path):
    with pytest.raises(InvalidRecord, match=recorder.path.name):
        Run.load("yesterday", tmp_path / "results")


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"schema": 1}', "\udce4"])
def test_a_damaged_run_json_is_an_error_that_says_what_still_works(recorder, text):
    (recorder.path / "run.json").write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(InvalidRecord, match=r"history\.jsonl"):
        Run.load(recorder.path)


def test_a_run_of_a_newer_schema_is_refused_by_name(recorder):
    facts = json.loads((recorder.path / "run.json").read_text()) | {"schema": SCHEMA + 1}
    (recorder.path / "run.json").write_text(json.dumps(facts))
    with pytest.raises(NewerFormat, match=f"schema {SCHEMA + 1}"):
        Run.load(recorder.path)


@pytest.mark.parametrize("name", ["history.jsonl", "trace.jsonl"])
@pytest.mark.parametrize("line", [b'{"type"\n', b"\xff\xfe\n"])
def test_a_damaged_record_is_an_error_that_names_file_and_run(recorder, name, line):
    run = recorder.finish("complete")
    (recorder.path / name).write_bytes(line)
    with pytest.raises(InvalidRecord, match=f"{name} of {run.id}"):
        run.operations() if name == "history.jsonl" else run.spans()


@pytest.mark.parametrize("name", ["history.jsonl", "trace.jsonl"])
def test_a_directory_in_the_place_of_a_record_is_an_error_that_names_it(recorder, name):
    run = recorder.finish("complete")
    (recorder.path / name).unlink()
    (recorder.path / name).mkdir()
    with pytest.raises(InvalidRecord, match=f"{name} of {run.id}"):
        run.operations() if name == "history.jsonl" else run.spans()


def test_a_last_line_that_was_cut_off_is_taken_as_not_written(recorder):
    recorder.history.invoke(ADA, "c1", 10, marker=marker_of(ADA, 0), turn_id="t1")
    recorder.history.complete("c1", 20, "ok", read=Read(0, 0))
    recorder.trace(span(ADA, "turn", 11, 19))
    run = recorder.finish("complete")
    whole = run.operations(), run.spans()
    for name in ("history.jsonl", "trace.jsonl"):
        with (run.path / name).open("ab") as records:
            records.write(b'{"type": "invoke", "userId": "\xc3')
    cut = Run.load(run.path)
    assert (cut.operations(), cut.spans()) == whole


@pytest.mark.parametrize(
    "name", ["parameters", "summary", "commit", "machine", "versions", "scenario"]
)
def test_what_must_be_an_object_in_run_json_is_one_or_the_error_names_it(recorder, name):
    facts = json.loads((recorder.path / "run.json").read_text())
    for odd in ("text", 3, ["list"], True):
        (recorder.path / "run.json").write_text(json.dumps(facts | {name: odd}))
        with pytest.raises(InvalidRecord, match=f"{name} is .* must be an object"):
            Run.load(recorder.path)
    (recorder.path / "run.json").write_text(json.dumps(facts | {name: None}))
    assert Run.load(recorder.path).facts[name] == {}


def test_perfetto_shows_each_session_as_a_process_with_nested_steps():
    trace = chrome_trace(
        [
            span(ADA, "ask", 1_000, 4_000),
            span(ADA, "tool", 4_000, 5_000, **{"gen_ai.tool.name": "create"}),
            span(ADA, "turn", 1_000, 6_000),
            span(BOB, "turn", 2_000, 3_000),
        ]
    )
    names = {e["args"]["name"]: e["pid"] for e in trace["traceEvents"] if e["ph"] == "M"}
    assert sorted(names) == ["ada:helper", "bob:helper"]
    steps = [e for e in trace["traceEvents"] if e["ph"] == "X"]
    assert [(e["name"], e["ts"], e["dur"], e["tid"]) for e in steps] == [
        ("turn", 0.0, 5.0, 0),
        ("ask", 0.0, 3.0, 0),
        ("turn", 1.0, 1.0, 0),
        ("tool create", 3.0, 1.0, 0),
    ]
    json.dumps(trace)


def test_steps_that_do_not_nest_get_tracks_of_their_own():
    trace = chrome_trace(
        [
            span(ADA, "turn", 0, 10_000),
            span(ADA, "tool", 1_000, 5_000),
            span(ADA, "tool", 2_000, 6_000),
            span(ADA, "turn", 3_000, 20_000, turn_id="t2"),
            span(ADA, "wait", 3_000, 10_000, turn_id="t2"),
        ]
    )
    steps = [e for e in trace["traceEvents"] if e["ph"] == "X"]
    tracks = [(e["args"]["turn_id"], e["cat"], e["tid"]) for e in steps]
    assert tracks == [
        ("t1", "turn", 0),
        ("t1", "tool", 0),
        ("t1", "tool", 1),
        ("t2", "turn", 2),
        ("t2", "wait", 2),
    ]


def test_an_empty_trace_is_an_empty_timeline():
    assert chrome_trace([])["traceEvents"] == []
