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
from collections.abc import Sequence
from itertools import chain
from operator import itemgetter
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from kode_lab.check.columns import FAIL, INFO, NEVER_NS, OK, Columns, Screened
from kode_lab.check.verdict import Evidence
from kode_lab.history.digest import MULTIPLIER, hash_of
from kode_lab.history.operation import Operation

__all__ = ["hashes_of", "screen"]

_Ints = NDArray[np.int64]
_Words = NDArray[np.uint64]
_Flags = NDArray[np.bool_]

# So many markers at once that their bytes and words stay in the cache.
_PORTION = 4_096


class _Turns(NamedTuple):
    """The turns of all sessions, a row a turn; the arrays are those of ``Columns``.

    Attributes:
        hashes: of the markers.
        origin_ns: the first invoke.
        width_ns: more than from the first invoke to the last: room for a session.
    """

    session: _Ints
    type: NDArray[np.int8]
    invoke: _Ints
    complete: _Ints
    position: _Ints
    digest: _Words
    hashes: _Words
    origin_ns: int
    width_ns: int

    def within(self, times: _Ints, session: _Ints) -> _Ints:
        """Return times as if sessions followed each other; what comes after its last invoke, there.

        What was acknowledged after the last invoke contradicts nothing, so when does not matter.
        """
        own: _Ints = np.minimum(times - self.origin_ns, self.width_ns - 1)
        own += session * self.width_ns
        return own


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


def screen(columns: Columns, overtaking_limit: int | None = None) -> Screened | None:
    """Return the evidence of the sessions that are beyond doubt, and the names of the others.

    None, if the whole history must be heard by the rules: a marker of two sessions, times that are
    no integers or too far apart.
    """
    numbers = columns.numbers
    suspect = np.zeros(len(numbers), np.bool_)
    suspect[list(columns.strange)] = True
    turns = _turns(columns)
    if turns is None or len(numbers) * turns.width_ns >= NEVER_NS:
        return None
    beside = _ints([numbers[other.key] for other in columns.others])
    try:
        lists = _final_lists(columns.others, beside, turns, suspect)
    except (OverflowError, TypeError):
        return None
    if not _suspect_retries(turns, suspect):
        return None
    _suspect_wrong_claims(turns, lists, suspect)
    if len(lists.row):
        overtaken = _suspect_wrong_times(turns, lists, overtaking_limit, suspect)
    else:
        overtaken = 0, 0, 0
    suspects = {key for key, number in numbers.items() if suspect[number]}
    return Screened(_evidence(turns, beside, overtaken, suspect), suspects)


def _ints(values: Sequence[int]) -> _Ints:
    """Return integers as a column; unlike numpy's own way, a float is refused, not cut off."""
    return np.frombuffer(array("q", values), np.int64)


