"""Stores that break one promise each, as small changes of a store that keeps them all."""

import asyncio
import contextlib
import os
import re
from collections import deque
from functools import partial
from types import SimpleNamespace

from kode_lab.errors import (
    SessionDamaged,
    StaleLease,
    StoreUnreachable,
    StoreUnwritable,
    WaitingRoomFull,
)
from kode_lab.key import SessionKey
from kode_lab.sessions import JsonStore
from kode_lab.sessions.files.file_lock import ProcessLock
from kode_lab.sessions.lock import KeyedLock
from kode_lab.sessions.open_turn import OpenTurn
from kode_lab.sessions.store import Lease, Stored

PLENTY = 60


class Around:
    """A store around another one, with leases of its own. It breaks nothing."""

    def __init__(self, root):
        self.root = root
        self.inner = JsonStore(root)
        self.leases = {}

    def key(self, key):
        return key

    def fence(self, fence):
        return fence

    async def hold(self, key, *, queue_limit):
        inner = await self.inner.hold(self.key(key), queue_limit=queue_limit)
        lease = Lease(key, self.fence(inner.fence))
        self.leases[lease] = inner
        return lease

    def release(self, lease):
        self.inner.release(self.leases[lease])

    async def load(self, lease):
        return await self.inner.load(self.leases[lease])

    async def journal(self, lease, turn, entry):
        await self.inner.journal(self.leases[lease], turn, entry)

    async def append(self, lease, turn, entries):
        return await self.inner.append(self.leases[lease], turn, entries)

    async def discard(self, lease):
        await self.inner.discard(self.leases[lease])

    async def delete(self, lease):
        await self.inner.delete(self.leases[lease])

    async def rewind(self, lease, count, rewind_id, turn_ids):
        await self.inner.rewind(self.leases[lease], count, rewind_id, turn_ids)

    async def fill(self, lease, messages, turns):
        await self.inner.fill(self.leases[lease], messages, turns)

    async def amend(self, lease, at, message):
        await self.inner.amend(self.leases[lease], at, message)

    async def read_memory(self, user_id):
        return await self.inner.read_memory(user_id)

    async def write_memory(self, user_id, entries, *, version):
        return await self.inner.write_memory(user_id, entries, version=version)

    async def peek(self, key):
        return await self.inner.peek(self.key(key))

    def statistics(self):
        return self.inner.statistics()

    async def aclose(self):
        await self.inner.aclose()


# --- who holds -------------------------------------------------------------------------------


class OpenLock(KeyedLock):
    def try_hold(self, _key):
        return True

    def release(self, key):
        pass


class OpenFileLocks:
    def place_of(self, _name):
        return (0, 0)

    def try_hold(self, place):
        return ProcessLock(*place)

    def take_back(self, _lock):
        return False

    def was_forked(self):
        return False

    def check(self, file):
        pass

    def keep(self, _lock):
        pass

    release = keep

    def close(self):
        pass


def without_lock(root):
    store = without_file_lock(root)
    store._lock = OpenLock()
    return store


def without_file_lock(root):
    store = JsonStore(root)
    store._locks = OpenFileLocks()
    return store


class OneLockForAll(Around):
    def __init__(self, root):
        super().__init__(root)
        self.lock = KeyedLock()

    async def hold(self, key, *, queue_limit):
        await self.lock.hold("all", queue_limit=queue_limit)
        return await super().hold(key, queue_limit=queue_limit)

    def release(self, lease):
        super().release(lease)
        self.lock.release("all")


class LastComesFirst(KeyedLock):
    def release(self, key):
        (self._queues[key] or deque()).rotate(1)
        super().release(key)


def last_comes_first(root):
    store = JsonStore(root)
    store._lock = LastComesFirst()
    return store


class LastComesFirstOfAll(Around):
    """The handles of one process share a queue that is none."""

    queues = {}  # noqa: RUF012 - shared is what it is for

    async def hold(self, key, *, queue_limit):
        queue = self.queues.setdefault(self.root, LastComesFirst())
        await queue.hold(key, queue_limit=queue_limit)
        return await super().hold(key, queue_limit=queue_limit)

    def release(self, lease):
        super().release(lease)
        self.queues[self.root].release(lease.key)


_taken = set()


