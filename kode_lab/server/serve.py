"""``kode-lab serve``: opens store, model and socket, serves until told to stop, and drains.

It owns the order in which things open and close, and what a whole process needs beside its
requests: the trace file, the pace of replies, and when Python collects garbage. On SIGTERM or
Ctrl-C nothing new is accepted, the turns in flight (waiting ones included) end and are answered,
what outlasts ``drain_s`` stays in its journal and continues when its turnId comes again; then the
exit status is 0. A second signal does not wait, and the status is 130. A secret in a DSN is in no
output, log or answer.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import re
import signal
import socket
import sys
from argparse import Namespace
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

from kode_lab.claude.client import Claude
from kode_lab.claude.in_process import InProcessClaude
from kode_lab.claude.profile import Profile, profile_of, report_profile
from kode_lab.claude.simulated import SimulatedClaude
from kode_lab.errors import CallerError, InvalidScenario, KodeLabError, StoreUnwritable
from kode_lab.history.span import Span, span_line
from kode_lab.http import ConnectionLimits, HttpServer, is_loopback, listening_at
from kode_lab.message import Model, Reply, Request
from kode_lab.server.auth import tokens_of
from kode_lab.server.limits import (
    FileBudget,
    Limits,
    SessionsOf,
    file_budget,
    in_thread,
    raised_files_limit,
)
from kode_lab.server.live_state import LiveState
from kode_lab.server.peers import Peers, WorkerSlot
from kode_lab.server.ranges import Range, check_ranges
from kode_lab.server.routes import Application
from kode_lab.server.service import LOG, Service
from kode_lab.sessions import AgentShelf, JsonStore, SessionManager, Store, Toolbox
from kode_lab.sessions.postgres.schema import SCHEMA

__all__ = [
    "ReplyPace",
    "TraceFile",
    "check_options",
    "run_server",
    "settle",
    "settled",
    "watched_lag",
]

# After the turns have ended: what their answers may take to go out.
_ANSWERS_S = 5.0
# A connection between two workers ends with one of them.
_PEERS_KEEPALIVE_S = 86_400.0
_INTERRUPTED = 130
# Agents in memory between their turns, unless an option says how many.
_RESIDENTS = 10_000
_DSN = re.compile(r"postgres(ql)?://", re.IGNORECASE)
_ROOM = 1_000_000_000
_RANGES = {
    "turns_limit": Range(1, _ROOM),
    "sessions_per_user": Range(1, _ROOM),
    "residents": Range(1, _ROOM),
    "drain": Range(0, 86_400),
}


# ---- options


def check_options(options: Namespace) -> None:
    """Check what ``kode-lab serve`` was called with, before anything is opened.

    Raises:
        InvalidScenario: a value is out of its range, or options contradict each other.
    """
    check_ranges(options, _RANGES)
    if options.model is not None and not options.model.strip():
        raise InvalidScenario("--model is empty: write the model's name, or leave it out")
    if not is_loopback(options.host) and options.auth is None:
        raise InvalidScenario(
            f"--host {options.host}: others can reach this address, and without --auth FILE "
            "each of them could act as every user: add a file of tokens, or bind to 127.0.0.1"
        )
    if options.store is not None:
        _check_database(options)
    elif options.workers > 1 and options.durability == "power":
        raise InvalidScenario(
            "--durability power has one journal, which one process writes: leave out "
            "--workers, or use --store postgresql://…"
        )
    elif options.ttl is not None or options.schema != SCHEMA:
        option = "--ttl" if options.ttl is not None else "--schema"
        raise InvalidScenario(
            f"{option} is for a database: leave it out, or name the database with --store or "
            "KODE_LAB_STORE"
        )


def _check_database(options: Namespace) -> None:
    if not _DSN.match(options.store):
        # It may be a DSN with a typing error, and hold a password: it is not repeated.
        raise InvalidScenario("--store is not a DSN: write postgresql://user@host/database")
    if options.layout != "user":
        raise InvalidScenario("--layout is for the data directory: leave it out with --store")
    if options.is_store_shown and re.search(r"//[^/@]*:[^/]*@|[?&]password=", options.store):
        LOG.warning(
            "--store holds a password, and the list of this machine's processes shows it: "
            "set KODE_LAB_STORE to the DSN instead"
        )


# ---- opening, serving, draining


def run_server(options: Namespace, toolbox: Toolbox, agents: Path) -> int:
    """Serve until SIGTERM or Ctrl-C, and return the exit status.

    Args:
        options: of ``kode-lab serve``, checked.
        toolbox: what the agents may use.
        agents: the directory of their configurations.

    Raises:
        PortOccupied: another process listens on the port.
        StoreError: the data directory cannot be used.
    """
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(name)s: %(message)s")
    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        return runner.run(_serve(options, toolbox, agents))


async def _serve(options: Namespace, toolbox: Toolbox, agents: Path) -> int:
    slot: WorkerSlot | None = getattr(options, "slot", None)
    signals = _signals(is_child=slot is not None)
    tokens = None if options.auth is None else tokens_of(options.auth)
    is_simulated = not (options.in_process or options.model_url) and _is_simulated(options)
    budget = file_budget(
        raised_files_limit(),
        workers=1 if slot is None else slot.of,
        files_per_model_call=2 if is_simulated else 1,
    )
    limits = Limits(
        ConnectionLimits(connections_limit=budget.connections),
        turns_limit=options.turns_limit,
        sessions_per_user_limit=options.sessions_per_user,
        held_sessions_limit=budget.sessions if options.store is None else None,
    )
    async with AsyncExitStack() as stack:
        model, model_text = await _model(options, stack, budget)
        trace = None if options.trace is None else TraceFile(options.trace)
        live_state = LiveState(None if trace is None else stack.enter_context(trace).write)
        storage = await _opened(options, stack, budget)
        shelf = AgentShelf(agents, toolbox, on_problem=_on_problem)
        manager = await stack.enter_async_context(
            SessionManager(
                store=storage.store,
                agents=shelf,
                model=ReplyPace(model),
                trace=live_state.see,
                drain_s=options.drain,
                residents_limit=options.residents or _RESIDENTS,
            )
        )
        peers = None
        if slot is not None:
            peers = Peers(slot, connections_limit=budget.peer_connections)
            peers.start()
        service = Service(
            manager,
            live_state=live_state,
            sessions_of=storage.sessions_of,
            tokens=tokens,
            limits=limits,
            is_ready=storage.is_ready,
            peers=peers,
            deadline_of=lambda agent_id: shelf.current(agent_id).deadline_s,
        )
        server = await _listen(Application(service), options, limits.connection, slot, stack)
        await stack.enter_async_context(settled(lambda: service.turns_in_flight))
        await stack.enter_async_context(watched_lag(live_state))
        who = "every program on this machine" if tokens is None else "holders of a token"
        among = "" if slot is None else f", {slot.of} processes"
        sys.stdout.write(
            f"kode-lab serves {who} on {server.base_url}{among}; {model_text}; "
            f"sessions rest in {storage.text}; Ctrl-C ends it\n"
        )
        sys.stdout.flush()
        await signals.get()
        return await _drain(server, service, signals, options.drain)


async def _listen(
    app: Application,
    options: Namespace,
    limits: ConnectionLimits,
    slot: WorkerSlot | None,
    stack: AsyncExitStack,
) -> HttpServer:
    """Return the server for clients, after starting the one for other workers, if there are any."""
    listening = None
    if slot is not None:
        path = slot.socket(slot.number)
        stack.callback(_remove_socket, path)
        patient = replace(
            limits,
            connections_limit=sys.maxsize,
            keepalive_s=_PEERS_KEEPALIVE_S,
            # It was measured where the request arrived, with other headers.
            head_limit_bytes=2 * limits.head_limit_bytes,
        )
        inside = HttpServer(
            app, limits=patient, listening=listening_at(path), state={"is_inside": True}
        )
        await stack.enter_async_context(inside)
        listening = socket.socket(fileno=slot.listening)
    server = HttpServer(
        app, host=options.host, port=options.port, limits=limits, listening=listening
    )
    return await stack.enter_async_context(server)


def _remove_socket(path: Path) -> None:
    """Remove our socket, and its directory with the last one: the parent may be gone."""
    with contextlib.suppress(OSError):
        path.unlink(missing_ok=True)
        path.parent.rmdir()


async def _drain(
    server: HttpServer, service: Service, signals: asyncio.Queue[int], drain_s: float
) -> int:
    """End in good order; a second signal breaks the turns off, and keeps the order."""
    service.is_draining = True
    server.stop_listening()
    LOG.warning("stopping: %d turns are in flight", service.turns_in_flight)
    closing = asyncio.create_task(_ended(service, drain_s))
    hurry = asyncio.create_task(signals.get())
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
    """Return a queue of the signals that ask for an end; a child's parent ending is one, too."""
    signals: asyncio.Queue[int] = asyncio.Queue()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        with contextlib.suppress(NotImplementedError):  # Windows
            loop.add_signal_handler(number, signals.put_nowait, number)
    if is_child:

        def parent_ended() -> None:
            loop.remove_reader(sys.stdin)
            signals.put_nowait(signal.SIGTERM)

        loop.add_reader(sys.stdin, parent_ended)  # nothing but its end ever comes
    return signals


