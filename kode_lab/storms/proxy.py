"""A proxy in front of PostgreSQL, with a door for each worker: it cuts, delays, stalls and holds.

It owns the connections' ends and knows nothing of the protocol: it counts bytes and looks for a
word, so it cuts in the middle of a message as easily as between two. When a fault happens is not
its choice.

Idea: Shopify's toxiproxy; the doors are there so that one worker can be cut off alone.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from pathlib import Path
from random import Random
from types import TracebackType
from typing import Self
from urllib.parse import parse_qs, urlsplit

from kode_lab.errors import InvalidScenario

__all__ = ["Door", "Proxy"]

_PIECE_BYTES = 65_536
# How long the database's end stays open after the worker's end was cut, in half of the cuts.
_HALF_S = 1.0
# How long the database may take to answer what was delivered late.
_LATE_ANSWER_S = 5.0


class Door:
    """The way of one worker to the database.

    Attributes:
        delay_s: each answer waits so long, from the least to the most.
        open: what passes waits while this is not set.
        is_refusing: new connections are refused.
        has_held: set once a message is held back.
        was_delivered: set once it has arrived, and the database has answered.
    """

    def __init__(self, upstream: Path, random: Random) -> None:
        self.delay_s = (0.0, 0.0)
        self.open = asyncio.Event()
        self.open.set()
        self.is_refusing = False
        self.has_held = asyncio.Event()
        self.was_delivered = asyncio.Event()
        self.flows: set[_Flow] = set()
        self._held_word: bytes | None = None
        self._deliver = asyncio.Event()
        self._closing = asyncio.Event()
        self._upstream = upstream
        self._random = random

    def hold_next(self, word: bytes) -> None:
        """Hold back the next message with this word, and cut its worker's end of the connection."""
        self._held_word = word
        for event in (self.has_held, self.was_delivered, self._deliver):
            event.clear()

    def deliver(self) -> None:
        """Let what was held back arrive now; what was not caught yet will not be held."""
        self._held_word = None
        self._deliver.set()

    def close(self) -> None:
        """Let nothing pass any more."""
        self._closing.set()
        self._deliver.set()
        self.open.set()
        for flow in list(self.flows):
            flow.here.transport.abort()
            flow.there.transport.abort()

    async def passage(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Carry one connection, both ways, to its end."""
        if self.is_refusing:
            writer.transport.abort()
            return
        try:
            there_in, there_out = await asyncio.open_unix_connection(str(self._upstream))
        except OSError:  # the database is down
            writer.transport.abort()
            return
        flow = _Flow(writer, there_out)
        self.flows.add(flow)
        try:
            async with asyncio.TaskGroup() as ways:
                ways.create_task(self._carry(flow, reader, there_out, is_answer=False))
                ways.create_task(self._carry(flow, there_in, writer, is_answer=True))
        except* OSError:
            pass
        finally:
            writer.transport.abort()
            with suppress(TimeoutError, OSError):
                if flow.held:
                    await self._deliver.wait()
                    there_out.write(flow.held)
                    async with asyncio.timeout(_LATE_ANSWER_S):
                        await there_in.read(_PIECE_BYTES)
                elif flow.is_half:
                    async with asyncio.timeout(_HALF_S):
                        await self._closing.wait()
            if flow.held:
                self.was_delivered.set()
            there_out.transport.abort()
            self.flows.discard(flow)

    async def _carry(
        self,
        flow: _Flow,
        source: asyncio.StreamReader,
        target: asyncio.StreamWriter,
        *,
        is_answer: bool,
    ) -> None:
        while piece := await source.read(_PIECE_BYTES):
            if is_answer and self.delay_s[1]:
                await asyncio.sleep(self._random.uniform(*self.delay_s))
            await self.open.wait()
            if not is_answer and self._held_word is not None and self._held_word in piece:
                self._held_word, flow.held = None, piece
                self.has_held.set()
                raise ConnectionResetError
            if flow.left_bytes is not None:
                target.write(piece[: flow.left_bytes])
                with suppress(ConnectionError):
                    await target.drain()
                raise ConnectionResetError
            target.write(piece)
            await target.drain()
        raise ConnectionResetError  # the end of one way is the end of the other


class _Flow:
    """One connection, and how it is to be cut.

    Attributes:
        left_bytes: so much of the next piece still passes, then it is cut; None: it is not cut.
        is_half: the database's end stays open for a while after that.
        held: what is delivered late.
    """

    def __init__(self, here: asyncio.StreamWriter, there: asyncio.StreamWriter) -> None:
        self.here = here
        self.there = there
        self.left_bytes: int | None = None
        self.is_half = False
        self.held = b""


class Proxy:
    """Doors to one database; an async context manager.

    Args:
        dsn: of the database, on a unix socket.
        home: a short path; each door gets a directory there.

    Raises:
        InvalidScenario: the DSN names no unix socket.
    """

    def __init__(self, dsn: str, home: Path, *, random: Random) -> None:
        self._parts = urlsplit(dsn)
        asked = {name: values[0] for name, values in parse_qs(self._parts.query).items()}
        directory = asked.get("host", "")
        if not directory.startswith("/"):
            raise InvalidScenario("the proxy needs a DSN with a unix socket: ?host=/directory")
        self._port = asked.get("port", "5432")
        self._name = f".s.PGSQL.{self._port}"
        self._upstream = Path(directory) / self._name
        self._home = home
        self._random = random
        self._servers: list[asyncio.Server] = []
        self.doors: dict[str, Door] = {}

    async def open(self, name: str) -> str:
        """Open a door, and return the DSN that leads through it."""
        directory = self._home / name
        directory.mkdir()
        door = self.doors[name] = Door(self._upstream, self._random)
        server = await asyncio.start_unix_server(door.passage, str(directory / self._name))
        self._servers.append(server)
        return self._parts._replace(query=f"host={directory}&port={self._port}").geturl()

    def cut(self, name: str) -> None:
        """Cut a random connection of this door in the middle of its next message, or at once."""
        door = self.doors[name]
        flows = sorted(door.flows, key=id)
        if not flows:
            return
        flow = self._random.choice(flows)
        flow.is_half = self._random.random() < 0.5
        if self._random.random() < 0.7:
            flow.left_bytes = self._random.randrange(64)
        else:
            flow.here.transport.abort()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for server in self._servers:
            server.close()
        for door in self.doors.values():
            door.close()
