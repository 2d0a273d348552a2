"""Read the body of a request without reading again what an earlier request already brought.

Most clients send their whole conversation with every request, so parsing alone grows with its
length. Here the bytes of the longest known beginning of the list of messages are compared by their
hash, and only what follows is parsed; the fold of the beginning is taken from memory. Hashes and
folds are kept, never contents.

It must never know what a message means: the caller gives the fold that belongs to a beginning.
"""

from __future__ import annotations

import json
import re
from collections import OrderedDict
from typing import Any, Generic, NamedTuple, TypeVar

import orjson

__all__ = ["PREFIXES_LIMIT", "Opened", "Prefixes"]

Fold = TypeVar("Fold")

# Conversations whose latest beginnings are kept: about 2 kB each.
PREFIXES_LIMIT = 20_000
_PER_CONVERSATION = 4
# A shorter list is parsed in less time than it takes to find its beginning.
_WORTH_BYTES = 4_096
_KEY_BYTES = 256
_MARKER = re.compile(rb"#m[0-9a-f]{10}-[0-9a-f]{6,}")
_SPACE = re.compile(r"[ \t\r\n]*")
# Stands for the list while the rest of the body is parsed; no client sends it.
_SENTINEL = -7_046_029_254_386_353_131
_decode_one = json.JSONDecoder().raw_decode


class _Known(NamedTuple, Generic[Fold]):
    size: int
    hash: int
    fold: Fold


class Opened(NamedTuple, Generic[Fold]):
    """A parsed body whose list may be shorter than what was sent.

    Attributes:
        body: the parsed body; its list holds only what follows the known beginning.
        fold: of the known beginning, or None when the list is whole.
        key, size, hash: where ``Prefixes.keep`` puts the fold of the whole list; key is None when
            it is not worth keeping.
        fingerprint: equal for two requests with the same bytes.
    """

    body: Any
    fold: Fold | None
    key: object
    size: int
    hash: int
    fingerprint: int


class Prefixes(Generic[Fold]):
    """The beginnings that are known, of at most ``limit`` conversations."""

    def __init__(self, limit: int = PREFIXES_LIMIT) -> None:
        self._limit = limit
        self._known: OrderedDict[object, tuple[_Known[Fold], ...]] = OrderedDict()

    def open(self, data: bytes, field: str, *, is_whole: bool = False) -> Opened[Fold]:
        """Parse a request's body.

        Args:
            data: its bytes.
            field: the name of the list of messages.
            is_whole: do not look for a known beginning.

        Raises:
            ValueError: it is not JSON.
        """
        if len(data) >= _WORTH_BYTES:
            opened = self._shortened(data, field, () if is_whole else None)
            if opened is not None:
                return opened
        return Opened(orjson.loads(data), None, None, 0, 0, hash(data))

    def keep(self, opened: Opened[Fold], fold: Fold) -> None:
        """Remember the fold of the whole list of a body that was opened."""
        if opened.key is None:
            return
        known = _Known(opened.size, opened.hash, fold)
        others = tuple(k for k in self._known.pop(opened.key, ()) if k.size != known.size)
        # Longest first: the next request of a conversation continues the longest.
        best = sorted((known, *others[: _PER_CONVERSATION - 1]), key=lambda k: -k.size)
        self._known[opened.key] = tuple(best)
        if len(self._known) > self._limit:
            self._known.popitem(last=False)

    def _shortened(
        self, data: bytes, field: str, candidates: tuple[_Known[Fold], ...] | None
    ) -> Opened[Fold] | None:
        found = re.search(rb'"%s"\s*:\s*\[' % field.encode(), data)
        if found is None:
            return None
        begin = found.end()
        marker = _MARKER.search(data, begin)
        key = field, (marker[0] if marker else data[begin : begin + _KEY_BYTES])
        view = memoryview(data)
        known = next(
            (
                k
                for k in (self._known.get(key, ()) if candidates is None else candidates)
                if begin + k.size < len(data) and hash(view[begin : begin + k.size]) == k.hash
            ),
            None,
        )
        at = begin + (known.size if known else 0)
        try:
            text = data[at:].decode()
            first, used = _span(text, is_first=known is None)
            end = at + (used if text.isascii() else len(text[:used].encode()))
            items = orjson.loads("[" + text[first:used] + "]")
            body = orjson.loads(b"%s%d%s" % (data[:begin], _SENTINEL, data[end:]))
        except (ValueError, RecursionError):
            return None
        # Otherwise the name was found inside something else.
        if not isinstance(body, dict) or body.get(field) != [_SENTINEL]:
            return None
        body[field] = items
        tail = hash(view[at:])
        whole = hash(view[begin:end])
        mark = hash((known.hash if known else 0, at, tail, hash(view[:begin])))
        return Opened(body, known.fold if known else None, key, end - begin, whole, mark)


def _span(text: str, *, is_first: bool) -> tuple[int, int]:
    """Return where the items of a JSON array begin and where its closing bracket is.

    Args:
        text: what follows the opening bracket, or what follows an earlier item.
        is_first: whether it follows the opening bracket.
    """
    at = _after_space(text, 0)
    first, needs_comma = -1, not is_first
    while text[at : at + 1] != "]":
        if needs_comma:
            if text[at : at + 1] != ",":
                raise ValueError("no comma between items")
            at = _after_space(text, at + 1)
        first = at if first < 0 else first
        _, at = _decode_one(text, at)
        at, needs_comma = _after_space(text, at), True
    return (at if first < 0 else first), at


def _after_space(text: str, at: int) -> int:
    match = _SPACE.match(text, at)
    return match.end() if match else at
