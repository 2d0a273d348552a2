"""What tools change, and how tools are written: right, and wrong in one way each.

``World`` is the service's own: notes, each with an id and its owner, and once for each
idempotency key. It outlives processes, as a database does. Its wrong variants are tools of the same
names and schemas, so that nothing but the tool's own code differs.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from contextvars import ContextVar
from typing import Any

from kode_lab.errors import InvalidScenario
from kode_lab.faults.virtual_time import Delays
from kode_lab.history.operation import Effect, markers_in
from kode_lab.key import SessionKey
from kode_lab.sessions import Toolbox, ToolContext
from kode_lab.sessions.store import UserMemory

__all__ = ["TOOLS", "World", "remembered"]

_Noting = Callable[["World", str, ToolContext], Awaitable[str]]


class World:
    """Notes that tools make; one toolbox for as many runs as one likes.

    Args:
        tools: a name of ``TOOLS``.

    Attributes:
        box: the tools.
        effects: what was done, in order.
    """

    def __init__(self, tools: str = "right") -> None:
        if tools not in TOOLS:
            raise InvalidScenario(f"no tools {tools!r}: name one of {', '.join(TOOLS)}")
        self.box = Toolbox()
        self.delays = Delays(0)
        self._tool_ms = 0.0
        self.effects: list[Effect] = []
        self.by_call: dict[str, str] = {}
        self.next_id = 1
        # What wrong tools keep where they should not.
        self.current: SessionKey | None = None
        self.answer = ""
        self.jobs: asyncio.Queue[Any] | None = None
        self.workers: list[asyncio.Task[None]] = []
        self.delegate_to: Callable[[SessionKey, str], Awaitable[Any]] | None = None
        noting = TOOLS[tools]

        @self.box.tool
        async def note(text: str, context: ToolContext) -> str:
            """Note something.

            Args:
                text: what.
                context: of the session.
            """
            return await noting(self, text, context)

        @self.box.tool
        async def delegate(text: str, context: ToolContext) -> str:
            """Let a sub-agent do it.

            Args:
                text: what.
                context: of the session.
            """
            assert self.delegate_to is not None
            await self.delegate_to(context.key, text)
            return "done"

    def begin(self, delays: Delays, tool_ms: float) -> None:
        """Forget everything, for a new run."""
        self.delays = delays
        self._tool_ms = tool_ms
        self.effects.clear()
        self.by_call.clear()
        self.next_id = 1
        self.current, self.jobs, self.delegate_to = None, None, None
        self.workers.clear()

    async def write(self) -> None:
        """Take the time of a write."""
        await asyncio.sleep(self.delays.take_s(self._tool_ms))

    def new_id(self) -> str:
        """Return a new id."""
        number, self.next_id = self.next_id, self.next_id + 1
        return str(number)

    def make(self, number: str, text: str, key: SessionKey) -> None:
        """Make a note."""
        marker = next(iter(markers_in(text)), "")
        self.effects.append(Effect(number, text, marker, key.user_id, key.session_id))


async def _once(world: World, text: str, context: ToolContext) -> str:
    """Make the note, once for each call.

    The answer is the same words for every session, so that what caches answers may mix them up.
    """
    await world.write()
    if context.idempotency_key not in world.by_call:
        world.by_call[context.idempotency_key] = world.new_id()
        world.make(world.by_call[context.idempotency_key], text, context.key)
    await world.write()
    return "noted"


async def _each_time(world: World, text: str, context: ToolContext) -> str:
    """Make a note whenever one is asked for."""
    await world.write()
    world.make(world.new_id(), text, context.key)
    await world.write()
    return "noted"


async def _for_the_current(world: World, text: str, context: ToolContext) -> str:
    """Remember the session in one variable for all calls."""
    world.current = context.key
    await world.write()
    world.make(world.new_id(), text, world.current)
    return "noted"


_SESSION: ContextVar[SessionKey] = ContextVar("_SESSION")


async def _by_workers(world: World, text: str, context: ToolContext) -> str:
    """Let workers write, which look up the session in a context variable: their creator's."""
    _SESSION.set(context.key)
    if world.jobs is None:
        world.jobs = asyncio.Queue()
        world.workers.append(asyncio.get_running_loop().create_task(_work(world)))
    done = asyncio.get_running_loop().create_future()
    world.jobs.put_nowait((text, done))
    await done
    return "noted"


async def _work(world: World) -> None:
    assert world.jobs is not None
    while True:
        text, done = await world.jobs.get()
        await world.write()
        world.make(world.new_id(), text, _SESSION.get())
        if not done.done():
            done.set_result(None)


async def _racing_ids(world: World, text: str, context: ToolContext) -> str:
    """Read the next id, write, and only then move it on."""
    number = world.next_id
    await world.write()
    world.make(str(number), text, context.key)
    world.next_id = number + 1
    return "noted"


async def _racing_list(world: World, text: str, context: ToolContext) -> str:
    """Read all notes, write, and put them back with one more: what was made meanwhile is lost."""
    before = list(world.effects)
    await world.write()
    world.effects[:] = before
    world.make(world.new_id(), text, context.key)
    return "noted"


async def _in_memory(world: World, text: str, context: ToolContext) -> str:
    """Keep the note in the memory that the user's sessions share, once for each call."""
    number = world.by_call.setdefault(context.idempotency_key, f"m{len(world.by_call) + 1}")
    await context.memory.put(number, [text, context.key.session_id])
    return "noted"


def remembered(memories: Mapping[str, UserMemory]) -> list[Effect]:
    """Return the notes in the memories of users."""
    return [
        Effect(number, text, next(iter(markers_in(text)), ""), user_id, session_id)
        for user_id, memory in memories.items()
        for number, (text, session_id) in memory.entries.items()
    ]


async def _one_answer(world: World, text: str, context: ToolContext) -> str:
    """Keep the answer in one variable for all calls; it says which call it is for."""
    world.answer = f"noted for {context.call_id}"
    await _once(world, text, context)
    return world.answer


TOOLS: dict[str, _Noting] = {
    "right": _once,
    "memory": _in_memory,
    "without idempotency": _each_time,
    "module-level session": _for_the_current,
    "context of the worker": _by_workers,
    "racing ids": _racing_ids,
    "racing list": _racing_list,
    "one answer": _one_answer,
}
