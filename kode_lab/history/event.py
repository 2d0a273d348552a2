"""One line of ``history.jsonl``: which fields it may have, and of what kind.

A history may be written by any program in any language, so a line is checked field by field. A
misspelled field is refused, because evidence that is silently dropped would silently change the
verdict. Names that begin with ``x_`` are the writer's own and are never read. What an event
*means*, and which event completes which, is in ``kode_lab.history.reader``; the format is described
in ``docs/history-format.md``.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Mapping
from typing import Any, Final

from kode_lab.errors import InvalidRecord

__all__ = ["COMPLETIONS", "DIGEST", "TIME_LIMIT_NS", "event_of"]

COMPLETIONS = ("ok", "fail", "info")
# Times are signed 64-bit nanoseconds: 292 years of any clock.
TIME_LIMIT_NS = 2**63 - 1

_TEXTS: Final = "a list of texts"
_PAIRS: Final = "a list of pairs"
_NEEDED = {"type": str, "process": str, "time_ns": int}
_FIELDS: Mapping[str, Any] = {
    **_NEEDED,
    **dict.fromkeys(("f", "userId", "sessionId", "agentId", "marker", "turn_id"), str),
    **dict.fromkeys(("error", "answered", "config", "clock", "upto", "replaces", "into"), str),
    **dict.fromkeys(("markers", "merged", "streamed", "tools"), _TEXTS),
    **dict.fromkeys(("suffix", "rolled_back"), bool),
    "stop_reason": str,
    "effects": list,
    "read": dict,
    "from": dict,
    "model": dict,
}
_READ: Mapping[str, Any] = {
    "position": int,
    "digest": str,
    **dict.fromkeys(("markers", "tail", "foreign", "half", "after"), _TEXTS),
    "suffix": bool,
}
_EFFECT: Mapping[str, Any] = dict.fromkeys(("id", "name", "marker", "userId", "sessionId"), str)
_FROM: Mapping[str, Any] = dict.fromkeys(("userId", "sessionId", "agentId"), str)
_MODEL: Mapping[str, Any] = {
    "calls": _PAIRS,
    "stop_reason": str,
    "configs": _TEXTS,
    "tool_results": _PAIRS,
}
DIGEST = re.compile(r"(0[xX])?[0-9a-fA-F]{1,16}")
_KINDS: Mapping[Any, str] = {
    str: "text",
    int: "a whole number",
    bool: "true or false",
    list: "a list",
    dict: "an object",
}


def event_of(line: str, number: int) -> dict[str, Any]:
    """Return the event that a line holds, each field of its kind; ``null`` is the same as absent.

    Raises:
        InvalidRecord: it is not an event; names the line, the field, and what it should be.
    """
    event = _object(line, number)
    for name, kind in _NEEDED.items():
        value = event.get(name)
        if type(value) is not kind:
            told = "missing" if value is None else f"{value!r:.40}"
            raise InvalidRecord(f"{name} is {told}: write {_KINDS[kind]}", line=number)
    if event["type"] != "invoke" and event["type"] not in COMPLETIONS:
        raise InvalidRecord(
            f"type {event['type']!r:.60} is none of invoke, ok, fail, info", line=number
        )
    if not 0 <= event["time_ns"] <= TIME_LIMIT_NS:
        raise InvalidRecord(
            f"time_ns is not within 0 and TIME_LIMIT_NS={TIME_LIMIT_NS}", line=number
        )
    if event.get("read") is not None:
        _check_read(event["read"], number)
    _check(event, _FIELDS, "", number)
    for effect in event.get("effects") or ():
        if not isinstance(effect, dict) or not effect.get("id"):
            raise InvalidRecord("effects is a list of objects, each with its id", line=number)
        _check(effect, _EFFECT, "effects.", number)
    if event.get("from") is not None:
        _check(event["from"], _FROM, "from.", number)
    if event.get("model") is not None:
        _check_model(event["model"], number)
    return event


def _object(line: str, number: int) -> dict[str, Any]:
    try:
        event = json.loads(line)
        if not _has_each_name_once(line, event):
            json.loads(line, object_pairs_hook=_each_once)
        if "\\u" in line:
            # An escaped half of a surrogate pair is no character: it could not be written back.
            json.dumps(event, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        is_edn = line.lstrip().startswith(("{:", "#", "[{:"))
        hint = "; is this EDN? Then let the file's name end in .edn" if is_edn else ""
        raise InvalidRecord(f"not JSON: {error!s:.120}{hint}", line=number) from None
    if not isinstance(event, dict):
        raise InvalidRecord("an event is a JSON object", line=number)
    return event


def _has_each_name_once(line: str, event: Any) -> bool:
    """Decide it by the number of colons, where that is enough: a hook for each pair is slow.

    Every name has its colon; a line with more of them may have lost names, or have them in texts.
    """
    is_spaced = " :" in line or "\t:" in line or "\r:" in line
    if is_spaced or not isinstance(event, dict):
        return False
    names = len(event) + sum(len(value) for value in event.values() if type(value) is dict)
    return line.count('":') == names


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"{twice!r:.60} stands twice in one object")
    return fields


def _check(given: Mapping[str, Any], fields: Mapping[str, Any], where: str, number: int) -> None:
    for name, value in given.items():
        kind = fields.get(name)
        if kind is None:
            if name.startswith("x_"):
                continue
            near = difflib.get_close_matches(name, fields, 1)
            meant = f": did you mean {near[0]!r}?" if near else ";"
            raise InvalidRecord(
                f"{where}{name:.60} is no field{meant} What is your own begins with x_",
                line=number,
            )
        if value is not None and not _is_of(kind, value):
            wanted = kind if isinstance(kind, str) else _KINDS[kind]
            raise InvalidRecord(f"{where}{name} is {wanted}, not {value!r:.60}", line=number)


def _is_of(kind: Any, value: Any) -> bool:
    if kind is _TEXTS:
        return type(value) is list and set(map(type, value)) <= {str}
    if kind is _PAIRS:
        return type(value) is list and all(type(one) is list and len(one) == 2 for one in value)
    return type(value) is kind


def _check_read(read: Any, number: int) -> None:
    if not isinstance(read, dict):
        raise InvalidRecord(f"read is an object, not {read!r:.60}", line=number)
    _check(read, _READ, "read.", number)
    position, digest = read.get("position"), read.get("digest")
    if read.get("markers") is not None:
        if any(read.get(name) is not None for name in ("position", "digest", "tail", "after")):
            raise InvalidRecord(
                "read gives markers, so position, digest, tail and after are known: leave them out",
                line=number,
            )
    elif position is None or position < 0 or not _is_digest(digest):
        raise InvalidRecord(
            "read needs markers, or position (0 or more) and, if it is known, a hexadecimal "
            "digest of 64 bits",
            line=number,
        )


def _is_digest(digest: Any) -> bool:
    return digest is None or DIGEST.fullmatch(digest) is not None


def _check_model(model: Mapping[str, Any], number: int) -> None:
    _check(model, _MODEL, "model.", number)
    for call in model.get("calls") or ():
        if set(map(type, call)) != {int} or not 0 <= call[0] <= call[1] <= TIME_LIMIT_NS:
            raise InvalidRecord(
                f"model.calls holds pairs [start_ns, end_ns], not {call!r:.60}", line=number
            )
    for pair in model.get("tool_results") or ():
        if set(map(type, pair)) != {str}:
            raise InvalidRecord(
                f"model.tool_results holds pairs of call ids, not {pair!r:.60}", line=number
            )
