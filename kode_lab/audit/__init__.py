"""Verdicts from the traces that a service already has, without markers and without a load test.

    verdict = kode_lab.audit("traces.jsonl")
    print(verdict)

Every request to a model carries the whole conversation that the session believed in, so any log of
model requests is a history of reads.

    items      messages of every dialect as one list of items
    turns      calls as turns of conversations, over one tree of all that was said
    histories  message lists as nodes of that tree, each read as the continuation of another
    requests   logged requests with their replies
    readers    files of many kinds as one stream of model calls
    rules      what these prove
    verdict    the verdict, as text and JSON
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

from kode_lab.audit.readers import Log, read_log
from kode_lab.audit.rules import Finding
from kode_lab.audit.turns import Call, Turn
from kode_lab.audit.verdict import AuditVerdict, Judged, audit, verdict_on

__all__ = [
    "AuditVerdict",
    "Call",
    "Finding",
    "Judged",
    "Log",
    "Turn",
    "audit",
    "read_log",
    "verdict_on",
]


class _CallableModule(ModuleType):
    """Make ``kode_lab.audit(path)`` and ``from kode_lab.audit import audit`` the same call."""

    def __call__(self, *paths: Any, **options: Any) -> AuditVerdict:
        return audit(*paths, **options)


sys.modules[__name__].__class__ = _CallableModule
