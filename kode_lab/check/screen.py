"""The screen: clears, with numpy and all at once, the sessions that cannot break any rule.

It finds nothing and explains nothing. A session in which anything is unusual (a retry, a stranger,
a second read, a digest that differs, a time out of order) is a *suspect* and is heard by the rules
as if this file did not exist, so every anomaly is the rules'. What has to be shown is only that no
guilty session is cleared, and that evidence is counted alike.

Two things make it fast. Turns are not looked up by their markers: each says where it stands, so it
is enough that its marker's hash is found there. And all digests of all prefixes come out of one
cumulative sum: with the multiplier M odd,
D(p) = M^(p-1) * (h(0) M^0 + h(1) M^-1 + ... + h(p-1) M^-(p-1)) modulo 2^64.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from kode_lab.check.columns import (
    FAIL,
    INFO,
    NEVER_NS,
    OK,
    READ,
    TURN,
    Columns,
    Flags,
    Ints,
    Words,
)
from kode_lab.check.verdict import Evidence
from kode_lab.history.digest import MULTIPLIER

__all__ = ["screen"]

# So many operations are screened at once; their temporary columns take 40 MB.
_BLOCK_ROWS = 200_000


class _Turns(NamedTuple):
    """The turns of all sessions, a row a turn.

    Attributes:
        complete: when it was acknowledged; ``NEVER_NS`` if it was not.
        origin_ns: the first invoke.
        width_ns: more than from the first invoke to the last: room for a session.
    """

    session: Ints
    type: NDArray[np.int8]
    invoke: Ints
    complete: Ints
    position: Ints
    digest: Words
    is_loose: Flags
    hashes: Words
    origin_ns: int
    width_ns: int

    def within(self, times: Ints, session: Ints) -> Ints:
        """Return times as if sessions followed each other; what comes after its last invoke, there.

        What was acknowledged after the last invoke contradicts nothing, so when does not matter.
        """
        own: Ints = np.minimum(times - self.origin_ns, self.width_ns - 1)
        own += session * self.width_ns
        return own


class _Lists(NamedTuple):
    """The final lists of all sessions, laid end to end, a row an element.

    Attributes:
        row: the turn that the element is; -1 while it is not known.
        session: whose list it is.
        place: where it stands in its list.
        returned: when the read that shows it returned.
        start, length: of each session's list, by the session's number.
    """

    hashes: Words
    row: Ints
    session: Ints
    place: Ints
    returned: Ints
    start: Ints
    length: Ints


def screen(
    columns: Columns, overtaking_limit: int | None = None, doubted: Flags | None = None
) -> tuple[Evidence, Flags] | None:
    """Return the evidence of the sessions that are beyond doubt, and which the others are.

    ``doubted`` sessions are not looked at. None, if the whole history must be heard by the rules:
    a marker of two sessions, an operation that ends before it begins, times too far apart.
    """
    suspect = np.zeros(len(columns.keys), np.bool_) if doubted is None else doubted.copy()
    suspect[columns.session[columns.is_odd]] = True
    is_turn = columns.kind == TURN
    if not is_turn.any() or (columns.complete < columns.invoke).any():
        return None
    if not _suspect_retries(columns, is_turn, suspect):
        return None
    evidence = Evidence()
    for rows in _blocks(columns):
        block = columns.of_rows(rows)
        if not (block.kind == TURN).any():
            evidence = evidence.plus(_evidence_without_turns(block, suspect))
            continue
        turns = _turns(block, block.kind == TURN)
        if len(columns.keys) * turns.width_ns >= NEVER_NS:
            return None
        evidence = evidence.plus(_screened(block, turns, overtaking_limit, suspect))
    return evidence, suspect


def _screened(
    columns: Columns, turns: _Turns, overtaking_limit: int | None, suspect: Flags
) -> Evidence:
    """Screen some whole sessions: suspect those of them that are in doubt."""
    suspect[_with_views_beside_refusals(columns)] = True
    lists = _final_lists(columns, turns, suspect)
    _suspect_wrong_claims(turns, lists, suspect)
    overtaken = 0, 0, 0
    if len(lists.row):
        overtaken = _suspect_wrong_times(turns, lists, overtaking_limit, suspect)
    return _evidence(columns, turns, overtaken, suspect)


def _blocks(columns: Columns) -> Iterator[Ints]:
    """Return the rows of whole sessions, in blocks: what a block needs is freed before the next."""
    sizes = np.bincount(columns.session, minlength=len(columns.keys))
    number = np.cumsum(sizes) // _BLOCK_ROWS
    if number[-1] == 0:
        yield np.arange(len(columns.session))
        return
    of_row = number[columns.session]
    for block in np.unique(number).tolist():
        yield np.flatnonzero(of_row == block)


def _with_views_beside_refusals(columns: Columns) -> Ints:
    """Return the sessions in which a refused turn may stand in what an unanswered one was shown."""
    is_turn = columns.kind == TURN
    viewing = is_turn & (columns.type != OK) & (columns.position > 0)
    refused = columns.session[is_turn & (columns.type == FAIL)]
    return np.intersect1d(columns.session[viewing], refused)


def _turns(columns: Columns, is_turn: Flags) -> _Turns:
    invoke = columns.invoke[is_turn]
    kind = columns.type[is_turn]
    origin = int(invoke.min())
    return _Turns(
        columns.session[is_turn],
        kind,
        invoke,
        np.where(kind == OK, columns.complete[is_turn], NEVER_NS),
        # What an unanswered turn was shown binds nothing.
        np.where(kind == INFO, -1, columns.position[is_turn]),
        columns.digest[is_turn],
        columns.is_loose[is_turn],
        columns.marker[is_turn],
        origin,
        int(invoke.max()) - origin + 2,
    )


def _final_lists(columns: Columns, turns: _Turns, suspect: Flags) -> _Lists:
    """Lay the lists end to end; a session without one plain read after all its turns is suspect."""
    told = np.flatnonzero((columns.kind == READ) & (columns.list_length >= 0))
    told = told[np.argsort(columns.session[told], kind="stable")]  # one maximum serves all sessions
    session, lengths = columns.session[told], columns.list_length[told].astype(np.int64)
    others = np.bincount(session, minlength=len(suspect)) != 1
    suspect[columns.session[others[columns.session]]] = True
    asked = np.full(len(suspect), -1, np.int64)
    asked[session] = columns.invoke[told]
    suspect[turns.session[(turns.type == OK) & (turns.complete >= asked[turns.session])]] = True
    starts = np.cumsum(lengths) - lengths
    start, length = np.zeros(len(suspect), np.int64), np.zeros(len(suspect), np.int64)
    start[session], length[session] = starts, lengths
    place = np.arange(int(lengths.sum())) - np.repeat(starts, lengths)
    return _Lists(
        columns.elements[np.repeat(columns.list_start[told], lengths) + place],
        np.full(len(place), -1, np.int64),
        np.repeat(session, lengths),
        place,
        np.repeat(columns.complete[told], lengths),
        start,
        length,
    )


def _suspect_retries(columns: Columns, is_turn: Flags, suspect: Flags) -> bool:
    """Suspect the sessions that sent a marker twice; return False if different sessions did."""
    ordered = np.sort(columns.marker[is_turn])
    repeated = ordered[1:][ordered[1:] == ordered[:-1]]
    if not len(repeated):
        return True
    rows = np.flatnonzero(is_turn & np.isin(columns.marker, repeated))
    rows = rows[np.argsort(columns.marker[rows], kind="stable")]
    same = columns.marker[rows[1:]] == columns.marker[rows[:-1]]
    session = columns.session[rows]
    suspect[session] = True
    return bool((session[1:][same] == session[:-1][same]).all())


def _suspect_wrong_claims(turns: _Turns, lists: _Lists, suspect: Flags) -> None:
    """Suspect the sessions with a turn that was not shown exactly what stands before it.

    Finds for each element its turn on the way.
    """
    rest = np.arange(len(turns.session))
    if len(lists.row):
        slot = lists.start[turns.session] + turns.position
        fits = (turns.position >= 0) & (turns.position < lists.length[turns.session])
        slot[~fits] = 0
        fits &= (lists.hashes[slot] == turns.hashes) & (turns.type != FAIL)
        fits &= turns.is_loose | (turns.digest == _digests(lists)[slot])
        if fits.all():
            lists.row[slot], rest = rest, rest[:0]
        else:
            lists.row[slot[fits]] = rest[fits]
            rest = rest[~fits]
    _place_the_rest(turns, lists, rest, suspect)


def _place_the_rest(turns: _Turns, lists: _Lists, rows: Ints, suspect: Flags) -> None:
    """Find the turns that do not say where they stand; a session with a wrong element is suspect.

    An observed turn stands where it says, so it is wrong wherever else it is found. An element is
    looked up among the turns of all sessions, so a turn that stands in another session's list was
    not found by its own: its own session is suspect as well.
    """
    empty = np.flatnonzero(lists.row < 0)
    order = np.argsort(turns.hashes[rows], kind="stable")
    hashes = turns.hashes[rows[order]]
    wanted = lists.hashes[empty]
    slot = np.minimum(np.searchsorted(hashes, wanted), max(len(hashes) - 1, 0))
    is_there = (hashes[slot] == wanted) if len(hashes) else np.zeros(len(wanted), np.bool_)
    found = np.full(len(empty), -1, np.int64)
    found[is_there] = rows[order[slot[is_there]]]
    # Of an element that stands twice, only one is found; the other one is wrong.
    _, first = np.unique(found, return_index=True)
    is_first = np.zeros(len(found), np.bool_)
    is_first[first] = True
    lists.row[empty] = np.maximum(found, 0)
    wrong = (
        (found < 0)
        | ~is_first
        | (turns.session[found] != lists.session[empty])
        | (turns.type[found] == FAIL)
        | (turns.position[found] >= 0)
    )
    suspect[lists.session[empty[wrong]]] = True
    # What is left over is in no right place; acknowledged, it had to be in its own list.
    is_placed = np.zeros(len(turns.session), np.bool_)
    is_placed[found[~wrong]] = True
    unseen = rows[~is_placed[rows]]
    suspect[turns.session[unseen[turns.type[unseen] == OK]]] = True


def _suspect_wrong_times(
    turns: _Turns, lists: _Lists, limit: int | None, suspect: Flags
) -> tuple[int, int, int]:
    """Suspect the sessions whose order contradicts their times, or overtakes beyond the limit.

    One running maximum serves all sessions: each begins above all times of those before it. Returns
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
    own, invoked_ok, complete = session[acknowledged], invoke[acknowledged], complete[acknowledged]
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


