"""Random histories to try the judge with: of a right backend, of a wrong one, and large ones.

``valid_run`` plays a whole service that keeps every guarantee while its clients time out, cancel,
retry and are refused, and its processes crash: whatever the judge objects to in it is a false
alarm. ``random_history`` and ``random_declared`` are small and often wrong in ways left to chance,
to be compared with a search; the second ones reset, compact, edit, and show windows.
All is decided by the seed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from random import Random
from typing import Any

from kode_lab.history.operation import (
    CRASHES,
    HEALS,
    NEMESIS,
    NO_DETAILS,
    QUIET,
    TAIL_LIMIT,
    Details,
    Operation,
    Read,
    digest_of,
    marker_of,
)
from kode_lab.key import SessionKey

__all__ = ["declared_run", "large_history", "random_declared", "random_history", "valid_run"]

_NOBODY = SessionKey("", "", "")
_MS = 1_000_000


def _fault(name: str, at_ns: int) -> Operation:
    return Operation(_NOBODY, name, NEMESIS, "info", at_ns, at_ns)


def valid_run(
    seed: int, *, turns: int = 40, sessions: int = 3, has_crashes: bool = True
) -> list[Operation]:
    """Return a run of a right backend under bad conditions, with its probe at the end.

    Turns of a session are served one after another at moments within their clients' intervals, or
    after them, when the client gave up and the turn went on.
    """
    random = Random(seed)
    history: list[Operation] = []
    # Dense enough that turns of one session meet: else there is no evidence to judge by.
    end_ns = turns * 8 * _MS
    if has_crashes:
        for at in sorted(random.sample(range(end_ns // 2, end_ns), 2)):
            history += [_fault(CRASHES[0], at), _fault(HEALS["kill"], at + 5 * _MS)]
    history.append(_fault(QUIET, 2 * end_ns))
    for number in range(sessions):
        # User names and session names are shared between sessions, as real ones are.
        key = SessionKey(f"user{number % 2}", f"session{number // 2}", "agent")
        history += _session(random, key, seed, turns // sessions, end_ns)
    random.shuffle(history)
    return history


def _session(
    random: Random, key: SessionKey, seed: int, turns: int, end_ns: int
) -> list[Operation]:
    """Return one session's operations: attempts first, then served in time order."""
    attempts: list[Operation] = []
    served: list[tuple[int, str, int]] = []
    for number in range(turns):
        marker = marker_of(key, number, seed=seed)
        invoke_ns = random.randrange(end_ns)
        for attempt in range(random.choice((1, 1, 1, 2, 3))):
            took_ns = random.randrange(_MS, 40 * _MS)
            kind = random.choice(("ok", "ok", "ok", "info", "fail"))
            operation = Operation(
                key, "turn", f"{marker}/{attempt}", kind, invoke_ns, invoke_ns + took_ns,
                marker, f"turn {marker}",
            )  # fmt: skip
            attempts.append(operation)
            is_done = any(m == marker for _, m, _ in served)
            if kind == "ok" and not is_done:
                served.append((random.randint(invoke_ns, invoke_ns + took_ns), marker, attempt))
            elif kind == "info" and not is_done and random.random() < 0.5:
                # It may take effect long after its client gave up, but before the next attempt
                # can be acknowledged, or it would happen twice.
                late_ns = random.choice((took_ns, took_ns, 3 * took_ns))
                served.append((random.randint(invoke_ns, invoke_ns + late_ns), marker, attempt))
            invoke_ns += took_ns + random.randrange(1, 10 * _MS)
    served.sort()
    history = _answered(random, attempts, served)
    history += _mid_reads(random, key, served, end_ns)
    return history + _probe(random, key, seed, turns, [m for _, m, _ in served], 2 * end_ns)


def _answered(
    random: Random, attempts: Sequence[Operation], served: Sequence[tuple[int, str, int]]
) -> list[Operation]:
    """Return each attempt what it was shown; an acknowledgement cannot come before the effect."""
    at_of = {marker: (place, at_ns) for place, (at_ns, marker, _) in enumerate(served)}
    order = [marker for _, marker, _ in served]
    finished: list[Operation] = []
    for operation in attempts:
        place, at_ns = at_of.get(operation.marker, (-1, 0))
        complete_ns = operation.complete_ns
        kind = operation.type
        read = None
        if kind == "ok" and at_ns > complete_ns:
            kind = "info"  # the first attempt still runs: this one gives up as well
        share = 0.9 if kind == "ok" else 0.3
        if kind != "fail" and place >= 0 and random.random() < share:
            read = _shown(order[:place])
        if kind == "info" and random.random() < 0.5:
            complete_ns = math.inf
        finished.append(operation._replace(type=kind, complete_ns=complete_ns, read=read))
    return finished


