"""Who works in a store's directory: processes of one host together, or one process alone.

The file ``+store`` is locked by everyone inside, shared or alone, and names the host, because file
locks do not reach across hosts: a directory on a shared folder that another host has not left is
refused. Whoever comes in first may tidy up before others enter.
"""

from __future__ import annotations

import os
import platform
import time
from hashlib import blake2b
from pathlib import Path

from kode_lab.errors import ForeignHost
from kode_lab.sessions.files.disk import Disk
from kode_lab.sessions.files.file_lock import OwnedFile
from kode_lab.sessions.files.format import FORMAT, decode, encode

__all__ = ["Occupancy"]

_LOOK_S = 0.01


class Occupancy:
    """One process's place in a directory.

    Attributes:
        is_first: nobody else was inside: until ``settle`` nobody else can come.
    """

    __slots__ = ("_disk", "_is_alone", "_name", "_owned", "is_first")

    def __init__(self, root: Path, disk: Disk, *, alone: bool, wait_s: float) -> None:
        """Come in, waiting so long for others that are just coming or leaving.

        Raises:
            ForeignHost: another host works there, or another process owns it alone.
            OSError: the file ``+store`` cannot be used.
        """
        self._disk = disk
        self._name = root.name
        self._is_alone = alone
        self._owned = OwnedFile(root / "+store", disk)
        try:
            self.is_first = self._enter(time.monotonic() + wait_s)
            self._check_host()
        except BaseException:
            self._owned.close()
            raise

    def settle(self) -> None:
        """Let others come in, unless this process is to be alone."""
        if not self._is_alone:
            self._owned.try_own(alone=False)

    def leave(self) -> None:
        """Go; the last one out takes the host's name down, so that any host may come."""
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
            time.sleep(_LOOK_S)  # somebody is just moving in, too
        return True

    def _check_host(self) -> None:
        here = _host()
        words = self._disk.read(self._owned.fd, max(self._disk.size(self._owned.fd), 0), 0)
        try:
            host = decode(words)["host"] if words else here
        except (ValueError, KeyError, TypeError):
            host = here  # the file of somebody who died while writing it
        if host != here:
            raise ForeignHost(
                f"another host works in the store at {self._name!r}, and file locks do not reach "
                "across hosts: stop it there; if it is gone for good, remove the file +store"
            )
        if self.is_first:
            self._disk.write(self._owned.fd, encode({"kode_lab": FORMAT, "host": here}) + b"\n", 0)


def _host() -> str:
    """Return a name for this host that tells nobody which it is."""
    return blake2b(f"{platform.node()}\0{os.name}".encode(), digest_size=8).hexdigest()
