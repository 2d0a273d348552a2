"""An empty database cluster, made once and copied for each server: ``initdb`` takes a second.

It owns the cache. A template gets its name only when it is whole, by one rename, so two processes
may make one at once and one that was cut short is never used. Only its user can read it: it holds
the password of its copies on TCP.

Source: the XDG base directories name the cache.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from kode_lab.errors import StoreUnreachable, StoreUnwritable
from kode_lab.testing.postgres.binaries import Account, Binaries

__all__ = ["DATABASE", "PASSWORD", "ROLE", "copy", "own", "template"]

ROLE = DATABASE = "kode"
# The file in the data that has the role's password on TCP.
PASSWORD = "password"  # noqa: S105 - its name
# The layout of the template; another layout gets another name.
_FORM = 2
_INITDB_S = 120.0
_ACCESS = """\
local all all trust
host all all 127.0.0.1/32 scram-sha-256
host all all ::1/128 scram-sha-256
"""


def template(binaries: Binaries, account: Account | None, cache: Path | None = None) -> Path:
    """Return the directory of the template, which is made if it is missing.

    Raises:
        StoreUnwritable: no space, or the cache cannot be written.
        StoreUnreachable: initdb failed.
    """
    root = _cache() if cache is None else cache
    whole = root / f"postgres-{binaries.version}-uid{os.geteuid()}-{_FORM}"
    try:
        if whole.is_dir():
            return whole
        root.mkdir(parents=True, exist_ok=True)
        draft = Path(tempfile.mkdtemp(prefix=f"{whole.name}.", dir=root))
        try:
            _make(draft, binaries, account)
            with contextlib.suppress(FileExistsError):
                _rename(draft, whole)
        finally:
            shutil.rmtree(draft, ignore_errors=True)
    except OSError as error:
        raise StoreUnwritable(
            f"the template of PostgreSQL's data cannot be made in {str(root)!r}: {error.strerror}: "
            "free some space (50 MB), or name another cache with XDG_CACHE_HOME"
        ) from error
    return whole


def copy(source: Path, target: Path, account: Account | None) -> None:
    """Copy the template to a directory for the account.

    Raises:
        StoreUnwritable: no space, or the directory cannot be written.
    """
    try:
        shutil.copytree(source, target, dirs_exist_ok=True, copy_function=shutil.copyfile)
        own(target, account)
    except (OSError, shutil.Error) as error:
        raise StoreUnwritable(
            f"PostgreSQL's data cannot be written to {str(target)!r} ({error}): free some space "
            "(50 MB), or name another directory"
        ) from error


def own(directory: Path, account: Account | None) -> None:
    """Return the directory and all below to the account, and keep everybody else out."""
    directory.chmod(0o700)
    if account is None:
        return
    for place, _, names in os.walk(directory):
        for path in (place, *(f"{place}/{name}" for name in names)):
            os.chown(path, account.uid, account.gid, follow_symlinks=False)


def _cache() -> Path:
    named = os.environ.get("XDG_CACHE_HOME", "")
    # What the specification says of relative ones: they count as not there.
    return (Path(named) if named.startswith("/") else Path.home() / ".cache") / "kode-lab"


def _rename(draft: Path, whole: Path) -> None:
    try:
        draft.rename(whole)
    except OSError:
        if not whole.is_dir():
            raise
        raise FileExistsError from None  # another process was quicker; one is as good as the other


def _make(draft: Path, binaries: Binaries, account: Account | None) -> None:
    """Fill the draft; initdb works where the account may, the cache may be closed to it."""
    with tempfile.TemporaryDirectory(prefix="kode-pg-") as place:
        work = Path(place)
        password = secrets.token_urlsafe(24)
        (work / PASSWORD).write_text(password)
        own(work, account)
        programs, data = binaries.directory, work / "data"
        making: list[Path | str] = [programs / "initdb", "--pgdata", data, "--username", ROLE]
        making += ["--pwfile", work / PASSWORD, "--auth-local", "trust"]
        making += ["--auth-host", "scram-sha-256", "--encoding", "UTF8", "--locale", "C"]
        _run([*making, "--no-sync"], work, account)
        # The single-user mode: nothing has to listen for that.
        single: list[Path | str] = [programs / "postgres", "--single", "-D", data, "postgres"]
        _run(single, work, account, said=f"CREATE DATABASE {DATABASE}\n")
        (work / "data" / "pg_hba.conf").write_text(_ACCESS)
        shutil.copytree(work / "data", draft, dirs_exist_ok=True)
        (draft / PASSWORD).write_text(password)


def _run(
    command: Sequence[Path | str], work: Path, account: Account | None, *, said: str = ""
) -> None:
    ended = subprocess.run(  # noqa: S603 - the program that was looked for
        command,
        input=said,
        cwd=work,
        env={"LC_ALL": "C"},
        capture_output=True,
        text=True,
        check=False,
        timeout=_INITDB_S,
        user=account and account.uid,
        group=account and account.gid,
        extra_groups=None if account is None else [],
    )
    if ended.returncode or "ERROR:" in ended.stderr:
        raise StoreUnreachable(f"{command[0]} failed: {ended.stderr[-500:]}")
