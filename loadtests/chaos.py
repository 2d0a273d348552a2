"""The server killed with kill -9 under load, over and over, while the model fails in all its ways.

    kode-lab load chaos

Nothing that was acknowledged may be lost, nothing may be done twice. Clients behave as they should:
a turn with an unknown outcome is sent again under its old turn id, until it is answered.
"""

from __future__ import annotations

from typing import Any

from locust import events

from kode_lab.key import SessionKey
from kode_lab.load import ToolUser
from kode_lab.load.nemesis import Nemesis

__all__ = ["Chaos"]

EPOCH_S = 20
_UNTIMED_S = 600.0


class Chaos(ToolUser):
    """One who does not give up."""

    rate_per_s = 1.0
    double_share = 0.1
    attempts_limit = 60
    # Shorter than a restart and its storm, so that some turns are sent again while they run.
    timeout_s = 20.0

    def session(self) -> SessionKey:
        """Return one of this user's conversations of now."""
        talk = f"{self.epoch(EPOCH_S)}-{self.draw.randrange(2)}"
        return self.key(f"sturdy-{self.recorder.worker}-{self.number}", talk)


@events.init_command_line_parser.add_listener
def _add_options(parser: Any) -> None:
    parser.add_argument("--kills", type=int, default=20, help="of the server, during the run")


@events.test_start.add_listener
def _let_loose(environment: Any, **_: Any) -> None:
    if environment.load_run.is_worker:
        return
    options = environment.parsed_options
    environment.nemesis = Nemesis(environment, options.kills, options.run_time or _UNTIMED_S)
