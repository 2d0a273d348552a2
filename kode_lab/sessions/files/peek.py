"""Looking at the sessions of a directory without holding anything.

A reader has no lease, so it may look while the holder is writing: then it looks again. What it
gives is for eyes, never the ground of a write.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

from kode_lab.errors import SessionDamaged
from kode_lab.key import SessionKey
from kode_lab.message import Message
from kode_lab.sessions.files.disk import explained
from kode_lab.sessions.files.format import DELETED, decode, messages_of, owner_of, read_header

__all__ = ["peek", "sessions_in"]

_LOOKS = 200
_PAUSE_S = 0.001


async def peek(key: SessionKey, directory: Path) -> list[Message]:
    """Return the conversation in a session's directory; an empty one where there is none.

    Raises:
        WrongOwner: the directory is another session's.
        NewerFormat: a newer kode_lab wrote it.
        SessionDamaged: what is stored is not a conversation.
        StoreUnwritable: it cannot be read.
    """
    for _ in range(_LOOKS):
        try:
            messages = _look(key, directory)
        except OSError as error:
            raise explained(str(key), error) from error
        if messages is not None:
            return messages
        await asyncio.sleep(_PAUSE_S)  # its holder is writing at this moment
    raise SessionDamaged(
        f"{key}: messages.json is not a JSON array of messages after {_LOOKS} looks; a turn will "
        "mend it if a crash left it so, else restore it from a backup"
    )


def _look(key: SessionKey, directory: Path) -> list[Message] | None:
    """Return the conversation, or None where what is there now is none."""
    try:
        header, is_whole, turns = (directory / "turns.jsonl").read_bytes().partition(b"\n")
    except FileNotFoundError:
        return []
    try:
        data = (directory / "messages.json").read_bytes()
    except FileNotFoundError:
        data = b""
    if is_whole:
        read_header(key, header)
        if turns.endswith(DELETED):
            return []
    if not data:  # none yet, unless the turns say that there were some
        return None if turns.startswith(b'{"done"') else []
    return messages_of(data) if is_whole else None


def sessions_in(root: Path, pattern: str) -> Iterator[SessionKey]:
    """Return the sessions whose ``turns.jsonl`` the pattern finds, in no promised order.

    One that was deleted, or that holds nothing yet, is none; nor is one whose header is damaged,
    because it says no longer whose it is.
    """
    for path in root.glob(pattern):
        with path.open("rb") as file:
            header, is_open = file.readline(), bool(file.read(1))
        try:
            key = owner_of(decode(header))
        except ValueError:
            continue
        if key is not None and (is_open or path.with_name("messages.json").exists()):
            yield key
