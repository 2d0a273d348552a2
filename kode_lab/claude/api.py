"""The simulated model as one raw ASGI application: its routes and what they need to decide.

What is legal is decided by the wire format, what is said by ``script``, how long it takes by
``profile``, what goes wrong by ``fault``; here a request is brought before each of them, whatever
its format. It must never know who runs it, nor sockets.

Besides the APIs' own paths it answers ``/lab/...``, for clients in other processes: see
docs/simulated-model.md.
"""

from __future__ import annotations

import sys
import time
import zlib
from collections.abc import Sequence
from contextlib import suppress
from datetime import date
from typing import Any
from urllib.parse import parse_qs, unquote

import orjson

from kode_lab.claude import script
from kode_lab.claude.conversation import ToolAnswer
from kode_lab.claude.exchange import BREAKING, Exchange
from kode_lab.claude.fault import Fault, FaultPlan, fault_of
from kode_lab.claude.formats.chat import ChatFormat
from kode_lab.claude.formats.gemini import GeminiFormat
from kode_lab.claude.formats.messages import MessagesFormat
from kode_lab.claude.formats.responses import ResponsesFormat
from kode_lab.claude.formats.seam import (
    ApiError,
    GenerationReply,
    GenerationRequest,
    WireFormat,
    cut,
    pieces_of,
)
from kode_lab.claude.profile import Latency, Profile
from kode_lab.claude.records import OFFERED_LIMIT, ModelCall, Records, ShownResult
from kode_lab.errors import InvalidScenario
from kode_lab.history.operation import echo_of, markers_in
from kode_lab.http import DropConnection, Receive, Scope, Send, check_local_access

__all__ = [
    "CONTEXT_LIMIT_TOKENS",
    "SimulatedApi",
    "answer_lab",
    "fingerprint_of",
    "formats",
    "noted",
    "routed",
]

# What the models of 2026 take.
CONTEXT_LIMIT_TOKENS = 1_000_000
_END_BYTES = 4_096
# What reading a value of the wrong type ends with.
_WRONG_TYPE = (AttributeError, IndexError, KeyError, TypeError, ValueError)
# Ids in a tool's result that do not name what the tool made.
_OF_OTHERS = frozenset(
    f"{name}_id" for name in ("user", "session", "agent", "thread", "conversation", "turn", "call")
)
_CALLS_PAGE_LIMIT = 10_000
_THINKING = "The user wants something; I look at what was said before and answer."
# What the real APIs have besides, by a word in the path.
_NOT_SIMULATED = (
    "assistants",
    "audio",
    "batches",
    "batchEmbedContents",
    "cachedContents",
    "completions",
    "embedContent",
    "embeddings",
    "evals",
    "files",
    "fine_tuning",
    "images",
    "moderations",
    "organizations",
    "realtime",
    "skills",
    "threads",
    "uploads",
    "vector_stores",
    "videos",
)


def formats(*, is_strict: bool = True) -> tuple[WireFormat, ...]:
    """Return the wire formats, each with a state of its own; the first answers what none knows."""
    return (
        MessagesFormat(is_strict=is_strict),
        ChatFormat(is_strict=is_strict),
        ResponsesFormat(is_strict=is_strict),
        GeminiFormat(is_strict=is_strict),
    )


def routed(
    known: Sequence[WireFormat], method: str, path: str, headers: dict[bytes, bytes]
) -> tuple[WireFormat, str]:
    """Return the format that a request speaks and what it asks of it; "404" when nothing."""
    for one in known:
        operation = one.operation(method, path)
        if operation is not None:
            return one, operation
    speaks = _format_by_headers(known, headers)
    is_models = method == "GET" and ("/models" in path)
    return speaks, "models" if is_models else "404"


def _format_by_headers(known: Sequence[WireFormat], headers: dict[bytes, bytes]) -> WireFormat:
    names = {one.name: one for one in known}
    if b"x-goog-api-key" in headers and "gemini" in names:
        return names["gemini"]
    if b"anthropic-version" not in headers and b"authorization" in headers and "chat" in names:
        return names["chat"]
    return known[0]


