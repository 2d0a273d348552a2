"""What a run leaves for readers without Python: ``turns.csv`` and ``timeline.html``."""

import csv

import pandas as pd
import pytest

from benchmarks.laboratory import synthetic
from kode_lab import Scenario, lab
from kode_lab.lab.exports import EXPORT_LIMIT_BYTES, export
from kode_lab.lab.tables import turns_table
from kode_lab.lab.turn_view import TURN_COLUMNS


@pytest.fixture
def run(tmp_path):
    return synthetic(tmp_path, 40, sessions=4)


def test_turns_csv_is_the_table_of_turns(run):
    export(run)
    table = turns_table(run)
    told = pd.read_csv(run.path / "turns.csv", dtype=table.dtypes.to_dict())
    pd.testing.assert_frame_equal(told, table)
    assert len(told) == 40


def test_every_finished_scenario_has_its_turns_and_its_timeline(tmp_path):
    run = lab.run(Scenario(users=1, sessions=2, turns=1), results=tmp_path).result()
    with (run.path / "turns.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert tuple(rows[0]) == TURN_COLUMNS
    turns = [operation for operation in run.operations() if operation.f == "turn"]
    assert sorted(row["turn_id"] for row in rows) == sorted(turn.turn_id for turn in turns)
    page = (run.path / "timeline.html").read_text("utf-8")
    assert all(turn.turn_id in page for turn in turns)


def test_records_that_cannot_be_read_are_no_reason_to_fail(run):
    with (run.path / "history.jsonl").open("a", encoding="utf-8") as history:
        history.write("{half a line\n")
    export(run)
    assert not (run.path / "turns.csv").exists()
    assert not (run.path / "timeline.html").exists()


def test_records_above_the_limit_are_left_to_programs(run):
    with (run.path / "trace.jsonl").open("ab") as trace:
        trace.truncate(EXPORT_LIMIT_BYTES + 1)  # a hole: it takes no room
    export(run)
    assert not (run.path / "turns.csv").exists()
