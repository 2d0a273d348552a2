"""Pydantic AI with the history that its documentation tells an application to keep.

Source: https://ai.pydantic.dev/message-history/ (message_history, all_messages_json); the example
of a chat application there loads, runs and saves in this order.
"""

from __future__ import annotations

import os
import sqlite3
from importlib.metadata import version
from pathlib import Path

from pydantic_ai import Agent, ModelMessagesTypeAdapter

__all__ = ["DECLARES", "ENVIRONMENT", "REQUIRES", "history", "turn"]

ENVIRONMENT = "pydantic-ai"
REQUIRES = ("pydantic-ai-slim[anthropic]==2.68.0",)
DECLARES = {
    "version": version("pydantic-ai-slim"),
    "promises": ["apart", "kept", "whole", "ordered", "durable", "service"],
    "notes": "Pydantic AI keeps no sessions and promises nothing about them: an application loads "
    "the messages, runs, and saves. What is seen is that pattern, not the library's own store.",
}

_agent = Agent("anthropic:claude-sonnet-4-5", instructions="Be brief.")
_file = sqlite3.connect(Path(os.environ["KODE_LAB_DATA"]) / "chats.sqlite", check_same_thread=False)
_file.execute(
    "CREATE TABLE IF NOT EXISTS chat (user TEXT, session TEXT, messages BLOB,"
    " PRIMARY KEY (user, session))"
)


def _loaded(user: str, session: str) -> bytes:
    question = "SELECT messages FROM chat WHERE user = ? AND session = ?"
    row = _file.execute(question, (user, session)).fetchone()
    return row[0] if row else b"[]"


async def turn(user: str, session: str, prompt: str) -> str:
    """Load the messages, run, save all messages."""
    before = ModelMessagesTypeAdapter.validate_json(_loaded(user, session))
    result = await _agent.run(prompt, message_history=before)
    saved = (user, session, result.all_messages_json())
    with _file:
        _file.execute("INSERT OR REPLACE INTO chat VALUES (?, ?, ?)", saved)
    return result.output


async def history(user: str, session: str) -> list[str]:
    """Return the user's prompts among the saved messages."""
    messages = ModelMessagesTypeAdapter.validate_json(_loaded(user, session))
    parts = (part for message in messages for part in message.parts)
    return [str(part.content) for part in parts if part.part_kind == "user-prompt"]
