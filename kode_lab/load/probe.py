"""The last questions of a run: every session is asked for one more turn, and then read.

A lock that leaked, or a session that was damaged, shows only here; and without the authoritative
read it cannot be known whether an acknowledged turn was kept. The probes are recorded like all
turns, but are no load: Locust's figures do not count them.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Any

import gevent
from gevent.pool import Pool

from kode_lab.history.operation import QUIET
from kode_lab.key import SessionKey
from kode_lab.load.recorder import Recorder

__all__ = ["probe"]

PROBES_AT_ONCE = 16
ATTEMPTS_LIMIT = 20
_PAUSE_S = 0.25


def probe(environment: Any, recorder: Recorder, keys: Iterable[SessionKey]) -> None:
    """Declare all faults over; take one turn of each session, read it, and ask what tools did."""
    user = environment.user_classes[0](environment)
    user.on_start()
    user.attempts_limit = ATTEMPTS_LIMIT
    recorder.fault(QUIET)
    pool = Pool(PROBES_AT_ONCE)
    asked = list(keys)
    for key in asked:
        pool.spawn(_ask, user, key)
    pool.join()
    if getattr(user, "has_tools", False):
        for key in {key.user_id: key for key in asked}.values():
            pool.spawn(user.ask_world, key)
        pool.join()


def _ask(user: Any, key: SessionKey) -> None:
    user.take_turn(key, time.monotonic_ns(), is_load=False)
    if not user.declaration.has_history:
        return
    for _ in range(ATTEMPTS_LIMIT):
        if not user.read_back(key):
            return
        gevent.sleep(_PAUSE_S)
