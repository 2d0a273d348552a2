"""The screen without numpy: clears, session by session, what cannot break any rule.

Like the fast path it finds nothing and explains nothing: a session in which anything is unusual is
a suspect, and is heard by the rules as if this file did not exist. What is usual is decided by
comparing whole columns, so that a plain turn costs a few steps of the interpreter and no object
of it is touched again.
"""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import Iterator
from itertools import accumulate, compress, count, repeat
from operator import lt, sub
from typing import NamedTuple

from kode_lab.check.columns import FAIL, INFO, OK, Columns, Screened
from kode_lab.check.verdict import Evidence
from kode_lab.digest import prefix_digests
from kode_lab.operation import Operation

__all__ = ["screen"]

# So many turns are dealt out to their sessions at once: as many as stay in the cache.
_BLOCK = 16_384


class _Session(NamedTuple):
    """The turns of one session, in the order of the history."""

    markers: list[str]
    type: bytearray
    invoke: array[int]
    complete: array[int]
    position: array[int]
    digest: array[int]


class _Cleared(NamedTuple):
    """What there is of evidence in one session that is beyond doubt."""

    observed: int
    met: int
    overtaken: int
    most_overtaken: int


def screen(columns: Columns, overtaking_limit: int | None = None) -> Screened | None:
    """Give the evidence of the sessions that are beyond doubt, and the names of the others.

    None, if two sessions sent the same marker: the whole history must then be heard by the rules.
    """
    suspect = set(columns.strange)
    finals = _final_reads(columns, suspect)
    sent: set[str] = set()
    found: dict[int, _Cleared] = {}
    for number, session in enumerate(_sessions(columns)):
        row_of = dict(zip(session.markers, count(), strict=False))
        if not sent.isdisjoint(row_of):
            return None
        sent.update(row_of)
        cleared = None
        if number in finals and number not in suspect and len(row_of) == len(session.markers):
            cleared = _cleared(session, row_of, finals[number])
        if cleared is None or (
            overtaking_limit is not None and cleared.most_overtaken > overtaking_limit
        ):
            suspect.add(number)
        else:
            found[number] = cleared
    suspects = {key for key, number in columns.numbers.items() if number in suspect}
    return Screened(_evidence(columns, suspect, found), suspects)


def _sessions(columns: Columns) -> Iterator[_Session]:
    """Give each session's turns, by the sessions' numbers.

    The columns are dealt out a block at a time: to pick each session's rows out of columns that
    are larger than the processor's cache cost more than all the judging.
    """
    dealt = [
        _Session([], bytearray(), array("q"), array("q"), array("q"), array("Q"))
        for _ in columns.numbers
    ]
    for start in range(0, len(columns.session), _BLOCK):
        block = slice(start, start + _BLOCK)
        numbers = columns.session[block].tolist()
        order = sorted(range(len(numbers)), key=numbers.__getitem__)
        markers = list(map(columns.markers[block].__getitem__, order))
        types = bytes(map(columns.type[block].__getitem__, order))
        numbered = (columns.invoke, columns.complete, columns.position, columns.digest)
        values = [list(map(column[block].tolist().__getitem__, order)) for column in numbered]
        first = 0
        for number, size in sorted(Counter(numbers).items()):
            own, session = slice(first, first := first + size), dealt[number]
            session.markers.extend(markers[own])
            session.type.extend(types[own])
            session.invoke.fromlist(values[0][own])
            session.complete.fromlist(values[1][own])
            session.position.fromlist(values[2][own])
            session.digest.fromlist(values[3][own])
    yield from dealt


def _final_reads(columns: Columns, suspect: set[int]) -> dict[int, Operation]:
    """Give each session's one plain read; who has another number of reads is a suspect."""
    told: dict[int, list[Operation]] = defaultdict(list)
    for other in columns.others:
        number = columns.numbers[other.key]
        if other.complete_ns < other.invoke_ns or (other.f == "read" and other.read is not None):
            suspect.add(number)
        if other.markers is not None and other.type == "ok":
            told[number].append(other)
    return {number: reads[0] for number, reads in told.items() if len(reads) == 1}


def _cleared(session: _Session, row_of: dict[str, int], final: Operation) -> _Cleared | None:
    """Give the evidence of one session, or None if anything in it is unusual."""
    markers = final.markers or ()
    rows = list(map(row_of.get, markers, repeat(-1)))
    if -1 in rows:
        return None
    types = bytes(map(session.type.__getitem__, rows))
    acknowledged = types.count(OK)
    if FAIL in types or acknowledged != session.type.count(OK):
        return None
    positions = list(map(session.position.__getitem__, rows))
    if not _stands(session, rows, positions, markers):
        return None
    invokes = list(map(session.invoke.__getitem__, rows))
    completes = list(map(session.complete.__getitem__, rows))
    latest = list(accumulate(invokes, max))
    too_late = latest and latest[-1] > final.complete_ns
    if too_late or any(map(lt, completes, latest)):
        return None
    overtaken = sum(map(lt, invokes, latest))
    if INFO in types:
        is_ok = [kind == OK for kind in types]
        invokes, completes = list(compress(invokes, is_ok)), list(compress(completes, is_ok))
        positions = list(compress(positions, is_ok))
    if completes and max(completes) >= final.invoke_ns:
        return None
    most = 0
    if overtaken:
        by_time = sorted(range(acknowledged), key=invokes.__getitem__)
        most = max(map(sub, by_time, count()), default=0)
        invokes = list(map(invokes.__getitem__, by_time))
    completes.sort()
    met = sum(map(bisect_right, repeat(invokes), completes))
    met -= acknowledged * (acknowledged + 1) // 2
    return _Cleared(acknowledged - positions.count(-1), met, overtaken, most)


def _stands(
    session: _Session, rows: list[int], positions: list[int], markers: tuple[str, ...]
) -> bool:
    """Tell whether each of these turns stands once, and where and after what it says."""
    digests = list(map(session.digest.__getitem__, rows))
    before = prefix_digests(markers)
    before.pop()
    if digests == before and positions == list(range(len(rows))):
        return True
    return len(set(rows)) == len(rows) and not any(
        position >= 0 and (position != at or digest != so_far)
        for at, (position, digest, so_far) in enumerate(
            zip(positions, digests, before, strict=True)
        )
    )


def _evidence(columns: Columns, suspect: set[int], found: dict[int, _Cleared]) -> Evidence:
    types, others = bytes(columns.type), len(columns.others)
    if suspect:
        types = bytes(
            kind
            for kind, number in zip(types, columns.session, strict=True)
            if number not in suspect
        )
        others = sum(columns.numbers[other.key] not in suspect for other in columns.others)
    return Evidence(
        operations=len(types) + others,
        sessions=len(found),
        turns=len(types),
        requests=len(types),
        acknowledged=types.count(OK),
        refused=types.count(FAIL),
        indeterminate=types.count(INFO),
        observed=sum(cleared.observed for cleared in found.values()),
        concurrent_pairs=sum(cleared.met for cleared in found.values()),
        overtaken=sum(cleared.overtaken for cleared in found.values()),
        most_overtaken=max((cleared.most_overtaken for cleared in found.values()), default=0),
    )
