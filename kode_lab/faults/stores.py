"""Broken stores: what rests of a session, kept or told wrongly in one way each.

Each wraps the real store and breaks one promise of it; the bytes that are written are the real
store's own. Where a wrapper lies to the manager about what is stored, it also translates the
positions of messages to those that the manager believes in, so that the lie is not found out by an
index: only the judge shall find it.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Sequence
from itertools import count
from typing import Any

from kode_lab.errors import StoreUnwritable
from kode_lab.faults.site import Site
from kode_lab.key import SessionKey
from kode_lab.message import Message, user
from kode_lab.sessions.open_turn import Finished, OpenTurn
from kode_lab.sessions.store import Lease, Store, Stored

__all__ = [
    "Believed",
    "EarlyAcknowledgement",
    "Leaking",
    "Littered",
    "Swallowing",
    "Truncating",
    "WithoutRepeats",
    "part_of",
]

_EVERYBODY = 100_000


def part_of(turn: OpenTurn, messages: Sequence[Message], name: str = "") -> OpenTurn:
    """Return a turn with these messages, some of that one's."""
    part = OpenTurn(name or turn.turn_id, messages[0], turn.version)
    part.messages = list(messages)
    part.usage, part.steps = turn.usage, turn.steps
    return part


class Believed:
    """Tells the manager that it alone held a session: its residents are never stale.

    Also where other wrappers stand on: it knows how many messages the manager believes in.
    """

    def __init__(self, inner: Store, *, is_cached: bool = True) -> None:
        self.store = self._inner = inner
        self._is_cached = is_cached
        self._real: dict[Lease, Lease] = {}
        self._fences: dict[SessionKey, int] = {}
        self.lengths: dict[SessionKey, int] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    async def hold(self, key: SessionKey, *, queue_limit: int) -> Lease:
        """Hold it, under a fence that only this process has moved (by two: never cached)."""
        real = await self._inner.hold(key, queue_limit=queue_limit)
        fence = self._fences[key] = self._fences.get(key, 0) + (1 if self._is_cached else 2)
        lease = Lease(key, fence)
        self._real[lease] = real
        return lease

    def release(self, lease: Lease) -> None:
        """Release it."""
        if lease in self._real:
            self._inner.release(self._real.pop(lease))

    def real(self, lease: Lease) -> Lease:
        """Return the real store's lease."""
        return self._real[lease]

    async def load(self, lease: Lease) -> Stored:
        """Load it, and remember how much that was."""
        stored = await self._inner.load(self.real(lease))
        self.lengths[lease.key] = len(stored.messages)
        return stored

    async def journal(self, lease: Lease, turn: OpenTurn, entry: dict[str, Any]) -> None:
        """Journal it."""
        await self._inner.journal(self.real(lease), turn, entry)

    async def append(
        self, lease: Lease, turn: OpenTurn, entries: Sequence[dict[str, Any]]
    ) -> Finished:
        """Append it, and say that it stands where the manager believes."""
        await self._inner.append(self.real(lease), turn, entries)
        return self.finished(lease, turn)

    def finished(self, lease: Lease, turn: OpenTurn) -> Finished:
        """Return how the turn ended, in the manager's own positions."""
        first = self.lengths.get(lease.key, 0)
        self.lengths[lease.key] = first + len(turn.messages)
        return turn.finished(first)

    async def discard(self, lease: Lease) -> None:
        """Discard it."""
        await self._inner.discard(self.real(lease))

    async def delete(self, lease: Lease) -> None:
        """Delete it."""
        await self._inner.delete(self.real(lease))
        self.lengths.pop(lease.key, None)


class Leaking:
    """Forgets to release when the turn ended by an exception of some kind."""

    def __init__(self, inner: Store, is_forgotten: Callable[[BaseException], bool]) -> None:
        self._inner = inner
        self._is_forgotten = is_forgotten

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def release(self, lease: Lease) -> None:
        """Release it, but not after such an exception: what a missing ``finally`` would do."""
        ended_by = sys.exception()
        if ended_by is None or not self._is_forgotten(ended_by):
            self._inner.release(lease)


