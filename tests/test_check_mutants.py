"""The judge broken on purpose: nearly every small change of its rules is noticed.

A mutant is the judge's own source with one comparison, one connective or one condition changed,
loaded beside the real one. It is killed if a specification (``judge_spec``, ``trace_spec``), a
comparison with the search on random histories, or a right run notices. Which changes exist follows
from the source, so nothing here has to be kept in step with it.
"""

import ast
import copy
import sys
from pathlib import Path
from types import ModuleType

import pytest
from judge_spec import SPECS, differences
from trace_spec import TRACES, trace_differences

import kode_lab.check
from benchmarks.histories import declared_run, large_history, random_history, valid_run
from benchmarks.selftest import is_explained
from kode_lab.errors import InvalidRecord

HOME = Path(kode_lab.check.__file__).parent
# What the verdict depends on, each after those that it imports.
MODULES = (
    "verdict",
    "evidence",
    "search",
    "rules",
    "shared_rules",
    "lines",
    "columns",
    "screen",
    "judge",
)
NAME = "mutant_check"
# Of the mutants of a module, the share that must be killed. Those that live change a limit, an
# order of equal things, a message, or what is only faster.
BARS = {"evidence": 0.85, "rules": 0.85, "shared_rules": 0.8, "screen": 0.85}
FLIPS = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq, ast.In: ast.NotIn, ast.NotIn: ast.In, ast.Is: ast.IsNot, ast.IsNot: ast.Is,
    ast.And: ast.Or, ast.Or: ast.And,
}  # fmt: skip
HISTORIES = [random_history(seed) for seed in range(150)]
EXPLAINED = [is_explained(history) for history in HISTORIES]
RIGHT = [*(valid_run(seed, turns=18) for seed in range(2)), declared_run(1), declared_run(2)]
# Two turns with one marker are no evidence: with other turn ids, without any, in two sessions.
AMBIGUOUS = [
    [turn, turn._replace(process="again", turn_id="another")]
    for turn in (o for o in RIGHT[0] if o.f == "turn")
][:1]
AMBIGUOUS += [[turn._replace(turn_id="") for turn in pair] for pair in AMBIGUOUS]
LARGE = large_history(600, sessions=6, indeterminate=0.2)


def judge_with(module, tree):
    """Return ``check`` of a judge of its own, in which one module is another one."""
    package = sys.modules[NAME] = ModuleType(NAME)
    package.__path__ = []
    for name in MODULES:
        source = (HOME / f"{name}.py").read_text(encoding="utf-8")
        code = tree if name == module else ast.parse(source)
        made = sys.modules[f"{NAME}.{name}"] = ModuleType(f"{NAME}.{name}")
        made.__dict__["__file__"] = name
        renamed = Renamed().visit(copy.deepcopy(code))
        exec(compile(ast.fix_missing_locations(renamed), f"<mutant of {name}>", "exec"),
             made.__dict__)  # fmt: skip
    return sys.modules[f"{NAME}.judge"].check


class Renamed(ast.NodeTransformer):
    """Lets modules of the mutant import each other."""

    def visit_ImportFrom(self, node):
        if node.module and node.module.startswith("kode_lab.check."):
            node.module = node.module.replace("kode_lab.check", NAME)
        return node


def mutants_of(module):
    """Return each mutant's line and tree."""
    tree = ast.parse((HOME / f"{module}.py").read_text(encoding="utf-8"))
    count = sum(1 for _ in ast.walk(tree))
    for at in range(count):
        mutant = copy.deepcopy(tree)
        node = next(n for number, n in enumerate(ast.walk(mutant)) if number == at)
        if isinstance(node, ast.Compare) and type(node.ops[0]) in FLIPS:
            node.ops[0] = FLIPS[type(node.ops[0])]()
        elif isinstance(node, ast.BoolOp):
            node.op = FLIPS[type(node.op)]()
        elif isinstance(node, ast.If) and not isinstance(node.test, ast.Compare | ast.BoolOp):
            node.test = ast.UnaryOp(ast.Not(), node.test)
        else:
            continue
        yield getattr(node, "lineno", 0), mutant


def is_accepted(check, history):
    """Whether a judge takes a history for evidence."""
    try:
        check(history)
    except InvalidRecord:
        return False
    return True


def is_noticed(check):
    """Whether anything says that this judge is wrong; a crash is noticed, too."""
    try:
        return (
            any(differences(spec, check) for spec in SPECS.values())
            or any(trace_differences(name, check) for name in TRACES)
            or any(is_accepted(check, history) for history in AMBIGUOUS)
            or any(
                right == bool(check(history, engine=engine).anomalies)
                for history, right in zip(HISTORIES, EXPLAINED, strict=True)
                for engine in ("rules", "columns")
            )
            or any(
                check(run, engine="rules") != check(run, engine="columns")
                or check(run).status != "valid"
                for run in (*RIGHT, LARGE)
            )
        )
    except Exception:  # noqa: BLE001 - what a broken judge does, it is noticed
        return True


def test_the_judge_itself_is_not_noticed():
    assert not is_noticed(judge_with("", None))


@pytest.mark.mutants
@pytest.mark.parametrize("module", BARS)
def test_nearly_every_change_is_noticed(module):
    alive, count = [], 0
    try:
        for line, tree in mutants_of(module):
            count += 1
            if not is_noticed(judge_with(module, tree)):
                alive.append(line)
    finally:
        for name in [name for name in sys.modules if name.partition(".")[0] == NAME]:
            del sys.modules[name]
    lived = f"{module}: {count - len(alive)} of {count} killed; lines that live: {alive}"
    print(lived)  # noqa: T201 - the figure of a command
    assert len(alive) <= (1 - BARS[module]) * count, lived
