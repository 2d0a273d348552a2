"""The memories of users as files: one JSON object a user, which is only replaced as a whole.

    <root>/+memory/<userId>.json     {"version": 3, "entries": {...}}
    <root>/+memory/<userId>.lock     held for the moment of a write, by a task or a process

A reader needs no lock: it sees the file before a write or after it. This module must not know
sessions or what an entry means.

Source: compare-and-set over a versioned value; the atomic ``rename`` of POSIX.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kode_lab.errors import SessionDamaged
from kode_lab.sessions.conversation import decode, encode
from kode_lab.sessions.store import UserMemory

__all__ = ["MEMORIES", "read_memory", "write_memory"]

MEMORIES = "+memory"


def read_memory(path: Path) -> UserMemory:
    """Return the memory in a file; an empty one if there is none.

    Raises:
        SessionDamaged: the file is not a memory.
    """
    try:
        value = decode(path.read_bytes())
        return UserMemory(int(value["version"]), dict(value["entries"]))
    except FileNotFoundError:
        return UserMemory(0, {})
    except (ValueError, TypeError, KeyError) as error:
        raise SessionDamaged(
            f"{path.name} in +memory cannot be read ({error}): restore or remove it"
        ) from None


def write_memory(path: Path, entries: Mapping[str, Any], version: int, *, is_synced: bool) -> bool:
    """Replace the memory in a file if it still has that version; return whether it had."""
    path.parent.mkdir(mode=0o700, exist_ok=True)
    lock = os.open(path.with_suffix(".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if read_memory(path).version != version:
            return False
        new = path.with_suffix(".new")
        with new.open("wb") as file:
            file.write(encode({"version": version + 1, "entries": dict(entries)}))
            file.flush()
            if is_synced:
                os.fsync(file.fileno())
        new.replace(path)
        if is_synced:
            directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
            try:
                os.fsync(directory)
            finally:
                os.close(directory)
        return True
    finally:
        os.close(lock)
