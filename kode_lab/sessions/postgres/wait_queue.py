"""One session as one worker of PostgreSQL knows it: whether it is here, and who waits for it.

State without decisions: these are ``postgres_leases``'s, which alone writes it.
"""

from __future__ import annotations

import asyncio
from typing import Any, NamedTuple

from kode_lab.sessions.store import Lease

__all__ = ["Line", "Waiter"]


class Waiter(NamedTuple):
    """One who waits; is given the fence under which the session is now his."""

    future: asyncio.Future[int]
    limit: int


class Line:
    """One userId:sessionId that is held, wanted or waited for here.

    Attributes:
        id: its number in the database, 0 before it is known.
        fence: under which this worker holds it; 0 when it does not.
        lease: of the turn that has it now.
        is_busy: a turn has it, or was just given it.
        is_asking: the first question for it is on its way; newcomers wait for the answer.
        wishes: how often we heard that another worker wants it.
        passing: how many of these wishes the order on its way is about; 0 when none is.
        queue: who waits here, in the order of coming.
        tickets: who waits with a ticket in the database, by its number.
        holds: how often each agent's conversation was held under this fence.
        known: what the store remembers of each agent's conversation under this fence.
    """

    __slots__ = (
        "fence",
        "holds",
        "id",
        "is_asking",
        "is_busy",
        "known",
        "lease",
        "passing",
        "queue",
        "slot",
        "tickets",
        "wishes",
    )

    def __init__(self, slot: tuple[str, ...]) -> None:
        self.slot = slot
        self.id = self.fence = self.wishes = self.passing = 0
        self.lease: Lease | None = None
        self.is_busy = self.is_asking = False
        self.queue: list[Waiter] = []  # a deque weighs 600 bytes, and is empty nearly always
        self.tickets: dict[int, Waiter] = {}
        self.holds: dict[str, int] = {}
        self.known: dict[str, Any] = {}

    @property
    def is_ours_alone(self) -> bool:
        """Whether this worker holds it and knows of nobody else who wants it."""
        return self.fence > 0 and not (self.wishes or self.passing)

    @property
    def waiting(self) -> int:
        """How many wait here; one who was just cancelled does not."""
        return sum(not w.future.done() for w in (*self.queue, *self.tickets.values()))

    def becomes(self, fence: int) -> None:
        """Take note that this worker holds it under a new fence, or, with 0, no more."""
        self.fence = fence
        self.lease = None
        self.is_busy = False
        self.wishes = self.passing = 0
        self.holds = {}
        self.known = {}
