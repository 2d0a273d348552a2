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

A process *keeps* a lock after its turn until another process asks for it, so that the next turn
needs no system call for it. The process in front of the queue changes the times of the lock file;
inotify tells those that keep something there, and a thread of theirs gives it up at once if no turn
uses it. If one does, the lock becomes a read lock until its end, so that a caller who does not want
to wait knows. A turn's end looks into the queue itself if the last look is older than 1 ms: a busy
session is handed over no later than that, however late the thread comes to run.

There are 1,024 files, because the kernel walks all locks of a file one by one at each call: with
10,000 sessions held over 256 files, that was a tenth of a turn. A process that may open few files
closes those that no turn needs, and gives up what it keeps there.

Source: fcntl(2), "Open file description locks (non-POSIX)"; inotify(7); the lease that a database
client keeps while it is used (Gray and Cheriton 1989).
"""

from __future__ import annotations

import asyncio
import errno
import fcntl
import os
import platform
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from hashlib import blake2b
from pathlib import Path
from typing import Any, NamedTuple

from kode_lab.errors import ForeignHost, StoreMoved
from kode_lab.sessions.conversation import decode, encode
from kode_lab.sessions.files.disk import Disk

__all__ = ["FileLocks", "Occupancy", "OwnedFile", "ProcessLock", "is_local"]

_FILES = 1_024
# Fifteen processes wait in order; more of them wait outside, in no order.
_PLACES_BITS = 4
_PLACES = 1 << _PLACES_BITS
# What two processes must agree on to exclude each other.
_LAYOUT = f"ofd-{_FILES}x{_PLACES}-kept"
# struct flock on Linux: type, whence, start, length, pid (0 for these locks).
_FLOCK = struct.Struct("hhqqi4x")
_FIRST_LOOK_S = 0.001
_LOOK_S = 0.010
# How long a process that only keeps a lock may take to answer; one that is stopped does not.
_ANSWER_S = 0.25
# struct inotify_event: watch, mask, cookie, length of the name that follows.
_EVENT = struct.Struct("iIII")
_IN_ATTRIB, _IN_Q_OVERFLOW, _IN_IGNORED = 0x4, 0x4000, 0x8000
_NAME_CHARS = 3
_GONE = object()
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


class ProcessLock:
    """The lock of one session, while this process has it.

    Attributes:
        file: the number of its lock file.
        at: its first byte there.
        is_asked: another process waits for it, or did.
        look_at_s: when to look again whether one waits.
    """

    __slots__ = ("at", "file", "is_asked", "look_at_s")

    def __init__(self, file: int, at: int) -> None:
        self.file = file
        self.at = at
        self.is_asked = False
        self.look_at_s = 0.0


class _LockFile(NamedTuple):
    fd: int
    path: str
    device: int
    inode: int


class FileLocks:
    """The locks of one directory; the lock files are opened when they are first needed.

    Args:
        root: the directory of the lock files.
        disk: the file system.
        open_limit: beyond so many open lock files, those that no turn needs are closed.
        guard: called before a lock file is opened; raises if the directory is not the one it was.
    """

    __slots__ = (
        "_disk",
        "_forks",
        "_guard",
        "_idle",
        "_mutex",
        "_open",
        "_open_limit",
        "_ours",
        "_root",
        "_waiting",
    )

    def __init__(
        self,
        root: Path,
        disk: Disk,
        *,
        open_limit: int = _FILES,
        guard: Callable[[], None] = lambda: None,
    ) -> None:
        self._root = str(root)
        self._disk = disk
        self._guard = guard
        self._open_limit = max(open_limit, 1)
        self._open: dict[int, _LockFile] = {}
        # The locks that this process has, by file and byte; waiting tasks, by file: it stays open.
        self._ours: dict[int, dict[int, ProcessLock]] = {}
        self._waiting: Counter[int] = Counter()
        # Those of them that no turn uses. Who pops a lock from here may use it or give it up.
        self._idle: dict[ProcessLock, None] = {}
        # The listener's thread gives locks up, too. It is not needed for a lock that stays here.
        self._mutex = threading.Lock()
        self._forks = _bells.forks

    def place_of(self, name: str) -> tuple[int, int]:
        """Return the lock file and the offset of a name (64 bits: no two names share one)."""
        number = int.from_bytes(blake2b(name.encode(), digest_size=8).digest())
        return number % _FILES, (number // _FILES) << _PLACES_BITS

    def try_hold(self, place: tuple[int, int]) -> ProcessLock | None:
        """Hold it if this process keeps it, or it is free and no process waits for it.

        Raises:
            StoreMoved: the lock file was moved or removed.
        """
        file, at = place
        with self._mutex:
            fd = self._file(file).fd
            self.check(file)
            kept = self._ours.get(file, {}).get(at)
            if kept is not None:
                return kept if self._idle.pop(kept, _GONE) is None else None
            if not _try_lock(fd, at, _PLACES):  # all in one call, then the places are released
                return None
            _unlock(fd, at + 1, _PLACES - 1)
            return self._took(file, at)

    async def hold(self, place: tuple[int, int]) -> ProcessLock:
        """Hold it, behind every process that waits already.

        Raises:
            StoreMoved: the lock file was moved or removed.
        """
        (file, first), fd = place, self._pinned(place[0])
        at = first + _PLACES - 1
        try:
            await _patiently(fd, at)
            while at > first:
                # The one in front tells the process that has it.
                await _patiently(fd, at - 1, partial(self._ask, file) if at - 1 == first else None)
                _unlock(fd, at)
                at -= 1
            self.check(file)
            with self._mutex:
                return self._took(file, first)
        except BaseException:
            _unlock(fd, at)  # nothing, if it never came in
            raise
        finally:
            self._waiting[file] -= 1

    async def hold_if_idle(self, place: tuple[int, int]) -> ProcessLock | None:
        """Hold it if no process uses it; one that only keeps it is asked, and answers at once."""
        (file, at), fd = place, self._pinned(place[0])
        try:
            if not _try_lock(fd, at + 1, _PLACES - 1):
                return None  # others wait
            self._ask(file)
            until_s = time.monotonic() + _ANSWER_S
            while not _try_lock(fd, at):
                if _holder(fd, at) == fcntl.F_RDLCK or time.monotonic() > until_s:
                    return None
                await asyncio.sleep(_FIRST_LOOK_S / 2)
            with self._mutex:
                return self._took(file, at)
        finally:
            _unlock(fd, at + 1, _PLACES - 1)
            self._waiting[file] -= 1

    def take_back(self, lock: ProcessLock) -> bool:
        """Use a lock again that was kept; return False if it was given up meanwhile."""
        return self._idle.pop(lock, _GONE) is None and self._forks == _bells.forks

    def keep(self, lock: ProcessLock) -> None:
        """End its use, and keep it until another process asks for it."""
        if not _bells.hang(self._root, self):
            self.release(lock)
            return
        self._idle[lock] = None
        if lock.is_asked or time.monotonic() > lock.look_at_s:
            with self._mutex:
                if self._idle.pop(lock, _GONE) is not None:
                    return  # the listener gave it up
                if self._is_awaited(lock):
                    self._give(lock)
                    return
                lock.look_at_s = time.monotonic() + _FIRST_LOOK_S
                if lock.is_asked:  # and that process went away
                    lock.is_asked = False
                    _try_lock(self._open[lock.file].fd, lock.at)
                self._idle[lock] = None

    def release(self, lock: ProcessLock) -> None:
        """Release it."""
        with self._mutex:
            self._idle.pop(lock, None)
            if self._ours.get(lock.file, {}).get(lock.at) is lock:
                self._give(lock)

    def answer(self, file: int) -> None:
        """Give up what is kept for whoever asked; of what is used, say so by a read lock.

        Any thread may call this.
        """
        with self._mutex:
            for lock in list(self._ours.get(file, {}).values()):
                if not self._is_awaited(lock):
                    continue
                lock.is_asked = True  # first: the turn that ends now looks at it last
                if self._idle.pop(lock, _GONE) is None:
                    self._give(lock)
                else:
                    _try_lock(self._open[file].fd, lock.at, kind=fcntl.F_RDLCK)

    def was_forked(self) -> bool:
        """Whether this process is a fork of the one that opened the store; then begin anew.

        Its descriptors are the other's, too, and so are the locks: they exclude nothing here.
        """
        if self._forks == _bells.forks:
            return False
        self._mutex, self._forks = threading.Lock(), _bells.forks
        self.close()
        return True

    def check(self, file: int) -> None:
        """Compare the lock file that is open with the one that others would open.

        Raises:
            StoreMoved: they differ.
        """
        opened = self._open[file]
        try:
            found = os.stat(opened.path)  # noqa: PTH116 - pathlib costs three times this
            if found.st_ino == opened.inode and found.st_dev == opened.device:
                return
        except OSError:
            pass
        store = os.path.basename(os.path.dirname(self._root))  # noqa: PTH119, PTH120 - as above
        raise StoreMoved(
            f"the lock file +locks/{file:03x} of the store at {store!r}, or the whole directory, "
            "was moved or removed while this process uses it, so another process may hold the "
            "session too: nothing was written; put it back, or stop all processes on this "
            "directory and start them again"
        )

    def shrink(self) -> bool:
        """Close the files that no turn needs, and open fewer; return whether there were any.

        It is for a process that may open no more files.
        """
        with self._mutex:
            before = len(self._open)
            self._open_limit = max(before // 2, 1)
            while self._close_one():
                pass
            return len(self._open) < before

    def close(self) -> None:
        """Close the lock files, which frees whatever is still held."""
        _bells.take_down(self._root, self)
        with self._mutex:
            while self._open:
                self._disk.close(self._open.popitem()[1].fd)
            self._ours.clear()
            self._idle.clear()

    def _ask(self, file: int) -> None:
        """Tell the processes that work here that one waits in this file."""
        for other in _bells.in_this_process(self._root):
            if other is not self:
                other.answer(file)
        os.utime(self._open[file].fd)

    def _is_awaited(self, lock: ProcessLock) -> bool:
        return _holder(self._open[lock.file].fd, lock.at + 1, _PLACES - 1) != fcntl.F_UNLCK

    def _took(self, file: int, at: int) -> ProcessLock:
        lock = ProcessLock(file, at)
        self._ours.setdefault(file, {})[at] = lock
        return lock

    def _give(self, lock: ProcessLock) -> None:
        _unlock(self._open[lock.file].fd, lock.at)
        del self._ours[lock.file][lock.at]

    def _pinned(self, file: int) -> int:
        """Return the descriptor of a lock file, which stays open while one waits in it."""
        with self._mutex:
            fd = self._file(file).fd
            self._waiting[file] += 1
            return fd

    def _file(self, number: int) -> _LockFile:
        opened = self._open.get(number)
        if opened is None:
            if len(self._open) >= self._open_limit:
                self._close_one()
            self._guard()
            path = f"{self._root}/{number:03x}"
            try:
                fd = self._disk.open(path, create=True)
            except FileNotFoundError:
                self._disk.make_directory(self._root)
                fd = self._disk.open(path, create=True)
            status = os.fstat(fd)
            opened = self._open[number] = _LockFile(fd, path, status.st_dev, status.st_ino)
        return opened

    def _close_one(self) -> bool:
        """Close the oldest lock file that no turn needs; return whether there is one."""
        for number, opened in self._open.items():
            ours = self._ours.get(number, {})
            if not self._waiting[number] and all(lock in self._idle for lock in ours.values()):
                for lock in ours.values():
                    del self._idle[lock]
                self._ours.pop(number, None)
                del self._open[number]
                self._disk.close(opened.fd)
                return True
        return False


class _Bells:
    """How processes tell each other that one waits: a change of a lock file's times.

    One thread and one inotify descriptor listen for all stores of this process. The thread answers
    also while the event loop is busy, or stopped.
    """

    def __init__(self) -> None:
        self.forks = 0
        self._fd = -1
        self._libc: Any = None
        # By directory: its stores. By watch: the directory.
        self._stores: dict[str, list[FileLocks]] = {}
        self._roots: dict[int, str] = {}
        self._mutex = threading.Lock()

    def hang(self, root: str, locks: FileLocks) -> bool:
        """Answer for this store from now on; return False where the system cannot tell us."""
        if locks in self._stores.get(root, ()):
            return True
        with self._mutex:
            if self._fd == -1:
                self._fd = self._started()
            if self._fd < 0:
                return False
            watch = self._libc.inotify_add_watch(self._fd, os.fsencode(root), _IN_ATTRIB)
            if watch < 0:
                return False
            self._roots[watch] = root
            self._stores.setdefault(root, []).append(locks)
            return True

    def take_down(self, root: str, locks: FileLocks) -> None:
        """Answer for it no more.

        The watch stays until its directory is removed: taking it back waits 6 ms in the kernel.
        """
        with self._mutex:
            stores = self._stores.get(root, [])
            if locks in stores:
                stores.remove(locks)
                if not stores:
                    del self._stores[root]

    def in_this_process(self, root: str) -> Sequence[FileLocks]:
        """Return the stores of this process that answer for a directory."""
        return tuple(self._stores.get(root, ()))

    def forget(self) -> None:
        """Begin anew in a forked process, which has the descriptor and not the thread."""
        forks = self.forks
        self.__init__()  # type: ignore[misc]
        self.forks = forks + 1

    def _started(self) -> int:
        import ctypes  # noqa: PLC0415 - a bare import of kode_lab stays cheap

        self._libc = ctypes.CDLL(None, use_errno=True)
        fd: int = self._libc.inotify_init1(os.O_CLOEXEC)
        if fd >= 0:
            threading.Thread(target=self._listen, args=(fd,), daemon=True).start()
        return fd if fd >= 0 else -2

    def _listen(self, fd: int) -> None:
        while True:
            data = os.read(fd, 65_536)
            at = 0
            while at < len(data):
                watch, mask, _, length = _EVENT.unpack_from(data, at)
                at += _EVENT.size + length
                name = data[at - length : at].rstrip(b"\0")
                for store in self.in_this_process(self._roots.get(watch, "")):
                    if len(name) == _NAME_CHARS:
                        store.answer(int(name, 16))
                if mask & _IN_IGNORED:
                    self._roots.pop(watch, None)
                if mask & _IN_Q_OVERFLOW:
                    for root in list(self._stores):
                        for store in self.in_this_process(root):
                            for file in range(_FILES):
                                store.answer(file)


_bells = _Bells()
os.register_at_fork(after_in_child=_bells.forget)


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


async def _patiently(fd: int, at: int, ask: Callable[[], None] | None = None) -> None:
    """Try until it works: at once, after 1 ms, and ever later up to ``_LOOK_S``.

    Its holder is asked before each look.
    """
    pause_s = _FIRST_LOOK_S
    while not _try_lock(fd, at):
        if ask is not None:
            ask()
            if _try_lock(fd, at):
                return
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


def _holder(fd: int, at: int, count: int = 1) -> int:
    """Return the kind of lock that another opening of the file has there."""
    asked = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, at, count, 0)
    kind: int = _FLOCK.unpack(fcntl.fcntl(fd, fcntl.F_OFD_GETLK, asked))[0]
    return kind
