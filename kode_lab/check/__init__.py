"""The judge: did sessions stay apart and in order? It answers from what clients recorded.

    verdict = check(read_operations(open("history.jsonl")))
    print(verdict)

``valid`` means that no guarantee was broken in what was seen, ``invalid`` that one was, with the
fewest operations that prove it, ``unknown`` that there is not enough evidence to say either. The
judge reads the clients' history and never the system's stores or logs; it imports neither the
system nor the model, so it cannot be persuaded by them.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

from kode_lab.check.columns import History, history_of
from kode_lab.check.guarantee import ANOMALIES, GUARANTEES, SAFETY, Anomaly, Guarantee, breaks
from kode_lab.check.judge import check
from kode_lab.check.stream import check_path, main
from kode_lab.check.verdict import Evidence, Finding, Verdict, worst
from kode_lab.check.witness import explain, reads_of, sentences

__all__ = [
    "ANOMALIES",
    "GUARANTEES",
    "SAFETY",
    "Anomaly",
    "Evidence",
    "Finding",
    "Guarantee",
    "History",
    "Verdict",
    "breaks",
    "check",
    "check_path",
    "explain",
    "history_of",
    "main",
    "reads_of",
    "sentences",
    "worst",
]


class _CallableModule(ModuleType):
    """Make ``kode_lab.check(history)`` and ``from kode_lab.check import check`` the same call."""

    def __call__(self, *arguments: Any, **options: Any) -> Verdict:
        return check(*arguments, **options)


sys.modules[__name__].__class__ = _CallableModule
