"""Locks between processes on one directory: who may work in it, and who holds a session.

``Occupancy`` is a process's presence in a directory. The file ``+store`` is locked by every process
inside, shared or alone. It names the layout of the lock files, so that two versions of kode_lab
that lock differently never work side by side, and the host, because file locks do not reach
across hosts on a network file system. On a local file system the lock itself proves who is there.

``FileLocks`` holds one lock for each name: ``_PLACES`` bytes of one of 1,024 lock files. Byte 0 is
the lock, the others are places to wait in. A process that finds all of them free has the lock at
once. Every other enters at the last place and moves forward, and leaves a place only when it has
the next: no process is overtaken, so none starves (with a single place two processes handed the
lock to each other past a third). The kernel frees the bytes of a process that dies; the next one
notices within ``_LOOK_S``.

These are Linux's *open file description* locks: they belong to this store, not to the process, so
two stores in one process exclude each other too, and closing another descriptor frees nothing. One
trap remains: a child made by ``fork`` without ``exec`` shares them, and keeps them held. A lock on
a file that was removed or moved excludes no one who opens the path anew, so the path is compared
with the open file at each hold and each write.

There are 1,024 files, because the kernel walks all locks of a file one by one at each call: with
10,000 sessions held over 256 files, that was a tenth of a turn. They are opened eight at a time, so
that a server has them all after some hundred sessions. A process that may open few files opens one
at a time, and closes those in which it holds nothing.

Source: fcntl(2), "Open file description locks (non-POSIX)".
"""

from __future__ import annotations

import asyncio
import errno
import fcntl
import os
import platform
import struct
import time
from collections.abc import Callable
from hashlib import blake2b
from pathlib import Path

from kode_lab.errors import ForeignHost, StoreMoved
from kode_lab.sessions.conversation import decode, encode
from kode_lab.sessions.files.disk import Disk

__all__ = ["FileLocks", "Occupancy", "OwnedFile", "is_local"]

_FILES = 1_024
_AT_ONCE = 8
# Fifteen processes wait in order; more of them wait outside, in no order.
_PLACES_BITS = 4
_PLACES = 1 << _PLACES_BITS
# What two processes must agree on to exclude each other.
_LAYOUT = f"ofd-{_FILES}x{_PLACES}"
# struct flock on Linux: type, whence, start, length, pid (0 for these locks).
_FLOCK = struct.Struct("hhqqi4x")
_FIRST_LOOK_S = 0.001
_LOOK_S = 0.010
_TAKEN = (errno.EAGAIN, errno.EACCES)
# File systems of one machine's own disk or memory, where one kernel sees every lock.
_LOCAL = frozenset(
    {"ext2", "ext3", "ext4", "xfs", "btrfs", "zfs", "f2fs", "bcachefs", "jfs", "tmpfs", "overlay"}
)


