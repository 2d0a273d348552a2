"""Listens: a socket, uvicorn's HTTP protocol on each connection, and an end in good order.

It drives uvicorn's protocol itself instead of ``uvicorn.Server``, which takes the signals of the
process, looks at them ten times a second, and dies of them again after its work is done; here the
end is a method. It knows nothing of what is served.
"""

from __future__ import annotations

import asyncio
import errno
import ipaddress
import logging
import os
import socket
import time
from email.utils import formatdate
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from kode_lab.errors import InvalidScenario, PortOccupied
from kode_lab.server.connection import Connection
from kode_lab.server.service import Limits

__all__ = ["HttpServer", "is_loopback", "listening_on", "listening_within"]

_BACKLOG = 2_048
_PORT_LIMIT = 65_535
# uvicorn warns of each request that is none: a flood for whoever wants to send one.
_LOG = logging.getLogger("kode_lab.server.http")
_LOG.setLevel(logging.ERROR)


class HttpServer:
    """Serves one ASGI application: ``async with HttpServer(app) as server: server.base_url``."""

    def __init__(
        self,
        app: Any,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        limits: Limits | None = None,
        listening: socket.socket | None = None,
        is_inside: bool = False,
    ) -> None:
        """Set it up; nothing is opened before ``async with``.

        Args:
            host: an address of this machine, or ``localhost``.
            port: 0 is any free one.
            limits: what a connection bears.
            listening: a socket that listens already, instead of ``host`` and ``port``.
            is_inside: only this server's own processes reach it, which ask who comes themselves.
        """
        self._app = app
        self._host = host
        self.port = port
        self._listening = listening
        self._app_state = {"is_inside": is_inside}
        self._limits = limits or Limits()
        self._connections: set[Connection] = set()
        self._listener: asyncio.Server | None = None
        self._state: Any = None
        self._clock: asyncio.TimerHandle | None = None

    async def __aenter__(self) -> Self:
        """Listen.

        Raises:
            PortOccupied: somebody else listens on the port.
            InvalidScenario: the address or port is none of this machine's, or may not be used.
        """
        listening = self._listening or listening_on(self._host, self.port)
        if listening.family != socket.AF_UNIX:
            self.port = listening.getsockname()[1]
        # Here, so that clients of this package alone need not pay for it.
        import uvicorn  # noqa: PLC0415
        from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol  # noqa: PLC0415
        from uvicorn.server import ServerState  # noqa: PLC0415

        config = uvicorn.Config(
            self._app,
            interface="asgi3",
            http=HttpToolsProtocol,
            lifespan="off",
            ws="none",
            log_config=None,
            access_log=False,
            proxy_headers=False,
            timeout_keep_alive=self._limits.keepalive_s,  # type: ignore[arg-type]
        )
        config.load()
        self._state = ServerState()
        self._tick()

        def protocol() -> Any:
            inner = HttpToolsProtocol(config, self._state, app_state=self._app_state)
            inner.logger = _LOG
            inner.access_log = False
            return Connection(inner, self._limits, self._connections)

        loop = asyncio.get_running_loop()
        self._listener = await loop.create_server(protocol, sock=listening, backlog=_BACKLOG)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Stop at once: whoever still waits for an answer loses the connection."""
        await self.finish(within_s=0)

    @property
    def base_url(self) -> str:
        """Where it is reached from this machine."""
        host = f"[{self._host}]" if ":" in self._host else self._host
        return f"http://{host}:{self.port}"

    def stop_listening(self) -> None:
        """Take no more connections, and end those without a request; the others get answers."""
        if self._listener is not None:
            self._listener.close()
            self._listener = None
            for connection in list(self._connections):
                connection.shutdown()

    async def finish(self, *, within_s: float) -> None:
        """Return the answers that are due, then end every connection."""
        self.stop_listening()
        if self._clock is not None:
            self._clock.cancel()
            self._clock = None
        if self._state is None:
            return
        tasks = set(self._state.tasks)
        if tasks and within_s > 0:
            _, tasks = await asyncio.wait(tasks, timeout=within_s)
        # What was answered goes out by itself. It happens once, so looking is good enough.
        until_s = time.monotonic() + within_s
        while self._connections and not tasks and time.monotonic() < until_s:  # noqa: ASYNC110
            await asyncio.sleep(_LOOK_S)
        for connection in list(self._connections):
            connection.abort()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _tick(self) -> None:
        """Set the headers that every answer has, once a second for the sake of the date."""
        self._state.default_headers = [
            (b"date", formatdate(usegmt=True).encode()),
            (b"x-content-type-options", b"nosniff"),
        ]
        self._clock = asyncio.get_running_loop().call_later(1.0, self._tick)


_LOOK_S = 0.01


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
        PortOccupied: somebody else listens on the port.
        InvalidScenario: the address or port is none of this machine's, or may not be used.
    """
    if not 0 <= port <= _PORT_LIMIT:  # getaddrinfo would take it modulo 65,536
        raise InvalidScenario(f"port {port} is none: choose 1 to {_PORT_LIMIT}, or 0 for any")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, proto=socket.IPPROTO_TCP
        )[0]
    except (OSError, OverflowError, UnicodeError) as error:
        raise InvalidScenario(f"cannot listen on {host!r:.80}: {error}") from None
    # With the protocol named: asyncio switches Nagle's algorithm off only where it sees TCP.
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
                f"port {port} on {host} is occupied: stop whoever listens there, "
                "or choose another port (0 takes any free one)"
            ) from None
        raise InvalidScenario(f"cannot listen on port {port} of {host}: {error}") from None
    listening.setblocking(False)
    return listening


def listening_within(path: Path) -> socket.socket:
    """Return a socket that listens at this path; what a dead process left there is removed.

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
