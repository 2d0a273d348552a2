"""Long and steady: the server's memory and open files stay flat while sessions come and go.

    kode-lab load soak --for 10m

Memory and open files when a fifth of the run is over are compared with those at its end; a
twentieth more memory, or a tenth more files, makes the exit status 4. What a server keeps up to a
limit (agents in memory, open sessions, files of locks) fills slowly under few people and would look
like a leak for as long. So each user first opens a session with every turn, and the server's limits
are small (``kode-lab load`` gives it ``--residents 64``): what still grows then is a leak.
"""

from __future__ import annotations

from locust import events

from kode_lab.key import SessionKey
from kode_lab.load import SessionUser

__all__ = ["Soak"]

SESSIONS = 5
# Of each user; the minute of a ten-minute run in which ten users meet all 256 files of locks.
OPENING_TURNS = 120
# A conversation lasts half a minute, so that its length is the same at any time of the run.
EPOCH_S = 30


class Soak(SessionUser):
    """One who takes its time."""

    rate_per_s = 2.0
    double_share = 0.1

    def on_start(self) -> None:
        """Begin knowing no session."""
        super().on_start()
        self.opened = 0

    def session(self) -> SessionKey:
        """Return a session that is new, and later one of this user's conversations of now."""
        if self.opened < OPENING_TURNS:
            self.opened += 1
            talk = f"opening-{self.opened}"
        else:
            talk = f"{self.epoch(EPOCH_S)}-{self.draw.randrange(SESSIONS)}"
        return self.key(f"regular-{self.recorder.worker}-{self.number}", talk)


@events.init.add_listener
def _demand_flatness(environment: object, **_: object) -> None:
    environment.is_steady = True  # type: ignore[attr-defined]
