"""LangGraph with its in-memory checkpointer: one graph, one thread a session.

Source: https://docs.langchain.com/oss/python/langgraph/persistence (threads and checkpointers).
"""

from __future__ import annotations

import json
from importlib.metadata import version
from typing import Any

from langchain_anthropic import ChatAnthropic
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import START, MessagesState, StateGraph

__all__ = ["DECLARES", "ENVIRONMENT", "REQUIRES", "history", "turn"]

ENVIRONMENT = "langgraph"
REQUIRES = (
    "langgraph==1.2.24",
    "langgraph-checkpoint-sqlite==3.1.2",
    "langchain-anthropic==1.7.10",
)
DECLARES = {
    "version": version("langgraph"),
    "notes": "LangGraph promises durable threads, not turns of one thread one after another; its "
    "platform (LangGraph Server) has strategies for a second turn.",
}

_model = ChatAnthropic(model="claude-sonnet-4-5", max_tokens=1_000)


async def _call(state: MessagesState) -> dict[str, Any]:
    return {"messages": [await _model.ainvoke(state["messages"])]}


_graph = (
    StateGraph(MessagesState)
    .add_node("call", _call)
    .add_edge(START, "call")
    .compile(checkpointer=InMemorySaver())
)


def _thread(user: str, session: str) -> Any:
    return {"configurable": {"thread_id": json.dumps([user, session])}}


async def turn(user: str, session: str, prompt: str) -> str:
    """Run the graph once on the session's thread."""
    state = await _graph.ainvoke({"messages": [("user", prompt)]}, _thread(user, session))
    return str(state["messages"][-1].content)


async def history(user: str, session: str) -> list[str]:
    """Return the human messages of the thread's state."""
    state = await _graph.aget_state(_thread(user, session))
    return [str(m.content) for m in state.values.get("messages", ()) if m.type == "human"]
