"""One turn as its *client* saw it: the history, which is the judge's only evidence for safety.

A client writes one ``invoke`` line before a request leaves, and one completion after the answer:

    ok      acknowledged: the turn is in the session, exactly once
    fail    it *definitely* did not happen (refused before acceptance)
    info    nobody knows (time-out, 5xx, reset, cut stream, cancel): zero times or once, at any time

so a client that dies leaves indeterminate operations by itself. A process is sequential: its
completion belongs to its last invoke, and after ``info`` its name is not used again. The process
``nemesis`` records faults (``f`` names the fault: ``kill``, ``pause``, ...; its type is ``info``).

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

from kode_lab.errors import InvalidKey, InvalidRecord
from kode_lab.key import SessionKey

__all__ = [
    "NEMESIS",
    "TAIL_LIMIT",
    "HistoryWriter",
    "Operation",
    "Read",
    "digest_of",
    "echo_in",
    "echo_of",
    "marker_of",
    "markers_in",
    "read_of",
    "read_operations",
]

NEMESIS = "nemesis"
# How many markers a read spells out; the digest covers the rest (full prefixes would be quadratic).
TAIL_LIMIT = 8
_COMPLETIONS = ("ok", "fail", "info")
_MARKER = re.compile(r"#m[0-9a-f]{10}-[0-9a-f]{6,}")
_ECHO = re.compile(
    rf"\[({_MARKER.pattern}) read ([0-9]+) ([0-9a-f]{{16}})"
    rf"(?: tail((?: {_MARKER.pattern})+))?(?: foreign((?: {_MARKER.pattern})+))?\]"
)
_MASK = 0xFFFF_FFFF_FFFF_FFFF
# Knuth's MMIX multiplier: odd, so that each step is invertible and no prefix is forgotten.
_MULTIPLIER = 6_364_136_223_846_793_005


class Read(NamedTuple):
    """What one turn was shown of its session.

    Attributes:
        position: how many markers of its own session came before its own.
        digest: 64-bit order-sensitive digest of these markers (``digest_of``).
        tail: the last of them, at most ``TAIL_LIMIT``, in order: for witnesses.
        foreign: markers of other sessions that it was shown, in order.
    """

    position: int
    digest: int
    tail: tuple[str, ...] = ()
    foreign: tuple[str, ...] = ()


class Operation(NamedTuple):
    """One turn, one authoritative read, or one fault, from its invoke to its completion.

    Attributes:
        f: ``turn``; ``read`` (``markers`` is then the whole session as the backend tells it); for
            the process ``nemesis`` the name of the fault.
        type: ``ok``, ``fail`` or ``info``.
        invoke_ns: monotonic nanoseconds, before sending.
        complete_ns: monotonic nanoseconds, after receiving; infinity when nothing ever came.
        marker: the unique word of the turn's prompt ("" for reads and faults).
        turn_id: the same for every attempt at one turn.
        read: what the turn was shown, or None when nobody observed it.
        markers: the session's list, for an ``ok`` read.
        error: why it is not ``ok``.
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


def digest_of(markers: Iterable[str], digest: int = 0) -> int:
    """Give the 64-bit digest of ``markers`` after a prefix that has ``digest``."""
    for marker in markers:
        digest = (
            digest * _MULTIPLIER + int.from_bytes(blake2b(marker.encode(), digest_size=8).digest())
        ) & _MASK
    return digest


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

    It is ``[own read position digest tail ... foreign ...]``; empty parts are left out.
    """
    tail = f" tail {' '.join(read.tail)}" if read.tail else ""
    foreign = f" foreign {' '.join(read.foreign)}" if read.foreign else ""
    return f"[{own} read {read.position} {read.digest:016x}{tail}{foreign}]"


def echo_in(text: str) -> tuple[str, Read] | None:
    """Give the marker that a reply says it answers and what it was shown, or None.

    The last echo counts: a model may quote an earlier one.
    """
    found = list(_ECHO.finditer(text))
    if not found:
        return None
    own, position, digest, tail, foreign = found[-1].groups(default="")
    return own, Read(int(position), int(digest, 16), tuple(tail.split()), tuple(foreign.split()))


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
    ) -> None:
        """Write how the process's open request ended: ``ok``, ``fail`` or ``info``."""
        event: dict[str, Any] = {"type": type, "process": process, "time_ns": time_ns}
        if read is not None:
            event["read"] = {
                "position": read.position,
                "digest": f"{read.digest:016x}",
                "tail": list(read.tail),
                "foreign": list(read.foreign),
            }
        if markers is not None:
            event["markers"] = list(markers)
        if error:
            event["error"] = error
        self._write(event)

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


