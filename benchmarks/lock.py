"""Bench of the lock: hold and release, free and contended.

It stands against what everybody writes: a dictionary of ``asyncio.Lock``, in its best case, where
the locks of all keys exist already.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeAlias

from benchmarks.bench import Row, row
from benchmarks.sampling import cpu_us, interleaved, on_loop, share
from benchmarks.scene import keys
from kode_lab.sessions.lock import KeyedLock

__all__ = ["hold"]

_WAITERS = 50


def hold(effort: float) -> list[Row]:
    """Return what holding and releasing a key costs, free and with fifty waiting."""
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
    """The usual way; the locks of all keys are kept, which is cheapest."""

    async def hold_all(slots: _Slots, times: int, is_shared: bool) -> None:
        for _ in range(times):
            for slot in slots:
                async with locks[slot]:
                    if is_shared:
                        await asyncio.sleep(0)

    return hold_all
