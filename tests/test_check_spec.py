"""The judge says of each drawn history exactly what the specification says, and why."""

import json

import pytest
from judge_spec import SPECS, differences

from kode_lab.check import ANOMALIES, GUARANTEES, check, sentences
from kode_lab.check.ascii_history import draw, drawn
from kode_lab.check.evidence import WITNESS_OVERTAKERS
from kode_lab.check.render import anomaly_of, reads_html
from kode_lab.check.verdict import worst
from kode_lab.errors import InvalidRecord, InvalidScenario
from kode_lab.key import SessionKey

ADA = SessionKey("ada", "1", "agent")
LOST_UPDATE = drawn(SPECS["two turns at one position, one gone"].picture)
FINE = drawn(SPECS["two turns, one after the other"].picture)


@pytest.mark.parametrize("name", SPECS)
def test_the_judge_says_of(name):
    assert differences(SPECS[name], check) == []


@pytest.mark.parametrize("name", [name for name, spec in SPECS.items() if spec.argument])
def test_the_argument_for(name):
    spec = SPECS[name]
    verdict = check(drawn(spec.picture), None, spec.guarantees, overtaking_limit=spec.limit)
    told = sentences(verdict.anomalies[0])
    begin = next(at for at, sentence in enumerate(told) if sentence.startswith("Then "))
    assert told[begin : begin + 2] == spec.argument


def test_a_witness_judged_alone_has_the_name_that_it_proves():
    for name, spec in SPECS.items():
        for anomaly in check(drawn(spec.picture), overtaking_limit=spec.limit).anomalies:
            alone = check(list(anomaly.witness), overtaking_limit=spec.limit)
            assert anomaly.name in alone.counts, name


def test_every_anomaly_of_a_history_is_drawn_in_the_specification():
    of_traces = {"overlap", "needless serialisation"}
    drawn_here = {name for spec in SPECS.values() for name in spec.counts}
    assert drawn_here | of_traces == set(ANOMALIES)


def test_every_anomaly_breaks_a_guarantee_that_exists():
    names = {guarantee.name for guarantee in GUARANTEES}
    assert all(set(broken) <= names and broken for broken, _ in ANOMALIES.values())
    assert {name for broken, _ in ANOMALIES.values() for name in broken} == names


def test_a_verdict_in_a_terminal_shows_the_finding_the_picture_and_the_argument():
    lines = str(check(LOST_UPDATE)).splitlines()
    assert lines[0] == (
        "FAIL: 1 lost update in 2 turns, 1 concurrent pair. Accepted: 2 of 2 turns asked (100 %); "
        "0 refused, 0 indeterminate."
    )
    assert lines[2:5] == [
        "  G1 apart    valid       no session is shown, stores or answers another's words",
        "  G2 kept     invalid     1 lost update",
        f"  G3 whole    valid       {GUARANTEES[2].promise}",
    ]
    shown = "acknowledged at {} ms, shown nothing."
    last = "both stand at position 0 (b is gone), so neither was shown the other"
    assert lines[11:] == [
        "lost update, in ada:1: two turns took one position; one overlooks the other",
        "    ada:1  |---------------------a---------------------|                 -> a",
        "    ada:1                 |---------------------b---------------------|  -> b",
        "  Let T1 = turn b of ada:1 (p3), sent at 0.002 ms, " + shown.format("0.008"),
        "  Let T2 = turn a of ada:1 (p2), sent at 0.000 ms, " + shown.format("0.006"),
        "  Then one of T1 and T2 is first, and the other is shown it.",
        f"  However, {last}, and no order of the two explains that: a contradiction.",
    ]


def test_a_verdict_tells_who_was_overtaken_and_what_was_claimed_of_it():
    history = drawn(SPECS["a turn that two overtook, of which one is allowed"].picture)
    figure = "  Overtaken by what was sent later: 1 turn; the most that overtook one: 2"
    assert str(check(history)).splitlines()[-1] == f"{figure}."
    allowed = check(history, overtaking_limit=2)
    assert str(allowed).splitlines()[-1] == f"{figure}; claimed: at most 2."
    assert "the most that overtook one: 2; claimed: at most 2." in allowed._repr_html_()
    told = check(history, overtaking_limit=1).to_json()
    assert (told["overtaking_limit"], told["evidence"]["most_overtaken"]) == (1, 2)
    assert told["anomalies"][0]["facts"] == {"overtook": 2, "limit": 1}
    assert "Overtaken" not in str(check(LOST_UPDATE))
    claimed = "the most that overtook one: 0; claimed: at most 0."
    assert claimed in str(check(LOST_UPDATE, overtaking_limit=0))


