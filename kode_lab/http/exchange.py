"""One request and its answer: the ``receive`` and ``send`` of an ASGI call, and their limits.

It owns how an answer is written and what is kept of a body that was not read yet. The connection
decides whose turn it is; nothing here looks at what a request means.

Source: https://asgi.readthedocs.io/en/latest/specs/www.html, RFC 9112.
"""

from __future__ import annotations

import asyncio
import http
import logging
import math
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import orjson

if TYPE_CHECKING:
    from kode_lab.http.connection import Connection

__all__ = [
    "ConnectionLimits",
    "DropConnection",
    "HttpExchange",
    "Receive",
    "Refusal",
    "Scope",
    "Send",
    "Shared",
    "error_json",
    "read_body",
]

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

_LOG = logging.getLogger("kode_lab.http")
_DISCONNECT = {"type": "http.disconnect"}
_STATUS_LINES = {
    status.value: b"HTTP/1.1 %d %b\r\n" % (status.value, status.phrase.encode())
    for status in http.HTTPStatus
}


@dataclass(frozen=True, slots=True)
class ConnectionLimits:
    """Limits of each connection; an error names the limit that caused it.

    Attributes:
        body_limit_bytes: of a request: as the Messages API; a prompt of content blocks, which may
            have 30 MB, fits into it.
        head_limit_bytes: of a request's line and headers.
        head_timeout_s: for the head, from the connection or the head's first byte.
        body_timeout_s: for the body, from the end of the head.
        stall_timeout_s: for a client that has stopped reading its answer.
        keepalive_s: for a connection without a request.
        connections_limit: open at once.
        discard_limit_bytes: of a body that was answered before its end; then the connection ends.
    """

    body_limit_bytes: int = 32_000_000
    head_limit_bytes: int = 65_536
    head_timeout_s: float = 10.0
    body_timeout_s: float = 30.0
    stall_timeout_s: float = 30.0
    keepalive_s: float = 75.0
    connections_limit: int = 20_000
    discard_limit_bytes: int = 64_000_000


class Refusal(NamedTuple):
    """An error answer that needs no application."""

    status: int
    kind: str
    message: str
    retry_after_s: float | None = None


class DropConnection(Exception):
    """Raised by an application that wants its connection closed in place of an answer.

    What was sent before still goes out.
    """


def error_json(refusal: Refusal) -> tuple[list[tuple[bytes, bytes]], bytes]:
    """Return a refusal as headers and a JSON body."""
    error = {"type": refusal.kind, "message": refusal.message, "status": refusal.status}
    headers = [(b"content-type", b"application/json"), (b"cache-control", b"no-store")]
    if refusal.retry_after_s is not None:
        headers.append((b"retry-after", b"%d" % max(1, math.ceil(refusal.retry_after_s))))
    return headers, orjson.dumps({"error": error})


async def read_body(receive: Receive) -> bytes | None:
    """Return a request's whole body; None if the client left before its end."""
    event = await receive()
    body: bytes = event.get("body", b"")
    if event.get("more_body"):
        pieces = [body]
        while event.get("more_body"):
            event = await receive()
            pieces.append(event.get("body", b""))
        body = b"".join(pieces)
    return None if event["type"] == "http.disconnect" else body


@dataclass(slots=True)
class Shared:
    """What all connections of one server share.

    Attributes:
        app: the ASGI application.
        render: turns a refusal into headers and a body.
        server: address and port, for ``scope["server"]``.
        state: copied into each ``scope["state"]``.
        default_headers: of every answer, as bytes of the head.
        connections: the open ones.
        tasks: requests that the application is answering.
        is_ending: no connection is kept for a further request.
    """

    app: Callable[[Scope, Receive, Send], Awaitable[None]]
    limits: ConnectionLimits
    render: Callable[[Refusal], tuple[list[tuple[bytes, bytes]], bytes]] = error_json
    server: tuple[str, int] = ("", 0)
    state: dict[str, Any] = field(default_factory=dict)
    default_headers: bytes = b""
    connections: set[Connection] = field(default_factory=set)
    tasks: set[asyncio.Task[None]] = field(default_factory=set)
    is_ending: bool = False


