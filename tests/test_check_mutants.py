"""The judge broken on purpose: every mutant is killed by a specification that is named beside it.

A mutant is the judge's own source with one piece changed, loaded beside the real one.
"""

import sys
from functools import cache
from pathlib import Path
from types import ModuleType

import pytest
from judge_spec import SPECS, differences
from mutants import MUTANTS
from trace_spec import ADA, FINE, TRACES, spans_of, trace_differences

import kode_lab.check
from kode_lab.check.ascii_history import drawn
from kode_lab.check.generate import large_history, random_history, valid_run
from kode_lab.check.selftest import is_searchable
from kode_lab.errors import InvalidRecord
from kode_lab.history.digest import digest_of
from kode_lab.history.operation import NEMESIS, Operation, Read
from kode_lab.history.span import Span
from kode_lab.key import SessionKey

HOME = Path(kode_lab.check.__file__).parent
# What the verdict depends on, each after those that it imports.
MODULES = (
    *("guarantee", "case", "overtaking", "rules", "service_rules", "trace_rules"),
    *("verdict", "columns", "plain", "fast", "judge"),
)
NAME = "mutant_check"


@cache
def code_of(module, text):
    return compile(text, f"<mutant of {module}>", "exec")


def judge_with(mutated="", old="", new=""):
    """Return ``check`` of a judge of its own, in which one piece of one module is changed."""
    package = sys.modules[NAME] = ModuleType(NAME)
    package.__path__ = []
    for module in MODULES:
        text = (HOME / f"{module}.py").read_text(encoding="utf-8")
        if module == mutated:
            assert text.count(old) == 1, f"{old!r} stands {text.count(old)} times in {module}"
            text = text.replace(old, new)
        made = sys.modules[f"{NAME}.{module}"] = ModuleType(f"{NAME}.{module}")
        exec(code_of(module, text.replace("kode_lab.check", NAME)), made.__dict__)
    return sys.modules[f"{NAME}.judge"].check


def forget():
    for name in [name for name in sys.modules if name.partition(".")[0] == NAME]:
        del sys.modules[name]


def notices(killer, check):
    """Tell whether a specification differs from what this judge says; a crash differs too."""
    assert killer in SPECS or killer in TRACES or killer in KILLERS, f"{killer!r} is nobody"
    try:
        if killer in SPECS:
            return differences(SPECS[killer], check)
        if killer in TRACES:
            return trace_differences(killer, check)
        return KILLERS[killer](check)
    except Exception as error:  # noqa: BLE001 - whatever a broken judge does, it is noticed
        return [repr(error)]


def disagrees_with_the_search(check):
    return [
        seed
        for seed in range(400)
        for history in [random_history(seed)]
        if is_searchable(history) == bool(check(history, engine="rules").anomalies)
    ]


def accuses_right_runs(check):
    return [
        seed
        for seed in range(12)
        for engine in ("rules", "python", "numpy")
        if check(valid_run(seed), engine=engine).status != "valid"
    ]


def engines_differ(check):
    return [
        seed
        for seed in range(60)
        for history in (random_history(seed), valid_run(seed, turns=12)[:-3])
        for limit in (None, 1)
        for rules in [check(history, overtaking_limit=limit, engine="rules")]
        for engine in ("python", "numpy")
        if check(history, overtaking_limit=limit, engine=engine) != rules
    ]


def tells_no_time_from_no_sign(check):
    """Shift all times below zero: a sentinel among them would be taken for a time."""
    found = []
    for name, spec in SPECS.items():
        shifted = [
            o._replace(invoke_ns=o.invoke_ns - 10**6, complete_ns=o.complete_ns - 10**6)
            for o in drawn(spec.picture)
        ]
        if (
            dict(check(shifted, None, spec.guarantees, overtaking_limit=spec.limit).counts)
            != spec.counts
        ):
            found.append(name)
    return found


def counts_unsent_markers_of_the_session(check):
    """A marker that carries the session's tag stands in its list, though nobody sent it."""
    own, key = ("t-1", "t-2", "t-3"), SessionKey("ada", "1", "agent")
    shown = (own[0], "t-9", own[1], own[2])
    turns = [
        Operation(key, "turn", m, "ok", 0, 9, m, m, Read(p, digest_of(shown[:p]), shown[:p]))
        for m, p in zip(own, (0, 2, 3), strict=True)
    ]
    final = Operation(key, "read", "r", "ok", 10, 11, markers=shown)
    counts = dict(check([*turns, final]).counts)
    return [] if counts == {"garbage read": 1} else [counts]


def sees_through_tools_of_a_killed_turn(check):
    steps = [Span(ADA, "t1", "tool", 0, 90), Span(ADA, "t1", "tool", 10, 20)]
    verdict = check(FINE, [*steps, *spans_of(ADA, "t2", 25, 25, 80)], ["lock"])
    return [] if verdict.counts == {"overlap": 1} else [dict(verdict.counts)]


