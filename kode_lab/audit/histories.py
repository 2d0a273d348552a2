"""Message lists as nodes of the tree, each read as the continuation of an earlier one.

A conversation of n turns is sent n times. Comparing text is fifty times cheaper than reading it, so
only what follows a known beginning is decoded. Of what was read only a hash, the length and a few
characters stay, never the text. This module must not know where message lists stand.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from json import JSONDecoder
from secrets import token_hex
from typing import Any, NamedTuple

import orjson

from kode_lab.audit.items import Item, Unreadable, decoded, items_of
from kode_lab.audit.turns import ROOT, Tree

__all__ = ["Histories", "flat_answer", "plain_value"]

# OpenInference, and the flat names that Traceloop wrote before there were ``gen_ai.*.messages``.
_FLAT = re.compile(r"(?:llm\.(?:in|out)put_messages|gen_ai\.(?:prompt|completion))\.(\d+)\.(.+)")
# Anthropic's clients move this mark to the newest message of every request.
_CACHE_MARK = re.compile(r',\s*"cache_control":\s*\{[^{}"]*(?:"[^"]*"[^{}"]*)*\}')
# Where a message list begins in a line: as JSON text within JSON, or as JSON.
_LIST = re.compile(
    rb'"(?:gen_ai\.input\.messages|langfuse\.observation\.input)"\s*,\s*"value"\s*:\s*\{\s*'
    rb'(?:"stringValue"\s*:\s*"|"arrayValue"\s*:\s*\{\s*"values"\s*:\s*)\[(?=\{)'
    rb'|"(?:messages|input|contents)"\s*:\s*\[(?=\{)'
)
_BEGINNING = 300
_ENDING = 24
_SYSTEM_LIMIT = 50_000
_PIECE = 16_384
_DECODER = JSONDecoder()
# Requests that are remembered of one conversation: concurrent turns continue different ones.
_REQUESTS_LIMIT = 4
_CONVERSATIONS_LIMIT = 50_000


class _Known(NamedTuple):
    """The text of an earlier request, less its closing bracket, as the hashes of its pieces."""

    length: int
    pieces: tuple[int, ...]
    ending: bytes | str
    node: int
    messages: int


class _Cut(NamedTuple):
    """A message list in a line that is not decoded yet, and how it will be known."""

    node: int
    key: int
    length: int
    pieces: tuple[int, ...]
    ending: bytes

    def known_as(self, node: int) -> _Known:
        """Return the list as an earlier request, once it is read."""
        return _Known(self.length, self.pieces, self.ending, node, 0)


# Returns the items of a list's text, and the number of messages up to its end.
_Read = Callable[[str, int], tuple[list[Item], int]]


class Histories:
    """Reads message lists into a tree."""

    def __init__(self, tree: Tree) -> None:
        self._tree = tree
        self._known: dict[int, list[_Known]] = {}
        self._cuts: list[_Cut] = []
        # Not to be guessed by what a log holds.
        self._token = f"cut-{token_hex(8)}-"

    def forget(self) -> None:
        """Drop all known beginnings, because the tree's numbers change."""
        self._known.clear()

    def cut(self, line: bytes) -> bytes:
        """Return a line in which known beginnings of message lists are tokens.

        So what was read before need not even be decoded. ``node_of`` understands the tokens until
        the next line is cut.
        """
        self._cuts.clear()
        parts: list[bytes] = []
        done = 0
        while found := _LIST.search(line, done):
            start = found.end() - 1
            is_escaped = line[start - 1 : start] == b'"'
            key = _key(line, start, b"user")
            known = self._known.get(key, ())
            node, rest, end = ROOT, start + 1, start
            pieces: tuple[int, ...] = ()
            for one in known:
                at = start + one.length
                if line[max(at - _ENDING, start) : at] == one.ending and line[at : at + 1] in b",]":
                    pieces = _pieces(line, start, at)
                    if pieces == one.pieces:
                        node, end, rest = one.node, at, at + (line[at : at + 1] == b",")
                        break
            if node == ROOT and known and not is_escaped:
                # Its beginning changes with every request: looking for the end is in vain.
                parts.append(line[done : start + 1])
                done = start + 1
                continue
            end = line.find(b']"', end) if is_escaped else _end_of_list(line, rest)
            if end < 0:
                break
            pieces = _pieces(line, start, end, pieces[:-1] if node else ())
            ending = line[max(end - _ENDING, start) : end]
            quote = b'\\"' if is_escaped else b'"'
            token = f"{self._token}{len(self._cuts)}".encode()
            parts += (
                line[done : start + 1], quote, token, quote, b"," if rest < end else b"",
            )  # fmt: skip
            self._cuts.append(_Cut(node, key, end - start, pieces, ending))
            done = rest
            if node == ROOT:
                parts.append(line[rest:end])
                done = end
        return b"".join((*parts, line[done:])) if parts else line

    def node_of(self, messages: Any, session: str = "") -> int:
        """Return the node that ends a message list, which is JSON text or values.

        Args:
            session: where to look for its beginning; any text.

        Raises:
            Unreadable: as ``items_of``.
        """
        if isinstance(messages, str) and messages.startswith(self._token, 2):
            messages = orjson.loads(messages)
        if isinstance(messages, list):
            cut, messages = self._uncut(messages)
            if cut is not None and cut.node:
                node = self._tree.add(cut.node, items_of(messages))
                return self._know(cut.key, cut.known_as(node))
            if not messages:
                return ROOT
            text = orjson.dumps(messages, default=str).decode()
            node = self._continued(text, session, _listed_items)
            return node if cut is None else self._know(cut.key, cut.known_as(node))
        if not isinstance(messages, str) or messages[:1] != "[":
            return self._tree.add(ROOT, items_of(decoded(messages)))
        return self._continued(messages, session, _listed_items)

    def _uncut(self, messages: list[Any]) -> tuple[_Cut | None, list[Any]]:
        """Return what a token stands for, and the messages behind it."""
        if messages and isinstance(messages[0], str) and messages[0].startswith(self._token):
            return self._cuts[int(messages[0][len(self._token) :])], messages[1:]
        return None, messages

    def node_of_otlp(self, values: Any, session: str = "") -> int:
        """Return the node that ends a message list written as an OTLP array."""
        if not isinstance(values, list):
            raise Unreadable("messages that are no list")
        cut, values = self._uncut(values)
        if cut is not None and cut.node:
            items = items_of([plain_value(one) for one in values])
            return self._know(cut.key, cut.known_as(self._tree.add(cut.node, items)))
        node = self._continued(orjson.dumps(values).decode(), session, _otlp_items)
        return node if cut is None else self._know(cut.key, cut.known_as(node))

    def node_of_flat(self, pairs: list[tuple[str, Any]], session: str = "") -> int:
        """Return the node that ends a message list of numbered attributes."""
        return self._continued(orjson.dumps(pairs).decode(), session, _flat_items)

    def _continued(self, text: str, session: str, read: _Read) -> int:
        if '"cache_control"' in text:
            text = _CACHE_MARK.sub("", text)
        key = hash((session, read, _key(text, 0, '"user"')))
        length = len(text) - 1
        while length > 1 and text[length - 1].isspace():
            length -= 1
        node, messages, items = ROOT, 0, None
        pieces: tuple[int, ...] = ()
        for one in self._known.get(key, ()):  # the longest first
            at = one.length
            if at > length or text[max(at - _ENDING, 0) : at] != one.ending:
                continue
            pieces = _pieces(text, 0, at)
            if pieces != one.pieces:
                continue
            rest = text[at:].lstrip()
            if rest[:1] == ",":
                try:
                    items, messages = read("[" + rest[1:], one.messages)
                except _NoBoundary:
                    continue
            elif rest[:1] == "]":
                items, messages = [], one.messages
            else:
                continue  # the earlier text ends within a message
            node = one.node
            break
        if items is None:
            items, messages = read(text, 0)
        node = self._tree.add(node, items)
        pieces = _pieces(text, 0, length, pieces[:-1] if node else ())
        ending = text[max(length - _ENDING, 0) : length]
        return self._know(key, _Known(length, pieces, ending, node, messages))

    def _know(self, key: int, fresh: _Known) -> int:
        """Remember a request; return the node that ends it."""
        known = self._known.get(key)
        if known is None:
            if len(self._known) >= _CONVERSATIONS_LIMIT:
                self._known.pop(next(iter(self._known)))
            self._known[key] = [fresh]
            return fresh.node
        at = 0
        for one in known:
            if one.length <= fresh.length:
                if one.length == fresh.length and one.pieces == fresh.pieces:
                    return fresh.node
                break
            at += 1
        known.insert(at, fresh)
        if len(known) > _REQUESTS_LIMIT:
            known.pop()
        return fresh.node


