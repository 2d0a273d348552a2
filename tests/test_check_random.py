"""The judge agrees with the search, never accuses the innocent, and its engines agree."""

import math
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.histories import (
    declared_run,
    large_history,
    random_declared,
    random_history,
    valid_run,
)
from benchmarks.selftest import (
    disagreements,
    false_alarms,
    is_explained,
    judge_figures,
    speed_figures,
)
from kode_lab.check import GUARANTEES, check
from kode_lab.check.ascii_history import drawn
from kode_lab.check.columns import columns_of, hashes_of
from kode_lab.check.screen import screen
from kode_lab.check.search import SESSION, search, session_outcome
from kode_lab.history.digest import digest_of, hash_of
from kode_lab.history.operation import NEMESIS, TAIL_LIMIT, Effect, Operation, Read
from kode_lab.key import SessionKey

SEEDS = st.integers(0, 2**32)


def test_the_judge_and_the_search_agree_on_random_histories_of_which_many_are_right_and_wrong():
    wrong, valid = disagreements(300)
    assert wrong == []
    assert 60 < valid < 240


def test_they_agree_on_larger_ones():
    assert disagreements(30, seed=10**6, size=8)[0] == []


def test_the_search_of_the_judge_explains_what_the_reference_explains():
    for seed in range(120):
        history = random_declared(seed)
        if not any(o.type == "fail" for o in history):
            assert (session_outcome(history).status == "valid") is is_explained(history), seed


def test_a_history_without_its_last_read_is_never_accused_wrongly():
    accused = 0
    for seed in range(200):
        history = random_history(seed)[:-1]
        turns = [operation for operation in history if operation.f == "turn"]
        for fewer in (history, turns):
            if check(fewer).status == "invalid":
                accused += 1
                assert is_explained(fewer) is False, seed
    assert accused > 33


def test_right_runs_with_all_that_may_happen_raise_no_alarm():
    assert false_alarms(14) == []
    run = valid_run(1)
    assert {o.type for o in run} == {"ok", "fail", "info"}
    assert len({o.turn_id for o in run}) < len(run) - 20  # retries
    assert sum(o.f == "kill" for o in run) == 2
    kinds = {o.f for seed in range(8) for o in declared_run(seed)}
    assert kinds == {"turn", "read", "compact", "reset", "delete", "fork"}


def engines_agree(history, trace=None, limit=None):
    rules, columns = (
        check(history, trace, overtaking_limit=limit, engine=engine)
        for engine in ("rules", "columns")
    )
    assert rules == columns
    for guarantee in (g.code for g in GUARANTEES):
        rules, columns = (
            check(history, trace, [guarantee], engine=engine) for engine in ("rules", "columns")
        )
        assert rules == columns
    return check(history, trace, overtaking_limit=limit, engine="rules")


@pytest.mark.parametrize("seed", range(4))
def test_a_turn_that_stands_in_another_session_s_list_is_lost_however_much_is_beside_it(seed):
    random = Random(seed)
    history = large_history(400, sessions=4)
    reads = [at for at, o in enumerate(history) if o.f == "read"]
    source, target = random.sample(reads, 2)
    moved = random.choice(history[source].markers)
    for at, o in enumerate(history):  # nothing tells where it stood
        if o.marker and o.key in (history[source].key, history[target].key):
            history[at] = o._replace(read=None)
    left = tuple(m for m in history[source].markers if m != moved)
    where = random.randint(0, len(history[target].markers))
    there = list(history[target].markers)
    there.insert(where, moved)
    history[source] = history[source]._replace(markers=left)
    history[target] = history[target]._replace(markers=tuple(there))
    counts = engines_agree(history).counts
    assert (counts["lost write"], counts["cross-session leak"]) == (1, 1)
    assert check(history, None, ["kept"], engine="columns").status == "invalid"


@given(SEEDS)
@settings(max_examples=10, deadline=None)
def test_both_engines_give_the_same_verdict_on_right_runs_with_one_thing_changed(seed):
    random = Random(seed)
    history = valid_run(seed, turns=24)
    at = random.randrange(len(history))
    operation = history[at]
    change = random.randrange(6)
    if change == 0:
        history[at] = operation._replace(type=random.choice(["ok", "fail", "info"]))
    elif change == 1 and operation.read is not None:
        read = operation.read._replace(position=operation.read.position + random.choice([-1, 1]))
        history[at] = operation._replace(read=read._replace(position=max(0, read.position)))
    elif change == 2 and operation.read is not None:
        other = random.choice(history).marker or "x"
        history[at] = operation._replace(read=operation.read._replace(foreign=(other,)))
    elif change == 3 and operation.markers:
        shown = list(operation.markers)
        random.shuffle(shown)
        history[at] = operation._replace(markers=tuple(shown[random.randrange(2) :]))
    elif change == 4 and operation.process != NEMESIS:
        history[at] = operation._replace(answered=random.choice(history).marker, config="v2")
    else:
        del history[at]
    engines_agree(history)
    engines_agree(history, limit=random.randrange(4))


