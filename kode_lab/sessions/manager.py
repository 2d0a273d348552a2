"""Takes turns for any number of sessions: those of one session one by one, others side by side.

The manager owns what lies between a request and a held session: admission, the four strategies for
two turns of one session, deadlines, stopping, agents in memory, shutdown. The order of turns is the
store's, whose lock is first come, first served. What a turn does step by step is in ``session``.
It must not know files, databases or HTTP.

Source: the strategies (enqueue, reject, interrupt, rollback) have the names that LangGraph's
platform gave them ("double texting").
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import time
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextvars import Context, ContextVar
from hashlib import blake2b
from types import TracebackType
from typing import Any, Literal, NamedTuple, Self

from kode_lab.errors import (
    AlreadyAnswered,
    CallerError,
    DeadlineExceeded,
    Draining,
    InvalidPrompt,
    InvalidScenario,
    KodeLabError,
    SelfDeadlock,
    SessionBusy,
    Superseded,
    TurnFailed,
    TurnPending,
    UnknownCall,
    WaitingRoomFull,
)
from kode_lab.history.span import Span, Trace
from kode_lab.key import SessionKey
from kode_lab.message import Content, Message, Model, ToolResult, tool_results, user
from kode_lab.sessions.agent import AgentConfig, Agents, Strategy, shelf_of
from kode_lab.sessions.files.store import JsonStore
from kode_lab.sessions.lock import LockStatistics
from kode_lab.sessions.open_turn import Finished, OpenTurn
from kode_lab.sessions.residents import Agent, Residents
from kode_lab.sessions.session import Session, checked_model
from kode_lab.sessions.store import Amendable, Lease, Lookable, Resumable, Rewindable, Store
from kode_lab.sessions.ticket import (
    Ticket,
    TurnEvent,
    TurnReply,
    checked_deadline,
    checked_turn_id,
    new_turn_id,
)
from kode_lab.sessions.tool import Blocked, LoopLag, Pending, ToolContext

__all__ = ["NESTING_LIMIT", "Agents", "ManagerStatistics", "SessionManager"]

_LOG = logging.getLogger("kode_lab.sessions")
# Agents that ask each other: each level holds a session and a place in the queue.
NESTING_LIMIT = 5

# A hold that took longer than this had to wait, for another task or another process.
_INSTANT_NS = 1_000_000
# For work on a session whose agent has no configuration any more: the default of an agent.
_QUEUE_LIMIT = 100
# How long ``stop`` waits for the end of a turn. Ending one takes a cancellation and a write.
_STOP_S = 5.0
_INTERRUPTED = "(This turn was interrupted before its answer.)"
_STOPPED = "(This turn was stopped before its answer.)"
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
        residents_bytes: the memory of the idle agents.
        blocked: the async tools that blocked the event loop, and for how long.
    """

    turns: int
    sessions: int
    residents: int
    lock: LockStatistics
    residents_bytes: int = 0
    blocked: tuple[Blocked, ...] = ()


