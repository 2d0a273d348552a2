"""Files of many kinds as one stream of model calls, with what could not be read counted.

    OTLP-JSON lines   spans and log records: GenAI attributes, span events and log records,
                      OpenInference, Langfuse and Traceloop attributes
    request logs      one JSON object a line: a Messages, Chat, Responses or Gemini request with its
                      reply; the record of ``kode-lab proxy``; LiteLLM's and LangSmith's exports
    transcripts       Claude Code sessions (``parentUuid`` chains)

A reader must not judge: it returns calls and spans as they were recorded, each with its file and
line. Files may be gzip. Lines are read one at a time, so a file may be larger than memory.
"""

from __future__ import annotations

import gzip
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import orjson

from kode_lab.audit.items import Histories, History, Item, Unreadable, decoded, items_of
from kode_lab.errors import InvalidRecord

__all__ = ["Call", "Log", "SpanRecord", "read_log"]

_LINE_LIMIT_BYTES = 256_000_000
_MESSAGE_EVENT = re.compile(r"gen_ai\.(system|user|assistant|tool)\.message")
# OpenInference, and the flat names that Traceloop wrote before there were ``gen_ai.*.messages``.
_FLAT = re.compile(r"(?:llm\.(input|output)_messages|gen_ai\.(prompt|completion))\.(\d+)\.(.+)")
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
)
_USER = (
    "user.id",
    "enduser.id",
    "langfuse.user.id",
    "traceloop.association.properties.user_id",
    "llm.user",
    "gen_ai.request.user",
    "user_id",
)
_MODEL_OPERATIONS = frozenset(
    {
        "chat",
        "generate_content",
        "text_completion",
        "completion",
        "acompletion",
        "responses",
        "aresponses",
    }
)
_MODEL_KINDS = frozenset({"LLM", "generation"})
_TOOL_OPERATIONS = frozenset({"execute_tool"})
_TOOL_KINDS = frozenset({"TOOL", "tool"})


class SpanRecord(NamedTuple):
    """A span as a turn needs it.

    Attributes:
        is_model: it records a model call.
        tool_call_id: of a tool's span, or "".
    """

    trace_id: str
    span_id: str
    parent_id: str
    name: str
    start_ns: int
    end_ns: int
    session: str
    user: str
    is_model: bool
    tool_call_id: str
    line: int


class Call(NamedTuple):
    """One request to a model and its answer, as one record tells it.

    Attributes:
        file: where it stands; ``line`` counts from 1.
        trace_id: of the trace, span_id of the span; "" in logs without spans.
        response_id: the model's id of the answer: two records with one id are one call.
        history: the conversation that was sent; None where it was not recorded.
        output: what was answered; None where it was not recorded or there was no answer.
        problem: why this call cannot be judged, or "".
    """

    file: str
    line: int
    trace_id: str
    span_id: str
    parent_id: str
    response_id: str
    start_ns: int
    end_ns: int
    session: str
    user: str
    history: History | None
    output: Sequence[Item] | None
    problem: str = ""
    stop_reason: str = ""


