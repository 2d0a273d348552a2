"""Histories in EDN, as Jepsen writes them: read and judged, and written.

Three kinds of history are understood:

- Transactions that read one list and append to it are *turns*, as a turn is just that:

      {:type :ok, :f :txn, :value [[:r "ada:s" ["a"]] [:append "ada:s" "b"]], :process 1, :time 7}

- Other list-append transactions (several lists, several micro-operations) are judged by
  ``kode_lab.check.transactions``.
- Calls on registers (``:read :write :cas``), key-value stores (``:get :put :append``) and mutexes
  (``:acquire :release``) are ``Call``s for the search. The object of a call is its ``:key``, or the
  first of a pair ``[key value]``.

Everything else is refused with the reason. Elements are unique in their list only, as Elle has it,
so a marker is read as ``list/element``, unless the list's name is one that was written here. What a
transaction has no place for stands beside its value, as the JSON of ``docs/history-format.md``,
under a name that other programs pass over. Where a history has no ``:time``, its ``:index`` or its
order of lines stands for it. Keywords are read as words without their colon, and tags are passed
over: the value matters, its class does not.

Source: Jepsen's history format (jepsen.history), and https://github.com/edn-format/edn.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Collection, Hashable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from kode_lab.check.judge import check
from kode_lab.check.search import MODELS, Call, Outcome, linearizable
from kode_lab.check.transactions import Transaction, judge_transactions
from kode_lab.check.verdict import Verdict
from kode_lab.errors import InvalidRecord
from kode_lab.history.operation import (
    NEMESIS,
    TAIL_LIMIT,
    Operation,
    Read,
    completion_event,
    digest_of,
    invoke_event,
)
from kode_lab.history.reader import operations_in
from kode_lab.key import SessionKey

__all__ = [
    "Keyword",
    "calls_of",
    "edn_of",
    "operations_of",
    "read_edn",
    "transactions_of",
    "verdict_of",
    "write_edn",
]

_NO_KEY = SessionKey("", "", "")
# Lists that were not written here belong to sessions of this agent.
_ELLE = SessionKey("list", "", "elle")
_Event = Mapping[str, Any]


def verdict_of(
    text: str, guarantees: Collection[str] | None = None, *, overtaking_limit: int | None = None
) -> Verdict | Outcome:
    """Return the verdict on a history in EDN: of turns, of transactions, or of calls.

    Raises:
        InvalidRecord: it is not EDN, or of a kind that this judge does not know; says which.
    """
    faults: list[Operation] = []
    pairs = list(_paired(text, faults.append))
    names = {str(invoke.get("f")) for invoke, _ in pairs}
    if pairs and all(_is_transaction(invoke) for invoke, _ in pairs):
        if all(_is_turn(invoke) for invoke, _ in pairs):
            turns = [*faults, *(_turn(invoke, completion) for invoke, completion in pairs)]
            return check(turns, None, guarantees, overtaking_limit=overtaking_limit)
        return judge_transactions(list(map(_transaction_of, pairs)))
    model = next((model for known, model in MODELS.items() if names <= known), None)
    if model is None and pairs:
        known = "; ".join(f"{m.name}: {', '.join(sorted(names))}" for names, m in MODELS.items())
        raise InvalidRecord(
            f"calls {', '.join(sorted(names))!s:.80} are of no known object. Known are list-append "
            f"transactions, and calls ({known})"
        )
    return linearizable(model or next(iter(MODELS.values())))(_calls(pairs))


def calls_of(text: str) -> list[Call]:
    """Return the calls of a register's, a key-value store's or a mutex's history.

    Calls of the nemesis are left out. A completion belongs to the last invoke of its process.

    Raises:
        InvalidRecord: it is not EDN, or not a history of calls.
    """
    return _calls(list(_paired(text, lambda _: None)))


def operations_of(text: str) -> list[Operation]:
    """Return the turns, and faults, of a list-append history whose transactions touch one list.

    Raises:
        InvalidRecord: it is not EDN, or a transaction is neither a read, an append, nor a read and
            an append to the same list.
    """
    faults: list[Operation] = []
    pairs = list(_paired(text, faults.append))
    return [*faults, *(_turn(invoke, completion) for invoke, completion in pairs)]


def transactions_of(text: str) -> list[Transaction]:
    """Return the transactions of a list-append history.

    Raises:
        InvalidRecord: it is not EDN, or a transaction does something else.
    """
    return [_transaction_of(pair) for pair in _paired(text, lambda _: None)]


def edn_of(operations: Iterable[Operation]) -> str:
    """Return turns and reads as a list-append history in EDN, a line an event, in order of time."""
    events: list[tuple[float, int, dict[str, Any]]] = []
    for number, operation in enumerate(operations):
        if operation.process == NEMESIS:
            fault = {"type": Keyword("info"), "f": Keyword(operation.f), "value": None}
            events.append((operation.invoke_ns, 1, fault | {"process": Keyword(NEMESIS)}))
            continue
        event = {"f": Keyword("txn"), "process": number}
        asked, seen = _written(operation)
        invoke = {"type": Keyword("invoke"), **event, "value": asked}
        if operation.turn_id:
            invoke["turn-id"] = operation.turn_id
        if not _is_plain_turn(operation):
            own = operation._replace(process=str(number))
            told = [invoke_event(own)]
            told += [completion_event(own)] if operation.complete_ns != math.inf else []
            invoke["beside"] = json.dumps(told, ensure_ascii=False)
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


def _written(operation: Operation) -> tuple[list[Any], list[Any]]:
    name = json.dumps(operation.key[:], ensure_ascii=False)
    read, append = Keyword("r"), Keyword("append")
    if operation.f != "turn":
        return [[read, name, None]], [[read, name, list(operation.markers or ())]]
    asked: list[Any] = [[read, name, None], [append, name, operation.marker]]
    shown = operation.read
    if shown is None or shown.position != len(shown.tail):
        return asked, asked
    return asked, [[read, name, list(shown.tail)], asked[1]]


def _is_plain_turn(operation: Operation) -> bool:
    """Whether a transaction says all that an operation says."""
    read = operation.read
    plain = Operation(
        operation.key, operation.f, operation.process, operation.type, operation.invoke_ns,
        operation.complete_ns, operation.marker, operation.turn_id, read,
        operation.markers if operation.f == "read" and operation.type == "ok" else None,
        line=operation.line,
    )  # fmt: skip
    is_told = read is None or read == Read(len(read.tail), digest_of(read.tail), read.tail)
    is_list = operation.f == "read" and operation.markers is not None and read is None
    return operation == plain and (is_list or (operation.f == "turn" and is_told))


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
            fault(Operation(_NO_KEY, str(event.get("f")), NEMESIS, "info", at, at))
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


# ---- calls


def _calls(pairs: Sequence[tuple[_Event, _Event | None]]) -> list[Call]:
    if any("key" in invoke for invoke, _ in pairs):
        return [_call(invoke, completion, is_keyed=False) for invoke, completion in pairs]
    # Without its key, a write's value may be a pair too, but a read asks for nothing.
    is_keyed = all(_is_keyed(invoke) for invoke, _ in pairs)
    return [_call(invoke, completion, is_keyed=is_keyed) for invoke, completion in pairs]


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
    key: Hashable = invoke.get("key")
    f, process = str(invoke.get("f")), invoke["process"]
    if completion is not None and completion.get("key", key) != key:
        raise InvalidRecord(f"process {process} answers for another :key than it asked")
    if is_keyed:
        if not isinstance(value, tuple) or len(value) != 2 or value[0] != invoke["value"][0]:
            raise InvalidRecord(f"process {process} answers {value!r:.60} without its key")
        key, value = value
    is_pair = isinstance(value, tuple) and len(value) == 2
    if not _is_plain((key, value)) or (f == "cas" and not is_pair):
        raise InvalidRecord(f"process {process}: no value for {f}: {value!r:.60}")
    if not any(f in names for names in MODELS):
        known = sorted(name for names in MODELS for name in names)
        raise InvalidRecord(f"process {process}: :f {f:.40} is none of {', '.join(known)}")
    return Call(process, f, kind, invoke["time"], ended, value, key)


# ---- transactions


_STEPS = ("r", "append")


def _is_transaction(invoke: _Event) -> bool:
    value = invoke.get("value")
    return invoke.get("f") in ("txn", "append", "r", "read", None) and (
        isinstance(value, tuple)
        and bool(value)
        and all(isinstance(s, tuple) and len(s) == 3 and isinstance(s[0], str) for s in value)
    )


def _is_turn(invoke: _Event) -> bool:
    steps = invoke["value"]
    names = [step[0] for step in steps]
    return names in (["r"], ["append"], ["r", "append"]) and len({s[1] for s in steps}) == 1


def _transaction_of(pair: tuple[_Event, _Event | None]) -> Transaction:
    invoke, completion = pair
    if not _is_transaction(invoke):
        raise InvalidRecord(f"process {invoke['process']}: {invoke!r:.60} is no transaction")
    kind = "info" if completion is None else completion["type"]
    is_told = completion is not None and kind == "ok" and completion.get("value") is not None
    steps: Any = completion["value"] if is_told and completion is not None else invoke["value"]
    if not _is_transaction({"value": steps}) or not _is_plain(steps):
        raise InvalidRecord(f"process {invoke['process']}: {steps!r:.60} is no transaction")
    for name, _, value in steps:
        if name not in _STEPS:
            raise InvalidRecord(
                f"process {invoke['process']}: a transaction with :{name:.20} cannot be judged: "
                "only :r and :append leave lists that show the order of all writes"
            )
        if name == "r" and not isinstance(value, tuple | None):
            raise InvalidRecord(f"process {invoke['process']}: :r reads a list, not {value!r:.60}")
    ended = math.inf if completion is None or kind != "ok" else completion["time"]
    return Transaction(str(invoke["process"]), kind, invoke["time"], ended, tuple(steps))


def _turn(invoke: _Event, completion: _Event | None) -> Operation:
    if "beside" in invoke:
        return _beside(invoke)
    kind = "info" if completion is None else completion["type"]
    ended = math.inf if completion is None else completion["time"]
    source = invoke if completion is None or kind == "fail" else completion
    steps: Any = source.get("value") or invoke.get("value") or ()
    is_turn = _is_transaction({"value": steps}) and _is_plain(steps) and _is_turn({"value": steps})
    seen = steps[0][2] if is_turn and steps[0][0] == "r" else None
    if not is_turn or not isinstance(seen, tuple | None):
        raise InvalidRecord(
            f"process {invoke['process']}: a turn is [[:r list nil] [:append list element]] on one "
            f"list, not {steps!r:.80}"
        )
    name = steps[0][1]
    key = _list_key(name)
    is_ours = key.agent_id != _ELLE.agent_id

    def marker_of(element: Any) -> str:
        return str(element) if is_ours else f"{name}/{element!r}"

    shown = None if seen is None else tuple(map(marker_of, seen))
    own = Operation(
        key, "turn", str(invoke["process"]), kind, invoke["time"], ended,
        turn_id=_text(invoke, "turn-id"),
    )  # fmt: skip
    if steps[-1][0] == "r":
        return own._replace(f="read", markers=(shown or ()) if kind == "ok" else None)
    read = None
    if shown is not None:
        read = Read(len(shown), digest_of(shown), shown[-TAIL_LIMIT:])
    return own._replace(marker=marker_of(steps[-1][2]), read=read)


def _beside(invoke: _Event) -> Operation:
    """Return an operation whose transaction does not say all of it."""
    try:
        told = [json.dumps(event) for event in json.loads(_text(invoke, "beside"))]
        (operation,) = operations_in((1, line) for line in told)
    except (ValueError, TypeError) as error:
        raise InvalidRecord(f"process {invoke['process']}: :beside: {error!s:.80}") from None
    except InvalidRecord as error:
        raise InvalidRecord(f"process {invoke['process']}: :beside: {error!s:.120}") from None
    return operation._replace(line=0)


def _text(event: _Event, name: str) -> str:
    told = event.get(name, "")
    if not isinstance(told, str):
        raise InvalidRecord(f"process {event['process']}: :{name} is text, not {told!r:.60}")
    return told


def _list_key(name: Any) -> SessionKey:
    """Return the session of a list: what ``edn_of`` wrote, or one with any name."""
    try:
        user, session, agent = json.loads(name)
        return SessionKey.of(user, agent, session)
    except (TypeError, ValueError):
        return _ELLE._replace(session_id=str(name))


# ---- EDN as text

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


class Keyword(NamedTuple):
    """A word that is written with a colon."""

    name: str


class _Token(NamedTuple):
    kind: str
    text: str
    line: int


def read_edn(text: str) -> list[Any]:
    """Return the values that a text holds: maps, vectors and lists, sets, words, numbers, strings.

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
    """Return a value as EDN: words (``Keyword``) with a colon, other text in quotes."""
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
    try:
        return _atom(text)
    except ValueError:
        raise InvalidRecord(f"not EDN: number {text:.40}", line=line) from None


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
