"""Stores that break one promise each: about what rests, when it is written, or what is shown.

Each function takes a store and its site, and returns the store with some methods replaced; the
bytes are the real store's own. Where a wrapper lies to the manager about what is stored, it also
translates the positions of messages to those that the manager believes in: only the judge shall
find the lie, not an index out of range.
"""

from __future__ import annotations

import asyncio
import sys
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any, TypeAlias

from kode_lab.errors import StaleLease, StoreUnwritable
from kode_lab.faults.locks import Loose, open_gate
from kode_lab.faults.site import Altered, Site
from kode_lab.history.operation import markers_in
from kode_lab.key import SessionKey
from kode_lab.message import Message, user
from kode_lab.sessions.open_turn import Finished, OpenTurn
from kode_lab.sessions.store import Lease, Stored

__all__ = [
    "Believed",
    "acknowledging_early",
    "believed",
    "checking_before_writing",
    "compacting",
    "forgetting_to_release",
    "forking_short",
    "in_two_writes",
    "lagging",
    "littered",
    "newest_clock_wins",
    "prompt_first",
    "renaming",
    "rewriting",
    "sharing_a_default",
    "sorted_by_clock",
    "swallowing",
    "truncating",
    "undeleting",
    "unsynced",
    "without_repeats",
    "writing_memories_back",
]

Entries: TypeAlias = Sequence[dict[str, Any]]

_QUEUE_LIMIT = 100_000


def _part_of(turn: OpenTurn, messages: Sequence[Message], name: str = "") -> OpenTurn:
    """Return a turn with these messages, some of that one's."""
    part = OpenTurn(name or turn.turn_id, messages[0], turn.version)
    part.messages = list(messages)
    part.usage, part.steps = turn.usage, turn.steps
    return part


@asynccontextmanager
async def _held(store: Any, key: SessionKey) -> AsyncIterator[Lease]:
    lease = await store.hold(key, queue_limit=_QUEUE_LIMIT)
    try:
        yield lease
    finally:
        store.release(lease)


class Believed:
    """Tells the manager that it alone held a session: its residents are never stale.

    Other wrappers build on it: it knows how many messages the manager believes in.
    """

    def __init__(self, inner: Any, *, is_cached: bool = True) -> None:
        self.store = self._inner = inner
        self._step = 1 if is_cached else 2
        self._real: dict[Lease, Lease] = {}
        self._fences: dict[SessionKey, int] = defaultdict(int)
        self.lengths: dict[SessionKey, int] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    async def hold(self, key: SessionKey, *, queue_limit: int) -> Lease:
        """Hold it, under a fence that only this process has moved (by two: never cached)."""
        real = await self._inner.hold(key, queue_limit=queue_limit)
        self._fences[key] += self._step
        lease = Lease(key, self._fences[key])
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
        stored: Stored = await self._inner.load(self.real(lease))
        self.lengths[lease.key] = len(stored.messages)
        return stored

    async def journal(self, lease: Lease, turn: OpenTurn, entry: dict[str, Any]) -> None:
        """Journal it."""
        await self._inner.journal(self.real(lease), turn, entry)

    async def append(self, lease: Lease, turn: OpenTurn, entries: Entries) -> Finished:
        """Append it, and return the place where the manager believes it to be."""
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


def believed(store: Any, _site: Site) -> Believed:
    """Trust the residents of this process, though another one may have written since."""
    return Believed(store)


def forgetting_to_release(kind: type[BaseException]) -> Callable[[Any, Site], Altered]:
    """Keep the lock when a turn ends by such an exception: what a missing ``finally`` does."""

    def wrap(store: Any, _site: Site) -> Altered:
        def release(lease: Lease) -> None:
            if not isinstance(sys.exception(), kind):
                store.release(lease)

        return Altered(store, release=release)

    return wrap


