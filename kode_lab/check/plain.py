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
from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate, compress, count, repeat
from operator import itemgetter, lt, sub
from typing import Any, NamedTuple, TypeAlias

from kode_lab.check.columns import FAIL, INFO, NEVER_NS, OK, Columns, Screened
from kode_lab.check.verdict import Evidence
from kode_lab.history.digest import prefix_digests
from kode_lab.history.operation import Operation

__all__ = ["screen"]

# So many turns are dealt out to their sessions, or looked at in one, as stay in the cache.
_DEALT, _LOOKED_AT = 4_096, 1_024
_Pick: TypeAlias = "Callable[[Sequence[Any]], tuple[Any, ...]]"


class _Session(NamedTuple):
    """The turns of one session, in the order of the history."""

    hash: array[int]
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


class _Stood(NamedTuple):
    """The acknowledged turns of one session, as they stand in it."""

    invokes: list[int]
    completes: list[int]
    observed: int
    overtaken: int


def screen(columns: Columns, overtaking_limit: int | None = None) -> Screened | None:
    """Return the evidence of the sessions that are beyond doubt, and the names of the others.

    None, if two sessions sent the same marker: the whole history must then be heard by the rules.
    """
    suspect = set(columns.strange)
    finals = _final_reads(columns, suspect)
    sent: set[int] = set()
    turns = 0
    found: dict[int, _Cleared] = {}
    for number, session in enumerate(_sessions(columns)):
        row_of = dict(zip(session.hash, count(), strict=False))
        sent.update(row_of)
        turns += len(row_of)
        if len(sent) < turns:
            return None
        cleared = None
        if number in finals and number not in suspect and len(row_of) == len(session.hash):
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
    """Return each session's turns, by the sessions' numbers.

    The columns are dealt out a block at a time: to pick each session's rows out of columns that
    are larger than the processor's cache cost more than all the judging.
    """
    dealt = [
        _Session(array("q"), bytearray(), array("q"), array("q"), array("q"), array("Q"))
        for _ in columns.numbers
    ]
    for start in range(0, len(columns.session), _DEALT):
        block = slice(start, start + _DEALT)
        numbers = columns.session[block].tolist()
        pick = _picker(sorted(range(len(numbers)), key=numbers.__getitem__))
        rows = _Session(
            array("q", pick(columns.hash[block])),
            bytearray(pick(columns.type[block])),
            array("q", pick(columns.invoke[block])),
            array("q", pick(columns.complete[block])),
            array("q", pick(columns.position[block])),
            array("Q", pick(columns.digest[block])),
        )
        first = 0
        for number, size in sorted(Counter(numbers).items()):
            own = slice(first, first := first + size)
            for column, more in zip(dealt[number], rows, strict=True):
                column.extend(more[own])
    yield from dealt


def _picker(rows: Sequence[int]) -> _Pick:
    """Return what takes these rows out of a column, in one step of the interpreter."""
    return itemgetter(*rows) if len(rows) > 1 else lambda column: tuple(column[r] for r in rows)


def _final_reads(columns: Columns, suspect: set[int]) -> dict[int, Operation]:
    """Return each session's one plain read; who has another number of reads is a suspect."""
    told: dict[int, list[Operation]] = defaultdict(list)
    for other in columns.others:
        number = columns.numbers[other.key]
        if other.complete_ns < other.invoke_ns or (other.f == "read" and other.read is not None):
            suspect.add(number)
        if other.markers is not None and other.type == "ok":
            told[number].append(other)
    return {number: reads[0] for number, reads in told.items() if len(reads) == 1}


def _cleared(session: _Session, row_of: dict[int, int], final: Operation) -> _Cleared | None:
    """Return the evidence of one session, or None if anything in it is unusual."""
    stood = _stood(session, row_of, final)
    if stood is None or len(stood.invokes) != session.type.count(OK):
        return None
    invokes, completes = stood.invokes, sorted(stood.completes)
    if completes and completes[-1] >= final.invoke_ns:
        return None
    most = 0
    if stood.overtaken:
        by_time = sorted(range(len(invokes)), key=invokes.__getitem__)
        most = max(map(sub, by_time, count()), default=0)
        invokes.sort()
    return _Cleared(stood.observed, _met(invokes, completes), stood.overtaken, most)


def _stood(session: _Session, row_of: dict[int, int], final: Operation) -> _Stood | None:
    """Return the turns of a session, or None if one is late or not where it says."""
    markers = final.markers or ()
    invokes: list[int] = []
    completes: list[int] = []
    unseen: list[int] = []
    observed = overtaken = digest = 0
    latest = -NEVER_NS
    for first in range(0, len(markers), _LOOKED_AT):
        standing = markers[first : first + _LOOKED_AT]
        try:
            rows = list(map(row_of.__getitem__, map(hash, standing)))
        except KeyError:
            return None
        pick = _picker(rows)
        types, positions = bytes(pick(session.type)), pick(session.position)
        *before, digest = prefix_digests(standing, digest)
        if FAIL in types or not _say_so(positions, pick(session.digest), first, before):
            return None
        if -1 in positions:
            unseen += compress(rows, map((-1).__eq__, positions))
        invoked, completed = pick(session.invoke), pick(session.complete)
        so_far = list(accumulate(invoked, max, initial=latest))
        latest = so_far[-1]
        del so_far[0]
        if any(map(lt, completed, so_far)):
            return None
        overtaken += sum(map(lt, invoked, so_far))
        if INFO in types:
            is_ok = [kind == OK for kind in types]
            invoked, completed, positions = (
                tuple(compress(column, is_ok)) for column in (invoked, completed, positions)
            )
        invokes += invoked
        completes += completed
        observed += len(positions) - positions.count(-1)
    # Who says where it stands, and is right, cannot stand twice.
    if latest > final.complete_ns or len(set(unseen)) < len(unseen):
        return None
    return _Stood(invokes, completes, observed, overtaken)


def _say_so(
    positions: tuple[int, ...], digests: tuple[int, ...], first: int, before: list[int]
) -> bool:
    """Tell whether these turns stand where and after what they say, from the first place on."""
    if positions == tuple(range(first, first + len(before))) and digests == tuple(before):
        return True
    return not any(
        position >= 0 and (position != at or digest != so_far)
        for at, (position, digest, so_far) in enumerate(
            zip(positions, digests, before, strict=True), first
        )
    )


def _met(invokes: list[int], completes: list[int]) -> int:
    """Count the pairs of turns of which neither ended before the other was sent.

    Those that were sent before a turn ended are itself, those that ended before, and those it met.
    """
    sent = 0
    for first in range(0, len(completes), _LOOKED_AT):
        ended = completes[first : first + _LOOKED_AT]
        long_sent = bisect_right(invokes, ended[0])
        near = invokes[long_sent : bisect_right(invokes, ended[-1])]
        sent += long_sent * len(ended) + sum(map(bisect_right, repeat(near), ended))
    return sent - len(completes) * (len(completes) + 1) // 2


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