class Log:
    """All that was read: calls and spans, and a count of what was left out and why."""

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self.spans: dict[tuple[str, str], SpanRecord] = {}
        self.skipped: Counter[str] = Counter()
        self.lines = 0
        self._events: dict[tuple[str, str], list[tuple[int, int, str, Any]]] = {}
        self._histories = Histories()
        # Of the Responses API: the history up to and with each response.
        self._held: dict[str, History] = {}
        # Of transcripts: the history up to each line, its time, and the call of each answer.
        self._said: dict[str, History] = {}
        self._said_at: dict[str, int] = {}
        self._answers: dict[str, int] = {}

    def read(self, path: Path) -> None:
        """Read one file, whatever kind it is.

        Raises:
            InvalidRecord: the file cannot be opened or is no log of lines or JSON.
        """
        try:
            with _opened(path) as file:
                for number, line in enumerate(file, 1):
                    self.lines += 1
                    self.read_line(line, str(path), number)
        except (OSError, EOFError, gzip.BadGzipFile) as error:
            if self.lines == 0:
                raise InvalidRecord(f"{path} cannot be read: {error}") from None
            self.skipped["a file that breaks off"] += 1

    def read_line(self, line: bytes, file: str, number: int) -> None:
        """Read one line; what it does not hold is counted, never raised."""
        line = line.strip()
        if not line:
            return
        if len(line) > _LINE_LIMIT_BYTES:
            self.skipped["lines over 256 MB"] += 1
            return
        try:
            record = orjson.loads(line)
        except orjson.JSONDecodeError:
            self.skipped["lines that are no JSON"] += 1
            return
        self.read_record(record, file, number)

    def read_record(self, record: Any, file: str, number: int) -> None:
        """Read one JSON value: an OTLP batch, a request with its reply, or a list of these."""
        if isinstance(record, list):
            for one in record:
                self.read_record(one, file, number)
            return
        if not isinstance(record, dict):
            self.skipped["lines that are no objects"] += 1
            return
        try:
            if "resourceSpans" in record or "resourceLogs" in record:
                self._read_otlp(record, file, number)
            elif "uuid" in record and "parentUuid" in record:
                self._read_transcript(record, file, number)
            else:
                self._read_plain(record, file, number)
        except Unreadable as why:
            self.skipped[f"records with {why}"] += 1
        except (KeyError, TypeError, ValueError, AttributeError):
            self.skipped["records of an unknown kind"] += 1

    # ---- OTLP

    def _read_otlp(self, record: Mapping[str, Any], file: str, number: int) -> None:
        for resource in record.get("resourceSpans") or ():
            for scope in resource.get("scopeSpans") or ():
                for span in scope.get("spans") or ():
                    self._read_span(span, file, number)
        for resource in record.get("resourceLogs") or ():
            for scope in resource.get("scopeLogs") or ():
                for entry in scope.get("logRecords") or ():
                    self._read_log_record(entry, number)

    def _read_span(self, span: Mapping[str, Any], file: str, number: int) -> None:
        attributes = _attributes(span.get("attributes"))
        ids = (str(span.get("traceId") or ""), str(span.get("spanId") or ""))
        operation = attributes.get("gen_ai.operation.name")
        kind = attributes.get("openinference.span.kind") or attributes.get(
            "langfuse.observation.type"
        )
        is_tool = operation in _TOOL_OPERATIONS or kind in _TOOL_KINDS
        is_model = not is_tool and (operation in _MODEL_OPERATIONS or kind in _MODEL_KINDS)
        session, user = _who(attributes)
        start_ns, end_ns = (int(span.get(f"{edge}TimeUnixNano") or 0) for edge in ("start", "end"))
        call_id = attributes.get("gen_ai.tool.call.id") or _plain(
            attributes.get("langfuse.observation.metadata.tool_call_id")
        )
        name = str(span.get("name") or "")
        parent = str(span.get("parentSpanId") or "")
        self.spans[ids] = SpanRecord(
            *ids, parent, name, start_ns, end_ns, session, user, is_model,
            str(call_id or "") if is_tool else "", number,
        )  # fmt: skip
        for event in span.get("events") or ():
            inner = _attributes(event.get("attributes"))
            self._note_event(ids, str(event.get("name") or ""), inner, inner, event, number)
        if not is_model:
            return
        problem = ""
        history = output = None
        try:
            history, output = self._messages_of(attributes)
        except Unreadable as why:
            problem = str(why)
        if span.get("droppedAttributesCount"):
            problem = "dropped attributes (raise the attribute limit of the SDK)"
        self.calls.append(
            Call(
                file, number, *ids, parent, str(attributes.get("gen_ai.response.id") or ""),
                start_ns, end_ns, session, user, history, output, problem, _stop_reason(attributes),
            )
        )  # fmt: skip

    def _read_log_record(self, entry: Mapping[str, Any], number: int) -> None:
        attributes = _attributes(entry.get("attributes"))
        ids = (str(entry.get("traceId") or ""), str(entry.get("spanId") or ""))
        body = _value(entry.get("body"))
        name = str(entry.get("eventName") or attributes.get("event.name") or "")
        self._note_event(ids, name, attributes, body, entry, number)

    def _note_event(
        self,
        ids: tuple[str, str],
        name: str,
        attributes: Mapping[str, Any],
        body: Any,
        entry: Mapping[str, Any],
        number: int,
    ) -> None:
        """Keep what a log record or span event tells of a call, until all spans are read."""
        at_ns = int(entry.get("timeUnixNano") or entry.get("observedTimeUnixNano") or 0)
        told = attributes if "gen_ai.input.messages" in attributes else body
        is_message = _MESSAGE_EVENT.fullmatch(name) or name == "gen_ai.choice"
        if is_message or (isinstance(told, dict) and "gen_ai.input.messages" in told):
            self._events.setdefault(ids, []).append((at_ns, number, name, told))
        elif any(session_or_user := _who(attributes)):
            self._events.setdefault(ids, []).append((at_ns, number, "", session_or_user))

    # ---- transcripts of Claude Code

    def _read_transcript(self, record: Mapping[str, Any], file: str, number: int) -> None:
        """Add one line of a transcript: a message, whose history is the chain of its parents."""
        parent = record.get("parentUuid") or record.get("logicalParentUuid") or ""
        before = self._said.get(parent)
        message = record.get("message")
        is_said = isinstance(message, dict) and not record.get("isMeta")
        items = items_of([message])[0] if is_said else []
        self._said[record["uuid"]] = History(before, items, "")
        self._said_at[record["uuid"]] = _moment_ns(record.get("timestamp"))
        if record.get("type") != "assistant" or not isinstance(message, dict):
            return
        response = str(message.get("id") or record.get("requestId") or record["uuid"])
        at_ns = _moment_ns(record.get("timestamp"))
        known = self._answers.get(response)
        if known is not None:  # one line for each block of an answer
            call = self.calls[known]
            output = [*(call.output or ()), *items]
            self.calls[known] = call._replace(output=output, end_ns=max(call.end_ns, at_ns))
            return
        self._answers[response] = len(self.calls)
        begin_ns = self._said_at.get(parent, at_ns)
        self.calls.append(
            Call(
                file, number, "", "", "", response, begin_ns, at_ns,
                str(record.get("sessionId") or ""), "", before or History(None, (), ""), items,
                stop_reason=str(message.get("stop_reason") or ""),
            )
        )  # fmt: skip

    # ---- logs of requests

    def _read_plain(self, record: Mapping[str, Any], file: str, number: int) -> None:
        call = _request_call(record, file, number, self._histories)
        if call is not None:
            call = self._continued(call, record)
            self.calls.append(call)
            return
        self.skipped["records without a model request"] += 1

    def _continued(self, call: Call, record: Mapping[str, Any]) -> Call:
        """Return the call with the part of its history that the API holds for the client."""
        request = next(
            (record[name] for name in ("request", "body", "kwargs") if name in record), record
        )
        request = request if isinstance(request, dict) else record
        previous = request.get("previous_response_id")
        if call.history is None or not (previous or request.get("conversation")):
            pass
        elif previous in self._held:
            call = call._replace(
                history=History(self._held[previous], call.history.items, call.history.system)
            )
        else:
            call = call._replace(problem="a history that the API holds and this log does not")
        if call.response_id and not call.problem:
            self._held[call.response_id] = History(call.history, call.output or (), "")
        return call

    # ---- the end

    def finished(self) -> Sequence[Call]:
        """Return one call for each request: records joined, who and when filled in from spans."""
        joined: dict[tuple[str, str], Call] = {}
        for recorded in self.calls:
            call = recorded
            told = self._events.get((call.trace_id, call.span_id), ()) if call.span_id else ()
            if call.history is None and not call.problem and told:
                call = self._with_events(call, sorted(told, key=lambda event: event[:2]))
            session, user = self._inherited(call)
            call = call._replace(session=session, user=user)
            key = (call.response_id, "") if call.response_id else (call.trace_id, call.span_id)
            if not any(key):
                key = (f"{call.file}:{call.line}", str(len(joined)))
            other = joined.get(key)
            joined[key] = call if other is None else _merged(other, call)
        # An instrumentation and the client may both record a call, the inner one without messages.
        outer = {
            (call.trace_id, call.span_id) for call in joined.values() if call.history is not None
        }
        return sorted(
            (
                call for call in joined.values()
                if call.history is not None or (call.trace_id, call.parent_id) not in outer
            ),
            key=lambda call: (call.start_ns, call.line),
        )  # fmt: skip

    def _messages_of(
        self, attributes: Mapping[str, Any]
    ) -> tuple[History | None, list[Item] | None]:
        """Return what was sent and what was answered, from a span's attributes."""
        if "gen_ai.input.messages" in attributes:
            told = attributes.get("gen_ai.output.messages")
            output = None if told is None else items_of(decoded(told))[0]
            return self._histories.read(attributes["gen_ai.input.messages"]), output
        if "langfuse.observation.input" in attributes:
            sent = attributes["langfuse.observation.input"]
            if isinstance(sent, str) and sent[:1] == "{":
                sent = decoded(sent)
            if isinstance(sent, dict):
                sent = sent.get("messages", sent)
            told = attributes.get("langfuse.observation.output")
            output = None if told is None else items_of(decoded(told))[0]
            return self._histories.read(sent), output
        flat: dict[str, dict[int, dict[str, Any]]] = {"input": {}, "output": {}}
        for name, value in attributes.items():
            if found := _FLAT.fullmatch(name):
                side = "input" if "input" in found[0][:10] or found[2] == "prompt" else "output"
                message = flat[side].setdefault(int(found[3]), {})
                _put(message, found[4].removeprefix("message.").split("."), value)
        if not flat["input"]:
            return None, None
        numbers = sorted(flat["input"])
        if numbers != list(range(len(numbers))):
            raise Unreadable("gaps in the numbering of messages")
        sent = [_listed(flat["input"][number]) for number in numbers]
        told = [_listed(flat["output"][number]) for number in sorted(flat["output"])]
        return self._histories.read(sent), items_of(told)[0] if told else None

    def _with_events(self, call: Call, told: Iterable[tuple[int, int, str, Any]]) -> Call:
        """Return the call with the messages that log records or span events tell of it."""
        messages: list[Any] = []
        answers: list[Any] = []
        try:
            for _, _, name, what in told:
                if not name:
                    continue
                if isinstance(what, dict) and "gen_ai.input.messages" in what:
                    history, output = self._messages_of(what)
                    return call._replace(history=history, output=output)
                body = dict(what) if isinstance(what, dict) else {"content": what}
                if name == "gen_ai.choice":
                    inner = body.get("message")
                    answers.append({"role": "assistant", **(inner or body)})
                elif found := _MESSAGE_EVENT.fullmatch(name):
                    messages.append({"role": found[1], **body})
            if not messages:
                return call
            output = items_of(answers)[0] if answers else None
            return call._replace(history=self._histories.read(messages), output=output)
        except Unreadable as why:
            return call._replace(problem=str(why))

    def _inherited(self, call: Call) -> tuple[str, str]:
        session, user = call.session, call.user
        ids = (call.trace_id, call.span_id)
        for _ in range(64):
            span = self.spans.get(ids)
            if span is None or (session and user):
                break
            for _, _, name, what in self._events.get(ids, ()):
                if not name:
                    session, user = session or what[0], user or what[1]
            session, user = session or span.session, user or span.user
            ids = (span.trace_id, span.parent_id)
        return session, user

    def root_of(self, call: Call) -> SpanRecord | None:
        """Return the outermost recorded span around a call, or None if that is the call itself."""
        ids, found = (call.trace_id, call.span_id), None
        for _ in range(64):
            span = self.spans.get(ids)
            if span is None:
                # A parent that was not recorded: what is above it is unknown.
                return None if ids[1] else found
            if not span.is_model:
                found = span
            ids = (span.trace_id, span.parent_id)
        return found


