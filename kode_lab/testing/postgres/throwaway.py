"""One PostgreSQL server, started from a copy of the template; it ends with its parent process.

It owns the server's process and its data. The server listens on a Unix socket in a directory of its
own, and on loopback's TCP only when asked. It never runs as root. This file knows nothing of what
is stored.

The parent holds the only end of a pipe. When that end closes without a message, a small shell
beside the server stops it and removes its home: log, socket, and data that are not kept. So the
server ends however its parent ends. (``PR_SET_PDEATHSIG`` would react to the end of the thread.)
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Self
from urllib.parse import quote

from kode_lab.errors import (
    InvalidScenario,
    PortOccupied,
    PostgresMissing,
    StoreUnreachable,
    StoreUnwritable,
)
from kode_lab.testing.postgres.binaries import Binaries, find_binaries, server_account
from kode_lab.testing.postgres.template import DATABASE, PASSWORD, ROLE, copy, own, template

__all__ = ["ThrowawayPostgres"]

# sun_path, less the NUL that ends it.
_SOCKET_PATH_LIMIT_BYTES = 107
_PORT = 5432
_PORT_LIMIT = 65_535
_READY_S = 30.0
# After the longest recovery of what a laboratory wrote.
_STOP_S = 15.0
_LOOK_S = 0.004
_LOG_CHARS = 600
_PID_LINES = 8
# exec keeps the pid, so the shell's number is the server's; the watcher forks twice, and is
# thereby a child of init; it holds the pipe's other end.
_BESIDE = """
exec 3<&0
( ( exec >/dev/null 2>&1
    read -r word
    [ "$word" = keep ] && exit
    kill -INT $$
    for _ in 0 1 2 3 4 5 6 7 8 9; do
        for _ in 0 1 2 3 4 5 6 7 8 9; do [ -e "$2/postmaster.pid" ] && sleep 0.05; done
    done
    [ -e "$2/postmaster.pid" ] && kill -QUIT $$
    rm -rf -- "$1"
  ) <&3 & ) </dev/null
