"""Histories as drawings: the language of the judge's own tests, and of witnesses in a terminal.

A line is one operation. Its first word is the session (``userId:sessionId``); time runs to the
right, a column a microsecond:

    ada:1   |--a--|                 -> a          acknowledged; it was shown nothing before itself
    ada:1       |----b----|         -> a b        shown a, then itself
    ada:1         |--c--?                         given up: nobody knows whether it happens
    ada:1         |--d--x                         refused: it did not happen
    ada:1   |--c--|                               the same turn again: a retry
    ada:1                     |--=--|  -> a b     an authoritative read: the whole list
    nemesis      !kill   !restart   !quiet        faults

What was shown may hold other sessions' markers, and ``b/`` for half of ``b``. After the list may
stand ``answers M``, ``config V``, and ``did ID NAME MARKER USER`` for an effect; ``world`` in a bar
instead of a marker reads all effects.

Idea: marble diagrams of reactive streams, and the lanes in which linearizability is always drawn.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence

from kode_lab.errors import InvalidRecord
from kode_lab.history.operation import NEMESIS, TAIL_LIMIT, Effect, Operation, Read, digest_of
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
    words = found["rest"].split()
    facts = {"answers": "", "config": ""}
    effects: list[Effect] = []
    seen: tuple[str, ...] | None = None
    while words:
        word = words.pop(0)
        if word == "->":
            ends = [at for at, w in enumerate(words) if w in ("answers", "config", "did")]
            cut = min(ends, default=len(words))
            seen, words = tuple(words[:cut]), words[cut:]
        elif word in facts and words:
            facts[word] = words.pop(0)
        elif word == "did" and len(words) >= 4:
            effects.append(Effect(*words[:4]))
            del words[:4]
        else:
            raise InvalidRecord(f"{word!r} means nothing here", line=number)
    is_read, is_world = what == "=", what == "world"
    return Operation(
        key,
        "read" if is_read else "effects" if is_world else "turn",
        f"p{number}",
        kind,
        invoke_ns,
        complete_ns,
        "" if is_read or is_world else what,
        "" if is_read or is_world else f"turn-{what}",
        # What was shown waits here until every marker's owner is known.
        markers=seen,
        answered=facts["answers"],
        config=facts["config"],
        effects=tuple(effects) if effects or is_world else None,
    )


def _with_read(operation: Operation, owner: dict[str, SessionKey]) -> Operation:
    seen = operation.markers
    if seen is None or operation.process == NEMESIS:
        return operation
    half = tuple(word[:-1] for word in seen if word.endswith("/"))
    seen = tuple(word.rstrip("/") for word in seen)
    if operation.f == "read":
        read = Read(0, 0, (), (), half) if half else None
        return operation._replace(markers=seen, read=read)
    if seen and seen[-1] == operation.marker:
        seen = seen[:-1]
    own = [marker for marker in seen if owner.get(marker, operation.key) == operation.key]
    foreign = tuple(marker for marker in seen if marker not in own)
    read = Read(len(own), digest_of(own), tuple(own[-TAIL_LIMIT:]), foreign, half)
    return operation._replace(markers=None, read=read)


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
        what = shown(op.marker) or "="
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
