"""``kode-lab faults postgres``: the storms as a command, a row each, told and kept.

It owns the table and the exit status; what happens in a storm is the storm's.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

from kode_lab.errors import InvalidScenario
from kode_lab.lab.provenance import commit_name, machine
from kode_lab.storms.run_storm import Outcome, ride
from kode_lab.storms.storm import FAULTS, STORMS, Storm

__all__ = ["as_json", "run_storms", "table"]

_COMMAND = "kode-lab faults postgres"
_NUMBERS = ("turns", "sessions", "workers", "times", "seed")
_WELL, _HARMED, _UNKNOWN = 0, 1, 2
_HEAD = (
    "storm",
    "turns",
    "acknowledged",
    "sent again",
    "kills",
    "hand-over ms, median / p99 (of)",
    "stale writes refused",
    "accepted",
    "effects",
    "overtaken / most",
    "verdict",
)


def run_storms(options: Namespace) -> int:
    """Do what ``kode-lab faults postgres`` was asked; give the exit status.

    0: nothing was lost, doubled or accepted too late; 1: something was; 2: nobody can tell.

    Raises:
        InvalidScenario: there is no such storm, or its numbers make no sense.
        PostgresMissing: there is no PostgreSQL on this machine.
    """
    names = options.names[1:]
    if options.list:
        for storm in STORMS.values():
            sys.stdout.write(f"{storm.name:<8} {_about(storm)}\n")
        return _WELL
    storms = [_storm(name, options) for name in names or STORMS]
    before = machine()
    outcomes = []
    for storm in storms:
        command = f"{_COMMAND} {storm.name}{_words(options)}"
        outcome = asyncio.run(ride(storm, options.results, command=command, told=_teller(storm)))
        outcomes.append(outcome)
        sys.stderr.write(f"{_line(outcome)}\n")
        if outcome.complaints:
            sys.stderr.write(outcome.complaints)
    if options.json:
        sys.stdout.write(json.dumps(as_json(outcomes), ensure_ascii=False, indent=1) + "\n")
    else:
        sys.stdout.write(table(outcomes))
    if options.save:
        sys.stderr.write(f"saved in {_save(outcomes, names, before, options)}\n")
    if any(outcome.is_harmed for outcome in outcomes):
        return _HARMED
    return _WELL if all(outcome.is_well for outcome in outcomes) else _UNKNOWN


def _storm(name: str, options: Namespace) -> Storm:
    if name not in STORMS:
        raise InvalidScenario(f"no storm {name!r:.60}: choose of {', '.join(STORMS)}")
    given = {
        field: getattr(options, field) for field in _NUMBERS if getattr(options, field) is not None
    }
    storm = STORMS[name]
    if "sessions" in given:
        given["hot"] = max(1, min(storm.hot, given["sessions"]))
    return replace(storm, **given)


def _words(options: Namespace) -> str:
    """Return the options as they were given, for whoever wants to do it again."""
    given = {name: getattr(options, name) for name in _NUMBERS}
    return "".join(f" --{name} {value}" for name, value in given.items() if value is not None)


def _about(storm: Storm) -> str:
    if set(storm.faults) == set(FAULTS):
        return "all of these, mixed"
    told = "; ".join(FAULTS[name] for name in storm.faults)
    return told or "nothing is done: the figure is who overtakes whom"


def _teller(storm: Storm) -> Any:
    if not sys.stderr.isatty():
        return lambda _: None

    def told(ended: int) -> None:
        if ended % 50 == 0:
            sys.stderr.write(f"\r{storm.name}: {ended:,} turns ended \r")

    return told


def _line(outcome: Outcome) -> str:
    return f"{outcome.storm.name}: {outcome.run.facts['summary']['finding']} ({outcome.run.id})"


# ---- showing and keeping


def as_json(outcomes: Sequence[Outcome]) -> list[dict[str, Any]]:
    """Return the outcomes as JSON values."""
    return [
        {
            "storm": one.storm.to_json(),
            "status": one.verdict.status,
            "evidence": one.verdict.evidence._asdict(),
            "counts": dict(one.verdict.counts),
            "kills": one.kills,
            "handovers_ms": [round(ms, 2) for ms in one.handovers_ms],
            "stale": one.stale._asdict(),
            "told_stale": one.zombies,
            "took_s": round(one.took_s, 1),
        }
        for one in outcomes
    ]


def table(outcomes: Sequence[Outcome]) -> str:
    """Return the outcomes as a Markdown table."""
    lines = [_HEAD, ("---",) * len(_HEAD), *map(_cells, outcomes)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _cells(one: Outcome) -> tuple[str, ...]:
    evidence = one.verdict.evidence
    found = ", ".join(f"{count} {name}" for name, count in one.verdict.counts.items() if count)
    word = {"valid": "PASS", "invalid": f"FAIL: {found}", "unknown": "UNKNOWN"}
    return (
        one.storm.name,
        f"{evidence.turns:,}",
        f"{evidence.acknowledged:,}",
        f"{evidence.requests - evidence.turns:,}",
        f"{one.kills}",
        _handovers(one.handovers_ms),
        f"{one.stale.refused}",
        f"{one.stale.accepted + one.stale.backward}",
        f"{evidence.effects:,}",
        f"{evidence.overtaken:,} / {evidence.most_overtaken}",
        word[one.verdict.status],
    )


def _handovers(ms: Sequence[float]) -> str:
    if not ms:
        return ""
    p99 = ms[min(len(ms) - 1, int(0.99 * len(ms)))]
    return f"{median(ms):.0f} / {p99:.0f} ({len(ms)})"


def _save(
    outcomes: Sequence[Outcome],
    names: Sequence[str],
    before: str,
    options: Namespace,
) -> Path:
    directory: Path = options.results / "faults"
    directory.mkdir(parents=True, exist_ok=True)
    stem = "-".join(("postgres", *names))
    command = " ".join((_COMMAND, *names)) + _words(options)
    kept = {"command": command, "commit": commit_name(), "storms": as_json(outcomes)}
    (directory / f"{stem}.json").write_text(
        json.dumps(kept, ensure_ascii=False, indent=1) + "\n", encoding="utf-8"
    )
    path = directory / f"{stem}.md"
    when = time.strftime("%Y-%m-%d %H:%M", time.gmtime())
    told = "".join(f"- **{one.storm.name}**: {_about(one.storm)}.\n" for one in outcomes)
    first = outcomes[0].storm
    path.write_text(
        f"`{command} --save`, {when} UTC, commit {kept['commit']}\n\n"
        f"Before: {before}  \nAfter: {machine()}\n\n"
        f"{first.workers} workers, {first.sessions} sessions, {first.clients} clients, one "
        "PostgreSQL; any worker gets any turn. *Hand-over*: from a kill to the next holder's "
        "grant of a session that somebody waited for. *Stale writes*: of holders that were "
        "overtaken, as the database saw them. *Effects*: schedules made, each once or the verdict "
        f"says so.\n\n{told}\n{table(outcomes)}",
        encoding="utf-8",
    )
    return path
