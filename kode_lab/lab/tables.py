"""Recorded runs as pandas tables: a row a turn, a tool call, a session, or an event.

The only place that imports pandas. Ids come first, units are in the names, and all times count
seconds from the first thing recorded, so that the tables of one run fit together. What was not
recorded is missing (NA), never 0: a turn without a trace has no ``waited_s``.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any, Final

import pandas as pd

from kode_lab.history.operation import Operation
from kode_lab.history.span import Span
from kode_lab.key import SessionKey
from kode_lab.lab.turn_view import (
    TURN_COLUMNS,
    TURN_COUNTS,
    TURN_TEXTS,
    Recorded,
    turn_row,
    turns_of,
)

__all__ = ["columns_table", "events_table", "sessions_table", "tool_calls_table", "turns_table"]

_IDS = ("user_id", "session_id", "agent_id")
_COUNTS: Final = "Int64"  # pandas' integers that can be missing


def turns_table(
    recorded: Recorded | Iterable[Span], operations: Iterable[Operation] = ()
) -> pd.DataFrame:
    """Return a row a turn, by its start.

    Columns: the ids, ``turn_id``, ``outcome`` (ok, fail, info), ``sent_s``, ``latency_s`` (as the
    client saw it; missing where no answer came), ``waited_s``, ``load_s``, ``model_s``,
    ``tools_s``, ``commit_s`` (added up over the turn's steps), ``model_calls``, ``tool_calls``,
    ``input_tokens``, ``output_tokens``, ``attempts``, ``queue_length``, ``fence``,
    ``config_version``, ``marker``, ``error``.
    """
    spans, history = _evidence(recorded, operations)
    origin_ns = _origin_ns(spans, history)
    rows = [turn_row(turn, origin_ns) for turn in turns_of(spans, history)]
    return columns_table(rows, TURN_COLUMNS, texts=TURN_TEXTS, counts=TURN_COUNTS)


def tool_calls_table(
    recorded: Recorded | Iterable[Span], operations: Iterable[Operation] = ()
) -> pd.DataFrame:
    """Return a row a tool call, by its start.

    Columns: the ids, ``turn_id``, ``call_id``, ``tool``, ``started_s``, ``took_s``, ``is_error``,
    ``result`` (short text, for the model), ``error`` (the exception's name).
    """
    spans, history = _evidence(recorded, operations)
    origin_ns = _origin_ns(spans, history)
    calls = sorted(
        (span for span in spans if span.step == "tool"),
        key=lambda span: (span.start_ns, span.end_ns, span.key, span.turn_id),
    )
    rows = [
        (
            *call.key,
            call.turn_id,
            call.attributes.get("gen_ai.tool.call.id"),
            call.attributes.get("gen_ai.tool.name"),
            (call.start_ns - origin_ns) / 1e9,
            (call.end_ns - call.start_ns) / 1e9,
            bool(call.error or call.attributes.get("kode_lab.tool.is_error")),
            call.attributes.get("kode_lab.tool.result"),
            call.error,
        )
        for call in calls
    ]
    names = [
        *(*_IDS, "turn_id", "call_id", "tool", "started_s", "took_s", "is_error"),
        *("result", "error"),
    ]
    texts = (*_IDS, "turn_id", "call_id", "tool", "result", "error")
    return columns_table(rows, names, texts=texts, flags=("is_error",))


def sessions_table(
    recorded: Recorded | Iterable[Span], operations: Iterable[Operation] = ()
) -> pd.DataFrame:
    """Return a row a session, by its first turn.

    Columns: the ids, ``turns``, ``ok``, ``fail``, ``info``, ``first_sent_s``, ``last_ended_s``,
    ``waited_s`` and ``longest_wait_s``, ``median_latency_s`` and ``slowest_s``, ``model_calls``,
    ``tool_calls``, ``input_tokens``, ``output_tokens``.
    """
    turns = turns_table(recorded, operations)
    turns["ended_s"] = turns["sent_s"] + turns["latency_s"]
    outcomes = ["ok", "fail", "info"]
    for outcome in outcomes:
        turns[outcome] = (turns["outcome"] == outcome).astype(_COUNTS)
    grouped = turns.groupby(list(_IDS), sort=False)
    table = grouped.agg(
        turns=("turn_id", "size"),
        first_sent_s=("sent_s", "min"),
        last_ended_s=("ended_s", "max"),
        longest_wait_s=("waited_s", "max"),
        median_latency_s=("latency_s", "median"),
        slowest_s=("latency_s", "max"),
    )
    # min_count: what no turn of a session recorded stays missing instead of adding up to 0.
    counted = ["model_calls", "tool_calls", "input_tokens", "output_tokens"]
    sums = [*outcomes, "waited_s", *counted]
    table[sums] = grouped[sums].sum(min_count=1)
    times = ["first_sent_s", "last_ended_s", "waited_s", "longest_wait_s"]
    names = ["turns", *outcomes, *times, "median_latency_s", "slowest_s", *counted]
    return table[names].reset_index()


def events_table(
    recorded: Recorded | Iterable[Span], operations: Iterable[Operation] = ()
) -> pd.DataFrame:
    """Return a row an event of the history: each invoke, each completion, each fault, by time.

    Columns: the ids, ``turn_id``, ``process``, ``time_s``, ``type`` (invoke, ok, fail, info),
    ``f``, ``marker``, ``position`` (how many markers of its session it was shown), ``foreign``
    (how many of others'), ``error``. Of a fault the ids are missing; of an answer that never came
    there is no row.
    """
    spans, history = _evidence(recorded, operations)
    origin_ns = _origin_ns(spans, history)
    rows: list[tuple[Any, ...]] = []
    for operation in history:
        is_fault = operation.key == SessionKey("", "", "")
        ids = (None, None, None) if is_fault else operation.key
        named = (*ids, operation.turn_id or None, operation.process)
        what = (operation.f, operation.marker or None)
        invoked_s = (operation.invoke_ns - origin_ns) / 1e9
        if not is_fault:
            rows.append((*named, invoked_s, "invoke", *what, None, None, None))
        if math.isinf(operation.complete_ns):
            continue
        read = operation.read
        seen = (None, None) if read is None else (read.position, len(read.foreign))
        completed_s = (operation.complete_ns - origin_ns) / 1e9
        rows.append((*named, completed_s, operation.type, *what, *seen, operation.error or None))
    # A turn's invoke stays before its completion even where both have one time.
    rows.sort(key=lambda row: row[5])
    names = [
        *(*_IDS, "turn_id", "process", "time_s", "type", "f", "marker"),
        *("position", "foreign", "error"),
    ]
    texts = (*_IDS, "turn_id", "process", "type", "f", "marker", "error")
    return columns_table(rows, names, texts=texts, counts=("position", "foreign"))


def _evidence(
    recorded: Recorded | Iterable[Span], operations: Iterable[Operation]
) -> tuple[Sequence[Span], Sequence[Operation]]:
    if isinstance(recorded, Recorded):
        return tuple(recorded.spans()), tuple(recorded.operations())
    return tuple(recorded), tuple(operations)


def _origin_ns(spans: Sequence[Span], operations: Sequence[Operation]) -> int:
    begun = [operation.invoke_ns for operation in operations] + [span.start_ns for span in spans]
    return min(begun, default=0)


def columns_table(
    rows: Sequence[tuple[Any, ...]],
    names: Sequence[str],
    *,
    texts: Sequence[str],
    counts: Sequence[str] = (),
    flags: Sequence[str] = (),
) -> pd.DataFrame:
    """Return a table whose columns have their types also when it is empty or all is missing."""
    columns = zip(*rows, strict=True) if rows else ((),) * len(names)
    kinds: dict[str, Any] = {
        **dict.fromkeys(names, "float64"),
        **dict.fromkeys(texts, "str"),
        **dict.fromkeys(counts, _COUNTS),
        **dict.fromkeys(flags, "bool"),
    }
    return pd.DataFrame(
        {
            name: pd.array(list(column), dtype=kinds[name])
            for name, column in zip(names, columns, strict=True)
        },
        columns=list(names),
    )
