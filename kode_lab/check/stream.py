"""From a file to a verdict: lines read with suspicion, files larger than memory, exit status.

A file larger than ``MEMORY_LIMIT_BYTES`` is heard in portions: its operations are dealt to spool
files by session, so that each portion holds its sessions whole, and memory holds one portion.

    0  valid      1  invalid      2  unknown      3  the input cannot be used
"""

from __future__ import annotations

import json
import marshal
import sys
import tempfile
from collections.abc import Collection, Iterable, Iterator
from contextlib import ExitStack
from hashlib import blake2b
from pathlib import Path
from typing import Any, BinaryIO

from kode_lab.check.columns import history_of
from kode_lab.check.judge import Hearing, check
from kode_lab.check.verdict import Verdict
from kode_lab.errors import InvalidRecord
from kode_lab.history.operation import NEMESIS, Effect, Operation, Read
from kode_lab.history.reader import numbered_operations
from kode_lab.history.span import read_spans
from kode_lab.key import SessionKey

__all__ = ["check_path", "lines_of", "main"]

# Operations in memory take about five times their lines.
MEMORY_LIMIT_BYTES = 200_000_000
# The final read of a hundred thousand turns has two million characters; this is no read any more.
LINE_LIMIT_BYTES = 32_000_000
# Portions are two open files each while they are dealt to.
PORTION_LIMIT = 128


def main(
    path: Path,
    *,
    as_json: bool = False,
    guarantees: Collection[str] | None = None,
    overtaking_limit: int | None = None,
) -> int:
    """Print the verdict on a run's directory or a history's file, and give the exit status.

    Raises:
        InvalidRecord: the input cannot be used; names the line and the reason (exit status 3).
    """
    verdict = check_path(path, guarantees, overtaking_limit=overtaking_limit)
    if as_json:
        sys.stdout.write(json.dumps(verdict.to_json(), ensure_ascii=False, indent=1) + "\n")
    else:
        sys.stdout.write(f"{verdict}\n")
    return verdict.exit_status


