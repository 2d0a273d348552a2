"""One HTTP/1.1 connection: bytes in, ASGI calls, bytes out, and a limit on all of it.

It owns the parser (httptools), the order of answers and every limit of a connection. It never looks
at what a request means.

- A head is at most ``head_limit_bytes``. What surrounds a chunked body (chunk sizes, extensions,
  trailers) is bounded by the same number, plus 20 bytes for each chunk.
- A body is at most ``body_limit_bytes``; a longer one is answered with 413 whatever the
  application is, and what follows of it is read and discarded up to ``discard_limit_bytes``.
- Head and body each have a time-out that no single byte extends, and so has a client that does not
  read its answer.
- A client may send requests ahead. They are answered in order, one at a time. Bytes of later
  requests are kept unparsed, at most ``EARLY_LIMIT_BYTES``; then the socket is not read until the
  answer before them is complete. While an answer is due, no time-out runs against the client.

Source: RFC 9112; the time-outs are nginx's client_header_timeout, client_body_timeout and
send_timeout. The ASGI side follows https://asgi.readthedocs.io/en/latest/specs/www.html.
"""

from __future__ import annotations

import asyncio
import math
from collections import deque
from typing import Any
from urllib.parse import unquote

import httptools

from kode_lab.http.exchange import HttpExchange, Refusal, Scope, Shared

__all__ = ["Connection"]

# Bytes of later requests that wait unparsed while an answer is due.
EARLY_LIMIT_BYTES = 65_536
# Parsed in one go; no more requests than fit into it are ever waiting parsed.
_PIECE_BYTES = 16_384
# Body bytes that the application has not asked for yet.
_UNREAD_LIMIT_BYTES = 262_144
# The size, its line ends and the line end after the data.
_CHUNK_FRAME_BYTES = 20
_GARBAGE = "this is not an HTTP/1.1 request as RFC 9112 defines it: correct its syntax"