def _shown(before: Sequence[str]) -> Read:
    return Read(len(before), digest_of(before), tuple(before[-TAIL_LIMIT:]))


def _mid_reads(
    random: Random, key: SessionKey, served: Sequence[tuple[int, str, int]], end_ns: int
) -> list[Operation]:
    reads: list[Operation] = []
    for number in range(random.choice((0, 0, 2, 5))):
        at_ns = random.randrange(end_ns)
        markers = tuple(marker for when, marker, _ in served if when <= at_ns)
        begun, ended = max(0, at_ns - random.randrange(_MS)), at_ns + random.randrange(_MS)
        process = f"reader {number} of {key}"
        reads.append(Operation(key, "read", process, "ok", begun, ended, markers=markers))
    return reads


def _probe(
    random: Random, key: SessionKey, seed: int, number: int, order: list[str], after_ns: int
) -> list[Operation]:
    marker = marker_of(key, number, seed=seed)
    begun = after_ns + random.randrange(1, 10 * _MS)
    probe = Operation(
        key, "turn", f"probe {key}", "ok", begun, begun + 5 * _MS, marker, marker, _shown(order)
    )
    final = Operation(
        key, "read", f"final {key}", "ok", begun + 6 * _MS, begun + 7 * _MS,
        markers=(*order, marker),
    )  # fmt: skip
    return [probe, final]


def random_history(seed: int, *, size: int = 5) -> list[Operation]:
    """Return a small history of one session, right or wrong as chance has it, with its final read.

    It starts from a right one whose times are moved, whose reads are exchanged and whose list is
    changed, a little, so that both verdicts are frequent.
    """
    random = Random(seed)
    key = SessionKey("ada", "s", "agent")
    names = [chr(ord("a") + n) for n in range(random.randint(1, size))]
    order = random.sample(names, random.randint(0, len(names)))
    moments = sorted(random.randrange(30) for _ in order)
    history: list[Operation] = []
    for name in names:
        kind = "ok" if name in order and random.random() < 0.8 else random.choice(("info", "fail"))
        place = order.index(name) if name in order else 0
        at = moments[place] if name in order else random.randrange(30)
        invoke, complete = at - random.randrange(6), at + random.randrange(6)
        if random.random() < 0.15:
            invoke = random.randrange(30)
            complete = invoke + random.randrange(6)
        before = list(order[:place])
        if random.random() < 0.15:
            before = random.sample(names, random.randint(0, len(names) - 1))
        if random.random() < 0.05:
            kind = random.choice(("ok", "info", "fail"))
        is_seen = kind == "ok" and random.random() < 0.7
        ended = math.inf if kind == "info" else complete
        history.append(
            Operation(key, "turn", name, kind, invoke, ended, name, name,
                      _shown([m for m in before if m != name]) if is_seen else None)
        )  # fmt: skip
    history += _random_reads(random, key, order, moments)
    return history


def _random_reads(
    random: Random, key: SessionKey, order: list[str], moments: list[int]
) -> list[Operation]:
    reads: list[Operation] = []
    for number in range(random.choice((0, 0, 1, 2))):
        at = random.randrange(36)
        count = sum(moment <= at for moment in moments)
        if random.random() < 0.2:
            count = random.randint(0, len(order))
        begun, ended = at - random.randrange(4), at + random.randrange(4)
        shown = tuple(order[:count])
        reads.append(Operation(key, "read", f"r{number}", "ok", begun, ended, markers=shown))
    final = list(order)
    if final and random.random() < 0.15:
        final.pop(random.randrange(len(final)))
    if len(final) > 1 and random.random() < 0.1:
        random.shuffle(final)
    reads.append(Operation(key, "read", "final", "ok", 50, 51, markers=tuple(final)))
    return reads


# Which kind of operation comes next in a session with declarations.
_EVENTS = ("turn", "turn", "turn", "turn", "compact", "reset", "delete", "edit")


