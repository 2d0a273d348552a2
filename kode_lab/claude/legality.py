"""What the Messages API refuses: an illegal conversation becomes visible here, as a 400.

Pure: parsed JSON in, the error out, or None. The checks are those that a session manager can fail:
order of roles, a tool call without its result, a result without its call, empty messages. A
``Pairing`` carries the state between messages, so a conversation can be checked in parts.

Source: https://docs.claude.com/en/api/messages and .../agents-and-tools/tool-use; the sentences are
modelled on those that the API answers with. Version 2026-10-21 knows no sampling parameters.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from kode_lab.claude.formats.options import problem_with_options
from kode_lab.claude.formats.seam import ApiError

__all__ = ["MESSAGES_LIMIT", "VERSIONS", "Pairing", "is_callable", "problem_of"]

VERSIONS = ("2023-06-01", "2026-10-21")
_SAMPLING = frozenset({"temperature", "top_k", "top_p"})
# Fields that are legal only with a beta header whose name begins so.
_BETA_FIELDS: Mapping[str, tuple[str, ...]] = {
    "billing_policy": ("user-profiles-",),
    "compaction": ("compact-",),
    "context_management": ("context-management-", "compact-"),
    "fallback_credit_token": ("fallback-credit-",),
    "fallbacks": ("server-side-fallback-",),
    "mcp_servers": ("mcp-client-",),
    "output_format": ("structured-outputs-",),
    "thread": ("message-threads-",),
}
# The fields that ``_beta_complaints`` looks at.
_SHAPED = frozenset({*_BETA_FIELDS, "output_config"})
_EDITS = ("clear_thinking_20251015", "clear_tool_uses_20250919", "compact_20260112")
MESSAGES_LIMIT = 100_000
_TOOL_NAME = re.compile(r"[a-zA-Z0-9_-]{1,128}")
_ROLES = ("user", "assistant", "system")
# What a system message within the conversation may have besides its content.
_SYSTEM_FIELDS = ("clear_at", "output_config")
# Tools that Anthropic defines and the client runs; those that the server runs are never called.
_CLIENT_TOOLS = ("bash_", "text_editor_", "memory_", "computer_")
_CHOICES = ("auto", "any", "tool", "none")
_THINKING = ("enabled", "disabled", "adaptive", "between_tools")
_MIN_THINKING_TOKENS = 1_024
# Whose messages may hold a block, where only one side's may.
_WRITERS: Mapping[Any, str] = {
    "tool_use": "assistant",
    "tool_result": "user",
    "thinking": "assistant",
    "redacted_thinking": "assistant",
}
_BLOCK_FIELDS: Mapping[Any, tuple[tuple[str, type], ...]] = {
    "text": (("text", str),),
    "tool_use": (("id", str), ("name", str), ("input", dict)),
    "tool_result": (("tool_use_id", str),),
    "thinking": (("thinking", str), ("signature", str)),
}


class Pairing:
    """What the messages so far leave open: how many there were, and tool calls without a result.

    Attributes:
        index: how many messages were checked.
        asked: ids of the last message's tool calls.
    """

    __slots__ = ("_asked_before", "_seen", "asked", "index")

    def __init__(self) -> None:
        self.index = 0
        self.asked: list[str] = []
        self._asked_before: list[str] = []
        # Sets of falling size, merged when two come close: adding an id to a thousand others costs
        # little, and a copy shares them all.
        self._seen: tuple[frozenset[str], ...] = ()

    def copy(self) -> Pairing:
        """Return one that can go on by itself."""
        other = Pairing()
        other.index, other.asked, other._seen = self.index, list(self.asked), self._seen
        return other

    def before_last(self) -> Pairing:
        """Return the state before the last message, which is not the assistant's."""
        other = self.copy()
        other.index, other.asked = self.index - 1, list(self._asked_before)
        return other

    def expect(self, call_ids: Sequence[str]) -> None:
        """Move past a message with these tool calls."""
        self.index += 1
        self._asked_before, self.asked = self.asked, list(call_ids)

    def knows(self, call_id: str) -> bool:
        """Whether an earlier tool call had this id."""
        return any(call_id in ids for ids in self._seen)

    def add(self, call_ids: Iterable[str]) -> None:
        """Remember the ids of tool calls."""
        new = frozenset(call_ids)
        if not new:
            return
        seen = [*self._seen, new]
        while len(seen) > 1 and 2 * len(seen[-1]) > len(seen[-2]):
            seen[-2:] = [seen[-2] | seen[-1]]
        self._seen = tuple(seen)

    def replied(self, call_ids: Sequence[str]) -> None:
        """Add the server's own reply with these tool calls."""
        self.expect(call_ids)
        self.add(call_ids)


