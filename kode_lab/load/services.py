"""The simulated Claude and the server of a load test, as children of this process.

Each writes what it says to a file: an unread pipe would freeze it. The server is started again when
it dies, on the port it had, as a service manager would: a load test may kill it by the pid in its
file. All of them end with ``close``.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from kode_lab.child import PYTHON_MODULE, Child
from kode_lab.errors import InvalidScenario

__all__ = ["RESTARTS_LIMIT", "Service", "start_target"]

# More deaths than any chaos needs: a server that cannot start would be restarted without end.
RESTARTS_LIMIT = 1_000
_READY_S = 90.0
_POLL_S = 0.2
_URL = re.compile(rb"http://127\.0\.0\.1:\d+")


class Service:
    """``kode-lab`` with some words, as a child that has said where it listens.

    Attributes:
        url: where.
        restarts: how often it died and was started again.

    Raises:
        InvalidScenario: it did not start; its own words say why.
    """

    def __init__(
        self,
        words: Sequence[str],
        log: Path,
        *,
        pid_file: Path | None = None,
        module: str = "kode_lab",
    ) -> None:
        """Start it and wait for its address.

        Args:
            words: of its command line, without a port.
            log: is appended what it writes.
            pid_file: is given its pid; it is started again when it dies.
            module: what of Python is run.
        """
        self._module = module
        self._words = list(words)
        self._log = log
        self._pid_file = pid_file
        self._is_closing = threading.Event()
        self.restarts = 0
        self._child = self._started([*words, "--port", "0"])
        self.url = self._address()
        self._keeper: threading.Thread | None = None
        if pid_file is not None:
            self._keeper = threading.Thread(target=self._keep, daemon=True)
            self._keeper.start()

    @property
    def pid(self) -> int:
        """Of the child as it is now."""
        return self._child.pid

    def close(self) -> None:
        """End it in good order, or else at once."""
        self._is_closing.set()
        if self._keeper is not None:
            self._keeper.join()
        self._child.stop()

    def _started(self, words: Sequence[str]) -> Child:
        child = Child((PYTHON_MODULE, self._module, *words), log=self._log)
        if self._pid_file is not None:
            fresh = self._pid_file.with_suffix(".fresh")
            fresh.write_text(f"{child.pid}\n")
            fresh.replace(self._pid_file)
        return child

    def _address(self) -> str:
        due_s = time.monotonic() + _READY_S
        ended = f"within {_READY_S:g} s"
        while time.monotonic() < due_s:
            if found := _URL.search(self._log.read_bytes()):
                return found[0].decode()
            if not self._child.is_running:
                ended = "but ended"
                break
            time.sleep(0.02)
        self._child.kill()
        raise InvalidScenario(f"{self._words[0]} did not start {ended}: {self._child.last_words()}")

    def _keep(self) -> None:
        """Start it again, on the same port, whenever it dies."""
        port = self.url.rpartition(":")[2]
        while self.restarts < RESTARTS_LIMIT and not self._is_closing.is_set():
            if self._child.wait(_POLL_S) and not self._is_closing.is_set():
                self._child.kill()
                self.restarts += 1
                self._child = self._started([*self._words, "--port", port])


def start_target(
    target: str, logs: Path, model_url: str = "", model_words: Sequence[str] = ()
) -> list[Service]:
    """Start a target behind its gateway, and before it the simulated model where none is given.

    Returns:
        The services, the gateway last.

    Raises:
        InvalidScenario: one did not start; its own words say why.
    """
    services: list[Service] = []
    if not model_url:
        services.append(Service(["simulate", *model_words], logs / "simulated.log"))
        model_url = services[0].url
    try:
        words = [target, "--model-url", model_url]
        gateway = Service(words, logs / "target.log", module="kode_lab.targets.gateway")
    except InvalidScenario:
        for service in services:
            service.close()
        raise
    return [*services, gateway]
