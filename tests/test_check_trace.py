"""What only a trace can show: overlap, and waiting for another session's turns."""

import pytest
from trace_spec import ADA, BOB, FINE, NAMED_1, OF_ADA, TRACES, spans_of, trace_differences

from kode_lab.check import check, sentences
from kode_lab.history.span import Span


@pytest.mark.parametrize("name", TRACES)
def test_the_judge_says_of(name):
    assert trace_differences(name, check) == []


def judged(*turns):
    return check(FINE, [span for turn in turns for span in turn], ["lock"])


def test_an_overlap_is_told_by_two_turns_and_its_length():
    (anomaly,) = judged(spans_of(ADA, "t1", 0, 0, 20), spans_of(ADA, "t2", 5, 19, 30)).anomalies
    assert anomaly.facts == {"lock": "ada:1", "overlap_ns": 1}
    assert sentences(anomaly) == (
        "Let S1 = turn of t1 in ada:1, at work 0.000-0.000 ms.",
        "Let S2 = turn of t2 in ada:1, at work 0.000-0.000 ms.",
        "Then ada:1 is held by one turn at a time.",
        "However, S1 and S2 were at work in it together for 0.000 ms: a contradiction.",
    )


def test_a_later_attempt_at_a_turn_does_not_overlap_what_ran_between_its_attempts():
    first = [Span(ADA, "t1", "ask", 0, 10)]  # its process was killed: no turn around it
    between = spans_of(ADA, "t2", 12, 12, 20)
    assert judged(first, between, spans_of(ADA, "t1", 20, 20, 30)).status == "valid"
    assert judged(first, spans_of(ADA, "t2", 9, 9, 20)).counts == {"overlap": 1}


def test_tools_of_one_turn_run_together_and_are_no_overlap():
    tools = [Span(ADA, "t1", "tool", 2, 8), Span(ADA, "t1", "tool", 3, 9)]
    assert judged([*spans_of(ADA, "t1", 0, 0, 20), *tools]).status == "valid"
    assert judged(tools).status == "valid"


@pytest.mark.parametrize(
    ("name", "group", "waits"),
    [
        ("one lock for all", "all sessions", 3),
        ("one lock for a user", f"sessions of user {OF_ADA[0].user_id}", 3),
        ("one lock for a name", f"sessions named {NAMED_1[0].session_id}", 3),
    ],
)
def test_a_lock_that_is_too_coarse_is_told_by_what_it_locks(name, group, waits):
    spans = [span for turn in TRACES[name][0] for span in spans_of(*turn)]
    (anomaly,) = check(FINE, spans, ["lock"]).anomalies
    assert (anomaly.facts["group"], anomaly.facts["waits"]) == (group, waits)
    assert "never at once" in sentences(anomaly)[-1]


def test_the_lock_is_unknown_without_a_trace_and_not_judged_unless_there_is_one():
    assert check(FINE, None, ["lock"]).status == "unknown"
    assert check(FINE, [], ["lock"]).reason == "needs a trace, or the times of the model's calls"
    by_name = {finding.name: finding.status for finding in check(FINE).findings}
    assert by_name["lock"] == "not judged"
    traced = check(FINE, spans_of(BOB, "t1", 0, 0, 20))
    assert {finding.name: finding.status for finding in traced.findings}["lock"] == "valid"
