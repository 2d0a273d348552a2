"""What only a trace can show: overlap, and waiting for another session's turns."""

import pytest

from kode_lab.check import check, sentences
from kode_lab.check.drawn import drawn
from kode_lab.key import SessionKey
from kode_lab.span import Span

ADA, BOB = SessionKey("ada", "1", "agent"), SessionKey("bob", "1", "agent")
FINE = drawn(
    """
    ada:1  |--a--|                    -> a
    ada:1    |--b--|                  -> a b
    ada:1             |-=-|           -> a b
    """
)


def spans_of(key, turn_id, waited, began, ended):
    middle = (began + ended) // 2
    return [
        Span(key, turn_id, "turn", waited, ended + 1),
        Span(key, turn_id, "wait", waited, began),
        Span(key, turn_id, "ask", began, middle),
        Span(key, turn_id, "commit", middle, ended),
    ]


def judged(*turns, guarantees=("lock",)):
    return check(FINE, [span for turn in turns for span in turn], guarantees)


def test_two_turns_of_one_session_at_work_together_overlap():
    verdict = judged(spans_of(ADA, "t1", 0, 0, 20), spans_of(ADA, "t2", 5, 19, 30))
    assert verdict.counts == {"overlap": 1}
    assert sentences(verdict.anomalies[0])[-1] == (
        "However, S1 and S2 were at work in it together for 0.000 ms: a contradiction."
    )


def test_a_turn_that_waits_while_another_works_does_not_overlap_it():
    assert judged(spans_of(ADA, "t1", 0, 0, 20), spans_of(ADA, "t2", 5, 20, 30)).status == "valid"


def test_two_agents_of_one_session_share_its_lock():
    other = ADA._replace(agent_id="other")
    verdict = judged(spans_of(ADA, "t1", 0, 0, 20), spans_of(other, "t2", 5, 19, 30))
    assert verdict.counts == {"overlap": 1}


def test_sessions_of_two_users_with_one_name_may_work_together():
    assert judged(spans_of(ADA, "t1", 0, 0, 20), spans_of(BOB, "t2", 5, 5, 30)).status == "valid"


def test_a_later_attempt_at_a_turn_does_not_overlap_what_ran_between_its_attempts():
    first = [Span(ADA, "t1", "ask", 0, 10)]  # its process was killed: no turn around it
    between = spans_of(ADA, "t2", 12, 12, 20)
    assert judged(first, between, spans_of(ADA, "t1", 20, 20, 30)).status == "valid"
    assert judged(first, spans_of(ADA, "t2", 9, 9, 20)).counts == {"overlap": 1}


def test_tools_of_one_turn_run_together_and_are_no_overlap():
    tools = [Span(ADA, "t1", "tool", 2, 8), Span(ADA, "t1", "tool", 3, 9)]
    assert judged([*spans_of(ADA, "t1", 0, 0, 20), *tools]).status == "valid"
    assert judged(tools).status == "valid"


def test_two_attempts_of_one_turn_that_run_together_overlap():
    # The first timed out and goes on in the background.
    verdict = judged(spans_of(ADA, "t1", 0, 0, 20), spans_of(ADA, "t1", 10, 15, 40))
    assert verdict.counts == {"overlap": 1}


def one_after_another(keys, *, gap=0):
    """Give turns that all wait from the beginning and are served in a row."""
    return [
        spans_of(key, f"t{at}", at, at * 20 + at * gap, (at + 1) * 20 + at * gap)
        for at, key in enumerate(keys)
    ]


@pytest.mark.parametrize(
    ("keys", "group"),
    [
        ([SessionKey(u, s, "a") for u, s in ("11", "22", "33", "41")], "all sessions"),
        ([SessionKey("ada", s, "a") for s in "1234"], "all sessions"),
    ],
)
def test_one_lock_for_all_sessions_makes_them_wait_in_a_row(keys, group):
    verdict = judged(*one_after_another(keys))
    assert verdict.counts == {"needless serialisation": 1}
    (anomaly,) = verdict.anomalies
    assert (anomaly.facts["group"], anomaly.facts["waits"]) == (group, 3)


@pytest.mark.parametrize(
    ("keys", "group"),
    [
        ([SessionKey("ada", s, "a") for s in "1234"], "sessions of user ada"),
        ([SessionKey(u, "1", "a") for u in "abcd"], "sessions named 1"),
    ],
)
def test_a_lock_by_user_or_by_session_name_alone_is_told_from_one_for_all(keys, group):
    free = spans_of(SessionKey("free", "free", "a"), "free", 0, 0, 70)  # works beside them all
    verdict = judged(*one_after_another(keys), free)
    assert [a.facts["group"] for a in verdict.anomalies] == [group]


def test_waiting_for_one_s_own_session_is_no_needless_wait():
    keys = [ADA, ADA, ADA, ADA, BOB]
    turns = one_after_another(keys[:4])
    assert judged(*turns, spans_of(BOB, "b", 80, 80, 90)).status == "valid"


def test_turns_that_follow_each_other_without_waiting_are_not_serialised():
    keys = [SessionKey(u, "1", "a") for u in "abcdef"]
    turns = [spans_of(key, f"t{at}", at * 20, at * 20, at * 20 + 20) for at, key in enumerate(keys)]
    assert judged(*turns).status == "valid"


def test_two_sessions_that_worked_together_once_are_not_serialised():
    keys = [SessionKey(u, s, "a") for u, s in ("11", "22", "33", "44")]
    turns = one_after_another(keys)
    assert judged(*turns, spans_of(keys[0], "x", 75, 75, 90)).status == "valid"


def test_too_few_waits_are_chance():
    assert judged(*one_after_another([ADA, BOB])).status == "valid"


def test_the_lock_is_unknown_without_a_trace_and_not_claimed_unless_there_is_one():
    assert check(FINE, None, ["lock"]).status == "unknown"
    assert check(FINE, [], ["lock"]).reason == "there is no trace"
    by_name = {finding.name: finding.status for finding in check(FINE).findings}
    assert by_name["lock"] == "not claimed"
    traced = check(FINE, spans_of(ADA, "t1", 0, 0, 20))
    assert {finding.name: finding.status for finding in traced.findings}["lock"] == "valid"
