"""Google ADK's own server, ``adk api_server``, with its sessions in SQLite.

``google-adk-server@memory`` keeps them in memory, the server's default.

Source: https://google.github.io/adk-docs/runtime/api-server/ (sessions, /run).
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

__all__ = ["DESCRIPTION", "ENVIRONMENT", "REQUIRES", "SETTINGS"]

ENVIRONMENT = "google-adk"
REQUIRES = ("google-adk[db]==2.13.0", "anthropic", "aiosqlite")
SETTINGS = ("sqlite", "memory")
DESCRIPTION = """
version = "2.13.0"
url = "http://127.0.0.1:{port}"
start = "{python} {here}/google_adk_server.py {port} {data} {setting}"
ready = "/health"
ready_s = 90

[setup.session]
path = "/apps/assistant/users/{user}/sessions/{session}"
body = {}

[turn]
path = "/run"
reply = "$[-1].content.parts[*].text"

[turn.body]
appName = "assistant"
userId = "{user}"
sessionId = "{session}"
newMessage = { role = "user", parts = [{ text = "{prompt}" }] }

[history]
path = "/apps/assistant/users/{user}/sessions/{session}"
items = "$.events"
role = "$.author"
text = "$.content.parts"
"""
_AGENT = """
from google.adk.agents import LlmAgent
from google.adk.models.anthropic_llm import AnthropicLlm

root_agent = LlmAgent(name="assistant", model=AnthropicLlm(model="claude-sonnet-4-5"))
"""


def _serve(port: str, data: str, setting: str) -> None:
    agents = Path(data) / "agents"
    (agents / "assistant").mkdir(parents=True, exist_ok=True)
    (agents / "assistant" / "__init__.py").touch()
    (agents / "assistant" / "agent.py").write_text(_AGENT)
    command = Path(sys.executable).with_name("adk")
    where = f"sqlite+aiosqlite:///{Path(data) / 'sessions.db'}"
    words = ["api_server", "--port", port]
    words += ["--session_service_uri", where if setting == "sqlite" else "memory://"]
    os.execv(command, [str(command), *words, str(agents)])  # noqa: S606 - our own words


if __name__ == "__main__":
    _serve(*sys.argv[1:4])
