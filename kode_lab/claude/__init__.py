"""The model: a client for the real Messages API, a simulated model, and a proxy that records.

    client       asks the Messages API (the only user of ``anthropic``, imported when it is opened)
    script       what the simulated model answers; formats/ how four APIs put it on the wire
    records      what a model was shown: the witness that a judge reads
    proxy        the same witness before a real model

Importing this package costs milliseconds, importing ``anthropic`` costs seconds of CPU.
"""

from __future__ import annotations

from kode_lab.claude.client import Attempt, Claude
from kode_lab.claude.fault import Fault
from kode_lab.claude.profile import Plan, Profile, report_profile
from kode_lab.claude.proxy import RecordingProxy
from kode_lab.claude.simulated import SimulatedClaude, run_simulated

__all__ = [
    "Attempt",
    "Claude",
    "Fault",
    "Plan",
    "Profile",
    "RecordingProxy",
    "SimulatedClaude",
    "report_profile",
    "run_simulated",
]
