"""``kode-lab serve``: opens store, model and socket, serves until told to stop, and drains.

It owns the order in which things open and close. On SIGTERM or Ctrl-C nothing new is accepted, the
turns in flight (waiting ones included) end and are answered, what outlasts ``drain_s`` rests in its
journal and goes on when its turnId comes again; then the exit status is 0. A second signal does
not wait, and the status is 130.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import sys
from argparse import Namespace
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

from kode_lab.claude.client import Claude
from kode_lab.claude.in_process import InProcessClaude
from kode_lab.claude.profile import Profile, profile_of, report_profile
from kode_lab.claude.simulated import SimulatedClaude
from kode_lab.errors import CallerError, InvalidScenario, KodeLabError
from kode_lab.http import ConnectionLimits, HttpServer, is_loopback, listening_at
from kode_lab.message import Model, Reply, Request
from kode_lab.server.app import app_of
from kode_lab.server.auth import tokens_of
from kode_lab.server.collector import settled
from kode_lab.server.live_state import Board
from kode_lab.server.pace import Pace
from kode_lab.server.peers import Peers
from kode_lab.server.service import LOG, Limits, Service
from kode_lab.server.storage import opened
from kode_lab.server.trace_file import TraceFile
from kode_lab.server.worker_slot import Place
from kode_lab.sessions import AgentShelf, SessionManager, Toolbox

__all__ = ["open_sessions_limit", "run_server"]

# After the turns have ended: what their answers may take to go out.
_ANSWERS_S = 5.0
# A connection between two workers ends with one of them.
_PEERS_KEEPALIVE_S = 86_400.0
_INTERRUPTED = 130
# Agents in memory between their turns, when nobody says how many.
_RESIDENTS = 10_000
_OPEN_SESSIONS = (64, 10_000)
_FILES_WITHOUT_LIMIT = 60_000
# Simulated calls at once; the real API's own limits come first.
_MODEL_CONCURRENCY = 1_000


def run_server(options: Namespace, toolbox: Toolbox, agents: Path) -> int:
    """Serve until SIGTERM or Ctrl-C, and give the exit status.

    Args:
        options: what ``kode-lab serve`` was told (its parser says what there is).
        toolbox: what the agents may use.
        agents: the directory of their configurations.

    Raises:
        InvalidScenario: an option makes no sense, or an address needs ``--auth``.
        PortOccupied: somebody else listens on the port.
        StoreError: the data directory cannot be used.
    """
    if not is_loopback(options.host) and options.auth is None:
        raise InvalidScenario(
            f"--host {options.host}: others can reach this address, and without --auth FILE "
            "everybody would be every user: give a file of tokens, or bind to 127.0.0.1"
        )
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(name)s: %(message)s")
    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        return runner.run(_serve(options, toolbox, agents))


async def _serve(options: Namespace, toolbox: Toolbox, agents: Path) -> int:
    place: Place | None = getattr(options, "place", None)
    told = _signals(is_child=place is not None)
    tokens = None if options.auth is None else tokens_of(options.auth)
    files = _raised_files_limit()
    limits = Limits(
        ConnectionLimits(connections_limit=min(ConnectionLimits().connections_limit, files // 3)),
        turns_limit=options.turns_limit,
        sessions_per_user_limit=options.sessions_per_user,
    )
    async with AsyncExitStack() as stack:
        model, said = await _model(options, stack)
        trace = None if options.trace is None else TraceFile(options.trace)
        board = Board(None if trace is None else stack.enter_context(trace).write)
        open_sessions = min(options.residents or files, open_sessions_limit(files))
        storage = await opened(options, stack, open_sessions=open_sessions)
        manager = await stack.enter_async_context(
            SessionManager(
                store=storage.store,
                agents=AgentShelf(agents, toolbox, on_problem=_on_problem),
                model=Pace(model),
                trace=board.see,
                drain_s=options.drain,
                residents_limit=options.residents or _RESIDENTS,
            )
        )
        app = app_of(
            manager,
            board=board,
            sessions_of=storage.sessions_of,
            tokens=tokens,
            limits=limits,
            is_ready=storage.is_ready,
            peers=None if place is None else Peers(place),
        )
        server = await _listen(app, options, limits, place, stack)
        await stack.enter_async_context(settled(lambda: app.state.service.turns_in_flight))
        who = "anybody on this machine" if tokens is None else "whoever has a token"
        among = "" if place is None else f", {place.of} processes"
        _say(f"{who} on {server.base_url}{among}; {said}; sessions rest in {storage.said}")
        await told.get()
        return await _drain(server, app.state.service, told, options.drain)


def _say(what: str) -> None:
    sys.stdout.write(f"kode-lab serves {what}; Ctrl-C ends it\n")
    sys.stdout.flush()


async def _listen(
    app: Any, options: Namespace, limits: Limits, place: Place | None, stack: AsyncExitStack
) -> HttpServer:
    """Return the server that clients reach; before it stands the one for other workers, if any."""
    listening = None
    if place is not None:
        path = place.socket(place.number)
        within = listening_at(path)
        stack.callback(_leave, path)
        patient = replace(
            limits.connection,
            connections_limit=sys.maxsize,
            keepalive_s=_PEERS_KEEPALIVE_S,
            # Both were measured where the request landed, with other headers and without turnId.
            head_limit_bytes=2 * limits.connection.head_limit_bytes,
            body_limit_bytes=2 * limits.connection.body_limit_bytes,
        )
        inside = HttpServer(app, limits=patient, listening=within, state={"is_inside": True})
        await stack.enter_async_context(inside)
        listening = socket.socket(fileno=place.listening)
    server = HttpServer(
        app,
        host=options.host,
        port=options.port,
        limits=limits.connection,
        listening=listening,
        state={"is_inside": False},
    )
    return await stack.enter_async_context(server)


def _leave(path: Path) -> None:
    """Remove our socket, and its directory with the last one: the parent may be gone."""
    with contextlib.suppress(OSError):
        path.unlink(missing_ok=True)
        path.parent.rmdir()


async def _drain(
    server: HttpServer, service: Service, told: asyncio.Queue[int], drain_s: float
) -> int:
    """End in good order; a second signal breaks the turns off, and keeps the order."""
    service.is_draining = True
    server.stop_listening()
    LOG.warning("stopping: %d turns are in flight", service.turns_in_flight)
    closing = asyncio.create_task(_ended(service, drain_s))
    hurry = asyncio.create_task(told.get())
    await asyncio.wait({closing, hurry}, return_when=asyncio.FIRST_COMPLETED)
    hurry.cancel()
    is_hurried = not closing.done()
    if is_hurried:
        service.break_off()
    await closing
    await server.finish(within_s=_ANSWERS_S)
    return _INTERRUPTED if is_hurried else 0


async def _ended(service: Service, drain_s: float) -> None:
    """Wait for the turns taken here, and for those that other workers take for our clients."""
    await service.manager.aclose()
    if service.peers is not None:
        await service.peers.finish(within_s=drain_s)


def _signals(*, is_child: bool) -> asyncio.Queue[int]:
    """Yield the signals that ask for an end; for a child, its parent's end too."""
    told: asyncio.Queue[int] = asyncio.Queue()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        with contextlib.suppress(NotImplementedError):  # Windows
            loop.add_signal_handler(number, told.put_nowait, number)
    if is_child:

        def parent_ended() -> None:
            loop.remove_reader(sys.stdin)
            told.put_nowait(signal.SIGTERM)

        loop.add_reader(sys.stdin, parent_ended)  # nothing but its end ever comes
    return told


