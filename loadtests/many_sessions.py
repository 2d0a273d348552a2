"""Thousands of sessions, reached in a ramp: people who think, and a few who never stop talking.

A session has a Pareto number of turns, so most are short and some very long; now and then two turns
of one session are sent at once, as by an impatient hand.
"""

from __future__ import annotations

from kode_lab.key import SessionKey
from kode_lab.load import SessionUser

__all__ = ["ManySessions"]

TAIL_INDEX = 1.2
TURNS_LIMIT = 60


class ManySessions(SessionUser):
    """A person who has one conversation after the other."""

    # Open loop: on average eight seconds from turn to turn, whatever the server does.
    rate_per_s = 0.125
    double_share = 0.15

    def on_start(self) -> None:
        """Begin before the first conversation."""
        super().on_start()
        self.begun, self.left = 0, 0

    def session(self) -> SessionKey:
        """Return the conversation under way, or the next."""
        if not self.left:
            self.begun += 1
            self.left = min(TURNS_LIMIT, int(self.draw.paretovariate(TAIL_INDEX)))
        self.left -= 1
        return self.key(f"user-{self.recorder.worker}-{self.number}", f"talk-{self.begun}")
