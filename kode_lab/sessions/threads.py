"""Threads for blocking tools: a bounded pool that no hanging call can bring to a stop.

A thread cannot be killed. So a call that outlasts its time is *given up*: its caller goes on, its
thread is written off and another may take its place, up to a limit. All threads are daemons and
nobody joins them, so neither the end of an event loop nor that of the process waits for a hung
call, as both would with ``ThreadPoolExecutor``. Idle threads go away by themselves.

No owner of calls has more than a quarter of the threads at a time: what one of them blocks, others
do not wait for. It knows nothing of tools, sessions or models, and is the only place where tools
leave the loop.

Source: trio's ``to_thread.run_sync`` (a limit, abandonment by name) and ``asyncio.to_thread`` (each
call runs in its own copy of the context, so what it sets there ends with it).
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import threading
from collections import deque
from collections.abc import Callable, Hashable
from typing import Any, NamedTuple, TypeVar

from kode_lab.errors import Refused

__all__ = [
    "HUNG_LIMIT",
    "IDLE_S",
    "SHARES",
    "THREAD_LIMIT",
    "WAITING_LIMIT",
    "Threads",
    "ThreadsStatistics",
]

THREAD_LIMIT = 32
# One part of so many is what one owner's calls may have at a time, one thread at least.
SHARES = 4
# Beyond this, hung calls do use up the pool: a service with hundreds of them wants a person.
HUNG_LIMIT = 256
WAITING_LIMIT = 10_000
IDLE_S = 10.0

T = TypeVar("T")


class ThreadsStatistics(NamedTuple):
    """What the threads are doing at this moment; ``hung`` ones run for nobody any more."""

    running: int
    idle: int
    hung: int
    waiting: int


class _Job:
    __slots__ = ("context", "future", "is_given_up", "is_running", "loop", "owner", "work")

    def __init__(self, work: Callable[[], Any], owner: Hashable | None) -> None:
        self.work = work
        self.owner = owner
        self.context = contextvars.copy_context()
        self.loop = asyncio.get_running_loop()
        self.future: asyncio.Future[Any] = self.loop.create_future()
        self.is_running = False
        self.is_given_up = False


class Threads:
    """Runs blocking work first come, first served, at most ``thread_limit`` calls at a time.

    Calls of one owner have at most one part in ``SHARES`` of them; those behind it go past. Threads
    start when they are needed. One pool serves any number of event loops.
    """

    def __init__(
        self,
        thread_limit: int = THREAD_LIMIT,
        *,
        hung_limit: int = HUNG_LIMIT,
        waiting_limit: int = WAITING_LIMIT,
        idle_s: float = IDLE_S,
    ) -> None:
        assert thread_limit > 0
        self.thread_limit = thread_limit
        self.hung_limit = hung_limit
        self.waiting_limit = waiting_limit
        self.idle_s = idle_s
        self._lock = threading.Condition()  # guards all below
        self._waiting: deque[_Job] = deque()
        # How many threads run for each owner; those that were given up run for nobody.
        self._running: dict[Hashable | None, int] = {}
        self._total = 0
        self._idle = 0
        self._hung = 0

    async def run(
        self, work: Callable[[], T], timeout_s: float, *, owner: Hashable | None = None
    ) -> T:
        """Return what ``work`` gives, or raise what it raises.

        A cancelled caller leaves at once; work that has begun then runs on to its own end. Work of
        no ``owner`` may have every thread.

        Raises:
            TimeoutError: it did not begin, or did not end, within ``timeout_s``; the message says
                which. What has not begun never will.
            Refused: ``waiting_limit`` calls wait already, or the system has no thread to give.
        """
        job = _Job(work, owner)
        self._enter(job)
        try:
            async with asyncio.timeout(timeout_s):
                result: T = await job.future
                return result
        except (TimeoutError, asyncio.CancelledError) as error:
            if not job.future.cancelled():
                raise  # the work's own
            has_begun = self._give_up(job)
            if isinstance(error, asyncio.CancelledError):
                raise
        if has_begun:
            raise TimeoutError(
                f"no result after {timeout_s:g} s; its thread cannot be stopped and may still act"
            )
        raise TimeoutError(
            f"not begun within {timeout_s:g} s: every thread that it may have is busy"
            f" (THREAD_LIMIT={self.thread_limit}); nothing was done"
        )

    def statistics(self) -> ThreadsStatistics:
        """Return the counts of this moment."""
        with self._lock:
            running = self._total - self._idle - self._hung
            return ThreadsStatistics(running, self._idle, self._hung, len(self._waiting))

    def _enter(self, job: _Job) -> None:
        with self._lock:
            if len(self._waiting) >= self.waiting_limit:
                raise Refused(
                    f"{len(self._waiting)} calls wait for a thread already; try again later"
                    f" (WAITING_LIMIT={self.waiting_limit})"
                )
            self._waiting.append(job)
            self._lock.notify()
            try:
                self._grow()
            except RuntimeError as error:  # the system has no more threads
                if self._total:
                    return  # those that run will come to it
                self._waiting.remove(job)
                raise Refused(f"no thread can be started ({error}); try again later") from error

    def _grow(self) -> None:
        """Start a thread where more work waits than idle threads will take; holds the lock."""
        if len(self._waiting) <= self._idle or self._total >= self._allowed():
            return
        thread = threading.Thread(target=self._serve, name="kode-lab-tool", daemon=True)
        thread.start()
        self._total += 1

    def _allowed(self) -> int:
        return self.thread_limit + min(self._hung, self.hung_limit)

    def _give_up(self, job: _Job) -> bool:
        """Write the job off; give whether it had begun."""
        with self._lock:
            if not job.is_running:
                # A job that ended just now is neither waiting nor running: it did begin.
                if job not in self._waiting:
                    return True
                self._waiting.remove(job)
                return False
            job.is_given_up = True
            self._hung += 1
            self._give_back(job)
            with contextlib.suppress(RuntimeError):  # no thread to be had; the next call asks again
                self._grow()
            return True

    def _serve(self) -> None:
        """Take jobs until there are none for ``idle_s``, or one thread too many."""
        while (job := self._next()) is not None:
            settle: Callable[[], None]
            try:
                result = job.context.run(job.work)
            except BaseException as error:  # noqa: BLE001 - it belongs to who asked, whatever it is
                settle = _failure(job.future, error)
            else:
                settle = _success(job.future, result)
            with self._lock:
                job.is_running = False
                if job.is_given_up:
                    self._hung -= 1
                else:
                    self._give_back(job)
            with contextlib.suppress(RuntimeError):  # a closed loop: nobody is left to be told
                job.loop.call_soon_threadsafe(settle)
            del job, settle  # an idle thread holds nothing of its last call

    def _next(self) -> _Job | None:
        with self._lock:
            while True:
                if self._total > self._allowed():
                    break
                if (job := self._first()) is not None:
                    return job
                self._idle += 1
                is_woken = self._lock.wait(self.idle_s)
                self._idle -= 1
                if not is_woken and not self._waiting:
                    break
            self._total -= 1
            return None

    def _first(self) -> _Job | None:
        """Return the job to run: the first whose owner may have a thread; holds the lock."""
        running, share = self._running, max(1, self.thread_limit // SHARES)
        for at, job in enumerate(self._waiting):
            if job.owner is None or running.get(job.owner, 0) < share:
                del self._waiting[at]
                running[job.owner] = running.get(job.owner, 0) + 1
                job.is_running = True
                return job
        return None

    def _give_back(self, job: _Job) -> None:
        """Let another job of the same owner have its thread; holds the lock."""
        self._running[job.owner] -= 1
        if not self._running[job.owner]:
            del self._running[job.owner]
        self._lock.notify()  # it may wait while a thread is idle


def _success(future: asyncio.Future[Any], result: object) -> Callable[[], None]:
    def settle() -> None:
        if not future.done():
            future.set_result(result)

    return settle


def _failure(future: asyncio.Future[Any], error: BaseException) -> Callable[[], None]:
    if isinstance(error, StopIteration):  # a future cannot carry it
        error = RuntimeError(f"StopIteration: {error}")

    def settle() -> None:
        if not future.done():
            future.set_exception(error)

    return settle
