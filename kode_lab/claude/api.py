"""The simulated Messages API as one raw ASGI application: its routes and what they need to decide.

What is legal, what is said, how long it takes and what goes wrong are decided in ``legality``,
``script``, ``profile`` and ``fault``; here a request is brought before each of them. It must never
know who runs it, nor sockets.

Besides the API's own paths it answers ``/lab/...``, for clients in other processes:
``GET /lab/reads/<marker>``, ``GET /lab/statistics``, ``POST`` and ``DELETE /lab/faults``.
"""

from __future__ import annotations

import time
from datetime import date
from typing import Any, NamedTuple
from urllib.parse import parse_qs, unquote

import orjson

from kode_lab.claude import script, wire
from kode_lab.claude.answer import Answer, give
from kode_lab.claude.exchange import Exchange, Receive, Scope, Send
from kode_lab.claude.fault import Fault, FaultPlan, fault_of
from kode_lab.claude.legality import problem_of
from kode_lab.claude.profile import Latency, Profile
from kode_lab.claude.records import Record, Records
from kode_lab.claude.wire import ApiError
from kode_lab.errors import InvalidScenario
from kode_lab.history.operation import echo_of

__all__ = ["MessagesApi"]

_PAGE_LIMIT = 1_000


class _Decided(NamedTuple):
    """A legal request: whom it answers, what the script makes of it, and the answer."""

    marker: str
    plan: script.Planned
    answer: Answer


class MessagesApi:
    """The application: ``await api(scope, receive, send)``; ``Dropped`` means: drop the connection.

    Attributes:
        profile: may be exchanged while it runs; requests that have come keep theirs.
    """

    def __init__(
        self,
        profile: Profile,
        faults: FaultPlan,
        records: Records,
        *,
        salt: str,
        api_key: str | None = None,
        today: date | None = None,
    ) -> None:
        """Set it up.

        Args:
            profile: how long it takes.
            faults: what goes wrong.
            records: where it notes what it was shown and answered.
            salt: makes the ids of this server unlike those of any other, so that conversations
                that outlive it stay legal.
            api_key: the only accepted key; None accepts any.
            today: what "today" means; None is the calendar's.
        """
        self.profile = profile
        self._faults = faults
        self._records = records
        self._salt = salt
        self._api_key = api_key
        self._today = today
        self._count = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        self._count += 1
        exchange = Exchange(f"req_sim{self._salt}{self._count:08d}", receive, send)
        method, path = scope["method"], scope["path"]
        if path.startswith("/lab/"):
            await self._lab(exchange, method, path)
            return
        headers = dict(scope["headers"])
        problem = self._header_problem(headers)
        version = headers.get(b"anthropic-version", b"").decode("latin-1")
        if problem is not None:
            await exchange.refuse(problem)
        elif (method, path) == ("POST", "/v1/messages"):
            await self._messages(exchange, version)
        elif (method, path) == ("POST", "/v1/messages/count_tokens"):
            await _count_tokens(exchange, version)
        elif method == "GET" and (path == "/v1/models" or path.startswith("/v1/models/")):
            await _models(exchange, path, parse_qs(scope["query_string"].decode("latin-1")))
        elif path in ("/v1/messages", "/v1/messages/count_tokens", "/v1/models"):
            await exchange.refuse(ApiError(405, "Method Not Allowed"))
        else:
            await exchange.refuse(ApiError(404, "Not found"))

    def _header_problem(self, headers: dict[bytes, bytes]) -> ApiError | None:
        """Where both headers carry a key, the API takes ``x-api-key``."""
        key = headers.get(b"x-api-key", b"").decode("latin-1")
        if not key:
            scheme, _, token = headers.get(b"authorization", b"").decode("latin-1").partition(" ")
            key = token.strip() if scheme.lower() == "bearer" else ""
        if not key:
            return ApiError(401, "x-api-key header is required")
        if self._api_key is not None and key != self._api_key:
            return ApiError(401, "invalid x-api-key")
        version = headers.get(b"anthropic-version", b"").decode("latin-1")
        if not version:
            return ApiError(400, "anthropic-version: header is required")
        if version not in wire.VERSIONS:
            return ApiError(400, f'anthropic-version: "{version}" is not a valid version')
        return None

    async def _messages(self, exchange: Exchange, version: str) -> None:
        arrived_ns = time.monotonic_ns()
        self._records.arrive()
        decided: _Decided | None = None
        error = ""
        try:
            body = await exchange.json()
            problem = _problem(body, version)
            if problem is not None:
                error = problem.message
                await exchange.refuse(problem)
                return
            decided = self._decide(body, exchange.request_id)
            error = decided.answer.fault.kind if decided.answer.fault else ""
            await give(exchange, decided.answer)
        finally:
            self._records.leave(
                Record(
                    exchange.request_id,
                    decided.marker if decided else "",
                    decided.plan.intent if decided else "",
                    decided.plan.call if decided else 0,
                    exchange.status,
                    decided.answer.is_stream if decided else False,
                    decided.answer.latency.total_s if decided else 0.0,
                    arrived_ns,
                    time.monotonic_ns(),
                    error,
                ),
                is_fault=decided is not None and decided.answer.fault is not None,
            )

    def _decide(self, body: dict[str, Any], request_id: str) -> _Decided:
        """Everything about the answer to a legal request, before the first wait."""
        today = self._today or date.today()  # noqa: DTZ011 - the calendar on the wall
        shown = script.shown_to(body["messages"])
        if shown is not None:
            self._records.show(*shown)
        plan = script.plan_of(body, today)
        fault = self._faults.hit(plan.prompt)
        if fault and fault.kind == "tool_loop":
            plan = script.looped(plan, body.get("tools", ()), today)
        if shown is not None and not plan.calls:
            plan = plan._replace(text=f"{plan.text}\n{echo_of(*shown)}")
        message = _message(body, plan, fault, request_id.removeprefix("req_"))
        latency = self.profile.latency(
            plan.intent, plan.prompt, plan.call, message["usage"]["output_tokens"]
        )
        if fault and fault.kind == "slow":
            delay_s = fault.delay_s / self.profile.speed
            latency = Latency(latency.first_s + delay_s, latency.total_s + delay_s)
        answer = Answer(message, latency, bool(body.get("stream")), fault)
        return _Decided(shown[0] if shown else "", plan, answer)

    async def _lab(self, exchange: Exchange, method: str, path: str) -> None:
        if method == "GET" and path.startswith("/lab/reads/"):
            marker = "#" + unquote(path.removeprefix("/lab/reads/")).removeprefix("#")
            read = self._records.read(marker)
            if read is None:
                await exchange.refuse(ApiError(404, f"no request's newest marker was {marker}"))
            else:
                fields = {**read._asdict(), "digest": f"{read.digest:016x}"}
                await exchange.json_body(200, fields)
        elif (method, path) == ("GET", "/lab/statistics"):
            await exchange.json_body(200, self._records.statistics()._asdict())
        elif (method, path) == ("DELETE", "/lab/faults"):
            self._faults.clear()
            await exchange.json_body(200, {})
        elif (method, path) == ("POST", "/lab/faults"):
            try:
                self._faults.arm(fault_of(await exchange.json()))
            except InvalidScenario as error:
                await exchange.refuse(ApiError(400, str(error)))
            else:
                await exchange.json_body(200, {})
        else:
            await exchange.refuse(ApiError(404, "Not found"))


