"""What the judge hears about one session, as columns: turns, reads, and the one order they claim.

The order is the last authoritative read's list, continued by the turns that this read could not
yet show. Everything a rule needs is computed here once, in time linear in the turns, and nothing is
judged here.

Source: the append-only list whose readers see whole prefixes is Elle's list-append; that it makes
the order of all writes evident, and checking it easy, is Kingsbury and Alvaro's observation.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate, chain
from operator import attrgetter
from typing import NamedTuple

from kode_lab.errors import InvalidRecord
from kode_lab.history.digest import prefix_digests
from kode_lab.history.operation import Operation
from kode_lab.key import SessionKey

__all__ = ["Case", "case_of"]

_NOBODY = SessionKey("", "", "")
_read, _answered, _invoke, _foreign, _half = map(
    attrgetter, ("read", "answered", "invoke_ns", "foreign", "half")
)
# Stands for the turn of a marker that nobody sent: it contradicts no time.
_UNKNOWN = Operation(_NOBODY, "turn", "", "info", -math.inf, math.inf)  # type: ignore[arg-type]


class Case(NamedTuple):
    """One session's evidence.

    Attributes:
        turns: each turn by its marker; attempts at one turn are merged into one operation.
        attempts: the attempts at turns that were tried more than once, as they were.
        replays: pairs of acknowledged attempts at one turn that were shown different sessions.
        odd: all operations that tell of foreign markers, of halves of turns, or of other prompts.
        reads: authoritative ``ok`` reads, by their invoke.
        final: the last of them, or None.
        order: the session's own markers in their one order, as ``final`` tells and turns continue.
        place: where in ``order`` each marker stands first.
        digests: the digest of each prefix of ``order``; one more than ``order`` is long.
        invokes: when the turn of each element of ``order`` was sent (minus infinity: unknown).
        completes: when it was acknowledged (infinity: never, as far as anyone knows).
        latest_invoke: the running maximum of ``invokes``.
        earliest_complete: the running minimum of ``completes`` from the end.
    """

    key: SessionKey
    turns: Mapping[str, Operation]
    attempts: tuple[Operation, ...]
    replays: tuple[tuple[Operation, Operation], ...]
    odd: tuple[Operation, ...]
    reads: tuple[Operation, ...]
    final: Operation | None
    order: Sequence[str]
    place: Mapping[str, int]
    digests: Sequence[int]
    invokes: Sequence[float]
    completes: Sequence[float]
    latest_invoke: Sequence[float]
    earliest_complete: Sequence[float]

    def own(self, markers: Iterable[str]) -> list[str]:
        """Return those of ``markers`` that belong to this session, sent or not."""
        return _own(markers, self.turns)

    def is_before_final(self, turn: Operation) -> bool:
        """Tell whether the last authoritative read must show an acknowledged turn."""
        return self.final is not None and turn.complete_ns < self.final.invoke_ns


def case_of(key: SessionKey, operations: Iterable[Operation]) -> Case:
    """Return one session's case from its operations, in any order.

    Raises:
        InvalidRecord: two turns share a marker, or one turn has two.
    """
    turns: dict[str, Operation] = {}
    retried: dict[str, list[Operation]] = {}
    reads: list[Operation] = []
    for operation in operations:
        if operation.f == "turn":
            if turns.setdefault(operation.marker, operation) is not operation:
                retried.setdefault(operation.marker, [turns[operation.marker]]).append(operation)
        elif operation.markers is not None and operation.type == "ok":
            reads.append(operation)
    replays: list[tuple[Operation, Operation]] = []
    for marker, tries in retried.items():
        turns[marker], disagreeing = _merged(marker, tries)
        replays += disagreeing
    reads.sort(key=lambda read: read.invoke_ns)
    attempts = tuple(chain.from_iterable(retried.values()))
    order, digests = _order(turns, reads)
    place = dict(zip(reversed(order), range(len(order) - 1, -1, -1), strict=True))
    known = [turns.get(marker, _UNKNOWN) for marker in order]
    completes = [turn.complete_ns if turn.type == "ok" else math.inf for turn in known]
    invokes = list(map(_invoke, known))
    latest_invoke = list(accumulate(invokes, max))
    earliest_complete = list(accumulate(reversed(completes), min))[::-1]
    tellers = (*turns.values(), *attempts, *reads)
    seen = [read for read in map(_read, tellers) if read is not None]
    odd: tuple[Operation, ...] = ()
    if any(map(_answered, tellers)) or any(map(_foreign, seen)) or any(map(_half, seen)):
        odd = tuple(
            o for o in tellers if o.answered or (o.read and (o.read.foreign or o.read.half))
        )
    return Case(
        key, turns, attempts, tuple(replays), odd, tuple(reads), reads[-1] if reads else None,
        order, place, digests, invokes, completes, latest_invoke, earliest_complete,
    )  # fmt: skip


def _merged(
    marker: str, attempts: list[Operation]
) -> tuple[Operation, list[tuple[Operation, Operation]]]:
    """Return the one operation that several attempts at a turn are, and attempts that disagree.

    It began with the first attempt that may have been accepted, and ended with the first
    acknowledgement. What an unacknowledged attempt was shown binds nobody: which attempt took
    effect, if any, cannot be known.
    """
    turn_id = attempts[0].turn_id
    if not turn_id or any(attempt.turn_id != turn_id for attempt in attempts):
        raise InvalidRecord(
            f"marker {marker!r:.60} is sent by two turns of {attempts[0].key}: give each turn a "
            "marker of its own, and all attempts at one turn the same turn_id"
        )
    accepted = [attempt for attempt in attempts if attempt.type != "fail"]
    acknowledged = sorted(
        (attempt for attempt in accepted if attempt.type == "ok"), key=lambda a: a.complete_ns
    )
    begun = min(attempt.invoke_ns for attempt in accepted or attempts)
    if not acknowledged:
        one = (accepted or attempts)[0]
        return one._replace(invoke_ns=begun, complete_ns=math.inf, read=None), []
    seen = [attempt for attempt in acknowledged if attempt.read is not None]
    first = seen[0] if seen else acknowledged[0]
    whole = first._replace(invoke_ns=begun, complete_ns=acknowledged[0].complete_ns)
    return whole, [(first, other) for other in seen[1:] if _view(other) != _view(first)]


def _view(attempt: Operation) -> tuple[int, int] | None:
    return attempt.read and attempt.read[:2]


def _own(markers: Iterable[str], turns: Mapping[str, Operation]) -> list[str]:
    listed = list(markers)
    if turns.keys() >= set(listed):
        return listed
    # A marker nobody sent is still this session's if it carries the session's tag (``marker_of``).
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

    for turn in sorted(beyond, key=claim):
        assert turn.read is not None
        missing = turn.read.position - len(order)
        if not 0 <= missing <= len(turn.read.tail):
            continue
        # What nobody read and nobody acknowledged may still be named by the next turn's tail.
        bridge = list(turn.read.tail[len(turn.read.tail) - missing :])
        added = prefix_digests([*bridge, turn.marker], digests[-1])
        if added[-2] == turn.read.digest:
            order += [*bridge, turn.marker]
            digests += added[1:]
