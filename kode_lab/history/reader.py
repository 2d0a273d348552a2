"""A history's lines as operations: which event completes which, and what contradicts itself.

A line is accepted only if it fits the others (``kode_lab.history.event`` checked its fields):
a process does one thing at a time and on one clock, a completion belongs to its own invoke, and
what a turn says it was shown agrees with itself. A line that does not fit is refused by its number,
because a judge that guessed would give a verdict on another history.
"""

from __future__ import annotations

import json
import math
from collections.abc import Generator, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from kode_lab.errors import InvalidKey, InvalidRecord
from kode_lab.history.digest import digest_of
from kode_lab.history.event import event_of
from kode_lab.history.operation import (
    DECLARATIONS,
    EFFECT_FIELDS,
    NEMESIS,
    NO_DETAILS,
    Details,
    Effect,
    ModelCalls,
    Operation,
    Read,
)
from kode_lab.key import SessionKey

__all__ = [
    "CLOCK_SKEW_LIMIT_S",
    "DEFAULT_AGENT",
    "LINE_LIMIT_BYTES",
    "is_whole",
    "lines_of",
    "operations_in",
    "read_operations",
]

# The final read of a hundred thousand turns has two million characters; this is no read any more.
LINE_LIMIT_BYTES = 32_000_000

# Lines are written as things happen, so times of one clock fall back only by what threads race.
CLOCK_SKEW_LIMIT_S = 60
# The agent of a session whose lines do not name one.
DEFAULT_AGENT = "agent"
_NO_KEY = SessionKey("", "", "")
# The ends of so many processes are remembered at once: names must not fill the memory.
_ENDS_LIMIT = 65_536
# What only the answer can tell, and what a completion can only repeat.
_OF_COMPLETIONS = frozenset(
    ("read", "markers", "effects", "error", "answered", "config", "suffix", "merged", "into")
) | {"streamed", "tools", "stop_reason", "rolled_back", "model"}
_OF_INVOKES = frozenset(
    ("f", "marker", "turn_id", "userId", "sessionId", "agentId", "upto", "replaces", "from")
)
_KINDS = ("turn", "read", "effects", *DECLARATIONS, "edit")
_DETAILS = frozenset(
    ("merged", "into", "streamed", "tools", "stop_reason", "rolled_back", "model", "upto")
) | {"replaces", "from"}


def lines_of(path: Path) -> Generator[str, None, None]:
    """Return a file's lines as text.

    A last line without its line break was cut when its writer died: it is as if it had never been
    written, unless it is whole.

    Raises:
        InvalidRecord: a line is not UTF-8, or longer than ``LINE_LIMIT_BYTES``.
    """
    number = 0
    try:
        file = path.open("rb")
    except OSError as error:
        raise InvalidRecord(f"{path.name} cannot be read: {error.strerror}") from None
    with file:
        while line := file.readline(LINE_LIMIT_BYTES + 1):
            number += 1
            if len(line) > LINE_LIMIT_BYTES:
                raise InvalidRecord(f"longer than LINE_LIMIT_BYTES={LINE_LIMIT_BYTES}", line=number)
            if not line.endswith(b"\n") and not is_whole(line):
                return
            try:
                yield line.decode()
            except UnicodeDecodeError as error:
                raise InvalidRecord(f"not UTF-8: {error.reason}", line=number) from None


def is_whole(line: bytes) -> bool:
    """Whether a line is JSON, and so was not cut."""
    try:
        json.loads(line)
    except (ValueError, RecursionError):
        return False
    return True


def read_operations(lines: Iterable[str]) -> Iterator[Operation]:
    """Return the operations of a ``history.jsonl`` in the order of their completions.

    Those that never completed come last, as ``info``.

    Raises:
        InvalidRecord: a line is not an event, completes nothing, or invokes twice; names the line.
    """
    return operations_in(enumerate(lines, 1))


