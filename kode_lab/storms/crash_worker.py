"""The process that the crash proof kills: a manager that takes turn after turn of some sessions.

It runs as ``python -m kode_lab.storms.crash_worker DIRECTORY STORE``, where the store is a
durability of files or the DSN of a database. The process that is started only forks: one worker for
each line on its stdin, so that a worker is ready in milliseconds. A line says with which turn each
session continues. The worker reports each acknowledged turn on stdout, and never ends by itself.

Some turns are more than a question and an answer: they use tools, are steered, wait for an
approval, are removed by a rewind, or are followed by a fork. Long conversations are compacted.

    in    {"life": 3, "turns": {"ada-0": 17, ...}}
    out   born PID     ack ada-0 17     ack ada-0 18  ...     dead STATUS

It must never know what is concluded from that.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
from pathlib import Path

from kode_lab.errors import Superseded, TurnPending
from kode_lab.key import SessionKey
from kode_lab.message import Reply, Request, Usage, text_of
from kode_lab.schedule_assistant import ScheduleBook, toolbox
from kode_lab.sessions import (
    AgentConfig,
    ContextPolicy,
    JsonStore,
    Pending,
    PostgresStore,
    SessionManager,
    Store,
    ToolContext,
)

__all__ = [
    "fork_of",
    "key_of",
    "kind_of",
    "managing",
    "prompts_of",
    "removed_by",
    "store_in",
    "take",
    "titles_of",
]

AGENT_ID = "schedule-assistant"
# Small enough to begin again within a life.
JOURNAL_BYTES = 256 * 1024
# What the turns of a session do beside an answer, by their number modulo 16.
_KINDS = {2: "schedule", 10: "schedule", 4: "steer", 6: "approve", 9: "rewind", 13: "fork"}
# About ten turns; the summary stands for all but the last four.
_COMPACT_ABOVE_TOKENS = 4_000
_TOOL_CALLS = 2
# Long enough that many writes cross a page: a kill tears them there.
_ANSWER = "Done, and noted where you will find it again. " * 30


def key_of(session: str) -> SessionKey:
    """Return the key of a session: each has a user of its own."""
    return SessionKey(session, "s", AGENT_ID)


def fork_of(session: str, number: int) -> SessionKey:
    """Return the key of the session to which this turn's conversation is copied."""
    return key_of(session)._replace(session_id=f"fork-{number}")


def kind_of(number: int) -> str:
    """Return what the turn of that number does beside an answer, or ""."""
    return _KINDS.get(number % 16, "")


def prompts_of(session: str, number: int) -> list[str]:
    """Return the texts that are in the conversation once this turn is acknowledged."""
    kind, name = kind_of(number), f"{session}/{number}"
    verb = kind if kind in ("schedule", "approve") else "say"
    return [f"{verb} {name}", *([f"say {name}/more"] if kind == "steer" else [])]


def removed_by(session: str, number: int) -> str:
    """Return the text that a rewind removes from the conversation, or ""."""
    return f"say {session}/{number}/removed" if kind_of(number) == "rewind" else ""


def titles_of(prompt: str) -> list[str]:
    """Return the titles of the schedules that a turn with this prompt makes."""
    verb, _, name = prompt.partition(" ")
    calls = {"schedule": _TOOL_CALLS, "approve": 1}.get(verb, 0)
    return [f"{name}/{call}" for call in range(calls)]


async def _model(request: Request, on_text: object = None) -> Reply:  # noqa: ARG001
    """Ask for the tools that the prompt names, then answer.

    The ids of tool calls are new in every reply, as a real model's are: only a journal can repeat
    one, and only a repeated one is guarded by its idempotency key.
    """
    await asyncio.sleep(0)
    last = request.messages[-1]
    titles = titles_of(text_of(last)) if last["content"][0]["type"] == "text" else []
    if not titles:
        return Reply(({"type": "text", "text": _ANSWER},), "end_turn", Usage(1, 1))
    calls = (
        {
            "type": "tool_use",
            "id": f"toolu_{os.urandom(9).hex()}",
            "name": "approved_schedule" if "approve" in text_of(last) else "create_schedule",
            "input": {"title": title, "start": "2026-07-15T15:00"},
        }
        for title in titles
    )
    return Reply(tuple(calls), "tool_use", Usage(1, 1))


def store_in(directory: Path, where: str) -> Store:
    """Return the store of the sessions: files with a durability, or the database of a DSN."""
    match where:
        case "process" | "power":
            return JsonStore(directory / "store", durability=where, journal_bytes=JOURNAL_BYTES)
    return PostgresStore(where, schema="crash")


def managing(directory: Path, where: str, book: ScheduleBook) -> SessionManager:
    """Return the manager of the sessions in that store."""
    box = toolbox(book)

    @box.tool
    def approved_schedule(title: str, start: str, context: ToolContext) -> str | Pending:
        """Enter a schedule, once it is approved."""
        if context.approval is None:
            return Pending(f"enter {title}?")
        key = context.idempotency_key
        book.create(context.key.user_id, title, start, idempotency_key=key)
        return context.approval

    context = ContextPolicy(compact_above_tokens=_COMPACT_ABOVE_TOKENS)
    agents = [AgentConfig(AGENT_ID, "any", tools=box, context=context)]
    return SessionManager(store=store_in(directory, where), agents=agents, model=_model)


async def take(manager: SessionManager, session: str, number: int) -> None:
    """Take the turn of that number, and what belongs to it, or continue it after a kill."""
    key, kind, turn_id = key_of(session), kind_of(number), f"t{number}"
    prompt, *more = prompts_of(session, number)
    turn = asyncio.ensure_future(manager.turn(key, prompt, turn_id=turn_id))
    if more:
        await asyncio.sleep(0)
        await manager.turn(key, more[0], turn_id=f"{turn_id}-more", strategy="steer")
    try:
        await turn
    except TurnPending as pending:
        for call_id in pending.questions:
            await manager.approve(key, call_id, "yes")
    if kind == "rewind":
        with contextlib.suppress(Superseded):  # it was removed before the kill
            await manager.turn(key, removed_by(session, number), turn_id=f"{turn_id}-removed")
        await manager.rewind(key, turn_id, turn_id=f"{turn_id}-rewind")
    elif kind == "fork":
        await manager.fork(key, fork_of(session, number), at_turn=turn_id)


async def _live(directory: Path, where: str, turns: dict[str, int]) -> None:
    book = ScheduleBook(directory / "book.sqlite")
    manager = managing(directory, where, book)
    async with asyncio.TaskGroup() as group:
        for session, number in turns.items():
            group.create_task(_converse(manager, session, number))


async def _converse(manager: SessionManager, session: str, number: int) -> None:
    while True:
        await take(manager, session, number)
        _say(f"ack {session} {number}")
        number += 1


def _say(words: str) -> None:
    # One write: what is in the pipe survives the death of its writer.
    os.write(1, f"{words}\n".encode())


def _main() -> None:
    directory, where = Path(sys.argv[1]), sys.argv[2]
    book = ScheduleBook(directory / "book.sqlite")
    toolbox(book)  # for what it imports: no life has to do that again
    book.close()
    for line in sys.stdin:
        order = json.loads(line)
        pid = os.fork()
        if not pid:
            try:
                asyncio.run(_live(directory, where, order["turns"]))
            except BaseException:  # noqa: BLE001 - the loop around this is the parent's
                sys.excepthook(*sys.exc_info())
            os._exit(1)
        _say(f"born {pid}")
        _, status = os.waitpid(pid, 0)
        _say(f"dead {os.waitstatus_to_exitcode(status)}")


if __name__ == "__main__":
    _main()
