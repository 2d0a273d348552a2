"""The documented tests done again: what is recorded, and which claims a real cause violates."""

import io
import json
import math
import shutil
from dataclasses import asdict

import pytest
from rich.console import Console

from kode_lab.claude import Plan, Profile
from kode_lab.errors import InvalidRecord, InvalidScenario
from kode_lab.history.operation import Operation, Read
from kode_lab.history.span import Span
from kode_lab.lab.live import Progress
from kode_lab.lab.records import Run, RunRecorder
from kode_lab.reports.claims import (
    Claim,
    allowance_s,
    claims_of,
    verdict_of,
)
from kode_lab.reports.documented import DOCUMENTED, STORAGE, DocumentedTest
from kode_lab.reports.evidence import Evidence, Turn, evidence_of, stored_files
from kode_lab.reports.reproduce import reproduce
from kode_lab.reports.summary import print_summary

S = 1_000_000_000  # nanoseconds
TEST_1, TEST_2 = DOCUMENTED


class Unseen:
    """A card that nobody looks at."""

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
        for turn in evidence.turns:
            assert turn.ended
            steps = [span.step for span in turn.spans]
            assert steps.count("ask") == len(turn.tools) + 1
            assert {"turn", "wait", "load", "commit"} <= set(steps)
            assert turn.operation.invoke_ns <= turn.span.start_ns
            assert turn.span.end_ns <= turn.operation.complete_ns
            assert turn.operation.read == Read(0, 0)


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


def test_the_run_keeps_the_configuration_it_was_made_with(reproduction):
    run = reproduction.run
    assert (run.path / "agents" / "schedule-assistant.toml").is_file()
    assert run.facts["command"] == "kode-lab reproduce --speed 50"
    assert run.status == "complete"


def test_perfetto_gets_every_span(reproduction):
    trace = json.loads((reproduction.run.path / "trace.perfetto.json").read_bytes())
    drawn = [event for event in trace["traceEvents"] if event["ph"] == "X"]
    assert len(drawn) == len(reproduction.run.spans())


def test_two_turns_of_one_session_are_not_parallel_and_the_claims_say_so(tmp_path):
    # A real cause: both clients of test 1 speak to one session, whose lock lets one in at a time.
    first, second = TEST_1.turns
    one_session = TEST_1._replace(turns=(first, second._replace(key=first.key)))
    progress = Progress("")
    found = reproduce(
        speed=50, tests=(one_session,), results=tmp_path, progress=progress, card=Unseen()
    ).result()
    verdicts = verdicts_of(found.claims)
    assert found.verdict == "violated"
    assert verdicts["test-1", "both at work"] == "violated"
    assert verdicts["test-1", "waited for a lock"] == "violated"
    assert verdicts["test-1", "session 2 stored in"] == "violated"
    assert verdicts["test-1", "session 2 tool calls"] == "holds"
    assert [row.tool_calls for row in progress.rows] == [1, 8]


def test_a_model_that_creates_nothing_violates_the_ids(tmp_path):
    # A real cause: the prompts ask for nothing to be created.
    idle = TEST_2._replace(turns=tuple(t._replace(prompt="Hello there.") for t in TEST_2.turns))
    found = reproduce(speed=1000, tests=(idle,), results=tmp_path, card=Unseen()).result()
    verdicts = verdicts_of(found.claims)
    assert verdicts["test-2", "session 1 schedule id"] == "violated"
    assert verdicts["test-2", "session 1 tool calls"] == "violated"


@pytest.mark.parametrize(
    "asked",
    [{"speed": 0}, {"speed": -1}, {"speed": math.nan}, {"speed": math.inf},
     {"speed": 2, "model": "claude"}, {"profile": Profile()},
     {"profile": Profile(plans=(Plan("query", "query", (1.0,)),))}],
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


def turn_of(asked, took_s, tool_calls, *, sent_s=0.0, waited_s=0.0, path_s=None, foreign=()):
    key, id_ = asked.key, asked.name

    def span(step, start_s, end_s, **attributes):
        return Span(key, id_, step, int(start_s * S), int(end_s * S), attributes)

    operation = Operation(
        key, "turn", id_, "ok", int(sent_s * S), int((sent_s + took_s) * S),
        read=Read(0, 0, foreign=foreign),
    )  # fmt: skip
    held_s = sent_s + waited_s
    tools = [
        span("tool", held_s + n / 100, held_s + n / 100, **{"kode_lab.tool.is_error": False})
        for n in range(tool_calls)
    ]
    spans = (
        span("turn", sent_s, sent_s + took_s),
        span("wait", sent_s, held_s),
        *tools,
    )
    return Turn(asked, operation, spans, took_s if path_s is None else path_s)


def evidence(first=None, second=None, *, files=None, speed=1.0, is_simulated=True):
    one, two = TEST_1.turns
    return Evidence(
        TEST_1,
        (first or turn_of(one, 2.19, 1), second or turn_of(two, 16.73, 8, sent_s=0.0004)),
        FILES if files is None else files,
        speed,
        is_simulated,
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
        ({"second": {"foreign": ("#m0123456789-000000",)}}, {"no interference"}),
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
    lost = turn_of(TEST_1.turns[1], 1.0, 0)
    lost = lost._replace(operation=lost.operation._replace(type="info", error="interrupted"))
    claims = claims_of(evidence(second=lost))
    verdicts = {claim.what: claim.verdict for claim in claims}
    assert verdicts["session 1 answered in"] == "holds"
    assert verdicts["session 2 answered in"] == "unknown"
    assert verdicts["both at work"] == "unknown"
    assert any("interrupted" in claim.measured for claim in claims)
    assert verdict_of(claims) == "unknown"


def test_a_real_model_is_not_held_to_the_profiles_times_but_to_everything_else():
    slow = turn_of(TEST_1.turns[0], 9.0, 3)
    claims = claims_of(evidence(first=slow, is_simulated=False))
    verdicts = {claim.what: claim.verdict for claim in claims}
    for what in ("session 1 answered in", "session 1 done at", "session 1 tool calls"):
        assert verdicts[what] == "not applicable"
    for what in ("the requests arrive", "both at work", "session 1 stored in"):
        assert verdicts[what] == "holds"
    assert verdict_of(claims) == "holds"


def test_at_another_speed_the_reports_seconds_are_scaled_and_shown_so():
    one, two = TEST_1.turns
    fast = evidence(turn_of(one, 0.219, 1), turn_of(two, 1.673, 8, sent_s=0.0004), speed=10.0)
    assert violated(fast) == set()
    (claim,) = (c for c in claims_of(fast) if c.what == "session 1 answered in")
    assert claim.reported == "2.19 s / 10 = 0.219 s"


def test_a_turn_may_take_one_per_cent_more_than_its_model_or_fifty_milliseconds():
    assert allowance_s(16.73, speed=1.0) == pytest.approx(0.1673)
    assert allowance_s(2.19, speed=1.0) == 0.05


def test_what_is_not_the_models_is_allowed_as_much_at_any_speed():
    for speed in (1.0, 10.0, 50.0):
        assert allowance_s(16.73 / speed, speed=speed) == pytest.approx(0.1673)
        assert allowance_s(2.19 / speed, speed=speed) == 0.05
    one, two = TEST_1.turns
    late = evidence(turn_of(one, 0.219, 1), turn_of(two, 1.86, 8), speed=10.0)
    assert "session 2 answered in" in violated(late)


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
    assert verdict_of(()) == "unknown"


def test_a_documented_test_survives_json():
    for test in DOCUMENTED:
        assert DocumentedTest.from_json(json.loads(json.dumps(test.to_json()))) == test