class EarlyAcknowledgement:
    """Says that a turn is saved, and saves it a while later."""

    def __init__(self, inner: Believed, store: Store, site: Site, most_ms: float) -> None:
        self._inner = inner
        self._store = store
        self._site = site
        self._most_ms = most_ms
        self._behind: dict[SessionKey, asyncio.Task[Any]] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    async def load(self, lease: Lease) -> Stored:
        """Return what is saved; the manager asks only for what it does not know."""
        stored = await self._inner.load(lease)
        return stored._replace(open=None)

    async def journal(self, lease: Lease, turn: OpenTurn, entry: dict[str, Any]) -> None:
        """Save no steps."""

    async def append(
        self, lease: Lease, turn: OpenTurn, entries: Sequence[dict[str, Any]]
    ) -> Finished:
        """Put it behind what is to be saved."""
        before = self._behind.get(lease.key)
        self._behind[lease.key] = self._site.spawn(
            self._save(lease.key, part_of(turn, turn.messages), entries, before)
        )
        return self._inner.finished(lease, turn)

    async def _save(
        self,
        key: SessionKey,
        turn: OpenTurn,
        entries: Sequence[dict[str, Any]],
        before: asyncio.Task[Any] | None,
    ) -> None:
        if before is not None:
            await before
        await self._site.io(self._most_ms)
        lease = await self._store.hold(key, queue_limit=_EVERYBODY)
        try:
            await self._store.append(lease, turn, entries)
        finally:
            self._store.release(lease)

    async def peek(self, key: SessionKey) -> list[Message]:
        """Read what will be saved."""
        if (behind := self._behind.get(key)) is not None:
            await asyncio.wait((behind,))
        return await self._store.peek(key)


class Swallowing:
    """Goes on as if nothing had happened when the disk is full."""

    def __init__(self, inner: Believed) -> None:
        self._inner = inner

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    async def journal(self, lease: Lease, turn: OpenTurn, entry: dict[str, Any]) -> None:
        """Try to save the step."""
        try:
            await self._inner.journal(lease, turn, entry)
        except StoreUnwritable:
            return

    async def append(
        self, lease: Lease, turn: OpenTurn, entries: Sequence[dict[str, Any]]
    ) -> Finished:
        """Try to append."""
        try:
            return await self._inner.append(lease, turn, entries)
        except StoreUnwritable:
            return self._inner.finished(lease, turn)


class Truncating:
    """Keeps the newest turns only, so that the file stays small."""

    def __init__(self, inner: Believed, limit: int) -> None:
        self._inner = inner
        self._limit = limit
        self._numbers = count(1)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    async def append(
        self, lease: Lease, turn: OpenTurn, entries: Sequence[dict[str, Any]]
    ) -> Finished:
        """Append, then write the end of the conversation anew."""
        finished = await self._inner.append(lease, turn, entries)
        messages = (await self._inner.load(lease)).messages
        if len(messages) > self._limit:
            kept = messages[-self._limit :]
            await self._inner.delete(lease)
            await self._inner.append(lease, part_of(turn, kept, f"kept {next(self._numbers)}"), [])
        return finished


class Littered:
    """Keeps what a refused turn left behind."""

    def __init__(self, inner: Store) -> None:
        self._inner = inner
        self._numbers = count(1)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    async def litter(self, key: SessionKey, prompt: str) -> None:
        """Store the question of a turn that will never be answered."""
        lease = await self._inner.hold(key, queue_limit=_EVERYBODY)
        try:
            await self._inner.load(lease)
            await self._inner.append(
                lease, OpenTurn(f"left {next(self._numbers)}", user(prompt), ""), []
            )
        finally:
            self._inner.release(lease)


class WithoutRepeats:
    """Takes a question with the words of the last one for the same one, sent twice."""

    def __init__(self, inner: Believed) -> None:
        self._inner = inner
        self._last: dict[SessionKey, str] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    async def append(
        self, lease: Lease, turn: OpenTurn, entries: Sequence[dict[str, Any]]
    ) -> Finished:
        """Append what is not a repetition."""
        words = turn.messages[0]["content"][0]["text"].partition("#")[0]
        is_repeated = self._last.get(lease.key) == words
        self._last[lease.key] = "" if is_repeated else words
        if is_repeated:
            await self._inner.discard(lease)
            return self._inner.finished(lease, turn)
        return await self._inner.append(lease, turn, entries)