def acknowledging_early(store: Any, site: Site) -> Altered:
    """Report that a turn is saved, and save it a while later."""
    inner = Believed(store)
    behind: dict[SessionKey, asyncio.Task[Any]] = {}

    async def load(lease: Lease) -> Stored:
        return (await inner.load(lease))._replace(open=None)

    async def journal(_lease: Lease, _turn: OpenTurn, _entry: dict[str, Any]) -> None:
        """Save no steps."""

    async def append(lease: Lease, turn: OpenTurn, entries: Entries) -> Finished:
        whole = _part_of(turn, turn.messages)
        behind[lease.key] = site.spawn(save(lease.key, whole, entries, behind.get(lease.key)))
        return inner.finished(lease, turn)

    async def save(
        key: SessionKey, turn: OpenTurn, entries: Entries, before: asyncio.Task[Any] | None
    ) -> None:
        if before is not None:
            await before
        await site.io(30)
        async with _held(store, key) as lease:
            await store.append(lease, turn, entries)

    async def peek(key: SessionKey) -> list[Message]:
        if key in behind:
            await asyncio.wait((behind[key],))
        messages: list[Message] = await store.peek(key)
        return messages

    return Altered(inner, load=load, journal=journal, append=append, peek=peek)


def swallowing(store: Any, _site: Site) -> Altered:
    """Go on as if nothing had happened when the disk is full."""
    inner = Believed(store)

    async def journal(lease: Lease, turn: OpenTurn, entry: dict[str, Any]) -> None:
        try:
            await inner.journal(lease, turn, entry)
        except StoreUnwritable:
            return

    async def append(lease: Lease, turn: OpenTurn, entries: Entries) -> Finished:
        try:
            return await inner.append(lease, turn, entries)
        except StoreUnwritable:
            return inner.finished(lease, turn)

    return Altered(inner, journal=journal, append=append)


def truncating(store: Any, _site: Site, *, limit: int = 12) -> Altered:
    """Keep the newest messages only, so that the file stays small."""
    inner, numbers = Believed(store, is_cached=False), count(1)

    async def append(lease: Lease, turn: OpenTurn, entries: Entries) -> Finished:
        finished = await inner.append(lease, turn, entries)
        messages = (await inner.load(lease)).messages
        if len(messages) > limit:
            await inner.delete(lease)
            kept = _part_of(turn, messages[-limit:], f"kept {next(numbers)}")
            await inner.append(lease, kept, [])
        return finished

    return Altered(inner, append=append)


def littered(store: Any, _site: Site) -> Altered:
    """Give fronts a way to store the question of a turn that is then refused."""
    numbers = count(1)

    async def litter(key: SessionKey, prompt: str) -> None:
        async with _held(store, key) as lease:
            await store.load(lease)
            await store.append(lease, OpenTurn(f"left {next(numbers)}", user(prompt), ""), [])

    return Altered(store, litter=litter)


def without_repeats(store: Any, _site: Site) -> Altered:
    """Take a question with the words of the last one for the same one, sent twice."""
    inner = Believed(store, is_cached=False)
    last: dict[SessionKey, str] = {}

    async def append(lease: Lease, turn: OpenTurn, entries: Entries) -> Finished:
        words = turn.messages[0]["content"][0]["text"].partition("#")[0]
        is_repeated = last.get(lease.key) == words
        last[lease.key] = "" if is_repeated else words
        if is_repeated:
            await inner.discard(lease)
            return inner.finished(lease, turn)
        return await inner.append(lease, turn, entries)

    return Altered(inner, append=append)


# ---- writes that come apart


def in_two_writes(store: Any, site: Site) -> Altered:
    """Write the question, then, a while later, the answer."""

    async def append(lease: Lease, turn: OpenTurn, entries: Entries) -> Finished:
        half = await store.append(lease, _part_of(turn, turn.messages[:1]), [])
        await site.io(8)
        rest: Finished = await store.append(lease, _part_of(turn, turn.messages[1:]), entries)
        return rest._replace(first=half.first)

    return Altered(store, append=append)


def prompt_first(store: Any, _site: Site, *, is_forgetful: bool = False) -> Altered:
    """Store the question as soon as the model has been asked, the answer when it is there.

    Args:
        is_forgetful: a turn that is tried again stores its question again.
    """
    inner = Believed(store)
    asked: set[str] = set()

    async def journal(lease: Lease, turn: OpenTurn, _entry: dict[str, Any]) -> None:
        if turn.turn_id not in asked or (is_forgetful and len(turn.messages) == 2):
            asked.add(turn.turn_id)
            # Under a name of its own, so that it is not taken for the turn.
            question = _part_of(turn, turn.messages[:1], f"{turn.turn_id}?")
            await store.append(inner.real(lease), question, [])

    async def append(lease: Lease, turn: OpenTurn, entries: Entries) -> Finished:
        messages = turn.messages[1:] if turn.turn_id in asked else turn.messages
        await store.append(inner.real(lease), _part_of(turn, messages), entries)
        return inner.finished(lease, turn)

    return Altered(inner, journal=journal, append=append)