def check_path(
    path: Path,
    guarantees: Collection[str] | None = None,
    *,
    overtaking_limit: int | None = None,
    memory_limit_bytes: int = MEMORY_LIMIT_BYTES,
    engine: str = "auto",
) -> Verdict:
    """Return the verdict on ``path``: a history, or a directory with one and perhaps a trace.

    Args:
        memory_limit_bytes: a longer history is heard in portions.
        engine: as ``check`` has it; in portions, every session is heard by the rules.

    Raises:
        InvalidRecord: it cannot be read; names the line and the reason.
    """
    history, trace = path, None
    if path.is_dir():
        history, trace = path / "history.jsonl", path / "trace.jsonl"
    try:
        size_bytes = history.stat().st_size
    except OSError as error:
        raise InvalidRecord(f"{history.name} cannot be read: {error.strerror}") from None
    spans = None
    if trace is not None and trace.exists():
        try:
            spans = list(read_spans(lines_of(trace)))
        except InvalidRecord as error:
            raise InvalidRecord(f"{trace.name}: {error}") from None
    if size_bytes <= memory_limit_bytes:
        read = history_of(_unambiguous(numbered_operations(lines_of(history))))
        return check(read, spans, guarantees, overtaking_limit=overtaking_limit, engine=engine)
    portions = min(PORTION_LIMIT, 1 + 2 * size_bytes // memory_limit_bytes)
    with tempfile.TemporaryDirectory(prefix="kode-lab-check-") as spool:
        hearing = _heard_in_portions(history, Path(spool), int(portions), overtaking_limit)
    if spans is not None:
        hearing.hear_trace(spans)
    return hearing.verdict(guarantees)


def lines_of(path: Path) -> Iterator[str]:
    """Return a file's lines as text.

    A last line without its line break was cut when its writer died: it is as if it had never been
    written, unless it is whole.

    Raises:
        InvalidRecord: a line is not UTF-8, or longer than ``LINE_LIMIT_BYTES``.
    """
    number = 0
    try:
        file = path.open("rb")
    except OSError as error:
        raise InvalidRecord(f"{path.name} cannot be read: {error.strerror}") from None
    with file:
        while line := file.readline(LINE_LIMIT_BYTES + 1):
            number += 1
            if len(line) > LINE_LIMIT_BYTES:
                raise InvalidRecord(f"longer than LINE_LIMIT_BYTES={LINE_LIMIT_BYTES}", line=number)
            if not line.endswith(b"\n") and not _is_whole(line):
                return
            try:
                yield line.decode()
            except UnicodeDecodeError as error:
                raise InvalidRecord(f"not UTF-8: {error.reason}", line=number) from None


def _is_whole(line: bytes) -> bool:
    try:
        json.loads(line)
    except (ValueError, RecursionError):
        return False
    return True


def _unambiguous(numbered: Iterable[tuple[int, Operation]]) -> Iterator[Operation]:
    """Pass operations on, unless a marker is sent by two turns: then nobody can tell them apart."""
    sent: dict[str, tuple[SessionKey, str]] = {}
    for number, operation in numbered:
        if operation.marker:
            turn = operation.key, operation.turn_id
            if sent.setdefault(operation.marker, turn) is not turn and (
                not operation.turn_id or sent[operation.marker] != turn
            ):
                raise InvalidRecord(
                    f"marker {operation.marker!r:.60} was already sent by another turn; "
                    "attempts at one turn have one session and one turn_id",
                    line=number,
                )
        yield operation


def _heard_in_portions(history: Path, spool: Path, portions: int, limit: int | None) -> Hearing:
    faults: list[Operation] = []
    with ExitStack() as files:
        dealt = [files.enter_context((spool / f"{n}").open("wb")) for n in range(portions)]
        markers = [files.enter_context((spool / f"m{n}").open("wb")) for n in range(portions)]
        for number, operation in numbered_operations(lines_of(history)):
            if operation.process == NEMESIS:
                faults.append(operation)
                continue
            marshal.dump((number, *_plain(operation)), dealt[_portion(operation.key, portions)])
            if operation.marker:
                digest = blake2b(operation.marker.encode(), digest_size=8).digest()
                turn = repr((operation.key[:], operation.turn_id or number)).encode()
                entry = digest + blake2b(turn, digest_size=8).digest()
                markers[digest[0] % portions].write(entry + number.to_bytes(8, "big"))
    for n in range(portions):
        _refuse_reused((spool / f"m{n}").read_bytes())
    hearing = Hearing(faults, limit)
    for n in range(portions):
        hearing.hear(operation for _, operation in _spooled(spool / f"{n}"))
    hearing.settle(
        lambda wanted: (
            operation
            for n in range(portions)
            for _, operation in _spooled(spool / f"{n}")
            if operation.marker in wanted
        )
    )
    return hearing


def _refuse_reused(entries: bytes) -> None:
    sent: dict[bytes, bytes] = {}
    for at in range(0, len(entries), 24):
        marker, turn = entries[at : at + 8], entries[at + 8 : at + 16]
        if sent.setdefault(marker, turn) != turn:
            number = int.from_bytes(entries[at + 16 : at + 24])
            raise InvalidRecord(
                "its marker was already sent by another turn; attempts at one turn have one "
                "session and one turn_id",
                line=number,
            )


def _portion(key: SessionKey, portions: int) -> int:
    name = repr(key[:]).encode()
    return int.from_bytes(blake2b(name, digest_size=8).digest()) % portions


def _plain(operation: Operation) -> tuple[Any, ...]:
    """Return an operation as what ``marshal`` can write: tuples, texts and numbers."""
    plain: dict[str, Any] = operation._asdict()
    plain["key"] = tuple(operation.key)
    if operation.read is not None:
        plain["read"] = tuple(operation.read)
    if operation.effects is not None:
        plain["effects"] = tuple(map(tuple, operation.effects))
    return tuple(plain.values())


def _spooled(path: Path) -> Iterator[tuple[int, Operation]]:
    with path.open("rb") as file:
        while (fields := _next(file)) is not None:
            number, *rest = fields
            plain = Operation(*rest)
            effects = plain.effects
            operation = plain._replace(
                key=SessionKey(*plain.key),
                read=None if plain.read is None else Read(*plain.read),
                effects=None if effects is None else tuple(Effect(*effect) for effect in effects),
            )
            yield number, operation


def _next(file: BinaryIO) -> tuple[Any, ...] | None:
    try:
        fields: tuple[Any, ...] = marshal.load(file)  # noqa: S302 - we wrote it a moment ago
    except EOFError:
        return None
    return fields
