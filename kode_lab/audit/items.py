"""Messages of every dialect as one list of items: who said what, and which tools were called.

An item is what two records of one conversation have in common, whichever tool wrote them: role,
kind and text. Left out are thinking, cache marks, empty texts, call ids and the system prompt,
which may hold a date. This module must not know files or spans.

Dialects: Messages, Chat Completions, Responses items, Gemini contents, GenAI conventions
(``parts``), LangChain (``type``/``data`` and ``lc``/``kwargs``), OpenInference.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import orjson

__all__ = ["Item", "Unreadable", "decoded", "items_of"]

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


def decoded(value: Any) -> Any:
    """Return the values behind JSON text; other text as it is.

    Raises:
        Unreadable: the text is cut off, or holds Python reprs.
    """
    if not isinstance(value, str):
        return value
    try:
        return orjson.loads(value)
    except orjson.JSONDecodeError:
        if _REPR.match(value):
            raise Unreadable("messages written as Python reprs") from None
        if value[:1] in ("[", "{"):
            raise Unreadable("message text that is cut off") from None
        return value


def items_of(messages: Any) -> list[Item]:
    """Return the items of a list of messages, without the system prompt.

    Raises:
        Unreadable: these are not messages, or their content was redacted or is not structured.
    """
    if isinstance(messages, str):
        if messages in _REDACTED:
            raise Unreadable("redacted text")
        return [Item("user", "text", messages.strip())] if messages.strip() else []
    if isinstance(messages, dict):
        messages = [messages]
    if not isinstance(messages, list):
        raise Unreadable("messages that are no list")
    items: list[Item] = []
    for message in messages:
        if isinstance(message, list):  # LangChain writes a batch of conversations
            items += items_of(message)
            continue
        if not isinstance(message, dict):
            raise Unreadable("a message that is no object")
        if len(message) == 2:  # the most frequent shapes, which need no search
            role, said = message.get("role"), message.get("content")
            if role == "system":
                continue
            if said is None and type(parts := message.get("parts")) is list and len(parts) == 1:
                part = parts[0]
                if type(part) is dict and part.get("type") == "text":
                    said = part.get("content")
            is_plain = role in ("user", "assistant")
            if is_plain and isinstance(said, str) and said not in _REDACTED:
                if said := said.strip():
                    items.append(Item(str(role), "text", said))
                continue
        items += [item for item in _items_of_message(message) if item.role != "system"]
    return items


def _items_of_message(message: Mapping[str, Any]) -> Iterable[Item]:
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


def _items_of_block(role: str, block: Any) -> Iterable[Item]:
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
