"""The documented tests done again: what is recorded, and which claims a real cause violates."""

import io
import json
import math
import shutil
from dataclasses import asdict

import pytest
from rich.console import Console

from kode_lab.errors import InvalidRecord, InvalidScenario
from kode_lab.lab.live import Progress
from kode_lab.lab.records import Run, RunRecorder
from kode_lab.reports.claims import Claim, claims_of, verdict_of
from kode_lab.reports.evidence import (
    STORAGE,
    Evidence,
    Machine,
    SeenTool,
    SeenTurn,
    evidence_of,
    stored_files,
)
from kode_lab.reports.measures import allowance_s
from kode_lab.reports.report import built_in
from kode_lab.reports.reproduce import reproduce
from kode_lab.reports.summary import print_summary

TEST_1, TEST_2 = built_in().tests


def report_of_one(test, **changes):
    return built_in().model_copy(update={"name": "one", "tests": (changed(test, **changes),)})


def changed(value, **changes):
    return value.model_copy(update=changes)


class Unseen:
    """A card that is never looked at."""

    def draw(self, progress):
        pass

    def close(self):
        pass


@pytest.fixture(scope="module")
def reproduction(tmp_path_factory):
    """One reproduction at fifty times the speed, looked at by several tests."""
    results = tmp_path_factory.mktemp("results")
    return reproduce(speed=50, results=results, card=Unseen()).result()


def verdicts_of(claims):
    return {(claim.test, claim.what): claim.verdict for claim in claims}


# ---- a real run


def test_ids_calls_and_directories_are_the_reports(reproduction):
    verdicts = verdicts_of(reproduction.claims)
    for test, what in (
        ("test-1", "session 1 tool calls"),
        ("test-1", "session 2 tool calls"),
        ("test-2", "session 1 schedule id"),
        ("test-2", "session 2 schedule id"),
        ("test-1", "session 2 stored in"),
        ("test-2", "session 1 stored in"),
        ("test-2", "session 2 stored in"),
        ("test-1", "no interference"),
    ):
        assert verdicts[test, what] == "holds"


def test_every_turn_has_its_steps_and_its_clients_view(reproduction):
    for evidence in evidence_of(reproduction.run):
        assert len(evidence.turns) == 2
        for turn in evidence.turns:
            assert turn.outcome == "ok"
            assert len(turn.model_calls) == len(turn.tools) + 1
            assert turn.at_work_s + turn.work_s <= turn.ended_s + 0.001
            assert turn.foreign == 0


def test_figures_are_in_the_reports_seconds_at_any_speed(reproduction):
    measured = {(claim.test, claim.what): claim.measured for claim in reproduction.claims}
    took_s = float(measured["test-1", "session 2 answered in"].split()[0])
    assert 16.73 <= took_s < 18.0  # at fifty times the speed it took a third of a second


def test_a_reproduction_leaves_claims_figures_and_a_page(reproduction):
    path = reproduction.run.path
    names = {one.name for one in (path / "figures").glob("*.png")}
    assert names == {"two-sessions.png", "two-creations.png"}
    page = (path / "report.html").read_text()
    assert page.count("<figure>") == 2
    assert "number by number" in page


def test_a_loaded_run_is_judged_as_it_was(reproduction):
    again = Run.load(reproduction.run.path)
    claims = [claim for evidence in evidence_of(again) for claim in claims_of(evidence)]
    assert tuple(claims) == reproduction.claims
    stored = json.loads((again.path / "claims.json").read_bytes())
    assert stored["claims"] == [asdict(claim) for claim in claims]


def test_a_run_whose_sessions_stayed_behind_still_tells_what_was_stored(reproduction, tmp_path):
    run = reproduction.run
    moved = tmp_path / "moved"
    shutil.copytree(run.path, moved, ignore=shutil.ignore_patterns(STORAGE))
    assert stored_files(Run.load(moved)) == stored_files(run)
    (run.path / "storage.json").rename(tmp_path / "storage.json")
    assert stored_files(run) == stored_files(Run.load(moved))
    (tmp_path / "storage.json").rename(run.path / "storage.json")


def test_the_run_keeps_the_report_that_it_reproduces(reproduction):
    run = reproduction.run
    assert run.parameters["report"]["name"] == "concurrency-report"
    assert run.facts["command"] == "kode-lab reproduce --speed 50"
    assert run.status == "complete"


def test_perfetto_gets_every_span(reproduction):
    trace = json.loads((reproduction.run.path / "trace.perfetto.json").read_bytes())
    drawn = [event for event in trace["traceEvents"] if event["ph"] == "X"]
    assert len(drawn) == len(reproduction.run.spans())


