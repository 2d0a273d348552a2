"""One turn as its *client* saw it: the history, which is the judge's only evidence for safety.

A client writes one ``invoke`` line before a request leaves, and one completion after the answer:

    ok      acknowledged: the turn is in the session, exactly once
    fail    it *definitely* did not happen (refused before acceptance, or rolled back)
    info    unknown (time-out, 5xx, reset, cut stream, cancel): zero times or once, at any time

so a client that dies leaves indeterminate operations by itself. A process does one thing at a time:
its completion belongs to its last invoke. The process ``nemesis`` records faults (``f`` names the
fault: ``kill``, ``pause``, ...; its type is ``info``).

The last acts of a run are its probe: ``quiet`` (a fault of the nemesis that says all faults are
over), then one turn and one authoritative read a session.

*Markers.* Each prompt carries a unique word. The markers that a backend shows its model are what it
believes the session to be. ``Read`` is what one turn was shown: the markers of its own session that
came before it, and the markers of other sessions that should not have been there.

*Declarations.* A service may remove or move turns if it says so: ``delete``, ``reset``,
``compact``, ``fork`` and ``edit`` are operations too, and the judge checks what they declare.

This module must never know a rule of the judge. The format: ``docs/history-format.md``.

Source: Jepsen's histories and Elle's list-append (Kingsbury, Alvaro: https://arxiv.org/abs/2003.10554).
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Mapping
from hashlib import blake2b
from pathlib import Path
from typing import Any, NamedTuple

from kode_lab.history.digest import digest_of, hash_of
from kode_lab.key import SessionKey

__all__ = [
    "CRASHES",
    "DECLARATIONS",
    "EFFECT_FIELDS",
    "HEALS",
    "NEMESIS",
    "NO_DETAILS",
    "QUIET",
    "TAIL_LIMIT",
    "Details",
    "Effect",
    "HistoryWriter",
    "ModelCalls",
    "Operation",
    "Read",
    "completion_event",
    "digest_of",
    "echo_in",
    "echo_of",
    "hash_of",
    "invoke_event",
    "marker_of",
    "markers_in",
    "read_of",
    "without_echoes",
]

NEMESIS = "nemesis"
# What ends a fault, by what begins it; a name that stands nowhere here is a fault at one moment.
HEALS = {"kill": "restart", "pause": "resume", "partition": "heal", "configure": "configured"}
CRASHES = ("kill", "power-cut")
QUIET = "quiet"
# What a service may declare that it does to a session, beside turns; an ``edit`` is a turn.
DECLARATIONS = ("delete", "reset", "compact", "fork")
_NO_KEY = SessionKey("", "", "")
# How many markers a read spells out; the digest covers the rest (full prefixes would be quadratic).
TAIL_LIMIT = 8
_MARKER = re.compile(r"#m[0-9a-f]{10}-[0-9a-f]{6,}")
_ECHO = re.compile(
    rf"\[({_MARKER.pattern}) read ([0-9]+) ([0-9a-f]{{16}})"
    rf"(?: tail((?: {_MARKER.pattern})+))?(?: foreign((?: {_MARKER.pattern})+))?"
    rf"(?: half((?: {_MARKER.pattern})+))?(?: after((?: {_MARKER.pattern})+))?\]"
)


class Read(NamedTuple):
    """What one turn was shown of its session.

    Attributes:
        position: how many markers of its own session came before its own.
        digest: 64-bit order-sensitive digest of these markers (``digest_of``); None if not told.
        tail: the last of them, at most ``TAIL_LIMIT``, in order: for witnesses.
        foreign: markers of other sessions that it was shown, in order.
        half: markers of earlier turns of which it was shown the prompt without a final reply.
        after: markers of its own session that it was shown after its own prompt.
        is_suffix: the service declares that it shows only the last turns; ``position`` and
            ``digest`` are then of what was shown.
        markers: all that it was shown, in order, as its client wrote it; None if only the numbers
            above were written. The judge makes these from it, once it knows whose each marker is.
    """

    position: int
    digest: int | None
    tail: tuple[str, ...] = ()
    foreign: tuple[str, ...] = ()
    half: tuple[str, ...] = ()
    after: tuple[str, ...] = ()
    is_suffix: bool = False
    markers: tuple[str, ...] | None = None


class Effect(NamedTuple):
    """What a tool did to the world, as the world tells it.

    Attributes:
        id: the name that the world gave it (a schedule's id): one id, one effect.
        name: which of the turn's effects it is (``create_schedule``, ``create_schedule/2``).
        marker: the turn that asked for it, or "" when that cannot be seen.
        user_id: the user the tool ran for.
        session_id: for which of the user's sessions, or "" when the world does not know.
    """

    id: str
    name: str = ""
    marker: str = ""
    user_id: str = ""
    session_id: str = ""


class ModelCalls(NamedTuple):
    """What the model's side recorded of one turn.

    Attributes:
        calls: (start, end) of each model call of the turn, in nanoseconds of the history's clock.
        stop_reason: why the model ended its last reply, or "".
        configs: the version of the agent's configuration in each call.
        tool_results: for each tool result that the model was given, the id of the call that it was
            given as the answer to, and the id of the call that it really answers.
    """

    calls: tuple[tuple[int, int], ...] = ()
    stop_reason: str = ""
    configs: tuple[str, ...] = ()
    tool_results: tuple[tuple[str, str], ...] = ()


class Details(NamedTuple):
    """What few operations tell.

    Attributes:
        upto: ``compact`` and ``fork``: the last marker that is replaced, or taken over.
        source: ``fork``: the session that was forked.
        replaces: an edit: the marker of the turn that this turn replaces, with all that follows it.
        merged: the markers of all prompts that this turn's reply answers together, in order.
        into: the marker of the running turn to which this prompt was given (steering).
        streamed: the markers in the text that the client received.
        tools: the names of the tool calls that the client was told of, each with one effect.
        stop_reason: why the reply ended, as the client was told.
        is_rolled_back: the service declares that it undid this turn.
        model: what the model's side recorded, or None.
    """

    upto: str = ""
    source: SessionKey | None = None
    replaces: str = ""
    merged: tuple[str, ...] = ()
    into: str = ""
    streamed: tuple[str, ...] = ()
    tools: tuple[str, ...] | None = None
    stop_reason: str = ""
    is_rolled_back: bool = False
    model: ModelCalls | None = None


NO_DETAILS = Details()


class Operation(NamedTuple):
    """One turn, one authoritative read, one declaration, or one fault, from invoke to completion.

    Attributes:
        f: ``turn``; ``read`` (``markers`` is then the session as the backend tells it);
            ``effects`` (all that tools did for the user); one of ``DECLARATIONS``; for the process
            ``nemesis`` the name of the fault.
        type: ``ok``, ``fail`` or ``info``.
        invoke_ns: monotonic nanoseconds, before sending.
        complete_ns: monotonic nanoseconds, after receiving; infinity when nothing ever came.
        marker: the unique word of the turn's prompt ("" for reads and faults).
        turn_id: the same for every attempt at one turn.
        read: what the turn was shown, or None when it was not observed.
        markers: the session's list, for an ``ok`` read.
        error: why it is not ``ok``.
        answered: the marker of the prompt that the reply says it answers, or "".
        config: the version of the agent's configuration that the turn ran with, or "".
        effects: what tools did, for this turn or (``f`` is ``effects``) at all.
        is_suffix: ``markers`` is declared to be only the end of the session's list.
        line: the number of the line that began it, or 0.
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
    is_suffix: bool = False
    details: Details = NO_DETAILS
    line: int = 0


def marker_of(key: SessionKey, number: int, *, seed: int = 0) -> str:
    """Return the marker of a session's ``number``-th prompt: unique, and readable as its session's.

    The first part is the same for all markers of a session, so two markers show whether they belong
    together.
    """
    tag = blake2b(f"{seed}\0{key.lock_name}\0{key.agent_id}".encode(), digest_size=5).hexdigest()
    return f"#m{tag}-{number:06x}"


def markers_in(text: str) -> list[str]:
    """Return the markers that a text shows, in order."""
    return _MARKER.findall(text)


def read_of(own: str, shown: Iterable[str]) -> Read:
    """Return what a turn with the marker ``own`` saw, from all markers it was shown, in order."""
    tag = own.partition("-")[0]
    before: list[str] = []
    after: list[str] = []
    foreign: list[str] = []
    into = before
    for marker in shown:
        if marker == own:
            into = after
        elif marker.partition("-")[0] == tag:
            into.append(marker)
        else:
            foreign.append(marker)
    tail = tuple(before[-TAIL_LIMIT:])
    return Read(len(before), digest_of(before), tail, tuple(foreign), (), tuple(after))


def echo_of(own: str, read: Read) -> str:
    """Return the line by which a reply tells which prompt it answers and what its model was shown.

    It is ``[own read position digest tail ... foreign ... half ... after ...]``; empty parts are
    left out.
    """
    lists = (
        ("tail", read.tail),
        ("foreign", read.foreign),
        ("half", read.half),
        ("after", read.after),
    )
    parts = "".join(f" {name} {' '.join(markers)}" for name, markers in lists if markers)
    return f"[{own} read {read.position} {read.digest or 0:016x}{parts}]"


def echo_in(text: str) -> tuple[str, Read] | None:
    """Return the marker that a reply says it answers and what it was shown, or None.

    The last echo counts: a model may quote an earlier one. Of several model calls of one turn, the
    first tells what the turn was shown; the later ones may have seen more.
    """
    found = list(_ECHO.finditer(text))
    if not found:
        return None
    own, position, digest, *lists = found[-1].groups(default="")
    tail, foreign, half, after = (tuple(part.split()) for part in lists)
    return own, Read(int(position), int(digest, 16), tail, foreign, half, after)


def without_echoes(text: str) -> str:
    """Return a text without the echoes that a simulated model's replies carry."""
    return _ECHO.sub("", text) if "[#m" in text else text


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
        details: Details = NO_DETAILS,
    ) -> None:
        """Write that a request is about to leave."""
        begun = Operation(
            key, f, process, "info", time_ns, time_ns, marker, turn_id, details=details
        )
        self._write(invoke_event(begun))

    def complete(
        self,
        process: str,
        time_ns: int,
        type: str,  # noqa: A002 - Jepsen's word for it
        *,
        markers: Iterable[str] | None = None,
        effects: Iterable[Effect] | None = None,
        **facts: Any,
    ) -> None:
        """Write how the process's open request ended: ``ok``, ``fail`` or ``info``.

        Args:
            facts: other fields of the ``Operation``.
        """
        facts["markers"] = None if markers is None else tuple(markers)
        facts["effects"] = None if effects is None else tuple(effects)
        ended = Operation(_NO_KEY, "", process, type, time_ns, time_ns, **facts)
        self._write(completion_event(ended))

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


