"""What is written of a run when it ends, for readers without Python.

    turns.csv       a row a turn, the columns of the table of turns
    timeline.html   every turn on one page

It owns these two files, and the trace as Chrome trace JSON. Both say nothing that the records
beside them do not say, so both can be made again, and a run whose records cannot be read, or are
too large to be looked at, has none.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable
from contextlib import suppress
from typing import Any

from kode_lab.errors import InvalidRecord
from kode_lab.history.span import Span
from kode_lab.key import SessionKey
from kode_lab.lab.records import Run
from kode_lab.lab.timeline import timeline
from kode_lab.lab.turn_view import TURN_COLUMNS, turn_row, turns_of

__all__ = ["EXPORT_LIMIT_BYTES", "TIMELINE", "TURNS", "chrome_trace", "export"]

TURNS, TIMELINE = "turns.csv", "timeline.html"
# Records of some 50,000 turns, which are read in some seconds; of more, a program looks.
EXPORT_LIMIT_BYTES = 32_000_000
_RECORDS = ("history.jsonl", "trace.jsonl")


def export(run: Run) -> None:
    """Write what its records allow; nothing, where they cannot be read or are too many."""
    sizes = [path.stat().st_size for name in _RECORDS if (path := run.path / name).exists()]
    if sum(sizes) > EXPORT_LIMIT_BYTES:
        return
    with suppress(InvalidRecord):  # the run's report says what and where
        _write_turns(run)
        timeline(run).save(run.path / TIMELINE)


def _write_turns(run: Run) -> None:
    """Write a row a turn, by its start; what is missing is empty."""
    turns = turns_of(run.spans(), run.operations())
    origin_ns = min((turn.start_ns for turn in turns), default=0)
    with (run.path / TURNS).open("w", encoding="utf-8", newline="") as file:
        rows = csv.writer(file, lineterminator="\n")
        rows.writerow(TURN_COLUMNS)
        rows.writerows(turn_row(turn, origin_ns) for turn in turns)


def chrome_trace(spans: Iterable[Span]) -> dict[str, Any]:
    """Return the trace as one JSON object; times count from the first step."""
    # A parent starts no later and ends no earlier than its children, so it is placed first.
    ordered = sorted(spans, key=lambda span: (span.start_ns, -span.end_ns, span.step != "turn"))
    origin_ns = ordered[0].start_ns if ordered else 0
    tracks: dict[SessionKey, list[list[Span]]] = {}
    events: list[dict[str, Any]] = []
    numbers: dict[SessionKey, int] = {}
    for span in ordered:
        process = numbers.setdefault(span.key, len(numbers) + 1)
        track = _placed(tracks.setdefault(span.key, []), span)
        events.append(
            {
                "ph": "X",
                "name": _name(span),
                "cat": span.step,
                "pid": process,
                "tid": track,
                "ts": (span.start_ns - origin_ns) / 1000,
                "dur": (span.end_ns - span.start_ns) / 1000,
                "args": {"turn_id": span.turn_id, **span.attributes}
                | ({"error": span.error} if span.error else {}),
            }
        )
    headings = [
        {"ph": "M", "name": "process_name", "pid": number, "tid": 0, "args": {"name": str(key)}}
        for key, number in numbers.items()
    ]
    return {"displayTimeUnit": "ms", "traceEvents": headings + events}


def _placed(tracks: list[list[Span]], span: Span) -> int:
    """Put the span on the first track where it nests, and give the track's number."""
    for number, open_spans in enumerate(tracks):
        while open_spans and open_spans[-1].end_ns <= span.start_ns:
            open_spans.pop()
        parent = open_spans[-1] if open_spans else None
        if parent is None or (parent.turn_id == span.turn_id and span.end_ns <= parent.end_ns):
            open_spans.append(span)
            return number
    tracks.append([span])
    return len(tracks) - 1


def _name(span: Span) -> str:
    detail = span.attributes.get("gen_ai.tool.name" if span.step == "tool" else "", "")
    return f"{span.step} {detail}".strip()
