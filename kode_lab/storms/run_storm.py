"""One storm ridden out: clients ask and write down what they saw, and the judge decides.

It owns the clients' side of the run: who writes what to the history and when. A client writes its
invoke before it sends and its completion after the answer. Whoever got no definite answer sends the
same turn again, under the same id and another name, to a worker drawn anew. At the end faults are
declared over, and a fresh worker is asked one more turn of each session and reads it.
"""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections.abc import Callable
from contextlib import AsyncExitStack, closing
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import NamedTuple

from kode_lab.check import Verdict, check_path
from kode_lab.check.render import headline
from kode_lab.errors import KodeLabError, Refused, Superseded
from kode_lab.history.operation import Effect, HistoryWriter, markers_in
from kode_lab.key import SessionKey
from kode_lab.lab.records import Run, RunRecorder
from kode_lab.lab.scenario import Ask
from kode_lab.schedule_assistant import ScheduleBook
from kode_lab.sessions.postgres.connection import PostgresConnection
from kode_lab.storms.fleet import Fleet, Held, Worker
from kode_lab.storms.nemesis import Nemesis
from kode_lab.storms.proxy import Proxy
from kode_lab.storms.storm import Dice, Storm
from kode_lab.storms.watch import Watched, install, watched
from kode_lab.storms.worker import Post
from kode_lab.testing.postgres import ThrowawayPostgres

__all__ = ["Outcome", "ride"]

# Sendings of one turn, and how long the last of a session may take.
ATTEMPTS_LIMIT = 100
PROBE_LIMIT_S = 60.0
_AGAIN_AFTER_S = 0.01
# A run whose faults never end must end all the same.
_TURNS_FACTOR_LIMIT = 20
_SCHEMA = "storm"
# What the fleet's workers bear before they tell a client; a restart of the database takes less.
_PATIENCE_S = 10.0


class Outcome(NamedTuple):
    """What came of a storm.

    Attributes:
        kills: of workers and of the database.
        handovers_ms: from a kill to the next holder's grant, sorted.
        stale: writes of overtaken holders, as the database tells of them.
        zombies: turns whose worker answered that it was overtaken.
        is_stuck: it did not come to its end within its limit.
        complaints: what the workers wrote on stderr.
    """

    storm: Storm
    run: Run
    verdict: Verdict
    kills: int
    handovers_ms: tuple[float, ...]
    stale: Watched
    zombies: int
    took_s: float
    complaints: str
    is_stuck: bool

    @property
    def is_harmed(self) -> bool:
        """Something was lost, doubled, accepted too late or stuck, or a worker broke."""
        is_stale = self.stale.accepted + self.stale.backward > 0
        is_broken = self.is_stuck or bool(self.complaints)
        return self.verdict.status == "invalid" or is_stale or is_broken

    @property
    def is_well(self) -> bool:
        """Nothing was, and there is evidence enough to say so."""
        return self.verdict.status == "valid" and not self.is_harmed


@dataclass(slots=True)
class _Clients:
    """What the clients of one run share."""

    storm: Storm
    fleet: Fleet
    nemesis: Nemesis
    history: HistoryWriter
    dice: Dice
    random: Random
    told: Callable[[int], None]
    book: Path
    asked: int = 0
    ended: int = 0
    zombies: int = 0
    keys: dict[SessionKey, None] = field(default_factory=dict)

    def next(self) -> Ask | None:
        """Return the next turn; None when there were enough and the faults are over."""
        turns = self.storm.turns
        if (self.asked >= turns and self.nemesis.is_over) or (
            self.asked >= turns * _TURNS_FACTOR_LIMIT
        ):
            return None
        self.asked += 1
        ask = self.dice.ask()
        self.keys[ask.key] = None
        return ask

    def end(self) -> None:
        """Count a turn that was answered, or given up."""
        self.ended += 1
        self.nemesis.note_end()
        self.told(self.ended)

    async def anyone(self) -> Worker:
        """Return a random worker, once there is one."""
        while not self.fleet.workers:
            await self.fleet.one_came.wait()
        return self.random.choice(self.fleet.workers)


async def ride(
    storm: Storm,
    results: Path,
    *,
    command: str = "",
    code: Path | None = None,
    told: Callable[[int], None] = lambda _: None,
) -> Outcome:
    """Do the storm, judge it, and give what came of it.

    Args:
        results: where the run's directory goes.
        code: where another ``kode_lab`` lies that the workers run: to see it convicted.
        told: is told how many turns have ended, at each end.

    Raises:
        PostgresMissing: there is no PostgreSQL on this machine.
        InvalidScenario: a worker does not come.
    """
    name = f"postgres-{storm.name}"
    recorder = RunRecorder(
        results, name, parameters=storm.to_json(), seed=storm.seed, command=command
    )
    began_s = time.monotonic()
    status = "crashed"
    try:
        async with AsyncExitStack() as stack:
            clients, server = await _opened(storm, recorder, stack, code, told)
            is_stuck = await _is_stuck(clients)
            stale = await _watched(server)
            complaints = clients.fleet.complaints()
        status = "complete"
    finally:
        run = recorder.close()
        verdict = check_path(run.path) if status == "complete" else None
        said = {} if verdict is None else {"finding": headline(verdict)}
        run = recorder.finish(status, verdict=verdict.status if verdict else "unknown", **said)
    assert verdict is not None
    recorder.write_json("verdict.json", verdict.to_json())
    nemesis = clients.nemesis
    handovers_ms = tuple(sorted(ns / 1e6 for ns in nemesis.handovers_ns))
    took_s = time.monotonic() - began_s
    return Outcome(
        storm,
        run,
        verdict,
        nemesis.kills,
        handovers_ms,
        stale,
        clients.zombies,
        took_s,
        complaints,
        is_stuck,
    )


