"""What is written of a run when it ends, for readers without Python.

    turns.csv       a row a turn, the columns of the table of turns
    timeline.html   every turn on one page

It owns these two files. Both say nothing that the records beside them do not say, so both can be
made again, and a run whose records cannot be read, or are too large to be looked at, has none.
"""

from __future__ import annotations

import csv
from contextlib import suppress

from kode_lab.errors import InvalidRecord
from kode_lab.lab.records import Run
from kode_lab.lab.turn_row import TURN_COLUMNS, turn_row
from kode_lab.lab.turn_view import turns_of
from kode_lab.pictures.timeline import timeline

__all__ = ["EXPORT_LIMIT_BYTES", "TIMELINE", "TURNS", "export"]

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
