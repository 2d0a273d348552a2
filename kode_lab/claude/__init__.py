"""The model: one client for the real Messages API, and a simulated one that it cannot tell apart.

The only place that imports ``anthropic``, and only when a client is opened: importing this package
costs milliseconds, importing ``anthropic`` costs seconds of CPU.
"""

from __future__ import annotations

from kode_lab.claude.client import Attempt, Claude
from kode_lab.claude.fault import Fault
from kode_lab.claude.profile import Plan, Profile, report_profile
from kode_lab.claude.simulated import SimulatedClaude, run_simulated

__all__ = [
    "Attempt",
    "Claude",
    "Fault",
    "Plan",
    "Profile",
    "SimulatedClaude",
    "report_profile",
    "run_simulated",
]
