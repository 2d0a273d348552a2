"""The nemesis: faults of workers, database and connections, one after another.

It chooses moments and victims, writes each fault to the history before it happens, and measures how
long a session whose holder was killed waited for the next one. It asks no turn.

A moment is a share of the turns that ended, so that a slow machine sees as many faults per turn as
a fast one.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from random import Random

from kode_lab.history.operation import HistoryWriter
from kode_lab.key import SessionKey
from kode_lab.storms.fleet import Fleet, HeldTurn, Worker
from kode_lab.storms.proxy import Proxy
from kode_lab.storms.storm import Storm
from kode_lab.testing.postgres import ThrowawayPostgres

__all__ = ["StormNemesis"]

# A pause lasts so many TTLs, and a random part of one more.
_PAST_TTL = 1.5
# A turn that was sent so long ago has certainly asked the database for its session.
_ASKED_NS = 20_000_000
_LOOK_S = 0.002
# How long to look for a worker in the middle of a turn; a busy fleet has one almost always.
_VICTIM_LIMIT_S = 10.0
_SLOW_S = (0.05, 0.2)
# In the statement that saves a step or a turn, and in no other.
_IN_A_SAVE = b'"role"'
# A write arrives so long after the worker can save again: before its next write, or after many.
_LATE_S = (0.02, 0.5)


class StormNemesis:
    """Causes a storm's faults.

    Attributes:
        handovers_ns: from each kill to the next holder's grant, for each session that the victim
            was in a turn of and somebody at another worker waited for.
        kills: of workers and of the database.
        is_over: all faults have happened.
    """

    def __init__(
        self,
        storm: Storm,
        fleet: Fleet,
        server: ThrowawayPostgres,
        proxy: Proxy | None,
        history: HistoryWriter,
    ) -> None:
        self.handovers_ns: list[int] = []
        self.kills = 0
        self.is_over = not storm.faults
        self._storm = storm
        self._fleet = fleet
        self._server = server
        self._proxy = proxy
        self._history = history
        self._random = Random(f"{storm.seed}/nemesis")
        self._waited_for: dict[SessionKey, tuple[str, int]] = {}
        self._one_ended = asyncio.Event()
        self._ended = 0
        self._born = 0
        self._faults: dict[str, Callable[[], Awaitable[None]]] = {
            "kill": self._kill,
            "pause": self._pause,
            "restart": self._restart,
            "cut": self._cut,
            "slow": self._slow,
            "late": self._late,
        }

    async def begin(self) -> None:
        """Start the workers."""
        await asyncio.gather(*(self.bear() for _ in range(self._storm.workers)))

    async def bear(self) -> Worker:
        """Start one more worker, behind a door of its own where there is a proxy."""
        self._born += 1
        name = f"w{self._born}"
        dsn = self._server.dsn if self._proxy is None else await self._proxy.open(name)
        return await self._fleet.start(name, dsn)

    def heard(self, held: HeldTurn) -> None:
        """Note that a turn got its session."""
        victim, killed_ns = self._waited_for.get(held.key, ("", 0))
        if victim and held.worker != victim and held.at_ns > killed_ns:
            del self._waited_for[held.key]
            self.handovers_ns.append(held.at_ns - killed_ns)

    def note_end(self) -> None:
        """Note that a turn ended."""
        self._ended += 1
        self._one_ended.set()

    async def run(self) -> None:
        """Cause all faults, each when its share of the turns has ended."""
        storm = self._storm
        names = list(storm.faults) * storm.times
        self._random.shuffle(names)
        for number, name in enumerate(names, 1):
            due = number * storm.turns // (len(names) + 1)
            while self._ended < due:
                self._one_ended.clear()
                await self._one_ended.wait()
            # Anywhere in a turn, and not where one has just ended.
            await asyncio.sleep(self._random.uniform(0.0, 2 * storm.ttft_s))
            await self._faults[name]()
        self._history.fault("quiet", time.monotonic_ns())
        self.is_over = True

    # ---- the faults

    async def _kill(self) -> None:
        victim = self._random.choice(self._fleet.workers)
        now_ns = time.monotonic_ns()
        waited_for = {
            held
            for held in victim.held.values()
            for other in self._fleet.workers
            if other is not victim
            for asked, sent_ns in list(other.asked.values())
            if asked == held and now_ns - sent_ns > _ASKED_NS
        }
        self._history.fault("kill", time.monotonic_ns(), f"kill -9 of worker {victim.name}")
        self._waited_for = {key: (victim.name, time.monotonic_ns()) for key in waited_for}
        await self._fleet.kill(victim)
        self.kills += 1
        await self.bear()
        self._history.fault("restart", time.monotonic_ns())

    async def _pause(self) -> None:
        victim = await self._at_work()
        self._history.fault("pause", time.monotonic_ns(), f"SIGSTOP of worker {victim.name}")
        self._fleet.stop(victim)
        await asyncio.sleep(self._past_ttl_s())
        self._history.fault("resume", time.monotonic_ns())
        self._fleet.go_on(victim)

    async def _restart(self) -> None:
        self._history.fault("kill", time.monotonic_ns(), "kill -9 of PostgreSQL")
        await asyncio.to_thread(self._server.kill9)
        self.kills += 1
        await asyncio.to_thread(self._server.start)
        self._history.fault("restart", time.monotonic_ns())

    async def _cut(self) -> None:
        assert self._proxy is not None
        victim = self._random.choice(self._fleet.workers)
        self._history.fault("cut", time.monotonic_ns(), f"a connection of worker {victim.name}")
        self._proxy.cut(victim.name)

    async def _slow(self) -> None:
        assert self._proxy is not None
        victim = await self._at_work()
        door = self._proxy.doors[victim.name]
        how = self._random.choice(("late", "stalled", "gone"))
        self._history.fault("partition", time.monotonic_ns(), f"{victim.name} is {how}")
        if how == "late":
            door.delay_s = _SLOW_S
            await asyncio.sleep(1.0)
            door.delay_s = (0.0, 0.0)
        else:
            door.open.clear()
            # A third of the TTL is the pause between two signs of life.
            stalled_s = self._random.uniform(0.4, 0.8) * self._storm.ttl_s
            await asyncio.sleep(stalled_s if how == "stalled" else self._past_ttl_s())
            door.open.set()
        self._history.fault("heal", time.monotonic_ns())

    async def _late(self) -> None:
        """Hold a write back until its sender gave up, and deliver it while the session goes on."""
        assert self._proxy is not None
        victim = await self._at_work()
        door = self._proxy.doors[victim.name]
        self._history.fault("partition", time.monotonic_ns(), f"a write of {victim.name} is held")
        door.is_refusing = True
        door.hold_next(_IN_A_SAVE)
        with suppress(TimeoutError):
            async with asyncio.timeout(_VICTIM_LIMIT_S):
                await door.has_held.wait()
        await asyncio.sleep(2 * self._storm.patience_s)
        door.is_refusing = False
        self._history.fault("heal", time.monotonic_ns())
        await asyncio.sleep(self._random.uniform(0.0, self._random.choice(_LATE_S)))
        door.deliver()

    def _past_ttl_s(self) -> float:
        return self._storm.ttl_s * (_PAST_TTL + self._random.random() / 2)

    async def _at_work(self) -> Worker:
        """Return a worker in the middle of a turn that others wait for."""
        until_s = time.monotonic() + _VICTIM_LIMIT_S
        while time.monotonic() < until_s:
            workers = list(self._fleet.workers)
            self._random.shuffle(workers)
            for worker in workers:
                wanted = {key for o in workers if o is not worker for key, _ in o.asked.values()}
                if not wanted.isdisjoint(worker.held.values()):
                    return worker
            await asyncio.sleep(_LOOK_S)
        return self._random.choice(self._fleet.workers)
