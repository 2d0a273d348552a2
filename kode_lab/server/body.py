"""Reads what a client sent: a body within its limit, one JSON object without tricks, a turn.

Everything that can be wrong with a request by itself is said here, in one sentence each. It knows
nothing of sessions or of who asks.

A field given twice is refused, because two readers of such an object may disagree on whose session
it names (RFC 8259 leaves open which one counts); so is a field that does not exist, because it is
a misspelt one.
"""

from __future__ import annotations

import json
import os
from typing import Any, NamedTuple

from kode_lab.http import Scope
from kode_lab.key import SessionKey
from kode_lab.server.refusal import Rejected
from kode_lab.sessions.ticket import TURN_ID_LIMIT_CHARS

__all__ = [
    "DEADLINE_LEAST_S",
    "DEADLINE_LIMIT_S",
    "POLICIES",
    "TurnRequest",
    "accepts_events",
    "is_json",
    "named",
    "turn_request",
]

DEADLINE_LEAST_S = 1.0
DEADLINE_LIMIT_S = 86_400.0
POLICIES = ("finish", "rollback")
_TEXTS = ("userId", "agentId", "sessionId", "message", "turnId", "strategy", "onDisconnect")
_OTHERS = ("stream", "deadlineS")


class TurnRequest(NamedTuple):
    """A checked ``POST /v1/turns``.

    Attributes:
        turn_id: the client's, or a new one.
        strategy: None is the agent's own.
        is_stream: whether the answer is a stream of events.
        on_disconnect: ``finish`` or ``rollback``.
        deadline_s: None is the agent's own.
        is_named: whether the client gave the turn its id.
    """

    key: SessionKey
    message: str
    turn_id: str
    strategy: str | None
    is_stream: bool
    on_disconnect: str
    deadline_s: float | None
    is_named: bool = True


def is_json(scope: Scope) -> bool:
    """Whether the request says that its body is JSON.

    A browser asks before it sends JSON to another origin, and gets no leave here: so no foreign
    page can take a turn for whoever looks at it.
    """
    for name, value in scope["headers"]:
        if name == b"content-type":
            return bool(value.partition(b";")[0].strip().lower() == b"application/json")
    return False


def accepts_events(scope: Scope) -> bool:
    """Whether the request asks for Server-Sent Events by its ``Accept``."""
    return any(
        name == b"accept" and b"text/event-stream" in value.lower()
        for name, value in scope["headers"]
    )


def turn_request(body: bytes, *, is_stream: bool) -> TurnRequest:
    """Return the turn that the body asks for.

    Raises:
        Rejected: it is not JSON (400), or a field is wrong (422).
        InvalidKey: an id cannot be used.
    """
    fields = _object(body)
    for name, value in fields.items():
        if name in _TEXTS:
            _check_text(name, value)
        elif name not in _OTHERS:
            known = ", ".join((*_TEXTS, *_OTHERS))
            raise _wrong(f"there is no field {name!r:.60}: the fields are {known}")
    for name in ("userId", "agentId", "message"):
        if name not in fields:
            raise _wrong(f"{name} is missing: send userId, agentId and message")
    key = SessionKey.from_json(fields)
    turn_id = fields["turnId"] if "turnId" in fields else os.urandom(12).hex()
    if not 0 < len(turn_id) <= TURN_ID_LIMIT_CHARS:
        raise _wrong(f"turnId has {len(turn_id)} characters: give 1 to {TURN_ID_LIMIT_CHARS=}")
    policy = fields.get("onDisconnect", "finish")
    if policy not in POLICIES:
        raise _wrong(f"onDisconnect {policy!r:.40} is none of {', '.join(POLICIES)}")
    wants_stream = fields.get("stream", is_stream)
    if not isinstance(wants_stream, bool):
        raise _wrong(f"stream is {wants_stream!r:.40}: give true or false")
    return TurnRequest(
        key,
        fields["message"],
        turn_id,
        fields.get("strategy"),
        wants_stream,
        policy,
        _deadline_s(fields.get("deadlineS")),
        "turnId" in fields,
    )


def named(body: bytes, request: TurnRequest) -> bytes:
    """Return the body of a turn with its id in it, for whoever is to take it in our place."""
    if request.is_named:
        return body
    return b'%b,"turnId":"%b"}' % (body[: body.rindex(b"}")], request.turn_id.encode())


def _object(body: bytes) -> dict[str, Any]:
    if not body:
        raise Rejected(400, "NotJson", "the body is empty: send a JSON object")
    try:
        value = _DECODER.decode(body.decode())
    except UnicodeDecodeError as error:
        raise Rejected(
            400, "NotJson", f"the body is not UTF-8 at byte {error.start}: send JSON in UTF-8"
        ) from None
    except RecursionError:
        raise Rejected(400, "NotJson", "the body is nested too deep: send a flat object") from None
    except json.JSONDecodeError as error:
        raise Rejected(
            400, "NotJson", f"the body is not JSON at character {error.pos}: {error.msg}"
        ) from None
    except ValueError as error:  # a number of thousands of digits
        raise Rejected(400, "NotJson", f"the body is not usable JSON: {error!s:.100}") from None
    if not isinstance(value, dict):
        raise _wrong(f"the body is a JSON {_name_of(value)}: send an object")
    return value


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise _wrong(f"the field {twice!r:.60} is given twice: give it once")
    return fields


def _constant(name: str) -> Any:
    raise _wrong(f"{name} is no JSON value: give a number")


_DECODER = json.JSONDecoder(object_pairs_hook=_once, parse_constant=_constant)


def _check_text(name: str, value: object) -> None:
    if not isinstance(value, str):
        raise _wrong(f"{name} is a JSON {_name_of(value)}: give a text")
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError:
            raise _wrong(f"{name} holds half a surrogate pair: send whole characters") from None


def _deadline_s(value: object) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise _wrong(f"deadlineS is a JSON {_name_of(value)}: give seconds as a number")
    if not DEADLINE_LEAST_S <= value <= DEADLINE_LIMIT_S:  # nan is neither
        raise _wrong(
            f"deadlineS is {value!r:.20}: give from {DEADLINE_LEAST_S:g} to {DEADLINE_LIMIT_S:g}"
        )
    return float(value)


def _name_of(value: object) -> str:
    names = {bool: "boolean", dict: "object", list: "array", str: "text", type(None): "null"}
    return names.get(type(value), "number")


def _wrong(message: str) -> Rejected:
    return Rejected(422, "InvalidRequest", message)
