"""A proxy before PostgreSQL, with a door for each worker: it cuts, delays and stalls what passes.

It owns the connections' ends and knows nothing of the protocol: it counts bytes, so it cuts in the
middle of a message as easily as between two. What goes wrong at which moment is not its choice.

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


class Door:
    """The way of one worker to the database.

    Attributes:
        delay_s: each answer waits so long, from the least to the most.
        open: what passes waits while this is not set.
    """

    def __init__(self, upstream: Path, random: Random) -> None:
        self.delay_s = (0.0, 0.0)
        self.open = asyncio.Event()
        self.open.set()
        self.links: set[_Link] = set()
        self._closing = asyncio.Event()
        self._upstream = upstream
        self._random = random

    def close(self) -> None:
        """Let nothing pass any more."""
        self._closing.set()
        self.open.set()
        for link in list(self.links):
            link.here.transport.abort()
            link.there.transport.abort()

    async def passage(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Carry what one connection has to say, both ways, to its end."""
        try:
            there_in, there_out = await asyncio.open_unix_connection(str(self._upstream))
        except OSError:  # the database is down
            writer.transport.abort()
            return
        link = _Link(writer, there_out)
        self.links.add(link)
        try:
            async with asyncio.TaskGroup() as ways:
                ways.create_task(self._carry(link, reader, there_out, is_answer=False))
                ways.create_task(self._carry(link, there_in, writer, is_answer=True))
        except* OSError:
            pass
        finally:
            writer.transport.abort()
            if link.is_half:  # the database does not hear of it before long
                with suppress(TimeoutError):
                    async with asyncio.timeout(_HALF_S):
                        await self._closing.wait()
            there_out.transport.abort()
            self.links.discard(link)

    async def _carry(
        self,
        link: _Link,
        source: asyncio.StreamReader,
        target: asyncio.StreamWriter,
        *,
        is_answer: bool,
    ) -> None:
        while piece := await source.read(_PIECE_BYTES):
            if is_answer and self.delay_s[1]:
                await asyncio.sleep(self._random.uniform(*self.delay_s))
            await self.open.wait()
            if link.left_bytes is not None:
                target.write(piece[: link.left_bytes])
                with suppress(ConnectionError):
                    await target.drain()
                raise ConnectionResetError
            target.write(piece)
            await target.drain()
        raise ConnectionResetError  # the end of one way is the end of the other


_HALF_S = 1.0


class _Link:
    """One connection, and how it is to be cut.

    Attributes:
        left_bytes: so much of the next piece still passes, then it is cut; None: it stands.
        is_half: the database's end stands for a while after that.
    """

    def __init__(self, here: asyncio.StreamWriter, there: asyncio.StreamWriter) -> None:
        self.here = here
        self.there = there
        self.left_bytes: int | None = None
        self.is_half = False


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
        """Open a door, and give the DSN by which it is entered."""
        directory = self._home / name
        directory.mkdir()
        door = self.doors[name] = Door(self._upstream, self._random)
        server = await asyncio.start_unix_server(door.passage, str(directory / self._name))
        self._servers.append(server)
        return self._parts._replace(query=f"host={directory}&port={self._port}").geturl()

    def cut(self, name: str) -> None:
        """Cut a random connection of this door in the middle of what it says next, or at once."""
        door = self.doors[name]
        links = sorted(door.links, key=id)
        if not links:
            return
        link = self._random.choice(links)
        link.is_half = self._random.random() < 0.5
        if self._random.random() < 0.7:
            link.left_bytes = self._random.randrange(64)
        else:
            link.here.transport.abort()

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
