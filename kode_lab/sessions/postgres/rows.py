"""Turns and steps as rows of PostgreSQL, and back.

The one place that knows what a row holds. It asks nothing of the database and decides nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from kode_lab.message import Message, Usage
from kode_lab.sessions.files.format import decode, encode
from kode_lab.sessions.open_turn import Finished, OpenTurn
from kode_lab.sessions.store import Stored

__all__ = ["Known", "Row", "step_row", "stored_of", "text", "turn_row", "untext"]


class Known:
    """Where a conversation stands in the database, as its holder knows it.

    Attributes:
        id: the conversation's number.
        turns: how many it has.
        messages: how many these hold.
        steps: rows of its unfinished turn.
    """

    __slots__ = ("id", "messages", "steps", "turns")

    def __init__(self, number: int) -> None:
        self.id = number
        self.turns = self.messages = self.steps = 0


class Row(NamedTuple):
    """A step or a turn on its way, in the order of ``save``'s arguments."""

    session: int
    fence: int
    conversation: int
    number: int
    turn_id: str | None
    first: int
    last: int
    is_sealed: bool
    version: str
    input_tokens: int
    output_tokens: int
    body: str
    steps: int


def step_row(session: int, fence: int, known: Known, entries: Sequence[dict[str, Any]]) -> Row:
    """Return the row of one or more entries of the journal."""
    body = encode(entries).decode()
    return Row(session, fence, known.id, known.steps, None, 0, 0, False, "", 0, 0, body, 0)


def turn_row(session: int, fence: int, known: Known, turn: OpenTurn) -> Row:
    """Return the row of a finished turn."""
    last = known.messages + len(turn.messages) - 1
    return Row(
        session,
        fence,
        known.id,
        known.turns,
        text(turn.turn_id),
        known.messages,
        last,
        turn.is_sealed,
        text(turn.version),
        turn.usage.input_tokens,
        turn.usage.output_tokens,
        encode(turn.messages).decode(),
        known.steps,
    )


def stored_of(rows: Sequence[Any]) -> tuple[Stored, Known]:
    """Return what the rows of one conversation say, and where it stands.

    Raises:
        ValueError, KeyError, TypeError, IndexError: it is not what this store writes.
    """
    known = Known(rows[0]["conversation"])
    messages: list[Message] = []
    finished: dict[str, Finished] = {}
    open_turn: OpenTurn | None = None
    for row in rows[1:]:
        body = decode(row["body"].encode())
        if row["kind"] == "t":
            if row["first"] != len(messages) or row["number"] != known.turns:
                raise ValueError(f"turn {row['number']} does not follow the one before")
            messages.extend(body)
            turn_id = untext(row["turn_id"])
            usage = Usage(row["input_tokens"], row["output_tokens"])
            facts = (row["first"], row["last"], row["is_sealed"], usage, untext(row["version"]))
            finished[turn_id] = Finished(turn_id, *facts)
            known.turns += 1
            continue
        known.steps += 1
        for entry in body:
            if open_turn is None:
                open_turn = OpenTurn.reopened(entry)
            else:
                open_turn.replay(entry)
    known.messages = len(messages)
    return Stored(messages, finished, open_turn), known


def text(word: str) -> str:
    """Return the word without NUL, which PostgreSQL's text cannot hold."""
    if "\0" in word or "\\" in word:
        return word.replace("\\", "\\\\").replace("\0", "\\0")
    return word


def untext(word: str) -> str:
    """Return what ``text`` was given."""
    if "\\" not in word:
        return word
    return "\\".join(part.replace("\\0", "\0") for part in word.split("\\\\"))
