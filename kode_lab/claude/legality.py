"""What the Messages API refuses: an illegal conversation becomes visible here, as a 400.

Pure: parsed JSON in, the error out, or None. The checks are those that a session manager can fall
over: order of roles, a tool call without its result, a result without its call, empty messages.

Source: https://docs.claude.com/en/api/messages and .../agents-and-tools/tool-use; the sentences are
modelled on those that the API answers with. Version 2026-10-21 knows no sampling parameters.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from kode_lab.claude.wire import ApiError

__all__ = ["MESSAGES_LIMIT", "problem_of"]

_FIELDS = frozenset(
    {
        "cache_control",
        "container",
        "diagnostics",
        "inference_geo",
        "max_tokens",
        "messages",
        "metadata",
        "model",
        "output_config",
        "service_tier",
        "speed",
        "stop_sequences",
        "stream",
        "system",
        "thinking",
        "tool_choice",
        "tools",
    }
)
_SAMPLING = frozenset({"temperature", "top_k", "top_p"})
MESSAGES_LIMIT = 100_000
_TOOL_NAME = re.compile(r"[a-zA-Z0-9_-]{1,128}")
_ROLES = ("user", "assistant", "system")
# Whose messages may hold a block, where only one side's may.
_WRITERS: Mapping[Any, str] = {"tool_use": "assistant", "tool_result": "user"}
_BLOCK_FIELDS: Mapping[Any, tuple[tuple[str, type], ...]] = {
    "text": (("text", str),),
    "tool_use": (("id", str), ("name", str), ("input", dict)),
    "tool_result": (("tool_use_id", str),),
}


def problem_of(body: Any, version: str, *, is_count: bool = False) -> ApiError | None:
    """Return the error that the API answers a request with, or None when it is legal.

    Args:
        body: the parsed body.
        version: the API version asked for, one of ``wire.VERSIONS``.
        is_count: whether it only asks for a count of tokens, which needs no ``max_tokens``.
    """
    # The rules are generators of complaints, in the order in which a reader of the request would
    # meet them; only the first complaint is asked for, so a rule may rely on those before it.
    sentence = next(_complaints(body, version, is_count), None)
    return None if sentence is None else ApiError(400, sentence)


def _complaints(body: Any, version: str, is_count: bool) -> Iterator[str]:
    if not isinstance(body, dict):
        yield "the request body must be an object"
    known = _FIELDS | _SAMPLING if version == "2023-06-01" else _FIELDS
    yield from (f"{name}: Extra inputs are not permitted" for name in body if name not in known)
    needed = ("model", "messages") if is_count else ("model", "messages", "max_tokens")
    yield from (f"{name}: Field required" for name in needed if name not in body)
    yield from _plain_complaints(body)
    yield from _tool_complaints(body.get("tools", []), body.get("tool_choice"))
    yield from _message_complaints(body["messages"])


def _plain_complaints(body: Mapping[str, Any]) -> Iterator[str]:
    if not isinstance(body["model"], str) or not body["model"]:
        yield "model: Input should be a non-empty string"
    limit = body.get("max_tokens", 1)
    if isinstance(limit, bool) or not isinstance(limit, int) or limit < 1:
        yield "max_tokens: Input should be an integer greater than or equal to 1"
    if not isinstance(body.get("stream", False), bool):
        yield "stream: Input should be a valid boolean"
    stops = body.get("stop_sequences", [])
    if not isinstance(stops, list) or not all(isinstance(s, str) and s.strip() for s in stops):
        yield "stop_sequences: each stop sequence must contain non-whitespace"
    system = body.get("system", "")
    if not isinstance(system, str) and not (
        isinstance(system, list) and all(_is_text(block) for block in system)
    ):
        yield "system: Input should be a string or a list of text blocks"
    for name in sorted(_SAMPLING):
        value = body.get(name, 0)
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            yield f"{name}: Input should be a valid number"
        if name != "top_k" and not 0 <= value <= 1:
            yield f"{name}: range: 0..1"


def _tool_complaints(tools: Any, choice: Any) -> Iterator[str]:
    if not isinstance(tools, list):
        yield "tools: Input should be a valid list"
    names: list[str] = []
    for index, tool in enumerate(tools):
        name = tool.get("name") if isinstance(tool, dict) else None
        if not isinstance(name, str) or not _TOOL_NAME.fullmatch(name):
            yield f"tools.{index}.name: String should match {_TOOL_NAME.pattern}"
        if tool.get("type", "custom") == "custom":
            schema = tool.get("input_schema")
            if not isinstance(schema, dict) or schema.get("type") != "object":
                yield f"tools.{index}.input_schema.type: Input should be 'object'"
        names.append(str(name))
    if len(set(names)) < len(names):
        yield "tools: Tool names must be unique."
    if choice is not None:
        kind = choice.get("type") if isinstance(choice, dict) else None
        if kind not in ("auto", "any", "tool", "none"):
            yield "tool_choice: Input tag should be one of 'auto', 'any', 'tool', 'none'"
        if kind == "tool" and choice.get("name") not in names:
            yield f"tool_choice: Tool {choice.get('name')!r} not found in provided tools"


def _message_complaints(messages: Any) -> Iterator[str]:
    if not isinstance(messages, list):
        yield "messages: Input should be a valid list"
    if not messages:
        yield "messages: at least one message is required"
    if len(messages) > MESSAGES_LIMIT:
        yield f"messages: too many; MESSAGES_LIMIT={MESSAGES_LIMIT}"
    for index, message in enumerate(messages):
        yield from _shape_complaints(f"messages.{index}", message)
    if messages[0]["role"] != "user":
        yield 'messages: first message must use the "user" role'
    yield from _pairing_complaints(messages)
    if messages[-1]["role"] == "assistant":
        yield (
            "This model does not support assistant message prefill. "
            "The conversation must end with a user message."
        )


def _shape_complaints(where: str, message: Any) -> Iterator[str]:
    if not isinstance(message, dict):
        yield f"{where}: Input should be an object"
    for name in message:
        if name not in ("role", "content"):
            yield f"{where}.{name}: Extra inputs are not permitted"
    role, content = message.get("role"), message.get("content")
    if role not in _ROLES:
        yield f"{where}.role: Input should be 'user' or 'assistant'"
    if not isinstance(content, (str, list)):
        yield f"{where}.content: Input should be a string or a list of blocks"
    if not content:
        yield f"{where}: all messages must have non-empty content"
    if isinstance(content, list):
        for at, block in enumerate(content):
            yield from _block_complaints(f"{where}.content.{at}", role, block)


def _block_complaints(where: str, role: Any, block: Any) -> Iterator[str]:
    kind = block.get("type") if isinstance(block, dict) else None
    if not isinstance(kind, str):
        yield f"{where}: Input should be a content block with a type"
    if _WRITERS.get(kind, role) != role:
        yield f"{where}: `{kind}` blocks can only be in `{_WRITERS[kind]}` messages"
    for name, wanted in _BLOCK_FIELDS.get(kind, ()):
        if not isinstance(block.get(name), wanted):
            yield f"{where}.{kind}.{name}: Field required"
    if kind == "text" and not block["text"].strip():
        yield "messages: text content blocks must contain non-whitespace text"
    if kind == "tool_result" and not _is_result(block.get("content", "")):
        yield f"{where}.tool_result.content: Input should be a string or a list of blocks"


def _pairing_complaints(messages: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Each call of a message is answered in the very next one, and nothing else is."""
    asked: list[str] = []
    seen: set[str] = set()
    for index, message in enumerate(messages):
        blocks = message["content"] if isinstance(message["content"], list) else []
        answered = [block["tool_use_id"] for block in blocks if block["type"] == "tool_result"]
        missing = [call_id for call_id in asked if call_id not in answered]
        if missing:
            yield _unanswered(index - 1, missing)
        for at, call_id in enumerate(answered):
            if call_id not in asked:
                yield (
                    f"messages.{index}.content.{at}: unexpected `tool_use_id` found in "
                    f"`tool_result` blocks: {call_id}. Each `tool_result` block must have a "
                    "corresponding `tool_use` block in the previous message."
                )
        if len(set(answered)) < len(answered):
            yield f"messages.{index}: each `tool_use` must have a single `tool_result`"
        if any(block["type"] != "tool_result" for block in blocks[: len(answered)]):
            yield f"messages.{index}: `tool_result` blocks must come first in `content`"
        asked = [block["id"] for block in blocks if block["type"] == "tool_use"]
        for call_id in asked:
            if call_id in seen:
                yield f"messages.{index}: `tool_use` ids must be unique: {call_id}"
            seen.add(call_id)
    if asked:
        yield _unanswered(len(messages) - 1, asked)


def _unanswered(index: int, missing: list[str]) -> str:
    return (
        f"messages.{index}: `tool_use` ids were found without `tool_result` blocks immediately "
        f"after: {', '.join(missing)}. Each `tool_use` block must have a corresponding "
        "`tool_result` block in the next message."
    )


def _is_result(content: Any) -> bool:
    return isinstance(content, str) or (
        isinstance(content, list)
        and all(isinstance(block, dict) and isinstance(block.get("type"), str) for block in content)
        and all(_is_text(block) for block in content if block["type"] == "text")
    )


def _is_text(block: Any) -> bool:
    return isinstance(block, dict) and isinstance(block.get("text"), str)
