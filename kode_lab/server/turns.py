"""``POST /v1/turns``: one turn, answered as one JSON object or as a stream of events.

A client that leaves does not decide about the conversation: the turn is a task of the service, and
the request is only its audience. When the client leaves, the request's policy holds: ``finish``
(the default) takes the turn to its end and saves it; ``rollback`` ends it and forgets what it did,
unless it is being saved already.

    accepted    {"turnId": "…"}                    the turn waits for its session
    started     {"turnId": "…"}                    the session is held
    text        {"text": "…"}                      a piece of the model's words
    tool_call   {"id", "name", "input"}            a tool is about to run
    tool_result {"callId", "content", "isError"}   what it returned
    approval_needed {"callId", "name", "input", "question"}   the turn rests until it is answered
    steered     {"turnId", "into"}                 a prompt was given to the running turn ``into``
    done        the reply, as JSON returns it      the turn is saved
    error       the problem, as JSON returns it    there is no reply

Each event of a stream has a number as its ``id``. The events of a turn are kept while it runs and
for some time afterwards: a stream that was cut continues when the same turnId is sent again with
``Last-Event-ID``. Text pieces that were not sent yet become one, so a slow reader costs no more
memory than the reply has letters.

Source: https://html.spec.whatwg.org/multipage/server-sent-events.html
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from typing import Any, NamedTuple

import orjson

from kode_lab.errors import DeadlineExceeded, InvalidPrompt
from kode_lab.http import DropConnection, Receive, Scope, Send, read_body
from kode_lab.key import SessionKey
from kode_lab.server.peers import PassedOn, WorkerLost, pass_answer
from kode_lab.server.refusal import JSON, LOST, NO_STORE, Problem, Rejected, problem_of
from kode_lab.server.schemas import TurnRequest, is_json, turn_request
from kode_lab.server.service import Service, TurnTask, outcome_of
from kode_lab.sessions import TurnEvent, TurnReply

__all__ = ["HEARTBEAT_S", "EventLog", "Turns", "reply_json"]

HEARTBEAT_S = 15.0
# Events of ended turns, for clients whose stream was cut near its end.
ENDED_LOGS_LIMIT = 1_000
ENDED_LOGS_LIMIT_BYTES = 16_000_000
# What a passed-on request may take beyond its deadline: the home answers by itself first.
_DEADLINE_GRACE_S = 1.0
_COMMENT = b": the turn goes on\n\n"
_TURN_ID_HEADER = b"kode-lab-turn-id"
_STREAM_START = {
    "type": "http.response.start",
    "status": 200,
    "headers": [
        (b"content-type", b"text/event-stream; charset=utf-8"),
        NO_STORE,
        (b"x-accel-buffering", b"no"),
    ],
}


class EventLog:
    """The events of one streamed turn, from the first on.

    Attributes:
        request: what was asked.
        task: the turn.
        is_closed: the last event is in it.
    """

    __slots__ = (
        "_events",
        "_first",
        "_text",
        "_waiting",
        "is_closed",
        "request",
        "size_bytes",
        "task",
    )

    def __init__(self, request: TurnRequest, first: int = 0) -> None:
        """Begin with ``accepted``; its id follows ``first``, which an earlier stream reached."""
        self._first = first
        self.request = request
        self.task: TurnTask | None = None
        self.is_closed = False
        self.size_bytes = 0
        self._events: list[bytes] = []
        self._text: list[str] = []
        self._waiting: set[asyncio.Future[None]] = set()
        self._add("accepted", {"turnId": request.turn_id})

    def tell(self, event: TurnEvent) -> None:
        """Record one event of the turn: the manager's ``on_event``."""
        kind, data = event
        if kind == "text":
            self._text.append(data)
        elif kind == "tool_call":
            self.add(kind, {"id": data.id, "name": data.name, "input": data.input})
        elif kind == "tool_result":
            self.add(
                kind, {"callId": data.call_id, "content": data.content, "isError": data.is_error}
            )
        elif kind == "approval_needed":
            about = {"name": data.call.name, "input": data.call.input, "question": data.question}
            self.add(kind, {"callId": data.call_id, **about})
        elif kind == "steered":
            self.add(kind, {"turnId": data.turn_id, "into": data.into})
        else:
            self.add(kind, {"turnId": self.request.turn_id})
        self._wake()

    def add(self, kind: str, data: dict[str, Any]) -> None:
        """Record one event after those before."""
        self._close_text()
        self._add(kind, data)

    def close(self, task: TurnTask) -> None:
        """Record how the turn ended: the last event."""
        outcome = outcome_of(task)
        if isinstance(outcome, Problem):
            self.add("error", outcome.to_json(self.request.turn_id))
        else:
            self.add("done", reply_json(self.request.key, outcome))
        self.is_closed = True
        self._wake()

    def after(self, number: int) -> tuple[bytes, int]:
        """Return the events after this id, and the id of the last one."""
        self._close_text()
        last = self._first + len(self._events)
        start = number - self._first
        if not 0 <= start <= len(self._events):  # an id of another stream
            start = 0
        return b"".join(self._events[start:]), last

    async def wait(self, timeout_s: float) -> bool:
        """Wait for more; return False if nothing came in time."""
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.add(waiter)
        try:
            async with asyncio.timeout(timeout_s):
                await waiter
        except TimeoutError:
            return False
        finally:
            self._waiting.discard(waiter)
        return True

    def _wake(self) -> None:
        for waiter in self._waiting:
            if not waiter.done():
                waiter.set_result(None)

    def _close_text(self) -> None:
        if self._text:
            self._add("text", {"text": "".join(self._text)})
            self._text.clear()

    def _add(self, kind: str, data: dict[str, Any]) -> None:
        event = b"event: %b\nid: %d\ndata: %b\n\n" % (
            kind.encode(),
            self._first + len(self._events) + 1,
            orjson.dumps(data),
        )
        self._events.append(event)
        self.size_bytes += len(event)


