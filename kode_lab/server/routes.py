"""The ASGI application: who may ask, the table of routes, and every route but the turns.

It checks what each request must have (a local host or a token), finds the route, and turns errors
into answers. It decides nothing about sessions. Paths are matched as they were sent, so an id may
hold any character, percent-encoded; they are decoded here. The table of routes is also the OpenAPI
document, which a test holds against the server.

Source: https://spec.openapis.org/oas/v3.1.0
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import re
import time
from base64 import b64encode
from collections.abc import Awaitable, Callable
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple, TypeVar
from urllib.parse import parse_qsl, unquote_to_bytes

import orjson
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from kode_lab import __version__
from kode_lab.errors import KodeLabError, UnknownAgent
from kode_lab.http import Receive, Scope, Send, check_local_access, read_body
from kode_lab.key import ID_LIMIT_CHARS, SessionKey
from kode_lab.server import schemas
from kode_lab.server.auth import EVERY_USER, Visitor
from kode_lab.server.live_state import LiveTurn, merged_live, merged_statistics
from kode_lab.server.peers import HttpAnswer, PassedOn, WorkerLost
from kode_lab.server.refusal import JSON, LOST, NO_STORE, Problem, Rejected, problem_of
from kode_lab.server.service import LOG, Service
from kode_lab.server.turns import Turns, reply_json

__all__ = ["Application"]

SHOWN_SESSIONS_LIMIT = 200
SHOWN_WAITING_LIMIT = 20
_BROKEN_ESCAPE = re.compile(r"%(?![0-9a-fA-F]{2})")
_OPEN_PATHS = ("/", "/healthz", "/readyz", "/openapi.json")
_SESSION = "/v1/sessions/{userId}/{sessionId}/{agentId}"
_WHY = {
    400: "The request is not HTTP, its body not JSON, or its path not UTF-8. Definite.",
    401: "The token is missing or unknown. Definite.",
    403: "Another user's session, another origin's page, or only for operators. Definite.",
    404: "There is no such path or agent. Definite.",
    405: "The path does not take this method. Definite.",
    408: "The request did not arrive whole in time. Definite.",
    409: "A turn is running, and the strategy is reject. Definite.",
    410: "A later turn interrupted this one or rolled it back. Indeterminate.",
    413: "The body is longer than body_limit_bytes. Definite.",
    415: "The body is not declared as JSON. Definite.",
    421: "The Host header names another server. Definite.",
    422: "A field is wrong. Definite.",
    429: "A limit is reached, which the message names. Definite; see Retry-After.",
    431: "The address and headers are longer than head_limit_bytes. Definite.",
    500: "What is stored is damaged, or the server has a defect. Indeterminate.",
    502: "The model gave no reply. Indeterminate: the same turnId continues.",
    503: "The server is stopping, or cannot write. Indeterminate; see Retry-After.",
    504: "The deadline passed. Indeterminate: the same turnId continues.",
}
_EVERYWHERE = (400, 403, 408, 421, 431)


class HttpCall(NamedTuple):
    """A request on its way to its route.

    Attributes:
        ids: the decoded parts of the path that the route names.
    """

    scope: Scope
    receive: Receive
    send: Send
    visitor: Visitor
    ids: dict[str, str]

    @property
    def is_inside(self) -> bool:
        """Whether another worker passed it on."""
        return bool(self.scope["state"].get("is_inside"))

    def key(self) -> SessionKey:
        """Return the session that the path names, if it is the visitor's."""
        ids = self.ids
        key = SessionKey.of(ids["userId"], ids["agentId"], ids["sessionId"])
        self.visitor.check_user(key.user_id)
        return key

    def passed_on(self, body: bytes = b"") -> PassedOn:
        """Return it as it is passed on to another worker."""
        query = self.scope["query_string"]
        target = self.scope["raw_path"] + (b"?" + query if query else b"")
        headers = (("content-type", "application/json"),) if body else ()
        return PassedOn(self.scope["method"], target, headers, body)


class Route(NamedTuple):
    """One row of the table.

    Attributes:
        answers: the schema of a 200, or its media type; None is an empty 204.
        statuses: how else it can end, beside what can happen everywhere.
    """

    method: str
    path: str
    handler: Callable[[HttpCall], Awaitable[HttpAnswer | None]]
    about: str
    answers: type[BaseModel] | str | None
    statuses: tuple[int, ...] = ()
    takes: type[BaseModel] | None = None
    query: tuple[tuple[str, dict[str, Any]], ...] = ()


