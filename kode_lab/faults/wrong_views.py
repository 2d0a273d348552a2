"""Stores that show the wrong thing: another's session, an old one, or one in a wrong order.

What is written is right, or would be if it were found again under the same name and in the same
order. Like ``stores``, whose rule on positions holds here too.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

from kode_lab.faults.site import Site
from kode_lab.faults.stores import Believed
from kode_lab.history.operation import markers_in
from kode_lab.key import SessionKey
from kode_lab.message import Message
from kode_lab.sessions.open_turn import Finished, OpenTurn
from kode_lab.sessions.store import Lease, Store, Stored

__all__ = ["Lagging", "Renamed", "SharedDefault", "SkewedOrder", "Undeleted"]


class Renamed:
    """Stores each session under another name, which two sessions may share."""

    def __init__(self, inner: Store, name_of: Callable[[SessionKey], SessionKey]) -> None:
        self._inner = inner
        self._name_of = name_of
        self._real: dict[Lease, Lease] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    async def hold(self, key: SessionKey, *, queue_limit: int) -> Lease:
        """Hold what the key is called here."""
        real = await self._inner.hold(self._name_of(key), queue_limit=queue_limit)
        lease = Lease(key, real.fence)
        self._real[lease] = real
        return lease

    def release(self, lease: Lease) -> None:
        """Release it."""
        if lease in self._real:
            self._inner.release(self._real.pop(lease))

    async def load(self, lease: Lease) -> Stored:
        """Load it."""
        return await self._inner.load(self._real[lease])

    async def journal(self, lease: Lease, turn: OpenTurn, entry: dict[str, Any]) -> None:
        """Journal there."""
        await self._inner.journal(self._real[lease], turn, entry)

    async def append(
        self, lease: Lease, turn: OpenTurn, entries: Sequence[dict[str, Any]]
    ) -> Finished:
        """Append there."""
        return await self._inner.append(self._real[lease], turn, entries)

    async def discard(self, lease: Lease) -> None:
        """Discard there."""
        await self._inner.discard(self._real[lease])

    async def delete(self, lease: Lease) -> None:
        """Delete there."""
        await self._inner.delete(self._real[lease])

    async def peek(self, key: SessionKey) -> list[Message]:
        """Read there."""
        return await self._inner.peek(self._name_of(key))


class SharedDefault:
    """New sessions begin with an empty list, which is one and the same for all of them."""

    def __init__(self, inner: Store) -> None:
        # Loaded at each turn, or an agent in memory would not see what the others add.
        self._inner = Believed(inner, is_cached=False)
        self._shared: list[Message] = []
        # The turns of each session that uses the list.
        self._turns: dict[SessionKey, dict[str, Finished]] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    async def load(self, lease: Lease) -> Stored:
        """Return what is stored of the session, or the list that all new sessions use."""
        stored = await self._inner.load(lease)
        if stored.messages and lease.key not in self._turns:
            return stored
        turns = self._turns.setdefault(lease.key, {})
        self._inner.lengths[lease.key] = len(self._shared)
        return stored._replace(messages=self._shared, finished=dict(turns))

    async def append(
        self, lease: Lease, turn: OpenTurn, entries: Sequence[dict[str, Any]]
    ) -> Finished:
        """Append, to the list that all share as well."""
        finished = await self._inner.append(lease, turn, entries)
        if lease.key in self._turns:
            self._shared.extend(turn.messages)
            self._turns[lease.key][finished.turn_id] = finished
        return finished


class SkewedOrder:
    """Sorts a session's turns by the time of the clock of the process that wrote them."""

    def __init__(self, inner: Believed, site: Site, skew_s: float) -> None:
        self._inner = inner
        self._site = site
        self._skew_s = skew_s * site.number

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    async def load(self, lease: Lease) -> Stored:
        """Return the turns in the order of their stamps."""
        stored = await self._inner.load(lease)
        return stored._replace(messages=self._sorted(stored.messages))

    async def append(
        self, lease: Lease, turn: OpenTurn, entries: Sequence[dict[str, Any]]
    ) -> Finished:
        """Append it under this process's time."""
        stamps = self._site.shared.setdefault("stamps", {})
        stamps[_marker(turn.messages[0])] = asyncio.get_running_loop().time() + self._skew_s
        return await self._inner.append(lease, turn, entries)

    async def peek(self, key: SessionKey) -> list[Message]:
        """Read in the order of the stamps."""
        return self._sorted(await self._inner.peek(key))

    def _sorted(self, messages: Sequence[Message]) -> list[Message]:
        stamps = self._site.shared.get("stamps", {})
        turns: list[list[Message]] = []
        for message in messages:
            if message["role"] == "user" and message["content"][0]["type"] == "text":
                turns.append([])
            turns[-1].append(message)
        turns.sort(key=lambda turn: stamps.get(_marker(turn[0]), 0.0))
        return [message for turn in turns for message in turn]


def _marker(prompt: Message) -> str:
    return next(iter(markers_in(prompt["content"][0]["text"])), "")


class Lagging:
    """Reads from a copy that follows a while later."""

    def __init__(self, inner: Store, site: Site, most_ms: float) -> None:
        self._inner = inner
        self._site = site
        self._most_ms = most_ms

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    async def append(
        self, lease: Lease, turn: OpenTurn, entries: Sequence[dict[str, Any]]
    ) -> Finished:
        """Append, and let the copy follow."""
        finished = await self._inner.append(lease, turn, entries)
        self._site.spawn(self._follow(lease.key, await self._inner.peek(lease.key)))
        return finished

    async def _follow(self, key: SessionKey, messages: list[Message]) -> None:
        await self._site.io(self._most_ms)
        copies = self._site.shared.setdefault("copies", {})
        if len(messages) > len(copies.get(key, ())):
            copies[key] = messages

    async def peek(self, key: SessionKey) -> list[Message]:
        """Read the copy."""
        return list(self._site.shared.get("copies", {}).get(key, ()))


class Undeleted:
    """Hides a deleted session until it is used again."""

    def __init__(self, inner: Store) -> None:
        self._inner = inner
        self._hidden: set[SessionKey] = set()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    async def delete(self, lease: Lease) -> None:
        """Hide it."""
        self._hidden.add(lease.key)

    async def append(
        self, lease: Lease, turn: OpenTurn, entries: Sequence[dict[str, Any]]
    ) -> Finished:
        """Append, which makes the session one that is used."""
        self._hidden.discard(lease.key)
        return await self._inner.append(lease, turn, entries)

    async def peek(self, key: SessionKey) -> list[Message]:
        """Show nothing of a hidden one."""
        return [] if key in self._hidden else await self._inner.peek(key)
