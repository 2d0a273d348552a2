"""Benches of the store: appending, and group commit.

Each stands against what one would write without a library: the whole history dumped at each turn,
one ``fdatasync`` a turn. The opponents are given their best case: the fastest encoder, files that
stay open, no directory to make.
"""

from __future__ import annotations

import asyncio
import statistics
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeAlias

import orjson

from benchmarks.bench import Row, row
from benchmarks.sampling import cpu_us, interleaved, on_loop, scratch, share
from benchmarks.scene import finished_turn, keys
from kode_lab.key import SessionKey
from kode_lab.server.serve import settle
from kode_lab.sessions import JsonStore
from kode_lab.sessions.files.disk import Disk, Place, PosixDisk
from kode_lab.sessions.files.session_files import SessionFiles
from kode_lab.sessions.open_turn import OpenTurn

__all__ = ["append", "power"]

_BUSY = 128
_SYNC_S = 0.001
_Sample: TypeAlias = Callable[[], Awaitable[float]]


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
    """Return what appending a turn costs, against rewriting, and whether the history matters."""
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

    def ours(history: int) -> Callable[[], Awaitable[float]]:
        async def sample() -> float:
            key = next(some)
            await _append_turns(store, key, history // 2)
            lease = await store.hold(key, queue_limit=1)
            made = _made(times)

            async def work() -> None:
                for turn, entries in made:
                    await store.append(lease, turn, entries)

            spent_us = await cpu_us(work, times)
            store.release(lease)
            return spent_us

        return sample

    sides = {
        "1000": ours(1_000),
        "10": ours(10),
        "array": _array_alone(directory, times * 10),  # so short that 50 would be the warming up
        "rewriting": _rewriting(directory, times),
    }
    spent_us = await interleaved(sides, rounds)
    await store.aclose()
    return [
        row(
            "append: messages.json alone, at 1,000 messages, against rewriting it with orjson",
            spent_us["array"],
            "us",
            baseline=spent_us["rewriting"],
            bar="ratio <= 0.02",
        ),
        row(
            "append: and fence, journal, done line: all of it, against rewriting messages.json",
            spent_us["1000"],
            "us",
            baseline=spent_us["rewriting"],
        ),
        row(
            "append: all of it at 1,000 messages, against at 10",
            spent_us["1000"],
            "us",
            baseline=spent_us["10"],
            bar="ratio <= 1.2",
        ),
    ]


def _array_alone(directory: Path, times: int) -> Callable[[], Awaitable[float]]:
    """What replaces rewriting and no more: encode the new messages, write them over the end."""
    place = directory / "alone"
    place.mkdir()
    [key] = keys(1)
    files = SessionFiles(key, str(place), PosixDisk(), is_alone=False)
    files.next_fence()
    for turn, _ in _made(500):
        messages, _ = files.turn_tails(turn)
        files.apply(messages)
        files.took_turn(turn, messages)

    async def sample() -> float:
        made = _made(times)

        async def work() -> None:
            for turn, _ in made:
                messages = files.messages_tail(turn)
                files.apply(messages)
                files.messages_bytes = messages.offset + len(messages.data)

        return await cpu_us(work, times)

    return sample


def _rewriting(directory: Path, times: int) -> Callable[[], Awaitable[float]]:
    """As it is written everywhere; each message is an object of its own, as read or made."""
    whole = orjson.loads(orjson.dumps([m for turn, _ in _made(500) for m in turn.messages]))
    path = directory / "messages.json"

    async def work() -> None:
        for _ in range(times):
            path.write_bytes(orjson.dumps(whole))

    return lambda: cpu_us(work, times)


def _made(times: int) -> list[tuple[OpenTurn, list[dict[str, Any]]]]:
    return [finished_turn(f"turn-{number}") for number in range(times)]


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
    """Return what durability ``power`` costs 128 busy sessions, and what it wins.

    The collector is set as ``kode-lab serve`` sets it.
    """
    with scratch() as directory:
        return on_loop(_power(directory, effort))


async def _power(directory: Path, effort: float) -> list[Row]:
    busy = keys(share(_BUSY, effort, least=8))
    turns, syncs = share(100, effort, least=5) * len(busy), share(2, effort) * len(busy)
    here, slow = PosixDisk(), _SlowDisk()
    stores = {
        "power": _store(directory / "power", here, "power"),
        "slow power": _store(directory / "slow", slow, "power"),
        "process": _store(directory / "process", here, "process"),
    }
    syncing = {
        "syncing": _OneSyncEach(directory / "here", here, busy),
        "slow syncing": _OneSyncEach(directory / "there", slow, busy),
    }
    took_s: dict[str, list[float]] = {}

    def timed(name: str, work: Callable[[], Awaitable[None]], times: int) -> _Sample:
        async def sample() -> float:
            start_s = time.perf_counter()
            spent_us = await cpu_us(work, times)
            took_s.setdefault(name, []).append((time.perf_counter() - start_s) / times)
            return spent_us

        return sample

    async def making() -> None:
        for number in range(turns):
            finished_turn(f"turn-{number}")

    settle()
    sides = {"making": timed("making", making, turns)}
    for name, store in stores.items():
        sides[name] = timed(name, partial(_busy_turns, store, busy, turns), turns)
    for name, each in syncing.items():
        sides[name] = timed(name, partial(each.run, syncs), syncs)
    spent_us = await interleaved(sides, share(15, effort, least=2), of=min)
    for each in syncing.values():
        each.close()
    for store in stores.values():
        await store.aclose()
    rate = {name: 1 / statistics.median(taken[1:]) for name, taken in took_s.items()}
    # What it takes to make up a turn for the store is the bench's own and not counted.
    own_us = {name: spent_us[name] - spent_us["making"] for name in stores}
    return _power_rows(len(busy), own_us, rate)


def _power_rows(busy: int, own_us: dict[str, float], rate: dict[str, float]) -> list[Row]:
    return [
        row(
            f"power: CPU of the store a turn, {busy} busy, against durability process",
            own_us["power"],
            "us",
            baseline=own_us["process"],
            bar="value <= 20",
        ),
        row(
            "power: turns a second where a sync takes 1 ms, against one fdatasync a turn",
            rate["slow power"],
            "turns/s",
            baseline=rate["slow syncing"],
            bar="ratio >= 20",
        ),
        row(
            "power: turns a second on this disk, against one fdatasync a turn",
            rate["power"],
            "turns/s",
            baseline=rate["syncing"],
        ),
    ]


class _SlowDisk:
    """This disk, whose sync takes a millisecond more: what is usual where a sync reaches a medium.

    Virtual disks answer from the host's memory in a tenth of that, and then even one sync a turn is
    fast; a store must be judged where power can really fail.
    """

    def __init__(self) -> None:
        disk = self._disk = PosixDisk()
        self.open, self.close, self.read, self.size = disk.open, disk.close, disk.read, disk.size
        self.write, self.truncate = disk.write, disk.truncate
        self.sync_directory, self.make_directory = disk.sync_directory, disk.make_directory
        self.remove = disk.remove

    def sync(self, fd: int) -> None:
        time.sleep(_SYNC_S)
        self._disk.sync(fd)


def _store(directory: Path, disk: Disk, durability: Literal["process", "power"]) -> JsonStore:
    return JsonStore(directory, durability=durability, open_sessions_limit=_BUSY, disk=disk)


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

    def __init__(self, directory: Path, disk: Disk, busy: Sequence[SessionKey]) -> None:
        directory.mkdir()
        self._disk = disk
        self._fds = [disk.open(directory / key.session_id, create=True) for key in busy]
        self._line = b"\n".join(map(orjson.dumps, finished_turn("turn")[0].messages)) + b"\n"
        self._round = 0

    async def run(self, turns: int) -> None:
        await asyncio.to_thread(self._run, turns)

    def _run(self, turns: int) -> None:
        for _ in range(turns // len(self._fds)):
            at = self._round * len(self._line)
            self._round += 1
            for fd in self._fds:
                self._disk.write(fd, self._line, at)
                self._disk.sync(fd)

    def close(self) -> None:
        for fd in self._fds:
            self._disk.close(fd)