class Occupancy:
    """One process's presence in a directory.

    Attributes:
        is_first: no other process was inside; until ``settle`` no other can enter.
    """

    __slots__ = ("_disk", "_is_alone", "_name", "_owned", "_path", "_status", "is_first")

    def __init__(
        self,
        root: Path,
        disk: Disk,
        *,
        alone: bool,
        wait_s: float,
        sees_all_locks: Callable[[Path], bool] | None = None,
    ) -> None:
        """Enter, and wait up to ``wait_s`` for others that are just entering or leaving.

        Raises:
            ForeignHost: another host works there, another version with other locks, or another
                process owns it alone.
            StoreMoved: the lock files were removed while another process works there.
            OSError: the file ``+store`` cannot be used.
        """
        self._disk = disk
        self._name = root.name
        self._is_alone = alone
        self._path = f"{root}/+store"
        self._owned = OwnedFile(root / "+store", disk)
        try:
            self.is_first = self._enter(time.monotonic() + wait_s)
            self._status = os.fstat(self._owned.fd)
            self.check()
            if not alone:
                disk.make_directory(root / "+locks")
            self._compare(root, sees_all_locks or is_local)
        except BaseException:
            self._owned.close()
            raise

    def check(self) -> None:
        """Compare the directory's path with what was entered.

        Raises:
            StoreMoved: there is something else now.
        """
        try:
            found = os.stat(self._path)  # noqa: PTH116 - pathlib costs three times as much
        except OSError:
            found = None
        if found is None or not os.path.samestat(found, self._status):
            raise StoreMoved(
                f"the store's directory {self._name!r} was moved, unmounted or removed while this "
                "process works in it: nothing more is written there; put it back, or stop this "
                "process and start it where the directory is now"
            )

    def settle(self) -> None:
        """Let others enter, unless this process is to be alone."""
        if not self._is_alone:
            self._owned.try_own(alone=False)

    def leave(self) -> None:
        """Leave; the last one to leave removes the host's name, so that any host may enter."""
        try:
            if self._owned.fd >= 0 and self._owned.try_own(alone=True):
                self._disk.truncate(self._owned.fd, 0)
        finally:
            self._owned.close()

    def _enter(self, until_s: float) -> bool:
        while not self._owned.try_own(alone=True):
            if not self._is_alone and self._owned.try_own(alone=False):
                return False
            if time.monotonic() > until_s:
                raise ForeignHost(
                    f"the store at {self._name!r} is in use by another process, and durability "
                    "'power' owns its directory alone: stop the other, or use 'process' in both"
                )
            time.sleep(_LOOK_S)  # another process is just entering, too
        return True

    def _compare(self, root: Path, sees_all_locks: Callable[[Path], bool]) -> None:
        """Compare this process with those inside, and describe it if it is the first."""
        here = {"kode_lab": 1, "host": _host(), "locks": _LAYOUT, "inode": _inode(root / "+locks")}
        words = self._disk.read(self._owned.fd, max(self._disk.size(self._owned.fd), 0), 0)
        try:
            there = dict(decode(words)) if words else {}
        except (ValueError, TypeError):
            there = {}  # the file of a process that died while writing it
        # The lock on a local file system proves that a host that left its name there is gone, or
        # is another container of this machine, whose locks this one sees.
        if there and there.get("host") != here["host"] and not sees_all_locks(root):
            raise ForeignHost(
                f"another host works in the store at {self._name!r}, and file locks do not reach "
                "across hosts: stop it there; if it is gone for good, remove the file +store"
            )
        if self.is_first:
            self._disk.truncate(self._owned.fd, 0)
            self._disk.write(self._owned.fd, encode(here) + b"\n", 0)
        elif there.get("locks", here["locks"] if not there else None) != here["locks"]:
            raise ForeignHost(
                f"another version of kode_lab works in the store at {self._name!r} and locks "
                f"sessions differently (it {there.get('locks') or 'does not say how'}, this one "
                f"{_LAYOUT}): stop it, then start the new one"
            )
        elif there.get("inode", here["inode"]) != here["inode"]:
            raise StoreMoved(
                f"the lock files (+locks) of the store at {self._name!r} were removed or replaced "
                "while another process works there, so neither would see the other's locks: stop "
                "all processes on this directory, then start them again"
            )


def is_local(path: Path) -> bool:
    """Whether a path is on a file system whose locks one kernel knows all of."""
    try:
        mounts = Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False
    here, best, kind = str(path.resolve()), "", ""
    for line in mounts.splitlines():
        fields, _, rest = line.partition(" - ")
        point = fields.split()[4].replace("\\040", " ")
        is_above = here == point or here.startswith(point.rstrip("/") + "/")
        if is_above and len(point) >= len(best):  # the later of two on one point hides the other
            best, kind = point, rest.split()[0]
    return kind in _LOCAL


def _inode(path: Path) -> int:
    try:
        return path.stat().st_ino
    except OSError:
        return 0


def _host() -> str:
    """Return a name for this host that does not reveal which it is."""
    return blake2b(f"{platform.node()}\0{os.name}".encode(), digest_size=8).hexdigest()


