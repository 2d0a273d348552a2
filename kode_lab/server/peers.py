"""The other workers behind the same port: whose session a request is about, and the way there.

Every session has a home among the workers, the same in each worker's computation, so that its turns
follow each other within one process, without the locks of the disk or the database, and a later
turn can interrupt an earlier one. A request that arrives at another worker is passed on to the home
over a Unix socket that only the workers' user may open. This is about cost, not about correctness:
if the home does not answer, the next worker in the session's order takes the turn, and the store
keeps the order. A request that came over such a socket is never passed on again.

Source: rendezvous hashing, Thaler and Ravishankar 1998.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator
from hashlib import blake2b
from pathlib import Path
from typing import NamedTuple

from kode_lab.http import Send
from kode_lab.http.client import BrokenResponse, HttpClient, NoResponse, Response, Unreachable
from kode_lab.key import SessionKey

__all__ = [
    "HttpAnswer",
    "PassedOn",
    "Peers",
    "WorkerLost",
    "WorkerSlot",
    "pass_answer",
]

# What another worker's figures may take.
_FIGURES_S = 2.0
# A worker that took the connection and left this many pings unanswered is passed over.
_PING_S, _PING_PAUSE_S, _SILENT_PINGS = 5.0, 2.0, 2
# These belong to each connection; the rest is the answer's.
_OWN_HEADERS = {"date", "connection", "transfer-encoding", "x-content-type-options"}


class WorkerSlot(NamedTuple):
    """What one of several worker processes knows of its place among them.

    Attributes:
        number: its own, from 0.
        of: how many there are.
        directory: of the workers' sockets, which only their user may enter.
        listening: the descriptor of the socket on which all of them accept connections.
    """

    number: int
    of: int
    directory: str
    listening: int

    def socket(self, number: int) -> Path:
        """Return the path on which the worker of that number listens for the others."""
        return Path(self.directory) / f"{number}.sock"


class WorkerLost(Exception):
    """The worker that took a request ended, or stopped, before its answer was complete."""


class PassedOn(NamedTuple):
    """A request as it is passed on to another worker.

    Attributes:
        target: path and query as they were sent.
    """

    method: str
    target: bytes
    headers: tuple[tuple[str, str], ...] = ()
    body: bytes = b""

    def to_bytes(self) -> bytes:
        """Return it as it is sent."""
        lines = "".join(f"{name}: {value}\r\n" for name, value in self.headers)
        return b"%b %b HTTP/1.1\r\nhost: localhost\r\n%bcontent-length: %d\r\n\r\n%b" % (
            self.method.encode("ascii"),
            self.target,
            lines.encode("latin-1"),
            len(self.body),
            self.body,
        )


class HttpAnswer(NamedTuple):
    """A whole answer."""

    status: int
    headers: list[tuple[bytes, bytes]]
    body: bytes


class Peers:
    """The workers, as one of them sees them.

    Attributes:
        number: its own.
        count: of all workers.
        carried: how many requests it passed on.
    """

    def __init__(self, slot: WorkerSlot, *, connections_limit: int = 256) -> None:
        self.number, self.count = slot.number, slot.of
        self.carried = 0
        self._slot = slot
        self._connections_limit = connections_limit
        self._clients: dict[int, HttpClient] = {}
        self._unanswered: dict[int, int] = {}
        self._under_way = 0
        self._all_done = asyncio.Event()
        self._all_done.set()
        self._pinging: asyncio.Task[None] | None = None

    @property
    def others(self) -> list[int]:
        """The numbers of the other workers."""
        return [number for number in range(self._slot.of) if number != self.number]

    def order(self, key: SessionKey) -> Iterator[int]:
        """Return the workers in the order in which they are this session's home."""
        name = f"{key.user_id}\0{key.session_id}".encode()

        def weight(number: int) -> bytes:
            return blake2b(name, digest_size=8, salt=number.to_bytes(2, "big")).digest()

        return iter(sorted(range(self._slot.of), key=weight, reverse=True))

    def start(self) -> None:
        """Begin to notice workers that do not answer."""
        self._pinging = asyncio.create_task(self._keep_pinging())

    @contextlib.asynccontextmanager
    async def at_home(self, key: SessionKey, request: PassedOn) -> AsyncIterator[Response | None]:
        """Send a request to its session's home and return the answer's head; None if we are it.

        Raises:
            WorkerLost: the home ended before it answered; what it did is not known.
        """
        self._under_way += 1
        self._all_done.clear()
        try:
            for number in self.order(key):
                if number == self.number:
                    break
                if self._unanswered.get(number, 0) >= _SILENT_PINGS:
                    continue
                try:
                    answer = await self._send(number, request)
                except Unreachable:  # it is not there, or we have no file left
                    continue
                self.carried += 1
                try:
                    yield answer
                finally:
                    await answer.aclose()
                return
            yield None
        except (NoResponse, BrokenResponse) as error:
            raise WorkerLost from error
        finally:
            self._under_way -= 1
            if not self._under_way:
                self._all_done.set()

    async def ask(self, key: SessionKey, request: PassedOn) -> HttpAnswer | None:
        """Return the home's whole answer; None if this worker is the home.

        Raises:
            WorkerLost: as ``at_home``.
        """
        async with self.at_home(key, request) as answer:
            if answer is None:
                return None
            return HttpAnswer(answer.status, _passed_headers(answer), await answer.read())

    async def ask_all(self, request: PassedOn) -> dict[int, bytes]:
        """Return the successful answers of the other workers by number, without silent workers."""

        async def asked(number: int) -> bytes:
            with contextlib.suppress(Unreachable, NoResponse, BrokenResponse, TimeoutError):
                async with asyncio.timeout(_FIGURES_S):
                    answer = await self._send(number, request)
                    try:
                        body = await answer.read()
                    finally:
                        await answer.aclose()
                    return body if answer.status == 200 else b""
            return b""

        bodies = await asyncio.gather(*map(asked, self.others))
        return {number: body for number, body in zip(self.others, bodies, strict=True) if body}

    async def unready(self) -> list[int]:
        """Return which other workers do not answer now."""
        answers = await self.ask_all(PassedOn("GET", b"/healthz"))
        return [number for number in self.others if number not in answers]

    async def finish(self, *, within_s: float) -> None:
        """Wait for the answers that are under way, then end every connection."""
        if self._pinging is not None:
            self._pinging.cancel()
        if self._under_way and within_s > 0:
            await asyncio.wait((asyncio.ensure_future(self._all_done.wait()),), timeout=within_s)
        for client in self._clients.values():
            client.close()
        self._clients.clear()

    # ---- inside

    async def _send(self, number: int, request: PassedOn) -> Response:
        client = self._clients.get(number)
        if client is None:
            path = str(self._slot.socket(number))
            client = HttpClient(path, None, concurrency=self._connections_limit)
            self._clients[number] = client
        return await client.send(request.to_bytes())

    async def _keep_pinging(self) -> None:
        while True:
            await asyncio.sleep(_PING_PAUSE_S)
            await asyncio.gather(*map(self._ping, self.others))

    async def _ping(self, number: int) -> None:
        try:
            async with asyncio.timeout(_PING_S):
                answer = await self._send(number, PassedOn("GET", b"/healthz"))
                try:
                    await answer.read()
                finally:
                    await answer.aclose()
        except TimeoutError:  # it is stopped, or very busy
            self._unanswered[number] = self._unanswered.get(number, 0) + 1
            return
        except (Unreachable, NoResponse, BrokenResponse):
            pass  # it is not there, which each request finds out by itself
        self._unanswered.pop(number, None)


def _passed_headers(answer: Response) -> list[tuple[bytes, bytes]]:
    """Return the headers of the home's answer that are the client's as well."""
    return [
        (name.encode("latin-1"), value.encode("latin-1"))
        for name, value in answer.headers.items()
        if name not in _OWN_HEADERS
    ]


async def pass_answer(answer: Response, send: Send) -> None:
    """Send another worker's answer to the client: a stream as it comes, else whole."""
    head = {"status": answer.status, "headers": _passed_headers(answer)}
    await send({"type": "http.response.start", **head})
    if not answer.headers.get("content-type", "").startswith("text/event-stream"):
        await send({"type": "http.response.body", "body": await answer.read()})
        return
    await send({"type": "http.response.body", "body": b"", "more_body": True})  # the head, now
    async for piece in answer.pieces():
        await send({"type": "http.response.body", "body": piece, "more_body": True})
    await send({"type": "http.response.body", "body": b"", "more_body": False})
