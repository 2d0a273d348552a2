"""The JSON that the API takes and returns, as pydantic models; bodies are checked by them.

The OpenAPI document is made of the same models. Answers are not validated while the server runs,
which would cost as much as the turn; a test holds them against the document.

A field given twice is refused, because two readers of such an object may disagree about whose
session it names (RFC 8259 leaves open which one counts); so is an unknown field, because it is
probably misspelt.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from typing import Annotated, Any, Literal, NamedTuple, TypeVar

import jiter
from pydantic import BaseModel, ConfigDict, Field, ValidationError, WithJsonSchema
from pydantic.alias_generators import to_camel

from kode_lab.key import ID_LIMIT_CHARS, SessionKey
from kode_lab.server.refusal import Rejected
from kode_lab.sessions.agent import STRATEGIES
from kode_lab.sessions.ticket import (
    NOT_OF_A_USER,
    PROMPT_BLOCKS_LIMIT,
    PROMPT_LIMIT_CHARS,
    TURN_ID_LIMIT_CHARS,
)

__all__ = [
    "EVENTS",
    "JSON_VALUE",
    "TurnRequest",
    "checked_body",
    "is_json",
    "json_object",
    "turn_request",
]

EVENTS = ("accepted", "started", "text", "tool_call", "tool_result", "approval_needed", "steered",
          "done", "error")  # fmt: skip
DEADLINE_LEAST_S = 1.0
DEADLINE_LIMIT_S = 86_400.0


class _Wire(BaseModel):
    """What all models share: names in camelCase, no unknown fields, no conversion of types."""

    model_config = ConfigDict(
        alias_generator=to_camel, extra="forbid", strict=True, allow_inf_nan=False
    )


# Ids and prompts are checked where they are used; here their limits are only described.
_Id = Annotated[str, Field(json_schema_extra={"minLength": 1, "maxLength": ID_LIMIT_CHARS})]
_PROMPT: dict[str, Any] = {
    "type": "string",
    "minLength": 1,
    "maxLength": PROMPT_LIMIT_CHARS,
    "pattern": r"\S",
}
_VALUE = {"$ref": "#/components/schemas/JsonValue"}
JSON_VALUE = {
    "anyOf": [
        {"type": ["null", "boolean", "string"]},
        {"type": "number", "minimum": -(2**63), "maximum": 2**64 - 1},
        {"type": "array", "items": _VALUE},
        {"type": "object", "additionalProperties": _VALUE},
    ]
}
_OTHER_KIND = {
    "type": "string",
    "not": {"anyOf": [{"enum": ["text", *NOT_OF_A_USER]}, {"pattern": "_tool_result$"}]},
}
_BLOCKS = {
    "type": "array",
    "minItems": 1,
    "maxItems": PROMPT_BLOCKS_LIMIT,
    "items": {
        "anyOf": [
            {
                "type": "object",
                "properties": {
                    "type": {"const": "text"},
                    "text": {"type": "string", "pattern": r"\S"},
                },
                "required": ["type", "text"],
                "additionalProperties": _VALUE,
            },
            {
                "type": "object",
                "properties": {"type": _OTHER_KIND},
                "required": ["type"],
                "additionalProperties": _VALUE,
            },
        ]
    },
    "description": "content blocks of the Messages API",
}
_TurnId = Annotated[str, Field(min_length=1, max_length=TURN_ID_LIMIT_CHARS)]
_Count = Annotated[int, Field(ge=0)]
_Seconds = Annotated[float, Field(ge=0)]


class TurnBody(_Wire):
    """The body of ``POST /v1/turns``."""

    user_id: _Id
    agent_id: Annotated[_Id, Field(examples=["schedule-assistant"])]
    session_id: Annotated[
        _Id, Field(description="which of the user's conversations; the agentId if not given")
    ] = ""
    message: Annotated[str | list[dict[str, Any]], WithJsonSchema({"anyOf": [_PROMPT, _BLOCKS]})]
    turn_id: Annotated[
        _TurnId, Field(description="names the turn, so that it can be sent again and happens once")
    ] = ""
    strategy: Annotated[
        str,
        Field(description="if a turn is running", json_schema_extra={"enum": list(STRATEGIES)}),
    ] = ""
    stream: Annotated[bool, Field(description="answer with events")] = False
    on_disconnect: Annotated[
        Literal["finish", "rollback"], Field(description="if the client leaves")
    ] = "finish"
    deadline_s: Annotated[float, Field(ge=DEADLINE_LEAST_S, le=DEADLINE_LIMIT_S)] | None = None


class StopBody(_Wire):
    """The body of ``POST …/stop``; it may be left out."""

    turn_id: Annotated[_TurnId, Field(description="only this turn, running or waiting")] = ""
    how: Annotated[
        Literal["interrupt", "rollback"],
        Field(description="interrupt keeps what the turn did; rollback forgets it"),
    ] = "interrupt"
    waiting: Annotated[bool, Field(description="end the waiting turns, too")] = False


class RewindBody(_Wire):
    """The body of ``POST …/rewind``."""

    to_turn: Annotated[
        _TurnId | _Count,
        Field(description="the id of the last turn to keep, or how many turns to keep"),
    ]
    turn_id: Annotated[_TurnId, Field(description="names the rewind, so that it happens once")] = ""
    wait_s: Annotated[_Seconds, Field(le=DEADLINE_LIMIT_S)] | None = None


class ApprovalBody(_Wire):
    """The body of ``POST …/approvals/{callId}``."""

    answer: Annotated[_TurnId, Field(description="what the tool is told, for example yes or no")]
    wait_s: Annotated[_Seconds, Field(le=DEADLINE_LIMIT_S)] | None = None
    deadline_s: Annotated[float, Field(ge=DEADLINE_LEAST_S, le=DEADLINE_LIMIT_S)] | None = None


class ForkBody(_Wire):
    """The body of ``POST …/fork``."""

    session_id: Annotated[_Id, Field(description="of the session to make, of the same user")]
    agent_id: Annotated[_Id, Field(description="its agent, if it is another one")] = ""
    at_turn: Annotated[
        _TurnId | _Count | None,
        Field(description="the id of the last turn to copy, or how many; null copies all"),
    ] = None
    wait_s: Annotated[_Seconds, Field(le=DEADLINE_LIMIT_S)] | None = None


class UsageJson(_Wire):
    """Tokens of a turn."""

    input_tokens: _Count
    output_tokens: _Count


class ToolCallJson(_Wire):
    """One tool call."""

    id: str
    name: str
    input: dict[str, Any]


class SessionName(_Wire):
    """The ids of a session."""

    user_id: str
    session_id: str
    agent_id: str


class ReplyJson(SessionName):
    """The answer to an acknowledged turn."""

    turn_id: str
    text: str
    tool_calls: list[ToolCallJson]
    usage: UsageJson
    config_version: str
    is_replay: bool
    stop_reason: str
    steered: Annotated[
        list[str], Field(description="the turns whose prompts this one was given while it ran")
    ] = []
    into: Annotated[
        str, Field(description="the running turn that this prompt was given to, whose reply it is")
    ] = ""


class ErrorJson(_Wire):
    """Why there is no reply."""

    class Details(_Wire):
        """What an error says."""

        type: str
        message: str
        status: _Count
        turn_id: str = ""
        questions: Annotated[
            dict[str, str], Field(description="what the turn waits for, by the id of the tool call")
        ] = {}

    error: Details


class StoppedJson(SessionName):
    """The turns that were stopped."""

    stopped: list[str]


class RewoundJson(SessionName):
    """The turns that were removed."""

    removed: list[str]


class ForkedJson(SessionName):
    """The session that was made, and how many messages it has."""

    messages: _Count


class HistoryJson(SessionName):
    """A conversation as it is saved."""

    class Entry(_Wire):
        """One message of the Messages API."""

        role: Literal["user", "assistant"]
        content: list[dict[str, Any]]

    messages: list[Entry]


class TurnInFlight(_Wire):
    """One turn that has not ended."""

    turn_id: str
    state: Literal["waiting", "running"]
    since_s: _Seconds
    model_calls: _Count
    tool_calls: _Count


class StateJson(SessionName):
    """Who holds a session, who waits, and how its latest turn ended."""

    class LastTurn(_Wire):
        """A turn that ended."""

        turn_id: str
        outcome: str
        ago_s: _Seconds
        waited_s: _Seconds
        took_s: _Seconds

    is_held: bool
    waiting: _Count
    turns: list[TurnInFlight]
    last_turn: LastTurn | None


class SessionsJson(_Wire):
    """The sessions of a user."""

    user_id: str
    sessions: list[SessionName]


class StatisticsJson(_Wire):
    """How much goes on: figures without names."""

    class Lock(_Wire):
        """The store's lock."""

        held: _Count
        waiting: _Count
        longest_queue: _Count
        handed_over: _Count

    workers: _Count
    uptime_s: _Seconds
    is_draining: bool
    turns_in_flight: _Count
    sessions_in_flight: _Count
    residents: _Count
    lock: Lock
    outcomes: dict[str, _Count]
    refusals: dict[str, _Count]


