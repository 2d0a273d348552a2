"""What a turn has done so far, so that it can stop anywhere and another holder can go on.

A turn's messages are complete at every moment but one: while tool calls run, some results are
known and some are not. ``OpenTurn`` keeps both, is written to the journal as lines, and is built
from them again. It decides nothing and touches no file.

    {"open": turn_id, "fence": 7, "version": "…", "prompt": message}      first, with the first step
    {"reply": message, "usage": [in, out]}                                 after each model call
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
    tool_calls_of,
    tool_results,
)

__all__ = ["Finished", "OpenTurn"]


class Finished(NamedTuple):
    """How a turn ended that is in the conversation.

    Attributes:
        first: index of its prompt among the session's messages.
        last: index of its last message.
        is_sealed: it was broken off and closed by somebody else; it has no reply.
        version: of the configuration that it began with.
    """

    turn_id: str
    first: int
    last: int
    is_sealed: bool
    usage: Usage
    version: str


class OpenTurn:
    """One turn between its prompt and its end. Owned by the holder of the session.

    Attributes:
        messages: its prompt and what came since, complete messages only.
        results: of the last reply's tool calls, while some of them are still missing.
        calls: the tool calls of the last reply that have no result yet, in order.
        is_answered: the model has given its final reply.
    """

    __slots__ = (
        "calls",
        "is_answered",
        "is_sealed",
        "messages",
        "results",
        "steps",
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
        self.is_sealed = False

    def add_reply(self, content: Message, usage: Usage) -> None:
        """Take the model's reply."""
        self.messages.append(content)
        self.calls = tool_calls_of(content["content"])
        self.is_answered = not self.calls
        self.usage = Usage(
            self.usage.input_tokens + usage.input_tokens,
            self.usage.output_tokens + usage.output_tokens,
        )
        self.steps += 1

    def add_result(self, result: ToolResult) -> None:
        """Take a tool's result; the last one completes the message that carries them all."""
        self.results[result.call_id] = result
        self.calls = tuple([call for call in self.calls if call.id != result.call_id])
        if not self.calls:
            asked = tool_calls_of(self.messages[-1]["content"])
            self.messages.append(tool_results(self.results[call.id] for call in asked))
            self.results = {}

    def refuse_calls(self, reason: str) -> list[ToolResult]:
        """Return each open call an error result in place of its own."""
        refused = [ToolResult(call.id, reason, is_error=True) for call in self.calls]
        for result in refused:
            self.add_result(result)
        return refused

    def seal(self, reason: str) -> list[dict[str, Any]]:
        """Close it for good, and give the entries that say so.

        What is open gets an error result, and the assistant has the last word.
        """
        entries = [self.result_entry(result) for result in self.refuse_calls(reason)]
        self.is_sealed = self.is_answered = True
        last = assistant(reason)
        self.messages.append(last)
        return [*entries, {"reply": last, "usage": [0, 0], "sealed": True}]

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
        return {
            "done": self.turn_id,
            "fence": fence,
            "messages": [first, first + len(self.messages) - 1],
            "end": end_bytes,
            "sealed": self.is_sealed,
            "usage": [*self.usage],
            "version": self.version,
        }

    @staticmethod
    def reply_entry(message: Message, usage: Usage) -> dict[str, Any]:
        """Return the journal's entry of a reply."""
        return {"reply": message, "usage": [*usage]}

    @staticmethod
    def result_entry(result: ToolResult) -> dict[str, Any]:
        """Return the journal's entry of a tool's result."""
        return {"result": result._asdict()}

    @classmethod
    def reopened(cls, entry: Mapping[str, Any]) -> OpenTurn:
        """Return the turn that an ``open`` entry begins."""
        return cls(entry["open"], entry["prompt"], entry["version"])

    def replay(self, entry: Mapping[str, Any]) -> bool:
        """Take one more entry of the journal; say whether it was one of a turn's steps."""
        if "reply" in entry:
            self.add_reply(entry["reply"], Usage(*entry["usage"]))
            self.is_sealed = "sealed" in entry
            if "not_run" in entry:
                self.refuse_calls(entry["not_run"])
        elif "result" in entry:
            self.add_result(ToolResult(**entry["result"]))
        else:
            return False
        return True