class _Service:
    """A right service that resets, compacts, edits and shows windows, as it plays one session."""

    def __init__(self, random: Random, key: SessionKey, step_ns: int, prefix: str = "") -> None:
        self._random, self._key, self._step_ns, self._prefix = random, key, step_ns, prefix
        self._window = random.choice((0, 0, 2, 3))
        self._list: list[str] = []
        self._start = 0
        self._at_ns = step_ns
        self.history: list[Operation] = []

    @property
    def shown(self) -> list[str]:
        """What a read of all of it lists."""
        return self._list[self._start :]

    def play(self, events: int) -> list[Operation]:
        """Return so many operations, and the session's read after them."""
        for number in range(events):
            self._at_ns += self._random.randrange(1, 5) * self._step_ns
            f = self._random.choice(_EVENTS)
            marker = f"{self._prefix}{chr(ord('a') + number % 26)}{number // 26 or ''}"
            if f in ("turn", "edit"):
                self._turn(marker, replaces=self._replaced() if f == "edit" else "")
            elif f != "compact" or self.shown:
                self._declare(f)
            if self._random.random() < 0.2:
                self._read(self._at_ns)
        self._at_ns += 40 * self._step_ns
        self._read(self._at_ns)
        return self.history

    def _replaced(self) -> str:
        shown = self.shown
        return self._random.choice(shown) if shown else ""

    def _turn(self, marker: str, replaces: str) -> None:
        kind = self._random.choice(("ok", "ok", "ok", "ok", "info", "fail"))
        is_done = kind == "ok" or (kind == "info" and self._random.random() < 0.5)
        kept = self._list[: self._list.index(replaces)] if replaces else list(self._list)
        shown = kept[min(self._start, len(kept)) :]
        is_suffix = 0 < self._window < len(shown)
        shown = shown[-self._window :] if is_suffix else shown
        read = _shown(shown)._replace(is_suffix=is_suffix)
        is_seen = kind == "ok" and self._random.random() < 0.7
        details = Details(replaces=replaces) if replaces else NO_DETAILS
        self._add("turn", kind, marker=marker, turn_id=marker, read=read if is_seen else None,
                  details=details)  # fmt: skip
        if is_done:
            self._list = [*kept, marker]
            self._start = min(self._start, len(kept))

    def _declare(self, f: str) -> None:
        if f == "compact":
            shown = self.shown
            upto = self._random.choice(shown)
            self._add(f, "ok", details=Details(upto=upto))
            self._start = self._list.index(upto) + 1
            return
        kind = self._random.choice(("ok", "ok", "ok", "info", "fail"))
        self._add(f, kind)
        if kind == "ok" or (kind == "info" and self._random.random() < 0.5):
            self._list, self._start = [], 0

    def _read(self, at_ns: int) -> None:
        shown = self.shown
        is_suffix = len(shown) > 2 and self._random.random() < 0.2
        markers = tuple(shown[-2:] if is_suffix else shown)
        self._at_ns = at_ns
        self._add("read", "ok", markers=markers, is_suffix=is_suffix)

    def _add(self, f: str, kind: str, **facts: Any) -> None:
        early, late = (self._random.randrange(6) * self._step_ns for _ in range(2))
        ended = math.inf if kind == "info" else self._at_ns + late
        process = f"{self._prefix}p{len(self.history)}"
        begun = max(0, self._at_ns - early)
        self.history.append(Operation(self._key, f, process, kind, begun, ended, **facts))


def random_declared(seed: int, *, size: int = 5) -> list[Operation]:
    """Return a small history of one session with declarations, right or wrong as chance has it."""
    random = Random(seed)
    key = SessionKey("ada", "s", "agent")
    history = _Service(random, key, 1).play(random.randint(2, size))
    for _ in range(random.choice((0, 0, 1, 1, 2))):
        _change(random, history)
    return history


