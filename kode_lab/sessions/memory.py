"""What the sessions of one user share: JSON values by name, changed by compare-and-set.

Sessions have locks of their own, so two of them may write at once. A change is therefore made of
the newest memory, and made again if another session's came first: no write loses another's entry.
This module must not know sessions, tools or how a store keeps a memory.

Source: optimistic concurrency control, Kung and Robinson 1981.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from kode_lab.errors import InvalidPrompt, Refused
from kode_lab.sessions.conversation import decode, encode
from kode_lab.sessions.store import MemoryStore

__all__ = ["MEMORY_LIMIT_BYTES", "MEMORY_NAME_LIMIT_CHARS", "Memory"]

MEMORY_LIMIT_BYTES = 1_000_000
MEMORY_NAME_LIMIT_CHARS = 200
# Each failed attempt means that another session's write succeeded.
_ATTEMPTS = 100


class Memory:
    """The memory of one user.

    Args:
        store: where it is.
        user_id: whose it is.
    """

    def __init__(self, store: MemoryStore, user_id: str) -> None:
        self._store = store
        self.user_id = user_id

    async def read(self) -> dict[str, Any]:
        """Return all entries; the dictionary belongs to the caller."""
        return (await self._store.read_memory(self.user_id)).entries

    async def put(self, name: str, value: Any) -> None:
        """Set one entry to a JSON value; the others stay.

        Raises:
            InvalidPrompt: the name or the value cannot be used, or the memory would be too large.
        """
        await self.update(name, lambda _: value)

    async def remove(self, name: str) -> None:
        """Remove an entry; it may be gone already."""
        await self.update(name, lambda _: None)

    async def update(self, name: str, change: Callable[[Any], Any]) -> Any:
        """Replace one entry by what ``change`` makes of it, and return that.

        Args:
            name: 1 to ``MEMORY_NAME_LIMIT_CHARS`` characters.
            change: is given the value, None if there is none, and returns the new one, None to
                remove it. It is called again if another session wrote meanwhile.

        Raises:
            InvalidPrompt: the name or the value cannot be used, or the memory would be too large.
            Refused: other sessions wrote at each of many attempts; nothing was changed.
        """
        if not isinstance(name, str) or not 0 < len(name) <= MEMORY_NAME_LIMIT_CHARS:
            raise InvalidPrompt(
                f"the name of a memory is {name!r:.60}: use text of 1 to {MEMORY_NAME_LIMIT_CHARS=}"
            )
        for _ in range(_ATTEMPTS):
            found = await self._store.read_memory(self.user_id)
            value = change(found.entries.get(name))
            entries = {own: there for own, there in found.entries.items() if own != name}
            if value is not None:
                entries[name] = value
            _check(name, value, entries)
            if await self._store.write_memory(self.user_id, entries, version=found.version):
                return value
        raise Refused(
            f"the memory of user {self.user_id!r:.60} was written by others at each of {_ATTEMPTS} "
            "attempts: write it again later"
        )


def _check(name: str, value: Any, entries: dict[str, Any]) -> None:
    try:
        is_kept = decode(encode(value)) == value
        size = len(encode(entries))
    except (TypeError, ValueError, RecursionError):
        is_kept, size = False, 0
    if not is_kept:
        raise InvalidPrompt(f"memory {name!r:.60} is {value!r:.60}: use a JSON value")
    if size > MEMORY_LIMIT_BYTES:
        raise InvalidPrompt(
            f"the memory would have {size} bytes: shorten it to {MEMORY_LIMIT_BYTES=}"
        )
