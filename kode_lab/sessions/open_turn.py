"""What a turn has done so far, so that it can stop anywhere and another holder can continue.

A turn's messages are complete except while tool calls run: then some results are known and some
are not. ``OpenTurn`` keeps both, is written to the journal as lines, and is built from them again.
It must not decide anything, and must not touch a file.

    {"open": turn_id, "fence": 7, "version": "…", "prompt": message}      first, with the first step
    {"reply": message, "usage": [in, out]}                                 after each model call
    {"reply": …, "stop": "max_tokens", "thinking_by": model}               where these are not usual
    {"reply": …, "usage": …, "not_run": reason}                            one that was cut off
    {"result": {"call_id": …, "content": …, "is_error": …}}                after each tool call
    {"done": turn_id, "fence": 7, …}                                       instead of all of these

Source: the idea is event sourcing with one aggregate, a turn; as in Restate's and DBOS's journals.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from kode_lab.message import (
    Message,
    ToolCall,
    ToolResult,
    Usage,
    assistant,
    has_thinking,
    tool_calls_of,
    tool_results,
)

__all__ = ["Finished", "OpenTurn"]

# Of a reply whose entry has no "stop".
_USUAL_STOPS = ("end_turn", "tool_use")


class Finished(NamedTuple):
    """How a turn ended that is in the conversation.

    Attributes:
        first: index of its prompt among the session's messages.
        last: index of its last message.
        is_sealed: it was interrupted and closed by a later turn; it has no reply.
        version: of the configuration that it began with.
        stop_reason: why its last reply ended; "unknown" in records of older versions.
        thinking_by: the model that wrote the thinking in it; "" without thinking, "*" for several.
    """

    turn_id: str
    first: int
    last: int
    is_sealed: bool
    usage: Usage
    version: str
    stop_reason: str = "unknown"
    thinking_by: str = ""


class OpenTurn:
    """One turn between its prompt and its end. Owned by the holder of the session.

    Attributes:
        messages: its prompt and what came since, complete messages only.
        results: of the last reply's tool calls, while some of them are still missing.
        calls: the tool calls of the last reply that have no result yet, in order.
        is_answered: the model has given its final reply.
        is_paused: the model's service paused the last reply; asked again, it continues it.
        stop_reason: why the last reply ended.
        thinking: the models that wrote thinking, by the index of the message that holds it.
    """

    __slots__ = (
        "calls",
        "is_answered",
        "is_paused",
        "is_sealed",
        "messages",
        "results",
        "steps",
        "stop_reason",
        "thinking",
        "turn_id",
        "usage",
        "version",
    )

    def __init__(self, turn_id: str, prompt: Message, version: str) -> None:
        self.turn_id = turn_id
        self.version = version
        self.messages: list[Message] = [prompt]
        self.results: dict[str, ToolResult] = {}
        self.usage = Usage()
        self.steps = 0
        self.calls: tuple[ToolCall, ...] = ()
        self.is_answered = False
        self.is_paused = False
        self.is_sealed = False
        self.stop_reason = ""
        self.thinking: dict[int, str] = {}

    def add_reply(
        self, message: Message, usage: Usage, stop_reason: str = "", thinking_by: str = ""
    ) -> None:
        """Add the model's reply; one that continues a paused reply becomes one message with it."""
        if self.is_paused:
            begun = self.messages.pop()
            message = assistant([*begun["content"], *message["content"]])
        if thinking_by:
            at = len(self.messages)
            self.thinking[at] = (
                thinking_by if self.thinking.get(at, thinking_by) == thinking_by else "*"
            )
        self.messages.append(message)
        self.calls = tool_calls_of(message["content"])
        self.stop_reason = stop_reason or ("tool_use" if self.calls else "end_turn")
        self.is_paused = self.stop_reason == "pause_turn" and not self.calls
        self.is_answered = not self.calls and not self.is_paused
        self.usage = Usage(
            self.usage.input_tokens + usage.input_tokens,
            self.usage.output_tokens + usage.output_tokens,
        )
        self.steps += 1

    def add_result(self, result: ToolResult) -> None:
        """Add a tool's result; the last one completes the message that carries them all."""
        self.results[result.call_id] = result
        self.calls = tuple([call for call in self.calls if call.id != result.call_id])
        if not self.calls:
            asked = tool_calls_of(self.messages[-1]["content"])
            self.messages.append(tool_results(self.results[call.id] for call in asked))
            self.results = {}

    def refuse_calls(self, reason: str) -> list[ToolResult]:
        """Add an error result for each open call, and return these results."""
        refused = [ToolResult(call.id, reason, is_error=True) for call in self.calls]
        for result in refused:
            self.add_result(result)
        return refused

    def seal(self, reason: str) -> list[dict[str, Any]]:
        """Close the turn finally, and return the entries that record it.

        Open calls get an error result, and the last message is the assistant's.
        """
        entries = [self.result_entry(result) for result in self.refuse_calls(reason)]
        last = assistant(reason)
        self.add_reply(last, Usage(), "interrupted")
        self.is_sealed = True
        return [*entries, {"reply": last, "usage": [0, 0], "stop": "interrupted", "sealed": True}]

    def opening(self, fence: int) -> dict[str, Any]:
        """Return the journal's first entry of this turn."""
        return {
            "open": self.turn_id,
            "fence": fence,
            "version": self.version,
            "prompt": self.messages[0],
        }

    def closing(self, fence: int, first: int, end_bytes: int) -> dict[str, Any]:
        """Return the entry that stands for all others once the turn is in the conversation."""
        done = {
            "done": self.turn_id,
            "fence": fence,
            "messages": [first, first + len(self.messages) - 1],
            "end": end_bytes,
            "sealed": self.is_sealed,
            "usage": [*self.usage],
            "version": self.version,
            "stop": self.stop_reason,
        }
        return done | {"thinking_by": by} if (by := self.thinking_by) else done

    def finished(self, first: int) -> Finished:
        """Return how it ended; ``first`` is the index of its prompt in the session."""
        return Finished(
            self.turn_id,
            first,
            first + len(self.messages) - 1,
            self.is_sealed,
            self.usage,
            self.version,
            self.stop_reason,
            self.thinking_by,
        )

    @property
    def thinking_by(self) -> str:
        """The model that wrote all thinking in it, "*" for several, "" without thinking."""
        models = set(self.thinking.values())
        return models.pop() if len(models) == 1 else "*" if models else ""

    @staticmethod
    def reply_entry(
        message: Message, usage: Usage, stop_reason: str = "", model: str = ""
    ) -> dict[str, Any]:
        """Return the journal's entry of a reply that ``model`` was asked for."""
        entry: dict[str, Any] = {"reply": message, "usage": [*usage]}
        if stop_reason and stop_reason not in _USUAL_STOPS:
            entry["stop"] = stop_reason
        if has_thinking(message):
            entry["thinking_by"] = model
        return entry

    @staticmethod
    def result_entry(result: ToolResult) -> dict[str, Any]:
        """Return the journal's entry of a tool's result."""
        return {"result": result._asdict()}

    @classmethod
    def reopened(cls, entry: Mapping[str, Any]) -> OpenTurn:
        """Return the turn that an ``open`` entry starts."""
        return cls(entry["open"], entry["prompt"], entry["version"])

    def replay(self, entry: Mapping[str, Any]) -> bool:
        """Apply one more entry of the journal; return whether it was one of a turn's steps."""
        if "reply" in entry:
            self.add_reply(
                entry["reply"],
                Usage(*entry["usage"]),
                entry.get("stop", ""),
                entry.get("thinking_by", ""),
            )
            self.is_sealed = "sealed" in entry
            if "not_run" in entry:
                self.refuse_calls(entry["not_run"])
        elif "result" in entry:
            self.add_result(ToolResult(**entry["result"]))
        else:
            return False
        return True
