"""Runs the simulated Messages API: a real HTTP server on loopback, in the running event loop.

It owns the socket and the server's life, nothing of what is answered. It drives uvicorn's HTTP
protocol itself instead of ``uvicorn.Server``, which takes the process's signals and needs tenths of
a second to stop; a test opens and closes one of these in milliseconds.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import signal
import socket
import sys
from collections.abc import Iterable
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from kode_lab.claude.api import CONTEXT_LIMIT_TOKENS, SimulatedApi
from kode_lab.claude.exchange import Dropped, Receive, Scope, Send
from kode_lab.claude.fault import Fault, FaultPlan
from kode_lab.claude.profile import Profile, profile_of, report_profile
from kode_lab.claude.records import READS_LIMIT, ModelCall, Records, Statistics, WitnessedTurn
from kode_lab.errors import InvalidScenario, PortOccupied
from kode_lab.history.operation import Read

if TYPE_CHECKING:
    from argparse import Namespace
    from types import TracebackType

__all__ = ["SimulatedClaude", "run_simulated"]

_HOST = "127.0.0.1"
_BACKLOG = 4096
# Longer than any client keeps an idle connection, so that none is closed under a request.
_KEEPALIVE_S = 75
_LOG = logging.getLogger(__name__)
# uvicorn logs dropped connections as errors of the application; here they are on purpose.
_SILENT = logging.getLogger(f"{__name__}.uvicorn")
_SILENT.setLevel(logging.CRITICAL + 1)


class SimulatedClaude:
    """A simulated Claude: ``async with SimulatedClaude() as claude``, then ``claude.base_url``."""

    def __init__(
        self,
        profile: Profile | None = None,
        port: int = 0,
        *,
        speed: float | None = None,
        faults: Iterable[Fault] = (),
        seed: int = 0,
        api_key: str | None = None,
        today: date | None = None,
        salt: str | None = None,
        reads_limit: int = READS_LIMIT,
        context_limit_tokens: int = CONTEXT_LIMIT_TOKENS,
    ) -> None:
        """Set it up; nothing is opened before ``async with``.

        Args:
            profile: how long it takes; None takes no time.
            port: 0 is any free one.
            speed: instead of the profile's own.
            faults: what goes wrong, first fitting first.
            seed: of the faults' shares.
            api_key: the only accepted key; None accepts any.
            today: what "today" means; None is the calendar's.
            salt: makes ids unique beyond this server; None is drawn anew each time.
            reads_limit: how many turns are remembered; older ones are forgotten.
            context_limit_tokens: a longer conversation is refused.
        """
        profile = profile or Profile()
        self._port = port
        self._records = Records(reads_limit)
        self._faults = FaultPlan(faults, seed=seed)
        self._api = SimulatedApi(
            profile if speed is None else profile.at(speed),
            self._faults,
            self._records,
            salt=os.urandom(4).hex() if salt is None else salt,
            api_key=api_key,
            today=today,
            context_limit_tokens=context_limit_tokens,
        )
        self._listener: asyncio.Server | None = None
        self._state: Any = None

    async def __aenter__(self) -> Self:
        """Listen.

        Raises:
            PortOccupied: somebody else listens on the port.
            InvalidScenario: it is no port, or may not be used.
        """
        listening = _listening(self._port)
        self._port = listening.getsockname()[1]
        import uvicorn  # noqa: PLC0415 - a tenth of a second that clients alone need not pay
        from uvicorn.server import ServerState  # noqa: PLC0415

        config = uvicorn.Config(
            self._serve,
            interface="asgi3",
            lifespan="off",
            ws="none",
            log_config=None,
            access_log=False,
            proxy_headers=False,
            timeout_keep_alive=_KEEPALIVE_S,
        )
        config.load()
        self._state = ServerState()

        def protocol() -> asyncio.Protocol:
            made: Any = config.http_protocol_class(  # type: ignore[call-arg]
                config=config, server_state=self._state, app_state={}
            )
            made.logger = _SILENT
            return made  # type: ignore[no-any-return]

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
        listener, self._listener = self._listener, None
        if listener is None:
            return
        listener.close()
        tasks = list(self._state.tasks)
        for connection in list(self._state.connections):
            connection.transport.abort()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    @property
    def port(self) -> int:
        """The port it listens on."""
        return self._port

    @property
    def base_url(self) -> str:
        """What a client is given as ``base_url``."""
        return f"http://{_HOST}:{self._port}"

    @property
    def profile(self) -> Profile:
        """How long it takes."""
        return self._api.profile

    def read(self, marker: str) -> Read | None:
        """Return what the first request with this newest marker was shown, or None."""
        return self._records.read(marker)

    def turn(self, marker: str) -> WitnessedTurn | None:
        """Return all requests whose newest marker is this one, or None."""
        return self._records.turn(marker)

    def turns(self) -> tuple[WitnessedTurn, ...]:
        """Return all turns that are remembered, by the arrival of their first request."""
        return self._records.turns()

    def records(self) -> tuple[ModelCall, ...]:
        """Return the latest requests as they were answered, oldest first."""
        return self._records.recent()

    def statistics(self) -> Statistics:
        """Return the counts so far."""
        return self._records.statistics()

    def arm(self, fault: Fault) -> None:
        """Let something go wrong from now on, after what is armed already."""
        self._faults.arm(fault)

    def disarm(self) -> None:
        """Let nothing go wrong any more."""
        self._faults.clear()

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await self._api(scope, receive, send)
        except Dropped:
            for connection in list(self._state.connections):
                if connection.client == tuple(scope["client"]):
                    # close() lets go out what was written; abort() would take it back.
                    connection.transport.close()
            # One pass of the loop, in which the protocol learns that the connection is gone.
            await asyncio.sleep(0)
        except Exception:
            _LOG.exception(
                "a defect of the simulated Claude at %s %s", scope["method"], scope["path"]
            )
            raise


def run_simulated(args: Namespace) -> int:
    """Serve until interrupted or terminated: ``kode-lab simulate``.

    Args:
        args: ``port`` (0 is any), ``speed``, ``profile`` (``report``, ``instant`` or a TOML file).

    Raises:
        PortOccupied: somebody else listens on the port.
        InvalidScenario: the profile cannot be used.
    """
    choice = args.profile or "report"
    if choice == "report":
        profile = report_profile()
    else:
        profile = Profile() if choice == "instant" else profile_of(Path(choice))
    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        runner.run(_run(SimulatedClaude(profile, args.port, speed=args.speed)))
    return 0


async def _run(simulated: SimulatedClaude) -> None:
    over = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        with contextlib.suppress(NotImplementedError):  # Windows
            loop.add_signal_handler(number, over.set)
    async with simulated:
        sys.stdout.write(
            f"simulated Messages API on {simulated.base_url} at speed {simulated.profile.speed:g}; "
            f"clients: ANTHROPIC_BASE_URL={simulated.base_url} and any key; Ctrl-C ends it\n"
        )
        sys.stdout.flush()
        await over.wait()


def _loop_factory() -> Any:
    try:
        import uvloop  # noqa: PLC0415 - optional, and only here
    except ImportError:
        return None
    return uvloop.new_event_loop


def _listening(port: int) -> socket.socket:
    # With the protocol named: asyncio switches Nagle's algorithm off only where it sees TCP, and
    # with it on, an answer in two pieces waits 40 ms for the client's delayed acknowledgement.
    listening = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        if os.name == "posix":
            # A restart need not wait for old connections; two listeners still collide.
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((_HOST, port))
        listening.listen(_BACKLOG)
    except (OSError, OverflowError) as error:
        listening.close()
        if isinstance(error, OSError) and error.errno == errno.EADDRINUSE:
            raise PortOccupied(
                f"port {port} on {_HOST} is occupied: stop whoever listens there, "
                "or choose another port (0 takes any free one)"
            ) from None
        raise InvalidScenario(f"cannot listen on port {port} of {_HOST}: {error}") from None
    listening.setblocking(False)
    return listening
