"""Turns as streams of events: time to the first word, time between words, and every stream whole.

A stream that ends without its last event was cut: nobody knows whether its turn was saved.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any

from kode_lab.key import SessionKey
from kode_lab.load.recorder import Outcome
from kode_lab.load.session_user import (
    DEFINITE,
    JSON,
    TURNS,
    SessionUser,
    acknowledged,
    outcome_of,
    report,
)

__all__ = ["Streaming"]

_STREAM = {**JSON, "Accept": "text/event-stream"}
FIRST, BETWEEN = "time to first token", "between tokens"


class Streaming(SessionUser):
    """One who reads while it is written."""

    rate_per_s = 0.5
    double_share = 0.2

    def session(self) -> SessionKey:
        """Return one of this user's two sessions."""
        return self.key(f"reader-{self.recorder.worker}-{self.number}", f"{self.draw.randrange(2)}")

    def attempt(self, key: SessionKey, marker: str, body: dict[str, Any], due_ns: int) -> Outcome:
        """Read the turn's stream to its end and record it."""
        process = self.recorder.invoke(key, marker=marker)
        with self.client.post(
            TURNS,
            data=json.dumps(body),
            headers=_STREAM,
            name="stream",
            stream=True,
            catch_response=True,
        ) as response:
            if response.status_code == 200:
                outcome = self.followed(response, due_ns)
            else:
                outcome = outcome_of(response)
            self.recorder.complete(process, outcome)
            report(response, outcome, due_ns)
        return outcome

    def followed(self, response: Any, due_ns: int) -> Outcome:
        """Return how a stream ended, and count when its words came."""
        latest_ns = 0
        try:
            for kind, data in _events(response):
                now_ns = time.monotonic_ns()
                if kind == "text":
                    self._time(BETWEEN if latest_ns else FIRST, now_ns - (latest_ns or due_ns))
                    latest_ns = now_ns
                elif kind == "done":
                    return acknowledged(data)
                elif kind == "error":
                    status, words = data["error"]["status"], data["error"]["type"]
                    is_refused = status in DEFINITE
                    return Outcome("fail" if is_refused else "info", f"{status} {words}")
        except (OSError, ValueError, KeyError) as error:
            return Outcome("info", f"stream cut: {type(error).__name__}")
        return Outcome("info", "stream cut: no last event")

    def _time(self, name: str, took_ns: int) -> None:
        self.recorder.count(name, took_ns)
        self.environment.events.request.fire(
            request_type="SSE",
            name=name,
            response_time=took_ns / 1e6,
            response_length=0,
            exception=None,
            context={},
        )


def _events(response: Any) -> Iterator[tuple[str, Any]]:
    """Yield each event's name and JSON as it comes; Locust's line reader would wait."""
    kind = ""
    while line := response.stream.readline(b"\n"):
        if line.startswith(b"event: "):
            kind = line[7:].strip().decode()
        elif line.startswith(b"data: "):
            yield kind, json.loads(line[6:])
