"""A history as columns, a row an operation: what the screen walks through instead of objects.

Columns are filled from operations, or straight from the lines of a file without an object for each
operation. A row knows where its lines are, so the few operations that the rules must hear are read
again from there. Columns of a file can be kept beside it (``kode-lab check --keep``) and are then
loaded instead of decoding it again, if its bytes are still the same.

It owns filling, pairing and keeping, and knows nothing of rules.
"""

from __future__ import annotations

import json
import math
import os
import zlib
from array import array
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import chain, count
from pathlib import Path
from typing import Any

import numpy as np
from msgspec import UNSET
from numpy.typing import NDArray

from kode_lab.check.evidence import CUT_SHORT
from kode_lab.check.lines import Chunk, chunks_of, decode
from kode_lab.errors import InvalidKey, InvalidRecord
from kode_lab.history.digest import MULTIPLIER, digest_of, hash_of
from kode_lab.history.event import DIGEST
from kode_lab.history.operation import DECLARATIONS, NEMESIS, NO_DETAILS, Operation
from kode_lab.history.reader import CLOCK_SKEW_LIMIT_S, DEFAULT_AGENT, operations_in
from kode_lab.key import SessionKey

__all__ = [
    "DECLARED",
    "EFFECTS",
    "FAIL",
    "INFO",
    "KEPT_SUFFIX",
    "NEVER_NS",
    "OK",
    "READ",
    "TURN",
    "Columns",
    "columns_beside",
    "columns_of",
    "hashes_of",
    "kept_columns",
    "read_columns",
]

Ints = NDArray[np.int64]
Words = NDArray[np.uint64]
Flags = NDArray[np.bool_]

# Later than every time that leaves room to put sessions one after another.
NEVER_NS = 2**62
OK, INFO, FAIL = 0, 1, 2
TURN, READ, EFFECTS, DECLARED = 0, 1, 2, 3
_EDIT = 4  # in a line; in a column it is a turn that only the rules understand
KEPT_SUFFIX = ".columns.npz"
_TYPES = {"ok": OK, "info": INFO, "fail": FAIL}
_KINDS: dict[Any, int] = {"turn": TURN, "read": READ, "effects": EFFECTS, "edit": _EDIT}
_KINDS |= dict.fromkeys(DECLARATIONS, DECLARED)
_VERSION = 1
# So many markers at once that their bytes and words stay in the cache.
_PORTION = 4_096


@dataclass(slots=True)
class Columns:
    """The operations of a history, a row each.

    Attributes:
        keys: of the sessions, by their numbers.
        session: the number of the operation's session.
        kind: ``TURN``, ``READ``, ``EFFECTS`` or ``DECLARED``.
        type: ``OK``, ``INFO`` or ``FAIL``.
        invoke, complete: nanoseconds; ``NEVER_NS`` where nothing ever came.
        marker: the hash of its marker (``hash_of``).
        position: where a turn says that it stands; -1 if it does not say.
        digest: of what it says stands before it.
        is_loose: it tells its position without a digest.
        config: the number of its configuration in ``configs``; 0 for none.
        is_odd: it tells something that only the rules understand.
        is_shared: it tells of effects or tools, which are judged over all sessions.
        is_timed: the model's side recorded its calls.
        list_start, list_length: of a read's markers in ``elements``; length -1 if it has none.
        elements: the hashes of the markers of all lists, end to end.
        faults: what the nemesis did.
        fetch: returns the operations of some rows.
    """

    keys: list[SessionKey]
    session: Ints
    kind: NDArray[np.int8]
    type: NDArray[np.int8]
    invoke: Ints
    complete: Ints
    marker: Words
    position: Ints
    digest: Words
    is_loose: Flags
    config: Ints
    configs: list[str]
    is_odd: Flags
    is_shared: Flags
    is_timed: Flags
    list_start: Ints
    list_length: Ints
    elements: Words
    faults: list[Operation]
    fetch: Callable[[Ints], list[Operation]]

    def of_rows(self, rows: Ints) -> Columns:
        """Return the columns of some rows; their lists stay where they are."""
        if len(rows) == len(self.session):
            return self
        taken = {name: getattr(self, name)[rows] for name in _KEPT if name != "elements"}
        return replace(self, **taken)

    def of_sessions(self, wanted: Flags) -> list[Operation]:
        """Return the operations of the sessions whose numbers are marked."""
        return self.fetch(np.flatnonzero(wanted[self.session]))