def operations_in(numbered: Iterable[tuple[int, str]]) -> Iterator[Operation]:
    """Return the operations of lines that carry their numbers; they need not be all of a file's.

    Raises:
        InvalidRecord: as ``read_operations``.
    """
    open_by_process: dict[str, Operation] = {}
    ends: dict[str, int] = {}
    latest_ns, clock = 0, None
    for number, line in numbered:
        if not line.strip():
            continue
        event = event_of(line, number)
        process, time_ns = event["process"], event["time_ns"]
        clock = _same_clock(clock, event.get("clock"), number)
        if process == NEMESIS:
            yield _fault(event, number)
        elif event["type"] == "invoke":
            if process in open_by_process:
                raise InvalidRecord(
                    f"process {process!r:.60} invokes again before its last one ended", line=number
                )
            if time_ns < ends.pop(process, 0):
                raise InvalidRecord(
                    f"process {process!r:.60} invokes before its last one ended: one monotonic "
                    "clock is needed",
                    line=number,
                )
            open_by_process[process] = _invoked(event, number)
        else:
            begun = open_by_process.pop(process, None)
            if begun is None:
                raise InvalidRecord(
                    f"process {process!r:.60} completes what it never invoked", line=number
                )
            if len(ends) >= _ENDS_LIMIT:
                ends.clear()
            ends[process] = time_ns
            yield _completed(begun, event, number)
        if time_ns < latest_ns - CLOCK_SKEW_LIMIT_S * 1_000_000_000:
            raise InvalidRecord(
                f"time_ns is more than CLOCK_SKEW_LIMIT_S={CLOCK_SKEW_LIMIT_S} before an earlier "
                "line's: are these two clocks? Merge files of one clock by time_ns",
                line=number,
            )
        latest_ns = max(latest_ns, time_ns)
    yield from open_by_process.values()


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
    return Operation(_NO_KEY, name, NEMESIS, "info", time_ns, time_ns, error=detail, line=number)


def _key(fields: Mapping[str, Any], number: int) -> SessionKey:
    if fields.get("userId") is None:
        raise InvalidRecord("userId is missing: name the session's user", line=number)
    try:
        return SessionKey.of(
            fields["userId"], fields.get("agentId") or DEFAULT_AGENT, fields.get("sessionId")
        )
    except InvalidKey as error:
        raise InvalidRecord(str(error), line=number) from None


def _invoked(event: Mapping[str, Any], number: int) -> Operation:
    key = _key(event, number)
    if not _OF_COMPLETIONS.isdisjoint(event):
        for name in sorted(_OF_COMPLETIONS.intersection(event)):
            if event[name] is not None:
                raise InvalidRecord(
                    f"{name} belongs to the completion, not to the invoke", line=number
                )
    f, marker = event.get("f") or "turn", event.get("marker") or ""
    if f not in _KINDS:
        raise InvalidRecord(f"f {f!r:.60} is none of {', '.join(_KINDS)}", line=number)
    if f in ("turn", "edit") and not marker:
        raise InvalidRecord("a turn needs its marker", line=number)
    turn_id = event.get("turn_id") or ""
    details = NO_DETAILS if _DETAILS.isdisjoint(event) else _declared(event, f, number)
    if f in ("compact", "fork", "edit") and details is NO_DETAILS:
        details = _declared(event, f, number)
    return Operation(
        key, "turn" if f == "edit" else f, event["process"], "info", event["time_ns"], math.inf,
        marker, turn_id, details=details, line=number,
    )  # fmt: skip


def _declared(event: Mapping[str, Any], f: str, number: int) -> Details:
    """Return what an invoke declares, if it is complete."""
    upto, replaces = event.get("upto") or "", event.get("replaces") or ""
    needs = {"compact": ("upto",), "fork": ("upto", "from"), "edit": ("replaces",)}.get(f, ())
    for name in ("upto", "replaces", "from"):
        if (name in needs) != bool(event.get(name)):
            told = "needs" if name in needs else "has no"
            raise InvalidRecord(f"f {f!r} {told} {name!r}", line=number)
    source = None if event.get("from") is None else _key(event["from"], number)
    return Details(upto, source, replaces)


