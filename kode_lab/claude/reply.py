"""From what the Messages API sends to a ``Reply``: whole, or put together from stream events.

Decisions without input or output: it gets parsed JSON and gives values, or says why it cannot.
It must never know how the bytes came, nor who asked.

Unknown block types and unknown event types pass through or are ignored, as the API's versioning
promise asks of clients.

Source: https://docs.claude.com/en/api/messages-streaming (events, deltas, cumulative usage).
Idea: h11, where everything that decides stays apart from everything that waits.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import orjson

from kode_lab.errors import ModelGarbage
from kode_lab.message import Block, Reply, Usage

__all__ = ["Assembly", "reply_of"]

# Where each kind of delta is appended in its block.
_APPENDED = {"text_delta": "text", "thinking_delta": "thinking", "signature_delta": "signature"}
# What must hold for a block of a known type to be usable by a turn.
_FIELDS: dict[str, tuple[tuple[str, type], ...]] = {
    "text": (("text", str),),
    "tool_use": (("id", str), ("name", str), ("input", dict)),
}


def reply_of(message: Any) -> Reply:
    """Return the reply that a ``message`` object of the API holds.

    Raises:
        ModelGarbage: it is not a message; the sentence names the field.
    """
    if not isinstance(message, dict) or message.get("type") != "message":
        raise ModelGarbage(f"expected an object of type message, got {message!r:.80}")
    content = message.get("content")
    if not isinstance(content, list):
        raise ModelGarbage(f"content must be a list of blocks, got {content!r:.80}")
    for index, block in enumerate(content):
        _check(index, block)
    stop_reason = message.get("stop_reason")
    if not isinstance(stop_reason, str):
        raise ModelGarbage(f"stop_reason must be a string, got {stop_reason!r:.80}")
    return Reply(
        tuple(content),
        stop_reason,
        _usage_of(message.get("usage")),
        str(message.get("model", "")),
        str(message.get("id", "")),
    )


class Assembly:
    """A message growing from the events of one stream.

    Attributes:
        is_complete: whether ``message_stop`` has come; only then is ``reply`` meaningful.
        has_text: whether any text was handed on, so that a retry would say it twice.
    """

    __slots__ = ("_blocks", "_json", "_message", "_on_text", "has_text", "is_complete")

    def __init__(self, on_text: Callable[[str], None]) -> None:
        self._on_text = on_text
        self._message: dict[str, Any] = {}
        self._blocks: dict[int, Block] = {}
        self._json: dict[int, list[str]] = {}
        self.is_complete = False
        self.has_text = False

    def take(self, event: Any) -> None:
        """Take one event: parsed data whose ``type`` says what it is; unknown types are ignored.

        Raises:
            ModelGarbage: the event lacks a field or comes out of its order.
        """
        try:
            self._take(event)
        except (KeyError, TypeError, AttributeError) as error:
            raise ModelGarbage(f"stream event {event!r:.80} cannot be used: {error!r}") from None
        except orjson.JSONDecodeError as error:
            raise ModelGarbage(f"a tool's streamed input is not JSON: {error}") from None

    def reply(self) -> Reply:
        """Return the reply that the events make.

        Raises:
            ModelGarbage: they do not make one.
        """
        content = [self._blocks[index] for index in sorted(self._blocks)]
        return reply_of(self._message | {"content": content})

    def _take(self, event: Any) -> None:
        kind = event["type"]
        if kind == "content_block_delta":
            self._grow(event["index"], event["delta"])
        elif kind == "content_block_start":
            self._blocks[event["index"]] = dict(event["content_block"])
        elif kind == "content_block_stop":
            pieces = self._json.pop(event["index"], None)
            if pieces is not None:
                self._blocks[event["index"]]["input"] = orjson.loads("".join(pieces) or "{}")
        elif kind == "message_start":
            self._message = dict(event["message"])
        elif kind == "message_delta":
            self._message |= event["delta"]
            # Cumulative, not to be added up.
            self._message["usage"] = self._message.get("usage", {}) | event.get("usage", {})
        elif kind == "message_stop":
            self.is_complete = True

    def _grow(self, index: int, delta: dict[str, Any]) -> None:
        kind = delta["type"]
        block = self._blocks[index]
        field = _APPENDED.get(kind)
        if field is not None:
            block[field] = block.get(field, "") + delta[field]
            if field == "text":
                self.has_text = True
                self._on_text(delta[field])
        elif kind == "input_json_delta":
            self._json.setdefault(index, []).append(delta["partial_json"])
        elif kind == "citations_delta":
            block["citations"] = [*(block.get("citations") or ()), delta["citation"]]


def _check(index: int, block: Any) -> None:
    if not isinstance(block, dict) or not isinstance(block.get("type"), str):
        raise ModelGarbage(f"content[{index}] must be an object with a type, got {block!r:.80}")
    for name, kind in _FIELDS.get(block["type"], ()):
        if not isinstance(block.get(name), kind):
            raise ModelGarbage(
                f"content[{index}] of type {block['type']} needs {name} ({kind.__name__}), "
                f"got {block.get(name)!r:.80}"
            )


def _usage_of(usage: Any) -> Usage:
    """Input is the sum of fresh, cache-writing and cache-reading tokens, as the API documents."""
    if not isinstance(usage, dict):
        raise ModelGarbage(f"usage must be an object, got {usage!r:.80}")
    try:
        return Usage(
            sum(
                int(usage.get(name) or 0)
                for name in (
                    "input_tokens",
                    "cache_creation_input_tokens",
                    "cache_read_input_tokens",
                )
            ),
            int(usage.get("output_tokens") or 0),
        )
    except (TypeError, ValueError) as error:
        raise ModelGarbage(f"usage {usage!r:.80} does not count tokens: {error}") from None
