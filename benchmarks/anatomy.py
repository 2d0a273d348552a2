"""Where the microseconds of a turn go: each part alone, or what is saved where it is left out.

No profiler, because a profiler's own cost falls on small functions and hides in large ones. The
files are left out through the store's seam for disks; what can be called alone is called alone;
what remains is the Python of manager, session and store. Whole and parts are
sampled in turns, so that all of them see the same machine.
"""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import Awaitable, Callable
from os import fspath
from pathlib import Path

from benchmarks.bench import Row, row
from benchmarks.sampling import cpu_us, interleaved, on_loop, scratch, share
from benchmarks.scene import (
    PROMPT,
    files_limit,
    finished_turn,
    keys,
    new_keys,
    service,
    shelf,
    slow_model,
    spans_to_nowhere,
    take,
)
from kode_lab.history.span import Span
from kode_lab.server.limits import file_budget
from kode_lab.server.serve import settle
from kode_lab.sessions import JsonStore, SessionManager
from kode_lab.sessions.files.disk import Place, PosixDisk
from kode_lab.sessions.files.file_lock import FileLocks
from kode_lab.sessions.files.session_files import SessionFiles
from kode_lab.sessions.lock import KeyedLock
from kode_lab.sessions.ticket import Ticket

__all__ = ["anatomy", "collector"]

# A session this young: the history's share has a row of its own in the bench of turns.
_YOUNG = 10
_IN_FLIGHT, _LATENCY_S = 3_000, 0.5
_NAMES = {
    "files": "reading and writing its two files",
    "spans": "its four spans",
    "lines": "making the lines to write",
    "deadline": "its deadline",
    "between": "the lock between processes",
    "config": "looking whether its configuration changed",
    "pass": "a pass of the loop",
    "keyed": "the lock between tasks",
}


def anatomy(effort: float) -> list[Row]:
    """Return the parts of a whole turn, dearest first, each with its share."""
    with scratch() as directory:
        return on_loop(_anatomy(directory, effort))


async def _anatomy(directory: Path, effort: float) -> list[Row]:
    times, rounds = share(50, effort, least=5), share(41, effort, least=2)
    memory = _MemoryDisk()
    async with (
        service(_made(directory / "whole")) as whole,
        service(
            _made(directory / "diskless"), store=JsonStore(directory / "nowhere", disk=memory)
        ) as diskless,
    ):
        some = new_keys()

        async def turns(manager: SessionManager) -> float:
            key = next(some)
            await take(manager, key, _YOUNG)
            return await cpu_us(lambda: take(manager, key, times), times)

        async def files() -> float:
            return await turns(whole) - await turns(diskless)

        parts = {name: _sample(part, times * 10) for name, part in _parts(directory).items()}
        sides = {"whole": lambda: turns(whole), "files": files, **parts}
        spent_us = await interleaved(sides, rounds)
        key = next(some)
        await take(diskless, key, _YOUNG)
        memory.calls = 0
        await take(diskless, key, times)
    whole_us = spent_us.pop("whole")
    spent_us["deadline"] -= spent_us["pass"]
    rest_us = whole_us - sum(spent_us.values())
    dearest_first = sorted(spent_us.items(), key=lambda part: -part[1])
    return [
        row("anatomy: a whole turn", whole_us, "us"),
        row("anatomy: the Python of manager, session, store", rest_us, "us", baseline=whole_us),
        *[
            row(f"anatomy: {_NAMES[name]}", us, "us", baseline=whole_us)
            for name, us in dearest_first
        ],
        row("anatomy: calls to the system for its two files", memory.calls / times, "calls"),
    ]


def _parts(directory: Path) -> dict[str, Callable[[], Awaitable[None]]]:
    """Return the parts that can be called alone, each as a turn calls it."""
    [key] = keys(1)
    (directory / "parts").mkdir()
    disk = PosixDisk()
    locks, keyed = FileLocks(directory / "parts", disk), KeyedLock[tuple[str, ...]]()
    agents = shelf(directory / "agents")
    files = SessionFiles(key, str(directory / "parts"), disk, is_alone=False)
    files.next_fence()
    ticket = Ticket(key, PROMPT, None, None, agents.current(key.agent_id), None)
    turn, entries = finished_turn(ticket.turn_id)

    async def lines() -> None:
        _, done = files.turn_tails(turn)
        files.step_tail(turn, entries, done)

    async def one_pass() -> None:
        await asyncio.sleep(0)

    async def deadline() -> None:
        timer = ticket.expire_in(300)
        await one_pass()  # a cancelled timer gives its memory back there
        timer.cancel()

    async def between() -> None:
        place = locks.place_of(key.lock_name)
        if (lock := locks.try_hold(place)) is not None:
            locks.release(lock)

    async def config() -> None:
        agents.current(key.agent_id)

    async def spans() -> None:
        # A turn has four: wait, ask, commit, and itself.
        for step in ("wait", "ask", "commit", "turn"):
            now_ns = time.monotonic_ns()
            facts = {"gen_ai.request.model": "bench", "kode_lab.fence": 1}
            spans_to_nowhere(Span(key, turn.turn_id, step, now_ns, time.monotonic_ns(), facts))

    async def within() -> None:
        keyed.try_hold(key[:2])
        keyed.release(key[:2])

    return {
        "lines": lines,
        "spans": spans,
        "deadline": deadline,
        "between": between,
        "config": config,
        "pass": one_pass,
        "keyed": within,
    }