async def _opened(
    storm: Storm,
    recorder: RunRecorder,
    stack: AsyncExitStack,
    code: Path | None,
    told: Callable[[int], None],
) -> tuple[_Clients, ThrowawayPostgres]:
    # A kill of processes, not of the machine: what was written stands without a sync.
    settings = {"fsync": "off", "max_connections": "200"}
    server = await stack.enter_async_context(ThrowawayPostgres(settings=settings))
    home = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="kode-")))
    post = Post(
        str(home / "fleet"),
        server.dsn,
        _SCHEMA,
        str((recorder.path / "schedules.sqlite3").absolute()),
        storm.ttl_s,
        storm.ttft_s,
        _PATIENCE_S,
    )
    proxy: Proxy | None = None
    if {"cut", "slow"} & set(storm.faults):
        draw = Random(f"{storm.seed}/proxy")
        proxy = await stack.enter_async_context(Proxy(server.dsn, home, random=draw))

    def heard(held: Held) -> None:
        nemesis.heard(held)

    fleet = await stack.enter_async_context(Fleet(post, home, heard=heard, code=code))
    link = PostgresConnection(server.dsn, schema=_SCHEMA)
    await install(link)
    await link.aclose()
    nemesis = Nemesis(storm, fleet, server, proxy, recorder.history)
    await nemesis.begin()
    draw = Random(f"{storm.seed}/clients")
    book = Path(post.book)
    clients = _Clients(storm, fleet, nemesis, recorder.history, Dice(storm), draw, told, book)
    return clients, server


async def _watched(server: ThrowawayPostgres) -> Watched:
    link = PostgresConnection(server.dsn, schema=_SCHEMA)
    try:
        return await watched(link)
    finally:
        await link.aclose()


async def _is_stuck(clients: _Clients) -> bool:
    """Do it all, and give whether it had to be broken off."""
    try:
        async with asyncio.timeout(clients.storm.limit_s):
            await _done(clients)
    except TimeoutError:
        return True
    return False


async def _done(clients: _Clients) -> None:
    async with asyncio.TaskGroup() as group:
        if clients.storm.faults:
            group.create_task(clients.nemesis.rage())
        for number in range(clients.storm.clients):
            group.create_task(_ask_all(clients, f"c{number}"))
    fresh = await clients.nemesis.bear()
    await _probe(clients, fresh)


async def _ask_all(clients: _Clients, name: str) -> None:
    lives = 0
    while (ask := clients.next()) is not None:
        await asyncio.sleep(ask.pause_s)
        for _ in range(ATTEMPTS_LIMIT):
            process = f"{name}.{lives}" if lives else name
            worker, timeout_s = await clients.anyone(), clients.storm.timeout_s
            outcome, is_closed = await _turn(clients, worker, process, ask, timeout_s)
            lives += outcome == "info"
            if is_closed or (
                outcome == "ok" and clients.random.random() >= clients.storm.again_share
            ):
                break
            await asyncio.sleep(_AGAIN_AFTER_S)
        clients.end()


async def _turn(
    clients: _Clients, worker: Worker, process: str, ask: Ask, timeout_s: float
) -> tuple[str, bool]:
    """Ask one turn of one worker, and write down what its client can know of it.

    Gives the outcome, and whether the turn is closed, so that asking again is useless.
    """
    outcome, error, answer, is_closed = "info", "", None, False
    history = clients.history
    history.invoke(ask.key, process, time.monotonic_ns(), marker=ask.marker, turn_id=ask.turn_id)
    try:
        async with asyncio.timeout(timeout_s):
            answer = await worker.turn(ask)
        outcome = "ok"
    except Refused as refused:
        outcome, error = "fail", str(refused)
    except KodeLabError as failure:
        is_closed = isinstance(failure, Superseded)
        error = str(failure)
        clients.zombies += error.startswith("StaleLease")
    except TimeoutError:
        error = f"no answer within {timeout_s=:g}"
    finally:
        told = {} if answer is None else answer._asdict()
        history.complete(process, time.monotonic_ns(), outcome, error=error, **told)
    return outcome, is_closed


async def _probe(clients: _Clients, fresh: Worker) -> None:
    """Ask every session once more at a fresh worker, read it there, and read what tools did."""
    if not clients.storm.faults:
        clients.history.fault("quiet", time.monotonic_ns())
    async with asyncio.TaskGroup() as probes:
        for number, key in enumerate(clients.keys):
            ask = clients.storm.probe(key)
            probes.create_task(_turn(clients, fresh, f"probe-{number}", ask, PROBE_LIMIT_S))
    for number, key in enumerate(clients.keys):
        process = f"reader-{number}"
        clients.history.invoke(key, process, time.monotonic_ns(), f="read")
        try:
            markers = await fresh.markers(key)
        except KodeLabError as error:
            clients.history.complete(process, time.monotonic_ns(), "info", error=str(error))
        else:
            clients.history.complete(process, time.monotonic_ns(), "ok", markers=markers)
    by_user = {key.user_id: key for key in clients.keys}
    with closing(ScheduleBook(clients.book)) as book:
        for number, (user_id, key) in enumerate(by_user.items()):
            process = f"book-{number}"
            clients.history.invoke(key, process, time.monotonic_ns(), f="effects")
            effects = _effects(book, user_id)
            clients.history.complete(process, time.monotonic_ns(), "ok", effects=effects)


def _effects(book: ScheduleBook, user_id: str) -> list[Effect]:
    """Return the entries; a title that is a marker's says which turn asked for its entry."""
    return [
        Effect(str(one.id), "create_schedule", (*markers_in(f"#{one.title}"), "")[0], user_id)
        for one in book.query(user_id)
    ]
