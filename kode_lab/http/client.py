"""HTTP/1.1 to one service: a pool of connections, whole and streamed responses.

The way of model calls, and of requests that one worker passes on to another. General clients cost
half a millisecond of CPU a call and more for building requests, headers and models that are not
needed there. A request is written whole by its caller; nothing is repeated or redirected here.

It must never know what a body means.

Source: RFC 9112; https://html.spec.whatwg.org/multipage/server-sent-events.html.
"""

from __future__ import annotations

import asyncio
import ssl
import zlib
from collections import deque
from collections.abc import AsyncIterator
from typing import Any, NamedTuple, Protocol

import httptools

__all__ = ["BrokenResponse", "HttpClient", "NoResponse", "Response", "Unreachable", "events_in"]

# We drop idle connections before the server does: a POST that meets a closing one fails.
_KEEPALIVE_S = 15.0
_CONNECT_S = 10.0
RESPONSE_LIMIT_BYTES = 256_000_000
# Of a stream that is not read as fast as it comes; then the socket is not read.
_UNREAD_LIMIT_BYTES = 1_000_000
_HEAD_LIMIT_BYTES = 262_144
_EVENT_LIMIT_BYTES = 64_000_000


class NoResponse(Exception):
    """The service has closed the connection without a response."""


class Unreachable(Exception):
    """No connection was made, so nothing was sent."""


class BrokenResponse(Exception):
    """The response ended before its end, or is not HTTP."""


class _Idle(NamedTuple):
    connection: _ClientConnection
    since_s: float


class HttpClient:
    """Connections to one service, at most ``concurrency`` at once.

    Args:
        host: an address without brackets, or the path of a Unix socket.
        port: None for a Unix socket.
        is_secure: use TLS, with the certificates that Python trusts (``SSL_CERT_FILE`` counts).
    """

    def __init__(
        self, host: str, port: int | None, *, concurrency: int, is_secure: bool = False
    ) -> None:
        self._host, self._port = host, port
        self._ssl = ssl.create_default_context() if is_secure else None
        self._free = asyncio.Semaphore(concurrency)
        self._idle: deque[_Idle] = deque()
        self._sweep: asyncio.TimerHandle | None = None
        self._loop = asyncio.get_running_loop()
        self._is_closed = False

    async def send(self, data: bytes) -> Response:
        """Send a whole request and return its response once the head is here.

        The caller must ``aclose`` the response.

        Raises:
            Unreachable: no connection could be made.
            NoResponse: there is none.
            BrokenResponse: it is not HTTP.
        """
        await self._free.acquire()
        connection = None
        try:
            connection = self._idle_connection() or await self._connected()
            response = connection.begin(data)
            await response.wait_for_head()
        except BaseException:
            self._free.release()
            if connection is not None:
                connection.abort()
            raise
        return response

    def close(self) -> None:
        """Close all connections."""
        self._is_closed = True
        if self._sweep is not None:
            self._sweep.cancel()
        while self._idle:
            self._idle.pop().connection.abort()

    def release(self, connection: _ClientConnection, *, is_reusable: bool) -> None:
        """Take a connection back; the next call that waits for one may go on."""
        self._free.release()
        if not is_reusable or self._is_closed:
            connection.abort()
            return
        self._idle.append(_Idle(connection, self._loop.time()))
        if self._sweep is None:
            self._sweep = self._loop.call_later(_KEEPALIVE_S, self._drop_old)

    def _idle_connection(self) -> _ClientConnection | None:
        """Return the connection that was used last, if one is still good."""
        while self._idle:
            connection, since_s = self._idle.pop()
            if connection.is_open and self._loop.time() - since_s < _KEEPALIVE_S:
                return connection
            connection.abort()
        return None

    async def _connected(self) -> _ClientConnection:
        def begun() -> _ClientConnection:
            return _ClientConnection(self)

        try:
            async with asyncio.timeout(_CONNECT_S):
                if self._port is None:
                    _, connection = await self._loop.create_unix_connection(begun, self._host)
                else:
                    _, connection = await self._loop.create_connection(
                        begun, self._host, self._port, ssl=self._ssl
                    )
        except TimeoutError:
            raise Unreachable(f"no connection within {_CONNECT_S:g} s") from None
        except OSError as error:
            raise Unreachable(f"{type(error).__name__}: {error}") from error
        return connection

    def _drop_old(self) -> None:
        self._sweep = None
        before_s = self._loop.time() - _KEEPALIVE_S
        while self._idle and (
            self._idle[0].since_s <= before_s or not self._idle[0].connection.is_open
        ):
            self._idle.popleft().connection.abort()
        if self._idle:
            self._sweep = self._loop.call_later(_KEEPALIVE_S, self._drop_old)


