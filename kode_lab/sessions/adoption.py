"""Conversations that others wrote: what can be read, and what of it a model can be shown.

A ``messages.json`` may have been edited by hand, or come from another tool such as the Kode SDK.
``invalid_place`` finds what cannot be read at all. ``request_form`` returns the messages as the
Messages API takes them, and leaves the record as it is: it joins messages of one role in a row,
seals open tool calls, and leaves out what only the other tool understands. This module must not
know files, stores or models.

Source: https://docs.anthropic.com/en/api/messages; the Kode SDK's ``runtime/messages.json``
(metadata, reasoning blocks, tool results as objects, system summaries).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any

from kode_lab.message import Block, Message

__all__ = ["invalid_place", "request_form"]

_FIELDS = {"role", "content"}
_ROLES = ("user", "assistant", "system")
# Fields and blocks of the Kode SDK that the Messages API refuses.
_FOREIGN_FIELDS = frozenset({"meta", "metadata"})
_FOREIGN_BLOCKS = ("reasoning",)
_NO_TEXT = "(No text.)"
_NOT_ANSWERED = "(This message was not answered.)"
_NO_RESULT = "(No result of this call is in the conversation; it may have taken effect.)"
_BEFORE = "(The conversation began with the assistant.)"


def invalid_place(value: Any) -> str | None:
    """Return where and why a value is not a list of messages, or None if it is one."""
    if not isinstance(value, list):
        return f"it is {_kind(value)}, not an array of messages"
    for at, message in enumerate(value):
        if not isinstance(message, dict):
            return f"message {at} is {_kind(message)}, not an object with role and content"
        if message.get("role") not in _ROLES:
            return f"message {at} has the role {message.get('role')!r:.40}, not user or assistant"
        content = message.get("content")
        if isinstance(content, str):
            continue
        if not isinstance(content, list):
            return f"message {at} has {_kind(content)} as content, not text or an array of blocks"
        for number, block in enumerate(content):
            if (why := _invalid_block(block)) is not None:
                return f"message {at}, block {number} {why}"
    return None


def _invalid_block(block: Any) -> str | None:
    if not isinstance(block, dict):
        return f"is {_kind(block)}, not an object with a type"
    kind = block.get("type")
    if not isinstance(kind, str):
        return "has no type"
    needed: tuple[tuple[str, type], ...] = ()
    if kind == "text":
        needed = (("text", str),)
    elif kind == "tool_use":
        needed = (("id", str), ("name", str), ("input", dict))
    elif kind == "tool_result":
        needed = (("tool_use_id", str),)
    for name, wanted in needed:
        if not isinstance(block.get(name), wanted):
            words = "an object" if wanted is dict else "text"
            return f"is a {kind} whose {name} is {_kind(block.get(name))}, not {words}"
    return None


def _kind(value: Any) -> str:
    if value is None:
        return "missing"
    names = {dict: "an object", list: "an array", str: "text", bool: "true or false"}
    return names.get(type(value), "a number")


def request_form(messages: Sequence[Message]) -> list[Message] | None:
    """Return valid messages as a request can show them, or None if they can be shown as they are.

    Open and orphaned tool calls get an error result, orphaned results become text, ids of calls
    that repeat are made unique, and roles alternate from a user's message to an assistant's.
    """
    if _can_be_shown(messages):
        return None
    shown: list[Message] = []
    for message in messages:
        role = "assistant" if message["role"] == "assistant" else "user"
        blocks = _blocks(message)
        if shown and shown[-1]["role"] == role:
            shown[-1]["content"] += blocks
        else:
            shown.append({"role": role, "content": blocks})
    if shown and shown[0]["role"] == "assistant":
        shown.insert(0, {"role": "user", "content": [_text(_BEFORE)]})
    _pair_calls(shown)
    if shown and shown[-1]["role"] == "user":
        shown.append({"role": "assistant", "content": [_text(_NOT_ANSWERED)]})
    return shown


def _can_be_shown(messages: Sequence[Message]) -> bool:
    """Whether each message is as kode_lab itself writes it."""
    role, calls, seen = "user", tuple[str, ...](), set[str]()
    for message in messages:
        content = message["content"]
        if message.keys() != _FIELDS or message["role"] != role or isinstance(content, str):
            return False
        if not content or not all(map(_is_plain, content)):
            return False
        ids = tuple(b["id"] for b in content if b["type"] == "tool_use")
        results = tuple(b["tool_use_id"] for b in content if b["type"] == "tool_result")
        if role == "user":
            comes_late = any(block["type"] == "tool_result" for block in content[len(results) :])
            if ids or comes_late or sorted(results) != sorted(calls):
                return False
        elif results or len(set(ids)) < len(ids) or not seen.isdisjoint(ids):
            return False
        seen.update(ids)
        calls, role = ids, "assistant" if role == "user" else "user"
    return role == "user" and not calls


def _is_plain(block: Block) -> bool:
    """Whether the Messages API takes a block as it is."""
    kind = block["type"]
    if kind == "text":
        return bool(block["text"].strip()) and _FOREIGN_FIELDS.isdisjoint(block)
    return kind not in _FOREIGN_BLOCKS and (
        _FOREIGN_FIELDS.isdisjoint(block)
        and not (kind == "tool_result" and isinstance(block.get("content"), Mapping))
    )


def _blocks(message: Message) -> list[Block]:
    """Return the blocks of one message, without what the Messages API refuses."""
    content = message["content"]
    if isinstance(content, str):
        content = [_text(content)]
    blocks: list[Block] = []
    for given in content:
        block = {name: given[name] for name in given if name not in _FOREIGN_FIELDS}
        kind = block["type"]
        if kind in _FOREIGN_BLOCKS or (kind == "text" and not block["text"].strip()):
            continue
        if kind == ("tool_use" if message["role"] != "assistant" else "tool_result"):
            blocks.append(_text(f"({kind}: {json.dumps(block, ensure_ascii=False)})"))
            continue
        if kind == "tool_result":
            inner = block.get("content")
            if isinstance(inner, Mapping):
                block.setdefault("is_error", inner.get("ok") is False)
                block["content"] = json.dumps(inner, ensure_ascii=False)
        if message["role"] == "system" and kind == "text":
            block["text"] = f"(Of the system:) {block['text']}"
        blocks.append(block)
    return blocks or [_text(_NO_TEXT)]


def _pair_calls(shown: list[Message]) -> None:
    """Make the next message hold exactly one result of each tool call."""
    seen: set[str] = set()
    at = 0
    while at < len(shown):
        message = shown[at]
        names: dict[str, list[str]] = {}
        if message["role"] == "assistant":
            for block in message["content"]:
                if block["type"] == "tool_use":
                    own = _unique(block["id"], seen)
                    names.setdefault(block["id"], []).append(own)
                    block["id"] = own
            if names and at + 1 == len(shown):
                shown.append({"role": "user", "content": []})
        following = shown[at + 1] if at + 1 < len(shown) else None
        if at == 0 and message["role"] == "user":
            message["content"] = _results_first(message["content"], {})
        if following is not None and following["role"] == "user":
            following["content"] = _results_first(following["content"], names)
        at += 1


def _results_first(blocks: Sequence[Block], names: Mapping[str, list[str]]) -> list[Block]:
    """Return the blocks of a user's message that follows calls, given by their old and new ids."""
    results: dict[str, Block] = {}
    others: list[Block] = []
    for block in blocks:
        if block["type"] != "tool_result":
            others.append(block)
            continue
        calls = names.get(block["tool_use_id"], [])
        own = next((call for call in calls if call not in results), None)
        if own is None:
            words = json.dumps(block.get("content", ""), ensure_ascii=False)
            others.append(_text(f"(Result of a call that is not in the conversation: {words})"))
        else:
            results[own] = {**block, "tool_use_id": own}
    for own in chain.from_iterable(names.values()):
        if own not in results:
            results[own] = {
                "type": "tool_result",
                "tool_use_id": own,
                "content": _NO_RESULT,
                "is_error": True,
            }
    return [*results.values(), *others]


def _unique(name: str, seen: set[str]) -> str:
    own, number = name, 1
    while own in seen:
        number += 1
        own = f"{name}_{number}"
    seen.add(own)
    return own


def _text(words: str) -> Block:
    return {"type": "text", "text": words}
