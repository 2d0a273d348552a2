"""The judge: did sessions stay apart and in order? It answers from what clients recorded.

    verdict = check(read_operations(open("history.jsonl")))
    print(verdict)

``valid`` means that no guarantee was broken in what was seen, ``invalid`` that one was, with the
fewest operations that prove it, ``unknown`` that the run shows nothing. Each guarantee has a
finding of its own: valid, invalid, or not judged, with the evidence that it needs. The judge reads
the clients' history and never the system's stores or logs; it imports neither the system nor the
model, so it cannot be persuaded by them.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

from kode_lab.check.judge import check, check_path, main
from kode_lab.check.verdict import (
    ANOMALIES,
    GUARANTEES,
    SAFETY,
    Anomaly,
    Evidence,
    Finding,
    Guarantee,
    Verdict,
    breaks,
    worst,
)
from kode_lab.check.witness import explain, sentences

__all__ = [
    "ANOMALIES",
    "GUARANTEES",
    "SAFETY",
    "Anomaly",
    "Evidence",
    "Finding",
    "Guarantee",
    "Verdict",
    "breaks",
    "check",
    "check_path",
    "explain",
    "main",
    "sentences",
    "worst",
]


class _CallableModule(ModuleType):
    """Make ``kode_lab.check(history)`` and ``from kode_lab.check import check`` the same call."""

    def __call__(self, *arguments: Any, **options: Any) -> Verdict:
        return check(*arguments, **options)


sys.modules[__name__].__class__ = _CallableModule
