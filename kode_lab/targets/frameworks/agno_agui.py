"""The AG-UI protocol, as Agno's AgentOS serves it: a run is a stream of events.

The client sends the new message alone; the server has the rest of the thread.

Source: https://docs.ag-ui.com/concepts/events (RUN_STARTED, TEXT_MESSAGE_CONTENT, RUN_FINISHED) and
https://docs.agno.com/agent-os/interfaces/ag-ui/introduction.
"""

from __future__ import annotations

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
path = "/agui"

[turn.body]
threadId = "{session_uuid}"
runId = "{turn_uuid}"
state = {}
messages = [{ id = "{turn_uuid}", role = "user", content = "{prompt}" }]
tools = []
context = []
forwardedProps = { user_id = "{user}" }

[turn.stream]
when = { path = "$.type", value = "TEXT_MESSAGE_CONTENT" }
text = "$.delta"
done = { path = "$.type", value = "RUN_FINISHED" }
failed = { path = "$.type", value = "RUN_ERROR" }

[history]
path = "/sessions/{session_uuid}/runs?type=agent"
items = "$"
text = "$.run_input"

[declares]
durable = true
"""