class Application:
    """Serves the sessions of one service: an ASGI 3 application.

    Attributes:
        service: what it serves.
        routes: the table.
    """

    def __init__(self, service: Service) -> None:
        self.service = service
        self._turns = Turns(service)
        self.routes = self._table()
        # By the parts of the path; None is a part that the route names.
        self._found: dict[tuple[str | None, ...], dict[str, Route]] = {}
        for route in self.routes:
            parts = route.path.split("/")[1:]
            shape = tuple(None if part[:1] == "{" else part for part in parts)
            self._found.setdefault(shape, {})[route.method] = route

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        service = self.service
        try:
            visitor = self._visitor(scope)
            scope["state"]["visitor"] = visitor
            raw_path = scope["raw_path"]
            if raw_path == b"/v1/turns" and scope["method"] == "POST":
                await self._turns(scope, receive, send)
                return
            route, ids = self._route(scope["method"], raw_path.decode("ascii"))
            response = await route.handler(HttpCall(scope, receive, send, visitor, ids))
        except (Rejected, KodeLabError) as error:
            problem = problem_of(error)
            if problem.status >= 500 and problem.kind != "Draining":
                LOG.warning("%s: %s", problem.kind, error)
            service.live_state.refuse(problem.kind)
            response = _of_problem(problem)
        except WorkerLost:
            response = _of_problem(LOST)
        if response is not None:
            start = {"type": "http.response.start", "status": response.status}
            await send({**start, "headers": response.headers})
            await send({"type": "http.response.body", "body": response.body})

    def _visitor(self, scope: Scope) -> Visitor:
        """Return who sent the request; another worker has checked what it passed on."""
        if scope["state"].get("is_inside"):
            return EVERY_USER
        tokens = self.service.tokens
        refusal = check_local_access(scope["headers"], any_host=tokens is not None)
        if refusal is not None:
            raise Rejected(*refusal[:3])
        if tokens is None or scope["path"] in _OPEN_PATHS:
            return EVERY_USER
        return tokens.visitor_of(scope["headers"])

    def _route(self, method: str, path: str) -> tuple[Route, dict[str, str]]:
        parts = path.split("/")[1:]
        shapes = [shape for shape in self._found if _fits(shape, parts)]
        if not shapes:
            raise Rejected(
                404, "NotFound", "there is nothing at this path: /openapi.json lists the paths"
            )
        routes = self._found[shapes[0]]
        route = routes.get("GET" if method == "HEAD" else method)
        if route is None:
            allowed = sorted(routes) + (["HEAD"] if "GET" in routes else [])
            said = "this path does not take that method: the Allow header lists its methods"
            headers = {"Allow": ", ".join(allowed)}
            raise Rejected(405, "MethodNotAllowed", said, headers=headers)
        names = route.path.split("/")[1:]
        ids = {
            name[1:-1]: _decoded(name[1:-1], part)
            for name, part in zip(names, parts, strict=True)
            if name[:1] == "{"
        }
        return route, ids

    def _table(self) -> tuple[Route, ...]:
        needs_token = self.service.tokens is not None
        who = (401,) if needs_token else ()
        turn = (404, 409, 410, 413, 415, 422, 429, 500, 502, 503, 504)
        changed = (404, 413, 415, 422, 429, 500, 503, 504)
        return (
            Route(
                "POST",
                "/v1/turns",
                self._unreachable,
                "Take one turn: JSON, or a stream of events if stream is true",
                schemas.ReplyJson,
                (*who, *turn),
                schemas.TurnBody,
            ),
            Route(
                "GET",
                f"{_SESSION}/messages",
                self._messages,
                "The conversation as it is saved; it does not wait for turns in flight",
                schemas.HistoryJson,
                (*who, 422, 500, 503),
            ),
            Route(
                "GET",
                f"{_SESSION}/state",
                self._state,
                "Who holds the session, who waits, and how its latest turn ended",
                schemas.StateJson,
                (*who, 422, 503),
            ),
            Route(
                "DELETE",
                _SESSION,
                self._delete,
                "Forget a conversation, after the turns that came before",
                None,
                (*who, 404, 422, 429, 500, 503, 504),
                query=(("waitS", {"type": "number", "minimum": 0}), ("stop", {"type": "boolean"})),
            ),
            Route(
                "POST",
                f"{_SESSION}/stop",
                self._stop,
                "End the running turn of a session without sending another one",
                schemas.StoppedJson,
                (*who, *changed),
                schemas.StopBody,
            ),
            Route(
                "POST",
                f"{_SESSION}/rewind",
                self._rewind,
                "Remove the last turns of a conversation",
                schemas.RewoundJson,
                (*who, *changed),
                schemas.RewindBody,
            ),
            Route(
                "POST",
                f"{_SESSION}/approvals/{{callId}}",
                self._approve,
                "Answer a tool that waits for an approval, and continue its turn",
                schemas.ReplyJson,
                (*who, *changed, 410, 502),
                schemas.ApprovalBody,
            ),
            Route(
                "POST",
                f"{_SESSION}/fork",
                self._fork,
                "Copy a conversation, or its first turns, to a session that has none",
                schemas.ForkedJson,
                (*who, *changed),
                schemas.ForkBody,
            ),
            Route(
                "GET",
                "/v1/users/{userId}/sessions",
                self._sessions,
                "The sessions of a user that rest here",
                schemas.SessionsJson,
                (*who, 422, 500, 503),
            ),
            Route(
                "GET",
                "/v1/statistics",
                self._statistics,
                "How much goes on, of the whole server: figures without names",
                schemas.StatisticsJson,
                who,
            ),
            Route(
                "GET",
                "/v1/live",
                self._live,
                "For operators: the busiest sessions by name, and the latest turns",
                schemas.LiveJson,
                who,
            ),
            Route(
                "GET", "/healthz", self._health, "Whether the process answers", schemas.StatusJson
            ),
            Route(
                "GET",
                "/readyz",
                self._ready,
                "Whether turns are taken: not while the server stops, its database is away or "
                "one of its workers does not answer",
                schemas.StatusJson,
                (503,),
            ),
            Route("GET", "/metrics", self._metrics, "For Prometheus", "text/plain", who),
            Route("GET", "/openapi.json", self._openapi, "This document", "application/json"),
            Route("GET", "/", self._page, "The live page", "text/html"),
        )

    # ---- the routes

    async def _unreachable(self, call: HttpCall) -> None:
        """Stand for the turns in the table; they are answered before the table is searched."""
        raise AssertionError(call)

    async def _messages(self, call: HttpCall) -> HttpAnswer:
        key = call.key()
        messages = await self.service.manager.history(key)
        return _json({**key.to_json(), "messages": messages})

    async def _state(self, call: HttpCall) -> HttpAnswer:
        key = call.key()
        if (response := await self._at_home(key, call)) is not None:
            return response
        live_state, now_s = self.service.live_state, time.monotonic()
        queue, last = live_state.queue(key), live_state.last(key)
        return _json(
            {
                **key.to_json(),
                "isHeld": any(turn.held_s is not None for turn in queue),
                "waiting": sum(turn.held_s is None for turn in queue),
                # The lock is the session's; its other agents' turns are counted, not named.
                "turns": [_turn_json(turn, now_s) for turn in queue if turn.key == key],
                "lastTurn": None
                if last is None
                else {
                    "turnId": last.turn_id,
                    "outcome": last.outcome,
                    "agoS": round(now_s - last.ended_s, 3),
                    "waitedS": round(last.waited_s, 4),
                    "tookS": round(last.took_s, 4),
                },
            }
        )

    async def _delete(self, call: HttpCall) -> HttpAnswer:
        key = call.key()
        if (response := await self._at_home(key, call)) is not None:
            return response
        service = self.service
        wait_s, stop = _delete_query(call.scope["query_string"])
        # In a task of its own: half a deletion helps no one, whether the client leaves or not.
        deleting = service.start(service.manager.delete(key, wait_s=wait_s, stop=stop))
        with contextlib.suppress(UnknownAgent):
            await asyncio.shield(deleting)
        service.forget(key)
        return HttpAnswer(204, [NO_STORE], b"")

    async def _stop(self, call: HttpCall) -> HttpAnswer:
        key = call.key()
        data, body = await _body_of(call, schemas.StopBody)
        # The turn may run elsewhere if the session's home was away for a while.
        stopping = self.service.manager.stop(
            key, turn_id=body.turn_id or None, how=body.how, waiting=body.waiting
        )
        own, others = await asyncio.gather(stopping, self._others(call, data))
        stopped = [*own]
        for answer in others.values():
            stopped += orjson.loads(answer)["stopped"]
        return _json({**key.to_json(), "stopped": stopped})

    async def _rewind(self, call: HttpCall) -> HttpAnswer:
        key = call.key()
        data, body = await _body_of(call, schemas.RewindBody)
        if (response := await self._at_home(key, call, data)) is not None:
            return response
        service = self.service
        rewinding = service.manager.rewind(
            key, body.to_turn, turn_id=body.turn_id or None, wait_s=body.wait_s
        )
        removed = await asyncio.shield(service.start(rewinding))
        return _json({**key.to_json(), "removed": list(removed)})

    async def _approve(self, call: HttpCall) -> HttpAnswer:
        key = call.key()
        data, body = await _body_of(call, schemas.ApprovalBody)
        if (response := await self._at_home(key, call, data)) is not None:
            return response
        service = self.service
        approving = service.manager.approve(
            key,
            call.ids["callId"],
            body.answer,
            wait_s=body.wait_s,
            deadline_s=body.deadline_s,
        )
        # In a task of its own: the answer counts, whether the client leaves or not.
        return _json(reply_json(key, await asyncio.shield(service.start(approving))))

    async def _fork(self, call: HttpCall) -> HttpAnswer:
        key = call.key()
        data, body = await _body_of(call, schemas.ForkBody)
        new_key = SessionKey.of(
            key.user_id,
            body.agent_id if "agent_id" in body.model_fields_set else key.agent_id,
            body.session_id,
        )
        if (response := await self._at_home(key, call, data)) is not None:
            return response
        service = self.service
        is_counted = await service.admit(new_key)
        try:
            forking = service.manager.fork(key, new_key, at_turn=body.at_turn, wait_s=body.wait_s)
            messages = await asyncio.shield(service.start(forking))
        except KodeLabError:
            if is_counted:
                service.forget(new_key)
            raise
        return _json({**new_key.to_json(), "messages": messages})

    async def _sessions(self, call: HttpCall) -> HttpAnswer:
        user_id = SessionKey.of(call.ids["userId"], "-").user_id
        call.visitor.check_user(user_id)
        limit = self.service.session_limit
        keys = [] if limit is None else await limit.sessions(user_id)
        return _json({"userId": user_id, "sessions": [key.to_json() for key in keys]})

    async def _statistics(self, call: HttpCall) -> HttpAnswer:
        manager, live_state = self.service.manager.statistics(), self.service.live_state
        own = {
            "workers": 1,
            "uptimeS": round(time.monotonic() - live_state.started_s, 3),
            "isDraining": self.service.is_draining,
            "turnsInFlight": self.service.turns_in_flight,
            "sessionsInFlight": manager.sessions,
            "residents": manager.residents,
            "lock": {
                "held": manager.lock.held,
                "waiting": manager.lock.waiting,
                "longestQueue": manager.lock.longest_queue,
                "handedOver": manager.lock.handed_over,
            },
            "outcomes": live_state.outcomes,
            "refusals": live_state.refusals,
        }
        others = await self._others(call)
        return _json(merged_statistics([own, *map(orjson.loads, others.values())]))

    async def _live(self, call: HttpCall) -> HttpAnswer:
        call.visitor.check_operator()
        live_state, now_s = self.service.live_state, time.monotonic()
        queues = sorted(live_state.queues(), key=len, reverse=True)
        own = {
            "sessions": [_queue_json(queue, now_s) for queue in queues[:SHOWN_SESSIONS_LIMIT]],
            "notShown": max(0, len(queues) - SHOWN_SESSIONS_LIMIT),
            "recent": [
                {
                    "agoS": round(now_s - ended.ended_s, 3),
                    "waitedS": round(ended.waited_s, 4),
                    "tookS": round(ended.took_s, 4),
                    "outcome": ended.outcome,
                }
                for ended in live_state.recent
            ],
        }
        reports = [own, *map(orjson.loads, (await self._others(call)).values())]
        return _json(merged_live(reports, limit=SHOWN_SESSIONS_LIMIT))

    async def _health(self, _: HttpCall) -> HttpAnswer:
        return _json({"status": "ok"})

    async def _ready(self, call: HttpCall) -> HttpAnswer:
        if self.service.is_draining:
            raise Rejected(503, "Draining", "the server is shutting down", retry_after_s=5.0)
        if not self.service.is_ready():
            said = "the database does not answer: try again later"
            raise Rejected(503, "StoreUnreachable", said, retry_after_s=2.0)
        peers = self.service.peers
        if peers is not None and not call.is_inside and (silent := await peers.unready()):
            said = f"workers that do not answer: {', '.join(map(str, silent))} of {peers.count}"
            raise Rejected(503, "WorkerSilent", said, retry_after_s=2.0)
        return _json({"status": "ready"})

    async def _metrics(self, call: HttpCall) -> HttpAnswer:
        from kode_lab.server.metrics import CONTENT_TYPE, labelled, metrics_text  # noqa: PLC0415

        call.visitor.check_operator()
        peers = self.service.peers
        carried = 0 if peers is None else peers.carried
        body = metrics_text(self.service.live_state, self.service.manager, carried=carried)
        if peers is not None and not call.is_inside:
            body = labelled({peers.number: body, **await self._others(call)})
        return HttpAnswer(200, [(b"content-type", CONTENT_TYPE.encode()), NO_STORE], body)

    async def _openapi(self, _: HttpCall) -> HttpAnswer:
        return _json(document(self))

    async def _page(self, _: HttpCall) -> HttpAnswer:
        """Return the live page without data: it asks for these itself, with the visitor's token."""
        return HttpAnswer(200, *_page())

    # ---- among workers

    async def _at_home(
        self, key: SessionKey, call: HttpCall, body: bytes = b""
    ) -> HttpAnswer | None:
        """Return the answer of the session's home; None if this worker is the home."""
        peers = self.service.peers
        if peers is None or call.is_inside:
            return None
        return await peers.ask(key, call.passed_on(body))

    async def _others(self, call: HttpCall, body: bytes = b"") -> dict[int, bytes]:
        """Return the other workers' answers to the same question, by their numbers."""
        peers = self.service.peers
        return {} if peers is None or call.is_inside else await peers.ask_all(call.passed_on(body))