def test_two_turns_of_one_session_are_not_parallel_and_the_claims_say_so(tmp_path):
    # A real cause: both clients of test 1 speak to one session, whose lock lets one in at a time.
    first, second = TEST_1.turns
    one_session = (first, changed(second, user=first.user, session=first.session))
    progress = Progress("")
    found = reproduce(
        report_of_one(TEST_1, turns=one_session),
        speed=50, results=tmp_path, progress=progress, card=Unseen(),
    ).result()  # fmt: skip
    verdicts = verdicts_of(found.claims)
    assert found.verdict == "violated"
    assert any("overlap" in one.what for one in found.contradictions)
    assert verdicts["test-1", "both at work"] == "violated"
    assert verdicts["test-1", "waited for a lock"] == "violated"
    assert verdicts["test-1", "session 2 stored in"] == "violated"
    assert verdicts["test-1", "session 2 tool calls"] == "holds"
    assert [row.tool_calls for row in progress.rows] == [1, 8]


def test_a_model_that_creates_nothing_violates_the_ids(tmp_path):
    # A real cause: the prompts ask for nothing to be created.
    idle = tuple(changed(turn, prompt="Hello there.") for turn in TEST_2.turns)
    found = reproduce(
        report_of_one(TEST_2, turns=idle), speed=1000, results=tmp_path, card=Unseen()
    ).result()
    verdicts = verdicts_of(found.claims)
    assert verdicts["test-2", "session 1 schedule id"] == "violated"
    assert verdicts["test-2", "session 1 tool calls"] == "violated"


@pytest.mark.parametrize(
    "asked",
    [{"speed": 0}, {"speed": -1}, {"speed": math.nan}, {"speed": math.inf},
     {"speed": 2, "model": "claude"}, {"speed": 2, "target": "mine.toml"}],
)  # fmt: skip
def test_what_makes_no_sense_is_refused_before_anything_is_written(tmp_path, asked):
    with pytest.raises(InvalidScenario):
        reproduce(results=tmp_path, card=Unseen(), **asked)
    assert list(tmp_path.iterdir()) == []


def test_another_kind_of_run_is_no_evidence(tmp_path):
    recorder = RunRecorder(tmp_path, "bench", parameters={})
    with pytest.raises(InvalidRecord, match="no reproduction"):
        evidence_of(recorder.finish("complete"))


# ---- the claims, on evidence written by hand: an exact reproduction, and its nearest failures

FILES = {
    "yeya/schedule-assistant/schedule-assistant/runtime/messages.json": 4,
    "test_user/independent_session:schedule-assistant/independent_session:schedule-assistant"
    "/runtime/messages.json": 18,
}


def turn_of(asked, took_s, tool_calls, *, sent_s=0.0, waited_s=0.0, path_s=None, foreign=0):
    return SeenTurn(
        name=asked.name, key=asked.key, phase="", prompt=asked.prompt, number=1, outcome="ok",
        error="", sent_s=sent_s, answer_s=took_s, at_work_s=sent_s + waited_s,
        work_s=took_s - waited_s, planned_s=took_s if path_s is None else path_s,
        wait_own_s=0.0, wait_other_s=waited_s, tools=(SeenTool("tool", 0.0),) * tool_calls,
        foreign=foreign,
    )  # fmt: skip


IDLE = Machine()


def evidence(first=None, second=None, *, files=None, is_simulated=True, machine=IDLE):
    one, two = TEST_1.turns
    return Evidence(
        TEST_1,
        (first or turn_of(one, 2.19, 1), second or turn_of(two, 16.73, 8, sent_s=0.0004)),
        FILES if files is None else files,
        is_simulated=is_simulated,
        machine=machine,
    )


def violated(evidence):
    return {claim.what for claim in claims_of(evidence) if claim.verdict != "holds"}


def test_an_exact_reproduction_holds_in_every_claim():
    assert violated(evidence()) == set()


@pytest.mark.parametrize(
    ("change", "broken"),
    [
        ({"second": {"sent_s": 0.0011}}, {"the requests arrive"}),
        ({"first": {"took_s": 2.30}}, {"session 1 answered in", "time beyond the model's"}),
        ({"first": {"took_s": 2.10}}, {"session 1 answered in"}),
        ({"second": {"took_s": 16.91}}, {"session 2 answered in", "time beyond the model's"}),
        ({"second": {"tool_calls": 7}}, {"session 2 tool calls"}),
        ({"first": {"waited_s": 0.026}}, {"waited for a lock"}),
        ({"second": {"foreign": 1}}, {"no interference"}),
    ],
)
def test_each_claim_is_violated_by_what_it_is_about_and_by_nothing_else(change, broken):
    exact = {
        "first": {"took_s": 2.19, "tool_calls": 1, "path_s": 2.19},
        "second": {"took_s": 16.73, "tool_calls": 8, "sent_s": 0.0004, "path_s": 16.73},
    }
    turns = {
        name: turn_of(asked, **(exact[name] | change.get(name, {})))
        for name, asked in zip(("first", "second"), TEST_1.turns, strict=True)
    }
    assert violated(evidence(**turns)) == broken


