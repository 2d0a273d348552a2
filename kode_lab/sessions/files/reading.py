"""Reads the sessions of a directory without holding them.

A reader has no lease, so it may read while the holder is writing: then it reads again. What it
returns is for showing and copying, never the base of a write.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

from kode_lab.errors import SessionDamaged
from kode_lab.key import SessionKey
from kode_lab.message import Message
from kode_lab.sessions.files.disk import explained
from kode_lab.sessions.files.format import (
    DELETED,
    FILLING,
    decode,
    messages_of,
    owner_of,
    read_header,
)

__all__ = ["peek", "sessions_in"]

_LOOKS = 200
_PAUSE_S = 0.001


async def peek(key: SessionKey, directory: Path, *, is_owner_known: bool) -> list[Message]:
    """Return the conversation in a session's directory; an empty one where there is none.

    Args:
        key: the session.
        directory: its directory.
        is_owner_known: whether the directory's name alone says whose it is, so that messages that
            another tool put there are the session's.

    Raises:
        WrongOwner: the directory is another session's.
        NewerFormat: a newer kode_lab wrote it.
        SessionDamaged: what is stored is not a conversation.
        StoreUnwritable: it cannot be read.
    """
    for _ in range(_LOOKS):
        try:
            messages = _look(key, directory, is_owner_known=is_owner_known)
        except OSError as error:
            raise explained(str(key), error) from error
        if messages is not None:
            return messages
        await asyncio.sleep(_PAUSE_S)  # its holder is writing
    raise SessionDamaged(
        f"{key}: messages.json is not a JSON array of messages after {_LOOKS} looks; a turn "
        "repairs it if a crash left it so, else restore it from a backup"
    )


def _look(key: SessionKey, directory: Path, *, is_owner_known: bool) -> list[Message] | None:
    """Return the conversation, or None where what is there now is none."""
    try:
        header, is_whole, turns = (directory / "turns.jsonl").read_bytes().partition(b"\n")
    except FileNotFoundError:
        header, is_whole, turns = b"", b"", b""
    try:
        data = (directory / "messages.json").read_bytes()
    except FileNotFoundError:
        data = b""
    if is_whole:
        read_header(key, header)
        if turns.endswith(DELETED) or turns.startswith(FILLING):
            return []
    if not data:  # none yet, unless the turns say that there are some
        return None if turns.startswith(b'{"done"') else []
    if not is_whole and (header or not is_owner_known):
        return None
    return messages_of(key, data)


def sessions_in(root: Path, pattern: str) -> Iterator[SessionKey]:
    """Return the sessions whose ``turns.jsonl`` the pattern finds, in no promised order.

    One that was deleted or holds nothing yet is left out, and so is one whose header is damaged,
    because its owner is not known.
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