def _end_of_list(line: bytes, at: int) -> int:
    """Return where the bracket is that closes the list whose items begin here; -1 if none."""
    if line[at : at + 1] == b"]":
        return at
    text = f"[{line[at:].decode(errors='surrogatepass')}"
    try:
        _, end = _DECODER.raw_decode(text)
    except (ValueError, RecursionError):
        return -1
    return at + (end if text.isascii() else len(text[:end].encode(errors="surrogatepass"))) - 2


def _key(text: Any, start: int, word: Any) -> int:
    """Return a number for how a list begins: up to a little behind its first question."""
    first_ask = text.find(word, start, start + _SYSTEM_LIMIT)
    return hash(text[start : max(first_ask, start) + _BEGINNING])


def _pieces(text: Any, start: int, end: int, known: tuple[int, ...] = ()) -> tuple[int, ...]:
    """Return the hashes of a text's pieces; the last one may be short."""
    at = start + len(known) * _PIECE
    if end - at <= _PIECE:
        return (*known, hash(text[at:end]))
    return (*known, *[hash(text[one : min(one + _PIECE, end)]) for one in range(at, end, _PIECE)])


class _NoBoundary(Exception):
    """A known text ends within a message."""


def _listed_items(text: str, first: int) -> tuple[list[Item], int]:
    return items_of(decoded(text)), first


