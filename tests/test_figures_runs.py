"""The pictures of whole runs: very many sessions, latency, throughput."""

from __future__ import annotations

import logging
import math

import pytest
from figure_lint import figure_lint
from matplotlib.text import Text
from synthetic_runs import MS, ZERO_NS, Recording, S, a_crowd, turn

from kode_lab.errors import InvalidRecord
from kode_lab.history.operation import NEMESIS, Operation
from kode_lab.key import SessionKey
from kode_lab.pictures import (
    crash_bands,
    latency,
    many_sessions,
    percentiles,
    throughput,
)
from kode_lab.pictures.crash_bands import bands_of
from kode_lab.pictures.curves import Latencies, Rate, draw_latency, draw_throughput

ADA = SessionKey.of("ada", "a", "s1")


def spread_out(count: int, factor: float = 1.0) -> list[int]:
    """Latencies without chance: evenly spaced shares of an exponential tail above 0.4 s."""
    return [round(factor * S * (0.4 + 0.3 * (count / (n + 0.5)) ** 0.3)) for n in range(count)]


CROWD = a_crowd(150, 300, 20)
SOME = a_crowd(30, 120, 20)
VERY_MANY = a_crowd(1_600, 2_000, 30)


def with_faults(*faults_s: float, down_s: float = 0.6) -> Recording:
    """The crowd's history with kills: who was in flight or asked meanwhile knows nothing."""
    kills = [ZERO_NS + round(fault_s * S) for fault_s in faults_s]
    operations = [
        op._replace(type="info", complete_ns=math.inf)
        if any(op.invoke_ns < kill + down_s * S and op.complete_ns > kill for kill in kills)
        else op
        for op in CROWD.history
    ]
    none = SessionKey("", "", "")
    operations += [Operation(none, "kill", NEMESIS, "info", kill, kill) for kill in kills]
    operations += [Operation(none, "quiet", NEMESIS, "info", k + S, k + S) for k in kills]
    return Recording((), tuple(operations))


def sent_again(run: Recording) -> Recording:
    """The same, but a client without an answer sent its turn again, and was answered."""
    again = [
        op._replace(process=f"{op.process}.1", type="ok", complete_ns=op.invoke_ns + 3 * S)
        for op in run.history
        if op.f == "turn" and op.type == "info"
    ]
    return Recording((), (*run.history, *again))


ONCE = {
    "very many": lambda: many_sessions(VERY_MANY),
    "many": lambda: many_sessions(CROWD),
    "some": lambda: many_sessions(SOME),
    "few": lambda: many_sessions(a_crowd(3, 12, 6)),
    "one turn": lambda: many_sessions(turn(ADA, "t")),
    "needless waits": lambda: many_sessions(a_crowd(60, 100, 20, waits_more_s=0.4)),
    "no trace": lambda: many_sessions(CROWD._replace(trace=())),
    "no waits recorded": lambda: many_sessions(
        CROWD._replace(trace=tuple(span for span in CROWD.trace if span.step != "wait"))
    ),
    "latency of a run": lambda: latency(CROWD),
    "latency of two runs": lambda: latency({"quiet": SOME, "busy": CROWD}),
    "latency of eight": lambda: draw_latency(
        {f"{2**n} sessions": Latencies(spread_out(900, 1 + n * n / 9), n) for n in range(8)}
    ),
    "eight alike": lambda: draw_latency(
        {f"run {n}": Latencies(spread_out(200, 1 + n / 500)) for n in range(8)}
    ),
    "three latencies": lambda: draw_latency({"": Latencies(spread_out(3))}),
    "one latency": lambda: draw_latency({"": Latencies([S])}),
    "hardly an answer": lambda: draw_latency({"": Latencies([S, 2 * S], 5_000)}),
    "microseconds": lambda: draw_latency({"": Latencies(spread_out(5_000, 1e-4))}),
    "a crash": lambda: crash_bands(with_faults(7.0)),
    "three crashes": lambda: crash_bands(with_faults(0.1, 6.2, 14.5)),
    "thirty crashes": lambda: crash_bands(with_faults(*(n / 2 for n in range(30)), down_s=0.1)),
    "dead": lambda: crash_bands(with_faults(19.9, down_s=99)),
    "sent again": lambda: crash_bands(sent_again(with_faults(6.2, 14.5))),
    "most unanswered": lambda: draw_latency({"": Latencies(spread_out(100), 900)}),
    "one of two unanswered": lambda: draw_latency(
        {"quiet": Latencies(spread_out(900)), "broken": Latencies(spread_out(100), 900)}
    ),
    "throughput": lambda: draw_throughput(
        [Rate(n, min(n / 0.8, 60) * f) for n in (1, 8, 32, 64, 256) for f in (0.97, 1, 1.02)]
    ),
    "ideal throughput": lambda: draw_throughput([Rate(n, n / 0.8) for n in (1, 2, 100)]),
    "falling throughput": lambda: draw_throughput([Rate(1, 50), Rate(2, 20), Rate(1_000, 0.02)]),
    "throughput of runs": lambda: throughput([a_crowd(5, 20, 9), a_crowd(50, 200, 9)]),
}


