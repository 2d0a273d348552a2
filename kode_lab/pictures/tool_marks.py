"""Tool calls as marks and words: which of them stand as one mark, and what is written beside it.

Calls that overlap in time (one reply asked for several) are one mark with all their names.
"""

from __future__ import annotations

import json
from itertools import groupby
from typing import NamedTuple

from kode_lab.history.span import Span
from kode_lab.lab.turn_view import TurnView
from kode_lab.pictures.page import between, seconds

__all__ = ["ToolMark", "label_of", "tool_marks", "tools_line"]

_NAME_LIMIT_CHARS = 40


class ToolMark(NamedTuple):
    """Tool calls that ran together: one mark."""

    start_ns: int
    end_ns: int
    calls: tuple[Span, ...]


def tool_marks(turn: TurnView) -> list[ToolMark]:
    """Return the marks of a turn's tool calls, by start."""
    marks: list[ToolMark] = []
    for span in turn.steps_named("tool"):
        if marks and span.start_ns < marks[-1].end_ns:
            last = marks[-1]
            end_ns = max(last.end_ns, span.end_ns)
            marks[-1] = last._replace(end_ns=end_ns, calls=(*last.calls, span))
        else:
            marks.append(ToolMark(span.start_ns, span.end_ns, (span,)))
    return marks


def label_of(mark: ToolMark) -> str:
    """Return the words at one mark: names, what came of it where it is short, how long it took."""
    names = ", ".join(
        name if count == 1 else f"{count} × {name}" for name, count in _counted(mark.calls)
    )
    results = [_outcome(call) for call in mark.calls]
    told = ", ".join(result for result in results if result)
    took = seconds(mark.end_ns - mark.start_ns)
    return f"{names} → {told} ({took})" if told else f"{names} ({took})"


def tools_line(marks: list[ToolMark], *, is_numbered: bool) -> str:
    """Return all marks in one line: runs of the same tool share a name and a range of times."""
    calls = [call for mark in marks for call in mark.calls]
    if not is_numbered:
        names = ", ".join(f"{count} × {name}" for name, count in _counted(calls))
        return f"{len(calls)} tool calls: {names} ({_range(marks)})"
    told: list[str] = []
    at = 1
    for name, run in groupby(marks, key=_names):
        group = list(run)
        numbers = f"{at}" if len(group) == 1 else f"{at}–{at + len(group) - 1}"
        told.append(f"{numbers} {name} ({_range(group)})")
        at += len(group)
    return " · ".join(told)


def _names(mark: ToolMark) -> str:
    return ", ".join(f"{n} × {name}" if n > 1 else name for name, n in _counted(mark.calls))


def _counted(calls: list[Span] | tuple[Span, ...]) -> list[tuple[str, int]]:
    counts: dict[str, int] = {}
    for call in calls:
        name = str(call.attributes.get("gen_ai.tool.name") or "a tool without a name")
        if len(name) > _NAME_LIMIT_CHARS:
            name = f"{name[: _NAME_LIMIT_CHARS - 1]}…"
        counts[name] = counts.get(name, 0) + 1
    return list(counts.items())


def _range(marks: list[ToolMark]) -> str:
    each = " each" if len(marks) > 1 else ""
    return between([mark.end_ns - mark.start_ns for mark in marks]) + each


def _outcome(call: Span) -> str:
    """What came of a call, where it can be told in a word: the id it made, or that it failed."""
    if call.error or call.attributes.get("kode_lab.tool.is_error"):
        return "error"
    try:
        result = json.loads(str(call.attributes.get("kode_lab.tool.result", "")))
    except ValueError:
        return ""
    if not isinstance(result, dict):
        return ""
    ids = [v for k, v in result.items() if k == "id" or k.endswith("_id")]
    return f"id {ids[0]}" if len(ids) == 1 and len(str(ids[0])) <= 12 else ""