def counts_who_was_sent_at_once_as_overtaking(check):
    """Of turns that were sent at one moment, nobody overtakes anybody, whoever else does."""
    order = tuple(f"{at:03}" for at in range(200))
    turns = [
        # Each second one was sent before all the others.
        Operation(ADA, "turn", m, "ok", 1 - at % 2, 9, m, m, Read(at, digest_of(order[:at])))
        for at, m in enumerate(order)
    ]
    history = [*turns, Operation(ADA, "read", "r", "ok", 10, 11, markers=order)]
    engines = ("rules", "python", "numpy")
    found = [check(history, engine=engine).evidence.most_overtaken for engine in engines]
    return [] if found == [100, 100, 100] else found


def sees_only_so_much_of_a_session_at_once(check):
    """A session that is longer than a screen's look: seen whole, unseen, and in another order."""
    whole = large_history(2_100, sessions=1, indeterminate=0.1)
    *turns, final = (operation._replace(read=None) for operation in whole)
    *before, last = final.markers[:1_025]
    late = (*before[:1_023], last, *before[1_023:], *final.markers[1_025:])
    far = (*final.markers[:1_023], final.markers[1_100], *final.markers[1_023:1_100])
    orders = {"late": late, "far": (*far, *final.markers[1_101:])}
    histories = {"whole": whole, "unseen": [*turns, final]} | {
        name: [*turns, final._replace(markers=order)] for name, order in orders.items()
    }
    return [
        (name, engine)
        for name, history in histories.items()
        for rules in [check(history, engine="rules")]
        for engine in ("python", "numpy")
        if check(history, engine=engine) != rules or (rules.status == "invalid") != (name == "far")
    ]


def claims_the_lock_without_a_trace(check):
    return [] if check(FINE, None, ["lock"]).status == "unknown" else ["no trace"]


def claims_the_lock_where_nobody_met(check):
    alone = [o for o in FINE if o.marker != "b"]
    spans = spans_of(FINE[0].key, "t", 0, 0, 20)
    waits = [span for span in spans if span.step == "wait"]
    return [
        told
        for told in (spans, waits)
        for history in (alone, FINE)
        if check(history, told, ["lock"]).status != "unknown" and (told, history) != (spans, FINE)
    ]


def accepts_what_is_no_evidence(check, history):
    """Tell which engines do not refuse a history that must not be judged."""
    accepted = []
    for engine in ("rules", "python", "numpy"):
        try:
            check(history, engine=engine)
        except InvalidRecord:
            continue
        accepted.append(engine)
    return accepted


def accepts_turns_that_end_before_they_begin(check):
    ended = FINE[0]._replace(complete_ns=FINE[0].invoke_ns - 1)
    return accepts_what_is_no_evidence(check, [ended, *FINE[1:]])


def accepts_a_marker_of_two_sessions(check):
    theirs = [o._replace(key=o.key._replace(session_id="2")) for o in FINE]
    return accepts_what_is_no_evidence(check, [*FINE, *theirs])


def hears_a_fault_as_a_turn(check):
    """The nemesis acts on no session; where a history says so, all engines say the same of it."""
    fault = Operation(FINE[0].key, "kill", NEMESIS, "info", 1, 1)
    first, *others = (check([*FINE, fault], engine=e) for e in ("rules", "python", "numpy"))
    return [verdict for verdict in others if verdict != first]


KILLERS = {
    "turns that end before they begin": accepts_turns_that_end_before_they_begin,
    "a marker of two sessions": accepts_a_marker_of_two_sessions,
    "a fault within a session": hears_a_fault_as_a_turn,
    "times below zero": tells_no_time_from_no_sign,
    "an unsent marker of the session": counts_unsent_markers_of_the_session,
    "tools of a killed turn": sees_through_tools_of_a_killed_turn,
    "many turns sent at once": counts_who_was_sent_at_once_as_overtaking,
    "a long session": sees_only_so_much_of_a_session_at_once,
    "the lock where nobody met": claims_the_lock_where_nobody_met,
    "no trace": claims_the_lock_without_a_trace,
    "the search": disagrees_with_the_search,
    "right runs": accuses_right_runs,
    "the other engine": engines_differ,
}


def test_the_judge_as_it_is_survives_all_that_kills_mutants():
    check = judge_with()
    try:
        killed = {k: notices(k, check) for k in (*SPECS, *TRACES, *KILLERS)}
        assert {killer: found for killer, found in killed.items() if found} == {}
    finally:
        forget()


@pytest.mark.mutants
@pytest.mark.parametrize(
    ("module", "old", "new", "killer"),
    MUTANTS,
    ids=[f"{module}: {new.strip()[:50] or 'nothing'}" for module, _, new, _ in MUTANTS],
)
def test_a_mutant_is_killed(module, old, new, killer):
    check = judge_with(module, old, new)
    try:
        assert notices(killer, check), f"{killer} does not notice"
    finally:
        forget()