def test_serial_turns_violate_overlap_waiting_and_the_time_together():
    second = turn_of(TEST_1.turns[1], 18.92, 8, waited_s=2.19, path_s=16.73)
    found = violated(evidence(second=second))
    assert {"both at work", "waited for a lock", "one by one -> together"} <= found


def test_a_missing_file_and_one_too_many_violate_the_storage():
    (first, *_), (second, *_) = list(FILES)[:1], list(FILES)[1:]
    assert violated(evidence(files={second: 18})) == {"session 1 stored in"}
    assert violated(evidence(files=FILES | {first: None})) == {"session 1 stored in"}
    more = FILES | {"yeya/other/other/runtime/messages.json": 2}
    assert violated(evidence(files=more)) == {"session 1 stored in"}


def test_a_turn_without_an_answer_leaves_its_claims_unknown_and_says_why():
    lost = turn_of(TEST_1.turns[1], 1.0, 0)._replace(
        outcome="unanswered", error="interrupted", answer_s=None, work_s=None
    )
    claims = claims_of(evidence(second=lost))
    verdicts = {claim.what: claim.verdict for claim in claims}
    assert verdicts["session 1 answered in"] == "holds"
    assert verdicts["session 2 answered in"] == "inconclusive"
    assert verdicts["both at work"] == "inconclusive"
    assert any("interrupted" in claim.measured for claim in claims)
    assert verdict_of(claims) == "inconclusive"


def test_a_real_model_is_not_held_to_the_profiles_times_but_to_everything_else():
    slow = turn_of(TEST_1.turns[0], 9.0, 3)
    claims = claims_of(evidence(first=slow, is_simulated=False))
    verdicts = {claim.what: claim.verdict for claim in claims}
    for what in ("session 1 answered in", "session 1 done at", "session 1 tool calls"):
        assert verdicts[what] == "not applicable"
    for what in ("the requests arrive", "both at work", "session 1 stored in"):
        assert verdicts[what] == "holds"
    assert verdict_of(claims) == "holds"


def test_a_time_missed_on_a_machine_whose_loop_woke_late_is_inconclusive():
    late = turn_of(TEST_1.turns[0], 2.40, 1, path_s=2.19)
    busy = Machine(cores=2, load=9.0, late_s=0.1, worst_late_s=0.08, samples=((0, 1, 1, 1, 1),))
    verdicts = {c.what: (c.verdict, c.measured) for c in claims_of(evidence(late, machine=busy))}
    verdict, measured = verdicts["session 1 answered in"]
    assert verdict == "inconclusive"
    assert "machine too busy: load 9.0 on 2 cores" in measured
    # What no late wake-up explains stays violated.
    slow = turn_of(TEST_1.turns[0], 12.0, 1, path_s=2.19)
    verdicts = {c.what: c.verdict for c in claims_of(evidence(slow, machine=busy))}
    assert verdicts["session 1 answered in"] == "violated"


def test_a_turn_may_take_one_per_cent_more_than_its_model_or_fifty_milliseconds():
    assert allowance_s(16.73) == pytest.approx(0.1673)
    assert allowance_s(2.19) == 0.05


@pytest.mark.parametrize(("load", "is_said"), [(6.6, True), (1.9, False), (None, False)])
def test_a_miss_on_a_busy_machine_says_how_busy_it_was(tmp_path, load, is_said):
    facts = {
        "id": "one",
        "parameters": {"is_simulated": True, "speed": 1.0, "tests": []},
        "machine": {"cores": 2, "load_at_start": load},
    }
    said = io.StringIO()
    missed = Claim("test-1", "the requests arrive", "< 1 ms apart", "3 ms", "violated", "clients")
    print_summary(Run(tmp_path, facts), (missed,), Console(file=said, width=200))
    assert ("busy when it began (load 6.6, 2 cores)" in said.getvalue()) is is_said
    assert "VIOLATED" in said.getvalue()


def test_nothing_judged_is_unknown():
    assert verdict_of(()) == "inconclusive"