def _pairs(invoke: Ints, complete: Ints) -> int:
    """Count the pairs of turns of one session whose intervals meet; ``invoke`` is sorted."""
    # Sorted alike, the searches walk through memory instead of jumping.
    met = np.searchsorted(invoke, np.sort(complete, kind="stable"), side="right")
    return int(met.sum()) - len(met) * (len(met) + 1) // 2


def _digests(lists: _Lists) -> Words:
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
    sums: Words = (before - np.repeat(before[starts], lengths)) * powers[lists.place]
    return sums


def _contended(turns: _Turns, columns: Columns, cleared: Flags) -> int:
    """Count the turns that were not acknowledged and met an acknowledged one of their session."""
    is_refused = (columns.kind == TURN) & (columns.type != OK) & cleared[columns.session]
    is_refused &= columns.complete < NEVER_NS
    if not is_refused.any():
        return 0
    is_ok = (turns.type == OK) & cleared[turns.session]
    width = int(columns.complete[is_refused].max()) - turns.origin_ns
    wide = turns._replace(width_ns=max(turns.width_ns, width + 2))
    session = columns.session[is_refused]
    invokes = np.sort(wide.within(turns.invoke[is_ok], turns.session[is_ok]))
    completes = np.sort(wide.within(turns.complete[is_ok], turns.session[is_ok]))
    begun = np.searchsorted(
        invokes, wide.within(columns.complete[is_refused], session), side="right"
    )
    ended = np.searchsorted(
        completes, wide.within(columns.invoke[is_refused], session), side="left"
    )
    return int(np.count_nonzero(begun > ended))


def _evidence_without_turns(columns: Columns, suspect: Flags) -> Evidence:
    """Suspect the sessions that were only read: the rules count what there is."""
    suspect[columns.session] = True
    return Evidence()


def _evidence(
    columns: Columns, turns: _Turns, overtaken: tuple[int, int, int], suspect: Flags
) -> Evidence:
    cleared = ~suspect
    is_clear = cleared[turns.session]
    counts = np.bincount(turns.type[is_clear], minlength=FAIL + 1).tolist()
    sessions = len(np.unique(columns.session[cleared[columns.session]]))
    observed = (turns.type == OK) & (turns.position >= 0) & is_clear
    return Evidence(
        operations=int(cleared[columns.session].sum()),
        sessions=sessions,
        turns=int(is_clear.sum()),
        requests=int(is_clear.sum()),
        acknowledged=counts[OK],
        refused=counts[FAIL],
        indeterminate=counts[INFO],
        observed=int(np.count_nonzero(observed)),
        lists=sessions,
        concurrent_pairs=overtaken[2],
        contended=_contended(turns, columns, cleared),
        overtaken=overtaken[0],
        most_overtaken=overtaken[1],
    )