def hashes_of(markers: Sequence[str]) -> Words:
    """Return ``hash_of`` of each marker, in one pass for markers of one length."""
    hashes = np.empty(len(markers), np.uint64)
    for start in range(0, len(markers), _PORTION):
        portion = markers[start : start + _PORTION]
        hashes[start : start + _PORTION] = _hashes(portion)
    return hashes


def _hashes(markers: Sequence[str]) -> Words:
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


# ---- from operations


def columns_of(operations: Sequence[Operation]) -> Columns | None:
    """Return operations as columns, or None if no column can hold one of them."""
    faults = [o for o in operations if o.process == NEMESIS]
    rows = [o for o in operations if o.process != NEMESIS] if faults else operations
    if any(fault.f == "turn" or any(fault.key) for fault in faults):
        return None
    numbers: dict[SessionKey, int] = defaultdict(count().__next__)
    configs: dict[str, int] = defaultdict(count(1).__next__)
    lists = [o.markers if o.type == "ok" else None for o in rows]
    reads = [o.read if o.f == "turn" else None for o in rows]
    ended = [NEVER_NS if o.complete_ns == math.inf else o.complete_ns for o in rows]
    try:
        return Columns(
            session=_ints([numbers[o.key] for o in rows]),
            keys=list(numbers),
            kind=_bytes([_KINDS[o.f] for o in rows]),
            type=_bytes([_TYPES[o.type] for o in rows]),
            invoke=_ints([o.invoke_ns for o in rows]),
            complete=_ints(ended),
            marker=hashes_of([o.marker for o in rows]),
            position=_ints([-1 if r is None else r.position for r in reads]),
            digest=np.array([0 if r is None else r.digest or 0 for r in reads], np.uint64),
            is_loose=_flags([r is not None and r.digest is None for r in reads]),
            config=_ints([configs[o.config] if o.config else 0 for o in rows]),
            configs=["", *configs],
            is_odd=_flags(map(_is_odd, rows)),
            is_shared=_flags(o.effects is not None or o.details.tools is not None for o in rows),
            is_timed=_flags(bool(o.details.model and o.details.model.calls) for o in rows),
            **_laid_out(lists),
            faults=faults,
            fetch=lambda wanted: [rows[at] for at in wanted.tolist()],
        )
    except (OverflowError, TypeError, KeyError):
        return None


def _is_odd(operation: Operation) -> bool:
    details, read = operation.details, operation.read
    if operation.answered not in ("", operation.marker):
        return True
    if read is not None and (
        read.foreign or read.half or read.after or read.is_suffix or read.markers is not None
        or operation.f != "turn" or (read.digest is None and read.tail)
    ):  # fmt: skip
        return True
    model = details.model
    return operation.is_suffix or operation.f in DECLARATIONS or bool(
        details is not NO_DETAILS
        and (
            details.merged or details.into or details.streamed or details.is_rolled_back
            or details.replaces
            or (model and is_telling(model.stop_reason, model.configs, model.tool_results))
        )
    )  # fmt: skip


def is_telling(
    stop_reason: str | None, configs: Sequence[str], tool_results: Iterable[Sequence[str]]
) -> bool:
    """Whether what the model's side recorded of a turn may show an anomaly of its own."""
    return (
        stop_reason in CUT_SHORT
        or len(set(configs)) > 1
        or any(asked != answers for asked, answers in tool_results)
    )


def _ints(values: Sequence[float]) -> Ints:
    """Return integers as a column; unlike numpy's own way, a float is refused, not cut off."""
    return np.frombuffer(array("q", values), np.int64)


def _bytes(values: Sequence[int]) -> NDArray[np.int8]:
    return np.frombuffer(bytes(values), np.int8)


def _flags(values: Iterable[bool]) -> Flags:
    return np.fromiter(values, np.bool_)


def _hashes_or_zero(markers: Sequence[Any]) -> Words:
    """Return the hash of each marker, 0 for an empty or an absent one."""
    told = [marker for marker in markers if marker]
    if len(told) == len(markers):
        return hashes_of(told)
    hashes = np.zeros(len(markers), np.uint64)
    if told:
        hashes[_flags(map(bool, markers))] = hashes_of(told)
    return hashes


