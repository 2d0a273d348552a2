"""The harness of ``make bench`` keeps its rules; the benches run on any machine."""

import asyncio
import json
import os
import subprocess
import sys
from math import isfinite
from pathlib import Path

import pytest

from benchmarks import bench as harness
from benchmarks.__main__ import main
from benchmarks.bench import BENCHES, Row, row
from benchmarks.sampling import (
    child_cpu_s,
    cpu_us,
    interleaved,
    resident_bytes,
    scratch,
    share,
)
from kode_lab.errors import InvalidScenario

FIELDS = ["name", "value", "unit", "baseline", "ratio", "bar", "ok"]


@pytest.mark.parametrize(
    ("value", "baseline", "bar", "is_ok"),
    [
        (7, 10, "ratio <= 0.7", True),
        (8, 10, "ratio <= 0.7", False),
        (20, 1, "ratio >= 20", True),
        (19, 1, "ratio >= 20", False),
        (5000, None, "value >= 5000", True),
        (4999, None, "value >= 5000", False),
        (4999, 1, "value >= 5000", False),
        (500, None, "value <= 500", True),
        (501, 1000, "value <= 500", False),
        (1e9, 1e-9, None, True),
    ],
)
def test_a_row_is_judged_by_its_bar(value, baseline, bar, is_ok):
    judged = row("it", value, "us", baseline=baseline, bar=bar)
    assert judged.ok is is_ok
    assert judged.ratio == (None if baseline is None else pytest.approx(value / baseline, rel=1e-3))


@pytest.mark.parametrize("bar", ["ratio < 1", "at most 3", "", "value <= 1 s", "ratio <= 1"])
def test_a_bar_that_cannot_be_judged_is_refused(bar):
    """The last one asks for a ratio where there is nothing to compare with."""
    with pytest.raises(InvalidScenario, match="bar"):
        row("it", 1.0, "us", bar=bar)


def test_rounds_are_taken_in_turns_and_the_median_counts():
    """The first sample of each side warms up; one wild sample moves nothing."""
    taken = []
    figures = {"a": iter([99.0, 1, 2, 500, 3, 4]), "b": iter([0.0, 10, 10, 10, 10, 10])}

    def side(name):
        async def sample():
            taken.append(name)
            return next(figures[name])

        return sample

    medians = asyncio.run(interleaved({"a": side("a"), "b": side("b")}, 5))
    assert medians == {"a": 3, "b": 10}
    assert "".join(taken) == "ab" + "ab" + "ba" + "ab" + "ba" + "ab"


def test_cpu_time_is_counted_and_waiting_is_not():
    def elsewhere():
        subprocess.run([sys.executable, "-c", "sum(range(10_000_000))"], check=True)

    async def waiting():
        elsewhere()

    async def working():
        sum(range(10_000_000))

    async def scenario():
        return await cpu_us(waiting, 1), await cpu_us(working, 1)

    waited_us, worked_us = asyncio.run(scenario())
    assert waited_us < worked_us


def test_the_cpu_time_of_a_child_is_the_childs_own():
    idle_s = child_cpu_s("-c", "pass")
    assert idle_s > 0
    assert child_cpu_s("-c", "sum(range(10_000_000))") > idle_s
    with pytest.raises(InvalidScenario, match="ended with 7"):
        child_cpu_s("-c", "raise SystemExit(7)")


def test_resident_memory_sees_what_is_touched():
    before_bytes = resident_bytes()
    held = os.urandom(64_000_000)
    assert resident_bytes() - before_bytes > len(held) / 2


def test_a_scratch_directory_is_gone_afterwards_even_after_an_error():
    paths = []

    def use():
        with scratch() as path:
            paths.append(path)
            (path / "deep" / "er").mkdir(parents=True)
            raise KeyError(path)

    with pytest.raises(KeyError):
        use()
    assert not paths[0].exists()


def test_a_share_of_the_work_is_never_nothing():
    assert [share(1_000, 0.01), share(10, 0.001), share(10, 0.001, least=4)] == [10, 1, 4]