_BodyModel = TypeVar("_BodyModel", bound=BaseModel)


async def _body_of(call: HttpCall, model: type[_BodyModel]) -> tuple[bytes, _BodyModel]:
    """Return a request's body as it was sent, and checked; an empty one is an empty object."""
    data = await read_body(call.receive) or b""
    if data and not schemas.is_json(call.scope["headers"]):
        raise Rejected(415, "UnsupportedMediaType", "send the body as application/json")
    return data, schemas.checked_body(model, schemas.json_object(data) if data else {})


def _delete_query(query: bytes) -> tuple[float | None, bool]:
    """Return how long a deletion waits for turns, and whether it stops them instead."""
    wait_s, stop = None, False
    for name, value in parse_qsl(query.decode("latin-1"), keep_blank_values=True):
        if name == "waitS" and re.fullmatch(r"\d{1,5}(\.\d{1,6})?", value):
            wait_s = float(value)
        elif name == "stop" and value in ("true", "false"):
            stop = value == "true"
        else:
            raise Rejected(
                422,
                "InvalidRequest",
                f"{name}={value} is not valid: the query may have waitS=SECONDS and stop=true",
            )
    return wait_s, stop


def _fits(shape: tuple[str | None, ...], parts: list[str]) -> bool:
    """Whether a path's parts are those of a route; a part that the route names is not empty."""
    return len(shape) == len(parts) and all(
        part if fixed is None else part == fixed for fixed, part in zip(shape, parts, strict=True)
    )