class SessionManager:
    """Takes turns for any number of sessions; an async context manager that drains at its end.

    Args:
        store: a store, which is closed with the manager, or the path of a directory.
        agents: an ``AgentShelf``, a mapping of names to ``AgentConfig``, or several of these.
        model: an async callable that returns the reply to a ``Request``.
        trace: called with each span.
        residents_limit: agents that stay in memory between their turns.
        residents_limit_bytes: memory that these agents may take together.
        resident_idle_s: an agent that was idle longer is evicted when the next turn ends.
        drain_s: time that the turns in flight have when the manager closes.

    Raises:
        InvalidScenario: an argument is of the wrong kind.
    """

    def __init__(
        self,
        *,
        store: Store | str | os.PathLike[str],
        agents: Agents | Mapping[str, AgentConfig] | Iterable[AgentConfig],
        model: Model,
        trace: Trace | None = None,
        residents_limit: int = 10_000,
        residents_limit_bytes: int = 256_000_000,
        resident_idle_s: float = 900.0,
        drain_s: float = 30.0,
    ) -> None:
        self._agents = shelf_of(agents)
        self._store = _store_of(store)
        self._model = checked_model(model)
        self._lag = LoopLag()
        self._trace = trace
        self._residents = Residents(
            limit=residents_limit,
            limit_bytes=residents_limit_bytes,
            idle_limit_s=resident_idle_s,
        )
        self._drain_s = drain_s
        # The turns in flight of each userId:sessionId, in the order of their arrival.
        self._in_line: dict[tuple[str, ...], dict[Ticket, None]] = {}
        # Turns that tools asked for: the sessions that wait for them, and the session they are in.
        self._nested: dict[Ticket, tuple[set[tuple[str, str]], tuple[str, str]]] = {}
        # Deletions, rewinds and forks under way.
        self._others: set[asyncio.Task[Any] | None] = set()
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
            turn_id: names the turn: sent again, it returns the saved reply, or continues where a
                crash or an error stopped it.
            strategy: when the session is busy: ``enqueue``, ``reject``, ``interrupt`` (the others
                end, what they did stays), ``rollback`` (what they did is forgotten), ``steer`` (the
                running turn is given the prompt at its next step, and its reply answers both).
            deadline_s: from now to the reply, waiting included.
            on_event: called with each event of the turn; must not block.

        Raises:
            CallerError: the call is wrong.
            Refused: it was not accepted; sending it again is safe.
            TurnFailed: there is no reply; the same ``turn_id`` continues from what was done.
            StoreError: the session's storage cannot be used.
        """
        if self._is_closing and not _RUNS_FOR.get():  # a turn in flight may need another agent
            raise Draining(f"{key}: the manager is closing: send the turn to another one")
        config = self._agents.current(key.agent_id)
        ticket = Ticket(key, prompt, turn_id, strategy, config, on_event)
        limit_s = config.deadline_s if deadline_s is None else checked_deadline(deadline_s)
        if waiting := self._waiting_for_this(key):
            self._nested[ticket] = (waiting, key[:2])
        timer = ticket.expire_in(limit_s)
        line = self._in_line.setdefault(key[:2], {})
        # A turn that is sent again waits for its first sending: it is one turn.
        others = [t for t in line if t.turn_id != ticket.turn_id] if ticket.takes_place else ()
        line[ticket] = None
        reply = None
        try:
            for other in others:
                other.supersede(ticket.strategy)
            reply = await self._hold(ticket)
        except asyncio.CancelledError:
            if ticket.ran_out():
                raise DeadlineExceeded(
                    f"{key}: no reply within deadline_s={limit_s:g}; the same turnId continues it"
                ) from None
            if not ticket.gave_way():
                raise
            how = "it was stopped" if ticket.is_stopped else "a later turn took its place"
            raise Superseded(f"{key}: {how} ({ticket.superseded_by})") from None
        finally:
            timer.cancel()
            ticket.ran_out()  # it may have ended in another way all the same
            ticket.gave_way()
            if ticket.notes or ticket.given:
                ticket.hand_over(reply)
            self._nested.pop(ticket, None)
            ticket.task = None  # which holds the error, whose traceback holds the ticket
            del line[ticket]
            if not line:
                del self._in_line[key[:2]]
            self._one_ended.set()
        return reply

    def withdraw(self, key: SessionKey, task: asyncio.Task[TurnReply]) -> None:
        """Roll back the turn that ``task`` awaits, as a later turn with ``rollback`` would.

        A turn that is being appended already is saved; one that ended stays as it is.
        """
        for ticket in list(self._in_line.get(key[:2], ())):
            if ticket.task is task:
                ticket.supersede("rollback")

    async def history(self, key: SessionKey) -> list[Message]:
        """Return the conversation, for reading only; it does not wait for turns in flight."""
        return await self._store.peek(key)

    async def stop(
        self,
        key: SessionKey,
        *,
        turn_id: str | None = None,
        how: Literal["interrupt", "rollback"] = "interrupt",
        waiting: bool = False,
    ) -> tuple[str, ...]:
        """End the running turn of a session without sending another, and return what was ended.

        The caller of that turn gets ``Superseded``. A turn that is being appended already is saved.

        Args:
            key: the session.
            turn_id: end only this turn, running or waiting.
            how: ``interrupt`` keeps what the turn did, sealed; ``rollback`` forgets it (effects of
                tools stay).
            waiting: end the turns that wait for the session, too.

        Returns:
            The ids of the turns that were ended; () if none was in flight in this process.

        Raises:
            InvalidPrompt: ``how`` is neither of the two.
            DeadlineExceeded: a turn was told to end and has not ended yet.
        """
        if how not in ("interrupt", "rollback"):
            raise InvalidPrompt(f"how {how!r:.40} is not valid: choose interrupt or rollback")
        stopped = [
            ticket
            for ticket in self._in_line.get(key[:2], ())
            if ticket.key == key
            and (ticket.turn_id == turn_id if turn_id is not None else ticket.is_running or waiting)
        ]
        for ticket in stopped:
            ticket.supersede(how, is_stop=True)
        line = self._in_line.get(key[:2], {})
        try:
            async with asyncio.timeout(_STOP_S):
                while any(ticket in line for ticket in stopped):
                    self._one_ended.clear()
                    await self._one_ended.wait()
        except TimeoutError:
            raise DeadlineExceeded(
                f"{key}: the turn was told to end, and has not within {_STOP_S:g} s; look at what "
                "its tools or its store wait for"
            ) from None
        return tuple(ticket.turn_id for ticket in stopped if ticket.superseded_by is not None)

    async def approve(
        self,
        key: SessionKey,
        call_id: str,
        answer: str,
        *,
        wait_s: float | None = None,
        deadline_s: float | None = None,
        on_event: Callable[[TurnEvent], None] | None = None,
    ) -> TurnReply:
        """Answer a tool that waits for an approval, and continue its turn.

        The tool is called again with the answer in ``ToolContext.approval``; what a "no" means is
        the tool's decision. The first answer is saved and counts. The same one given again returns
        what the turn returned.

        Args:
            key: the session.
            call_id: the id of the tool call, from ``TurnPending.questions``.
            answer: what the tool is told.
            wait_s: how long to wait for turns in flight.
            deadline_s: from now to the reply.
            on_event: called with each event of the turn; must not block.

        Raises:
            UnknownCall: no such call waits.
            AlreadyAnswered: it has another answer.
            TurnPending: another call of the turn waits, too.
            Superseded: a later turn closed this one first.
        """
        self._refuse_if_closing(key, "nothing was approved")
        checked_turn_id(answer, "answer")
        async with self._holding(key, wait_s) as lease:
            agent = await self._agent(lease)
            turn_id, prompt = await self._approved(lease, agent, call_id, answer)
            self._residents.keep(agent)
        return await self.turn(
            key, prompt, turn_id=turn_id, deadline_s=deadline_s, on_event=on_event
        )

    async def _approved(
        self, lease: Lease, agent: Agent, call_id: str, answer: str
    ) -> tuple[str, Content]:
        """Save an answer, and return the id and the prompt of its turn."""
        turn = agent.open
        known: list[Finished | OpenTurn] = [*reversed(agent.finished.values())]
        if turn is not None:
            known.append(turn)
        for ended in known:
            given = ended.facts.get("approvals", {}).get(call_id)
            if given is None:
                continue
            if given != answer:
                raise AlreadyAnswered(
                    f"{agent.key}: call {call_id!r:.60} was answered {given!r:.60} already, and "
                    "that counts"
                )
            if isinstance(ended, Finished):
                return ended.turn_id, agent.prompt(ended, ended.turn_id)
            return ended.turn_id, ended.messages[0]["content"]
        # A tool that asks several times in one call has a question "callId:id" for each.
        if turn is None or not any(f"{call_id}:".startswith(f"{c.id}:") for c in turn.calls):
            raise UnknownCall(
                f"{agent.key}: no tool call {call_id!r:.60} waits here: its turn ended, or a later "
                "turn closed it"
            )
        entry = turn.remember(approvals={**turn.facts.get("approvals", {}), call_id: answer})
        await self._store.journal(lease, turn, entry)
        return turn.turn_id, turn.messages[0]["content"]

    async def ask_agent(self, context: ToolContext, agent_id: str, prompt: str) -> str | Pending:
        """Take a turn of another agent for a tool call, in a child session of the call's session.

        Use ``ToolContext.ask``. A repeated call continues the turn, or returns its saved reply.

        Raises:
            SelfDeadlock: agents ask each other more than ``NESTING_LIMIT`` deep.
            KodeLabError: as ``turn``.
        """
        if len(_RUNS_FOR.get()) > NESTING_LIMIT:
            raise SelfDeadlock(
                f"{context.key}: agents ask each other {NESTING_LIMIT=} deep: let one of them "
                "answer by itself"
            )
        key = context.key.child(agent_id)
        turn_id = blake2b(context.idempotency_key.encode(), digest_size=16).hexdigest()
        try:
            return (await self.turn(key, prompt, turn_id=turn_id)).text
        except TurnPending as pending:
            waiting = pending.questions
        while answered := [call_id for call_id in waiting if call_id in context.answers]:
            try:
                return (await self.approve(key, answered[0], context.answers[answered[0]])).text
            except TurnPending as pending:
                waiting = pending.questions
        call_id, question = next(iter(waiting.items()))
        return Pending(f"{agent_id}: {question}", call_id)

    @property
    def store(self) -> Store:
        """Where the sessions are."""
        return self._store

    async def delete(
        self, key: SessionKey, *, wait_s: float | None = None, stop: bool = False
    ) -> None:
        """Forget the conversation, after the turns that came before.

        The agent's configuration is not needed for it.

        Args:
            key: the session.
            wait_s: how long to wait for the turns in flight.
            stop: end them at once instead.

        Raises:
            UnknownAgent: there is no such agent, and no conversation with it.
            DeadlineExceeded: a turn still ran after ``wait_s``; nothing was deleted.
        """
        self._refuse_if_closing(key, "nothing was deleted")
        try:
            self._agents.current(key.agent_id)
        except CallerError:
            if not await self._store.peek(key):  # a hold would create what never existed
                raise
        if stop:
            await self.stop(key, how="rollback", waiting=True)
        store, is_idle = self._store, key[:2] not in self._in_line
        if is_idle and isinstance(store, Lookable) and not await store.has(key):
            return  # a hold would create what is to be forgotten
        async with self._holding(key, wait_s) as lease:
            self._residents.drop(key)
            await store.load(lease)
            await store.delete(lease)

    async def rewind(
        self,
        key: SessionKey,
        to_turn: str | int,
        *,
        turn_id: str | None = None,
        wait_s: float | None = None,
    ) -> tuple[str, ...]:
        """Remove the turns after ``to_turn`` from the conversation, after the turns in flight.

        The ids of removed turns stay known: such a turn sent again is refused (``Superseded``), and
        its tools do not run again. An unfinished turn is removed, too.

        Args:
            key: the session.
            to_turn: the id of the last turn to keep, or how many turns to keep (0: none).
            turn_id: names the rewind: sent again, it removes nothing more.
            wait_s: how long to wait for the turns in flight.

        Returns:
            The ids of the removed turns; those of the first time if ``turn_id`` is sent again.

        Raises:
            InvalidPrompt: there is no such turn.
            DeadlineExceeded: a turn still ran after ``wait_s``; nothing was changed.
        """
        self._refuse_if_closing(key, "nothing was changed")
        store = self._rewindable(key)
        rewind_id = new_turn_id() if turn_id is None else checked_turn_id(turn_id)
        async with self._holding(key, wait_s) as lease:
            agent = await self._agent(lease)
            done = agent.finished.get(rewind_id)
            if done is not None:
                if "rewound" not in done.facts:
                    raise InvalidPrompt(f"{key}: {rewind_id!r:.60} is the id of a turn")
                self._residents.keep(agent)
                return tuple(done.facts["rewound"])
            count = _count_at(agent, to_turn)
            removed: list[Finished | OpenTurn] = [
                turn for turn in agent.finished.values() if _is_after(turn, count)
            ]
            if agent.open is not None:
                removed.append(agent.open)
            gone = [one for t in removed for one in (t.turn_id, *t.facts.get("steered", ()))]
            await store.rewind(lease, count, rewind_id, gone)
            return tuple(gone)  # the agent is not kept: the next turn loads what is there now

    async def fork(
        self,
        key: SessionKey,
        new_key: SessionKey,
        *,
        at_turn: str | int | None = None,
        wait_s: float | None = None,
    ) -> int:
        """Copy a conversation into a session that has none, and return how many messages it has.

        The copied turns keep their ids. Forking again to the same session changes nothing.

        Args:
            key: the session to copy, which does not change.
            new_key: the session to make.
            at_turn: the id of the last turn to copy, or how many; None copies all.
            wait_s: how long to wait for the turns in flight of either session.

        Raises:
            InvalidPrompt: there is no such turn, or ``new_key`` has another conversation.
            DeadlineExceeded: a turn still ran after ``wait_s``; nothing was changed.
        """
        self._refuse_if_closing(key, "nothing was copied")
        store = self._rewindable(key)
        self._agents.current(new_key.agent_id)
        # One lock after the other: both at once could wait for each other.
        async with self._holding(key, wait_s) as lease:
            agent = await self._agent(lease)
            self._residents.keep(agent)
            count = len(agent.conversation) if at_turn is None else _count_at(agent, at_turn)
            messages = agent.conversation.messages(0, count)
            turns = [f for f in agent.finished.values() if not _is_after(f, count)]
        async with self._holding(new_key, wait_s) as lease:
            self._residents.drop(new_key)
            there = await self._store.load(lease)
            if there.messages or there.open is not None:
                if there.messages[:count] != messages:
                    raise InvalidPrompt(
                        f"{new_key}: it has another conversation: fork to a session that has none"
                    )
            elif messages:
                await store.fill(lease, messages, [t for t in turns if not t.is_rewound])
        return count

    def statistics(self) -> ManagerStatistics:
        """Return what the manager is doing now."""
        return ManagerStatistics(
            sum(map(len, self._in_line.values())),
            len(self._in_line),
            len(self._residents),
            self._store.statistics(),
            self._residents.size_bytes,
            self._lag.by_tool(),
        )

    async def aclose(self) -> None:
        """Take no more turns, let those in flight end, cancel what outlasts ``drain_s``."""
        self._is_closing = True
        await self._ended(self._drain_s)
        for task in [*(ticket.task for ticket in self._in_flight()), *self._others]:
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
        return [
            ticket for line in self._in_line.values() for ticket in line if ticket.task is not me
        ]

    async def _ended(self, timeout_s: float | None) -> None:
        """Wait until no turn or deletion is in flight, so long at most; their tasks may live on."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                while self._others or self._in_flight():
                    self._one_ended.clear()
                    await self._one_ended.wait()

    def _refuse_if_closing(self, key: SessionKey, so_far: str) -> None:
        if self._is_closing:
            raise Draining(f"{key}: the manager is closing: {so_far}")

    def _steerable(self, ticket: Ticket) -> Ticket | None:
        """Return the running turn that can be given this prompt, or None."""
        for other in self._in_line[ticket.key[:2]]:
            known = {other.turn_id, *(one.turn_id for one in (*other.notes, *other.given))}
            if (
                other.is_running
                and other.key == ticket.key
                and other.superseded_by is None
                and not other.is_committing
                and ticket.turn_id not in known
            ):
                return other
        return None

    def _came_late(self, key: SessionKey, result: ToolResult) -> None:
        """Take the result of a tool that ended after its turn was ended, or broken off."""
        # Not in the context of the turn: it would seem to wait for itself.
        loop = asyncio.get_running_loop()
        task = loop.create_task(self._take_late(key, result), context=Context())
        self._others.add(task)
        task.add_done_callback(self._others.discard)

    async def _take_late(self, key: SessionKey, result: ToolResult) -> None:
        """Put a late result in the place of the words that its outcome is unknown."""
        store = self._store
        try:
            async with self._holding(key, None) as lease:
                agent = await self._agent(lease)
                turn = agent.open
                calls = agent.unknown_calls(has_settled=True)
                sealed = [call for call in calls if call.call_id == result.call_id]
                if turn is not None and result.call_id in {call.id for call in turn.calls}:
                    turn.add_result(result)
                    await store.journal(lease, turn, turn.result_entry(result))
                elif sealed and isinstance(store, Amendable):
                    at = sealed[-1].at
                    (message,) = agent.conversation.messages(at, at + 1)
                    (new,) = tool_results([result])["content"]
                    blocks = [
                        new if block.get("tool_use_id") == result.call_id else block
                        for block in message["content"]
                    ]
                    await store.amend(lease, at, {**message, "content": blocks})
                    return  # the agent is not kept: the next turn loads what is there now
                self._residents.keep(agent)
        except KodeLabError as error:
            _LOG.info("%s: the late result of %s was not saved: %s", key, result.call_id, error)

    def _rewindable(self, key: SessionKey) -> Rewindable:
        if not isinstance(self._store, Rewindable):
            raise CallerError(
                f"{key}: a {type(self._store).__name__} cannot rewind or fork: it lacks the "
                "methods of kode_lab.sessions.store.Rewindable"
            )
        return self._store

    @contextlib.asynccontextmanager
    async def _holding(self, key: SessionKey, wait_s: float | None) -> AsyncIterator[Lease]:
        """Hold the session for something that is not a turn."""
        self._waiting_for_this(key)
        try:
            queue_limit = self._agents.current(key.agent_id).queue_limit
        except CallerError:
            queue_limit = _QUEUE_LIMIT
        task = asyncio.current_task()
        self._others.add(task)
        try:
            try:
                async with asyncio.timeout(None if wait_s is None else checked_deadline(wait_s)):
                    lease = await self._store.hold(key, queue_limit=queue_limit)
            except TimeoutError:
                raise DeadlineExceeded(
                    f"{key}: a turn still runs after wait_s={wait_s:g}; nothing was changed: stop "
                    "the turn, or wait longer"
                ) from None
            try:
                yield lease
            finally:
                self._store.release(lease)
        finally:
            self._others.discard(task)
            self._one_ended.set()

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
            ticket.key[:2] for ticket in outer if ticket in self._in_line.get(ticket.key[:2], ())
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
        if (
            ticket.strategy == "steer"
            and (running := self._steerable(ticket)) is not None
            and (reply := await ticket.steer(running)) is not None
        ):
            return reply
        start_ns = time.monotonic_ns()
        ahead = len(self._in_line[key[:2]]) - 1
        try:
            lease = await self._store.hold(key, queue_limit=ticket.queue_limit)
        except WaitingRoomFull as error:
            if ticket.strategy != "reject":
                raise
            raise SessionBusy(f"{key}: a turn is running, and the strategy is reject") from error
        error_name: str | None = None
        runs_for = _RUNS_FOR.set((*_RUNS_FOR.get(), ticket))
        try:
            ticket.is_running = True
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
        saved = agent.turn(ticket.turn_id)
        if saved is not None:
            self._residents.keep(agent)
            if not saved.is_rewound:
                _check_prompt(ticket, agent.prompt(saved, ticket.turn_id))
            return agent.reply(saved, ticket.turn_id, is_replay=True)
        turn = await self._open(lease, agent, ticket)
        session = Session(
            lease,
            self._store,
            agent,
            turn,
            ticket,
            self._model,
            self._trace,
            host=self,
            lag=self._lag,
            on_late=self._came_late,
        )
        try:
            finished = await session.run()
        except (TurnFailed, asyncio.CancelledError) as error:
            if ticket.superseded_by is not None and not ticket.is_committing:
                await self._give_way(lease, agent, turn, ticket)
                raise asyncio.CancelledError from error  # whatever the model made of it
            if isinstance(error, TurnFailed):
                agent.open = turn if turn.steps else None
                self._residents.keep(agent)
            raise
        self._residents.keep(agent)
        return agent.reply(finished, ticket.turn_id, is_replay=False)

    async def _agent(self, lease: Lease, ticket: Ticket | None = None) -> Agent:
        """Return the session's agent: the resident if it may be used, else one made now."""
        left = self._residents.outdated(lease)
        agent = self._residents.take(lease)
        if agent is None:
            start_ns = time.monotonic_ns()
            if left is None or not isinstance(self._store, Resumable):
                agent = Agent(lease, await self._store.load(lease))
            else:
                stored, is_news = await self._store.load_since(lease, left.fence)
                agent = left if is_news else Agent(lease, stored)
                if is_news:
                    agent.catch_up(lease, stored)
            if ticket is not None:
                facts = {"kode_lab.messages": len(agent.conversation)}
                self._span(ticket, "load", start_ns, facts)
        return agent

    async def _open(self, lease: Lease, agent: Agent, ticket: Ticket) -> OpenTurn:
        """Return the open turn if it is the one asked for, else a new turn."""
        left = agent.open
        if left is not None and left.turn_id == ticket.turn_id:
            _check_prompt(ticket, left.messages[0]["content"])
            return left
        if left is not None and ticket.turn_id in left.facts.get("steered", ()):
            at, start, end = left.facts["steered"][ticket.turn_id]
            _check_prompt(ticket, left.messages[at]["content"][start:end])
            return left
        if left is not None:
            entries = [] if left.is_answered else left.seal(_BROKEN_OFF)
            agent.took(left, await self._store.append(lease, left, entries))
        return OpenTurn(ticket.turn_id, user(ticket.prompt), ticket.config.version)

    async def _give_way(self, lease: Lease, agent: Agent, turn: OpenTurn, ticket: Ticket) -> None:
        """End a turn for a later one or on request: keep what it did, or forget it."""
        if ticket.superseded_by == "rollback":
            await self._store.discard(lease)
            agent.open = None
        else:
            entries = turn.seal(_STOPPED if ticket.is_stopped else _INTERRUPTED)
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


