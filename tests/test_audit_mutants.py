"""The audit's rules broken on purpose: most small changes let a fault pass or accuse a right log.

A mutant is ``rules`` with one comparison, one connective or one condition changed. It is noticed if
it misses a fault that the rules find, if it proves something of a right log, or if it does not
recognise what is legitimate. Which changes exist follows from the source.
"""

import ast
import copy
import signal
from pathlib import Path
from types import ModuleType

import pytest
from audit_attack import ATTACKS, attack
from audit_attack import damaged as damage_of

from benchmarks.audit_logs import FAULTS, ODDITIES, damaged, make_log
from kode_lab.audit import Log, rules

SOURCE = Path(rules.__file__).read_text(encoding="utf-8")
# Those that live change a limit, an order of equal things, or what excludes an innocent reading
# that another condition excludes as well.
BAR = 0.6
FLIPS = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq, ast.In: ast.NotIn, ast.NotIn: ast.In, ast.Is: ast.IsNot, ast.IsNot: ast.Is,
    ast.And: ast.Or, ast.Or: ast.And,
}  # fmt: skip


def logs():
    """Yield lines, and the faults that may be proved of them."""
    for fault in FAULTS:
        for seed in range(4):
            played = make_log(seed, faults=[fault], oddities=[])
            yield played.lines, played.faults
    for number, oddity in enumerate(ODDITIES):
        for seed in range(2):
            played = make_log(seed, faults=[FAULTS[number % 5]], oddities=[oddity])
            yield played.lines, played.faults
        yield damaged(played.lines, number), played.faults
    for seed, kind in enumerate(ATTACKS * 4):
        log = attack(seed, [kind])
        yield [line for _, line in log], set()
        yield [line for _, line in damage_of(log, seed)], set()


def read(lines):
    log = Log()
    for number, line in enumerate(lines, 1):
        log.read_line(line.encode(), "log", number)
    log.close()
    return log


@pytest.fixture(scope="module")
def known():
    """Each log, what may be proved of it, and what the rules say."""
    made = [(read(lines), may) for lines, may in logs()]
    return [(log, may, told_of(rules.judged(log))) for log, may in made]


def told_of(judgement):
    found = sorted({(one.name, one.is_proved) for one in judgement.findings})
    return found, sorted(judgement.recognised)


def is_noticed(judged, known):
    """Whether anything says that these rules are wrong; a crash and an endless loop do, too."""
    signal.signal(signal.SIGALRM, lambda *_: (_ for _ in ()).throw(TimeoutError))
    signal.alarm(20)
    try:
        for log, may, told in known:
            judgement = judged(log)
            proved = {one.name for one in judgement.findings if one.is_proved}
            if not proved <= may or told_of(judgement) != told:
                return True
    except Exception:  # noqa: BLE001 - whatever broken rules do, it is noticed
        return True
    finally:
        signal.alarm(0)
    return False


def mutants():
    tree = ast.parse(SOURCE)
    for at, found in enumerate(ast.walk(tree)):
        if not isinstance(found, ast.Compare | ast.BoolOp | ast.If):
            continue
        mutant = copy.deepcopy(tree)
        node = next(one for number, one in enumerate(ast.walk(mutant)) if number == at)
        if isinstance(node, ast.Compare) and type(node.ops[0]) in FLIPS:
            node.ops[0] = FLIPS[type(node.ops[0])]()
        elif isinstance(node, ast.BoolOp):
            node.op = FLIPS[type(node.op)]()
        elif isinstance(node, ast.If) and not isinstance(node.test, ast.Compare | ast.BoolOp):
            node.test = ast.UnaryOp(ast.Not(), node.test)
        else:
            continue
        yield getattr(node, "lineno", 0), ast.fix_missing_locations(mutant)


@pytest.mark.parametrize("kind", ATTACKS)
def test_nothing_is_proved_of_a_right_service_that_looks_wrong(kind):
    for seed in range(2):
        log = attack(seed, [kind])
        for lines in (log, damage_of(log, seed)):
            found = rules.judged(read([line for _, line in lines])).findings
            assert [one for one in found if one.is_proved] == []


@pytest.mark.mutants
def test_most_changes_of_the_rules_are_noticed(known):
    assert not is_noticed(rules.judged, known)
    alive, count = [], 0
    for line, tree in mutants():
        module = ModuleType("mutant_rules")
        exec(compile(tree, "<mutant>", "exec"), module.__dict__)
        count += 1
        if not is_noticed(module.judged, known):
            alive.append(line)
    lived = f"{count - len(alive)} of {count} killed; lines that live: {alive}"
    print(lived)  # noqa: T201 - the figure of a command
    assert len(alive) <= (1 - BAR) * count, lived
