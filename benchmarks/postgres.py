"""Bench of the sessions in PostgreSQL: a turn's CPU here and in the server, and what history costs.

The server is a throwaway one on this machine, with its default durability: every commit is synced.
Its CPU is that of the whole family of its processes, as the kernel counts it, in ticks of 10 ms.
The other side takes the lease, appends and releases for every turn, each as one statement over a
pool of connections, as one would write it first: the same tables and the same promises.
"""

from __future__ import annotations

import asyncio
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Mapping
from operator import attrgetter
from pathlib import Path
from typing import NamedTuple, TypeAlias

from benchmarks.bench import Row, row
from benchmarks.sampling import on_loop, share
from benchmarks.scene import finished_turn, keys, service, take
from kode_lab.key import SessionKey
from kode_lab.server.serve import settle
from kode_lab.sessions.postgres.connection import PostgresConnection
from kode_lab.sessions.postgres.leases import LocalSession, name_hash
from kode_lab.sessions.postgres.schema import FENCES
from kode_lab.sessions.postgres.store import Known, PostgresStore, turn_write
from kode_lab.testing.postgres import ThrowawayPostgres

__all__ = ["postgres"]

_SESSIONS = 256
_TICK_S = 1 / os.sysconf("SC_CLK_TCK")
_POOL = 8
_SHARED = 64
_YOUNG, _OLD = 10, 1_000
_SCHEMA = "bench"


_Work: TypeAlias = Callable[[SessionKey, int], Awaitable[object]]


class _Spent(NamedTuple):
    """CPU of one turn of many, here and in the server."""

    client_us: float
    server_us: float

    @property
    def both_us(self) -> float:
        return self.client_us + self.server_us


def postgres(effort: float) -> list[Row]:
    """Return what a turn costs whose session rests in PostgreSQL."""
    with ThrowawayPostgres() as server:
        rows = on_loop(_postgres(server, effort))
        rows += on_loop(_one_at_a_time(server, effort))
        return [*rows, *_workers(server, effort), *_without_affinity(server, effort)]