# ---- the model


def _is_simulated(options: Namespace) -> bool:
    return bool(options.simulated or not (options.model or os.environ.get("ANTHROPIC_API_KEY")))


async def _model(
    options: Namespace, stack: AsyncExitStack, budget: FileBudget
) -> tuple[Model, str]:
    """Return the model, and the text that says which it is."""
    profile = _profile(options)
    model: Model
    if options.in_process:
        model, text = InProcessClaude(profile), "the model is simulated in this process, no HTTP"
    elif options.model_url is not None:
        model = await _claude(stack, options.model_url, budget)
        text = f"the model is asked at {options.model_url}"
    elif _is_simulated(options):
        simulated = await stack.enter_async_context(SimulatedClaude(profile))
        model = await _claude(stack, simulated.base_url, budget)
        text = f"the model is simulated, on {simulated.base_url}"
    else:
        real = Claude(concurrency=budget.model_connections, retries=2)
        model = await stack.enter_async_context(real)
        text = "the model is the real one"
    if options.model is not None:
        return _with_name(model, options.model), f"{text}, as {options.model}"
    return model, text


async def _claude(stack: AsyncExitStack, base_url: str, budget: FileBudget) -> Model:
    claude = Claude(base_url, concurrency=budget.model_connections, retries=2)
    await stack.enter_async_context(claude)
    with contextlib.suppress(KodeLabError):  # it may come later
        await claude.warm_up()
    return claude


