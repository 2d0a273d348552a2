"""The Messages API on the wire: error bodies, message objects, and the events of a stream.

Shapes and their order, nothing else: it must never know sockets, clocks or what a reply says.

Source: https://docs.claude.com/en/api/errors, .../api/messages, .../api/messages-streaming; and the
types of anthropic 2.12, whose client must not be able to tell.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import orjson

from kode_lab.message import Block

__all__ = [
    "ERROR_TYPES",
    "MODELS",
    "REQUEST_LIMIT_BYTES",
    "VERSIONS",
    "ApiError",
    "Event",
    "cut",
    "error_body",
    "events_of",
    "input_tokens_of",
    "message_of",
    "model_of",
    "models_page",
    "pieces_of",
    "sse",
]

REQUEST_LIMIT_BYTES = 32 * 1024 * 1024
VERSIONS = ("2023-06-01", "2026-10-21")
ERROR_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    402: "billing_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    500: "api_error",
    504: "timeout_error",
    529: "overloaded_error",
}
# The catalogue that ``GET /v1/models`` shows; any other name that begins like these works too.
MODELS = (
    ("claude-opus-5-5", "Claude Opus 5.5", "opus"),
    ("claude-sonnet-5-5", "Claude Sonnet 5.5", "sonnet"),
    ("claude-haiku-5-5", "Claude Haiku 5.5", "haiku"),
)
_MODEL_PREFIX = "claude-"
# About what a tokenizer makes of text: a short word with its space, or two signs of Chinese.
_PIECE = re.compile(r"\s*[\u2e80-\uffff]{1,2}|\s*[^\s\u2e80-\uffff]{1,8}|\s+")
_PER_MESSAGE_TOKENS = 4


class ApiError(NamedTuple):
    """An error that the API answers with."""

    status: int
    message: str
    retry_after_s: float | None = None

    @property
    def type(self) -> str:
        """The documented type of an error with this status."""
        fallback = "api_error" if self.status >= 500 else "invalid_request_error"
        return ERROR_TYPES.get(self.status, fallback)


class Event(NamedTuple):
    """One server-sent event: its name is its data's ``type``.

    Attributes:
        is_token: whether it is a delta, which takes the model its time.
    """

    data: Mapping[str, Any]
    is_token: bool = False


def error_body(error: ApiError, request_id: str | None) -> dict[str, Any]:
    """Return the error object, as a response body or as the data of an ``error`` event."""
    body: dict[str, Any] = {
        "type": "error",
        "error": {"type": error.type, "message": error.message},
    }
    if request_id is not None:
        body["request_id"] = request_id
    return body


def sse(event: Event) -> bytes:
    """Return the event's bytes."""
    return b"event: %s\ndata: %s\n\n" % (event.data["type"].encode(), orjson.dumps(event.data))


def message_of(
    message_id: str,
    model: str,
    content: Sequence[Block],
    stop_reason: str | None,
    *,
    stop_sequence: str | None = None,
    usage: Mapping[str, int],
) -> dict[str, Any]:
    """Return the ``message`` object."""
    return {
        "id": message_id,
        "type": "message",
        "role": "assistant",
        "model": model,
        "content": list(content),
        "stop_reason": stop_reason,
        "stop_sequence": stop_sequence,
        "usage": {
            "input_tokens": usage["input_tokens"],
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": 0,
            "output_tokens": usage["output_tokens"],
            "service_tier": "standard",
        },
    }


def events_of(message: Mapping[str, Any]) -> Iterator[Event]:
    """Return the events that stream this message, in the documented order."""
    opening = {**message, "content": [], "stop_reason": None, "stop_sequence": None}
    opening["usage"] = {**message["usage"], "output_tokens": 1}
    yield Event({"type": "message_start", "message": opening})
    for index, block in enumerate(message["content"]):
        is_tool = block["type"] == "tool_use"
        hollow = {**block, "input": {}} if is_tool else {**block, "text": ""}
        yield Event({"type": "content_block_start", "index": index, "content_block": hollow})
        if index == 0:
            yield Event({"type": "ping"})
        for piece in _json_pieces(block["input"]) if is_tool else pieces_of(block["text"]):
            delta = (
                {"type": "input_json_delta", "partial_json": piece}
                if is_tool
                else {"type": "text_delta", "text": piece}
            )
            yield Event({"type": "content_block_delta", "index": index, "delta": delta}, True)
        yield Event({"type": "content_block_stop", "index": index})
    yield Event(
        {
            "type": "message_delta",
            "delta": {
                "stop_reason": message["stop_reason"],
                "stop_sequence": message["stop_sequence"],
            },
            "usage": {"output_tokens": message["usage"]["output_tokens"]},
        }
    )
    yield Event({"type": "message_stop"})


def pieces_of(text: str) -> list[str]:
    """Return the text in pieces of about one token; joined they are the text."""
    return _PIECE.findall(text)


def cut(text: str, limit_tokens: int, stops: Sequence[str]) -> tuple[str, str, str | None]:
    """Return what a reply with this text says before a limit ends it.

    Returns:
        The text; ``end_turn``, ``stop_sequence`` or ``max_tokens``; the sequence that stopped it.
    """
    found = min(((text.find(stop), stop) for stop in stops if stop in text), default=None)
    before = text if found is None else text[: found[0]]
    pieces = pieces_of(before)
    if len(pieces) > limit_tokens:
        return "".join(pieces[:limit_tokens]), "max_tokens", None
    if found is not None:
        return before, "stop_sequence", found[1]
    return text, "end_turn", None


def input_tokens_of(body: Mapping[str, Any]) -> int:
    """Return about how many tokens a request holds: a quarter of its characters as JSON."""
    shown = (body.get("system"), body["messages"], body.get("tools"))
    return len(orjson.dumps(shown)) // 4 + _PER_MESSAGE_TOKENS * len(body["messages"])


def model_of(name: str) -> dict[str, Any] | None:
    """Return the model's entry in the catalogue, or None when there is no such model."""
    for model_id, shown, line in MODELS:
        if name == model_id:
            return _entry(model_id, shown, line)
    return _entry(name, name, None) if name.startswith(_MODEL_PREFIX) else None


def models_page(after_id: str, limit: int) -> dict[str, Any]:
    """Return one page of the catalogue."""
    entries = [_entry(*model) for model in MODELS]
    ids = [entry["id"] for entry in entries]
    begin = ids.index(after_id) + 1 if after_id in ids else 0
    page = entries[begin : begin + limit]
    return {
        "data": page,
        "has_more": begin + limit < len(entries),
        "first_id": page[0]["id"] if page else None,
        "last_id": page[-1]["id"] if page else None,
    }


def _entry(model_id: str, shown: str, line: str | None) -> dict[str, Any]:
    return {
        "type": "model",
        "id": model_id,
        "display_name": shown,
        "created_at": "1970-01-01T00:00:00Z",
        "lifecycle": "active",
        "line": line,
    }


def _json_pieces(value: Any) -> list[str]:
    """The input of a tool call as it trickles in: first nothing, then some characters at a time."""
    text = orjson.dumps(value).decode()
    return ["", *(text[at : at + 16] for at in range(0, len(text), 16))]