class Looking(Around):
    """Looks now and then whether the session is free, instead of waiting in a queue."""

    async def hold(self, key, *, queue_limit):
        while (self.root, key) in _taken:
            if queue_limit == 0:
                raise WaitingRoomFull(f"{key} is held")
            await asyncio.sleep(0.002)
        _taken.add((self.root, key))
        return await super().hold(key, queue_limit=queue_limit)

    def release(self, lease):
        super().release(lease)
        _taken.discard((self.root, lease.key))


class EndlessRoom(Around):
    async def hold(self, key, *, queue_limit):
        return await super().hold(key, queue_limit=PLENTY if queue_limit else 0)


class AlwaysWaiting(Around):
    async def hold(self, key, *, queue_limit):
        return await super().hold(key, queue_limit=max(queue_limit, 1))


class LosingLock(KeyedLock):
    """Who gives up in the moment of the hand-over takes the lock away with him."""

    async def hold(self, key, *, queue_limit):
        queue = self._queues.get(key)
        if queue is None:
            queue = self._queues[key] = deque()
        if len(queue) >= queue_limit:
            raise WaitingRoomFull("full")
        turn = asyncio.get_running_loop().create_future()
        queue.append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn in queue:
                queue.remove(turn)
            raise


def losing_lock(root):
    store = JsonStore(root)
    store._lock = LosingLock()
    return store


class SameFenceTwice(Around):
    def fence(self, fence):
        return fence // 1_000


class NeverVoid(Around):
    """Takes a new lease where an old one is refused."""

    async def append(self, lease, turn, entries):
        try:
            return await super().append(lease, turn, entries)
        except StaleLease:
            again = await self.hold(lease.key, queue_limit=0)
            await self.load(again)
            try:
                return await super().append(again, turn, entries)
            finally:
                self.release(again)


class WritingOn(Around):
    """Writes on after it was closed, past the lock."""

    is_closed = False

    async def append(self, lease, turn, entries):
        if not self.is_closed:
            return await super().append(lease, turn, entries)
        late = without_file_lock(self.root)
        again = await late.hold(lease.key, queue_limit=0)
        await late.load(again)
        try:
            return await late.append(again, turn, entries)
        finally:
            await late.aclose()

    async def aclose(self):
        self.is_closed = True
        await super().aclose()


class NeverIdle(Around):
    def statistics(self):
        found = super().statistics()
        return found._replace(held=max(found.held, 1))


# --- what is kept ----------------------------------------------------------------------------


class ForgettingEnds(Around):
    async def load(self, lease):
        return (await super().load(lease))._replace(finished={})


class TornAppend(Around):
    """Writes the turn in two halves."""

    async def append(self, lease, turn, entries):
        half = OpenTurn(turn.turn_id, turn.messages[0], turn.version)
        half.messages = turn.messages[:2]
        await super().append(lease, half, [])
        await asyncio.sleep(0)
        half.messages = turn.messages[2:]
        return await super().append(lease, half, entries)


class PeekingEarly(Around):
    looks = 0

    async def peek(self, key):
        self.looks += 1
        messages = await super().peek(key)
        return messages[: -(self.looks % 5 == 0) or None]


class PeekingLate(Around):
    async def peek(self, key):
        lease = await self.hold(key, queue_limit=PLENTY)
        try:
            return (await self.load(lease)).messages
        finally:
            self.release(lease)


class WithoutJournal(Around):
    async def journal(self, lease, turn, entry):
        pass


class NeverDiscarding(Around):
    async def discard(self, lease):
        pass


class NeverDeleting(Around):
    async def delete(self, lease):
        pass


class LosingNul(Around):
    async def append(self, lease, turn, entries):
        prompt = turn.messages[0]["content"]
        if isinstance(prompt, list):
            texts = [{**block, "text": block["text"].replace("\0", "")} for block in prompt]
            turn.messages[0] = {**turn.messages[0], "content": texts}
        else:
            turn.messages[0] = {**turn.messages[0], "content": prompt.replace("\0", "")}
        return await super().append(lease, turn, entries)


class SmallOnly(Around):
    async def append(self, lease, turn, entries):
        if sum(len(str(message)) for message in turn.messages) > 1_000_000:
            raise StoreUnwritable("too big")
        return await super().append(lease, turn, entries)


class OneList(Around):
    """Returns its own list away."""

    def __init__(self, root):
        super().__init__(root)
        self.lists = {}

    async def load(self, lease):
        found = await super().load(lease)
        mine = self.lists.setdefault(lease.key, found.messages)
        mine.extend(found.messages[len(mine) :])
        return found._replace(messages=mine)


