"""Load from several machines: workers' histories come as messages, their clocks are measured.

A worker on another machine writes its history to a file of its own and sends it to the master in
compressed pieces, each acknowledged. The master asks for the worker's clock before, during and
after the run: an answer that took 0.4 ms tells the difference of the two clocks within 0.2 ms. In
the run's history each operation of such a worker begins as early and ends as late as its clock
allows (``x_clock_error_ns`` tells by how much it was widened). So the judge, who knows no clocks,
never convicts by a difference that the clocks do not support.

What a dead worker asked and could no longer tell shows in what others were shown: such a turn is
entered as one whose outcome is unknown.

This module must know neither Locust nor gevent: it makes and reads messages, and sends none.

Source: the clock filter of NTP (RFC 5905, sections 8 and 10): of several samples the one with the
shortest way counts.
"""

from __future__ import annotations

import json
import zlib
from bisect import bisect_right
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

from kode_lab.history.operation import NEMESIS, markers_in

__all__ = [
    "ERROR",
    "ClockSample",
    "Inbox",
    "Outbox",
    "WorkerClock",
    "line_of",
    "machine_clock",
    "merge",
]

ERROR = "x_clock_error_ns"
# A piece of history before compression; so much may be on its way unacknowledged.
_PIECE_BYTES, _WINDOW_BYTES = 256 * 1024, 4 * 1024 * 1024
# The longest line, and the most that one message may unpack to.
_LINE_BYTES = 16 * 1024 * 1024


def machine_clock() -> str:
    """Return a name for this machine's monotonic clock: alike where clocks can be compared."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text("utf-8").strip()
        return f"{boot} {Path('/proc/self/ns/time').readlink()}"
    except OSError:
        return ""


class ClockSample(NamedTuple):
    """One question and answer about a worker's clock.

    Attributes:
        at_ns: the worker's clock then.
        offset_ns: by how much it is ahead of the master's, within ``bound_ns``.
    """

    at_ns: int
    offset_ns: float
    bound_ns: float

    @classmethod
    def of(cls, sent_ns: int, got_ns: int, left_ns: int, back_ns: int) -> ClockSample:
        """Return the sample of one exchange; the first and the last time are the master's."""
        offset_ns = ((got_ns - sent_ns) + (left_ns - back_ns)) / 2
        return cls(left_ns, offset_ns, max(0.0, (back_ns - sent_ns - (left_ns - got_ns)) / 2))


class WorkerClock:
    """What is known of one worker's clock: the best sample of each round of questions."""

    def __init__(self) -> None:
        self.rounds: list[ClockSample] = []
        self._round = -1

    def note(self, round_: int, sample: ClockSample) -> None:
        """Take one more sample of a round; rounds come one after another."""
        if round_ > self._round or not self.rounds:
            self.rounds.append(sample)
        elif sample.bound_ns < self.rounds[-1].bound_ns:
            self.rounds[-1] = sample
        self._round = max(round_, self._round)

    def offset_at(self, worker_ns: int) -> tuple[float, float]:
        """Return by how much the worker's clock is ahead at that time, and within which bound.

        Between two rounds it may be anything that either of them allows.

        Raises:
            ValueError: it was never measured.
        """
        if not self.rounds:
            raise ValueError("the worker's clock was never measured")
        after = bisect_right(self.rounds, worker_ns, key=lambda sample: sample.at_ns)
        near = self.rounds[max(0, after - 1) : after + 1] if after else self.rounds[:2]
        low = min(sample.offset_ns - sample.bound_ns for sample in near)
        high = max(sample.offset_ns + sample.bound_ns for sample in near)
        return (low + high) / 2, (high - low) / 2

    @property
    def bound_ns(self) -> float:
        """The widest bound of the run."""
        return max((self.offset_at(sample.at_ns)[1] for sample in self.rounds), default=0.0)


class Outbox:
    """A worker's history on its way to the master: a file, and how far it was sent and taken."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._sent = self._taken = 0

    def pieces(self) -> Iterator[dict[str, Any]]:
        """Return the messages that may be sent now: whole lines that are new, within the window."""
        with self._path.open("rb") as file:
            while self._sent - self._taken < _WINDOW_BYTES:
                file.seek(self._sent)
                fresh = file.read(_PIECE_BYTES)
                if b"\n" not in fresh:
                    fresh += file.read(_LINE_BYTES)
                whole = fresh[: fresh.rfind(b"\n") + 1]
                if not whole:
                    return
                yield {"at": self._sent, "size": len(whole), "lines": zlib.compress(whole, 1)}
                self._sent += len(whole)

    def taken(self, upto: int) -> None:
        """Note that the master has everything before this place."""
        self._taken = max(self._taken, upto)

    @property
    def is_empty(self) -> bool:
        """Whether the master has everything."""
        return self._taken >= self._path.stat().st_size


class Inbox:
    """What one worker sent: its lines as it wrote them, in a file beside the run's history.

    Attributes:
        worker: its number.
        clock: what is known of its clock.
        size: how many bytes of its history are here.
    """

    def __init__(self, run_dir: Path, worker: int) -> None:
        self.worker = worker
        self.clock = WorkerClock()
        self.path = run_dir / f"history-{worker}.jsonl"
        self.path.write_bytes(b"")
        self.size = 0
        self._fresh: list[bytes] = []

    def take(self, piece: Mapping[str, Any]) -> int:
        """Keep a piece, unless it is here already; return up to where everything is here.

        Raises:
            ValueError: it is damaged or too large.
        """
        if piece["at"] != self.size:
            return self.size
        unpacked = zlib.decompressobj().decompress(piece["lines"], _LINE_BYTES + _PIECE_BYTES)
        if len(unpacked) != piece["size"]:
            raise ValueError(f"a piece of {piece['size']} bytes unpacks to {len(unpacked)}")
        with self.path.open("ab") as file:
            file.write(unpacked)
        self.size += len(unpacked)
        self._fresh += unpacked.splitlines()
        return self.size

    def fresh(self) -> list[dict[str, Any]]:
        """Return the events that came since the last time, once the clock is known."""
        if not self.clock.rounds:
            return []
        lines, self._fresh = self._fresh, []
        return [self.widened(line) for line in lines]

    def widened(self, line: bytes) -> dict[str, Any]:
        """Return an event on the master's clock: an invoke as early, an end as late as can be."""
        event: dict[str, Any] = json.loads(line)
        offset_ns, bound_ns = self.clock.offset_at(event["time_ns"])
        error_ns = round(bound_ns) + 1
        at_ns = event["time_ns"] - round(offset_ns)
        at_ns += -error_ns if event["type"] == "invoke" else error_ns
        return event | {"time_ns": max(0, at_ns), ERROR: error_ns}


