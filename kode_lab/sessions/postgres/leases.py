"""Which sessions this worker holds: kept while they are warm, passed on when another wants them.

A warm session costs no query between turns: turns of this process follow each other here, first
come first served. As soon as another worker wants it, every newcomer draws a ticket in the
database, here as there, so that from then on there is one order for all; those who waited here
before still go first. A session that no other worker wants stays until more sessions rest here than
the limit allows, or until this worker is gone.

It never touches a conversation. Refusing what an overtaken holder writes is not its job: the fence
is checked where the write happens.

Source: sticky leases, as Chubby's cached locks (Burrows 2006); tickets: Lamport's bakery (1974).
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from kode_lab.errors import StoreError, WaitingRoomFull
from kode_lab.key import SessionKey
from kode_lab.sessions.lock import LockStatistics
from kode_lab.sessions.postgres.connection import PostgresConnection
from kode_lab.sessions.postgres.group_commit import GroupCommit
from kode_lab.sessions.postgres.schema import FENCES
from kode_lab.sessions.postgres.worker import Fetch, PostgresWorker
from kode_lab.sessions.store import Lease

__all__ = ["LocalSession", "PostgresLeases", "name_hash", "sql_text"]

# How often waiters look whether the worker they wait for is dead; one statement for all of them.
_SWEEP_S = 0.02
# The share of the database's time that this may take.
_SWEEP_SHARE = 0.05
# How often they check that their tickets still exist.
_TICKETS_S = 0.5
# A hold with queue_limit=0 waits so long for the answer of another worker.
_ANSWER_S = 2.0
# When passing a session on failed.
_AGAIN_S = 1.0
# A session is taken anew after so many holds, long before its epoch has no fence left.
_HOLDS_LIMIT = FENCES // 2


class Waiter(NamedTuple):
    """One who waits; the future gets the fence under which the session was granted."""

    future: asyncio.Future[int]
    limit: int


class LocalSession:
    """One userId:sessionId that is held, wanted or waited for in this worker.

    Attributes:
        id: its number in the database, 0 before it is known.
        fence: the first one of the epoch in which this worker holds it; 0 when it does not.
        mark: how often its fence was raised within this epoch.
        lease: of the turn that has it now.
        is_busy: a turn has it, or was just granted it.
        is_asking: the first request for it is on its way; newcomers wait for the answer.
        wishes: how many requests of other workers were heard.
        passing: how many of these the order on its way is about; 0 when none is.
        queue: who waits here, in the order of arrival.
        tickets: who waits with a ticket in the database, by its number.
        holds: how often each agent's conversation was held in this epoch.
        known: what the store remembers of each agent's conversation in this epoch.
    """

    __slots__ = (
        "_reading",
        "fence",
        "holds",
        "id",
        "is_asking",
        "is_busy",
        "known",
        "lease",
        "mark",
        "passing",
        "queue",
        "slot",
        "tickets",
        "wishes",
    )

    def __init__(self, slot: tuple[str, ...]) -> None:
        self.slot = slot
        self.id = self.fence = self.mark = self.wishes = self.passing = 0
        self.lease: Lease | None = None
        self.is_busy = self.is_asking = False
        self.queue: list[Waiter] = []  # a deque weighs 600 bytes, and is empty nearly always
        self.tickets: dict[int, Waiter] = {}
        self.holds: dict[str, int] = {}
        self.known: dict[str, Any] = {}
        self._reading: asyncio.Lock | None = None

    @property
    def reading(self) -> asyncio.Lock:
        """The lock, made when it is first needed: few sessions ever do."""
        if self._reading is None:
            self._reading = asyncio.Lock()
        return self._reading

    @property
    def write_fence(self) -> int:
        """The fence that a statement must carry now."""
        return self.fence + self.mark

    @property
    def is_ours_alone(self) -> bool:
        """Whether this worker holds it and has heard of no other that wants it."""
        return self.fence > 0 and not (self.wishes or self.passing)

    @property
    def waiting(self) -> int:
        """How many wait here; one that was just cancelled does not count."""
        return sum(not w.future.done() for w in (*self.queue, *self.tickets.values()))

    def raised_fence(self) -> int:
        """Raise the fence, so that what was sent before is refused if it arrives later."""
        self.mark += 1
        return self.write_fence

    def becomes(self, fence: int) -> None:
        """Note that this worker holds it in a new epoch or, with 0, does not hold it."""
        self.fence = fence
        self.mark = 0
        self.lease = None
        self.is_busy = False
        self.wishes = self.passing = 0
        self.holds = {}
        self.known = {}


class PostgresLeases:
    """The leases of one worker.

    Args:
        limit: sessions that stay with this worker between their turns.

    Attributes:
        rolled_back: what this worker knew of conversations, by user, session and agent id, whose
            session the database has forgotten that it granted: it is an older copy of itself.
    """

    def __init__(
        self, worker: PostgresWorker, connection: PostgresConnection, *, limit: int
    ) -> None:
        self._worker = worker
        worker.listen(self)
        self._limit = limit
        self._sessions: dict[tuple[str, ...], LocalSession] = {}
        self._by_id: dict[int, LocalSession] = {}
        self._by_number: dict[int, LocalSession] = {}
        self._queued: set[int] = set()
        self._idle: OrderedDict[tuple[str, ...], LocalSession] = OrderedDict()
        self._requests = LeaseRequests(connection, lambda: worker.id)
        self._sweeper: asyncio.Task[None] | None = None
        # Requests for sessions that are not ours, as far as we know: a grant may be on its way.
        self._early: set[int] = set()
        self._asking = 0
        self._number = 0
        self._longest_queue = 0
        self._handed_over = 0
        self.rolled_back: dict[tuple[str, ...], Any] = {}

    # ---- for the store

    async def hold(self, key: SessionKey, *, queue_limit: int) -> Lease:
        """Return the lease of the session, after everyone who asked before.

        Raises:
            WaitingRoomFull: ``queue_limit`` wait already, or it is 0 and a turn is running.
            StoreUnreachable: the database did not answer.
        """
        slot = key[:2]
        while True:
            if not self._worker.is_sure:
                await self._worker.sure()
            local = self._sessions.get(slot)
            if local is None:
                local = self._sessions[slot] = LocalSession(slot)
            if local.is_busy or not local.is_ours_alone:
                fence = await self._wait(local, key, queue_limit)
                if fence != local.fence:  # lost at the moment in which it was granted
                    continue
            else:
                del self._idle[slot]
            local.is_busy = True
            holds = local.holds[key.agent_id] = local.holds.get(key.agent_id, 0) + 1
            local.lease = Lease(key, local.fence + holds)
            return local.lease

    def release(self, lease: Lease) -> None:
        """End the lease; ending it twice does nothing."""
        local = self._sessions.get(lease.key[:2])
        if local is not None and local.lease is lease:
            self._next(local)

    def local(self, lease: Lease) -> LocalSession | None:
        """Return the session of a lease that is valid, as far as this process knows."""
        local = self._sessions.get(lease.key[:2])
        return local if local is not None and local.lease is lease else None

    def statistics(self) -> LockStatistics:
        """Return how many sessions are held and waited for now."""
        waiting = sum(local.waiting for local in self._sessions.values())
        held = sum(local.is_busy for local in self._sessions.values())
        return LockStatistics(held, waiting, self._longest_queue, self._handed_over)

    async def aclose(self) -> None:
        """Pass on what others wait for; the rest is free with the end of the worker."""
        for local in list(self._sessions.values()):
            local.lease = None  # void: a late write must not connect again
            if local.fence and local.wishes and not local.passing:
                self._pass_on(local)
        with contextlib.suppress(StoreError):
            await self._requests.settled()
        if self._sweeper is not None:
            self._sweeper.cancel()

    # ---- waiting

    async def _wait(self, local: LocalSession, key: SessionKey, limit: int) -> int:
        """Wait until the session is granted, and return the fence."""
        waiting = local.waiting
        is_here = local.is_ours_alone or (local.is_asking and limit > 0)
        if waiting >= limit and (waiting or local.is_busy or is_here):
            raise WaitingRoomFull(
                f"{key}: {waiting} turns wait already, queue_limit={limit}: send it again later"
            )
        self._longest_queue = max(self._longest_queue, waiting + 1)
        waiter = Waiter(asyncio.get_running_loop().create_future(), limit)
        if is_here:
            local.queue.append(waiter)
        else:
            self._draw(local, waiter)
        try:
            async with asyncio.timeout(None if limit else _ANSWER_S):
                return await waiter.future
        except BaseException as error:
            self._leave(local, waiter)
            if isinstance(error, WaitingRoomFull | TimeoutError):
                raise WaitingRoomFull(
                    f"{key}: {error or 'its holder does not answer'}: send it again later"
                ) from None
            raise

    def _draw(self, local: LocalSession, waiter: Waiter) -> None:
        """Draw a ticket in the database."""
        self._number += 1
        number = self._number
        local.is_asking = not (local.fence or local.tickets)
        local.tickets[number] = waiter
        self._by_number[number] = local
        self._asking += 1
        answer = self._requests.ask(local.slot, number, waiter.limit)
        answer.add_done_callback(lambda done: self._asked(local, number, done))

    def _leave(self, local: LocalSession, waiter: Waiter) -> None:
        """Remove a waiter; a session that was granted to it just now goes to the next one."""
        future = waiter.future
        if future.done() and not future.cancelled() and future.exception() is None:
            if future.result() == local.fence:
                self._next(local)
            return
        with contextlib.suppress(ValueError):
            local.queue.remove(waiter)
        for number in [n for n, w in local.tickets.items() if w is waiter]:
            self._drop(local, number)
            self._requests.leave(number)
        self._forget_if_empty(local)

    def _drop(self, local: LocalSession, number: int) -> Waiter | None:
        self._by_number.pop(number, None)
        self._queued.discard(number)
        return local.tickets.pop(number, None)

    def _asked(self, local: LocalSession, number: int, done: asyncio.Future[Asked]) -> None:
        """Handle the answer to a request."""
        self._asking -= 1
        local.is_asking = False
        error = done.exception()
        if error is not None:
            waiter = self._drop(local, number)
            for failed in [*filter(None, [waiter]), *local.queue]:
                if not failed.future.done():
                    failed.future.set_exception(error)
            local.queue.clear()
        else:
            local.id, fence, outcome = done.result()
            self._by_id[local.id] = local
            if outcome == "granted":
                self._granted(local, number, fence, is_wanted=local.id in self._early)
            elif outcome == "full":
                self._refused(number)
            elif number in local.tickets:
                self._queued.add(number)
                self._sweep_soon()
            if not local.fence:
                followers, local.queue = local.queue, []
                for waiter in followers:
                    self._draw(local, waiter)
        if not self._asking:
            self._early.clear()
        self._forget_if_empty(local)

    # ---- granting and passing on

    def _granted(self, local: LocalSession, number: int, fence: int, *, is_wanted: bool) -> None:
        """Note a session that this worker holds from now on; the ticket's owner gets it."""
        if fence <= local.fence:  # heard of before
            return
        self._idle.pop(local.slot, None)
        local.becomes(fence)
        local.wishes = int(is_wanted)
        waiter = self._drop(local, number)
        if waiter is None:
            self._next(local)
        else:
            self._give(local, waiter)

    def _give(self, local: LocalSession, waiter: Waiter) -> None:
        if waiter.future.done():  # cancelled, and not run yet
            self._next(local)
            return
        local.is_busy = True
        waiter.future.set_result(local.fence)

    def _next(self, local: LocalSession) -> None:
        """Let the next one here have the session, else another worker, else let it rest."""
        local.lease = None
        local.is_busy = False
        while local.queue:
            waiter = local.queue.pop(0)
            if not waiter.future.done():
                self._handed_over += 1
                self._give(local, waiter)
                return
        if local.wishes:
            self._pass_on(local)
            return
        if sum(local.holds.values()) > _HOLDS_LIMIT:
            self._pass_on(local, is_leaving=True)
            return
        self._idle[local.slot] = local
        while len(self._idle) > self._limit:
            _, oldest = self._idle.popitem(last=False)
            self._pass_on(oldest, is_leaving=True)

    def _pass_on(self, local: LocalSession, *, is_leaving: bool = False) -> None:
        fence, local.passing = local.fence, max(local.wishes, 1)
        self._idle.pop(local.slot, None)
        answer = self._requests.pass_on(local.id, local.write_fence, is_leaving=is_leaving)
        answer.add_done_callback(lambda done: self._passed(local, fence, done))

    def _passed(self, local: LocalSession, fence: int, done: asyncio.Future[bool]) -> None:
        if local.fence != fence:  # it came back already
            done.exception()
            return
        if done.exception() is not None:
            # The outcome is unknown: ask again when the database answers. What is read then raises
            # the fence, so that this order is refused if it arrives later.
            for known in local.known.values():
                known.is_certain = False
            loop = asyncio.get_running_loop()
            loop.call_later(_AGAIN_S, self._pass_again, local, fence)
            return
        if not done.result():
            self.lose(local)
            return
        heard, local.passing = local.passing, 0
        local.wishes = max(local.wishes - heard, 0)
        self._next(local)

    def _pass_again(self, local: LocalSession, fence: int) -> None:
        if local.fence == fence:
            self._pass_on(local)

    def lose(self, local: LocalSession) -> None:
        """Note that another worker holds the session; those who wait here must ask for it again."""
        self._idle.pop(local.slot, None)
        local.becomes(0)
        waiting, local.queue = local.queue, []
        for waiter in waiting:
            self._draw(local, waiter)
        self._forget_if_empty(local)

    def _forget_if_empty(self, local: LocalSession) -> None:
        is_needed = local.fence or local.tickets or local.queue or local.is_asking
        if not is_needed and self._sessions.get(local.slot) is local:
            del self._sessions[local.slot]
            self._by_id.pop(local.id, None)

    # ---- notifications

    def heard(self, words: list[str]) -> None:
        """Handle a notification of the database or of another worker."""
        what, numbers = words[0], [int(word) for word in words[1:]]
        if what == "granted":
            session_id, number, fence, is_wanted = numbers
            self._came(session_id, number, fence, is_wanted=bool(is_wanted))
        elif what == "refused":
            self._refused(numbers[1])
        elif what == "wanted":
            self._wanted(numbers[0], is_patient=bool(numbers[1]))

    def _came(self, session_id: int, number: int, fence: int, *, is_wanted: bool) -> None:
        local = self._by_number.get(number) or self._by_id.get(session_id)
        if local is None:  # whose ticket it was has left
            passed = self._requests.pass_on(session_id, fence, is_leaving=True)
            passed.add_done_callback(asyncio.Future.exception)
            return
        local.id = session_id
        self._by_id[session_id] = local
        self._handed_over += fence > local.fence
        self._granted(local, number, fence, is_wanted=is_wanted)

    def _refused(self, number: int) -> None:
        local = self._by_number.get(number)
        waiter = self._drop(local, number) if local is not None else None
        if waiter is not None and not waiter.future.done():
            waiter.future.set_exception(WaitingRoomFull("a turn is running, or others wait"))

    def _wanted(self, session_id: int, *, is_patient: bool) -> None:
        local = self._by_id.get(session_id)
        if local is None or not local.fence:
            if self._asking:
                self._early.add(session_id)
            return
        if local.is_busy and not is_patient:
            self._requests.refuse(session_id)
            return
        local.wishes += 1
        if not (local.is_busy or local.passing):
            self._pass_on(local)

    async def look_again(self, fetch: Fetch) -> None:
        """Check which sessions this worker still holds, after an absence.

        A database that crashed may have forgotten that a session was passed on: it counts as held
        by this worker, who no longer knows it. Such a session is passed on again.
        """
        held = [local for local in self._sessions.values() if local.id]
        rows = await fetch(_HELD, self._worker.id, [local.id for local in held])
        found = {row["id"]: row for row in rows}
        for unknown in found.keys() - {local.id for local in held}:
            row = found[unknown]
            self._came(unknown, row["granted"], row["fence"], is_wanted=row["is_wanted"])
        for local in held:
            row = found.get(local.id)
            if row is None or row["hash"] != name_hash(*local.slot):
                is_ours, fence = False, 0  # an older copy of the database may reuse its number
            else:
                is_ours, fence = row["is_ours"], row["fence"]
            if local.fence and not (is_ours and fence == local.fence):
                if fence < local.fence:
                    for agent_id, known in local.known.items():
                        self.rolled_back[(*local.slot, agent_id)] = known
                self.lose(local)
            if row is None or not is_ours:
                continue
            if fence > local.fence:
                self._came(local.id, row["granted"], fence, is_wanted=row["is_wanted"])
            elif row["is_wanted"]:
                self._wanted(local.id, is_patient=True)

    def _sweep_soon(self) -> None:
        if self._sweeper is None:
            self._sweeper = asyncio.get_running_loop().create_task(self._sweep())

    async def _sweep(self) -> None:
        """While anyone waits for another worker, look whether that one is dead."""
        pause_s = _SWEEP_S
        last_s = time.monotonic()
        try:
            while self._by_number:
                await asyncio.sleep(pause_s)
                start_s = time.monotonic()
                with contextlib.suppress(StoreError):  # waiters have a deadline
                    if start_s - last_s > _TICKETS_S:
                        last_s = start_s
                        await self._look_for_tickets()
                    waited = sorted({local.id for local in self._by_number.values() if local.id})
                    for row in await self._worker.connection.fetch(_SWEEP, self._worker.id, waited):
                        self._came(*row[:3], is_wanted=row[3])
                took_s = time.monotonic() - start_s
                pause_s = min(max(_SWEEP_S, took_s / _SWEEP_SHARE), _TICKETS_S)
        finally:
            self._sweeper = None

    async def _look_for_tickets(self) -> None:
        """Draw a ticket again where one is gone: another worker took this one for dead."""
        queued = set(self._queued)
        rows = await self._worker.connection.fetch(_TICKETS, self._worker.id)
        missing = queued - {row[0] for row in rows}
        if not missing:
            return
        await self.look_again(self._worker.connection.fetch)  # it may have been granted just now
        for number in sorted(missing & self._queued):
            local = self._by_number[number]
            waiter = self._drop(local, number)
            if waiter is not None:
                self._draw(local, waiter)


