"""The tables: a row a turn, a tool call, a session, an event; what was not recorded is missing."""

from __future__ import annotations

import math

import pandas as pd
import pytest
from synthetic_runs import ZERO_NS, Recording, S, the_report, turn

from kode_lab.history.operation import NEMESIS, Operation, Read, marker_of
from kode_lab.history.span import Span
from kode_lab.key import SessionKey
from kode_lab.lab.records import Run, RunRecorder
from kode_lab.lab.tables import (
    events_table,
    sessions_table,
    tool_calls_table,
    turns_table,
)

TABLES = (turns_table, tool_calls_table, sessions_table, events_table)
IDS = ["user_id", "session_id", "agent_id"]
ADA = SessionKey.of("ada", "a", "s1")


def test_a_turn_is_a_row_with_what_its_client_and_the_system_saw():
    table = turns_table(the_report())
    assert list(table["user_id"]) == ["yeya", "test_user"]
    assert list(table["tool_calls"]) == [1, 8]
    assert list(table["model_calls"]) == [2, 9]
    first = table.iloc[0]
    assert first["sent_s"] == 0
    assert first["latency_s"] == pytest.approx(2.19, abs=0.001)
    assert first["model_s"] == pytest.approx(2.186)
    assert first["tools_s"] == pytest.approx(0.003)
    assert first["waited_s"] == pytest.approx(20e-6)
    assert first[["input_tokens", "output_tokens", "fence", "attempts"]].tolist() == [200, 20, 4, 1]
    assert first["config_version"] == "v1"


def test_the_steps_of_a_turn_add_up_to_its_latency():
    table = turns_table(the_report())
    steps = table[["waited_s", "load_s", "model_s", "tools_s", "commit_s"]].sum(axis=1)
    pd.testing.assert_series_equal(steps, table["latency_s"], check_names=False, atol=1e-6)


def test_a_tool_call_is_a_row_and_says_what_came_of_it():
    table = tool_calls_table(the_report())
    assert len(table) == 9
    assert table["tool"].value_counts().to_dict() == {"query_schedules": 8, "create_schedule": 1}
    assert table.loc[0, "result"] == '{"id": 13039}'
    assert not table["is_error"].any()
    assert table["started_s"].is_monotonic_increasing


def test_a_session_is_a_row_that_adds_up_its_turns():
    run = turn(ADA, "t1") + turn(ADA, "t2", (2.0,), (), sent_s=0.5, waited_s=1.0, outcome="fail")
    [row] = sessions_table(run).to_dict("records")
    assert (row["turns"], row["ok"], row["fail"], row["info"]) == (2, 1, 1, 0)
    assert row["waited_s"] == pytest.approx(1.00002)
    assert row["longest_wait_s"] == pytest.approx(1.0)
    assert row["slowest_s"] == pytest.approx(3.0, abs=0.001)
    assert row["last_ended_s"] == pytest.approx(3.5, abs=0.001)
    assert row["input_tokens"] == 300


def test_what_was_not_recorded_is_missing_and_never_zero():
    lost = Operation(ADA, "turn", "p", "info", ZERO_NS, math.inf, "#m0-1", "t9")
    [row] = turns_table(Recording((), (lost,))).to_dict("records")
    for name in ("latency_s", "waited_s", "model_s", "tool_calls", "input_tokens", "fence"):
        assert pd.isna(row[name]), name
    [session] = sessions_table(Recording((), (lost,))).to_dict("records")
    for name in ("waited_s", "tool_calls", "median_latency_s"):
        assert pd.isna(session[name]), name
    untold = the_report()._replace(history=())
    assert turns_table(untold)["attempts"].isna().all()


def test_an_event_is_a_row_and_an_answer_that_never_came_has_none():
    seen = Operation(
        *(ADA, "turn", "p1", "ok", ZERO_NS, ZERO_NS + S, "#m0-1", "t1"),
        read=Read(3, 0, foreign=("#m1-1",)),
    )
    lost = Operation(ADA, "turn", "p2", "info", ZERO_NS + 1, math.inf, "#m0-2", "t2")
    no_session = SessionKey("", "", "")
    fault = Operation(no_session, "kill", NEMESIS, "info", ZERO_NS + 2, ZERO_NS + 2)
    table = events_table(Recording((), (seen, lost, fault)))
    assert list(table["type"]) == ["invoke", "invoke", "info", "ok"]
    assert list(table["f"]) == ["turn", "turn", "kill", "turn"]
    assert table.loc[2, IDS].isna().all()
    assert table.loc[3, ["position", "foreign"]].tolist() == [3, 1]


def test_a_turn_sent_twice_is_one_row_with_both_attempts():
    run = turn(ADA, "t1")
    [first] = run.history
    lost = first._replace(process="p0", type="info", invoke_ns=first.invoke_ns - S)
    [row] = turns_table(run._replace(history=(lost, first))).to_dict("records")
    assert (row["attempts"], row["outcome"]) == (2, "ok")
    assert row["latency_s"] == pytest.approx(2.5, abs=0.01)


@pytest.mark.parametrize("make", TABLES)
def test_a_run_whose_last_lines_were_cut_off_has_the_table_of_its_whole_ones(make, tmp_path):
    recorder = RunRecorder(tmp_path, "cut", parameters={})
    recorder.history.invoke(ADA, "c1", 10, marker=marker_of(ADA, 0), turn_id="t1")
    recorder.history.complete("c1", 40, "ok", read=Read(0, 0))
    for step in ("tool", "turn"):
        recorder.trace(Span(ADA, "t1", step, 20, 30))
    run = recorder.finish("complete")
    whole = make(run)
    for name in ("history.jsonl", "trace.jsonl"):
        with (run.path / name).open("a") as records:
            records.write('{"half a li')
    pd.testing.assert_frame_equal(make(Run.load(run.path)), whole)
    assert len(whole) > 0


@pytest.mark.parametrize("make", TABLES)
def test_a_table_of_nothing_has_the_columns_and_types_of_a_full_one(make):
    empty, full = make(Recording((), ())), make(the_report())
    assert len(empty) == 0
    assert list(empty.columns) == list(full.columns)
    assert list(empty.dtypes) == list(full.dtypes)


@pytest.mark.parametrize("make", TABLES)
def test_ids_come_first_and_a_run_reads_like_its_spans_and_operations(make):
    run = the_report()
    table = make(run)
    assert list(table.columns[:3]) == IDS
    pd.testing.assert_frame_equal(table, make(run.spans(), run.operations()))
    pd.testing.assert_frame_equal(table, make(iter(run.spans()), iter(run.operations())))


def test_every_time_has_its_unit_in_its_name():
    for make in TABLES:
        floats = make(the_report()).select_dtypes("float64").columns
        assert all(name.endswith("_s") for name in floats)