def _laid_out(lists: Sequence[Sequence[str] | None]) -> dict[str, Any]:
    lengths = _ints([-1 if one is None else len(one) for one in lists])
    sizes = np.maximum(lengths, 0)
    return {
        "list_start": np.cumsum(sizes) - sizes,
        "list_length": lengths,
        "elements": hashes_of(list(chain.from_iterable(one for one in lists if one))),
    }


# ---- from the lines of a file


class _Refused(Exception):
    """Raised where the careful reader must say what is wrong, or read the file itself."""


class _Column:
    """A column that grows: in one piece, so that no memory is left in pieces."""

    __slots__ = ("data", "dtype")

    def __init__(self, dtype: np.dtype[Any]) -> None:
        self.data, self.dtype = bytearray(), dtype


def read_columns(path: Path) -> Columns | None:
    """Return a file's columns, or None if the careful reader must read it."""
    rows: dict[str, _Column] = {}
    numbers: dict[tuple[Any, ...], int] = defaultdict(count().__next__)
    configs: dict[str, int] = defaultdict(count(1).__next__)
    clocks: set[Any] = set()
    line = 1
    try:
        for at, data in chunks_of(path):
            chunk = decode(data, line)
            clocks.update(chunk.invokes["clock"])
            columns = _columns_of(chunk, numbers, configs)
            columns["at"] = chunk.offsets + at
            columns["line"] = (chunk.numbers + line).astype(np.int32)
            for name, column in columns.items():
                rows.setdefault(name, _Column(column.dtype)).data += column.tobytes()
            line += data.count(b"\n")
        if len(clocks - {UNSET, None}) > 1 or not rows:
            return None
        events = {name: np.frombuffer(one.data, one.dtype) for name, one in rows.items()}
        rows.clear()
        return _paired(path, events, numbers, ["", *configs])
    except (_Refused, InvalidRecord, InvalidKey, OverflowError, KeyError, TypeError):
        return None


def _columns_of(
    chunk: Chunk, numbers: dict[tuple[Any, ...], int], configs: dict[str, int]
) -> dict[str, NDArray[Any]]:
    """Return a chunk as columns: of all events, of the invokes, and of the completions."""
    event = np.frombuffer(chunk.kinds, np.int8)
    process, time_ns = np.empty(len(event), np.int64), np.empty(len(event), np.int64)
    for mask, fields in ((event == 0, chunk.invokes), (event != 0, chunk.dones)):
        process[mask] = np.fromiter(map(hash, fields["process"]), np.int64)
        time_ns[mask] = _ints(fields["time_ns"])
    if len(time_ns) and time_ns.min() < 0:
        raise _Refused
    fields = chunk.invokes
    size = len(fields["process"])
    keys = zip(fields["user_id"], fields["session_id"], fields["agent_id"], strict=True)
    kinds = np.zeros(size, np.int8)
    if fields["f"].count("turn") < size:
        kinds = _bytes([_KINDS[f or "turn"] for f in fields["f"]])
    marker = _hashes_or_zero(fields["marker"])
    if ((marker == 0) & ((kinds == TURN) | (kinds == _EDIT))).any():
        raise _Refused
    return {
        "event": event,
        "process": process,
        "time": time_ns,
        "session": _ints(list(map(numbers.__getitem__, keys))).astype(np.int32),
        "kind": np.where(kinds == _EDIT, TURN, kinds),
        "marker": marker,
        "odd_invoke": _flags(chunk.odd_invokes or [False] * size) | (kinds >= DECLARED),
        **_done_columns(chunk, configs),
    }


