"""Logged requests with their replies, in whichever API and client they were made.

Messages, Chat Completions, Responses and Gemini, under ``request``/``response``, ``body``,
``kwargs`` or ``input``/``output``; and who asked and when, by all names that tools give to it. This
module must not know spans or the tree.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, NamedTuple

import orjson

from kode_lab.audit.histories import plain_value
from kode_lab.audit.items import Item, items_of

__all__ = [
    "PlainRequest", "moment_ns", "parsed", "reply_items", "request_of", "who_of",
]  # fmt: skip

_SESSION = (
    "session.id",
    "gen_ai.conversation.id",
    "langfuse.session.id",
    "traceloop.association.properties.session_id",
    "traceloop.association.properties.thread_id",
    "langfuse.trace.metadata.thread_id",
    "langfuse.observation.metadata.thread_id",
    "conversation_id",
    "thread_id",
    "session_id",
    "sessionId",
    "metadata.requester_metadata.session_id",
)
_USER = (
    "user.id",
    "enduser.id",
    "langfuse.user.id",
    "traceloop.association.properties.user_id",
    "llm.user",
    "gen_ai.request.user",
    "user_id",
    "userId",
    "end_user",
    "user_api_key_end_user_id",
)
_SESSION_NAMES, _USER_NAMES = frozenset(_SESSION), frozenset(_USER)


class PlainRequest(NamedTuple):
    """One logged request.

    Attributes:
        messages: what was sent, in any dialect.
        reply: what came back, in any dialect, or None.
        continues: the response whose history the API puts before the messages, or "".
    """

    messages: Any
    reply: Any
    continues: str
    session: str
    user: str
    trace_id: str
    span_id: str
    response_id: str
    start_ns: int
    end_ns: int


def who_of(attributes: Mapping[str, Any]) -> tuple[str, str]:
    """Return session and user, by whichever names these attributes hold them."""
    session = "" if _SESSION_NAMES.isdisjoint(attributes) else _named(attributes, _SESSION)
    user = "" if _USER_NAMES.isdisjoint(attributes) else _named(attributes, _USER)
    if not (session and user) and "metadata" in attributes:
        metadata = parsed(plain_value(attributes["metadata"]))
        if isinstance(metadata, dict):
            session = session or _named(metadata, _SESSION)
            user = user or _named(metadata, _USER)
    return session, user


def _named(table: Mapping[str, Any], names: tuple[str, ...]) -> str:
    for name in names:
        if name in table:
            value = table[name]
            if type(value) is not str or value[:1] in '"[{':
                value = parsed(plain_value(value))
            if value not in (None, ""):
                return str(value)
    return ""


def parsed(value: Any) -> Any:
    """Return a value that was written as JSON text."""
    if isinstance(value, str) and value[:1] in ('"', "[", "{"):
        try:
            return orjson.loads(value)
        except orjson.JSONDecodeError:
            return value
    return value


def moment_ns(value: Any) -> int:
    """Return nanoseconds from a logged time: ISO text, or a number in s, ms, us or ns."""
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            at = datetime.fromisoformat(value)
            # LangSmith writes UTC without a zone.
            at = at if at.tzinfo is not None else at.replace(tzinfo=UTC)
            return round(at.timestamp() * 1e6) * 1000
    if not isinstance(value, int | float) or isinstance(value, bool):
        return 0
    scale = 1 if value > 1e17 else 1e3 if value > 1e14 else 1e6 if value > 1e11 else 1e9
    return valid_ns(int(value * scale))


def valid_ns(time_ns: int) -> int:
    """Return a time; 0 for one that no clock shows."""
    return time_ns if 0 < time_ns < 1 << 63 else 0


def _first_of(record: Mapping[str, Any], *names: str) -> Any:
    """Return the first of these values that is there."""
    for name in names:
        value = record.get(name)
        if value is not None and value != "":
            return value
    return None


def request_of(record: Mapping[str, Any]) -> PlainRequest | None:
    """Return the request that a record holds, or None."""
    request = record.get("request")
    if type(request) is not dict:
        request = parsed(_first_of(record, "request", "body", "kwargs", "input", "inputs"))
    if isinstance(request, dict) and isinstance(request.get("body"), dict):
        request = request["body"]
    if not isinstance(request, dict):
        request = record
    messages = request.get("messages") or request.get("contents")
    if messages is None and "input" in request and request is not record:
        messages = request["input"]
    if messages is None and isinstance(record.get("input"), list | str) and "output" in record:
        messages = record["input"]
    if messages is None:
        return None
    reply = record.get("response")
    if type(reply) is not dict:
        reply = parsed(_first_of(record, "response", "reply", "output", "outputs", "result"))
    if isinstance(reply, dict) and isinstance(reply.get("body"), dict):
        reply = reply["body"]
    metadata = record.get("metadata") or record.get("extra")
    if isinstance(metadata, dict) and isinstance(metadata.get("metadata"), dict):
        metadata = metadata["metadata"]
    session = user = ""
    for table in (record, metadata, request, request.get("metadata")):
        if table and isinstance(table, dict) and not (session and user):
            found = who_of(table)
            session, user = session or found[0], user or found[1]
    trace_id = str(record.get("trace_id") or "")
    if "litellm_call_id" in record or "call_type" in record:
        # LiteLLM's trace is the session: calls of one trace are not one turn.
        session, trace_id = session or trace_id, ""
        parameters = record.get("model_parameters")
        user = user or str((isinstance(parameters, dict) and parameters.get("user")) or "")
    start = _first_of(
        record, "start_ns", "start_time", "startTime", "started_at", "timestamp", "time"
    )
    end = _first_of(record, "end_ns", "end_time", "endTime", "ended_at") or start
    reply_id = reply.get("id") if isinstance(reply, dict) else None
    continues = request.get("previous_response_id") or ""
    if not continues and request.get("conversation"):
        continues = "a conversation"
    return PlainRequest(
        messages, reply, str(continues), session, user, trace_id,
        str(_first_of(record, "span_id", "run_id") or ""), str(reply_id or ""), moment_ns(start),
        moment_ns(end),
    )  # fmt: skip


def reply_items(reply: Any) -> list[Item] | None:
    """Return the items of an answer, or None where there is none.

    Raises:
        Unreadable: as ``items_of``.
    """
    if reply is None or reply == {}:
        return None
    if isinstance(reply, str):
        return items_of([{"role": "assistant", "content": reply}])
    if not isinstance(reply, dict):
        return items_of(reply)
    if "choices" in reply:
        messages = [choice.get("message") or {} for choice in reply["choices"][:1]]
        return items_of([{**message, "role": "assistant"} for message in messages])
    if "candidates" in reply:
        return items_of(
            [{"role": "model", **(one.get("content") or {})} for one in reply["candidates"][:1]]
        )
    if "generations" in reply:
        inner = reply["generations"]
        while isinstance(inner, list) and inner:
            inner = inner[0]
        return reply_items(inner.get("message", inner) if isinstance(inner, dict) else None)
    if isinstance(reply.get("output"), list):
        return items_of(reply["output"])
    if "messages" in reply:
        return items_of(reply["messages"][-1:])
    if reply.get("type") == "error" or "error" in reply:
        return None
    return items_of([{"role": "assistant", **reply}])