@pytest.mark.parametrize("name", ONCE)
def test_a_strict_reader_finds_nothing_wrong_with_the_picture(name, caplog):
    with caplog.at_level(logging.WARNING):
        picture = ONCE[name]()
        assert figure_lint(picture.figure) == []
    assert caplog.records == []


@pytest.mark.parametrize("name", ["some", "three crashes"])
def test_the_same_run_gives_the_same_bytes(name):
    assert ONCE[name]().png() == ONCE[name]().png()


# ---------------------------------------------------------------- many sessions


def test_that_turns_waited_only_for_their_own_session_is_checked_and_told():
    queued = turn(ADA, "t1") + turn(ADA, "t2", sent_s=0.5, waited_s=1.004)
    assert "1 of 2 turns waited, each only for its own session" in many_sessions(queued).title
    blocked = turn(ADA, "t1") + turn(ADA, "t2", sent_s=0.5, waited_s=3.0)
    assert (
        "1 of 2 turns waited, 3.00 s in all, and 2.00 s of that while their own session was free"
        in many_sessions(blocked).title
    )


def test_percentiles_stand_on_their_axis_and_in_the_title():
    picture = percentiles(CROWD)
    assert picture.title.startswith("Time of a turn: median ")
    words = [text.get_text() for text in picture.figure.axes[0].texts]
    assert {"50 %", "90 %", "95 %"} <= set(words)
    assert figure_lint(picture.figure) == []
    both = percentiles({"one": CROWD, "other": VERY_MANY})
    assert figure_lint(both.figure) == []


def test_a_wait_of_microseconds_for_a_free_lock_is_no_waiting():
    alone = turn(ADA, "t1") + turn(ADA, "t2", sent_s=5)
    assert many_sessions(alone).title == "1 session: none of 2 turns waited"


def test_nothing_is_said_of_waiting_where_no_wait_was_recorded():
    assert "waited" not in many_sessions(CROWD._replace(trace=())).title


def test_of_more_than_a_thousand_sessions_the_worst_fifty_are_drawn_and_the_rest_is_told():
    sessions = len({span.key for span in VERY_MANY.trace})
    assert sessions > 1_000
    reading = many_sessions(VERY_MANY).reading
    assert f"the 50 sessions that waited longest; the other {sessions - 50:,}" in reading


# ---------------------------------------------------------------- latency and throughput


def test_the_latency_title_tells_the_median_and_the_tail():
    times = [n * 10 * MS for n in range(1, 1_001)]
    title = draw_latency({"": Latencies(times)}).title
    assert title == "Half of the turns took 5.00 s or less; 1 in 100 took 9.91 s or more"


def test_a_turn_without_a_good_answer_counts_as_slower_than_any_time():
    picture = draw_latency({"": Latencies([S] * 900, 100)})
    assert picture.title == (
        "Half of the turns took 1.00 s or less; 100 of 1,000 turns got no good answer"
    )
    assert "100 without a good answer count as slower than any time" in picture.reading
    failed = turn(ADA, "t1") + turn(ADA, "t2", (0.01,), (), sent_s=9, outcome="fail")
    assert "1 without a good answer" in latency(failed).reading


