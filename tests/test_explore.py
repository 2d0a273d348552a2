"""The explorer: time is virtual, the ready queue is fair, and a seed is a schedule."""

import asyncio
import subprocess
import sys
import time
from itertools import pairwise

import pytest

from kode_lab.faults.virtual_time import TICK_NS, Delays, VirtualClock, in_virtual_time


async def for_s(seconds):
    """Let virtual time pass: a timer sets an event."""
    passed = asyncio.Event()
    asyncio.get_running_loop().call_later(seconds, passed.set)
    await passed.wait()


def test_a_day_of_sleep_passes_on_the_loops_clock_alone():
    async def scenario(clock):
        before_ns = clock.now_ns()
        await for_s(86_400)
        return clock.now_ns() - before_ns, clock.passes

    slept_ns, passes = in_virtual_time(scenario, 0)
    assert 86_400 * 10**9 <= slept_ns < 86_401 * 10**9
    assert passes < 10


def test_what_happens_in_a_later_pass_of_the_loop_is_later_on_its_clock():
    async def scenario(clock):
        times = []
        for _ in range(50):
            times.append(clock.now_ns())
            await asyncio.sleep(0)
        return times

    times = in_virtual_time(scenario, 0)
    assert all(later - earlier >= TICK_NS for earlier, later in pairwise(times))


@pytest.mark.parametrize("seed", range(20))
def test_who_is_ready_first_runs_first_with_every_seed(seed):
    async def scenario(_clock):
        order = []

        async def one(number):
            order.append(number)
            await asyncio.sleep(0)
            order.append(number)

        async with asyncio.TaskGroup() as group:
            for number in range(5):
                group.create_task(one(number))
        return order

    assert in_virtual_time(scenario, seed) == [0, 1, 2, 3, 4] * 2


def completions(source):
    """The order in which ten pieces of I/O that begin together complete."""

    async def scenario(clock):
        order = []

        async def one(number):
            await for_s(clock.delays.take_s(10))
            order.append(number)

        async with asyncio.TaskGroup() as group:
            for number in range(10):
                group.create_task(one(number))
        return tuple(order)

    return in_virtual_time(scenario, source)


def test_a_seed_decides_the_order_in_which_io_completes_and_seeds_differ():
    assert [completions(seed) for seed in range(30)] == [completions(seed) for seed in range(30)]
    assert len({completions(seed) for seed in range(30)}) > 25


def test_written_delays_decide_it_too_and_begin_again_when_they_are_used_up():
    assert completions([50, 10, 90, 20, 80, 30, 70, 40, 60, 0]) == (9, 1, 3, 5, 7, 0, 8, 6, 4, 2)
    delays = Delays([0, 100, 50])
    assert [delays.take_s(2) for _ in range(5)] == [0.0, 0.002, 0.001, 0.0, 0.002]


def test_chance_is_the_seeds_alone():
    chosen = [[Delays(seed).is_chosen(50) for _ in range(1)] for seed in range(100)]
    assert {True, False} == {one for (one,) in chosen}
    assert not any(Delays(seed).is_chosen(0) for seed in range(100))
    assert all(Delays(seed).is_chosen(100) for seed in range(100))


def test_a_deadlock_is_an_error_and_not_an_endless_wait():
    async def scenario(_clock):
        await asyncio.get_running_loop().create_future()

    with pytest.raises(RuntimeError, match="no timer runs: a deadlock"):
        in_virtual_time(scenario, 0)


def test_time_outs_fire_at_their_virtual_time():
    async def scenario(clock):
        began_ns = clock.now_ns()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(5):
                await for_s(1_000)
        return clock.now_ns() - began_ns

    assert 5 * 10**9 <= in_virtual_time(scenario, 0) < 5.001 * 10**9


def test_blocking_calls_run_at_once_and_complete_later_with_their_result_or_error():
    async def scenario(_clock):
        loop = asyncio.get_running_loop()
        done = []
        future = loop.run_in_executor(None, done.append, "called")
        assert done == ["called"]
        assert not future.done()
        await future
        with pytest.raises(ZeroDivisionError):
            await loop.run_in_executor(None, lambda: 1 // 0)
        left = loop.run_in_executor(None, done.append, "again")
        left.cancel()
        await for_s(1)
        return left.cancelled()

    assert in_virtual_time(scenario, 3)


def test_what_still_runs_at_the_end_is_cancelled():
    ended = []

    async def forever():
        try:
            await for_s(10**6)
        finally:
            ended.append("cancelled")

    async def scenario(_clock):
        task = asyncio.create_task(forever())
        await asyncio.sleep(0)
        return task

    task = in_virtual_time(scenario, 0)
    assert ended == ["cancelled"]
    assert task.cancelled()


def test_the_systems_times_are_those_of_the_pass_they_fell_into():
    async def scenario(clock):
        seen = []
        for _ in range(5):
            seen.append((time.monotonic_ns(), clock.now_ns()))
            await for_s(3)
        return [clock.at_ns(real_ns) for real_ns, _ in seen], [virtual for _, virtual in seen]

    told, expected = in_virtual_time(scenario, 0)
    assert told == expected


def test_the_loops_own_pipe_is_remembered_and_forgotten():
    clock = VirtualClock(Delays(0))
    loop = clock.loop()
    assert len(clock.get_map()) == 1
    (fd,) = clock.get_map()
    assert clock.get_key(fd).fd == fd
    loop.close()
    assert not clock.get_map()


_FINGERPRINT = """
import hashlib
from kode_lab.faults.catalogue import CATALOGUE
from kode_lab.faults.laboratory import replay
for name in ("no-lock", "acknowledged-before-write", "connection-reused-after-cancel"):
    played, verdict = replay(CATALOGUE[name], 7)
    told = repr((played.history, played.trace, played.passes, sorted(verdict.counts.items())))
    print(hashlib.sha256(told.encode()).hexdigest())
"""


def test_a_seed_is_the_same_schedule_in_every_process():
    """Step by step: operations, spans, times and the number of passes, with other hash seeds."""

    def told(hash_seed):
        return subprocess.run(
            [sys.executable, "-c", _FINGERPRINT],
            env={"PYTHONHASHSEED": hash_seed, "PATH": ""},
            capture_output=True,
            text=True,
            check=True,
        ).stdout.split()

    first = told("1")
    assert len(set(first)) == 3
    assert told("2") == first