def rewriting(store: Any, site: Site) -> Altered:
    """Write the whole file anew at each turn, as ``open("w")`` does: first it is short."""

    async def append(lease: Lease, turn: OpenTurn, entries: Entries) -> Finished:
        finished: Finished = await store.append(lease, turn, entries)
        part = lease.key.instance_part
        below = Path(lease.key.user_part, part, part, "runtime", "messages.json")
        path = site.root / "sessions" / below
        whole = path.read_bytes()
        path.write_bytes(whole[: len(whole) // 3])
        await site.io(8)
        path.write_bytes(whole)
        return finished

    return Altered(store, append=append)


def compacting(store: Any, site: Site) -> Altered:
    """Write each session anew from time to time, without holding it while that is prepared."""
    numbers = count(1)

    async def append(lease: Lease, turn: OpenTurn, entries: Entries) -> Finished:
        finished: Finished = await store.append(lease, turn, entries)
        if next(numbers) % 3 == 0:
            site.spawn(compact(lease.key, turn))
        return finished

    async def compact(key: SessionKey, turn: OpenTurn) -> None:
        messages = await store.peek(key)
        await site.io(40)
        async with _held(store, key) as lease:
            await store.load(lease)
            await store.delete(lease)
            whole = _part_of(turn, messages, f"compacted {next(numbers)}")
            await store.append(lease, whole, [])

    return Altered(store, append=append)


def checking_before_writing(store: Any, site: Site) -> Altered:
    """Let all in and refuse who read an older revision; the check is not in the write."""
    inner = Loose(store, open_gate)

    async def append(lease: Lease, turn: OpenTurn, entries: Entries) -> Finished:
        now = len(await inner.peek(lease.key))
        if now != inner.seen(lease):
            raise StaleLease(f"{lease.key}: revision {now} is newer: read it and try again")
        await site.io()
        return await inner.append(lease, turn, entries)

    return Altered(inner, append=append)


def newest_clock_wins(store: Any, site: Site, *, skew_s: float = -0.05) -> Altered:
    """Refuse who read before the last write, by the clocks of processes that differ."""
    inner = Loose(store, open_gate)
    read_s: dict[Lease, float] = {}

    def now_s() -> float:
        return asyncio.get_running_loop().time() + skew_s * site.number

    async def load(lease: Lease) -> Stored:
        read_s[lease] = now_s()
        return await inner.load(lease)

    async def append(lease: Lease, turn: OpenTurn, entries: Entries) -> Finished:
        written_s = site.shared.setdefault("written", {})
        if written_s.get(lease.key, 0.0) > read_s[lease]:
            raise StaleLease(f"{lease.key}: it was written since it was read: try again")
        written_s[lease.key] = now_s()
        return await inner.append(lease, turn, entries)

    return Altered(inner, load=load, append=append)


# ---- wrong views


def renaming(name_of: Callable[[SessionKey], SessionKey]) -> Callable[[Any, Site], Altered]:
    """Store each session under another name, which two sessions may share."""

    def wrap(store: Any, _site: Site) -> Altered:
        real: dict[Lease, Lease] = {}

        async def hold(key: SessionKey, *, queue_limit: int) -> Lease:
            held = await store.hold(name_of(key), queue_limit=queue_limit)
            lease = Lease(key, held.fence)
            real[lease] = held
            return lease

        def release(lease: Lease) -> None:
            if lease in real:
                store.release(real.pop(lease))

        async def call(name: str, lease: Lease, *rest: Any) -> Any:
            return await getattr(store, name)(real[lease], *rest)

        async def peek(key: SessionKey) -> list[Message]:
            messages: list[Message] = await store.peek(name_of(key))
            return messages

        leased = ("load", "journal", "append", "discard", "delete")
        calls = {name: partial(call, name) for name in leased}
        return Altered(store, hold=hold, release=release, peek=peek, **calls)

    return wrap


def sharing_a_default(store: Any, _site: Site) -> Altered:
    """Let new sessions begin with an empty list that is one and the same for all of them."""
    # Loaded at each turn, or an agent in memory would not see what the others add.
    inner = Believed(store, is_cached=False)
    shared: list[Message] = []
    turns: dict[SessionKey, dict[str, Finished]] = {}  # of each session that uses the list

    async def load(lease: Lease) -> Stored:
        stored = await inner.load(lease)
        if stored.messages and lease.key not in turns:
            return stored
        finished = turns.setdefault(lease.key, {})
        inner.lengths[lease.key] = len(shared)
        return stored._replace(messages=shared, finished=dict(finished))

    async def append(lease: Lease, turn: OpenTurn, entries: Entries) -> Finished:
        finished = await inner.append(lease, turn, entries)
        if lease.key in turns:
            shared.extend(turn.messages)
            turns[lease.key][finished.turn_id] = finished
        return finished

    return Altered(inner, load=load, append=append)


def sorted_by_clock(store: Any, site: Site, *, skew_s: float = -0.05) -> Altered:
    """Sort a session's turns by the clock of the process that wrote them."""
    inner = Believed(store, is_cached=False)
    stamps = site.shared.setdefault("stamps", {})

    def in_order(messages: Sequence[Message]) -> list[Message]:
        turns: list[list[Message]] = []
        for message in messages:
            if message["role"] == "user" and message["content"][0]["type"] == "text":
                turns.append([])
            turns[-1].append(message)
        turns.sort(key=lambda turn: stamps.get(_marker(turn[0]), 0.0))
        return [message for turn in turns for message in turn]

    async def load(lease: Lease) -> Stored:
        stored = await inner.load(lease)
        return stored._replace(messages=in_order(stored.messages))

    async def append(lease: Lease, turn: OpenTurn, entries: Entries) -> Finished:
        now_s = asyncio.get_running_loop().time()
        stamps[_marker(turn.messages[0])] = now_s + skew_s * site.number
        return await inner.append(lease, turn, entries)

    async def peek(key: SessionKey) -> list[Message]:
        return in_order(await inner.peek(key))

    return Altered(inner, load=load, append=append, peek=peek)


def _marker(prompt: Message) -> str:
    return next(iter(markers_in(prompt["content"][0]["text"])), "")


def lagging(store: Any, site: Site) -> Altered:
    """Read from a copy that follows a while later."""
    copies: dict[SessionKey, list[Message]] = site.shared.setdefault("copies", {})

    async def append(lease: Lease, turn: OpenTurn, entries: Entries) -> Finished:
        finished: Finished = await store.append(lease, turn, entries)
        site.spawn(follow(lease.key, await store.peek(lease.key)))
        return finished

    async def follow(key: SessionKey, messages: list[Message]) -> None:
        await site.io(60)
        if len(messages) > len(copies.get(key, ())):
            copies[key] = messages

    async def peek(key: SessionKey) -> list[Message]:
        return list(copies.get(key, ()))

    return Altered(store, append=append, peek=peek)


def undeleting(store: Any, _site: Site) -> Altered:
    """Hide a deleted session until it is used again."""
    hidden: set[SessionKey] = set()

    async def delete(lease: Lease) -> None:
        hidden.add(lease.key)

    async def append(lease: Lease, turn: OpenTurn, entries: Entries) -> Finished:
        hidden.discard(lease.key)
        finished: Finished = await store.append(lease, turn, entries)
        return finished

    async def peek(key: SessionKey) -> list[Message]:
        messages: list[Message] = [] if key in hidden else await store.peek(key)
        return messages

    return Altered(store, delete=delete, append=append, peek=peek)


def forking_short(store: Any, _site: Site) -> Altered:
    """Leave the newest turn out of a copy."""

    async def fill(lease: Lease, messages: Sequence[Message], turns: Sequence[Finished]) -> None:
        count = max((turn.first for turn in turns), default=0)
        kept = [turn for turn in turns if turn.first < count]
        await store.fill(lease, messages[:count], kept)

    return Altered(store, fill=fill, rewind=store.rewind)


def unsynced(disk: Any, _site: Site) -> Altered:
    """Report that each directory is synced, and sync none."""
    return Altered(disk, sync_directory=lambda _path: None)


def writing_memories_back(store: Any, _site: Site) -> Altered:
    """Write a user's memory back whole, whatever came to it since it was read."""

    async def write_memory(user_id: str, entries: Mapping[str, Any], *, version: int) -> bool:
        del version
        while True:
            newest = (await store.read_memory(user_id)).version
            if await store.write_memory(user_id, entries, version=newest):
                return True

    return Altered(store, write_memory=write_memory)