exec 3<&-
shift 2
exec "$@" </dev/null
"""


class ThrowawayPostgres:
    """A PostgreSQL server from ``start`` to ``stop``; ``with`` and ``async with`` call both.

    Args:
        settings: of PostgreSQL, such as ``{"fsync": "off"}``.
        port: listen on loopback's TCP, too; 0 is any free port.
        data: keep the data in this directory, which is made if missing; None deletes it.
        binaries: instead of what ``find_binaries`` finds.
        cache: where the template is kept; None is the user's cache.

    Raises:
        PostgresMissing: there are no binaries.
        PortOccupied: another process listens on the port.
        StoreUnwritable: no space, or the directory cannot be used.
        InvalidScenario: the port is not valid.
        StoreUnreachable: it did not start; the end of its log is in the message.
    """

    def __init__(
        self,
        *,
        settings: Mapping[str, str] | None = None,
        port: int | None = None,
        data: Path | None = None,
        binaries: Binaries | None = None,
        cache: Path | None = None,
    ) -> None:
        if port is not None and not 0 <= port <= _PORT_LIMIT:
            raise InvalidScenario(
                f"port {port} is not valid: choose 1 to {_PORT_LIMIT}, or 0 for any free one"
            )
        self.binaries = find_binaries() if binaries is None else binaries
        self.port = port
        self._settings = dict(settings or {})
        self._kept = None if data is None else Path(data).absolute()
        self._cache = cache
        self._account = server_account()
        self._home: Path | None = None
        self._server: subprocess.Popen[bytes] | None = None
        self._pipe = -1
        self._password = ""

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    async def __aenter__(self) -> Self:
        await asyncio.to_thread(self.start)
        return self

    async def __aexit__(self, *_: object) -> None:
        await asyncio.to_thread(self.stop)

    @property
    def dsn(self) -> str:
        """The DSN of its Unix socket, without a password."""
        where = f"host={quote(str(self._sockets))}&port={self.port or _PORT}"
        return f"postgresql://{ROLE}@/{DATABASE}?{where}"

    def tcp_dsn(self, port: int | None = None) -> str:
        """Return the DSN of its TCP port, or of the port of a proxy in front of it."""
        number = self.port if port is None else port
        return f"postgresql://{ROLE}:{self._password}@127.0.0.1:{number}/{DATABASE}"

    @property
    def socket_path(self) -> Path:
        """The Unix socket itself, for a proxy in front of it."""
        return self._sockets / f".s.PGSQL.{self.port or _PORT}"

    @property
    def data(self) -> Path:
        """The directory of its data."""
        return self._home_or_raise() / "data" if self._kept is None else self._kept

    @property
    def log(self) -> str:
        """Its log so far."""
        return (self._home_or_raise() / "log").read_text(errors="replace")

    @property
    def pid(self) -> int:
        """The number of its process, 0 when it does not run."""
        return self._server.pid if self._server is not None and self.is_running else 0

    @property
    def is_running(self) -> bool:
        """Whether its process is there."""
        return self._server is not None and self._server.poll() is None

    def start(self) -> None:
        """Start it with the data that exists; return when it accepts connections."""
        if self.is_running:
            return
        is_new = self._home is None
        try:
            if is_new:
                self._move_in()
            self._spawn()
            self._await_ready()
        except BaseException:
            self.kill9()
            if is_new:
                self.stop()
            raise

    def kill9(self) -> None:
        """Kill all its processes at once, as ``kill -9`` does; ``start`` goes on with the data."""
        self._leave_alone()
        if self._server is None or not self.is_running:
            return
        family = [self._server.pid, *_children(self._server.pid)]
        for pid in family:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._server.wait(_STOP_S)
        until_s = time.monotonic() + _STOP_S
        while any(map(_is_alive, family)) and time.monotonic() < until_s:
            time.sleep(_LOOK_S)

    def stop(self) -> None:
        """Stop it, and delete its data unless they are kept; a second call does nothing."""
        self._leave_alone()
        if self._server is not None and self.is_running:
            self._server.send_signal(signal.SIGINT)  # "fast": clients are cut off
            try:
                self._server.wait(_STOP_S)
            except subprocess.TimeoutExpired:
                self.kill9()
        self._server = None
        if self._home is not None:
            shutil.rmtree(self._home, ignore_errors=True)
            self._home = None

    # ---- inside

    @property
    def _sockets(self) -> Path:
        return self._home_or_raise() / "s"

    def _home_or_raise(self) -> Path:
        if self._home is None:
            raise StoreUnreachable("this PostgreSQL was not started, or was stopped: start() it")
        return self._home

    def _move_in(self) -> None:
        source = template(self.binaries, self._account, self._cache)
        home = Path(tempfile.mkdtemp(prefix="kode-pg-"))
        if len(os.fsencode(home / "s/.s.PGSQL.65535")) > _SOCKET_PATH_LIMIT_BYTES:
            home.rmdir()
            home = Path(tempfile.mkdtemp(prefix="kode-pg-", dir="/tmp"))
        self._home = home
        (home / "s").mkdir()
        (home / "log").touch()
        own(home, self._account)
        if self._is_ours():
            self._take_over(self.data)
        else:
            copy(source, self.data, self._account)
        self._password = (self.data / PASSWORD).read_text()

    def _is_ours(self) -> bool:
        """Whether the directory has PostgreSQL's data already; other content is refused."""
        try:
            if (self.data / "PG_VERSION").exists():
                return True
            is_free = not self.data.exists() or not any(self.data.iterdir())
        except OSError as error:
            raise StoreUnwritable(f"{str(self.data)!r} cannot be used: {error.strerror}") from error
        if not is_free:
            raise StoreUnwritable(
                f"{str(self.data)!r} is not empty and holds no PostgreSQL data: name another "
                "directory, or empty this one"
            )
        return False

    def _take_over(self, data: Path) -> None:
        """Check that these binaries can use the data that exists."""
        try:
            form = (data / "PG_VERSION").read_text().strip()
            own(data, self._account)
        except OSError as error:
            raise StoreUnwritable(f"{str(data)!r} cannot be used: {error.strerror}") from error
        if form != self.binaries.version.partition(".")[0]:
            raise PostgresMissing(
                f"{str(data)!r} was made by PostgreSQL {form}, and {self.binaries.directory} holds "
                f"{self.binaries.version}: install {form}, or name another directory"
            )

    def _spawn(self) -> None:
        if self.port is not None:
            self.port = _free_port(self.port)
        settings = {
            "listen_addresses": "127.0.0.1" if self.port else "",
            "port": str(self.port or _PORT),
            "unix_socket_directories": str(self._sockets),
            "logging_collector": "off",
            **self._settings,
        }
        command = [
            *("/bin/sh", "-c", _BESIDE, "kode-lab-postgres"),
            *(str(self._home), str(self.data)),  # data that are kept are not in the home
            *(str(self.binaries.directory / "postgres"), "-D", str(self.data)),
            *(f"--{name}={value}" for name, value in settings.items()),
        ]
        reading, self._pipe = os.pipe()
        account = self._account
        try:
            with (self._home_or_raise() / "log").open("ab") as log:
                self._server = subprocess.Popen(  # noqa: S603 - the program that was looked for
                    command,
                    stdin=reading,
                    stdout=log,
                    stderr=log,
                    cwd=self._home,
                    env={"LC_ALL": "C", "PATH": os.environ.get("PATH", os.defpath)},
                    start_new_session=True,  # Ctrl-C is for the parent
                    user=account and account.uid,
                    group=account and account.gid,
                    extra_groups=None if account is None else [],
                )
        finally:
            os.close(reading)

    def _await_ready(self) -> None:
        """Wait for the status that the server itself writes into ``postmaster.pid``."""
        said = self.data / "postmaster.pid"
        until_s = time.monotonic() + _READY_S
        while time.monotonic() < until_s:
            if not self.is_running:
                raise StoreUnreachable(f"PostgreSQL did not start: {self.log[-_LOG_CHARS:]}")
            with contextlib.suppress(FileNotFoundError):
                lines = said.read_text().splitlines()
                is_ready = len(lines) >= _PID_LINES and lines[_PID_LINES - 1].strip() == "ready"
                if is_ready and lines[0] == str(self.pid):
                    return
            time.sleep(_LOOK_S)
        raise StoreUnreachable(
            f"PostgreSQL is not ready after {_READY_S=}: {self.log[-_LOG_CHARS:]}"
        )

    def _leave_alone(self) -> None:
        """End the watcher: from here on this process stops the server itself."""
        if self._pipe >= 0:
            with contextlib.suppress(BrokenPipeError):
                os.write(self._pipe, b"keep\n")
            os.close(self._pipe)
            self._pipe = -1


def _free_port(port: int) -> int:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            raise PortOccupied(
                f"port {port} of 127.0.0.1 cannot be used ({error.strerror}): name another, or 0 "
                "for any free one"
            ) from error
        number: int = probe.getsockname()[1]
        return number


def _children(pid: int) -> list[int]:
    """Return a process's children, or none where the system has no such file."""
    try:
        return list(map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split()))
    except OSError:
        return []


def _is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][:1] not in "ZX"
    except OSError:
        return False