class FewOnly(Around):
    async def hold(self, key, *, queue_limit):
        if self.inner.statistics().held >= PLENTY:
            raise StoreUnwritable("too many")
        return await super().hold(key, queue_limit=queue_limit)


# --- what is apart, and what survives --------------------------------------------------------


class FoldingCase(Around):
    def key(self, key):
        return SessionKey(key.user_id, key.session_id.lower(), key.agent_id)


class OneAgent(Around):
    def key(self, key):
        return SessionKey(key.user_id, key.session_id, "a")


class ForgettingSteps(Around):
    async def load(self, lease):
        return (await super().load(lease))._replace(open=None)


class WritingLater(Around):
    """Acknowledges a turn, and writes it with the next hold."""

    def __init__(self, root):
        super().__init__(root)
        self.owed = {}

    async def load(self, lease):
        found = await super().load(lease)
        if (owed := self.owed.pop(lease.key, None)) is None:
            return found
        await super().append(lease, *owed)
        return await super().load(lease)

    async def append(self, lease, turn, entries):
        self.owed[lease.key] = (turn, entries)
        return turn.finished(0)


class WithoutFence(Around):
    """Lets everyone in, and those that were overtaken write on."""

    def __init__(self, root):
        super().__init__(root)
        self.inner._locks = OpenFileLocks()

    async def append(self, lease, turn, entries):
        return await self._anyhow(lease, lambda: super(WithoutFence, self).append, turn, entries)

    async def journal(self, lease, turn, entry):
        return await self._anyhow(lease, lambda: super(WithoutFence, self).journal, turn, entry)

    async def _anyhow(self, lease, method, *arguments):
        try:
            return await method()(lease, *arguments)
        except StaleLease:
            self.release(lease)
            inner = self.leases[lease] = await self.inner.hold(lease.key, queue_limit=0)
            await self.inner.load(inner)
            return await method()(lease, *arguments)


# --- names, objects of the caller, late writes, and storage that is set back or moved ----------


class CuttingAtCommas(Around):
    def key(self, key):
        return SessionKey(*(part.partition(",")[0] or part for part in key))


class SearchingWords(Around):
    """Finds a session by its words, in any order, as a search index does."""

    def key(self, key):
        return SessionKey(*("+".join(sorted(re.split(r"[-, _.]+", part))) or "-" for part in key))


class KeepingObjects(Around):
    """Keeps the objects that it was handed, and hands them out."""

    def __init__(self, root):
        super().__init__(root)
        self.kept = {}

    async def append(self, lease, turn, entries):
        self.kept[lease.key] = turn.messages
        return await super().append(lease, turn, entries)

    async def load(self, lease):
        found = await super().load(lease)
        return found._replace(messages=list(self.kept.get(lease.key, found.messages)))


class WritingAfterAll(Around):
    """What is given up is written when the handle is closed."""

    def __init__(self, root):
        super().__init__(root)
        self.late = []

    async def append(self, lease, turn, entries):
        try:
            await asyncio.sleep(0)
        except asyncio.CancelledError:
            self.late.append((lease.key, turn, entries))
            raise
        return await super().append(lease, turn, entries)

    async def aclose(self):
        for key, turn, entries in self.late[:1]:
            lease = await self.hold(key, queue_limit=PLENTY)
            await self.load(lease)
            await super().append(lease, turn, entries)
            self.release(lease)
        await super().aclose()


