"""What a person reads after a reproduction: verdict, the two columns, directories, paths.

It owns the words and the layout in a terminal or a pipe, and judges nothing. It fits itself to the
width it gets, and writes no colour where nobody sees any; a word always says what a colour says.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text
from rich.tree import Tree

from kode_lab.lab.records import Run
from kode_lab.reports.claims import Claim, verdict_of
from kode_lab.reports.documented import STORAGE
from kode_lab.reports.evidence import stored_files

__all__ = ["finding", "print_summary"]

# From here on there is room for how each value was measured.
_WIDE_CHARS = 118
_STYLES = {"holds": "green", "violated": "bold red", "unknown": "yellow", "not applicable": "dim"}


def finding(claims: Sequence[Claim]) -> str:
    """Return the outcome in one sentence, beginning with PASS, FAIL or UNKNOWN."""
    counts = {verdict: sum(c.verdict == verdict for c in claims) for verdict in _STYLES}
    judged = len(claims) - counts["not applicable"]
    apart = f", {counts['not applicable']} not applicable" if counts["not applicable"] else ""
    match verdict_of(claims):
        case "violated":
            return f"FAIL: {counts['violated']} of {judged} claims of the report do not hold{apart}"
        case "unknown":
            return f"UNKNOWN: {counts['unknown']} of {judged} claims could not be judged{apart}"
        case _:
            return f"PASS: {counts['holds']} of {judged} claims of the report hold{apart}"


def print_summary(run: Run, claims: Sequence[Claim], console: Console) -> None:
    """Print all that a reproduction came to."""
    console.print(Text(finding(claims), style="bold"))
    for line in (*_provenance(run.parameters), *_excuse(run, claims)):
        console.print(line, markup=False)
    files = stored_files(run)
    titles = {test["name"]: test["title"] for test in run.parameters["tests"]}
    for name, of_test in groupby(claims, key=lambda claim: claim.test):
        console.print(f"\n{name}, {titles.get(name, '')}", style="bold", markup=False)
        console.print(_table(list(of_test), wide=console.width >= _WIDE_CHARS))
        console.print(_tree(files.get(name, {})))
    console.print()
    for what, where in _places(run):
        console.print(Text(f"{what:<9}{where}"), soft_wrap=True)


def _provenance(parameters: Any) -> list[str]:
    if not parameters["is_simulated"]:
        return [
            f"Measured: everything, through the real API with the model {parameters['model']}.",
            "What the report's own model took, or chose to do, is not applicable.",
        ]
    speed = parameters["speed"]
    scaled = "" if speed == 1 else f", divided by {speed:g}"
    return [
        f"Simulated: the model. Its times are the report's{scaled}; a script picks the tools.",
        "Measured: everything else, through the real anthropic client over HTTP on loopback.",
    ]


def _excuse(run: Run, claims: Sequence[Claim]) -> list[str]:
    """Say where a missed time may come from: other work takes the cores that the turns need."""
    machine = run.facts.get("machine") or {}
    load, cores = machine.get("load_at_start") or 0.0, machine.get("cores") or 1
    if verdict_of(claims) != "violated" or load <= cores:
        return []
    told = f"The machine was busy when it began (load {load:.1f}, {cores} cores)"
    return [f"{told}: a time missed by little may be its own. Run it again when it rests."]


def _table(claims: Sequence[Claim], *, wide: bool) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim", pad_edge=False)
    for heading in ("claim", "reported", "measured", "verdict"):
        # Ids and directories are told apart by their ends, so they fold and are never cut.
        table.add_column(heading, overflow="fold", no_wrap=heading in ("claim", "verdict"))
    if wide:
        table.add_column("measured on", style="dim")
    for claim in claims:
        verdict = claim.verdict.upper() if claim.verdict == "violated" else claim.verdict
        cells = [Text(claim.what), Text(claim.reported), Text(claim.measured)]
        cells.append(Text(verdict, style=_STYLES[claim.verdict]))
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
    places.append(("records", f"{run.path}/ (run.json, history.jsonl, trace.jsonl, claims.json)"))
    if (run.path / "trace.perfetto.json").exists():
        places.append(("timeline", f"{run.path}/trace.perfetto.json (open in ui.perfetto.dev)"))
    return places
