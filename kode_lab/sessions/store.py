"""The promise that a store keeps: who holds a session, what is in it, and what may be written.

The store takes a *lease*, never a key. A lease comes only from ``hold``, and its fence grows with
every hold, so writing without the lock or to another session cannot be said, and a holder that
was overtaken is refused. The lock belongs to the store because a fence means something only to
whoever mints it. Nothing here knows how any store does it.

Source: fencing tokens, Kleppmann 2016; leases, Gray and Cheriton 1989.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol, cast, runtime_checkable

from kode_lab.errors import CallerError
from kode_lab.key import SessionKey
from kode_lab.message import Message
from kode_lab.sessions.lock import LockStatistics
from kode_lab.sessions.open_turn import Finished, OpenTurn

__all__ = ["Lease", "Lookable", "Store", "Stored", "checked_store"]


class Lease:
    """The right to touch one session, from ``hold`` to ``release``.

    Attributes:
        key: the session.
        fence: grows with every hold of this session; a store refuses a smaller one.
    """

    __slots__ = ("fence", "key")

    def __init__(self, key: SessionKey, fence: int) -> None:
        self.key = key
        self.fence = fence

    def __repr__(self) -> str:
        return f"Lease({self.key}, fence={self.fence})"


class Stored(NamedTuple):
    """All that rests of a session.

    Attributes:
        messages: the conversation; the caller's own list.
        finished: how each turn in it ended, by turn id.
        open: a turn that somebody left unfinished, or None.
    """

    messages: list[Message]
    finished: dict[str, Finished]
    open: OpenTurn | None


@runtime_checkable
class Lookable(Protocol):
    """A store where a hold leaves a trace, and that can tell without one whether there is any."""

    async def has(self, key: SessionKey) -> bool:
        """Whether something of the session may rest here."""
        ...


class Store(Protocol):
    """Where sessions rest, and who mints leases."""

    async def hold(self, key: SessionKey, *, queue_limit: int) -> Lease:
        """Return the lease of the session, after everyone who asked before.

        A ``queue_limit`` of 0 does not wait.

        Raises:
            WaitingRoomFull: ``queue_limit`` wait already.
            StoreError: the session's storage cannot be used.
        """
        ...

    def release(self, lease: Lease) -> None:
        """End the lease; ending it twice does nothing. Never raises."""
        ...

    async def load(self, lease: Lease) -> Stored:
        """Return what rests of the session, repaired where a crash left it half written."""
        ...

    async def journal(self, lease: Lease, turn: OpenTurn, entry: dict[str, Any]) -> None:
        """Save one step of the turn; when it returns, the step survives."""
        ...

    async def append(
        self, lease: Lease, turn: OpenTurn, entries: Sequence[dict[str, Any]]
    ) -> Finished:
        """Save the turn's last steps and append its messages to the conversation, all or nothing.

        Raises:
            StaleLease: somebody held the session since.
        """
        ...

    async def discard(self, lease: Lease) -> None:
        """Forget the unfinished turn."""
        ...

    async def delete(self, lease: Lease) -> None:
        """Forget the conversation. The fence goes on growing."""
        ...

    async def peek(self, key: SessionKey) -> list[Message]:
        """Return the conversation for reading only, without waiting for its holder."""
        ...

    def statistics(self) -> LockStatistics:
        """Return what the store's lock is doing."""
        ...

    async def aclose(self) -> None:
        """Return everything back."""
        ...


def checked_store(store: object) -> Store:
    """Return the store if it has what a store has.

    Raises:
        CallerError: it has not; says what to pass.
    """
    if isinstance(store, type) or not callable(getattr(store, "hold", None)):
        what = store.__name__ if isinstance(store, type) else type(store).__name__
        raise CallerError(f"store is a {what}: pass JsonStore(directory) or PostgresStore(...)")
    return cast("Store", store)
