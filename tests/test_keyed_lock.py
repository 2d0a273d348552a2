"""The keyed lock is first come first served, loses no hand-over, and forgets idle keys."""

import asyncio
import tracemalloc
from collections import deque

import pytest
from house import run
from hypothesis import given, settings
from hypothesis import strategies as st

from kode_lab.errors import WaitingRoomFull
from kode_lab.sessions.lock import KeyedLock

MANY = 2_000


class Drill:
    """One key of a lock, and beside it what ought to be: who holds, and who waits, in order."""

    def __init__(self, lock, key):
        self.lock = lock
        self.key = key
        self.holder = None
        self.waiting = deque()

    async def hold(self):
        task = asyncio.create_task(self.lock.hold(self.key, queue_limit=100))
        if self.holder is None:
            self.holder = task
        else:
            self.waiting.append(task)
        await self.check()

    async def release(self, *, cancel=None):
        """Release the key; the heir is cancelled in the same moment, ``before`` or ``after``."""
        if self.holder is None or (cancel and not self.waiting):
            return
        heir = self.waiting[0] if cancel else None
        if cancel == "before":
            heir.cancel()
        self.lock.release(self.key)
        if cancel == "after":
            heir.cancel()
        if cancel:
            self.waiting.popleft()
        self.holder = self.waiting.popleft() if self.waiting else None
        await self.check()

    async def cancel(self, place):
        if place < len(self.waiting):
            self.waiting[place].cancel()
            del self.waiting[place]
        await self.check()

    async def check(self):
        for _ in range(4):
            await asyncio.sleep(0)
        assert self.lock.is_held(self.key) == (self.holder is not None)
        assert self.lock.waiting(self.key) == len(self.waiting)
        assert self.holder is None or (self.holder.done() and not self.holder.cancelled())
        assert not any(waiter.done() for waiter in self.waiting)


steps = st.tuples(
    st.sampled_from("ab"),
    st.one_of(
        st.just(lambda drill: drill.hold()),
        st.sampled_from([None, "before", "after"]).map(
            lambda cancel: lambda drill: drill.release(cancel=cancel)
        ),
        st.integers(0, 4).map(lambda place: lambda drill: drill.cancel(place)),
    ),
)


@settings(max_examples=80, deadline=None)
@given(st.lists(steps, max_size=40))
def test_the_holder_is_the_first_that_came_and_was_not_cancelled(script):
    async def scenario():
        lock = KeyedLock()
        drills = {key: Drill(lock, key) for key in "ab"}
        for key, step in script:
            await step(drills[key])
        for drill in drills.values():
            while drill.holder is not None:
                await drill.release()
        assert lock.statistics()[:2] == (0, 0)

    run(scenario())


def test_one_release_wakes_one_waiter_and_no_later_caller_slips_in():
    async def scenario():
        lock, order = KeyedLock(), []

        async def hold(name):
            await lock.hold("k", queue_limit=10)
            order.append(name)

        assert lock.try_hold("k")
        waiting = [asyncio.create_task(hold(name)) for name in "abc"]
        await asyncio.sleep(0)
        lock.release("k")
        assert not lock.try_hold("k"), "the lock is handed over, not set free"
        late = asyncio.create_task(hold("late"))
        for expected in (["a"], ["a", "b"], ["a", "b", "c"], ["a", "b", "c", "late"]):
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            assert order == expected
            lock.release("k")
        await asyncio.gather(late, *waiting)
        assert not lock.is_held("k")

    run(scenario())


def test_the_waiting_room_has_a_limit_that_its_error_names_and_a_refused_one_leaves_nothing():
    async def scenario():
        lock = KeyedLock()
        assert lock.try_hold("k")
        waiting = [asyncio.create_task(lock.hold("k", queue_limit=2)) for _ in range(2)]
        await asyncio.sleep(0)
        with pytest.raises(WaitingRoomFull, match="queue_limit=2"):
            await lock.hold("k", queue_limit=2)
        with pytest.raises(WaitingRoomFull, match="queue_limit=0"):
            await lock.hold("k", queue_limit=0)
        assert lock.waiting("k") == 2
        for _ in range(3):
            lock.release("k")
            await asyncio.sleep(0)
        await asyncio.gather(*waiting)
        assert lock.statistics()[:2] == (0, 0)

    run(scenario())


def test_who_was_cancelled_in_this_very_moment_makes_room_already():
    async def scenario():
        lock = KeyedLock()
        assert lock.try_hold("k")
        leaving, staying = (asyncio.create_task(lock.hold("k", queue_limit=2)) for _ in range(2))
        await asyncio.sleep(0)
        leaving.cancel()
        late = lock.hold("k", queue_limit=2)
        late.send(None)  # it stands in the queue before the loop runs anybody
        assert lock.waiting("k") == 2
        with pytest.raises(WaitingRoomFull):
            await lock.hold("k", queue_limit=2)
        late.close()
        lock.release("k")
        await staying
        lock.release("k")
        assert not lock.is_held("k")

    run(scenario())


def test_a_waiter_whose_coroutine_is_closed_is_passed_over():
    async def scenario():
        lock = KeyedLock()
        assert lock.try_hold("k")
        closed = lock.hold("k", queue_limit=9)
        closed.send(None)
        closed.close()
        lock.release("k")
        assert not lock.is_held("k")

    run(scenario())


def test_releasing_what_is_not_held_is_an_error():
    lock = KeyedLock()
    with pytest.raises(RuntimeError, match="'k' is not held"):
        lock.release("k")


def test_the_statistics_count_what_is_held_who_waits_and_how_often_it_was_handed_over():
    async def scenario():
        lock = KeyedLock()
        assert lock.try_hold("a")
        assert lock.try_hold("b")
        waiting = [asyncio.create_task(lock.hold("a", queue_limit=9)) for _ in range(3)]
        await asyncio.sleep(0)
        assert lock.statistics() == (2, 3, 3, 0)
        lock.release("b")
        for _ in range(3):
            lock.release("a")
            await asyncio.sleep(0)
        assert lock.statistics() == (1, 0, 3, 3)
        lock.release("a")
        await asyncio.gather(*waiting)
        assert lock.statistics() == (0, 0, 3, 3)

    run(scenario())


def test_thousands_of_idle_keys_leave_no_memory():
    async def scenario():
        lock = KeyedLock()

        async def visit(key):
            first, second = (asyncio.create_task(lock.hold(key, queue_limit=9)) for _ in range(2))
            await first
            lock.release(key)
            await second
            lock.release(key)

        await visit("warm")
        tracemalloc.start()
        try:
            for number in range(MANY):
                await visit(f"key {number}")
            kept_bytes, _ = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert lock.statistics().held == 0
        assert kept_bytes < MANY, "less than a byte for each key that was ever held"

    run(scenario())
