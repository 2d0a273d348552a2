"""The rules for one session: each takes its case and gives the anomalies it finds, and no more.

With the order L of the case:

    apart     every element of L, and all that was shown, was sent in this session
    kept      every acknowledged turn stands in L, once
    whole     no refused turn stands in L or was shown, and no half of one
    ordered   each turn stands where it says it stands, after exactly what it says it was shown;
              and some moment within each operation's interval agrees with L, so that if X ended
              before Y began, X is before Y

These are sound and complete: an order of moments exists if and only if no pair of operations
contradicts L, because choosing for each operation the latest invoke before it in L either works
or exhibits the pair. Intervals are closed; what never completed ends at infinity.

Source: Herlihy and Wing's linearizability, decided as Gibbons and Korach do for known write orders.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import groupby

from kode_lab.check.case import Case
from kode_lab.check.guarantee import Anomaly
from kode_lab.history.operation import Operation

__all__ = ["RULES", "Rule"]

Rule = Callable[[Case, Sequence[float]], Iterator[Anomaly]]


def apart(case: Case, _crashes: Sequence[float]) -> Iterator[Anomaly]:
    """Return markers of others that the session was shown or holds, and replies to other prompts.

    Whether a stranger is somebody's or nobody's needs all sessions: until that is settled it is
    called a garbage read.
    """
    told: set[str] = set()
    for operation, marker in _strangers(case):
        if marker not in told:
            told.add(marker)
            yield Anomaly("garbage read", case.key, (operation,), marker)
    for turn in case.odd:
        if turn.answered not in ("", turn.marker) and turn.answered not in told:
            told.add(turn.answered)
            yield Anomaly("foreign reply", case.key, (turn,), turn.answered)


def _strangers(case: Case) -> Iterator[tuple[Operation, str]]:
    turns = case.turns
    for operation in case.odd:
        yield from ((operation, m) for m in (operation.read.foreign if operation.read else ()))
    for read in case.reads:
        if not turns.keys() >= set(read.markers or ()):
            yield from ((read, m) for m in read.markers or () if m not in turns)
    unsent = set(case.order) - turns.keys()
    for turn in turns.values() if unsent else ():
        # The order was continued over a marker that only another turn's tail names.
        tail = turn.read.tail if turn.read is not None else ()
        yield from ((turn, marker) for marker in tail if marker in unsent)


def kept(case: Case, crashes: Sequence[float]) -> Iterator[Anomaly]:
    """Return acknowledged turns that are gone, and turns that are there twice."""
    for marker in case.turns.keys() - case.place.keys():
        turn = case.turns[marker]
        if turn.type != "ok" or not case.is_before_final(turn) or _rival(case, turn) is not None:
            continue  # it may yet come, or is a lost update, which ``ordered`` tells
        assert case.final is not None
        at = bisect_left(crashes, turn.complete_ns)
        if at < len(crashes) and crashes[at] <= case.final.complete_ns:
            facts = {"crash_ns": crashes[at]}
            yield Anomaly("lost after acknowledgement", case.key, (turn, case.final), marker, facts)
        else:
            yield Anomaly("lost write", case.key, (turn, case.final), marker)
    told: set[str] = set()
    for read in reversed(case.reads):
        markers = read.markers or ()
        if len(set(markers)) == len(markers):
            continue
        for marker, times in Counter(markers).items():
            if times > 1 and marker in case.turns and marker not in told:
                told.add(marker)
                witness = (case.turns[marker], read)
                yield Anomaly("duplicate", case.key, witness, marker, {"times": times})
    for one, other in case.replays:
        yield Anomaly("duplicate", case.key, (one, other), one.marker, {"times": 2})


def whole(case: Case, _crashes: Sequence[float]) -> Iterator[Anomaly]:
    """Return refused turns that took effect all the same, and turns that show by halves."""
    refused = {marker for marker, turn in case.turns.items() if turn.type == "fail"}
    readers = (*reversed(case.reads), *case.turns.values(), *case.attempts) if refused else ()
    for reader in readers:
        shown = reader.markers or (reader.read.tail if reader.read is not None else ())
        for marker in refused.intersection(shown):
            refused.discard(marker)
            witness = (case.turns[marker], reader)
            yield Anomaly("aborted read", case.key, witness, marker)
    seen_half: dict[str, Operation] = {}
    for operation in sorted(case.odd, key=lambda operation: operation is not case.final):
        for marker in operation.read.half if operation.read is not None else ():
            seen_half.setdefault(marker, operation)
    for marker, operation in seen_half.items():
        name = "torn turn" if operation is case.final else "intermediate read"
        turn = case.turns.get(marker, operation)
        yield Anomaly(name, case.key, tuple(dict.fromkeys((turn, operation))), marker)


def ordered(case: Case, _crashes: Sequence[float]) -> Iterator[Anomaly]:
    """Return turns that were not shown exactly what stands before them, and orders against time."""
    digests, place = case.digests, case.place
    for marker, turn in case.turns.items():
        read = turn.read
        if read is None:
            continue
        at = place.get(marker)
        if at == read.position and digests[at] == read.digest:
            continue
        if turn.type == "fail" or (at is None and turn.type == "info"):
            continue  # it never happened, or may never have
        yield from _misplaced(case, turn, at)
    yield from _against_time(case)
    yield from _wrong_reads(case)


RULES: Mapping[str, Rule] = {"apart": apart, "kept": kept, "whole": whole, "ordered": ordered}


def _is_prefix(case: Case, turn: Operation) -> bool:
    """Tell whether what a turn says it was shown is a prefix of the order."""
    assert turn.read is not None
    position = turn.read.position
    return position < len(case.digests) and case.digests[position] == turn.read.digest


def _rival(case: Case, turn: Operation) -> Operation | None:
    """Return the turn that stands where this one says it stands, if neither ended before the other.

    If something that stands there or later was acknowledged before this turn began, its view was
    simply old; if that other turn began after this one was acknowledged, this one was simply lost.
    """
    if turn.read is None or not _is_prefix(case, turn) or turn.read.position >= len(case.order):
        return None
    position = turn.read.position
    if case.earliest_complete[position] < turn.invoke_ns or case.order[position] == turn.marker:
        return None
    rival = case.turns.get(case.order[position])
    return None if rival is None or turn.complete_ns < rival.invoke_ns else rival


def _misplaced(case: Case, turn: Operation, at: int | None) -> Iterator[Anomaly]:
    """Name what is wrong with a turn whose own account of its place does not hold.

    If it is only gone, ``kept`` tells; if only its place contradicts the time, ``_against_time``;
    if what stands in its place was sent by nobody, ``apart``.
    """
    assert turn.read is not None
    position = turn.read.position
    facts = {"position": position, "place": at, "saw": list(turn.read.tail)}
    if not _is_prefix(case, turn):
        facts["stands"] = list(case.order[max(0, position - len(turn.read.tail)) : position])
        if at is not None or position <= len(case.order) or case.is_before_final(turn):
            yield Anomaly("fork", case.key, _parting(case, turn), turn.marker, facts)
        yield from _impossibly_shown(case, turn, turn.read.tail)
        return
    if at is not None and at < position:
        yield Anomaly("future read", case.key, (turn,), turn.marker, facts)
        return
    if position == len(case.order):
        return
    rival = _rival(case, turn)
    if rival is not None:
        facts["lost"] = [turn.marker] if at is None else []
        yield Anomaly("lost update", case.key, (turn, rival), turn.marker, facts)
    elif case.earliest_complete[position] < turn.invoke_ns:
        missed = _acknowledged_before(case, turn.invoke_ns)
        yield Anomaly("stale read", case.key, (turn, missed), missed.marker, facts)
    elif at is None and not case.is_before_final(turn):
        yield Anomaly("fork", case.key, (turn,), turn.marker, facts)


def _parting(case: Case, turn: Operation) -> tuple[Operation, ...]:
    """Return a turn that was shown no prefix, and the turn that shows where they differ."""
    assert turn.read is not None
    tail = turn.read.tail
    first = turn.read.position - len(tail)
    listed = 0 if case.final is None else len(case.own(case.final.markers or ()))
    for at, marker in enumerate(tail, first):
        if at >= len(case.order) or case.order[at] != marker:
            other = case.turns.get(case.order[at]) if listed <= at < len(case.order) else None
            if other is not None:
                return turn, other
            break
    return (turn,) if case.final is None else (turn, case.final)


def _impossibly_shown(case: Case, turn: Operation, markers: Sequence[str]) -> Iterator[Anomaly]:
    for marker in markers:
        shown = case.turns.get(marker)
        if shown is None and marker not in case.place:
            yield Anomaly("garbage read", case.key, (turn,), marker)
        elif shown is not None and shown.invoke_ns > turn.complete_ns:
            yield Anomaly("future read", case.key, (turn, shown), marker)


def _acknowledged_before(case: Case, invoke_ns: float) -> Operation:
    """Return the turn that stands furthest of those acknowledged before ``invoke_ns``."""
    return case.turns[case.order[bisect_left(case.earliest_complete, invoke_ns) - 1]]


def _latest_before(case: Case, length: int) -> Operation:
    """Return the turn that was sent last among the first ``length`` of the order."""
    latest = case.latest_invoke
    return case.turns[case.order[bisect_left(latest, latest[length - 1])]]


def _against_time(case: Case) -> Iterator[Anomaly]:
    """Return each turn that ended before one began that stands before it."""
    latest_ns = -math.inf
    for at, complete_ns in enumerate(case.completes):
        marker = case.order[at]
        if complete_ns < latest_ns and case.place[marker] == at:
            turn, later = case.turns[marker], _latest_before(case, at)
            yield Anomaly("real-time reorder", case.key, (turn, later), marker)
            if turn.read is not None and turn.read[:2] == (at, case.digests[at]):
                yield Anomaly("future read", case.key, (turn, later), later.marker)
        latest_ns = case.latest_invoke[at]


def _wrong_reads(case: Case) -> Iterator[Anomaly]:
    """Return authoritative reads that are no prefix of the order, or not of their time."""
    prefixes: list[tuple[int, Operation]] = []
    for read in case.reads:
        shown = case.own(read.markers or ())
        if case.order[: len(shown)] == shown:
            prefixes.append((len(shown), read))
        else:
            yield from _diverging(case, read, shown)
    # The newest list that any read returned so far with, going from long lists to short ones.
    ended_ns, newest = math.inf, None
    prefixes.sort(key=lambda pair: -pair[0])
    for length, group in groupby(prefixes, key=lambda pair: pair[0]):
        reads = [read for _, read in group]
        for read in reads:
            if length and case.latest_invoke[length - 1] > read.complete_ns:
                later = _latest_before(case, length)
                yield Anomaly("future read", case.key, (read, later), later.marker)
            if length < len(case.order) and case.earliest_complete[length] < read.invoke_ns:
                missed = _acknowledged_before(case, read.invoke_ns)
                yield Anomaly("stale read", case.key, (read, missed), missed.marker)
            elif newest is not None and ended_ns < read.invoke_ns:
                yield Anomaly("stale read", case.key, (read, newest), case.order[length])
        first = min(reads, key=lambda read: read.complete_ns)
        if first.complete_ns < ended_ns:
            ended_ns, newest = first.complete_ns, first


def _diverging(case: Case, read: Operation, shown: list[str]) -> Iterator[Anomaly]:
    assert case.final is not None
    gone = shown[len(case.order) :]
    if shown[: len(case.order)] != case.order:
        facts = {"saw": shown[-8:], "stands": list(case.order[: len(shown)][-8:])}
        yield Anomaly("fork", case.key, (read, case.final), "", facts)
        return
    # The final list only lacks the end of this one. What was acknowledged, ``kept`` tells.
    for marker in gone:
        turn = case.turns.get(marker)
        if turn is None or turn.type != "ok" or not case.is_before_final(turn):
            yield Anomaly("stale read", case.key, (case.final, read), marker)
            return