def _change(random: Random, history: list[Operation]) -> None:
    """Change one thing in a history, so that it may be wrong."""
    at = random.randrange(len(history))
    one = history[at]
    markers = [o.marker for o in history if o.marker]
    change = random.randrange(6)
    if change == 0 and at < len(history) - 1 and one.f != "turn":
        del history[at]
    elif change == 1:
        begun = random.randrange(30)
        ended = one.complete_ns if one.type == "info" else begun + random.randrange(8)
        if at < len(history) - 1:
            history[at] = one._replace(invoke_ns=begun, complete_ns=ended)
    elif change == 2 and one.markers is not None and markers:
        shown = list(one.markers)
        if shown and random.random() < 0.5:
            shown.pop(random.randrange(len(shown)))
        else:
            shown.insert(random.randint(0, len(shown)), random.choice(markers))
        history[at] = one._replace(markers=tuple(shown))
    elif change == 3 and one.read is not None:
        others = [o.read for o in history if o.read is not None]
        history[at] = one._replace(read=random.choice(others))
    elif change == 4 and one.details.upto and markers:
        history[at] = one._replace(details=one.details._replace(upto=random.choice(markers)))
    elif change == 5 and one.read is not None:
        history[at] = one._replace(read=one.read._replace(is_suffix=not one.read.is_suffix))


def declared_run(seed: int, *, sessions: int = 4, events: int = 12) -> list[Operation]:
    """Return a run of a right service that declares what it does, several sessions and a fork."""
    random = Random(seed)
    history: list[Operation] = []
    services: list[_Service] = []
    for number in range(sessions):
        key = SessionKey(f"user{number % 2}", f"session{number // 2}", "agent")
        services.append(_Service(random, key, _MS, f"{number}-"))
        history += services[-1].play(events)
    held = services[0].shown
    if held:
        history += _forked(random, history[0].key, held[: random.randint(1, len(held))])
    # Turns that meet are what makes a run worth judging.
    key = SessionKey("user9", "met", "agent")
    for number, marker in enumerate(("x1", "x2")):
        read = _shown(["x1"][:number])
        history.append(Operation(key, "turn", marker, "ok", number, 9, marker, marker, read))
    history.append(Operation(key, "read", "r9", "ok", 10, 11, markers=("x1", "x2")))
    random.shuffle(history)
    return history


def _forked(random: Random, source: SessionKey, held: list[str]) -> list[Operation]:
    """Return a session that was forked from a part of what another one shows at its end."""
    key = source._replace(session_id="forked")
    at_ns = 10**12
    fork = Details(upto=held[-1], source=source)
    history = [Operation(key, "fork", "fork", "ok", at_ns, at_ns + 5 * _MS, details=fork)]
    markers = list(held)
    for number in range(3):
        at_ns += 10 * _MS
        marker = f"f{number}"
        read = Read(len(markers), None, markers=(*markers, marker))
        history.append(
            Operation(key, "turn", marker, "ok", at_ns, at_ns + random.randrange(1, 9) * _MS,
                      marker, marker, read)
        )  # fmt: skip
        markers.append(marker)
    at_ns += 20 * _MS
    final = Operation(key, "read", "forked", "ok", at_ns, at_ns + 1, markers=tuple(markers))
    return [*history, final]


def large_history(
    size: int, *, sessions: int = 100, indeterminate: float = 0.0, seed: int = 0
) -> list[Operation]:
    """Return about ``size`` operations of a right backend, for measuring the judge's speed.

    Each session has four clients in turn, whose turns overlap; the given share of turns was never
    answered, and half of these took effect.
    """
    random = Random(seed)
    history: list[tuple[float, Operation]] = []
    for number in range(sessions):
        key = SessionKey(f"user{number}", "session", "agent")
        order: list[str] = []
        digest, at_ns = 0, random.randrange(4 * _MS, 5 * _MS)
        for turn in range(size // sessions - 1):
            marker = marker_of(key, turn, seed=seed)
            at_ns += random.randrange(1, _MS)
            is_known = random.random() >= indeterminate
            begun, ended = at_ns - random.randrange(4 * _MS), at_ns + random.randrange(4 * _MS)
            read = Read(len(order), digest, tuple(order[-TAIL_LIMIT:])) if is_known else None
            kind, complete = ("ok", ended) if is_known else ("info", math.inf)
            operation = Operation(
                key, "turn", f"c{turn % 4}", kind, begun, complete, marker, marker, read
            )
            history.append((ended, operation))
            if is_known or random.random() < 0.5:
                order.append(marker)
                digest = digest_of((marker,), digest)
        last = 10**12 + number
        final = Operation(key, "read", "final", "ok", last, last + 9, markers=tuple(order))
        history.append((last, final))
    history.sort(key=lambda timed: timed[0])
    return [operation for _, operation in history]