async def _model(options: Namespace, stack: AsyncExitStack) -> tuple[Model, str]:
    """Return who answers, and the words for it."""
    profile = _profile(options)
    model: Model
    if options.in_process:
        model, said = InProcessClaude(profile), "the model is simulated in this process, no HTTP"
    elif options.model_url is not None:
        model = await _claude(stack, options.model_url)
        said = f"the model is asked at {options.model_url}"
    elif options.simulated or not (options.model or os.environ.get("ANTHROPIC_API_KEY")):
        simulated = await stack.enter_async_context(SimulatedClaude(profile))
        model = await _claude(stack, simulated.base_url)
        said = f"the model is simulated, on {simulated.base_url}"
    else:
        model = await stack.enter_async_context(Claude(concurrency=_MODEL_CONCURRENCY, retries=2))
        said = "the model is the real one"
    if options.model is not None:
        return _named(model, options.model), f"{said}, as {options.model}"
    return model, said


async def _claude(stack: AsyncExitStack, base_url: str) -> Model:
    claude = Claude(base_url, concurrency=_MODEL_CONCURRENCY, retries=2)
    await stack.enter_async_context(claude)
    with contextlib.suppress(KodeLabError):  # it may come later
        await claude.warm_up()
    return claude


def _named(model: Model, name: str) -> Model:
    """Return the model that is asked under this name, whatever the agents' files say."""

    def ask(request: Request, on_text: Callable[[str], None] | None = None) -> Awaitable[Reply]:
        return model(request._replace(model=name), on_text)

    return ask


def _profile(options: Namespace) -> Profile:
    choice = options.profile or "instant"
    if choice == "report":
        profile = report_profile()
    else:
        profile = Profile() if choice == "instant" else profile_of(Path(choice))
    return profile if options.speed is None else profile.at(options.speed)


def _on_problem(problem: CallerError) -> None:
    LOG.warning("%s", problem)


def open_sessions_limit(files_limit: int) -> int:
    """Return how many sessions' files may stay open: two thirds of all files, two for each.

    A session that has to open its files again pays more for that than for the rest of its turn.
    """
    return max(_OPEN_SESSIONS[0], min(_OPEN_SESSIONS[1], files_limit // 3))


def _raised_files_limit() -> int:
    """Take as many open files as the system gives, and say how many that is."""
    try:
        import resource  # noqa: PLC0415 - absent on Windows
    except ImportError:
        return _FILES_WITHOUT_LIMIT
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        soft = hard
    return _FILES_WITHOUT_LIMIT if soft == resource.RLIM_INFINITY else soft


def _loop_factory() -> Any:
    try:
        import uvloop  # noqa: PLC0415 - absent on Windows
    except ImportError:
        return None
    return uvloop.new_event_loop
