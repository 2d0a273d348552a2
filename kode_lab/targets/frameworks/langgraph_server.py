"""LangGraph Server: the development server that ``langgraph dev`` starts, in memory, over HTTP.

``langgraph-server@reject`` (and ``@interrupt``, ``@rollback``) sets what a second run of a busy
thread does; without it, ``enqueue`` is the server's default.

Source: https://docs.langchain.com/langsmith/double-texting (multitask_strategy) and
https://docs.langchain.com/langsmith/server-api-ref (threads, runs/wait).
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

__all__ = ["DESCRIPTION", "ENVIRONMENT", "REQUIRES", "SETTINGS"]

ENVIRONMENT = "langgraph-server"
REQUIRES = ("langgraph-api==0.16.7", "langgraph-cli[inmem]==0.4.40", "langchain-anthropic==1.7.10")
SETTINGS = ("enqueue", "reject", "interrupt", "rollback")
DESCRIPTION = """
version = "0.16.7"
url = "http://127.0.0.1:{port}"
start = "{python} {here}/langgraph_server.py {port} {data}"
ready = "/ok"
ready_s = 90

[setup.session]
path = "/threads"
body = { thread_id = "{session_uuid}", if_exists = "do_nothing" }

[turn]
path = "/threads/{session_uuid}/runs/wait"
reply = "$.messages[-1].content"

[turn.body]
assistant_id = "agent"
multitask_strategy = "{setting}"
input = { messages = [{ role = "user", content = "{prompt}" }] }

[[turn.rules]]
outcome = "info"
path = "$.__error__"

[history]
path = "/threads/{session_uuid}/state"
items = "$.values.messages"
role = "$.type"

[declares]
strategy = "{setting}"
notes = "The development server keeps threads in memory and has one worker of ten jobs."
"""


def graph() -> Any:
    """Return the graph: one node that asks the model. The server brings its checkpointer."""
    from langchain_anthropic import ChatAnthropic  # noqa: PLC0415
    from langgraph.graph import START, MessagesState, StateGraph  # noqa: PLC0415

    model = ChatAnthropic(model="claude-sonnet-4-5", max_tokens=1_000)

    async def call(state: MessagesState) -> dict[str, Any]:
        return {"messages": [await model.ainvoke(state["messages"])]}

    return StateGraph(MessagesState).add_node("call", call).add_edge(START, "call").compile()


def _serve(port: str, data: str) -> None:
    directory = Path(data)
    file = directory / "langgraph.json"
    graphs = {"agent": f"{Path(__file__).resolve()}:graph"}
    file.write_text(json.dumps({"dependencies": ["."], "graphs": graphs}))
    os.chdir(directory)
    command = Path(sys.executable).with_name("langgraph")
    words = ("dev", "--port", port, "--config", str(file), "--no-browser", "--no-reload")
    os.execv(command, [str(command), *words])  # noqa: S606 - our own words


if __name__ == "__main__":
    _serve(*sys.argv[1:3])
