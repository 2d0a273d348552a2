"""One turn on its way: what was asked, what is answered, and whether it was told to end.

A ticket exists from admission to the end of the call, waiting included; its ``Session`` exists only
while the lease is held. What a caller passes is checked here.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Sequence
from itertools import count
from typing import Any, Literal, NamedTuple

import orjson

from kode_lab.errors import InvalidPrompt, Superseded
from kode_lab.key import SessionKey
from kode_lab.message import Block, Content, ToolCall, Usage
from kode_lab.sessions.agent import STRATEGIES, AgentConfig, Strategy

__all__ = [
    "DEADLINE_LIMIT_S",
    "NOT_OF_A_USER",
    "PROMPT_BLOCKS_LIMIT",
    "PROMPT_LIMIT_BYTES",
    "PROMPT_LIMIT_CHARS",
    "TURN_ID_LIMIT_CHARS",
    "ApprovalNeeded",
    "Steered",
    "Ticket",
    "TurnEvent",
    "TurnReply",
    "checked_deadline",
    "checked_turn_id",
    "new_turn_id",
]

PROMPT_LIMIT_CHARS = 1_000_000
# Of a prompt of content blocks, as JSON: the Messages API accepts requests of 32 MB.
PROMPT_LIMIT_BYTES = 30_000_000
PROMPT_BLOCKS_LIMIT = 1_000
TURN_ID_LIMIT_CHARS = 200
DEADLINE_LIMIT_S = 30 * 86_400
NOT_OF_A_USER = ("tool_use", "tool_result", "thinking", "redacted_thinking", "server_tool_use",
                 "mcp_tool_use", "compaction")  # fmt: skip


class ApprovalNeeded(NamedTuple):
    """A tool call that waits for an approval; ``approve`` takes its ``call_id``."""

    call_id: str
    call: ToolCall
    question: str


class Steered(NamedTuple):
    """A prompt, by its turn id, that was given to the running turn ``into``."""

    turn_id: str
    into: str


class TurnEvent(NamedTuple):
    """An event of a running turn.

    Attributes:
        data: None for ``started``, the piece for ``text``, the ``ToolCall``, the ``ToolResult``,
            the ``ApprovalNeeded``, or for ``steered`` the ``Steered``, which both turns are told.
    """

    kind: Literal["started", "text", "tool_call", "tool_result", "approval_needed", "steered"]
    data: Any = None


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
        steered: the ids of the prompts that were given to the turn while it ran.
        into: the running turn that this prompt was given to, whose reply this is; else "".
    """

    turn_id: str
    text: str
    tool_calls: tuple[ToolCall, ...]
    usage: Usage
    config_version: str
    is_replay: bool
    stop_reason: str = "end_turn"
    steered: tuple[str, ...] = ()
    into: str = ""


_numbers = count()
_prefix = os.urandom(8).hex()


def _renew_prefix() -> None:
    """In a forked process: its ids must not be its parent's."""
    global _prefix  # noqa: PLW0603 - one for each process
    _prefix = os.urandom(8).hex()


os.register_at_fork(after_in_child=_renew_prefix)


def new_turn_id() -> str:
    """Return an id that no other turn has: a random prefix for each process, and a number."""
    return f"{_prefix}{next(_numbers):08x}"


