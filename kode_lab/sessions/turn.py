"""One turn: ask the model, use the tools it asks for, ask again, commit.

That is all a turn is. It can begin in the middle, because a session knows what was done before: the
same loop runs a new turn and one that a crash left behind.
"""

from __future__ import annotations

from kode_lab.sessions.session import Session

__all__ = ["take_turn"]


async def take_turn(session: Session) -> None:
    """Take the session's open turn to its end; when this returns, it is in the conversation.

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