_HELD = f"""
    SELECT id, hash, coalesce(granted, 0) AS granted, fence / {FENCES} * {FENCES} AS fence,
        EXISTS (SELECT FROM ticket WHERE session = id) AS is_wanted,
        holder IS NOT DISTINCT FROM $1 AS is_ours
    FROM session WHERE id = ANY($2) OR holder = $1"""  # noqa: S608 - a number
_TICKETS = "SELECT number FROM ticket WHERE worker = $1"
_SWEEP = "SELECT * FROM sweep($1, $2)"


class Asked(NamedTuple):
    """The answer to a request for a session.

    Attributes:
        session_id: its number in the database.
        fence: with ``granted``.
        outcome: ``granted``, ``queued`` (a notice will come) or ``full``.
    """

    session_id: int
    fence: int
    outcome: str


class _Ask(NamedTuple):
    user_id: str
    session_id: str
    hash: bytes
    number: int
    limit: int


class _Pass(NamedTuple):
    session_id: int
    fence: int
    is_leaving: bool


class _Refuse(NamedTuple):
    session_id: int


class _Leave(NamedTuple):
    number: int


_Order = _Ask | _Pass | _Refuse | _Leave


class LeaseRequests:
    """What a worker asks of the database about leases: one statement for each kind and batch.

    Args:
        worker_id: returns the worker's id, which is known only when it is open.
    """

    def __init__(self, connection: PostgresConnection, worker_id: Callable[[], int]) -> None:
        self._connection = connection
        self._worker_id = worker_id
        self._orders: GroupCommit[_Order, Any] = GroupCommit(self._send)

    def ask(self, slot: Sequence[str], number: int, limit: int) -> asyncio.Future[Asked]:
        """Ask for a session.

        Args:
            number: of the ticket, if one must be drawn.
            limit: how many may have drawn one before; 0 does not wait for a turn.
        """
        user_id, session_id = slot
        return self._orders.put(
            _Ask(sql_text(user_id), sql_text(session_id), name_hash(*slot), number, limit)
        )

    def pass_on(self, session_id: int, fence: int, *, is_leaving: bool) -> asyncio.Future[bool]:
        """Let the next ticket have the session; the answer is whether it is still ours.

        Without a ticket it is, unless ``is_leaving``.
        """
        return self._orders.put(_Pass(session_id, fence, is_leaving))

    def refuse(self, session_id: int) -> None:
        """Refuse those who want the session but do not wait for a turn: one is running."""
        self._orders.put(_Refuse(session_id)).add_done_callback(asyncio.Future.exception)

    def leave(self, number: int) -> None:
        """Return a ticket."""
        self._orders.put(_Leave(number)).add_done_callback(asyncio.Future.exception)

    async def settled(self) -> None:
        """Wait until nothing is on its way."""
        await self._orders.settled()

    async def _send(self, orders: Sequence[_Order]) -> list[Any]:
        # Each kind is sorted, as the rows of sessions must be locked in one order by all workers.
        me, fetch = self._worker_id(), self._connection.fetch
        answers: dict[_Order, Any] = {}
        if refused := [order.session_id for order in orders if isinstance(order, _Refuse)]:
            await fetch("SELECT refuse($1)", refused)
        if passes := sorted(order for order in orders if isinstance(order, _Pass)):
            rows = await fetch("SELECT * FROM pass_on($1, $2, $3, $4)", me, *_columns(passes))
            answers.update(zip(passes, [row[1] for row in rows], strict=True))
        if asks := sorted(order for order in orders if isinstance(order, _Ask)):
            rows = await fetch("SELECT * FROM ask($1, $2, $3, $4, $5, $6)", me, *_columns(asks))
            by_number = {row[0]: Asked(*row[1:]) for row in rows}
            answers.update((order, by_number[order.number]) for order in asks)
        if left := [order.number for order in orders if isinstance(order, _Leave)]:
            await fetch("DELETE FROM ticket WHERE worker = $1 AND number = ANY($2)", me, left)
        return [answers.get(order) for order in orders]


def _columns(orders: Sequence[tuple[Any, ...]]) -> list[list[Any]]:
    return [list(column) for column in zip(*orders, strict=True)]


def sql_text(word: str) -> str:
    """Return the word without NUL, which PostgreSQL's text cannot hold."""
    if "\0" in word or "\\" in word:
        return word.replace("\\", "\\\\").replace("\0", "\\0")
    return word


def name_hash(*names: str) -> bytes:
    """Return the SHA-256 by which rows with these names are found.

    Not MD5: pairs of short texts with one MD5 are published.
    """
    return hashlib.sha256(b"\0".join(sql_text(name).encode() for name in names)).digest()
