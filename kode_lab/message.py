"""Messages, tool calls, replies and usage in the shape of Anthropic's Messages API; pure builders.

A message is the JSON object itself (``{"role", "content": [block, ...]}``), so that what is stored,
sent and drawn is the same value. Messages are never changed: a conversation grows by new ones.
This module must not know who sends a request or where a message is stored.

Source: https://docs.anthropic.com/en/api/messages (roles, content blocks, stop reasons).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, TypeAlias

__all__ = [
    "CUT_OFF",
    "Block",
    "Content",
    "Message",
    "Model",
    "Reply",
    "Request",
    "ToolCall",
    "ToolResult",
    "Usage",
    "assistant",
    "has_thinking",
    "text_of",
    "tool_calls_of",
    "tool_results",
    "user",
    "without_thinking",
]

Block: TypeAlias = dict[str, Any]
Message: TypeAlias = dict[str, Any]
Content: TypeAlias = str | Sequence[Block]

# Stop reasons of replies that end in the middle: their last block may not be whole.
CUT_OFF = frozenset({"max_tokens", "model_context_window_exceeded", "refusal"})
_THINKING = ("thinking", "redacted_thinking")


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
    """The result of a tool call; ``content`` is text for the model."""

    call_id: str
    content: str
    is_error: bool = False


class Reply(NamedTuple):
    """One answer of the model.

    Attributes:
        content: the blocks, in order (``text``, ``tool_use``, ...).
        stop_reason: why the answer ends here: ``end_turn``, ``tool_use``, ``stop_sequence``,
            ``pause_turn`` (ask again to continue it), ``max_tokens``, ``refusal``,
            ``model_context_window_exceeded``, or a word that is newer than this list.
        usage: the tokens that it took.
        model: the model that answered, as its service names it.
        id: the service's id of this answer.
    """

    content: tuple[Block, ...]
    stop_reason: str
    usage: Usage = Usage()
    model: str = ""
    id: str = ""

    @classmethod
    def of_text(cls, text: str, stop_reason: str = "end_turn") -> Reply:
        """Return a reply with one block of text."""
        return cls(({"type": "text", "text": text},), stop_reason)

    @property
    def text(self) -> str:
        """The text blocks, joined."""
        return "".join(block["text"] for block in self.content if block["type"] == "text")

    @property
    def tool_calls(self) -> tuple[ToolCall, ...]:
        """The tool calls, in the order in which the model asked for them."""
        return tool_calls_of(self.content)


class Request(NamedTuple):
    """Everything that one model call receives.

    Attributes:
        model: the model's name, from the agent's configuration.
        system: the system prompt.
        messages: the conversation, oldest message first. A model must not change them.
        tools: tool definitions as the Messages API takes them (``name``, ``description``,
            ``input_schema``).
        max_tokens: limit of the answer.
        temperature: of sampling, or None for the model's own.
        timeout_s: how long this call may take, or None for the client's own limit.
        time_left_s: what is left of the turn's time: a pause before a retry that is longer fails
            at once. None if the turn has no limit.
        cache: whether to mark the prompt's prefix for the service's prompt cache.
    """

    model: str
    system: str
    messages: Sequence[Message]
    tools: Sequence[Mapping[str, Any]] = ()
    max_tokens: int = 1024
    temperature: float | None = None
    timeout_s: float | None = None
    time_left_s: float | None = None
    cache: bool = False


class Model(Protocol):
    """The model behind the agents: an async callable that takes a ``Request``.

    ``Claude`` (the Messages API) is one; a function is one, too::

        async def model(request: Request, on_text: Callable[[str], None] | None = None) -> Reply:
            return Reply.of_text("hello")
    """

    def __call__(
        self, request: Request, on_text: Callable[[str], None] | None = None
    ) -> Awaitable[Reply]:
        """Return the reply; with ``on_text``, call that with each piece of text as it arrives.

        Raises:
            ModelRefused: the request is wrong; sending it again will not help.
            ModelUnavailable: the service cannot answer now.
            ModelGarbage: the answer is not a reply.
        """
        ...


def user(content: str | Iterable[Block]) -> Message:
    """Return the user's message from text or from content blocks."""
    blocks = [{"type": "text", "text": content}] if isinstance(content, str) else list(content)
    return {"role": "user", "content": blocks}


def assistant(content: str | Iterable[Block]) -> Message:
    """Return the assistant's message from text or from content blocks."""
    blocks = [{"type": "text", "text": content}] if isinstance(content, str) else list(content)
    return {"role": "assistant", "content": blocks}


def has_thinking(message: Message) -> bool:
    """Whether a message holds thinking, which only the model that signed it accepts."""
    content = message["content"]
    return isinstance(content, list) and any(block["type"] in _THINKING for block in content)


def without_thinking(message: Message) -> Message:
    """Return the message without its thinking; the same object if it holds none."""
    if not has_thinking(message):
        return message
    kept = [block for block in message["content"] if block["type"] not in _THINKING]
    # A message without content is refused.
    return {**message, "content": kept or [{"type": "text", "text": "(No text.)"}]}


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
    # A list first: a generator costs twice as much, and each turn calls this several times.
    calls = [ToolCall(b["id"], b["name"], b["input"]) for b in content if b["type"] == "tool_use"]
    return tuple(calls)
