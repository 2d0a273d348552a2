"""The A2A protocol, as Agno's AgentOS serves it: ``message:send``, a session by its context id.

Source: https://a2a-protocol.org/latest/specification/ (contextId, Task, TaskState) and
https://docs.agno.com/agent-os/interfaces/a2a/introduction.
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
path = "/a2a/agents/assistant/v1/message:send"
headers = { X-User-ID = "{user}" }
reply = "$.result.history[-1].parts[*].text"

[turn.body]
jsonrpc = "2.0"
id = "{turn_id}"
method = "message/send"

[turn.body.params.message]
kind = "message"
role = "user"
messageId = "{turn_uuid}"
contextId = "{session_uuid}"
parts = [{ kind = "text", text = "{prompt}" }]

[[turn.rules]]
outcome = "info"
path = "$.error"

[[turn.rules]]
outcome = "info"
path = "$.result.status.state"
values = ["failed", "canceled", "rejected"]

[history]
path = "/sessions/{session_uuid}/runs?type=agent"
items = "$"
text = "$.run_input"

[declares]
durable = true
"""
