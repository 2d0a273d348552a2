"""Many clients on one session: its turns are served one after another, first come first served.

    locust -f loadtests/hot_session.py --host http://127.0.0.1:8000
    kode-lab load hot_session --for 10s --users 20

Every ten seconds the clients move on to a fresh session, all at once: a conversation that grows
without end would measure its own length.
"""

from __future__ import annotations

from kode_lab.key import SessionKey
from kode_lab.load import SessionUser

__all__ = ["HotSession"]

EPOCH_S = 10


class HotSession(SessionUser):
    """One of many who talk to the same session."""

    rate_per_s = 1.0

    def session(self) -> SessionKey:
        """Return the one session of these ten seconds."""
        return self.key("ada", f"hot-{self.epoch(EPOCH_S)}")
