"""Stands between a connection and uvicorn's protocol: patience, room, and the shape of refusals.

uvicorn waits for ever for a head, a body, or a client that stopped reading, takes heads of any
length, and says 400 in plain text. Here each wait has a time-out and each refusal the one shape of
errors. What a request means is never looked at.

A client may send its next request before it has the answer to the one before. While an answer is
owed the client owes nothing: no time runs, and what comes of the next request is only counted. A
refusal written then would be taken for the answer that is owed, so there is none: the connection
ends, which is indeterminate, as it must be.

Idea: the three time-outs are nginx's client_header_timeout, client_body_timeout and send_timeout.
"""

from __future__ import annotations

import asyncio
from typing import Any

from kode_lab.server.refusal import Problem
from kode_lab.server.service import Limits

__all__ = ["Connection"]

# What is still read, and thrown away, of the body of a request that was answered before its end.
DISCARD_LIMIT_BYTES = 64_000_000
_PHRASES = {
    400: b"Bad Request",
    408: b"Request Timeout",
    431: b"Request Header Fields Too Large",
    503: b"Service Unavailable",
}


class Connection:
    """One connection: an asyncio protocol that passes everything on to uvicorn's.

    Args:
        inner: uvicorn's protocol for this connection.
        limits: what it bears.
        open_now: all connections that are open, this one among them while it is.
    """

    __slots__ = (
        "_count",
        "_inner",
        "_limits",
        "_loop",
        "_open",
        "_phase",
        "_stall",
        "_timer",
        "_transport",
    )

    def __init__(self, inner: Any, limits: Limits, open_now: set[Connection]) -> None:
        self._inner = inner
        self._limits = limits
        self._open = open_now
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._stall: asyncio.TimerHandle | None = None
        self._phase = ""
        self._count = 0
        self._transport: Any = None
        inner.send_400_response = self._on_garbage
        inner.on_response_complete = self._on_answered

    # ---- what the event loop calls

    def connection_made(self, transport: Any) -> None:
        """A client has come."""
        self._transport = transport
        limit = self._limits.connections_limit
        if len(self._open) >= limit:
            said = f"too many connections are open, connections_limit={limit}: come again later"
            self._refuse(503, "TooManyConnections", said, retry_after_s=1.0)
            return
        self._open.add(self)
        self._inner.connection_made(transport)
        self._expect("head", self._limits.head_timeout_s)

    def data_received(self, data: bytes) -> None:
        """Some of a request has come, or more than one."""
        if self not in self._open or self._transport.is_closing():
            return
        self._inner.data_received(data)
        self._look(len(data))

    def eof_received(self) -> None:
        """The client will send no more; as with uvicorn, that ends the connection."""
        self._inner.eof_received()

    def pause_writing(self) -> None:
        """The client does not read as fast as we write."""
        self._inner.pause_writing()
        self._stall = self._loop.call_later(self._limits.stall_timeout_s, self.abort)

    def resume_writing(self) -> None:
        """It has read on."""
        self._end_stall()
        self._inner.resume_writing()

    def connection_lost(self, error: Exception | None) -> None:
        """It is gone, whoever ended it."""
        self._expect("", 0)
        self._end_stall()
        if self in self._open:
            self._open.discard(self)
            self._inner.connection_lost(error)
        # What holds it in circles, where it would stay until the collector comes.
        del self._inner.send_400_response, self._inner.on_response_complete
        self._inner.cycle = self._inner.parser = None
        self._inner.pipeline.clear()

    # ---- what the server calls

    def abort(self) -> None:
        """End it at once; what was not sent is lost."""
        self._transport.abort()

    def shutdown(self) -> None:
        """End it after the answer that is being given, or at once."""
        self._inner.shutdown()

    # ---- inside

    def _look(self, length: int = 0) -> None:
        """See what the client owes, now that ``length`` bytes came, or an answer is whole."""
        inner, limits = self._inner, self._limits
        cycle = inner.cycle
        if self._transport.is_closing() or inner.pipeline:
            self._expect("", 0)
        elif cycle is None or inner.scope is not cycle.scope:
            # A message has begun whose head is not whole yet.
            if cycle is None or cycle.response_complete:
                count = self._expect("head", limits.head_timeout_s, length)
            else:
                count = self._expect("early head", 0, length)
            if count > limits.head_limit_bytes:
                said = f"shorten the headers to head_limit_bytes={limits.head_limit_bytes}"
                self._refuse(431, "HeadTooLarge", said)
        elif cycle.response_complete:
            if not length and not cycle.more_body:
                self._expect("", 0)
            elif self._expect("rest", limits.body_timeout_s, length) > DISCARD_LIMIT_BYTES:
                self.abort()
        elif cycle.more_body:
            self._expect("body", limits.body_timeout_s)
        else:
            self._expect("", 0)

    def _expect(self, phase: str, timeout_s: float, length: int = 0) -> int:
        """Wait for the end of something, 0 is without a time; give how much of it has come.

        What is waited for already keeps its time: a byte now and then buys none.
        """
        if phase == self._phase:
            self._count += length
            return self._count
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        # What came together with it may have belonged to the request before.
        self._count = 1 if length or self._phase == "early head" else 0
        self._phase = phase
        if timeout_s:
            self._timer = self._loop.call_later(timeout_s, self._on_timeout)
        return self._count

    def _end_stall(self) -> None:
        if self._stall is not None:
            self._stall.cancel()
            self._stall = None

    def _on_timeout(self) -> None:
        if self._phase == "rest" or (self._phase == "head" and not self._count):
            self.abort()  # nobody waits for an answer
            return
        name = f"{self._phase}_timeout_s"
        limit_s = getattr(self._limits, name)
        said = f"the request's {self._phase} did not come: send it within {name}={limit_s:g}"
        self._refuse(408, "RequestTimeout", said)

    def _on_garbage(self, _: str) -> None:
        """In place of uvicorn's 400 in plain text."""
        self._refuse(400, "BadRequest", "this is not HTTP/1.1 as RFC 9112 has it: send it whole")

    def _on_answered(self) -> None:
        """In place of uvicorn's: an answer is whole, and the client's next request has its time."""
        inner = self._inner
        type(inner).on_response_complete(inner)
        if self in self._open:
            self._look()
            if self._phase:  # it is not idle
                inner._unset_keepalive_if_required()  # noqa: SLF001 - only a name keeps it private

    def _is_owing(self) -> bool:
        """Whether an answer is due, or under way, to a request that came whole."""
        inner = self._inner
        cycle = inner.cycle
        if cycle is None or cycle.response_complete:
            return False
        return bool(inner.pipeline) or cycle.response_started or not cycle.more_body

    def _refuse(
        self, status: int, kind: str, message: str, *, retry_after_s: float | None = None
    ) -> None:
        """Answer without the application, and close."""
        if self._is_owing():
            self.abort()
            return
        problem = Problem(status, kind, message, retry_after_s)
        body = problem.body()
        lines = [b"HTTP/1.1 %d %b" % (status, _PHRASES[status])]
        lines += [b"%b: %b" % header for header in problem.raw_headers(len(body))]
        self._transport.write(b"\r\n".join([*lines, b"connection: close", b"", body]))
        self._transport.close()
