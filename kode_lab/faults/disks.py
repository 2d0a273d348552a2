"""A disk that dies with its process, fills up, and forgets in a power cut what was not synced.

``LabDisk`` is the real file system below one directory, through the store's own seam. What it adds
is what a kernel does to a process: after ``kill`` every call is denied and every lock is handed
back. It does not know what the files mean.

Source: what a power cut leaves is the pessimist's reading of Pillai et al. (OSDI 2014): a name
that its directory's sync did not cover is gone, and so is every byte that no sync covered.
"""

from __future__ import annotations

import errno
import os
from pathlib import Path

from kode_lab.sessions.files.disk import Place, PosixDisk

__all__ = ["LabDisk"]


class LabDisk:
    """The real file system, for one process.

    Args:
        root: below here is what a power cut is about.
        remembers: whether to keep what a power cut would leave.

    Attributes:
        is_full: nothing may grow.
    """

    def __init__(self, root: Path, *, remembers: bool = False) -> None:
        self.is_full = False
        self._real = PosixDisk()
        self._root = str(root)
        self._is_dead = False
        self._paths: dict[int, str] = {}
        self._remembers = remembers
        # What a power cut leaves: the bytes of files, and the names that directories hold.
        self._durable: dict[str, bytes] = {}
        self._names: set[str] = set()

    def kill(self) -> None:
        """Deny every further call, and give the locks back as the kernel does.

        Each descriptor is pointed elsewhere and not closed: its number, which dead code still
        holds, must not become a living one's.
        """
        self._is_dead = True
        nowhere = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        for fd in self._paths:
            os.dup2(nowhere, fd, inheritable=False)
        os.close(nowhere)

    def image(self) -> dict[str, bytes]:
        """Return what a power cut leaves now, by paths below the root."""
        left: dict[str, bytes] = {}
        for path, content in self._durable.items():
            inner = path.removeprefix(f"{self._root}/")
            steps = inner.split("/")
            chain = (f"{self._root}/{'/'.join(steps[:end])}" for end in range(1, len(steps) + 1))
            if all(name in self._names for name in chain):
                left[inner] = content
        return left

    # ---- the calls

    def open(self, path: Place, *, create: bool) -> int:
        """Open it."""
        self._live()
        fd = self._real.open(path, create=create)
        self._paths[fd] = str(path)
        return fd

    def close(self, fd: int) -> None:
        """Close it; the dead may."""
        self._paths.pop(fd, None)
        self._real.close(fd)

    def read(self, fd: int, size_bytes: int, offset: int) -> bytes:
        """Read it."""
        self._live()
        return self._real.read(fd, size_bytes, offset)

    def size(self, fd: int) -> int:
        """Return its size."""
        self._live()
        return self._real.size(fd)

    def write(self, fd: int, data: bytes, offset: int) -> None:
        """Write it, if there is room."""
        self._live()
        if self.is_full and offset + len(data) > self._real.size(fd):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self._real.write(fd, data, offset)

    def truncate(self, fd: int, size_bytes: int) -> None:
        """Cut it."""
        self._live()
        self._real.truncate(fd, size_bytes)

    def sync(self, fd: int) -> None:
        """Remember what it holds as durable: really syncing would only take time."""
        self._live()
        if self._remembers:
            self._durable[self._paths[fd]] = self._real.read(fd, self._real.size(fd), 0)

    def sync_directory(self, path: Place) -> None:
        """Remember its names as durable."""
        self._live()
        if self._remembers and str(path).startswith(self._root):
            self._names.update(str(entry) for entry in Path(path).iterdir())

    def make_directory(self, path: Place) -> None:
        """Make it."""
        self._live()
        self._real.make_directory(path)

    def remove(self, path: Place) -> None:
        """Remove it."""
        self._live()
        self._real.remove(path)

    def _live(self) -> None:
        if self._is_dead:
            raise OSError(errno.EIO, "the process was killed")
