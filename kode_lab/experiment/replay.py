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

from kode_lab.check import Verdict
from kode_lab.check.face import headline
from kode_lab.errors import InvalidScenario
from kode_lab.experiment import lab
from kode_lab.experiment.claims import Claim, verdict_of
from kode_lab.experiment.comparison import compare
from kode_lab.experiment.live import card_for
from kode_lab.experiment.record import (
    ReportedTurn,
    claims_of_replay,
    read_report,
    recorded,
    reported,
    scenario_of,
)
from kode_lab.experiment.run import Run
from kode_lab.experiment.scenario import Scenario

__all__ = ["replay_command"]

_SHOWN_LIMIT = 40


def replay_command(options: Namespace) -> int:
    """Replay the report or run that the command line names, print it, and give the exit status.

    Raises:
        InvalidScenario: the report cannot be used; says why.
    """
    if options.model or options.profile:
        raise InvalidScenario("a replay has its report's own times: leave out --model, --profile")
    path: Path = options.report
    turns: tuple[ReportedTurn, ...] = ()
    if path.is_dir() and "clients_given" in Run.load(path).parameters:
        old = Scenario.from_json(Run.load(path).parameters)
        scenario = old.with_(speed=old.speed * options.speed)
    else:
        found = reported(recorded(Run.load(path))) if path.is_dir() else read_report(path)
        turns = found[1]
        scenario = scenario_of(*found, speed=options.speed)
    card = card_for(sys.stderr if options.json else sys.stdout)
    run = lab.run(scenario, results=options.results, card=card).result()
    verdict = run.verdict()
    claims: Sequence[Claim] = claims_of_replay(run, turns) if turns else ()
    if options.json:
        table = [asdict(claim) for claim in claims]
        told = {"run": str(run.path), "claims": table, "verdict": verdict.to_json()}
        print(json.dumps(told, ensure_ascii=False, indent=1))  # noqa: T201 - a command's answer
    else:
        _print(run, verdict, claims, turns)
    return _status(verdict, claims)


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
