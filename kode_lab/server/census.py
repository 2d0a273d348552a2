"""Which sessions each user has, so that nobody fills the disk: a limit, checked before acceptance.

The store knows the truth; here it is asked once for each user, and what it says remembered for the
users that were here lately. Another process may add sessions meanwhile, so the limit is one of each
process, not exact to the last session. It decides nothing about turns.
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
    """Give the listing of a store that blocks, as one that does not."""

    async def sessions_of(user_id: str) -> list[SessionKey]:
        return await asyncio.to_thread(lambda: list(listed(user_id)))

    return sessions_of


class Census:
    """The sessions of the users that came lately.

    Args:
        sessions_of: lists a user's sessions.
        limit: sessions of one user.
        remembered_limit: sessions of all users that are remembered at once.
    """

    def __init__(
        self,
        sessions_of: SessionsOf,
        limit: int,
        *,
        remembered_limit: int = REMEMBERED_LIMIT,
    ) -> None:
        self._sessions_of = sessions_of
        self._limit = limit
        self._remembered_limit = remembered_limit
        self._users: OrderedDict[str, set[SessionKey]] = OrderedDict()
        self._remembered = 0

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
        """Give the user's sessions as the store has them now, sorted."""
        return sorted(await self._sessions_of(user_id))

    async def _read(self, user_id: str) -> set[SessionKey]:
        found = set(await self.sessions(user_id))
        # Somebody else may have asked for the same user meanwhile, and admitted a session.
        known = self._users.setdefault(user_id, set())
        self._remembered += len(found - known)
        known |= found
        while self._remembered > self._remembered_limit and len(self._users) > 1:
            self._remembered -= len(self._users.popitem(last=False)[1])
        return known