class Ticket:
    """One turn of one session, from its admission to its end.

    Attributes:
        turn_id: the caller's, or a new one.
        config: the agent's configuration, looked at again when the turn begins.
        end_s: when its time ends, in the loop's time.
        task: the task that waits for the reply.
        superseded_by: how it was told to end, ``interrupt`` or ``rollback``; None if it was not.
        is_stopped: it was told so by ``stop``, not by a later turn.
        is_running: it holds the session.
        is_committing: it is being appended, or was: it can no longer be taken back.
        is_asked_away: its task was cancelled for that reason.
        is_expired: its time was up, and its task was cancelled for that.
        notes: turns whose prompts are to be given to this one at its next step.
        given: those that were; each waits for this turn's reply in its ``outcome``.

    Raises:
        InvalidPrompt: the prompt, the turn id or the strategy cannot be used.
    """

    __slots__ = (
        "_cancels", "config", "end_s", "given", "is_asked_away", "is_committing", "is_expired",
        "is_running", "is_stopped", "key", "notes", "on_event", "outcome", "prompt", "strategy",
        "superseded_by", "task", "turn_id",
    )  # fmt: skip

    def __init__(
        self,
        key: SessionKey,
        prompt: Content,
        turn_id: str | None,
        strategy: Strategy | None,
        config: AgentConfig,
        on_event: Callable[[TurnEvent], None] | None,
    ) -> None:
        self.key = key
        self.prompt = _checked_prompt(prompt)
        self.end_s: float | None = None
        self.turn_id = new_turn_id() if turn_id is None else checked_turn_id(turn_id)
        self.strategy = strategy or config.strategy
        if self.strategy not in STRATEGIES:
            raise InvalidPrompt(
                f"strategy {strategy!r:.40} is not valid: choose one of {', '.join(STRATEGIES)}"
            )
        self.config = config
        self.on_event = on_event
        self.task = asyncio.current_task()
        self.superseded_by: str | None = None
        self.is_asked_away = self.is_expired = self.is_stopped = False
        self.is_running = self.is_committing = False
        self.notes: list[Ticket] = []
        self.given: list[Ticket] = []
        self.outcome: asyncio.Future[TurnReply | None] | None = None
        self._cancels = 0 if self.task is None else self.task.cancelling()

    @property
    def takes_place(self) -> bool:
        """Whether it ends the turns of its session that came before."""
        return self.strategy in ("interrupt", "rollback")

    @property
    def queue_limit(self) -> int:
        """How many turns may wait before it; one that ends others waits at least for their end."""
        if self.strategy == "reject":
            return 0
        return max(self.config.queue_limit, self.takes_place)

    def expire_in(self, limit_s: float) -> asyncio.Handle:
        """End this turn after that time; return the timer, to be cancelled when it ends before.

        It does what ``asyncio.timeout`` does at a third of its cost of 4 us.
        """
        loop = asyncio.get_running_loop()
        self.end_s = loop.time() + limit_s
        if limit_s <= 0:
            return loop.call_soon(self._expire)  # no later than what the turn itself waits for
        return loop.call_later(limit_s, self._expire)

    def _expire(self) -> None:
        if self.task is not None:
            self.is_expired = True
            self.task.cancel()

    def ran_out(self) -> bool:
        """Take back the cancellation at the end of its time; return whether it was the only one."""
        was_expired, self.is_expired = self.is_expired, False
        return was_expired and self.task is not None and self.task.uncancel() <= self._cancels

    def gave_way(self) -> bool:
        """Take back the cancellation for a later turn; return whether it was the only one."""
        was_asked, self.is_asked_away = self.is_asked_away, False
        return was_asked and self.task is not None and self.task.uncancel() <= self._cancels

    def supersede(self, strategy: str, *, is_stop: bool = False) -> None:
        """End this turn for a later one or on request, unless it is being appended already."""
        if self.superseded_by is None and self.task is not None and not self.is_committing:
            self.superseded_by = strategy
            self.is_stopped = is_stop
            self.is_asked_away = True
            self.task.cancel()

    async def steer(self, running: Ticket) -> TurnReply | None:
        """Give the prompt to a running turn, and return the reply to both.

        None: the turn ended before it took the prompt, or failed; this one then continues alone.

        Raises:
            Superseded: the running turn was ended with this prompt in it.
        """
        self.outcome = asyncio.get_running_loop().create_future()
        running.notes.append(self)
        try:
            return await self.outcome
        finally:
            if self in running.notes:
                running.notes.remove(self)

    def go_alone(self) -> None:
        """End the waiting for another turn's reply: this one takes its own way."""
        if self.outcome is not None and not self.outcome.done():
            self.outcome.set_result(None)

    def hand_over(self, reply: TurnReply | None) -> None:
        """End the waiting of the turns whose prompts were, or should have been, given to this."""
        for one in (*self.notes, *self.given):
            if one.outcome is None or one.outcome.done():
                continue
            if one not in self.given or (reply is None and self.superseded_by is None):
                one.go_alone()
            elif reply is None:
                one.outcome.set_exception(
                    Superseded(
                        f"{self.key}: turn {self.turn_id!r:.60}, which was given this prompt, was "
                        f"ended ({self.superseded_by})",
                        into=self.turn_id,
                    )
                )
            else:
                one.outcome.set_result(
                    reply._replace(turn_id=one.turn_id, steered=(), into=reply.turn_id)
                )