def read_log(paths: Iterable[Path | str]) -> Log:
    """Return all that the files hold.

    Raises:
        InvalidRecord: a file cannot be opened.
    """
    log = Log()
    for path in paths:
        log.read(Path(path))
    return log


def _opened(path: Path) -> Any:
    with path.open("rb") as file:
        is_gzip = file.read(2) == b"\x1f\x8b"
    return gzip.open(path) if is_gzip else path.open("rb")


def _value(value: Any) -> Any:
    """Return an OTLP value as a plain one."""
    if not isinstance(value, dict) or not value:
        return None if isinstance(value, dict) else value
    kind, inner = next(iter(value.items()))
    if kind == "arrayValue":
        return [_value(one) for one in inner.get("values") or ()]
    if kind == "kvlistValue":
        return _attributes(inner.get("values"))
    return int(inner) if kind == "intValue" else inner


def _attributes(pairs: Any) -> dict[str, Any]:
    if isinstance(pairs, dict):
        return dict(pairs)
    return {pair["key"]: _value(pair.get("value")) for pair in pairs or ()}


def _plain(value: Any) -> Any:
    """Return a value that Langfuse wrote as JSON text."""
    if isinstance(value, str) and value[:1] in '"[{':
        try:
            return orjson.loads(value)
        except orjson.JSONDecodeError:
            return value
    return value