def _turns(columns: Columns) -> _Turns | None:
    """Return the turns' arrays, which are not copied; None if there is no turn."""
    if not columns.markers:
        return None
    invoke = np.frombuffer(columns.invoke, np.int64)
    origin = int(invoke.min())
    return _Turns(
        np.frombuffer(columns.session, np.int64),
        np.frombuffer(columns.type, np.int8),
        invoke,
        np.frombuffer(columns.complete, np.int64),
        np.frombuffer(columns.position, np.int64),
        np.frombuffer(columns.digest, np.uint64),
        hashes_of(columns.markers),
        origin,
        int(invoke.max()) - origin + 2,
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
    suspect[turns.session[(turns.type == OK) & (turns.complete >= asked[turns.session])]] = True
    lengths = _ints([len(read.markers or ()) for read in reads])
    elements = list(chain.from_iterable(read.markers or () for read in reads))
    starts = np.cumsum(lengths) - lengths
    start, length = np.zeros(len(suspect), np.int64), np.zeros(len(suspect), np.int64)
    start[session], length[session] = starts, lengths
    ended = [NEVER_NS if read.complete_ns == math.inf else int(read.complete_ns) for read in reads]
    return _Lists(
        hashes_of(elements),
        np.full(len(elements), -1, np.int64),
        np.repeat(session, lengths),
        np.arange(len(elements)) - np.repeat(starts, lengths),
        np.repeat(_ints(ended), lengths),
        start,
        length,
    )


def _suspect_retries(turns: _Turns, suspect: _Flags) -> bool:
    """Suspect the sessions that sent a marker twice; give False if different sessions did."""
    ordered = np.sort(turns.hashes)
    if not (ordered[1:] == ordered[:-1]).any():
        return True
    order = np.argsort(turns.hashes)
    repeated = np.flatnonzero(turns.hashes[order[1:]] == turns.hashes[order[:-1]])
    one, other = turns.session[order[repeated]], turns.session[order[repeated + 1]]
    suspect[one] = True
    return bool((one == other).all())


def _suspect_wrong_claims(turns: _Turns, lists: _Lists, suspect: _Flags) -> None:
    """Suspect the sessions with a turn that was not shown exactly what stands before it.

    Finds for each element its turn on the way.
    """
    rest = np.arange(len(turns.session))
    if len(lists.row):
        slot = lists.start[turns.session] + turns.position
        fits = (turns.position >= 0) & (turns.position < lists.length[turns.session])
        slot[~fits] = 0
        fits &= (lists.hashes[slot] == turns.hashes) & (turns.type != FAIL)
        fits &= turns.digest == _digests(lists)[slot]
        if fits.all():
            lists.row[slot], rest = rest, rest[:0]
        else:
            lists.row[slot[fits]] = rest[fits]
            rest = rest[~fits]
    _place_the_rest(turns, lists, rest, suspect)


def _place_the_rest(turns: _Turns, lists: _Lists, rows: _Ints, suspect: _Flags) -> None:
    """Find the turns that do not say where they stand; whoever has a wrong element is suspect.

    An observed turn stands where it says, so it is wrong wherever else it is found.
    """
    row_of = dict(zip(turns.hashes[rows].tolist(), rows.tolist(), strict=True))
    empty = np.flatnonzero(lists.row < 0)
    found = _ints([row_of.pop(value, -1) for value in lists.hashes[empty].tolist()])
    lists.row[empty] = np.maximum(found, 0)
    wrong = (
        (found < 0)
        | (turns.session[found] != lists.session[empty])
        | (turns.type[found] == FAIL)
        | (turns.position[found] >= 0)
    )
    suspect[lists.session[empty[wrong]]] = True
    # What is left over was never shown; acknowledged, it had to be.
    unseen = _ints(list(row_of.values()))
    suspect[turns.session[unseen[turns.type[unseen] == OK]]] = True


def _suspect_wrong_times(
    turns: _Turns, lists: _Lists, limit: int | None, suspect: _Flags
) -> tuple[int, int, int]:
    """Suspect the sessions whose order contradicts their times, or overtakes beyond the limit.

    One running maximum serves all sessions: each begins above all times of those before it. Gives
    of the others how many turns were overtaken, the most that overtook one (why place minus rank
    is the answer is argued where the rules count it), and how many pairs met.
    """
    session, row = lists.session, lists.row
    invoked = turns.invoke[row]
    complete, invoke = turns.within(turns.complete[row], session), turns.within(invoked, session)
    latest = np.maximum.accumulate(invoke)
    suspect[session[1:][latest[:-1] > complete[1:]]] = True
    suspect[session[invoked > lists.returned]] = True
    acknowledged = turns.type[row] == OK
    if not acknowledged.all():
        own, invoked_ok, complete = (
            session[acknowledged],
            invoke[acknowledged],
            complete[acknowledged],
        )
    else:
        own, invoked_ok = session, invoke
    by_time = np.argsort(invoked_ok, kind="stable")
    overtook = by_time - np.arange(len(by_time))
    if limit is not None:
        # Sessions follow each other in time as well, so whose rank it is does not matter.
        suspect[own[by_time[overtook > limit]]] = True
    behind, invoked_ok = invoke < latest, invoked_ok[by_time]
    if suspect.any():
        behind &= ~suspect[session]
        overtook = overtook[~suspect[own[by_time]]]
        invoked_ok, complete = invoked_ok[~suspect[own[by_time]]], complete[~suspect[own]]
    met = _pairs(invoked_ok, complete)
    return int(np.count_nonzero(behind)), int(overtook.max(initial=0)), met


def _pairs(invoke: _Ints, complete: _Ints) -> int:
    """Count the pairs of turns of one session whose intervals meet; ``invoke`` is sorted."""
    # Sorted alike, the searches walk through memory instead of jumping.
    met = np.searchsorted(invoke, np.sort(complete, kind="stable"), side="right")
    return int(met.sum()) - len(met) * (len(met) + 1) // 2


def _digests(lists: _Lists) -> _Words:
    """Return for each element the digest of all that stands before it in its list."""
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


def hashes_of(markers: Sequence[str]) -> _Words:
    """Return ``hash_of`` of each marker, in one pass for markers of one length."""
    hashes = np.empty(len(markers), np.uint64)
    for start in range(0, len(markers), _PORTION):
        portion = markers[start : start + _PORTION]
        hashes[start : start + _PORTION] = _hashes(portion)
    return hashes


def _hashes(markers: Sequence[str]) -> _Words:
    size = len(markers[0])
    # At least one NUL after each, so that NULs in the right places, and nowhere else, prove that
    # all have that length.
    padding = 8 - size % 8
    gap = "\0" * padding
    text = gap.join([*markers, ""])
    data = text.encode()
    is_even = len(data) == len(markers) * (size + padding)
    if not is_even or text.count("\0") != padding * len(markers):
        return np.fromiter(map(hash_of, markers), np.uint64, len(markers))
    words = np.frombuffer(data, "<u8").reshape(len(markers), -1)
    if (words[:, -1] >> np.uint64(8 * (size % 8))).any():
        return np.fromiter(map(hash_of, markers), np.uint64, len(markers))
    multiplier = np.uint64(MULTIPLIER)
    value = np.full(len(markers), size, np.uint64)
    for word in words.T[: (size + 7) // 8]:
        value = value * multiplier + word
    value = (value ^ (value >> np.uint64(32))) * multiplier
    return value ^ (value >> np.uint64(29))


def _evidence(
    turns: _Turns, beside: _Ints, overtaken: tuple[int, int, int], suspect: _Flags
) -> Evidence:
    cleared = ~suspect
    types, position = turns.type, turns.position
    if suspect.any():
        of_turn = cleared[turns.session]
        types, position = types[of_turn], position[of_turn]
    counts = np.bincount(types, minlength=FAIL + 1).tolist()
    return Evidence(
        operations=len(types) + int(cleared[beside].sum()),
        sessions=int(cleared.sum()),
        turns=len(types),
        requests=len(types),
        acknowledged=counts[OK],
        refused=counts[FAIL],
        indeterminate=counts[INFO],
        observed=int(np.count_nonzero((types == OK) & (position >= 0))),
        concurrent_pairs=overtaken[2],
        overtaken=overtaken[0],
        most_overtaken=overtaken[1],
    )
