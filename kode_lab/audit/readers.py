"""Files of many kinds as one stream of model calls, with what could not be read counted.

    OTLP-JSON lines   spans and log records: GenAI attributes, span events and log records,
                      OpenInference, Langfuse and Traceloop attributes; also ``span.to_json()``
    runs              LangSmith runs and Langfuse observations, which are spans by other names
    request logs      one JSON object a line or a printed one: a Messages, Chat, Responses or Gemini
                      request with its reply; the record of ``kode-lab proxy``; LiteLLM's log
    transcripts       Claude Code sessions (``parentUuid`` chains)

A reader must not judge: it passes on calls as they were recorded, each with its file and line.
Records of one trace are put together when the file ends, or when 50,000 other traces were touched
since, so a file may be larger than memory. Files may be gzip.
"""

from __future__ import annotations

import gc
import gzip
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import orjson
from msgspec import Struct

from kode_lab.audit.histories import Histories, flat_answer, plain_value
from kode_lab.audit.items import Item, Unreadable, decoded, items_of
from kode_lab.audit.requests import (
    PlainRequest,
    moment_ns,
    parsed,
    reply_items,
    request_of,
    valid_ns,
    who_of,
)
from kode_lab.audit.turns import ROOT, Call, Conversations, Forgotten, Root, Tree
from kode_lab.errors import InvalidRecord

__all__ = ["Log", "ToolRun", "read_log", "without_collector"]

_LINE_LIMIT_BYTES = 64_000_000
# Shorter lines are decoded as fast as they are searched.
_CUT_BYTES = 4_000
_OPEN_LIMIT = 50_000
_REMEMBERED_LIMIT = 1_000_000
_EVENTS = ("gen_ai.system.message", "gen_ai.user.message", "gen_ai.assistant.message",
           "gen_ai.tool.message", "gen_ai.choice")  # fmt: skip
_MODEL_OPERATIONS = frozenset(
    {"chat", "generate_content", "text_completion", "completion", "acompletion", "responses",
     "aresponses"}
)  # fmt: skip
_MODEL_KINDS = frozenset({"LLM", "generation", "GENERATION", "llm", "chat"})
_TOOL_KINDS = frozenset({"TOOL", "tool"})
_FLAT_SENT = ("llm.input_messages.", "gen_ai.prompt.")
_FLAT_SAID = ("llm.output_messages.", "gen_ai.completion.")
# What names a process and with it a clock.
_HOST = frozenset(
    {"service.name", "service.instance.id", "host.name", "process.pid", "k8s.pod.name"}
)


class _Span(Struct, gc=False):
    """A span as a turn needs it."""

    parent_id: str
    name: str
    start_ns: int
    end_ns: int
    session: str
    user: str
    is_model: bool
    tool_call_id: str = ""
    is_failed: bool = False


class ToolRun(Struct, gc=False):
    """One run of a tool call."""

    trace_id: str
    start_ns: int
    end_ns: int
    is_failed: bool


class _Trace:
    """What was read of one trace so far."""

    __slots__ = ("calls", "events", "spans", "touched", "trace_id")

    def __init__(self, trace_id: str) -> None:
        self.trace_id = trace_id
        self.spans: dict[str, _Span] = {}
        self.calls: list[Call] = []
        self.events: dict[str, list[tuple[int, int, str, Any]]] = {}
        self.touched = 0