class LiveJson(_Wire):
    """What the live page shows."""

    class Line(SessionName):
        """One session with turns in flight."""

        holder: TurnInFlight | None
        waiting: _Count
        waited_s: list[_Seconds]

    class Recent(_Wire):
        """A turn that ended lately."""

        ago_s: _Seconds
        waited_s: _Seconds
        took_s: _Seconds
        outcome: str

    sessions: list[Line]
    not_shown: _Count
    recent: list[Recent]


class StatusJson(_Wire):
    """Health or readiness."""

    status: str


class EventJson(_Wire):
    """One event of a stream; ``data`` is JSON."""

    id: str
    event: Annotated[str, Field(json_schema_extra={"enum": list(EVENTS)})]
    data: str


class TurnRequest(NamedTuple):
    """A checked ``POST /v1/turns``.

    Attributes:
        turn_id: the client's, or a new one.
        strategy: None is the agent's own.
        is_stream: whether the answer is a stream of events.
        on_disconnect: ``finish`` or ``rollback``.
        deadline_s: None is the agent's own.
        is_named: whether the client chose the turn's id.
    """

    key: SessionKey
    message: Any
    turn_id: str
    strategy: Any
    is_stream: bool
    on_disconnect: str
    deadline_s: float | None
    is_named: bool