def _with_name(model: Model, name: str) -> Model:
    """Return the model under this name, whatever the agents' files say."""

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


def _loop_factory() -> Any:
    try:
        import uvloop  # noqa: PLC0415 - absent on Windows
    except ImportError:
        return None
    return uvloop.new_event_loop


# ---- the store


class _Storage(NamedTuple):
    """An open store, and what a server needs to know of it.

    Attributes:
        is_ready: whether turns can be taken now.
        text: where sessions rest, for a person.
    """

    store: Store
    sessions_of: SessionsOf
    is_ready: Callable[[], bool]
    text: str


async def _opened(options: Namespace, stack: AsyncExitStack, budget: FileBudget) -> _Storage:
    """Open the store; the manager closes it.

    Raises:
        StoreError: it cannot be used.
        InvalidConfig: the DSN is wrong, or the database's other workers have other settings.
    """
    if options.store is None:
        files = JsonStore(
            options.data,
            layout=options.layout,
            durability=options.durability,
            open_sessions_limit=min(options.residents or budget.sessions, budget.sessions),
        )
        return _Storage(files, in_thread(files.sessions), lambda: True, str(options.data))
    from kode_lab.sessions.postgres.store import PostgresStore  # noqa: PLC0415 - only its users pay

    database = PostgresStore(options.store, schema=options.schema, ttl_s=options.ttl)
    stack.push_async_callback(database.aclose)
    await database.open()
    text = f"PostgreSQL, schema {options.schema}"
    return _Storage(database, database.sessions, lambda: database.is_ready, text)


# ---- the trace


