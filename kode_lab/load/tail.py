"""Reads a history while it is written: what is under way, how long turns took, which sessions met.

Each look reads only the lines that came since the last one. It judges nothing.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any, NamedTuple

from kode_lab.key import SessionKey
from kode_lab.load.machines import ERROR

__all__ = ["Second", "Tail", "percentiles_ms"]

SHARES = (0.5, 0.9, 0.95, 0.99)


class Second(NamedTuple):
    """One second of a run: how its attempts ended, how long its acknowledged turns took."""

    counts: Counter[str]
    took_ns: list[int]


class Tail:
    """What a history says so far.

    Attributes:
        open: what was invoked and has not completed: the key, when, and its marker, by process.
        counts: attempts by how they ended.
        sessions: all sessions that were asked for a turn, in the order of their first one.
        took_ns: of each acknowledged turn, from its first attempt's sending to its first answer.
        seconds: by the second, counted from the first event.
        faults: when which fault began or ended, in seconds from the first event.
        first_error: of the first turn that was not acknowledged, or "".
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = 0
        self._first_ns: int | None = None
        self._sent_ns: dict[str, int] = {}
        self._answered: set[str] = set()
        self.open: dict[str, tuple[SessionKey | None, int, str]] = {}
        self.counts: Counter[str] = Counter()
        self.sessions: dict[SessionKey, None] = {}
        self.took_ns: list[int] = []
        self.seconds: dict[int, Second] = defaultdict(lambda: Second(Counter(), []))
        self.faults: list[tuple[float, str]] = []
        self.is_quiet = False
        self.first_error = ""

    def look(self) -> Tail:
        """Read what is new, and give itself."""
        try:
            with self._path.open("rb") as file:
                file.seek(self._offset)
                fresh = file.read()
        except FileNotFoundError:
            return self
        whole = fresh.rfind(b"\n") + 1
        self._offset += whole
        for line in fresh[:whole].splitlines():
            self._take(json.loads(line))
        return self

    @property
    def turns(self) -> int:
        """How many turns were asked, however often each was sent."""
        return len(self._sent_ns)

    @property
    def span_s(self) -> float:
        """From the first event to the last second with an answer before the end."""
        return max(self.seconds, default=0) + 1.0

    def _take(self, event: dict[str, Any]) -> None:
        process, time_ns = event["process"], event["time_ns"]
        if self._first_ns is None:
            self._first_ns = time_ns
        at_s = (time_ns - self._first_ns) / 1e9
        if process == "nemesis":
            self.is_quiet = self.is_quiet or event["f"] == "quiet"
            self.faults.append((at_s, event["f"]))
        elif event["type"] == "invoke":
            is_turn = event.get("f", "turn") == "turn"
            key = SessionKey.from_json(event) if is_turn else None
            marker = event.get("marker", "")
            self.open[process] = key, time_ns, marker
            if key is not None and not self.is_quiet:
                self.sessions.setdefault(key)
                self._sent_ns.setdefault(marker, time_ns)
        elif (begun := self.open.pop(process, None)) and begun[0] and begun[2] in self._sent_ns:
            self.first_error = self.first_error or event.get("error", "")
            self._ended(event["type"], begun[2], time_ns, int(at_s), event.get(ERROR, 0))

    def _ended(self, kind: str, marker: str, time_ns: int, second: int, error_ns: int) -> None:
        self.counts[kind] += 1
        bucket = self.seconds[second]
        bucket.counts[kind] += 1
        if kind == "ok" and marker not in self._answered:
            self._answered.add(marker)
            # What a foreign clock widened a turn by is no time that it took.
            took_ns = max(0, time_ns - self._sent_ns[marker] - 2 * error_ns)
            self.took_ns.append(took_ns)
            bucket.took_ns.append(took_ns)


def percentiles_ms(times_ns: list[int]) -> dict[str, float]:
    """Return p50 to p99 and the longest in milliseconds, unrounded; of nothing, nothing."""
    if not times_ns:
        return {}
    ordered = sorted(times_ns)
    found = {
        f"p{share * 100:g}": ordered[min(len(ordered) - 1, int(share * len(ordered)))] / 1e6
        for share in SHARES
    }
    return found | {"max": ordered[-1] / 1e6}
