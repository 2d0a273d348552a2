"""Strands Agents with its file session manager: an agent made for each request of a session.

Source: https://strandsagents.com/latest/user-guide/concepts/agents/session-management/
"""

from __future__ import annotations

import asyncio
import os
from hashlib import sha256
from importlib.metadata import version

from strands import Agent
from strands.models.anthropic import AnthropicModel
from strands.session.file_session_manager import FileSessionManager

__all__ = ["DECLARES", "ENVIRONMENT", "REQUIRES", "history", "turn"]

ENVIRONMENT = "strands"
REQUIRES = ("strands-agents[anthropic]==1.62.0",)
DECLARES = {
    "version": version("strands-agents"),
    "promises": ["apart", "kept", "whole", "ordered", "durable", "service"],
    "notes": "The documentation makes one agent a session; a web handler makes one a request, as "
    "here. Within one agent a second call is refused by the SDK itself.",
}


def _agent(user: str, session: str) -> Agent:
    name = sha256(f"{user}\0{session}".encode()).hexdigest()[:24]
    keeper = FileSessionManager(session_id=name, storage_dir=os.environ["KODE_LAB_DATA"])
    model = AnthropicModel(model_id="claude-sonnet-4-5", max_tokens=1_000)
    return Agent(agent_id="assistant", model=model, session_manager=keeper, callback_handler=None)


async def turn(user: str, session: str, prompt: str) -> str:
    """Make the session's agent from its files, and ask it once."""
    agent = await asyncio.to_thread(_agent, user, session)
    return str(await agent.invoke_async(prompt))


def history(user: str, session: str) -> list[str]:
    """Return the user's messages of an agent made from the session's files."""
    return [
        block["text"]
        for message in _agent(user, session).messages
        if message["role"] == "user"
        for block in message["content"]
        if "text" in block
    ]
