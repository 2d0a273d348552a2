"""Who holds which session: kept while it is warm, passed on when another worker wants it.

A session that this worker holds costs no word to the database from turn to turn: its turns follow
each other here, first come first served. As soon as another worker wants it, every newcomer draws a
ticket in the database, here as there, so that from then on there is one order for all; those who
waited here before still go first. A session that nobody wants stays, until more rest here than the
limit allows, or until this worker is gone.

It never touches a conversation. That an overtaken holder writes nothing is not its concern: the
fence is checked where it is written.

Source: sticky leases, as Chubby's cached locks (Burrows 2006); tickets: Lamport's bakery (1974).
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import OrderedDict

from kode_lab.errors import StoreError, WaitingRoomFull
from kode_lab.key import SessionKey
from kode_lab.sessions.lock import LockStatistics
from kode_lab.sessions.postgres.connection import PostgresLink
from kode_lab.sessions.postgres.lease_requests import Asked, PostgresDesk
from kode_lab.sessions.postgres.wait_queue import Line, Waiter
from kode_lab.sessions.postgres.worker import Fetch, PostgresWorker
from kode_lab.sessions.store import Lease

__all__ = ["PostgresLeases"]

# How often those who wait for another worker look whether it is gone; one statement for all.
_SWEEP_S = 0.02
# The database may be kept busy by that for so much of the time.
_SWEEP_SHARE = 0.05
# How often they look whether their tickets are there still.
_TICKETS_S = 0.5
# Who does not wait for a turn still waits so long for another worker's word.
_WORD_S = 2.0
# When the database did not answer who is next.
_AGAIN_S = 1.0


class PostgresLeases:
    """The leases of one worker.

    Args:
        limit: sessions that stay with this worker between their turns.
    """

    def __init__(self, worker: PostgresWorker, work: PostgresLink, *, limit: int) -> None:
        self._worker = worker
        worker.listen(self)
        self._limit = limit
        self._lines: dict[tuple[str, ...], Line] = {}
        self._by_id: dict[int, Line] = {}
        self._by_number: dict[int, Line] = {}
        self._queued: set[int] = set()
        self._idle: OrderedDict[tuple[str, ...], Line] = OrderedDict()
        self._desk = PostgresDesk(work, lambda: worker.id)
        self._sweeper: asyncio.Task[None] | None = None
        # Wishes for sessions that, for all we know, are not ours: an answer may be on its way.
        self._early: set[int] = set()
        self._asking = 0
        self._number = 0
        self._longest_queue = 0
        self._handed_over = 0

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
            line = self._lines.get(slot)
            if line is None:
                line = self._lines[slot] = Line(slot)
            if line.is_busy or not line.is_ours_alone:
                fence = await self._wait(line, key, queue_limit)
                if fence != line.fence:  # lost in the moment in which it came
                    continue
            else:
                del self._idle[slot]
            line.is_busy = True
            holds = line.holds[key.agent_id] = line.holds.get(key.agent_id, 0) + 1
            line.lease = Lease(key, line.fence + holds)
            return line.lease

    def release(self, lease: Lease) -> None:
        """End the lease; ending it twice does nothing."""
        line = self._lines.get(lease.key[:2])
        if line is not None and line.lease is lease:
            self._next(line)

    def line(self, lease: Lease) -> Line | None:
        """Return the line of a lease that is still good, for all that this process knows."""
        line = self._lines.get(lease.key[:2])
        return line if line is not None and line.lease is lease else None

    def lost(self, line: Line) -> None:
        """Take note that the database refused what was written under this line's fence."""
        self._lose(line)

    def statistics(self) -> LockStatistics:
        """Return what the lines are doing now."""
        waiting = sum(line.waiting for line in self._lines.values())
        held = sum(line.is_busy for line in self._lines.values())
        return LockStatistics(held, waiting, self._longest_queue, self._handed_over)

    async def aclose(self) -> None:
        """Pass on what others wait for; the rest is free with the end of the worker."""
        for line in list(self._lines.values()):
            line.lease = None  # void: a late write must not connect again
            if line.fence and line.wishes and not line.passing:
                self._pass_on(line)
        with contextlib.suppress(StoreError):
            await self._desk.settled()
        if self._sweeper is not None:
            self._sweeper.cancel()

    # ---- waiting

    async def _wait(self, line: Line, key: SessionKey, limit: int) -> int:
        """Wait in line, and give the fence under which the session came."""
        waiting = line.waiting
        is_here = line.is_ours_alone or (line.is_asking and limit > 0)
        if waiting >= limit and (waiting or line.is_busy or is_here):
            raise WaitingRoomFull(
                f"{key}: {waiting} turns wait already, queue_limit={limit}: send it again later"
            )
        self._longest_queue = max(self._longest_queue, waiting + 1)
        waiter = Waiter(asyncio.get_running_loop().create_future(), limit)
        if is_here:
            line.queue.append(waiter)
        else:
            self._draw(line, waiter)
        try:
            async with asyncio.timeout(None if limit else _WORD_S):
                return await waiter.future
        except BaseException as error:
            self._leave(line, waiter)
            if isinstance(error, WaitingRoomFull | TimeoutError):
                raise WaitingRoomFull(
                    f"{key}: {error or 'its holder does not answer'}: send it again later"
                ) from None
            raise

    def _draw(self, line: Line, waiter: Waiter) -> None:
        """Draw a ticket in the database."""
        self._number += 1
        number = self._number
        line.is_asking = not (line.fence or line.tickets)
        line.tickets[number] = waiter
        self._by_number[number] = line
        self._asking += 1
        answer = self._desk.ask(line.slot, number, waiter.limit)
        answer.add_done_callback(lambda done: self._asked(line, number, done))

    def _leave(self, line: Line, waiter: Waiter) -> None:
        """Take someone out of the line; if the session just came to him, it goes to the next."""
        future = waiter.future
        if future.done() and not future.cancelled() and future.exception() is None:
            if future.result() == line.fence:
                self._next(line)
            return
        with contextlib.suppress(ValueError):
            line.queue.remove(waiter)
        for number in [n for n, w in line.tickets.items() if w is waiter]:
            self._drop(line, number)
            self._desk.leave(number)
        self._forget_if_empty(line)

    def _drop(self, line: Line, number: int) -> Waiter | None:
        self._by_number.pop(number, None)
        self._queued.discard(number)
        return line.tickets.pop(number, None)

    def _asked(self, line: Line, number: int, done: asyncio.Future[Asked]) -> None:
        """Take the answer to a question."""
        self._asking -= 1
        line.is_asking = False
        error = done.exception()
        if error is not None:
            waiter = self._drop(line, number)
            for failed in [*filter(None, [waiter]), *line.queue]:
                if not failed.future.done():
                    failed.future.set_exception(error)
            line.queue.clear()
        else:
            line.id, fence, outcome = done.result()
            self._by_id[line.id] = line
            if outcome == "granted":
                self._granted(line, number, fence, is_wanted=line.id in self._early)
            elif outcome == "full":
                self._refused(number)
            elif number in line.tickets:
                self._queued.add(number)
                self._sweep_soon()
            if not line.fence:
                followers, line.queue = line.queue, []
                for waiter in followers:
                    self._draw(line, waiter)
        if not self._asking:
            self._early.clear()
        self._forget_if_empty(line)

    # ---- coming and going

    def _granted(self, line: Line, number: int, fence: int, *, is_wanted: bool) -> None:
        """Take a session that is ours from now on, and give it to whose ticket it was."""
        if fence <= line.fence:  # heard of before
            return
        self._idle.pop(line.slot, None)
        line.becomes(fence)
        line.wishes = int(is_wanted)
        waiter = self._drop(line, number)
        if waiter is None:
            self._next(line)
        else:
            self._give(line, waiter)

    def _give(self, line: Line, waiter: Waiter) -> None:
        if waiter.future.done():  # cancelled, and did not run yet
            self._next(line)
            return
        line.is_busy = True
        waiter.future.set_result(line.fence)

    def _next(self, line: Line) -> None:
        """Return the session to the next here, else to who wants it elsewhere, else let it rest."""
        line.lease = None
        line.is_busy = False
        while line.queue:
            waiter = line.queue.pop(0)
            if not waiter.future.done():
                self._handed_over += 1
                self._give(line, waiter)
                return
        if line.wishes:
            self._pass_on(line)
            return
        self._idle[line.slot] = line
        while len(self._idle) > self._limit:
            _, oldest = self._idle.popitem(last=False)
            self._pass_on(oldest, is_leaving=True)

    def _pass_on(self, line: Line, *, is_leaving: bool = False) -> None:
        fence, line.passing = line.fence, max(line.wishes, 1)
        self._idle.pop(line.slot, None)
        answer = self._desk.pass_on(line.id, fence, is_leaving=is_leaving)
        answer.add_done_callback(lambda done: self._passed(line, fence, done))

    def _passed(self, line: Line, fence: int, done: asyncio.Future[bool]) -> None:
        if line.fence != fence:  # it came back already
            done.exception()
            return
        if done.exception() is not None:
            # Nobody knows: look again when the database answers.
            loop = asyncio.get_running_loop()
            loop.call_later(_AGAIN_S, self._pass_again, line, fence)
            return
        if not done.result():
            self._lose(line)
            return
        heard, line.passing = line.passing, 0
        line.wishes = max(line.wishes - heard, 0)
        self._next(line)

    def _pass_again(self, line: Line, fence: int) -> None:
        if line.fence == fence:
            self._pass_on(line)

    def _lose(self, line: Line) -> None:
        """The session is not ours any more: who waits here must ask like everyone."""
        self._idle.pop(line.slot, None)
        line.becomes(0)
        waiting, line.queue = line.queue, []
        for waiter in waiting:
            self._draw(line, waiter)
        self._forget_if_empty(line)

    def _forget_if_empty(self, line: Line) -> None:
        is_needed = line.fence or line.tickets or line.queue or line.is_asking
        if not is_needed and self._lines.get(line.slot) is line:
            del self._lines[line.slot]
            self._by_id.pop(line.id, None)

    # ---- hearing

    def heard(self, words: list[str]) -> None:
        """Take what the database or another worker has to say."""
        what, numbers = words[0], [int(word) for word in words[1:]]
        if what == "granted":
            session, number, fence, is_wanted = numbers
            self._came(session, number, fence, is_wanted=bool(is_wanted))
        elif what == "refused":
            self._refused(numbers[1])
        elif what == "wanted":
            self._wanted(numbers[0], is_patient=bool(numbers[1]))

    def _came(self, session: int, number: int, fence: int, *, is_wanted: bool) -> None:
        line = self._by_number.get(number) or self._by_id.get(session)
        if line is None:  # whose ticket it was has left
            passed = self._desk.pass_on(session, fence, is_leaving=True)
            passed.add_done_callback(asyncio.Future.exception)
            return
        line.id = session
        self._by_id[session] = line
        self._handed_over += fence > line.fence
        self._granted(line, number, fence, is_wanted=is_wanted)

    def _refused(self, number: int) -> None:
        line = self._by_number.get(number)
        waiter = self._drop(line, number) if line is not None else None
        if waiter is not None and not waiter.future.done():
            waiter.future.set_exception(WaitingRoomFull("a turn is running, or others wait"))

    def _wanted(self, session: int, *, is_patient: bool) -> None:
        line = self._by_id.get(session)
        if line is None or not line.fence:
            if self._asking:
                self._early.add(session)
            return
        if line.is_busy and not is_patient:
            self._desk.refuse(session)
            return
        line.wishes += 1
        if not (line.is_busy or line.passing):
            self._pass_on(line)

    async def look_again(self, fetch: Fetch) -> None:
        """See what is still ours after an absence."""
        held = [line for line in self._lines.values() if line.id]
        if not held:
            return
        rows = await fetch(_OURS, self._worker.id, [line.id for line in held])
        ours = {row[0]: row for row in rows}
        for line in held:
            row = ours.get(line.id)
            if line.fence and (row is None or row[2] != line.fence):
                self._lose(line)
            if row is None:
                continue
            if row[2] > line.fence:
                self._came(*row[:3], is_wanted=row[3])
            elif row[3]:
                self._wanted(line.id, is_patient=True)

    def _sweep_soon(self) -> None:
        if self._sweeper is None:
            self._sweeper = asyncio.get_running_loop().create_task(self._sweep())

    async def _sweep(self) -> None:
        """While anybody waits for another worker, look whether that one is gone."""
        pause_s = _SWEEP_S
        last_s = time.monotonic()
        try:
            while self._by_number:
                await asyncio.sleep(pause_s)
                start_s = time.monotonic()
                with contextlib.suppress(StoreError):  # who waits has a deadline
                    if start_s - last_s > _TICKETS_S:
                        last_s = start_s
                        await self._look_for_tickets()
                    sessions = sorted({line.id for line in self._by_number.values() if line.id})
                    for row in await self._worker.link.fetch(_SWEEP, self._worker.id, sessions):
                        self._came(*row[:3], is_wanted=row[3])
                took_s = time.monotonic() - start_s
                pause_s = min(max(_SWEEP_S, took_s / _SWEEP_SHARE), _TICKETS_S)
        finally:
            self._sweeper = None

    async def _look_for_tickets(self) -> None:
        """Draw anew where a ticket is gone: somebody took us for gone, and we were not."""
        queued = set(self._queued)
        rows = await self._worker.link.fetch(_TICKETS, self._worker.id)
        missing = queued - {row[0] for row in rows}
        if not missing:
            return
        await self.look_again(self._worker.link.fetch)  # it may have been granted just now
        for number in sorted(missing & self._queued):
            line = self._by_number[number]
            waiter = self._drop(line, number)
            if waiter is not None:
                self._draw(line, waiter)


_OURS = """
    SELECT id, coalesce(granted, 0), fence, EXISTS (SELECT FROM ticket WHERE session = id)
    FROM session WHERE holder = $1 AND id = ANY($2)"""
_TICKETS = "SELECT number FROM ticket WHERE worker = $1"
_SWEEP = "SELECT * FROM sweep($1, $2)"
