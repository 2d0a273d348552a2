"""Asyncio beside gevent: an event loop in a thread of its own, called from greenlets.

Targets and the recording client are asyncio; Locust is gevent, which patches this process's
sockets. uvloop uses neither Python's sockets nor its selectors, so it runs undisturbed in a real
thread. A greenlet waits for its coroutine through a watcher of its own hub, at about 0.1 ms of CPU
a call.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

import gevent
import uvloop
from gevent.event import AsyncResult
from gevent.threadpool import ThreadPool

__all__ = ["Bridge"]

T = TypeVar("T")


class Bridge:
    """A running loop; ``call`` works in any greenlet of the thread that made it."""

    def __init__(self) -> None:
        self._loop = uvloop.new_event_loop()
        self._done: deque[tuple[AsyncResult, asyncio.Future[Any]]] = deque()
        self._watcher = gevent.get_hub().loop.async_()
        self._watcher.start(self._hand_over)
        # gevent's own pool has real threads, also where ``threading`` is patched.
        self._pool = ThreadPool(1)
        self._pool.spawn(self._live)

    def call(self, work: Callable[..., Coroutine[Any, Any, T]], *words: Any) -> T:
        """Run ``work(*words)`` in the loop, and return what it returns.

        A greenlet that is killed meanwhile cancels it.
        """
        result: AsyncResult = AsyncResult()
        tasks: list[asyncio.Task[T]] = []

        def begin() -> None:
            task = self._loop.create_task(work(*words))
            tasks.append(task)
            task.add_done_callback(lambda done: self._note(result, done))

        self._loop.call_soon_threadsafe(begin)
        try:
            done: asyncio.Future[T] = result.get()
        except BaseException:
            self._loop.call_soon_threadsafe(lambda: [task.cancel() for task in tasks])
            raise
        return done.result()

    def close(self) -> None:
        """Stop the loop; what still runs in it is cancelled."""
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._pool.join()
        self._pool.kill()
        self._watcher.stop()
        self._watcher.close()

    def _live(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_forever()
            left = asyncio.all_tasks(self._loop)
            for task in left:
                task.cancel()
            if left:
                self._loop.run_until_complete(asyncio.wait(left, timeout=5.0))
            self._loop.run_until_complete(self._loop.shutdown_asyncgens())
        finally:
            self._loop.close()

    def _note(self, result: AsyncResult, done: asyncio.Future[Any]) -> None:
        self._done.append((result, done))
        self._watcher.send()

    def _hand_over(self) -> None:
        while self._done:
            result, done = self._done.popleft()
            result.set(done)