def noted(call: ModelCall, format_name: str, request: GenerationRequest) -> None:
    """Write into a call what its request shows the model."""
    conversation = request.conversation
    call.format = format_name
    call.marker = conversation.marker
    call.call = conversation.call
    call.read = conversation.read() if conversation.marker else None
    call.replies, call.replies_digest = conversation.replies, conversation.replies_digest
    call.mentions = conversation.mentions
    call.session, call.parent = request.session, request.parent
    call.tools, call.is_stream = len(request.tools), request.is_stream
    if request.tools:
        call.offered = tuple(sys.intern(str(t.name)) for t in request.tools[:OFFERED_LIMIT])
    if conversation.results:
        call.results = tuple(map(_shown, conversation.results))
    if request.body.get("system"):
        call.config = f"{zlib.crc32(orjson.dumps(request.body['system'])):08x}"


def _shown(result: ToolAnswer) -> ShownResult:
    made = None
    with suppress(ValueError):
        made = orjson.loads(result.text)
    made = made if isinstance(made, dict) else {}
    names = [name for name in made if name.lower() == "id" or name.lower().endswith("_id")]
    ids = [str(made[name]) for name in names if name.lower() not in _OF_OTHERS]
    markers = tuple(dict.fromkeys(markers_in(result.text)))
    return ShownResult(result.tool, ids[0] if len(ids) == 1 else "", markers, result.is_error)


def _read(
    speaks: WireFormat, data: bytes, headers: dict[bytes, bytes], path: str, query: str
) -> GenerationRequest | ApiError:
    """Return what the format makes of a body.

    The formats check what a client can get wrong in earnest. A field of a wrong type that they do
    not look for is found where it is used, and is the client's fault all the same.
    """
    try:
        return speaks.receive(data, headers, path, query)
    except _WRONG_TYPE:
        pass
    # Which one: the request is legal without it.
    body = orjson.loads(data)
    for name in body:
        rest = {other: value for other, value in body.items() if other != name}
        with suppress(*_WRONG_TYPE):
            if not isinstance(speaks.receive(orjson.dumps(rest), headers, path, query), ApiError):
                return ApiError(400, f"{name}: a value in it has a wrong type", param=name)
    return _MISTYPED


_MISTYPED = ApiError(
    400, "a value inside the conversation, a JSON schema or another object has a wrong type"
)


def fingerprint_of(call: ModelCall, data: bytes) -> int:
    """Return a number that is equal for a request that was sent again.

    Of a long body the end and the length are looked at, and the fold stands for the rest: hashing
    a hundred kilobytes costs as much as the call.
    """
    return hash((call.parent, len(data), data[-_END_BYTES:], data[:_END_BYTES], call.read))


