"""What a worker asks of the database about leases, gathered: one statement a kind and a batch.

It owns the order in which a batch is carried out, and that the rows of sessions are always locked
in the same order, so that two workers do not wait for each other in a ring. What the answers mean
is for who asked.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from kode_lab.sessions.group_commit import GroupCommit
from kode_lab.sessions.postgres.connection import PostgresLink
from kode_lab.sessions.postgres.rows import text

__all__ = ["Asked", "PostgresDesk"]


class Asked(NamedTuple):
    """The answer to a question for a session.

    Attributes:
        session: its number in the database.
        fence: where it was granted.
        outcome: ``granted``, ``queued`` (a notice will come) or ``full``.
    """

    session: int
    fence: int
    outcome: str


class _Ask(NamedTuple):
    user_id: str
    session_id: str
    number: int
    limit: int


class _Pass(NamedTuple):
    session: int
    fence: int
    is_leaving: bool


class _Refuse(NamedTuple):
    session: int


class _Leave(NamedTuple):
    number: int


_Order = _Ask | _Pass | _Refuse | _Leave


class PostgresDesk:
    """The questions and orders of one worker.

    Args:
        worker_id: gives the worker's number, which is known only when it is there.
    """

    def __init__(self, work: PostgresLink, worker_id: Callable[[], int]) -> None:
        self._work = work
        self._worker_id = worker_id
        self._orders: GroupCommit[_Order, Any] = GroupCommit(self._send)

    def ask(self, slot: Sequence[str], number: int, limit: int) -> asyncio.Future[Asked]:
        """Ask for a session.

        Args:
            number: of the ticket, if one must be drawn.
            limit: how many may have drawn one before; 0 does not wait for a turn.
        """
        return self._orders.put(_Ask(text(slot[0]), text(slot[1]), number, limit))

    def pass_on(self, session: int, fence: int, *, is_leaving: bool) -> asyncio.Future[bool]:
        """Let whoever waits have the session; give whether it is still ours, as nobody does.

        With ``is_leaving`` it is nobody's then.
        """
        return self._orders.put(_Pass(session, fence, is_leaving))

    def refuse(self, session: int) -> None:
        """Send away those who want the session but do not wait for a turn: one is running."""
        self._orders.put(_Refuse(session)).add_done_callback(asyncio.Future.exception)

    def leave(self, number: int) -> None:
        """Return a ticket back."""
        self._orders.put(_Leave(number)).add_done_callback(asyncio.Future.exception)

    async def settled(self) -> None:
        """Wait until nothing is on its way."""
        await self._orders.settled()

    async def _send(self, orders: Sequence[_Order]) -> list[Any]:
        me, fetch = self._worker_id(), self._work.fetch
        answers: dict[_Order, Any] = {}
        if refused := [order.session for order in orders if isinstance(order, _Refuse)]:
            await fetch("SELECT refuse($1)", refused)
        if passes := sorted(order for order in orders if isinstance(order, _Pass)):
            rows = await fetch("SELECT * FROM pass_on($1, $2, $3, $4)", me, *_columns(passes))
            answers.update(zip(passes, [row[1] for row in rows], strict=True))
        if asks := sorted(order for order in orders if isinstance(order, _Ask)):
            rows = await fetch("SELECT * FROM ask($1, $2, $3, $4, $5)", me, *_columns(asks))
            answers.update(zip(asks, [Asked(*row[1:]) for row in rows], strict=True))
        if left := [order.number for order in orders if isinstance(order, _Leave)]:
            await fetch("DELETE FROM ticket WHERE worker = $1 AND number = ANY($2)", me, left)
        return [answers.get(order) for order in orders]


def _columns(orders: Sequence[tuple[Any, ...]]) -> list[list[Any]]:
    return [list(column) for column in zip(*orders, strict=True)]
