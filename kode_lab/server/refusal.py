"""The answers without a reply: one JSON shape, one status for each kind of error.

    {"error": {"type": "WaitingRoomFull", "message": "…", "status": 429, "turnId": "…"}}

It owns the table from our errors to statuses. An answer never holds a path, a secret or a stack
trace: if an error is about the server's own side (its files, its disk, its model's service), the
client gets the type and what to do, and the server's log gets the error's words.

A client may rely on the status alone: every 4xx but 410 is *definite*, the turn is not in the
session and never will be; 410, every 5xx and every connection that ends without an answer are
*indeterminate*, and the same turnId sent again finds out.

Source: RFC 9110 (statuses, Retry-After), RFC 6585 (429, 431).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import orjson

from kode_lab.errors import (
    AlreadyAnswered,
    DeadlineExceeded,
    Draining,
    InvalidConfig,
    InvalidKey,
    InvalidPrompt,
    KodeLabError,
    ModelGarbage,
    ModelRefused,
    ModelUnavailable,
    NewerFormat,
    Refused,
    SelfDeadlock,
    SessionBusy,
    SessionDamaged,
    StaleLease,
    StepLimitReached,
    StoreError,
    StoreUnreachable,
    Superseded,
    TurnFailed,
    TurnPending,
    TurnsMissing,
    UnknownAgent,
    UnknownCall,
    UnknownTool,
    WaitingRoomFull,
    WrongOwner,
)

__all__ = ["JSON", "LOST", "NO_STORE", "Problem", "Rejected", "problem_of"]

JSON = (b"content-type", b"application/json")
NO_STORE = (b"cache-control", b"no-store")
_RETRY_AFTER_LIMIT_S = 3_600.0
_AGAIN = "send the turn again with the same turnId"


class Rejected(Exception):
    """The server refuses a request before anything is accepted; raised on the way to an answer.

    Attributes:
        kind: the ``type`` in the answer.
        headers: sent with it.
    """

    def __init__(
        self,
        status: int,
        kind: str,
        message: str,
        *,
        retry_after_s: float | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.kind = kind
        self.retry_after_s = retry_after_s
        self.headers = dict(headers or {})


class Problem(NamedTuple):
    """An answer without a reply."""

    status: int
    kind: str
    message: str
    retry_after_s: float | None = None
    headers: Mapping[str, str] = {}
    details: Mapping[str, Any] = {}

    def to_json(self, turn_id: str | None = None) -> dict[str, Any]:
        """Return the one shape of all errors."""
        error = {"type": self.kind, "message": self.message, "status": self.status, **self.details}
        return {"error": error | {"turnId": turn_id} if turn_id else error}

    def body(self, turn_id: str | None = None) -> bytes:
        """Return the shape as bytes."""
        return orjson.dumps(self.to_json(turn_id))

    def raw_headers(self, length: int) -> list[tuple[bytes, bytes]]:
        """Return the headers of an answer with a body of ``length`` bytes."""
        headers = [JSON, NO_STORE, (b"content-length", b"%d" % length)]
        if self.retry_after_s is not None:
            # The service behind the model may say anything; a client must be able to obey.
            seconds = min(max(1.0, self.retry_after_s), _RETRY_AFTER_LIMIT_S)
            headers.append((b"retry-after", b"%d" % math.ceil(seconds)))
        return headers + [(n.encode(), v.encode("latin-1")) for n, v in self.headers.items()]


LOST = Problem(
    503,
    "WorkerLost",
    "the process that took this turn ended before it answered: send it again with the same turnId",
    1.0,
)

# The first class that fits decides. A sentence replaces the error's own words where they are not
# for clients; None passes them on.
_TABLE: tuple[tuple[type[KodeLabError], int, float | None, str | None], ...] = (
    (UnknownAgent, 404, None, "there is no such agent: ask the server's operator which there are"),
    (InvalidConfig, 503, 30, "the agent's configuration is broken: its operator has to mend it"),
    (UnknownTool, 503, 30, "the agent's configuration is broken: its operator has to mend it"),
    (UnknownCall, 404, None, None),
    (AlreadyAnswered, 409, None, None),
    (InvalidKey, 422, None, None),
    (InvalidPrompt, 422, None, None),
    (SessionBusy, 409, 1, None),
    (SelfDeadlock, 409, None, None),
    (WaitingRoomFull, 429, 1, None),
    (Draining, 503, 5, "the server is shutting down: send the turn again, to another or later"),
    (Refused, 429, 1, None),
    (DeadlineExceeded, 504, 1, None),
    (StepLimitReached, 502, None, None),
    (TurnPending, 502, None, None),
    (Superseded, 410, None, None),
    (ModelRefused, 502, None, "the model's service refused the request; its operator has to look"),
    (ModelUnavailable, 502, 2, f"the model's service could not answer: {_AGAIN}"),
    (ModelGarbage, 502, None, f"the model's service answered no reply: {_AGAIN}"),
    (TurnFailed, 502, None, f"the turn ended without a reply: {_AGAIN}"),
    (WrongOwner, 403, None, "this session cannot be used: choose another sessionId"),
    (SessionDamaged, 500, None, "what is stored of this session is damaged: it was left as it is"),
    (TurnsMissing, 500, None, "saved turns of this session are missing: its operator has to look"),
    (NewerFormat, 500, None, "what is stored of this session needs a newer server"),
    (StaleLease, 503, 1, f"another process took the session over: {_AGAIN}"),
    (StoreUnreachable, 503, 2, f"the database does not answer now: {_AGAIN}"),
    (StoreError, 503, 2, f"the session's storage cannot be used now: {_AGAIN}"),
)
_UNEXPECTED = f"the server made a mistake, and its log says which: {_AGAIN}"


def problem_of(error: BaseException) -> Problem:
    """Return the answer to this error."""
    if isinstance(error, Rejected):
        return Problem(error.status, error.kind, str(error), error.retry_after_s, error.headers)
    for kind, status, retry_after_s, said in _TABLE:
        if isinstance(error, kind):
            asked_s = getattr(error, "retry_after_s", None)
            name = type(error).__name__
            questions = getattr(error, "questions", None)
            details = {"questions": questions} if questions else {}
            return Problem(
                status, name, said or str(error), asked_s or retry_after_s, details=details
            )
    return Problem(500, "InternalError", _UNEXPECTED)
