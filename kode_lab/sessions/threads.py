"""Runs blocking tools in a bounded pool of threads that no hanging or waiting call can exhaust.

A thread cannot be killed. A call that exceeds its time is *given up*: its caller continues, and its
thread no longer counts. A call that has run for ``PATIENCE_S`` is most likely waiting (for a person
or another service) and does not count either, so other calls get a thread after that time. Both
kinds together may add ``EXTRA_LIMIT`` threads. All threads are daemons and are never joined, so
neither the end of an event loop nor that of the process waits for a hung call, as both would with
``ThreadPoolExecutor``. Idle threads end by themselves.

One owner (a session) has at most a quarter of the threads at a time, so it cannot block others.
This module must not know tools, sessions or models.

Source: trio's ``to_thread.run_sync`` (a limit, explicit abandonment), ``asyncio.to_thread`` (each
call runs in its own copy of the context).
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import threading
import time
from collections import deque
from collections.abc import Callable, Hashable
from typing import Any, NamedTuple, TypeVar

from kode_lab.errors import Refused

__all__ = [
    "EXTRA_LIMIT",
    "IDLE_S",
    "PATIENCE_S",
    "SHARES",
    "THREAD_LIMIT",
    "WAITING_LIMIT",
    "Threads",
    "ThreadsStatistics",
]

THREAD_LIMIT = 32
# One owner may use 1/SHARES of the threads at a time, but at least one.
SHARES = 4
# Threads beyond THREAD_LIMIT for calls that hang or wait. When they are used up, calls queue.
EXTRA_LIMIT = 256
# A call that still runs after this time waits for something rather than computes.
PATIENCE_S = 0.25
WAITING_LIMIT = 10_000
IDLE_S = 10.0

T = TypeVar("T")


class ThreadsStatistics(NamedTuple):
    """What the threads are doing now.

    Attributes:
        running: threads whose caller waits for the result.
        idle: threads without work.
        hung: threads whose call was given up but has not returned.
        waiting: calls that have no thread yet.
    """

    running: int
    idle: int
    hung: int
    waiting: int


class _Job:
    __slots__ = (
        "context",
        "ended",
        "error",
        "is_given_up",
        "loop",
        "owner",
        "result",
        "started_s",
        "state",
        "work",
    )

    def __init__(self, work: Callable[[], Any], owner: Hashable | None) -> None:
        self.work = work
        self.owner = owner
        self.context = contextvars.copy_context()
        self.loop = asyncio.get_running_loop()
        self.ended: asyncio.Future[None] = self.loop.create_future()
        self.state = "waiting"  # then "running", then "ended"; guarded by the pool's lock
        self.is_given_up = False
        self.started_s = 0.0
        self.result: Any = None
        self.error: BaseException | None = None


class Threads:
    """Runs blocking work first come, first served.

    At most ``thread_limit`` calls run at a time, not counting those that hang or wait. Threads
    start when they are needed. One pool serves any number of event loops.
    """

    def __init__(
        self,
        thread_limit: int = THREAD_LIMIT,
        *,
        extra_limit: int = EXTRA_LIMIT,
        patience_s: float = PATIENCE_S,
        waiting_limit: int = WAITING_LIMIT,
        idle_s: float = IDLE_S,
    ) -> None:
        assert thread_limit > 0
        self.thread_limit = thread_limit
        self.extra_limit = extra_limit
        self.patience_s = patience_s
        self.waiting_limit = waiting_limit
        self.idle_s = idle_s
        self._lock = threading.Condition()  # guards everything below
        self._waiting: deque[_Job] = deque()
        self._running: set[_Job] = set()  # without those that were given up
        self._running_of: dict[Hashable | None, int] = {}  # how many run for each owner
        self._total = 0
        self._idle = 0
        self._hung = 0

    async def run(
        self,
        work: Callable[[], T],
        timeout_s: float,
        *,
        owner: Hashable | None = None,
        on_late: Callable[[T], None] | None = None,
    ) -> T:
        """Return the result of ``work``, or raise its exception.

        A result that exists when the time ends is returned. A cancelled caller leaves at once;
        work that has begun then runs to its own end, and ``on_late`` is called with its result.
        Work without an ``owner`` may use all threads.

        Raises:
            TimeoutError: it did not begin, or did not end, within ``timeout_s``; the message says
                which. Work that has not begun is never run.
            Refused: ``waiting_limit`` calls wait already, or the system cannot start a thread.
        """
        job = _Job(work, owner)
        self._enter(job)
        end_s = job.loop.time() + timeout_s
        try:
            while not job.ended.done() and (left_s := end_s - job.loop.time()) > 0:
                # A call without a thread looks again whether others only wait.
                turn_s = self.patience_s if job.state == "waiting" else left_s
                await asyncio.wait((job.ended,), timeout=min(left_s, turn_s))
                if job.state == "waiting":
                    with self._lock, contextlib.suppress(RuntimeError):
                        self._grow()
        except asyncio.CancelledError:
            if on_late is not None and job.state != "waiting":
                job.ended.add_done_callback(lambda _: job.error or on_late(job.result))
            raise
        finally:
            state = self._leave(job)
        if state == "waiting":
            raise TimeoutError(
                f"not begun within {timeout_s:g} s: all threads that it may use are busy"
                f" (THREAD_LIMIT={self.thread_limit}); nothing was done"
            )
        if state == "running":
            raise TimeoutError(
                f"no result after {timeout_s:g} s; its thread cannot be stopped and may still act"
            )
        if job.error is not None:
            raise job.error
        result: T = job.result
        return result

    def statistics(self) -> ThreadsStatistics:
        """Return what the threads are doing now."""
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
                    return  # the running threads will take it
                self._waiting.remove(job)
                raise Refused(f"no thread can be started ({error}); try again later") from error

    def _grow(self) -> None:
        """Start a thread if more jobs may run than idle threads will take; holds the lock."""
        if len(self._waiting) <= self._idle or self._total >= self._allowed():
            return
        thread = threading.Thread(target=self._serve, name="kode-lab-tool", daemon=True)
        thread.start()
        self._total += 1

    def _allowed(self) -> int:
        extra = self._hung
        if self._total >= self.thread_limit + extra:  # only then does it matter who waits
            long_ago_s = time.monotonic() - self.patience_s
            extra += sum(job.started_s <= long_ago_s for job in self._running)
        return self.thread_limit + min(extra, self.extra_limit)

    def _leave(self, job: _Job) -> str:
        """Give the job up if it has not ended; return its state."""
        with self._lock:
            if job.state == "waiting":
                self._waiting.remove(job)
            elif job.state == "running":
                job.is_given_up = True
                self._hung += 1
                self._give_back(job)
                with contextlib.suppress(RuntimeError):  # no thread now; the next call asks again
                    self._grow()
            return job.state

    def _serve(self) -> None:
        """Run jobs until there are none for ``idle_s``, or one thread too many."""
        while (job := self._next()) is not None:
            result, failed = None, None
            try:
                result = job.context.run(job.work)
            except BaseException as error:  # noqa: BLE001 - the caller's, whatever it is
                failed = error
            with self._lock:
                job.result, job.error, job.state = result, failed, "ended"
                if job.is_given_up:
                    self._hung -= 1
                else:
                    self._give_back(job)
            with contextlib.suppress(RuntimeError):  # a closed loop has no caller left
                job.loop.call_soon_threadsafe(_wake, job.ended)
            del job, result, failed  # an idle thread holds nothing of its last call

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
        """Return the first job whose owner may use a thread; holds the lock."""
        running, share = self._running_of, max(1, self.thread_limit // SHARES)
        for at, job in enumerate(self._waiting):
            if job.owner is None or running.get(job.owner, 0) < share:
                del self._waiting[at]
                running[job.owner] = running.get(job.owner, 0) + 1
                self._running.add(job)
                job.state, job.started_s = "running", time.monotonic()
                return job
        return None

    def _give_back(self, job: _Job) -> None:
        """Let another job of the same owner run; holds the lock."""
        self._running.discard(job)
        self._running_of[job.owner] -= 1
        if not self._running_of[job.owner]:
            del self._running_of[job.owner]
        self._lock.notify()  # that job may wait while a thread is idle


def _wake(ended: asyncio.Future[None]) -> None:
    if not ended.done():
        ended.set_result(None)