@given(SEEDS, st.integers(0, 8))
@settings(max_examples=10, deadline=None)
def test_both_engines_find_those_who_were_overtaken_and_count_them_as_one_by_one(seed, limit):
    history, overtook = [], []
    for session in range(2):
        random = Random(f"{seed} {session}")
        # Turns that all wait together, some sent at once, are served in any order.
        sent = [random.randrange(20) for _ in range(random.randrange(1, 30))]
        markers = [f"{session}-{at}" for at in range(len(sent))]
        key = SessionKey("ada", str(session), "agent")
        for at, (invoke_ns, marker) in enumerate(zip(sent, markers, strict=True)):
            read = Read(at, digest_of(markers[:at]), tuple(markers[:at][-TAIL_LIMIT:]))
            kind = random.choice(["ok", "ok", "info"])
            turn = Operation(key, "turn", marker, kind, invoke_ns, 40, marker, marker, read)
            history.append(turn if kind == "ok" else turn._replace(complete_ns=math.inf))
        final = Operation(key, "read", "final", "ok", 50, 51, markers=tuple(markers))
        history.append(final)
        own = [o for o in history if o.key == key and o.type == "ok" and o.f == "turn"]
        overtook += [
            sum(before.invoke_ns > turn.invoke_ns for before in own[:at])
            for at, turn in enumerate(own)
        ]
    verdict = engines_agree(history, limit=limit)
    assert verdict.evidence.most_overtaken == max(overtook, default=0)
    assert verdict.counts.get("overtaking", 0) == sum(count > limit for count in overtook)
    assert engines_agree(history).counts == {}


@given(st.lists(SEEDS, min_size=1, max_size=4))
@settings(max_examples=10, deadline=None)
def test_both_engines_give_the_same_verdict_on_several_random_sessions_together(seeds):
    history = []
    for number, seed in enumerate(seeds):
        for operation in random_history(seed):
            key = operation.key._replace(session_id=str(number))
            named = operation._replace(key=key)
            if operation.marker:
                marker = f"{number}{operation.marker}"
                named = named._replace(marker=marker, turn_id=marker)
            history.append(named)
    engines_agree(history)
    engines_agree([*told_more(Random(seeds[0]), history), *faults(Random(seeds[-1]))])


def told_more(random, history):
    """Let some operations tell of effects and configurations, the same ones again and again."""
    turns = [o.marker for o in history if o.marker]
    for operation in history:
        effects = tuple(
            Effect(
                random.choice("123"),
                random.choice(["create", "delete"]),
                random.choice(turns),
                random.choice(["", "ada", "bob"]),
            )
            for _ in range(random.choice([0, 0, 1, 2]))
        )
        config = random.choice(["", "v1", "v1", "v2"])
        yield operation._replace(effects=effects or None, config=config)


def faults(random):
    """Let something crash, and declare all faults over, or not."""
    no_session = SessionKey("", "", "")
    for name in random.sample(["kill", "restart", "configure", "configured", "quiet"], 3):
        at = random.randrange(40)
        yield Operation(no_session, name, NEMESIS, "info", at, at)


@pytest.mark.parametrize("sessions", [1, 20])
def test_the_screen_clears_what_is_plain_and_hands_over_what_is_not(sessions):
    history = large_history(2_100, sessions=sessions, indeterminate=0.2)
    evidence, suspect = screen(columns_of(history))
    assert not suspect.any()
    assert evidence == check(history, engine="rules").evidence
    first = next(at for at, o in enumerate(history) if o.read is not None)
    read = history[first].read
    history[first] = history[first]._replace(read=read._replace(digest=read.digest ^ 1))
    columns = columns_of(history)
    _, suspect = screen(columns)
    assert [columns.keys[at] for at in suspect.nonzero()[0]] == [history[first].key]
    assert engines_agree(history).counts == {"fork": 1}


def test_values_that_no_column_holds_are_left_to_the_rules():
    fine = drawn("ada:1 |--a--| -> a\nada:1   |--b--| -> a b\nada:1           |-=-| -> a b")
    odd = [o._replace(invoke_ns=o.invoke_ns + 0.5, complete_ns=o.complete_ns + 0.5) for o in fine]
    for history in (odd, [o._replace(complete_ns=o.complete_ns + 2**70) for o in fine[:2]]):
        assert columns_of(history) is None
        engines_agree(history)
    assert check(odd, engine="columns").status == "valid"


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20)))
@settings(max_examples=10, deadline=None)
def test_digests_at_once_are_digests_one_by_one(markers):
    history = [Operation(("u", "s", "a"), "turn", m, "ok", 0, 1, m) for m in dict.fromkeys(markers)]
    if history:
        names = [o.marker for o in history]
        same = [[f"{at:0{size}x}" for at in range(700)] for size in (7, 8, 18)]
        for listed in (names, *same, [f"{name}\0" for name in same[0]], ["a\0b", "c", "\0d\0"]):
            hashes = [hash_of(marker) for marker in listed]
            assert hashes_of(listed).tolist() == hashes


