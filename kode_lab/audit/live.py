"""An audit that goes on: a file that grows, or spans that an exporter sends over OTLP/HTTP.

A ``Watch`` judges what has come so far, now and then, and forgets the oldest turns so that memory
stays bounded over days. What it found before stays found. It must not know the rules.

Source: OTLP 1.7 (https://opentelemetry.io/docs/specs/otlp/), section OTLP/HTTP.
"""

from __future__ import annotations

import asyncio
import os
import zlib
from base64 import b64decode
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import orjson

from kode_lab.audit.page import page_of
from kode_lab.audit.readers import Log
from kode_lab.audit.rules import Finding
from kode_lab.audit.verdict import AuditVerdict, verdict_on
from kode_lab.errors import InvalidRecord, InvalidScenario
from kode_lab.http import (
    ConnectionLimits,
    HttpServer,
    Receive,
    Refusal,
    Scope,
    Send,
    check_local_access,
    read_body,
)
from kode_lab.http.exchange import error_json

__all__ = ["Receiver", "Watch", "follow"]

# Rules cost about 20 us a turn: a second for all of these.
TURNS_LIMIT = 50_000
_FINDINGS_LIMIT = 1_000
_BODY_LIMIT_BYTES = 16_000_000
_UNPACKED_LIMIT_BYTES = 64_000_000
_POLL_S = 0.2
_CHUNK_BYTES = 4_000_000


