"""Benches of the store and its lock: hold and release, append, group commit.

Each stands against what one would write without a library: a dictionary of ``asyncio.Lock``, the
whole history dumped at each turn, one ``fdatasync`` per file. The opponents are given their best
case: locks that exist already, the fastest encoder, files that stay open.
"""

from __future__ import annotations

import asyncio
import os
import statistics
import time
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import TypeAlias

import orjson

from kode_lab.experiment.bench import Row, row
from kode_lab.experiment.bench_sampling import cpu_us, interleaved, on_loop, scratch, share
from kode_lab.experiment.bench_scene import finished_turn, keys
from kode_lab.key import SessionKey
from kode_lab.sessions import JsonStore
from kode_lab.sessions.disk import Place, PosixDisk
from kode_lab.sessions.keyed_lock import KeyedLock

__all__ = ["append", "hold", "power"]

_BUSY = 128
_WAITERS = 50


# ---- the lock


def hold(effort: float) -> list[Row]:
    """Give what holding and releasing a key costs, free and with fifty waiting."""
    return on_loop(_hold(effort))


async def _hold(effort: float) -> list[Row]:
    times, rounds = share(100_000, effort, least=1_000), share(11, effort, least=2)
    slots = [key[:2] for key in keys(1_000)]
    ours, theirs = _ours(KeyedLock()), _theirs(defaultdict(asyncio.Lock))

    def free(hold_all: _Holding) -> Callable[[], Awaitable[float]]:
        return lambda: cpu_us(lambda: hold_all(slots, times // len(slots), False), times)

    def busy(hold_all: _Holding) -> Callable[[], Awaitable[float]]:
        async def crowd() -> None:
            each = times // 10 // _WAITERS
            await asyncio.gather(*(hold_all(slots[:1], each, True) for _ in range(_WAITERS)))

        return lambda: cpu_us(crowd, times // 10)

    free_us = await interleaved({"ours": free(ours), "theirs": free(theirs)}, rounds)
    busy_us = await interleaved({"ours": busy(ours), "theirs": busy(theirs)}, rounds)
    return [
        row(
            "hold: and release a free key, against a dict of asyncio.Lock",
            free_us["ours"],
            "us",
            baseline=free_us["theirs"],
            bar="ratio <= 0.7",
        ),
        row(
            f"hold: a key that {_WAITERS} want, against a dict of asyncio.Lock",
            busy_us["ours"],
            "us",
            baseline=busy_us["theirs"],
        ),
    ]


_Slots: TypeAlias = Sequence[tuple[str, ...]]
# Holds each slot so often, one after another; the last word says whether others get a look between.
_Holding: TypeAlias = Callable[[_Slots, int, bool], Awaitable[None]]


def _ours(lock: KeyedLock[tuple[str, ...]]) -> _Holding:
    """As the store uses it."""

    async def hold_all(slots: _Slots, times: int, is_shared: bool) -> None:
        for _ in range(times):
            for slot in slots:
                if not lock.try_hold(slot):
                    await lock.hold(slot, queue_limit=_WAITERS)
                if is_shared:
                    await asyncio.sleep(0)
                lock.release(slot)

    return hold_all


def _theirs(locks: defaultdict[tuple[str, ...], asyncio.Lock]) -> _Holding:
    """As it is written everywhere; the locks of all keys are kept for ever, which is cheapest."""

    async def hold_all(slots: _Slots, times: int, is_shared: bool) -> None:
        for _ in range(times):
            for slot in slots:
                async with locks[slot]:
                    if is_shared:
                        await asyncio.sleep(0)

    return hold_all


# ---- appending


class _CountingDisk:
    """The real file system, and a sum of what is written to each kind of file."""

    def __init__(self) -> None:
        disk = self._disk = PosixDisk()
        self._names: dict[int, str] = {}
        self.written_bytes: Counter[str] = Counter()
        self.close, self.read, self.size, self.truncate = (
            disk.close,
            disk.read,
            disk.size,
            disk.truncate,
        )
        self.sync, self.sync_directory = disk.sync, disk.sync_directory
        self.make_directory, self.remove = disk.make_directory, disk.remove

    def open(self, path: Place, *, create: bool) -> int:
        fd = self._disk.open(path, create=create)
        self._names[fd] = Path(path).name
        return fd

    def write(self, fd: int, data: bytes, offset: int) -> None:
        self._disk.write(fd, data, offset)
        self.written_bytes[self._names[fd]] += len(data)


def append(effort: float) -> list[Row]:
    """Give what appending a turn costs, against rewriting, and whether the history matters."""
    with scratch() as directory:
        return on_loop(_append(directory, effort))


async def _append(directory: Path, effort: float) -> list[Row]:
    disk = _CountingDisk()
    store = JsonStore(directory / "counted", disk=disk)
    [counted] = keys(1)
    turns = share(200, effort, least=5)
    payload_bytes = await _append_turns(store, counted, turns)
    await store.aclose()
    rows = [
        row(
            "append: bytes written to messages.json a turn, against the messages",
            disk.written_bytes["messages.json"] / turns,
            "bytes",
            baseline=payload_bytes / turns,
            bar="ratio <= 1.05",
        ),
        row(
            "append: bytes written to turns.jsonl a turn",
            disk.written_bytes["turns.jsonl"] / turns,
            "bytes",
        ),
    ]
    return [*await _append_cpu(directory, effort), *rows]


async def _append_cpu(directory: Path, effort: float) -> list[Row]:
    """A session per sample, so that "history 1,000" is that and not some thousands more."""
    store = JsonStore(directory / "store")
    times, rounds = share(50, effort, least=5), share(15, effort, least=2)
    some = iter(keys(2 * (rounds + 1)))
    made = [m for number in range(500) for m in finished_turn(f"{number}")[0].messages]
    whole = orjson.loads(orjson.dumps(made))  # each message an object of its own, as read or made
    rewritten = directory / "messages.json"

    def ours(history: int) -> Callable[[], Awaitable[float]]:
        async def sample() -> float:
            key = next(some)
            await _append_turns(store, key, history // 2)
            lease = await store.hold(key, queue_limit=1)
            made = [finished_turn(f"timed-{number}") for number in range(times)]

            async def work() -> None:
                for turn, entries in made:
                    await store.append(lease, turn, entries)

            spent_us = await cpu_us(work, times)
            store.release(lease)
            return spent_us

        return sample

    async def rewriting() -> float:
        async def work() -> None:
            for _ in range(times):
                rewritten.write_bytes(orjson.dumps(whole))

        return await cpu_us(work, times)

    sides = {"1000": ours(1_000), "10": ours(10), "rewriting": rewriting}
    spent_us = await interleaved(sides, rounds)
    await store.aclose()
    return [
        row(
            "append: at 1,000 messages, against rewriting them with orjson",
            spent_us["1000"],
            "us",
            baseline=spent_us["rewriting"],
            bar="ratio <= 0.02",
        ),
        row(
            "append: at 1,000 messages, against at 10",
            spent_us["1000"],
            "us",
            baseline=spent_us["10"],
            bar="ratio <= 1.2",
        ),
    ]


async def _append_turns(store: JsonStore, key: SessionKey, turns: int) -> int:
    """Append that many turns, and give the bytes of their messages."""
    payload_bytes = 0
    lease = await store.hold(key, queue_limit=1)
    for number in range(turns):
        turn, entries = finished_turn(f"turn-{number}")
        await store.append(lease, turn, entries)
        payload_bytes += sum(len(orjson.dumps(message)) for message in turn.messages)
    store.release(lease)
    return payload_bytes


# ---- surviving a power cut


def power(effort: float) -> list[Row]:
    """Give what durability ``power`` costs 128 busy sessions, and what it wins."""
    with scratch() as directory:
        return on_loop(_power(directory, effort))


async def _power(directory: Path, effort: float) -> list[Row]:
    turns, syncs = share(100, effort, least=5) * _BUSY, share(5, effort) * _BUSY
    busy = keys(_BUSY)
    safe = JsonStore(directory / "power", durability="power", open_sessions_limit=_BUSY)
    quick = JsonStore(directory / "process", open_sessions_limit=_BUSY)
    syncing = _OneSyncEach(directory, busy)
    took_s: dict[str, list[float]] = {"power": [], "syncing": []}

    async def making() -> None:
        for number in range(turns):
            finished_turn(f"turn-{number}")

    async def timed(name: str, work: Callable[[], Awaitable[None]], times: int) -> float:
        start_s = time.perf_counter()
        spent_us = await cpu_us(work, times)
        took_s[name].append((time.perf_counter() - start_s) / times)
        return spent_us

    spent_us = await interleaved(
        {
            "power": lambda: timed("power", lambda: _busy_turns(safe, busy, turns), turns),
            "process": lambda: cpu_us(lambda: _busy_turns(quick, busy, turns), turns),
            "making": lambda: cpu_us(making, turns),
            "syncing": lambda: timed("syncing", lambda: syncing.run(syncs), syncs),
        },
        share(7, effort, least=2),
    )
    syncing.close()
    await safe.aclose()
    await quick.aclose()
    rate = {name: 1 / statistics.median(taken[1:]) for name, taken in took_s.items()}
    # What it takes to make up a turn for the store is the bench's own and not counted.
    own_us = {name: spent_us[name] - spent_us["making"] for name in ("power", "process")}
    return [
        row(
            f"power: CPU of the store a turn, {_BUSY} busy, against durability process",
            own_us["power"],
            "us",
            baseline=own_us["process"],
            bar="value <= 20",
        ),
        row(
            f"power: turns a second, {_BUSY} busy, against one fdatasync a turn",
            rate["power"],
            "turns/s",
            baseline=rate["syncing"],
            bar="ratio >= 20",
        ),
    ]


async def _busy_turns(store: JsonStore, busy: Sequence[SessionKey], turns: int) -> None:
    """Append that many turns in all, every session one after another, all of them at once."""

    async def one(key: SessionKey) -> None:
        for number in range(turns // len(busy)):
            lease = await store.hold(key, queue_limit=1)
            turn, entries = finished_turn(f"turn-{number}")
            await store.append(lease, turn, entries)
            store.release(lease)

    await asyncio.gather(*map(one, busy))


class _OneSyncEach:
    """What one would write without a journal: append to the session's file, sync it, the next.

    It has a thread of its own, as the journal has.
    """

    def __init__(self, directory: Path, busy: Sequence[SessionKey]) -> None:
        self._fds = [
            os.open(directory / f"{key.session_id}.jsonl", os.O_RDWR | os.O_CREAT | os.O_APPEND)
            for key in busy
        ]
        self._line = b"\n".join(map(orjson.dumps, finished_turn("turn")[0].messages)) + b"\n"

    async def run(self, turns: int) -> None:
        await asyncio.to_thread(self._run, turns)

    def _run(self, turns: int) -> None:
        for number in range(turns):
            fd = self._fds[number % len(self._fds)]
            os.write(fd, self._line)
            os.fdatasync(fd)

    def close(self) -> None:
        for fd in self._fds:
            os.close(fd)
