"""Benches of memory: what an idle session weighs, and 100,000 sessions visited twice.

Memory is the resident memory of a process that does nothing else (each bench has one of its own),
so allocator and interpreter are counted with the objects. The sessions' files rest in a file system
in memory where there is one: 100,000 sessions are 600,000 names, and how fast a disk takes those is
not the question. (Its pages are the system's, not the process's.)
"""

from __future__ import annotations

import statistics
import time
from pathlib import Path

from benchmarks.bench import Row, row
from benchmarks.sampling import on_loop, resident_bytes, scratch, share
from benchmarks.scene import AGENT_ID, keys, service, take
from kode_lab.key import SessionKey
from kode_lab.sessions import JsonStore, SessionManager
from kode_lab.sessions.residents import Agent, Residents
from kode_lab.sessions.store import Lease, Stored

__all__ = ["memory", "visits"]

_RESIDENTS = 10_000
# Where a process may open the usual 1,024 files; more blocks than that find none of theirs open.
_OPEN_SESSIONS = 128
# Fewer than the files that stay open, so that a block visited twice in a row finds its own open.
_BLOCK = 100


def memory(effort: float) -> list[Row]:
    """Return the bytes of an idle agent in memory, and of an idle session that was evicted."""
    with scratch(in_memory=True) as directory:
        rows = on_loop(_memory(directory, effort))
    return [*rows, _resident(share(100_000, effort, least=1_000))]


async def _memory(directory: Path, effort: float) -> list[Row]:
    """Let ten times as many sessions pass through a manager as may stay in it."""
    count = share(2_000, effort, least=100)
    async with service(directory, residents_limit=count // 10) as manager:
        await _visit(manager, keys(count))
        before_bytes = resident_bytes()
        await _visit(manager, keys(10 * count, first=count))
        grown_bytes = resident_bytes() - before_bytes
    evicted = 10 * count
    return [
        row(
            f"memory: of an idle session evicted to disk ({evicted:,} of them)",
            max(grown_bytes, 0) / evicted,
            "bytes",
            bar="value <= 500",
        )
    ]


def _resident(count: int) -> Row:
    """Weigh agents without messages, with the keys and the places that hold them."""
    residents = Residents(limit=count, limit_bytes=2**40, idle_limit_s=3_600.0)
    before_bytes = resident_bytes()
    for number in range(count):
        # Ids as a request brings them: strings of this session's own.
        key = SessionKey(f"user-{number // 10}", f"session-{number}", AGENT_ID)
        residents.keep(Agent(Lease(key, 1), Stored([], {}, None)))
    weight_bytes = (resident_bytes() - before_bytes) / count
    assert len(residents) == count
    return row(
        f"memory: of a resident idle agent without messages ({count:,} of them)",
        weight_bytes,
        "bytes",
        bar="value <= 1000",
    )


def visits(effort: float) -> list[Row]:
    """Return what 100,000 sessions cost on their first and second visit, and what they leave."""
    with scratch(in_memory=True) as directory:
        return on_loop(_visits(directory, effort))


async def _visits(directory: Path, effort: float) -> list[Row]:
    """Touch every session once, then again in the same order.

    In the second round the next one was evicted long ago. Between such blocks some others are
    visited that came back a while ago: still resident, but with their files closed, because far
    fewer files than agents stay open. That is the resident to compare with: the one thing in which
    the two differ is whether the agent is in memory. Some blocks are visited once more at once: the
    cheapest turn there is, files open and everything warm.
    """
    count = share(100_000, effort, least=1_000)
    residents = min(_RESIDENTS, count // 2)
    sessions = keys(count)
    store = JsonStore(directory / "store", open_sessions_limit=_OPEN_SESSIONS)
    async with service(directory, store=store, residents_limit=residents) as manager:
        first_us = await _visit(manager, sessions[:residents])
        begun_bytes = resident_bytes()
        first_us += await _visit(manager, sessions[residents:])
        ended_bytes = resident_bytes()
        again_us, resident_us, warm_us = [], [], []
        for at in range(0, count, _BLOCK):
            again_us += await _visit(manager, sessions[at : at + _BLOCK])
            if at % (10 * _BLOCK) == 0:
                warm_us += await _visit(manager, sessions[at : at + _BLOCK])
            elif at % (5 * _BLOCK) == 0 and at >= residents // 2:
                before = at - residents // 2
                resident_us += await _visit(manager, sessions[before : before + _BLOCK])
    again = statistics.median(again_us)
    return [
        row(
            f"visits: memory of the process after {count:,} sessions, against after {residents:,}",
            ended_bytes / 1e6,
            "MB",
            baseline=begun_bytes / 1e6,
            bar="ratio <= 1.02",
        ),
        row(
            "visits: CPU of the second, evicted meanwhile, against a resident's turn",
            again,
            "us",
            baseline=statistics.median(resident_us),
            bar="ratio <= 1.5",
        ),
        row(
            "visits: CPU of the second, against a resident's turn with its files open",
            again,
            "us",
            baseline=statistics.median(warm_us),
        ),
        row(
            "visits: CPU of the second, against the first, which makes the session",
            again,
            "us",
            baseline=statistics.median(first_us),
        ),
    ]


async def _visit(manager: SessionManager, sessions: list[SessionKey]) -> list[float]:
    """Take one turn with each; give the CPU microseconds a turn of each block."""
    spent_us = []
    for at in range(0, len(sessions), _BLOCK):
        block = sessions[at : at + _BLOCK]
        start_s = time.process_time()
        for key in block:
            await take(manager, key)
        spent_us.append((time.process_time() - start_s) * 1e6 / len(block))
    return spent_us