class Log:
    """All that was read: the conversations, and a count of what was left out and why."""

    def __init__(self) -> None:
        self.tree = Tree()
        self.conversations = Conversations(self.tree)
        self.skipped: Counter[str] = Counter()
        self.lines = 0
        self.tool_runs: dict[str, list[ToolRun]] = {}
        self._histories = Histories(self.tree)
        self._open: dict[str, _Trace] = {}
        self._plain: list[Call] = []
        self._touches = self._closed_at = 0
        self._forgotten = Forgotten()
        self._block: list[bytes] = []
        self._block_at = 0
        # Of the Responses API: the history up to and with each response.
        self._held: dict[str, int] = {}
        # Of transcripts: the history up to each line, its time, and the call of each answer.
        self._said: dict[str, tuple[int, int]] = {}
        self._answers: dict[str, Call] = {}

    def read(self, path: Path) -> None:
        """Read one file, whatever kind it is.

        Raises:
            InvalidRecord: the file cannot be opened.
        """
        before = self.lines
        try:
            with _opened(path) as file, without_collector():
                for number, line in enumerate(_lines_of(file), 1):
                    self.lines += 1
                    self.read_line(line, str(path), number)
        except (OSError, EOFError, gzip.BadGzipFile) as error:
            if self.lines == before:
                raise InvalidRecord(f"{path} cannot be read: {error}") from None
            self.skipped["files that break off"] += 1
        self._end_block(str(path))

    def read_line(self, line: bytes, file: str, number: int) -> None:
        """Read one line; what it does not hold is counted, never raised."""
        if self._block:  # a value that was printed over several lines
            self._block.append(line)
            if line[:1] in (b"}", b"]"):
                self._end_block(file)
            return
        line = line.strip()
        if not line:
            return
        if len(line) > _LINE_LIMIT_BYTES:
            self.skipped["lines over 64 MB"] += 1
            return
        if len(line) > _CUT_BYTES:
            line = self._histories.cut(line)
        try:
            record = orjson.loads(line)
        except orjson.JSONDecodeError:
            if line in (b"{", b"[", b"[{"):
                self._block, self._block_at = [line], number
            else:
                self.skipped["lines that are no JSON"] += 1
            return
        self.read_record(record, file, number)

    def _end_block(self, file: str) -> None:
        block, self._block = self._block, []
        if not block:
            return
        try:
            record = orjson.loads(b"\n".join(block))
        except orjson.JSONDecodeError:
            self.skipped["lines that are no JSON"] += len(block)
            return
        self.read_record(record, file, self._block_at)

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
            elif "context" in record and "parent_id" in record:
                self._read_printed_span(record, file, number)
            elif "run_type" in record:
                self._read_run(record, file, number)
            elif "traceId" in record and "startTime" in record:
                self._read_observation(record, file, number)
            elif "request" in record or not isinstance(inner := _batch_of(record), list):
                self._read_plain(record, file, number)
            else:
                self.read_record(inner, file, number)
        except Unreadable as why:
            self.skipped[f"records with {why}"] += 1
        except (
            LookupError,
            TypeError,
            ValueError,
            AttributeError,
            ArithmeticError,
            RecursionError,
        ):
            self.skipped["records of an unknown kind"] += 1
        if self._touches - self._closed_at >= _OPEN_LIMIT:
            self.close(self._touches - _OPEN_LIMIT // 2)

    # ---- OTLP

    def _read_otlp(self, record: Mapping[str, Any], file: str, number: int) -> None:
        for resource in record.get("resourceSpans") or ():
            host = _host_of(resource)
            for scope in resource.get("scopeSpans") or ():
                for span in scope.get("spans") or ():
                    try:
                        self._read_span(span, file, number, host)
                    except (LookupError, TypeError, ValueError, AttributeError):
                        self.skipped["spans that are not as OTLP has them"] += 1
        for resource in record.get("resourceLogs") or ():
            for scope in resource.get("scopeLogs") or ():
                for entry in scope.get("logRecords") or ():
                    attributes = _attributes(entry.get("attributes"))
                    name = entry.get("eventName") or plain_value(attributes.get("event.name"))
                    trace = self._trace(str(entry.get("traceId") or ""))
                    span_id = str(entry.get("spanId") or "")
                    body = plain_value(entry.get("body"))
                    self._note_event(
                        trace, span_id, str(name or ""), attributes, body, entry, number
                    )

    def _trace(self, trace_id: str) -> _Trace:
        trace = self._open.get(trace_id)
        if trace is None:
            trace = self._open[trace_id] = _Trace(trace_id)
            self._touches += 1
        trace.touched = self._touches
        return trace

    def _read_span(self, span: Mapping[str, Any], file: str, number: int, host: str) -> None:
        pairs = span.get("attributes") or ()
        attributes = _attributes(pairs)
        name = str(span.get("name") or "")
        trace_id, span_id = str(span.get("traceId") or ""), str(span.get("spanId") or "")
        parent_id = str(span.get("parentSpanId") or "")
        start_ns, end_ns = span.get("startTimeUnixNano"), span.get("endTimeUnixNano")
        start_ns, end_ns = valid_ns(int(start_ns or 0)), valid_ns(int(end_ns or 0))
        operation = attributes.get("gen_ai.operation.name")
        kind = attributes.get("openinference.span.kind") or attributes.get(
            "langfuse.observation.type"
        )
        if not (operation is None or type(operation) is str) or type(kind) is dict:
            operation, kind = plain_value(operation), plain_value(kind)
        is_tool = operation == "execute_tool" or kind in _TOOL_KINDS
        is_model = not is_tool and (operation in _MODEL_OPERATIONS or kind in _MODEL_KINDS)
        session, user = who_of(attributes)
        call_id = ""
        if is_tool:
            told = plain_value(attributes.get("gen_ai.tool.call.id")) or parsed(
                plain_value(attributes.get("langfuse.observation.metadata.tool_call_id"))
            )
            call_id = str(told or "")
        status = span.get("status")
        is_failed = isinstance(status, dict) and status.get("code") in (2, "STATUS_CODE_ERROR")
        trace = self._trace(trace_id)
        trace.spans[span_id] = _Span(
            parent_id, name, start_ns, end_ns, session, user, is_model, call_id, is_failed
        )
        for event in span.get("events") or ():
            inner = _attributes(event.get("attributes"))
            self._note_event(
                trace, span_id, str(event.get("name") or ""), inner, inner, event, number
            )
        if not is_model:
            return
        problem, node, output = "", None, None
        if span.get("droppedAttributesCount"):
            problem = "dropped attributes (raise the attribute limit of the SDK)"
        else:
            try:
                node, output = self._messages_of(attributes, session)
            except Unreadable as why:
                problem = str(why)
        response_id = plain_value(attributes.get("gen_ai.response.id")) or ""
        trace.calls.append(
            Call(
                file, number, trace_id, span_id, parent_id, str(response_id), start_ns, end_ns,
                session, user, node, output, problem, host,
            )
        )  # fmt: skip

    def _note_event(
        self,
        trace: _Trace,
        span_id: str,
        name: str,
        attributes: Mapping[str, Any],
        body: Any,
        entry: Mapping[str, Any],
        number: int,
    ) -> None:
        """Keep what a log record or span event tells of a call, until all spans are read."""
        at_ns = int(entry.get("timeUnixNano") or 0) or int(entry.get("observedTimeUnixNano") or 0)
        told = attributes if "gen_ai.input.messages" in attributes else body
        if name in _EVENTS and told is attributes:
            told = {key: plain_value(value) for key, value in attributes.items()}
        if name in _EVENTS or (isinstance(told, dict) and "gen_ai.input.messages" in told):
            trace.events.setdefault(span_id, []).append((at_ns, number, name or "?", told))
        elif any(session_or_user := who_of(attributes)):
            trace.events.setdefault(span_id, []).append((at_ns, number, "", session_or_user))

    def _messages_of(
        self, attributes: Mapping[str, Any], session: str
    ) -> tuple[int | None, list[Item] | None]:
        """Return what was sent and what was answered, from a span's attributes."""
        histories = self._histories
        sent = attributes.get("gen_ai.input.messages")
        if sent is not None:
            told = plain_value(attributes.get("gen_ai.output.messages"))
            output = None if told is None else items_of(decoded(told))
            if isinstance(sent, dict) and "arrayValue" in sent:
                return histories.node_of_otlp(
                    sent["arrayValue"].get("values") or [], session
                ), output
            return histories.node_of(plain_value(sent), session), output
        sent = plain_value(attributes.get("langfuse.observation.input"))
        if sent is not None:
            told = plain_value(attributes.get("langfuse.observation.output"))
            return self._told_messages(sent, session), reply_items(decoded(told))
        flat = [pair for pair in attributes.items() if pair[0].startswith(_FLAT_SENT)]
        if not flat:
            return None, None
        said = [pair for pair in attributes.items() if pair[0].startswith(_FLAT_SAID)]
        return histories.node_of_flat(flat, session), flat_answer(said)

    def _told_messages(self, sent: Any, session: str) -> int:
        """Return the node of an input that is a message list, holds one, or is a text."""
        if isinstance(sent, str) and sent[:1] in "[{":
            sent = decoded(sent)
        if isinstance(sent, dict):
            sent = sent.get("messages", sent)
        if isinstance(sent, list):
            while len(sent) == 1 and isinstance(sent[0], list):  # LangChain's batch of one
                sent = sent[0]
            # Langfuse appends the definitions of tools as messages.
            while sent and isinstance(sent[-1], dict) and _is_definition(sent[-1]):
                sent = sent[:-1]
        return self._histories.node_of(sent, session)

    def _read_printed_span(self, record: Mapping[str, Any], file: str, number: int) -> None:
        """Read what ``ReadableSpan.to_json()`` and the console exporter write."""
        context = record["context"]
        status = record.get("status") or {}
        resource = (record.get("resource") or {}).get("attributes") or {}
        span = {
            "traceId": str(context["trace_id"]).removeprefix("0x"),
            "spanId": str(context["span_id"]).removeprefix("0x"),
            "parentSpanId": str(record.get("parent_id") or "").removeprefix("0x"),
            "name": record.get("name"),
            "startTimeUnixNano": moment_ns(record.get("start_time")),
            "endTimeUnixNano": moment_ns(record.get("end_time")),
            "attributes": record.get("attributes") or {},
            "events": [
                {**event, "timeUnixNano": moment_ns(event.get("timestamp"))}
                for event in record.get("events") or ()
            ],
            "status": {"code": 2 if status.get("status_code") == "ERROR" else 0},
        }
        self._read_span(span, file, number, "/".join(f"{resource.get(name)}" for name in _HOST))

    # ---- LangSmith and Langfuse

    def _read_run(self, record: Mapping[str, Any], file: str, number: int) -> None:
        """Read a LangSmith run."""
        run_id, kind = str(record["id"]), record["run_type"]
        inputs, outputs = record.get("inputs") or {}, record.get("outputs") or {}
        metadata = (record.get("extra") or {}).get("metadata") or {}
        self._read_tracked(
            Call(
                file, number, str(record.get("trace_id") or run_id), run_id,
                str(record.get("parent_run_id") or ""), "", moment_ns(record.get("start_time")),
                moment_ns(record.get("end_time")), *who_of({**metadata, "metadata": metadata}),
            ),
            str(record.get("name") or ""),
            "llm" if kind == "llm" else kind,
            inputs,
            outputs,
            bool(record.get("error")),
            str(metadata.get("tool_call_id") or _find_call_id(outputs) or ""),
        )  # fmt: skip

    def _read_observation(self, record: Mapping[str, Any], file: str, number: int) -> None:
        """Read a Langfuse observation as its API and exports write it."""
        metadata = parsed(record.get("metadata"))
        metadata = metadata if isinstance(metadata, dict) else {}
        self._read_tracked(
            Call(
                file, number, str(record["traceId"]), str(record.get("id") or ""),
                str(record.get("parentObservationId") or ""), "", moment_ns(record["startTime"]),
                moment_ns(record.get("endTime")), *who_of({**record, "metadata": metadata}),
            ),
            str(record.get("name") or ""),
            str(record.get("type") or ""),
            parsed(record.get("input")),
            parsed(record.get("output")),
            record.get("level") == "ERROR",
            str(metadata.get("tool_call_id") or ""),
        )  # fmt: skip

    def _read_tracked(
        self, call: Call, name: str, kind: str, sent: Any, told: Any, is_failed: bool, tool_id: str
    ) -> None:
        trace = self._trace(call.trace_id)
        is_model, is_tool = kind in _MODEL_KINDS, kind in _TOOL_KINDS
        trace.spans[call.span_id] = _Span(
            call.parent_id, name, call.start_ns, call.end_ns, call.session, call.user, is_model,
            tool_id if is_tool else "", is_failed,
        )  # fmt: skip
        if not is_model:
            return
        if sent in (None, {}, [], ""):
            trace.calls.append(call)
            return
        try:
            call.node, call.output = self._told_messages(sent, call.session), reply_items(told)
        except Unreadable as why:
            call.problem = str(why)
        trace.calls.append(call)

    # ---- transcripts of Claude Code

    def _read_transcript(self, record: Mapping[str, Any], file: str, number: int) -> None:
        """Add one line of a transcript: a message, whose history is the chain of its parents."""
        parent = record.get("parentUuid") or record.get("logicalParentUuid") or ""
        before, before_ns = self._said.get(parent, (ROOT, 0))
        message = record.get("message")
        at_ns = moment_ns(record.get("timestamp"))
        is_said = isinstance(message, dict) and not record.get("isMeta")
        items = items_of([message]) if is_said else []
        self._said[record["uuid"]] = (self.tree.add(before, items), at_ns)
        if len(self._said) > _REMEMBERED_LIMIT:
            self._said.pop(next(iter(self._said)))
        if record.get("type") != "assistant" or not isinstance(message, dict):
            return
        response = str(message.get("id") or record.get("requestId") or record["uuid"])
        call = self._answers.get(response)
        if call is not None:  # one line for each block of an answer
            call.output = [*(call.output or ()), *items]
            call.end_ns = max(call.end_ns, at_ns)
            return
        self._answers[response] = Call(
            file, number, "", "", "", response, before_ns or at_ns, at_ns,
            str(record.get("sessionId") or ""), "", before, items,
        )  # fmt: skip
        self._touches += 1

    # ---- logs of requests

    def _read_plain(self, record: Mapping[str, Any], file: str, number: int) -> None:
        found = request_of(record)
        if found is None:
            self.skipped["records without a model request"] += 1
            return
        problem, node, output = "", None, None
        try:
            node, output = self._plain_messages(found)
        except Unreadable as why:
            problem = str(why)
        if node is not None and found.response_id:
            self._held[found.response_id] = self.tree.add(node, output or ())
            if len(self._held) > _REMEMBERED_LIMIT:
                self._held.pop(next(iter(self._held)))
        self._touches += 1
        self._plain.append(
            Call(
                file, number, found.trace_id, found.span_id, "", found.response_id, found.start_ns,
                found.end_ns, found.session, found.user, node, output, problem,
            )
        )  # fmt: skip

    def _plain_messages(self, found: PlainRequest) -> tuple[int, list[Item] | None]:
        output = reply_items(found.reply)
        if not found.continues:
            return self._histories.node_of(found.messages, found.session), output
        before = self._held.get(found.continues)
        if before is None:
            raise Unreadable("a history that the API holds and this log does not")
        return self.tree.add(before, items_of(found.messages)), output

    # ---- the end

    def was_asked_before(self, item: int) -> bool:
        """Whether a turn that was forgotten may have asked this."""
        return self.tree.items[item] in self._forgotten

    def forget(self, keep: int) -> None:
        """Forget all turns but the newest ones, and those whose conversations these continue."""
        waiting = [
            call for trace in self._open.values() for call in trace.calls if call.node is not None
        ]
        waiting += [call for call in (*self._plain, *self._answers.values()) if call.node]
        ends = [call.node or ROOT for call in waiting]
        numbers = self.conversations.forget(keep, self._forgotten, ends)
        for call in waiting:
            call.node = numbers[call.node or ROOT]
        self.tree = self.conversations.tree
        self._histories = Histories(self.tree)
        self._said = {
            uuid: (numbers[node], at_ns) for uuid, (node, at_ns) in self._said.items()
            if numbers[node]
        }  # fmt: skip
        self._held = {name: numbers[node] for name, node in self._held.items() if numbers[node]}
        for call_id in list(self.tool_runs)[:-keep]:
            del self.tool_runs[call_id]

    def close(self, before: int | None = None) -> None:
        """Pass on the calls of all traces, or of those that were not touched since ``before``."""
        done: list[list[Call]] = [[call] for call in self._plain]
        done += ([call] for call in self._answers.values())
        self._plain, self._answers = [], {}
        keep: dict[str, _Trace] = {}
        for trace_id, trace in self._open.items():
            if before is not None and trace.touched > before:
                keep[trace_id] = trace
            elif calls := list(self._finished(trace)):
                done += [calls] if trace_id else [[call] for call in calls]
        self._open = keep
        self._closed_at = self._touches if before is None else before
        done.sort(key=lambda calls: (calls[0].start_ns, calls[0].line))
        for calls in done:
            self.conversations.add(calls)

    @property
    def touches(self) -> int:
        """How many traces and calls were begun; what ``close`` may be given later."""
        return self._touches

    @property
    def open_traces(self) -> int:
        """How many traces wait for more of their records."""
        return len(self._open)

    def _finished(self, trace: _Trace) -> Iterable[Call]:
        """Return one call for each request: records joined, who and when filled in from spans."""
        spans = trace.spans
        if not trace.calls:
            for span_id, events in trace.events.items():
                if any(name for _, _, name, _ in events) and span_id not in spans:
                    self.skipped["message events whose span is not in the file"] += 1
        for span in spans.values():
            if span.tool_call_id:
                self._note_run(span, trace)
        calls: dict[str, Call] = {}
        for call in trace.calls:
            key = call.span_id or f"{call.file}:{call.line}"
            if call.node is None and not call.problem and (told := trace.events.get(call.span_id)):
                self._read_events(call, told)
            if key in calls and calls[key].node is not None:
                continue  # one span, exported twice
            calls[key] = call
            self._fill_in(call, trace)
        # An instrumentation and the client may both record a call, the inner one without messages.
        outer = {span_id for span_id, call in calls.items() if call.node is not None}
        told_ids = {call.response_id for call in calls.values() if call.node is not None}
        kept = [
            call for call in calls.values()
            if call.node is not None
            or not (call.parent_id in outer or (call.response_id and call.response_id in told_ids))
        ]  # fmt: skip
        kept.sort(key=lambda call: (call.start_ns, call.line))
        return kept

    def _note_run(self, span: _Span, trace: _Trace) -> None:
        run = ToolRun(trace.trace_id, span.start_ns, span.end_ns, span.is_failed)
        runs = self.tool_runs.setdefault(span.tool_call_id, [])
        if len(runs) < 8:
            runs.append(run)
        if len(self.tool_runs) > _REMEMBERED_LIMIT:
            self.tool_runs.pop(next(iter(self.tool_runs)))

    def _read_events(self, call: Call, told: Iterable[tuple[int, int, str, Any]]) -> None:
        """Add to a call the messages that log records or span events tell of it."""
        messages: list[Any] = []
        answers: list[Any] = []
        try:
            for _, _, name, what in sorted(told, key=lambda event: event[:2]):
                if not name:
                    continue
                if isinstance(what, dict) and "gen_ai.input.messages" in what:
                    call.node, call.output = self._messages_of(what, call.session)
                    return
                body = dict(what) if isinstance(what, dict) else {"content": what}
                if name == "gen_ai.choice":
                    inner = decoded(body.get("message"))
                    inner = (
                        inner if isinstance(inner, dict) else {"content": inner} if inner else {}
                    )
                    answers.append({"role": "assistant", **(inner or body)})
                else:
                    messages.append({"role": name.split(".")[1], **body})
            if messages:
                call.output = items_of(answers) if answers else None
                call.node = self._histories.node_of(messages, call.session)
        except Unreadable as why:
            call.problem = str(why)
        except (LookupError, TypeError, ValueError, AttributeError):
            call.problem = "messages of an unknown kind"

    def _fill_in(self, call: Call, trace: _Trace) -> None:
        """Add session, user and root from the spans around a call."""
        spans, span_id = trace.spans, call.span_id
        root: _Span | None = None
        for _ in range(64):
            span = spans.get(span_id)
            if span is None:
                break
            for _, _, name, what in trace.events.get(span_id, ()):
                if not name:
                    call.session, call.user = call.session or what[0], call.user or what[1]
            call.session, call.user = call.session or span.session, call.user or span.user
            if not span.is_model:
                root = span
            span_id = span.parent_id
        # Behind a parent that was not recorded, what is above it is unknown.
        if root is not None and not span_id:
            call.root = Root(root.name, root.start_ns, root.end_ns)


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


@contextmanager
def without_collector() -> Iterator[None]:
    """Keep the garbage collector from looking at millions of values again; none are cycles."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def _lines_of(file: Any) -> Iterator[bytes]:
    """Yield the lines of a file, the first part only of one that is too long."""
    while line := file.readline(_LINE_LIMIT_BYTES + 1):
        yield line
        while len(line) > _LINE_LIMIT_BYTES and line[-1:] != b"\n":
            line = file.readline(_LINE_LIMIT_BYTES)


def _attributes(pairs: Any) -> dict[str, Any]:
    """Return attributes by their name: texts as they are, other values as OTLP has them."""
    if isinstance(pairs, dict):
        return pairs
    try:
        return {
            pair["key"]: value["stringValue"]
            if "stringValue" in (value := pair["value"])
            else value
            for pair in pairs or ()
        }
    except (KeyError, TypeError):
        return {pair["key"]: pair.get("value") for pair in pairs or () if isinstance(pair, dict)}


def _host_of(resource: Mapping[str, Any]) -> str:
    about, host = resource.get("resource"), ""
    if isinstance(about, dict):
        for pair in about.get("attributes") or ():
            if pair["key"] in _HOST:
                host += f"/{plain_value(pair['value'])}"
    return host


def _is_definition(message: Mapping[str, Any]) -> bool:
    content = message.get("content")
    return message.get("role") == "tool" and isinstance(content, dict) and "function" in content


def _find_call_id(outputs: Any) -> Any:
    """Return the tool call that a LangChain tool's output answers."""
    output = outputs.get("output") if isinstance(outputs, dict) else None
    if isinstance(output, dict):
        inner = output.get("kwargs")
        return (inner if isinstance(inner, dict) else output).get("tool_call_id")
    return None


def _batch_of(record: Mapping[str, Any]) -> Any:
    """Return the records that an export, a page of an API or an ingestion batch holds."""
    for name in ("observations", "runs", "post", "patch", "batch", "data", "logs"):
        inner = record.get(name)
        if isinstance(inner, list) and inner and isinstance(inner[0], dict):
            if name == "batch":
                return [one.get("body", one) for one in inner]
            if name == "observations":
                who = {key: record[key] for key in ("sessionId", "userId") if record.get(key)}
                return [{"traceId": record.get("id"), **who, **one} for one in inner]
            return inner
    return None
