"""The reply of an acknowledged turn, read from the conversation that it is now part of.

A turn that has just ended and one that ended long ago are read the same way, so a turn that is sent
again returns what it returned the first time.
"""

from __future__ import annotations

from typing import NamedTuple

from kode_lab.errors import Superseded
from kode_lab.message import Reply, ToolCall, Usage, tool_calls_of
from kode_lab.sessions.open_turn import Finished
from kode_lab.sessions.residents import Agent

__all__ = ["TurnReply", "reply_of"]


class TurnReply(NamedTuple):
    """The reply of an acknowledged turn.

    Attributes:
        text: the text of the final reply.
        tool_calls: all tool calls of the turn, in order.
        usage: tokens of all its model calls.
        config_version: of the configuration that it began with.
        is_replay: it had finished before, and this is its saved reply.
        stop_reason: why the final reply ended: ``end_turn``, or why it is not whole
            (``max_tokens``, ``refusal``, ``model_context_window_exceeded``, ...).
    """

    turn_id: str
    text: str
    tool_calls: tuple[ToolCall, ...]
    usage: Usage
    config_version: str
    is_replay: bool
    stop_reason: str = "end_turn"


def reply_of(agent: Agent, finished: Finished, *, is_replay: bool) -> TurnReply:
    """Return the reply of a turn that is in the conversation.

    Raises:
        Superseded: it was interrupted, stopped or rewound: there is no reply.
    """
    if finished.is_rewound:
        raise Superseded(
            f"{agent.key}: turn {finished.turn_id!r} was removed by a rewind, and its tools may "
            "have acted: send it with a new turnId"
        )
    if finished.is_sealed:
        raise Superseded(
            f"{agent.key}: turn {finished.turn_id!r} was interrupted and closed; "
            "what it did stays in the conversation: send it with a new turnId"
        )
    stop_reason = finished.facts.get("stop_reason", "end_turn")
    messages = agent.conversation.messages(finished.first, finished.last + 1)
    reply = Reply(tuple(messages[-1]["content"]), stop_reason)
    calls = [
        call
        for message in messages
        if message["role"] == "assistant" and isinstance(message["content"], list)
        for call in tool_calls_of(message["content"])
    ]
    return TurnReply(
        finished.turn_id,
        reply.text,
        tuple(calls),
        finished.usage,
        finished.version,
        is_replay,
        stop_reason,
    )