class Merged(NamedTuple):
    """What the merge came to.

    Attributes:
        bound_ns: the widest bound of any clock.
        followed: neighbouring turns of one session, asked by two machines, one after the other.
        undecided: of these, how many are closer than the clocks can tell.
        unheard: turns of dead workers that only others' answers show.
    """

    bound_ns: float
    followed: int
    undecided: int
    unheard: int


def merge(
    history: Path,
    inboxes: Iterable[Inbox],
    lost: Mapping[int, float],
    worker_of: Callable[[str], int],
) -> Merged:
    """Write the run's history anew from all that is here, by the final knowledge of the clocks.

    Args:
        history: the run's; lines that carry ``ERROR`` are replaced.
        lost: the bound of the clock, in nanoseconds, of each worker that did not tell everything.
        worker_of: returns the number of the worker that made a marker.
    """
    lines = history.read_bytes().splitlines()
    events = [json.loads(line) for line in lines if f'"{ERROR}"'.encode() not in line]
    known = [inbox for inbox in inboxes if inbox.clock.rounds]
    for inbox in known:
        events += [inbox.widened(line) for line in inbox.path.read_bytes().splitlines()]
    unheard = _unheard(events, lost, worker_of) if lost else []
    events += unheard
    # Of one process, the invoke comes before its end, also where both have one time.
    events.sort(key=lambda event: (event["time_ns"], event["type"] != "invoke"))
    fresh = history.with_suffix(".fresh")
    with fresh.open("w", encoding="utf-8") as file:
        file.writelines(map(line_of, events))
    fresh.replace(history)
    bound_ns = max((inbox.clock.bound_ns for inbox in known), default=0.0)
    return Merged(bound_ns, *_orders(events), len(unheard))


def line_of(event: Mapping[str, Any]) -> str:
    """Return an event as a line of a history."""
    return json.dumps(event, ensure_ascii=False, separators=(",", ":")) + "\n"


def _unheard(
    events: Collection[dict[str, Any]], lost: Mapping[int, float], worker_of: Callable[[str], int]
) -> list[dict[str, Any]]:
    """Return an invoke for each turn that was shown to others, and that its worker never told."""
    asked, keys, latest = set[str](), dict[str, dict[str, Any]](), dict[str, int]()
    for event in events:
        worker = event["process"].partition(".")[0]
        latest[worker] = max(latest.get(worker, 0), event["time_ns"] - event.get(ERROR, 0))
        if marker := event.get("marker"):
            asked.add(marker)
            names = ("userId", "sessionId", "agentId")
            keys[marker.partition("-")[0]] = {n: event[n] for n in names if n in event}
    found: dict[str, dict[str, Any]] = {}
    for event in events:
        if event["process"] == NEMESIS or event["type"] == "invoke":
            continue
        for marker in markers_in(line_of(event)):
            number, tag = worker_of(marker), marker.partition("-")[0]
            if marker in asked or marker in found or number not in lost or tag not in keys:
                continue
            # It was asked after all that its worker told, as far as its clock can say.
            at_ns = latest.get(str(number), 0) - 2 * round(lost[number])
            found[marker] = {
                "type": "invoke", "f": "turn", "process": f"{number}.unheard-{len(found)}",
                "time_ns": max(0, at_ns), **keys[tag], "marker": marker, "turn_id": marker[1:],
                ERROR: round(lost[number]),
            }  # fmt: skip
    return list(found.values())


def _orders(events: list[dict[str, Any]]) -> tuple[int, int]:
    """Return how many neighbouring turns of two machines follow each other, or may not."""
    open_: dict[str, dict[str, Any]] = {}
    turns: dict[tuple[str, ...], list[tuple[int, int, int, str]]] = {}
    for event in events:
        if event["type"] == "invoke":
            open_[event["process"]] = event
        elif (begun := open_.pop(event["process"], None)) and begun.get("marker"):
            error_ns = begun.get(ERROR, 0)
            machine = event["process"].partition(".")[0] if error_ns else ""
            key = tuple(str(begun.get(name)) for name in ("userId", "sessionId", "agentId"))
            turns.setdefault(key, []).append(
                (begun["time_ns"], event["time_ns"], error_ns, machine)
            )
    followed = undecided = 0
    for of_session in turns.values():
        for first, second in pairwise(sorted(of_session)):
            if first[3] != second[3] and first[1] - first[2] < second[0] + second[2]:
                followed += 1
                undecided += first[1] >= second[0]
    return followed, undecided