class Turns:
    """The endpoint; it answers by itself, because a stream has no end to wait for."""

    def __init__(self, service: Service) -> None:
        self._service = service
        # Of streamed turns in flight, and of those that ended lately, in the order of their ends.
        self._logs: dict[tuple[SessionKey, str], EventLog] = {}
        self._ended: OrderedDict[tuple[SessionKey, str], EventLog] = OrderedDict()
        self._ended_bytes = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Take one turn, or go on with the stream of one that is known."""
        service = self._service
        asked = _asked(scope)
        body = await read_body(receive)
        if body is None:  # the client has left
            return
        request = turn_request(body, is_stream=asked.wants_events)
        state = scope["state"]
        state["visitor"].check_user(request.key.user_id)
        if service.peers is not None:
            if not state.get("is_inside"):
                passed_on = _passed_on(request, asked, body)
                if await _taken_at_home(service, request, passed_on, send, receive):
                    return
            elif asked.turn_id and not request.is_named:
                request = request._replace(turn_id=asked.turn_id)
        await self._take(request, asked.last_id, receive, send)

    async def _take(self, request: TurnRequest, last_id: int, receive: Receive, send: Send) -> None:
        """Take the turn here, unless it is streamed already, and answer."""
        service = self._service
        log = self._known_log(request) if request.is_stream else None
        if log is None:
            is_counted = await service.admit(request.key)
            if request.is_stream:
                log = EventLog(request, last_id)
                task = log.task = service.begin(request, log.tell, is_counted=is_counted)
            else:
                task = service.begin(request, is_counted=is_counted)
        else:
            assert log.task is not None
            task = log.task
        watch: asyncio.Task[None] | None = None
        if _is_watched(request):
            watch = asyncio.create_task(self._watch(request, task, receive))
        try:
            if log is not None:
                await self._stream(log, last_id, send)
            else:
                await _answer(request, await _ended(task), send)
        finally:
            if watch is not None:
                watch.cancel()

    async def _watch(self, request: TurnRequest, task: TurnTask, receive: Receive) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        self._service.client_left(request, task)

    def _known_log(self, request: TurnRequest) -> EventLog | None:
        """Return the events of a turn that is streamed already, or was lately."""
        log = self._logs.get((request.key, request.turn_id))
        if log is not None and log.request.message != request.message:
            raise InvalidPrompt(
                f"{request.key}: turnId {request.turn_id!r:.60} belongs to another prompt: send "
                "that prompt again, or give this one an id of its own"
            )
        return log

    async def _stream(self, log: EventLog, last_id: int, send: Send) -> None:
        """Send the events after ``last_id`` as they happen, the reply or the problem last."""
        task = log.task
        assert task is not None
        name = (log.request.key, log.request.turn_id)
        if name not in self._logs:
            # What is refused at once is refused by status, before a stream begins.
            for _ in range(2):
                await asyncio.sleep(0)
            if task.done():
                outcome = outcome_of(task)
                if isinstance(outcome, Problem):
                    await _answer(log.request, outcome, send)
                    return
            self._logs.setdefault(name, log)
            task.add_done_callback(lambda task: self._close(name, log, task))
        await send(_STREAM_START)
        is_first = True  # the head goes out with it, whether there is news or not
        while True:
            chunk, last_id = log.after(last_id)
            is_last = log.is_closed
            if chunk or is_last or is_first:
                is_first = False
                await send({"type": "http.response.body", "body": chunk, "more_body": not is_last})
                if is_last:
                    return
            elif not await log.wait(HEARTBEAT_S):
                await send({"type": "http.response.body", "body": _COMMENT, "more_body": True})

    def _close(self, name: tuple[SessionKey, str], log: EventLog, task: TurnTask) -> None:
        """Record the end of a turn, and keep its events for a while."""
        log.close(task)
        if self._logs.get(name) is not log:  # two began at once
            return
        self._ended[name] = log
        self._ended_bytes += log.size_bytes
        while self._ended_bytes > ENDED_LOGS_LIMIT_BYTES or len(self._ended) > ENDED_LOGS_LIMIT:
            oldest, gone = self._ended.popitem(last=False)
            self._ended_bytes -= gone.size_bytes
            del self._logs[oldest]


class _Asked(NamedTuple):
    """What the headers of a turn say.

    Attributes:
        wants_events: a stream, unless the body says otherwise.
        last_id: the last event that the client has of this turn's stream; 0 if none.
        turn_id: which another worker gave to a turn without one.
    """

    wants_events: bool
    last_id: int
    turn_id: str


def _asked(scope: Scope) -> _Asked:
    headers = scope["headers"]
    if not is_json(headers):
        raise Rejected(
            415, "UnsupportedMediaType", "send the turn as Content-Type: application/json"
        )
    wants_events, last_id, turn_id = False, 0, ""
    for name, value in headers:
        if name == b"accept":
            wants_events = wants_events or b"text/event-stream" in value.lower()
        elif name == b"last-event-id":
            last_id = int(value) if value.isdigit() and len(value) < 10 else 0
        elif name == _TURN_ID_HEADER:
            turn_id = value.decode("latin-1")
    return _Asked(wants_events, last_id, turn_id)


def _passed_on(request: TurnRequest, asked: _Asked, body: bytes) -> PassedOn:
    headers = [("content-type", "application/json")]
    if not request.is_named:
        headers.append((_TURN_ID_HEADER.decode(), request.turn_id))
    if request.is_stream:
        headers.append(("accept", "text/event-stream"))
    if asked.last_id:
        headers.append(("last-event-id", str(asked.last_id)))
    return PassedOn("POST", b"/v1/turns", tuple(headers), body)


async def _taken_at_home(
    service: Service, request: TurnRequest, passed_on: PassedOn, send: Send, receive: Receive
) -> bool:
    """Let the session's home take the turn; return False if this worker is the home."""
    assert service.peers is not None
    limit_s = request.deadline_s or service.deadline_of(request.key.agent_id)
    has_begun = False
    # A client that leaves cancels the passing on, which ends the connection to the home.
    watch: asyncio.Task[None] | None = None
    if request.is_stream or _is_watched(request):
        watch = asyncio.create_task(_cancel_when_left(receive, asyncio.current_task()))
    try:
        async with (
            asyncio.timeout(limit_s + _DEADLINE_GRACE_S),
            service.peers.at_home(request.key, passed_on) as answer,
        ):
            if answer is None:
                return False
            has_begun = request.is_stream and answer.status == 200
            await pass_answer(answer, send)
    except WorkerLost:
        if has_begun:  # a stream without its last event is known to be cut
            raise DropConnection from None
        await _answer(request, LOST, send)
    except TimeoutError:
        problem = problem_of(
            DeadlineExceeded(
                f"{request.key}: no reply within deadline_s={limit_s:g}: the worker that holds the "
                "session does not answer; the same turnId continues the turn"
            )
        )
        if has_begun:
            event = b"event: error\ndata: %b\n\n" % problem.body(request.turn_id)
            await send({"type": "http.response.body", "body": event, "more_body": False})
        else:
            await _answer(request, problem, send)
    finally:
        if watch is not None:
            watch.cancel()
    return True


async def _cancel_when_left(receive: Receive, task: asyncio.Task[Any] | None) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    if task is not None:
        task.cancel()


def _is_watched(request: TurnRequest) -> bool:
    """Whether the client's leaving means something to the turn."""
    return request.on_disconnect == "rollback"


async def _ended(task: TurnTask) -> TurnReply | Problem:
    """Wait for the turn's end without carrying our own cancellation into it.

    Its error is looked at, not raised: its traceback would hold this frame, which holds the task,
    which holds the error, and with them the whole request until the garbage collector runs.
    """
    ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def wake(_: TurnTask) -> None:
        if not ended.done():  # the request was cancelled
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
        headers = [JSON, NO_STORE, (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def reply_json(key: SessionKey, reply: TurnReply) -> dict[str, Any]:
    """Return the answer to an acknowledged turn."""
    answer = {
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
        "stopReason": reply.stop_reason,
    }
    if reply.steered:
        answer["steered"] = reply.steered
    return answer | {"into": reply.into} if reply.into else answer
