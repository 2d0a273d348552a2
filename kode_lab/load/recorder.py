"""What one Locust process records: its history, its own lateness, and what it has under way.

All processes of a run append to one history: a line is one write. It owns the names and markers
that no two processes may share. It knows neither targets nor what a session is asked.
"""

from __future__ import annotations

import itertools
import math
import resource
import time
from collections.abc import Iterable
from hashlib import blake2b
from pathlib import Path
from typing import Any

import gevent
from gevent.pool import Group

from kode_lab.history.operation import HistoryWriter, marker_of
from kode_lab.key import SessionKey

__all__ = ["HISTORY", "LAG", "LATE", "WORKERS_LIMIT", "Recorder", "merged", "quantile"]

HISTORY = "history.jsonl"
# Markers are numbered in steps of this, so that no two processes ever draw the same one.
WORKERS_LIMIT = 1_024
_LATE_USERS = 1_000_000
_TICK_S = 0.02
# How late turns left, and how late the loop woke.
LATE, LAG = "late", "loop lag"
# Times are counted in classes that grow by a tenth, from 10 us on.
_FIRST_NS, _GROWTH = 10_000, 1.1


class _NoHistory:
    """Takes operations and keeps nothing: to measure what recording costs."""

    def invoke(self, *_words: Any, **_facts: Any) -> None:
        """Note nothing."""

    def complete(self, *_words: Any, **_facts: Any) -> None:
        """Note nothing."""

    def fault(self, *_words: Any) -> None:
        """Note nothing."""

    def close(self) -> None:
        """Close nothing."""


class Recorder:
    """The evidence of one process of one run.

    Attributes:
        worker: 0 for the process that ends the run, above that one for each worker.
        tag: makes this run's users unlike those of any other.
        history: where operations go; a process that dies leaves indeterminate ones by itself.
        in_flight: the greenlets of the turns under way.
        is_hushed: no new turn is begun.
    """

    def __init__(
        self,
        run_dir: Path,
        worker: int,
        *,
        workers: int = 0,
        is_recording: bool = True,
        history: Path | None = None,
    ) -> None:
        """Open the run's history for appending.

        Args:
            run_dir: the run's directory, the same for all its processes.
            workers: how many processes have users; 0 when that is not known.
            is_recording: whether to open it at all.
            history: another file than the run's, on another machine.
        """
        self.run_dir = run_dir
        self.worker = worker
        self.tag = blake2b(run_dir.name.encode(), digest_size=3).hexdigest()
        self.in_flight = Group()
        self.is_hushed = False
        # Numbered across all processes: without gaps where it is known how many there are.
        # Who comes later than the others begins far above them.
        first = worker * _LATE_USERS if worker > workers > 0 else max(0, worker - 1)
        self._users = itertools.count(first, workers or (WORKERS_LIMIT if worker else 1))
        self._numbers = itertools.count(worker, WORKERS_LIMIT)
        self._processes = map(f"{worker}.{{}}".format, itertools.count())
        self.history: HistoryWriter | _NoHistory
        path = history or run_dir / HISTORY
        self.history = HistoryWriter(path) if is_recording else _NoHistory()
        self._times: dict[str, dict[int, int]] = {LATE: {}, LAG: {}}
        self._began_s, self._began_cpu_s = time.monotonic(), _cpu_s()
        self._ticker = gevent.spawn(self._tick)

    def next_user(self) -> int:
        """Return the number of one more user; no other process of the run has it."""
        return next(self._users)

    @staticmethod
    def worker_of(marker: str) -> int:
        """Return the number of the process that made a marker."""
        return int(marker.rpartition("-")[2], 16) % WORKERS_LIMIT

    def marker(self, key: SessionKey) -> str:
        """Return a fresh marker for this session, unique among all processes of the run."""
        return marker_of(key, next(self._numbers))

    def next_process(self) -> str:
        """Return the history's name of one more sender; each sends once."""
        return next(self._processes)

    def fault(self, name: str, detail: str = "") -> None:
        """Write that a fault begins, or ends, now."""
        self.history.fault(name, time.monotonic_ns(), detail)

    def count(self, name: str, time_ns: int) -> None:
        """Count one more time of that name; ``LATE`` is how much later than meant a turn left."""
        classes = self._times.setdefault(name, {})
        at = 0
        if time_ns > _FIRST_NS:
            at = math.ceil(math.log(time_ns / _FIRST_NS, _GROWTH))
        classes[at] = classes.get(at, 0) + 1

    def figures(self) -> dict[str, Any]:
        """Return what this process spent and by how much it was late, as JSON values."""
        took_s = max(time.monotonic() - self._began_s, 1e-9)
        times = {
            name: {str(at): count for at, count in classes.items()}
            for name, classes in self._times.items()
        }
        cpu_s = _cpu_s() - self._began_cpu_s
        return {"cpu_s": cpu_s, "cpu_share": cpu_s / took_s, "times": times}

    def close(self) -> None:
        """Stop; what was written is already there."""
        self._ticker.kill(block=False)
        self.history.close()

    def _tick(self) -> None:
        """Measure by how much the loop wakes late: everything here is as late as that."""
        while True:
            due_s = time.monotonic() + _TICK_S
            gevent.sleep(_TICK_S)
            self.count(LAG, int((time.monotonic() - due_s) * 1e9))


def merged(figures: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """Return the figures of all processes as one: the busiest's share, everybody's lateness."""
    whole: dict[str, Any] = {"cpu_s": 0.0, "cpu_share": 0.0, "times": {}}
    for one in figures:
        whole["cpu_s"] += one["cpu_s"]
        whole["cpu_share"] = max(whole["cpu_share"], one["cpu_share"])
        for name, classes in one["times"].items():
            sums = whole["times"].setdefault(name, {})
            for at, count in classes.items():
                sums[at] = sums.get(at, 0) + count
    return whole


def quantile(classes: dict[str, int], share: float) -> float:
    """Return the time in seconds that ``share`` of the counted ones do not exceed."""
    wanted = share * sum(classes.values())
    for at, count in sorted((int(at), count) for at, count in classes.items()):
        wanted -= count
        if wanted <= 0:
            return _FIRST_NS * _GROWTH**at / 1e9 if at else 0.0
    return 0.0


def _cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime
