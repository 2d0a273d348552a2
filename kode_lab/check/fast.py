"""The fast path: clears, with numpy and all at once, the sessions that cannot break any rule.

It finds nothing and explains nothing. A session in which anything is unusual (a retry, a stranger,
a second read, a digest that differs, a time out of order) is a *suspect* and is heard by the rules
as if this file did not exist, so both paths agree by construction on every anomaly; what has to be
shown is only that nothing guilty is cleared, and that evidence is counted alike.

How the digests of a million prefixes come out of one cumulative sum: with the multiplier M odd,
D(p) = M^(p-1) * (h(0) M^0 + h(1) M^-1 + ... + h(p-1) M^-(p-1)) modulo 2^64.
"""

from __future__ import annotations

import math
from array import array
from collections import defaultdict
from collections.abc import Collection, Sequence
from itertools import chain, count, repeat
from operator import itemgetter
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from kode_lab.check.verdict import Evidence
from kode_lab.digest import MULTIPLIER, hash_of
from kode_lab.key import SessionKey
from kode_lab.operation import NEMESIS, Operation, Read

__all__ = ["Screened", "screen"]

_Ints = NDArray[np.int64]
_Words = NDArray[np.uint64]
_Flags = NDArray[np.bool_]

# Later than every time in ``TIME_LIMIT_NS`` that leaves room to add sessions to it.
_NEVER_NS = 2**62
_OK, _INFO, _FAIL = 0, 1, 2
_TYPES = {"ok": _OK, "info": _INFO, "fail": _FAIL}
# Operations are laid flat in portions: one walk through memory, whatever the number of columns.
_PORTION = 65_536


class Screened(NamedTuple):
    """What the screening gave: the evidence in the cleared sessions, and the sessions left."""

    evidence: Evidence
    suspects: Collection[SessionKey]


class _Turns(NamedTuple):
    """The turns of all sessions as columns, a row a turn.

    Attributes:
        session: the number of its session.
        complete: when it was acknowledged; ``_NEVER_NS`` if it was not.
        row_of: the row of each marker.
        origin_ns: the first invoke.
        span_ns: from the first invoke to the last.
    """

    operations: Sequence[Operation]
    session: _Ints
    type: NDArray[np.int8]
    invoke: _Ints
    complete: _Ints
    row_of: dict[str, int]
    reads: list[Read | None]
    answered: list[str]
    origin_ns: int
    span_ns: int


class _Lists(NamedTuple):
    """The final lists of all sessions, laid end to end, a row an element.

    Attributes:
        row: the turn that the element is; 0 where it is none (its session is a suspect).
        session: whose list it is.
        place: where it stands in its list.
        returned: when the read that shows it returned.
    """

    elements: list[str]
    row: _Ints
    session: _Ints
    place: _Ints
    returned: _Ints


def screen(operations: Sequence[Operation], *, has_faults: bool) -> Screened | None:
    """Give the evidence of the sessions that are beyond doubt, and the names of the others.

    None, if the whole history must be heard by the rules: a marker of two sessions, times that are
    no integers or too far apart, values that no column holds.
    """
    if has_faults:
        operations = [operation for operation in operations if operation.process != NEMESIS]
    numbers: defaultdict[SessionKey, int] = defaultdict(count().__next__)
    others = [operation for operation in operations if operation.f != "turn"]
    try:
        turns = _turns([o for o in operations if o.f == "turn"] if others else operations, numbers)
        beside = _ints([numbers[other.key] for other in others])
        if turns is None or len(numbers) * (turns.span_ns + 2) >= _NEVER_NS:
            return None
        suspect = np.zeros(len(numbers), np.bool_)
        lists = _final_lists(others, beside, turns, suspect)
        _suspect_strange_answers(turns, suspect)
        observed = _suspect_wrong_claims(turns, lists, suspect)
        overtaken = _suspect_wrong_times(turns, lists, suspect)
    except (OverflowError, TypeError, KeyError):
        return None
    suspects = {key for key, number in numbers.items() if suspect[number]}
    return Screened(_evidence(turns, beside, observed, overtaken, suspect), suspects)


def _ints(values: Sequence[int]) -> _Ints:
    """Give integers as a column; unlike numpy's own way, a float is refused, not cut off."""
    return np.frombuffer(array("q", values), np.int64)


def _columns(rows: Sequence[tuple[Any, ...]], *wanted: int) -> list[list[Any]]:
    columns: list[list[Any]] = [[] for _ in wanted]
    width = len(rows[0]) if rows else 1
    for start in range(0, len(rows), _PORTION):
        flat = list(chain.from_iterable(rows[start : start + _PORTION]))
        for column, at in zip(columns, wanted, strict=True):
            column.extend(flat[at::width])
    return columns


