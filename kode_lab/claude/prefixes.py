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
from collections.abc import Callable, Sequence
from typing import Any, Generic, NamedTuple, Protocol, Self, TypeVar

import orjson

__all__ = ["PREFIXES_LIMIT", "Opened", "Prefixes", "Trimmable"]


class Trimmable(Protocol):
    """A fold that can be copied without what is only needed while it grows."""

    def copy(self, *, is_trimmed: bool = False) -> Self:
        """Return a copy."""
        ...


Fold = TypeVar("Fold", bound=Trimmable)
Problem = TypeVar("Problem")

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


# Pieces that one beginning is compared in; then they become one again.
_SEGMENTS_LIMIT = 16
# Of each piece of the list its length in bytes and its hash.
Segments = tuple[tuple[int, int], ...]


class _Known(NamedTuple, Generic[Fold]):
    size: int
    segments: Segments
    fold: Fold


class Opened(NamedTuple, Generic[Fold]):
    """A parsed body whose list may be shorter than what was sent.

    Attributes:
        body: the parsed body; its list holds only what follows the known beginning.
        fold: of the known beginning, or None when the list is whole.
        key: names the conversation; None when its list is not worth keeping.
        before: the list without its last item, or None where that is known or empty.
        whole: the whole list.
    """

    body: Any
    fold: Fold | None = None
    key: object = None
    before: Segments | None = None
    whole: Segments = ()


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
            opened = self._shortened(data, field, is_whole=is_whole)
            if opened is not None:
                return opened
        return Opened(orjson.loads(data))

    def keep(self, opened: Opened[Fold], segments: Segments | None, fold: Fold) -> None:
        """Remember the fold of ``opened.before`` or of ``opened.whole``."""
        if opened.key is None or segments is None:
            return
        known = _Known(sum(size for size, _ in segments), segments, fold)
        others = tuple(k for k in self._known.pop(opened.key, ()) if k.size != known.size)
        # Longest first: the next request of a conversation continues the longest.
        best = sorted((known, *others[: _PER_CONVERSATION - 1]), key=lambda k: -k.size)
        self._known[opened.key] = tuple(best)
        if len(self._known) > self._limit:
            self._known.popitem(last=False)

    def grow(
        self,
        opened: Opened[Fold],
        fold: Fold,
        items: Sequence[Any],
        add: Callable[[Fold, Sequence[Any]], Problem | None],
    ) -> Problem | None:
        """Add the new items to a fold, and remember it before and after the last of them.

        Args:
            opened: the body that the items are from.
            fold: of what comes before them; it is changed.
            items: what follows the known beginning.
            add: adds items to a fold, or returns why it cannot.
        """
        if opened.before is not None:
            problem = add(fold, items[:-1])
            if problem is not None:
                return problem
            self.keep(opened, opened.before, fold.copy(is_trimmed=True))
            items = items[-1:]
        problem = add(fold, items)
        if problem is None and opened.key is not None:
            self.keep(opened, opened.whole, fold.copy(is_trimmed=True))
        return problem

    def _shortened(self, data: bytes, field: str, *, is_whole: bool) -> Opened[Fold] | None:
        found = re.search(rb'"%s"\s*:\s*\[' % field.encode(), data)
        if found is None:
            return None
        begin = found.end()
        marker = _MARKER.search(data, begin)
        key = field, (marker[0] if marker else data[begin : begin + _KEY_BYTES])
        view = memoryview(data)
        known = None
        if not is_whole:
            candidates = self._known.get(key, ())
            known = next((k for k in candidates if _is_begun(view, begin, k.segments)), None)
        at = begin + (known.size if known else 0)
        segments = known.segments if known else ()
        try:
            text = data[at:].decode()
            first, last, ended, bracket = _span(text, is_first=known is None)
            items = orjson.loads("[" + text[first:bracket] + "]")
            if not text.isascii():
                last, ended, bracket = (
                    len(text[:place].encode()) for place in (last, ended, bracket)
                )
            body = orjson.loads(b"%s%d%s" % (data[:begin], _SENTINEL, data[at + bracket :]))
        except (ValueError, RecursionError):
            return None
        # Otherwise the name was found inside something else.
        if not isinstance(body, dict) or body.get(field) != [_SENTINEL]:
            return None
        body[field] = items
        before = None
        if last:
            before = segments = _joined(
                view, begin, (*segments, (last, hash(view[at : at + last])))
            )
        whole = segments
        if ended > last:
            whole = (*segments, (ended - last, hash(view[at + last : at + ended])))
        return Opened(body, known.fold if known else None, key, before, whole)


def _is_begun(view: memoryview, begin: int, segments: Segments) -> bool:
    """Whether a list begins with these pieces; the last one, which differs soonest, comes first."""
    end = begin + sum(size for size, _ in segments)
    if end >= len(view):
        return False
    for size, hashed in reversed(segments):
        if hash(view[end - size : end]) != hashed:
            return False
        end -= size
    return True


def _joined(view: memoryview, begin: int, segments: Segments) -> Segments:
    if len(segments) <= _SEGMENTS_LIMIT:
        return segments
    size = sum(size for size, _ in segments)
    return ((size, hash(view[begin : begin + size])),)


def _span(text: str, *, is_first: bool) -> tuple[int, int, int, int]:
    """Return where the items of an array begin, the last two end, and where its bracket is.

    Args:
        text: what follows the opening bracket, or what follows an earlier item.
        is_first: whether it follows the opening bracket.
    """
    at = _after_space(text, 0)
    first, last, ended, needs_comma = -1, 0, 0, not is_first
    while text[at : at + 1] != "]":
        if needs_comma:
            if text[at : at + 1] != ",":
                raise ValueError("no comma between items")
            at = _after_space(text, at + 1)
        first = at if first < 0 else first
        last = ended
        _, ended = _decode_one(text, at)
        at, needs_comma = _after_space(text, ended), True
    return (at if first < 0 else first), last, ended, at


def _after_space(text: str, at: int) -> int:
    match = _SPACE.match(text, at)
    return match.end() if match else at
