"""Messages of every dialect as one list of items: who said what, and which tools were called.

An item is what two records of one conversation have in common, whichever tool wrote them: role,
kind and text. Left out are thinking, cache marks, empty texts, call ids and the system prompt,
which may hold a date and is therefore returned apart. A request repeats what the one before it
sent; ``Histories`` finds that prefix again and reads only the rest. This module must not know files
or spans.

Dialects: Messages, Chat Completions, Responses items, Gemini contents, GenAI conventions
(``parts``), LangChain (``type``/``data`` and ``lc``/``kwargs``), OpenInference.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from hashlib import blake2b
from typing import Any, NamedTuple

import orjson

__all__ = ["Histories", "History", "Item", "Unreadable", "decoded", "items_of"]

_ROLES = {
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "ai": "assistant",
    "model": "assistant",
    "system": "system",
    "developer": "system",
    "tool": "tool",
    "function": "tool",
}
_TEXTS = frozenset({"text", "input_text", "output_text", "summary_text", "refusal"})
_THINKING = frozenset({"thinking", "redacted_thinking", "reasoning", "reasoning_content"})
_CALLS = frozenset({"tool_use", "tool_call", "function_call", "functionCall", "server_tool_use"})
_RESULTS = frozenset(
    {"tool_result", "tool_call_response", "function_call_output", "functionResponse"}
)
_REPR = re.compile(r"^\[?(ResponseOutput|ChatCompletion|Message)\w*\(")
# What instrumentations write where content was taken out.
_REDACTED = frozenset({"__REDACTED__", "[REDACTED]", "<redacted>", "REDACTED"})


class Unreadable(Exception):
    """The messages are recorded in a way that cannot be judged; the text says which."""


class Item(NamedTuple):
    """One thing that was said, called or returned.

    Attributes:
        role: ``user``, ``assistant``, ``tool`` or ``system``.
        kind: ``text``, ``call``, ``result`` or ``other``.
        text: the text; of a call its name and arguments as canonical JSON.
        call_id: of a call or result, where it is known; not part of the identity.
    """

    role: str
    kind: str
    text: str
    call_id: str = ""

    @property
    def digest(self) -> bytes:
        """Identify the item among all items of a log, in 12 bytes."""
        said = f"{self.role}\0{self.kind}\0{self.text}".encode(errors="surrogatepass")
        return blake2b(said, digest_size=12).digest()


class History:
    """What one request sent: the items of an earlier request, and those that are new.

    Attributes:
        before: the request whose items these follow, or None.
        items: the new ones.
        system: the system prompt.
        node: where the history ends in the tree of all items; set by the tree.
    """

    __slots__ = ("before", "items", "node", "system")

    def __init__(self, before: History | None, items: Sequence[Item], system: str) -> None:
        self.before = before
        self.items = items
        self.system = system
        self.node: int | None = None

    def __bool__(self) -> bool:
        return bool(self.items) or (self.before is not None and bool(self.before))


class Histories:
    """Reads message lists, each as the continuation of an earlier one if it begins with that.

    A conversation of n turns is sent n times; comparing bytes is a hundred times cheaper than
    reading them again.
    """

    # Conversations with one beginning that are kept apart, and beginnings that are remembered.
    _BRANCHES_LIMIT = 16
    _BEGINNINGS_LIMIT = 20_000
    _BEGINNING_CHARS = 400

    def __init__(self) -> None:
        self._known: dict[Any, list[tuple[Any, History]]] = {}

    def read(self, messages: Any) -> History:
        """Return the history of a message list, given as JSON text or as values.

        Raises:
            Unreadable: as ``items_of``.
        """
        if isinstance(messages, str) and messages[:1] == "[":
            key: Any = messages[: self._BEGINNING_CHARS]
            return self._continued(key, messages, messages.rstrip()[:-1])
        messages = decoded(messages)
        if not isinstance(messages, list) or not messages:
            items, system = items_of(messages)
            return History(None, items, system)
        return self._continued(repr(messages[0])[: self._BEGINNING_CHARS], messages, messages)

    def _continued(self, key: Any, messages: Any, kept: Any) -> History:
        known = self._known.pop(key, [])
        if len(self._known) > self._BEGINNINGS_LIMIT:
            self._known.pop(next(iter(self._known)))
        best: tuple[Any, History] | None = None
        for one in known:
            is_longer = best is None or len(one[0]) > len(best[0])
            if is_longer and _begins(messages, one[0]):
                best = one
        if best is None:
            items, system = items_of(decoded(messages))
            history = History(None, items, system)
        else:
            rest = messages[len(best[0]) :]
            if isinstance(rest, str):
                rest = decoded("[" + rest.lstrip().removeprefix(","))
            items, system = items_of(rest)
            history = History(best[1], items, system or best[1].system)
        # The longest of each branch is enough: shorter ones are its prefixes.
        branches = [one for one in known if not _begins(kept, one[0])]
        self._known[key] = [*branches[1 - self._BRANCHES_LIMIT :], (kept, history)]
        return history


def _begins(messages: Any, prefix: Any) -> bool:
    if isinstance(messages, str) != isinstance(prefix, str):
        return False
    if isinstance(messages, str):
        # A prefix ends behind a whole message only if a comma or the end follows it.
        return messages.startswith(prefix) and messages[len(prefix) :].lstrip()[:1] in ",]"
    return len(messages) >= len(prefix) and messages[: len(prefix)] == prefix


def decoded(value: Any) -> Any:
    """Return the values behind JSON text; other text as it is.

    Raises:
        Unreadable: the text is cut off, or holds Python reprs.
    """
    if not isinstance(value, str):
        return value
    if _REPR.match(value):
        raise Unreadable("messages written as Python reprs")
    try:
        return orjson.loads(value)
    except orjson.JSONDecodeError:
        if value[:1] in ("[", "{"):
            raise Unreadable("message text that is cut off") from None
        return value


def items_of(messages: Any) -> tuple[list[Item], str]:
    """Return the items of a list of messages, and the system prompt apart.

    Raises:
        Unreadable: these are not messages, or their content was redacted or is not structured.
    """
    if isinstance(messages, str):
        if messages in _REDACTED:
            raise Unreadable("redacted text")
        return ([Item("user", "text", messages.strip())] if messages.strip() else []), ""
    if isinstance(messages, dict):
        messages = [messages]
    if not isinstance(messages, Iterable):
        raise Unreadable("messages that are no list")
    items: list[Item] = []
    system: list[str] = []
    for message in messages:
        if isinstance(message, list):  # LangChain writes a batch of conversations
            found, said = items_of(message)
            items += found
            system.append(said)
            continue
        if not isinstance(message, dict):
            raise Unreadable("a message that is no object")
        for item in _items_of_message(message):
            if item.role == "system":
                system.append(item.text)
            else:
                items.append(item)
    return items, "\n".join(filter(None, system))


def _items_of_message(message: Mapping[str, Any]) -> Iterable[Item]:  # noqa: C901, PLR0912 - a case a dialect
    inner = message.get("data") or message.get("kwargs")
    if isinstance(inner, dict) and ("lc" in message or "type" in message):
        kind = str(inner.get("type") or message.get("type") or "")
        if kind == "constructor" or kind.endswith("Message"):
            kind = kind.removesuffix("Message").removesuffix("Chunk").lower()
        message = {"role": kind, **inner}
    kind = str(message.get("type") or "")
    if kind in _CALLS | _RESULTS | _THINKING and "role" not in message:
        yield from _items_of_block("assistant", message)
        return
    role = _ROLES.get(str(message.get("role") or kind or "").lower())
    if role is None:
        if kind and "role" not in message:  # an item kind of the Responses API that we do not know
            yield Item("assistant", "other", _canonical(message))
            return
        raise Unreadable(f"a message with the role {str(message.get('role'))[:40]!r}")
    content = message.get("content")
    if content is None:
        content = message.get("parts", message.get("contents"))
    if role == "tool":
        if isinstance(content, dict) and "function" in content:
            return  # a tool definition that was recorded as an input message
        blocks = [content] if isinstance(content, dict) else content
        if isinstance(blocks, list) and any(_kind_of(block) in _RESULTS for block in blocks):
            for block in blocks:
                yield from _items_of_block(role, block)
        else:
            call_id = message.get("tool_call_id") or message.get("id") or ""
            yield Item("tool", "result", _text_of(content), str(call_id))
        return
    texts: list[str] = []
    for block in content if isinstance(content, list) else [content]:
        if (text := _plain_text(block)) is not None:
            texts.append(text)
            continue
        if joined := "".join(texts).strip():
            yield Item(role, "text", joined)
        texts = []
        yield from _items_of_block(role, block)
    if joined := "".join(texts).strip():
        yield Item(role, "text", joined)
    for call in message.get("tool_calls") or ():
        yield from _items_of_block(role, call)
    if isinstance(called := message.get("function_call"), dict):
        yield from _items_of_block(role, called)


def _kind_of(block: Any) -> str:
    if not isinstance(block, dict):
        return ""
    if "functionCall" in block or "function_call" in block:
        return "functionCall"
    if "functionResponse" in block or "function_response" in block:
        return "functionResponse"
    return str(block.get("type") or "")


def _plain_text(block: Any) -> str | None:
    """Return the text of a text block; None for a block of another kind."""
    if block is None:
        return ""
    if isinstance(block, str):
        if block in _REDACTED:
            raise Unreadable("redacted text")
        return block
    if not isinstance(block, dict):
        raise Unreadable("content that is neither text nor blocks")
    if isinstance(inner := block.get("message_content"), dict):
        block = inner
    if block.get("thought"):
        return None
    kind = _kind_of(block)
    if kind in _TEXTS or (not kind and "text" in block):
        said = block.get("text", block.get("content", block.get("refusal")))
        return _plain_text(said) if isinstance(said, str) or said is None else None
    return None


def _items_of_block(role: str, block: Any) -> Iterable[Item]:  # noqa: C901 - a case a dialect
    if not isinstance(block, dict):
        return
    if isinstance(inner := block.get("message_content"), dict):
        block = inner
    if isinstance(inner := block.get("tool_call"), dict):
        block = inner
    kind = _kind_of(block)
    if kind in _THINKING or block.get("thought"):
        return
    if kind == "functionCall":
        block = block.get("functionCall") or block.get("function_call") or block
        kind = "tool_call"
    elif kind == "functionResponse":
        block = block.get("functionResponse") or block.get("function_response") or block
        kind = "tool_result"
    call_id = str(block.get("call_id") or block.get("tool_use_id") or block.get("id") or "")
    if kind in _RESULTS:
        for name in ("content", "output", "response", "result"):
            if name in block:
                yield Item("tool", "result", _text_of(block[name]), call_id)
                return
        yield Item("tool", "result", "", call_id)
        return
    inner = block.get("function")
    named = inner if isinstance(inner, dict) else block
    if kind in _CALLS or kind == "function" or "name" in named:
        arguments = next(
            (named[name] for name in ("arguments", "input", "args") if name in named), None
        )
        if isinstance(arguments, str):
            try:
                arguments = orjson.loads(arguments)
            except orjson.JSONDecodeError:
                arguments = arguments.strip()
        # Where a call was sent without arguments, some clients write {} and some null.
        called = f"{named.get('name')}({_canonical(arguments or {})})"
        yield Item("assistant", "call", called, call_id)
        return
    yield Item(role, "other", _canonical({k: v for k, v in block.items() if k != "cache_control"}))


def _text_of(content: Any) -> str:
    """Return what a tool returned as text: its text blocks, else canonical JSON."""
    if content is None:
        return ""
    if isinstance(content, str):
        if content in _REDACTED:
            raise Unreadable("redacted text")
        return content.strip()
    if isinstance(content, list):
        texts = [_plain_text(block) for block in content if isinstance(block, str | dict)]
        if texts and None not in texts:
            return "".join(text or "" for text in texts).strip()
    if isinstance(content, dict) and set(content) == {"result"}:
        return _text_of(content["result"])  # Gemini wraps plain results
    return _canonical(content)


def _canonical(value: Any) -> str:
    return orjson.dumps(value, option=orjson.OPT_SORT_KEYS, default=str).decode()
