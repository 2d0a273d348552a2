"""All that a holder may do with a session: ask the model, use its tools, commit the turn.

A ``Session`` exists only while its lease is held; it is the one argument through which a turn
gets the world. Each step is journalled before the next one starts, and leaves one span. It does
not decide what comes next (``turn``), who holds when (``manager``), or how anything is stored
(``store``).
"""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

from kode_lab.errors import ModelGarbage, StepLimitReached
from kode_lab.history.span import Span, Trace
from kode_lab.message import (
    Model,
    Reply,
    Request,
    ToolCall,
    ToolResult,
    Usage,
    assistant,
    tool_calls_of,
)
from kode_lab.sessions.agent import AgentConfig
from kode_lab.sessions.conversation import encode
from kode_lab.sessions.open_turn import Finished, OpenTurn
from kode_lab.sessions.residents import Agent
from kode_lab.sessions.store import Lease, Store
from kode_lab.sessions.tool import ToolContext, use

__all__ = ["Session", "TurnEvent"]

# As much of a tool's result as a picture or a table can show.
_SHOWN_CHARS = 200
_EMPTY_REPLY = "(The reply was empty.)"
# As many digits as only a number near the end of 64 bits has.
_LONG_NUMBER = re.compile(r"\d{19}")


class TurnEvent(NamedTuple):
    """Something that a watcher of a turn is told while it runs.

    Attributes:
        data: nothing for ``started``, the piece for ``text``, the ``ToolCall``, the ``ToolResult``.
    """

    kind: Literal["started", "text", "tool_call", "tool_result"]
    data: Any = None


class Session:
    """One held session and its open turn.

    Attributes:
        finished: how the turn ended, once it is in the conversation.
        is_committing: the turn is being appended, or was: it can no longer be taken back.
    """

    __slots__ = (
        "_agent",
        "_config",
        "_last_steps",
        "_lease",
        "_model",
        "_on_event",
        "_store",
        "_trace",
        "_turn",
        "finished",
        "is_committing",
    )

    def __init__(
        self,
        lease: Lease,
        store: Store,
        agent: Agent,
        turn: OpenTurn,
        config: AgentConfig,
        model: Model,
        trace: Trace | None,
        on_event: Callable[[TurnEvent], None] | None,
    ) -> None:
        self._lease = lease
        self._store = store
        self._agent = agent
        self._turn = turn
        self._config = config
        self._model = model
        self._trace = trace
        self._on_event = on_event
        self._last_steps: list[dict[str, Any]] = []
        self.finished: Finished | None = None
        self.is_committing = False

    @property
    def is_answered(self) -> bool:
        """Whether the model has given its final reply."""
        return self._turn.is_answered

    @property
    def calls(self) -> tuple[ToolCall, ...]:
        """The tool calls that wait for their results."""
        return self._turn.calls

    async def ask(self) -> None:
        """Ask the model with all that was said before, and journal its reply.

        Raises:
            StepLimitReached: the agent's ``step_limit`` of model calls is used up.
            ModelRefused, ModelUnavailable, ModelGarbage: there is no reply.
        """
        config, turn = self._config, self._turn
        if turn.steps >= config.step_limit:
            raise StepLimitReached(
                f"{self._lease.key}: the model still asks for tools after {turn.steps} replies, "
                f"step_limit={config.step_limit}: raise it, or look at what the tools answer"
            )
        request = Request(
            config.model,
            config.system,
            self._agent.conversation.shown(turn.encoded),
            config.tool_specs,
            config.max_tokens,
            config.temperature,
        )
        start_ns = time.monotonic_ns()
        attributes: dict[str, Any] = {"gen_ai.request.model": config.model}
        try:
            reply = await self._model(request, self._on_text if self._on_event else None)
            _check(reply, turn, self._agent)
        except BaseException as error:
            self._span("ask", start_ns, attributes, error)
            raise
        attributes["gen_ai.usage.input_tokens"] = reply.usage.input_tokens
        attributes["gen_ai.usage.output_tokens"] = reply.usage.output_tokens
        attributes["gen_ai.response.finish_reasons"] = [reply.stop_reason]
        self._span("ask", start_ns, attributes)
        await self._keep_reply(reply)

    async def use(self) -> None:
        """Use the tools that the last reply asked for, all at once, and journal each result."""
        calls = self._turn.calls
        if len(calls) == 1:
            await self._use_one(calls[0])
            return
        try:
            async with asyncio.TaskGroup() as group:
                for call in calls:
                    group.create_task(self._use_one(call))
        except BaseExceptionGroup as failed:  # a tool's failure is a result: this is the store's
            raise failed.exceptions[0] from None

    async def commit(self) -> None:
        """Append the turn to the conversation, all or nothing; then it is acknowledged.

        Raises:
            StaleLease: somebody held the session since; nothing was appended.
            StoreUnwritable: the disk refused.
        """
        start_ns = time.monotonic_ns()
        self.is_committing = True
        try:
            self.finished = await self._store.append(self._lease, self._turn, self._last_steps)
        except BaseException as error:
            self._span("commit", start_ns, {}, error)
            raise
        self._agent.took(self._turn, self.finished)
        self._span("commit", start_ns, {"kode_lab.messages": len(self._turn.messages)})

    async def _keep_reply(self, reply: Reply) -> None:
        turn = self._turn
        # The Messages API takes no blank text back.
        said = [b for b in reply.content if b["type"] != "text" or b["text"].strip()]
        message = assistant(said or _EMPTY_REPLY)
        turn.add_reply(message, reply.usage)
        entry = turn.reply_entry(message, reply.usage)
        if turn.is_answered:
            self._last_steps.append(entry)  # goes down with the commit, which is the next step
            return
        if reply.stop_reason == "max_tokens":  # with the reply, or a crash between lets them run
            cut = f"Not run: the reply was cut off at max_tokens={self._config.max_tokens}."
            turn.refuse_calls(cut)
            entry["not_run"] = cut
        await self._store.journal(self._lease, turn, entry)

    async def _use_one(self, call: ToolCall) -> None:
        key, turn, config = self._lease.key, self._turn, self._config
        # Clients count turns anew in each session, and models the calls in each conversation.
        once = encode([*key, turn.turn_id, call.id]).decode()
        context = ToolContext(key, turn.turn_id, call.id, once)
        turn.begun.add(call.id)
        self._tell("tool_call", call)
        start_ns = time.monotonic_ns()
        attributes: dict[str, Any] = {"gen_ai.tool.name": call.name, "gen_ai.tool.call.id": call.id}
        tool = config.tool(call.name)
        try:
            result = await use(tool, call, context, config.tool_timeout_s, known=config.tool_names)
        except BaseException as error:
            self._span("tool", start_ns, attributes, error)
            raise
        attributes["kode_lab.tool.result"] = result.content[:_SHOWN_CHARS]
        attributes["kode_lab.tool.is_error"] = result.is_error
        self._span("tool", start_ns, attributes)
        await self._keep_result(result)
        self._tell("tool_result", result)

    async def _keep_result(self, result: ToolResult) -> None:
        self._turn.add_result(result)
        await self._store.journal(self._lease, self._turn, self._turn.result_entry(result))

    def _on_text(self, piece: str) -> None:
        self._tell("text", piece)

    def _tell(self, kind: Literal["text", "tool_call", "tool_result"], data: object) -> None:
        if self._on_event is not None:
            self._on_event(TurnEvent(kind, data))

    def _span(
        self,
        step: str,
        start_ns: int,
        attributes: Mapping[str, Any],
        error: BaseException | None = None,
    ) -> None:
        if self._trace is not None:
            name = None if error is None else type(error).__name__
            end_ns = time.monotonic_ns()
            self._trace(
                Span(self._lease.key, self._turn.turn_id, step, start_ns, end_ns, attributes, name)
            )


