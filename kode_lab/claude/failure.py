"""Translates an error answer of the Messages API into one of our errors.

It says what went wrong and what to do, decides which errors are worth another try, and reads when
the service wants it. It must not send anything itself.

Source: https://docs.claude.com/en/api/errors (statuses, error types, ``request_id``, and that a
stream that began with 200 may still carry an error); RFC 9110, section 10.2.3 (``Retry-After``);
anthropic's SDK (``retry-after-ms`` before ``retry-after``, ``x-should-retry`` before the status).
"""

from __future__ import annotations

import math
import time
from email.utils import mktime_tz, parsedate_tz
from typing import Any

import orjson

from kode_lab.errors import ModelRefused, ModelUnavailable, TurnFailed

__all__ = ["RETRY_AFTER_LIMIT_S", "failure_of", "retry_after_s", "streamed_failure_of"]

# A longer wait that a service asks for is cut to this: a day.
RETRY_AFTER_LIMIT_S = 86_400.0
# 4xx that mean "not now" rather than "wrong": request time-out, conflict, rate limit.
_NOT_NOW = frozenset({408, 409, 429})
# Inside a stream the status is always 200, so the error's type decides.
_WRONG_TYPES = frozenset(
    {
        "authentication_error",
        "billing_error",
        "invalid_request_error",
        "not_found_error",
        "permission_error",
        "request_too_large",
    }
)
_ADVICE = {
    400: "correct the conversation or its parameters; sending it again will not help",
    401: "check the API key",
    402: "check the account's billing",
    403: "use a key that has this permission",
    404: "check the model's name and the address",
    413: "shorten the conversation",
    429: "wait and send again, or lower the concurrency",
}


def failure_of(status: int, headers: Any, body: bytes, where: str) -> TurnFailed:
    """Return our error for an answer with an error status.

    Args:
        headers: with ``get``, by lower-case name.
        body: as it came.
        where: names the service.
    """
    request_id = headers.get("request-id", "unknown")
    kind, said = _told(_parsed(body))
    said = said or f"{body[:200].decode(errors='replace').strip() or 'it says no more'}"
    what = f"{where} answered {status} {kind} (request {request_id}): {said}"
    should_retry = {"true": True, "false": False}.get(headers.get("x-should-retry", ""))
    if 400 <= status < 500 and status not in _NOT_NOW and not should_retry:
        return ModelRefused(f"{what}; {_ADVICE.get(status, _ADVICE[400])}")
    return ModelUnavailable(
        f"{what}; {_ADVICE.get(status, 'send again later')}",
        retry_after_s=retry_after_s(headers),
        is_retryable=should_retry is not False,
    )


def streamed_failure_of(data: bytes, request_id: str, where: str) -> TurnFailed:
    """Return our error for an ``error`` event inside a stream."""
    kind, said = _told(_parsed(data))
    said = said or data[:200].decode(errors="replace")
    what = f"{where} broke off its stream with {kind} (request {request_id}): {said}"
    if kind in _WRONG_TYPES:
        return ModelRefused(f"{what}; {_ADVICE[400]}")
    return ModelUnavailable(f"{what}; send again later")


def _parsed(data: bytes) -> Any:
    try:
        return orjson.loads(data)
    except orjson.JSONDecodeError:
        return None


def _told(body: Any) -> tuple[str, str]:
    """Return the type and the sentence of an error body."""
    error = body.get("error") if isinstance(body, dict) else None
    if not isinstance(error, dict):
        return "error", ""
    return str(error.get("type", "error")), str(error.get("message", ""))


def retry_after_s(headers: Any) -> float | None:
    """Return how long the service asks to wait: finite, from 0 to ``RETRY_AFTER_LIMIT_S``.

    None if it does not say, or not in a way that can be read.
    """
    for name, unit_s in (("retry-after-ms", 0.001), ("retry-after", 1.0)):
        value = headers.get(name)
        if value is None:
            continue
        try:
            seconds = float(value) * unit_s
        except ValueError:
            parsed = parsedate_tz(value) if unit_s == 1.0 else None
            try:
                seconds = math.nan if parsed is None else max(0.0, mktime_tz(parsed) - time.time())
            except (OverflowError, ValueError):
                continue
        if math.isfinite(seconds) and seconds >= 0:
            return min(seconds, RETRY_AFTER_LIMIT_S)
    return None