class Response:
    """One response under way: its head, and its body as it comes.

    Attributes:
        headers: by lower-case name; of a repeated one, the last.
    """

    __slots__ = (
        "_connection",
        "_decoder",
        "_error",
        "_pieces",
        "_size_bytes",
        "_unread_bytes",
        "_waiter",
        "headers",
        "is_complete",
        "is_reusable",
        "status",
    )

    def __init__(self, connection: _ClientConnection) -> None:
        self._connection: _ClientConnection | None = connection
        self._pieces: list[bytes] = []
        self._size_bytes = self._unread_bytes = 0
        self._waiter: asyncio.Future[None] | None = None
        self._error: Exception | None = None
        self._decoder: Any = None
        self.status = 0
        self.headers: dict[str, str] = {}
        self.is_complete = self.is_reusable = False

    async def wait_for_head(self) -> None:
        """Wait until the status and the headers are here."""
        while not self.status:
            await self._more()
        coding = self.headers.get("content-encoding", "identity").lower()
        if coding in ("gzip", "deflate"):
            self._decoder = zlib.decompressobj(zlib.MAX_WBITS | 32)
        elif coding != "identity":
            raise BrokenResponse(f"the response has content-encoding {coding!r:.40}")

    async def read(self) -> bytes:
        """Return the whole body.

        Raises:
            BrokenResponse: it ended before its end, or is too long.
        """
        while not self.is_complete:
            await self._more()
        whole = self._pieces[0] if len(self._pieces) == 1 else b"".join(self._pieces)
        self._pieces.clear()
        return self._decoded(whole)

    async def pieces(self) -> AsyncIterator[bytes]:
        """Yield the body as it comes.

        Raises:
            BrokenResponse: it ended before its end, or is too long.
        """
        while True:
            if self._pieces:
                whole = b"".join(self._pieces)
                self._pieces.clear()
                if self._unread_bytes > _UNREAD_LIMIT_BYTES and self._connection is not None:
                    self._connection.transport.resume_reading()
                self._unread_bytes = 0
                yield self._decoded(whole)
            elif self.is_complete:
                return
            else:
                await self._more()

    async def aclose(self) -> None:
        """Give the connection back; one whose response was not read to its end is closed."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.response = None
            is_reusable = self.is_complete and self.is_reusable and connection.is_open
            connection.client.release(connection, is_reusable=is_reusable)

    # ---- what the connection calls

    def add(self, piece: bytes, *, is_streamed: bool) -> None:
        """Keep a piece of the body."""
        self._pieces.append(piece)
        self._size_bytes += len(piece)
        self._unread_bytes += len(piece)
        if self._size_bytes > RESPONSE_LIMIT_BYTES:
            self.fail(BrokenResponse(f"the response is too long: {RESPONSE_LIMIT_BYTES=}"))
        elif is_streamed and self._unread_bytes > _UNREAD_LIMIT_BYTES and self._connection:
            self._connection.transport.pause_reading()

    def fail(self, error: Exception) -> None:
        """Let the reader end with this."""
        self._error = self._error or error
        self.wake()

    def wake(self) -> None:
        """Let the reader look again."""
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def _more(self) -> None:
        if self._error is None:
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        error: Exception | None = self._error
        if error is not None and not self.is_complete:
            raise error

    def _decoded(self, data: bytes) -> bytes:
        if self._decoder is None:
            return data
        try:
            plain: bytes = self._decoder.decompress(data, RESPONSE_LIMIT_BYTES)
        except zlib.error as error:
            raise BrokenResponse(
                f"its content-encoding is not what the head says: {error}"
            ) from None
        if self._decoder.unconsumed_tail:
            raise BrokenResponse(f"the response is too long: {RESPONSE_LIMIT_BYTES=}")
        if self.is_complete and not self._pieces and not self._decoder.eof:
            raise BrokenResponse("its compressed body is cut off")
        return plain


class _ClientConnection(asyncio.Protocol):
    """One connection; the parser calls its ``on_`` methods."""

    def __init__(self, client: HttpClient) -> None:
        self.client = client
        self.transport: Any = None
        self.response: Response | None = None
        self.is_open = False
        self._parser: Any = None
        self._headers: dict[str, str] = {}
        self._head_bytes = 0

    def begin(self, data: bytes) -> Response:
        """Send a request, and return its response to be."""
        response = self.response = Response(self)
        self._parser = httptools.HttpResponseParser(self)
        self._head_bytes = 0
        self.transport.write(data)
        return response

    def abort(self) -> None:
        """Close it at once."""
        self.is_open = False
        if self.transport is not None:
            self.transport.abort()

    # ---- what the event loop calls

    def connection_made(self, transport: Any) -> None:
        """Note that it is open."""
        self.transport, self.is_open = transport, True

    def data_received(self, data: bytes) -> None:
        """Parse what has come; what nobody asked for ends the connection."""
        response = self.response
        if response is None or response.is_complete:
            self.abort()
            return
        if not response.status:
            self._head_bytes += len(data)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            response.fail(BrokenResponse("the service wants to speak another protocol"))
        except httptools.HttpParserError as error:
            response.fail(BrokenResponse(f"the response is not HTTP: {error}"))
        if not response.status and self._head_bytes > _HEAD_LIMIT_BYTES:
            response.fail(BrokenResponse(f"the response's head is too long: {_HEAD_LIMIT_BYTES=}"))
        response.wake()

    def connection_lost(self, error: Exception | None) -> None:
        """End the response, which may have no other end than this."""
        self.is_open = False
        response = self.response
        if response is None or response.is_complete:
            return
        if (
            response.status
            and not {"content-length", "transfer-encoding"} & response.headers.keys()
        ):
            response.is_complete = True
            response.wake()
            return
        said = f"{type(error).__name__}: {error}" if error else "the connection was closed"
        response.fail(BrokenResponse(said) if response.status else NoResponse(said))

    # ---- what the parser calls

    def on_message_begin(self) -> None:
        """Begin a head."""
        self._headers = {}

    def on_header(self, name: bytes, value: bytes) -> None:
        """Keep a header; a trailer is dropped."""
        if self.response is not None and not self.response.status:
            self._headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        """The head is here, unless it is one of those that come before a response."""
        status = self._parser.get_status_code()
        if self.response is not None and status >= 200:
            self.response.status, self.response.headers = status, self._headers

    def on_body(self, piece: bytes) -> None:
        """Pass a piece of the body on."""
        if self.response is not None:
            is_streamed = "content-length" not in self._headers
            self.response.add(piece, is_streamed=is_streamed)

    def on_message_complete(self) -> None:
        """The response is whole."""
        if self.response is not None and self.response.status:
            self.response.is_complete = True
            self.response.is_reusable = self._parser.should_keep_alive()


class Streamed(Protocol):
    """What events can be read from."""

    def pieces(self) -> AsyncIterator[bytes]:
        """Yield the body as it comes."""
        ...


async def events_in(response: Streamed) -> AsyncIterator[tuple[str, bytes]]:
    """Yield the name and the data of each server-sent event; an event without a name has "".

    Raises:
        BrokenResponse: the response ended before its end.
    """
    held: list[bytes] = []
    size_bytes, end, is_after_return = 0, b"", False
    async for raw in response.pieces():
        # Lines may end with "\r\n", which may be cut in the middle.
        piece = raw[1:] if is_after_return and raw[:1] == b"\n" else raw
        is_after_return = raw[-1:] == b"\r"
        if b"\r" in piece:
            piece = piece.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        held.append(piece)
        size_bytes += len(piece)
        if b"\n\n" not in end + piece:
            end = piece[-1:] or end
            if size_bytes > _EVENT_LIMIT_BYTES:
                raise BrokenResponse(f"an event of the stream is too long: {_EVENT_LIMIT_BYTES=}")
            continue
        *whole, rest = b"".join(held).split(b"\n\n")
        held, size_bytes, end = [rest], len(rest), rest[-1:]
        for event in whole:
            name, data = "", []
            for line in event.split(b"\n"):
                field, _, value = line.partition(b":")
                value = value.removeprefix(b" ")
                if field == b"event":
                    name = value.decode(errors="replace")
                elif field == b"data":
                    data.append(value)
            if data or name:
                yield name, b"\n".join(data)