class HttpExchange:
    """One request and its answer: the ``receive`` and ``send`` of an ASGI call.

    Its connection sets what was received directly, which costs less than a call for each piece.

    Attributes:
        scope: the ASGI scope; None if the request is not HTTP.
        connection: None once the client has left, or the answer is complete.
        refusal: answers it in place of the application, once its turn comes.
        body: pieces that the application has not asked for yet, ``unread_bytes`` in all.
        body_bytes: how much of the body has come.
        waiter: what ``receive`` waits for.
        is_whole: all of the request was received.
        is_answered: all of the answer was sent.
        keep_alive: the connection may serve another request after it.
        is_continue_due: the client waits for a sign before it sends the body.
    """

    __slots__ = (
        "_head",
        "_is_chunked",
        "_is_read",
        "_is_started",
        "body",
        "body_bytes",
        "connection",
        "is_answered",
        "is_continue_due",
        "is_whole",
        "keep_alive",
        "refusal",
        "scope",
        "unread_bytes",
        "waiter",
    )

    def __init__(self, connection: Connection, scope: Scope | None, *, keep_alive: bool) -> None:
        self.connection: Connection | None = connection
        self.scope = scope
        self.keep_alive = keep_alive
        self.refusal: Refusal | None = None
        self.is_whole = self.is_answered = self.is_continue_due = False
        self.body_bytes = self.unread_bytes = 0
        self.body: list[bytes] = []
        self._is_read = self._is_started = self._is_chunked = False
        self._head: tuple[int, list[tuple[bytes, bytes]]] | None = None
        self.waiter: asyncio.Future[None] | None = None

    def wake(self) -> None:
        """Let ``receive`` look again."""
        if self.waiter is not None and not self.waiter.done():
            self.waiter.set_result(None)

    def refuse(self, refusal: Refusal) -> None:
        """Answer it in place of the application; an answer that has begun is cut off."""
        connection = self.connection
        if connection is None or self.is_answered:
            return
        if self._is_started:
            connection.abort()
            return
        headers, body = connection.shared.render(refusal)
        headers.append((b"content-length", b"%d" % len(body)))
        data = self._head_bytes(connection, refusal.status, headers)
        if self.scope is None or self.scope["method"] != "HEAD":
            data += body
        connection.transport.write(data)
        self._end(connection)

    async def receive(self) -> MutableMapping[str, Any]:
        """Return the next part of the body, or that the client has left."""
        while True:
            if (self.body or self.is_whole) and not (self._is_read or self.is_answered):
                body = self.body[0] if len(self.body) == 1 else b"".join(self.body)
                self.body.clear()
                self.unread_bytes = 0
                self._is_read = self.is_whole
                if self.connection is not None and self.connection.is_reading_paused:
                    self.connection.body_was_read()
                return {"type": "http.request", "body": body, "more_body": not self.is_whole}
            if self.connection is None or self.is_answered:
                return _DISCONNECT
            if self.is_continue_due and not self._is_started:
                self.is_continue_due = False
                self.connection.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            self.waiter = asyncio.get_running_loop().create_future()
            try:
                await self.waiter
            finally:
                self.waiter = None

    async def send(self, message: MutableMapping[str, Any]) -> None:
        """Send a part of the answer; to a client that has left it sends nothing."""
        connection = self.connection
        while connection is not None and (room := connection.room) is not None:
            await asyncio.shield(room)
            connection = self.connection
        if connection is None or self.is_answered:
            return
        if message["type"] == "http.response.start":
            self._head = (message["status"], list(message.get("headers", ())))
            return
        body, is_last = message.get("body", b""), not message.get("more_body", False)
        pieces = []
        if not self._is_started:
            pieces.append(self._answer_head(connection, len(body) if is_last else None))
        assert self.scope is not None
        if self.scope["method"] != "HEAD":
            if not self._is_chunked:
                pieces.append(body)
            else:
                if body:
                    pieces.append(b"%x\r\n%b\r\n" % (len(body), body))
                if is_last:
                    pieces.append(b"0\r\n\r\n")
        connection.transport.write(b"".join(pieces))
        if is_last:
            self._end(connection)

    async def run(self, app: Callable[[Scope, Receive, Send], Awaitable[None]]) -> None:
        """Call the application, and see that it has answered."""
        scope = self.scope
        assert scope is not None
        try:
            await app(scope, self.receive, self.send)
        except DropConnection:
            if self.connection is not None:
                self.connection.close()
            return
        except Exception:  # noqa: BLE001 - any defect must end in an answer
            _LOG.exception("a defect of the application at %s %s", scope["method"], scope["path"])
        if not self.is_answered and self.connection is not None:
            self.keep_alive = False
            said = "the server made a mistake; its log says which"
            self.refuse(Refusal(500, "InternalError", said))

    # ---- inside

    def _answer_head(self, connection: Connection, length: int | None) -> bytes:
        """Return the head of the application's answer; ``length`` is its body's, if known."""
        assert self._head is not None, "the application must send http.response.start first"
        status, headers = self._head
        if not any(name == b"content-length" for name, _ in headers):
            if status == 204 or status == 304:  # noqa: PLR1714 - the two without a body
                pass
            elif length is not None:
                headers.append((b"content-length", b"%d" % length))
            elif self.scope is not None and self.scope["http_version"] == "1.1":
                self._is_chunked = True
                headers.append((b"transfer-encoding", b"chunked"))
            else:
                self.keep_alive = False  # the end of the connection is the end of the body
        return self._head_bytes(connection, status, headers)

    def _head_bytes(
        self, connection: Connection, status: int, headers: list[tuple[bytes, bytes]]
    ) -> bytes:
        self._is_started = True
        shared = connection.shared
        lines = [_STATUS_LINES.get(status) or b"HTTP/1.1 %d \r\n" % status, shared.default_headers]
        lines += [b"%b: %b\r\n" % header for header in headers]
        # A client that was not told to go on may leave its body out, so what follows is unclear.
        if not self.keep_alive or shared.is_ending or (self.is_continue_due and not self.is_whole):
            self.keep_alive = False
            lines.append(b"connection: close\r\n")
        lines.append(b"\r\n")
        return b"".join(lines)

    def _end(self, connection: Connection) -> None:
        self.is_answered = True
        self.body.clear()
        if self.waiter is not None:
            self.wake()
        connection.answered()
        if self.is_whole:
            self.connection = None
