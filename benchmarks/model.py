"""Bench of the simulated model and of the recording proxy: CPU of the server process a call.

Each server runs in a process of its own, which tells its CPU time when it is asked; the load comes
from this process, over connections that stay open. An application that answers with a constant is
measured in the same run, so that a reader sees what HTTP alone costs.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

from benchmarks.bench import Row, row
from benchmarks.sampling import interleaved, on_loop, share
from kode_lab.errors import InvalidScenario
from kode_lab.history.operation import marker_of
from kode_lab.key import SessionKey

__all__ = ["model"]

_CALLS = 2_000
_STREAMS = 300
_CONNECTIONS = 8
_IN_FLIGHT = 2_000
# The server's whole program. It ends when its standard input does.
_SERVER = """
import asyncio, json, sys, time
kind, upstream, latency_s = sys.argv[1], sys.argv[2], float(sys.argv[3])

async def empty(scope, receive, send):
    from kode_lab.http import read_body
    await read_body(receive)
    await send({"type": "http.response.start", "status": 200,
                "headers": [(b"content-type", b"application/json")]})
    await send({"type": "http.response.body", "body": b"{}"})

def server():
    if kind == "empty":
        from kode_lab.http import ConnectionLimits, HttpServer
        return HttpServer(empty, limits=ConnectionLimits(body_limit_bytes=64_000_000))
    if kind == "proxy":
        from kode_lab.claude.proxy import RecordingProxy
        return RecordingProxy(upstream)
    from kode_lab.claude import Profile, SimulatedClaude
    return SimulatedClaude(Profile(ttft_s=latency_s))

async def main():
    async with server() as served:
        print(json.dumps(served.port if kind == "empty" else served.base_url), flush=True)
        while await asyncio.to_thread(sys.stdin.readline):
            peak = 0 if kind == "empty" else served.statistics().peak_in_flight
            print(json.dumps([time.process_time(), peak]), flush=True)

try:
    import uvloop
    asyncio.Runner(loop_factory=uvloop.new_event_loop).run(main())
except ImportError:
    asyncio.run(main())
