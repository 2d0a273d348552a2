"""Benches of whole turns: one after another, young and old, and ten thousand at once.

A whole turn is hold, journal, ask, commit, trace, release, through ``SessionManager.turn``, on real
files; the model is a function that answers at once, or after two seconds.
"""

from __future__ import annotations

import asyncio
import math
import threading
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

from benchmarks.bench import Row, row
from benchmarks.sampling import cpu_us, interleaved, on_loop, scratch, share
from benchmarks.scene import (
    PROMPT,
    files_limit,
    keys,
    new_keys,
    service,
    slow_model,
    take,
)
from kode_lab.key import SessionKey
from kode_lab.message import Reply, Request, text_of
from kode_lab.server.limits import file_budget
from kode_lab.server.serve import settled
from kode_lab.sessions import AgentConfig, JsonStore, SessionManager

__all__ = ["concurrent", "turn"]

_YOUNG, _OLD = 10, 1_000
_LATENCY_S = 2.0
# Each session's turns after its first, at the barrier: a short conversation.
_TURNS_EACH = 5
_REPEATS = 3


def turn(effort: float) -> list[Row]:
    """Return what a whole turn costs, and whether its place in the history matters."""
    with scratch() as directory:
        return on_loop(_turn(directory, effort))


async def _turn(directory: Path, effort: float) -> list[Row]:
    times, rounds = share(50, effort, least=5), share(21, effort, least=2)
    old_turns = share(_OLD, effort, least=_YOUNG * 2)
    async with service(directory) as manager:
        some = new_keys()

        def at(history: int) -> Callable[[], Awaitable[float]]:
            async def sample() -> float:
                key = next(some)
                await take(manager, key, history - 1)
                return await cpu_us(lambda: take(manager, key, times), times)

            return sample

        many = [next(some) for _ in range(share(1_000, effort, least=20))]
        for key in many:
            await take(manager, key)

        async def around() -> None:
            for key in many:
                await take(manager, key)

        sides = {"young": at(_YOUNG), "old": at(old_turns)}
        spent_us = await interleaved(sides, rounds, of=min)
        other_us = await interleaved(
            {"around": lambda: cpu_us(around, len(many))}, share(7, effort, least=2), of=min
        )
    stopped = await _stops(directory, share(20, effort, least=4))
    return [
        stopped,
        row(
            "turn: whole turns a CPU-second, from a session's turn 10 on",
            1e6 / spent_us["young"],
            "turns/CPU-s",
            bar="value >= 5000",
        ),
        row(
            f"turn: CPU from turn {old_turns:,} on, against from turn {_YOUNG} on",
            spent_us["old"],
            "us",
            baseline=spent_us["young"],
            bar="ratio <= 1.2",
        ),
        row(
            f"turn: CPU where {len(many):,} residents take turns, files reopened, against one",
            other_us["around"],
            "us",
            baseline=spent_us["young"],
        ),
    ]


async def _stops(directory: Path, count: int) -> Row:
    """Return the longest time of a ``stop``, where turns hang in the model or in a thread."""
    hung, begun = threading.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()

    def hang() -> str:
        loop.call_soon_threadsafe(begun.set)
        hung.wait(60)
        return "done"

    async def model(request: Request, on_text: object = None) -> Reply:  # noqa: ARG001
        if "model" in text_of(request.messages[-1]):
            begun.set()
            await asyncio.Event().wait()
        return Reply(({"type": "tool_use", "id": "c", "name": "hang", "input": {}},), "tool_use")

    agent = AgentConfig("clerk", "any", tools=[hang])
    longest_s = 0.0
    async with SessionManager(store=directory / "stops", agents=[agent], model=model) as manager:
        for number in range(count):
            key = SessionKey.of(f"stopped {number}", "clerk")
            begun.clear()
            where = "model" if number % 2 else "thread"
            turn = asyncio.create_task(manager.turn(key, f"hang in the {where}"))
            await begun.wait()
            start_s = time.perf_counter()
            await manager.stop(key)
            longest_s = max(longest_s, time.perf_counter() - start_s)
            await asyncio.gather(turn, return_exceptions=True)
        hung.set()
    name = f"turn: the longest of {count} stops, of turns that hang in the model or in a thread"
    return row(name, longest_s * 1e3, "ms", bar="value <= 100")


def concurrent(effort: float) -> list[Row]:
    """Return how much longer ten thousand sessions at once take than each alone."""
    with scratch(in_memory=True) as directory:
        return on_loop(_concurrent(directory, effort))


async def _concurrent(directory: Path, effort: float) -> list[Row]:
    """Ideal is what one session alone needs: its turns one after another, two seconds each.

    The sessions rest on disk with one turn each and start at one barrier, three times: the best
    counts. Collector and files are set as ``kode-lab serve`` sets them.
    """
    sessions = keys(share(10_000, effort, least=50))
    latency_s = _LATENCY_S * min(1.0, max(effort, 0.05))
    limit = file_budget(files_limit()).sessions
    store = JsonStore(directory / "store", open_sessions_limit=limit)
    model = slow_model(latency_s)
    async with (
        service(directory, model, store=store) as manager,
        settled(lambda: manager.statistics().turns),
    ):
        cold_s = await _at_once(manager, sessions, 1)
        warm_s, spent_us = math.inf, math.inf
        for _ in range(_REPEATS):
            start_s = time.process_time()
            took_s = await _at_once(manager, sessions, _TURNS_EACH)
            warm_s = min(warm_s, took_s)
            all_us = (time.process_time() - start_s) * 1e6
            spent_us = min(spent_us, all_us / len(sessions) / _TURNS_EACH)
    many = f"{len(sessions):,} sessions at once, {latency_s:g} s model"
    return [
        row(
            f"concurrent: {many}, {_TURNS_EACH} turns each: makespan against ideal",
            warm_s,
            "s",
            baseline=_TURNS_EACH * latency_s,
            bar="ratio <= 1.15",
        ),
        row("concurrent: the same, CPU a turn", spent_us, "us"),
        row(
            f"concurrent: {many}, one turn, nothing exists yet: makespan against ideal",
            cold_s,
            "s",
            baseline=latency_s,
        ),
    ]


async def _at_once(manager: SessionManager, sessions: list[SessionKey], turns: int) -> float:
    """Return the seconds from the barrier to the last reply."""
    barrier = asyncio.Event()

    async def one(key: SessionKey) -> None:
        await barrier.wait()
        for _ in range(turns):  # who is answered asks again at once, before others are answered
            await manager.turn(key, PROMPT)

    async with asyncio.TaskGroup() as group:
        for key in sessions:
            group.create_task(one(key))
        await asyncio.sleep(0)  # every task stands at the barrier
        start_s = time.perf_counter()
        barrier.set()
    return time.perf_counter() - start_s