def _done_columns(chunk: Chunk, configs: dict[str, int]) -> dict[str, NDArray[Any]]:
    fields = chunk.dones
    size = len(fields["process"])
    absent = {name: column.count(UNSET) == size for name, column in fields.items()}
    nothing = np.zeros(size, np.bool_)
    is_odd = _flags(chunk.odd_dones) if chunk.odd_dones else nothing.copy()
    position, digest = np.full(size, -1, np.int64), np.zeros(size, np.uint64)
    is_loose, is_timed, is_shared = nothing.copy(), nothing, nothing
    if any(chunk.has_read):
        has_read = _flags(chunk.has_read)
        position[has_read], digest[has_read], is_loose[has_read], odd = _read_columns(chunk.reads)
        is_odd[has_read] |= odd
    if not absent["model"]:
        is_timed, telling = _model_columns(fields["model"])
        is_odd |= telling
    if not absent["effects"] or not absent["tools"]:
        told = [one for effects in fields["effects"] if effects for one in effects]
        if any(not one.id for one in told):
            raise _Refused
        is_shared = _flags(isinstance(one, list) for one in fields["effects"])
        is_shared |= _flags(isinstance(one, list) for one in fields["tools"])
    config = np.zeros(size, np.int32)
    if not absent["config"]:
        config = _ints([configs[c] if c else 0 for c in fields["config"]]).astype(np.int32)
    lists: dict[str, Any] = {"list_length": np.full(size, -1), "elements": np.zeros(0, np.uint64)}
    if not absent["markers"]:
        lists = _laid_out([one if isinstance(one, list) else None for one in fields["markers"]])
    return {
        "position": position,
        "digest": digest,
        "is_loose": is_loose,
        "odd_done": is_odd,
        "answered": _hashes_or_zero(fields["answered"]),
        "config": config,
        "is_shared": is_shared,
        "is_timed": is_timed,
        "list_length": lists["list_length"].astype(np.int32),
        "elements": lists["elements"],
    }


def _model_columns(models: Sequence[Any]) -> tuple[Flags, Flags]:
    """Return which completions tell of the model's calls, and which of what the rules must see."""
    calls = [call for model in models if model for call in model.calls or ()]
    if any(not 0 <= start <= end < NEVER_NS for start, end in calls):
        raise _Refused
    return _flags(bool(model and model.calls) for model in models), _flags(
        bool(model) and is_telling(model.stop_reason, model.configs or (), model.tool_results or ())
        for model in models
    )


def _read_columns(reads: dict[str, list[Any]]) -> tuple[Ints, Words, Flags, Flags]:
    """Return position, digest, whether there is no digest, and whether the rules must look."""
    size = len(reads["position"])
    is_odd = np.zeros(size, np.bool_)
    for name in ("foreign", "half", "after", "suffix", "markers"):
        if reads[name].count(UNSET) < size:
            is_odd |= _flags(map(bool, reads[name]))
            is_odd |= _flags(name == "markers" and isinstance(one, list) for one in reads[name])
    positions = reads["position"]
    if positions.count(UNSET) or positions.count(None):
        positions = [-1 if one is UNSET or one is None else one for one in positions]
    position = _ints(positions)
    if ((position < 0) & ~is_odd).any():
        raise _Refused
    digests = reads["digest"]
    is_loose = np.zeros(size, np.bool_)
    if set(map(type, digests)) != {str}:
        is_loose = _flags(not isinstance(one, str) for one in digests)
        digests = [one if isinstance(one, str) else "0" for one in digests]
    digest = _digests(digests)
    tails = reads["tail"]
    is_listed = not (tails.count(UNSET) or tails.count(None))
    lengths = _ints(list(map(len, tails if is_listed else [one or () for one in tails])))
    if ((lengths > position) & ~is_odd).any():
        raise _Refused
    is_odd |= is_loose & (lengths > 0) & (lengths < position)
    for at in np.flatnonzero(lengths == position):
        value = digest_of(tails[at] or ())
        if not is_loose[at] and value != digest[at] and not is_odd[at]:
            raise _Refused
        digest[at], is_loose[at] = value, False
    return position, digest, is_loose, is_odd


def _digests(digests: Sequence[str]) -> Words:
    joined = "".join(digests)
    if len(joined) == 16 * len(digests) and set(map(len, digests)) == {16}:
        with suppress(ValueError):
            data = bytes.fromhex(joined)
            if len(data) == 8 * len(digests):  # no white space, which fromhex passes over
                return np.frombuffer(data, ">u8").astype(np.uint64)
    if not all(map(DIGEST.fullmatch, digests)):
        raise _Refused
    return np.array([int(digest, 16) for digest in digests], np.uint64)