def problem_of(
    body: Any,
    version: str,
    *,
    is_count: bool = False,
    betas: frozenset[str] | None = None,
    pairs: Pairing | None = None,
    are_tools_known: bool = False,
) -> ApiError | None:
    """Return the error that the API answers a request with, or None when it is legal.

    Args:
        body: the parsed body.
        version: the API version asked for, one of ``VERSIONS``.
        is_count: whether it only asks for a count of tokens, which needs no ``max_tokens``.
        betas: the names in the request's ``anthropic-beta``; None makes every beta field legal.
        pairs: what the messages before those of the body left open; it is moved past them.
        are_tools_known: the same tools were checked before.
    """
    # The rules are generators of complaints, in the order in which a reader of the request would
    # meet them; only the first complaint is asked for, so a rule may rely on those before it.
    complaints = _complaints(body, version, is_count, betas, pairs or Pairing(), are_tools_known)
    sentence = next(complaints, None)
    return None if sentence is None else ApiError(400, sentence)


def _complaints(
    body: Any,
    version: str,
    is_count: bool,
    betas: frozenset[str] | None,
    pairs: Pairing,
    are_tools_known: bool,
) -> Iterator[str]:
    if not isinstance(body, dict):
        yield "the request body must be an object"
    unknown = (
        name
        for name in body
        if (name in _SAMPLING and version != "2023-06-01")
        or (name in _BETA_FIELDS and not _is_beta(name, betas))
    )
    yield from (f"{name}: Extra inputs are not permitted" for name in unknown)
    problem = problem_with_options("messages", body)
    if problem is not None:
        article = "an" if problem.expected[:1] in "aeiou" else "a"
        yield {
            "unknown": f"{problem.name}: Extra inputs are not permitted",
            "refused": f"{problem.name}: {problem.sentence}",
            "type": f"{problem.name}: Input should be {article} {problem.expected}",
        }.get(problem.kind, problem.sentence)
    needed = ("model", "messages") if is_count else ("model", "messages", "max_tokens")
    yield from (f"{name}: Field required" for name in needed if body.get(name) is None)
    yield from _plain_complaints(body)
    if not _SHAPED.isdisjoint(body):
        yield from _beta_complaints(body)
    if not are_tools_known or body.get("tool_choice"):
        servers = {server["name"] for server in body.get("mcp_servers") or ()}
        yield from _tool_complaints(body.get("tools") or [], body.get("tool_choice"), servers)
    yield from _message_complaints(body["messages"], pairs)


def _is_beta(name: str, betas: frozenset[str] | None) -> bool:
    begins = _BETA_FIELDS.get(name)
    return begins is not None and (betas is None or any(beta.startswith(begins) for beta in betas))


def _beta_complaints(body: Mapping[str, Any]) -> Iterator[str]:
    thread = body.get("thread")
    if thread is not None:
        kind = thread.get("type") if isinstance(thread, dict) else None
        if kind not in ("create", "continue"):
            yield "thread: Input tag should be 'create' or 'continue'"
        if kind == "continue" and not isinstance(thread.get("previous_message_id"), str):
            yield "thread.continue.previous_message_id: Field required"
    config = body.get("context_management") or {}
    edits = config.get("edits") if isinstance(config, dict) else None
    if not isinstance(config, dict) or not isinstance(edits or [], list):
        yield "context_management.edits: Input should be a list of edits with a type"
    for at, edit in enumerate(edits or ()):
        yield from _edit_complaints(f"context_management.edits.{at}", at, edit, body)
    servers = body.get("mcp_servers") or []
    if not isinstance(servers, list) or not all(
        isinstance(server, dict)
        and server.get("type") == "url"
        and all(isinstance(server.get(name), str) for name in ("url", "name"))
        for server in servers
    ):
        yield "mcp_servers: Input should be a list of servers with type 'url', url and name"
    compaction = body.get("compaction")
    if compaction is not None:
        if not isinstance(compaction, dict) or compaction.get("type") != "summarize":
            yield "compaction.type: Input should be 'summarize'"
        if body.get("context_management") is not None:
            yield "compaction: cannot be combined with context_management"
    for where, form in (
        ("output_config.format", (body.get("output_config") or {})),
        ("output_format", {"format": body.get("output_format")}),
    ):
        asked = form.get("format") if isinstance(form, dict) else form
        if asked is not None and not (
            isinstance(asked, dict)
            and asked.get("type") == "json_schema"
            and isinstance(asked.get("schema"), dict)
        ):
            yield f"{where}: Input should have type 'json_schema' and a schema"


