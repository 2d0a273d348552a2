"""Run one storm: clients ask and record what they see, and the judge decides.

It owns the clients of the run. A client without a definite answer sends the same turn again, under
the same id and another name, to a worker drawn anew. When the faults are over, a fresh worker is
asked one more turn of each session and reads it.

It also owns what the database itself records of stale writes: triggers look at each turn and step
that is saved, and a wrapper around ``refusal`` notes what was refused. So the fence is checked from
the rows, by other statements than those that keep it; neither changes an answer.
"""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import NamedTuple

from kode_lab.check import Verdict, check_path
from kode_lab.check.render import headline
from kode_lab.history.operation import HistoryWriter
from kode_lab.key import SessionKey
from kode_lab.lab.client import Client
from kode_lab.lab.records import Run, RunRecorder
from kode_lab.lab.scenario import Ask
from kode_lab.sessions.postgres.connection import PostgresConnection
from kode_lab.sessions.postgres.schema import FENCES
from kode_lab.storms.fleet import Fleet, HeldTurn, Worker
from kode_lab.storms.nemesis import StormNemesis
from kode_lab.storms.proxy import Proxy
from kode_lab.storms.storm import Dice, Storm
from kode_lab.storms.worker import Post
from kode_lab.testing.postgres import ThrowawayPostgres

__all__ = ["StormOutcome", "Watched", "run_storm"]

# Sendings of one turn, and how long the last of a session may take.
ATTEMPTS_LIMIT = 100
PROBE_LIMIT_S = 60.0
_AGAIN_AFTER_S = 0.01
# A run whose faults never end must end all the same.
_TURNS_FACTOR_LIMIT = 20
_SCHEMA = "storm"


class Watched(NamedTuple):
    """What was seen.

    Attributes:
        refused: writes that came too late, and that no earlier sending had saved.
        accepted: writes of an overtaken holder that were saved all the same.
        backward: turns that follow one of a later holder.
    """

    refused: int = 0
    accepted: int = 0
    backward: int = 0


class StormOutcome(NamedTuple):
    """The result of a storm.

    Attributes:
        kills: of workers and of the database.
        handovers_ms: from a kill to the next holder's grant, sorted.
        stale: writes of overtaken holders, as the database saw them.
        zombies: turns whose worker answered that it was overtaken.
        is_stuck: it did not end within its limit.
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
    nemesis: StormNemesis
    history: HistoryWriter
    dice: Dice
    random: Random
    told: Callable[[int], None]
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


async def run_storm(
    storm: Storm,
    results: Path,
    *,
    command: str = "",
    code: Path | None = None,
    told: Callable[[int], None] = lambda _: None,
) -> StormOutcome:
    """Run the storm, judge it, and return the outcome.

    Args:
        results: the directory for the run's own one.
        code: the directory of another ``kode_lab`` for the workers, to see it convicted.
        told: is called with the number of ended turns whenever one ends.

    Raises:
        PostgresMissing: there is no PostgreSQL on this machine.
        InvalidScenario: a worker does not start.
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
        verdict = check_path(run.path, keep=True) if status == "complete" else None
        said = {} if verdict is None else {"finding": headline(verdict)}
        run = recorder.finish(status, verdict=verdict.status if verdict else "unknown", **said)
    assert verdict is not None
    recorder.write_json("verdict.json", verdict.to_json())
    nemesis = clients.nemesis
    handovers_ms = tuple(sorted(ns / 1e6 for ns in nemesis.handovers_ns))
    took_s = time.monotonic() - began_s
    return StormOutcome(
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
    # Processes are killed, not the machine: what was written survives without a sync.
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
        storm.patience_s,
    )
    proxy: Proxy | None = None
    if {"cut", "slow", "late"} & set(storm.faults):
        draw = Random(f"{storm.seed}/proxy")
        proxy = await stack.enter_async_context(Proxy(server.dsn, home, random=draw))

    def heard(held: HeldTurn) -> None:
        nemesis.heard(held)

    fleet = await stack.enter_async_context(Fleet(post, home, heard=heard, code=code))
    connection = PostgresConnection(server.dsn, schema=_SCHEMA)
    for statement in _INSTALL:
        await connection.fetch(statement)
    await connection.aclose()
    nemesis = StormNemesis(storm, fleet, server, proxy, recorder.history)
    await nemesis.begin()
    draw = Random(f"{storm.seed}/clients")
    clients = _Clients(storm, fleet, nemesis, recorder.history, Dice(storm), draw, told)
    return clients, server


