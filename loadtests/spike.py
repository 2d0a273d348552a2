"""A crowd from one second to the next: a tenth of the users, then all of them, then a tenth again.

What is refused must be refused before it is accepted, and what was accepted must be kept.
"""

from __future__ import annotations

from locust import LoadTestShape

from kode_lab.key import SessionKey
from kode_lab.load import SessionUser

__all__ = ["Spike", "SpikeShape"]

CALM_SHARE = 0.1
# The crowd is there for the middle part of the run.
PARTS = 3


class Spike(SessionUser):
    """One of the crowd."""

    rate_per_s = 1.0
    double_share = 0.1

    def session(self) -> SessionKey:
        """Return one of this user's few sessions."""
        return self.key(f"fan-{self.recorder.worker}-{self.number}", f"{self.draw.randrange(2)}")


class SpikeShape(LoadTestShape):
    """``-u`` users in the middle third of ``-t``, a tenth of them before and after."""

    use_common_options = True

    def tick(self) -> tuple[int, float] | None:
        """Return the users for now and how fast they come; None ends the test."""
        options = self.runner.environment.parsed_options
        users, for_s = options.num_users or 60, float(options.run_time or 30)
        at_s = self.get_run_time()
        if at_s >= for_s:
            return None
        calm = max(1, round(users * CALM_SHARE))
        is_crowded = 1 <= at_s * PARTS // for_s < PARTS - 1
        return (users, float(users)) if is_crowded else (calm, float(users))
