"""What the store asks of a file system: the seam where tests make it fail.

Every call that touches a file goes through a ``Disk``, so that a test can drop what was not synced,
tear a write at any byte, lose a rename, or answer ENOSPC and EIO, without touching the product. The
real one adds nothing but the loops that POSIX asks for. It knows nothing of sessions.

Source: the failure modes are those of Pillai et al., "All File Systems Are Not Created Equal"
(OSDI 2014), and Rebello et al., "Can Applications Recover from fsync Failures?" (ATC 2020).
"""

from __future__ import annotations

import contextlib
import errno
import os
from typing import Protocol, TypeAlias

from kode_lab.errors import StoreUnwritable

__all__ = ["SCARCE", "Disk", "Place", "PosixDisk", "explained"]

# The process, or the system, may open no more files.
SCARCE = (errno.EMFILE, errno.ENFILE)

Place: TypeAlias = str | os.PathLike[str]


class Disk(Protocol):
    """The calls; each raises ``OSError`` as the system's own."""

    def open(self, path: Place, *, create: bool) -> int:
        """Return a descriptor for reading and writing; ``FileNotFoundError`` if not ``create``."""
        ...

    def close(self, fd: int) -> None:
        """Close it."""
        ...

    def read(self, fd: int, size_bytes: int, offset: int) -> bytes:
        """Return up to that many bytes from there."""
        ...

    def size(self, fd: int) -> int:
        """Return the size in bytes, or -1 when the file has no name any more (it was removed)."""
        ...

    def write(self, fd: int, data: bytes, offset: int) -> None:
        """Write all of it there."""
        ...

    def truncate(self, fd: int, size_bytes: int) -> None:
        """Cut the file there."""
        ...

    def sync(self, fd: int) -> None:
        """Return when what was written to this file survives a power cut."""
        ...

    def sync_directory(self, path: Place) -> None:
        """Return when the names in this directory survive a power cut."""
        ...

    def make_directory(self, path: Place) -> None:
        """Make it and its parents; it may exist."""
        ...

    def remove(self, path: Place) -> None:
        """Remove a file; it may be gone already."""
        ...


class PosixDisk:
    """The real file system."""

    __slots__ = ()

    def open(self, path: Place, *, create: bool) -> int:
        """Return a descriptor that a program started from here does not inherit."""
        return os.open(path, os.O_RDWR | os.O_CLOEXEC | (os.O_CREAT if create else 0), 0o600)

    def close(self, fd: int) -> None:
        """Close it."""
        os.close(fd)

    def read(self, fd: int, size_bytes: int, offset: int) -> bytes:
        """Return up to that many bytes from there; fewer only at the end of the file."""
        data = os.pread(fd, size_bytes, offset)
        if len(data) < size_bytes:
            while more := os.pread(fd, size_bytes - len(data), offset + len(data)):
                data += more
        return data

    def size(self, fd: int) -> int:
        """Return the size in bytes, or -1 when the file has no name any more."""
        status = os.fstat(fd)
        return status.st_size if status.st_nlink else -1

    def write(self, fd: int, data: bytes, offset: int) -> None:
        """Write all of it: a disk that fills up first writes a part, then says so."""
        done = os.pwrite(fd, data, offset)
        while done < len(data):
            done += os.pwrite(fd, data[done:], offset + done)

    def truncate(self, fd: int, size_bytes: int) -> None:
        """Cut the file there."""
        os.ftruncate(fd, size_bytes)

    def sync(self, fd: int) -> None:
        """Return when the bytes of this file survive a power cut."""
        os.fdatasync(fd)

    def sync_directory(self, path: Place) -> None:
        """Return when the names in this directory survive a power cut."""
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)

    def make_directory(self, path: Place) -> None:
        """Make it and its parents, one ``mkdir`` where the parent is there already."""
        try:
            os.mkdir(path, 0o700)  # noqa: PTH102 - a quarter of the cost of Path.mkdir
        except FileExistsError:
            return
        except FileNotFoundError:
            self.make_directory(os.path.dirname(path))  # noqa: PTH120 - as above
            with contextlib.suppress(FileExistsError):
                os.mkdir(path, 0o700)  # noqa: PTH102 - as above

    def remove(self, path: Place) -> None:
        """Remove a file; it may be gone already."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)  # noqa: PTH108 - as above


_WHAT_TO_DO = {
    errno.ENOSPC: "free some space, then send the turn again with the same turnId",
    errno.EDQUOT: "free some of the quota, then send the turn again with the same turnId",
    errno.EACCES: "allow this process to write there",
    errno.EPERM: "allow this process to write there",
    errno.EROFS: "the file system is read-only: mount it for writing or choose another directory",
    errno.EMFILE: "raise the limit of open files (ulimit -n), or lower open_sessions_limit",
    errno.ENOTDIR: "a file is where a directory is needed: move it away",
}


def explained(what: str, error: OSError) -> StoreUnwritable:
    """Return the error that says which session, what the system said, and what to do."""
    hint = _WHAT_TO_DO.get(
        error.errno or 0, "look at the disk; what was acknowledged is still there"
    )
    return StoreUnwritable(f"{what} cannot be stored: {error.strerror or error}; {hint}")
