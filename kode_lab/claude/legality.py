"""What the Messages API refuses: an illegal conversation becomes visible here, as a 400.

Pure: parsed JSON in, the error out, or None. The checks are those that a session manager can fall
over: order of roles, a tool call without its result, a result without its call, empty messages.

Source: https://docs.claude.com/en/api/messages and .../agents-and-tools/tool-use; the sentences are
modelled on those that the API answers with. Version 2026-10-21 knows no sampling parameters.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from kode_lab.claude.wire import ApiError

__all__ = ["problem_of"]

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
_MESSAGES_LIMIT = 100_000
_TOOL_NAME = re.compile(r"[a-zA-Z0-9_-]{1,128}")
_ROLES = ("user", "assistant", "system")


def problem_of(body: Any, version: str, *, is_count: bool = False) -> ApiError | None:
    """Give the error that the API answers a request with, or None when it is legal.

    Args:
        body: the parsed body.
        version: the API version asked for, one of ``wire.VERSIONS``.
        is_count: whether it only asks for a count of tokens, which needs no ``max_tokens``.
    """
    if not isinstance(body, dict):
        return _wrong("the request body must be an object")
    known = _FIELDS | _SAMPLING if version == "2023-06-01" else _FIELDS
    for name in body:
        if name not in known:
            return _wrong(f"{name}: Extra inputs are not permitted")
    for name in ("model", "messages") if is_count else ("model", "messages", "max_tokens"):
        if name not in body:
            return _wrong(f"{name}: Field required")
    if not isinstance(body["model"], str) or not body["model"]:
        return _wrong("model: Input should be a non-empty string")
    limit = body.get("max_tokens", 1)
    if isinstance(limit, bool) or not isinstance(limit, int) or limit < 1:
        return _wrong("max_tokens: Input should be an integer greater than or equal to 1")
    return (
        _plain_problem(body)
        or _tools_problem(body.get("tools", []), body.get("tool_choice"))
        or _messages_problem(body["messages"])
    )


def _wrong(message: str) -> ApiError:
    return ApiError(400, message)


def _plain_problem(body: Mapping[str, Any]) -> ApiError | None:
    stops = body.get("stop_sequences", [])
    if not isinstance(stops, list) or not all(isinstance(s, str) and s.strip() for s in stops):
        return _wrong("stop_sequences: each stop sequence must contain non-whitespace")
    if not isinstance(body.get("stream", False), bool):
        return _wrong("stream: Input should be a valid boolean")
    system = body.get("system", "")
    if isinstance(system, list):
        for index, block in enumerate(system):
            if not _is_text(block):
                return _wrong(f"system.{index}: Input should be a text block")
    elif not isinstance(system, str):
        return _wrong("system: Input should be a string or a list of text blocks")
    temperature = body.get("temperature", 1.0)
    if isinstance(temperature, bool) or not isinstance(temperature, (int, float)):
        return _wrong("temperature: Input should be a valid number")
    if not 0 <= temperature <= 1:
        return _wrong("temperature: range: 0..1")
    return None


def _tools_problem(tools: Any, choice: Any) -> ApiError | None:
    if not isinstance(tools, list):
        return _wrong("tools: Input should be a valid list")
    names = []
    for index, tool in enumerate(tools):
        name = tool.get("name") if isinstance(tool, dict) else None
        if not isinstance(name, str) or not _TOOL_NAME.fullmatch(name):
            return _wrong(f"tools.{index}.name: String should match {_TOOL_NAME.pattern}")
        if tool.get("type", "custom") == "custom":
            schema = tool.get("input_schema")
            if not isinstance(schema, dict):
                return _wrong(f"tools.{index}.input_schema: Field required")
            if schema.get("type") != "object":
                return _wrong(f"tools.{index}.input_schema.type: Input should be 'object'")
        names.append(name)
    if len(set(names)) < len(names):
        return _wrong("tools: Tool names must be unique.")
    if choice is None:
        return None
    kind = choice.get("type") if isinstance(choice, dict) else None
    if kind not in ("auto", "any", "tool", "none"):
        return _wrong("tool_choice: Input tag should be one of 'auto', 'any', 'tool', 'none'")
    if kind == "tool" and choice.get("name") not in names:
        return _wrong(f"tool_choice: Tool {choice.get('name')!r} not found in provided tools")
    return None


def _messages_problem(messages: Any) -> ApiError | None:
    if not isinstance(messages, list):
        return _wrong("messages: Input should be a valid list")
    if not messages:
        return _wrong("messages: at least one message is required")
    if len(messages) > _MESSAGES_LIMIT:
        return _wrong(f"messages: at most {_MESSAGES_LIMIT} messages")
    for index, message in enumerate(messages):
        problem = _shape_problem(index, message)
        if problem is not None:
            return problem
    if messages[0]["role"] != "user":
        return _wrong('messages: first message must use the "user" role')
    if messages[-1]["role"] == "assistant":
        return _wrong(
            "This model does not support assistant message prefill. "
            "The conversation must end with a user message."
        )
    return _pairing_problem(messages)


def _shape_problem(index: int, message: Any) -> ApiError | None:
    where = f"messages.{index}"
    if not isinstance(message, dict):
        return _wrong(f"{where}: Input should be an object")
    for name in message:
        if name not in ("role", "content"):
            return _wrong(f"{where}.{name}: Extra inputs are not permitted")
    if message.get("role") not in _ROLES:
        return _wrong(f"{where}.role: Input should be 'user' or 'assistant'")
    content = message.get("content")
    if isinstance(content, str):
        return None if content else _wrong(f"{where}: user messages must have non-empty content")
    if not isinstance(content, list):
        return _wrong(f"{where}.content: Input should be a string or a list of blocks")
    if not content:
        return _wrong(f"{where}: all messages must have non-empty content")
    for at, block in enumerate(content):
        problem = _block_problem(f"{where}.content.{at}", message["role"], block)
        if problem is not None:
            return problem
    return None


def _block_problem(where: str, role: str, block: Any) -> ApiError | None:
    kind = block.get("type") if isinstance(block, dict) else None
    if not isinstance(kind, str):
        return _wrong(f"{where}: Input should be a content block with a type")
    if kind == "text":
        if not _is_text(block):
            return _wrong(f"{where}.text: Input should be a valid string")
        if not block["text"].strip():
            return _wrong("messages: text content blocks must contain non-whitespace text")
        return None
    if kind == "tool_use":
        if role != "assistant":
            return _wrong(f"{where}: `tool_use` blocks can only be in `assistant` messages")
        for name, wanted in (("id", str), ("name", str), ("input", dict)):
            if not isinstance(block.get(name), wanted):
                return _wrong(f"{where}.tool_use.{name}: Field required")
    if kind == "tool_result":
        if role != "user":
            return _wrong(f"{where}: `tool_result` blocks can only be in `user` messages")
        if not isinstance(block.get("tool_use_id"), str):
            return _wrong(f"{where}.tool_result.tool_use_id: Field required")
        inner = block.get("content", "")
        if not isinstance(inner, str) and not (
            isinstance(inner, list) and all(isinstance(b, dict) and "type" in b for b in inner)
        ):
            return _wrong(f"{where}.tool_result.content: Input should be a string or blocks")
    return None


def _pairing_problem(messages: Sequence[Mapping[str, Any]]) -> ApiError | None:
    """Each call of a message is answered in the very next one, and nothing else is."""
    asked: list[str] = []
    seen: set[str] = set()
    for index, message in enumerate(messages):
        blocks = message["content"] if isinstance(message["content"], list) else []
        answered = [b["tool_use_id"] for b in blocks if b["type"] == "tool_result"]
        missing = [call_id for call_id in asked if call_id not in answered]
        if missing:
            return _wrong(
                f"messages.{index - 1}: `tool_use` ids were found without `tool_result` blocks "
                f"immediately after: {', '.join(missing)}. Each `tool_use` block must have a "
                "corresponding `tool_result` block in the next message."
            )
        for at, call_id in enumerate(answered):
            if call_id not in asked:
                return _wrong(
                    f"messages.{index}.content.{at}: unexpected `tool_use_id` found in "
                    f"`tool_result` blocks: {call_id}. Each `tool_result` block must have a "
                    "corresponding `tool_use` block in the previous message."
                )
        if len(set(answered)) < len(answered):
            return _wrong(f"messages.{index}: each tool_use must have a single result")
        if any(b["type"] != "tool_result" for b in blocks[: len(answered)]):
            return _wrong(f"messages.{index}: `tool_result` blocks must come first in `content`")
        asked = [b["id"] for b in blocks if b["type"] == "tool_use"]
        for call_id in asked:
            if call_id in seen:
                return _wrong(f"messages.{index}: `tool_use` ids must be unique: {call_id}")
            seen.add(call_id)
    return None


def _is_text(block: Any) -> bool:
    return isinstance(block, dict) and isinstance(block.get("text"), str)
