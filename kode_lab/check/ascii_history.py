"""Histories as drawings: the language of the judge's own tests, and of witnesses in a terminal.

A line is one operation. Its first word is the session (``userId:sessionId``); time runs to the
right, a column a microsecond:

    ada:1   |--a--|                 -> a          acknowledged; it was shown nothing before itself
    ada:1       |----b----|         -> a b        shown a, then itself
    ada:1         |--c--?                         given up: it may happen, or not
    ada:1         |--d--x                         refused: it did not happen
    ada:1   |--c--|                               the same turn again: a retry
    ada:1                     |--=--|  -> a b     an authoritative read: the whole list
    ada:1                 |-e<b-|                 an edit: e replaces b and what follows it
    ada:1                 |-reset-|               a declaration, as are delete, compact:b (up to b)
    ada:2                 |-fork:ada/1@b-|        and fork (of ada:1, up to b)
    nemesis      !kill   !restart   !quiet        faults

What was shown may hold other sessions' markers, and ``b/`` for half of ``b``. After the list may
stand ``suffix`` (only the end was shown), ``undone`` (rolled back), ``listed`` (the markers
themselves are written, not their position and digest), ``did ID NAME MARKER USER`` for
an effect, and words with one value: ``answers M``, ``config V``, ``at POSITION``, ``merged a,b``,
``into M``, ``streamed a,b``, ``tools create,create``, ``stopped REASON``, ``model-stopped REASON``,
``model-configs v1,v2``, ``model-results call>other``, ``model-calls 3-9``. ``world`` in a bar
instead of a marker reads all effects.

Idea: marble diagrams of reactive streams, and the lanes in which linearizability is always drawn.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from kode_lab.errors import InvalidRecord
from kode_lab.history.operation import (
    DECLARATIONS,
    NEMESIS,
    NO_DETAILS,
    TAIL_LIMIT,
    Details,
    Effect,
    ModelCalls,
    Operation,
    Read,
    digest_of,
)
from kode_lab.key import SessionKey, shown

__all__ = ["draw", "drawn"]

COLUMN_NS = 1_000
_AGENT = "agent"
_LINE = re.compile(r"(?P<lane>\S+)\s+(?P<bar>\|-*(?P<what>[^-|?\s]+)-*(?P<end>[|?x]))(?P<rest>.*)")
_NOBODY = SessionKey("", "", "")
_TYPES = {"|": "ok", "?": "info", "x": "fail"}


def drawn(picture: str) -> list[Operation]:
    """Return the operations of a drawing.

    Raises:
        InvalidRecord: a line is no operation; names the line.
    """
    operations: list[Operation] = []
    for number, line in enumerate(picture.splitlines(), 1):
        text = line.split("#", 1)[0].rstrip()
        if not text.strip():
            continue
        if text.split()[0] == NEMESIS:
            for found in re.finditer(r"!(\S+)", text):
                at = found.start() * COLUMN_NS
                operations.append(Operation(_NOBODY, found[1], NEMESIS, "info", at, at))
            continue
        found_line = _LINE.fullmatch(text.strip())
        if found_line is None:
            raise InvalidRecord(f"{text.strip()!r} draws no operation", line=number)
        start = len(text) - len(text.lstrip()) + found_line.start("bar")
        operations.append(_operation(found_line, start, number))
    owner: dict[str, SessionKey] = {}
    for operation in operations:
        if operation.marker:
            owner.setdefault(operation.marker, operation.key)
    return [_with_read(operation, owner) for operation in operations]


def _operation(found: re.Match[str], start: int, number: int) -> Operation:
    user, _, session = found["lane"].partition(":")
    kind, what = _TYPES[found["end"]], found["what"]
    key = SessionKey(user, session or _AGENT, _AGENT)
    invoke_ns = start * COLUMN_NS
    # A column is a whole microsecond: where one bar ends and another begins is the same moment.
    complete_ns = (start + len(found["bar"]) - 1) * COLUMN_NS
    seen, facts, effects = _told(found["rest"].split(), number)
    f, marker, details = _kind(what)
    read = Read(int(facts["at"]), None) if "at" in facts else None
    if "listed" in facts:
        read = Read(0, None, is_suffix="suffix" in facts, markers=seen)
    return Operation(
        key,
        f,
        f"p{number}",
        kind,
        invoke_ns,
        complete_ns,
        marker,
        f"turn-{marker}" if marker else "",
        read=read,
        # What was shown waits here until every marker's owner is known.
        markers=seen,
        answered=facts.get("answers", ""),
        config=facts.get("config", ""),
        effects=tuple(effects) if effects or f == "effects" else None,
        is_suffix="suffix" in facts,
        details=_with_facts(details, facts),
    )


def _kind(what: str) -> tuple[str, str, Details]:
    """Return the kind of an operation, its marker, and what it declares."""
    name, _, of = what.partition(":")
    if what in ("=", "world"):
        return {"=": "read", "world": "effects"}[what], "", NO_DETAILS
    if what in DECLARATIONS:
        return what, "", NO_DETAILS
    if name == "compact":
        return name, "", Details(upto=of)
    if name == "fork":
        source, _, upto = of.partition("@")
        user, _, session = source.partition("/")
        return name, "", Details(upto=upto, source=SessionKey(user, session, _AGENT))
    marker, _, replaced = what.partition("<")
    return "turn", marker, Details(replaces=replaced) if replaced else NO_DETAILS


def _told(
    words: list[str], number: int
) -> tuple[tuple[str, ...] | None, dict[str, str], list[Effect]]:
    """Return what an operation was shown, the facts behind it, and its effects."""
    facts: dict[str, str] = {}
    effects: list[Effect] = []
    seen: tuple[str, ...] | None = None
    while words:
        word = words.pop(0)
        if word == "->":
            known = (*_FACTS, *_FLAGS, "did")
            cut = min([at for at, w in enumerate(words) if w in known], default=len(words))
            seen, words = tuple(words[:cut]), words[cut:]
        elif word in _FLAGS:
            facts[word] = word
        elif word in _FACTS and words:
            facts[word] = words.pop(0)
        elif word == "did" and len(words) >= 4:
            effects.append(Effect(*words[:4]))
            del words[:4]
        else:
            raise InvalidRecord(f"{word!r} means nothing here", line=number)
    return seen, facts, effects


_FLAGS = ("suffix", "undone", "listed")
_FACTS = (
    *("answers", "config", "at", "merged", "into", "streamed", "tools", "stopped"),
    *("model-stopped", "model-configs", "model-results", "model-calls"),
)


def _with_facts(details: Details, facts: Mapping[str, str]) -> Details:
    lists: dict[str, Any] = {
        n: tuple(facts[n].split(",")) for n in ("merged", "streamed", "tools") if n in facts
    }
    if not facts.keys() - {"answers", "config", "at", "suffix", "listed"}:
        return details
    model = None
    if any(name.startswith("model-") for name in facts):
        results = [pair.split(">") for pair in facts.get("model-results", "").split(",") if pair]
        calls = [pair.split("-") for pair in facts.get("model-calls", "").split(",") if pair]
        model = ModelCalls(
            tuple((int(start) * COLUMN_NS, int(end) * COLUMN_NS) for start, end in calls),
            facts.get("model-stopped", ""),
            tuple(facts["model-configs"].split(",")) if "model-configs" in facts else (),
            tuple((asked, answers) for asked, answers in results),
        )
    return details._replace(
        **lists,
        into=facts.get("into", ""),
        stop_reason=facts.get("stopped", ""),
        is_rolled_back="undone" in facts,
        model=model,
    )


def _with_read(operation: Operation, owner: dict[str, SessionKey]) -> Operation:
    seen = operation.markers
    if seen is None or operation.process == NEMESIS:
        return operation
    if operation.read is not None and operation.read.markers is not None:
        return operation._replace(markers=None, is_suffix=False)
    half = tuple(word[:-1] for word in seen if word.endswith("/"))
    seen = tuple(word.rstrip("/") for word in seen)
    if operation.f == "read":
        read = Read(0, 0, (), (), half) if half else None
        return operation._replace(markers=seen, read=read)
    at = len(seen)
    if operation.marker in seen:  # its own prompt is shown last, or too early
        at = len(seen) - 1 if seen[-1] == operation.marker else seen.index(operation.marker)
    own = [marker for marker in seen[:at] if owner.get(marker, operation.key) == operation.key]
    foreign = tuple(m for m in seen if owner.get(m, operation.key) != operation.key)
    after = tuple(marker for marker in seen[at + 1 :] if marker not in foreign)
    read = Read(
        len(own), digest_of(own), tuple(own[-TAIL_LIMIT:]), foreign, half, after,
        operation.is_suffix,
    )  # fmt: skip
    return operation._replace(markers=None, read=read, is_suffix=False)


def draw(operations: Sequence[Operation], width: int = 60) -> str:
    """Return a picture of a few operations: a lane each, in proportion to the time they took."""
    timed = sorted(operations, key=lambda operation: (operation.invoke_ns, operation.complete_ns))
    if not timed:
        return ""
    ends = [op.complete_ns for op in timed if op.complete_ns != math.inf]
    first, last = timed[0].invoke_ns, max([*ends, timed[-1].invoke_ns])
    scale = (width - 1) / max(last - first, 1)
    rows: list[tuple[str, str, str]] = []
    for op in timed:
        start = round((op.invoke_ns - first) * scale)
        if op.process == NEMESIS:
            rows.append((NEMESIS, " " * start + f"!{op.f}", ""))
            continue
        end = width - 1 if op.complete_ns == math.inf else round((op.complete_ns - first) * scale)
        mark = {"ok": "|", "info": "?", "fail": "x"}[op.type]
        what = shown(op.marker) or ("=" if op.f == "read" else op.f)
        bar = f"|{what.center(max(end - start - 1, 0), '-')}{mark}"
        rows.append((str(op.key), " " * start + bar, _shown(op)))
    name_width = max(len(name) for name, _, _ in rows)
    bar_width = max(len(bar) for _, bar, _ in rows)
    return "\n".join(
        f"{name:<{name_width}}  {bar:<{bar_width}}  {shown}".rstrip() for name, bar, shown in rows
    )


def _shown(operation: Operation) -> str:
    markers: Iterable[str]
    if operation.markers is not None:
        markers = operation.markers[-TAIL_LIMIT:]
        hidden = len(operation.markers) > TAIL_LIMIT
    elif operation.read is not None:
        markers = (*operation.read.tail, *operation.read.foreign, operation.marker)
        hidden = operation.read.position > len(operation.read.tail)
    else:
        return ""
    return " ".join(["->", *(["..."] if hidden else []), *map(shown, markers)])
