"""Where a scenario plays: the service's processes, what they share, and how they die.

A *process* is one manager with its store, its tasks and its file descriptors, in a loop that all
share. Killing one makes its disk deny every further call and hands its file locks back, exactly
what the kernel does; so whatever its tasks still do while they are cancelled has no effect.

It puts real parts together and wraps them as a fault asks; it decides no order of events.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from kode_lab.errors import KodeLabError
from kode_lab.faults.disks import LabDisk
from kode_lab.faults.virtual_time import Delays
from kode_lab.history.span import Trace
from kode_lab.key import SessionKey
from kode_lab.message import Message, Model
from kode_lab.sessions import AgentShelf, JsonStore, SessionManager, TurnReply
from kode_lab.sessions.open_turn import Finished, OpenTurn
from kode_lab.sessions.store import Lease, Stored, UserMemory

__all__ = ["Altered", "Front", "Parts", "Process", "Site", "slow"]

# The longest that a piece of I/O takes.
IO_MS = 2.0
# Small: it is filled with zeros anew for each schedule.
_JOURNAL_BYTES = 128 * 1024


class Front(Protocol):
    """Who takes the clients' turns: the manager, or something before it."""

    async def turn(
        self, key: SessionKey, prompt: str, *, turn_id: str | None, deadline_s: float | None
    ) -> TurnReply:
        """Take one turn."""
        ...


class Altered:
    """A real part, some of whose methods are replaced; all the rest is the part's own."""

    def __init__(self, part: Any, **methods: Any) -> None:
        self._part = part
        vars(self).update(methods)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._part, name)


def slow(store: Any, io: Callable[[], Awaitable[None]], memories: dict[str, UserMemory]) -> Altered:
    """Return the store as if each of its calls were I/O, so that others run meanwhile.

    The embedded store writes within one pass of the loop; one that asks a database does not. It
    breaks no promise, and is part of every scenario.
    """

    async def load(lease: Lease) -> Stored:
        await io()
        stored: Stored = await store.load(lease)
        return stored

    async def journal(lease: Lease, turn: OpenTurn, entry: dict[str, Any]) -> None:
        await store.journal(lease, turn, entry)
        await io()

    async def append(lease: Lease, turn: OpenTurn, entries: Sequence[dict[str, Any]]) -> Finished:
        await io()
        finished: Finished = await store.append(lease, turn, entries)
        await io()
        return finished

    # Without the store's thread, for which a virtual clock does not wait.
    async def read_memory(user_id: str) -> UserMemory:
        found = memories.get(user_id, UserMemory(0, {}))
        await io()
        return UserMemory(found.version, dict(found.entries))

    async def write_memory(user_id: str, entries: Mapping[str, Any], *, version: int) -> bool:
        await io()
        if memories.get(user_id, UserMemory(0, {})).version != version:
            return False
        memories[user_id] = UserMemory(version + 1, dict(entries))
        return True

    async def peek(key: SessionKey) -> list[Message]:
        messages: list[Message] = await store.peek(key)
        await io()
        return messages

    # Named here too: a check for a protocol, as Rewindable, does not call __getattr__.
    own = {"fill": store.fill, "rewind": store.rewind}
    own |= {"read_memory": read_memory, "write_memory": write_memory}
    return Altered(store, load=load, journal=journal, append=append, peek=peek, **own)


def _as_it_is(part: Any, _site: Site) -> Any:
    return part


class Parts(NamedTuple):
    """How each real part is wrapped; by themselves they are left as they are.

    Each takes the part and the site of its process, and gives what stands in its place.

    Attributes:
        tools: name of the way in which the world's tools are written (``faults.world``).
        layout: of the store.
    """

    store: Callable[[Any, Site], Any] = _as_it_is
    model: Callable[[Any, Site], Any] = _as_it_is
    agents: Callable[[Any, Site], Any] = _as_it_is
    front: Callable[[Any, Site], Any] = _as_it_is
    disk: Callable[[Any, Site], Any] = _as_it_is
    tools: str = "right"


class Site:
    """What a part of one process knows of its surroundings.

    Attributes:
        number: of the process.
        root: where its sessions rest.
        shared: what all processes share, and what outlives them: a database's tables, say.
        disk: the process's view of the file system, once it has one.
        store: its store as it is wrapped, once it has one.
    """

    def __init__(self, number: int, root: Path, delays: Delays, shared: dict[str, Any]) -> None:
        self.number = number
        self.root = root
        self.delays = delays
        self.shared = shared
        self.disk: Any = None
        self.store: Any = None
        self.manager: SessionManager | None = None
        # In the order of their beginning, which a set would not keep the same from run to run.
        self._tasks: dict[asyncio.Task[Any], None] = {}

    async def io(self, most_ms: float = IO_MS) -> None:
        """Wait for a piece of I/O."""
        await asyncio.sleep(self.delays.take_s(most_ms))

    def spawn(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """Run something beside the turns; it dies with the process."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks[task] = None
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._tasks.pop(task, None)
        if not task.cancelled():
            task.exception()  # it is raised where the task is awaited; no warning is needed

    async def end_tasks(self) -> None:
        """Cancel all that runs, and wait until it has ended."""
        while self._tasks:
            running = list(self._tasks)
            for task in running:
                task.cancel()
            await asyncio.wait(running)


class Process:
    """One process of the service, from its start to its end."""

    def __init__(
        self,
        site: Site,
        parts: Parts,
        *,
        agents: AgentShelf,
        model: Model,
        trace: Trace,
        durability: str,
    ) -> None:
        self.site = site
        self._is_up = True
        self.disk = LabDisk(site.root, remembers=durability == "power")
        site.disk = parts.disk(self.disk, site)
        store = JsonStore(
            site.root / "sessions",
            durability="power" if durability == "power" else "process",
            journal_bytes=_JOURNAL_BYTES,
            disk=site.disk,
        )
        memories = site.shared.setdefault("memories", {})  # as a database: they outlive a process
        site.store = parts.store(slow(store, site.io, memories), site)
        self.manager = site.manager = SessionManager(
            store=site.store,
            agents=parts.agents(agents, site),
            model=parts.model(model, site),
            trace=trace,
        )
        self.front: Front = parts.front(self.manager, site)

    def is_up(self) -> bool:
        """Tell whether it answers."""
        return self._is_up

    async def kill(self) -> None:
        """End it as ``kill -9`` does: nothing that it still does reaches anybody."""
        self._is_up = False
        self.disk.kill()
        await self._end()

    async def close(self) -> None:
        """End it in good order; turns whose clients left are cancelled."""
        self._is_up = False
        await self._end()

    async def _end(self) -> None:
        await self.site.end_tasks()
        with contextlib.suppress(KodeLabError, OSError):  # a dead disk says so
            await self.manager.aclose()
        await self.site.end_tasks()
