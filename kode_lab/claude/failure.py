"""From an error of the Messages API, or of the way to it, to one of ours: what, whose, what to do.

It decides which errors are worth another try. It must never send anything itself.

Source: https://docs.claude.com/en/api/errors (statuses, error types, ``request_id``, and that a
stream that began with 200 may still carry an error).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import orjson

from kode_lab.errors import ModelRefused, ModelUnavailable, TurnFailed

if TYPE_CHECKING:
    import anthropic

__all__ = ["failure_of", "streamed_failure_of"]

# 4xx that say "not now" rather than "wrong": request time-out, conflict, rate limit.
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


def failure_of(error: anthropic.APIError, where: str) -> TurnFailed:
    """Return our error for one that the SDK raised; ``where`` names who was asked."""
    response = getattr(error, "response", None)
    if response is None:
        # No answer at all. The cause says why; the SDK's own sentence does not.
        cause = error.__cause__ or error
        return ModelUnavailable(
            f"no answer from {where}: {type(cause).__name__}: {cause}; "
            "check the address and the network, then send again"
        )
    status = int(response.status_code)
    request_id = response.headers.get("request-id", "unknown")
    kind, said = _told(error.body)
    what = f"{where} answered {status} {kind} (request {request_id}): {said or error.message}"
    if 400 <= status < 500 and status not in _NOT_NOW:
        return ModelRefused(f"{what}; {_ADVICE.get(status, _ADVICE[400])}")
    return ModelUnavailable(
        f"{what}; {_ADVICE.get(status, 'send again later')}",
        retry_after_s=_retry_after_s(response.headers),
    )


def streamed_failure_of(data: str, request_id: str, where: str) -> TurnFailed:
    """Return our error for an ``error`` event inside a stream."""
    try:
        body: Any = orjson.loads(data)
    except orjson.JSONDecodeError:
        body = data
    kind, said = _told(body)
    what = f"{where} broke off its stream with {kind} (request {request_id}): {said or data:.200}"
    if kind in _WRONG_TYPES:
        return ModelRefused(f"{what}; {_ADVICE[400]}")
    return ModelUnavailable(f"{what}; send again later")


def _told(body: Any) -> tuple[str, str]:
    """What the error body says: its type and its sentence."""
    error = body.get("error") if isinstance(body, dict) else None
    if not isinstance(error, dict):
        return "error", ""
    return str(error.get("type", "error")), str(error.get("message", ""))


def _retry_after_s(headers: Any) -> float | None:
    try:
        seconds = float(headers.get("retry-after"))
    except (TypeError, ValueError):
        return None
    return seconds if seconds >= 0 else None
