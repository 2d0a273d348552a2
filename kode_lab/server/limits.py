"""What one server accepts: turns, sessions of a user, open files; each limit is named in its error.

The store knows which sessions a user has. It is asked once for each user, and its answer is kept
for the users of late. Another process may add sessions meanwhile, so that limit holds for each
process and not exactly. Sessions may also disappear unseen (deleted by another process, or never
saved because their first turn failed), so the store is asked again before a turn is refused.

Open files are divided once, here, between clients' connections, sessions and the model's
connections; each part then has a limit of its own, and none can take another's files.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import OrderedDict, deque
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

from kode_lab.http import ConnectionLimits
from kode_lab.key import SessionKey
from kode_lab.server.refusal import Rejected

__all__ = [
    "FileBudget",
    "HeldSessions",
    "Limits",
    "SessionLimit",
    "SessionsOf",
    "file_budget",
    "in_thread",
    "raised_files_limit",
]

SessionsOf = Callable[[str], Awaitable[Iterable[SessionKey]]]

# Some 300 bytes each; the sessions of a forgotten user are read again.
REMEMBERED_LIMIT = 50_000
_RETRY_AFTER_S = 60.0
# Where the system sets no limit of open files.
_FILES_WITHOUT_LIMIT = 60_000
# Standard streams, event loop, listening sockets, the schedule book, the store's own locks, and
# what threads open for a moment.
_RESERVED_FILES = 32
_FILES_PER_SESSION = 2
_SESSIONS_LIMIT = 10_000
_MODEL_CONNECTIONS_LIMIT = 1_000


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits of one server; an error names the limit that caused it.

    Attributes:
        connection: of each connection.
        turns_limit: turns in flight, waiting ones included.
        sessions_per_user_limit: sessions that rest in the store.
        held_sessions_limit: sessions with a turn in flight, because each needs open files; further
            turns wait for their time. None is as many as there are turns.
    """

    connection: ConnectionLimits = field(default_factory=ConnectionLimits)
    turns_limit: int = 10_000
    sessions_per_user_limit: int = 10_000
    held_sessions_limit: int | None = None


class FileBudget(NamedTuple):
    """How many of each may be open at once in one process.

    Attributes:
        connections: of clients.
        sessions: two files each.
        model_connections: to the model's service.
        peer_connections: to each of the other workers.
    """

    connections: int
    sessions: int
    model_connections: int
    peer_connections: int


