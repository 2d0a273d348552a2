"""What all endpoints of one server share: the manager, the limits, who may come, what goes on.

A turn runs in a task of its own, which no leaving client can cancel by accident; admission is
decided before it starts. It knows requests that were read and checked, never sockets or HTTP.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Iterable
from dataclasses import dataclass, field
from typing import Any, cast

from kode_lab.errors import CallerError, Refused
from kode_lab.http import ConnectionLimits
from kode_lab.key import SessionKey
from kode_lab.server.auth import ANYBODY, Tokens, Visitor
from kode_lab.server.body import TurnRequest
from kode_lab.server.live_state import Board, Ticket
from kode_lab.server.peers import Peers
from kode_lab.server.refusal import Problem, Rejected, problem_of
from kode_lab.server.session_limit import Census, SessionsOf
from kode_lab.sessions import SessionManager, TurnEvent, TurnReply
from kode_lab.sessions.agent import Strategy

__all__ = ["LOG", "Limits", "Service", "TurnTask", "outcome_of"]

LOG = logging.getLogger("kode_lab.server")

TurnTask = asyncio.Task[TurnReply]


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits of one server; an error names the limit that caused it.

    Attributes:
        connection: of each connection.
        turns_limit: turns in flight, waiting ones included.
        sessions_per_user_limit: sessions that rest in the store.
    """

    connection: ConnectionLimits = field(default_factory=ConnectionLimits)
    turns_limit: int = 10_000
    sessions_per_user_limit: int = 10_000


class Service:
    """One server's parts.

    Attributes:
        manager: takes the turns.
        board: what goes on.
        limits: what it bears.
        tokens: who may come; None is anybody who reaches it.
        census: the sessions of each user; None where the store cannot tell.
        is_ready: whether turns can be taken now.
        peers: the other workers behind the same port; None is nobody.
        is_draining: it is about to stop.
    """

    def __init__(
        self,
        manager: SessionManager,
        *,
        board: Board | None = None,
        sessions_of: SessionsOf | None = None,
        tokens: Tokens | None = None,
        limits: Limits | None = None,
        is_ready: Callable[[], bool] = lambda: True,
        peers: Peers | None = None,
    ) -> None:
        self.manager = manager
        self.is_ready = is_ready
        self.peers = peers
        self.board = board or Board()
        self.limits = limits or Limits()
        self.tokens = tokens
        self.census: Census | None = None
        if sessions_of is not None:
            limit = self.limits.sessions_per_user_limit
            self.census = Census(sessions_of, limit, in_flight=self._sessions_in_flight)
        self.is_draining = False
        # The loop itself keeps only weak references to tasks.
        self._tasks: dict[TurnTask, Ticket] = {}
        # Those whose session was not there before.
        self._counted: set[TurnTask] = set()
        self._others: set[asyncio.Task[None]] = set()

    @property
    def turns_in_flight(self) -> int:
        """How many turns were accepted and have not ended."""
        return len(self._tasks)

    def visitor_of(self, headers: Iterable[tuple[bytes, bytes]]) -> Visitor:
        """Return who sent a request with these headers.

        Raises:
            Rejected: nobody that may come (401).
        """
        return ANYBODY if self.tokens is None else self.tokens.visitor_of(headers)

    async def admit(self, key: SessionKey) -> bool:
        """Let one more turn of this session in, or say no before anything is accepted.

        Returns:
            whether the session was counted with it; ``begin`` wants to know, at once.

        Raises:
            Rejected: a limit is reached (429).
        """
        self._check_turns()
        if self.census is None:
            return False
        is_counted = await self.census.admit(key)
        try:
            # Others may have begun while the store was asked; from here to begin nobody can.
            self._check_turns()
        except Rejected:
            if is_counted:
                self.forget(key)
            raise
        return is_counted

    def forget(self, key: SessionKey) -> None:
        """Count the session no more: it is gone, unless a turn that is in flight makes it again."""
        if self.census is not None and all(turn.key != key for turn in self.board.line(key)):
            self.census.forget(key)

    def begin(
        self,
        request: TurnRequest,
        on_event: Callable[[TurnEvent], None] | None = None,
        *,
        is_counted: bool = False,
    ) -> TurnTask:
        """Take the turn in a task of its own, which goes on whatever becomes of its client."""
        ticket = self.board.accept(request.key, request.turn_id)
        task = asyncio.get_running_loop().create_task(
            self.manager.turn(
                request.key,
                request.message,
                turn_id=request.turn_id,
                strategy=cast("Strategy | None", request.strategy),  # the manager checks it
                deadline_s=request.deadline_s,
                on_event=on_event,
            )
        )
        self._tasks[task] = ticket
        if is_counted:
            self._counted.add(task)
        task.add_done_callback(self._ended)
        return task

    def client_left(self, request: TurnRequest, task: TurnTask) -> None:
        """Do what the request asked for in that case."""
        if request.on_disconnect == "rollback":
            self.manager.withdraw(request.key, task)

    def break_off(self) -> None:
        """End every turn now; what they did rests in the journal for whoever sends them again."""
        for task in list(self._tasks):
            task.cancel()

    def start(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Do other work in a task that outlives its client."""
        task = asyncio.get_running_loop().create_task(work)
        self._others.add(task)
        task.add_done_callback(self._others.discard)
        return task

    def _check_turns(self) -> None:
        limit = self.limits.turns_limit
        if len(self._tasks) >= limit:
            raise Rejected(
                429,
                "TooManyTurns",
                f"{len(self._tasks)} turns are in flight, turns_limit={limit}: send it again later",
                retry_after_s=1.0,
            )

    def _sessions_in_flight(self, user_id: str) -> set[SessionKey]:
        return {turn.key for turn in self._tasks.values() if turn.key.user_id == user_id}

    def _ended(self, task: TurnTask) -> None:
        ticket = self._tasks.pop(task)
        is_counted = task in self._counted
        self._counted.discard(task)
        error = asyncio.CancelledError() if task.cancelled() else task.exception()
        if error is None:
            self.board.end(ticket, "replay" if task.result().is_replay else "ok")
            return
        self.board.end(ticket, type(error).__name__)
        # A wrong call makes no session; one that is there stays counted, however wrong the call.
        if isinstance(error, CallerError) and is_counted:
            self.forget(ticket.key)
        if isinstance(error, (Refused, CallerError, asyncio.CancelledError)):
            return
        problem = problem_of(error)
        if problem.status == 500 and problem.kind == "InternalError":
            LOG.error("turn of %s failed by a mistake of ours", ticket.key, exc_info=error)
        elif problem.message != str(error):  # the client was not told the words
            LOG.warning("turn of %s: %s: %s", ticket.key, problem.kind, error)


def outcome_of(task: TurnTask) -> TurnReply | Problem:
    """Return what a turn that ended tells its client."""
    if task.cancelled():
        return Problem(
            503,
            "Draining",
            "the server stopped before the turn ended: send it again with the same turnId",
            5.0,
        )
    error = task.exception()
    return task.result() if error is None else problem_of(error)