# They start servers, load generators or the judge, and are run by the tests of those.
ELSEWHERE = {"serve", "generator", "check"}


@pytest.mark.parametrize("name", sorted(BENCHES.keys() - ELSEWHERE))
def test_every_bench_of_sessions_runs_and_its_rows_are_whole(name):
    """With a thousandth of the work the figures mean nothing, so no bar is checked.

    Not even a sign: the share of the files is the difference of two turns.
    """
    rows = [harness.named(found, name) for found in BENCHES[name].load()(0.001)]
    assert rows
    for found in rows:
        assert found._fields == tuple(FIELDS)
        assert found.name.startswith(f"{name}: ")
        assert found.value is not None
        assert isfinite(found.value)
        assert found.unit
        assert (found.ratio is None) == (found.baseline is None)
    assert len({found.name for found in rows}) == len(rows)


def test_a_bench_that_breaks_misses_its_bar(capfd):
    """No share of its work can be computed, so the child ends with an error."""
    [(_, [found])] = harness.bench(["import"], effort=float("nan"))
    assert found == Row("import: broke", None, "", None, None, None, ok=False)
    assert "Error" in capfd.readouterr().err


@pytest.mark.parametrize("name", sorted(BENCHES))
def test_every_bench_is_where_the_list_says(name):
    assert callable(BENCHES[name].load())
    assert BENCHES[name].about


def test_an_unknown_bench_is_refused_with_the_names_of_all(capsys):
    assert main(["nope"]) == 3
    complaint = capsys.readouterr().err
    assert all(name in complaint for name in BENCHES)


ROWS = [
    row("lock: free", 0.5, "us", baseline=1.0, bar="ratio <= 0.7"),
    row("turn: rate", 4_000.0, "turns/CPU-s", bar="value >= 5000"),
    row("turn: other", 12_345.678, "us"),
    Row("memory: broke", None, "", None, None, None, ok=False),
]


def test_json_is_one_list_of_the_seven_fields():
    rows = json.loads(harness.as_json(ROWS))
    assert [list(fields) for fields in rows] == [FIELDS] * 4
    assert [fields["ok"] for fields in rows] == [True, False, True, False]
    assert rows[2]["value"] == 12_350.0


def test_the_table_says_which_bars_are_missed():
    lines = harness.table(ROWS).splitlines()
    assert len({len(line) for line in lines}) == 1
    claims = [line.split("|")[6].strip() for line in lines[2:]]
    assert claims == ["ok", "MISSED", "", "MISSED"]


def test_what_is_saved_says_its_command_commit_and_machine(tmp_path):
    path = harness.save(ROWS, ["turn"], "a quiet machine", tmp_path / "results")
    text = path.read_text("utf-8")
    assert path.name == "turn.md"
    assert text.startswith("`python -m benchmarks turn --save`")
    assert "commit " in text
    assert "Before: a quiet machine" in text
    assert harness.table(ROWS) in text
    assert json.loads(path.with_suffix(".json").read_bytes())[1]["ok"] is False
    assert harness.save(ROWS, [], "", tmp_path / "results").name == "latest.md"


def test_the_command_prints_one_json_list_and_leaves_the_words_to_stderr(tmp_path):
    """It is a real command in a real process: what another program would read."""
    done = subprocess.run(
        [
            *(sys.executable, "-m", "benchmarks", "hold", "--effort", "0.01"),
            *("--json", "--results", tmp_path / "results", "--save"),
        ],
        cwd=Path(__file__).parent.parent,
        capture_output=True,
        text=True,
        check=False,
    )
    rows = json.loads(done.stdout)
    assert [list(fields) for fields in rows] == [FIELDS] * len(rows)
    assert done.returncode == (0 if all(fields["ok"] for fields in rows) else 1)
    saved = tmp_path / "results" / "bench" / "hold.json"
    assert json.loads(saved.read_bytes()) == rows