def _problem(body: Any, version: str, *, is_count: bool = False) -> ApiError | None:
    if isinstance(body, ApiError):
        return body
    problem = problem_of(body, version, is_count=is_count)
    if problem is None and wire.model_of(body["model"]) is None:
        return ApiError(404, f"model: {body['model']}")
    return problem


def _message(
    body: dict[str, Any], plan: script.Planned, fault: Fault | None, suffix: str
) -> dict[str, Any]:
    """The message object, with ids, and with its text cut where the request says so."""
    said, stop_reason, stop = wire.cut(
        plan.text, body["max_tokens"], body.get("stop_sequences", ())
    )
    content: list[dict[str, Any]] = [{"type": "text", "text": said}] if said else []
    output_tokens = len(wire.pieces_of(said))
    for index, call in enumerate(plan.calls):
        content.append({**call, "id": f"toolu_{suffix}{index:02d}"})
        output_tokens += len(orjson.dumps(call)) // 4
        stop_reason, stop = "tool_use", None
    if fault and fault.kind == "stop_reason":
        stop_reason, stop = fault.stop_reason, None
    return wire.message_of(
        f"msg_{suffix}",
        body["model"],
        content,
        stop_reason,
        stop_sequence=stop,
        usage={
            "input_tokens": wire.input_tokens_of(body),
            "output_tokens": max(1, output_tokens),
        },
    )


async def _count_tokens(exchange: Exchange, version: str) -> None:
    body = await exchange.json()
    problem = _problem(body, version, is_count=True)
    if problem is not None:
        await exchange.refuse(problem)
    else:
        await exchange.json_body(200, {"input_tokens": wire.input_tokens_of(body)})


async def _models(exchange: Exchange, path: str, query: dict[str, list[str]]) -> None:
    if path == "/v1/models":
        limit = query.get("limit", ["20"])[-1]
        if not limit.isdecimal() or not 1 <= int(limit) <= _PAGE_LIMIT:
            await exchange.refuse(ApiError(400, f"limit: Input should be from 1 to {_PAGE_LIMIT}"))
            return
        after_id = query.get("after_id", [""])[-1]
        await exchange.json_body(200, wire.models_page(after_id, int(limit)))
        return
    name = path.removeprefix("/v1/models/")
    model = wire.model_of(name)
    if model is None:
        await exchange.refuse(ApiError(404, f"model: {name}"))
    else:
        await exchange.json_body(200, model)