def document(app: Application) -> dict[str, Any]:
    """Return the OpenAPI document of a server."""
    needs_token = app.service.tokens is not None
    models = {model for route in app.routes for model in (route.answers, route.takes)}
    used = [model for model in models if isinstance(model, type)]
    used += [schemas.ErrorJson, schemas.EventJson]
    _, definitions = models_json_schema(
        [(model, "validation") for model in sorted(used, key=lambda model: model.__name__)],
        ref_template="#/components/schemas/{model}",
    )
    paths: dict[str, Any] = {}
    for route in app.routes:
        paths.setdefault(route.path, {})[route.method.lower()] = _operation(route)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "kode_lab sessions",
            "version": __version__,
            "description": "Sessions of LLM agents: turns of one session one by one, those of "
            "different sessions side by side. A body has at most "
            f"{app.service.limits.connection.body_limit_bytes} bytes.",
        },
        "paths": paths,
        "components": {
            "schemas": definitions["$defs"] | {"JsonValue": schemas.JSON_VALUE},
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{"token": []}] if needs_token else [],
    }


def _operation(route: Route) -> dict[str, Any]:
    answers: dict[str, Any]
    if route.answers is None:
        answers = {"204": {"description": "Done."}}
    elif isinstance(route.answers, str):
        answers = {"200": {"description": route.about, "content": {route.answers: {}}}}
    else:
        answers = {"200": {"description": route.about, "content": _content(route.answers)}}
    if route.takes is schemas.TurnBody:
        event = {"$ref": "#/components/schemas/EventJson"}
        answers["200"]["content"]["text/event-stream"] = {"schema": event}
    for status in sorted({*_EVERYWHERE, *route.statuses}):
        answers[str(status)] = {"description": _WHY[status], "content": _content(schemas.ErrorJson)}
    operation: dict[str, Any] = {
        "operationId": route.handler.__name__.strip("_"),
        "summary": route.about,
        "responses": answers,
    }
    names = re.findall(r"{(\w+)}", route.path)
    an_id = {"type": "string", "minLength": 1, "maxLength": ID_LIMIT_CHARS}
    operation["parameters"] = [
        {"name": name, "in": "path", "required": True, "schema": an_id} for name in names
    ] + [{"name": name, "in": "query", "schema": schema} for name, schema in route.query]
    if route.takes is not None:
        is_needed = any(field.is_required() for field in route.takes.model_fields.values())
        operation["requestBody"] = {"required": is_needed, "content": _content(route.takes)}
    return operation


