"""``kode-lab reproduce REPORT``: a reported trace, or a recorded run, done again and compared.

It owns the order of a replay and what is printed of it; the file's meaning stands in ``record``,
the judge and the laboratory do the rest.
"""

from __future__ import annotations

import json
import sys
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from kode_lab import lab
from kode_lab.check import Verdict
from kode_lab.check.render import headline
from kode_lab.errors import InvalidScenario
from kode_lab.lab.comparison import compare
from kode_lab.lab.live import Progress, card_for
from kode_lab.lab.records import Run
from kode_lab.lab.scenario import Scenario
from kode_lab.reports.claims import Claim, verdict_of
from kode_lab.reports.record import (
    ReportedTurn,
    claims_of_replay,
    left_out_of,
    read_report,
    recorded,
    reported,
    scenario_of,
)

__all__ = ["replay_command"]

_SHOWN_LIMIT = 40


def replay_command(options: Namespace) -> int:
    """Replay the report or run that the command line names, print it, and give the exit status.

    Raises:
        InvalidScenario: the report or run cannot be used; says why.
    """
    if options.model or options.profile:
        raise InvalidScenario("a replay has its report's own times: leave out --model, --profile")
    scenario, turns = _asked(options.report, options.speed)
    progress = Progress("")
    card = card_for(sys.stderr if options.json else sys.stdout)
    handle = lab.run(scenario, results=options.results, progress=progress, card=card)
    try:
        run = handle.result()
    except KeyboardInterrupt:
        sys.stderr.write(f"kode-lab: interrupted; what there is is kept in {progress.where}\n")
        raise
    verdict = run.verdict()
    claims: Sequence[Claim] = claims_of_replay(run, turns) if turns else ()
    if options.json:
        table = [asdict(claim) for claim in claims]
        told = {"run": str(run.path), "claims": table, "verdict": verdict.to_json()}
        print(json.dumps(told, ensure_ascii=False, indent=1))  # noqa: T201 - a command's answer
    else:
        _print(run, verdict, claims, turns)
    return _status(verdict, claims)


def _asked(path: Path, speed: float) -> tuple[Scenario, tuple[ReportedTurn, ...]]:
    """Return what to do again, and the turns to compare with (none for a scenario)."""
    if not path.is_dir():
        name, turns = read_report(path)
        return scenario_of(name, turns, speed=speed), turns
    run = Run.load(path)
    if run.own_store:
        raise InvalidScenario(f"{run.id}: {run.own_store}")
    if "clients_given" in run.parameters:
        old = Scenario.from_json(run.parameters)
        return old.with_(speed=old.speed * speed), ()
    fields = recorded(run)
    if missing := left_out_of(fields):
        sys.stderr.write(f"kode-lab: {run.id}: {missing}\n")
    name, turns = reported(fields)
    return scenario_of(name, turns, speed=speed), turns


def _status(verdict: Verdict, claims: Sequence[Claim]) -> int:
    """A report's claims and the judge together: invalid beats all; claims alone can satisfy."""
    if verdict.status == "invalid":
        return 1
    if not claims:
        return verdict.exit_status
    return {"violated": 1, "unknown": 2}.get(verdict_of(claims), 0)


def _print(
    run: Run, verdict: Verdict, claims: Sequence[Claim], turns: Sequence[ReportedTurn]
) -> None:
    held = sum(claim.verdict == "holds" for claim in claims)
    lines = []
    if claims:
        lines.append(f"{held} of {len(claims)} figures of the {len(turns)} reported turns hold")
    # What does not hold comes first: a long report is not read to its end.
    ordered = sorted(claims, key=lambda claim: claim.verdict == "holds")
    lines += [
        f"  {claim.test:<36} {claim.what:<12} {claim.reported:>11} -> {claim.measured:<11} "
        f"{claim.verdict}"
        for claim in ordered[:_SHOWN_LIMIT]
    ]
    if len(ordered) > _SHOWN_LIMIT:
        lines.append(f"  ... and {len(ordered) - _SHOWN_LIMIT} more, most of which hold")
    lines += ["", f"The judge: {headline(verdict)}", "", repr(compare([run])), "", str(run.path)]
    sys.stdout.write("\n".join(lines) + "\n")
