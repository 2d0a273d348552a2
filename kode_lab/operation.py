"""One turn as its *client* saw it: the history, which is the judge's only evidence for safety.

A client writes one ``invoke`` line before a request leaves, and one completion after the answer:

    ok      acknowledged: the turn is in the session, exactly once
    fail    it *definitely* did not happen (refused before acceptance)
    info    nobody knows (time-out, 5xx, reset, cut stream, cancel): zero times or once, at any time

so a client that dies leaves indeterminate operations by itself. A process is sequential: its
completion belongs to its last invoke, and after ``info`` its name is not used again. The process
``nemesis`` records faults (``f`` names the fault: ``kill``, ``pause``, ...; its type is ``info``).

The last acts of a run are its probe: ``quiet`` (a fault of the nemesis that says all faults are
over), then one turn and one authoritative read a session.

*Markers.* Each prompt carries a unique word. What of these words a backend showed its model is what
it believes the session to be, so ``Read`` is what one turn saw: the markers of its own session that
came before it, and the markers of other sessions that should not have been there.

Source: Jepsen's histories and Elle's list-append (Kingsbury, Alvaro: https://arxiv.org/abs/2003.10554).
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from hashlib import blake2b
from pathlib import Path
from typing import Any, NamedTuple

from kode_lab.digest import digest_of, hash_of
from kode_lab.errors import InvalidKey, InvalidRecord
from kode_lab.event import event_of
from kode_lab.key import SessionKey

__all__ = [
    "CLOCK_SKEW_LIMIT_S",
    "CRASHES",
    "HEALS",
    "NEMESIS",
    "QUIET",
    "TAIL_LIMIT",
    "Effect",
    "HistoryWriter",
    "Operation",
    "Read",
    "digest_of",
    "echo_in",
    "echo_of",
    "hash_of",
    "marker_of",
    "markers_in",
    "numbered_operations",
    "read_of",
    "read_operations",
]

NEMESIS = "nemesis"
# What ends a fault, by what begins it; a name that stands nowhere here is a fault at one moment.
HEALS = {"kill": "restart", "pause": "resume", "partition": "heal", "configure": "configured"}
CRASHES = ("kill", "power-cut")
QUIET = "quiet"
# Lines are written as things happen, so times of one clock fall back only by what threads race.
CLOCK_SKEW_LIMIT_S = 60
# How many markers a read spells out; the digest covers the rest (full prefixes would be quadratic).
TAIL_LIMIT = 8
_MARKER = re.compile(r"#m[0-9a-f]{10}-[0-9a-f]{6,}")
_ECHO = re.compile(
    rf"\[({_MARKER.pattern}) read ([0-9]+) ([0-9a-f]{{16}})"
    rf"(?: tail((?: {_MARKER.pattern})+))?(?: foreign((?: {_MARKER.pattern})+))?"
    rf"(?: half((?: {_MARKER.pattern})+))?\]"
)


class Read(NamedTuple):
    """What one turn was shown of its session.

    Attributes:
        position: how many markers of its own session came before its own.
        digest: 64-bit order-sensitive digest of these markers (``digest_of``).
        tail: the last of them, at most ``TAIL_LIMIT``, in order: for witnesses.
        foreign: markers of other sessions that it was shown, in order.
        half: markers of earlier turns of which it was shown the prompt without a final reply.
    """

    position: int
    digest: int
    tail: tuple[str, ...] = ()
    foreign: tuple[str, ...] = ()
    half: tuple[str, ...] = ()


class Effect(NamedTuple):
    """What a tool did to the world, as the world tells it.

    Attributes:
        id: the name that the world gave it (a schedule's id): one id, one effect.
        name: which of the turn's effects it is (``create_schedule``, ``create_schedule/2``).
        marker: the turn that asked for it, or "" when that cannot be seen.
        user_id: for whom the tool ran.
        session_id: for which of the user's sessions, or "" when the world does not know.
    """

    id: str
    name: str = ""
    marker: str = ""
    user_id: str = ""
    session_id: str = ""


class Operation(NamedTuple):
    """One turn, one authoritative read, or one fault, from its invoke to its completion.

    Attributes:
        f: ``turn``; ``read`` (``markers`` is then the whole session as the backend tells it);
            ``effects`` (all that tools did); for the process ``nemesis`` the name of the fault.
        type: ``ok``, ``fail`` or ``info``.
        invoke_ns: monotonic nanoseconds, before sending.
        complete_ns: monotonic nanoseconds, after receiving; infinity when nothing ever came.
        marker: the unique word of the turn's prompt ("" for reads and faults).
        turn_id: the same for every attempt at one turn.
        read: what the turn was shown, or None when nobody observed it.
        markers: the session's list, for an ``ok`` read.
        error: why it is not ``ok``.
        answered: the marker of the prompt that the reply says it answers, or "".
        config: the version of the agent's configuration that the turn ran with, or "".
        effects: what tools did, for this turn or (``f`` is ``effects``) at all.
    """

    key: SessionKey
    f: str
    process: str
    type: str
    invoke_ns: int
    complete_ns: float
    marker: str = ""
    turn_id: str = ""
    read: Read | None = None
    markers: tuple[str, ...] | None = None
    error: str = ""
    answered: str = ""
    config: str = ""
    effects: tuple[Effect, ...] | None = None


def marker_of(key: SessionKey, number: int, *, seed: int = 0) -> str:
    """Give the marker of a session's ``number``-th prompt: unique, and readable as its session's.

    The first part is the same for all markers of a session, so that whoever sees two markers can
    tell whether they belong together without knowing any key.
    """
    tag = blake2b(f"{seed}\0{key.lock_name}\0{key.agent_id}".encode(), digest_size=5).hexdigest()
    return f"#m{tag}-{number:06x}"


def markers_in(text: str) -> list[str]:
    """Give the markers that a text shows, in order."""
    return _MARKER.findall(text)


def read_of(own: str, shown: Iterable[str]) -> Read:
    """Give what a turn with the marker ``own`` saw, from all markers it was shown, in order."""
    tag = own.partition("-")[0]
    before: list[str] = []
    foreign: list[str] = []
    for marker in shown:
        if marker == own:
            continue
        (before if marker.partition("-")[0] == tag else foreign).append(marker)
    return Read(len(before), digest_of(before), tuple(before[-TAIL_LIMIT:]), tuple(foreign))


def echo_of(own: str, read: Read) -> str:
    """Give the one line by which a reply tells whom it answers and what its model was shown.

    It is ``[own read position digest tail ... foreign ... half ...]``; empty parts are left out.
    """
    lists = (("tail", read.tail), ("foreign", read.foreign), ("half", read.half))
    parts = "".join(f" {name} {' '.join(markers)}" for name, markers in lists if markers)
    return f"[{own} read {read.position} {read.digest:016x}{parts}]"


def echo_in(text: str) -> tuple[str, Read] | None:
    """Give the marker that a reply says it answers and what it was shown, or None.

    The last echo counts: a model may quote an earlier one.
    """
    found = list(_ECHO.finditer(text))
    if not found:
        return None
    own, position, digest, *lists = found[-1].groups(default="")
    return own, Read(int(position), int(digest, 16), *(tuple(part.split()) for part in lists))


class HistoryWriter:
    """Appends events to a ``history.jsonl``, a line each, handed to the system before it returns.

    Several writers, in several processes, may append to one file: each line is one ``write`` to a
    descriptor opened for appending.
    """

    def __init__(self, path: Path) -> None:
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)

    def invoke(
        self,
        key: SessionKey,
        process: str,
        time_ns: int,
        *,
        f: str = "turn",
        marker: str = "",
        turn_id: str = "",
    ) -> None:
        """Write that a request is about to leave."""
        event: dict[str, Any] = {
            "type": "invoke",
            "f": f,
            "process": process,
            "time_ns": time_ns,
            **key.to_json(),
        }
        if marker:
            event["marker"] = marker
        if turn_id:
            event["turn_id"] = turn_id
        self._write(event)

    def complete(
        self,
        process: str,
        time_ns: int,
        type: str,  # noqa: A002 - Jepsen's word for it
        *,
        read: Read | None = None,
        markers: Iterable[str] | None = None,
        error: str = "",
        answered: str = "",
        config: str = "",
        effects: Iterable[Effect] | None = None,
    ) -> None:
        """Write how the process's open request ended: ``ok``, ``fail`` or ``info``."""
        event: dict[str, Any] = {"type": type, "process": process, "time_ns": time_ns}
        if read is not None:
            lists = (("tail", read.tail), ("foreign", read.foreign), ("half", read.half))
            event["read"] = {"position": read.position, "digest": f"{read.digest:016x}"}
            event["read"] |= {name: list(shown) for name, shown in lists if shown}
        if markers is not None:
            event["markers"] = list(markers)
        if effects is not None:
            event["effects"] = [_effect_fields(effect) for effect in effects]
        facts = (("error", error), ("answered", answered), ("config", config))
        self._write(event | {name: fact for name, fact in facts if fact})

    def fault(self, name: str, time_ns: int, detail: str = "") -> None:
        """Write that a fault begins, or ends, now."""
        event = {"type": "info", "f": name, "process": NEMESIS, "time_ns": time_ns}
        self._write(event | {"error": detail} if detail else event)

    def close(self) -> None:
        """Close the file; what was written is already there."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _write(self, event: Mapping[str, Any]) -> None:
        os.write(
            self._fd, json.dumps(event, ensure_ascii=False, separators=(",", ":")).encode() + b"\n"
        )


_NOBODY = SessionKey("", "", "")
# The ends of so many processes are remembered at once: names must not fill the memory.
_ENDS_LIMIT = 65_536
# What only the answer can tell.
_OF_COMPLETIONS = ("read", "markers", "effects", "error", "answered", "config")
_KINDS = ("turn", "read", "effects")


def read_operations(lines: Iterable[str]) -> Iterator[Operation]:
    """Give the operations of a ``history.jsonl`` in the order of their completions.

    Those that never completed come last, as ``info``.

    Raises:
        InvalidRecord: a line is not an event, completes nothing, or invokes twice; names the line.
    """
    return (operation for _, operation in numbered_operations(lines))


def numbered_operations(lines: Iterable[str]) -> Iterator[tuple[int, Operation]]:
    """Give each operation with the number of the line that began it.

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
    early = next((name for name in _OF_COMPLETIONS if event.get(name) is not None), None)
    if early is not None:
        raise InvalidRecord(f"{early} belongs to the completion, not to the invoke", line=number)
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
    for name in ("f", "marker", "turn_id"):
        if event.get(name) not in (None, getattr(begun, name)):
            raise InvalidRecord(
                f"{name} {event[name]!r:.60} is not that of the invoke which it completes",
                line=number,
            )
    for name, own in zip(("userId", "sessionId", "agentId"), begun.key, strict=True):
        if event.get(name) not in (None, own):
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


_EFFECT_FIELDS = ("id", "name", "marker", "userId", "sessionId")


def _effect(fields: Mapping[str, Any]) -> Effect:
    return Effect(*(fields.get(name) or "" for name in _EFFECT_FIELDS))


def _effect_fields(effect: Effect) -> dict[str, str]:
    return {name: value for name, value in zip(_EFFECT_FIELDS, effect, strict=True) if value}
