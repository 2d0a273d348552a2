"""A history as columns: what both screens walk through instead of a million objects.

Each turn is a row, in the order of the history; what is no turn stays an operation. The columns are
arrays of the standard library, filled a portion at a time, best while the history is read and its
objects are still in the processor's cache: a later walk through them costs more than the judging.

It owns filling them, and knows nothing of rules. What no column holds (times that are no integers,
an operation that ends before it begins) leaves a history without columns, for the rules to hear.
"""

from __future__ import annotations

from array import array
from collections import defaultdict
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from functools import reduce
from itertools import compress, count, islice
from operator import iconcat, lt
from typing import Any, NamedTuple

from kode_lab.check.verdict import Evidence
from kode_lab.history.operation import NEMESIS, Operation, Read
from kode_lab.key import SessionKey

__all__ = ["FAIL", "INFO", "NEVER_NS", "OK", "Columns", "History", "Screened", "history_of"]

# Later than every time that leaves room to put sessions one after another.
NEVER_NS = 2**62
OK, INFO, FAIL = 0, 1, 2
_TYPES = {"ok": OK, "info": INFO, "fail": FAIL}
# So many operations at once that they stay in the cache from their first column to the last.
_PORTION = 1_024
_WIDTH, _READ_WIDTH = len(Operation._fields), len(Read._fields)
_KIND = Operation._fields.index("f")
_WANTED = tuple(
    map(
        Operation._fields.index,
        ("key", "type", "invoke_ns", "complete_ns", "marker", "read", "answered"),
    )
)
_RARE = tuple(map(Operation._fields.index, ("config", "effects")))


@dataclass(slots=True)
class Columns:
    """The turns of a history, a row each, and what is beside them.

    Attributes:
        numbers: of the sessions, by their keys.
        session: the number of the turn's session.
        type: ``OK``, ``INFO`` or ``FAIL``.
        complete: when it was acknowledged; ``NEVER_NS`` if it was not.
        hash: of its marker, as Python hashes words: two that differ may share one.
        reads: what it was shown, or None.
        position: where it says that it stands; -1 if nobody observed it.
        digest: of what it says stands before it; 0 if nobody observed it.
        others: the operations of sessions that are no turns.
        faults: what the nemesis did.
        strange: sessions with turns that were shown strangers or halves of turns, or whose replies
            answer other prompts.
        is_plain: whether nothing told of effects or configurations.
    """

    numbers: dict[SessionKey, int] = field(default_factory=lambda: defaultdict(count().__next__))
    session: array[int] = field(default_factory=lambda: array("q"))
    type: bytearray = field(default_factory=bytearray)
    invoke: array[int] = field(default_factory=lambda: array("q"))
    complete: array[int] = field(default_factory=lambda: array("q"))
    markers: list[str] = field(default_factory=list)
    hash: array[int] = field(default_factory=lambda: array("q"))
    reads: list[Read | None] = field(default_factory=list)
    position: array[int] = field(default_factory=lambda: array("q"))
    digest: array[int] = field(default_factory=lambda: array("Q"))
    others: list[Operation] = field(default_factory=list)
    faults: list[Operation] = field(default_factory=list)
    strange: set[int] = field(default_factory=set)
    is_plain: bool = True


class History(NamedTuple):
    """Operations, and the same as columns, or None where these cannot hold them."""

    operations: list[Operation]
    columns: Columns | None


class Screened(NamedTuple):
    """What a screening gave.

    Attributes:
        evidence: what there is in the cleared sessions.
        suspects: the sessions that are left to be heard.
    """

    evidence: Evidence
    suspects: Collection[SessionKey]


def history_of(operations: Iterable[Operation]) -> History:
    """Return operations with their columns, which are filled as the operations come."""
    kept: list[Operation] = []
    columns: Columns | None = Columns()
    rest = iter(operations)
    while portion := list(islice(rest, _PORTION)):
        kept += portion
        try:
            if columns is not None and not _filled(columns, portion):
                columns = None
        except (OverflowError, TypeError, KeyError):
            columns = None
    if columns is not None:
        _suspect_shown_refusals(columns)
    return History(kept, columns)


def _filled(columns: Columns, portion: list[Operation]) -> bool:
    """Append a portion; give False if it has a turn that ends before it begins, or what is none."""
    fields: list[Any] = reduce(iconcat, portion, [])
    if fields[_KIND::_WIDTH].count("turn") < len(portion):
        if not _set_aside(columns, portion):
            return False
        portion = [operation for operation in portion if operation.f == "turn"]
        fields = reduce(iconcat, portion, [])
    size = len(portion)
    keys, types, invokes, completes, markers, reads, answered = (
        fields[at::_WIDTH] for at in _WANTED
    )
    configs, effects = (fields[at::_WIDTH] for at in _RARE)
    if configs.count("") < size or effects.count(None) < size:
        columns.is_plain &= not (any(configs) or any(effects))
    if any(map(lt, completes, invokes)):
        return False
    if types.count("ok") < size:
        completes = [
            complete if kind == "ok" else NEVER_NS
            for complete, kind in zip(completes, types, strict=True)
        ]
    numbers = list(map(columns.numbers.__getitem__, keys))
    columns.session.fromlist(numbers)
    columns.type += bytes(map(_TYPES.__getitem__, types))
    columns.invoke.fromlist(invokes)
    columns.complete.fromlist(completes)
    columns.markers += markers
    columns.hash.fromlist(list(map(hash, markers)))
    columns.reads += reads
    _fill_reads(columns, reads, numbers)
    if answered.count("") < size:
        odd = [bool(a) and a != own for a, own in zip(answered, markers, strict=True)]
        columns.strange.update(compress(numbers, odd))
    return True


def _set_aside(columns: Columns, portion: list[Operation]) -> bool:
    """Keep what is no turn; give False if the nemesis acted within a session."""
    for operation in portion:
        if operation.process == NEMESIS:
            if any(operation.key) or operation.f == "turn":
                return False
            columns.faults.append(operation)
        elif operation.f != "turn":
            columns.others.append(operation)
            columns.numbers[operation.key]  # the session exists, though it may have no turn
            columns.is_plain &= not (operation.effects or operation.config)
    return True


def _fill_reads(columns: Columns, reads: list[Read | None], numbers: list[int]) -> None:
    seen: list[Any] = reads
    positions: list[int] = []
    if reads.count(None):
        positions = [-1 if read is None else read.position for read in reads]
        columns.digest.fromlist([0 if read is None else read.digest for read in reads])
        seen = [read for read in reads if read is not None]
    fields: list[Any] = reduce(iconcat, seen, [])
    if not positions:
        positions = fields[0::_READ_WIDTH]
        columns.digest.fromlist(fields[1::_READ_WIDTH])
    columns.position.fromlist(positions)
    if fields[3::_READ_WIDTH].count(()) < len(seen) or fields[4::_READ_WIDTH].count(()) < len(seen):
        odd = [bool(read is not None and (read.foreign or read.half)) for read in reads]
        columns.strange.update(compress(numbers, odd))


def _suspect_shown_refusals(columns: Columns) -> None:
    """Call the sessions strange in which a refused turn was shown to another one."""
    if FAIL not in columns.type:
        return
    refused = {m for m, kind in zip(columns.markers, columns.type, strict=True) if kind == FAIL}
    columns.strange.update(
        number
        for number, read in zip(columns.session, columns.reads, strict=True)
        if read is not None and not refused.isdisjoint(read.tail)
    )
