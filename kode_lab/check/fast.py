"""The fast path: clears, with numpy and all at once, the sessions that cannot break any rule.

It finds nothing and explains nothing. A session in which anything is unusual (a retry, a stranger,
a second read, a digest that differs, a time out of order) is a *suspect* and is heard by the rules
as if this file did not exist, so both paths agree by construction on every anomaly; what has to be
shown is only that nothing guilty is cleared, and that evidence is counted alike.

Two things make it fast. Turns are not looked up by their markers: each says where it stands, so it
is enough that its marker's hash is found there. And all digests of all prefixes come out of one
cumulative sum: with the multiplier M odd,
D(p) = M^(p-1) * (h(0) M^0 + h(1) M^-1 + ... + h(p-1) M^-(p-1)) modulo 2^64.
"""

from __future__ import annotations

import math
from array import array
from collections import defaultdict
from collections.abc import Collection, Sequence
from itertools import chain, compress, count
from operator import itemgetter
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from kode_lab.check.verdict import Evidence
from kode_lab.digest import MULTIPLIER, hash_of
from kode_lab.key import SessionKey
from kode_lab.operation import Operation, Read

__all__ = ["Screened", "screen"]

_Ints = NDArray[np.int64]
_Words = NDArray[np.uint64]
_Flags = NDArray[np.bool_]

# Later than every time in ``TIME_LIMIT_NS`` that leaves room to add sessions to it.
_NEVER_NS = 2**62
_OK, _INFO, _FAIL = 0, 1, 2
_TYPES = {"ok": _OK, "info": _INFO, "fail": _FAIL}
# Columns are filled in portions that stay in the processor's cache, whatever their number: half
# the price of one walk through memory a column.
_PORTION = 1_024
_f, _config, _effects = map(itemgetter, (1, 12, 13))
_WANTED = tuple(map(itemgetter, (0, 3, 4, 5, 6, 8, 11)))
_SEEN = tuple(map(itemgetter, (0, 1, 3, 4)))


class Screened(NamedTuple):
    """What the screening gave.

    Attributes:
        evidence: what there is in the cleared sessions.
        suspects: the sessions that are left to be heard.
        is_plain: whether nothing told of effects or configurations.
    """

    evidence: Evidence
    suspects: Collection[SessionKey]
    is_plain: bool


class _Turns(NamedTuple):
    """The turns of all sessions as columns, a row a turn.

    Attributes:
        session: the number of its session.
        complete: when it was acknowledged; ``_NEVER_NS`` if it was not.
        hashes: of the markers.
        reads: what each was shown, or None.
        origin_ns: the first invoke.
        span_ns: from the first invoke to the last.
        is_plain: whether none told of effects or of its configuration.
    """

    session: _Ints
    type: NDArray[np.int8]
    invoke: _Ints
    complete: _Ints
    markers: list[str]
    hashes: _Words
    reads: list[Read | None]
    answered: list[str]
    origin_ns: int
    span_ns: int
    is_plain: bool


class _Lists(NamedTuple):
    """The final lists of all sessions, laid end to end, a row an element.

    Attributes:
        row: the turn that the element is; 0 where it is none (its session is a suspect).
        session: whose list it is.
        place: where it stands in its list.
        returned: when the read that shows it returned.
        start, length: of each session's list, by the session's number.
    """

    hashes: _Words
    row: _Ints
    session: _Ints
    place: _Ints
    returned: _Ints
    start: _Ints
    length: _Ints


def screen(operations: Sequence[Operation], overtaking_limit: int | None = None) -> Screened | None:
    """Give the evidence of the sessions that are beyond doubt, and the names of the others.

    None, if the whole history must be heard by the rules: a marker of two sessions, times that are
    no integers or too far apart, values that no column holds.
    """
    numbers: defaultdict[SessionKey, int] = defaultdict(count().__next__)
    try:
        turns, others = _turns(operations, numbers)
        if turns is None or len(numbers) * (turns.span_ns + 2) >= _NEVER_NS:
            return None
        beside = _ints([numbers[other.key] for other in others])
        suspect = np.zeros(len(numbers), np.bool_)
        lists = _final_lists(others, beside, turns, suspect)
        if not _suspect_strange_answers(turns, suspect):
            return None
        observed = _suspect_wrong_claims(turns, lists, suspect)
        _suspect_wrong_times(turns, lists, suspect)
        overtaken = _overtaken(turns, lists, overtaking_limit, suspect)
    except (OverflowError, TypeError, KeyError):
        return None
    suspects = {key for key, number in numbers.items() if suspect[number]}
    is_plain = turns.is_plain and not any(o.effects or o.config for o in others)
    evidence = _evidence(turns, beside, observed, overtaken, suspect)
    return Screened(evidence, suspects, is_plain)