def _sample(part: Callable[[], Awaitable[None]], times: int) -> Callable[[], Awaitable[float]]:
    async def work() -> None:
        for _ in range(times):
            await part()

    return lambda: cpu_us(work, times)


def _made(directory: Path) -> Path:
    directory.mkdir()
    return directory


class _MemoryDisk:
    """A disk whose session files are byte arrays: what it saves are the calls to the system.

    The locks between processes stay real files, because only the system can lock them.

    Attributes:
        calls: how many it saved, since somebody set it to 0.
    """

    def __init__(self) -> None:
        disk = self._disk = PosixDisk()
        self.calls = 0
        self._paths: dict[str, bytearray] = {}
        self._open: dict[int, bytearray] = {}
        self.sync_directory, self.make_directory = disk.sync_directory, disk.make_directory
        self.remove = disk.remove

    def open(self, path: Place, *, create: bool) -> int:
        name = fspath(path)
        if "/runtime/" not in name:
            return self._disk.open(path, create=create)
        if not create and name not in self._paths:
            raise FileNotFoundError(name)
        # Numbers that the system would not give.
        fd = 1_000_000 + len(self._open)
        self._open[fd] = self._paths.setdefault(name, bytearray())
        return fd

    def close(self, fd: int) -> None:
        if fd not in self._open:
            self._disk.close(fd)

    def read(self, fd: int, size_bytes: int, offset: int) -> bytes:
        self.calls += 1
        data = self._open.get(fd)
        if data is None:
            return self._disk.read(fd, size_bytes, offset)
        return bytes(data[offset : offset + size_bytes])

    def size(self, fd: int) -> int:
        self.calls += 1
        data = self._open.get(fd)
        return self._disk.size(fd) if data is None else len(data)

    def write(self, fd: int, data: bytes, offset: int) -> None:
        self.calls += 1
        held = self._open.get(fd)
        if held is None:
            self._disk.write(fd, data, offset)
        else:
            held[offset : offset + len(data)] = data

    def truncate(self, fd: int, size_bytes: int) -> None:
        self.calls += 1
        held = self._open.get(fd)
        if held is None:
            self._disk.truncate(fd, size_bytes)
        else:
            del held[size_bytes:]

    def sync(self, fd: int) -> None:
        if fd not in self._open:
            self._disk.sync(fd)


# ---- many at once


def collector(effort: float) -> list[Row]:
    """Return what the garbage collector takes of a turn while thousands are in flight."""
    with scratch(in_memory=True) as directory:
        return on_loop(_collector(directory, effort))


async def _collector(directory: Path, effort: float) -> list[Row]:
    sessions = keys(share(_IN_FLIGHT, effort, least=50))
    thresholds = gc.get_threshold()
    store = JsonStore(directory / "store", open_sessions_limit=file_budget(files_limit()).sessions)
    model = slow_model(_LATENCY_S * min(1.0, effort * 10))
    async with service(directory, model, store=store) as manager:

        async def wave() -> None:
            await asyncio.gather(*(take(manager, key) for key in sessions))

        async def as_it_comes() -> float:
            gc.unfreeze()
            gc.set_threshold(*thresholds)
            return await cpu_us(wave, len(sessions))

        async def as_served() -> float:
            settle()
            return await cpu_us(wave, len(sessions))

        sides = {"comes": as_it_comes, "served": as_served}
        spent_us = await interleaved(sides, share(7, effort, least=2))
    return [
        row(
            f"collector: CPU a turn, {len(sessions):,} in flight, as kode-lab serve sets the "
            "collector, against as Python does",
            spent_us["served"],
            "us",
            baseline=spent_us["comes"],
        )
    ]
