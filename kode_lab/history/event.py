"""One line of ``history.jsonl``: which fields it may have, and of what kind.

A history may be written by any program in any language, so a line is believed only field by field:
what is misspelled is refused rather than passed over, because evidence that is silently dropped
would turn into a verdict that is silently wrong. Names that begin with ``x_`` are the writer's own
and are never looked at. What an event *means*, and which one completes which, stands in
``kode_lab.history.operation``; the format is told in ``docs/history-format.md``.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Mapping
from typing import Any

from kode_lab.errors import InvalidRecord

__all__ = ["COMPLETIONS", "TIME_LIMIT_NS", "event_of"]

COMPLETIONS = ("ok", "fail", "info")
# Times are signed 64-bit nanoseconds: 292 years of any clock.
TIME_LIMIT_NS = 2**63 - 1

_NEEDED = {"type": str, "process": str, "time_ns": int}
_FIELDS: Mapping[str, type] = {
    **_NEEDED,
    **dict.fromkeys(("f", "userId", "sessionId", "agentId", "marker", "turn_id"), str),
    **dict.fromkeys(("error", "answered", "config", "clock"), str),
    "markers": list,
    "effects": list,
    "read": dict,
}
_READ: Mapping[str, type] = {
    "position": int,
    "digest": str,
    "tail": list,
    "foreign": list,
    "half": list,
}
_EFFECT: Mapping[str, type] = dict.fromkeys(("id", "name", "marker", "userId", "sessionId"), str)
_DIGEST = re.compile(r"(0[xX])?[0-9a-fA-F]{1,16}")
_KINDS = {str: "text", int: "a whole number", list: "a list of texts", dict: "an object"}


def event_of(line: str, number: int) -> dict[str, Any]:
    """Return the event that a line holds, each field of its kind; ``null`` is as good as absent.

    Raises:
        InvalidRecord: it is not an event; names the line, the field, and what it should be.
    """
    event = _object(line, number)
    for name, kind in _NEEDED.items():
        if type(event.get(name)) is not kind:
            raise InvalidRecord(f"an event needs {name} ({kind.__name__})", line=number)
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
    return event


def _object(line: str, number: int) -> dict[str, Any]:
    try:
        event = json.loads(line)
        if not _has_each_name_once(line, event):
            json.loads(line, object_pairs_hook=_each_once)
        if "\\u" in line:
            # An escaped half of a surrogate pair is no character: nothing could be written back.
            json.dumps(event, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        raise InvalidRecord(f"not JSON: {error!s:.120}", line=number) from None
    if not isinstance(event, dict):
        raise InvalidRecord("an event is a JSON object", line=number)
    return event


def _has_each_name_once(line: str, event: Any) -> bool:
    """Tell it from the number of colons, where that is enough: being asked for each pair costs.

    Every name has its colon; what has more of them may have lost names, or have them in texts.
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
        if value is None:
            continue
        if type(value) is not kind or (
            kind is list and name != "effects" and not set(map(type, value)) <= {str}
        ):
            raise InvalidRecord(f"{where}{name} is {_KINDS[kind]}, not {value!r:.60}", line=number)


def _check_read(read: Any, number: int) -> None:
    try:
        fits = read["position"] >= 0 and _DIGEST.fullmatch(read["digest"]) is not None
    except (KeyError, TypeError, ValueError):
        fits = False
    if not fits:
        raise InvalidRecord(
            "read needs position (0 or more) and a hexadecimal digest of 64 bits", line=number
        )
    _check(read, _READ, "read.", number)
