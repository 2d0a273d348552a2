"""The fault catalogue: every mistake that the judge has to convict, by its name.

A fault is a wrapping of real parts, never a switch inside them. Beside each stand the anomalies
that must be found, and the scenario that provokes them; its honest twin is the same scenario on
the parts as they are.

Source: the mistakes are those found in public session stores, agent frameworks and queues while
this was designed; the names of the anomalies are the judge's.
"""

from __future__ import annotations

from kode_lab.errors import InvalidScenario
from kode_lab.faults.fault import Fault
from kode_lab.faults.kept_faults import KEPT_FAULTS
from kode_lab.faults.lock_faults import LOCK_FAULTS, NAME_FAULTS
from kode_lab.faults.turn_faults import TURN_FAULTS

__all__ = ["CATALOGUE", "fault_of"]

CATALOGUE = {
    fault.name: fault for fault in (*LOCK_FAULTS, *NAME_FAULTS, *KEPT_FAULTS, *TURN_FAULTS)
}


def fault_of(name: str) -> Fault:
    """Return the fault of that name.

    Raises:
        InvalidScenario: there is none; names those there are.
    """
    if name not in CATALOGUE:
        raise InvalidScenario(f"there is no fault {name!r:.60}: name one of {', '.join(CATALOGUE)}")
    return CATALOGUE[name]