def test_the_witness_of_an_overtaking_names_one_more_than_the_limit_and_never_a_crowd():
    crowd = "\n".join(  # all wait together
        f"ada:1 {' ' * at}|{f't{at}':-^20}| -> {shown(at)}" for at in range(12)
    )
    history = drawn(f"{crowd}\nada:1{' ' * 40}|-=-| -> {shown(0)}")
    for limit, named in ((0, 1), (2, 3), (9, WITNESS_OVERTAKERS)):
        verdict = check(history, overtaking_limit=limit)
        assert verdict.counts == {"overtaking": 11 - limit}
        for anomaly in verdict.anomalies:
            accused, *overtakers = anomaly.witness
            assert len(overtakers) == named
            assert all(accused.invoke_ns < one.invoke_ns for one in overtakers)


def shown(at):
    """Return what the turn ``t{at}`` of twelve sees if the newest is served first."""
    return " ".join(f"t{later}" for later in range(11, at - 1, -1))


def test_a_verdict_for_a_machine_is_json_with_the_witness_in_it():
    told = json.loads(json.dumps(check(LOST_UPDATE).to_json()))
    assert (told["status"], told["admission_rate"], told["counts"]) == (
        "invalid",
        1.0,
        {"lost update": 1},
    )
    (anomaly,) = told["anomalies"]
    assert anomaly["session"] == {"userId": "ada", "sessionId": "1", "agentId": "agent"}
    assert [one["marker"] for one in anomaly["witness"]] == ["b", "a"]
    assert anomaly["because"][-1].endswith("a contradiction.")


@pytest.mark.parametrize("name", [name for name, spec in SPECS.items() if spec.counts])
def test_an_anomaly_is_read_back_from_the_verdict_s_json(name):
    spec = SPECS[name]
    verdict = check(drawn(spec.picture), overtaking_limit=spec.limit)
    told = json.loads(json.dumps(verdict.to_json()))
    assert told["text"] == str(verdict)
    for anomaly, fields in zip(verdict.anomalies, told["anomalies"], strict=True):
        assert sentences(anomaly_of(fields)) == sentences(anomaly)
        assert anomaly_of(fields).witness[0].marker == anomaly.witness[0].marker


def test_a_verdict_in_a_notebook_follows_its_theme_and_says_the_word():
    for history, word in ((LOST_UPDATE, "FAIL"), (FINE, "PASS"), ([], "UNKNOWN")):
        page = check(history)._repr_html_()
        assert f">{word}</b>" in page
        assert "var(--jp-content-font-color1" in page


def test_what_users_name_things_is_never_markup():
    hostile = [o._replace(key=SessionKey("<b>", "<i>", "a")) for o in LOST_UPDATE]
    page = check(hostile)._repr_html_() + reads_html(hostile, hostile[0].key)
    assert "<b>:" not in page
    assert "&lt;b&gt;" in page


def test_a_pass_tells_its_evidence_and_who_was_turned_away():
    refused = drawn("ada:1  |--r--x\nada:1  |--s--?")
    first = str(check([*FINE, *refused])).splitlines()[0]
    assert first == (
        "PASS: no violation of G1-G4 in 4 turns, 1 concurrent pair. Accepted: 2 of 4 turns asked "
        "(50 %); 1 refused, 1 indeterminate."
    )


def test_all_reads_of_a_session_stand_in_one_table_with_a_colour_for_each_marker():
    page = reads_html(LOST_UPDATE, ADA)
    # Where a is shown, twice, it has one colour, and b another.
    assert page.count("hsl(205 ") == 2
    assert page.count("hsl(35 ") == 1


def test_a_table_of_reads_names_what_is_foreign_and_what_is_left_out():
    leak = drawn(SPECS["leak into a prompt"].picture)
    bob = SessionKey("bob", "1", "agent")
    assert "foreign a" in reads_html(leak, bob)
    many = drawn("ada:1 |--z--| -> a b c d e f g h i j z")
    assert "… <span" in reads_html(many, ADA)


