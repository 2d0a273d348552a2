"""Many users with the same session names, and sessions named like users: nothing may be mixed up.

Each prompt carries its session's canary; one that shows in another session is a leak, with both
turns as its witness.
"""

from __future__ import annotations

from session_user import SessionUser

from kode_lab.key import SessionKey

__all__ = ["SameName"]

# Each of them is a user's name as well as the name of a session of every user.
NAMES = ("ada", "bob", "cyd")


class SameName(SessionUser):
    """One who speaks as anybody, in any session of that name."""

    rate_per_s = 1.0

    def session(self) -> SessionKey:
        """Give a session whose names others have, too."""
        user, session = self.draw.choice(NAMES), self.draw.choice(NAMES)
        # The same three names once more, the other way round, as an id with a joiner in it.
        return self.key(user, self.draw.choice((session, f"{user}:{session}", None)))

    def prompt(self, marker: str) -> str:
        """Give a prompt with the canary, with and without a tool's work."""
        if self.draw.random() < 0.5:
            return f"My secret word is {marker}"
        return f"List my schedules for 1 day from tomorrow {marker}"
