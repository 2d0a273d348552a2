"""What the API takes and gives, as an OpenAPI document that is tried against the server in a test.

It owns words for readers and machines, no behaviour: what is said here is decided elsewhere, and
the test fails where the two differ.

Source: https://spec.openapis.org/oas/v3.1.0
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from kode_lab import __version__
from kode_lab.key import ID_LIMIT_CHARS
from kode_lab.server.body import DEADLINE_LEAST_S, DEADLINE_LIMIT_S, POLICIES
from kode_lab.server.events import EVENTS
from kode_lab.server.service import Limits
from kode_lab.sessions.agent import STRATEGIES
from kode_lab.sessions.ticket import PROMPT_LIMIT_CHARS, TURN_ID_LIMIT_CHARS

__all__ = ["document"]

_WHY = {
    400: "The request is not HTTP, its body not JSON, or its path not UTF-8. Definite.",
    401: "No token, or none that is known. Definite.",
    403: "Another user's session, or an operator's affair. Definite.",
    404: "There is no such path or agent. Definite.",
    405: "The path does not take this method. Definite.",
    408: "The request did not come whole in time. Definite.",
    409: "A turn is running, and the strategy is reject. Definite.",
    410: "A later turn interrupted this one or rolled it back. Indeterminate.",
    413: "The body is longer than body_limit_bytes. Definite.",
    415: "The body is not declared as JSON. Definite.",
    421: "The Host header names another server. Definite.",
    422: "A field is wrong. Definite.",
    429: "A limit is reached, which the message names. Definite; see Retry-After.",
    431: "The address and headers are longer than head_limit_bytes. Definite.",
    500: "What is stored is damaged, or the server made a mistake. Indeterminate.",
    502: "The model gave no reply. Indeterminate: the same turnId goes on.",
    503: "The server is stopping, or cannot write. Indeterminate; see Retry-After.",
    504: "The deadline passed. Indeterminate: the same turnId goes on.",
}
_DOOR = (400, 408, 421, 431)
_TURN = (404, 409, 410, 413, 415, 422, 429, 500, 502, 503, 504)


def document(limits: Limits, *, needs_token: bool) -> dict[str, Any]:
    """Return the document for a server with these limits."""
    who = (401, 403) if needs_token else ()
    session = "/v1/sessions/{userId}/{sessionId}/{agentId}"
    three = ("userId", "sessionId", "agentId")
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "kode_lab sessions",
            "version": __version__,
            "description": "Sessions of LLM agents: turns of one session one by one, those of "
            "different sessions side by side.",
        },
        "paths": {
            "/v1/turns": {"post": _turn_operation(limits, who)},
            f"{session}/messages": {
                "get": _get("history", "History", three, (*who, 422, 500, 503))
            },
            f"{session}/state": {"get": _get("state", "State", three, (*who, 422))},
            session: {
                "delete": {
                    "operationId": "delete",
                    "summary": "Forget a conversation, after the turns that came before",
                    "parameters": _parameters(three),
                    "responses": {
                        "204": {"description": "There is no conversation any more."},
                        **_problems((*_DOOR, *who, 404, 422, 429, 500, 503)),
                    },
                }
            },
            "/v1/users/{userId}/sessions": {
                "get": _get("sessions", "Sessions", ("userId",), (*who, 422))
            },
            "/v1/statistics": {"get": _get("statistics", "Statistics", (), who)},
            "/v1/live": {"get": _get("live", "Live", (), who)},
            "/healthz": {"get": _get("health", "Status", (), ())},
            "/readyz": {"get": _get("ready", "Status", (), (503,))},
            "/metrics": {"get": _other("metrics", "text/plain", who)},
            "/openapi.json": {"get": _other("openapi", "application/json", ())},
            "/": {"get": _other("page", "text/html", ())},
        },
        "components": {
            "schemas": _schemas(),
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{"token": []}] if needs_token else [],
    }


def _turn_operation(limits: Limits, who: Iterable[int]) -> dict[str, Any]:
    events = (
        "Events accepted, started, text, tool_call, tool_result, then done (with the reply) or "
        "error (with the problem); a stream without either of these was cut."
    )
    return {
        "operationId": "turn",
        "summary": "Take one turn: JSON, or a stream of events where stream is true",
        "description": f"A body has at most {limits.connection.body_limit_bytes} bytes.",
        "requestBody": {"required": True, "content": _json("TurnRequest")},
        "responses": {
            "200": {
                "description": "The turn is saved.",
                "content": {
                    **_json("Reply"),
                    "text/event-stream": {"schema": _event(events)},
                },
            },
            **_problems((*_DOOR, *who, *_TURN)),
        },
    }


def _get(name: str, schema: str, ids: Iterable[str], statuses: Iterable[int]) -> dict[str, Any]:
    return {
        "operationId": name,
        "parameters": _parameters(ids),
        "responses": {
            "200": {"description": schema, "content": _json(schema)},
            **_problems((*_DOOR, *statuses)),
        },
    }


def _other(name: str, kind: str, statuses: Iterable[int]) -> dict[str, Any]:
    return {
        "operationId": name,
        "responses": {
            "200": {"description": name, "content": {kind: {}}},
            **_problems((*_DOOR, *statuses)),
        },
    }


def _parameters(names: Iterable[str]) -> list[dict[str, Any]]:
    schema = {"type": "string", "minLength": 1, "maxLength": ID_LIMIT_CHARS}
    return [{"name": name, "in": "path", "required": True, "schema": schema} for name in names]


def _problems(statuses: Iterable[int]) -> dict[str, Any]:
    return {
        str(status): {"description": _WHY[status], "content": _json("Error")}
        for status in sorted(set(statuses))
    }


def _json(schema: str) -> dict[str, Any]:
    return {"application/json": {"schema": {"$ref": f"#/components/schemas/{schema}"}}}


_TEXT: Mapping[str, Any] = {"type": "string"}
_COUNT: Mapping[str, Any] = {"type": "integer", "minimum": 0}
_SECONDS: Mapping[str, Any] = {"type": "number", "minimum": 0}
_FLAG: Mapping[str, Any] = {"type": "boolean"}
_COUNTS: Mapping[str, Any] = {"type": "object", "additionalProperties": _COUNT}


def _object(**properties: Any) -> dict[str, Any]:
    """An object that has these fields and no others."""
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


def _list(items: Any) -> dict[str, Any]:
    return {"type": "array", "items": items}


def _or_null(schema: Mapping[str, Any]) -> dict[str, Any]:
    return {"anyOf": [schema, {"type": "null"}]}


def _event(about: str) -> dict[str, Any]:
    """One event of a stream; ``data`` is JSON."""
    return _object(id=_TEXT, event={"enum": list(EVENTS)}, data=_TEXT) | {"description": about}


def _schemas() -> dict[str, Any]:
    key = {"userId": _TEXT, "sessionId": _TEXT, "agentId": _TEXT}
    call = _object(id=_TEXT, name=_TEXT, input={"type": "object"})
    message = _object(role={"enum": ["user", "assistant"]}, content=_list({"type": "object"}))
    turn = _object(
        turnId=_TEXT,
        state={"enum": ["waiting", "running"]},
        sinceS=_SECONDS,
        modelCalls=_COUNT,
        toolCalls=_COUNT,
    )
    ended = _object(turnId=_TEXT, outcome=_TEXT, agoS=_SECONDS, waitedS=_SECONDS, tookS=_SECONDS)
    error = {
        "type": "object",
        "properties": {"type": _TEXT, "message": _TEXT, "status": _COUNT, "turnId": _TEXT},
        "required": ["type", "message", "status"],
        "additionalProperties": False,
    }
    usage = _object(inputTokens=_COUNT, outputTokens=_COUNT)
    lock = _object(held=_COUNT, waiting=_COUNT, longestQueue=_COUNT, handedOver=_COUNT)
    line = _object(**key, holder=_or_null(turn), waiting=_COUNT, waitedS=_list(_SECONDS))
    recent = _object(agoS=_SECONDS, waitedS=_SECONDS, tookS=_SECONDS, outcome=_TEXT)
    return {
        "TurnRequest": _turn_request(),
        "Reply": _object(
            **key,
            turnId=_TEXT,
            text=_TEXT,
            toolCalls=_list(call),
            usage=usage,
            configVersion=_TEXT,
            isReplay=_FLAG,
        ),
        "Error": _object(error=error),
        "History": _object(**key, messages=_list(message)),
        "State": _object(
            **key, isHeld=_FLAG, waiting=_COUNT, turns=_list(turn), lastTurn=_or_null(ended)
        ),
        "Sessions": _object(userId=_TEXT, sessions=_list(_object(**key))),
        "Statistics": _object(
            workers=_COUNT,
            uptimeS=_SECONDS,
            isDraining=_FLAG,
            turnsInFlight=_COUNT,
            sessionsInFlight=_COUNT,
            residents=_COUNT,
            lock=lock,
            outcomes=_COUNTS,
            refusals=_COUNTS,
        ),
        "Live": _object(sessions=_list(line), notShown=_COUNT, recent=_list(recent)),
        "Status": _object(status=_TEXT),
    }


def _turn_request() -> dict[str, Any]:
    an_id = {"type": "string", "minLength": 1, "maxLength": ID_LIMIT_CHARS}
    session = {"description": "which of the user's conversations; the agentId if not given"}
    turn_id = {
        "type": "string",
        "minLength": 1,
        "maxLength": TURN_ID_LIMIT_CHARS,
        "description": "names the turn, so that it can be sent again and happens once",
    }
    return {
        "type": "object",
        "properties": {
            "userId": an_id,
            "agentId": an_id | {"examples": ["schedule-assistant"]},
            "sessionId": an_id | session,
            "message": {
                "type": "string",
                "minLength": 1,
                "maxLength": PROMPT_LIMIT_CHARS,
                "pattern": r"\S",
            },
            "turnId": turn_id,
            "strategy": {"enum": list(STRATEGIES), "description": "where a turn is running"},
            "stream": {"type": "boolean", "description": "answer with events"},
            "onDisconnect": {"enum": list(POLICIES), "description": "where the client leaves"},
            "deadlineS": {
                "type": "number",
                "minimum": DEADLINE_LEAST_S,
                "maximum": DEADLINE_LIMIT_S,
            },
        },
        "required": ["userId", "agentId", "message"],
        "additionalProperties": False,
    }
