"""The picture of a witness: every anomaly can be drawn, and what cannot be is said in red."""

from __future__ import annotations

import math

import pytest
from figure_lint import figure_lint
from judge_spec import SPECS

from kode_lab.check import check
from kode_lab.check.ascii_history import drawn
from kode_lab.check.verdict import ANOMALIES, Anomaly
from kode_lab.history.operation import Operation, marker_of, read_of
from kode_lab.history.span import Span
from kode_lab.key import SessionKey
from kode_lab.pictures import witness
from kode_lab.pictures.witness import draw_witness

S = 10**9
HERE = SessionKey.of("u7", "assistant", "s3")
THERE = SessionKey.of("u8", "assistant", "s3")


def markers(*numbers: int) -> tuple[str, ...]:
    return tuple(marker_of(HERE, number) for number in numbers)


def asked(number, sent_s, answered_s, shown=(), *, key=HERE, type_="ok") -> Operation:
    own = marker_of(key, number)
    end = answered_s if math.isinf(answered_s) else round(answered_s * S)
    times = (round(sent_s * S), end)
    return Operation(
        *(key, "turn", f"p{number}", type_, *times, own, f"t{number}"), read=read_of(own, shown)
    )


BEFORE = [asked(n, n, n + 0.5, markers(*range(1, n))) for n in range(1, 17)]
T17 = asked(17, 50, 52.4, markers(*range(1, 17)))
T18 = asked(18, 50.41, 53.2, markers(*range(1, 17)))
END = Operation(HERE, "read", "r", "ok", 54 * S, 54 * S + 9, markers=markers(*range(1, 17), 18))
LEAK = asked(5, 50, 51, (*markers(1, 2), marker_of(THERE, 3)))
SPANS = (
    Span(HERE, "t1", "turn", 0, 2 * S),
    Span(HERE, "t2", "turn", S // 2, 3 * S),
)
# Every fact that any anomaly's sentences ask for.
FACTS = {
    "count": 2,
    "told": "end_turn",
    "model": "max_tokens",
    "tool": "create",
    "calls": 1,
    "answers": "toolu_2",
    "configs": ["v1", "v2"],
    "position": 16,
    "lost": [T17.marker],
    "crash_ns": 53 * S,
    "times": 2,
    "owner": "u8:s3",
    "ran_for": "u8:s3",
    "lock": "u7:s3",
    "overlap_ns": S,
    "waited_ns": S,
    "waits": 4,
    "group": "u7",
    "asked": 3,
    "one": "v1",
    "other": "v2",
    "saw": ["#m0-1"],
    "stands": [],
    "place": None,
    "overtook": 2,
    "limit": 1,
}


def words(picture) -> list[str]:
    return [text.get_text() for text in picture.figure.axes[0].texts]


OF_TRACE = {"overlap", "needless serialisation", "configuration drift"}


@pytest.mark.parametrize("name", ANOMALIES)
def test_every_anomaly_can_be_drawn_and_a_strict_reader_finds_nothing_wrong(name):
    for operations in (SPANS,) if name in OF_TRACE else ((T17, LEAK, END),):
        picture = witness(Anomaly(name, HERE, operations, T17.marker, FACTS))
        assert figure_lint(picture.figure) == []
        assert picture.title.startswith(f"FAIL {name}: ")


def test_a_lost_update_that_the_judge_found_is_drawn_with_its_argument():
    verdict = check([*BEFORE, T17, T18, END])
    [anomaly] = verdict.anomalies
    picture = witness(anomaly)
    assert picture.title == (
        "FAIL lost update: turn …000011 and turn …000012 both took position 16, "
        "and turn …000011 is gone"
    )
    said = words(picture)
    assert "so …000011 took position 16" in said
    assert "so …000012 took position 16" in said
    assert "both in flight: 1.99 s" in said
    assert any(line.startswith("However, both stand at position 16") for line in said)
    assert figure_lint(picture.figure) == []


def test_an_overtaking_that_the_judge_found_is_told_by_its_number():
    spec = SPECS["a turn that two overtook, of which one is allowed"]
    [anomaly] = check(drawn(spec.picture), overtaking_limit=1).anomalies
    picture = witness(anomaly)
    assert picture.title == "FAIL overtaking: 2 turns overtook turn a; no more than 1 may"
    assert "However, 2 do, T2 among them: a contradiction." in words(picture)


def test_what_another_session_said_is_marked_where_it_was_shown():
    owner = asked(3, 40, 41, key=THERE)
    picture = witness(Anomaly("cross-session leak", HERE, (LEAK, owner), owner.marker))
    assert "…000003 of another session" in words(picture)


def test_what_is_missing_is_marked_where_it_should_be():
    lost = witness(Anomaly("lost write", HERE, (T17, END), T17.marker))
    assert "…000011 is missing" in words(lost)
    stale = asked(2, 60, 61, markers(1))
    missed = Anomaly("stale read", HERE, (stale, T17), T17.marker)
    assert words(witness(missed)).count("…000011 is missing") == 1


def test_lanes_stand_by_time_and_keep_the_letters_of_the_argument():
    early = asked(3, 40, 41, key=THERE)
    said = words(witness(Anomaly("cross-session leak", HERE, (LEAK, early), early.marker)))
    assert said.index("T2 turn …000003") < said.index("T1 turn …000005")


def test_a_turn_without_an_answer_and_strange_markers_are_drawn():
    open_turn = asked(17, 50, math.inf, type_="info")._replace(marker="w" * 300, read=None)
    full = END._replace(markers=tuple(f"{n}-{'long' * 20}" for n in range(30)))
    picture = draw_witness(Anomaly("aborted read", HERE, (open_turn, full), "3-long"))
    assert figure_lint(picture.figure) == []
    assert {"no answer", "what it was shown was not seen"} <= set(words(picture))


def test_a_long_witness_is_cut_and_says_so():
    picture = witness(Anomaly("fork", HERE, tuple(BEFORE[:9]), "", FACTS))
    assert figure_lint(picture.figure) == []
    assert any("3 more operations of this witness are not drawn" in line for line in words(picture))