def _who(attributes: Mapping[str, Any]) -> tuple[str, str]:
    metadata = _plain(attributes.get("metadata"))
    tables = (attributes, metadata) if isinstance(metadata, dict) else (attributes,)
    found = []
    for names in (_SESSION, _USER):
        values = (_plain(table.get(name)) for table in tables for name in names)
        found.append(next((str(value) for value in values if value not in (None, "")), ""))
    return found[0], found[1]


def _put(message: dict[str, Any], path: list[str], value: Any) -> None:
    for name in path[:-1]:
        message = message.setdefault(name, {})
    message[path[-1]] = value


def _listed(value: Any) -> Any:
    """Return a tree of flattened names in which numbered children are lists."""
    if not isinstance(value, dict):
        return value
    inner = {name: _listed(one) for name, one in value.items()}
    if inner and all(name.isdigit() for name in inner):
        return [inner[name] for name in sorted(inner, key=int)]
    if "contents" in inner and "content" in inner:
        # Some instrumentations write the same text in both places.
        inner.pop("contents" if inner["content"] else "content")
    if inner.get("content") == "" and "contents" in inner:
        inner.pop("content")
    return inner


def _stop_reason(attributes: Mapping[str, Any]) -> str:
    told = attributes.get("gen_ai.response.finish_reasons") or attributes.get("llm.finish_reason")
    told = _plain(told)
    if isinstance(told, list):
        told = told[0] if told else ""
    return str(told or attributes.get("anthropic.message.stop_reason") or "")


