"""Broken locks: who is let into a session, and when, decided wrongly in one way each.

A *gate* stands where the store's lock should. ``Gated`` puts one in front of the real store, which
goes on guarding itself: a gate can then only be too coarse, or unfair. ``Loose`` holds the real
lease for the moment of each call and leaves everything between the calls to the gate: what a
service does that has its lock beside its store instead of in it. Nothing here writes a file.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from itertools import count
from typing import Any, Protocol

from kode_lab.faults.site import Site
from kode_lab.key import SessionKey
from kode_lab.sessions.lock import KeyedLock
from kode_lab.sessions.open_turn import Finished, OpenTurn
from kode_lab.sessions.store import Lease, Store, Stored

__all__ = [
    "EarlyRelease",
    "EvictingGate",
    "ExpiringGate",
    "Gate",
    "Gated",
    "LastInFirstOut",
    "LockGate",
    "Loose",
    "OpenGate",
    "TwiceMadeGate",
]

# No caller is refused during one call.
_EVERYBODY = 100_000


class Gate(Protocol):
    """Lets turns into sessions."""

    async def hold(self, key: SessionKey, queue_limit: int) -> Any:
        """Wait for one's turn; give what ``release`` takes."""
        ...

    def release(self, held: Any) -> None:
        """Let the next one in."""
        ...


class OpenGate:
    """Lets everybody in at once."""

    async def hold(self, key: SessionKey, queue_limit: int) -> None:
        """Do not wait."""

    def release(self, held: None) -> None:
        """Wait for nothing."""


class LockGate:
    """The real keyed lock, of this process alone, under a name of one's choice."""

    def __init__(self, name_of: Callable[[SessionKey], Any]) -> None:
        self._lock: KeyedLock[Any] = KeyedLock()
        self._name_of = name_of

    async def hold(self, key: SessionKey, queue_limit: int) -> Any:
        """Wait for everyone who asked for this name before."""
        name = self._name_of(key)
        await self._lock.hold(name, queue_limit=queue_limit)
        return name

    def release(self, held: Any) -> None:
        """Hand over to the oldest waiter."""
        self._lock.release(held)


class ExpiringGate:
    """A lock whose holder loses it after a time, without being told."""

    def __init__(self, lease_s: float) -> None:
        self._lock: KeyedLock[SessionKey] = KeyedLock()
        self._lease_s = lease_s

    async def hold(self, key: SessionKey, queue_limit: int) -> list[Any]:
        """Wait, then hold for so long at most."""
        await self._lock.hold(key, queue_limit=queue_limit)
        held: list[Any] = [key]
        loop = asyncio.get_running_loop()
        held.append(loop.call_later(self._lease_s, self._expire, held))
        return held

    def _expire(self, held: list[Any]) -> None:
        self._lock.release(held[0])
        held.clear()

    def release(self, held: list[Any]) -> None:
        """Return up what did not expire yet."""
        if held:
            held[1].cancel()
            self._expire(held)


class LastInFirstOut:
    """A lock that serves the newest waiter first."""

    def __init__(self) -> None:
        self._stacks: dict[SessionKey, list[asyncio.Future[None]]] = {}

    async def hold(self, key: SessionKey, queue_limit: int) -> SessionKey:  # noqa: ARG002
        """Wait on top of everyone who waits already."""
        stack = self._stacks.get(key)
        if stack is None:
            self._stacks[key] = []
            return key
        turn = asyncio.get_running_loop().create_future()
        stack.append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self.release(key)
            raise
        return key

    def release(self, held: SessionKey) -> None:
        """Let the newest waiter in."""
        stack = self._stacks[held]
        while stack:
            turn = stack.pop()
            if not turn.done():
                turn.set_result(None)
                return
        del self._stacks[held]


class TwiceMadeGate:
    """Each session's agent brings its own lock; it is made when missing: check, wait, then act."""

    def __init__(self, site: Site) -> None:
        self._site = site
        self._agents: dict[SessionKey, asyncio.Lock] = {}

    async def hold(self, key: SessionKey, queue_limit: int) -> asyncio.Lock:  # noqa: ARG002
        """Hold the lock of the agent, which two may make at once."""
        if key not in self._agents:
            await self._site.io()  # its configuration is read
            self._agents[key] = asyncio.Lock()
        lock = self._agents[key]
        await lock.acquire()
        return lock

    def release(self, held: asyncio.Lock) -> None:
        """Free the agent."""
        held.release()