def _otlp_items(text: str, first: int) -> tuple[list[Item], int]:
    return items_of([plain_value(one) for one in orjson.loads(text)]), first


def _flat_items(text: str, first: int) -> tuple[list[Item], int]:
    messages = _unflattened(orjson.loads(text), first)
    return items_of(messages), first + len(messages)


def flat_answer(pairs: list[tuple[str, Any]]) -> list[Item] | None:
    """Return the answer that numbered attributes hold."""
    return items_of(_unflattened(pairs, None)) if pairs else None


def _unflattened(pairs: Iterable[Any], first: int | None) -> list[Any]:
    """Return the messages of numbered attributes, which must begin with number ``first``."""
    messages: dict[int, dict[str, Any]] = {}
    for name, value in pairs:
        if found := _FLAT.fullmatch(name):
            into = messages.setdefault(int(found[1]), {})
            *path, last = found[2].removeprefix("message.").split(".")
            for part in path:
                into = into.setdefault(part, {})
            into[last] = plain_value(value)
    numbers = sorted(messages)
    if first is not None and numbers != list(range(first, first + len(numbers))):
        if first:
            raise _NoBoundary
        raise Unreadable("gaps in the numbering of messages")
    return [_listed(messages[number]) for number in numbers]


def _listed(value: Any) -> Any:
    """Return a tree of flattened names in which numbered children are lists."""
    if not isinstance(value, dict):
        return value
    inner = {name: _listed(one) for name, one in value.items()}
    if inner and all(name.isdigit() for name in inner):
        return [inner[name] for name in sorted(inner, key=int)]
    if "contents" in inner and "content" in inner:
        # Some instrumentations write the same text in both places.
        inner.pop("contents" if inner["content"] else "content")
    if inner.get("content") == "" and "contents" in inner:
        inner.pop("content")
    return inner


def plain_value(value: Any) -> Any:
    """Return an OTLP value as a plain one."""
    if not isinstance(value, dict):
        return value
    if not value:
        return None
    kind, inner = next(iter(value.items()))
    if kind == "arrayValue":
        return [plain_value(one) for one in inner.get("values") or ()]
    if kind == "kvlistValue":
        return {pair["key"]: plain_value(pair.get("value")) for pair in inner.get("values") or ()}
    return int(inner) if kind == "intValue" else inner
