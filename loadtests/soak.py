"""Long and steady: the server's memory and open files stay flat while sessions come and go.

    kode-lab load soak --for 10m

Memory when a fifth of the run is over is compared with memory at its end; more than a twentieth on
top makes the exit status 4.
"""

from __future__ import annotations

import time

from locust import events
from session_user import SessionUser

from kode_lab.key import SessionKey

__all__ = ["Soak"]

SESSIONS = 5
# A conversation lasts half a minute, so that its length is the same at any time of the run.
EPOCH_S = 30


class Soak(SessionUser):
    """One who takes its time."""

    rate_per_s = 2.0
    double_share = 0.1

    def session(self) -> SessionKey:
        """Give one of this user's conversations of now."""
        talk = f"{int(time.monotonic()) // EPOCH_S}-{self.draw.randrange(SESSIONS)}"
        return self.key(f"regular-{self.recorder.worker}-{self.number}", talk)


@events.init.add_listener
def _demand_flatness(environment: object, **_: object) -> None:
    environment.is_steady = True  # type: ignore[attr-defined]
