"""Bench of the audit: how often it errs on logs whose truth is known, and how fast it reads."""

from __future__ import annotations

import time
from collections.abc import Sequence

from benchmarks.audit_logs import damaged, long_sessions, make_log
from benchmarks.bench import Row, row
from benchmarks.sampling import share
from kode_lab.audit import AuditVerdict, Log, verdict_on

__all__ = ["audit"]

LOGS = 5_000


def audit(effort: float) -> list[Row]:
    """Return the rows of 5,000 logs, read whole and damaged, and of long and short sessions."""
    logs = share(LOGS, effort, least=20)
    false_whole = false_damaged = planted = found = 0
    for seed in range(logs):
        played = make_log(seed)
        proved = _proved(_judged(played.lines))
        false_whole += len(proved - played.faults)
        planted += len(played.faults)
        found += len(proved & played.faults)
        false_damaged += len(_proved(_judged(damaged(played.lines, seed))) - played.faults)
    rows = [
        row("faults planted in whole logs", planted, "faults"),
        row("of these proved, by name", 100 * found / planted, "%", bar="value >= 95"),
        row(f"proved wrongly in {logs:,} whole logs", false_whole, "findings", bar="value <= 0"),
        row(f"proved wrongly in {logs:,} damaged", false_damaged, "findings", bar="value <= 0"),
    ]
    calls = share(2_000, effort, least=400)
    short, long = (_cost_us(long_sessions(turns, calls // turns)) for turns in (50, 400))
    rows.append(row("a request in sessions of 50 turns", short[0], "us"))
    rows.append(
        row("in sessions of 400 turns", long[0], "us", baseline=short[0], bar="ratio <= 2.5")
    )
    rows.append(row("1 GB of sessions of 50 turns", short[1], "CPU s", bar="value <= 20"))
    return rows


def _judged(lines: Sequence[str]) -> AuditVerdict:
    log = Log()
    for number, line in enumerate(lines, 1):
        log.read_line(line.encode(), "log", number)
    return verdict_on(log)


def _proved(verdict: AuditVerdict) -> set[str]:
    return {finding.name for finding in verdict.findings if finding.is_proved}


def _cost_us(lines: Sequence[str]) -> tuple[float, float]:
    """Return the CPU microseconds a request, and the CPU seconds of a gigabyte of such lines."""
    size = sum(map(len, lines))
    begin_s = time.process_time()
    calls = _judged(lines).counts["calls"]
    spent_s = time.process_time() - begin_s
    return spent_s / calls * 1e6, spent_s / size * 1e9
