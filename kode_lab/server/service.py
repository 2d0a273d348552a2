"""What all routes of one server share: the manager, the limits, the tokens, the live state.

A turn runs in a task of its own, so a client that leaves does not cancel it by accident; whether it
is admitted is decided before it starts. This module knows checked requests, not sockets or HTTP.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from typing import Any

from kode_lab.errors import CallerError, DeadlineExceeded, Refused
from kode_lab.key import SessionKey
from kode_lab.server.auth import Tokens
from kode_lab.server.limits import HeldSessions, Limits, SessionLimit, SessionsOf
from kode_lab.server.live_state import LiveState, LiveTurn
from kode_lab.server.peers import Peers
from kode_lab.server.refusal import Problem, Rejected, problem_of
from kode_lab.server.schemas import DEADLINE_LIMIT_S, TurnRequest
from kode_lab.sessions import SessionManager, TurnEvent, TurnReply

__all__ = ["LOG", "Service", "TurnTask", "outcome_of"]

LOG = logging.getLogger("kode_lab.server")

TurnTask = asyncio.Task[TurnReply]


class Service:
    """One server's parts.

    Attributes:
        manager: takes the turns.
        live_state: what goes on.
        limits: what is accepted.
        tokens: the accepted tokens; None accepts every request from this machine.
        session_limit: the sessions of each user; None if the store cannot list them.
        is_ready: whether turns can be taken now.
        peers: the other workers behind the same port; None if there are none.
        deadline_of: the deadline of an agent's turns, in seconds.
        is_draining: the server is about to stop.
    """

    def __init__(
        self,
        manager: SessionManager,
        *,
        live_state: LiveState | None = None,
        sessions_of: SessionsOf | None = None,
        tokens: Tokens | None = None,
        limits: Limits | None = None,
        is_ready: Callable[[], bool] = lambda: True,
        peers: Peers | None = None,
        deadline_of: Callable[[str], float] = lambda _: DEADLINE_LIMIT_S,
    ) -> None:
        self.manager = manager
        self.is_ready = is_ready
        self.peers = peers
        self.live_state = live_state or LiveState()
        self.limits = limits or Limits()
        self.tokens = tokens
        self.deadline_of = deadline_of
        self.session_limit: SessionLimit | None = None
        if sessions_of is not None:
            limit = self.limits.sessions_per_user_limit
            self.session_limit = SessionLimit(
                sessions_of, limit, in_flight=self._sessions_in_flight
            )
        held = self.limits.held_sessions_limit
        self._held = None if held is None or held >= self.limits.turns_limit else HeldSessions(held)
        self.is_draining = False
        # The loop itself keeps only weak references to tasks.
        self._tasks: dict[TurnTask, LiveTurn] = {}
        # The turns whose session was not there before.
        self._counted: set[TurnTask] = set()
        self._others: set[asyncio.Task[Any]] = set()

    @property
    def turns_in_flight(self) -> int:
        """How many turns were accepted and have not ended."""
        return len(self._tasks)

    async def admit(self, key: SessionKey) -> bool:
        """Admit one more turn of this session, or refuse it before anything is accepted.

        Returns:
            Whether the session was counted with it, which ``begin`` needs to know.

        Raises:
            Rejected: a limit is reached (429).
        """
        self._check_turns()
        if self.session_limit is None or self.session_limit.knows(key):
            return False
        is_counted = await self.session_limit.admit(key)
        try:
            # Others may have begun while the store was asked; from here to begin none can.
            self._check_turns()
        except Rejected:
            if is_counted:
                self.forget(key)
            raise
        return is_counted

    def forget(self, key: SessionKey) -> None:
        """Stop counting the session: it is gone, unless a turn in flight makes it again."""
        if self.session_limit is not None and all(
            turn.key != key for turn in self.live_state.queue(key)
        ):
            self.session_limit.forget(key)

    def begin(
        self,
        request: TurnRequest,
        on_event: Callable[[TurnEvent], None] | None = None,
        *,
        is_counted: bool = False,
    ) -> TurnTask:
        """Take the turn in a task of its own, which goes on when its client leaves."""
        turn = self.live_state.accept(request.key, request.turn_id)
        taking = (
            self._taken(request, on_event)
            if self._held is None
            else self._queued(self._held, request, on_event)
        )
        task = asyncio.get_running_loop().create_task(taking)
        self._tasks[task] = turn
        if is_counted:
            self._counted.add(task)
        task.add_done_callback(self._ended)
        return task

    def client_left(self, request: TurnRequest, task: TurnTask) -> None:
        """Do what the request asked for in that case."""
        if request.on_disconnect == "rollback":
            self.manager.withdraw(request.key, task)

    def break_off(self) -> None:
        """End every turn now; what they did stays in the journal until they are sent again."""
        for task in list(self._tasks):
            task.cancel()

    def start(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """Do other work in a task that outlives its client."""
        task = asyncio.get_running_loop().create_task(work)
        self._others.add(task)
        task.add_done_callback(self._others.discard)
        return task

    def _taken(
        self,
        request: TurnRequest,
        on_event: Callable[[TurnEvent], None] | None,
        waited_s: float = 0.0,
    ) -> Coroutine[Any, Any, TurnReply]:
        deadline_s = request.deadline_s
        if waited_s:
            deadline_s = self._deadline_s(request) - waited_s
        return self.manager.turn(
            request.key,
            request.message,
            turn_id=request.turn_id,
            strategy=request.strategy,
            deadline_s=deadline_s,
            on_event=on_event,
        )

    def _deadline_s(self, request: TurnRequest) -> float:
        if request.deadline_s is not None:
            return request.deadline_s
        return self.deadline_of(request.key.agent_id)

    async def _queued(
        self,
        held: HeldSessions,
        request: TurnRequest,
        on_event: Callable[[TurnEvent], None] | None,
    ) -> TurnReply:
        """Take the turn once there are open files for its session."""
        loop = asyncio.get_running_loop()
        start_s, limit_s = loop.time(), self._deadline_s(request)
        try:
            async with asyncio.timeout(limit_s):
                await held.enter(request.key)
        except TimeoutError:
            raise DeadlineExceeded(
                f"{request.key}: no reply within deadline_s={limit_s:g}: the turn still waited "
                f"for open files, held_sessions_limit={self.limits.held_sessions_limit}"
            ) from None
        try:
            return await self._taken(request, on_event, loop.time() - start_s)
        finally:
            held.leave(request.key)

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
        turn = self._tasks.pop(task)
        is_counted = task in self._counted
        self._counted.discard(task)
        error = asyncio.CancelledError() if task.cancelled() else task.exception()
        if error is None:
            self.live_state.end(turn, "replay" if task.result().is_replay else "ok")
            return
        self.live_state.end(turn, type(error).__name__)
        # A wrong call makes no session; one that exists stays counted, however wrong the call.
        if isinstance(error, CallerError) and is_counted:
            self.forget(turn.key)
        if isinstance(error, (Refused, CallerError, asyncio.CancelledError)):
            return
        problem = problem_of(error)
        if problem.status == 500 and problem.kind == "InternalError":
            LOG.error("turn of %s failed because of a defect", turn.key, exc_info=error)
        elif problem.message != str(error):  # the client did not get the words
            LOG.warning("turn of %s: %s: %s", turn.key, problem.kind, error)


def outcome_of(task: TurnTask) -> TurnReply | Problem:
    """Return what the client of an ended turn is answered."""
    if task.cancelled():
        return Problem(
            503,
            "Draining",
            "the server stopped before the turn ended: send it again with the same turnId",
            5.0,
        )
    error = task.exception()
    return task.result() if error is None else problem_of(error)
