"""Bench of the server: what HTTP and sessions cost together, against a handler that does nothing.

The servers run in this process and the load comes from another, so this one's CPU is the server's.
The nothing is what the framework costs anyway: the same uvicorn protocol and Starlette with an
endpoint that reads the same JSON and answers as many bytes; for streams, as many events, each in a
pass of the loop of its own, as a model's pieces come. The model takes no CPU in either.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.bench import Row, row
from benchmarks.load_process import Job, Load, generator
from benchmarks.sampling import (
    cpu_us,
    interleaved,
    on_loop,
    resident_bytes,
    scratch,
    share,
)
from benchmarks.scene import files_limit, instant_model, shelf
from kode_lab.http import HttpServer
from kode_lab.message import Model, Reply, Request
from kode_lab.server import LiveState, Service, app_of, in_thread
from kode_lab.server.limits import file_budget
from kode_lab.server.serve import ReplyPace, settled
from kode_lab.sessions import JsonStore, SessionManager

__all__ = ["serve"]

_CLIENTS, _TURNS, _ROUNDS = 16, 100, 9
# Conversations of some fifty turns: what a turn costs in a longer one stands in the turn's bench.
_SESSIONS_EACH = 16
_PIECES = 20
_SESSIONS, _LATENCY_S, _TURNS_EACH = 5_000, 2.0, 5
_REPEATS = 3


def serve(effort: float) -> list[Row]:
    """Return the CPU of a turn over HTTP, and the time that many sessions at once take."""
    files_limit()
    with scratch(in_memory=True) as path:
        return on_loop(_serve(path, effort))


async def _serve(path: Path, effort: float) -> list[Row]:
    async with (
        generator() as load,
        _ours(path / "instant", _pieces_model) as ours,
        _nothing() as nothing,
    ):

        def side(port: int, *, is_stream: bool) -> Callable[[], Awaitable[float]]:
            turns = share(_TURNS // (4 if is_stream else 1), effort, least=5)
            job = Job(port, _CLIENTS, turns, is_stream, _SESSIONS_EACH)
            return lambda: cpu_us(lambda: load.run(job), _CLIENTS * turns)

        rounds = share(_ROUNDS, effort, least=1)
        spent_us = await interleaved(
            {
                "turn": side(ours.port, is_stream=False),
                "nothing": side(nothing, is_stream=False),
                "stream": side(ours.port, is_stream=True),
                "nothing streamed": side(nothing, is_stream=True),
            },
            rounds,
        )
    return [
        row(
            "serve: CPU a JSON turn, against a Starlette endpoint that does nothing",
            spent_us["turn"],
            "us",
            baseline=spent_us["nothing"],
            bar="ratio <= 3",
        ),
        row(
            f"serve: CPU a streamed turn of {_PIECES} pieces, against a stream of nothing",
            spent_us["stream"],
            "us",
            baseline=spent_us["nothing streamed"],
            bar="ratio <= 2",
        ),
        *await _many(path / "slow", effort),
    ]


async def _many(path: Path, effort: float) -> list[Row]:
    """Return what happens when thousands of sessions ask a slow model at once, again and again.

    Ideal is what one session alone needs: its turns one after another, the model's time each. The
    sessions and their connections exist, and all send their first turn at one moment; this three
    times, and the best counts.
    """
    sessions = share(_SESSIONS, effort, least=50)
    latency_s = max(0.1, _LATENCY_S * min(1.0, effort))
    model = _Thinker()
    async with generator() as load, _ours(path, model) as ours:
        # First of all: once memory was taken for so many turns, the next ones find it there.
        model.latency_s = latency_s
        memory = await _memory(load, Job(ours.port, sessions, 1), ours.service)
        model.latency_s = 0.0
        await load.run(Job(ours.port, sessions, 1))
        model.latency_s = latency_s
        took_s, spent_us = math.inf, math.inf
        for _ in range(_REPEATS):
            start_s = time.process_time()
            took_s = min(took_s, await load.run(Job(ours.port, sessions, _TURNS_EACH)))
            all_us = (time.process_time() - start_s) * 1e6
            spent_us = min(spent_us, all_us / sessions / _TURNS_EACH)
    many = f"{sessions:,} sessions at once, {latency_s:g} s model, {_TURNS_EACH} turns each"
    return [
        row(
            f"serve: {many}: makespan against ideal",
            took_s,
            "s",
            baseline=latency_s * _TURNS_EACH,
            bar="ratio <= 1.25",
        ),
        row("serve: the same, CPU a turn", spent_us, "us"),
        memory,
    ]


async def _memory(load: Load, job: Job, service: Service) -> Row:
    """Return what a client with a turn in flight takes: turn, session and connection, all new."""
    idle_bytes = resident_bytes()
    running = asyncio.create_task(load.run(job))
    flying = flying_bytes = 0
    while not running.done() and service.turns_in_flight >= flying:
        flying, flying_bytes = service.turns_in_flight, resident_bytes()
        await asyncio.sleep(0.05)
    await running
    return row(
        f"serve: memory of a turn in flight with its session and connection, at {flying:,}",
        (flying_bytes - idle_bytes) / max(1, flying),
        "bytes",
    )


class _Thinker:
    """A model that answers after a time that may be changed, and takes no CPU."""

    def __init__(self) -> None:
        self.latency_s = 0.0

    async def __call__(
        self, request: Request, on_text: Callable[[str], None] | None = None
    ) -> Reply:
        await asyncio.sleep(self.latency_s)
        return await instant_model(request, on_text)


async def _pieces_model(request: Request, on_text: Callable[[str], None] | None = None) -> Reply:
    """Answer at once; a stream in pieces, each in its own pass of the loop."""
    reply = await instant_model(request)
    if on_text is not None:
        text = reply.text
        step = -(-len(text) // _PIECES)
        for start in range(0, len(text), step):
            on_text(text[start : start + step])
            await asyncio.sleep(0)
    return reply


class _Ours(NamedTuple):
    port: int
    service: Service


@asynccontextmanager
async def _ours(path: Path, model: Model) -> AsyncIterator[_Ours]:
    """Return the whole server, as ``kode-lab serve`` puts it together."""
    live_state = LiveState()
    store = JsonStore(path / "store", open_sessions_limit=file_budget(files_limit()).sessions)
    async with SessionManager(
        store=store, agents=shelf(path / "agents"), model=ReplyPace(model), trace=live_state.see
    ) as manager:
        app = app_of(manager, live_state=live_state, sessions_of=in_thread(store.sessions))
        async with HttpServer(app) as server:
            ours = _Ours(server.port, app.service)
            # It holds for the whole process, and so for both sides.
            async with settled(lambda: ours.service.turns_in_flight):
                yield ours


@asynccontextmanager
async def _nothing() -> AsyncIterator[int]:
    """Return the port of uvicorn and Starlette with an endpoint of the same shape."""
    import uvicorn  # noqa: PLC0415 - as in the server
    from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol  # noqa: PLC0415
    from uvicorn.server import ServerState  # noqa: PLC0415

    config = uvicorn.Config(
        _empty_app(), lifespan="off", log_config=None, access_log=False, timeout_keep_alive=75
    )
    config.load()
    state = ServerState()
    state.default_headers = [(b"date", b"Thu, 01 Jan 1970 00:00:00 GMT"), (b"server", b"uvicorn")]
    listener = await asyncio.get_running_loop().create_server(
        lambda: HttpToolsProtocol(config, state, {}), "127.0.0.1", 0
    )
    try:
        yield int(listener.sockets[0].getsockname()[1])
    finally:
        listener.close()
        for connection in list(state.connections):
            connection.transport.abort()


def _empty_app() -> Any:
    from starlette.applications import Starlette  # noqa: PLC0415 - this bench's alone
    from starlette.requests import Request as HttpRequest  # noqa: PLC0415
    from starlette.responses import JSONResponse, Response, StreamingResponse  # noqa: PLC0415
    from starlette.routing import Route  # noqa: PLC0415

    text = "It is noted: tomorrow at nine, one hour, and nothing else was planned. " * 4
    step = -(-len(text) // _PIECES)

    def answer(asked: dict[str, Any]) -> dict[str, Any]:
        return {
            **{name: asked[name] for name in ("userId", "sessionId", "agentId")},
            "turnId": "0123456789abcdef01234567",
            "text": text,
            "toolCalls": [],
            "usage": {"inputTokens": 120, "outputTokens": 40},
            "configVersion": "0123456789ab",
            "isReplay": False,
        }

    async def events(asked: dict[str, Any]) -> AsyncIterator[str]:
        yield 'event: started\nid: 1\ndata: {"turnId": "0123456789abcdef01234567"}\n\n'
        for start in range(0, len(text), step):
            await asyncio.sleep(0)
            yield f'event: text\nid: 2\ndata: {{"text": "{text[start : start + step]}"}}\n\n'
        yield f"event: done\nid: 3\ndata: {answer(asked)}\n\n"

    async def turns(request: HttpRequest) -> Response:
        asked = await request.json()
        if asked.get("stream"):
            return StreamingResponse(events(asked), media_type="text/event-stream")
        return JSONResponse(answer(asked))

    return Starlette(routes=[Route("/v1/turns", turns, methods=["POST"])])
