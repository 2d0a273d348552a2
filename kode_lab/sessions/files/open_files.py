"""Which sessions' files stay open: as many as descriptors allow, those used last.

A session has two. When they become scarce, the sessions that rested longest close
``messages.json`` first, because opening it again is all it costs; a session whose ``turns.jsonl``
is closed is forgotten with it, and must be looked at anew. So ten thousand sessions that come round
again and again need not be reopened where six thousand would have both files open. Nothing here
knows what is in them, or who holds a session: it may be one whose files are closed.
"""

from __future__ import annotations

import resource
from collections import OrderedDict

from kode_lab.key import SessionKey
from kode_lab.sessions.files.session_files import SessionFiles

__all__ = ["OpenFiles", "default_limit"]

# 128 where a process may open the usual 1,024 files. More than the last need memory, too.
_SESSIONS = (64, 2_500)


def default_limit() -> int:
    """Return how many sessions may have both files open in a quarter of this process's limit."""
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    least, most = _SESSIONS
    return most if files == resource.RLIM_INFINITY else max(least, min(most, files // 8))


class OpenFiles:
    """The sessions whose files are open, the longest unused first."""

    __slots__ = ("_files_limit", "_sessions", "_whole")

    def __init__(self, limit: int) -> None:
        self._files_limit = 2 * max(limit, 1)
        self._sessions: OrderedDict[SessionKey, SessionFiles] = OrderedDict()
        # Those of them that have ``messages.json`` open, too.
        self._whole: OrderedDict[SessionKey, SessionFiles] = OrderedDict()

    def get(self, key: SessionKey) -> SessionFiles | None:
        """Return the session's files if they are open."""
        return self._sessions.get(key)

    def is_whole(self, key: SessionKey) -> bool:
        """Whether both of its files count as open."""
        return key in self._whole

    def keep(self, files: SessionFiles) -> None:
        """Count these as open from now on, one file at least."""
        self._sessions[files.key] = files
        self._sessions.move_to_end(files.key)
        if len(self._sessions) + len(self._whole) > self._files_limit:
            self._make_room(files)

    def use(self, files: SessionFiles) -> None:
        """Count both files as open from now on."""
        self._sessions[files.key] = files  # others may have taken its place while it was held
        self._sessions.move_to_end(files.key)
        self._whole[files.key] = files
        self._whole.move_to_end(files.key)
        if len(self._sessions) + len(self._whole) > self._files_limit:
            self._make_room(files)

    def forget(self, key: SessionKey) -> None:
        """Leave this one to whoever closes it."""
        self._sessions.pop(key, None)
        self._whole.pop(key, None)

    def close(self) -> None:
        """Close all of them.

        Raises:
            OSError: what one of them had delayed could not be written.
        """
        self._whole.clear()
        while self._sessions:
            self._sessions.popitem()[1].close()

    def _make_room(self, files: SessionFiles) -> None:
        """Close files of other sessions until the limit is kept."""
        while len(self._sessions) + len(self._whole) > self._files_limit:
            is_scarce = next(iter(self._whole), files.key) == files.key
            place = self._sessions if is_scarce else self._whole
            key, oldest = place.popitem(last=False)
            try:
                if is_scarce:
                    self._whole.pop(key, None)
                    oldest.close()
                else:
                    oldest.close_messages()
            except OSError:  # what it delayed is logged, and the journal will say what is wrong
                place[key] = oldest
                return
