"""What the server's process takes while it is loaded: memory, open files, CPU.

It needs the file with the server's pid; without it nothing is said. A
server that was restarted is followed to its new pid.
"""

from __future__ import annotations

import time
from contextlib import suppress
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import gevent
import psutil

__all__ = ["ServerWatch", "words_of"]

_EVERY_S = 1.0
# After this share of a run the server has met everything that it keeps.
WARM_SHARE, SAMPLE_SHARE = 0.2, 0.1
GROWTH_LIMIT = 1.05
# Connections come and go, a few at a time; more than so many files on top are a leak.
FILES_LIMIT = 1.1
_LEAST_SAMPLES = 20


class _Sample(NamedTuple):
    pid: int
    at_s: float
    resident_bytes: int
    files: int
    cpu_s: float


class ServerWatch:
    """Looks at the server once a second until ``end``."""

    def __init__(self, pid_file: str, *, is_steady: bool = False) -> None:
        """Begin.

        Args:
            is_steady: whether memory and files must stay flat once it is warm.
        """
        self._pid_file = pid_file
        self._is_steady = is_steady
        self._samples: list[_Sample] = []
        self._looker = gevent.spawn(self._look) if pid_file else None

    def end(self) -> None:
        """Look no more: probing is no load."""
        if self._looker is not None:
            self._looker.kill(block=False)

    def figures(self) -> dict[str, Any]:
        """Return what was seen, as JSON values; nothing if nothing was."""
        seen = self._samples
        if len(seen) < 2:
            return {}
        last = [sample for sample in seen if sample.pid == seen[-1].pid]
        took_s = max(last[-1].at_s - last[0].at_s, 1e-9)
        count = max(1, int(len(seen) * SAMPLE_SHARE))
        warm = int(len(seen) * WARM_SHARE)
        early, late = seen[warm : warm + count], seen[-count:]
        found = {
            "cpu_share": (last[-1].cpu_s - last[0].cpu_s) / took_s,
            "warm_mb": median(s.resident_bytes for s in early) / 1e6,
            "last_mb": median(s.resident_bytes for s in late) / 1e6,
            "warm_files": median(s.files for s in early),
            "last_files": median(s.files for s in late),
            "samples": len(seen),
        }
        return found | {"trouble": self._trouble(found)}

    def _trouble(self, found: dict[str, Any]) -> str:
        if not self._is_steady or found["samples"] < _LEAST_SAMPLES:
            return ""
        if found["last_mb"] > GROWTH_LIMIT * found["warm_mb"]:
            return f"memory grew by more than {GROWTH_LIMIT - 1:.0%} (GROWTH_LIMIT={GROWTH_LIMIT})"
        if found["last_files"] > FILES_LIMIT * found["warm_files"]:
            return f"open files grew (FILES_LIMIT={FILES_LIMIT})"
        return ""

    def _look(self) -> None:
        while True:
            with suppress(OSError, ValueError, psutil.Error):  # it has just died
                pid = int(Path(self._pid_file).read_text("utf-8"))
                process = psutil.Process(pid)
                times = process.cpu_times()
                used = (process.memory_info().rss, process.num_fds(), times.user + times.system)
                self._samples.append(_Sample(pid, time.monotonic(), *used))
            gevent.sleep(_EVERY_S)


def words_of(found: dict[str, Any]) -> str:
    """Return the figures as one line."""
    trouble = f"; {found['trouble']}" if found["trouble"] else ""
    return (
        f"server: {found['cpu_share']:.0%} of a core, memory {found['warm_mb']:.1f} MB when warm, "
        f"{found['last_mb']:.1f} MB at the end, open files {found['warm_files']:g} and "
        f"{found['last_files']:g}{trouble}"
    )
