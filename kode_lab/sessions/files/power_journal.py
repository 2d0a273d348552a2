"""One journal for all sessions of a directory: what is in it survives a power cut.

Durability ``power`` means: logged before applied. A frame holds what one step writes to one
session's files; frames of all sessions gather while the disk is busy, and go down together with
one ``fdatasync`` (group commit). Only then do the session's own files follow, the turns of some
tenths of a second as one, and the system may write them back whenever it likes. After a power
cut the frames are applied again: each says where a file's new end begins, so applying twice is
applying once.

The journal is preallocated and written from its beginning; when it is full, the files that it
speaks of are synced, and it begins again with the next generation. A frame that is larger than all
of it makes it grow: a step that was refused could never be sealed either. It belongs to one process
at a time.

Frame: length, CRC-32, generation, sequence (4 + 4 + 4 + 4 bytes), then a JSON line saying
directory and tails, then the tails' bytes. The first frame that does not fit this chain is the
end. A frame of length 0 is at the beginning of an empty journal and keeps its generation, which
is never used again: else old frames that lie behind new ones of the same sizes would join them.

Source: redo logging and group commit, Gray and Reuter, "Transaction Processing" (1992); do not go
on after a failed fsync: Rebello et al., ATC 2020.
"""

from __future__ import annotations

import asyncio
import contextlib
import struct
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import repeat
from pathlib import Path

import orjson

from kode_lab.errors import StoreUnwritable
from kode_lab.sessions.files.disk import SCARCE, Disk, explained
from kode_lab.sessions.files.session_files import MESSAGES, TURNS, SessionFiles, Tail

__all__ = ["JOURNAL_BYTES", "PowerJournal", "generation_in"]

# Room for some 25,000 turns between two rounds of syncing the files themselves, which take 4 us of
# CPU a turn with half of it; recovering a full one takes two seconds.
JOURNAL_BYTES = 32 * 1024 * 1024
_FRAME = struct.Struct("<IIII")
_BLANK = bytes(64 * 1024)
# The sessions' own files follow after this, or when this much waits for one of them.
_CATCH_UP_S = 0.2
_DELAYED_BYTES = 256 * 1024
# A disk takes many syncs in the time of one; with 128 busy sessions, one by one, it would stop
# for a quarter of a second each time the journal is full.
_SYNCS_AT_ONCE = 16


class _Waiting:
    """One frame on its way down, and the task that waits for it."""

    __slots__ = ("done", "files", "is_down", "payload", "tails")

    def __init__(self, files: SessionFiles, tails: Sequence[Tail], payload: bytes) -> None:
        self.files = files
        self.tails = tails
        self.payload = payload
        self.is_down = False
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()