def test_the_latency_title_is_true_where_most_turns_have_no_answer():
    most = draw_latency({"": Latencies([S] * 100, 900)})
    assert most.title == (
        "900 of 1,000 turns got no good answer; half of the others took 1.00 s or less"
    )
    assert "The dot" not in most.reading
    few = draw_latency({"": Latencies([S, 2 * S, 3 * S], 2)}).title
    assert few == "Half of the turns took 3.00 s or less; 2 of 5 turns got no good answer"


def test_the_latency_title_of_two_runs_counts_the_unanswered_of_each():
    two = {"quiet": Latencies([S] * 1_000), "broken": Latencies([S] * 100, 900)}
    assert draw_latency(two).title == (
        "1 in 100 turns took 1.00 s or more (quiet); 900 of 1,000 turns got no good answer (broken)"
    )
    both = {"quiet": Latencies([S] * 1_000), "busy": Latencies([2 * S] * 1_000)}
    assert draw_latency(both).title == (
        "1 in 100 turns took 1.00 s or more (quiet) and 2.00 s or more (busy)"
    )


def test_the_throughput_title_tells_up_to_where_sessions_are_free():
    rates = [Rate(1, 1.0), Rate(10, 9.8), Rate(100, 50.0)]
    assert draw_throughput(rates).title == "Up to 10 sessions go at full speed; 100 reach 50% of it"
    free = draw_throughput(rates[:2]).title
    assert free == "Sessions do not slow each other down: 9.8 turns per second with 10 of them"


# ---------------------------------------------------------------- faults


def test_a_band_ends_with_the_first_answer_to_a_turn_that_was_sent_after_the_fault():
    # The first is answered after the kill, but was sent before it: that proves no recovery.
    early = turn(ADA, "t1", (2.0,), ()).history
    late = turn(ADA, "t2", (1.0,), (), sent_s=3.0).history
    kill = Operation(SessionKey("", "", ""), "kill", NEMESIS, "info", ZERO_NS + S, ZERO_NS + S)
    [band] = bands_of([*early, kill, *late])
    assert band.name == "kill"
    assert band.back_ns == late[0].complete_ns
    [never] = bands_of([*early, kill])
    assert never.back_ns == math.inf


def test_the_title_counts_the_faults_and_tells_the_slowest_recovery():
    picture = crash_bands(with_faults(6.2, 14.5))
    assert picture.title.startswith("2 × kill: clients were answered again after")
    assert crash_bands(with_faults(0.0, down_s=99)).title == (
        "1 × kill: no client was answered again"
    )


def test_a_turn_that_was_sent_again_is_one_turn_and_known_when_it_was_answered():
    once = with_faults(6.2, 14.5)
    turns = sum(op.f == "turn" for op in once.history)
    cut = sum(op.f == "turn" and op.type == "info" for op in once.history)
    assert cut > 0
    assert f"Ticks: {cut} of {turns} turns have no known outcome." in crash_bands(once).reading
    again = crash_bands(sent_again(once))
    assert f"Ticks: {cut} of {turns + cut} sendings had no known outcome" in again.reading
    assert f"0 of {turns} turns stayed so." in again.reading
    words = {text.get_text() for text in again.figure.findobj(Text)}
    assert {f"{turns} answered", f"{cut} sendings"} <= words


@pytest.mark.parametrize(
    ("draw", "words"),
    [
        (lambda: many_sessions(Recording((), ())), "no turn to draw"),
        (lambda: latency(Recording((), ())), "no turn was answered"),
        (
            lambda: draw_latency({str(n): Latencies([S]) for n in range(9)}),
            "CURVE_LIMIT=8",
        ),
        (lambda: crash_bands(CROWD), "no fault in this history"),
        (lambda: draw_throughput([Rate(5, 1.0), Rate(5, 2.0)]), "two numbers of sessions"),
    ],
)
def test_what_cannot_be_drawn_is_refused_with_the_reason(draw, words):
    with pytest.raises(InvalidRecord, match=words):
        draw()