class Numbering:
    """Rows under numbers that a handle counts itself, in a storage that other handles share."""

    storages = {}  # noqa: RUF012 - shared is what it is for

    def __init__(self, root):
        self.rows = self.storages.setdefault(str(root), {})
        self.lock, self.fences, self.next = KeyedLock(), {}, {}
        self.delayed = None

    async def hold(self, key, *, queue_limit):
        await self.lock.hold(key, queue_limit=queue_limit)
        self.fences[key] = self.fences.get(key, 0) + 1
        return Lease(key, self.fences[key])

    def release(self, lease):
        self.lock.release(lease.key)

    async def load(self, lease):
        rows = self.rows.get(lease.key, {})
        self.next[lease.key] = len(rows)
        if [*rows] != [*range(len(rows))]:
            raise SessionDamaged(f"{lease.key}: rows {[*rows]}")
        messages = [message for turn in rows.values() for message in turn.messages]
        finished, first = {}, 0
        for turn in rows.values():
            finished[turn.turn_id] = turn.finished(first)
            first += len(turn.messages)
        return Stored(messages, finished, None)

    async def append(self, lease, turn, _entries):
        number = self.next[lease.key]
        if self.delayed is not None:
            self.delayed = lambda: self.write(lease.key, number, turn)
            raise StoreUnreachable("no answer")
        self.write(lease.key, number, turn)
        self.next[lease.key] = number + 1
        return turn.finished(0)

    async def delete(self, lease):
        if self.delayed is not None:
            self.delayed = lambda: self.rows.pop(lease.key, None)
            raise StoreUnreachable("no answer")
        self.rows.pop(lease.key, None)

    def write(self, key, number, turn):
        self.rows.setdefault(key, {})[number] = turn

    async def peek(self, key):
        return [m for turn in self.rows.get(key, {}).values() for m in turn.messages]

    async def aclose(self):
        pass

    # What a contract needs to hold a write back, and to set the storage back.

    @classmethod
    @contextlib.asynccontextmanager
    async def behind(cls, root):
        store, held = cls(root), []
        yield SimpleNamespace(
            store=store,
            hold_back=lambda: setattr(store, "delayed", True),
            let_pass=lambda: (held.append(store.delayed), setattr(store, "delayed", None)),
            deliver=partial(cls.deliver, held),
        )

    @staticmethod
    async def deliver(held):
        held[0]()

    @classmethod
    async def copied(cls, root):
        rows = cls.storages[str(root)]
        copy = {key: dict(turns) for key, turns in rows.items()}

        async def put_back():
            rows.clear()
            rows.update(copy)

        return put_back


class BeginningAnew(Around):
    """Makes its directory again wherever it is missing."""

    async def hold(self, key, *, queue_limit):
        if not os.path.exists(self.root):  # noqa: ASYNC240, PTH110 - as such a store would
            self.inner = JsonStore(self.root)
        return await super().hold(key, queue_limit=queue_limit)


class ForgettingInCopies(Around):
    """Keeps what it knows of turns outside its directory."""

    known = {}  # noqa: RUF012 - as if in another file

    async def load(self, lease):
        found = await super().load(lease)
        return found._replace(finished=dict(self.known.get((str(self.root), lease.key), {})))

    async def append(self, lease, turn, entries):
        finished = await super().append(lease, turn, entries)
        self.known.setdefault((str(self.root), lease.key), {})[turn.turn_id] = finished
        return finished


class ForgettingWhatIsGone(Around):
    """Rewinds without the ids of what it removes."""

    async def rewind(self, lease, count, rewind_id, turn_ids):
        await super().rewind(lease, count, rewind_id, turn_ids[:0])


class CopyingMessagesOnly(Around):
    """Copies a conversation without its turns."""

    async def fill(self, lease, messages, turns):
        await super().fill(lease, messages, turns[:0])


class ForgettingFacts(Around):
    """Keeps the steps of an open turn, and not what else was said of it."""

    async def journal(self, lease, turn, entry):
        await super().journal(lease, turn, {"facts": {}} if "facts" in entry else entry)


class ForgettingPrompts(Around):
    async def journal(self, lease, turn, entry):
        await super().journal(lease, turn, {"facts": {}} if "steered" in entry else entry)


class RewindingInSteps(Around):
    async def rewind(self, lease, _count, rewind_id, turn_ids):
        for turn_id in reversed(turn_ids):
            await super().rewind(lease, 0, rewind_id, [turn_id])
            await asyncio.sleep(0)


class NeverAmending(Around):
    async def amend(self, lease, at, message):
        pass


class AmendingForReaders(Around):
    """Forgets the open turn when a message is replaced."""

    async def amend(self, lease, at, message):
        await super().amend(lease, at, message)
        await self.discard(lease)


class WritingMemoryBackWhole(Around):
    """Takes the newest version for the one that the writer saw."""

    async def write_memory(self, user_id, entries, *, version):
        del version
        found = await self.read_memory(user_id)
        return await super().write_memory(user_id, entries, version=found.version)


class OneMemory(Around):
    async def read_memory(self, _user_id):
        return await super().read_memory("all")

    async def write_memory(self, _user_id, entries, *, version):
        return await super().write_memory("all", entries, version=version)
