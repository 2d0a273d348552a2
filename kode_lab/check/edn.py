"""Histories in EDN, as Jepsen writes them: read so that public ones can be judged, and written.

Two kinds are understood. Calls on registers and key-value stores (``:f`` is ``:read``, ``:write``
or ``:cas``; with independent keys the value is ``[key value]``) become ``Call``s for the search.
List-append transactions that read one list and append to it become turns, as a turn is just that:

    {:type :ok, :f :txn, :value [[:r "ada:s" ["a"]] [:append "ada:s" "b"]], :process 1, :time 7}

What a transaction has no place for (turn ids, whose prompt a reply answers, configurations,
halves, strangers, effects, a list of which only the end is known) stands beside its value, under
names that other programs pass over. Elements are unique in their list only, as Elle has it; so a
marker is read as ``list/element``, unless the list's name is one that was written here.

Where a history has no ``:time``, its ``:index`` or its order of lines stands for it.

Source: Jepsen's history format (jepsen.history).
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from typing import Any

from kode_lab.check.edn_text import Keyword, read_edn, write_edn
from kode_lab.check.search import Call
from kode_lab.errors import InvalidRecord
from kode_lab.history.operation import NEMESIS, TAIL_LIMIT, Effect, Operation, Read, digest_of
from kode_lab.key import SessionKey

__all__ = ["calls_of", "edn_of", "operations_of"]


def calls_of(text: str) -> list[Call]:
    """Return the calls of a register's or a key-value store's history.

    Calls of the nemesis are left out. A completion belongs to the last invoke of its process.

    Raises:
        InvalidRecord: it is not EDN, or no history of calls.
    """
    pairs = list(_paired(text, lambda _: None))
    # Without its key, a write's value may be a pair too, but a read asks for nothing.
    is_keyed = all(_is_keyed(invoke) for invoke, _ in pairs)
    return [_call(invoke, completion, is_keyed=is_keyed) for invoke, completion in pairs]


def operations_of(text: str) -> list[Operation]:
    """Return the turns, and faults, of a list-append history whose transactions touch one list.

    Raises:
        InvalidRecord: it is not EDN, or a transaction is neither a read, an append, nor a read and
            an append to the same list.
    """
    faults: list[Operation] = []
    pairs = list(_paired(text, faults.append))
    return [*faults, *(_turn(invoke, completion) for invoke, completion in pairs)]


def edn_of(operations: Iterable[Operation]) -> str:
    """Return turns and reads as a list-append history in EDN, a line an event, in order of time."""
    events: list[tuple[float, int, dict[str, Any]]] = []
    for number, operation in enumerate(operations):
        process: Any = number
        if operation.process == NEMESIS:
            process = Keyword(NEMESIS)
            fault = {"type": Keyword("info"), "f": Keyword(operation.f), "value": None}
            events.append((operation.invoke_ns, 1, fault | {"process": process}))
            continue
        event = {"f": Keyword("txn"), "process": process}
        if operation.turn_id:
            event["turn-id"] = operation.turn_id
        asked, seen = _transaction(operation)
        invoke = {"type": Keyword("invoke"), **event, "value": asked}
        events.append((operation.invoke_ns, 0, invoke))
        if operation.complete_ns != math.inf:
            value = asked if operation.type == "fail" else seen
            completion = {"type": Keyword(operation.type), **event, "value": value}
            completion |= _beside(operation)
            events.append((operation.complete_ns, 1, completion))
    # At one moment invokes come first: intervals are closed.
    events.sort(key=lambda event: event[:2])
    lines = [
        write_edn({**event, "time": time_ns, "index": index})
        for index, (time_ns, _, event) in enumerate(events)
    ]
    return "\n".join(lines) + "\n" if lines else ""


def _transaction(operation: Operation) -> tuple[list[Any], list[Any]]:
    name = json.dumps(operation.key[:], ensure_ascii=False)
    read, append = Keyword("r"), Keyword("append")
    if operation.f == "effects":
        return [[Keyword("effects"), name, None]], [[Keyword("effects"), name, None]]
    if operation.f == "read":
        return [[read, name, None]], [[read, name, list(operation.markers or ())]]
    asked: list[Any] = [[read, name, None], [append, name, operation.marker]]
    shown = operation.read
    if shown is None or shown.position != len(shown.tail):
        return asked, asked
    return asked, [[read, name, list(shown.tail)], asked[1]]


def _beside(operation: Operation) -> dict[str, Any]:
    """Return what a transaction has no place for, where there is any."""
    read = operation.read or Read(0, 0)
    facts: dict[str, Any] = {
        "answered": operation.answered,
        "config": operation.config,
        "foreign": read.foreign,
        "half": read.half,
    }
    if read.position != len(read.tail):
        facts["seen"] = (read.position, f"{read.digest:x}", read.tail)
    facts = {name: fact for name, fact in facts.items() if fact}
    if operation.effects is not None:
        facts["effects"] = [tuple(effect) for effect in operation.effects]
    return facts


_Event = Mapping[str, Any]
_SHAPES = (["r"], ["append"], ["r", "append"], ["effects"])
# Lists of others are sessions of nobody.
_ELLE = SessionKey("list", "", "elle")


def _paired(
    text: str, fault: Callable[[Operation], None]
) -> Iterator[tuple[_Event, _Event | None]]:
    """Return each invoke with its completion, or None where none came."""
    values = read_edn(text)
    if len(values) == 1 and isinstance(values[0], tuple):
        values = list(values[0])
    open_by_process: dict[Hashable, _Event] = {}
    for number, event in enumerate(values):
        timed = _timed(event, number)
        kind, process = timed["type"], timed["process"]
        if process == NEMESIS:
            at = timed["time"]
            name = str(event.get("f"))
            nobody = SessionKey("", "", "")
            fault(Operation(nobody, name, NEMESIS, "info", at, at))
        elif kind == "invoke":
            if process in open_by_process:
                raise InvalidRecord(f"event {number + 1}: process {process} invokes twice")
            open_by_process[process] = timed
        elif kind in ("ok", "fail", "info"):
            if process not in open_by_process:
                raise InvalidRecord(f"event {number + 1}: process {process} never invoked")
            yield open_by_process.pop(process), timed
        else:
            raise InvalidRecord(f"event {number + 1}: :type {kind} is unknown")
    yield from ((invoke, None) for invoke in open_by_process.values())


def _timed(event: Any, number: int) -> _Event:
    if not isinstance(event, dict) or not {"type", "process"} <= event.keys():
        raise InvalidRecord(f"value {number + 1} is no event: it needs :type and :process")
    timed = {**event, "time": event.get("time", event.get("index", number))}
    if not isinstance(timed["time"], int):
        raise InvalidRecord(f"event {number + 1}: :time is no whole number")
    if not _is_plain(event["process"]):
        raise InvalidRecord(f"event {number + 1}: :process {event['process']!r:.40} is no name")
    return timed


def _is_plain(value: Any) -> bool:
    """Whether it can be compared and remembered: words, numbers, texts, and lists of these."""
    return all(map(_is_plain, value)) if isinstance(value, tuple) else not isinstance(value, dict)


def _is_keyed(invoke: _Event) -> bool:
    """Whether it is a call on one of several objects: ``[key value]``, a cas's own being a pair."""
    asked = invoke.get("value")
    return (
        isinstance(asked, tuple)
        and len(asked) == 2
        and (invoke.get("f") != "cas" or isinstance(asked[1], tuple))
    )


