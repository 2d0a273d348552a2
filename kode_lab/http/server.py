"""The listening socket, its connections, and an end in good order.

An ASGI server without signal handlers, workers or log configuration of its own: starting and
stopping are methods, so that a session server, a simulated model and a test can each own one.
"""

from __future__ import annotations

import asyncio
import errno
import ipaddress
import os
import socket
import time
from collections.abc import Callable, Mapping
from email.utils import formatdate
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from kode_lab.errors import InvalidScenario, PortOccupied
from kode_lab.http.connection import Connection
from kode_lab.http.exchange import ConnectionLimits, Refusal, Shared, error_json

__all__ = ["HttpServer", "is_loopback", "listening_at", "listening_on"]

_BACKLOG = 2_048
_PORT_LIMIT = 65_535
_POLL_S = 0.01


class HttpServer:
    """Serves one ASGI application: ``async with HttpServer(app) as server: server.base_url``."""

    def __init__(
        self,
        app: Any,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        limits: ConnectionLimits | None = None,
        render: Callable[[Refusal], tuple[list[tuple[bytes, bytes]], bytes]] = error_json,
        listening: socket.socket | None = None,
        state: Mapping[str, Any] | None = None,
    ) -> None:
        """Prepare it; nothing is opened before ``async with``.

        Args:
            app: an ASGI 3 application; it gets no lifespan events.
            host: an address of this machine, or ``localhost``.
            port: 0 is any free one.
            limits: of each connection.
            render: turns what the connection itself refuses into headers and a body.
            listening: a socket that listens already, in place of ``host`` and ``port``.
            state: copied into each request's ``scope["state"]``.
        """
        self._host = host
        self.port = port
        self._listening = listening
        self._shared = Shared(app, limits or ConnectionLimits(), render, state=dict(state or {}))
        self._listener: asyncio.Server | None = None
        self._clock: asyncio.TimerHandle | None = None

    async def __aenter__(self) -> Self:
        """Listen.

        Raises:
            PortOccupied: another process listens on the port.
            InvalidScenario: the address or port does not exist here, or may not be used.
        """
        listening = self._listening or listening_on(self._host, self.port)
        if listening.family != socket.AF_UNIX:
            self.port = listening.getsockname()[1]
        loop = asyncio.get_running_loop()
        self._shared.server = (self._host, self.port)
        self._tick()
        self._listener = await loop.create_server(
            lambda: Connection(self._shared, loop),  # type: ignore[arg-type,return-value]
            sock=listening,
            backlog=_BACKLOG,
        )
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Stop at once: clients that still wait for an answer lose their connection."""
        await self.finish(within_s=0)

    @property
    def base_url(self) -> str:
        """The address to reach it from this machine."""
        host = f"[{self._host}]" if ":" in self._host else self._host
        return f"http://{host}:{self.port}"

    @property
    def connections(self) -> set[Connection]:
        """The open connections."""
        return self._shared.connections

    def stop_listening(self) -> None:
        """Accept no more connections, and end those without a request; the others get answers."""
        if self._listener is not None:
            self._listener.close()
            self._listener = None
            self._shared.is_ending = True
            for connection in list(self._shared.connections):
                connection.shutdown()

    async def finish(self, *, within_s: float) -> None:
        """Send the answers that are due, then end every connection."""
        self.stop_listening()
        if self._clock is not None:
            self._clock.cancel()
            self._clock = None
        tasks, connections = set(self._shared.tasks), self._shared.connections
        if tasks and within_s > 0:
            _, tasks = await asyncio.wait(tasks, timeout=within_s)
        # What was answered goes out by itself. This happens once, so polling is good enough.
        until_s = time.monotonic() + within_s
        while connections and not tasks and time.monotonic() < until_s:  # noqa: ASYNC110
            await asyncio.sleep(_POLL_S)
        for connection in list(connections):
            connection.abort()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _tick(self) -> None:
        """Set the headers of every answer, once a second for the sake of the date."""
        self._shared.default_headers = (
            b"date: %b\r\nx-content-type-options: nosniff\r\n" % formatdate(usegmt=True).encode()
        )
        self._clock = asyncio.get_running_loop().call_later(1.0, self._tick)


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach what listens at this address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def listening_on(host: str, port: int) -> socket.socket:
    """Return a socket that listens at this address.

    Raises:
        PortOccupied: another process listens on the port.
        InvalidScenario: the address or port does not exist here, or may not be used.
    """
    if not 0 <= port <= _PORT_LIMIT:  # getaddrinfo would take it modulo 65,536
        raise InvalidScenario(
            f"port {port} is not valid: choose 1 to {_PORT_LIMIT}, or 0 for any free one"
        )
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, proto=socket.IPPROTO_TCP
        )[0]
    except (OSError, OverflowError, UnicodeError) as error:
        raise InvalidScenario(f"cannot listen on {host!r:.80}: {error}") from None
    # With the protocol named: asyncio switches Nagle's algorithm off only where it sees TCP, and
    # with it on, an answer in two pieces waits 40 ms for the client's delayed acknowledgement.
    listening = socket.socket(family, kind, protocol)
    try:
        if os.name == "posix":
            # A restart need not wait for old connections; two listeners still collide.
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
        listening.listen(_BACKLOG)
    except (OSError, OverflowError) as error:
        listening.close()
        if isinstance(error, OSError) and error.errno == errno.EADDRINUSE:
            raise PortOccupied(
                f"port {port} on {host} is occupied: stop the process that listens there, "
                "or choose another port (0 takes any free one)"
            ) from None
        raise InvalidScenario(f"cannot listen on port {port} of {host}: {error}") from None
    listening.setblocking(False)
    return listening


def listening_at(path: Path) -> socket.socket:
    """Return a Unix socket that listens at this path, in place of what a dead process left there.

    Raises:
        InvalidScenario: no socket can be made there.
    """
    path.unlink(missing_ok=True)
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        listening.bind(str(path))
        listening.listen(_BACKLOG)
    except OSError as error:
        listening.close()
        raise InvalidScenario(
            f"no socket can be made in {path.parent}: {error}: set TMPDIR to another directory"
        ) from None
    listening.setblocking(False)
    return listening
