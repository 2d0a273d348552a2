"""One lock for each key, first come first served, inside one event loop.

The dictionary holds a key only while its lock is held: an idle key costs nothing. A release *hands
over* to the oldest waiter, so no other task can take the lock between a release and a wake-up.
This module must not know sessions, files or time.

Source: the direct hand-off of trio's and anyio's locks, and their ``statistics()``.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Hashable
from typing import Generic, NamedTuple, TypeVar

from kode_lab.errors import WaitingRoomFull

__all__ = ["KeyedLock", "LockStatistics"]

K = TypeVar("K", bound=Hashable)


class LockStatistics(NamedTuple):
    """What the lock is doing now, and what it has done.

    Attributes:
        held: keys that are held now.
        waiting: tasks that wait now, over all keys.
        longest_queue: the most that ever waited for one key at once.
        handed_over: how often a release woke a waiter.
    """

    held: int
    waiting: int
    longest_queue: int
    handed_over: int


class KeyedLock(Generic[K]):
    """A fair lock for each key; bound to the event loop that uses it."""

    __slots__ = ("_handed_over", "_longest_queue", "_queues")

    def __init__(self) -> None:
        # A held key without waiters, the usual case, has no queue yet.
        self._queues: dict[K, deque[asyncio.Future[None]] | None] = {}
        self._longest_queue = 0
        self._handed_over = 0

    def try_hold(self, key: K) -> bool:
        """Hold the key if it is free; return whether it worked."""
        if key in self._queues:
            return False
        self._queues[key] = None
        return True

    async def hold(self, key: K, *, queue_limit: int) -> None:
        """Hold the key, after all tasks that asked before.

        Raises:
            WaitingRoomFull: ``queue_limit`` already wait for it.
        """
        queues = self._queues
        if key not in queues:
            queues[key] = None
            return
        queue = queues[key]
        if queue is None:
            queue = queues[key] = deque()
        if len(queue) >= queue_limit:
            # Waiters that were cancelled at this moment are still in there, and make room.
            still_there = [turn for turn in queue if not turn.done()]
            queue.clear()
            queue.extend(still_there)
        if len(queue) >= queue_limit:
            raise WaitingRoomFull(
                f"{len(queue)} turns wait already, queue_limit={queue_limit}: send it again later"
            )
        turn = asyncio.get_running_loop().create_future()
        queue.append(turn)
        self._longest_queue = max(self._longest_queue, len(queue))
        try:
            await turn
        except BaseException:  # cancelled, or its coroutine was closed
            if turn.done() and not turn.cancelled():
                # The lock came in the same moment as the cancel: it must go to the next.
                self.release(key)
            else:
                with contextlib.suppress(ValueError):  # a release has passed over it already
                    queue.remove(turn)
            raise

    def release(self, key: K) -> None:
        """Hand the key over to the oldest waiter, or forget it.

        Raises:
            RuntimeError: it is not held.
        """
        try:
            queue = self._queues[key]
        except KeyError:
            raise RuntimeError(f"{key!r} is not held") from None
        while queue:
            turn = queue.popleft()
            # A cancelled waiter that did not run yet is still in the queue.
            if not turn.done():
                turn.set_result(None)
                self._handed_over += 1
                return
        del self._queues[key]

    def is_held(self, key: K) -> bool:
        """Whether the key is held."""
        return key in self._queues

    def waiting(self, key: K) -> int:
        """How many wait for the key."""
        return len(self._queues.get(key) or ())

    def statistics(self) -> LockStatistics:
        """Return what the lock is doing now, and what it has done."""
        waiting = sum(len(queue) for queue in self._queues.values() if queue)
        return LockStatistics(len(self._queues), waiting, self._longest_queue, self._handed_over)
