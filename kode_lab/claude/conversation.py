"""What one request shows the model, folded message by message from any wire format.

The fold is all that the script and the witness need of a conversation: the turn under way, and the
markers that the model was shown. It is small and does not grow with the conversation, so it can be
kept for a prefix that was seen before, or for a client that leaves its history with the server.
It must never know a wire format or a socket.

Three kinds of text are told apart: a *prompt* (a user's text), a *reply* (an assistant's), and the
rest (system texts, reminders that a client puts around a prompt, tool results). Only a prompt
opens a turn. The markers of the rest are kept apart as *mentions*.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from kode_lab.claude import wording
from kode_lab.history.operation import TAIL_LIMIT, Read, digest_of, markers_in, read_of

__all__ = [
    "MENTIONS_LIMIT",
    "Conversation",
    "Incomplete",
    "ToolAnswer",
    "conversation_of",
    "schedules_in",
    "shown_to",
]

# How many distinct markers outside prompts, and how many half-shown turns, are kept of a request.
MENTIONS_LIMIT = 256
_REMINDER = re.compile(r"<system-reminder>.*?</system-reminder>\s*", re.DOTALL)
# An echo that a reply ends with (``operation.echo_of``); in a prompt it is a quotation.
_ECHO = re.compile(r"\[(#m[0-9a-f]{10}-[0-9a-f]{6,}) read [^\]]*\]")


class ToolAnswer(NamedTuple):
    """The result of one tool call, as a request brings it."""

    tool: str
    text: str
    is_error: bool = False


class Incomplete(Exception):
    """A trimmed fold met a marker that it can only place with all earlier ones: fold anew."""


class Conversation:
    """The fold of a conversation: ``add`` messages in order, then read the attributes.

    Attributes:
        count: messages so far.
        size_chars: their length as JSON, for the token count.
        prompts: how many prompts there were.
        prompt: the last of them, without reminders.
        call: how many replies followed it: which model call of its turn is asked for, from 0.
        results: what the tool calls of the turn gave, in order.
        calls: names by id of the turn's tool calls.
        called: names of the tools that the turn called, in order.
        added: definitions of tools that messages brought.
        thoughts: how many blocks of signed thinking came back.
        schedule_id: the last schedule that an earlier turn's tool result named, or None.
        pairs: what the wire format remembers of tool calls without a result; only it looks in.
        mentions: markers outside prompts and replies, each once, at most ``MENTIONS_LIMIT``.
        replies: how many replies echo a marker, and the digest of those markers in order.
    """

    __slots__ = (
        "_again",
        "_before",
        "_digest",
        "_half",
        "_is_plain",
        "_newest",
        "_replies_digest",
        "_shown",
        "_tail",
        "_unanswered",
        "added",
        "call",
        "called",
        "calls",
        "count",
        "mentions",
        "pairs",
        "prompt",
        "prompts",
        "replies",
        "results",
        "schedule_id",
        "size_chars",
        "thoughts",
    )

    def __init__(self) -> None:
        self.count = self.size_chars = self.prompts = self.call = self.thoughts = 0
        self.prompt = ""
        self.results: tuple[ToolAnswer, ...] = ()
        self.added: tuple[Mapping[str, Any], ...] = ()
        self.calls: dict[str, str] = {}
        self.called: tuple[str, ...] = ()
        self.schedule_id: int | None = None
        self.pairs: Any = None
        self.mentions: tuple[str, ...] = ()
        self.replies = 0
        self._replies_digest = 0
        # Plain: one session's markers, each newer than all before it. Then a count, a digest and a
        # tail stand for them; else the whole list is needed.
        self._is_plain = True
        self._newest = ""
        self._again = self._before = self._digest = 0
        self._tail: tuple[str, ...] = ()
        self._shown: list[str] | None = []
        self._half: tuple[str, ...] = ()
        self._unanswered: tuple[str, ...] = ()

    def copy(self, *, is_trimmed: bool = False) -> Conversation:
        """Return a fold that can grow by itself.

        Args:
            is_trimmed: leave the list of markers out where a count and a digest stand for it, so
                that the size does not depend on the length of the conversation.
        """
        other = Conversation.__new__(Conversation)
        for name in Conversation.__slots__:
            setattr(other, name, getattr(self, name))
        shown = self._shown
        if shown is not None:
            setattr(other, "_shown", None if is_trimmed and self._is_plain else list(shown))  # noqa: B010
        other.calls = dict(self.calls)
        return other

    @property
    def marker(self) -> str:
        """The newest marker among the prompts, or "" when there is none."""
        return self._newest

    @property
    def replies_digest(self) -> int:
        """The order-sensitive digest of the markers that the replies echo."""
        return self._replies_digest

    def read(self) -> Read:
        """Return what the turn of ``marker`` was shown of its session and of others."""
        own = self._newest
        session = own.partition("-")[0]
        torn = tuple(
            dict.fromkeys(m for m in self._half if m != own and m.partition("-")[0] == session)
        )
        if self._is_plain:
            return Read(self._before, self._digest, self._tail, (), torn)
        read = read_of(own, self._shown or ())
        return read._replace(foreign=read.foreign[:MENTIONS_LIMIT], half=torn)

    def mention(self, text: str) -> None:
        """Add a text that is neither a prompt nor a reply."""
        if "#m" in text:
            room = MENTIONS_LIMIT - len(self.mentions)
            found = [m for m in dict.fromkeys(markers_in(text)) if m not in self.mentions]
            self.mentions += tuple(found[:room])

    def add_user(self, texts: Iterable[str], results: Sequence[tuple[str, str, bool]] = ()) -> None:
        """Add a user's message.

        Args:
            texts: its texts, reminders included.
            results: of each tool result the call's id, the text, and whether it is an error.
        """
        self.count += 1
        for call_id, text, is_error in results:
            self.add_result(self.calls.get(call_id, ""), text, is_error=is_error)
        said = [text for text in map(self._without_reminders, texts) if text.strip()]
        found = [marker for text in said for marker in _prompt_markers(text)]
        if said and (found or not results):
            self.prompts += 1
            self.prompt = "\n".join(said)
            for result in self.results:
                for one in schedules_in(result.text):
                    self.schedule_id = one["id"]
            self.call, self.results, self.called, self.calls = 0, (), (), {}
        for marker in found:
            self._show(marker)
        if found:
            self._half = (self._half + self._unanswered)[-MENTIONS_LIMIT:]
            self._unanswered = tuple(found)

    def add_result(self, tool: str, text: str, *, is_error: bool = False) -> None:
        """Add the result of a tool call of the turn under way."""
        self.results += (ToolAnswer(tool, text, is_error),)
        self.mention(text)

    def add_assistant(self, texts: Iterable[str], calls: Iterable[tuple[str, str]] = ()) -> None:
        """Add an assistant's message; of each tool call the id and the tool's name."""
        self.count += 1
        self.call += 1
        is_final = True
        for call_id, name in calls:
            is_final = False
            self.calls[call_id] = name
            self.called += (name,)
        for text in texts:
            if "#m" in text:
                self.mention(_ECHO.sub(self._replied, text))
        if is_final:
            self._unanswered = ()

    def add_system(self, texts: Iterable[str]) -> None:
        """Add a message of the system or the developer within the conversation."""
        self.count += 1
        for text in texts:
            self.mention(text)

    def _without_reminders(self, text: str) -> str:
        if "<system-reminder>" not in text:
            return text
        for reminder in _REMINDER.findall(text):
            self.mention(reminder)
        return _REMINDER.sub("", text)

    def _replied(self, echo: re.Match[str]) -> str:
        self.replies += 1
        self._replies_digest = digest_of((echo[1],), self._replies_digest)
        return ""

    def _show(self, marker: str) -> None:
        if self._shown is not None:
            self._shown.append(marker)
        newest = self._newest
        if marker == newest:
            self._again += 1
            return
        if newest:
            tag, _, number = marker.partition("-")
            own_tag, _, own_number = newest.partition("-")
            if tag != own_tag or int(number, 16) <= int(own_number, 16):
                if self._shown is None:
                    raise Incomplete
                self._is_plain = False
            times = (newest,) * (1 + self._again)
            self._before += len(times)
            self._digest = digest_of(times, self._digest)
            self._tail = (*self._tail, *times)[-TAIL_LIMIT:]
        self._newest, self._again = marker, 0


def conversation_of(
    messages: Iterable[Mapping[str, Any]], conversation: Conversation | None = None
) -> Conversation:
    """Fold messages in the shape of the Messages API, after those of ``conversation``."""
    fold = conversation or Conversation()
    for message in messages:
        role, content = message["role"], message.get("content", "")
        texts: list[str] = []
        results: list[tuple[str, str, bool]] = []
        calls: list[tuple[str, str]] = []
        if isinstance(content, str):
            texts.append(content)
        else:
            for block in content:
                kind = block["type"]
                if kind == "text":
                    texts.append(block["text"])
                elif kind == "tool_result":
                    inner = "\n".join(_texts_of(block.get("content") or ""))
                    results.append((block["tool_use_id"], inner, bool(block.get("is_error"))))
                elif kind == "tool_use":
                    calls.append((block["id"], block["name"]))
                elif kind in ("thinking", "redacted_thinking"):
                    fold.thoughts += 1
                elif kind == "tool_addition":
                    definition = (block.get("tool") or {}).get("definition")
                    fold.added += (definition,) if isinstance(definition, dict) else ()
                elif kind == "compaction":
                    fold.mention(block.get("content") or "")
        if role == "user":
            fold.add_user(texts, results)
        elif role == "assistant":
            fold.add_assistant(texts, calls)
        else:
            fold.add_system(texts)
    return fold


def shown_to(messages: Sequence[Mapping[str, Any]]) -> tuple[str, Read] | None:
    """Return the newest marker among a request's prompts and what came with it, or None.

    Only texts of user messages count: an echo in an assistant's message is no prompt. A turn of the
    same session whose prompt is followed by the next one, without a final reply between, was shown
    by half.
    """
    fold = conversation_of(messages)
    return (fold.marker, fold.read()) if fold.marker else None


def schedules_in(text: str) -> Iterator[dict[str, Any]]:
    """Yield the schedules in a tool's result: JSON objects with an id, or else the ids in prose."""
    try:
        value = json.loads(text)
    except ValueError:
        yield from ({"id": number} for number in wording.ids_in(text))
        return
    pending = [value]
    while pending:
        value = pending.pop(0)
        if isinstance(value, list):
            pending[:0] = value
        elif isinstance(value, dict):
            number = value.get("schedule_id", value.get("id"))
            if isinstance(number, int):
                yield {**value, "id": number}
            else:
                pending[:0] = [inner for inner in value.values() if isinstance(inner, (dict, list))]


def _prompt_markers(text: str) -> list[str]:
    if "#m" not in text:
        return []
    return markers_in(_ECHO.sub("", text) if " read " in text else text)


def _texts_of(content: Any) -> Iterator[str]:
    if isinstance(content, str):
        yield content
    else:
        yield from (block["text"] for block in content if block["type"] == "text")
