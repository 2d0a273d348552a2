"""What a store must do: hold sessions, load them, and write to them.

A store takes a *lease*, never a key. A lease comes only from ``hold``, and its fence grows with
every hold. So code cannot write without the lock or to another session, and a holder that was
overtaken is refused. The lock belongs to the store, because only the store can compare fences.
This module must not know how any store works.

Source: fencing tokens, Kleppmann 2016; leases, Gray and Cheriton 1989.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

from kode_lab.key import SessionKey
from kode_lab.message import Message
from kode_lab.sessions.lock import LockStatistics
from kode_lab.sessions.open_turn import Finished, OpenTurn

__all__ = [
    "Amendable",
    "Lease",
    "Lookable",
    "MemoryStore",
    "Resumable",
    "Rewindable",
    "Store",
    "Stored",
    "UserMemory",
]


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
    """All that is stored of a session.

    Attributes:
        messages: the conversation; the list belongs to the caller.
        finished: how each turn ended, by turn id, in the order of the turns.
        open: an unfinished turn that its holder left, or None.
    """

    messages: list[Message]
    finished: dict[str, Finished]
    open: OpenTurn | None


@runtime_checkable
class Lookable(Protocol):
    """A store where a hold creates something, and which can say whether a session exists."""

    async def has(self, key: SessionKey) -> bool:
        """Whether something of the session may be stored."""
        ...


class Store(Protocol):
    """Stores sessions, and issues the leases under which they may be used."""

    async def hold(self, key: SessionKey, *, queue_limit: int) -> Lease:
        """Return the lease of the session, after all callers that asked before.

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
        """Return what is stored of the session, repaired where a crash left it half written."""
        ...

    async def journal(self, lease: Lease, turn: OpenTurn, entry: dict[str, Any]) -> None:
        """Save one step of the turn; when it returns, the step survives."""
        ...

    async def append(
        self, lease: Lease, turn: OpenTurn, entries: Sequence[dict[str, Any]]
    ) -> Finished:
        """Save the turn's last steps and append its messages to the conversation, all or nothing.

        Raises:
            StaleLease: another lease of the session was issued since.
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
        """Release everything."""
        ...


@runtime_checkable
class Resumable(Protocol):
    """A store that can load what came since an earlier lease, instead of the whole session."""

    async def load_since(self, lease: Lease, since: int) -> tuple[Stored, bool]:
        """Return what came since the lease with the fence ``since``, and True.

        Where the store cannot tell what came since, it returns all that is stored, and False.
        """
        ...


@runtime_checkable
class Rewindable(Protocol):
    """A store that can take a conversation back to an earlier turn, and fill an empty one."""

    async def rewind(
        self, lease: Lease, count: int, rewind_id: str, turn_ids: Sequence[str]
    ) -> None:
        """Keep the first ``count`` messages and forget the unfinished turn, all or nothing.

        From then on ``load`` returns each of ``turn_ids`` as a ``Finished`` with ``is_rewound``,
        and ``rewind_id`` as one whose ``facts["rewound"]`` lists them.

        Raises:
            StaleLease: another lease of the session was issued since; nothing was changed.
        """
        ...

    async def fill(
        self, lease: Lease, messages: Sequence[Message], turns: Sequence[Finished]
    ) -> None:
        """Save a whole conversation in a session that has none, all or nothing.

        Raises:
            StaleLease: another lease of the session was issued since; nothing was saved.
        """
        ...


@runtime_checkable
class Amendable(Protocol):
    """A store that can replace a message: a tool's result that came after its turn was sealed."""

    async def amend(self, lease: Lease, at: int, message: Message) -> None:
        """Replace message ``at`` of the conversation, all or nothing.

        Raises:
            StaleLease: another lease of the session was issued since; nothing was changed.
        """
        ...


class UserMemory(NamedTuple):
    """What the sessions of one user share.

    Attributes:
        version: how often it was written.
        entries: JSON values by name.
    """

    version: int
    entries: dict[str, Any]


@runtime_checkable
class MemoryStore(Protocol):
    """A store of user memories, which many sessions read and write without a common lock."""

    async def read_memory(self, user_id: str) -> UserMemory:
        """Return the user's memory; version 0 is an empty one."""
        ...

    async def write_memory(self, user_id: str, entries: Mapping[str, Any], *, version: int) -> bool:
        """Replace the memory if ``version`` is still the newest; return whether it was.

        When it returns, the memory survives as long as a turn that was appended.
        """
        ...
