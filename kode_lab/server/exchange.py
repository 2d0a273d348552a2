"""One connection to another worker, and the one request on it at a time: HTTP as its client.

It owns bytes in and out, and that whoever reads slowly is not flooded. What is asked and what the
answer means is for who asks.
"""

from __future__ import annotations

import asyncio
from typing import Any

import httptools

__all__ = ["Exchange", "Lost"]

# As much of an answer waits here for its reader before the other side has to.
_WAITING_LIMIT_BYTES = 65_536


class Lost(Exception):
    """The connection ended before the answer did: a signal on its way to an answer.

    Attributes:
        has_begun: the answer's head had come, and may have been passed on.
    """

    def __init__(self, *, has_begun: bool) -> None:
        super().__init__()
        self.has_begun = has_begun


class Exchange:
    """The connection: an asyncio protocol, and what the parser of its answers calls.

    Attributes:
        is_done: the last answer came whole.
    """

    __slots__ = (
        "_headers",
        "_is_lost",
        "_is_paused",
        "_is_whole",
        "_named",
        "_parser",
        "_pieces",
        "_transport",
        "_waiter",
        "_waiting_bytes",
        "is_done",
    )

    def __init__(self) -> None:
        self._transport: Any = None
        self._parser: Any = None
        self._waiter: asyncio.Future[None] | None = None
        self._is_lost = self._is_paused = self._is_whole = self._named = False
        self._headers: list[tuple[bytes, bytes]] = []
        self._pieces: list[bytes] = []
        self._waiting_bytes = 0
        self.is_done = True

    # ---- for who asks

    @property
    def is_open(self) -> bool:
        """Whether a request can be sent on it, as far as this side knows."""
        return self.is_done and not self._is_lost

    def begin(self, request: bytes) -> None:
        """Send a whole request."""
        assert self.is_done, "one at a time"
        self.is_done = self._is_whole = self._named = False
        self._headers = []
        self._parser = httptools.HttpResponseParser(self)
        self._transport.write(request)

    async def head(self) -> tuple[int, list[tuple[bytes, bytes]]]:
        """Return the answer's status and headers, names in lower case.

        Raises:
            Lost: the connection ended first.
        """
        while not self._named:
            await self._wait()
        return self._parser.get_status_code(), self._headers

    async def piece(self) -> tuple[bytes, bool]:
        """Return what has come of the body, and whether there is more.

        Raises:
            Lost: the connection ended first.
        """
        while not (self._pieces or self._is_whole):
            await self._wait()
        piece = self._pieces[0] if len(self._pieces) == 1 else b"".join(self._pieces)
        self._pieces.clear()
        self._waiting_bytes = 0
        if self._is_paused and not self._is_lost:
            self._transport.resume_reading()
        self._is_paused = False
        self.is_done = self._is_whole
        return piece, not self._is_whole

    def abort(self) -> None:
        """End it at once."""
        self._is_lost = True
        self._transport.abort()

    # ---- what the event loop calls

    def connection_made(self, transport: Any) -> None:
        """It stands."""
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        """Some of the answer has come."""
        if self.is_done:  # nobody asked
            self.abort()
            return
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            self.abort()
        if self._waiting_bytes > _WAITING_LIMIT_BYTES and not (self._is_paused or self._is_lost):
            self._is_paused = True
            self._transport.pause_reading()
        self._wake()

    def eof_received(self) -> None:
        """The other side will send no more, which ends the connection."""

    def pause_writing(self) -> None:
        """A request is larger than the socket's room; it goes out as the other side reads."""

    def resume_writing(self) -> None:
        """There is room again."""

    def connection_lost(self, error: Exception | None) -> None:  # noqa: ARG002 - asyncio gives it
        """It is gone, whoever ended it."""
        self._is_lost = True
        self._wake()

    # ---- what the parser calls

    def on_header(self, name: bytes, value: bytes) -> None:
        """One header has come."""
        self._headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        """All of them have."""
        self._named = True

    def on_body(self, piece: bytes) -> None:
        """Some of the body has come."""
        self._pieces.append(piece)
        self._waiting_bytes += len(piece)

    def on_message_complete(self) -> None:
        """The answer is whole."""
        self._is_whole = True
        if not self._parser.should_keep_alive():
            self._is_lost = True

    # ---- inside

    async def _wait(self) -> None:
        if self._is_lost:
            raise Lost(has_begun=self._named)
        self._waiter = asyncio.get_running_loop().create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
