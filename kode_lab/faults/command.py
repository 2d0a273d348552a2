"""``kode-lab faults``: what the command does, once its words are understood.

It prints and keeps outcomes, and a single play as the files that ``kode-lab check`` reads, so that
a conviction can be checked; every decision is the laboratory's.
"""

from __future__ import annotations

import json
import logging
import math
import sys
import time
from argparse import Namespace
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from kode_lab.errors import InvalidScenario
from kode_lab.faults.catalogue import CATALOGUE, Fault, fault_of
from kode_lab.faults.laboratory import Outcome, as_json, found_in, replay, table, try_all
from kode_lab.faults.scenario import Played
from kode_lab.faults.shrinking import play_small, shrink
from kode_lab.history.operation import NEMESIS, HistoryWriter, Operation
from kode_lab.history.span import span_line
from kode_lab.lab.live import Pace, Progress, Row, card_for
from kode_lab.lab.provenance import commit_name, machine

__all__ = ["run_faults"]

SEEDS_LIMIT = 10_000
_ALL_WELL, _NOT_CONVICTED, _INTERRUPTED = 0, 1, 130


def run_faults(options: Namespace) -> int:
    """Do what ``kode-lab faults`` was asked, and return the exit status.

    0: each fault was convicted and its twin never; 1: one was not.

    Raises:
        InvalidScenario: there is no such fault, or options that do not go together.
    """
    # The lag of a loop is measured in real time, which means nothing where time is virtual.
    sessions = logging.getLogger("kode_lab.sessions")
    level = sessions.level
    sessions.setLevel(logging.ERROR)
    try:
        return _run(options)
    finally:
        sessions.setLevel(level)


def _run(options: Namespace) -> int:
    if not 0 < options.seeds <= SEEDS_LIMIT:
        raise InvalidScenario(f"--seeds {options.seeds}: choose 1 to {SEEDS_LIMIT=}")
    if options.keep is not None and options.replay is None and not options.shrink:
        raise InvalidScenario("--keep keeps one play: say which, by --replay or --shrink")
    if options.list:
        width = max(map(len, CATALOGUE))
        for fault in CATALOGUE.values():
            sys.stdout.write(f"{fault.name:<{width}}  {fault.shows[0]}: {fault.about}\n")
        return _ALL_WELL
    if options.replay is not None or options.shrink:
        if len(options.names) != 1:
            raise InvalidScenario("--replay and --shrink take one fault: name it")
        fault = fault_of(options.names[0])
        return _shrink(fault, options) if options.shrink else _replay(fault, options)
    return _try(options)


def _try(options: Namespace) -> int:
    before, began_s = machine(), time.process_time()
    outcomes: list[Outcome] = []
    is_interrupted = False
    names = [fault_of(name).name for name in options.names] or list(CATALOGUE)
    progress = Progress("faults", [row := Row("", "faults", "", began_ns=time.monotonic_ns())])
    pace = Pace(card_for(sys.stderr), progress) if sys.stderr.isatty() else None
    try:
        for outcome in try_all(names, options.seeds):
            outcomes.append(outcome)
            row.part = len(outcomes) / len(names)
            row.doing = f"{len(outcomes)} of {len(names)}: {outcome.fault.name}"
            if pace is not None:
                pace.tick()
    except KeyboardInterrupt:
        # What was tried until then is printed like a whole run, and the exit status says 130.
        is_interrupted = row.is_broken = True
    row.ended_ns = time.monotonic_ns()
    if pace is not None:
        pace.end()
    spent_s = time.process_time() - began_s
    if options.json:
        sys.stdout.write(json.dumps(as_json(outcomes), ensure_ascii=False, indent=1) + "\n")
    else:
        sys.stdout.write(f"{table(outcomes)}\n{_conclusion(outcomes, spent_s)}\n")
    if options.save and not is_interrupted:
        path = _save(outcomes, options, before, spent_s)
        sys.stderr.write(f"saved in {path}\n")
    if is_interrupted:
        sys.stderr.write(f"kode-lab: interrupted after {len(outcomes)} of {len(names)} faults\n")
        return _INTERRUPTED
    return _ALL_WELL if all(outcome.ok for outcome in outcomes) else _NOT_CONVICTED


def _conclusion(outcomes: Sequence[Outcome], spent_s: float) -> str:
    convicted = sum(not outcome.missing for outcome in outcomes)
    false = sum(outcome.seeds - outcome.acquitted for outcome in outcomes)
    plays = sum(2 * outcome.seeds for outcome in outcomes)
    return (
        f"{convicted} of {len(outcomes)} faults convicted of all that they must show; "
        f"{false} of {plays // 2} plays of their honest twins not valid; "
        f"{plays} plays in {spent_s:.1f} CPU-s. "
        "Any of them again: kode-lab faults NAME --replay SEED"
    )


