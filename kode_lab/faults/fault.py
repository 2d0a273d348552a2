"""A fault: one mistake, what must convict it, and the conditions that provoke it."""

from __future__ import annotations

from typing import NamedTuple

from kode_lab.faults.scenario import KEYS, Scenario
from kode_lab.faults.site import Parts
from kode_lab.key import SessionKey

__all__ = ["LEAVING", "PLAIN", "TWO_PROCESSES", "Fault", "named"]

PLAIN = Scenario()
TWO_PROCESSES = Scenario(processes=2)
LEAVING = Scenario(hurried_percent=40, is_cancelling=True)


class Fault(NamedTuple):
    """One mistake.

    Attributes:
        about: what is wrong, in one clause.
        shows: the anomalies that must be found, each of them; it is known by the first.
        scenario: what provokes it.
        parts: how the real parts are wrapped.
    """

    name: str
    about: str
    shows: tuple[str, ...]
    scenario: Scenario
    parts: Parts


def named(user: str, session: str) -> SessionKey:
    """Return a session's key with the agent that all scenarios use."""
    return SessionKey(user, session, KEYS[0].agent_id)