class SimulatedApi:
    """The application: ``await api(scope, receive, send)``; ``DropConnection`` ends a connection.

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
        context_limit_tokens: int = CONTEXT_LIMIT_TOKENS,
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
            context_limit_tokens: a longer conversation is refused.
        """
        self.profile = profile
        self._faults = faults
        self._records = records
        self._salt = salt
        self._api_key = api_key
        self._today = today
        self._context_limit = context_limit_tokens
        self._formats = formats()
        self._count = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        self._count += 1
        method, path = scope["method"], scope["path"]
        request_id = f"req_sim{self._salt}{self._count:08d}"
        exchange = Exchange(request_id, self._formats[0], scope, receive, send)
        query = scope["query_string"].decode("latin-1")
        speaks, operation = routed(self._formats, method, path, exchange.headers)
        exchange.format = speaks
        refusal = check_local_access(scope["headers"])
        if refusal is not None:
            await exchange.refuse(ApiError(refusal.status, refusal.message))
            return
        if path.startswith("/lab/"):
            await answer_lab(exchange, method, path, query, self._records, self._faults)
            return
        problem = speaks.key_problem(exchange.headers, query, self._api_key)
        if problem is not None:
            await exchange.refuse(problem)
        elif operation == "generate":
            await self._generate(exchange, speaks, path, query)
        elif operation == "404":
            await exchange.refuse(_not_found(path))
        else:
            await _other(exchange, speaks, operation, path, query)

    async def _generate(
        self, exchange: Exchange, speaks: WireFormat, path: str, query: str
    ) -> None:
        call = self._records.arrive(exchange.request_id)
        call.format = speaks.name
        fault: Fault | None = None
        request: GenerationRequest | None = None
        sent: GenerationReply | None = None
        try:
            data = await exchange.data()
            received: GenerationRequest | ApiError
            if isinstance(data, ApiError):
                received, data = data, b""
            else:
                received = _read(speaks, data, exchange.headers, path, query)
            if isinstance(received, ApiError):
                call.error = received.message
                await exchange.refuse(received)
                return
            noted(call, speaks.name, received)
            call.fingerprint = fingerprint_of(call, data)
            problem = self._too_long(speaks, received) or speaks.begin(received)
            if problem is not None:
                call.error = problem.message
                await exchange.refuse(problem)
                return
            request = received
            self._records.show(call)
            fault = self._faults.hit(
                request.conversation.prompt, has_thinking=request.conversation.thoughts > 0
            )
            call.error = fault.kind if fault else ""
            try:
                reply, latency = self._reply(request, speaks, fault, call)
            except _WRONG_TYPE as error:
                call.error = f"{type(error).__name__}: {error}"
                await exchange.refuse(_MISTYPED)
                return
            call.stop_reason = reply.stop
            await self._answer(exchange, request, reply, latency, fault)
            sent = reply
        finally:
            if request is not None:
                is_kept = exchange.status == 200 and (fault is None or fault.kind not in BREAKING)
                speaks.finish(request, sent if is_kept else None)
            self._records.leave(call, exchange.status, is_fault=fault is not None)

    def _too_long(self, speaks: WireFormat, request: GenerationRequest) -> ApiError | None:
        if request.input_tokens <= self._context_limit:
            return None
        return speaks.context_error(request, self._context_limit)

    def _reply(
        self,
        request: GenerationRequest,
        speaks: WireFormat,
        fault: Fault | None,
        call: ModelCall,
    ) -> tuple[GenerationReply, Latency]:
        """Return the reply to a legal request and when it is due, before the first wait."""
        today = self._today or date.today()  # noqa: DTZ011 - the calendar on the wall
        plan = script.plan_of(request, today)
        if fault and fault.kind == "tool_loop":
            plan = script.looped(plan, request.tools, today)
        text = plan.text
        if call.read is not None and not plan.calls and not plan.is_shaped:
            text = f"{text}\n{echo_of(call.marker, call.read)}"
        suffix = call.request_id.removeprefix("req_")
        reply = reply_of_plan(request, speaks, plan, text, suffix)
        if fault is not None:
            reply = _spoilt(reply, fault)
        latency = self.profile.latency(plan.intent, plan.prompt, plan.call, reply.output_tokens)
        if fault and fault.kind == "slow":
            delay_s = fault.delay_s / self.profile.speed
            latency = Latency(latency.first_s + delay_s, latency.total_s + delay_s)
        call.intent, call.latency_s = plan.intent, latency.total_s
        return reply, latency

    async def _answer(
        self,
        exchange: Exchange,
        request: GenerationRequest,
        reply: GenerationReply,
        latency: Latency,
        fault: Fault | None,
    ) -> None:
        speaks = exchange.format
        kind = fault.kind if fault else ""
        if kind == "reset":
            raise DropConnection
        if kind == "hang":
            await exchange.leave()
        if fault and (kind == "status" or (kind == "error_event" and not request.is_stream)):
            await exchange.refuse(fault.error())
        elif kind == "context_limit":
            limit = min(self._context_limit, max(0, request.input_tokens - 1))
            await exchange.refuse(speaks.context_error(request, limit))
        elif kind == "signature":
            await exchange.refuse(speaks.signature_error(request))
        elif request.is_stream:
            error = fault.error() if fault else ApiError(500, "")
            events = list(speaks.events(request, reply))
            await exchange.stream(events, latency, fault, error, is_array=request.is_array)
        else:
            body = orjson.dumps(speaks.whole(request, reply))
            await exchange.whole(body, latency, fault)


def reply_of_plan(
    request: GenerationRequest, speaks: WireFormat, plan: script.Planned, text: str, suffix: str
) -> GenerationReply:
    """Return the reply that a plan makes, cut where the request says so."""
    left = request.max_tokens
    if left == 0:  # the Messages API then reads the prompt, and writes nothing
        return GenerationReply(suffix, "", (), "max_tokens", 0)
    thinking, thought_tokens = "", 0
    if request.thinks:
        pieces = pieces_of(_THINKING)[:left]
        thinking, thought_tokens = "".join(pieces), len(pieces)
        left = None if left is None else left - thought_tokens
    said, stop, stop_sequence = cut(text, left, () if plan.is_shaped else request.stops)
    tokens = thought_tokens + len(pieces_of(said))
    calls: list[tuple[str, str, str]] = []
    for index, (name, arguments) in enumerate(plan.calls):
        written = orjson.dumps(arguments).decode()
        calls.append((speaks.call_id(suffix, index), name, written))
        tokens += (len(name) + len(written) + 40) // 4
    if calls:
        stop, stop_sequence = "tool_use", None
    if request.body.get("compaction"):
        said, calls, stop = f"Summary of {request.conversation.count} messages.", [], "compaction"
    tokens, ran = max(1, tokens), plan.server_calls
    return GenerationReply(suffix, said, calls, stop, tokens, stop_sequence, thinking, ran)