def _content(model: type[BaseModel]) -> dict[str, Any]:
    return {"application/json": {"schema": {"$ref": f"#/components/schemas/{model.__name__}"}}}


def _decoded(name: str, text: str) -> str:
    if "%" not in text:
        return text
    if _BROKEN_ESCAPE.search(text):
        raise Rejected(400, "BadPath", f"{name} has a % that escapes nothing: write it as %25")
    try:
        return unquote_to_bytes(text).decode()
    except UnicodeDecodeError:
        raise Rejected(400, "BadPath", f"{name} is not UTF-8, percent-encoded") from None


def _turn_json(turn: LiveTurn, now_s: float) -> dict[str, Any]:
    since_s = turn.accepted_s if turn.held_s is None else turn.held_s
    return {
        "turnId": turn.turn_id,
        "state": "waiting" if turn.held_s is None else "running",
        "sinceS": round(now_s - since_s, 3),
        "modelCalls": turn.asks,
        "toolCalls": turn.tools,
    }


def _queue_json(queue: tuple[LiveTurn, ...], now_s: float) -> dict[str, Any]:
    waiting = [turn for turn in queue if turn.held_s is None]
    holder = next((turn for turn in queue if turn.held_s is not None), None)
    key = queue[0].key
    return {
        "userId": key.user_id[:80],
        "sessionId": key.session_id[:80],
        "agentId": (holder or queue[0]).key.agent_id[:80],
        "holder": None if holder is None else _turn_json(holder, now_s),
        "waiting": len(waiting),
        "waitedS": [round(now_s - t.accepted_s, 3) for t in waiting[:SHOWN_WAITING_LIMIT]],
    }


def _json(data: object) -> HttpAnswer:
    return HttpAnswer(200, [JSON, NO_STORE], orjson.dumps(data))


def _of_problem(problem: Problem) -> HttpAnswer:
    body = problem.body()
    return HttpAnswer(problem.status, problem.raw_headers(len(body)), body)


@cache
def _page() -> tuple[list[tuple[bytes, bytes]], bytes]:
    """Return the live page's headers, which name its own script and style by hash, and the page."""
    page = Path(__file__).with_name("page.html").read_text("utf-8")
    sources = {}
    for tag in ("script", "style"):
        found = re.search(rf"<{tag}>(.*?)</{tag}>", page, re.DOTALL)
        assert found is not None
        digest = b64encode(hashlib.sha256(found[1].encode()).digest()).decode()
        sources[tag] = f"'sha256-{digest}'"
    policy = (
        f"default-src 'none'; script-src {sources['script']}; style-src {sources['style']}; "
        "connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; "
        "frame-ancestors 'none'"
    )
    headers = [
        (b"content-type", b"text/html; charset=utf-8"),
        NO_STORE,
        (b"content-security-policy", policy.encode()),
        (b"referrer-policy", b"no-referrer"),
    ]
    return headers, page.encode()
