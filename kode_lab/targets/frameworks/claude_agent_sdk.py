"""Claude Agent SDK: each turn is a query that resumes the session by its id.

Source: https://docs.claude.com/en/api/agent-sdk/sessions (resume).
"""

from __future__ import annotations

import os
from importlib.metadata import version
from pathlib import Path
from typing import Any

from claude_agent_sdk import ClaudeAgentOptions, ResultMessage, query

__all__ = ["DECLARES", "ENVIRONMENT", "REQUIRES", "turn"]

ENVIRONMENT = "claude-agent-sdk"
REQUIRES = ("claude-agent-sdk==0.2.189",)
DECLARES = {
    "version": version("claude-agent-sdk"),
    "is_heavy": True,
    "notes": "A session is resumed by its id; each query is a process of the command-line client.",
}

_home = Path(os.environ["KODE_LAB_DATA"])
_ids: dict[tuple[str, str], str] = {}


async def turn(user: str, session: str, prompt: str) -> str:
    """Ask once, resuming the session that the last answer named."""
    options: dict[str, Any] = {"cwd": _home, "env": {"HOME": str(_home)}, "max_turns": 1}
    if (session_id := _ids.get((user, session))) is not None:
        options["resume"] = session_id
    said = ""
    async for message in query(prompt=prompt, options=ClaudeAgentOptions(**options)):
        if isinstance(message, ResultMessage):
            _ids[user, session] = message.session_id
            said = message.result or ""
    return said
