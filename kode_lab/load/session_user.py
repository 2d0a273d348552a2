"""A Locust user that talks to sessions: open-loop arrivals, a marker in each prompt, all recorded.

    class Ada(SessionUser):
        rate_per_s = 2.0

        def session(self):
            return self.key("ada", "hot")

Turns arrive by a Poisson process whatever the server does: each on a greenlet of its own, and its
time counts from when it was *meant* to be sent. A closed loop, where a slow server slows its own
clients and hides it, is what ``--closed-loop`` asks for.

Source: coordinated omission is Gil Tene's word for what a closed loop hides.
"""

from __future__ import annotations

import json
import random
import time
from contextlib import suppress
from typing import Any

import gevent
from locust import FastHttpUser, task
from locust.exception import StopTest

from kode_lab.history.operation import Effect, echo_in
from kode_lab.key import SessionKey
from kode_lab.load.load_run import listen
from kode_lab.load.ranges import wrong_in
from kode_lab.load.recorder import LATE, Outcome, Recorder

__all__ = ["JSON", "TURNS", "SessionUser", "acknowledged", "outcome_of", "report"]

TURNS = "/v1/turns"
# Refused before anything was accepted. What stands nowhere here may have happened.
DEFINITE = frozenset({400, 401, 403, 404, 405, 409, 411, 413, 414, 415, 421, 422, 429, 431})
# Refused for now: the same turn may be taken later.
NOT_NOW = frozenset({408, 409, 425, 429})
JSON = {"Content-Type": "application/json"}
_PAUSE_S, _PAUSE_LIMIT_S = 0.05, 2.0

listen()


class SessionUser(FastHttpUser):
    """One source of turns; what it talks to and says is its subclass's.

    Attributes:
        rate_per_s: turns that one user begins in a second, on average.
        think_s: between an answer and the next turn, in a closed loop.
        double_share: of the arrivals, how many are two turns of one session at once.
        attempts_limit: how often one turn is sent, under one turn id.
    """

    abstract = True
    # Of one user: more turns than this at once wait in the generator, which it reports as its own.
    concurrency = 1_000
    connection_timeout = 10.0
    network_timeout = 120.0
    rate_per_s = 2.0
    think_s = 0.5
    double_share = 0.0
    attempts_limit = 1
    agent_id = "schedule-assistant"

    def on_start(self) -> None:
        """Draw when the first turn is due, so that users do not fire in phase."""
        options = self.environment.parsed_options
        if wrong := wrong_in(options):  # the web page can change what was right at the start
            raise StopTest(wrong)
        self.recorder: Recorder = self.environment.recorder
        self.number = self.recorder.next_user()
        self.draw = random.Random(f"{options.seed}/{self.recorder.worker}/{self.number}")
        self.rate_per_s = options.rate or self.rate_per_s
        self.is_closed = options.closed_loop
        self.due_ns = time.monotonic_ns()

    def session(self) -> SessionKey:
        """Return the session of the next turn."""
        raise NotImplementedError

    def prompt(self, marker: str) -> str:
        """Return the words of the next turn: by default two model calls and one of a tool."""
        return f"List my schedules for 1 day from tomorrow {marker}"

    def effects_of(self, key: SessionKey, told: Any) -> tuple[Effect, ...] | None:  # noqa: ARG002 - for those with tools
        """Return what tools did, as a session's saved conversation tells it; None: not asked."""
        return None

    def world_of(self, keys: list[SessionKey]) -> list[SessionKey]:  # noqa: ARG002 - as above
        """Return the sessions in which to ask, at the end, for all that tools did."""
        return []

    def effects_told(self, key: SessionKey) -> tuple[Effect, ...] | None:
        """Return what one of these says; None when it cannot say it."""
        raise NotImplementedError(key)

    def key(self, user: str, session: str | None = None) -> SessionKey:
        """Return a session of this run's own user of that name."""
        return SessionKey.of(f"{user}-{self.recorder.tag}", self.agent_id, session)

    @task
    def arrive(self) -> None:
        """Wait until the next turn is due, and begin it."""
        gap_s = self.think_s if self.is_closed else 1 / self.rate_per_s
        self.due_ns += int(self.draw.expovariate(1 / gap_s) * 1e9)
        gevent.sleep(max(0.0, (self.due_ns - time.monotonic_ns()) / 1e9))
        if self.recorder.is_hushed:
            gevent.sleep(1.0)
            return
        key = self.session()
        turn = self.recorder.in_flight.spawn(self.turn, key, self.due_ns)
        if self.draw.random() < self.double_share:
            self.recorder.in_flight.spawn(self.turn, key, self.due_ns)
        if self.is_closed:
            turn.join()
            self.due_ns = time.monotonic_ns()

    def turn(self, key: SessionKey, due_ns: int) -> Outcome:
        """Take one turn of ``key``, sent again while that may help; give how it ended."""
        marker = self.recorder.marker(key)
        self.recorder.count(LATE, time.monotonic_ns() - due_ns)
        body = key.to_json() | {"message": self.prompt(marker), "turnId": marker[1:]}
        outcome = self.attempt(key, marker, body, due_ns)
        pause_s = _PAUSE_S
        for _ in range(self.attempts_limit - 1):
            if outcome.type == "ok" or outcome.is_final:
                break
            gevent.sleep(max(outcome.retry_after_s, pause_s * self.draw.uniform(0.5, 1.5)))
            pause_s = min(2 * pause_s, _PAUSE_LIMIT_S)
            outcome = self.attempt(key, marker, body, time.monotonic_ns())
        return outcome

    def attempt(self, key: SessionKey, marker: str, body: dict[str, Any], due_ns: int) -> Outcome:
        """Send the turn once and record it."""
        data = json.dumps(body)
        process = self.recorder.invoke(key, marker=marker)
        with self.client.post(
            TURNS, data=data, headers=JSON, name="turn", catch_response=True
        ) as response:
            outcome = outcome_of(response, is_read=self.recorder.is_recording)
            self.recorder.complete(process, outcome)
            report(response, outcome, due_ns)
        return outcome