def _ints(values: Sequence[int]) -> _Ints:
    """Give integers as a column; unlike numpy's own way, a float is refused, not cut off."""
    return np.frombuffer(array("q", values), np.int64)


def _turns(
    operations: Sequence[Operation], numbers: dict[SessionKey, int]
) -> tuple[_Turns | None, list[Operation]]:
    """Give the turns as columns, and the operations that are no turns."""
    others: list[Operation] = []
    columns: list[list[Any]] = [[] for _ in _WANTED]
    is_plain = True
    for start in range(0, len(operations), _PORTION):
        portion = operations[start : start + _PORTION]
        kinds = list(map(_f, portion))
        if kinds.count("turn") < len(portion):
            others += [o for o in portion if o.f != "turn"]
            portion = [o for o in portion if o.f == "turn"]
        is_plain = is_plain and not (any(map(_config, portion)) or any(map(_effects, portion)))
        for column, value_of in zip(columns, _WANTED, strict=True):
            column.extend(map(value_of, portion))
    keys, kinds, invokes, completes, markers, reads, answered = columns
    size = len(markers)
    session = np.fromiter(map(numbers.__getitem__, keys), np.int64, size)
    types = np.fromiter(map(_TYPES.__getitem__, kinds), np.int8, size)
    invoke = _ints(invokes)
    try:
        complete = _ints(completes)
    except TypeError:
        complete = _ints([_NEVER_NS if time == math.inf else time for time in completes])
    if not size or (complete < invoke).any():
        return None, others
    complete = np.where(types == _OK, complete, _NEVER_NS)
    origin = int(invoke.min())
    span = int(invoke.max()) - origin
    turns = _Turns(
        session,
        types,
        invoke,
        complete,
        markers,
        _hashes(markers),
        reads,
        answered,
        origin,
        span,
        is_plain,
    )
    return turns, others


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
    starts = np.cumsum(lengths) - lengths
    start, length = np.zeros(len(suspect), np.int64), np.zeros(len(suspect), np.int64)
    start[session], length[session] = starts, lengths
    ended = [_NEVER_NS if read.complete_ns == math.inf else int(read.complete_ns) for read in reads]
    return _Lists(
        _hashes(elements),
        np.full(len(elements), -1, np.int64),
        np.repeat(session, lengths),
        np.arange(len(elements)) - np.repeat(starts, lengths),
        np.repeat(_ints(ended), lengths),
        start,
        length,
    )


def _suspect_strange_answers(turns: _Turns, suspect: _Flags) -> bool:
    """Suspect the sessions with retries, or with replies to other prompts.

    Gives False if different sessions sent the same marker.
    """
    order = np.argsort(turns.hashes)
    repeated = np.flatnonzero(turns.hashes[order[1:]] == turns.hashes[order[:-1]])
    one, other = turns.session[order[repeated]], turns.session[order[repeated + 1]]
    suspect[one] = True
    if any(turns.answered):
        for at, marker in enumerate(turns.answered):
            if marker and marker != turns.markers[at]:
                suspect[turns.session[at]] = True
    return bool((one == other).all())


def _suspect_wrong_claims(turns: _Turns, lists: _Lists, suspect: _Flags) -> _Flags:
    """Suspect the sessions with a turn that was not shown exactly what stands before it.

    Finds for each element its turn on the way. Gives which turns were observed at all.
    """
    seen = [read for read in turns.reads if read is not None]
    observed = np.ones(len(turns.reads), np.bool_)
    if len(seen) < len(turns.reads):
        observed = np.array([read is not None for read in turns.reads], np.bool_)
    at = np.flatnonzero(observed)
    columns: list[list[Any]] = [[] for _ in _SEEN]
    for start in range(0, len(seen), _PORTION):
        for column, value_of in zip(columns, _SEEN, strict=True):
            column.extend(map(value_of, seen[start : start + _PORTION]))
    positions, digests, foreign, half = columns
    if any(foreign) or any(half):
        odd = np.array([bool(f or h) for f, h in zip(foreign, half, strict=True)], np.bool_)
        suspect[turns.session[at[odd]]] = True
    if (turns.type == _FAIL).any():
        refused = set(compress(turns.markers, turns.type == _FAIL))
        shown = np.array([not refused.isdisjoint(read.tail) for read in seen], np.bool_)
        suspect[turns.session[at[shown]]] = True
    position, session = _ints(positions), turns.session[at]
    slot = lists.start[session] + position
    fits = position < lists.length[session]
    slot[~fits] = 0
    if len(lists.row):
        fits &= (lists.hashes[slot] == turns.hashes[at]) & (turns.type[at] != _FAIL)
        fits &= np.frombuffer(array("Q", digests), np.uint64) == _digests(lists)[slot]
        lists.row[slot[fits]] = at[fits]
    rest = np.ones(len(observed), np.bool_)
    rest[at[fits]] = False
    _place_the_rest(turns, lists, rest, observed, suspect)
    return observed


