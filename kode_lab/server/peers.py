"""The other workers behind the same port: whose session a request is about, and the way there.

Every session has a home among the workers, the same for whoever computes it, so that its turns
follow each other within one process: without a word to the disk's or the database's locks, and with
what a later turn does to an earlier one (interrupt, rollback) within reach. A request that lands
elsewhere is carried to its home over a socket that only the workers' user may open. That is about
cost, not about correctness: where the home does not answer, the next one in the session's order
takes the turn, or this one, and the store keeps the order.

It knows requests and answers as bytes. A request that came over such a socket is never carried on.

Source: rendezvous hashing, Thaler and Ravishankar 1998.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from hashlib import blake2b
from pathlib import Path
from typing import Any, NamedTuple

from kode_lab.http import Receive, Send
from kode_lab.key import SessionKey
from kode_lab.server.exchange import Exchange, Lost
from kode_lab.server.refusal import Problem
from kode_lab.server.worker_slot import Place

__all__ = ["LOST", "Answer", "Carried", "Peers"]

# Connections that are kept for the next request, to each worker.
IDLE_LIMIT = 256
# What another worker's figures may take.
_FIGURES_S = 2.0
LOST = Problem(
    503,
    "WorkerLost",
    "the process that took this turn ended before it answered: send it again with the same turnId",
    1.0,
)
# These belong to each connection; the rest is the answer's.
_OWN_HEADERS = {b"date", b"connection", b"transfer-encoding", b"x-content-type-options"}


class Carried(NamedTuple):
    """A request on its way to another worker.

    Attributes:
        headers: beside the length and the host.
    """

    method: bytes
    target: bytes
    headers: tuple[tuple[bytes, bytes], ...] = ()
    body: bytes = b""

    def head(self) -> bytes:
        """Return its head as bytes."""
        lines = [b"%b %b HTTP/1.1\r\nhost: localhost" % (self.method, self.target)]
        lines += [b"%b: %b" % header for header in self.headers]
        return b"\r\n".join([*lines, b"content-length: %d\r\n\r\n" % len(self.body)])


class Answer(NamedTuple):
    """A whole answer of another worker."""

    status: int
    headers: list[tuple[bytes, bytes]]
    body: bytes


class Peers:
    """The workers, as one of them sees them.

    Attributes:
        number: its own.
        carried: how many requests went to another one.
    """

    def __init__(self, place: Place) -> None:
        self.number = place.number
        self.carried = 0
        self._paths: list[Path] = [place.socket(number) for number in range(place.of)]
        self._idle: list[list[Exchange]] = [[] for _ in self._paths]
        self._under_way = 0
        self._all_done = asyncio.Event()
        self._all_done.set()

    def order(self, key: SessionKey) -> Iterator[int]:
        """Return the workers in the order in which this user's session is theirs."""
        name = f"{key.user_id}\0{key.session_id}".encode()

        def weight(number: int) -> bytes:
            return blake2b(name, digest_size=8, salt=number.to_bytes(2, "big")).digest()

        numbers = set(range(len(self._paths)))
        while numbers:
            first = max(numbers, key=weight)
            numbers.discard(first)
            yield first

    async def carry(
        self, key: SessionKey, carried: Carried, send: Send, receive: Receive | None = None
    ) -> bool:
        """Let the session's home answer; say whether it did, or its request is to be taken here.

        Args:
            receive: is listened to for the client's leaving, which ends the connection to the home.

        Raises:
            Lost: the home was lost before it answered; whether it did what was asked is not known.
        """
        self._under_way += 1
        self._all_done.clear()
        try:
            found = await self._begun(key, carried)
            if found is None:
                return False
            await self._pass_on(*found, send, receive)
            return True
        finally:
            self._under_way -= 1
            if not self._under_way:
                self._all_done.set()

    async def ask(self, key: SessionKey, carried: Carried) -> Answer | None:
        """Return the home's whole answer; None is to be answered here.

        Raises:
            Lost: as ``carry``.
        """
        found = await self._begun(key, carried)
        return None if found is None else await self._whole(*found)

    async def figures(self, target: bytes) -> dict[int, bytes]:
        """Return the answers of the other workers by number; silent workers are left out.

        Raises:
            TimeoutError: never; a worker that takes too long counts as silent.
        """
        others = [number for number in range(len(self._paths)) if number != self.number]
        told = await asyncio.gather(*(self._figures(number, target) for number in others))
        return {number: body for number, body in zip(others, told, strict=True) if body}

    async def finish(self, *, within_s: float) -> None:
        """Wait for the answers that are under way, then end every connection."""
        if self._under_way and within_s > 0:
            await asyncio.wait((asyncio.ensure_future(self._all_done.wait()),), timeout=within_s)
        for idle in self._idle:
            for exchange in idle:
                exchange.abort()
            idle.clear()

    # ---- inside

    async def _begun(self, key: SessionKey, carried: Carried) -> tuple[int, Exchange] | None:
        """Send the request to the first worker in the session's order that is there, if not us."""
        for number in self.order(key):
            if number == self.number:
                return None
            exchange = await self._exchange(number)
            if exchange is not None:
                exchange.begin(carried.head() + carried.body)
                self.carried += 1
                return number, exchange
        return None

    async def _exchange(self, number: int) -> Exchange | None:
        idle = self._idle[number]
        while idle:
            exchange = idle.pop()
            if exchange.is_open:
                return exchange
        loop = asyncio.get_running_loop()
        try:
            # asyncio asks for its base class, and calls what is there by name.
            made: Any = Exchange
            _, exchange = await loop.create_unix_connection(made, str(self._paths[number]))
        except OSError:  # it is not there, or we have no file left
            return None
        return exchange  # type: ignore[no-any-return]

    async def _pass_on(
        self, number: int, exchange: Exchange, send: Send, receive: Receive | None
    ) -> None:
        watch = None
        if receive is not None:
            watch = asyncio.create_task(_until_left(receive, exchange))
        try:
            status, headers = await exchange.head()
            own = [header for header in headers if header[0] not in _OWN_HEADERS]
            await send({"type": "http.response.start", "status": status, "headers": own})
            more = True
            while more:
                chunk, more = await exchange.piece()
                body = {"type": "http.response.body", "body": chunk, "more_body": more}
                await send(body)
        finally:
            if watch is not None:
                watch.cancel()
            self._keep(number, exchange)

    async def _whole(self, number: int, exchange: Exchange) -> Answer:
        try:
            status, headers = await exchange.head()
            pieces, more = [], True
            while more:
                piece, more = await exchange.piece()
                pieces.append(piece)
        finally:
            self._keep(number, exchange)
        own = [header for header in headers if header[0] not in _OWN_HEADERS]
        return Answer(status, own, b"".join(pieces))

    async def _figures(self, number: int, target: bytes) -> bytes:
        try:
            async with asyncio.timeout(_FIGURES_S):
                exchange = await self._exchange(number)
                if exchange is None:
                    return b""
                exchange.begin(Carried(b"GET", target).head())
                answer = await self._whole(number, exchange)
        except (Lost, TimeoutError):
            return b""
        return answer.body if answer.status == 200 else b""

    def _keep(self, number: int, exchange: Exchange) -> None:
        """Keep the connection for the next request, if this one's answer came whole."""
        if exchange.is_open and len(self._idle[number]) < IDLE_LIMIT:
            self._idle[number].append(exchange)
        else:
            exchange.abort()


async def _until_left(receive: Receive, exchange: Exchange) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    exchange.abort()