EFFECT_FIELDS = ("id", "name", "marker", "userId", "sessionId")


def invoke_event(operation: Operation) -> dict[str, Any]:
    """Return the event that an operation begins with, as it is written."""
    details = operation.details
    event: dict[str, Any] = {
        "type": "invoke",
        "f": "edit" if details.replaces else operation.f,
        "process": operation.process,
        "time_ns": operation.invoke_ns,
        **operation.key.to_json(),
    }
    if details.source is not None:
        event["from"] = details.source.to_json()
    facts = {"marker": operation.marker, "turn_id": operation.turn_id}
    facts |= {"upto": details.upto, "replaces": details.replaces}
    return event | {name: fact for name, fact in facts.items() if fact}


def completion_event(operation: Operation) -> dict[str, Any]:
    """Return the event that an operation ends with, as it is written."""
    event: dict[str, Any] = {
        "type": operation.type, "process": operation.process, "time_ns": operation.complete_ns,
    }  # fmt: skip
    if operation.read is not None:
        event["read"] = _read_fields(operation.read)
    if operation.markers is not None:
        event["markers"] = list(operation.markers)
    if operation.effects is not None:
        event["effects"] = [_effect_fields(effect) for effect in operation.effects]
    details = operation.details
    facts: dict[str, Any] = {
        "error": operation.error, "answered": operation.answered, "config": operation.config,
        "suffix": operation.is_suffix,
    }  # fmt: skip
    if details is not NO_DETAILS:
        if details.tools is not None:
            event["tools"] = list(details.tools)
        facts |= {"merged": details.merged, "into": details.into, "streamed": details.streamed}
        facts |= {"stop_reason": details.stop_reason, "rolled_back": details.is_rolled_back}
        model = {} if details.model is None else details.model._asdict()
        facts["model"] = {name: value for name, value in model.items() if value}
    return event | {name: fact for name, fact in facts.items() if fact}


def _read_fields(read: Read) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    if read.markers is not None:
        fields["markers"] = list(read.markers)
    else:
        fields["position"] = read.position
        if read.digest is not None:
            fields["digest"] = f"{read.digest:016x}"
        lists = (("tail", read.tail), ("foreign", read.foreign), ("after", read.after))
        fields |= {name: list(shown) for name, shown in lists if shown}
    if read.half:
        fields["half"] = list(read.half)
    return fields | {"suffix": True} if read.is_suffix else fields


def _effect_fields(effect: Effect) -> dict[str, str]:
    return {name: value for name, value in zip(EFFECT_FIELDS, effect, strict=True) if value}
