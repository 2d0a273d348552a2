"""Histories in EDN, as Jepsen writes them: read so that public ones can be judged, and written.

Two kinds are understood. Calls on registers and key-value stores (``:f`` is ``:read``, ``:write``
or ``:cas``; with independent keys the value is ``[key value]``) become ``Call``s for the search.
List-append transactions that read one list and append to it become turns, as a turn is just that:

    {:type :ok, :f :txn, :value [[:r "ada:s" ["a"]] [:append "ada:s" "b"]], :process 1, :time 7}

Keywords are read as words without their colon. Where a history has no ``:time``, its ``:index`` or
its order of lines stands for it.

Source: https://github.com/edn-format/edn and Jepsen's history format (jepsen.history).
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from kode_lab.check.search import Call
from kode_lab.errors import InvalidRecord
from kode_lab.key import SessionKey
from kode_lab.operation import NEMESIS, TAIL_LIMIT, Operation, Read, digest_of

__all__ = ["calls_of", "edn_of", "operations_of", "read_edn", "write_edn"]

# Deeper than any history; Python's own stack is the limit that this stays below.
DEPTH_LIMIT = 100
_TOKEN = re.compile(
    r"[\s,]+|;[^\n]*"
    r'|(?P<string>"(?:[^"\\]|\\.)*")'
    r"|(?P<open>#\{|[\[({])|(?P<close>[\])}])"
    r"|(?P<discard>\#_)|(?P<tag>\#[A-Za-z][\w.*+!?$%&=<>/-]*)"
    r"|(?P<char>\\(?:newline|return|space|tab|u[0-9a-fA-F]{4}|\S))"
    r"|(?P<atom>[^\s,;\"\[\](){}\\]+)",
    re.DOTALL,
)
_CLOSES = {"[": "]", "(": ")", "{": "}", "#{": "}"}
_CHARS = {"newline": "\n", "return": "\r", "space": " ", "tab": "\t"}
_WORDS: Mapping[str, Any] = {"nil": None, "true": True, "false": False, "##Inf": math.inf}
_INTEGER, _FLOAT = re.compile(r"[+-]?\d+N?"), re.compile(r"[+-]?\d+(\.\d*)?([eE][+-]?\d+)?M?")


class _Token(NamedTuple):
    kind: str
    text: str
    line: int


def read_edn(text: str) -> list[Any]:
    """Give the values that a text holds: maps, vectors and lists, sets, words, numbers, strings.

    Raises:
        InvalidRecord: it is not EDN; names the line.
    """
    tokens = _tokens(text)
    values: list[Any] = []
    for token in tokens:
        if token.kind == "discard":
            _value(_next(tokens, token), tokens, 0)
        else:
            values.append(_value(token, tokens, 0))
    return values


def write_edn(value: Any) -> str:
    """Give a value as EDN: words (``Keyword``) with a colon, other text in quotes."""
    if value is None or isinstance(value, bool):
        return {None: "nil", True: "true", False: "false"}[value]
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)
    if isinstance(value, Mapping):
        # Keys of history maps are keywords, always.
        return "{" + ", ".join(f":{k} {write_edn(v)}" for k, v in value.items()) + "}"
    if isinstance(value, Keyword):
        return f":{value.name}"
    if isinstance(value, tuple | list):
        return "[" + " ".join(map(write_edn, value)) + "]"
    return repr(value)


class Keyword(NamedTuple):
    """A word that is written with a colon."""

    name: str


def calls_of(text: str) -> list[Call]:
    """Give the calls of a register's or a key-value store's history.

    Calls of the nemesis are left out. A completion belongs to the last invoke of its process.

    Raises:
        InvalidRecord: it is not EDN, or no history of calls.
    """
    return [_call(invoke, completion) for invoke, completion in _paired(text, lambda _: None)]


def operations_of(text: str) -> list[Operation]:
    """Give the turns, and faults, of a list-append history whose transactions touch one list.

    Raises:
        InvalidRecord: it is not EDN, or a transaction is neither a read, an append, nor a read and
            an append to the same list.
    """
    faults: list[Operation] = []
    pairs = list(_paired(text, faults.append))
    return [*faults, *(_turn(invoke, completion) for invoke, completion in pairs)]


def edn_of(operations: Iterable[Operation]) -> str:
    """Give turns and reads as a list-append history in EDN, a line an event, in order of time.

    What a turn was shown is written only where it is known whole (its tail holds all of it).
    """
    events: list[tuple[float, int, dict[str, Any]]] = []
    for number, operation in enumerate(operations):
        process: Any = number
        if operation.process == NEMESIS:
            process = Keyword(NEMESIS)
            fault = {"type": Keyword("info"), "f": Keyword(operation.f), "value": None}
            events.append((operation.invoke_ns, 1, fault | {"process": process}))
            continue
        event = {"f": Keyword("txn"), "process": process}
        asked, seen = _transaction(operation)
        invoke = {"type": Keyword("invoke"), **event, "value": asked}
        events.append((operation.invoke_ns, 0, invoke))
        if operation.complete_ns != math.inf:
            value = asked if operation.type == "fail" else seen
            completion = {"type": Keyword(operation.type), **event, "value": value}
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
    if operation.f == "read":
        return [[read, name, None]], [[read, name, list(operation.markers or ())]]
    asked: list[Any] = [[read, name, None], [append, name, operation.marker]]
    shown = operation.read
    if shown is None or shown.position != len(shown.tail):
        return asked, asked
    return asked, [[read, name, list(shown.tail)], asked[1]]


def _tokens(text: str) -> Iterator[_Token]:
    at, line = 0, 1
    while at < len(text):
        found = _TOKEN.match(text, at)
        if found is None:
            raise InvalidRecord(f"not EDN: {text[at : at + 20]!r}", line=line)
        if found.lastgroup is not None:
            yield _Token(found.lastgroup, found[0], line)
        line += found[0].count("\n")
        at = found.end()


def _next(tokens: Iterator[_Token], after: _Token) -> _Token:
    token = next(tokens, None)
    if token is None:
        raise InvalidRecord(f"not EDN: it ends after {after.text:.40}", line=after.line)
    return token


def _value(token: _Token, tokens: Iterator[_Token], depth: int) -> Any:
    if depth > DEPTH_LIMIT:
        raise InvalidRecord(f"nested deeper than DEPTH_LIMIT={DEPTH_LIMIT}", line=token.line)
    kind, text, line = token
    if kind == "open":
        return _collection(token, tokens, depth)
    if kind == "tag":
        # #jepsen.history.Op{...} and the like: the value matters, its class does not.
        return _value(_next(tokens, token), tokens, depth + 1)
    if kind == "string":
        try:
            return json.loads(text, strict=False)
        except ValueError:
            raise InvalidRecord(f"not EDN: string {text:.40}", line=line) from None
    if kind == "char":
        name = text[1:]
        return (
            chr(int(name[1:], 16)) if len(name) == 5 and name[0] == "u" else _CHARS.get(name, name)
        )
    if kind != "atom":
        raise InvalidRecord(f"not EDN: unexpected {text}", line=line)
    return _atom(text)


def _atom(text: str) -> Any:
    if text in _WORDS:
        return _WORDS[text]
    if _INTEGER.fullmatch(text):
        return int(text.rstrip("N"))
    if _FLOAT.fullmatch(text):
        return float(text.rstrip("M"))
    return text.removeprefix(":")


def _collection(token: _Token, tokens: Iterator[_Token], depth: int) -> Any:
    items: list[Any] = []
    while (inner := _next(tokens, token)).kind != "close":
        if inner.kind == "discard":
            _value(_next(tokens, inner), tokens, depth + 1)
        else:
            items.append(_value(inner, tokens, depth + 1))
    if inner.text != _CLOSES[token.text]:
        raise InvalidRecord(f"not EDN: {token.text} closed by {inner.text}", line=inner.line)
    if token.text != "{":
        return tuple(items)
    if len(items) % 2:
        raise InvalidRecord("not EDN: a map with a key without a value", line=inner.line)
    try:
        return dict(zip(items[::2], items[1::2], strict=True))
    except TypeError:
        raise InvalidRecord("a key of a map is itself a map", line=inner.line) from None


_Event = Mapping[str, Any]


def _paired(
    text: str, fault: Callable[[Operation], None]
) -> Iterator[tuple[_Event, _Event | None]]:
    """Give each invoke with its completion, or None where none came."""
    values = read_edn(text)
    if len(values) == 1 and isinstance(values[0], tuple):
        values = list(values[0])
    open_by_process: dict[Hashable, _Event] = {}
    for number, event in enumerate(values):
        if not isinstance(event, dict) or not {"type", "process"} <= event.keys():
            raise InvalidRecord(f"value {number + 1} is no event: it needs :type and :process")
        timed = {**event, "time": event.get("time", event.get("index", number))}
        kind, process = event["type"], event["process"]
        if not isinstance(timed["time"], int):
            raise InvalidRecord(f"event {number + 1}: :time is no whole number")
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


def _call(invoke: _Event, completion: _Event | None) -> Call:
    kind = "info" if completion is None else completion["type"]
    ended = math.inf if completion is None or kind == "info" else completion["time"]
    value = invoke.get("value")
    if completion is not None and kind == "ok" and completion.get("value") is not None:
        value = completion["value"]
    key: Hashable = None
    f = str(invoke.get("f"))
    # ``[key value]`` of independent keys; a cas's own value is a pair as well.
    asked = invoke.get("value")
    if isinstance(asked, tuple) and len(asked) == 2 and (f != "cas" or isinstance(asked[1], tuple)):
        if not isinstance(value, tuple) or len(value) != 2:
            raise InvalidRecord(
                f"process {invoke['process']} answers {value!r:.60} without its key"
            )
        key, value = value
    return Call(invoke["process"], f, kind, invoke["time"], ended, value, key)


def _turn(invoke: _Event, completion: _Event | None) -> Operation:
    kind = "info" if completion is None else completion["type"]
    ended = math.inf if completion is None else completion["time"]
    source = invoke if completion is None or kind == "fail" else completion
    steps: Any = source.get("value") or invoke.get("value") or ()
    steps = steps if isinstance(steps, tuple) else (steps,)
    shape = [step[0] for step in steps if isinstance(step, tuple) and len(step) == 3]
    names = {step[1] for step in steps} if len(shape) == len(steps) else set()
    if shape not in (["r"], ["append"], ["r", "append"]) or len(names) != 1:
        raise InvalidRecord(
            f"process {invoke['process']}: a turn is [[:r list nil] [:append list element]] on one "
            f"list, not {steps!r:.80}"
        )
    key = _list_key(names.pop())
    seen = steps[0][2] if shape[0] == "r" else None
    shown = None if seen is None else tuple(map(str, seen))
    process, begun = str(invoke["process"]), invoke["time"]
    if shape == ["r"]:
        markers = (shown or ()) if kind == "ok" else None
        return Operation(key, "read", process, kind, begun, ended, markers=markers)
    read = None
    if shown is not None:
        read = Read(len(shown), digest_of(shown), shown[-TAIL_LIMIT:])
    marker = str(steps[-1][2])
    return Operation(key, "turn", process, kind, begun, ended, marker, "", read)


def _list_key(name: Any) -> SessionKey:
    """Give the session of a list: what ``edn_of`` wrote, or any name as a session of nobody."""
    try:
        user, session, agent = json.loads(name)
        return SessionKey.of(user, agent, session)
    except (TypeError, ValueError):
        return SessionKey("list", str(name), "elle")
