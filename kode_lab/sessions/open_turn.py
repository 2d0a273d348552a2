"""One turn that is not in the conversation yet: what it has done, as messages and journal entries.

A turn can stop anywhere and be continued by another holder of the session. ``OpenTurn`` keeps its
messages and the tool results that are known so far, writes them as journal entries, and is rebuilt
from these entries. It must not know files, databases, leases or models.

    {"open": turn_id, "fence": 7, "version": "...", "prompt": message}     with the first step
    {"reply": message, "usage": [in, out], "facts": {...}}                 after each model call
    {"reply": ..., "usage": ..., "not_run": reason}                        a reply that was cut off
    {"result": {"call_id": ..., "content": ..., "is_error": ...}}          after each tool call
    {"steered": turn_id, "content": [...]}                                 a prompt given to it
    {"facts": {...}}                                                       anything else to remember
    {"done": turn_id, "fence": 7, ...}                                     replaces all of these

Source: event sourcing with one aggregate, as in the journals of Restate and DBOS.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from kode_lab.message import (
    Block,
    Message,
    ToolCall,
    ToolResult,
    Usage,
    assistant,
    tool_calls_of,
    tool_results,
    user,
)
from kode_lab.sessions.conversation import decode, encode

__all__ = ["OUTCOME_UNKNOWN", "Finished", "OpenTurn"]

# What the model is told of a call that ran when its turn was ended: it must not repeat it blindly.
OUTCOME_UNKNOWN = (
    "The turn ended while this call was running, before its result was known. It may have taken "
    "effect: check before you repeat it."
)
_NO_FACTS: Mapping[str, Any] = {}


class Finished(NamedTuple):
    """How a turn that is in the conversation ended.

    Attributes:
        first: index of its prompt among the session's messages.
        last: index of its last message.
        is_sealed: it was ended from outside and has no reply.
        version: of the configuration that it began with.
        is_rewound: its messages were removed by a rewind; its id stays known.
        facts: what else is known of it, as JSON values: ``stop_reason`` if it is not ``end_turn``,
            ``thinking_by`` (the model that wrote the thinking in it, "*" for several).
    """

    turn_id: str
    first: int
    last: int
    is_sealed: bool
    usage: Usage
    version: str
    is_rewound: bool = False
    facts: Mapping[str, Any] = _NO_FACTS


class OpenTurn:
    """One turn between its prompt and its end. Only the holder of the session uses it.

    Attributes:
        messages: its prompt and what was said since, complete messages only.
        results: of the last reply's tool calls, while some of them are still missing.
        calls: the tool calls of the last reply that have no result yet, in order.
        begun: ids of those calls that were started.
        is_answered: the model has sent its final reply.
        is_paused: the model's service paused the last reply; asked again, it continues it.
        thinking: the models that wrote thinking, by the index of the message that holds it.
        facts: what else is to be remembered of the turn, as JSON values.
    """

    __slots__ = (
        "_encoded",
        "begun",
        "calls",
        "facts",
        "is_answered",
        "is_paused",
        "is_sealed",
        "messages",
        "results",
        "steps",
        "thinking",
        "turn_id",
        "usage",
        "version",
    )

    def __init__(self, turn_id: str, prompt: Message, version: str) -> None:
        self.turn_id = turn_id
        self.version = version
        self.messages: list[Message] = [prompt]
        self._encoded: list[bytes] = []
        self.results: dict[str, ToolResult] = {}
        self.usage = Usage()
        self.steps = 0
        self.calls: tuple[ToolCall, ...] = ()
        self.begun: set[str] = set()
        self.is_answered = False
        self.is_paused = False
        self.is_sealed = False
        self.facts: dict[str, Any] = {}
        self.thinking: dict[int, str] = {}

    @property
    def encoded(self) -> list[bytes]:
        """The messages as JSON, each encoded once."""
        done = len(self._encoded)
        if done < len(self.messages):
            self._encoded.extend(map(encode, self.messages[done:]))
        return self._encoded

    def add_reply(
        self, content: Message, usage: Usage, facts: Mapping[str, Any] = _NO_FACTS
    ) -> None:
        """Add the model's reply. The caller's objects are copied: the model may still have them.

        A reply that continues a paused one becomes one message with it.

        Args:
            content: the assistant's message.
            usage: what it took.
            facts: ``stop_reason`` if it is not the usual one, ``thinking_by`` (the model that wrote
                the thinking in it) if there is any.
        """
        if self.is_paused:
            paused = self.messages.pop()
            del self._encoded[len(self.messages) :]
            content = assistant([*paused["content"], *content["content"]])
        self._take_facts(facts)
        written = encode(content)
        own: Message = decode(written)
        self.calls = tool_calls_of(own["content"])
        if self.calls:  # whose inputs are shown to others
            own = decode(written)
        if len(self._encoded) == len(self.messages):
            self._encoded.append(written)
        self.messages.append(own)
        self.is_paused = self.facts.get("stop_reason") == "pause_turn" and not self.calls
        self.is_answered = not self.calls and not self.is_paused
        self.usage = Usage(
            self.usage.input_tokens + usage.input_tokens,
            self.usage.output_tokens + usage.output_tokens,
        )
        self.steps += 1

    def add_prompt(self, turn_id: str, blocks: list[Block]) -> dict[str, Any]:
        """Add a prompt that was given to the turn while it ran, and return the journal's entry.

        ``facts["steered"]`` says where it is: the message's index, and its blocks in it.
        """
        last, start = self.messages[-1], 0
        if last["role"] == "user":  # tool results, which come first
            start = len(last["content"])
            self.messages[-1] = {**last, "content": [*last["content"], *blocks]}
            del self._encoded[len(self.messages) - 1 :]
        else:
            self.messages.append(user(blocks))
        where = [len(self.messages) - 1, start, start + len(blocks)]
        self.facts["steered"] = {**self.facts.get("steered", {}), turn_id: where}
        self.is_answered = False
        return {"steered": turn_id, "content": blocks}

    def add_result(self, result: ToolResult) -> None:
        """Add a tool's result; the last one completes the message that carries them all."""
        self.results[result.call_id] = result
        self.calls = tuple([call for call in self.calls if call.id != result.call_id])
        if not self.calls:
            asked = tool_calls_of(self.messages[-1]["content"])
            self.messages.append(tool_results(self.results[call.id] for call in asked))
            self.results = {}
            self.begun.clear()

    def refuse_calls(self, reason: str) -> list[ToolResult]:
        """End each open call with an error result; one that was begun has an unknown outcome."""
        refused = [
            ToolResult(call.id, OUTCOME_UNKNOWN if call.id in self.begun else reason, is_error=True)
            for call in self.calls
        ]
        for result in refused:
            self.add_result(result)
        return refused

    def seal(self, reason: str) -> list[dict[str, Any]]:
        """End the turn without a reply, and return the entries that say so.

        Open calls get an error result, and the last message says the reason.
        """
        not_run = f"Not run. {reason}"
        entries = [self.result_entry(result) for result in self.refuse_calls(not_run)]
        last = assistant(reason)
        self.add_reply(last, Usage())
        self.is_sealed = True
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
        """Return the entry that replaces all others once the turn is in the conversation."""
        entry = {
            "done": self.turn_id,
            "fence": fence,
            "messages": [first, first + len(self.messages) - 1],
            "end": end_bytes,
            "sealed": self.is_sealed,
            "usage": [*self.usage],
            "version": self.version,
        }
        if self.facts:
            entry["facts"] = self.facts
        return entry

    def finished(self, first: int) -> Finished:
        """Return how the turn ended, with its messages from ``first`` on in the conversation."""
        return Finished(
            self.turn_id,
            first,
            first + len(self.messages) - 1,
            self.is_sealed,
            self.usage,
            self.version,
            facts=dict(self.facts) if self.facts else _NO_FACTS,
        )

    def remember(self, **facts: Any) -> dict[str, Any]:
        """Remember JSON values with the turn, and return the journal's entry of them."""
        self.facts.update(facts)
        return {"facts": facts}

    def _take_facts(self, facts: Mapping[str, Any]) -> None:
        """Remember the facts of the reply that comes next."""
        self.facts.pop("stop_reason", None)  # of the reply before
        if by := facts.get("thinking_by"):
            at = len(self.messages)
            self.thinking[at] = by if self.thinking.get(at, by) == by else "*"
            models = set(self.thinking.values())
            facts = {**facts, "thinking_by": by if models == {by} else "*"}
        self.facts.update(facts)

    @staticmethod
    def reply_entry(
        message: Message, usage: Usage, facts: Mapping[str, Any] = _NO_FACTS
    ) -> dict[str, Any]:
        """Return the journal's entry of a reply."""
        entry: dict[str, Any] = {"reply": message, "usage": [*usage]}
        return entry | {"facts": dict(facts)} if facts else entry

    @staticmethod
    def result_entry(result: ToolResult) -> dict[str, Any]:
        """Return the journal's entry of a tool's result."""
        return {"result": result._asdict()}

    @classmethod
    def reopened(cls, entry: Mapping[str, Any]) -> OpenTurn:
        """Return the turn that an ``open`` entry begins."""
        return cls(entry["open"], entry["prompt"], entry["version"])

    def replay(self, entry: Mapping[str, Any]) -> bool:
        """Apply one more entry of the journal; return whether it was one of a turn's steps."""
        if "reply" in entry:
            self.add_reply(entry["reply"], Usage(*entry["usage"]), entry.get("facts", _NO_FACTS))
            self.is_sealed = "sealed" in entry
            if "not_run" in entry:
                self.refuse_calls(entry["not_run"])
        elif "result" in entry:
            self.add_result(ToolResult(**entry["result"]))
        elif "steered" in entry:
            self.add_prompt(entry["steered"], entry["content"])
        elif "facts" in entry:
            self.facts.update(entry["facts"])
        else:
            return False
        return True
