"""Google ADK: a runner with the database session service on SQLite.

Source: https://google.github.io/adk-docs/sessions/session/ (DatabaseSessionService).
"""

from __future__ import annotations

import os
from importlib.metadata import version
from pathlib import Path
from typing import Any

from google.adk.agents import LlmAgent
from google.adk.models.anthropic_llm import AnthropicLlm
from google.adk.runners import Runner
from google.adk.sessions import DatabaseSessionService
from google.genai import types

__all__ = ["DECLARES", "ENVIRONMENT", "REQUIRES", "history", "turn"]

ENVIRONMENT = "google-adk"
REQUIRES = ("google-adk[db]==2.13.0", "anthropic", "aiosqlite")
DECLARES = {
    "version": version("google-adk"),
    "promises": ["apart", "kept", "whole", "ordered", "durable", "service"],
}

_APP = "kode_lab"
_file = Path(os.environ["KODE_LAB_DATA"]) / "adk.sqlite"
_sessions = DatabaseSessionService(f"sqlite+aiosqlite:///{_file}")
_agent = LlmAgent(name="assistant", model=AnthropicLlm(model="claude-sonnet-4-5"))
_runner = Runner(app_name=_APP, agent=_agent, session_service=_sessions)


async def _session(user: str, session: str) -> Any:
    return await _sessions.get_session(app_name=_APP, user_id=user, session_id=session)


async def turn(user: str, session: str, prompt: str) -> str:
    """Run once in the session, which is created with its first turn."""
    if await _session(user, session) is None:
        try:
            await _sessions.create_session(app_name=_APP, user_id=user, session_id=session)
        except Exception:
            if await _session(user, session) is None:
                raise
    message = types.Content(role="user", parts=[types.Part(text=prompt)])
    said = ""
    async for event in _runner.run_async(user_id=user, session_id=session, new_message=message):
        if event.is_final_response() and event.content and event.content.parts:
            said = "".join(part.text or "" for part in event.content.parts)
    return said


async def history(user: str, session: str) -> list[str]:
    """Return the user's events of the session."""
    found = await _session(user, session)
    return [
        "".join(part.text or "" for part in event.content.parts or ())
        for event in (found.events if found is not None else ())
        if event.author == "user" and event.content
    ]
