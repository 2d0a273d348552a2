"""OpenAI Agents SDK with its SQLite session and its default model interface (Responses).

Source: https://openai.github.io/openai-agents-python/sessions/ (SQLiteSession).
"""

from __future__ import annotations

import json
import os
from importlib.metadata import version
from pathlib import Path

from agents import Agent, Runner, SQLiteSession

__all__ = ["DECLARES", "ENVIRONMENT", "REQUIRES", "history", "turn"]

ENVIRONMENT = "openai-agents"
REQUIRES = ("openai-agents==0.24.0",)
DECLARES = {
    "version": version("openai-agents"),
    "promises": ["apart", "kept", "whole", "ordered", "durable", "service"],
    "notes": "The SDK promises that a session keeps the conversation between runs; it does not "
    "promise that two runs of one session are serial.",
}

_agent = Agent(name="assistant", instructions="Be brief.", model="gpt-5")


def _session(user: str, session: str) -> SQLiteSession:
    file = Path(os.environ["KODE_LAB_DATA"]) / "sessions.sqlite"
    return SQLiteSession(json.dumps([user, session]), file)


async def turn(user: str, session: str, prompt: str) -> str:
    """Run the agent once on the session."""
    result = await Runner.run(_agent, prompt, session=_session(user, session))
    return str(result.final_output)


async def history(user: str, session: str) -> list[str]:
    """Return the user's items of the session."""
    items = await _session(user, session).get_items()
    return [str(item.get("content")) for item in items if item.get("role") == "user"]
