"""The directory of one session: its two files by name, opened late and closed early.

A session has at most two descriptors. ``turns.jsonl`` is read at every hold, so it stays open
longest; ``messages.json`` is needed once a turn and can be opened for that where descriptors are
scarce. Looking makes nothing: a file is made by the first who writes to it. What stands in the
files is not known here.
"""

from __future__ import annotations

import os

from kode_lab.sessions.files.disk import Disk

__all__ = ["MESSAGES", "TURNS", "SessionDirectory"]

MESSAGES = "messages.json"
TURNS = "turns.jsonl"


class SessionDirectory:
    """The names and the descriptors.

    Attributes:
        path: the directory's.
    """

    __slots__ = ("_disk", "_messages_fd", "_turns_fd", "path")

    def __init__(self, path: str, disk: Disk) -> None:
        self.path = path
        self._disk = disk
        self._turns_fd = self._messages_fd = -1

    @property
    def has_messages_open(self) -> bool:
        """Whether ``messages.json`` takes a descriptor now."""
        return self._messages_fd >= 0

    def turns(self) -> int:
        """Return the descriptor of ``turns.jsonl``, opened or made when it is first needed."""
        if self._turns_fd < 0:
            self._turns_fd = self._opened(TURNS)
        return self._turns_fd

    def messages(self) -> int:
        """Return the descriptor of ``messages.json``, opened or made when it is first needed."""
        if self._messages_fd < 0:
            self._messages_fd = self._opened(MESSAGES)
        return self._messages_fd

    def messages_size(self) -> int:
        """Return the size of ``messages.json``, 0 where there is none: looking makes no file."""
        if self._messages_fd < 0:
            try:
                self._messages_fd = self._disk.open(f"{self.path}/{MESSAGES}", create=False)
            except FileNotFoundError:
                return 0
        size = self._disk.size(self._messages_fd)
        if size < 0:  # removed or replaced since it was opened
            self.close_messages()
            return self.messages_size()
        return size

    def remove_messages(self) -> None:
        """An empty file is no JSON array: a session without messages has no ``messages.json``."""
        self._disk.remove(f"{self.path}/{MESSAGES}")
        self.close_messages()

    def keep_aside(self, data: bytes) -> None:
        """Save what does not belong into ``messages.json`` beside it, for a person to look at."""
        fd = self._disk.open(f"{self.path}/{MESSAGES}.torn", create=True)
        try:
            self._disk.write(fd, data, self._disk.size(fd))
        finally:
            self._disk.close(fd)

    def close_messages(self) -> None:
        """Close ``messages.json`` if it is open."""
        if self._messages_fd >= 0:
            fd, self._messages_fd = self._messages_fd, -1
            self._disk.close(fd)

    def close(self) -> None:
        """Close what is open."""
        try:
            self.close_messages()
        finally:
            if self._turns_fd >= 0:
                fd, self._turns_fd = self._turns_fd, -1
                self._disk.close(fd)

    def _opened(self, name: str) -> int:
        path = f"{self.path}/{name}"
        try:
            return self._disk.open(path, create=True)
        except FileNotFoundError:
            self._make()
            return self._disk.open(path, create=True)

    def _make(self) -> None:
        """Make the session's three directories from the top, where the user's is there already."""
        inner = os.path.dirname(self.path)  # noqa: PTH120 - pathlib is ten times dearer
        for place in (os.path.dirname(inner), inner, self.path):  # noqa: PTH120
            self._disk.make_directory(place)
