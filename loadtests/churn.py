"""Sessions without end: most turns open one, some return to one that may be evicted by now."""

from __future__ import annotations

from kode_lab.key import SessionKey
from kode_lab.load import SessionUser

__all__ = ["Churn"]

NEW_SHARE = 0.6
REMEMBERED_LIMIT = 1_000


class Churn(SessionUser):
    """One who rarely comes back, and then to anything."""

    rate_per_s = 2.0
    double_share = 0.1

    def on_start(self) -> None:
        """Begin knowing no session."""
        super().on_start()
        self.opened = 0

    def session(self) -> SessionKey:
        """Return a new session, or one of the latest that this user opened."""
        at = self.opened
        if not at or self.draw.random() < NEW_SHARE:
            self.opened += 1
        else:
            at = self.draw.randrange(max(0, at - REMEMBERED_LIMIT), at)
        return self.key(f"guest-{self.recorder.worker}-{self.number}", f"visit-{at}")

    def prompt(self, marker: str) -> str:
        """Return a prompt that is answered at once: sessions are what costs here."""
        return f"Hello again {marker}"
