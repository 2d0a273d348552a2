"""Agno's agent with its SQLite database and its history in the context.

Source: https://docs.agno.com/concepts/agents/sessions (db, add_history_to_context).
"""

from __future__ import annotations

import os
from importlib.metadata import version
from pathlib import Path

from agno.agent import Agent
from agno.db.sqlite import SqliteDb
from agno.models.anthropic import Claude

__all__ = ["DECLARES", "ENVIRONMENT", "REQUIRES", "history", "turn"]

ENVIRONMENT = "agno"
REQUIRES = ("agno==3.1.10", "anthropic", "sqlalchemy[asyncio]", "aiosqlite")
DECLARES = {
    "version": version("agno"),
    "promises": ["apart", "kept", "whole", "ordered", "durable", "service"],
    "notes": "num_history_runs is 1000 here, so that no turn is left out of the context; the "
    "default shows the model the last 3 runs.",
}

_db = SqliteDb(db_file=str(Path(os.environ["KODE_LAB_DATA"]) / "agno.sqlite"))


def _agent() -> Agent:
    return Agent(
        id="assistant",
        model=Claude(id="claude-sonnet-4-5"),
        db=_db,
        add_history_to_context=True,
        num_history_runs=1_000,
        telemetry=False,
    )


async def turn(user: str, session: str, prompt: str) -> str:
    """Run the agent once in the session."""
    result = await _agent().arun(prompt, user_id=user, session_id=f"{user}/{session}")
    return str(result.content)


def history(user: str, session: str) -> list[str]:
    """Return the user's messages of the saved session."""
    found = _agent().get_session(session_id=f"{user}/{session}")
    if found is None:
        return []
    return [
        str(message.content)
        for run in found.runs or ()
        for message in run.messages or ()
        if message.role == "user" and not message.from_history
    ]
