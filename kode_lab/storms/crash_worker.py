"""The process that the crash proof kills: a manager that takes turn after turn of some sessions.

It runs as ``python -m kode_lab.storms.crash_worker DIRECTORY STORE``, where the store is a
durability of files or the DSN of a database. The process that is started only forks: one worker for
each line on its stdin, so that a worker is ready in milliseconds. A line says with which turn each
session continues. The worker reports each acknowledged turn on stdout, and never ends by itself.

    in    {"life": 3, "turns": {"ada-0": 17, ...}}
    out   born PID     ack ada-0 17     ack ada-0 18  ...     dead STATUS

It must never know what is concluded from that.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from pathlib import Path

from kode_lab.key import SessionKey
from kode_lab.message import Reply, Request, Usage, text_of
from kode_lab.schedule_assistant import AGENTS, ScheduleBook, toolbox
from kode_lab.sessions import AgentShelf, JsonStore, PostgresStore, SessionManager, Store

__all__ = ["key_of", "managing", "prompt_of", "store_in", "titles_of"]

AGENT_ID = "schedule-assistant"
# Small enough to begin again within a life.
JOURNAL_BYTES = 256 * 1024
_TOOLS_EVERY = 8
_TOOL_CALLS = 2
# Long enough that many writes cross a page: a kill tears them there.
_ANSWER = "Done, and noted where you will find it again. " * 30


def key_of(session: str) -> SessionKey:
    """Return the key of a session: each has a user of its own."""
    return SessionKey(session, "s", AGENT_ID)


def prompt_of(session: str, number: int) -> str:
    """Return the text of a session's turn: unique, and an order to use tools for some."""
    verb = "schedule" if number % _TOOLS_EVERY == 2 else "say"
    return f"{verb} {session}/{number}"


def titles_of(prompt: str) -> list[str]:
    """Return the titles of the schedules that a turn with this prompt makes."""
    verb, _, name = prompt.partition(" ")
    return [f"{name}/{call}" for call in range(_TOOL_CALLS)] if verb == "schedule" else []


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
            "name": "create_schedule",
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
    agents = AgentShelf(AGENTS, toolbox(book))
    return SessionManager(store=store_in(directory, where), agents=agents, model=_model)


async def _live(directory: Path, where: str, turns: dict[str, int]) -> None:
    book = ScheduleBook(directory / "book.sqlite")
    manager = managing(directory, where, book)
    async with asyncio.TaskGroup() as group:
        for session, number in turns.items():
            group.create_task(_converse(manager, session, number))


async def _converse(manager: SessionManager, session: str, number: int) -> None:
    while True:
        prompt = prompt_of(session, number)
        await manager.turn(key_of(session), prompt, turn_id=f"t{number}")
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
