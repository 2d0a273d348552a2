"""One HTTP request and its answer over raw ASGI: reading, waiting, writing, failing on purpose.

It knows bytes, headers and moments; what they mean is the wire format's affair. Every moment is
counted from the request's arrival, so that lateness never adds up over a stream or over a turn of
many calls.
"""

from __future__ import annotations

import asyncio
import gzip
import zlib
from collections.abc import Sequence
from typing import Any

import orjson

from kode_lab.claude.fault import Fault
from kode_lab.claude.formats.seam import (
    REQUEST_LIMIT_BYTES,
    ApiError,
    StreamEvent,
    WireFormat,
)
from kode_lab.claude.profile import Latency
from kode_lab.http import DropConnection, Receive, Scope, Send

__all__ = ["BREAKING", "Exchange"]

_JSON = b"application/json"
_EVENTS = b"text/event-stream; charset=utf-8"
_GARBAGE = b"<html><body>This is not the page you are looking for.</body></html>"
# Shorter bodies gain nothing by it.
_WORTH_COMPRESSING_BYTES = 1_024
BREAKING = ("cut", "end_early", "error_event")


class Exchange:
    """One request under way.

    Attributes:
        request_id: what names the request in the answer's headers.
        format: the wire format of the answer; set before anything is written.
        status: what was answered, or 0 so far.
        headers: the request's, by lower-case name.
    """

    __slots__ = (
        "_arrived_s",
        "_loop",
        "_receive",
        "_send",
        "format",
        "headers",
        "request_id",
        "status",
    )

    def __init__(
        self, request_id: str, speaks: WireFormat, scope: Scope, receive: Receive, send: Send
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._arrived_s = self._loop.time()
        self._receive = receive
        self._send = send
        self.request_id = request_id
        self.format = speaks
        self.headers: dict[bytes, bytes] = dict(scope["headers"])
        self.status = 0

    async def data(self, *, is_raw: bool = False) -> bytes | ApiError:
        """Return the body, or the error that an API answers such a body with.

        Args:
            is_raw: leave it compressed as it came.
        """
        pieces: list[bytes] = []
        size_bytes = 0
        is_last = False
        while not is_last:
            event = await self._receive()
            if event["type"] == "http.disconnect":
                raise DropConnection
            piece = event.get("body", b"")
            size_bytes += len(piece)
            is_last = not event.get("more_body", False)
            if size_bytes <= REQUEST_LIMIT_BYTES:
                pieces.append(piece)
            else:
                # Read on without keeping it: a client that still sends would not see the answer.
                pieces.clear()
        if size_bytes > REQUEST_LIMIT_BYTES:
            return ApiError(413, "Request exceeds the maximum size")
        whole = pieces[0] if len(pieces) == 1 else b"".join(pieces)
        return whole if is_raw else self.decoded(whole)

    def decoded(self, data: bytes) -> bytes | ApiError:
        """Return a body without the compression that the headers name."""
        encoding = self.headers.get(b"content-encoding", b"").strip().lower()
        return data if encoding in (b"", b"identity") else _decoded(data, encoding)

    async def json(self) -> Any:
        """Return the parsed body, or the ``ApiError`` that such a body is answered with."""
        data = await self.data()
        if isinstance(data, ApiError):
            return data
        try:
            return orjson.loads(data)
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
        raise DropConnection

    async def refuse(self, error: ApiError) -> None:
        """Answer with an error in the documented shape."""
        extra = [(name.encode(), value.encode()) for name, value in error.headers]
        if error.retry_after is not None:
            extra.append((b"retry-after", error.retry_after.encode()))
        body = orjson.dumps(self.format.error_body(error, self.request_id))
        await self.body(error.status, _JSON, body, extra)

    async def json_body(self, status: int, value: Any) -> None:
        """Answer with a JSON body."""
        await self.body(status, _JSON, orjson.dumps(value))

    async def body(
        self, status: int, kind: bytes, body: bytes, extra: Sequence[tuple[bytes, bytes]] = ()
    ) -> None:
        """Answer with a whole body of this content type, compressed where the client takes it."""
        if len(body) >= _WORTH_COMPRESSING_BYTES and b"gzip" in self.headers.get(
            b"accept-encoding", b""
        ):
            body = gzip.compress(body, 1, mtime=0)
            extra = (*extra, (b"content-encoding", b"gzip"), (b"vary", b"accept-encoding"))
        length = (b"content-length", str(len(body)).encode())
        await self.begin(status, kind, (length, *extra))
        await self.write(body, is_last=True)

    async def begin(
        self, status: int, kind: bytes, extra: Sequence[tuple[bytes, bytes]] = ()
    ) -> None:
        """Send the headers; without a length the body follows in chunks."""
        self.status = status
        headers = [(b"content-type", kind), *self.format.headers(self.request_id), *extra]
        await self._send({"type": "http.response.start", "status": status, "headers": headers})

    async def write(self, body: bytes, *, is_last: bool = False) -> None:
        """Send a piece of the body."""
        if body or is_last:
            await self._send({"type": "http.response.body", "body": body, "more_body": not is_last})

    async def whole(self, body: bytes, latency: Latency, fault: Fault | None) -> None:
        """Answer with a whole reply when it is due, or as the fault wants it.

        Raises:
            DropConnection: the connection is to be dropped now.
        """
        await self.until(latency.total_s)
        if fault and fault.kind == "garbage":
            await self.body(200, b"text/html", _GARBAGE)
        elif fault and fault.kind in BREAKING:
            await self.begin(200, _JSON, [(b"content-length", str(len(body)).encode())])
            await self.write(body[: len(body) // 2])
            raise DropConnection
        else:
            await self.body(200, _JSON, body)

    async def stream(
        self,
        events: list[StreamEvent],
        latency: Latency,
        fault: Fault | None,
        error: ApiError,
        *,
        is_array: bool = False,
    ) -> None:
        """Send events, each token at its moment; what is due at once goes out at once.

        Args:
            events: of the reply.
            latency: of the first token and of the last.
            fault: what goes wrong within the stream, or None.
            error: what an error event says.
            is_array: the events are parts of one JSON array.

        Raises:
            DropConnection: the connection is to be dropped now.
        """
        first_s, total_s = latency
        await self.until(first_s)
        await self.begin(200, _JSON if is_array else _EVENTS, [(b"cache-control", b"no-cache")])
        if fault and fault.kind == "garbage":
            await self.write(b"event: message_start\ndata: " + _GARBAGE + b"\n\n", is_last=True)
            return
        is_breaking = fault is not None and fault.kind in BREAKING
        if not is_breaking and not self.is_early(total_s):
            await self.write(b"".join([event.data for event in events]), is_last=True)
            return
        tokens = sum(event.is_token for event in events)
        pace_s = (total_s - first_s) / max(1, tokens - 1)
        ready: list[bytes] = []
        sent = 0
        for number, event in enumerate(events):
            if fault and is_breaking and number >= fault.after_events:
                await self._break_off(b"".join(ready), fault, error)
                return
            if event.is_token:
                await self._flush(ready, first_s + pace_s * sent)
                sent += 1
            ready.append(event.data)
            if event.is_token and sent == tokens:
                await self._flush(ready, total_s)
        await self.write(b"".join(ready), is_last=True)

    async def _flush(self, ready: list[bytes], due_s: float) -> None:
        if self.is_early(due_s):
            await self.write(b"".join(ready))
            ready.clear()
            await self.until(due_s)

    async def _break_off(self, ready: bytes, fault: Fault, error: ApiError) -> None:
        if fault.kind == "cut":
            await self.write(ready)
            raise DropConnection
        if fault.kind == "error_event":
            ready += self.format.error_event(error, self.request_id)
        await self.write(ready, is_last=True)


def _wake(moment: asyncio.Future[None]) -> None:
    if not moment.done():
        moment.set_result(None)


def _decoded(data: bytes, encoding: bytes) -> bytes | ApiError:
    if encoding not in (b"gzip", b"deflate"):
        return ApiError(
            415,
            f"Content-Encoding {encoding.decode('latin-1')!r} is not supported: "
            "send gzip, deflate or identity",
        )
    decoder = zlib.decompressobj(zlib.MAX_WBITS | 32)
    try:
        whole = decoder.decompress(data, REQUEST_LIMIT_BYTES + 1)
    except zlib.error as error:
        return ApiError(400, f"The request body is not valid {encoding.decode()}: {error}")
    if len(whole) > REQUEST_LIMIT_BYTES:
        return ApiError(413, "Request exceeds the maximum size")
    if not decoder.eof:
        return ApiError(400, f"The request body is not valid {encoding.decode()}: it is cut off")
    return whole