class FileLocks:
    """The locks of one directory; the lock files are opened when they are first needed.

    Args:
        root: the directory of the lock files.
        disk: the file system.
        open_limit: beyond so many open lock files, those that hold nothing are closed.
        guard: called before a lock file is opened; raises if the directory is not the one it was.
    """

    __slots__ = ("_disk", "_guard", "_held", "_identity", "_names", "_open", "_open_limit", "_root")

    def __init__(
        self,
        root: Path,
        disk: Disk,
        *,
        open_limit: int = _FILES,
        guard: Callable[[], None] = lambda: None,
    ) -> None:
        self._root = root
        self._disk = disk
        self._open: dict[int, int] = {}
        # How many locks and places in each file are ours: closing it would free them.
        self._held = [0] * _FILES
        self._open_limit = max(open_limit, 1)
        # Of each open file: its device and its inode.
        self._identity: dict[int, tuple[int, int]] = {}
        self._names: dict[int, str] = {}
        self._guard = guard

    def place_of(self, name: str) -> tuple[int, int]:
        """Return the lock file and the offset of a name (64 bits: no two names share one)."""
        number = int.from_bytes(blake2b(name.encode(), digest_size=8).digest())
        return number % _FILES, (number // _FILES) << _PLACES_BITS

    def try_hold(self, place: tuple[int, int]) -> bool:
        """Hold it if it is free and no process waits for it; return whether it worked.

        Raises:
            StoreMoved: the lock file was moved or removed.
        """
        fd, at = self._file(place[0]), place[1]
        self.check(place)
        if not _try_lock(fd, at, _PLACES):  # all in one call, then the places are released
            return False
        _unlock(fd, at + 1, _PLACES - 1)
        self._held[place[0]] += 1
        return True

    async def hold(self, place: tuple[int, int]) -> None:
        """Hold it, behind every process that waits already.

        Raises:
            StoreMoved: the lock file was moved or removed.
        """
        fd, at = self._file(place[0]), place[1] + _PLACES - 1
        self._held[place[0]] += 1
        try:
            await _patiently(fd, at)
            while at > place[1]:
                await _patiently(fd, at - 1)
                _unlock(fd, at)
                at -= 1
            self.check(place)
        except BaseException:
            _unlock(fd, at)  # nothing, if it never came in
            self._held[place[0]] -= 1
            raise

    def check(self, place: tuple[int, int]) -> None:
        """Compare the lock file that is open with the one that others would open.

        Raises:
            StoreMoved: they differ.
        """
        try:
            found = os.stat(self._names[place[0]])  # noqa: PTH116 - pathlib costs three times this
            if (found.st_dev, found.st_ino) == self._identity[place[0]]:
                return
        except OSError:
            pass
        raise StoreMoved(
            f"the lock file +locks/{place[0]:03x} of the store at {self._root.parent.name!r}, or "
            "the whole directory, was moved or removed while this process uses it, so another "
            "process may hold the session too: nothing was written; put it back, or stop all "
            "processes on this directory and start them again"
        )

    def release(self, place: tuple[int, int]) -> None:
        """Release it."""
        _unlock(self._file(place[0]), place[1])
        self._held[place[0]] -= 1

    def shrink(self) -> bool:
        """Close the files in which nothing is held, and open fewer; return whether there were any.

        It is for a process that may open no more files.
        """
        before = len(self._open)
        self._open_limit = max(before // 2, 1)
        for number in [number for number in self._open if not self._held[number]]:
            self._disk.close(self._open.pop(number))
        return len(self._open) < before

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
        self._guard()
        path = self._root / f"{number:03x}"
        try:
            fd = self._disk.open(path, create=True)
        except FileNotFoundError:
            self._disk.make_directory(self._root)
            fd = self._disk.open(path, create=True)
        self._open[number] = fd
        status = os.fstat(fd)
        self._identity[number] = (status.st_dev, status.st_ino)
        self._names[number] = str(path)

    def _close_one(self) -> None:
        """Close the oldest of those in which nothing is ours, if there is one."""
        for number, fd in self._open.items():
            if not self._held[number]:
                del self._open[number]
                self._disk.close(fd)
                return


class OwnedFile:
    """A file locked as a whole: shared by many, or by one alone."""

    __slots__ = ("_disk", "fd")

    def __init__(self, path: Path, disk: Disk) -> None:
        self._disk = disk
        self.fd = disk.open(path, create=True)

    def try_own(self, *, alone: bool) -> bool:
        """Own it, alone or with others; return whether it worked. Asking again changes the kind."""
        return _try_lock(self.fd, 0, kind=fcntl.F_WRLCK if alone else fcntl.F_RDLCK)

    def close(self) -> None:
        """Release and close it."""
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