async def _watched(server: ThrowawayPostgres) -> Watched:
    connection = PostgresConnection(server.dsn, schema=_SCHEMA)
    try:
        return Watched(*(await connection.fetch(_WATCHED))[0])
    finally:
        await connection.aclose()


async def _is_stuck(clients: _Clients) -> bool:
    """Run it to its end; return whether it had to be stopped."""
    try:
        async with asyncio.timeout(clients.storm.limit_s):
            await _run(clients)
    except TimeoutError:
        return True
    return False


async def _run(clients: _Clients) -> None:
    async with asyncio.TaskGroup() as group:
        if clients.storm.faults:
            group.create_task(clients.nemesis.run())
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
            outcome = await Client(await clients.anyone(), clients.history).turn(
                process,
                ask.key,
                ask.marker,
                ask.prompt,
                turn_id=ask.turn_id,
                timeout_s=clients.storm.timeout_s,
            )
            lives += outcome.type == "info"
            clients.zombies += "StaleLease" in outcome.error
            is_answered = outcome.type == "ok"
            if outcome.is_final or (
                is_answered and clients.random.random() >= clients.storm.again_share
            ):
                break
            await asyncio.sleep(_AGAIN_AFTER_S)
        clients.end()


async def _probe(clients: _Clients, fresh: Worker) -> None:
    """Ask every session once more at a fresh worker, read it there, and read what tools did."""
    if not clients.storm.faults:
        clients.history.fault("quiet", time.monotonic_ns())
    client = Client(fresh, clients.history)
    async with asyncio.TaskGroup() as probes:
        for number, key in enumerate(clients.keys):
            ask = clients.storm.probe(key)
            probes.create_task(
                client.turn(
                    f"probe-{number}",
                    key,
                    ask.marker,
                    ask.prompt,
                    turn_id=ask.turn_id,
                    timeout_s=PROBE_LIMIT_S,
                )
            )
    for number, key in enumerate(clients.keys):
        await client.read(f"reader-{number}", key)
    by_user = {key.user_id: key for key in clients.keys}
    for number, key in enumerate(by_user.values()):
        await client.effects(f"book-{number}", key)


# ---- what the database records of stale writes


_ARGUMENTS = """
    me bigint, which bigint, under bigint, what bigint, at_turn int, at_step int, id text,
    written text"""
_NAMES = ", ".join(words.split()[0] for words in _ARGUMENTS.split(","))
_INSTALL = (
    "CREATE TABLE seen (is_accepted boolean, conversation bigint, fence bigint)",
    f"""CREATE FUNCTION note_saved() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        INSERT INTO seen SELECT true, NEW.conversation, NEW.fence
            FROM conversation c JOIN session s ON s.id = c.session
            WHERE c.id = NEW.conversation AND s.fence / {FENCES} > NEW.fence / {FENCES};
        RETURN NULL;
    END $$""",  # noqa: S608 - a number
    "CREATE TRIGGER note AFTER INSERT ON turn FOR EACH ROW EXECUTE FUNCTION note_saved()",
    "CREATE TRIGGER note AFTER INSERT ON step FOR EACH ROW EXECUTE FUNCTION note_saved()",
    "ALTER FUNCTION refusal RENAME TO refusal_itself",
    f"""CREATE FUNCTION refusal({_ARGUMENTS}) RETURNS TABLE (reason text, turns int)
    LANGUAGE plpgsql AS $$
    BEGIN
        SELECT r.reason, r.turns INTO reason, turns FROM refusal_itself({_NAMES}) AS r;
        INSERT INTO seen SELECT false, what, under WHERE reason <> 'saved';
        RETURN NEXT;
    END $$""",  # noqa: S608 - names of this module
)
_WATCHED = """
    SELECT
        (SELECT count(*) FROM seen WHERE NOT is_accepted),
        (SELECT count(*) FROM seen WHERE is_accepted),
        (SELECT count(*) FROM (SELECT fence, max(fence) OVER (
            PARTITION BY conversation ORDER BY number
            ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING) AS before FROM turn) t
            WHERE fence < before)"""