def _edit_complaints(where: str, at: int, edit: Any, body: Mapping[str, Any]) -> Iterator[str]:
    kind = edit.get("type") if isinstance(edit, dict) else None
    if kind not in _EDITS:
        yield f"{where}.type: Input tag should be one of {', '.join(map(repr, _EDITS))}"
    for name in ("trigger", "keep", "clear_at_least"):
        value = edit.get(name)
        if isinstance(value, dict) and value.get("type") != "all":
            number = value.get("value")
            if isinstance(number, bool) or not isinstance(number, int) or number < 0:
                yield f"{where}.{name}.value: Input should be an integer, 0 or more"
        elif value not in (None, "all", {"type": "all"}):
            yield f"{where}.{name}: Input should be an object with a type and a value"
    if kind == "clear_thinking_20251015":
        if at:
            yield f"{where}: `clear_thinking_20251015` must be the first of the edits"
        if (body.get("thinking") or {}).get("type") not in ("enabled", "adaptive", "between_tools"):
            yield (
                f"{where}: `clear_thinking_20251015` strategy requires `thinking` to be enabled "
                "or adaptive"
            )


def _plain_complaints(body: Mapping[str, Any]) -> Iterator[str]:
    if not isinstance(body["model"], str) or not body["model"]:
        yield "model: Input should be a non-empty string"
    limit = body.get("max_tokens", 1)
    if not isinstance(limit, int) or limit < 0:
        yield "max_tokens: Input should be an integer greater than or equal to 0"
    stops = body.get("stop_sequences") or []
    if not isinstance(stops, list) or not all(isinstance(s, str) and s.strip() for s in stops):
        yield "stop_sequences: each stop sequence must contain non-whitespace"
    system = body.get("system") or ""
    if not isinstance(system, str) and not (
        isinstance(system, list) and all(_is_text(block) for block in system)
    ):
        yield "system: Input should be a string or a list of text blocks"
    for name in sorted(_SAMPLING):
        if name != "top_k" and not 0 <= (body.get(name) or 0) <= 1:
            yield f"{name}: range: 0..1"
    thinking = body.get("thinking")
    if thinking is not None:
        if thinking.get("type") not in _THINKING:
            yield f"thinking.type: Input tag should be one of {', '.join(map(repr, _THINKING))}"
        budget = thinking.get("budget_tokens", _MIN_THINKING_TOKENS)
        if isinstance(budget, bool) or not isinstance(budget, int) or budget < _MIN_THINKING_TOKENS:
            yield (
                "thinking.enabled.budget_tokens: Input should be greater than or equal to "
                f"{_MIN_THINKING_TOKENS}"
            )
        if thinking["type"] == "enabled" and "budget_tokens" not in thinking:
            yield "thinking.enabled.budget_tokens: Field required"
        if thinking["type"] == "enabled" and limit <= budget and "max_tokens" in body:
            yield "`max_tokens` must be greater than `thinking.budget_tokens`"


