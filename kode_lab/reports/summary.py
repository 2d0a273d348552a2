"""What a person reads after a reproduction: contradictions, verdict, the two columns, paths.

It owns the words and the layout in a terminal or a pipe, and judges nothing. It fits itself to the
width that it gets, and writes colour only into a terminal; a word always repeats the colour.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text
from rich.tree import Tree

from kode_lab.check.render import headline
from kode_lab.lab.records import Run
from kode_lab.reports.claims import Claim, finding, verdict_of
from kode_lab.reports.evidence import STORAGE, report_of, stored_files
from kode_lab.reports.report import built_in
from kode_lab.reports.timeline import Contradiction

__all__ = ["print_summary"]

# From here on there is room for how each value was measured.
_WIDE_CHARS = 118
# A long report is not read to its end: what does not hold comes first.
_SHOWN_LIMIT = 40
_FILES_LIMIT = 24
_CONTRADICTIONS_LIMIT = 20
_STYLES = {
    "holds": "green", "violated": "bold red", "inconclusive": "yellow", "not applicable": "dim",
}  # fmt: skip


def print_summary(  # noqa: C901 - from top to bottom
    run: Run,
    claims: Sequence[Claim],
    console: Console,
    against: Sequence[Contradiction] = (),
) -> None:
    """Print all that a reproduction came to."""
    report = report_of(run)
    if against:
        console.print(Text(f"The report contradicts itself in {len(against)} places:", "yellow"))
        for one in against[:_CONTRADICTIONS_LIMIT]:
            console.print(Text(f"  - {one.test}: {one.what}"))
        if len(against) > _CONTRADICTIONS_LIMIT:
            console.print(f"  ... and {len(against) - _CONTRADICTIONS_LIMIT} more")
        console.print()
    console.print(Text(finding(claims), style="bold"))
    for line in (*_provenance(run.parameters), *_excuse(run, claims)):
        console.print(line, markup=False)
    files = stored_files(run)
    titles = {test.name: test.title for test in report.tests}
    shown = claims
    if len(claims) > _SHOWN_LIMIT:
        order = {"violated": 0, "inconclusive": 1}
        shown = sorted(claims, key=lambda c: order.get(c.verdict, 2))[:_SHOWN_LIMIT]
        shown = sorted(shown, key=lambda c: list(titles).index(c.test))
    for name, of_test in groupby(shown, key=lambda claim: claim.test):
        title = f", {titles[name]}" if titles.get(name) else ""
        console.print(f"\n{name}{title}", style="bold", markup=False)
        console.print(_table(list(of_test), wide=console.width >= _WIDE_CHARS))
        if 0 < len(files.get(name, {})) <= _FILES_LIMIT:
            console.print(_tree(files[name]))
    if len(claims) > len(shown):
        console.print(f"... and {len(claims) - len(shown)} more claims (claims.json has all)")
    if report != built_in():
        console.print(Text(f"\nThe judge of sessions: {headline(run.verdict())}"))
    console.print()
    for what, where in _places(run):
        console.print(Text(f"{what:<9}{where}"), soft_wrap=True)


def _provenance(parameters: Any) -> list[str]:
    if parameters.get("target"):
        return [f"Measured: everything, at the service {parameters['target']}, as its clients saw"]
    if not parameters["is_simulated"]:
        return [
            f"Measured: everything, through the real API with the model {parameters['model']}.",
            "What the report's own model took, or chose to do, is not applicable.",
        ]
    speed = parameters["speed"]
    scaled = "" if speed == 1 else f", divided by {speed:g}; figures are in the report's seconds"
    return [
        f"Simulated: the model. Its times are the report's{scaled}; a script picks the tools.",
        "Measured: everything else, in our session manager.",
    ]


def _excuse(run: Run, claims: Sequence[Claim]) -> list[str]:
    """Say where a missed time may come from: other work takes the cores that the turns need."""
    machine = run.facts.get("machine") or {}
    load, cores = machine.get("load_at_start") or 0.0, machine.get("cores") or 1
    if verdict_of(claims) not in ("violated", "inconclusive") or load <= cores:
        return []
    told = f"The machine was busy when it began (load {load:.1f}, {cores} cores)"
    return [f"{told}: a time missed by little may be its own. Run it again when it rests."]


def _table(claims: Sequence[Claim], *, wide: bool) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim", pad_edge=False)
    for heading in ("claim", "reported", "measured", "verdict"):
        # Ids and directories are told apart by their ends, so they fold and are never cut.
        is_short = heading == "verdict" or (
            heading == "claim" and all(len(claim.what) < 40 for claim in claims)
        )
        table.add_column(heading, overflow="fold", no_wrap=is_short)
    if wide:
        table.add_column("measured on", style="dim")
    for claim in claims:
        verdict = claim.verdict.upper() if claim.verdict == "violated" else claim.verdict
        cells = [Text(claim.what), Text(claim.reported), Text(claim.measured)]
        cells.append(Text(verdict, style=_STYLES.get(claim.verdict, "")))
        table.add_row(*cells, *([Text(claim.how)] if wide else []))
    return table


def _tree(files: Mapping[str, int | None]) -> Tree:
    tree = Tree(Text(f"{STORAGE}/"))
    branches: dict[str, Tree] = {"": tree}
    for path, messages in files.items():
        *directories, name = path.split("/")
        parent = ""
        for directory in directories:
            below = f"{parent}{directory}/"
            if below not in branches:
                branches[below] = branches[parent].add(Text(f"{directory}/"))
            parent = below
        told = "" if messages is None else f"  ({messages} messages)"
        branches[parent].add(Text(name + told))
    return tree


def _places(run: Run) -> list[tuple[str, str]]:
    pictures = sorted((run.path / "figures").glob("*.png"))
    places = [("picture", str(path)) for path in pictures]
    if (run.path / "report.html").exists():
        places.append(("page", f"{run.path}/report.html"))
    places.append(("records", f"{run.path}/ (run.json, history.jsonl, trace.jsonl, claims.json)"))
    if (run.path / "trace.perfetto.json").exists():
        places.append(("timeline", f"{run.path}/trace.perfetto.json (open in ui.perfetto.dev)"))
    return places
