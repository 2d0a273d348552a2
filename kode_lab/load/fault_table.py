"""Which load test convicts which mistake: each is run against a server that makes it on purpose.

A load test that cannot fail proves nothing, so each is also run against the right server, which it
must find valid. The table is kept where the documents point.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from kode_lab.lab.provenance import commit_name, machine

__all__ = ["CONVICTS", "run_table"]

# What each load test is for; "" is the right server.
CONVICTS = {
    "hot_session": (
        "",
        "no-lock",
        "lease-expires-without-fence",
        "lock-released-before-write",
        "revision-check-not-atomic",
        "compaction-outside-lock",
        "acknowledged-on-enqueue",
        "lagging-replica",
    ),
    "same_name": (
        "",
        "stored-without-user",
        "ambiguous-key",
        "case-folded-key",
        "unicode-folded-key",
        "path-traversal",
        "shared-default-list",
        "evicted-in-flight",
    ),
    "churn": ("", "agent-made-twice", "shared-default-list"),
    "tools": ("", "no-lock"),
    "streaming": ("", "no-lock"),
    "many_sessions": ("", "no-lock"),
    "spike": ("", "lock-released-before-write"),
    "chaos": ("", "retry-without-idempotency"),
}
_FOR_S = {"chaos": 15, "spike": 9}
_OTHERS_FOR_S = 6
_LIMIT_S = 300.0
_VERDICTS = {0: "valid", 1: "CONVICTED", 2: "unknown", 3: "unusable"}


class _Outcome(NamedTuple):
    name: str
    fault: str
    status: int
    found: str

    @property
    def is_right(self) -> bool:
        return self.status == (1 if self.fault else 0)


def run_table(options: Namespace) -> int:
    """Run every pair, keep the table below ``results``; 0 when each is as it should be."""
    outcomes = []
    for outcome in _outcomes():
        outcomes.append(outcome)
        said = f"{outcome.name} against {outcome.fault or 'the right server'}: {outcome.found}"
        sys.stderr.write(f"{said}\n")
        sys.stderr.flush()
    text = _table(outcomes)
    path = options.results / "loadtests" / "faults.md"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    sys.stdout.write(text)
    return 0 if all(outcome.is_right for outcome in outcomes) else 1


def _outcomes() -> Iterator[_Outcome]:
    for name, faults in CONVICTS.items():
        for fault in faults:
            with tempfile.TemporaryDirectory(prefix="kode-lab-table-") as scratch:
                yield _outcome(name, fault, Path(scratch))


def _outcome(name: str, fault: str, scratch: Path) -> _Outcome:
    words = ["load", name, "--for", f"{_FOR_S.get(name, _OTHERS_FOR_S)}s", "--no-pictures"]
    words += ["--in-process", "--results", str(scratch)]
    if name == "chaos":
        words += ["--kills", "2"]
    if fault:
        words += ["--fault", fault]
    try:
        status = subprocess.run(  # noqa: S603 - our own command
            [sys.executable, "-m", "kode_lab", *words],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            timeout=_LIMIT_S,
            check=False,
        ).returncode
        verdict = json.loads((scratch / "latest" / "verdict.json").read_bytes())
    except (subprocess.TimeoutExpired, OSError, ValueError) as error:
        return _Outcome(name, fault, 3, f"no verdict: {type(error).__name__}")
    counts = verdict["counts"]
    found = ", ".join(f"{count} {anomaly}" for anomaly, count in counts.items() if count)
    return _Outcome(name, fault, status, found or verdict["headline"].partition(".")[0])


def _table(outcomes: list[_Outcome]) -> str:
    lines = [
        f"`kode-lab load faults`, commit {commit_name()}; {machine()}",
        "",
        "| load test | server | verdict | what was found |",
        "| --- | --- | --- | --- |",
    ]
    lines += [
        f"| {o.name} | {o.fault or '(right)'} | {_VERDICTS.get(o.status, o.status)}"
        f"{'' if o.is_right else ' (MISSED)'} | {o.found} |"
        for o in outcomes
    ]
    return "\n".join(lines) + "\n"