def read_operations(lines: Iterable[str]) -> Iterator[Operation]:
    """Give the operations of a ``history.jsonl`` in the order of their completions.

    Those that never completed come last, as ``info``.

    Raises:
        InvalidRecord: a line is not an event, completes nothing, or invokes twice; names the line.
    """
    open_by_process: dict[str, Operation] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        event = _event(line, number)
        kind, process, time_ns = event["type"], event["process"], event["time_ns"]
        if process == NEMESIS:
            yield Operation(
                _NOBODY,
                event.get("f", ""),
                NEMESIS,
                "info",
                time_ns,
                time_ns,
                error=event.get("error", ""),
            )
        elif kind == "invoke":
            if process in open_by_process:
                raise InvalidRecord(
                    f"process {process!r} invokes again before its last one ended", line=number
                )
            open_by_process[process] = _invoked(event, number)
        else:
            begun = open_by_process.pop(process, None)
            if begun is None:
                raise InvalidRecord(
                    f"process {process!r} completes what it never invoked", line=number
                )
            if time_ns < begun.invoke_ns:
                raise InvalidRecord(
                    f"process {process!r} completes before it invoked: "
                    "one monotonic clock is needed",
                    line=number,
                )
            yield begun._replace(
                type=kind,
                complete_ns=time_ns,
                read=_read(event.get("read"), number),
                markers=_markers(event.get("markers"), number),
                error=event.get("error", ""),
            )
    yield from open_by_process.values()


def _event(line: str, number: int) -> dict[str, Any]:
    try:
        event = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise InvalidRecord(f"not JSON: {error}", line=number) from None
    if not isinstance(event, dict):
        raise InvalidRecord("an event is a JSON object", line=number)
    for name, kind in (("type", str), ("process", str), ("time_ns", int)):
        if not isinstance(event.get(name), kind):
            raise InvalidRecord(f"an event needs {name} ({kind.__name__})", line=number)
    if event["type"] != "invoke" and event["type"] not in _COMPLETIONS:
        raise InvalidRecord(
            f"type {event['type']!r} is none of invoke, ok, fail, info", line=number
        )
    for name in ("f", "marker", "turn_id", "error"):
        if not isinstance(event.get(name, ""), str):
            raise InvalidRecord(f"{name} is text, not {event[name]!r:.60}", line=number)
    return event


def _invoked(event: Mapping[str, Any], number: int) -> Operation:
    try:
        key = SessionKey.from_json(event)
    except InvalidKey as error:
        raise InvalidRecord(str(error), line=number) from None
    f = event.get("f", "turn")
    marker = event.get("marker", "")
    if f == "turn" and not marker:
        raise InvalidRecord("a turn needs its marker", line=number)
    return Operation(
        key,
        f,
        event["process"],
        "info",
        event["time_ns"],
        math.inf,
        marker,
        event.get("turn_id", ""),
    )


def _markers(given: Any, number: int) -> tuple[str, ...] | None:
    if given is None:
        return None
    if not isinstance(given, list) or not all(isinstance(marker, str) for marker in given):
        raise InvalidRecord(f"markers is a list of texts, not {given!r:.60}", line=number)
    return tuple(given)


def _read(fields: Any, number: int) -> Read | None:
    if fields is None:
        return None
    try:
        return Read(
            int(fields["position"]),
            int(fields["digest"], 16),
            tuple(fields.get("tail", ())),
            tuple(fields.get("foreign", ())),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise InvalidRecord(
            f"read needs position and a hexadecimal digest: {error!r}", line=number
        ) from None
