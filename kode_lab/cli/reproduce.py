"""``kode-lab reproduce``: run the concurrency report again, or a report or run of the user."""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

from kode_lab.cli.status import INTERRUPTED, STATUS_OF_VERDICT, found

__all__ = ["add"]

# The width of the summary in a pipe or a log, where COLUMNS is not set.
_UNWATCHED_CHARS = 100


def add(commands: Any) -> None:
    """Add the command ``reproduce``."""
    command = commands.add_parser(
        "reproduce", help="run the concurrency report, or a report of yours, again and compare"
    )
    add = command.add_argument
    add(
        "report", nargs="?", type=Path, metavar="REPORT",
        help="instead of the concurrency report: a TOML, JSON or CSV file "
        "(docs/report-format.md), or a run to repeat",
    )  # fmt: skip
    add("--speed", type=float, default=1.0, help="make the simulated model faster (default: 1)")
    add("--model", help="ask this real model; needs ANTHROPIC_API_KEY")
    add("--target", help="ask this service instead of ours (see kode-lab judge)")
    add("--profile", type=Path, help="other latencies for the simulated model (a TOML file)")
    add("--check", action="store_true", help="read the report and say what contradicts itself")
    add("--results", type=Path, default=Path("results"), help="where runs go (default: results)")
    add("--json", action="store_true", help="print the claims as JSON")
    command.set_defaults(run=_reproduce)


def _reproduce(options: argparse.Namespace) -> int:
    from kode_lab.claude.profile import profile_of  # noqa: PLC0415 - --help needs none of it
    from kode_lab.errors import InvalidScenario  # noqa: PLC0415
    from kode_lab.lab.live import Progress, card_for  # noqa: PLC0415
    from kode_lab.reports.claims import check_claims, contradictions  # noqa: PLC0415
    from kode_lab.reports.report import built_in, read_report  # noqa: PLC0415
    from kode_lab.reports.reproduce import reproduce  # noqa: PLC0415

    path = None if options.report is None else found(options.report, options.results)
    if path is not None and path.is_dir():
        report, scenario = _recorded(path)
        if scenario is not None:
            return _repeated(scenario, options)
    else:
        report = built_in() if path is None else read_report(path)
    check_claims(report)
    if options.check:
        against = contradictions(report)
        for one in against:
            print(f"{one.test}: {one.what}")
        turns = sum(len(test.turns) for test in report.tests)
        print(f"{report.name}: {len(report.tests)} tests, {turns} turns, "
              f"{len(against)} contradictions")  # fmt: skip
        return 1 if against else 0
    if path is not None and options.model and any(t.turns for t in report.tests if t.load):
        raise InvalidScenario("a real model has its own times: leave out --model")
    progress = Progress("")
    words = ["kode-lab reproduce", *([] if path is None or path.is_dir() else [path.name])]
    words += [f"--speed {options.speed:g}"] if options.speed != 1 else []
    words += [f"--model {options.model}"] if options.model else []
    words += [f"--target {options.target}"] if options.target else []
    words += ["--profile FILE"] if options.profile else []
    handle = reproduce(
        report,
        speed=options.speed,
        model=options.model,
        profile=profile_of(options.profile) if options.profile else None,
        target=options.target or "",
        results=options.results,
        command=" ".join(words),
        progress=progress,
        # With --json, stdout is the document's alone.
        card=card_for(sys.stderr if options.json else sys.stdout),
    )
    try:
        recording = handle.result()
    except KeyboardInterrupt:
        sys.stderr.write(f"kode-lab: interrupted; what was recorded is in {progress.where}\n")
        return INTERRUPTED
    if options.json:
        told = json.loads((recording.run.path / "claims.json").read_bytes())
        judged = recording.run.verdict().to_json()
        fields = {"run": str(recording.run.path), **told, "judge": judged}
        print(json.dumps(fields, ensure_ascii=False, indent=1))
    else:
        from rich.console import Console  # noqa: PLC0415

        from kode_lab.reports.summary import print_summary  # noqa: PLC0415

        width = None if sys.stdout.isatty() or "COLUMNS" in os.environ else _UNWATCHED_CHARS
        console = Console(width=width, highlight=False)
        print_summary(recording.run, recording.claims, console, recording.contradictions)
    return STATUS_OF_VERDICT[recording.verdict]


def _recorded(path: Path) -> tuple[Any, Any]:
    """Return the report that a run is or becomes, or the scenario that it was a run of."""
    from kode_lab.errors import InvalidScenario  # noqa: PLC0415
    from kode_lab.lab.records import Run  # noqa: PLC0415
    from kode_lab.lab.scenario import Scenario  # noqa: PLC0415
    from kode_lab.reports.evidence import report_of  # noqa: PLC0415
    from kode_lab.reports.record import left_out_of, recorded  # noqa: PLC0415
    from kode_lab.reports.report import parsed  # noqa: PLC0415

    run = Run.load(path)
    if run.own_store:
        raise InvalidScenario(f"{run.id}: {run.own_store}")
    if "clients_given" in run.parameters:
        return None, Scenario.from_json(run.parameters)
    if "report" in run.parameters or "tests" in run.parameters:
        return report_of(run), None
    fields = recorded(run)
    if missing := left_out_of(fields):
        sys.stderr.write(f"kode-lab: {run.id}: {missing}\n")
    return parsed(fields), None


def _repeated(scenario: Any, options: argparse.Namespace) -> int:
    """Do a recorded scenario again and judge it."""
    from kode_lab import lab  # noqa: PLC0415
    from kode_lab.lab.comparison import compare  # noqa: PLC0415
    from kode_lab.lab.live import Progress, card_for  # noqa: PLC0415

    progress = Progress("")
    card = card_for(sys.stderr if options.json else sys.stdout)
    again = scenario.with_(speed=scenario.speed * options.speed)
    handle = lab.run(again, results=options.results, progress=progress, card=card)
    try:
        run = handle.result()
    except KeyboardInterrupt:
        sys.stderr.write(f"kode-lab: interrupted; what was recorded is in {progress.where}\n")
        return INTERRUPTED
    verdict = run.verdict()
    if options.json:
        told = {"run": str(run.path), "claims": [], "verdict": verdict.to_json()}
        print(json.dumps(told, ensure_ascii=False, indent=1))
    else:
        print(f"{verdict}\n\n{compare([run])!r}\n\n{run.path}")
    return verdict.exit_status