# ---- what never turns a right history into a wrong one


@given(SEEDS, st.integers(1, 10**9))
@settings(max_examples=8, deadline=None)
def test_a_longer_interval_accuses_no_turn(seed, longer_ns):
    random = Random(seed)
    history = [
        o._replace(invoke_ns=o.invoke_ns - random.randrange(longer_ns))
        if o.process != NEMESIS and o.f == "turn"
        else o
        for o in valid_run(seed, turns=24)
    ]
    assert check(history).anomalies == ()


@given(SEEDS)
@settings(max_examples=8, deadline=None)
def test_a_turn_that_was_not_seen_accuses_no_turn(seed):
    history = valid_run(seed, turns=24)
    key = next(o.key for o in history if o.process != NEMESIS)
    ghost = Operation(key, "turn", "ghost", "info", 1, math.inf, "ghost", "ghost")
    refused = ghost._replace(marker="refused", turn_id="refused", type="fail", complete_ns=9)
    assert check([*history, ghost, refused]).anomalies == ()


@given(SEEDS)
@settings(max_examples=8, deadline=None)
def test_forgetting_that_a_turn_was_acknowledged_accuses_no_turn(seed):
    random = Random(seed)
    history = [
        o._replace(type="info", complete_ns=math.inf)
        if o.f == "turn" and "probe" not in o.process and random.random() < 0.3
        else o
        for o in valid_run(seed, turns=24)
    ]
    assert check(history).status != "invalid"


@given(SEEDS, st.integers(0, 2**40))
@settings(max_examples=8, deadline=None)
def test_when_the_clock_started_and_in_which_order_lines_stand_changes_nothing(seed, later_ns):
    history = random_history(seed)
    moved = [
        o._replace(invoke_ns=o.invoke_ns + later_ns, complete_ns=o.complete_ns + later_ns)
        for o in history
    ]
    Random(seed).shuffle(moved)
    assert check(moved).counts == check(history).counts


@given(SEEDS)
@settings(max_examples=8, deadline=None)
def test_a_wrong_session_stays_wrong_beside_any_right_one(seed):
    history = random_history(seed)
    right = valid_run(seed, turns=9, has_crashes=False)
    alone, together = check(history), check([*history, *right])
    assert (alone.status == "invalid") == (together.status == "invalid")
    assert alone.counts == together.counts


# ---- the search itself


@pytest.mark.parametrize(
    ("picture", "has_order"),
    [
        ("ada:1 |--a--| -> a\nada:1   |--b--| -> a b", True),
        ("ada:1 |--a--| -> a\nada:1   |--b--| -> b", False),
        ("ada:1 |--a--| -> a\nada:1   |--b--? -> b", True),
        ("ada:1 |--a--| -> b a\nada:1   |--b--?", True),
        ("ada:1 |--a--| -> b a\nada:1         |--b--?", False),
        ("ada:1 |--a--| -> b a\nada:1       |--b--?", True),
    ],
)
def test_the_search_knows_small_histories_by_itself(picture, has_order):
    assert is_explained(drawn(picture)) is has_order
    assert (session_outcome(drawn(picture)).status == "valid") is has_order


def test_a_search_without_time_says_that_it_does_not_know():
    history = [
        Operation(("u", "s", "a"), "turn", str(n), "ok", 0, 9, str(n), "", None) for n in range(12)
    ]
    impossible = Operation(("u", "s", "a"), "read", "r", "ok", 10, 11, markers=("x",))
    for limit in ({"budget_s": 0.0}, {"limit_steps": 1_000}):
        assert session_outcome([*history, impossible], **limit).status == "unknown"
    assert search(SESSION, []).status == "valid"


# ---- figures


def test_the_figures_of_the_judge_are_measured_and_carry_their_bars():
    figures = judge_figures(histories=60, runs=2)
    assert [f.value for f in figures if "search" in f.name or "alarms" in f.name] == [0, 0]
    speeds = speed_figures([500, 1_000], repeats=1)
    assert {f.bar for f in speeds} == {None, "ratio <= 1.5"}  # too small to be held to the others
    assert all(f.value > 0 for f in speeds)
    assert len(speeds) == 10