"""


class _Server:
    """A server in a process of its own."""

    def __init__(self, child: subprocess.Popen[str]) -> None:
        self._child = child
        told = self._told()
        self.url = told if isinstance(told, str) else f"http://127.0.0.1:{told}"
        self.port = int(self.url.rpartition(":")[2])

    def cpu_and_peak(self) -> tuple[float, int]:
        """Return its CPU seconds so far, and how many calls were in flight at once."""
        assert self._child.stdin is not None
        self._child.stdin.write("\n")
        self._child.stdin.flush()
        cpu_s, peak = self._told()
        return float(cpu_s), int(peak)

    def _told(self) -> Any:
        assert self._child.stdout is not None
        line = self._child.stdout.readline()
        if not line:
            raise InvalidScenario("a server did not start: its error stands above")
        return json.loads(line)


@contextlib.contextmanager
def _server(kind: str, upstream: str = "", latency_s: float = 0.0) -> Iterator[_Server]:
    with subprocess.Popen(  # noqa: S603 - our own words
        [sys.executable, "-c", _SERVER, kind, upstream, str(latency_s)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as child:
        try:
            yield _Server(child)
        finally:
            assert child.stdin is not None
            child.stdin.close()


def model(effort: float) -> list[Row]:
    """Return the CPU of a simulated call, of a streamed event, of a long request, of the proxy."""
    with (
        _server("empty") as empty,
        _server("simulated") as simulated,
        _server("simulated") as upstream,
        _server("proxy", upstream.url) as proxy,
        _server("simulated", latency_s=max(0.2, 2 * effort)) as slow,
    ):
        return on_loop(_model(empty, simulated, proxy, slow, effort))


async def _model(
    empty: _Server, simulated: _Server, proxy: _Server, slow: _Server, effort: float
) -> list[Row]:
    calls, rounds = share(_CALLS, effort, least=40), share(5, effort, least=1)
    streams = share(_STREAMS, effort, least=10)
    sessions = iter(range(1_000_000))

    def plain(server: _Server) -> Callable[[], Awaitable[float]]:
        def bodies() -> Iterator[bytes]:
            key = SessionKey.of(f"s{next(sessions)}", "agent")
            for number in range(calls):
                yield _body([_user(f"hello {marker_of(key, number)}")])

        return lambda: _cpu_us(server, bodies(), calls)

    def streamed() -> Callable[[], Awaitable[float]]:
        asked = _body([_user("word " * 12)], stream=True, tools=[], max_tokens=400)
        return lambda: _cpu_us(simulated, iter([asked] * streams), streams)

    def whole() -> Callable[[], Awaitable[float]]:
        asked = _body([_user("word " * 12)], tools=[], max_tokens=400)
        return lambda: _cpu_us(simulated, iter([asked] * streams), streams)

    def grown(length: int) -> Callable[[], Awaitable[float]]:
        times = share(400, effort, least=10)

        def bodies() -> Iterator[bytes]:
            key = SessionKey.of(f"s{next(sessions)}", "agent")
            messages = _conversation(key, length)
            for number in range(times):
                yield _body([*messages, _user(f"more {marker_of(key, length + number)}")])

        made = list(bodies())
        return lambda: _cpu_us(simulated, iter(made), times, connections=1)

    spent = await interleaved(
        {
            "empty": plain(empty),
            "call": plain(simulated),
            "proxy": plain(proxy),
            "stream": streamed(),
            "whole": whole(),
            "10": grown(10),
            "1000": grown(1_000),
        },
        rounds,
        of=min,
    )
    events = await _events(simulated)
    in_flight = share(_IN_FLIGHT, effort, least=50)
    asked = iter([_body([_user("hello")])] * in_flight)
    await _cpu_us(slow, asked, in_flight, connections=in_flight)
    _, peak = slow.cpu_and_peak()
    return [
        row(
            "model: CPU a simulated call, against an empty handler",
            spent["call"],
            "us",
            baseline=spent["empty"],
            bar="value <= 150",
        ),
        row(
            f"model: CPU an event of a stream of {events}, beyond the call",
            max(0.0, spent["stream"] - spent["whole"]) / events,
            "us",
            bar="value <= 10",
        ),
        row(
            "model: CPU a witnessed call of 1,000 messages, against one of 10",
            spent["1000"],
            "us",
            baseline=spent["10"],
            bar="ratio <= 2",
        ),
        row(
            "model: CPU of the proxy a call, against an empty handler",
            spent["proxy"],
            "us",
            baseline=spent["empty"],
            bar="value <= 300",
        ),
        row("model: calls in flight at once", peak, "calls", bar=f"value >= {in_flight}"),
    ]


def _user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": [{"type": "text", "text": text}]}


def _conversation(key: SessionKey, length: int) -> list[dict[str, Any]]:
    messages: list[dict[str, Any]] = []
    for number in range(length // 2):
        messages.append(_user(f"hello {marker_of(key, number)}"))
        said = [{"type": "text", "text": f"You said: hello. Number {number} of this session."}]
        messages.append({"role": "assistant", "content": said})
    return messages


def _body(messages: list[dict[str, Any]], **fields: Any) -> bytes:
    asked = {"model": "claude-sonnet-5-5", "max_tokens": 400, "messages": messages, **fields}
    data = json.dumps(asked, separators=(",", ":")).encode()
    return (
        b"POST /v1/messages HTTP/1.1\r\nhost: localhost\r\nx-api-key: any\r\n"
        b"anthropic-version: 2026-10-21\r\ncontent-type: application/json\r\n"
        b"content-length: %d\r\n\r\n" % len(data)
    ) + data


async def _cpu_us(
    server: _Server, bodies: Iterator[bytes], count: int, *, connections: int = _CONNECTIONS
) -> float:
    """Return the CPU microseconds of the server for each request."""
    links = [await asyncio.open_connection("127.0.0.1", server.port) for _ in range(connections)]
    before, _ = server.cpu_and_peak()

    async def ask(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for body in bodies:
            writer.write(body)
            await _answer(reader)

    async with asyncio.timeout(300):
        await asyncio.gather(*(ask(*link) for link in links))
    after, _ = server.cpu_and_peak()
    for _, writer in links:
        writer.close()
    return (after - before) * 1e6 / count


async def _answer(reader: asyncio.StreamReader) -> bytes:
    head = await reader.readuntil(b"\r\n\r\n")
    if not head.startswith(b"HTTP/1.1 200"):
        raise InvalidScenario(f"a server answered {head[:200]!r}")
    length = next(
        (
            int(line.partition(b":")[2])
            for line in head.lower().split(b"\r\n")
            if line.startswith(b"content-length")
        ),
        None,
    )
    if length is not None:
        return await reader.readexactly(length)
    body = b""
    while size := int(await reader.readline(), 16):
        body += await reader.readexactly(size + 2)
    await reader.readexactly(2)
    return body


async def _events(server: _Server) -> int:
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.write(_body([_user("word " * 12)], stream=True, tools=[], max_tokens=400))
    body = await asyncio.wait_for(_answer(reader), 30)
    writer.close()
    return body.count(b"event: ")
