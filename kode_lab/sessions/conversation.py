"""The messages of one session in memory, kept as JSON text, and what a request is shown of them.

A message that was said is never changed. It is therefore kept as the bytes that were stored: a
model, a tool or a caller gets objects decoded for it alone and may change them as it likes. One
message costs its text and 40 bytes; decoded objects would take five times as much, and Python's
garbage collector would visit them. This module must not know stores, leases or turns.

Source: an event-sourced log as the only truth, with views made on demand.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, MutableSequence, Sequence
from typing import Any, overload

import orjson

from kode_lab.message import Message
from kode_lab.sessions.adoption import request_form

__all__ = ["Conversation", "Shown", "decode", "encode"]

# What CPython takes for a bytes object beside its text, and for its place in a list; objects are
# laid out in steps of 16 bytes.
_OBJECT_BYTES = 33
_PLACE_BYTES = 8


def encode(value: Any) -> bytes:
    """Return the value as one line of JSON.

    What orjson refuses (huge integers, lone surrogates) the standard library writes.
    """
    try:
        return orjson.dumps(value)
    except TypeError:
        return json.dumps(value, separators=(",", ":")).encode()


def decode(data: bytes) -> Any:
    """Return the value that these bytes hold; the inverse of ``encode``.

    Raises:
        ValueError: they are not JSON.
    """
    try:
        return orjson.loads(data)
    except orjson.JSONDecodeError:
        return json.loads(data)


class Conversation:
    """All messages of a session, in order.

    Attributes:
        size_bytes: the memory that they take.
    """

    __slots__ = ("_adopted", "_lines", "_shown", "size_bytes")

    def __init__(self, messages: Sequence[Message] = ()) -> None:
        self._lines: list[bytes] = []
        self.size_bytes = 0
        # What requests show; another list only where others wrote messages that cannot be shown.
        self._shown = self._lines
        self._adopted = len(messages)
        self.extend(map(encode, messages))
        if (form := request_form(messages)) is not None:
            self._shown = []
            self._add(self._shown, map(encode, form))

    def __len__(self) -> int:
        return len(self._lines)

    def extend(self, lines: Iterable[bytes]) -> None:
        """Add messages that are encoded already."""
        if self._shown is not self._lines:
            lines = list(lines)
            self._add(self._shown, lines)
        self._add(self._lines, lines)

    def _add(self, to: list[bytes], lines: Iterable[bytes]) -> None:
        for line in lines:
            # A copy: what orjson returns holds a buffer of 4 KB, however short the text is.
            to.append(bytes(memoryview(line)))
            self.size_bytes += (len(line) + _OBJECT_BYTES + 15 & ~15) + _PLACE_BYTES

    def messages(self, start: int = 0, end: int | None = None) -> list[Message]:
        """Return the messages from ``start`` to before ``end``, decoded for the caller."""
        return _decoded(self._lines[start:end])

    def text_bytes(self, start: int, end: int) -> int:
        """Return the length of the messages from ``start`` to before ``end`` as JSON."""
        return sum(map(len, self._lines[start:end]))

    def shown(
        self, tail: Sequence[bytes] = (), *, head: Sequence[bytes] = (), start: int = 0
    ) -> Shown:
        """Return what a request shows: ``head``, the messages from ``start`` on, and ``tail``."""
        return Shown(head, self._shown, self._begin(start), len(self._shown), tail)

    def position(self, at: int, start: int = 0) -> int | None:
        """Return where message ``at`` is in a request that begins at ``start``.

        None if it is not in it, or not as it is in the record.
        """
        if at < start or (self._shown is not self._lines and at < self._adopted):
            return None
        return at + len(self._shown) - len(self._lines) - self._begin(start)

    def _begin(self, start: int) -> int:
        """Return where a request begins that shows the record from ``start`` on."""
        if self._shown is self._lines:
            return start
        # Messages that others wrote may be joined or split in requests: they are shown together.
        return 0 if start < self._adopted else start + len(self._shown) - len(self._lines)


class Shown(MutableSequence[Message]):
    """The messages of one request, decoded when they are looked at.

    It behaves like a list that belongs to the request: what a model changes here changes neither
    the conversation nor another request. Making it costs the same whatever the length. Libraries
    that write JSON take a list: pass ``list(request.messages)``, or send ``to_json()`` as it is.
    """

    __slots__ = ("_changed", "_end", "_head", "_lines", "_own", "_start", "_tail")

    def __init__(
        self, head: Sequence[bytes], lines: list[bytes], start: int, end: int, tail: Sequence[bytes]
    ) -> None:
        self._head = tuple(head)
        self._lines = lines
        self._start = start
        self._end = end
        self._tail = tuple(tail)
        # Messages that were looked at, and may have been changed since, by their position.
        self._changed: dict[int, Message] = {}
        # All messages, once the request itself became longer or shorter.
        self._own: list[Message] | None = None

    def __len__(self) -> int:
        if self._own is not None:
            return len(self._own)
        return len(self._head) + max(self._end - self._start, 0) + len(self._tail)

    @overload
    def __getitem__(self, at: int) -> Message: ...

    @overload
    def __getitem__(self, at: slice) -> list[Message]: ...

    def __getitem__(self, at: int | slice) -> Message | list[Message]:
        if self._own is not None:
            return self._own[at]
        if isinstance(at, slice):
            return [self[each] for each in range(*at.indices(len(self)))]
        place = at + len(self) if at < 0 else at
        if not 0 <= place < len(self):
            raise IndexError(f"there is no message {at}: the request has {len(self)}")
        message = self._changed.get(place)
        if message is None:
            message = self._changed[place] = decode(self._line(place))
        return message

    def __iter__(self) -> Iterator[Message]:
        return iter(self._listed())

    def __reversed__(self) -> Iterator[Message]:
        return (self[at] for at in range(len(self) - 1, -1, -1))

    def __setitem__(self, at: Any, value: Any) -> None:
        self._listed()[at] = value

    def __delitem__(self, at: int | slice) -> None:
        del self._listed()[at]

    def insert(self, index: int, value: Message) -> None:
        """Put a message before that position of this request."""
        self._listed().insert(index, value)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sequence) or isinstance(other, str | bytes):
            return NotImplemented
        return len(self) == len(other) and self._listed() == list(other)

    __hash__ = None  # type: ignore[assignment]

    def __add__(self, other: Sequence[Message]) -> list[Message]:
        return [*self, *other]

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._listed()!r})"

    def to_json(self) -> bytes:
        """Return the messages as a JSON array, without decoding those that were not looked at."""
        if self._own is not None:
            return encode(self._own)
        lines = self._all_lines()
        for at, message in self._changed.items():
            lines[at] = encode(message)
        return b"[%b]" % b",".join(lines)

    def _line(self, place: int) -> bytes:
        if place < len(self._head):
            return self._head[place]
        place += self._start - len(self._head)
        return self._lines[place] if place < self._end else self._tail[place - self._end]

    def _all_lines(self) -> list[bytes]:
        return [*self._head, *self._lines[self._start : self._end], *self._tail]

    def _listed(self) -> list[Message]:
        """Return all messages as the request's own list."""
        if self._own is None:
            own = _decoded(self._all_lines())
            for at, message in self._changed.items():
                own[at] = message
            self._own = own
            self._changed = {}
        return self._own


def _decoded(lines: Sequence[bytes]) -> list[Message]:
    try:
        found: list[Message] = orjson.loads(b"[%b]" % b",".join(lines))
    except orjson.JSONDecodeError:  # one of them holds what only the standard library reads
        return [decode(line) for line in lines]
    return found