def test_a_drawing_is_read_back_from_what_draws_it():
    again = drawn(draw(LOST_UPDATE, width=60))
    assert check(again).counts == check(LOST_UPDATE).counts


@pytest.mark.parametrize("line", ["ada:1", "ada:1 |--a--", "ada:1 |--a--| onto b", "|--a--|"])
def test_what_draws_nothing_is_refused_by_its_line(line):
    with pytest.raises(InvalidRecord, match=r"^line 2: "):
        drawn(f"# a remark\n{line}")


def test_invalid_beats_unknown_beats_valid():
    assert worst(["valid", "unknown", "invalid"]) == "invalid"
    assert worst(["unknown", "valid"]) == "unknown"
    assert worst(["valid"]) == "valid"
    assert worst([]) == "unknown"
    silent = drawn("bob:1 |--z--|")  # in a session that is not read
    assert check([*LOST_UPDATE, *silent]).status == "invalid"
    partly = check([*FINE, *silent])
    assert partly.status == "unknown"
    assert (partly.finding("G1").status, partly.finding("kept").status) == ("valid", "not judged")


def test_a_guarantee_or_an_engine_that_does_not_exist_is_refused_with_those_that_do():
    with pytest.raises(InvalidScenario, match="no guarantee 'G9': name some of G1, apart, G2"):
        check(FINE, None, ["G9"])
    with pytest.raises(InvalidScenario, match="name one of auto, rules, columns"):
        check(FINE, engine="quantum")
    with pytest.raises(InvalidScenario, match="overtaking_limit=-1 is below 0"):
        check(FINE, overtaking_limit=-1)


def test_a_rule_that_throws_leaves_its_guarantee_unknown_and_never_hides_what_others_found():
    # What a bug in a rule would do: a position that cannot be compared.
    class Bug(int):
        def __eq__(self, other):
            raise ZeroDivisionError

        __hash__ = None

    told = FINE[0].read._replace(tail=("b",), position=Bug(1))
    broken = [FINE[0]._replace(read=told), *FINE[1:]]
    verdict = check(broken)
    assert (verdict.status, verdict.exit_status) == ("unknown", 2)
    assert "the rule failed: ZeroDivisionError" in verdict.reason
    refused = drawn("ada:1  |--r--x")
    shown = FINE[-1]._replace(markers=(*FINE[-1].markers, "r"))
    verdict = check([*broken[:-1], *refused, shown])
    assert verdict.status == "invalid"
    assert verdict.counts == {"aborted read": 1}


def test_evidence_that_cannot_be_laid_out_is_unknown_and_never_a_crash():
    class Bug:
        def __eq__(self, other):
            raise ZeroDivisionError

        __hash__ = None

    broken = FINE[1]._replace(read=FINE[1].read._replace(digest=Bug()))
    verdict = check([FINE[0], broken, *FINE[2:]])
    assert verdict.status == "unknown"
    assert "ZeroDivisionError" in verdict.reason


def test_the_same_marker_for_two_turns_is_no_evidence():
    one, other = drawn("ada:1 |--a--|"), drawn("bob:1 |--a--|")
    for engine in ("rules", "columns"):
        with pytest.raises(InvalidRecord, match="marker 'a' is sent in "):
            check([*one, *other], engine=engine)
        again = one[0]._replace(turn_id="another", process="q")
        with pytest.raises(InvalidRecord, match="marker 'a' is sent by two turns"):
            check([*one, again], engine=engine)
        nameless = [o._replace(turn_id="") for o in (*one, *one)]
        with pytest.raises(InvalidRecord, match="marker 'a' is sent by two turns"):
            check(nameless, engine=engine)


def test_an_operation_that_ends_before_it_begins_is_no_evidence():
    turn = FINE[0]._replace(complete_ns=FINE[0].invoke_ns - 1)
    for engine in ("rules", "columns"):
        with pytest.raises(InvalidRecord, match="completes before it was invoked"):
            check([turn, *FINE[1:]], engine=engine)
        late = FINE[-1]._replace(complete_ns=0, invoke_ns=5)
        with pytest.raises(InvalidRecord, match="completes before it was invoked"):
            check([*FINE[:-1], late], engine=engine)
