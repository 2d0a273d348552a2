"""Which sessions each user has, so that nobody fills the disk: a limit, checked before acceptance.

The store knows the truth; here it is asked once for each user, and what it says remembered for the
users that were here lately. Another process may add sessions meanwhile, so the limit is one of each
process, not exact to the last session. Sessions may also go without a word: deleted by another
process, or never saved because their first turn failed. So the store is asked again before anybody
is refused. It decides nothing about turns.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterable

from kode_lab.key import SessionKey
from kode_lab.server.refusal import Rejected

__all__ = ["Census", "SessionsOf", "in_thread"]

SessionsOf = Callable[[str], Awaitable[Iterable[SessionKey]]]

# Some 300 bytes each; whose sessions were forgotten is read again.
REMEMBERED_LIMIT = 50_000
_RETRY_AFTER_S = 60.0


def in_thread(listed: Callable[[str], Iterable[SessionKey]]) -> SessionsOf:
    """Return the listing of a store that blocks, as one that does not."""

    async def sessions_of(user_id: str) -> list[SessionKey]:
        return await asyncio.to_thread(lambda: list(listed(user_id)))

    return sessions_of


class Census:
    """The sessions of the users that came lately.

    Args:
        sessions_of: lists a user's sessions.
        limit: sessions of one user.
        in_flight: gives the sessions of a user in which a turn is taken now; they may rest later.
        remembered_limit: sessions of all users that are remembered at once.
    """

    def __init__(
        self,
        sessions_of: SessionsOf,
        limit: int,
        *,
        in_flight: Callable[[str], Iterable[SessionKey]] = lambda _: (),
        remembered_limit: int = REMEMBERED_LIMIT,
    ) -> None:
        self._sessions_of = sessions_of
        self._limit = limit
        self._in_flight = in_flight
        self._remembered_limit = remembered_limit
        self._users: OrderedDict[str, set[SessionKey]] = OrderedDict()
        self._remembered = 0
        self._looks: dict[str, asyncio.Task[None]] = {}

    async def admit(self, key: SessionKey) -> bool:
        """Let the session in if the user has it already, or may have one more; say which.

        Returns:
            whether it is one more.

        Raises:
            Rejected: the user has as many sessions as the limit allows (429).
        """
        known = self._users.get(key.user_id)
        if known is None:
            known = await self._read(key.user_id)
        if key not in known and len(known) >= self._limit:
            await self._look_again(key.user_id, known)
        if key in known:
            return False
        if len(known) >= self._limit:
            raise Rejected(
                429,
                "TooManySessions",
                f"this user has {len(known)} sessions: go on with one of them, or have some "
                f"removed, sessions_per_user_limit={self._limit}",
                retry_after_s=_RETRY_AFTER_S,
            )
        known.add(key)
        if self._users.get(key.user_id) is known:  # not forgotten meanwhile
            self._remembered += 1
        return True

    def forget(self, key: SessionKey) -> None:
        """Count the session no more: it was deleted, or never came to be."""
        known = self._users.get(key.user_id, set())
        if key in known:
            known.discard(key)
            self._remembered -= 1

    async def sessions(self, user_id: str) -> list[SessionKey]:
        """Return the user's sessions as the store has them now, sorted."""
        return sorted(await self._sessions_of(user_id))

    async def _look_again(self, user_id: str, known: set[SessionKey]) -> None:
        """Have the store asked again, once for all who are about to be refused now."""
        look = self._looks.get(user_id)
        if look is None:
            look = self._looks[user_id] = asyncio.create_task(self._look(user_id, known))
            look.add_done_callback(lambda _: self._looks.pop(user_id))
        await asyncio.shield(look)

    async def _look(self, user_id: str, known: set[SessionKey]) -> None:
        """Bring what is known up to date; what comes, or may come, meanwhile is not taken away."""
        at_rest = known.difference(self._in_flight(user_id))
        found = set(await self.sessions(user_id))
        gone = (at_rest - found).difference(self._in_flight(user_id))
        before = len(known)
        known -= gone
        known |= found
        if self._users.get(user_id) is known:  # not forgotten meanwhile
            self._remembered += len(known) - before

    async def _read(self, user_id: str) -> set[SessionKey]:
        found = set(await self.sessions(user_id))
        # Somebody else may have asked for the same user meanwhile, and admitted a session.
        known = self._users.setdefault(user_id, set())
        self._remembered += len(found - known)
        known |= found
        while self._remembered > self._remembered_limit and len(self._users) > 1:
            self._remembered -= len(self._users.popitem(last=False)[1])
        return known
