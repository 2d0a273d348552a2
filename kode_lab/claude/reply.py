"""Makes a ``Reply`` of what the Messages API sends: a whole message, or the events of a stream.

It takes parsed JSON and returns values, or raises with the reason. A streamed and a whole message
end in the same reply, block for block, also for kinds of blocks and deltas that are newer than this
file: a delta's fields are added to the fields of the same name in its block. Unknown events are
ignored, as the API's versioning rules ask of clients. It must not know how the bytes arrived.

Source: https://docs.claude.com/en/api/messages-streaming (events, deltas, cumulative usage) and
.../agents-and-tools/tool-use/fine-grained-tool-streaming (input that is not valid JSON). The split
between what decides and what waits is h11's.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jiter

from kode_lab.errors import ModelGarbage
from kode_lab.message import CUT_OFF, Block, Reply, Usage

__all__ = ["Assembly", "reply_of"]

# What a block of a known type must have so that a turn can use it.
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
    """A message that grows from the events of one stream.

    Attributes:
        is_complete: whether ``message_stop`` has arrived; only then is ``reply`` meaningful.
        has_text: whether any text was passed on, so that a retry would repeat it.
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
        """Add one event, parsed JSON with a ``type``; unknown types are ignored.

        Raises:
            ModelGarbage: the event lacks a field or is out of order.
        """
        try:
            self._take(event)
        except (KeyError, TypeError, AttributeError) as error:
            raise ModelGarbage(f"stream event {event!r:.80} cannot be used: {error!r}") from None

    def reply(self) -> Reply:
        """Return the reply that the events make.

        Raises:
            ModelGarbage: they do not make one.
        """
        is_cut = self._message.get("stop_reason") in CUT_OFF
        for index, pieces in self._json.items():
            self._blocks[index]["input"] = _input_of("".join(pieces), is_cut=is_cut)
        self._json = {}
        content = [self._blocks[index] for index in sorted(self._blocks)]
        return reply_of(self._message | {"content": content})

    def _take(self, event: Any) -> None:
        kind = event["type"]
        if kind == "content_block_delta":
            self._grow(event["index"], event["delta"])
        elif kind == "content_block_start":
            self._blocks[event["index"]] = dict(event["content_block"])
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
        if kind == "text_delta":
            text = delta["text"]
            block["text"] = block.get("text", "") + text
            self.has_text = True
            self._on_text(text)
        elif kind == "input_json_delta":
            self._json.setdefault(index, []).append(delta["partial_json"])
        elif kind == "citations_delta":
            block["citations"] = [*(block.get("citations") or ()), delta["citation"]]
        else:
            for name, value in delta.items():
                if name != "type":
                    block[name] = _joined(block.get(name), value)


def _joined(before: Any, more: Any) -> Any:
    """Return a block's field after one more delta."""
    if isinstance(before, str) and isinstance(more, str):
        return before + more
    if isinstance(before, list) and isinstance(more, list):
        return [*before, *more]
    if isinstance(before, dict) and isinstance(more, dict):
        return before | more
    return before if more is None else more


def _input_of(text: str, *, is_cut: bool) -> Any:
    """Return the input of a tool call that was streamed as text.

    Of a reply that was cut off it is what arrived, as in a whole message. Other text that is not
    JSON becomes an argument that no tool has, so that the tool does not run and the model is told.
    """
    try:
        return jiter.from_json(text.encode() or b"{}")
    except ValueError:
        if not is_cut:
            return {"INVALID_JSON": text}
    try:
        found = jiter.from_json(text.encode(), partial_mode="trailing-strings")
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


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