class PowerJournal:
    """The journal of one directory, open in one process.

    Making it applies what an earlier process left in it.

    Args:
        path: the journal's file.
        root: the directory of the sessions.
        disk: the file system.
        size_bytes: what is allocated for it.
        make_room: closes files when the process may open no more; returns whether it could.

    Raises:
        OSError: the file cannot be created or read.
    """

    def __init__(
        self,
        path: Path,
        root: Path,
        disk: Disk,
        *,
        size_bytes: int,
        make_room: Callable[[], bool] = lambda: False,
    ) -> None:
        self._make_room = make_room
        self._root = root
        self._root_chars = len(str(root)) + 1
        self._disk = disk
        self._fd = disk.open(path, create=True)
        self._generation = recover(self._fd, root, disk) + 1
        self._sequence = 0
        self._at = 0
        self._dirty: set[str] = set()
        self._behind: dict[str, SessionFiles] = {}
        self._catching_up: asyncio.TimerHandle | None = None
        self._queue: list[_Waiting] = []
        self._flusher: asyncio.Task[None] | None = None
        self._failure: str | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="kode-lab-journal")
        self._grow(size_bytes)
        _empty(self._fd, disk, self._generation)
        for place in (root, *root.absolute().parents):  # the root may be as new as what is in it
            with contextlib.suppress(PermissionError):
                disk.sync_directory(place)

    async def log(self, files: SessionFiles, tails: Sequence[Tail]) -> None:
        """Return when the tails survive a power cut, even if cancelled meanwhile.

        Raises:
            StoreUnwritable: the disk failed now or before; nothing more is acknowledged.
            asyncio.CancelledError: the caller was cancelled; the tails are down all the same.
        """
        if self._failure is not None:
            raise StoreUnwritable(f"{files.key}: {self._failure}")
        payload = _payload(files.path[self._root_chars :], files, tails)
        if _FRAME.size + len(payload) > self._size_bytes:
            try:
                self._grow(_FRAME.size + len(payload))
            except OSError as error:
                raise explained(f"{files.key}: a step of {len(payload)} bytes", error) from error
        waiting = _Waiting(files, tails, payload)
        files.expect(tails)
        self._queue.append(waiting)
        if self._flusher is None:
            self._flusher = asyncio.get_running_loop().create_task(self._flush())
        cancelled: asyncio.CancelledError | None = None
        while True:
            try:
                await waiting.done
                break
            except asyncio.CancelledError as error:
                cancelled = error
                if waiting.is_down:
                    break
                waiting.done = asyncio.get_running_loop().create_future()
        if cancelled is not None:
            raise cancelled

    async def aclose(self) -> None:
        """Write down what waits, sync the files, and leave an empty journal."""
        while self._flusher is not None:
            await asyncio.wait([self._flusher])
        try:
            if self._failure is None:
                self._catch_up()
                await self._next_generation()
        finally:
            self._thread.shutdown()
            self._disk.close(self._fd)

    async def _flush(self) -> None:
        """Write batch after batch; a batch is whatever came while the one before went down."""
        loop = asyncio.get_running_loop()
        batch: list[_Waiting] = []
        try:
            while self._queue:
                batch = self._next_batch()
                if batch:
                    await loop.run_in_executor(self._thread, self._write, batch)
                    self._acknowledge(batch)
                else:  # full
                    self._catch_up()
                    await self._next_generation()
        except Exception as error:  # noqa: BLE001 - every waiter must be answered
            self._fail(batch, error)
        finally:
            self._flusher = None

    async def _next_generation(self) -> None:
        """Begin the journal again, with fewer other files open if the process may open no more."""
        while True:
            try:
                loop = asyncio.get_running_loop()
                await loop.run_in_executor(self._thread, self._begin_again)
            except OSError as error:
                if error.errno not in SCARCE or not self._make_room():
                    raise
            else:
                return

    def _acknowledge(self, batch: list[_Waiting]) -> None:
        behind = self._behind
        for waiting in batch:
            files = waiting.files
            behind[files.path] = files
            if max(map(files.delay, waiting.tails)) > _DELAYED_BYTES:
                files.flush()
            waiting.is_down = True
            if not waiting.done.done():
                waiting.done.set_result(None)
        if self._catching_up is None:
            loop = asyncio.get_running_loop()
            self._catching_up = loop.call_later(_CATCH_UP_S, self._catch_up_now)

    def _grow(self, size_bytes: int) -> None:
        """Make room for a frame of that size; the sync of the first frame there makes it last."""
        for at in range(self._disk.size(self._fd), size_bytes, len(_BLANK)):
            self._disk.write(self._fd, _BLANK[: size_bytes - at], at)
        self._size_bytes = size_bytes

    def _catch_up_now(self) -> None:
        try:
            self._catch_up()
        except OSError as error:
            self._fail([], error)

    def _catch_up(self) -> None:
        """Write into the sessions' own files what is logged and was delayed."""
        if self._catching_up is not None:
            self._catching_up.cancel()
            self._catching_up = None
        while self._behind:
            _, files = self._behind.popitem()
            files.flush()

    def _next_batch(self) -> list[_Waiting]:
        """Take from the queue what fits behind the frames that are written."""
        room_bytes = self._size_bytes - self._at
        for number, waiting in enumerate(self._queue):
            room_bytes -= _FRAME.size + len(waiting.payload)
            if room_bytes < 0:
                batch, self._queue = self._queue[:number], self._queue[number:]
                return batch
        batch, self._queue = self._queue, []
        return batch

    def _fail(self, batch: list[_Waiting], error: Exception) -> None:
        """After a failed sync it is unknown what is on the disk: stop, and fail every waiter."""
        reason = error.strerror if isinstance(error, OSError) else repr(error)
        self._failure = (
            f"the journal could not be written ({reason}); nothing since was acknowledged: "
            "repair the disk, then start again"
        )
        for waiting in [*batch, *self._queue]:
            waiting.is_down = True
            if not waiting.done.done():
                told = StoreUnwritable(f"{waiting.files.key}: {self._failure}")
                waiting.done.set_exception(told)
        self._queue.clear()

    def _write(self, batch: list[_Waiting]) -> None:
        """Write the frames of a batch and sync once; runs in the journal's own thread."""
        pieces: list[bytes] = []
        for waiting in batch:
            self._sequence += 1
            head = (self._generation, self._sequence)
            pieces.append(_FRAME.pack(len(waiting.payload), _sum(waiting.payload, *head), *head))
            pieces.append(waiting.payload)
            self._dirty.add(waiting.files.path)
        data = b"".join(pieces)
        self._disk.write(self._fd, data, self._at)
        self._disk.sync(self._fd)
        self._at += len(data)

    def _begin_again(self) -> None:
        """Sync the files that the journal speaks of, and start its next generation."""
        _sync_all(self._dirty, self._root, self._disk)
        self._dirty.clear()
        self._generation += 1
        _empty(self._fd, self._disk, self._generation)
        self._sequence = self._at = 0


