"""The small service that the benches load: an agent, a model that takes no CPU, a manager.

It owns how such a scene is set up, so that every bench measures the same one. The model is a
function in this process: what is measured is the service around it.
"""

from __future__ import annotations

import asyncio
import os
import resource
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from itertools import count
from pathlib import Path
from typing import Any

from kode_lab.history.span import Span, Trace
from kode_lab.key import SessionKey
from kode_lab.message import Model, Reply, Request, Usage, assistant, user
from kode_lab.sessions import AgentShelf, JsonStore, SessionManager, Store, Toolbox
from kode_lab.sessions.open_turn import OpenTurn

__all__ = [
    "PROMPT",
    "files_limit",
    "finished_turn",
    "instant_model",
    "keys",
    "new_keys",
    "service",
    "shelf",
    "slow_model",
    "spans_to_nowhere",
    "take",
]

AGENT_ID = "bench"
_FIRST_NEW = 1_000_000
# As long as the prompts and replies behind the design's 686 bytes a turn.
PROMPT = (
    "Please note an hour for the quarterly review tomorrow morning, if nothing is planned. " * 3
)
_ANSWER = (
    "It is noted: tomorrow at nine, one hour, and nothing else was planned for the morning. " * 3
)
_REPLY = Reply(({"type": "text", "text": _ANSWER},), "end_turn", Usage(120, 40), "bench", "msg")


def keys(count: int, first: int = 0) -> list[SessionKey]:
    """Return that many session keys, ten sessions a user."""
    return [
        SessionKey(f"user-{number // 10}", f"session-{number}", AGENT_ID)
        for number in range(first, first + count)
    ]


def new_keys() -> Iterator[SessionKey]:
    """Return keys of sessions that are not there yet, without end: none is made before it is asked.

    A list of so many would be looked at by each collection, between any two samples.
    """
    for number in count(_FIRST_NEW):
        yield from keys(1, number)


def finished_turn(turn_id: str) -> tuple[OpenTurn, list[dict[str, Any]]]:
    """Return a turn that the model has answered, and the journal entry of its reply."""
    turn = OpenTurn(turn_id, user(PROMPT), "v")
    message = assistant(_REPLY.content)
    turn.add_reply(message, _REPLY.usage)
    return turn, [turn.reply_entry(message, _REPLY.usage)]


async def instant_model(request: Request, on_text: object = None) -> Reply:  # noqa: ARG001
    """Answer at once."""
    return _REPLY


def slow_model(latency_s: float) -> Model:
    """Return a model that answers after that time, and costs a timer."""

    async def model(request: Request, on_text: object = None) -> Reply:  # noqa: ARG001
        await asyncio.sleep(latency_s)
        return _REPLY

    return model


def spans_to_nowhere(span: Span) -> None:
    """Take a span and forget it: the trace is written, its file is not what is measured."""


def shelf(directory: Path) -> AgentShelf:
    """Return the shelf with the one agent."""
    directory.mkdir()
    path = directory / f"{AGENT_ID}.toml"
    path.write_text('model = "bench"\nsystem = "You keep a calendar."\n', encoding="utf-8")
    os.utime(path, (1, 1))  # an old file: a fresh one is read twice
    return AgentShelf(directory, Toolbox())


@asynccontextmanager
async def service(
    directory: Path,
    model: Model = instant_model,
    *,
    trace: Trace | None = spans_to_nowhere,
    store: Store | None = None,
    residents_limit: int = 10_000,
) -> AsyncIterator[SessionManager]:
    """Return a manager of sessions below the directory, all of it as it would be in production."""
    async with SessionManager(
        store=store or JsonStore(directory / "store"),
        agents=shelf(directory / "agents"),
        model=model,
        trace=trace,
        residents_limit=residents_limit,
    ) as manager:
        yield manager


async def take(manager: SessionManager, key: SessionKey, turns: int = 1) -> None:
    """Take that many turns, each followed by a pass of the loop.

    A server passes there too, and only there a cancelled timer gives its memory back.
    """
    for _ in range(turns):
        await manager.turn(key, PROMPT)
        await asyncio.sleep(0)


def files_limit() -> int:
    """Raise the limit of open files as far as the system allows, and give it."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    return most