def _merged(one: Call, other: Call) -> Call:
    """Return two records of one call as one: the richer record's messages, the wider interval."""
    richer, poorer = (other, one) if one.history is None else (one, other)
    return richer._replace(
        output=richer.output if richer.output is not None else poorer.output,
        session=richer.session or poorer.session,
        user=richer.user or poorer.user,
        start_ns=min(filter(None, (one.start_ns, other.start_ns)), default=0),
        end_ns=max(one.end_ns, other.end_ns),
        stop_reason=richer.stop_reason or poorer.stop_reason,
        problem=richer.problem if richer.history is not None else richer.problem or poorer.problem,
    )


# ---- plain records


def _moment_ns(value: Any) -> int:
    """Return nanoseconds from a logged time: ISO text, or a number in s, ms, us or ns."""
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            at = datetime.fromisoformat(value)
            # LangSmith writes UTC without a zone.
            at = at if at.tzinfo is not None else at.replace(tzinfo=UTC)
            return int(at.timestamp() * 1e9)
    if not isinstance(value, int | float) or isinstance(value, bool):
        return 0
    scale = 1 if value > 1e17 else 1e3 if value > 1e14 else 1e6 if value > 1e11 else 1e9
    return int(value * scale)


def _first(record: Mapping[str, Any], *names: str) -> Any:
    return next((record[name] for name in names if record.get(name) not in (None, "")), None)


