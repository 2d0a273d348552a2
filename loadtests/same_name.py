"""Users and sessions whose names a careless store takes for one: nothing may be mixed up.

Each prompt carries its session's canary; one that shows in another session is a leak, with both
turns as its witness.
"""

from __future__ import annotations

import unicodedata

from kode_lab.key import SessionKey
from kode_lab.load import SessionUser

__all__ = ["SameName"]


class SameName(SessionUser):
    """A user that asks under every name, in every session."""

    rate_per_s = 1.0

    def on_start(self) -> None:
        """Name the sessions."""
        super().on_start()
        ada, bob, zoe = (f"{name}-{self.recorder.tag}" for name in ("ada", "bob", "zoë"))
        names = (
            # The same session name for several users, and users' names as names of sessions.
            *((ada, "x"), (bob, "x"), (ada, bob), (bob, ada)),
            # What differs in case only, or in its Unicode form only.
            *((ada.title(), "x"), (ada, "X")),
            *((unicodedata.normalize(form, zoe), "x") for form in ("NFC", "NFD")),
            # What is the same text once it is joined, or once a path is walked.
            *((ada, f"{bob}:x"), (f"{ada}:{bob}", "x"), (ada, f"../{bob}/x")),
            # What search-backed stores cut or split: at commas, hyphens, blanks and points.
            *((ada, f"x{joint}{end}") for joint in ",- ._" for end in ("1", "2")),
        )
        self.keys = [SessionKey.of(user, self.agent_id, session) for user, session in names]

    def session(self) -> SessionKey:
        """Return one of them."""
        return self.draw.choice(self.keys)

    def prompt(self, marker: str) -> str:
        """Return a prompt with the canary, with and without a tool's work."""
        if self.draw.random() < 0.5:
            return f"My secret word is {marker}"
        return super().prompt(marker)
