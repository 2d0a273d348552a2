"""One HTTP request and its answer over raw ASGI: reading, waiting, writing.

It knows bytes, headers and moments; it must never know what the API means by them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

import orjson

from kode_lab.claude import wire
from kode_lab.claude.wire import ApiError

__all__ = ["Dropped", "Exchange", "Receive", "Scope", "Send"]

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]


class Dropped(Exception):
    """The connection is to be dropped, with whatever was written so far."""


class Exchange:
    """One request under way.

    Attributes:
        request_id: what the answer's ``request-id`` header says.
        status: what was answered, or 0 so far.
    """

    __slots__ = ("_arrived_s", "_loop", "_receive", "_send", "request_id", "status")

    def __init__(self, request_id: str, receive: Receive, send: Send) -> None:
        self._loop = asyncio.get_running_loop()
        self._arrived_s = self._loop.time()
        self._receive = receive
        self._send = send
        self.request_id = request_id
        self.status = 0

    async def json(self) -> Any:
        """Return the parsed body, or the ``ApiError`` that the API answers such a body with."""
        pieces: list[bytes] = []
        size_bytes = 0
        while True:
            event = await self._receive()
            if event["type"] == "http.disconnect":
                raise Dropped
            pieces.append(event.get("body", b""))
            size_bytes += len(pieces[-1])
            if size_bytes > wire.REQUEST_LIMIT_BYTES:
                return ApiError(413, "Request exceeds the maximum size")
            if not event.get("more_body", False):
                break
        try:
            return orjson.loads(b"".join(pieces))
        except orjson.JSONDecodeError as error:
            return ApiError(400, f"The request body is not valid JSON: {error}")

    def is_early(self, due_s: float) -> bool:
        """Whether that many seconds after the arrival lie ahead."""
        return self._loop.time() < self._arrived_s + due_s

    async def until(self, due_s: float) -> None:
        """Wait until that many seconds after the request's arrival."""
        due = self._arrived_s + due_s
        if self._loop.time() < due:
            moment = self._loop.create_future()
            timer = self._loop.call_at(due, _wake, moment)
            try:
                await moment
            finally:
                timer.cancel()

    async def leave(self) -> None:
        """Wait until the client has gone, and drop the connection."""
        while (await self._receive())["type"] != "http.disconnect":
            pass
        raise Dropped

    async def refuse(self, error: ApiError) -> None:
        """Answer with an error in the documented shape."""
        extra = []
        if error.retry_after_s is not None:
            extra.append((b"retry-after", f"{error.retry_after_s:g}".encode()))
        if error.status == 413:
            # The rest of the body is not read: nothing may follow on this connection.
            extra.append((b"connection", b"close"))
        await self.body(
            error.status,
            b"application/json",
            orjson.dumps(wire.error_body(error, self.request_id)),
            extra,
        )

    async def json_body(self, status: int, value: Any) -> None:
        """Answer with a JSON body."""
        await self.body(status, b"application/json", orjson.dumps(value))

    async def body(
        self,
        status: int,
        kind: bytes,
        body: bytes,
        extra: list[tuple[bytes, bytes]] | None = None,
    ) -> None:
        """Answer with a whole body of this content type."""
        length = (b"content-length", str(len(body)).encode())
        await self.begin(status, kind, [length, *(extra or ())])
        await self.write(body, is_last=True)

    async def begin(
        self, status: int, kind: bytes, extra: list[tuple[bytes, bytes]] | None = None
    ) -> None:
        """Send the headers; without a length the body follows in chunks."""
        self.status = status
        headers = [
            (b"content-type", kind),
            (b"request-id", self.request_id.encode()),
            (b"anthropic-organization-id", b"simulated"),
            *(extra or ()),
        ]
        await self._send({"type": "http.response.start", "status": status, "headers": headers})

    async def write(self, body: bytes, *, is_last: bool = False) -> None:
        """Send a piece of the body."""
        if body or is_last:
            await self._send({"type": "http.response.body", "body": body, "more_body": not is_last})


def _wake(moment: asyncio.Future[None]) -> None:
    if not moment.done():
        moment.set_result(None)
