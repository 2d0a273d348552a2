"""Stores whose writes come apart: by halves, between other writes, or over what is there.

Like ``stores``, of which these are the ones that write a turn, or a session, in more than one step
where the real store has one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from itertools import count
from pathlib import Path
from typing import Any

from kode_lab.errors import StaleLease
from kode_lab.faults.locks import Loose
from kode_lab.faults.site import Site
from kode_lab.faults.stores import Believed, part_of
from kode_lab.key import SessionKey
from kode_lab.sessions.open_turn import Finished, OpenTurn
from kode_lab.sessions.store import Lease, Store, Stored

__all__ = [
    "CheckThenWrite",
    "Compacting",
    "InTwoWrites",
    "NewestClockWins",
    "PromptFirst",
    "Rewriting",
]

_EVERYBODY = 100_000


class InTwoWrites:
    """Writes the question, then, a while later, the answer."""

    def __init__(self, inner: Store, site: Site) -> None:
        self._inner = inner
        self._site = site

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    async def append(
        self, lease: Lease, turn: OpenTurn, entries: Sequence[dict[str, Any]]
    ) -> Finished:
        """Append one half, then the other."""
        half = await self._inner.append(lease, part_of(turn, turn.messages[:1]), [])
        await self._site.io(8)
        rest = await self._inner.append(lease, part_of(turn, turn.messages[1:]), entries)
        return rest._replace(first=half.first)


class PromptFirst:
    """Stores the question as soon as the model has been asked, the answer when it is there.

    Args:
        is_forgetful: a turn that is tried again stores its question again.
    """

    def __init__(self, inner: Believed, *, is_forgetful: bool = False) -> None:
        self._inner = inner
        self._is_forgetful = is_forgetful
        self._stored: set[str] = set()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    async def journal(self, lease: Lease, turn: OpenTurn, entry: dict[str, Any]) -> None:  # noqa: ARG002
        """Store the question, with the first step."""
        if turn.turn_id not in self._stored or (self._is_forgetful and len(turn.messages) == 2):
            self._stored.add(turn.turn_id)
            real = self._inner.real(lease)
            await self._inner.store.append(real, part_of(turn, turn.messages[:1], _asked(turn)), [])

    async def append(
        self, lease: Lease, turn: OpenTurn, entries: Sequence[dict[str, Any]]
    ) -> Finished:
        """Store the rest."""
        messages = turn.messages[1:] if turn.turn_id in self._stored else turn.messages
        real = self._inner.real(lease)
        await self._inner.store.append(real, part_of(turn, messages), entries)
        return self._inner.finished(lease, turn)


def _asked(turn: OpenTurn) -> str:
    """Name the question by itself, so that it is not taken for the turn."""
    return f"{turn.turn_id}?"


class Rewriting:
    """Writes the whole file anew at each turn, as ``open("w")`` does: first it is short."""

    def __init__(self, inner: Store, site: Site) -> None:
        self._inner = inner
        self._site = site

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    async def append(
        self, lease: Lease, turn: OpenTurn, entries: Sequence[dict[str, Any]]
    ) -> Finished:
        """Append, then write everything again in two writes."""
        finished = await self._inner.append(lease, turn, entries)
        path = self._path(lease.key)
        whole = path.read_bytes()
        path.write_bytes(whole[: len(whole) // 3])
        await self._site.io(8)
        path.write_bytes(whole)
        return finished

    def _path(self, key: SessionKey) -> Path:
        part = key.instance_part
        below = Path(key.user_part, part, part, "runtime", "messages.json")
        return self._site.root / "sessions" / below


class Compacting:
    """Writes each session anew from time to time, without holding it while it thinks."""

    def __init__(self, inner: Store, site: Site) -> None:
        self._inner = inner
        self._site = site
        self._numbers = count(1)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    async def append(
        self, lease: Lease, turn: OpenTurn, entries: Sequence[dict[str, Any]]
    ) -> Finished:
        """Append, and now and then begin to compact."""
        finished = await self._inner.append(lease, turn, entries)
        if next(self._numbers) % 3 == 0:
            self._site.spawn(self._compact(lease.key, turn))
        return finished

    async def _compact(self, key: SessionKey, turn: OpenTurn) -> None:
        messages = await self._inner.peek(key)
        await self._site.io(40)
        lease = await self._inner.hold(key, queue_limit=_EVERYBODY)
        try:
            await self._inner.load(lease)
            await self._inner.delete(lease)
            whole = part_of(turn, messages, f"compacted {next(self._numbers)}")
            await self._inner.append(lease, whole, [])
        finally:
            self._inner.release(lease)


class CheckThenWrite:
    """Lets everybody in and refuses who read an older revision; the check is not in the write."""

    def __init__(self, inner: Loose, site: Site) -> None:
        self._inner = inner
        self._site = site

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    async def append(
        self, lease: Lease, turn: OpenTurn, entries: Sequence[dict[str, Any]]
    ) -> Finished:
        """Compare revisions, and write a while later.

        Raises:
            StaleLease: somebody wrote since.
        """
        now = len(await self._inner.peek(lease.key))
        if now != self._inner.seen(lease):
            raise StaleLease(f"{lease.key}: revision {now} is newer: read it and try again")
        await self._site.io()
        return await self._inner.append(lease, turn, entries)


class NewestClockWins:
    """Refuses who read before the last write, by the clocks of processes that differ."""

    def __init__(self, inner: Loose, site: Site, skew_s: float) -> None:
        self._inner = inner
        self._site = site
        self._skew_s = skew_s * site.number
        self._read_s: dict[Lease, float] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    async def load(self, lease: Lease) -> Stored:
        """Load, and remember when that was."""
        self._read_s[lease] = self._now_s()
        return await self._inner.load(lease)

    async def append(
        self, lease: Lease, turn: OpenTurn, entries: Sequence[dict[str, Any]]
    ) -> Finished:
        """Compare times and write, in one step.

        Raises:
            StaleLease: somebody wrote since.
        """
        written_s = self._site.shared.setdefault("written", {})
        if written_s.get(lease.key, 0.0) > self._read_s[lease]:
            raise StaleLease(f"{lease.key}: it was written since it was read: try again")
        written_s[lease.key] = self._now_s()
        return await self._inner.append(lease, turn, entries)

    def _now_s(self) -> float:
        return asyncio.get_running_loop().time() + self._skew_s