def _paired(
    path: Path,
    events: dict[str, NDArray[Any]],
    numbers: dict[tuple[Any, ...], int],
    configs: list[str],
) -> Columns:
    """Return the columns of the operations that the events are the beginnings and ends of."""
    time_ns = events.pop("time")
    if not len(time_ns):
        raise _Refused
    if (np.maximum.accumulate(time_ns) - time_ns).max() > CLOCK_SKEW_LIMIT_S * 1_000_000_000:
        raise _Refused
    event, process = events.pop("event"), events.pop("process")
    invoked, done = _matched(event, process, time_ns)
    at, line = events.pop("at"), events.pop("line")
    faults = np.flatnonzero(process == hash(NEMESIS))
    del process
    # Where each event stands among the invokes, or among the completions.
    is_done = done >= 0
    row = np.cumsum(event == 0, dtype=np.int32)[invoked] - 1
    own = np.cumsum(event != 0, dtype=np.int32)[done[is_done]] - 1

    def of_invoke(name: str) -> NDArray[Any]:
        column: NDArray[Any] = events.pop(name)[row]
        return column

    def of_done(name: str, default: int = 0) -> NDArray[Any]:
        column = events.pop(name)
        filled = np.full(len(row), default, column.dtype)
        filled[is_done] = column[own]
        return filled

    def of_event(column: NDArray[Any], default: int) -> NDArray[Any]:
        filled = np.full(len(row), default, column.dtype)
        filled[is_done] = column[done[is_done]]
        return filled

    sizes = np.maximum(events["list_length"], 0).astype(np.int64)
    starts = np.cumsum(sizes) - sizes
    events["list_start"] = starts
    types = np.full(len(row), INFO, np.int8)
    types[is_done] = np.array([INFO, OK, INFO, FAIL], np.int8)[event[done[is_done]]]
    kind, length = of_invoke("kind"), of_done("list_length", -1)
    if ((length >= 0) & (kind != READ)).any():
        raise _Refused
    length[types != OK] = -1
    keys, session = _sessions(numbers, of_invoke("session"))
    position = of_done("position", -1)
    marker, answered = of_invoke("marker"), of_done("answered")
    is_odd = of_invoke("odd_invoke") | of_done("odd_done") | ((position >= 0) & (kind != TURN))
    is_odd |= (answered != 0) & (answered != marker)
    del answered
    of_file = (at[invoked], of_event(at, -1), line[invoked], of_event(line, -1))
    fetch = _Fetch(path, *of_file, at[faults], line[faults])
    return Columns(
        keys=keys,
        session=session,
        kind=kind,
        type=types,
        invoke=time_ns[invoked],
        complete=of_event(time_ns, NEVER_NS),
        marker=marker,
        position=position,
        digest=of_done("digest"),
        is_loose=of_done("is_loose"),
        config=of_done("config"),
        configs=configs,
        is_odd=is_odd,
        is_shared=of_done("is_shared"),
        is_timed=of_done("is_timed"),
        list_start=of_done("list_start"),
        list_length=length,
        elements=events.pop("elements"),
        faults=fetch.faults(),
        fetch=fetch,
    )


