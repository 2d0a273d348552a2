"""What an acknowledged turn gave, read from the conversation that it is now part of.

A turn that has just ended and one that ended long ago are read the same way, so a turn sent again
gives the same reply.
"""

from __future__ import annotations

from typing import NamedTuple

from kode_lab.errors import Superseded
from kode_lab.message import Reply, ToolCall, Usage, tool_calls_of
from kode_lab.sessions.open_turn import Finished
from kode_lab.sessions.residents import Agent

__all__ = ["TurnReply", "reply_of"]


class TurnReply(NamedTuple):
    """What an acknowledged turn gave.

    Attributes:
        text: the final reply.
        tool_calls: all that the turn made, in order.
        usage: tokens of all its model calls.
        config_version: of the configuration that it began with.
        is_replay: it had finished before, and this is its saved reply.
    """

    turn_id: str
    text: str
    tool_calls: tuple[ToolCall, ...]
    usage: Usage
    config_version: str
    is_replay: bool


def reply_of(agent: Agent, finished: Finished, *, is_replay: bool) -> TurnReply:
    """Return the reply of a turn that is in the conversation.

    Raises:
        Superseded: it was broken off and closed: there is no reply.
    """
    if finished.is_rewound:
        raise Superseded(
            f"{agent.key}: turn {finished.turn_id!r} was removed by a rewind, and its tools may "
            "have acted: send it with a new turnId"
        )
    if finished.is_sealed:
        raise Superseded(
            f"{agent.key}: turn {finished.turn_id!r} was broken off and closed; "
            "what it did stays in the conversation: send it with a new turnId"
        )
    messages = agent.conversation.messages(finished.first, finished.last + 1)
    reply = Reply(tuple(messages[-1]["content"]), "end_turn")
    calls = [
        call
        for message in messages
        if message["role"] == "assistant" and isinstance(message["content"], list)
        for call in tool_calls_of(message["content"])
    ]
    return TurnReply(
        finished.turn_id, reply.text, tuple(calls), finished.usage, finished.version, is_replay
    )