class EvictingGate:
    """Agents bring their locks, and only so many stay: the oldest goes, at work or not."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._agents: dict[SessionKey, asyncio.Lock] = {}

    async def hold(self, key: SessionKey, queue_limit: int) -> asyncio.Lock:  # noqa: ARG002
        """Hold the lock of the agent; an evicted one is made anew."""
        lock = self._agents.setdefault(key, asyncio.Lock())
        while len(self._agents) > self._limit:
            del self._agents[next(iter(self._agents))]
        await lock.acquire()
        return lock

    def release(self, held: asyncio.Lock) -> None:
        """Free the agent."""
        held.release()


class Gated:
    """The real store behind one more gate."""

    def __init__(self, inner: Store, gate: Gate) -> None:
        self._inner = inner
        self._gate = gate
        self._held: dict[Lease, Any] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    async def hold(self, key: SessionKey, *, queue_limit: int) -> Lease:
        """Pass the gate, then hold."""
        held = await self._gate.hold(key, queue_limit)
        try:
            lease = await self._inner.hold(key, queue_limit=queue_limit)
        except BaseException:
            self._gate.release(held)
            raise
        self._held[lease] = held
        return lease

    def release(self, lease: Lease) -> None:
        """Release, then open the gate."""
        self._inner.release(lease)
        if lease in self._held:
            self._gate.release(self._held.pop(lease))


class Loose:
    """A store that holds the session for each call and not for the turn; a gate keeps order."""

    def __init__(self, inner: Store, gate: Gate) -> None:
        self._inner = inner
        self._gate = gate
        self._held: dict[Lease, Any] = {}
        # How long the conversation was that each holder was given.
        self._views: dict[Lease, int] = {}
        # Never the predecessor of the next one: no resident is taken for good.
        self._fences = count(2, 2)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    async def hold(self, key: SessionKey, *, queue_limit: int) -> Lease:
        """Pass the gate; the session itself is not held."""
        held = await self._gate.hold(key, queue_limit)
        lease = Lease(key, next(self._fences))
        self._held[lease] = held
        return lease

    def release(self, lease: Lease) -> None:
        """Open the gate."""
        if lease in self._held:
            self._gate.release(self._held.pop(lease))

    async def load(self, lease: Lease) -> Stored:
        """Return what rests of the session at this moment."""
        async with self.moment(lease.key) as real:
            stored = await self._inner.load(real)
        self._views[lease] = len(stored.messages)
        return stored._replace(open=None)

    def seen(self, lease: Lease) -> int:
        """Return how many messages the holder was given."""
        return self._views[lease]

    async def journal(self, lease: Lease, turn: OpenTurn, entry: dict[str, Any]) -> None:
        """Keep no journal: it would be another's turn that is open."""

    async def append(
        self, lease: Lease, turn: OpenTurn, entries: Sequence[dict[str, Any]]
    ) -> Finished:
        """Append to what is there now, whatever the holder was given."""
        async with self.moment(lease.key) as real:
            finished = await self._inner.append(real, turn, entries)
        first = self._views[lease]
        return finished._replace(first=first, last=first + len(turn.messages) - 1)

    async def discard(self, lease: Lease) -> None:
        """Nothing was journalled."""

    async def delete(self, lease: Lease) -> None:
        """Forget the conversation."""
        async with self.moment(lease.key) as real:
            await self._inner.delete(real)

    @asynccontextmanager
    async def moment(self, key: SessionKey) -> AsyncIterator[Lease]:
        """Hold the real session for one call."""
        real = await self._inner.hold(key, queue_limit=_EVERYBODY)
        try:
            yield real
        finally:
            self._inner.release(real)


class EarlyRelease:
    """Releases the lock when the reply is there, and writes after that."""

    def __init__(self, inner: Loose, site: Site) -> None:
        self._inner = inner
        self._site = site

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    async def append(
        self, lease: Lease, turn: OpenTurn, entries: Sequence[dict[str, Any]]
    ) -> Finished:
        """Let the next one in, then write."""
        self._inner.release(lease)
        await self._site.io()
        return await self._inner.append(lease, turn, entries)