def _matched(
    event: NDArray[np.int8], process: Ints, time_ns: Ints
) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Return the event that begins each operation, and the one that ends it, or -1.

    Raises:
        _Refused: a process invokes twice, completes nothing, or goes back in time.
    """
    order = np.argsort(process, kind="stable").astype(np.int32)
    order = order[process[order] != hash(NEMESIS)]
    same = process[order[1:]] == process[order[:-1]]
    is_invoke = event[order] == 0
    later = time_ns[order[1:]] >= time_ns[order[:-1]]
    follows = same & is_invoke[:-1]
    ends_one = np.zeros(len(order), np.bool_)
    ends_one[1:] = follows & ~is_invoke[1:]
    if (follows & is_invoke[1:]).any() or (~is_invoke & ~ends_one).any() or (same & ~later).any():
        raise _Refused
    ended = np.full(len(event), -1, np.int32)
    at = np.flatnonzero(ends_one)
    ended[order[at - 1]] = order[at]
    invoked = np.flatnonzero(event == 0).astype(np.int32)
    return invoked, ended[invoked]


def _sessions(
    numbers: dict[tuple[Any, ...], int], session: NDArray[np.int32]
) -> tuple[list[SessionKey], Ints]:
    """Return the keys of the sessions, and the numbers of the same ones made equal."""
    known: dict[SessionKey, int] = defaultdict(count().__next__)
    meant = [
        known[SessionKey.of(user or "", agent or DEFAULT_AGENT, named or None)]
        for user, named, agent in numbers
    ]
    return list(known), _ints(meant)[session]


@dataclass(frozen=True, slots=True)
class _Fetch:
    """Returns the operations of some rows, read again from their lines."""

    path: Path
    invoke_at: Ints
    complete_at: Ints
    invoke_line: NDArray[np.int32]
    complete_line: NDArray[np.int32]
    fault_at: Ints
    fault_line: NDArray[np.int32]

    def faults(self) -> list[Operation]:
        """Return what the nemesis did."""
        return list(_operations_at(self.path, self.fault_at, self.fault_line))

    def __call__(self, rows: Ints) -> list[Operation]:
        at = np.concatenate((self.invoke_at[rows], self.complete_at[rows]))
        line = np.concatenate((self.invoke_line[rows], self.complete_line[rows]))
        return list(_operations_at(self.path, at[at >= 0], line[at >= 0]))


def _operations_at(path: Path, at: Ints, line: NDArray[np.int32]) -> Iterator[Operation]:
    order = np.argsort(line)
    with path.open("rb") as file:

        def lines() -> Iterator[tuple[int, str]]:
            for start, number in zip(at[order].tolist(), line[order].tolist(), strict=True):
                file.seek(start)
                yield number, file.readline().decode()

        yield from operations_in(lines())


# ---- kept beside the file

_KEPT = (
    *("session", "kind", "type", "invoke", "complete", "marker", "position", "digest", "is_loose"),
    *("config", "is_odd", "is_shared", "is_timed", "list_start", "list_length"),
    "elements",
)
_AT = ("invoke_at", "complete_at", "invoke_line", "complete_line", "fault_at", "fault_line")


def columns_beside(path: Path, *, keep: bool = False) -> Columns | None:
    """Return a file's columns, from beside it if they are those of its bytes.

    None, if the careful reader must read it.

    Args:
        keep: write them beside it if they are not there.
    """
    columns = kept_columns(path)
    if columns is None:
        before = path.stat()
        columns = read_columns(path)
        if keep and columns is not None:
            with suppress(OSError):  # a directory that cannot be written is judged all the same
                _keep(path, columns, before)
    return columns


def _keep(path: Path, columns: Columns, before: os.stat_result) -> None:
    assert isinstance(columns.fetch, _Fetch)
    arrays = {name: getattr(columns, name) for name in _KEPT}
    arrays |= {name: getattr(columns.fetch, name) for name in _AT}
    about = {
        "version": _VERSION,
        "bytes": before.st_size,
        "crc32": _checksum(path),
        "keys": columns.keys,
        "configs": columns.configs,
    }
    after = path.stat()
    if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
        return  # it is still being written
    kept = path.with_name(path.name + KEPT_SUFFIX)
    written = kept.with_name(f"{kept.name}.{os.getpid()}.part")
    with written.open("wb") as file:
        np.savez(file, about=np.frombuffer(json.dumps(about).encode(), np.uint8), **arrays)
    written.replace(kept)


def kept_columns(path: Path) -> Columns | None:
    """Return the columns that are kept beside a history, if they are those of its bytes."""
    kept = path.with_name(path.name + KEPT_SUFFIX)
    try:
        with np.load(kept, allow_pickle=False) as arrays:
            about = json.loads(arrays["about"].tobytes())
            is_same = (about["version"], about["bytes"]) == (_VERSION, path.stat().st_size)
            if not is_same or about["crc32"] != _checksum(path):
                return None
            fetch = _Fetch(path, *(arrays[name] for name in _AT))
            return Columns(
                keys=[SessionKey(*key) for key in about["keys"]],
                configs=about["configs"],
                faults=fetch.faults(),
                fetch=fetch,
                **{name: arrays[name] for name in _KEPT},
            )
    except (OSError, ValueError, KeyError, TypeError, InvalidRecord):
        return None


def _checksum(path: Path) -> int:
    value = 0
    with path.open("rb") as file:
        while data := file.read(1 << 20):
            value = zlib.crc32(data, value)
    return value