def _request_call(
    record: Mapping[str, Any], file: str, number: int, histories: Histories
) -> Call | None:
    """Read a request with its reply: Messages, Chat, Responses or Gemini, or an SDK's dump."""
    request = _first(record, "request", "body", "kwargs", "input", "inputs")
    request = _plain(request)
    if isinstance(request, dict) and isinstance(request.get("body"), dict):
        request = request["body"]
    if not isinstance(request, dict):
        request = record
    messages = _first(request, "messages", "contents")
    if messages is None and "input" in request and request is not record:
        messages = request["input"]
    if messages is None and isinstance(record.get("input"), list | str) and "output" in record:
        messages = record["input"]
    if messages is None:
        return None
    reply = _plain(_first(record, "response", "reply", "output", "outputs", "result"))
    if isinstance(reply, dict) and isinstance(reply.get("body"), dict):
        reply = reply["body"]
    output = _reply_items(reply)
    metadata = _first(record, "metadata", "extra") or {}
    if isinstance(metadata, dict) and isinstance(metadata.get("metadata"), dict):
        metadata = metadata["metadata"]
    inner = request.get("metadata")
    tables = [table for table in (record, metadata, request, inner) if isinstance(table, dict)]
    who = [_who(table) for table in tables]
    session = next((session for session, _ in who if session), "")
    user = next((user for _, user in who if user), "")
    if not session and "litellm_call_id" in record:
        session = str(record.get("trace_id") or "")  # LiteLLM's proxy puts the session there
    start = _first(record, "start_ns", "start_time", "startTime", "started_at", "timestamp", "time")
    end = _first(record, "end_ns", "end_time", "endTime", "ended_at") or start
    reply_id = reply.get("id") if isinstance(reply, dict) else None
    return Call(
        file, number, str(record.get("trace_id") or ""),
        str(_first(record, "span_id", "run_id") or ""), str(record.get("parent_run_id") or ""),
        str(reply_id or ""), _moment_ns(start), _moment_ns(end), session, user,
        histories.read(messages), output, stop_reason=_plain_stop_reason(reply),
    )  # fmt: skip


def _reply_items(reply: Any) -> list[Item] | None:  # noqa: PLR0911 - a case a dialect
    if reply is None:
        return None
    if isinstance(reply, str):
        return items_of([{"role": "assistant", "content": reply}])[0]
    if not isinstance(reply, dict):
        return items_of(reply)[0]
    if "choices" in reply:
        messages = [choice.get("message") or {} for choice in reply["choices"][:1]]
        return items_of([{"role": "assistant", **message} for message in messages])[0]
    if "candidates" in reply:
        return items_of(
            [{"role": "model", **(one.get("content") or {})} for one in reply["candidates"][:1]]
        )[0]
    if "generations" in reply:
        return _reply_items(_flat_generation(reply["generations"]))
    if isinstance(reply.get("output"), list):
        return items_of(reply["output"])[0]
    if "messages" in reply:
        return items_of(reply["messages"][-1:])[0]
    if reply.get("type") == "error" or "error" in reply:
        return None
    return items_of([{"role": "assistant", **reply}])[0]


def _flat_generation(generations: Any) -> Any:
    while isinstance(generations, list) and generations:
        generations = generations[0]
    return generations.get("message", generations) if isinstance(generations, dict) else None


def _plain_stop_reason(reply: Any) -> str:
    if not isinstance(reply, dict):
        return ""
    if choices := reply.get("choices"):
        return str(choices[0].get("finish_reason") or "")
    return str(reply.get("stop_reason") or "")