async def _postgres(server: ThrowawayPostgres, effort: float) -> list[Row]:
    settle()
    each, rounds = share(60, effort, least=1), share(7, effort, least=2)
    count = share(_SESSIONS, effort, least=8)
    old = share(_OLD, effort, least=2 * _YOUNG)
    store = await PostgresStore(server.dsn, schema=_SCHEMA).open()
    naive = _LeaseEachTurn(server.dsn)

    async def bare(key: SessionKey, turns: int) -> None:
        for number in range(turns):
            lease = await store.hold(key, queue_limit=1)
            await store.append(lease, *finished_turn(f"{number}-{time.monotonic_ns()}"))
            store.release(lease)

    with tempfile.TemporaryDirectory() as directory:
        async with service(Path(directory), store=store) as manager:

            async def whole(key: SessionKey, turns: int) -> None:
                await take(manager, key, turns)

            # Each way has sessions of its own: who is held without a turn is loaded by the next.
            sides = {
                "whole": _Side(whole, 0, count, _YOUNG, each),
                "whole, old": _Side(whole, 1, count, old, each),
                "bare": _Side(bare, 2, count, _YOUNG, each),
                "bare, old": _Side(bare, 3, count, old, each),
                "naive": _Side(naive.take, 4, count, 1, max(each // 6, 1)),
            }
            taken = await _in_turns(server.pid, sides, rounds)
            await naive.aclose()
    return [
        row(
            f"postgres: a whole turn, {count} warm sessions, client and server",
            taken["whole"].both_us,
            "us",
            bar="value <= 150",
        ),
        row("postgres: of that in the server", taken["whole"].server_us, "us"),
        row(
            "postgres: hold, append and release alone, against lease, append, release as three",
            taken["bare"].both_us,
            "us",
            baseline=taken["naive"].both_us,
            bar="ratio <= 0.167",
        ),
        row(
            f"postgres: hold, append and release from turn {old:,} on, against from {_YOUNG} on",
            taken["bare, old"].both_us,
            "us",
            baseline=taken["bare"].both_us,
            bar="ratio <= 1.2",
        ),
        row(
            f"postgres: a whole turn from turn {old:,} on: all messages go to the model each time",
            taken["whole, old"].both_us,
            "us",
            baseline=taken["whole"].both_us,
        ),
    ]


async def _one_at_a_time(server: ThrowawayPostgres, effort: float) -> list[Row]:
    """Return what a turn costs when no other shares its batch, against a bare insert of its row."""
    store = await PostgresStore(server.dsn, schema=_SCHEMA).open()
    bare = PostgresConnection(server.dsn, schema=_SCHEMA)
    await bare.fetch("CREATE TABLE IF NOT EXISTS bare (LIKE turn INCLUDING ALL)")
    key, local = keys(1, first=50_000)[0], LocalSession(("bench", "bare"))
    local.fence, known = FENCES, Known(1)

    async def insert(turns: int) -> None:
        for number in range(turns):
            turn, _ = finished_turn(f"{number}-{time.monotonic_ns()}")
            saved = turn_write(local, known, turn)
            await bare.fetch(_BARE, *_APPENDED(saved)[1:])
            known.took(saved)

    each, samples = share(400, effort, least=5), []
    with tempfile.TemporaryDirectory() as directory:
        async with service(Path(directory), store=store) as manager:
            await take(manager, key, _YOUNG)
            await insert(_YOUNG)
            for _ in range(share(7, effort, least=2)):
                pair = []
                for work in (take(manager, key, each), insert(each)):
                    start_s = time.process_time() + _server_cpu_s(server.pid)
                    await work
                    spent_s = time.process_time() + _server_cpu_s(server.pid) - start_s
                    pair.append(spent_s * 1e6 / each)
                samples.append(pair)
    await bare.aclose()
    turn_us, bare_us = (statistics.median(column) for column in zip(*samples, strict=True))
    name = "postgres: a whole turn, one at a time, client and server, against a bare insert"
    return [row(name, turn_us, "us", baseline=bare_us)]


class _Side(NamedTuple):
    """One way to take turns, with sessions of a certain age."""

    work: _Work
    place: int
    size: int
    age: int
    turns: int

    @property
    def sessions(self) -> list[SessionKey]:
        return keys(self.size, first=self.place * _SESSIONS)

    async def spent(self, server_pid: int, turns: int) -> _Spent:
        """Return what so many turns of each session cost, all sessions at once."""
        start_s = time.process_time(), _server_cpu_s(server_pid)
        await asyncio.gather(*(self.work(key, turns) for key in self.sessions))
        end_s = time.process_time(), _server_cpu_s(server_pid)
        taken = turns * self.size
        return _Spent(*((b - a) * 1e6 / taken for a, b in zip(start_s, end_s, strict=True)))


async def _in_turns(server_pid: int, sides: Mapping[str, _Side], rounds: int) -> dict[str, _Spent]:
    """Return the median of each side, measured in turns after its sessions have their age."""
    samples: dict[str, list[_Spent]] = {name: [] for name in sides}
    for side in sides.values():
        await side.spent(server_pid, side.age)
    for _ in range(rounds):
        for name, side in sides.items():
            samples[name].append(await side.spent(server_pid, side.turns))
    return {name: _middle(taken) for name, taken in samples.items()}


def _middle(taken: list[_Spent]) -> _Spent:
    return sorted(taken, key=lambda spent: spent.both_us)[len(taken) // 2]


def _server_cpu_s(postmaster: int) -> float:
    """Return the CPU seconds of the server and all its processes, ended ones included."""
    ticks = sum(_fields(postmaster)[11:15])
    children = Path(f"/proc/{postmaster}/task/{postmaster}/children").read_text().split()
    for child in children:
        try:
            ticks += sum(_fields(int(child))[11:13])
        except FileNotFoundError:  # it ended just now, and counts with its parent
            continue
    return ticks * _TICK_S


def _fields(pid: int) -> list[int]:
    words = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return [int(word) if word.lstrip("-").isdigit() else 0 for word in words]


class _LeaseEachTurn:
    """Lease, append, release for every turn, one statement each."""

    def __init__(self, dsn: str) -> None:
        self._pool = [PostgresConnection(dsn, schema=_SCHEMA) for _ in range(_POOL)]
        self._known: dict[SessionKey, tuple[LocalSession, Known]] = {}

    async def take(self, key: SessionKey, turns: int) -> None:
        for number in range(turns):
            await self._turn(key, number)

    async def _turn(self, key: SessionKey, number: int) -> None:
        fetch = self._pool[hash(key) % _POOL].fetch
        if key not in self._known:
            local = LocalSession(key[:2])
            ((local.id,),) = await fetch(_NEW_SESSION, *key[:2], name_hash(*key[:2]))
            ((conversation,),) = await fetch(_NEW_CONVERSATION, local.id, name_hash("bench"))
            self._known[key] = (local, Known(conversation))
        local, known = self._known[key]
        ((local.fence,),) = await fetch(_LEASE, local.id)
        turn, _ = finished_turn(f"{number}-{time.monotonic_ns()}")
        saved = turn_write(local, known, turn)
        await fetch(_APPEND, *_APPENDED(saved))
        await fetch(_RELEASE, local.id, local.fence)
        known.took(saved)

    async def aclose(self) -> None:
        for connection in self._pool:
            await connection.aclose()


_NEW_SESSION = """
    INSERT INTO session (user_id, session_id, hash) VALUES ($1, $2, $3) RETURNING id"""
_NEW_CONVERSATION = """
    INSERT INTO conversation (session, agent_id, hash) VALUES ($1, 'bench', $2) RETURNING id"""
_LEASE = f"""
    UPDATE session SET fence = fence + {FENCES}, holder = 1
    WHERE id = $1 AND holder IS NULL RETURNING fence"""  # noqa: S608
_APPEND = """
    WITH held AS (SELECT id FROM session WHERE id = $1 AND fence = $2 FOR NO KEY UPDATE)
    INSERT INTO turn SELECT $3, $4, $5, $2, $6, $7, $8, $9, $10, $11, $12::text::json FROM held
    RETURNING number"""
_BARE = """
    INSERT INTO bare VALUES ($2, $3, $4, $1, $5, $6, $7, $8, $9, $10, $11::text::json)"""
_APPENDED = attrgetter(
    *("session", "fence", "conversation", "number", "turn_id", "first", "last"),
    *("is_sealed", "version", "input_tokens", "output_tokens", "body"),
)
_RELEASE = "UPDATE session SET holder = NULL WHERE id = $1 AND fence = $2"


# ---- one worker, and two


def _workers(server: ThrowawayPostgres, effort: float) -> list[Row]:
    """Return how much more two workers do than one, each a process of its own."""
    one, two = [], []
    for _ in range(share(3, effort, least=1)):
        one.append(_rate(server.dsn, 1, effort))
        two.append(_rate(server.dsn, 2, effort))
    cores = len(os.sched_getaffinity(0))
    name = f"postgres: turns a second of two workers, against one ({cores} cores for all)"
    # The server needs some 0.4 of a core for each worker: two workers fill three cores.
    bar = "ratio >= 1.6" if cores > 2 else None
    value, baseline = statistics.median(two), statistics.median(one)
    return [row(name, value, "turns/s", baseline=baseline, bar=bar)]


def _without_affinity(server: ThrowawayPostgres, effort: float) -> list[Row]:
    """Return what a turn costs where each one is at another worker than the one before."""
    workers, turns = share(4, effort, least=2), share(20, effort, least=2)
    start_s = _server_cpu_s(server.pid)
    took_s, cpu_s = asyncio.run(_together(server.dsn, [40_000] * workers, _SHARED, turns))
    count = workers * _SHARED * turns
    cpu_s += _server_cpu_s(server.pid) - start_s
    name = f"postgres: {workers} workers, all on the same {_SHARED} sessions, client and server"
    return [
        row(name, cpu_s * 1e6 / count, "us"),
        row("postgres: turns a second of these workers", count / took_s, "turns/s"),
    ]


def _rate(dsn: str, workers: int, effort: float) -> float:
    """Return the turns a second of all workers together."""
    each, turns = share(_SESSIONS, effort, least=8) // workers, share(60, effort, least=3)
    firsts = [20_000 + number * each for number in range(workers)]
    took_s, _ = asyncio.run(_together(dsn, firsts, each, turns))
    return workers * each * turns / took_s


async def _together(dsn: str, firsts: list[int], sessions: int, turns: int) -> tuple[float, float]:
    """Return how long all workers took together, and their CPU, without their beginning."""
    children = [
        await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", __name__, dsn, *map(str, (first, sessions, turns))),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
        )
        for first in firsts
    ]
    for child in children:
        assert child.stdout is not None
        await child.stdout.readline()  # warm
    start_s, cpu_s = time.monotonic(), 0.0
    for child in children:
        assert child.stdin is not None
        child.stdin.write(b"go\n")
        child.stdin.close()
    for child in children:
        assert child.stdout is not None
        cpu_s += float(await child.stdout.readline())
    took_s = time.monotonic() - start_s
    for child in children:
        await child.wait()
    return took_s, cpu_s


async def _work(dsn: str, first: int, count: int, turns: int) -> None:
    settle()
    sessions = keys(count, first=first)
    store = await PostgresStore(dsn, schema=_SCHEMA).open()
    with tempfile.TemporaryDirectory() as directory:
        async with service(Path(directory), store=store) as manager:
            await asyncio.gather(*(take(manager, key, 2) for key in sessions))
            print("warm", flush=True)  # noqa: T201 - what the parent waits for
            await asyncio.to_thread(sys.stdin.readline)
            start_s = time.process_time()
            await asyncio.gather(*(take(manager, key, turns) for key in sessions))
            print(time.process_time() - start_s, flush=True)  # noqa: T201 - as above


if __name__ == "__main__":
    on_loop(_work(sys.argv[1], *map(int, sys.argv[2:])))