def generation_in(data: bytes) -> int:
    """Return the generation that a journal begins with."""
    generation: int = _FRAME.unpack_from(data)[2] if len(data) >= _FRAME.size else 0
    return generation


def recover(fd: int, root: Path, disk: Disk) -> int:
    """Apply the frames of a journal, sync what they touch, empty it; return its generation.

    Raises:
        OSError: the disk failed; the journal is as it was.
    """
    data = disk.read(fd, disk.size(fd), 0)
    generation = generation_in(data)
    touched: set[str] = set()
    for directory, tails in _frames(data):
        touched.add(f"{root}/{directory}")
        try:
            _apply(root / directory, tails, disk)
        except OSError as error:
            raise OSError(error.errno, f"{error.strerror}: {directory} in it") from error
    if touched:
        _sync_all(touched, root, disk)
        _empty(fd, disk, generation)
    return generation


def _empty(fd: int, disk: Disk, generation: int) -> None:
    disk.write(fd, _FRAME.pack(0, 0, generation, 0), 0)
    disk.sync(fd)


def _payload(directory: str, files: SessionFiles, tails: Sequence[Tail]) -> bytes:
    """Put together what a frame carries: where, and for each file its new end."""
    header = files.fenced_header()
    sizes = [[tail.name, tail.offset, len(tail.data)] for tail in tails]
    words = orjson.dumps([directory, len(header), sizes])
    return b"".join([words, b"\n", header, *[tail.data for tail in tails]])


def _frames(data: bytes) -> Iterator[tuple[str, list[Tail]]]:
    """Return the frames from the beginning as far as the chain holds, the header as a tail at 0."""
    at, expected = 0, (0, 1)
    while at + _FRAME.size <= len(data):
        size, crc, generation, sequence = _FRAME.unpack_from(data, at)
        at += _FRAME.size
        payload = data[at : at + size]
        at += size
        if sequence == 1 and expected == (0, 1):
            expected = (generation, 1)
        if (
            (generation, sequence) != expected
            or len(payload) < size
            or not size
            or crc != _sum(payload, generation, sequence)
        ):
            return
        expected = (generation, sequence + 1)
        words, _, rest = payload.partition(b"\n")
        directory, header_bytes, sizes = orjson.loads(words)
        tails = [Tail("", 0, rest[:header_bytes])]
        start = header_bytes
        for name, offset, length in sizes:
            tails.append(Tail(name, offset, rest[start : start + length]))
            start += length
        yield directory, tails


def _apply(directory: Path, tails: Sequence[Tail], disk: Disk) -> None:
    disk.make_directory(directory)
    header, *ends = tails
    for tail in ends:
        if not tail.offset and not tail.data:
            disk.remove(directory / tail.name)
            continue
        fd = disk.open(directory / tail.name, create=True)
        try:
            disk.write(fd, tail.data, tail.offset)
            disk.truncate(fd, tail.offset + len(tail.data))
            if tail.name == TURNS:
                disk.write(fd, header.data, 0)
        finally:
            disk.close(fd)


def _sync_all(directories: set[str], root: Path, disk: Disk) -> None:
    """Sync both files of each session, then every directory on the way up to the root."""
    there = [path for path in map(Path, directories) if path.is_dir()]  # some were moved away
    if len(there) <= _SYNCS_AT_ONCE:
        for path in there:
            _sync_session(path, disk)
    else:
        with ThreadPoolExecutor(_SYNCS_AT_ONCE, thread_name_prefix="kode-lab-sync") as threads:
            for _ in threads.map(_sync_session, there, repeat(disk)):
                pass  # the first error ends it here, after all of them ended
    above: set[Path] = set()
    for place in there:
        while place != root and place not in above:
            above.add(place)
            place = place.parent  # noqa: PLW2901 - on the way up
    for place in [*sorted(above, key=lambda p: len(p.parts), reverse=True), root]:
        disk.sync_directory(place)


def _sync_session(path: Path, disk: Disk) -> None:
    for name in (TURNS, MESSAGES):
        try:
            fd = disk.open(path / name, create=False)
        except FileNotFoundError:
            continue
        try:
            disk.sync(fd)
        finally:
            disk.close(fd)


def _sum(payload: bytes, generation: int, sequence: int) -> int:
    return zlib.crc32(payload, generation ^ (sequence << 16) & 0xFFFF_FFFF)