def _spoilt(reply: GenerationReply, fault: Fault) -> GenerationReply:
    """Return the reply with what the fault does to its content."""
    if fault.kind == "stop_reason":
        return reply._replace(stop=fault.stop_reason, stop_sequence=None)
    if fault.kind == "call_ids":
        calls = [(f"call_{index}", name, text) for index, (_, name, text) in enumerate(reply.calls)]
        return reply._replace(calls=calls)
    if fault.kind == "tool_input" and reply.calls:
        call_id, name, text = reply.calls[-1]
        cut_off = (call_id, name, text[: max(1, len(text) // 2)])
        return reply._replace(calls=[*reply.calls[:-1], cut_off], stop="max_tokens")
    return reply


async def _other(
    exchange: Exchange, speaks: WireFormat, operation: str, path: str, query: str
) -> None:
    data = await exchange.data()
    answer: Any = data
    if not isinstance(data, ApiError):
        try:
            answer = speaks.other(operation, path, query, data, exchange.headers)
        except _WRONG_TYPE:
            answer = _MISTYPED
    if isinstance(answer, ApiError):
        await exchange.refuse(answer)
    else:
        await exchange.json_body(200, answer)


def _not_found(path: str) -> ApiError:
    parts = path.replace(":", "/").split("/")
    known = next((part for part in parts if part in _NOT_SIMULATED), None)
    if known is None:
        return ApiError(404, "Not found")
    return ApiError(
        404,
        f"{known!r} is not simulated: kode-lab answers Messages, Chat Completions, Responses, "
        "Conversations, generateContent, token counts and models",
    )


async def answer_lab(
    exchange: Exchange,
    method: str,
    path: str,
    query: str,
    records: Records,
    faults: FaultPlan | None,
) -> None:
    """Answer ``/lab/...``: what was witnessed, and the switches for faults."""
    name = unquote(path.removeprefix("/lab/"))
    kind, _, rest = name.partition("/")
    if method == "GET" and kind in ("reads", "turns") and rest:
        marker = "#" + rest.removeprefix("#")
        turn = records.turn(marker)
        if turn is None:
            await exchange.refuse(ApiError(404, f"no request's newest marker was {marker}"))
        else:
            told = turn.to_json()
            await exchange.json_body(200, told if kind == "turns" else told["read"])
    elif (method, name) == ("GET", "calls"):
        await _calls(exchange, parse_qs(query), records)
    elif (method, name) == ("GET", "statistics"):
        await exchange.json_body(200, records.statistics()._asdict())
    elif name == "faults" and method in ("DELETE", "POST") and faults is not None:
        await _faults(exchange, method, faults)
    else:
        await exchange.refuse(ApiError(404, "Not found"))


async def _faults(exchange: Exchange, method: str, faults: FaultPlan) -> None:
    fields = await exchange.json() if method == "POST" else None
    try:
        if method == "DELETE":
            faults.clear()
        elif isinstance(fields, ApiError):
            await exchange.refuse(fields)
            return
        else:
            faults.arm(fault_of(fields))
    except InvalidScenario as error:
        await exchange.refuse(ApiError(400, str(error)))
    else:
        await exchange.json_body(200, {})


async def _calls(exchange: Exchange, asked: dict[str, list[str]], records: Records) -> None:
    after = asked.get("after", ["0"])[-1]
    limit = asked.get("limit", ["1000"])[-1]
    if not (after.isdecimal() and limit.isdecimal() and 1 <= int(limit) <= _CALLS_PAGE_LIMIT):
        problem = f"after must be a number and limit from 1 to {_CALLS_PAGE_LIMIT}"
        await exchange.refuse(ApiError(400, problem))
        return
    page = [call.to_json() for call in records.calls_after(int(after), int(limit))]
    following = page[-1]["number"] if page else int(after)
    told = {"calls": page, "next": following, "nowNs": time.monotonic_ns()}
    await exchange.json_body(200, told | {"statistics": records.statistics()._asdict()})