def _call(invoke: _Event, completion: _Event | None, *, is_keyed: bool) -> Call:
    kind = "info" if completion is None else completion["type"]
    ended = math.inf if completion is None or kind == "info" else completion["time"]
    value = invoke.get("value")
    if completion is not None and kind == "ok" and completion.get("value") is not None:
        value = completion["value"]
    key: Hashable = None
    f = str(invoke.get("f"))
    if is_keyed:
        if not isinstance(value, tuple) or len(value) != 2 or value[0] != invoke["value"][0]:
            raise InvalidRecord(
                f"process {invoke['process']} answers {value!r:.60} without its key"
            )
        key, value = value
    if not _is_plain((key, value)) or (f == "cas" and not _is_pair(value)):
        raise InvalidRecord(f"process {invoke['process']}: no value for {f}: {value!r:.60}")
    return Call(invoke["process"], f, kind, invoke["time"], ended, value, key)


def _is_pair(value: Any) -> bool:
    return isinstance(value, tuple) and len(value) == 2


def _turn(invoke: _Event, completion: _Event | None) -> Operation:
    kind = "info" if completion is None else completion["type"]
    ended = math.inf if completion is None else completion["time"]
    source = invoke if completion is None or kind == "fail" else completion
    steps: Any = source.get("value") or invoke.get("value") or ()
    steps = steps if isinstance(steps, tuple) else (steps,)
    shape = [step[0] for step in steps if isinstance(step, tuple) and len(step) == 3]
    is_turn = len(shape) == len(steps) and shape in _SHAPES and _is_plain(steps)
    seen = steps[0][2] if is_turn and shape[0] == "r" else None
    if not is_turn or len({step[1] for step in steps}) != 1 or not isinstance(seen, tuple | None):
        raise InvalidRecord(
            f"process {invoke['process']}: a turn is [[:r list nil] [:append list element]] on one "
            f"list, not {steps!r:.80}"
        )
    name = steps[0][1]
    key = _list_key(name)
    is_ours = key.agent_id != _ELLE.agent_id

    def marker_of(element: Any) -> str:
        return str(element) if is_ours else f"{name}/{element!r}"

    told = {} if completion is None else completion
    shown = None if seen is None else tuple(map(marker_of, seen))
    own = Operation(
        key,
        {"r": "read", "effects": "effects"}.get(shape[-1], "turn"),
        str(invoke["process"]),
        kind,
        invoke["time"],
        ended,
        turn_id=_text(invoke, "turn-id"),
        answered=_text(told, "answered"),
        config=_text(told, "config"),
        effects=_effects(told),
    )
    read = _read(told, shown)
    if own.f == "turn":
        return own._replace(marker=marker_of(steps[-1][2]), read=read)
    markers = (shown or ()) if kind == "ok" and own.f == "read" else None
    if read is not None:
        read = Read(0, 0, (), read.foreign, read.half) if read.foreign or read.half else None
    return own._replace(markers=markers, read=read)


