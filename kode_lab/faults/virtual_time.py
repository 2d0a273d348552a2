"""Schedules of real asyncio code, chosen by a seed: a loop whose time is virtual, and its delays.

It owns what decides the order in which things happen: the clock, which jumps to the next timer as
soon as no task can run, and ``Delays``, which says how long each piece of I/O takes. The ready
queue stays first in, first out, as asyncio has it, so a schedule differs from another one only by
when I/O completes; and the same seed gives the same schedule, step by step. It knows nothing of
sessions.

Each pass of the loop takes a microsecond of its time, so that what happened in an earlier pass is
earlier on the clock too; what happens within one pass counts as happening at once.

Source: deterministic simulation as FoundationDB's and TigerBeetle's; randomising completions but
not the ready queue keeps to what a real loop can do (PCT's "schedule points are few").
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import selectors
import time
from bisect import bisect_right
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from functools import partial
from itertools import cycle
from random import Random
from typing import Any, TypeVar, cast

__all__ = ["Delays", "VirtualClock", "in_virtual_time"]

TICK_NS = 1_000
_START_NS = 1_000_000_000
# Of a seeded schedule's I/O, this share completes at once: what is quick meets what is slow.
_AT_ONCE = 0.25
_FULL = 100

T = TypeVar("T")


class Delays:
    """How long each piece of I/O takes, one after another.

    Args:
        source: a seed, or the shares themselves: whole per cents of the longest time, used in
            turn and from the beginning again.
    """

    def __init__(self, source: int | Sequence[int]) -> None:
        self._random = Random(source if isinstance(source, int) else 0)
        self._shares = None if isinstance(source, int) or not source else cycle(source)

    def take_s(self, most_ms: float) -> float:
        """Return the next delay, from nothing to ``most_ms`` milliseconds, in seconds."""
        return most_ms * self._share() / (_FULL * 1_000)

    def is_chosen(self, percent: int) -> bool:
        """Decide something that happens in so many of a hundred cases."""
        return percent > 0 and self._random.randrange(_FULL) < percent

    def _share(self) -> int:
        if self._shares is not None:
            return next(self._shares)
        return 0 if self._random.random() < _AT_ONCE else self._random.randint(1, _FULL)


class VirtualClock:
    """A loop's time, and the selector that moves it: nothing is ever really waited for."""

    def __init__(self, delays: Delays) -> None:
        self.delays = delays
        self.passes = 0
        self._now_ns = _START_NS
        # When each pass began, on the system's clock and on this one.
        self._real_ns: list[int] = [time.monotonic_ns()]
        self._virtual_ns: list[int] = [_START_NS]
        self._keys: dict[int, selectors.SelectorKey] = {}

    def now_ns(self) -> int:
        """Return the virtual time, in nanoseconds."""
        return self._now_ns

    def at_ns(self, real_ns: int) -> int:
        """Return the virtual time of a moment of ``time.monotonic_ns``."""
        return self._virtual_ns[max(0, bisect_right(self._real_ns, real_ns) - 1)]

    def loop(self) -> asyncio.AbstractEventLoop:
        """Return a loop that runs by this clock; blocking calls for threads run in it at once."""
        loop = asyncio.SelectorEventLoop(cast("selectors.BaseSelector", self))

        def run_in_executor(
            _executor: object, work: Callable[..., Any], *arguments: object
        ) -> asyncio.Future[Any]:
            future = loop.create_future()
            settle: Callable[[], None]
            try:
                settle = partial(future.set_result, work(*arguments))
            except Exception as error:  # noqa: BLE001 - it is raised where it is awaited
                settle = partial(future.set_exception, error)
            loop.call_later(self.delays.take_s(1), lambda: None if future.done() else settle())
            return future

        # A loop of one's own may be told its time; a subclass would say no more than this.
        vars(loop).update(time=self._time_s, run_in_executor=run_in_executor)
        return loop

    def _time_s(self) -> float:
        return self._now_ns / 1e9

    # ---- what asyncio asks of a selector

    def select(self, timeout_s: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        """Move on to the next timer, by a tick at least.

        Raises:
            RuntimeError: everybody waits for somebody, and no timer will ever end it.
        """
        if timeout_s is None:
            raise RuntimeError(
                "every task waits for another one and no timer runs: a deadlock; give what may "
                "wait without an end a time-out"
            )
        self.passes += 1
        self._now_ns += max(TICK_NS, math.ceil(timeout_s * 1e9))
        self._real_ns.append(time.monotonic_ns())
        self._virtual_ns.append(self._now_ns)
        return []

    def register(self, fileobj: Any, events: int, data: object = None) -> selectors.SelectorKey:
        """Take the loop's own wake-up pipe, which is not needed here."""
        fd = fileobj if isinstance(fileobj, int) else fileobj.fileno()
        key = self._keys[fd] = selectors.SelectorKey(fileobj, fd, events, data)
        return key

    def unregister(self, fileobj: Any) -> selectors.SelectorKey:
        """Forget it."""
        return self._keys.pop(fileobj if isinstance(fileobj, int) else fileobj.fileno())

    def get_key(self, fileobj: Any) -> selectors.SelectorKey:
        """Return what was registered."""
        return self._keys[fileobj if isinstance(fileobj, int) else fileobj.fileno()]

    def get_map(self) -> Mapping[int, selectors.SelectorKey]:
        """Return all that was registered."""
        return self._keys

    def close(self) -> None:
        """Nothing is open."""
        self._keys.clear()


def in_virtual_time(
    main: Callable[[VirtualClock], Coroutine[Any, Any, T]], source: int | Sequence[int]
) -> T:
    """Return what ``main`` gives, run to its end on a loop of virtual time.

    Args:
        main: takes the clock.
        source: of the delays: a seed, or the shares themselves.

    Raises:
        RuntimeError: a deadlock, or another loop runs in this thread.
    """
    clock = VirtualClock(Delays(source))
    with _quiet_end(clock.loop()) as loop:
        return loop.run_until_complete(main(clock))


@contextlib.contextmanager
def _quiet_end(loop: asyncio.AbstractEventLoop) -> Iterator[asyncio.AbstractEventLoop]:
    """End what still runs, as ``asyncio.run`` does, without its signal handler and threads."""
    try:
        yield loop
    finally:
        left = asyncio.all_tasks(loop)
        for task in left:
            task.cancel()
        if left:
            loop.run_until_complete(asyncio.wait(left, timeout=1))
        loop.close()
