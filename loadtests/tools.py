"""Concurrent creations: each id is given once, each schedule is in the book of who asked."""

from __future__ import annotations

from kode_lab.key import SessionKey
from kode_lab.load import ToolUser

__all__ = ["Tools"]

USERS, SESSIONS = 5, 2


class Tools(ToolUser):
    """One of several hands that work in a few sessions at once."""

    rate_per_s = 1.0

    def session(self) -> SessionKey:
        """Return one of a few sessions, so that turns of one meet."""
        user = self.draw.randrange(USERS)
        return self.key(f"maker-{user}", f"plans-{self.draw.randrange(SESSIONS)}")