def _save(outcomes: Sequence[Outcome], options: Namespace, before: str, spent_s: float) -> Path:
    directory: Path = options.results / "faults"
    directory.mkdir(parents=True, exist_ok=True)
    stem = "-".join(options.names) or "latest"
    words = ["kode-lab faults", *options.names, f"--seeds {options.seeds}", "--save"]
    command, commit = " ".join(words), commit_name()
    kept = {"command": command, "commit": commit, "outcomes": as_json(outcomes)}
    (directory / f"{stem}.json").write_text(
        json.dumps(kept, ensure_ascii=False, indent=1) + "\n", encoding="utf-8"
    )
    path = directory / f"{stem}.md"
    when = time.strftime("%Y-%m-%d %H:%M", time.gmtime())
    path.write_text(
        f"`{command}`, {when} UTC, commit {commit}\n\n{before}\n\n"
        f"{_conclusion(outcomes, spent_s)}\n\n{table(outcomes)}",
        encoding="utf-8",
    )
    return path


def _replay(fault: Fault, options: Namespace) -> int:
    played, verdict = replay(fault, options.replay)
    _keep(played, options)
    is_convicted = fault.shows[0] in found_in(verdict)
    if options.json:
        told = {"fault": fault.name, "seed": options.replay, "verdict": verdict.to_json()}
        sys.stdout.write(json.dumps(told, ensure_ascii=False, indent=1) + "\n")
    else:
        sys.stdout.write(
            f"{fault.name}: {fault.about}\n"
            f"seed {options.replay}, {played.passes} passes of the loop; the same again: "
            f"kode-lab faults {fault.name} --replay {options.replay}\n\n{verdict}\n"
        )
    return _ALL_WELL if is_convicted else _NOT_CONVICTED


def _keep(played: Played, options: Namespace) -> None:
    if options.keep is not None:
        keep(played, options.keep)
        sys.stderr.write(f"kept; judge it again: kode-lab check {options.keep}\n")


def _shrink(fault: Fault, options: Namespace) -> int:
    small = shrink(fault, options.replay or 0)
    played, verdict = play_small(fault, small)
    _keep(played, options)
    if options.json:
        told = {"fault": fault.name, "play": small._asdict(), "verdict": verdict.to_json()}
        sys.stdout.write(json.dumps(told, ensure_ascii=False, indent=1) + "\n")
    else:
        sys.stdout.write(
            f"{fault.name}: {fault.about}\n"
            f"the smallest play found: {small.sessions} of its sessions, {small.clients} clients "
            f"each, {small.turns} turns each, delays {list(small.delays)} per cent; "
            f"{played.passes} passes of the loop\n\n{verdict}\n"
        )
    return _ALL_WELL


def keep(played: Played, directory: Path) -> None:
    """Write ``history.jsonl`` and ``trace.jsonl`` into a directory, which is made if needed."""
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / "history.jsonl"
    path.unlink(missing_ok=True)
    writer = HistoryWriter(path)
    events = [event for operation in played.history for event in _events(operation, writer)]
    for _, write in sorted(events, key=lambda event: event[0]):
        write()
    writer.close()
    lines = "".join(f"{span_line(span)}\n" for span in played.trace)
    (directory / "trace.jsonl").write_text(lines, encoding="utf-8")


def _events(operation: Operation, writer: HistoryWriter) -> list[tuple[float, partial[None]]]:
    """Return what is to be written of an operation, and when; its invoke first."""
    at_ns, process = operation.invoke_ns, operation.process
    if process == NEMESIS:
        return [(at_ns, partial(writer.fault, operation.f, at_ns, operation.error))]
    invoke = partial(
        writer.invoke,
        operation.key,
        process,
        at_ns,
        f=operation.f,
        marker=operation.marker,
        turn_id=operation.turn_id,
        details=operation.details,
    )
    if operation.complete_ns == math.inf:
        return [(at_ns, invoke)]
    ended_ns = int(operation.complete_ns)
    complete = partial(
        writer.complete,
        process,
        ended_ns,
        operation.type,
        read=operation.read,
        markers=operation.markers,
        error=operation.error,
        answered=operation.answered,
        config=operation.config,
        effects=operation.effects,
        is_suffix=operation.is_suffix,
        details=operation.details,
    )
    return [(at_ns, invoke), (ended_ns, complete)]
