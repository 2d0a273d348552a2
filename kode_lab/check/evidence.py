"""What the judge hears about one session: turns, reads, and the one order they claim.

The order is the last authoritative read's list, continued by the turns that this read could not
yet show. Everything a rule needs is computed here once, in time linear in the turns, and nothing is
judged here.

What an unanswered turn was shown binds nothing. The service may run such a turn several times (it
starts it, dies, and goes on after its restart), and what was recorded may be of a run that had no
effect. Worked example: ``c`` is shown ``[a]``, the server dies before it answers, ``b`` comes next,
the restarted server runs ``c`` again, and the list is ``a b c``. Nothing wrong happened, however
often the client sent ``c``. Another session's words in such a view are a leak all the same.

Source: the append-only list whose readers see whole prefixes is Elle's list-append; that it makes
the order of all writes evident, and checking it easy, is Kingsbury and Alvaro's observation.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right, insort
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from itertools import accumulate, chain, count, repeat
from operator import attrgetter, lt, sub
from typing import NamedTuple

from kode_lab.check.verdict import Anomaly, Evidence
from kode_lab.errors import InvalidRecord
from kode_lab.history.digest import MULTIPLIER, digest_of, hash_of, prefix_digests
from kode_lab.history.operation import DECLARATIONS, Operation, Read
from kode_lab.key import SessionKey

__all__ = [
    "CUT_SHORT",
    "WITNESS_OVERTAKERS",
    "Case",
    "case_of",
    "evidence_of",
    "overtakings",
    "undone",
    "window_digest",
]

# Reasons that end a reply before the model was done with it.
CUT_SHORT = ("max_tokens", "model_context_window_exceeded", "length")
# A witness names the limit and one more, but no more than this: the number of them is a fact.
WITNESS_OVERTAKERS = 8
_NO_KEY = SessionKey("", "", "")
_MASK = 2**64 - 1
_INVERSE = pow(MULTIPLIER, -1, 2**64)
_invoke, _complete, _read = map(attrgetter, ("invoke_ns", "complete_ns", "read"))
# Stands for the turn of a marker that was never sent: it contradicts no time.
_UNKNOWN = Operation(_NO_KEY, "turn", "", "info", -math.inf, math.inf)  # type: ignore[arg-type]


class Case(NamedTuple):
    """One session's evidence.

    Attributes:
        turns: each turn by its marker; attempts at one turn are merged into one operation, and only
            an acknowledged one keeps what it was shown.
        tellers: all operations that tell of a list, in the form in which rules compare it.
        attempts: the attempts at turns that were tried more than once.
        replays: pairs of acknowledged attempts at one turn that were shown different sessions.
        reads: authoritative ``ok`` reads, by their invoke.
        declared: what the service declares that it did to the session, by its invoke.
        source: the case of the session that this one was forked from, or None.
        final: the last operation that shows the whole session: a read, or a turn that was shown
            exactly what stands before it; None if there is none.
        order: the session's own markers in their one order, as reads tell and turns continue.
        place: where in ``order`` each marker stands first.
        digests: the digest of each prefix of ``order``; one more than ``order`` is long.
        invokes: when the turn of each element of ``order`` was sent (minus infinity: unknown).
        completes: when it was acknowledged (infinity: never, as far as anyone knows).
        latest_invoke: the running maximum of ``invokes``.
        earliest_complete: the running minimum of ``completes`` from the end.
    """

    key: SessionKey
    turns: Mapping[str, Operation]
    tellers: Sequence[Operation]
    attempts: Sequence[Operation]
    replays: Sequence[tuple[Operation, Operation]]
    reads: Sequence[Operation]
    declared: Sequence[Operation]
    final: Operation | None
    order: Sequence[str]
    place: Mapping[str, int]
    digests: Sequence[int]
    invokes: Sequence[float]
    completes: Sequence[float]
    latest_invoke: Sequence[float]
    earliest_complete: Sequence[float]
    source: Case | None = None

    def own(self, markers: Iterable[str]) -> list[str]:
        """Return those of ``markers`` that belong to this session, sent or not."""
        return _own(markers, self.turns)

    def is_before_final(self, turn: Operation) -> bool:
        """Whether the last authoritative read must show an acknowledged turn."""
        return self.final is not None and turn.complete_ns < self.final.invoke_ns

    def fits(self, read: Read, position: int) -> bool:
        """Whether what was shown are the first ``position`` elements of the order."""
        if not read.position == position < len(self.digests):
            return False
        if read.digest is None:
            return tuple(self.order[position - len(read.tail) : position]) == read.tail
        return read.digest == self.digests[position]


def case_of(
    key: SessionKey, operations: Iterable[Operation], inherited: Sequence[Operation] = ()
) -> Case:
    """Return one session's case from its operations, in any order.

    Args:
        inherited: the turns that a fork took over from another session, in order.

    Raises:
        InvalidRecord: two turns share a marker, or one turn has two.
    """
    sent: dict[str, list[Operation]] = {turn.marker: [turn] for turn in inherited}
    reads: list[Operation] = []
    declared: list[Operation] = []
    for operation in operations:
        if operation.f == "turn":
            sent.setdefault(operation.marker, []).append(operation)
        elif operation.markers is not None and operation.type == "ok":
            reads.append(operation)
        elif operation.f in DECLARATIONS and operation.type != "fail":
            declared.append(operation)
    _resolve(sent, {turn.marker for turn in inherited})
    turns: dict[str, Operation] = {}
    attempts: list[Operation] = []
    replays: list[tuple[Operation, Operation]] = []
    for marker, tries in sent.items():
        turns[marker] = tries[0]
        if len(tries) > 1:
            turns[marker], disagreeing = _merged(marker, tries)
            attempts += tries
            replays += disagreeing
        elif tries[0].type == "info" and tries[0].read is not None:
            turns[marker] = tries[0]._replace(read=None)
    reads.sort(key=_invoke)
    declared.sort(key=_invoke)
    order, digests = _order(turns, reads)
    place = dict(zip(reversed(order), range(len(order) - 1, -1, -1), strict=True))
    has_one_order = not (
        declared
        or any(read.is_suffix for read in reads)
        or any(turn.details.replaces for turn in turns.values())
    )
    for marker, turn in turns.items():
        if has_one_order and turn.read is not None and turn.read.is_suffix:
            turns[marker] = turn._replace(read=_anchored(turn, turns, place, digests))
    known = [turns.get(marker, _UNKNOWN) for marker in order]
    completes = [turn.complete_ns if turn.type == "ok" else math.inf for turn in known]
    invokes = list(map(_invoke, known))
    case = Case(
        key,
        turns,
        (*chain.from_iterable(sent.values()), *reads),
        attempts,
        replays,
        reads,
        declared,
        reads[-1] if reads else None,
        order,
        place,
        digests,
        invokes,
        completes,
        list(accumulate(invokes, max)),
        list(accumulate(reversed(completes), min))[::-1],
    )
    return case._replace(final=_observer(case))


def _observer(case: Case) -> Operation | None:
    """Return the last operation that shows the whole session: a read, or a turn that ran alone.

    A turn whose model was shown exactly what stands before it is as good as a read, if every other
    turn of the session had ended before it was sent.
    """
    final = case.final
    acknowledged = [turn for turn in case.turns.values() if turn.type == "ok"]
    last = max(acknowledged, key=_invoke, default=_UNKNOWN)
    read, at = last.read, case.place.get(last.marker, -1)
    is_told = read is not None and read.digest is not None and case.fits(read, at)
    is_alone = all(turn.complete_ns < last.invoke_ns for turn in acknowledged if turn is not last)
    if is_told and is_alone and (final is None or final.invoke_ns < last.invoke_ns):
        return last
    return final


def _resolve(sent: dict[str, list[Operation]], inherited: Collection[str]) -> None:
    """Bring what turns say they were shown into the form that rules compare."""
    groups = _groups(sent)
    for marker, tries in sent.items():
        group = groups.get(marker, ())
        for at, one in enumerate(tries):
            read = one.read
            if read is not None and (read.markers is not None or group or inherited):
                is_listed = read.markers is not None
                read = _taken_over(_counted_out(read, marker, sent), inherited)
                read = _in_group(read, marker, group, is_listed=is_listed)
                tries[at] = one._replace(read=read)


def _groups(sent: Mapping[str, Sequence[Operation]]) -> dict[str, tuple[str, ...]]:
    """Return for each marker the markers of the prompts that were answered together with it."""
    groups: dict[str, tuple[str, ...]] = {}
    told = [one for tries in sent.values() for one in tries]
    for one in told:
        if one.details.merged:
            groups |= dict.fromkeys(one.details.merged, one.details.merged)
    steered = [one for one in told if one.details.into and one.marker not in groups]
    for one in sorted(steered, key=_invoke):
        together = (*groups.get(one.details.into, (one.details.into,)), one.marker)
        groups |= dict.fromkeys(together, together)
    return groups


def _counted_out(read: Read, marker: str, sent: Mapping[str, object]) -> Read:
    """Return a view that was written as a list of markers in the compact form."""
    if read.markers is None:
        return read
    own = set(_own(read.markers, sent))
    before: list[str] = []
    after: list[str] = []
    foreign: list[str] = []
    into = before
    for shown in read.markers:
        if shown == marker:
            into = after
        else:
            (into if shown in own else foreign).append(shown)
    return read._replace(
        position=len(before),
        digest=digest_of(before),
        tail=tuple(before),
        foreign=(*read.foreign, *foreign),
        after=tuple(after),
        markers=None,
    )


def _taken_over(read: Read, inherited: Collection[str]) -> Read:
    """Return a view of a fork that counts the turns which the fork took over as its own."""
    before = [marker for marker in read.foreign if marker in inherited]
    if not before:
        return read
    digest = read.digest
    if digest is not None:  # that of two lists is made from those of both
        digest = (digest_of(before) * pow(MULTIPLIER, read.position, 2**64) + digest) & _MASK
    return read._replace(
        position=len(before) + read.position,
        digest=digest,
        tail=(*before, *read.tail),
        foreign=tuple(marker for marker in read.foreign if marker not in inherited),
    )


def _in_group(read: Read, marker: str, group: Sequence[str], *, is_listed: bool) -> Read:
    """Return a view as if the prompts that were answered together had come one by one.

    A position counts those ahead already; a list of all that was shown may leave them out.
    """
    if marker not in group:
        return read
    read = read._replace(after=tuple(m for m in read.after if m not in group))
    if not is_listed:
        return read
    position, digest, tail = read.position, read.digest, list(read.tail)
    while tail and tail[-1] in group:
        last, position = tail.pop(), position - 1
        digest = None if digest is None else undone(digest, last)
    ahead = group[: group.index(marker)]
    return read._replace(
        position=position + len(ahead),
        digest=None if digest is None else digest_of(ahead, digest),
        tail=(*tail, *ahead),
    )


def undone(digest: int, last: str) -> int:
    """Return the digest of a list without its last element."""
    return (digest - hash_of(last)) * _INVERSE & _MASK


def window_digest(digests: Sequence[int], start: int, end: int) -> int:
    """Return the digest of the elements from ``start`` to ``end``, from those of all prefixes."""
    return (digests[end] - digests[start] * pow(MULTIPLIER, end - start, 2**64)) & _MASK


def _anchored(
    turn: Operation,
    turns: Mapping[str, Operation],
    place: Mapping[str, int],
    digests: Sequence[int],
) -> Read | None:
    """Return a declared suffix as the prefix that ends where it ends; None if it shows nothing."""
    read = turn.read
    assert read is not None
    if not read.position:
        return None
    last = read.tail[-1] if read.tail else None
    if last is None or last not in place:
        is_possible = last is None or turns.get(last, _UNKNOWN).invoke_ns <= turn.complete_ns
        if turn.marker not in place and is_possible:
            return None  # where it ends is not known
        if last is not None:
            return read
    end = place[turn.marker] if last is None else place[last] + 1
    start = end - read.position
    is_there = start >= 0 and read.digest in (None, window_digest(digests, start, end))
    if is_there:
        return read._replace(position=end, digest=digests[end])
    # No prefix has this digest: the rules find that it is not the session's end.
    return read._replace(position=max(end, 0), digest=~digests[max(end, 0)] & _MASK)


def _merged(
    marker: str, attempts: list[Operation]
) -> tuple[Operation, list[tuple[Operation, Operation]]]:
    """Return the one operation that several attempts at a turn are, and attempts that disagree.

    It began with the first attempt that may have been accepted, and ended with the first
    acknowledgement.
    """
    turn_id = attempts[0].turn_id
    if not turn_id or any(attempt.turn_id != turn_id for attempt in attempts):
        raise InvalidRecord(
            f"marker {marker!r:.60} is sent by two turns of {attempts[0].key}: use another marker "
            "for each turn, and one turn_id for all attempts at one turn"
        )
    accepted = [attempt for attempt in attempts if attempt.type != "fail"]
    acknowledged = sorted((a for a in accepted if a.type == "ok"), key=_complete)
    begun = min(attempt.invoke_ns for attempt in accepted or attempts)
    if not acknowledged:
        tried = accepted or attempts
        # One that was given to a running turn may be told so by a later attempt alone.
        one = next((one for one in tried if one.details.into or one.details.merged), tried[0])
        return one._replace(invoke_ns=begun, complete_ns=math.inf, read=None), []
    seen = [attempt for attempt in acknowledged if attempt.read is not None]
    first = seen[0] if seen else acknowledged[0]
    whole = first._replace(invoke_ns=begun, complete_ns=acknowledged[0].complete_ns)
    views = [(attempt.read.position, attempt.read.digest) for attempt in seen if attempt.read]
    others = zip(seen[1:], views[1:], strict=True)
    return whole, [(first, other) for other, view in others if view != views[0]]


def _own(markers: Iterable[str], turns: Mapping[str, object]) -> list[str]:
    listed = list(markers)
    if turns.keys() >= set(listed):
        return listed
    # A marker that was never sent is still this session's if it carries its tag (``marker_of``).
    tags = {marker.partition("-")[0] for marker in turns if "-" in marker}
    return [
        marker
        for marker in listed
        if marker in turns or ("-" in marker and marker.partition("-")[0] in tags)
    ]


def _order(
    turns: Mapping[str, Operation], reads: Sequence[Operation]
) -> tuple[list[str], list[int]]:
    order: list[str] = []
    final = reads[-1] if reads else None
    if final is not None:
        order = _own(final.markers or (), turns)
        for read in reads:
            # A read that may have come after the final one can show more than it.
            if read.complete_ns >= final.invoke_ns:
                longer = _own(read.markers or (), turns)
                if len(longer) > len(order) and longer[: len(order)] == order:
                    order = longer
    digests = prefix_digests(order)
    beyond = [
        turn
        for turn in map(turns.__getitem__, turns.keys() - set(order))
        if turn.type == "ok"
        and turn.read is not None
        and (final is None or turn.complete_ns >= final.invoke_ns)
    ]
    if beyond:
        _continue(order, digests, beyond)
    return order, digests


def _continue(order: list[str], digests: list[int], beyond: list[Operation]) -> None:
    """Append the turns that stand after what was read, as far as their own words connect."""

    def claim(turn: Operation) -> tuple[int, int, str]:
        return turn.read.position if turn.read else 0, turn.invoke_ns, turn.marker

    behind: dict[str, Operation] = {}
    for turn in sorted(beyond, key=claim):
        read = turn.read
        assert read is not None
        if read.is_suffix:
            if read.tail:
                behind.setdefault(read.tail[-1], turn)
            continue
        missing = read.position - len(order)
        if not 0 <= missing <= len(read.tail):
            continue
        # What no read shows and no answer acknowledges, the next turn's tail may still name.
        bridge = list(read.tail[len(read.tail) - missing :])
        added = prefix_digests([*bridge, turn.marker], digests[-1])
        if read.digest in (None, added[-2]):
            order += [*bridge, turn.marker]
            digests += added[1:]
    while order and (after := behind.pop(order[-1], None)) is not None:
        order.append(after.marker)
        digests.append(digest_of((after.marker,), digests[-1]))


# ---- counting


def evidence_of(case: Case, session: Sequence[Operation], crashes: Sequence[float]) -> Evidence:
    """Return how much there is to judge one session by."""
    # What a fork took over are turns of another session.
    turns = [turn for turn in case.turns.values() if turn.details.source is None]
    acknowledged = [turn for turn in turns if turn.type == "ok"]
    count_ok = len(acknowledged)
    refused = [turn for turn in turns if turn.type == "fail"]
    # A turn that a later one interrupted, say: its client had an answer that acknowledges nothing.
    ended = {o.marker: o for o in session if o.type == "info" and o.complete_ns < math.inf}
    given_up = [ended[t.marker] for t in turns if t.type == "info" and t.marker in ended]
    invokes = sorted(map(_invoke, acknowledged))
    completes = sorted(map(_complete, acknowledged))
    met = sum(map(bisect_right, repeat(invokes), completes))
    final = case.final
    before_ns = -math.inf if final is None else final.invoke_ns
    unread = count_ok - bisect_left(completes, before_ns)
    if unread and final is not None:
        # A turn that shows the session is not asked to show itself.
        seen = {final.marker} if final.f == "turn" else set(final.markers or ())
        late = [turn for turn in acknowledged if turn.complete_ns >= before_ns]
        unread = sum(turn.marker not in seen for turn in late)
    at = bisect_right(crashes, before_ns)
    return Evidence(
        operations=len(session),
        sessions=1,
        turns=len(turns),
        requests=len(turns) + len(case.attempts) - len({a.marker for a in case.attempts}),
        acknowledged=count_ok,
        refused=len(refused),
        indeterminate=len(turns) - count_ok - len(refused),
        observed=count_ok - list(map(_read, acknowledged)).count(None),
        lists=len(case.reads),
        concurrent_pairs=met - count_ok * (count_ok + 1) // 2,
        contended=sum(
            bisect_right(invokes, turn.complete_ns) > bisect_left(completes, turn.invoke_ns)
            for turn in (*refused, *given_up)
        ),
        overtaken=sum(map(lt, case.invokes, case.latest_invoke)),
        most_overtaken=_most_overtaken(case),
        unread=unread,
        crossed=bisect_left(completes, crashes[at - 1]) if at else 0,
        unread_in=str(case.key) if unread else "",
    )


# ---- first come, first served
#
# Turn U overtook turn T if U was sent after T was, by their clients' clock, and yet stands before T
# in their session. Networks reorder too, so this alone breaks no promise; it is a figure of every
# verdict, and a breach only beyond a limit that is claimed. Only turns that were acknowledged
# count, and of these only such as were tried once, beside refusals: when anything else was let in
# is unknown. So the figure may be too small, never too large.


def _most_overtaken(case: Case) -> int:
    """Return the most turns that overtook one turn of the session.

    The turn that was overtaken most has none behind it that was sent earlier, or that one would
    have been overtaken by one more. So its place is its rank by time plus its overtakers; of all
    others, place minus rank is no more than that, and the largest difference is the answer.
    """
    if case.invokes == case.latest_invoke:
        return 0
    invokes: Sequence[float] = case.invokes
    if case.attempts or len(case.place) < len(case.order) or math.inf in case.completes:
        invokes = [turn.invoke_ns for turn in _counted(case)]
    by_time = sorted(range(len(invokes)), key=invokes.__getitem__)
    return max(map(sub, by_time, count()), default=0)


def overtakings(case: Case, limit: int) -> Iterator[Anomaly]:
    """Return the turns that more than ``limit`` others overtook, each with those sent last."""
    if _most_overtaken(case) <= limit:
        return
    turns = _counted(case)
    sent: list[tuple[int, int]] = []
    shown = min(limit + 1, WITNESS_OVERTAKERS)
    for at, turn in enumerate(turns):
        overtook = at - bisect_right(sent, (turn.invoke_ns, at))
        if overtook > limit:
            witness = (turn, *(turns[place] for _, place in sent[-shown:]))
            facts = {"overtook": overtook, "limit": limit}
            yield Anomaly("overtaking", case.key, witness, turn.marker, facts)
        insort(sent, (turn.invoke_ns, at))


def _counted(case: Case) -> list[Operation]:
    """Return the acknowledged turns that one request only can have brought in, as they stand."""
    tries = Counter(attempt.marker for attempt in case.attempts if attempt.type != "fail")
    return [
        case.turns[marker]
        for at, marker in enumerate(case.order)
        if case.completes[at] < math.inf and case.place[marker] == at and tries[marker] < 2
    ]
