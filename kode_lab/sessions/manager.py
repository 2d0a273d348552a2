"""Who comes when: the turns of one session one by one, those of different sessions side by side.

The manager owns what is between a request and a held session: admission, the four strategies for
two turns of one session, deadlines, the resident agents, the end. The order itself is the
store's, whose lock is first come first served; what a holder does is the turn's.

Source: the strategies (enqueue, reject, interrupt, rollback) carry the names that LangGraph's
platform gave them ("double texting").
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Iterable
from contextvars import ContextVar
from types import TracebackType
from typing import Any, NamedTuple, Self

from kode_lab.errors import (
    CallerError,
    DeadlineExceeded,
    Draining,
    InvalidPrompt,
    SelfDeadlock,
    SessionBusy,
    Superseded,
    TurnFailed,
    WaitingRoomFull,
)
from kode_lab.history.span import Span, Trace
from kode_lab.key import SessionKey
from kode_lab.message import Content, Message, Model, user
from kode_lab.sessions.agent import AgentConfig, AgentShelf, Strategy, shelf_of
from kode_lab.sessions.lock import LockStatistics
from kode_lab.sessions.open_turn import OpenTurn
from kode_lab.sessions.residents import Agent, Residents
from kode_lab.sessions.session import Session, TurnEvent, checked_model
from kode_lab.sessions.store import Lease, Lookable, Store, checked_store
from kode_lab.sessions.ticket import Ticket, checked_deadline
from kode_lab.sessions.tool import Blocked, LoopLag
from kode_lab.sessions.turn import TurnReply, reply_of, take_turn

__all__ = ["ManagerStatistics", "SessionManager", "TurnEvent", "TurnReply"]

# A hold that took longer than this had to wait, for another task or another process.
_INSTANT_NS = 1_000_000
# For a deletion whose agent no longer says how many may wait: what agents say by themselves.
_QUEUE_LIMIT = 100
_INTERRUPTED = "(This turn was interrupted before its answer.)"
_BROKEN_OFF = "(This turn was broken off before its answer.)"


# The turns, of any manager, whose tools this code runs for: the outermost first.
_RUNS_FOR: ContextVar[tuple[Ticket, ...]] = ContextVar("turns that this code runs for", default=())


class ManagerStatistics(NamedTuple):
    """What the manager is doing now.

    Attributes:
        turns: accepted and not yet ended.
        sessions: those that these turns belong to.
        residents: idle agents in memory.
        lock: the store's lock.
        blocked: the async tools that blocked the event loop, and for how long.
    """

    turns: int
    sessions: int
    residents: int
    lock: LockStatistics
    blocked: tuple[Blocked, ...] = ()


class SessionManager:
    """Takes turns for any number of sessions; an async context manager that drains at its end.

    Args:
        store: taken over: it is closed with the manager.
        trace: where the spans go.
        residents_limit: agents that stay in memory between their turns.
        resident_idle_s: an agent that rested longer goes when the next turn ends.
        drain_s: what the turns in flight have when the manager closes.
    """

    def __init__(
        self,
        *,
        store: Store,
        agents: AgentShelf | Iterable[AgentConfig],
        model: Model,
        trace: Trace | None = None,
        residents_limit: int = 10_000,
        resident_idle_s: float = 900.0,
        drain_s: float = 30.0,
    ) -> None:
        self._store = checked_store(store)
        self._agents = shelf_of(agents)
        self._model = checked_model(model)
        self._lag = LoopLag()
        self._trace = trace
        self._residents = Residents(limit=residents_limit, idle_limit_s=resident_idle_s)
        self._drain_s = drain_s
        # The turns in flight of each userId:sessionId, in the order of their arrival.
        self._lines: dict[tuple[str, ...], dict[Ticket, None]] = {}
        # Turns that tools asked for: the sessions that wait for them, and the session they are in.
        self._nested: dict[Ticket, tuple[set[tuple[str, str]], tuple[str, str]]] = {}
        self._deletions: set[asyncio.Task[Any] | None] = set()
        self._is_closing = False
        self._one_ended = asyncio.Event()

    async def turn(
        self,
        key: SessionKey,
        prompt: Content,
        *,
        turn_id: str | None = None,
        strategy: Strategy | None = None,
        deadline_s: float | None = None,
        on_event: Callable[[TurnEvent], None] | None = None,
    ) -> TurnReply:
        """Take one turn, after all turns of this session that came before.

        Args:
            key: the session.
            prompt: text, or content blocks of the Messages API (text, images, documents).
            turn_id: names the turn: sent again, it gives the saved reply, or goes on where a
                crash or an error stopped it.
            strategy: when the session is busy: ``enqueue``, ``reject``, ``interrupt`` (the others
                end, what they did stays), ``rollback`` (what they did is forgotten).
            deadline_s: from now to the reply, waiting included.
            on_event: is told what happens; must not block.

        Raises:
            CallerError: the call is wrong.
            Refused: it was not accepted; sending it again is safe.
            TurnFailed: there is no reply; the same ``turn_id`` goes on from what was done.
            StoreError: the session's storage cannot be used.
        """
        if self._is_closing:
            raise Draining(f"{key}: the manager is closing: send the turn to another one")
        config = self._agents.current(key.agent_id)
        ticket = Ticket(key, prompt, turn_id, strategy, config, on_event)
        limit_s = config.deadline_s if deadline_s is None else checked_deadline(deadline_s)
        if waiting := self._waiting_for_this(key):
            self._nested[ticket] = (waiting, key[:2])
        timer = ticket.expire_in(limit_s)
        line = self._lines.setdefault(key[:2], {})
        # A turn that is sent again waits for its first sending: it is one turn.
        others = [t for t in line if t.turn_id != ticket.turn_id] if ticket.takes_place else ()
        line[ticket] = None
        try:
            for other in others:
                other.supersede(ticket.strategy)
            return await self._hold(ticket)
        except asyncio.CancelledError:
            if ticket.ran_out():
                raise DeadlineExceeded(
                    f"{key}: no reply within deadline_s={limit_s:g}; the same turnId goes on"
                ) from None
            if not ticket.gave_way():
                raise
            raise Superseded(
                f"{key}: a later turn took its place ({ticket.superseded_by})"
            ) from None
        finally:
            timer.cancel()
            ticket.ran_out()  # it may have ended in another way all the same
            ticket.gave_way()
            self._nested.pop(ticket, None)
            ticket.task = None  # which holds the error, whose traceback holds the ticket
            del line[ticket]
            if not line:
                del self._lines[key[:2]]
            self._one_ended.set()

    def withdraw(self, key: SessionKey, task: asyncio.Task[TurnReply]) -> None:
        """Roll back the turn that ``task`` awaits, as a later turn with ``rollback`` would.

        A turn that is being appended already is saved; one that ended stays as it is.
        """
        for ticket in list(self._lines.get(key[:2], ())):
            if ticket.task is task:
                ticket.supersede("rollback")

    async def history(self, key: SessionKey) -> list[Message]:
        """Return the conversation, for reading only; it does not wait for turns in flight."""
        return await self._store.peek(key)

    async def delete(self, key: SessionKey) -> None:
        """Forget the conversation, after the turns that came before.

        It can be forgotten when its agent's configuration is gone or broken, too.

        Raises:
            UnknownAgent: there is no such agent, and no conversation with it.
        """
        if self._is_closing:
            raise Draining(f"{key}: the manager is closing: nothing was deleted")
        self._waiting_for_this(key)
        try:
            queue_limit = self._agents.current(key.agent_id).queue_limit
        except CallerError:
            if not await self._store.peek(key):  # a hold would make what was never there
                raise
            queue_limit = _QUEUE_LIMIT
        store, is_idle = self._store, key[:2] not in self._lines
        if is_idle and isinstance(store, Lookable) and not await store.has(key):
            return  # a hold would make what is to be forgotten
        task = asyncio.current_task()
        self._deletions.add(task)
        try:
            await self._delete(key, queue_limit)
        finally:
            self._deletions.remove(task)
            self._one_ended.set()

    def statistics(self) -> ManagerStatistics:
        """Return what the manager is doing now."""
        return ManagerStatistics(
            sum(map(len, self._lines.values())),
            len(self._lines),
            len(self._residents),
            self._store.statistics(),
            self._lag.by_tool(),
        )

    async def aclose(self) -> None:
        """Take no more turns, let those in flight end, cancel what outlasts ``drain_s``."""
        self._is_closing = True
        await self._ended(self._drain_s)
        for task in [*(ticket.task for ticket in self._in_flight()), *self._deletions]:
            if task is not None:
                task.cancel()
        await self._ended(None)
        await self._store.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose()

    # ---- the end

    def _in_flight(self) -> list[Ticket]:
        """Return the turns in flight, but for one that closes the manager itself."""
        me = asyncio.current_task()
        return [ticket for line in self._lines.values() for ticket in line if ticket.task is not me]

    async def _ended(self, timeout_s: float | None) -> None:
        """Wait until no turn or deletion is in flight, so long at most; their tasks may live on."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                while self._deletions or self._in_flight():
                    self._one_ended.clear()
                    await self._one_ended.wait()

    async def _delete(self, key: SessionKey, queue_limit: int) -> None:
        lease = await self._store.hold(key, queue_limit=queue_limit)
        try:
            self._residents.drop(key)
            await self._store.load(lease)
            await self._store.delete(lease)
        finally:
            self._store.release(lease)

    # ---- one turn, step by step

    def _waiting_for_this(self, key: SessionKey) -> set[tuple[str, str]]:
        """Return the sessions whose tools run this code, and so wait for what it asks for.

        Raises:
            SelfDeadlock: one of them would wait for itself, directly or through other sessions.
        """
        if not (outer := _RUNS_FOR.get()):
            return set()
        # A task that a tool left running may outlive the turn: nothing waits for it then.
        waiting = {
            ticket.key[:2] for ticket in outer if ticket in self._lines.get(ticket.key[:2], ())
        }
        reached: set[tuple[str, str]] = set()
        ahead = [key[:2]]
        while ahead:
            session = ahead.pop()
            if session in waiting:
                raise SelfDeadlock(
                    f"{key}: a tool of a turn asks in a session that waits for this tool, so it "
                    "would wait for itself: use another sessionId, or ask after the turn"
                )
            if session not in reached:
                reached.add(session)
                ahead += [to for froms, to in self._nested.values() if session in froms]
        return waiting

    async def _hold(self, ticket: Ticket) -> TurnReply:
        """Wait for the session, and take the turn under its lease."""
        key = ticket.key
        start_ns = time.monotonic_ns()
        ahead = len(self._lines[key[:2]]) - 1
        try:
            lease = await self._store.hold(key, queue_limit=ticket.queue_limit)
        except WaitingRoomFull as error:
            if ticket.strategy != "reject":
                raise
            raise SessionBusy(f"{key}: a turn is running, and the strategy is reject") from error
        error_name: str | None = None
        runs_for = _RUNS_FOR.set((*_RUNS_FOR.get(), ticket))
        try:
            self._span(ticket, "wait", start_ns, {"kode_lab.queue.length": ahead})
            if ahead or time.monotonic_ns() - start_ns > _INSTANT_NS:  # it may have changed since
                ticket.config = self._agents.current(key.agent_id)
            if ticket.on_event is not None:
                ticket.on_event(TurnEvent("started"))
            return await self._take(lease, ticket)
        except BaseException as error:
            error_name = type(error).__name__
            raise
        finally:
            _RUNS_FOR.reset(runs_for)
            self._store.release(lease)
            version = ticket.config.version
            facts = {"kode_lab.config.version": version, "kode_lab.fence": lease.fence}
            self._span(ticket, "turn", start_ns, facts, error_name)

    async def _take(self, lease: Lease, ticket: Ticket) -> TurnReply:
        """Take the turn with the session's agent, and decide what of a failed one is kept."""
        agent = await self._agent(lease, ticket)
        saved = agent.finished.get(ticket.turn_id)
        if saved is not None:
            _check_prompt(ticket, agent.messages[saved.first])
            self._residents.keep(agent)
            return reply_of(agent, saved, is_replay=True)
        turn = await self._open(lease, agent, ticket)
        session = ticket.session = Session(
            lease,
            self._store,
            agent,
            turn,
            ticket.config,
            self._model,
            self._trace,
            ticket.on_event,
            lag=self._lag,
            end_s=ticket.end_s,
        )
        try:
            await take_turn(session)
        except (TurnFailed, asyncio.CancelledError) as error:
            if ticket.superseded_by is not None and not session.is_committing:
                await self._give_way(lease, agent, turn, ticket.superseded_by)
                raise asyncio.CancelledError from error  # whatever the model made of it
            if isinstance(error, TurnFailed):
                agent.open = turn if turn.steps else None
                self._residents.keep(agent)
            raise
        self._residents.keep(agent)
        assert session.finished is not None
        return reply_of(agent, session.finished, is_replay=False)

    async def _agent(self, lease: Lease, ticket: Ticket) -> Agent:
        """Return the session's agent: the resident if it is still good, else one made now."""
        agent = self._residents.take(lease)
        if agent is None:
            start_ns = time.monotonic_ns()
            agent = Agent(lease, await self._store.load(lease))
            facts = {"kode_lab.messages": len(agent.messages)}
            self._span(ticket, "load", start_ns, facts)
        return agent

    async def _open(self, lease: Lease, agent: Agent, ticket: Ticket) -> OpenTurn:
        """Return the open turn if it is the one asked for, else a new turn."""
        left = agent.open
        if left is not None and left.turn_id == ticket.turn_id:
            _check_prompt(ticket, left.messages[0])
            return left
        if left is not None:
            entries = [] if left.is_answered else left.seal(_BROKEN_OFF)
            agent.took(left, await self._store.append(lease, left, entries))
        return OpenTurn(ticket.turn_id, user(ticket.prompt), ticket.config.version)

    async def _give_way(self, lease: Lease, agent: Agent, turn: OpenTurn, strategy: str) -> None:
        """End a turn for a later one: keep what it did, or forget it."""
        if strategy == "rollback":
            await self._store.discard(lease)
            agent.open = None
        else:
            entries = turn.seal(_INTERRUPTED)
            agent.took(turn, await self._store.append(lease, turn, entries))
        self._residents.keep(agent)

    def _span(
        self,
        ticket: Ticket,
        step: str,
        start_ns: int,
        attributes: dict[str, Any],
        error: str | None = None,
    ) -> None:
        if self._trace is not None:
            end_ns = time.monotonic_ns()
            self._trace(Span(ticket.key, ticket.turn_id, step, start_ns, end_ns, attributes, error))


def _check_prompt(ticket: Ticket, taken: Message) -> None:
    """Refuse the id of another prompt's turn: its reply would answer what nobody asks."""
    if taken != user(ticket.prompt):
        raise InvalidPrompt(
            f"{ticket.key}: turnId {ticket.turn_id!r:.60} belongs to another prompt: send that "
            "prompt again, or give this one an id of its own"
        )
