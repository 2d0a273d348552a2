"""A worker of a storm: a real process with a manager of its own on the shared database.

It runs as ``python -m kode_lab.storms.worker`` and reads one line of JSON (``Post``) that says
where everything is. That process makes the schema and from then on only forks: a worker for each
further line on its stdin, so that a new one is ready milliseconds after one was killed.

Each worker talks over one unix socket, a JSON value a line:

    in    {"n": 7, "key": [...], "prompt": ..., "turn_id": ...}     or {"n": 8, "read": [...]}
    out   {"worker": "w2", "pid": 4711}                             when it is ready
          {"held": "TURN_ID", "ns": ...}                            the turn got its session
          {"n": 7, "outcome": "ok", "text": ..., "fence": ...}      what its client may know

It must never know which faults happen, nor what is concluded from its answers.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from kode_lab.claude.in_process import InProcessClaude
from kode_lab.claude.profile import Profile
from kode_lab.errors import CallerError, KodeLabError, Refused
from kode_lab.history.span import Span
from kode_lab.key import SessionKey
from kode_lab.message import text_of
from kode_lab.schedule_assistant import AGENTS, ScheduleBook, toolbox
from kode_lab.sessions import AgentShelf, SessionManager
from kode_lab.sessions.postgres.store import PostgresStore

__all__ = ["LINE_LIMIT_BYTES", "Post"]

# The final read of a hot session has some thousand prompts.
LINE_LIMIT_BYTES = 16 * 1024 * 1024
# What a worker has for its last turns when its client is gone.
_LEAVE_S = 10.0


class Post(NamedTuple):
    """Where the workers of a storm find what they need.

    Attributes:
        socket: where the fleet listens.
        dsn: of the database itself, to make the schema with.
        book: the schedule book that all workers share.
        ttft_s: the least that a model call takes, on the average.
        patience_s: how long a worker retries a database that does not answer.
    """

    socket: str
    dsn: str
    schema: str
    book: str
    ttl_s: float
    ttft_s: float
    patience_s: float


class _Worker:
    """One worker: its manager, and the connection to its clients."""

    def __init__(
        self,
        manager: SessionManager,
        fences: dict[str, int],
        writer: asyncio.StreamWriter,
    ) -> None:
        self._manager = manager
        self._fences = fences
        self._writer = writer
        self._at_work: set[asyncio.Task[None]] = set()

    async def serve(self, reader: asyncio.StreamReader) -> None:
        """Do what is asked until the connection ends."""
        while line := await reader.readline():
            order = json.loads(line)
            what = self._read(order) if "read" in order else self._turn(order)
            task = asyncio.create_task(what)
            self._at_work.add(task)
            task.add_done_callback(self._at_work.discard)

    async def _turn(self, order: dict[str, Any]) -> None:
        answer: dict[str, Any] = {"n": order["n"], "outcome": "info"}
        key, turn_id = SessionKey(*order["key"]), order["turn_id"]
        try:
            reply = await self._manager.turn(key, order["prompt"], turn_id=turn_id)
            answer |= {"outcome": "ok", "text": reply.text, "config": reply.config_version}
        except (Refused, CallerError) as refused:
            answer |= {"outcome": "fail", "error": _said(refused)}
        except KodeLabError as failure:
            answer["error"] = _said(failure)
        except Exception as failure:  # noqa: BLE001 - the judge must see what should not happen
            answer["error"] = f"unexpected {_said(failure)}"
        answer["fence"] = self._fences.pop(turn_id, 0)
        say(self._writer, answer)

    async def _read(self, order: dict[str, Any]) -> None:
        answer: dict[str, Any] = {"n": order["n"], "outcome": "info"}
        try:
            messages = await self._manager.history(SessionKey(*order["read"]))
            prompts = [text_of(message) for message in messages if message["role"] == "user"]
            answer |= {"outcome": "ok", "prompts": prompts}
        except KodeLabError as failure:
            answer["error"] = _said(failure)
        say(self._writer, answer)


def say(writer: asyncio.StreamWriter, value: dict[str, Any]) -> None:
    """Write one line, unless the client is gone."""
    if not writer.is_closing():
        writer.write(json.dumps(value, separators=(",", ":")).encode() + b"\n")


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"


async def _work(post: Post, name: str, dsn: str) -> None:
    reader, writer = await asyncio.open_unix_connection(post.socket, limit=LINE_LIMIT_BYTES)
    fences: dict[str, int] = {}

    def trace(span: Span) -> None:
        if span.step == "wait":
            say(writer, {"held": span.turn_id, "ns": span.end_ns})
        elif span.step == "turn":
            fences[span.turn_id] = span.attributes["kode_lab.fence"]

    store = PostgresStore(dsn, schema=post.schema, ttl_s=post.ttl_s, patience_s=post.patience_s)
    shelf = AgentShelf(AGENTS, toolbox(ScheduleBook(Path(post.book))))
    model = InProcessClaude(Profile(ttft_s=post.ttft_s, jitter=0.5))
    manager = SessionManager(store=store, agents=shelf, model=model, trace=trace, drain_s=5.0)
    await store.open()
    say(writer, {"worker": name, "pid": os.getpid()})
    await _Worker(manager, fences, writer).serve(reader)
    with suppress(KodeLabError, TimeoutError):
        async with asyncio.timeout(_LEAVE_S):
            await manager.aclose()


async def _make_schema(post: Post) -> None:
    store = PostgresStore(post.dsn, schema=post.schema, ttl_s=post.ttl_s)
    await store.open()
    await store.aclose()


def _become(post: Post, name: str, dsn: str) -> None:
    """Work until the client is gone; a fork must not share its parent's stdin and stdout."""
    nothing = os.open(os.devnull, os.O_RDWR)
    os.dup2(nothing, 0)
    os.dup2(nothing, 1)
    try:
        asyncio.run(_work(post, name, dsn))
    except (ConnectionError, KeyboardInterrupt):
        os._exit(0)  # the client is gone
    except BaseException:  # noqa: BLE001 - the loop around this is the parent's
        sys.excepthook(*sys.exc_info())
        os._exit(1)
    os._exit(0)


def _main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent
    post = Post(**json.loads(sys.stdin.readline()))
    asyncio.run(_make_schema(post))
    book = ScheduleBook(Path(post.book))
    # For what these import: no worker has to do that again.
    AgentShelf(AGENTS, toolbox(book)).current("schedule-assistant")
    book.close()
    os.write(1, b"ready\n")
    pids: set[int] = set()
    for line in iter(sys.stdin.readline, ""):
        pids -= {pid for pid in pids if os.waitpid(pid, os.WNOHANG)[0]}
        name, dsn = line.split()
        pid = os.fork()
        if not pid:
            _become(post, name, dsn)
        pids.add(pid)


if __name__ == "__main__":
    _main()
