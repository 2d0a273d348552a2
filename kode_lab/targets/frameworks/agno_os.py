"""Agno's AgentOS over HTTP: its FastAPI application, an agent, its SQLite database.

Run as a script it serves the agent, with the AG-UI and A2A interfaces too: ``agno-agui`` and
``agno-a2a`` ask the same application through them.

Source: https://docs.agno.com/agent-os/introduction (AgentOS, get_app) and
https://docs.agno.com/agent-os/api (agents/{id}/runs, sessions/{id}/runs).
"""

from __future__ import annotations

import sys
from pathlib import Path

__all__ = ["DESCRIPTION", "ENVIRONMENT", "REQUIRES"]

ENVIRONMENT = "agno-os"
REQUIRES = ("agno[os,a2a,agui]==3.1.10", "anthropic", "sqlalchemy[asyncio]", "aiosqlite")
DESCRIPTION = """
version = "3.1.10"
url = "http://127.0.0.1:{port}"
start = "{python} {here}/agno_os.py {port} {data}"
ready = "/health"
ready_s = 90

[turn]
path = "/agents/assistant/runs"
form = { message = "{prompt}", stream = "false", session_id = "{session_uuid}", user_id = "{user}" }
reply = "$.content"

[[turn.rules]]
outcome = "info"
path = "$.status"
values = ["ERROR", "CANCELLED", "PAUSED"]

[history]
path = "/sessions/{session_uuid}/runs?type=agent&user_id={user}"
items = "$"
text = "$.run_input"

[declares]
durable = true
notes = "num_history_runs is 1000 here; the default shows the model the last 3 runs."
"""


def _serve(port: str, data: str) -> None:
    from agno.agent import Agent  # noqa: PLC0415 - the framework's own environment has it
    from agno.db.sqlite import SqliteDb  # noqa: PLC0415
    from agno.models.anthropic import Claude  # noqa: PLC0415
    from agno.os import AgentOS  # noqa: PLC0415
    from agno.os.interfaces.a2a import A2A  # noqa: PLC0415
    from agno.os.interfaces.agui import AGUI  # noqa: PLC0415

    agent = Agent(
        id="assistant",
        model=Claude(id="claude-sonnet-4-5"),
        db=SqliteDb(db_file=str(Path(data) / "agno.sqlite")),
        add_history_to_context=True,
        num_history_runs=1_000,
        telemetry=False,
    )
    interfaces = [AGUI(agent=agent), A2A(agents=[agent])]
    system = AgentOS(agents=[agent], interfaces=interfaces, telemetry=False)
    system.serve(system.get_app(), host="127.0.0.1", port=int(port), reload=False)


if __name__ == "__main__":
    _serve(*sys.argv[1:3])
