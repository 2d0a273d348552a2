"""The one way to start, watch and kill a child process, with everything that it starts itself.

A child leads a process group of its own: a signal reaches what it started too, and Ctrl-C in a
terminal does not. It dies with the process that started it, however that ends: both share a pipe,
and the child's end sees it close. (``PR_SET_PDEATHSIG`` would react to the end of a thread, and
does not reach grandchildren.) Its output goes to a file: an unread pipe would freeze it.

Run as a script (``python child.py FD COMMAND...``), this file is the supervisor that watches the
pipe for a foreign command; for a module of Python (``-m``) a thread inside it does the same.

It must never know what a child does.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

__all__ = ["PYTHON_MODULE", "Child"]

# A command that begins so is run in one process: ``(PYTHON_MODULE, "kode_lab", "serve", ...)``.
PYTHON_MODULE = "python -m"
END_LIMIT_S = 15.0
_POLL_S = 0.02
_LAST_WORDS_BYTES = 4_000
_ERROR = re.compile(r"^\w*(Error|Exception|panic|fatal)\b", re.IGNORECASE)


class Child:
    """A child process group that has begun.

    Attributes:
        pid: of the group's leader, which is also the group's number.
        log: the file that has its output, or None where the caller reads it.
        stdin: its standard input, where it was asked for.
        stdout: its standard output, where it was asked for.
    """

    def __init__(
        self,
        command: Sequence[str],
        *,
        log: Path | None = None,
        env: Mapping[str, str] | None = None,
        cwd: Path | str | None = None,
        is_piped: bool = False,
    ) -> None:
        """Start it.

        Args:
            command: the program and its words, or ``PYTHON_MODULE``, a module and its words.
            log: is appended what it writes; None discards it.
            env: is added to this process's environment.
            cwd: where it runs.
            is_piped: its standard input and output are the caller's; only errors go to the log.

        Raises:
            OSError: the program does not exist or cannot be run.
        """
        self.log = log
        self._name = " ".join(command)[:80]
        self._is_supervised = command[0] != PYTHON_MODULE
        ours, self._tie = os.pipe()
        output: int | IO[bytes] = subprocess.DEVNULL if log is None else log.open("ab")
        words = (
            [sys.executable, "-m", "kode_lab.child", str(ours), *command]
            if not self._is_supervised
            else [sys.executable, "-I", "-S", __file__, str(ours), *command]
        )
        try:
            self._process = subprocess.Popen(  # noqa: S603 - the caller's own command
                words,
                stdin=subprocess.PIPE if is_piped else subprocess.DEVNULL,
                stdout=subprocess.PIPE if is_piped else output,
                stderr=output,
                env={**os.environ, **(env or {})},
                cwd=cwd,
                pass_fds=(ours,),
                start_new_session=True,
            )
        except BaseException:
            os.close(self._tie)
            raise
        finally:
            os.close(ours)
            if not isinstance(output, int):
                output.close()
        self.pid = self._process.pid
        self.stdin = self._process.stdin
        self.stdout = self._process.stdout

    @property
    def is_running(self) -> bool:
        """Whether the leader has not ended."""
        return self._process.poll() is None

    @property
    def status(self) -> int | None:
        """The leader's exit status, negative for a signal; None while it runs."""
        return self._process.poll()

    def last_words(self) -> str:
        """Return the end of what it wrote to its log: the line of an error, then the last line."""
        said = b""
        if self.log is not None and self.log.exists():
            with self.log.open("rb") as file:
                file.seek(max(0, self.log.stat().st_size - _LAST_WORDS_BYTES))
                said = file.read()
        lines = [line.strip() for line in said.decode("utf-8", "replace").splitlines()]
        lines = list(filter(None, lines))
        if not lines:
            return "it wrote nothing"
        # Some runtimes end with a line about themselves, after the error and its trace.
        told = [line for line in lines[:-1] if _ERROR.search(line)][-1:]
        return " ... ".join(dict.fromkeys([*told, lines[-1]]))

    def kill(self) -> None:
        """Kill the whole group as ``kill -9`` does, and wait for its leader's end."""
        self._signal(signal.SIGKILL)
        self._process.wait()
        self._let_go()

    def stop(self, patience_s: float = END_LIMIT_S) -> None:
        """Ask the group to end; kill what is left after ``patience_s``."""
        if self.is_running:
            self._signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(patience_s)
        self.kill()

    def ask_to_end(self) -> None:
        """Ask only the command that was started to end, not what it started itself."""
        if self.is_running:
            os.kill(self.pid, signal.SIGUSR1 if self._is_supervised else signal.SIGTERM)

    async def stopped(self, patience_s: float = END_LIMIT_S) -> None:
        """Do as ``stop``, without blocking the loop."""
        if self.is_running:
            self._signal(signal.SIGTERM)
            await self.ended(patience_s)
        self.kill()

    async def ended(self, limit_s: float) -> bool:
        """Wait for the leader's end; return whether it came in time."""
        due_s = time.monotonic() + limit_s
        while self.is_running and time.monotonic() < due_s:  # noqa: ASYNC110 - no event is sent
            await asyncio.sleep(_POLL_S)
        return not self.is_running

    def wait(self, limit_s: float | None) -> bool:
        """Wait for the leader's end; return whether it came in time; None waits without limit."""
        try:
            self._process.wait(limit_s)
        except subprocess.TimeoutExpired:
            return False
        return True

    def _signal(self, number: int) -> None:
        if self._tie < 0:  # it was killed before, and its number may be another's now
            return
        # The leader may have ended and left others: the group still has its number.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, number)

    def _let_go(self) -> None:
        if self._tie >= 0:
            os.close(self._tie)
            self._tie = -1
        for pipe in (self.stdin, self.stdout):
            if pipe is not None and not pipe.closed:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()

    def __repr__(self) -> str:
        state = "runs" if self.is_running else f"ended with {self.status}"
        return f"<Child {self.pid} {state}: {self._name}>"


def _die_with(fd: int) -> None:
    """Kill this process's group when the other end of the pipe closes."""
    while os.read(fd, 1):
        pass
    os.killpg(os.getpgid(0), signal.SIGKILL)


def _supervise(command: list[str]) -> int:
    """Run a foreign command in this group, and end as it does."""

    def ignore(_number: int, _frame: Any) -> None:
        """Leave it to the command, which got the same signal, to end."""

    try:
        child = subprocess.Popen(command)  # noqa: S603 - the caller's own command
    except OSError as error:
        sys.stderr.write(f"{command[0]}: {error.strerror}\n")
        return 127
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, ignore)
    signal.signal(signal.SIGUSR1, lambda *_: child.send_signal(signal.SIGTERM))
    for pipe in (0, 1):
        os.close(pipe)
    status = child.wait()
    if status < 0:
        if -status not in (signal.SIGKILL, signal.SIGSTOP):
            signal.signal(-status, signal.SIG_DFL)
        os.kill(os.getpid(), -status)
    return status


if __name__ == "__main__":
    tie = int(sys.argv[1])
    os.set_inheritable(tie, False)
    threading.Thread(target=_die_with, args=(tie,), name="die with parent", daemon=True).start()
    if sys.argv[2] == PYTHON_MODULE:
        import runpy

        module, sys.argv = sys.argv[3], sys.argv[3:]
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    else:
        sys.exit(_supervise(sys.argv[2:]))
