"""Broken fronts: what stands between a client and the manager, wrong in one way each.

A front takes turns as the manager does. These forget a turn's name, answer before there is an
answer, or go on working for somebody who was told that it is over.
"""

from __future__ import annotations

import asyncio
from itertools import count
from typing import Any

from kode_lab.errors import DeadlineExceeded, Refused
from kode_lab.faults.site import Front, Site
from kode_lab.key import SessionKey
from kode_lab.message import Usage
from kode_lab.sessions import TurnReply
from kode_lab.sessions.lock import KeyedLock

__all__ = [
    "AcknowledgedOnEnqueue",
    "GoesOn",
    "LeavesMessage",
    "Nameless",
    "SameSession",
    "SaysWhole",
]

_QUEUE_LIMIT = 1_000


class Nameless:
    """Takes each attempt at a turn for a new turn."""

    def __init__(self, inner: Front) -> None:
        self._inner = inner
        self._numbers = count(1)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    async def turn(
        self, key: SessionKey, prompt: str, *, turn_id: str | None, **how: Any
    ) -> TurnReply:
        """Take it under a name of its own."""
        name = f"{turn_id}, {next(self._numbers)}"
        return await self._inner.turn(key, prompt, turn_id=name, **how)


class SaysWhole:
    """Tells its client that every reply is whole."""

    def __init__(self, inner: Front) -> None:
        self._inner = inner

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    async def turn(
        self, key: SessionKey, prompt: str, *, turn_id: str | None, **how: Any
    ) -> TurnReply:
        """Take it, and leave out why its reply ended."""
        reply = await self._inner.turn(key, prompt, turn_id=turn_id, **how)
        return reply._replace(stop_reason="end_turn")


class GoesOn:
    """Has the lock itself, and gives it up when the time is up; the work goes on."""

    def __init__(self, inner: Front, site: Site) -> None:
        self._inner = inner
        self._site = site
        self._lock: KeyedLock[SessionKey] = KeyedLock()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    async def turn(
        self,
        key: SessionKey,
        prompt: str,
        *,
        turn_id: str | None,
        deadline_s: float | None,
        **how: Any,
    ) -> TurnReply:
        """Take it, and answer within its time.

        Raises:
            DeadlineExceeded: its time was up.
        """
        await self._lock.hold(key, queue_limit=_QUEUE_LIMIT)
        try:
            work = self._site.spawn(
                self._inner.turn(key, prompt, turn_id=turn_id, deadline_s=None, **how)
            )
            done, _ = await asyncio.wait((work,), timeout=deadline_s)
            if not done:
                raise DeadlineExceeded(f"{key}: no reply within {deadline_s} s")
            reply: TurnReply = work.result()
            return reply
        finally:
            self._lock.release(key)


class AcknowledgedOnEnqueue:
    """Says yes at once, and lets several workers do it in whatever order they come to it."""

    def __init__(self, inner: Front, site: Site) -> None:
        self._inner = inner
        self._site = site

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    async def turn(
        self, key: SessionKey, prompt: str, *, turn_id: str | None, **how: Any
    ) -> TurnReply:
        """Put it in the queue."""
        self._site.spawn(self._work(key, prompt, turn_id, how))
        return TurnReply(turn_id or "", "accepted", (), Usage(), "", is_replay=False)

    async def _work(
        self, key: SessionKey, prompt: str, turn_id: str | None, how: dict[str, Any]
    ) -> None:
        await self._site.io(15)
        await self._inner.turn(key, prompt, turn_id=turn_id, **how)


class LeavesMessage:
    """Stores the question before it looks whether the turn is accepted."""

    def __init__(self, inner: Front, site: Site) -> None:
        self._inner = inner
        self._site = site

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    async def turn(self, key: SessionKey, prompt: str, **how: Any) -> TurnReply:
        """Take it.

        Raises:
            Refused: it was not accepted, but its question stays.
        """
        try:
            return await self._inner.turn(key, prompt, **how)
        except Refused:
            self._site.spawn(self._site.store.litter(key, prompt))
            raise


class SameSession:
    """Lets a sub-agent speak in the session of the turn that waits for it."""

    def __init__(self, inner: Front) -> None:
        self._inner = inner

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def sub_session(self, key: SessionKey) -> SessionKey:
        """Return the very session."""
        return key