def _check_prompt(ticket: Ticket, taken: object) -> None:
    """Refuse the id of another prompt's turn, because its reply would answer that prompt."""
    if taken != user(ticket.prompt)["content"]:
        raise InvalidPrompt(
            f"{ticket.key}: turnId {ticket.turn_id!r:.60} belongs to another prompt: send that "
            "prompt again, or use an id of its own for this one"
        )


def _count_at(agent: Agent, turn: str | int) -> int:
    """Return how many messages there are up to the end of a turn, given by its id or its number."""
    if isinstance(turn, str):
        found = agent.finished.get(turn)
        if found is None or found.is_rewound:
            why = "was removed by a rewind" if found is not None else "is not in the conversation"
            raise InvalidPrompt(f"{agent.key}: turn {turn!r:.60} {why}")
        return found.last + 1
    messages = agent.conversation.messages()
    # A prompt that was given to a running turn begins none.
    within = {at for f in agent.steered.values() for at in range(f.first + 1, f.last + 1)}
    starts = [at for at, m in enumerate(messages) if _is_prompt(m) and at not in within]
    if isinstance(turn, bool) or not isinstance(turn, int) or not 0 <= turn <= len(starts):
        raise InvalidPrompt(
            f"{agent.key}: turn {turn!r:.60} is not valid: pass the id of a turn in the "
            f"conversation, or a number from 0 to {len(starts)}"
        )
    return [*starts, len(messages)][turn]


def _is_prompt(message: Message) -> bool:
    content = message["content"]
    return message["role"] == "user" and not (
        isinstance(content, list) and any(block["type"] == "tool_result" for block in content)
    )


def _is_after(turn: Finished, count: int) -> bool:
    """Whether a turn is in the conversation, and not whole within its first messages."""
    return not turn.is_rewound and turn.last >= count


def _store_of(store: object) -> Store:
    """Return the store, or one of files in a directory that is named."""
    if isinstance(store, str | os.PathLike):
        return JsonStore(os.fspath(store))
    if isinstance(store, type) or not callable(getattr(store, "hold", None)):
        what = (
            f"the class {store.__name__}"
            if isinstance(store, type)
            else f"a {type(store).__name__}"
        )
        raise InvalidScenario(
            f"store is {what}: pass a directory's path, a JsonStore, a "
            "PostgresStore, or your own kode_lab.Store"
        )
    return store  # type: ignore[return-value]  # its other methods are its own to have
