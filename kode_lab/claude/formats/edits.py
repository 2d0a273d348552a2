"""Context editing of the Messages API: what a request asks to clear before the model sees it.

Pure: messages in, messages out, with what was cleared of them. The client keeps its whole history;
only what the model is shown and the count of tokens change. A conversation that must not be edited
is found out from its fold alone, so that an edit which clears nothing costs nothing.

Source: https://platform.claude.com/docs/en/build-with-claude/context-editing (strategies, defaults,
and that ``clear_thinking`` comes first) and the types of anthropic 2.14.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from kode_lab.claude.formats.seam import size_of

__all__ = ["CLEARED", "COMPACT_TRIGGER_TOKENS", "edited", "may_edit"]

Message = Mapping[str, Any]

CLEARED = "[Old tool result content cleared]"
COMPACT_TRIGGER_TOKENS = 150_000
_TRIGGER_TOKENS = 100_000
_KEPT_TOOL_USES = 3
_KEPT_THINKING_TURNS = 1
_USES = ("tool_use", "mcp_tool_use")
_RESULTS = ("tool_result", "mcp_tool_result")
_THOUGHTS = ("thinking", "redacted_thinking")


def may_edit(edits: Sequence[Mapping[str, Any]], *, thoughts: int, tokens: int) -> bool:
    """Whether edits can change a conversation with so many thoughts and tokens."""
    return any(
        (
            edit["type"].startswith("clear_thinking")
            and thoughts > 0
            and _kept_turns(edit) is not None
        )
        or (
            edit["type"].startswith("clear_tool_uses")
            and (_is_by_uses(edit) or tokens > _value(edit.get("trigger"), _TRIGGER_TOKENS))
        )
        for edit in edits
    )


def edited(
    messages: Sequence[Message], edits: Sequence[Mapping[str, Any]], tokens: int
) -> tuple[list[Message], list[dict[str, Any]]]:
    """Return the messages that the model is shown, and the ``applied_edits`` of the reply.

    Args:
        messages: the whole conversation, legal.
        edits: as a request lists them, checked.
        tokens: about how many the request has before it is edited.
    """
    applied: list[dict[str, Any]] = []
    shown = list(messages)
    for edit in edits:
        if edit["type"].startswith("clear_thinking"):
            after, count = _without_thinking(shown, _kept_turns(edit))
            counted = "cleared_thinking_turns"
        elif edit["type"].startswith("clear_tool_uses"):
            after, count = _without_tool_uses(shown, edit, tokens)
            counted = "cleared_tool_uses"
        else:
            continue
        cleared = (size_of(shown) - size_of(after)) // 4 if count else 0
        if count and cleared >= _value(edit.get("clear_at_least"), 0):
            shown, tokens = after, tokens - cleared
            applied.append({"type": edit["type"], "cleared_input_tokens": cleared, counted: count})
    return shown, applied


def _without_thinking(messages: list[Message], kept: int | None) -> tuple[list[Message], int]:
    """Clear the thinking of all turns but the latest with any; a turn begins with a prompt."""
    turn, turn_of = 0, []
    for message in messages:
        turn += message["role"] == "user" and not any(_blocks(message, _RESULTS))
        turn_of.append(turn)
    thinking = sorted(
        {turn_of[at] for at, message in enumerate(messages) if any(_blocks(message, _THOUGHTS))}
    )
    old = set(thinking[: max(0, len(thinking) - kept)]) if kept is not None else set()
    shown = [
        _with_content(message, [b for b in message["content"] if b["type"] not in _THOUGHTS])
        if turn_of[at] in old and any(_blocks(message, _THOUGHTS))
        else message
        for at, message in enumerate(messages)
    ]
    return [message for message in shown if message["content"]], len(old)


def _without_tool_uses(
    messages: list[Message], edit: Mapping[str, Any], tokens: int
) -> tuple[list[Message], int]:
    """Replace the oldest tool results by a placeholder; the latest uses stay."""
    kept_names = edit.get("exclude_tools") or ()
    uses = [block for message in messages for block in _blocks(message, _USES)]
    count = len(uses) if _is_by_uses(edit) else tokens
    if count <= _value(edit.get("trigger"), _TRIGGER_TOKENS):
        return messages, 0
    free = [block for block in uses if block["name"] not in kept_names]
    count = max(0, len(free) - _value(edit.get("keep"), _KEPT_TOOL_USES))
    old = {block["id"] for block in free[:count]}
    inputs = edit.get("clear_tool_inputs")

    def shown(block: Mapping[str, Any]) -> Mapping[str, Any]:
        if block["type"] in _RESULTS and block["tool_use_id"] in old:
            return {**block, "content": CLEARED}
        if block["type"] in _USES and block["id"] in old:
            is_cleared = block["name"] in inputs if isinstance(inputs, list) else inputs
            return {**block, "input": {}} if is_cleared else block
        return block

    return [
        message
        if isinstance(message["content"], str)
        else _with_content(message, [shown(block) for block in message["content"]])
        for message in messages
    ], len(old)


def _is_by_uses(edit: Mapping[str, Any]) -> bool:
    return (edit.get("trigger") or {}).get("type") == "tool_uses"


def _kept_turns(edit: Mapping[str, Any]) -> int | None:
    """How many turns keep their thinking; None is all of them."""
    keep = edit.get("keep")
    if keep in ("all", {"type": "all"}):
        return None
    return _value(keep, _KEPT_THINKING_TURNS)


def _value(wanted: Any, default: int) -> int:
    return wanted["value"] if isinstance(wanted, dict) else default


def _blocks(message: Message, kinds: Sequence[str]) -> list[Mapping[str, Any]]:
    content = message["content"]
    if isinstance(content, str):
        return []
    return [block for block in content if block["type"] in kinds]


def _with_content(message: Message, content: list[Any]) -> Message:
    return {**message, "content": content}