def _place_the_rest(
    turns: _Turns, lists: _Lists, rest: _Flags, observed: _Flags, suspect: _Flags
) -> None:
    """Find the turns that do not say where they stand; whoever has a wrong element is suspect.

    An observed turn stands where it says, so it is wrong wherever else it is found.
    """
    rows = np.flatnonzero(rest)
    row_of = dict(zip(turns.hashes[rows].tolist(), rows.tolist(), strict=True))
    empty = np.flatnonzero(lists.row < 0)
    found = _ints([row_of.pop(value, -1) for value in lists.hashes[empty].tolist()])
    lists.row[empty] = np.maximum(found, 0)
    wrong = (
        (found < 0)
        | (turns.session[found] != lists.session[empty])
        | (turns.type[found] == _FAIL)
        | observed[found]
    )
    suspect[lists.session[empty[wrong]]] = True
    # What is left over was never shown; acknowledged, it had to be.
    unseen = _ints(list(row_of.values()))
    suspect[turns.session[unseen[turns.type[unseen] == _OK]]] = True


def _suspect_wrong_times(turns: _Turns, lists: _Lists, suspect: _Flags) -> None:
    """Suspect the sessions whose order contradicts their times.

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


def _overtaken(turns: _Turns, lists: _Lists, limit: int | None, suspect: _Flags) -> tuple[int, int]:
    """Give how many turns were overtaken, and the most that overtook one, of who is cleared.

    Suspects the sessions in which these are more than ``limit``. Why place minus rank is the
    answer is argued where the rules count it.
    """
    width = turns.span_ns + 2
    invoke = (turns.invoke - turns.origin_ns)[lists.row] + lists.session * width
    behind = (invoke < np.maximum.accumulate(invoke)) & ~suspect[lists.session]
    acknowledged = turns.type[lists.row] == _OK
    by_time = np.argsort(invoke[acknowledged], kind="stable")
    overtook, session = by_time - np.arange(len(by_time)), lists.session[acknowledged][by_time]
    if limit is not None:
        suspect[session[overtook > limit]] = True
        behind &= ~suspect[lists.session]
    most = overtook[~suspect[session]].max(initial=0)
    return int(behind.sum()), int(most)


def _digests(lists: _Lists) -> _Words:
    """Give for each element the digest of all that stands before it in its list."""
    longest = int(lists.place.max()) + 1
    inverse = pow(MULTIPLIER, -1, 2**64)
    powers = np.full(longest, MULTIPLIER, np.uint64)
    inverses = np.full(longest, inverse, np.uint64)
    powers[0], inverses[0] = inverse, 1  # M^(p-1), M^-p
    powers, inverses = np.multiply.accumulate(powers), np.multiply.accumulate(inverses)
    terms = lists.hashes * inverses[lists.place]
    before = np.cumsum(terms) - terms
    starts = np.flatnonzero(lists.place == 0)
    lengths = np.diff(np.append(starts, len(lists.hashes)))
    sums: _Words = (before - np.repeat(before[starts], lengths)) * powers[lists.place]
    return sums


def _hashes(markers: Sequence[str]) -> _Words:
    """Give ``hash_of`` of each marker: at once if all have one length, as ``marker_of`` gives."""
    if not markers:
        return np.zeros(0, np.uint64)
    size = len(markers[0])
    text = "\0".join([*markers, ""])
    data = np.frombuffer(text.encode(), np.uint8)
    is_even = len(data) == len(markers) * (size + 1) and text.count("\0") == len(markers)
    if not is_even or data[size :: size + 1].any():
        return np.fromiter(map(hash_of, markers), np.uint64, len(markers))
    padded = np.zeros((len(markers), size + (-size & 7)), np.uint8)
    padded[:, :size] = data.reshape(len(markers), size + 1)[:, :-1]
    multiplier = np.uint64(MULTIPLIER)
    value = np.full(len(markers), size, np.uint64)
    for word in padded.view("<u8").T:
        value = value * multiplier + word
    value = (value ^ (value >> np.uint64(32))) * multiplier
    return value ^ (value >> np.uint64(29))


def _evidence(
    turns: _Turns, beside: _Ints, observed: _Flags, overtaken: tuple[int, int], suspect: _Flags
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
        overtaken=overtaken[0],
        most_overtaken=overtaken[1],
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