class Watch:
    """A log without an end.

    Attributes:
        log: what was read.
        findings: all that were found, each once; the newest thousand of each kind.
    """

    def __init__(
        self,
        *,
        turns_limit: int = TURNS_LIMIT,
        sessions_per_user: bool = False,
        on_finding: Callable[[Finding], None] | None = None,
    ) -> None:
        """Begin with nothing.

        Args:
            turns_limit: turns that are kept to be compared; at least 100.
            on_finding: called once for each new finding.
        """
        if turns_limit < 100:
            raise InvalidScenario(f"turns_limit {turns_limit} is not valid: choose 100 or more")
        self.log = Log()
        self.findings: dict[tuple[str, bool, tuple[int, ...]], Finding] = {}
        self.counts: Counter[tuple[str, bool]] = Counter()
        self._limit = turns_limit
        self._sessions_per_user = sessions_per_user
        self._on_finding = on_finding
        self._verdict: AuditVerdict | None = None
        self._judged_lines = -1
        self._touches = 0

    def verdict(self, *, is_last: bool = False) -> AuditVerdict:
        """Judge what has come so far; a trace that was touched since the last time waits."""
        is_new = self.log.lines != self._judged_lines or self.log.open_traces
        if self._verdict is not None and not is_new:
            return self._verdict
        self._judged_lines = self.log.lines
        verdict = verdict_on(
            self.log,
            sessions_per_user=self._sessions_per_user,
            before=None if is_last else self._touches,
            earlier=tuple(self.findings.values()),
        )
        self._touches = self.log.touches
        for finding in verdict.findings:
            key = (finding.name, finding.is_proved, tuple(turn.number for turn in finding.turns))
            if key in self.findings:
                continue
            self.findings[key] = finding
            self.counts[finding.name, finding.is_proved] += 1
            if self._on_finding is not None:
                self._on_finding(finding)
        while len(self.findings) > _FINDINGS_LIMIT:
            self.findings.pop(next(iter(self.findings)))
        self._verdict = verdict
        if len(self.log.conversations.turns) > self._limit:
            # What is counted must not shrink with what is kept.
            self.log.forget(self._limit // 4)
        return verdict

    def take(self, record: Any, source: str) -> None:
        """Read one record that was sent."""
        self.log.lines += 1
        self.log.read_record(record, source, self.log.lines)
        self._bound()

    def read_line(self, line: bytes, source: str, number: int) -> None:
        """Read one line of a file that grows."""
        self.log.lines += 1
        self.log.read_line(line, source, number)
        self._bound()

    def _bound(self) -> None:
        if len(self.log.conversations.turns) + self.log.open_traces > 2 * self._limit:
            self.verdict()

    def metrics(self) -> str:
        """Return the counts for Prometheus."""
        verdict = self.verdict()
        lines = []
        for name, kind, value in (
            ("lines_total", "counter", self.log.lines),
            ("calls_total", "counter", self.log.conversations.calls),
            ("turns_forgotten_total", "counter", self.log.conversations.forgotten),
            ("turns", "gauge", len(self.log.conversations.turns)),
            ("open_traces", "gauge", self.log.open_traces),
        ):
            lines += [f"# TYPE kode_audit_{name} {kind}", f"kode_audit_{name} {value}"]
        lines.append("# TYPE kode_audit_findings_total counter")
        for (name, is_proved), times in sorted(self.counts.items()):
            proof = "proved" if is_proved else "suspect"
            lines.append(f'kode_audit_findings_total{{name="{name}",proof="{proof}"}} {times}')
        lines.append("# TYPE kode_audit_skipped_total counter")
        for why, times in sorted(verdict.skipped.items()):
            escaped = why.replace("\\", "\\\\").replace('"', '\\"').replace("\n", " ")
            lines.append(f'kode_audit_skipped_total{{reason="{escaped}"}} {times}')
        return "\n".join(lines) + "\n"


class Receiver:
    """The sidecar that an OTLP/HTTP exporter sends to: ``async with Receiver(watch) as it``.

    ``POST /v1/traces`` and ``/v1/logs`` take JSON and protobuf, also gzip; ``GET /metrics`` is for
    Prometheus, ``/summary`` the verdict as JSON, ``/`` the page. Only this machine may use it.
    """

    def __init__(self, watch: Watch, *, port: int = 4318) -> None:
        self.watch = watch
        limits = ConnectionLimits(body_limit_bytes=_BODY_LIMIT_BYTES)
        self._server = HttpServer(self._serve, port=port, limits=limits)

    async def __aenter__(self) -> Self:
        """Listen.

        Raises:
            PortOccupied: another process listens on the port.
            InvalidScenario: the port is not valid, or may not be used.
        """
        await self._server.__aenter__()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Stop at once."""
        await self._server.__aexit__(kind, error, traceback)

    @property
    def base_url(self) -> str:
        """What an exporter is given as its endpoint."""
        return self._server.base_url

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        refusal = check_local_access(scope["headers"])
        headers: dict[bytes, bytes] = dict(scope["headers"])
        path, method = scope["path"], scope["method"]
        if refusal is not None:
            await _refuse(send, refusal)
        elif path in ("/v1/traces", "/v1/logs", "/v1/metrics"):
            if method != "POST":
                await _refuse(send, Refusal(405, "MethodNotAllowed", f"use POST for {path}"))
                return
            body = await read_body(receive)
            if body is not None:
                await self._take(send, path, headers, body)
        elif method not in ("GET", "HEAD"):
            await _refuse(send, Refusal(405, "MethodNotAllowed", f"use GET for {path}"))
        elif path == "/metrics":
            await _answer(send, b"text/plain; version=0.0.4", self.watch.metrics().encode())
        elif path == "/summary":
            await _answer(send, b"application/json", orjson.dumps(self.watch.verdict().to_json()))
        elif path == "/":
            page = page_of(self.watch.verdict()).encode()
            await _answer(send, b"text/html; charset=utf-8", page)
        else:
            said = "there are /v1/traces, /v1/logs, /metrics, /summary and /"
            await _refuse(send, Refusal(404, "NotFound", said))

    async def _take(
        self, send: Send, path: str, headers: Mapping[bytes, bytes], body: bytes
    ) -> None:
        """Read what an exporter sent, and answer as OTLP asks."""
        kind = headers.get(b"content-type", b"").partition(b";")[0].strip().lower()
        is_json = kind == b"application/json"
        encoding = headers.get(b"content-encoding", b"identity").strip().lower()
        if encoding == b"gzip":
            unpacker = zlib.decompressobj(31)
            try:
                body = unpacker.decompress(body, _UNPACKED_LIMIT_BYTES)
            except zlib.error as error:
                await _refuse(send, Refusal(400, "BadRequest", f"the body is no gzip: {error}"))
                return
            if unpacker.unconsumed_tail:
                said = f"the body unpacks to more than {_UNPACKED_LIMIT_BYTES:,} bytes"
                await _refuse(send, Refusal(413, "BodyTooLarge", said))
                return
        elif encoding != b"identity":
            said = f"content-encoding {encoding.decode('latin-1')[:40]!r}: send gzip or identity"
            await _refuse(send, Refusal(415, "UnsupportedMediaType", said))
            return
        if path != "/v1/metrics":
            try:
                if is_json:
                    record = orjson.loads(body)
                elif kind in (b"application/x-protobuf", b"application/protobuf"):
                    record = _unpacked(path, body)
                else:
                    said = "content-type: send application/json or application/x-protobuf"
                    await _refuse(send, Refusal(415, "UnsupportedMediaType", said))
                    return
            except (ValueError, InvalidRecord) as error:
                await _refuse(send, Refusal(400, "BadRequest", f"the body cannot be read: {error}"))
                return
            except InvalidScenario as error:
                await _refuse(send, Refusal(415, "UnsupportedMediaType", str(error)))
                return
            self.watch.take(record, f"otlp{path}")
        # An empty answer is a whole success, in JSON and in protobuf.
        await _answer(send, kind, b"{}" if is_json else b"")


def _unpacked(path: str, body: bytes) -> Any:
    """Return a protobuf request as OTLP-JSON has it.

    Raises:
        InvalidScenario: the package that knows the format is not installed.
        InvalidRecord: the body is not what it should be.
    """
    try:
        from google.protobuf.json_format import MessageToDict  # noqa: PLC0415 - an extra
        from google.protobuf.message import DecodeError  # noqa: PLC0415
        from opentelemetry.proto.collector.logs.v1 import logs_service_pb2  # noqa: PLC0415
        from opentelemetry.proto.collector.trace.v1 import trace_service_pb2  # noqa: PLC0415
    except ImportError:
        raise InvalidScenario(
            "protobuf needs the package opentelemetry-proto: pip install 'kode-lab[otlp]', or set "
            "OTEL_EXPORTER_OTLP_PROTOCOL=http/json"
        ) from None
    request: Any = (
        trace_service_pb2.ExportTraceServiceRequest()
        if path == "/v1/traces"
        else logs_service_pb2.ExportLogsServiceRequest()
    )
    try:
        request.ParseFromString(body)
    except DecodeError as error:
        raise InvalidRecord(str(error)) from None
    record = MessageToDict(request)
    # Protobuf's JSON writes bytes as base64; OTLP's JSON writes ids as hex digits.
    for resource in (*record.get("resourceSpans", ()), *record.get("resourceLogs", ())):
        for scope in (*resource.get("scopeSpans", ()), *resource.get("scopeLogs", ())):
            for one in (*scope.get("spans", ()), *scope.get("logRecords", ())):
                for name in ("traceId", "spanId", "parentSpanId"):
                    if name in one:
                        one[name] = b64decode(one[name]).hex()
    return record


async def _answer(send: Send, kind: bytes, body: bytes, status: int = 200) -> None:
    headers = [(b"content-type", kind), (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def _refuse(send: Send, refusal: Refusal) -> None:
    _, body = error_json(refusal)
    await _answer(send, b"application/json", body, refusal.status)


async def follow(path: Path, watch: Watch, ended: asyncio.Event | None = None) -> None:
    """Read a file and what is appended to it, also after it was replaced, until ``ended``.

    Raises:
        InvalidRecord: the file cannot be opened.
    """
    number, rest = 0, b""
    try:
        file = path.open("rb")
    except OSError as error:
        raise InvalidRecord(f"{path} cannot be read: {error}") from None
    try:
        while True:
            if data := file.read(_CHUNK_BYTES):
                *lines, rest = (rest + data).split(b"\n")
                for line in lines:
                    number += 1
                    watch.read_line(line, str(path), number)
                await asyncio.sleep(0)
                continue
            if ended is not None and ended.is_set():
                break
            if _is_replaced(path, file):
                file.close()
                file = path.open("rb")
                number, rest = 0, b""
                continue
            await asyncio.sleep(_POLL_S)
        if rest.strip():
            watch.read_line(rest, str(path), number + 1)
    finally:
        file.close()


def _is_replaced(path: Path, file: Any) -> bool:
    """Whether another file stands at the path now, or this one was cut off."""
    try:
        now = path.stat()
    except FileNotFoundError:
        return False  # between the old file and the new one
    inside = os.fstat(file.fileno())
    is_same = (now.st_dev, now.st_ino) == (inside.st_dev, inside.st_ino)
    return not is_same or now.st_size < file.tell()
