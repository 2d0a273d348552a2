"""``kode-lab storm``: the storms and the crash proof as commands, a row of a table each.

It owns the tables, the files that are saved and the exit status; what happens in a run is not its
concern.
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
from tempfile import TemporaryDirectory
from typing import Any

from kode_lab.errors import InvalidScenario
from kode_lab.lab.provenance import commit_name, machine
from kode_lab.storms.crash import STORES, CrashCount, crash_proof
from kode_lab.storms.run_storm import StormOutcome, run_storm
from kode_lab.storms.storm import FAULTS, STORMS, Storm

__all__ = ["as_json", "run_storms", "table"]

_COMMAND = "kode-lab storm postgres"
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
    """Run the storms that were named, or all; return the exit status.

    0: nothing was lost, doubled or accepted too late; 1: something was; 2: it is not known.

    Raises:
        InvalidScenario: there is no such storm, or a number is not valid.
        PostgresMissing: there is no PostgreSQL on this machine.
    """
    names = options.names
    if options.list:
        for storm in STORMS.values():
            sys.stdout.write(f"{storm.name:<8} {_about(storm)}\n")
        return _WELL
    storms = [_storm(name, options) for name in names or STORMS]
    before = machine()
    outcomes = []
    for storm in storms:
        command = f"{_COMMAND} {storm.name}{_words(options)}"
        outcome = asyncio.run(
            run_storm(storm, options.results, command=command, told=_teller(storm))
        )
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
    """Return the options as they were written, to repeat the run."""
    given = {name: getattr(options, name) for name in _NUMBERS}
    return "".join(f" --{name} {value}" for name, value in given.items() if value is not None)


def _about(storm: Storm) -> str:
    if len(storm.faults) > 1:
        return "all of these but late, mixed"
    told = "; ".join(FAULTS[name] for name in storm.faults)
    return told or "no fault: the figure is how many turns overtake others"


def _teller(storm: Storm) -> Any:
    if not sys.stderr.isatty():
        return lambda _: None

    def told(ended: int) -> None:
        if ended % 50 == 0:
            sys.stderr.write(f"\r{storm.name}: {ended:,} turns ended \r")

    return told


def _line(outcome: StormOutcome) -> str:
    return f"{outcome.storm.name}: {outcome.run.facts['summary']['finding']} ({outcome.run.id})"


# ---- output and files


def as_json(outcomes: Sequence[StormOutcome]) -> list[dict[str, Any]]:
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


def table(outcomes: Sequence[StormOutcome]) -> str:
    """Return the outcomes as a Markdown table."""
    lines = [_HEAD, ("---",) * len(_HEAD), *map(_cells, outcomes)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _cells(one: StormOutcome) -> tuple[str, ...]:
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
    outcomes: Sequence[StormOutcome],
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
        "grant of a session that a turn waited for. *Stale writes*: of overtaken holders, and "
        "writes that arrived late, as the database saw them. *Effects*: schedules made; the "
        f"verdict says if one was made twice.\n\n{told}\n{table(outcomes)}",
        encoding="utf-8",
    )
    return path


# ---- the crash proof


def run_crash_proofs(options: Namespace) -> int:
    """Run the crash proof of the stores that were named, or all; return the exit status.

    Raises:
        InvalidScenario: there is no such store, or its worker died by itself.
    """
    if unknown := sorted(set(options.stores) - set(STORES)):
        raise InvalidScenario(f"no store {unknown[0]!r:.60}: choose of {', '.join(STORES)}")
    if options.kills < 1:
        raise InvalidScenario(f"kills={options.kills} is not valid: choose 1 or more")
    before, counts = machine(), dict[str, CrashCount]()
    for store in [name for name in STORES if not options.stores or name in options.stores]:
        with TemporaryDirectory(prefix="kode-crash-") as directory:
            counts[store] = crash_proof(options.kills, options.seed, Path(directory), store=store)
        sys.stderr.write(f"{store}: {counts[store]}\n")
    lines = [("counted", *counts), ("---",) * (1 + len(counts))]
    lines += [
        (name.replace("_", " "), *(f"{getattr(count, name):,}" for count in counts.values()))
        for name in CrashCount._fields
    ]
    text = "".join(f"| {' | '.join(line)} |\n" for line in lines)
    sys.stdout.write(text)
    if options.save:
        words = " ".join(("kode-lab storm crash", *options.stores))
        when = time.strftime("%Y-%m-%d %H:%M", time.gmtime())
        path = options.results / "faults" / "crash.md"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(
            f"`{words} --kills {options.kills} --seed {options.seed} --save`, {when} UTC, commit "
            f"{commit_name()}\n\nBefore: {before}  \nAfter: {machine()}\n\n"
            "A process full of turns is killed with `kill -9` at random moments, and what is "
            "stored is compared with what was acknowledged; with PostgreSQL every fifth kill is "
            f"one of the database, too.\n\n{text}",
            encoding="utf-8",
        )
        sys.stderr.write(f"saved in {path}\n")
    return _HARMED if any(count.harm for count in counts.values()) else _WELL