class TraceFile:
    """A file that spans are appended to, beside other processes that append to it.

    A turn never fails because of its trace: what cannot be written, on a full disk for example, is
    dropped and counted; the log says so once, and how much is missing when the file is closed.

    Attributes:
        dropped: how many spans could not be written.

    Raises:
        StoreUnwritable: the file cannot be opened.
    """

    def __init__(self, path: Path) -> None:
        self._name = path.name
        self._is_torn = False
        self.dropped = 0
        try:
            self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        except OSError as error:
            raise StoreUnwritable(
                f"the trace {path.name}: {error.strerror}: choose a path"
            ) from None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close it, and log what is missing."""
        os.close(self._fd)
        if self.dropped:
            LOG.warning("the trace %s lacks %d steps", self._name, self.dropped)

    def write(self, span: Span) -> None:
        """Append one step, or count it as dropped."""
        line = span_line(span).encode() + b"\n"
        if self._is_torn:  # the line that was cut ends here, and damages no other one
            line = b"\n" + line
        try:
            written = os.write(self._fd, line)
        except OSError as error:
            self._drop(error.strerror or type(error).__name__)
            return
        is_whole = written == len(line)
        if not is_whole:
            self._drop("only a part of a line could be written")
        self._is_torn = not is_whole

    def _drop(self, why: str) -> None:
        self.dropped += 1
        if self.dropped == 1:
            LOG.warning(
                "the trace %s: %s: its steps are dropped until it can be written; free some space",
                self._name,
                why,
            )


# ---- the event loop


class ReplyPace:
    """A model whose replies arrive a few at a time; it is a model itself.

    Thousands of replies may arrive at once. If all of them were saved and sent first, the next
    request would wait although its model could be thinking meanwhile. So few replies pass in one
    round of the loop, in the order of their arrival, and the loop reads requests in between: 5,000
    sessions of five turns and a 2 s model took 11.8 s instead of 12.6.
    """

    def __init__(self, model: Model, *, at_once: int = 64) -> None:
        self._model = model
        self._at_once = at_once
        self._passed = 0
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._is_next_due = False

    async def __call__(
        self, request: Request, on_text: Callable[[str], None] | None = None
    ) -> Reply:
        """Return the model's reply when its turn comes; errors do not wait."""
        reply = await self._model(request, on_text)
        if self._waiting or self._passed >= self._at_once:
            turn = asyncio.get_running_loop().create_future()
            self._waiting.append(turn)
            await turn
        else:
            self._passed += 1
            self._expect_next_round()
        return reply

    def _expect_next_round(self) -> None:
        if not self._is_next_due:
            self._is_next_due = True
            asyncio.get_running_loop().call_soon(self._begin_round)

    def _begin_round(self) -> None:
        self._is_next_due = False
        self._passed = 0
        while self._waiting and self._passed < self._at_once:
            turn = self._waiting.popleft()
            if not turn.done():  # it was not cancelled
                turn.set_result(None)
                self._passed += 1
        if self._passed:
            self._expect_next_round()


@asynccontextmanager
async def watched_lag(live_state: LiveState, *, every_s: float = 0.25) -> AsyncIterator[None]:
    """Measure how late the event loop runs a timer, as long as the context is open."""

    async def watch() -> None:
        loop = asyncio.get_running_loop()
        while True:
            due_s = loop.time() + every_s
            await asyncio.sleep(every_s)
            live_state.loop_lags.add(max(0.0, loop.time() - due_s))

    watching = asyncio.create_task(watch())
    try:
        yield
    finally:
        watching.cancel()


# Turns and connections leave no cycles, however they end (tests hold that), so Python's garbage
# collector finds nothing; but each run walks through all objects made since, and every turn waits:
# a quarter of a second with 5,000 turns in flight. So what lives is frozen once a second, which
# costs nothing, and examined again after a minute without turns.
_THRESHOLDS = (1_000_000, 50, 50)
_LOOK_S = 1.0
_IDLE_LOOKS = 60
# Fewer new objects than this are not worth freezing.
_FEW = 10_000


def settle() -> None:
    """Collect garbage now, and freeze all that is left."""
    gc.unfreeze()
    gc.collect()
    gc.freeze()
    gc.set_threshold(*_THRESHOLDS)


@asynccontextmanager
async def settled(
    in_flight: Callable[[], int], *, look_s: float = _LOOK_S, idle_looks: int = _IDLE_LOOKS
) -> AsyncIterator[None]:
    """Keep the garbage collector away from turns while the context is open.

    Args:
        in_flight: returns how many turns run.
        look_s: how often it looks whether there are any.
        idle_looks: after so many looks without turns in a row it collects garbage.
    """
    before = gc.get_threshold()
    settle()
    keeping = asyncio.create_task(_keep_settled(in_flight, look_s, idle_looks))
    try:
        yield
    finally:
        keeping.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await keeping
        gc.set_threshold(*before)  # what was frozen is not examined on the way out


async def _keep_settled(in_flight: Callable[[], int], look_s: float, idle_looks: int) -> None:
    was_frozen, idle_for = False, 0
    while True:
        await asyncio.sleep(look_s)
        idle_for = 0 if in_flight() else idle_for + 1
        if gc.get_count()[0] > _FEW:
            gc.freeze()
            was_frozen = True
        if was_frozen and idle_for >= idle_looks:
            settle()
            was_frozen = False
