"""Messages, tool calls, replies and usage in the shape of Anthropic's Messages API; pure builders.

A message is the JSON object itself (``{"role", "content": [block, ...]}``), so what is stored, sent
and drawn is one thing. Messages are never changed once made: a conversation grows by new ones.
Nothing here knows who sends a request or where a message rests.

Source: https://docs.anthropic.com/en/api/messages (roles, content blocks, stop reasons).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, TypeAlias

__all__ = [
    "Block",
    "Message",
    "Model",
    "Reply",
    "Request",
    "ToolCall",
    "ToolResult",
    "Usage",
    "assistant",
    "seal",
    "text_of",
    "tool_calls_of",
    "tool_results",
    "user",
]

Block: TypeAlias = dict[str, Any]
Message: TypeAlias = dict[str, Any]


class Usage(NamedTuple):
    """Tokens of one model call."""

    input_tokens: int = 0
    output_tokens: int = 0


class ToolCall(NamedTuple):
    """One use of a tool that the model asked for."""

    id: str
    name: str
    input: Mapping[str, Any]


class ToolResult(NamedTuple):
    """What a tool call gave; ``content`` is text for the model."""

    call_id: str
    content: str
    is_error: bool = False


class Reply(NamedTuple):
    """One answer of the model.

    Attributes:
        content: the blocks, in order (``text``, ``tool_use``, ...).
        stop_reason: ``end_turn``, ``tool_use``, ``max_tokens``, ``stop_sequence``, ``refusal``, ...
    """

    content: tuple[Block, ...]
    stop_reason: str
    usage: Usage = Usage()
    model: str = ""
    id: str = ""

    @property
    def text(self) -> str:
        """The text blocks, joined."""
        return "".join(block["text"] for block in self.content if block["type"] == "text")

    @property
    def tool_calls(self) -> tuple[ToolCall, ...]:
        """The tool calls, in the order in which the model asked for them."""
        return tool_calls_of(self.content)


class Request(NamedTuple):
    """All that one model call is given.

    Attributes:
        tools: tool definitions as the Messages API takes them (``name``, ``description``,
            ``input_schema``).
        timeout_s: how long this call may take, or None for the client's own limit.
    """

    model: str
    system: str
    messages: Sequence[Message]
    tools: Sequence[Mapping[str, Any]] = ()
    max_tokens: int = 1024
    temperature: float | None = None
    timeout_s: float | None = None


class Model(Protocol):
    """Who answers: the real API, the simulated one, or a function in a test."""

    def __call__(
        self, request: Request, on_text: Callable[[str], None] | None = None
    ) -> Awaitable[Reply]:
        """Return the reply; with ``on_text``, stream it and call that with each piece of text.

        Raises:
            ModelRefused: the request is wrong.
            ModelUnavailable: the service cannot answer now.
            ModelGarbage: the answer is not a reply.
        """
        ...


def user(text: str) -> Message:
    """Return the user's message with this text."""
    return {"role": "user", "content": [{"type": "text", "text": text}]}


def assistant(content: str | Iterable[Block]) -> Message:
    """Return the assistant's message from text or from content blocks."""
    blocks = [{"type": "text", "text": content}] if isinstance(content, str) else list(content)
    return {"role": "assistant", "content": blocks}


def tool_results(results: Iterable[ToolResult]) -> Message:
    """Return the one user message that carries the results of a reply's tool calls."""
    return {
        "role": "user",
        "content": [
            {
                "type": "tool_result",
                "tool_use_id": r.call_id,
                "content": r.content,
                "is_error": r.is_error,
            }
            for r in results
        ],
    }


def seal(messages: Sequence[Message], reason: str) -> list[Message]:
    """Return the messages that make a conversation that was broken off legal again.

    The Messages API refuses a ``tool_use`` without its ``tool_result``, and two user messages in a
    row mean something else than what happened. So every open tool call gets an error result, and
    the assistant has the last word.
    """
    if not messages or (
        messages[-1]["role"] == "assistant" and not tool_calls_of(messages[-1]["content"])
    ):
        return []
    added: list[Message] = []
    if messages[-1]["role"] == "assistant":
        calls = tool_calls_of(messages[-1]["content"])
        added.append(tool_results(ToolResult(call.id, reason, is_error=True) for call in calls))
    return [*added, assistant(reason)]


def text_of(message: Message) -> str:
    """Return the text of a message: its text blocks and the text inside its tool results."""
    content = message["content"]
    if isinstance(content, str):
        return content
    pieces: list[str] = []
    for block in content:
        if block["type"] == "text":
            pieces.append(block["text"])
        elif block["type"] == "tool_result":
            inner = block.get("content", "")
            pieces.append(inner if isinstance(inner, str) else text_of({"content": inner}))
    return "\n".join(pieces)


def tool_calls_of(content: Iterable[Block]) -> tuple[ToolCall, ...]:
    """Return the tool calls among content blocks."""
    # A list first: a generator costs twice as much, and each turn asks some times.
    calls = [ToolCall(b["id"], b["name"], b["input"]) for b in content if b["type"] == "tool_use"]
    return tuple(calls)
