"""One turn: ask the model, use the tools that it asks for, ask again, commit; and its reply.

A turn can begin in the middle, because a session knows what was done before: the same loop runs a
new turn and one that a crash interrupted. A reply is always read from the conversation, so a turn
that is sent again returns what it returned the first time. This module must not know stores.
"""

from __future__ import annotations

import copy
from typing import NamedTuple

from kode_lab.errors import Superseded
from kode_lab.message import Reply, ToolCall, Usage, tool_calls_of
from kode_lab.sessions.open_turn import Finished
from kode_lab.sessions.residents import Agent
from kode_lab.sessions.session import Session

__all__ = ["TurnReply", "reply_of", "take_turn"]


class TurnReply(NamedTuple):
    """The reply of an acknowledged turn.

    Attributes:
        text: the text of the final reply.
        tool_calls: all tool calls of the turn, in order.
        usage: tokens of all its model calls.
        config_version: of the configuration that it began with.
        is_replay: it had finished before, and this is its saved reply.
        stop_reason: why the final reply ended: ``end_turn``, or why it is not whole
            (``max_tokens``, ``refusal``, ``model_context_window_exceeded``, ...); ``unknown`` for
            turns that an older version saved.
    """

    turn_id: str
    text: str
    tool_calls: tuple[ToolCall, ...]
    usage: Usage
    config_version: str
    is_replay: bool
    stop_reason: str = "end_turn"


async def take_turn(session: Session) -> None:
    """Run the session's open turn to its end; afterwards it is in the conversation.

    Raises:
        TurnFailed: the model, the step limit or the deadline ended it; its steps are kept.
        StoreError: the session's storage cannot be used.
    """
    while not session.is_answered:
        if session.calls:
            await session.use()
        else:
            await session.ask()
    await session.commit()


def reply_of(agent: Agent, finished: Finished, *, is_replay: bool) -> TurnReply:
    """Return the reply of a turn that is in the conversation.

    Raises:
        Superseded: it was interrupted and closed: there is no reply.
    """
    if finished.is_sealed:
        raise Superseded(
            f"{agent.key}: turn {finished.turn_id!r} was interrupted and closed; "
            "what it did stays in the conversation: send the prompt with a new turnId"
        )
    messages = agent.messages[finished.first : finished.last + 1]
    reply = Reply(tuple(messages[-1]["content"]), finished.stop_reason)
    calls = [  # copies: the caller may change them
        call._replace(input=copy.deepcopy(call.input))
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
        finished.stop_reason,
    )
