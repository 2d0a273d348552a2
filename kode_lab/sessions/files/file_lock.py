"""One lock for each name, between processes on one directory.

A name is ``_PLACES`` bytes of one of 1,024 lock files: byte 0 is the lock, the others are places to
wait in. Who finds all of them free has the lock at once. Everybody else comes in at the last place
and goes forward, never leaving a place before having the next: nobody overtakes, so nobody
starves (one place, a turnstile, let two processes hand the lock to each other past a third). The
kernel frees the bytes of a process that dies, so the next one has them at its next look,
``_LOOK_S`` later at most.

These are Linux's *open file description* locks: they belong to this store, not to the process, so
two stores in one process exclude each other too, and closing some other descriptor frees nothing.
One trap remains: a child made by ``fork`` without ``exec`` shares them, and keeps them held.

1,024 files, because the kernel walks all locks of a file one by one, at each call: with 10,000
sessions held over 256 files, that was a tenth of a turn. They are opened eight at a time, so that a
server has them all after some hundred sessions and its open files grow no more. A process that may
open few files opens one at a time, and closes those in which it holds nothing.

Source: fcntl(2), "Open file description locks (non-POSIX)".
"""

from __future__ import annotations

import asyncio
import errno
import fcntl
import os
import resource
import struct
from hashlib import blake2b
from pathlib import Path

from kode_lab.sessions.files.disk import Disk

__all__ = ["FileLocks", "OwnedFile"]

_FILES = 1_024
_AT_ONCE = 8
# Fifteen processes wait in order; more of them wait outside, in no order.
_PLACES_BITS = 4
_PLACES = 1 << _PLACES_BITS
# struct flock on Linux: type, whence, start, length, pid (0 for these locks).
_FLOCK = struct.Struct("hhqqi4x")
_FIRST_LOOK_S = 0.001
_LOOK_S = 0.010
_TAKEN = (errno.EAGAIN, errno.EACCES)


class FileLocks:
    """The locks of one directory; the lock files are opened when they are first needed.

    Args:
        open_limit: beyond so many open lock files, those that hold nothing are closed; by default a
            sixteenth of what this process may open.
    """

    __slots__ = ("_disk", "_held", "_open", "_open_limit", "_root")

    def __init__(self, root: Path, disk: Disk, *, open_limit: int | None = None) -> None:
        self._root = root
        self._disk = disk
        self._open: dict[int, int] = {}
        # How many locks and places in each file are ours: closing it would free them.
        self._held = [0] * _FILES
        if open_limit is None:
            files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
            open_limit = _FILES if files == resource.RLIM_INFINITY else files // 16
        self._open_limit = open_limit

    def place_of(self, name: str) -> tuple[int, int]:
        """Return the lock file and the offset that stand for a name (64 bits: no two share one)."""
        number = int.from_bytes(blake2b(name.encode(), digest_size=8).digest())
        return number % _FILES, (number // _FILES) << _PLACES_BITS

    def try_hold(self, place: tuple[int, int]) -> bool:
        """Hold it if nobody does and nobody waits for it; say whether it worked."""
        fd, at = self._file(place[0]), place[1]
        if not _try_lock(fd, at, _PLACES):  # all in one call, then the places are given back
            return False
        _unlock(fd, at + 1, _PLACES - 1)
        self._held[place[0]] += 1
        return True

    async def hold(self, place: tuple[int, int]) -> None:
        """Hold it, behind every process that waits already."""
        fd, at = self._file(place[0]), place[1] + _PLACES - 1
        self._held[place[0]] += 1
        try:
            await _patiently(fd, at)
            while at > place[1]:
                await _patiently(fd, at - 1)
                _unlock(fd, at)
                at -= 1
        except BaseException:
            _unlock(fd, at)  # nothing, if it never came in
            self._held[place[0]] -= 1
            raise

    def release(self, place: tuple[int, int]) -> None:
        """Let the next process have it."""
        _unlock(self._file(place[0]), place[1])
        self._held[place[0]] -= 1

    def close(self) -> None:
        """Close the lock files, which frees whatever is still held."""
        while self._open:
            self._disk.close(self._open.popitem()[1])
        self._held = [0] * _FILES

    def _file(self, number: int) -> int:
        if number not in self._open:
            few = self._open_limit < _FILES
            first = number - number % _AT_ONCE
            for each in (number,) if few else range(first, first + _AT_ONCE):
                if each not in self._open:  # the last time may have come to an error half-way
                    self._open_one(each)
        return self._open[number]

    def _open_one(self, number: int) -> None:
        if len(self._open) >= self._open_limit:
            self._close_one()
        path = self._root / f"{number:03x}"
        try:
            fd = self._disk.open(path, create=True)
        except FileNotFoundError:
            self._disk.make_directory(self._root)
            fd = self._disk.open(path, create=True)
        self._open[number] = fd

    def _close_one(self) -> None:
        """Close the oldest of those in which nothing is ours, if there is one."""
        for number, fd in self._open.items():
            if not self._held[number]:
                del self._open[number]
                self._disk.close(fd)
                return


class OwnedFile:
    """A file locked as a whole: shared by many, or for one alone. Says who may use a directory."""

    __slots__ = ("_disk", "fd")

    def __init__(self, path: Path, disk: Disk) -> None:
        self._disk = disk
        self.fd = disk.open(path, create=True)

    def try_own(self, *, alone: bool) -> bool:
        """Own it, alone or with others; say whether it worked. Asking again changes the kind."""
        return _try_lock(self.fd, 0, kind=fcntl.F_WRLCK if alone else fcntl.F_RDLCK)

    def close(self) -> None:
        """Return it up."""
        if self.fd >= 0:
            self._disk.close(self.fd)
            self.fd = -1


async def _patiently(fd: int, at: int) -> None:
    """Try until it works: at once, after 1 ms, and ever later up to ``_LOOK_S``."""
    pause_s = _FIRST_LOOK_S
    while not _try_lock(fd, at):
        await asyncio.sleep(pause_s)
        pause_s = min(pause_s * 2, _LOOK_S)


def _try_lock(fd: int, at: int, count: int = 1, kind: int = fcntl.F_WRLCK) -> bool:
    try:
        fcntl.fcntl(fd, fcntl.F_OFD_SETLK, _FLOCK.pack(kind, os.SEEK_SET, at, count, 0))
    except OSError as error:
        if error.errno in _TAKEN:
            return False
        raise
    return True


def _unlock(fd: int, at: int, count: int = 1) -> None:
    fcntl.fcntl(fd, fcntl.F_OFD_SETLK, _FLOCK.pack(fcntl.F_UNLCK, os.SEEK_SET, at, count, 0))