def _turns(operations: Sequence[Operation], numbers: dict[SessionKey, int]) -> _Turns | None:
    size = len(operations)
    keys, kinds, invokes, completes, markers, reads, answered = _columns(
        operations, 0, 3, 4, 5, 6, 8, 11
    )
    session = np.fromiter(map(numbers.__getitem__, keys), np.int64, size)
    types = np.fromiter(map(_TYPES.__getitem__, kinds), np.int8, size)
    invoke = _ints(invokes)
    try:
        complete = _ints(completes)
    except TypeError:
        complete = _ints([_NEVER_NS if time == math.inf else time for time in completes])
    if not size or (complete < invoke).any():
        return None
    complete = np.where(types == _OK, complete, _NEVER_NS)
    row_of = dict(zip(markers, range(size), strict=True))
    if len(row_of) < size:
        last = np.fromiter(map(row_of.__getitem__, markers), np.int64, size)
        if (session[last] != session).any():
            return None
    origin = int(invoke.min())
    span = int(invoke.max()) - origin
    return _Turns(
        operations, session, types, invoke, complete, row_of, reads, answered, origin, span
    )


def _final_lists(
    others: Sequence[Operation], beside: _Ints, turns: _Turns, suspect: _Flags
) -> _Lists:
    """Lay the lists end to end; who has not one plain read after all its turns is a suspect."""
    told: list[tuple[int, Operation]] = []
    for other, number in zip(others, beside.tolist(), strict=True):
        if other.complete_ns < other.invoke_ns or (other.f == "read" and other.read is not None):
            suspect[number] = True
        if other.markers is not None and other.type == "ok":
            told.append((number, other))
    told.sort(key=itemgetter(0))  # so that one running maximum can serve all sessions
    reads = [read for _, read in told]
    session = _ints([number for number, _ in told])
    suspect |= np.bincount(session, minlength=len(suspect)) != 1
    asked = np.full(len(suspect), -1, np.int64)
    asked[session] = _ints([read.invoke_ns for read in reads])
    suspect[turns.session[(turns.type == _OK) & (turns.complete >= asked[turns.session])]] = True
    lengths = _ints([len(read.markers or ()) for read in reads])
    elements = list(chain.from_iterable(read.markers or () for read in reads))
    row = np.fromiter(map(turns.row_of.get, elements, repeat(-1)), np.int64, len(elements))
    of_element = np.repeat(session, lengths)
    place = np.arange(len(elements)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    ended = [_NEVER_NS if read.complete_ns == math.inf else int(read.complete_ns) for read in reads]
    wrong = (row < 0) | (turns.session[row] != of_element) | (turns.type[row] == _FAIL)
    row[row < 0] = 0
    suspect[of_element[wrong]] = True
    shown = np.bincount(row, minlength=len(turns.session))
    # A retried turn's rows but one are never shown, and one that is shown twice is a duplicate.
    suspect[turns.session[(shown > 1) | ((shown == 0) & (turns.type == _OK))]] = True
    return _Lists(elements, row, of_element, place, np.repeat(_ints(ended), lengths))


def _suspect_strange_answers(turns: _Turns, suspect: _Flags) -> None:
    """Suspect the sessions with retries, or with replies to other prompts."""
    if len(turns.row_of) < len(turns.session):
        kept = np.fromiter(turns.row_of.values(), np.int64, len(turns.row_of))
        repeated = np.ones(len(turns.session), np.bool_)
        repeated[kept] = False
        suspect[turns.session[repeated]] = True
    if any(turns.answered):
        for at, turn in enumerate(turns.operations):
            if turn.answered and turn.answered != turn.marker:
                suspect[turns.session[at]] = True


def _suspect_wrong_claims(turns: _Turns, lists: _Lists, suspect: _Flags) -> _Flags:
    """Suspect the sessions with a turn that was not shown exactly what stands before it.

    Gives which turns were observed at all.
    """
    seen = [read for read in turns.reads if read is not None]
    observed = np.ones(len(turns.reads), np.bool_)
    if len(seen) < len(turns.reads):
        observed = np.array([read is not None for read in turns.reads], np.bool_)
    seen_row = np.flatnonzero(observed)
    positions, digests, tails, foreign, half = _columns(seen, 0, 1, 2, 3, 4)
    position = np.zeros(len(observed), np.int64)
    digest = np.zeros(len(observed), np.uint64)
    position[seen_row] = _ints(positions)
    digest[seen_row] = np.frombuffer(array("Q", digests), np.uint64)
    if any(foreign) or any(half):
        odd = np.array([bool(f or h) for f, h in zip(foreign, half, strict=True)], np.bool_)
        suspect[turns.session[seen_row[odd]]] = True
    if (turns.type == _FAIL).any():
        refused = {turn.marker for turn in turns.operations if turn.type == "fail"}
        shown = np.array([not refused.isdisjoint(tail) for tail in tails], np.bool_)
        suspect[turns.session[seen_row[shown]]] = True
    row = lists.row
    differs = (position[row] != lists.place) | (digest[row] != _digests(lists))
    suspect[lists.session[differs & observed[row]]] = True
    return observed


def _suspect_wrong_times(turns: _Turns, lists: _Lists, suspect: _Flags) -> int:
    """Suspect the sessions whose order contradicts their times; give how many were overtaken.

    One running maximum serves all sessions: each begins above all times of those before it.
    """
    session, row = lists.session, lists.row
    width = turns.span_ns + 2
    # What was acknowledged after the last invoke contradicts nothing, so when does not matter.
    complete = np.minimum(turns.complete - turns.origin_ns, width - 1)[row] + session * width
    invoke = (turns.invoke - turns.origin_ns)[row] + session * width
    latest = np.maximum.accumulate(invoke)
    suspect[session[1:][latest[:-1] > complete[1:]]] = True
    suspect[lists.session[turns.invoke[row] > lists.returned]] = True
    return int(((invoke < latest) & ~suspect[session]).sum())


def _digests(lists: _Lists) -> _Words:
    """Give for each element the digest of all that stands before it in its list."""
    if not lists.elements:
        return np.zeros(0, np.uint64)
    longest = int(lists.place.max()) + 1
    inverse = pow(MULTIPLIER, -1, 2**64)
    powers = np.full(longest, MULTIPLIER, np.uint64)
    inverses = np.full(longest, inverse, np.uint64)
    powers[0], inverses[0] = inverse, 1  # M^(p-1), M^-p
    powers, inverses = np.multiply.accumulate(powers), np.multiply.accumulate(inverses)
    terms = _hashes(lists.elements) * inverses[lists.place]
    before = np.cumsum(terms) - terms
    starts = np.flatnonzero(lists.place == 0)
    lengths = np.diff(np.append(starts, len(lists.elements)))
    sums: _Words = (before - np.repeat(before[starts], lengths)) * powers[lists.place]
    return sums


def _hashes(markers: Sequence[str]) -> _Words:
    """Give ``hash_of`` of each marker: at once if all have one length, as ``marker_of`` gives."""
    text = "".join(markers)
    size = len(markers[0])
    if not text.isascii() or set(map(len, markers)) != {size}:
        return np.fromiter(map(hash_of, markers), np.uint64, len(markers))
    padded = np.zeros((len(markers), size + (-size & 7)), np.uint8)
    padded[:, :size] = np.frombuffer(text.encode(), np.uint8).reshape(len(markers), size)
    multiplier = np.uint64(MULTIPLIER)
    value = np.full(len(markers), size, np.uint64)
    for word in padded.view("<u8").T:
        value = value * multiplier + word
    value = (value ^ (value >> np.uint64(32))) * multiplier
    return value ^ (value >> np.uint64(29))


def _evidence(
    turns: _Turns, beside: _Ints, observed: _Flags, overtaken: int, suspect: _Flags
) -> Evidence:
    cleared = ~suspect
    of_turn = cleared[turns.session]
    acknowledged = of_turn & (turns.type == _OK)
    amount, count_ok = int(of_turn.sum()), int(acknowledged.sum())
    return Evidence(
        operations=amount + int(cleared[beside].sum()),
        sessions=int(cleared.sum()),
        turns=amount,
        requests=amount,
        acknowledged=count_ok,
        refused=int((of_turn & (turns.type == _FAIL)).sum()),
        indeterminate=int((of_turn & (turns.type == _INFO)).sum()),
        observed=int((acknowledged & observed).sum()),
        concurrent_pairs=_pairs(turns, acknowledged),
        overtaken=overtaken,
    )


def _pairs(turns: _Turns, chosen: _Flags) -> int:
    """Count the pairs of turns of one session whose intervals meet."""
    width = turns.span_ns + 2
    base = turns.session[chosen] * width
    invoke = turns.invoke[chosen] - turns.origin_ns + base
    complete = np.minimum(turns.complete[chosen] - turns.origin_ns, width - 1) + base
    # Sorted alike, the searches walk through memory instead of jumping.
    met = np.searchsorted(np.sort(invoke), np.sort(complete), side="right")
    return int(met.sum()) - len(met) * (len(met) + 1) // 2