def report(response: Any, outcome: Outcome, due_ns: int) -> None:
    """Tell Locust of an attempt; its time counts from when it was meant to be sent."""
    response.request_meta["response_time"] = (time.monotonic_ns() - due_ns) / 1e6
    if outcome.type == "ok":
        response.success()
    else:
        response.failure(f"{outcome.type}: {outcome.error}")


def outcome_of(response: Any, *, is_read: bool = True) -> Outcome:
    """Return what an answer means: only what is surely refused is ``fail``.

    Args:
        is_read: whether anybody wants to know what the reply says it was shown.
    """
    status, broken = response.status_code, response.request_meta["exception"]
    if status == 200:
        try:
            told = json.loads(response.content)
            return acknowledged(told) if is_read else Outcome("ok")
        except (TypeError, ValueError, KeyError):
            return Outcome("info", f"answer cut: {type(broken).__name__}")
    if not status:
        error = getattr(response, "error", None) or broken
        is_refused = isinstance(error, ConnectionRefusedError)
        return Outcome("fail" if is_refused else "info", type(error).__name__)
    kind = f"{status}"
    with suppress(TypeError, ValueError, KeyError):
        kind += f" {json.loads(response.content)['error']['type']}"
    headers = response.headers or {}
    try:
        retry_after_s = float(headers.get("retry-after", 0))
    except ValueError:
        retry_after_s = 0.0
    return Outcome(
        "fail" if status in DEFINITE else "info",
        kind,
        is_final=400 <= status < 500 and status not in NOT_NOW,
        retry_after_s=retry_after_s,
    )


def acknowledged(told: dict[str, Any]) -> Outcome:
    """Return the outcome of a turn from its reply, with what the reply says the model was shown."""
    echo = echo_in(told["text"])
    answered, read = echo if echo is not None else ("", None)
    return Outcome("ok", "", read, answered, told.get("configVersion", ""), told=told)
