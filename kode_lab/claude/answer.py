"""Write a decided answer at its moments, or make the fault that was asked for.

Every moment is counted from the request's arrival, so that lateness never adds up over a stream or
over a turn of many calls.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import orjson

from kode_lab.claude import wire
from kode_lab.claude.exchange import Dropped, Exchange
from kode_lab.claude.fault import Fault
from kode_lab.claude.profile import Latency
from kode_lab.claude.wire import ApiError

__all__ = ["Answer", "give"]

_JSON = b"application/json"
_EVENTS = b"text/event-stream; charset=utf-8"
_GARBAGE = b"<html><body>This is not the page you are looking for.</body></html>"
_SAID = {
    429: "This request would exceed your account's rate limit. Please try again later.",
    500: "Internal server error",
    529: "Overloaded",
}
_BREAKING = ("cut", "end_early", "error_event")


class Answer(NamedTuple):
    """What is to be answered, when, and what is to go wrong with it."""

    message: dict[str, Any]
    latency: Latency
    is_stream: bool
    fault: Fault | None = None


async def give(exchange: Exchange, answer: Answer) -> None:
    """Answer the request.

    Raises:
        Dropped: the connection is to be dropped now.
    """
    fault = answer.fault
    kind = fault.kind if fault else ""
    if kind == "reset":
        raise Dropped
    if kind == "hang":
        await exchange.leave()
    if fault and (kind == "status" or (kind == "error_event" and not answer.is_stream)):
        await exchange.refuse(_error_of(fault))
    elif kind == "garbage":
        await exchange.until(answer.latency.total_s)
        await _garbage(exchange, answer)
    elif answer.is_stream:
        await _stream(exchange, answer)
    else:
        await exchange.until(answer.latency.total_s)
        body = orjson.dumps(answer.message)
        if kind in _BREAKING:
            length = (b"content-length", str(len(body)).encode())
            await exchange.begin(200, _JSON, [length])
            await exchange.write(body[: len(body) // 2])
            raise Dropped
        await exchange.body(200, _JSON, body)


async def _stream(exchange: Exchange, answer: Answer) -> None:
    """Send the events, each token at its moment; what is due at once goes out at once."""
    first_s, total_s = answer.latency
    events = list(wire.events_of(answer.message))
    tokens = sum(event.is_token for event in events)
    pace_s = (total_s - first_s) / max(1, tokens - 1)
    fault = answer.fault if answer.fault and answer.fault.kind in _BREAKING else None
    await exchange.until(first_s)
    await exchange.begin(200, _EVENTS)
    ready: list[bytes] = []

    async def flush(due_s: float) -> None:
        if exchange.is_early(due_s):
            await exchange.write(b"".join(ready))
            ready.clear()
            await exchange.until(due_s)

    sent = 0
    for number, event in enumerate(events):
        if fault and number >= fault.after_events:
            await _break_off(exchange, b"".join(ready), fault)
            return
        if event.is_token:
            await flush(first_s + pace_s * sent)
            sent += 1
        ready.append(wire.sse(event))
        if event.is_token and sent == tokens:
            await flush(total_s)
    await exchange.write(b"".join(ready), is_last=True)


async def _break_off(exchange: Exchange, ready: bytes, fault: Fault) -> None:
    if fault.kind == "cut":
        await exchange.write(ready)
        raise Dropped
    if fault.kind == "error_event":
        ready += wire.sse(wire.Event(wire.error_body(_error_of(fault), exchange.request_id)))
    await exchange.write(ready, is_last=True)


async def _garbage(exchange: Exchange, answer: Answer) -> None:
    if answer.is_stream:
        await exchange.begin(200, _EVENTS)
        await exchange.write(b"event: message_start\ndata: " + _GARBAGE + b"\n\n", is_last=True)
    else:
        await exchange.body(200, b"text/html", _GARBAGE)


def _error_of(fault: Fault) -> ApiError:
    said = _SAID.get(fault.status, "This error was asked for.")
    return ApiError(fault.status, said, fault.retry_after_s)
