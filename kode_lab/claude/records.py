"""What the simulated model was shown and answered: evidence for the judge, figures for a reader.

Bounded: of the reads the oldest are forgotten first, and how many were is told. A marker is kept as
one string, shared by all reads that name it.
"""

from __future__ import annotations

from collections import deque
from typing import NamedTuple

from kode_lab.history.operation import Read

__all__ = ["READS_LIMIT", "RECORDS_LIMIT", "Record", "Records", "Statistics"]

# About 550 bytes each, measured with turns of 20 prompts a session: 110 MB at the limit.
READS_LIMIT = 200_000
RECORDS_LIMIT = 10_000


class Record(NamedTuple):
    """One request to ``POST /v1/messages``, as it was answered.

    Attributes:
        marker: the newest marker it was shown, or "".
        intent: what the script took the turn for ("" when the request was refused).
        call: which model call of its turn, from 0.
        status: 200, an error's status, or 0 when the connection was dropped.
        latency_s: what the profile asked for, after scaling.
        arrived_ns: monotonic nanoseconds.
        answered_ns: monotonic nanoseconds, after the last byte was handed over.
        error: why it was refused, or the kind of fault that hit it.
    """

    request_id: str
    marker: str
    intent: str
    call: int
    status: int
    is_stream: bool
    latency_s: float
    arrived_ns: int
    answered_ns: int
    error: str = ""


class Statistics(NamedTuple):
    """What a simulated Claude has done so far."""

    requests: int
    in_flight: int
    peak_in_flight: int
    refused: int
    faults: int
    reads: int
    reads_forgotten: int


class Records:
    """The memory of one simulated Claude."""

    def __init__(self, reads_limit: int = READS_LIMIT) -> None:
        self._limit = reads_limit
        self._reads: dict[str, Read] = {}
        self._names: dict[str, str] = {}
        self._forgotten = 0
        self._recent: deque[Record] = deque(maxlen=RECORDS_LIMIT)
        self._requests = self._in_flight = self._peak = self._refused = self._faults = 0

    def show(self, marker: str, read: Read) -> None:
        """Note what a request was shown, if it is the first whose newest marker is this one."""
        if marker in self._reads:
            return
        if len(self._reads) >= self._limit:
            oldest = next(iter(self._reads))
            del self._reads[oldest], self._names[oldest]
            self._forgotten += 1
        self._names[marker] = marker
        # The same text comes as a new string with every request; keep the first.
        tail = tuple(self._names.get(name, name) for name in read.tail)
        self._reads[marker] = read._replace(tail=tail)

    def read(self, marker: str) -> Read | None:
        """Return what the first request with this newest marker was shown, or None."""
        return self._reads.get(marker)

    def arrive(self) -> None:
        """Count a request that has come."""
        self._requests += 1
        self._in_flight += 1
        self._peak = max(self._peak, self._in_flight)

    def leave(self, record: Record, *, is_fault: bool) -> None:
        """Note how a request that had come was answered."""
        self._in_flight -= 1
        self._faults += is_fault
        self._refused += 400 <= record.status < 500 and not is_fault
        self._recent.append(record)

    def recent(self) -> tuple[Record, ...]:
        """Return the latest records, at most ``RECORDS_LIMIT``, oldest first."""
        return tuple(self._recent)

    def statistics(self) -> Statistics:
        """Return the counts so far."""
        return Statistics(
            self._requests,
            self._in_flight,
            self._peak,
            self._refused,
            self._faults,
            len(self._reads),
            self._forgotten,
        )