def _completed(begun: Operation, event: Mapping[str, Any], number: int) -> Operation:
    if event["time_ns"] < begun.invoke_ns:
        raise InvalidRecord(
            f"process {begun.process!r:.60} completes before it invoked: "
            "one monotonic clock is needed",
            line=number,
        )
    if not _OF_INVOKES.isdisjoint(event):
        _check_repeated(begun, event, number)
    read, markers, effects = (event.get(name) for name in ("read", "markers", "effects"))
    if markers is not None and begun.f != "read":
        raise InvalidRecord('markers are what a read tells: its f is "read"', line=number)
    if event.get("suffix") and markers is None:
        raise InvalidRecord("suffix belongs to a read's markers, or into read", line=number)
    if event.get("rolled_back") and event["type"] != "fail":
        raise InvalidRecord(
            "rolled_back says that the turn is undone: its type is fail", line=number
        )
    details = begun.details if _DETAILS.isdisjoint(event) else _told(begun, event)
    return begun._replace(
        type=event["type"],
        complete_ns=event["time_ns"],
        read=None if read is None else _read(read, begun.marker, number),
        markers=None if markers is None else tuple(markers),
        effects=None if effects is None else tuple(map(_effect, effects)),
        error=event.get("error") or "",
        answered=event.get("answered") or "",
        config=event.get("config") or "",
        is_suffix=bool(event.get("suffix")),
        details=details,
    )


def _check_repeated(begun: Operation, event: Mapping[str, Any], number: int) -> None:
    source = begun.details.source
    own: dict[str, Any] = begun._asdict() | begun.details._asdict() | begun.key.to_json()
    own["from"] = None if source is None else source.to_json()
    if begun.details.replaces:
        own["f"] = "edit"
    for name in sorted(_OF_INVOKES.intersection(event)):
        if event[name] not in (None, own[name]):
            raise InvalidRecord(
                f"{name} {event[name]!r:.60} is not that of the invoke which it completes",
                line=number,
            )


def _told(begun: Operation, event: Mapping[str, Any]) -> Details:
    tools, model = event.get("tools"), event.get("model")
    return begun.details._replace(
        merged=tuple(event.get("merged") or ()),
        into=event.get("into") or "",
        streamed=tuple(event.get("streamed") or ()),
        tools=None if tools is None else tuple(tools),
        stop_reason=event.get("stop_reason") or "",
        is_rolled_back=bool(event.get("rolled_back")),
        model=None if model is None else _model(model),
    )


def _model(fields: Mapping[str, Any]) -> ModelCalls:
    return ModelCalls(
        tuple((start, end) for start, end in fields.get("calls") or ()),
        fields.get("stop_reason") or "",
        tuple(fields.get("configs") or ()),
        tuple((asked, answers) for asked, answers in fields.get("tool_results") or ()),
    )


def _read(fields: Mapping[str, Any], own: str, number: int) -> Read:
    foreign, half, is_suffix = (fields.get(name) for name in ("foreign", "half", "suffix"))
    told: dict[str, Any] = {
        "foreign": tuple(foreign or ()), "half": tuple(half or ()), "is_suffix": bool(is_suffix),
    }  # fmt: skip
    markers = fields.get("markers")
    if markers is not None:
        position = markers.index(own) if own in markers else len(markers)
        return Read(position, None, markers=tuple(markers), **told)
    tail, after = tuple(fields.get("tail") or ()), tuple(fields.get("after") or ())
    position, digest = fields["position"], fields.get("digest")
    if len(tail) > position:
        raise InvalidRecord(
            f"read has {len(tail)} markers in its tail at position {position}", line=number
        )
    value = None if digest is None else int(digest, 16)
    if len(tail) == position:
        if value not in (None, digest_of(tail)):
            raise InvalidRecord("read has a tail that is not what its digest says", line=number)
        value = digest_of(tail)
    return Read(position, value, tail, after=after, **told)


def _effect(fields: Mapping[str, Any]) -> Effect:
    return Effect(*(fields.get(name) or "" for name in EFFECT_FIELDS))