def _text(event: _Event, name: str) -> str:
    told = event.get(name, "")
    if not isinstance(told, str):
        raise InvalidRecord(f"process {event['process']}: :{name} is text, not {told!r:.60}")
    return told


def _texts(event: _Event, name: str) -> tuple[str, ...]:
    told = event.get(name, ())
    if not isinstance(told, tuple) or not all(isinstance(one, str) for one in told):
        raise InvalidRecord(f"process {event['process']}: :{name} is texts, not {told!r:.60}")
    return told


def _read(told: _Event, shown: tuple[str, ...] | None) -> Read | None:
    """Return what a turn was shown: as its transaction has it, or as it stands beside that."""
    foreign, half = _texts(told, "foreign"), _texts(told, "half")
    if "seen" in told:
        try:
            position, digest, tail = told["seen"]
            return Read(position + 0, int(digest, 16), tuple(map(str, tail)), foreign, half)
        except (TypeError, ValueError):
            raise InvalidRecord(
                f"process {told['process']}: :seen is [position digest tail], "
                f"not {told['seen']!r:.60}"
            ) from None
    if shown is None:
        return Read(0, 0, (), foreign, half) if foreign or half else None
    return Read(len(shown), digest_of(shown), shown[-TAIL_LIMIT:], foreign, half)


def _effects(told: _Event) -> tuple[Effect, ...] | None:
    effects = told.get("effects")
    if effects is None:
        return None
    try:
        return tuple(Effect(*map(str, effect)) for effect in effects)
    except TypeError:
        raise InvalidRecord(
            f"process {told['process']}: :effects are lists of texts, not {effects!r:.60}"
        ) from None


def _list_key(name: Any) -> SessionKey:
    """Return the session of a list: what ``edn_of`` wrote, or any name as a session of nobody."""
    try:
        user, session, agent = json.loads(name)
        return SessionKey.of(user, agent, session)
    except (TypeError, ValueError):
        return _ELLE._replace(session_id=str(name))
