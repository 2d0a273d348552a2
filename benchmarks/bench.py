"""``make bench``: the one place where a speed is claimed, and by which rules.

It owns what a figure is (``Row``), the list of benches, how they are run and how the outcome is
shown and kept. What is measured stands in the modules beside it; how a sample is taken, in
``sampling``. It must never know what a session is.

The rules: CPU time, not the clock on the wall, wherever the machine's other work would decide;
a ratio only between two things measured in one run, in turns (A B A B); the median of the rounds,
or the best of them where the bar is a time by itself, for who shares the machine makes code slower
and never faster; each bench in a process of its own, so that none inherits another's heap; and the
machine's load said beside the table. A bench that breaks misses its bar: no figure, no claim.

Idea: the ratios-in-one-run discipline is pyperf's and criterion's, in a tenth of their words.
"""

from __future__ import annotations

import importlib
import json
import operator
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, TypeAlias

from kode_lab.errors import InvalidScenario
from kode_lab.lab.provenance import commit_name, machine

__all__ = [
    "BENCHES",
    "Bench",
    "Row",
    "as_json",
    "bench",
    "named",
    "row",
    "save",
    "table",
]

# The slowest bench takes a minute on a busy machine; one that takes this long will not end.
_LIMIT_S = 900.0
_BAR = re.compile(r"(value|ratio) (<=|>=) ([0-9.]+)")
_HOLDS: dict[str, Callable[[float, float], bool]] = {"<=": operator.le, ">=": operator.ge}


class Row(NamedTuple):
    """One figure.

    Attributes:
        value: what was measured, in ``unit``, or None where the bench broke.
        baseline: what it is compared with, measured in the same run and unit, or None.
        ratio: value / baseline, or None.
        bar: what has to hold of it, as ``ratio <= 0.7`` or ``value >= 5000``, or None.
        ok: False when the bar is missed.
    """

    name: str
    value: float | None
    unit: str
    baseline: float | None
    ratio: float | None
    bar: str | None
    ok: bool


class Bench(NamedTuple):
    """One bench: what it answers, and where the function stands that gives its rows.

    The function takes ``effort``, the share of the full work to do: 1.0 for figures to believe.
    """

    about: str
    where: str

    def load(self) -> BenchFunction:
        """Return the function."""
        module, _, name = self.where.partition(":")
        function: BenchFunction = getattr(importlib.import_module(module), name)
        return function


BenchFunction: TypeAlias = Callable[[float], list[Row]]

BENCHES: dict[str, Bench] = {
    "import": Bench("what a bare import costs", "benchmarks.import_cost:imports"),
    "hold": Bench("the lock against asyncio.Lock", "benchmarks.lock:hold"),
    "append": Bench("the store against rewriting", "benchmarks.store:append"),
    "power": Bench("group commit against fdatasync", "benchmarks.store:power"),
    "turn": Bench("a whole turn, young and old", "benchmarks.turns:turn"),
    "anatomy": Bench("where a turn's microseconds go", "benchmarks.anatomy:anatomy"),
    "collector": Bench("what the collector takes", "benchmarks.anatomy:collector"),
    "concurrent": Bench("10,000 sessions at once", "benchmarks.turns:concurrent"),
    "postgres": Bench("a turn in PostgreSQL, all in", "benchmarks.postgres:postgres"),
    "memory": Bench("what an idle session weighs", "benchmarks.memory:memory"),
    "visits": Bench("100,000 sessions, twice", "benchmarks.memory:visits"),
    "client": Bench("the model client under load", "benchmarks.client:client"),
    "model": Bench("the simulated model and the proxy", "benchmarks.model:model"),
    "serve": Bench("a turn over HTTP, many at once", "benchmarks.serve:serve"),
    "generator": Bench("what load tests cost and see", "benchmarks.generator:generator"),
    "look": Bench("a run of 10,000 turns, looked at", "benchmarks.laboratory:looking"),
    "check": Bench("the judge: errors and speed", "benchmarks.judge:check"),
    "audit": Bench("the audit: errors and speed", "benchmarks.audit:audit"),
    "crash": Bench("300 times kill -9, nothing lost", "benchmarks.crash:crash"),
}


def row(
    name: str, value: float, unit: str, *, baseline: float | None = None, bar: str | None = None
) -> Row:
    """Return the judged row of a figure.

    Raises:
        InvalidScenario: the bar says nothing that can be judged.
    """
    ratio = None if baseline is None else value / baseline
    ok = True
    if bar is not None:
        parts = _BAR.fullmatch(bar)
        judged = value if parts is not None and parts[1] == "value" else ratio
        if parts is None or judged is None:
            raise InvalidScenario(f"{name}: the bar {bar!r} is no 'value <= 1' or 'ratio >= 1'")
        ok = _HOLDS[parts[2]](judged, float(parts[3]))
    return Row(name, _short(value), unit, _short(baseline), _short(ratio), bar, ok)