def file_budget(files_limit: int, *, workers: int = 1, files_per_model_call: int = 1) -> FileBudget:
    """Divide the open files of one process.

    Args:
        files_limit: what the system allows (``ulimit -n``).
        workers: server processes; a request that one passes on to another takes files in both.
        files_per_model_call: 2 if the model is simulated in this process, which holds both ends.
    """
    files = files_limit - min(_RESERVED_FILES, files_limit // 2)
    peers = 0
    if workers > 1:
        peers = files // 4 // (2 * (workers - 1))
        files -= files // 4
    sessions = min(_SESSIONS_LIMIT, max(2, files * 2 // 5 // _FILES_PER_SESSION))
    model = min(_MODEL_CONNECTIONS_LIMIT, max(1, files // 5 // files_per_model_call))
    rest = files - sessions * _FILES_PER_SESSION - model * files_per_model_call
    connections = min(ConnectionLimits().connections_limit, max(2, rest))
    return FileBudget(connections, sessions, model, max(1, peers))


def raised_files_limit() -> int:
    """Raise the limit of open files to what the system allows, and return it."""
    try:
        import resource  # noqa: PLC0415 - absent on Windows
    except ImportError:
        return _FILES_WITHOUT_LIMIT
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        soft = hard
    return _FILES_WITHOUT_LIMIT if soft == resource.RLIM_INFINITY else soft


class HeldSessions:
    """Lets turns of a limited number of sessions run at once; the others wait in order.

    Turns of one session share a place, so a long queue in one session keeps no other one waiting.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._turns: dict[tuple[str, ...], int] = {}
        self._waiting: deque[tuple[tuple[str, ...], asyncio.Future[None]]] = deque()

    async def enter(self, key: SessionKey) -> None:
        """Take a place for a turn of this session; ``leave`` must follow if this returns."""
        name = key[:2]
        if name in self._turns or (len(self._turns) < self._limit and not self._waiting):
            self._turns[name] = self._turns.get(name, 0) + 1
            return
        place: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((name, place))
        try:
            await place
        except asyncio.CancelledError:
            if place.done() and not place.cancelled():
                self.leave(key)
            raise

    def leave(self, key: SessionKey) -> None:
        """Free the place of a turn that ended, and let the next waiting turns in."""
        name = key[:2]
        self._turns[name] -= 1
        if not self._turns[name]:
            del self._turns[name]
        while self._waiting:
            next_name, place = self._waiting[0]
            if not place.done():
                if next_name not in self._turns and len(self._turns) >= self._limit:
                    return
                self._turns[next_name] = self._turns.get(next_name, 0) + 1
                place.set_result(None)
            self._waiting.popleft()


def in_thread(listed: Callable[[str], Iterable[SessionKey]]) -> SessionsOf:
    """Return the listing of a store that blocks as one that runs in a thread."""

    async def sessions_of(user_id: str) -> list[SessionKey]:
        return await asyncio.to_thread(lambda: list(listed(user_id)))

    return sessions_of


class SessionLimit:
    """Counts the sessions of the users of late, and refuses one too many.

    Args:
        sessions_of: lists a user's sessions.
        limit: sessions of one user.
        in_flight: returns the sessions of a user that have a turn now; they may be saved later.
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

    def knows(self, key: SessionKey) -> bool:
        """Whether the session is counted already, so that ``admit`` has nothing to ask."""
        known = self._users.get(key.user_id)
        return known is not None and key in known

    async def admit(self, key: SessionKey) -> bool:
        """Count the session, and return whether it is new.

        Raises:
            Rejected: the user has as many sessions as the limit allows (429).
        """
        known = self._users.get(key.user_id)
        if known is None:
            known = await self._read(key.user_id)
        if key not in known and len(known) >= self._limit:
            await self._read_again(key.user_id, known)
        if key in known:
            return False
        if len(known) >= self._limit:
            raise Rejected(
                429,
                "TooManySessions",
                f"this user has {len(known)} sessions: continue one of them, or have some "
                f"removed, sessions_per_user_limit={self._limit}",
                retry_after_s=_RETRY_AFTER_S,
            )
        known.add(key)
        if self._users.get(key.user_id) is known:  # not forgotten meanwhile
            self._remembered += 1
        return True

    def forget(self, key: SessionKey) -> None:
        """Stop counting the session: it was deleted, or never saved."""
        known = self._users.get(key.user_id, set())
        if key in known:
            known.discard(key)
            self._remembered -= 1

    async def sessions(self, user_id: str) -> list[SessionKey]:
        """Return the user's sessions as the store has them now, sorted."""
        return sorted(await self._sessions_of(user_id))

    async def _read_again(self, user_id: str, known: set[SessionKey]) -> None:
        """Ask the store again, once for all turns that are about to be refused now."""
        look = self._looks.get(user_id)
        if look is None:
            look = self._looks[user_id] = asyncio.create_task(self._update(user_id, known))
            look.add_done_callback(lambda _: self._looks.pop(user_id))
        await asyncio.shield(look)

    async def _update(self, user_id: str, known: set[SessionKey]) -> None:
        """Bring ``known`` up to date; sessions with a turn meanwhile are not taken away."""
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
        # Another request may have asked for the same user meanwhile, and admitted a session.
        known = self._users.setdefault(user_id, set())
        self._remembered += len(found - known)
        known |= found
        while self._remembered > self._remembered_limit and len(self._users) > 1:
            self._remembered -= len(self._users.popitem(last=False)[1])
        return known
