"""Tools that come with the package: another agent as a tool, and the memory of the user.

What they do is in ``ToolContext.ask`` and ``ToolContext.memory``; here are the words that the model
reads. This module must not know the manager.
"""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

from kode_lab.sessions.tool import Pending, Tool, ToolContext, tool_of

__all__ = ["memory_tools", "sub_agent"]

# The end of the asking turn ends the other one; this only keeps the agent's limit for tools away.
_LIMIT_S = 86_400.0


def sub_agent(agent_id: str, description: str = "") -> Tool:
    """Return the tool by which an agent asks another one, in a child session of its own session.

    Args:
        agent_id: the other agent; the tool has its name, with ``_`` for what a name may not hold.
        description: what the model is told that the agent is for.

    Raises:
        InvalidTool: the name cannot be used.
    """

    async def ask(task: str, context: ToolContext) -> str | Pending:
        return await context.ask(agent_id, task)

    ask.__name__ = re.sub(r"[^a-zA-Z0-9_-]", "_", agent_id)
    ask.__doc__ = f"""{description or f"Ask the agent {agent_id}, and return what it answers."}

    Args:
        task: What it is to do, with all that it must know: it does not see this conversation.
    """
    return replace(tool_of(ask), limit_s=_LIMIT_S)


def memory_tools() -> tuple[Tool, ...]:
    """Return the tools ``remember``, ``recall`` and ``forget`` for the memory of the user."""
    return tuple(map(tool_of, (remember, recall, forget)))


async def remember(name: str, text: str, context: ToolContext) -> str:
    """Remember something about the user, in all of their conversations.

    Args:
        name: A short name of what it is about; what was there under this name is replaced.
        text: What to remember.
        context: Whose memory it is.
    """
    await context.memory.put(name, text)
    return f"remembered {name}"


async def recall(context: ToolContext, name: str | None = None) -> dict[str, Any]:
    """Return what is remembered about the user.

    Args:
        context: Whose memory it is.
        name: Only the entry of this name; without it, all entries.
    """
    found = await context.memory.read()
    return found if name is None else {own: found[own] for own in found if own == name}


async def forget(name: str, context: ToolContext) -> str:
    """Forget what is remembered about the user under a name.

    Args:
        name: The name.
        context: Whose memory it is.
    """
    await context.memory.remove(name)
    return f"forgot {name}"