def bench(names: Sequence[str] = (), *, effort: float = 1.0) -> Iterator[tuple[str, list[Row]]]:
    """Return the rows of each bench as it ends, all benches if none is named.

    Args:
        effort: the share of the full work to do. Below 1 the figures mean little.

    Raises:
        InvalidScenario: there is no bench of that name.
    """
    for name in names:
        if name not in BENCHES:
            raise InvalidScenario(f"there is no bench {name!r:.40}: choose of {', '.join(BENCHES)}")
    for name in names or BENCHES:
        yield name, [named(found, name) for found in _in_child(name, effort)]


def named(found: Row, name: str) -> Row:
    """Return the row under a name that is understood among the rows of other benches."""
    prefix = f"{name}: "
    return found if found.name.startswith(prefix) else found._replace(name=prefix + found.name)


def _in_child(name: str, effort: float) -> list[Row]:
    command = [sys.executable, "-m", __name__, name, str(effort)]
    try:
        child = subprocess.run(  # noqa: S603 - our own module
            command, stdout=subprocess.PIPE, timeout=_LIMIT_S, check=True, text=True
        )
        return [Row(**fields) for fields in json.loads(child.stdout)]
    except (subprocess.SubprocessError, ValueError) as error:
        # What went wrong in the child stands on stderr already.
        why = "took too long" if isinstance(error, subprocess.TimeoutExpired) else "broke"
        return [Row(f"{name}: {why}", None, "", None, None, None, ok=False)]


def _main() -> None:
    """Run one bench in this process and print its rows: what a child does."""
    name, effort = sys.argv[1], float(sys.argv[2])
    rows = BENCHES[name].load()(effort)
    sys.stdout.write(as_json(rows))


# ---- showing and keeping


def as_json(rows: Sequence[Row]) -> str:
    """Return the rows as one JSON list, a line each."""
    lines = ",\n ".join(json.dumps(row._asdict(), ensure_ascii=False) for row in rows)
    return f"[\n {lines}\n]\n"


def table(rows: Sequence[Row]) -> str:
    """Return the rows as a Markdown table whose columns line up in a terminal too."""
    head = ("what", "value", "baseline", "ratio", "bar", "")
    lines = [head, *(_cells(row) for row in rows)]
    widths = [max(len(line[at]) for line in lines) for at in range(len(head))]
    rule = tuple("-" * width for width in widths)
    return "".join(
        "| "
        + " | ".join(
            cell.ljust(width) if at in (0, 4, 5) else cell.rjust(width)
            for at, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        + " |\n"
        for line in (head, rule, *lines[1:])
    )


def _cells(row: Row) -> tuple[str, ...]:
    value = "-" if row.value is None else f"{_digits(row.value)} {row.unit}"
    baseline = "" if row.baseline is None else f"{_digits(row.baseline)} {row.unit}"
    ratio = "" if row.ratio is None else _digits(row.ratio)
    claim = "" if row.bar is None and row.ok else "ok" if row.ok else "MISSED"
    return row.name, value, baseline, ratio, row.bar or "", claim


def save(rows: Sequence[Row], names: Sequence[str], before: str, results: Path) -> Path:
    """Write the rows and their table below ``results``; give the table's path.

    Args:
        names: the benches that were asked for; none means all, and the file is ``latest``.
        before: ``machine()`` as it was when the run began.
    """
    stem = "-".join(names) or "latest"
    results.mkdir(parents=True, exist_ok=True)
    (results / f"{stem}.json").write_text(as_json(rows), encoding="utf-8")
    command = " ".join(("python -m benchmarks", *names, "--save"))
    path = results / f"{stem}.md"
    when = time.strftime("%Y-%m-%d %H:%M", time.gmtime())
    path.write_text(
        f"`{command}`, {when} UTC, commit {commit_name()}\n\n"
        f"Before: {before}  \nAfter: {machine()}\n\n{table(rows)}",
        encoding="utf-8",
    )
    return path


def _short(figure: float | None) -> float | None:
    """Four digits: the fifth is noise on any machine."""
    return None if figure is None else float(f"{figure:.4g}")


def _digits(figure: float) -> str:
    if abs(figure) >= 1000:
        return f"{figure:,.0f}"
    return f"{figure:.3g}"


if __name__ == "__main__":
    _main()
