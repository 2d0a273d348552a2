"""``POST /v1/turns``: one turn, answered as one JSON object or as a stream of events.

Whoever leaves does not decide about the conversation: the turn is a task of the service, this is
only its audience. When the audience leaves, the request's own policy holds: ``finish`` (the
default) takes the turn to its end and saves it; ``rollback`` ends it and forgets what it did,
unless it is being saved already. Both hold for JSON and for streams alike.
"""

from __future__ import annotations

import asyncio
from typing import Any

import orjson

from kode_lab.http import Receive, Scope, Send, read_body
from kode_lab.key import SessionKey
from kode_lab.server.body import (
    TurnRequest,
    accepts_events,
    is_json,
    named,
    turn_request,
)
from kode_lab.server.events import EventStream
from kode_lab.server.exchange import Lost
from kode_lab.server.peers import LOST, Carried, Peers
from kode_lab.server.refusal import JSON, Problem, Rejected
from kode_lab.server.service import Service, TurnTask, outcome_of
from kode_lab.sessions import TurnReply

__all__ = ["Turns", "reply_json"]

_NO_STORE = (b"cache-control", b"no-store")
_JSON_EVENTS = (JSON, (b"accept", b"text/event-stream"))
_STREAM_START = {
    "type": "http.response.start",
    "status": 200,
    "headers": [
        (b"content-type", b"text/event-stream; charset=utf-8"),
        _NO_STORE,
        (b"x-accel-buffering", b"no"),
    ],
}


class Turns:
    """The endpoint as an ASGI application: Starlette's request and response objects cost more."""

    def __init__(self, service: Service) -> None:
        self._service = service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Take one turn."""
        service = self._service
        if not is_json(scope):
            raise Rejected(
                415, "UnsupportedMediaType", "send the turn as Content-Type: application/json"
            )
        body = await read_body(receive)
        if body is None:  # the client has left
            return
        request = turn_request(body, is_stream=accepts_events(scope))
        scope["state"]["visitor"].check_user(request.key.user_id)
        if service.peers is not None and not scope["state"].get("is_inside"):
            listened = receive if request.is_stream or _is_watched(request) else None
            if await _taken_at_home(service.peers, request, body, send, listened):
                return
        is_counted = await service.admit(request.key)
        watch: asyncio.Task[None] | None = None
        if request.is_stream:
            events = EventStream(request.turn_id, asyncio.get_running_loop())
            task = service.begin(request, events.tell, is_counted=is_counted)
        else:
            task = service.begin(request, is_counted=is_counted)
        if _is_watched(request):
            watch = asyncio.create_task(self._watch(request, task, receive))
        try:
            if request.is_stream:
                await self._stream(request, task, events, send)
            else:
                await _answer(request, await _ended(task), send)
        finally:
            if watch is not None:
                watch.cancel()

    async def _watch(self, request: TurnRequest, task: TurnTask, receive: Receive) -> None:
        """Wait for the client to leave, which is when its policy matters."""
        while (await receive())["type"] != "http.disconnect":
            pass
        self._service.client_left(request, task)

    async def _stream(
        self, request: TurnRequest, task: TurnTask, events: EventStream, send: Send
    ) -> None:
        """Tell what happens as it happens, the reply or the problem last."""
        # What is refused at once is refused by status, before a stream begins.
        for _ in range(2):
            await asyncio.sleep(0)
        if task.done():
            outcome = outcome_of(task)
            if isinstance(outcome, Problem):
                await _answer(request, outcome, send)
                return
        await send(_STREAM_START)
        task.add_done_callback(events.wake)
        events.begin_heartbeat()
        try:
            while not task.done():
                chunk = events.take()
                if chunk:
                    await send({"type": "http.response.body", "body": chunk, "more_body": True})
                else:
                    await events.wait()
        finally:
            events.end_heartbeat()
        outcome = outcome_of(task)
        if isinstance(outcome, Problem):
            events.add("error", outcome.to_json(request.turn_id))
        else:
            events.add("done", reply_json(request.key, outcome))
        await send({"type": "http.response.body", "body": events.take(), "more_body": False})


def _is_watched(request: TurnRequest) -> bool:
    """Whether the client's leaving means something to the turn."""
    return request.on_disconnect == "rollback"


async def _taken_at_home(
    peers: Peers, request: TurnRequest, body: bytes, send: Send, receive: Receive | None
) -> bool:
    """Let the worker whose session it is take the turn; say whether that is another one."""
    headers = _JSON_EVENTS if request.is_stream else (JSON,)
    carried = Carried(b"POST", b"/v1/turns", headers, named(body, request))
    try:
        return await peers.carry(request.key, carried, send, receive)
    except Lost as lost:
        # An answer that had begun is cut, and so indeterminate without a word.
        if not lost.has_begun:
            await _answer(request, LOST, send)
        return True


async def _ended(task: TurnTask) -> TurnReply | Problem:
    """Wait for the turn's end without carrying our own cancellation into it.

    Its error is looked at, not raised: its traceback would hold this frame, which holds the task,
    which holds the error, and with them the whole request until the collector comes.
    """
    ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def wake(_: TurnTask) -> None:
        if not ended.done():  # nobody waits any more
            ended.set_result(None)

    task.add_done_callback(wake)
    await ended
    return outcome_of(task)


async def _answer(request: TurnRequest, outcome: TurnReply | Problem, send: Send) -> None:
    if isinstance(outcome, Problem):
        status = outcome.status
        body = outcome.body(request.turn_id)
        headers = outcome.raw_headers(len(body))
    else:
        status = 200
        body = orjson.dumps(reply_json(request.key, outcome))
        headers = [JSON, _NO_STORE, (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def reply_json(key: SessionKey, reply: TurnReply) -> dict[str, Any]:
    """Return the answer to an acknowledged turn."""
    return {
        **key.to_json(),
        "turnId": reply.turn_id,
        "text": reply.text,
        "toolCalls": [
            {"id": call.id, "name": call.name, "input": call.input} for call in reply.tool_calls
        ],
        "usage": {
            "inputTokens": reply.usage.input_tokens,
            "outputTokens": reply.usage.output_tokens,
        },
        "configVersion": reply.config_version,
        "isReplay": reply.is_replay,
    }
