"""The real store as if each of its calls were I/O: it takes a while, and others run meanwhile.

The embedded store writes within one pass of the loop; one that asks a database does not. Waiting
before and after each call makes a schedule of what would otherwise be one step, and breaks no
promise: so it is part of every scenario, right or wrong.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from kode_lab.key import SessionKey
from kode_lab.message import Message
from kode_lab.sessions.open_turn import Finished, OpenTurn
from kode_lab.sessions.store import Lease, Store, Stored

__all__ = ["SlowStore"]


class SlowStore:
    """A store whose calls take the time that ``io`` takes."""

    def __init__(self, inner: Store, io: Callable[[], Awaitable[None]]) -> None:
        self._inner = inner
        self._io = io

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    async def load(self, lease: Lease) -> Stored:
        """Load, after a while."""
        await self._io()
        return await self._inner.load(lease)

    async def journal(self, lease: Lease, turn: OpenTurn, entry: dict[str, Any]) -> None:
        """Save the step, and hear of it a while later."""
        await self._inner.journal(lease, turn, entry)
        await self._io()

    async def append(
        self, lease: Lease, turn: OpenTurn, entries: Sequence[dict[str, Any]]
    ) -> Finished:
        """Append after a while, and hear of it a while later."""
        await self._io()
        finished = await self._inner.append(lease, turn, entries)
        await self._io()
        return finished

    async def peek(self, key: SessionKey) -> list[Message]:
        """Read, and have it a while later."""
        messages = await self._inner.peek(key)
        await self._io()
        return messages