def _check(reply: object, turn: OpenTurn, agent: Agent) -> None:
    """Refuse what would make the conversation illegal for ever."""
    if not isinstance(reply, Reply) or not isinstance(reply.content, tuple | list):
        raise ModelGarbage(f"the model gave {reply!r:.80}, not a Reply with its blocks")
    if not isinstance(reply.usage, Usage):
        raise ModelGarbage(f"the usage of a reply is a Usage, not {reply.usage!r:.80}")
    asked = _checked_calls(reply)
    if asked:
        used = {c.id for message in turn.messages[1::2] for c in tool_calls_of(message["content"])}
        if twice := (asked & used) | (asked & agent.call_ids):
            raise ModelGarbage(f"a tool call needs an id of its own, {min(twice)!r:.40} was used")
    rich = [block for block in reply.content if len(block) > 2 or "text" not in block]
    try:
        if rich:
            _check_json(rich)
    except (TypeError, ValueError, RecursionError) as error:
        raise ModelGarbage(f"the reply cannot be stored as JSON: {error}") from None


def _check_json(value: object) -> None:
    """Refuse what would not be read as it was written: NaN, infinities, numbers past 64 bits."""
    text = json.dumps(value, allow_nan=False)
    if _LONG_NUMBER.search(text):
        json.loads(text, parse_int=_checked_integer)


def _checked_integer(digits: str) -> int:
    value = int(digits)
    if not -(2**63) <= value < 2**64:
        raise ValueError(f"{digits:.40} does not fit 64 bits")
    return value


def _checked_calls(reply: Reply) -> set[str]:
    """Return the ids of the tool calls of a reply whose blocks are blocks."""
    asked: set[str] = set()
    for block in reply.content:
        kind = block.get("type") if isinstance(block, dict) else None
        if not isinstance(kind, str) or kind == "tool_result":
            raise ModelGarbage(f"a content block is an object with a type, not {block!r:.80}")
        if kind == "text" and not isinstance(block.get("text"), str):
            raise ModelGarbage(f"a text block has a text, not {block!r:.80}")
        if kind == "tool_use":
            _check_call(block, asked)
    return asked


def _check_call(block: Mapping[str, Any], asked: set[str]) -> None:
    call_id, name = block.get("id"), block.get("name")
    if not (isinstance(call_id, str) and isinstance(name, str)) or call_id in asked:
        raise ModelGarbage(f"a tool call needs a name and an id of its own: {block!r:.80}")
    if not isinstance(block.get("input"), dict):
        raise ModelGarbage(f"the input of tool call {call_id!r:.40} is not an object")
    asked.add(call_id)
