"""A play as files: the history and the trace that ``kode-lab check`` reads, by the same judge.

So a conviction can be checked: its evidence is there, in the open format.
"""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path

from kode_lab.faults.scenario import Played
from kode_lab.history.operation import NEMESIS, HistoryWriter, Operation
from kode_lab.history.span import span_line

__all__ = ["keep"]


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