def _checked_prompt(prompt: object) -> Content:
    """Return the prompt: text as it is, content blocks as a copy.

    Raises:
        InvalidPrompt: it is empty, too long, or holds what a user cannot say; names the block.
    """
    if isinstance(prompt, list | tuple):
        return _checked_blocks(prompt)
    if not isinstance(prompt, str) or not prompt.strip():
        raise InvalidPrompt("the prompt is empty or not text: send text or a list of blocks")
    if len(prompt) > PROMPT_LIMIT_CHARS:
        raise InvalidPrompt(
            f"the prompt has {len(prompt)} characters: shorten it to {PROMPT_LIMIT_CHARS=}"
        )
    _check_unicode("the prompt", prompt)
    return prompt


def _checked_blocks(blocks: Sequence[object]) -> list[Block]:
    if not 0 < len(blocks) <= PROMPT_BLOCKS_LIMIT:
        raise InvalidPrompt(
            f"the prompt has {len(blocks)} blocks: send 1 to {PROMPT_BLOCKS_LIMIT=} of them"
        )
    for at, block in enumerate(blocks):
        kind = block.get("type") if isinstance(block, dict) else None
        if not isinstance(block, dict) or not isinstance(kind, str):
            raise InvalidPrompt(f"block {at} of the prompt is not an object with a type")
        if kind in NOT_OF_A_USER or kind.endswith("_tool_result"):
            raise InvalidPrompt(
                f"block {at} of the prompt has type {kind:.60}, which only a model or a tool may "
                "say: send text, image, document, search_result or tool_reference blocks"
            )
        if kind == "text" and not isinstance(block.get("text"), str):
            raise InvalidPrompt(f"block {at} of the prompt has type text, and its text is no text")
        if kind == "text" and not block["text"].strip():
            raise InvalidPrompt(f"block {at} of the prompt is an empty text: leave it out")
    try:
        data = orjson.dumps(blocks)
        copy: list[Block] = orjson.loads(data)
    except (TypeError, orjson.JSONDecodeError) as error:
        raise InvalidPrompt(f"the prompt cannot be written as JSON: {error}") from None
    if len(data) > PROMPT_LIMIT_BYTES:
        raise InvalidPrompt(
            f"the prompt has {len(data)} bytes: shorten it to {PROMPT_LIMIT_BYTES=}"
        )
    if copy != list(blocks):  # NaN, infinity, a tuple
        raise InvalidPrompt("the prompt holds a value that JSON cannot hold: send finite numbers")
    return copy


def checked_turn_id(turn_id: object, name: str = "turnId") -> str:
    """Return the id of a turn or of a rewind, or an answer to an approval.

    Raises:
        InvalidPrompt: it is not text of 1 to ``TURN_ID_LIMIT_CHARS`` characters.
    """
    if not isinstance(turn_id, str) or not 0 < len(turn_id) <= TURN_ID_LIMIT_CHARS:
        raise InvalidPrompt(f"{name} must be text of 1 to {TURN_ID_LIMIT_CHARS=} characters")
    _check_unicode(name, turn_id)
    return turn_id


def checked_deadline(deadline_s: object) -> float:
    """Return the time that a caller allows a turn.

    Raises:
        InvalidPrompt: it is no number of seconds, or longer than ``DEADLINE_LIMIT_S``.
    """
    if isinstance(deadline_s, bool) or not isinstance(deadline_s, int | float):
        raise InvalidPrompt(f"deadline_s is {deadline_s!r:.40}: pass a number of seconds")
    if not deadline_s <= DEADLINE_LIMIT_S:  # NaN is not, either
        raise InvalidPrompt(f"deadline_s is {deadline_s!r:.40}: pass at most {DEADLINE_LIMIT_S=}")
    return deadline_s


def _check_unicode(what: str, text: str) -> None:
    """Refuse a lone surrogate: it could be neither stored nor sent."""
    if text.isascii():
        return
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InvalidPrompt(f"{what} is not valid Unicode at {error.start}: correct it") from None
