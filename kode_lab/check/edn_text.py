"""EDN as text: values read and written, whatever they mean.

Keywords are read as words without their colon, and tags are passed over: the value matters, its
class does not. What histories are made of is told in ``kode_lab.check.edn``.

Source: https://github.com/edn-format/edn.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from kode_lab.errors import InvalidRecord

__all__ = ["Keyword", "read_edn", "write_edn"]

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


class Keyword(NamedTuple):
    """A word that is written with a colon."""

    name: str


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
