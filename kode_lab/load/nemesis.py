"""Breaks things while they are loaded: kills the server by its pid, and spoils the model's answers.

Each kill and each return stands in the history, so that the judge knows what had to be survived.
Whoever keeps the server alive (``kode-lab load``, a service manager) has to start it again and to
renew the file with its pid.
"""

from __future__ import annotations

import json
import logging
import os
import random
import signal
import time
from pathlib import Path
from typing import Any

import gevent
from locust.contrib.fasthttp import FastHttpSession
from locust.event import EventHook

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
    """Kills the server ``kills`` times in ``for_s`` seconds, at moments drawn by the seed."""

    def __init__(self, environment: Any, kills: int, for_s: float) -> None:
        options = environment.parsed_options
        self._recorder: Recorder = environment.recorder
        self._pid_file, self._model_url = options.server_pid, options.model_url
        self._draw = random.Random(options.seed)
        self._server = _session(environment.host)
        self._model = _session(self._model_url) if self._model_url else None
        self.killed = 0
        self._is_over = False
        # Kills come after the first part and before the last one, so that each meets turns.
        self._gap_s = for_s / (kills + 1)
        self._kills = kills
        self._worker = gevent.spawn(self._break)

    def end(self) -> None:
        """Break nothing more; wait until the server is back, and heal the model."""
        self._is_over = True
        self._worker.join(timeout=_READY_S + self._gap_s)
        if self._model is not None:
            self._model.delete("/lab/faults")
        if self._pid_file and not self._is_ready():
            _LOG.error("the server did not come back")
        _LOG.info("the server was killed %d times", self.killed)

    def _break(self) -> None:
        model = self._model
        for fault in MODEL_FAULTS if model is not None else ():
            assert model is not None
            model.post("/lab/faults", data=json.dumps(fault | {"times": None}))
        began_s = time.monotonic()
        while self._pid_file and self.killed < self._kills and not self._is_over:
            due_s = began_s + self._gap_s * (self.killed + self._draw.uniform(0.6, 1.4))
            while time.monotonic() < due_s and not self._is_over:
                gevent.sleep(0.05)
            if not self._is_over:
                self._kill()

    def _kill(self) -> None:
        pid = self._pid()
        self._recorder.fault("kill", "the server, by SIGKILL")
        os.kill(pid, signal.SIGKILL)
        self.killed += 1
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
        return self._server.get("/readyz").status_code == 200


def _session(base_url: str) -> FastHttpSession:
    """Return a client of which Locust's figures know nothing."""
    return FastHttpSession(base_url, EventHook(), None, network_timeout=10, connection_timeout=5)
