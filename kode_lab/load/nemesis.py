"""Breaks things while they are loaded: kills the service, and spoils the simulated model's answers.

Each kill and each return stands in the history, so that the judge knows what had to be survived. A
server is killed by the pid in its file, and what started it (``kode-lab load``, a service manager)
starts it again and renews the file; a target is killed and started again by its gateway.
"""

from __future__ import annotations

import json
import logging
import os
import random
import signal
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import gevent

from kode_lab.load.recorder import Recorder

__all__ = ["MODEL_FAULTS", "Nemesis"]

_LOG = logging.getLogger("kode_lab.load")
_READY_S = 60.0
# Of the model's answers: too many requests, overloaded, slow, cut in the middle, no answer at all.
MODEL_FAULTS = (
    {"kind": "status", "status": 429, "share": 0.02, "retry_after_s": 0.1},
    {"kind": "status", "status": 529, "share": 0.02},
    {"kind": "slow", "delay_s": 0.5, "share": 0.02},
    {"kind": "cut", "share": 0.01},
    {"kind": "reset", "share": 0.01},
)


class Nemesis:
    """Kills the service ``kills`` times in ``for_s`` seconds, at moments drawn by the seed."""

    def __init__(self, environment: Any, kills: int, for_s: float) -> None:
        options = environment.parsed_options
        self._recorder: Recorder = environment.load_run.recorder
        self._pid_file, self._model_url = options.server_pid, options.model_url
        self._gateway = options.target_gateway
        self._host = environment.host
        self._draw = random.Random(options.seed)
        self.killed = 0
        self._is_over = False
        # Kills come after the first part and before the last one, so that each meets turns.
        self._gap_s = for_s / (kills + 1)
        self._kills = kills if self._pid_file or self._gateway else 0
        if self._gateway and "durable" not in environment.load_run.target.declaration.promises:
            # What such a target loses in a crash is not held against it, so it is not killed.
            _LOG.warning("not killed: the target does not promise that sessions survive a crash")
            self._kills = 0
        self._worker = gevent.spawn(self._break)

    def end(self) -> None:
        """Break nothing more; wait until the service is back, and heal the model."""
        self._is_over = True
        self._worker.join(timeout=_READY_S + self._gap_s)
        if self._kills and not self.killed:  # a run that was cut short has a crash all the same
            self._kill()
        if self._model_url:
            _send("DELETE", f"{self._model_url}/lab/faults")
        if self._pid_file and not self._is_ready():
            _LOG.error("the server did not come back")
        _LOG.info("the service was killed %d times", self.killed)

    def _break(self) -> None:
        for fault in MODEL_FAULTS if self._model_url else ():
            _send("POST", f"{self._model_url}/lab/faults", fault | {"times": None})
        began_s = time.monotonic()
        while self.killed < self._kills and not self._is_over:
            due_s = began_s + self._gap_s * (self.killed + self._draw.uniform(0.6, 1.4))
            while time.monotonic() < due_s and not self._is_over:
                gevent.sleep(0.05)
            if not self._is_over:
                self._kill()

    def _kill(self) -> None:
        self._recorder.fault("kill", "the service, by SIGKILL")
        self.killed += 1
        if self._gateway:
            _send("POST", f"{self._gateway}/kill")
            if _send("POST", f"{self._gateway}/restart") == 200:
                self._recorder.fault("restart")
            return
        pid = self._pid()
        os.kill(pid, signal.SIGKILL)
        limit_s = time.monotonic() + _READY_S
        while time.monotonic() < limit_s:
            if self._pid() != pid and self._is_ready():
                self._recorder.fault("restart")
                return
            gevent.sleep(0.05)
        _LOG.error("the server did not come back within _READY_S=%g", _READY_S)

    def _pid(self) -> int:
        return int(Path(self._pid_file).read_text("utf-8"))

    def _is_ready(self) -> bool:
        return _send("GET", f"{self._host}/readyz") == 200


def _send(method: str, url: str, body: Any = None) -> int:
    """Send one request of which Locust's figures know nothing; return its status, or 0."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"}, method=method)  # noqa: S310 - as the user said
    try:
        with urllib.request.urlopen(request, timeout=_READY_S) as answer:  # noqa: S310 - as above
            status: int = answer.status
            return status
    except urllib.error.HTTPError as error:
        return error.code
    except (OSError, ValueError):
        return 0