def is_json(headers: Iterable[tuple[bytes, bytes]]) -> bool:
    """Whether the request says that its body is JSON.

    A browser asks before it sends JSON to another origin, and is not allowed to: so no foreign page
    can take a turn for the person in front of it.
    """
    kind = next((value for name, value in headers if name == b"content-type"), b"")
    return kind.partition(b";")[0].strip().lower() == b"application/json"


def turn_request(data: bytes, *, is_stream: bool) -> TurnRequest:
    """Return the turn that a body asks for.

    Args:
        data: the body.
        is_stream: whether the request's headers ask for events.

    Raises:
        Rejected: it is not JSON (400), or a field is wrong (422).
        InvalidKey: an id cannot be used.
    """
    fields = json_object(data)
    body = checked_body(TurnBody, fields)
    session_id = body.session_id if "sessionId" in fields else None
    return TurnRequest(
        SessionKey.of(body.user_id, body.agent_id, session_id),
        body.message,
        body.turn_id or os.urandom(12).hex(),
        body.strategy if "strategy" in fields else None,
        body.stream if "stream" in fields else is_stream,
        body.on_disconnect,
        body.deadline_s,
        bool(body.turn_id),
    )


def json_object(data: bytes) -> dict[str, Any]:
    """Return the JSON object in a body.

    Raises:
        Rejected: it is not JSON (400), or not an object without repeated fields (422).
    """
    try:
        value = jiter.from_json(data, allow_inf_nan=False, catch_duplicate_keys=True)
    except ValueError:
        value = _parsed_slowly(data)  # which says precisely what is wrong
    if not isinstance(value, dict):
        raise _wrong(f"the body is {json.dumps(value)[:40]}: send a JSON object")
    return value


_Model = TypeVar("_Model", bound=BaseModel)


def checked_body(model: type[_Model], fields: dict[str, Any]) -> _Model:
    """Return a body as its model.

    Raises:
        Rejected: a field is wrong (422).
    """
    try:
        return model.model_validate(fields)
    except ValidationError as error:
        raise _wrong(_sentence(model, error)) from None


def _sentence(model: type[BaseModel], error: ValidationError) -> str:
    """Return what is wrong with the first wrong field, and what is allowed."""
    first = error.errors(include_url=False, include_context=False)[0]
    name = ".".join(str(part) for part in first["loc"])
    names = ", ".join(field.alias or field_name for field_name, field in model.model_fields.items())
    if first["type"] == "extra_forbidden":
        return f"there is no field {name!r:.60}: the fields are {names}"
    if first["type"] == "missing":
        return f"the field {name} is missing: the fields are {names}"
    if first["type"] == "string_unicode":
        return f"{name} holds half a surrogate pair: send whole characters"
    said = first["msg"].removeprefix("Input ").removeprefix("String ")
    return f"{name} is {first['input']!r:.60}: it {said[:200]}"


def _parsed_slowly(data: bytes) -> Any:
    if not data:
        raise _no_json("the body is empty: send a JSON object")
    try:
        return _DECODER.decode(data.decode())
    except UnicodeDecodeError as error:
        raise _no_json(f"the body is not UTF-8 at byte {error.start}: send JSON in UTF-8") from None
    except RecursionError:
        raise _no_json("the body is nested too deep: send a flat object") from None
    except json.JSONDecodeError as error:
        raise _no_json(f"the body is not JSON at character {error.pos}: {error.msg}") from None
    except ValueError as error:  # a number of thousands of digits
        raise _no_json(f"the body is not usable JSON: {error!s:.100}") from None


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise _wrong(f"the field {twice!r:.60} is given twice: send it once")
    return fields


def _constant(name: str) -> Any:
    raise _wrong(f"{name} is not a JSON value: send a number")


_DECODER = json.JSONDecoder(object_pairs_hook=_once, parse_constant=_constant)


def _no_json(message: str) -> Rejected:
    return Rejected(400, "NotJson", message)


def _wrong(message: str) -> Rejected:
    return Rejected(422, "InvalidRequest", message)
