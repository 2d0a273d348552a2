"""The events of one turn as Server-Sent Events, gathered between two looks of whoever sends them.

    accepted    {"turnId": "…"}                    the turn waits for its session
    started     {"turnId": "…"}                    the session is held
    text        {"text": "…"}                      a piece of the model's words
    tool_call   {"id", "name", "input"}            a tool is about to run
    tool_result {"callId", "content", "isError"}   what it gave
    done        the reply, as JSON gives it        the turn is saved
    error       the problem, as JSON gives it      there is no reply

Each carries a number as its ``id``; a stream that ends without ``done`` or ``error`` was cut. In
silence a comment comes every ``HEARTBEAT_S``, so that whoever stands between does not give up.
Pieces of text that nobody has fetched yet become one: a slow reader costs no more memory than the
reply has letters. It knows no connection.

Source: https://html.spec.whatwg.org/multipage/server-sent-events.html
"""

from __future__ import annotations

import asyncio
from typing import Any

import orjson

from kode_lab.sessions import TurnEvent

__all__ = ["EVENTS", "HEARTBEAT_S", "EventStream"]

HEARTBEAT_S = 15.0
EVENTS = ("accepted", "started", "text", "tool_call", "tool_result", "done", "error")


class EventStream:
    """What was told and not yet taken."""

    __slots__ = (
        "_beat",
        "_is_silent",
        "_loop",
        "_number",
        "_ready",
        "_text",
        "_turn_id",
        "_waiter",
    )

    def __init__(self, turn_id: str, loop: asyncio.AbstractEventLoop) -> None:
        self._turn_id = turn_id
        self._loop = loop
        self._number = 0
        self._ready: list[bytes] = []
        self._text: list[str] = []
        self._waiter: asyncio.Future[None] | None = None
        self._beat: asyncio.TimerHandle | None = None
        self._is_silent = True
        self._add("accepted", {"turnId": turn_id})

    def tell(self, event: TurnEvent) -> None:
        """Take one event of the turn: the manager's ``on_event``."""
        kind, data = event
        if kind == "text":
            self._text.append(data)
        elif kind == "tool_call":
            self.add(kind, {"id": data.id, "name": data.name, "input": data.input})
        elif kind == "tool_result":
            self.add(
                kind, {"callId": data.call_id, "content": data.content, "isError": data.is_error}
            )
        else:
            self.add(kind, {"turnId": self._turn_id})
        self.wake()

    def add(self, kind: str, data: dict[str, Any]) -> None:
        """Add one event after what was told before."""
        self._close_text()
        self._add(kind, data)

    def take(self) -> bytes:
        """Return all that was told since the last look, and nothing if nothing was."""
        self._close_text()
        if not self._ready:
            return b""
        chunk = b"".join(self._ready)
        self._ready.clear()
        self._is_silent = False
        return chunk

    async def wait(self) -> None:
        """Wait until there may be something to take, or the turn has ended."""
        self._waiter = self._loop.create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    def wake(self, _: object = None) -> None:
        """Wake whoever waits."""
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def begin_heartbeat(self) -> None:
        """Let comments come in silence."""
        self._beat = self._loop.call_later(HEARTBEAT_S, self._on_beat)

    def end_heartbeat(self) -> None:
        """Let no more come."""
        if self._beat is not None:
            self._beat.cancel()
            self._beat = None

    def _on_beat(self) -> None:
        if self._is_silent and not self._ready:
            self._ready.append(b": the turn goes on\n\n")
            self.wake()
        self._is_silent = True
        self.begin_heartbeat()

    def _close_text(self) -> None:
        if self._text:
            self._add("text", {"text": "".join(self._text)})
            self._text.clear()

    def _add(self, kind: str, data: dict[str, Any]) -> None:
        self._number += 1
        self._ready.append(
            b"event: %b\nid: %d\ndata: %b\n\n" % (kind.encode(), self._number, orjson.dumps(data))
        )