class Connection:
    """The asyncio protocol of one connection; the parser calls its ``on_`` methods."""

    __slots__ = (
        "_body_bytes",
        "_chunks",
        "_client",
        "_current",
        "_deadline_s",
        "_early",
        "_early_bytes",
        "_framing_bytes",
        "_has_completed",
        "_headers",
        "_incoming",
        "_is_deaf",
        "_loop",
        "_parser",
        "_phase",
        "_queue",
        "_stall",
        "_timer",
        "_url",
        "is_reading_paused",
        "room",
        "shared",
        "transport",
    )

    def __init__(self, shared: Shared, loop: asyncio.AbstractEventLoop) -> None:
        self.shared = shared
        self._loop = loop
        self.transport: Any = None
        self._parser: Any = None
        self._client: tuple[str, int] | None = None
        # The message that is being parsed.
        self._url = b""
        self._headers: list[tuple[bytes, bytes]] | None = None
        self._incoming: HttpExchange | None = None
        self._body_bytes = self._framing_bytes = self._chunks = 0
        self._has_completed = False
        # The one that is being answered, those parsed behind it, and bytes not yet parsed.
        self._current: HttpExchange | None = None
        self._queue: deque[HttpExchange] = deque()
        self._early: list[bytes] = []
        self._early_bytes = 0
        self._is_deaf = self.is_reading_paused = False
        self._phase = ""
        self._deadline_s = math.inf
        self._timer: asyncio.TimerHandle | None = None
        self._stall: asyncio.TimerHandle | None = None
        self.room: asyncio.Future[None] | None = None

    # ---- what the event loop calls

    def connection_made(self, transport: Any) -> None:
        """Begin to serve a client, or refuse it where too many are connected."""
        self.transport = transport
        self._parser = httptools.HttpRequestParser(self)
        shared = self.shared
        limit = shared.limits.connections_limit
        if len(shared.connections) >= limit:
            self._is_deaf = True
            said = f"too many connections are open, connections_limit={limit}: try again later"
            exchange = HttpExchange(self, None, keep_alive=False)
            exchange.refuse(Refusal(503, "TooManyConnections", said, 1.0))
            return
        peer = transport.get_extra_info("peername")
        self._client = tuple(peer[:2]) if isinstance(peer, tuple) else None
        shared.connections.add(self)
        self._expect("head", shared.limits.head_timeout_s)

    def data_received(self, data: bytes) -> None:
        """Parse what has come, or keep it while an answer is due."""
        if self._is_deaf:
            return
        current = self._current
        if current is not None and current.is_whole:  # an answer is due
            self._early.append(data)
            self._early_bytes += len(data)
            if self._early_bytes > EARLY_LIMIT_BYTES:
                self._pause_reading()
            return
        if len(data) <= _PIECE_BYTES:
            self._parse_piece(data)
        else:
            self._parse(data)
        self._watch()

    def eof_received(self) -> None:
        """Return None, which closes the connection: a client that sends no more has left."""

    def pause_writing(self) -> None:
        """Stop the application's ``send``, and give the client time to read."""
        self.room = self._loop.create_future()
        self._stall = self._loop.call_later(self.shared.limits.stall_timeout_s, self.abort)

    def resume_writing(self) -> None:
        """Let ``send`` go on."""
        if self._stall is not None:
            self._stall.cancel()
            self._stall = None
        if self.room is not None:
            self.room.set_result(None)
            self.room = None

    def connection_lost(self, error: Exception | None) -> None:  # noqa: ARG002 - asyncio passes it
        """Tell the application, and let go of everything."""
        self._is_deaf = True
        self.resume_writing()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self.shared.connections.discard(self)
        current, self._current, self._incoming, self._parser = self._current, None, None, None
        if current is not None:
            current.connection = None
            current.wake()
        self._queue.clear()
        self._early.clear()

    # ---- what the server calls

    def abort(self) -> None:
        """End it at once; what was not sent is lost."""
        self.transport.abort()

    def shutdown(self) -> None:
        """End it after the answer that is due, or at once where none is."""
        if self._current is None or self._current.is_answered:
            self.close()

    # ---- what the parser calls

    def on_message_begin(self) -> None:
        """Begin a head."""
        self._url = b""
        self._headers = []

    def on_url(self, piece: bytes) -> None:
        """Add to the address."""
        self._url += piece

    def on_header(self, name: bytes, value: bytes) -> None:
        """Add a header; trailers, which come after the head, are dropped."""
        if self._headers is not None:
            self._headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        """Make a request of the head, and answer it when its turn comes."""
        headers, self._headers = self._headers or [], None
        limits = self.shared.limits
        length = len(self._url)
        declared_bytes, is_waiting = 0, False
        for name, value in headers:
            length += len(name) + len(value)
            if name == b"content-length":
                declared_bytes = int(value)
            elif name == b"expect":
                is_waiting = value.lower() == b"100-continue"
        version = self._parser.get_http_version()
        keep_alive = version == "1.1" and self._parser.should_keep_alive()
        scope = self._scope(version, headers)
        exchange = self._incoming = HttpExchange(self, scope, keep_alive=keep_alive)
        exchange.is_continue_due = is_waiting
        if scope is None:
            exchange.keep_alive = False
            exchange.refusal = Refusal(400, "BadRequest", _GARBAGE)
        elif length > limits.head_limit_bytes:
            exchange.keep_alive = False
            exchange.refusal = self._head_too_large()
        elif declared_bytes > limits.body_limit_bytes:
            exchange.refusal = self._body_too_large()
        if self._current is None:
            self._current = exchange
            self._begin(exchange)
        else:
            self._queue.append(exchange)

    def on_chunk_header(self) -> None:
        """Count a chunk, whose frame is no part of the body."""
        self._chunks += 1

    def on_body(self, piece: bytes) -> None:
        """Pass a piece of the body on."""
        self._body_bytes += len(piece)
        exchange = self._incoming
        if exchange is None:
            return
        exchange.body_bytes += len(piece)
        if not exchange.is_answered and exchange.refusal is None:
            exchange.body.append(piece)
            exchange.unread_bytes += len(piece)
            if exchange.unread_bytes > _UNREAD_LIMIT_BYTES:
                self._pause_reading()
            if exchange.waiter is not None:
                exchange.wake()
        if exchange.body_bytes > self.shared.limits.body_limit_bytes:
            if exchange.is_answered:
                if exchange.body_bytes > self.shared.limits.discard_limit_bytes:
                    self.abort()
            elif exchange is self._current:
                exchange.refuse(self._body_too_large())
            else:
                exchange.refusal = self._body_too_large()

    def on_message_complete(self) -> None:
        """The request is whole."""
        exchange, self._incoming = self._incoming, None
        self._phase, self._deadline_s = "", math.inf
        self._has_completed = True
        self._framing_bytes = self._chunks = 0
        if exchange is not None:
            exchange.is_whole = True
            if exchange.waiter is not None:
                exchange.wake()
            if exchange is self._current and exchange.is_answered:
                self._next()

    # ---- what an exchange calls

    def body_was_read(self) -> None:
        """Read on from the socket."""
        if self.is_reading_paused and not self._early:
            self._resume_reading()

    def answered(self) -> None:
        """Go on to the next request, now that the current one is answered."""
        current = self._current
        if current is None or not current.keep_alive or self.shared.is_ending:
            self.close()
        elif current.is_whole:
            self._next()
            if not self._is_deaf:
                self._watch()
        else:
            self._resume_reading()
            self._watch()

    def close(self) -> None:
        """End it once everything written has gone out; a client that does not read is dropped."""
        self._is_deaf = True
        self.transport.close()
        self._expect("closing", self.shared.limits.stall_timeout_s)

    # ---- inside

    def _scope(self, version: str, headers: list[tuple[bytes, bytes]]) -> Scope | None:
        url = self._url
        if url.startswith(b"/"):
            path, _, query = url.partition(b"#")[0].partition(b"?")
        else:
            try:
                parsed = httptools.parse_url(url)
            except httptools.HttpParserInvalidURLError:
                return None
            path, query = parsed.path or b"/", parsed.query or b""
        if version not in ("1.0", "1.1") or self._parser.get_method() == b"CONNECT":
            return None
        text = path.decode("latin-1")
        return {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": version,
            "method": self._parser.get_method().decode("ascii"),
            "scheme": "http",
            "path": unquote(text) if "%" in text else text,
            "raw_path": path,
            "query_string": query,
            "root_path": "",
            "headers": headers,
            "client": self._client,
            "server": self.shared.server,
            "state": self.shared.state.copy(),
        }

    def _begin(self, exchange: HttpExchange) -> None:
        """Answer a request whose turn has come."""
        if exchange.refusal is not None:
            exchange.refuse(exchange.refusal)
            return
        shared = self.shared
        task = self._loop.create_task(exchange.run(shared.app))
        shared.tasks.add(task)
        task.add_done_callback(shared.tasks.discard)

    def _is_answer_due(self) -> bool:
        """Whether a whole request waits for its answer, so that the next one has to wait."""
        current = self._current
        return current is not None and current.is_whole

    def _parse(self, data: bytes) -> None:
        """Parse until a whole request waits for its answer; keep what is behind it."""
        for start in range(0, len(data), _PIECE_BYTES):
            if self._is_deaf:
                return
            if self._is_answer_due():
                rest = data[start:]
                self._early.append(rest)
                self._early_bytes += len(rest)
                return
            self._parse_piece(data[start : start + _PIECE_BYTES])

    def _parse_piece(self, piece: bytes) -> None:
        self._body_bytes, self._has_completed = 0, False
        try:
            self._parser.feed_data(piece)
        except httptools.HttpParserUpgrade:
            # No other protocol is spoken here: answer in this one, and end.
            self._end_after_last()
        except httptools.HttpParserError:
            last = self._queue[-1] if self._queue else self._current
            if self._has_completed and last is not None and not last.keep_alive:
                self._is_deaf = True  # it said "Connection: close", and went on
            else:
                self._fail(Refusal(400, "BadRequest", _GARBAGE))
            return
        if self._has_completed:
            return  # how much of the piece belongs to the next message is not known
        self._framing_bytes += len(piece) - self._body_bytes
        # A piece more, because the exact length of a head is known, and checked, at its end.
        limit = self.shared.limits.head_limit_bytes + _PIECE_BYTES
        if self._framing_bytes > limit + _CHUNK_FRAME_BYTES * self._chunks:
            self._fail(self._head_too_large())

    def _end_after_last(self) -> None:
        last = self._queue[-1] if self._queue else self._current
        if last is not None:
            last.keep_alive = False
            if not last.is_whole:
                self.on_message_complete()
        self._is_deaf = True

    def _fail(self, refusal: Refusal) -> None:
        """Answer with this after the answers that are due, and close."""
        self._is_deaf = True
        exchange = self._incoming or HttpExchange(self, None, keep_alive=False)
        exchange.keep_alive = False
        if exchange.is_answered:
            self.close()
        elif exchange is self._current:
            exchange.refuse(refusal)
        elif self._current is None:
            self._current = exchange
            exchange.refuse(refusal)
        else:
            exchange.refusal = refusal
            if exchange is not self._incoming:
                self._queue.append(exchange)
            exchange.is_whole = True

    def _next(self) -> None:
        """Begin the next request, if it is here."""
        self._current = None
        if self._queue:
            self._current = self._queue.popleft()
            self._begin(self._current)
        if self._early and not self._is_answer_due():
            data = self._early[0] if len(self._early) == 1 else b"".join(self._early)
            self._early.clear()
            self._early_bytes = 0
            self._parse(data)
        if self._early_bytes <= EARLY_LIMIT_BYTES:
            self._resume_reading()

    def _watch(self) -> None:
        """Set the time-out for what the client owes now."""
        if self._is_deaf:
            return
        current, limits = self._current, self.shared.limits
        if current is None:
            if self._headers is not None:
                self._expect("head", limits.head_timeout_s)
            elif self._phase != "head":
                self._expect("idle", limits.keepalive_s)
        elif current.is_whole:
            self._expect("", 0)
        else:
            self._expect("rest" if current.is_answered else "body", limits.body_timeout_s)

    def _expect(self, phase: str, timeout_s: float) -> None:
        """Wait so long for the end of a phase; one that goes on keeps its time."""
        if phase == self._phase:
            return
        self._phase = phase
        if not timeout_s:
            self._deadline_s = math.inf
            return
        self._deadline_s = self._loop.time() + timeout_s
        # A timer that comes too early is set again when it comes: a busy connection moves none.
        if self._timer is None or self._timer.when() > self._deadline_s:
            if self._timer is not None:
                self._timer.cancel()
            self._timer = self._loop.call_at(self._deadline_s, self._on_timer)

    def _on_timer(self) -> None:
        self._timer = None
        if self._deadline_s == math.inf:
            return
        if self._loop.time() < self._deadline_s:
            self._timer = self._loop.call_at(self._deadline_s, self._on_timer)
        elif self._phase == "head" and self._headers is not None:
            self._fail(self._too_late("head"))
        elif self._phase == "body":
            self._fail(self._too_late("body"))
        elif self._phase == "idle":
            self.close()
        else:
            self.abort()

    def _pause_reading(self) -> None:
        if not self.is_reading_paused:
            self.is_reading_paused = True
            self.transport.pause_reading()

    def _resume_reading(self) -> None:
        if self.is_reading_paused and not self.transport.is_closing():
            self.is_reading_paused = False
            self.transport.resume_reading()

    def _too_late(self, part: str) -> Refusal:
        name = f"{part}_timeout_s"
        limit_s = getattr(self.shared.limits, name)
        said = f"the request's {part} did not arrive in time: send it within {name}={limit_s:g}"
        return Refusal(408, "RequestTimeout", said)

    def _head_too_large(self) -> Refusal:
        limit = self.shared.limits.head_limit_bytes
        said = f"the address, headers and trailers are too long: limit head_limit_bytes={limit}"
        return Refusal(431, "HeadTooLarge", said)

    def _body_too_large(self) -> Refusal:
        limit = self.shared.limits.body_limit_bytes
        said = f"the body is too long: shorten it to body_limit_bytes={limit}"
        return Refusal(413, "BodyTooLarge", said)