def _tool_complaints(tools: Any, choice: Any, servers: set[str]) -> Iterator[str]:
    names: list[str] = []
    for index, tool in enumerate(tools):
        if not isinstance(tool, dict):
            yield f"tools.{index}: Input should be an object"
        kind = tool.get("type") or "custom"
        if not isinstance(kind, str):
            yield f"tools.{index}.type: Input should be a valid string"
        name = tool.get("name") if kind != "mcp_toolset" else tool.get("mcp_server_name")
        if not isinstance(name, str) or not _TOOL_NAME.fullmatch(name):
            yield f"tools.{index}.name: String should match {_TOOL_NAME.pattern}"
        if kind == "mcp_toolset" and name not in servers:
            yield f"tools.{index}.mcp_server_name: MCP server {name!r} not found in mcp_servers"
        if kind == "custom":
            schema = tool.get("input_schema")
            if not isinstance(schema, dict) or schema.get("type") != "object":
                yield f"tools.{index}.input_schema.type: Input should be 'object'"
        names.append(str(name))
    if len(set(names)) < len(names):
        yield "tools: Tool names must be unique."
    if choice is not None:
        kind = choice.get("type") if isinstance(choice, dict) else None
        if kind not in _CHOICES:
            yield f"tool_choice: Input tag should be one of {', '.join(map(repr, _CHOICES))}"
        named = choice.get("name") if kind == "tool" else None
        if kind == "tool" and named not in names:
            yield f"tool_choice: Tool {named!r} not found in provided tools"
        if named and any(tool.get("name") == named and not is_callable(tool) for tool in tools):
            yield f"tool_choice: Tool {named!r} runs on the API's servers, which is not simulated"


def _message_complaints(messages: Any, pairs: Pairing) -> Iterator[str]:
    if not messages and not pairs.index:
        yield "messages: at least one message is required"
    if pairs.index + len(messages) > MESSAGES_LIMIT:
        yield f"messages: too many; MESSAGES_LIMIT={MESSAGES_LIMIT}"
    is_first = not pairs.index
    for index, message in enumerate(messages, pairs.index):
        if not _is_usual(message):
            yield from _shape_complaints(f"messages.{index}", message)
    if is_first and messages[0]["role"] != "user":
        yield 'messages: first message must use the "user" role'
    yield from _pairing_complaints(messages, pairs)
    if messages and messages[-1]["role"] == "assistant":
        yield (
            "This model does not support assistant message prefill. "
            "The conversation must end with a user message."
        )


def _is_usual(message: Any) -> bool:
    """Whether a message is one of those that most are: some text of the user or the assistant."""
    if type(message) is not dict or len(message) != 2:
        return False
    role, content = message.get("role"), message.get("content")
    if role not in ("user", "assistant"):
        return False
    if type(content) is list and len(content) == 1 and type(content[0]) is dict:
        content = content[0].get("text") if content[0].get("type") == "text" else None
    return type(content) is str and bool(content) and not content.isspace()


def _shape_complaints(where: str, message: Any) -> Iterator[str]:
    if not isinstance(message, dict):
        yield f"{where}: Input should be an object"
    role, content = message.get("role"), message.get("content")
    for name in message:
        if name not in ("role", "content") and (role != "system" or name not in _SYSTEM_FIELDS):
            yield f"{where}.{name}: Extra inputs are not permitted"
    if role not in _ROLES:
        yield f"{where}.role: Input should be 'user' or 'assistant'"
    if content is None and message.get("output_config"):
        content = ""
    if not isinstance(content, (str, list)):
        yield f"{where}.content: Input should be a string or a list of blocks"
    if not content and not message.get("output_config"):
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


def _pairing_complaints(messages: Sequence[Mapping[str, Any]], pairs: Pairing) -> Iterator[str]:
    """Each call of a message is answered in the very next one, and nothing else is."""
    new: set[str] = set()
    for message in messages:
        index, asked = pairs.index, pairs.asked
        if message["role"] == "system":
            pairs.expect(asked)
            continue
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
        pairs.expect([block["id"] for block in blocks if block["type"] == "tool_use"])
        for call_id in pairs.asked:
            if call_id in new or pairs.knows(call_id):
                yield f"messages.{index}: `tool_use` ids must be unique: {call_id}"
            new.add(call_id)
    pairs.add(new)
    if pairs.asked:
        yield _unanswered(pairs.index - 1, pairs.asked)


def is_callable(tool: Mapping[str, Any]) -> bool:
    """Whether a client runs this tool; what the API's servers run is never called."""
    kind = tool.get("type") or "custom"
    return kind == "custom" or "input_schema" in tool or kind.startswith(_CLIENT_TOOLS)


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
