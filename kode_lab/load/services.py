"""The simulated Claude and the server of a load test, as children of this process.

Each writes what it says to a file: an unread pipe would freeze it. The server is started again when
it dies, on the port it had, as a service manager would: a load test may kill it by the pid in its
file. All of them end with ``close``.
"""

from __future__ import annotations

import re
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import IO

from kode_lab.errors import InvalidScenario

__all__ = ["RESTARTS_LIMIT", "Service"]

# More deaths than any chaos needs: a server that cannot start would be started for ever.
RESTARTS_LIMIT = 1_000
_READY_S, _END_S = 30.0, 15.0
_URL = re.compile(rb"http://127\.0\.0\.1:\d+")


class Service:
    """``kode-lab`` with some words, as a child that has said where it listens.

    Attributes:
        url: where.
        restarts: how often it died and was started again.

    Raises:
        InvalidScenario: it did not start; its own words say why.
    """

    def __init__(self, words: Sequence[str], log: Path, *, pid_file: Path | None = None) -> None:
        self._words = list(words)
        self._log = log
        self._pid_file = pid_file
        self._is_closing = threading.Event()
        self.restarts = 0
        self._output: IO[bytes] = log.open("ab")
        self._process = self._started([*words, "--port", "0"])
        self.url = self._address()
        self._keeper: threading.Thread | None = None
        if pid_file is not None:
            self._keeper = threading.Thread(target=self._keep, daemon=True)
            self._keeper.start()

    @property
    def pid(self) -> int:
        """Of the child as it is now."""
        return self._process.pid

    def close(self) -> None:
        """End it in good order, or else at once."""
        self._is_closing.set()
        self._process.terminate()
        try:
            self._process.wait(_END_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if self._keeper is not None:
            self._keeper.join()
        self._let_go()
        self._output.close()

    def _let_go(self) -> None:
        """Close our end of the pipe to a child that has ended."""
        assert self._process.stdin is not None
        self._process.stdin.close()

    def _started(self, words: Sequence[str]) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(  # noqa: S603 - our own command
            # Hung on a pipe of ours: killed ourselves, we leave nothing behind.
            [sys.executable, "-m", "kode_lab.lab.die_with_parent", *words],
            stdin=subprocess.PIPE,
            stdout=self._output,
            stderr=self._output,
            # Ctrl-C in a terminal is for the load test, which ends first.
            start_new_session=True,
        )
        if self._pid_file is not None:
            fresh = self._pid_file.with_suffix(".fresh")
            fresh.write_text(f"{process.pid}\n")
            fresh.replace(self._pid_file)
        return process

    def _address(self) -> str:
        due_s = time.monotonic() + _READY_S
        ended = f"within {_READY_S:g} s"
        while time.monotonic() < due_s:
            if found := _URL.search(self._log.read_bytes()):
                return found[0].decode()
            if self._process.poll() is not None:
                ended = "but ended"
                break
            time.sleep(0.02)
        self._process.kill()
        self._process.wait()
        self._let_go()
        self._output.close()
        said = self._log.read_text("utf-8", "replace").strip().splitlines()
        raise InvalidScenario(
            f"kode-lab {self._words[0]} did not start {ended}: "
            f"{said[-1] if said else 'it said nothing'}"
        )

    def _keep(self) -> None:
        """Start it again, on the same port, whenever it dies."""
        port = self.url.rpartition(":")[2]
        while self.restarts < RESTARTS_LIMIT:
            self._process.wait()
            if self._is_closing.is_set():
                return
            self._let_go()
            self.restarts += 1
            self._process = self._started([*self._words, "--port", port])
            if self._is_closing.is_set():
                self._process.terminate()
