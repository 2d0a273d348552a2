"""Locks that are wrong in one way each: who is let into a session, and when.

A *gate* stands where the store's lock should: an async function that waits, lets its caller in, and
returns what lets the next one in. ``gated`` puts one in front of the real store, which goes on
guarding itself, so a gate can then only be too coarse or unfair. ``Loose`` holds the real lease for
the moment of each call and leaves all between the calls to the gate: a lock beside the store.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from itertools import count
from typing import Any, TypeAlias

from kode_lab.faults.site import Altered, Site
from kode_lab.key import SessionKey
from kode_lab.sessions.lock import KeyedLock
from kode_lab.sessions.open_turn import Finished, OpenTurn
from kode_lab.sessions.store import Lease, Stored

__all__ = [
    "Gate",
    "Loose",
    "evicting_gate",
    "expiring_gate",
    "gated",
    "last_in_first_out",
    "lock_gate",
    "loose",
    "open_gate",
    "releasing_early",
    "twice_made",
]

Gate: TypeAlias = Callable[[SessionKey, int], Awaitable[Callable[[], object]]]

# No caller is refused during one call.
_QUEUE_LIMIT = 100_000


async def open_gate(_key: SessionKey, _queue_limit: int) -> Callable[[], object]:
    """Let everybody in at once."""
    return lambda: None


def lock_gate(name_of: Callable[[SessionKey], Any] = lambda key: key) -> Gate:
    """Return the real keyed lock, of this process alone, under a name of one's choice."""
    lock: KeyedLock[Any] = KeyedLock()

    async def gate(key: SessionKey, queue_limit: int) -> Callable[[], object]:
        name = name_of(key)
        await lock.hold(name, queue_limit=queue_limit)
        return partial(lock.release, name)

    return gate


def expiring_gate(lease_s: float) -> Gate:
    """Return a lock whose holder loses it after a time, without being told."""
    lock: KeyedLock[SessionKey] = KeyedLock()

    async def gate(key: SessionKey, queue_limit: int) -> Callable[[], object]:
        await lock.hold(key, queue_limit=queue_limit)
        timers: list[asyncio.TimerHandle] = []

        def release() -> None:
            if timers:
                timers.pop().cancel()
                lock.release(key)

        timers.append(asyncio.get_running_loop().call_later(lease_s, release))
        return release

    return gate


def last_in_first_out() -> Gate:
    """Return a lock that serves the newest waiter first."""
    stacks: dict[SessionKey, list[asyncio.Future[None]]] = {}

    def release(key: SessionKey) -> None:
        while stacks[key]:
            turn = stacks[key].pop()
            if not turn.done():
                turn.set_result(None)
                return
        del stacks[key]

    async def gate(key: SessionKey, _queue_limit: int) -> Callable[[], object]:
        if key not in stacks:
            stacks[key] = []
            return partial(release, key)
        turn = asyncio.get_running_loop().create_future()
        stacks[key].append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                release(key)
            raise
        return partial(release, key)

    return gate


def twice_made(store: Any, site: Site) -> Loose:
    """Let each session's agent bring its lock; it is made when missing: check, wait, then act."""
    agents: dict[SessionKey, asyncio.Lock] = {}

    async def gate(key: SessionKey, _queue_limit: int) -> Callable[[], object]:
        if key not in agents:
            await site.io()  # its configuration is read
            agents[key] = asyncio.Lock()
        lock = agents[key]
        await lock.acquire()
        return lock.release

    return Loose(store, gate)


def evicting_gate(limit: int) -> Gate:
    """Return locks that agents bring; only so many stay, and the oldest goes even if it is held."""
    agents: dict[SessionKey, asyncio.Lock] = {}

    async def gate(key: SessionKey, _queue_limit: int) -> Callable[[], object]:
        lock = agents.setdefault(key, asyncio.Lock())
        while len(agents) > limit:
            del agents[next(iter(agents))]
        await lock.acquire()
        return lock.release

    return gate


def gated(make_gate: Callable[[], Gate]) -> Callable[[Any, Site], Altered]:
    """Put one more gate before the real store."""

    def wrap(store: Any, _site: Site) -> Altered:
        gate = make_gate()
        held: dict[Lease, Callable[[], object]] = {}

        async def hold(key: SessionKey, *, queue_limit: int) -> Lease:
            let_go = await gate(key, queue_limit)
            try:
                lease: Lease = await store.hold(key, queue_limit=queue_limit)
            except BaseException:
                let_go()
                raise
            held[lease] = let_go
            return lease

        def release(lease: Lease) -> None:
            store.release(lease)
            if lease in held:
                held.pop(lease)()

        return Altered(store, hold=hold, release=release)

    return wrap


def loose(make_gate: Callable[[], Gate]) -> Callable[[Any, Site], Loose]:
    """Leave the order of turns to a gate beside the store."""
    return lambda store, _site: Loose(store, make_gate())


def releasing_early(store: Any, site: Site) -> Altered:
    """Release the lock when the reply is there, and write after that."""
    inner = Loose(store, lock_gate())

    async def append(lease: Lease, turn: OpenTurn, entries: Sequence[dict[str, Any]]) -> Finished:
        inner.release(lease)
        await site.io()
        return await inner.append(lease, turn, entries)

    return Altered(inner, append=append)


class Loose:
    """A store that holds the session for each call and not for the turn; a gate keeps order."""

    def __init__(self, inner: Any, gate: Gate) -> None:
        self._inner = inner
        self._gate = gate
        self._held: dict[Lease, Callable[[], object]] = {}
        # How long the conversation was that each holder was given.
        self._views: dict[Lease, int] = {}
        # Never the predecessor of the next one: no resident is taken for good.
        self._fences = count(2, 2)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    async def hold(self, key: SessionKey, *, queue_limit: int) -> Lease:
        """Pass the gate; the session itself is not held."""
        let_go = await self._gate(key, queue_limit)
        lease = Lease(key, next(self._fences))
        self._held[lease] = let_go
        return lease

    def release(self, lease: Lease) -> None:
        """Open the gate."""
        if lease in self._held:
            self._held.pop(lease)()

    async def load(self, lease: Lease) -> Stored:
        """Return what rests of the session at this moment."""
        async with self._moment(lease.key) as real:
            stored: Stored = await self._inner.load(real)
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
        async with self._moment(lease.key) as real:
            finished: Finished = await self._inner.append(real, turn, entries)
        first = self._views[lease]
        return finished._replace(first=first, last=first + len(turn.messages) - 1)

    async def discard(self, lease: Lease) -> None:
        """Nothing was journalled."""

    async def delete(self, lease: Lease) -> None:
        """Forget the conversation."""
        async with self._moment(lease.key) as real:
            await self._inner.delete(real)

    @asynccontextmanager
    async def _moment(self, key: SessionKey) -> AsyncIterator[Lease]:
        """Hold the real session for one call."""
        real = await self._inner.hold(key, queue_limit=_QUEUE_LIMIT)
        try:
            yield real
        finally:
            self._inner.release(real)
