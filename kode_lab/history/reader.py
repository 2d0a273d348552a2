"""A history's lines as operations: which event completes which, and what contradicts itself.

A line is accepted only if it fits the others (``kode_lab.history.event`` checked its fields):
a process does one thing at a time and on one clock, a completion is its own invoke's, and what a
turn says it was shown agrees with itself. What does not is refused with its line, because a judge
that guessed would give a verdict on another history.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from kode_lab.errors import InvalidKey, InvalidRecord
from kode_lab.history.digest import digest_of
from kode_lab.history.event import event_of
from kode_lab.history.operation import EFFECT_FIELDS, NEMESIS, Effect, Operation, Read
from kode_lab.key import SessionKey

__all__ = ["CLOCK_SKEW_LIMIT_S", "numbered_operations", "read_operations"]

# Lines are written as things happen, so times of one clock fall back only by what threads race.
CLOCK_SKEW_LIMIT_S = 60
_NOBODY = SessionKey("", "", "")
# The ends of so many processes are remembered at once: names must not fill the memory.
_ENDS_LIMIT = 65_536
# What only the answer can tell, and what a completion can only repeat.
_OF_COMPLETIONS = frozenset(("read", "markers", "effects", "error", "answered", "config"))
_OF_INVOKES = frozenset(("f", "marker", "turn_id", "userId", "sessionId", "agentId"))
_KINDS = ("turn", "read", "effects")


def read_operations(lines: Iterable[str]) -> Iterator[Operation]:
    """Return the operations of a ``history.jsonl`` in the order of their completions.

    Those that never completed come last, as ``info``.

    Raises:
        InvalidRecord: a line is not an event, completes nothing, or invokes twice; names the line.
    """
    return (operation for _, operation in numbered_operations(lines))


def numbered_operations(lines: Iterable[str]) -> Iterator[tuple[int, Operation]]:
    """Return each operation with the number of the line that began it.

    Raises:
        InvalidRecord: as ``read_operations``.
    """
    open_by_process: dict[str, tuple[int, Operation]] = {}
    ends: dict[str, tuple[int, str]] = {}
    latest_ns, clock = 0, None
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        event = event_of(line, number)
        process, time_ns = event["process"], event["time_ns"]
        clock = _same_clock(clock, event.get("clock"), number)
        if process == NEMESIS:
            yield number, _fault(event, number)
        elif event["type"] == "invoke":
            if process in open_by_process:
                raise InvalidRecord(
                    f"process {process!r:.60} invokes again before its last one ended", line=number
                )
            if process in ends:
                _check_again(process, time_ns, *ends.pop(process), number)
            open_by_process[process] = number, _invoked(event, number)
        else:
            begun_line, begun = open_by_process.pop(process, (0, None))
            if begun is None:
                raise InvalidRecord(
                    f"process {process!r:.60} completes what it never invoked", line=number
                )
            if len(ends) >= _ENDS_LIMIT:
                ends.clear()
            ends[process] = time_ns, event["type"]
            yield begun_line, _completed(begun, event, number)
        if time_ns < latest_ns - CLOCK_SKEW_LIMIT_S * 1_000_000_000:
            raise InvalidRecord(
                f"time_ns is more than CLOCK_SKEW_LIMIT_S={CLOCK_SKEW_LIMIT_S} before an earlier "
                "line's: are these two clocks? Merge files of one clock by time_ns",
                line=number,
            )
        latest_ns = max(latest_ns, time_ns)
    yield from open_by_process.values()


def _check_again(process: str, time_ns: int, ended_ns: int, ended: str, number: int) -> None:
    """A process does one thing at a time, and is another one when nobody knows what it did."""
    if ended == "info":
        raise InvalidRecord(
            f"process {process!r:.60} invokes after info: what it sent may still come, so the next "
            "turn needs a new name",
            line=number,
        )
    if time_ns < ended_ns:
        raise InvalidRecord(
            f"process {process!r:.60} invokes before its last one ended: one monotonic clock is "
            "needed",
            line=number,
        )


def _same_clock(clock: str | None, named: str | None, number: int) -> str | None:
    if named is not None and clock is not None and named != clock:
        raise InvalidRecord(
            f"clock {named!r:.60} after clock {clock!r:.60}: times of two clocks have no order",
            line=number,
        )
    return named or clock


def _fault(event: Mapping[str, Any], number: int) -> Operation:
    if event.get("f") in (None, "", *_KINDS):
        raise InvalidRecord(f"f {event.get('f')!r} names no fault", line=number)
    name, time_ns, detail = event.get("f") or "", event["time_ns"], event.get("error") or ""
    return Operation(_NOBODY, name, NEMESIS, "info", time_ns, time_ns, error=detail)


def _invoked(event: Mapping[str, Any], number: int) -> Operation:
    try:
        key = SessionKey.from_json(event)
    except InvalidKey as error:
        raise InvalidRecord(str(error), line=number) from None
    if not _OF_COMPLETIONS.isdisjoint(event):
        for name in sorted(_OF_COMPLETIONS.intersection(event)):
            if event[name] is not None:
                raise InvalidRecord(
                    f"{name} belongs to the completion, not to the invoke", line=number
                )
    f, marker = event.get("f") or "turn", event.get("marker") or ""
    if f not in _KINDS:
        raise InvalidRecord(f"f {f!r:.60} is none of {', '.join(_KINDS)}", line=number)
    if f == "turn" and not marker:
        raise InvalidRecord("a turn needs its marker", line=number)
    turn_id = event.get("turn_id") or ""
    return Operation(key, f, event["process"], "info", event["time_ns"], math.inf, marker, turn_id)


def _completed(begun: Operation, event: Mapping[str, Any], number: int) -> Operation:
    if event["time_ns"] < begun.invoke_ns:
        raise InvalidRecord(
            f"process {begun.process!r:.60} completes before it invoked: "
            "one monotonic clock is needed",
            line=number,
        )
    if not _OF_INVOKES.isdisjoint(event):
        own = begun._asdict() | begun.key.to_json()
        for name in sorted(_OF_INVOKES.intersection(event)):
            if event[name] not in (None, own[name]):
                raise InvalidRecord(
                    f"{name} {event[name]!r:.60} is not that of the invoke which it completes",
                    line=number,
                )
    read, markers, effects = (event.get(name) for name in ("read", "markers", "effects"))
    if markers is not None and begun.f != "read":
        raise InvalidRecord('markers are what a read tells: its f is "read"', line=number)
    return begun._replace(
        type=event["type"],
        complete_ns=event["time_ns"],
        read=None if read is None else _read(read, number),
        markers=None if markers is None else tuple(markers),
        effects=None if effects is None else tuple(map(_effect, effects)),
        error=event.get("error") or "",
        answered=event.get("answered") or "",
        config=event.get("config") or "",
    )


def _read(fields: Mapping[str, Any], number: int) -> Read:
    tail, foreign, half = (tuple(fields.get(name) or ()) for name in ("tail", "foreign", "half"))
    position, digest = fields["position"], int(fields["digest"], 16)
    if len(tail) > position:
        raise InvalidRecord(
            f"read has {len(tail)} markers in its tail at position {position}", line=number
        )
    if len(tail) == position and digest_of(tail) != digest:
        raise InvalidRecord("read has a tail that is not what its digest says", line=number)
    return Read(position, digest, tail, foreign, half)


def _effect(fields: Mapping[str, Any]) -> Effect:
    return Effect(*(fields.get(name) or "" for name in EFFECT_FIELDS))
