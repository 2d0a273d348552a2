"""Everything that a turn may do with its session: ask the model, use its tools, commit.

A ``Session`` exists only while its lease is held; it is the one argument through which a turn
reaches the model, the tools and the store. Each step is journalled before the next one starts, and
leaves one span. This module must not know when a session is held (``manager``) or how anything is
stored (``store``).

What the model receives is built here from the record: the agent's context policy applies, and
thinking that another model signed is left out. The record itself is always whole.

Source: https://docs.anthropic.com/en/api/handling-stop-reasons (what each stop reason asks of a
client) and .../build-with-claude/extended-thinking (thinking blocks belong to their model).
"""

from __future__ import annotations

import asyncio
import inspect
import json
import re
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from itertools import groupby, islice
from typing import Any, Literal, cast

from kode_lab.errors import CallerError, ModelGarbage, ModelRefused, StepLimitReached, TurnPending
from kode_lab.history.span import Span, Trace
from kode_lab.key import SessionKey
from kode_lab.message import (
    CUT_OFF,
    Block,
    Message,
    Model,
    Reply,
    Request,
    ToolCall,
    ToolResult,
    Usage,
    assistant,
    has_thinking,
    tool_calls_of,
    user,
    without_thinking,
)
from kode_lab.sessions.agent import ContextPolicy
from kode_lab.sessions.conversation import Shown, encode
from kode_lab.sessions.open_turn import Finished, OpenTurn
from kode_lab.sessions.residents import Agent, UnknownCall
from kode_lab.sessions.store import Lease, Store
from kode_lab.sessions.ticket import ApprovalNeeded, Steered, Ticket, TurnEvent
from kode_lab.sessions.tool import Host, LoopLag, Pending, ToolContext, use

__all__ = ["Session", "checked_model"]

# As much of a tool's result as a picture or a table can show.
_SHOWN_CHARS = 200
# The Messages API accepts no empty message, and a person should see why there is no text.
_WORDS_FOR_NOTHING = {
    "refusal": "(The model refused to answer.)",
    "max_tokens": "(The reply was cut off at its token limit, before any text.)",
    "model_context_window_exceeded": "(The reply was cut off: the model's context is full.)",
}
_EMPTY_REPLY = "(The reply was empty.)"
_ALL = ContextPolicy()
_SUMMARY_TOKENS = 4096
_SUMMARISE = (
    "Summarise our conversation so far, so that you can continue it from the summary alone: facts, "
    "names, numbers and ids as they are, decisions, open questions, what was done by tools. Answer "
    "with the summary only, and use no tool."
)
# A rough but stable measure; English prose has about four.
_BYTES_PER_TOKEN = 4
# Only numbers near the end of 64 bits have so many digits.
_LONG_NUMBER = re.compile(r"\d{19}")
# What services write when a thinking block is not theirs, and when a conversation is too long.
_WRONG_SIGNATURE = re.compile(r"signature|thinking", re.IGNORECASE)
_TOO_LONG = re.compile(r"too long|too large|context (window|length)|token.* maximum", re.IGNORECASE)


def checked_model(model: object) -> Model:
    """Return the model if it can be called as one.

    Raises:
        CallerError: it is a class, cannot be called, or does not take ``(request, on_text)``.
    """
    expected = "pass an async function (request, on_text=None) -> Reply, or an open Claude"
    if isinstance(model, type):
        raise CallerError(
            f"model is the class {model.__name__}: make an object of it, or {expected}"
        )
    if not callable(model):
        raise CallerError(f"model is a {type(model).__name__}: {expected}")
    try:
        inspect.signature(model).bind(None, None)
    except TypeError as error:
        raise CallerError(f"model cannot be called as a model ({error}): {expected}") from None
    except ValueError:
        pass  # built in: it has no signature to look at
    return cast("Model", model)


class Session:
    """One held session and its open turn.

    Attributes:
        turn: the open turn.
    """

    __slots__ = (
        "_agent", "_config", "_earlier", "_host", "_lag", "_last_steps", "_lease", "_model",
        "_on_late", "_questions", "_store", "_ticket", "_trace", "turn",
    )  # fmt: skip

    def __init__(
        self,
        lease: Lease,
        store: Store,
        agent: Agent,
        turn: OpenTurn,
        ticket: Ticket,
        model: Model,
        trace: Trace | None,
        *,
        host: Host,
        lag: LoopLag,
        on_late: Callable[[SessionKey, ToolResult], None],
    ) -> None:
        """Set it up; ``on_late`` is called with the result of a tool that ends after its turn."""
        self._lease = lease
        self._store = store
        self._agent = agent
        self.turn = turn
        self._ticket = ticket
        self._config = ticket.config
        self._model = model
        self._trace = trace
        self._host = host
        self._lag = lag
        self._on_late = on_late
        self._questions: dict[str, str] = {}
        self._earlier: list[UnknownCall] | None = None
        self._last_steps: list[dict[str, Any]] = []

    async def run(self) -> Finished:
        """Ask the model and use its tools until it has answered; then append the turn.

        A prompt that was given to the turn meanwhile is said before the next question.

        Raises:
            StepLimitReached: the agent's ``step_limit`` of model calls is used up.
            ModelRefused, ModelUnavailable, ModelGarbage: there is no reply.
            TurnPending: a tool waits for an approval; the results of the others are journalled.
            StaleLease: the session was held by another since; nothing was appended.
            StoreUnwritable: the disk refused.
        """
        turn, ticket = self.turn, self._ticket
        while True:
            if turn.calls:
                await self._use()
            elif ticket.notes and self._can_be_steered():
                await self._take_notes()
            elif turn.is_answered:
                return await self._commit()
            else:
                await self._ask()

    def _can_be_steered(self) -> bool:
        # Not before the first reply: until then the prompt is the turn's identity.
        turn = self.turn
        return 0 < turn.steps < self._config.step_limit and not turn.is_paused

    async def _take_notes(self) -> None:
        """Say the prompts that came while the turn ran, and tell both sides."""
        turn, ticket, entries = self.turn, self._ticket, list[dict[str, Any]]()
        notes, ticket.notes = ticket.notes, []
        for one in notes:
            blocks, at = user(one.prompt)["content"], turn.facts.get("steered", {}).get(one.turn_id)
            if at is not None and turn.messages[at[0]]["content"][at[1] : at[2]] == blocks:
                ticket.given.append(one)  # sent again: it was given before a crash
            elif at is not None or self._agent.turn(one.turn_id) is not None:
                one.go_alone()  # it has a turn, or is another prompt's
            else:
                ticket.given.append(one)
                entries.append(turn.add_prompt(one.turn_id, blocks))
        if entries:  # the last reply may be one that is now followed by something
            entries, self._last_steps = self._last_steps + entries, []
        for entry in entries:
            await self._store.journal(self._lease, turn, entry)
        for one in notes:
            if one in ticket.given:
                self._tell("steered", Steered(one.turn_id, turn.turn_id))

    async def _ask(self) -> None:
        """Ask the model with the conversation, and journal its reply."""
        config, turn = self._config, self.turn
        if turn.steps >= config.step_limit:
            raise StepLimitReached(
                f"{self._lease.key}: the model still "
                f"{'pauses its reply' if turn.is_paused else 'asks for tools'} after {turn.steps} "
                f"replies, step_limit={config.step_limit}: raise it, or look at what the tools "
                "answer"
            )
        start_ns, lag_s = time.monotonic_ns(), self._lag.total_s
        attributes: dict[str, Any] = {"gen_ai.request.model": config.model}
        try:
            if config.context.compact_above_tokens is not None and not turn.steps:
                await self._compact(config.context.compact_above_tokens)
            reply = await self._reply(self._conversation())
            _check(reply)
        except BaseException as error:
            self._span("ask", start_ns, self._with_lag(attributes, lag_s), error)
            raise
        attributes["gen_ai.usage.input_tokens"] = reply.usage.input_tokens
        attributes["gen_ai.usage.output_tokens"] = reply.usage.output_tokens
        attributes["gen_ai.response.finish_reasons"] = [reply.stop_reason]
        self._span("ask", start_ns, self._with_lag(attributes, lag_s))
        await self._keep_reply(reply)

    async def _use(self) -> None:
        """Use the tools that the last reply asked for, and journal each result.

        They run together, except tools that run alone: these split the calls into groups, and the
        groups run in the order of the reply.
        """
        for is_alone, group in groupby(self.turn.calls, self._is_alone):
            calls = tuple(group)
            for together in ((call,) for call in calls) if is_alone else (calls,):
                await self._use_together(together)
                if self._questions:
                    asked = "; ".join(
                        f"call {id_!r} asks {q!r}" for id_, q in self._questions.items()
                    )
                    raise TurnPending(
                        f"{self._lease.key}: turn {self.turn.turn_id!r} waits for an approval: "
                        f"{asked:.500}; approve(key, callId, answer) continues it",
                        questions=self._questions,
                    )

    async def _commit(self) -> Finished:
        """Append the turn to the conversation, all or nothing; then it is acknowledged."""
        start_ns = time.monotonic_ns()
        self._ticket.is_committing = True
        try:
            ended = await self._store.append(self._lease, self.turn, self._last_steps)
        except BaseException as error:
            self._span("commit", start_ns, {}, error)
            raise
        self._agent.took(self.turn, ended)
        self._span("commit", start_ns, {"kode_lab.messages": len(self.turn.messages)})
        return ended

    def _conversation(self) -> Shown:
        """Return the messages that the model receives."""
        agent, turn, model = self._agent, self.turn, self._config.model
        summary = self._summary()
        if summary is None:
            head, start = [], _window_start(self._config.context, agent, turn)
        else:
            head, start = list(map(encode, _told(summary))), summary["upto"]
        messages = agent.conversation.shown(turn.encoded, head=head, start=start)
        if agent.thinking or turn.thinking:
            # Thinking is signed by its model, and another model's service refuses it.
            foreign = [
                place + len(head)
                for by, turns in agent.thinking.items()
                if by != model
                for finished in turns
                for at in range(finished.first, finished.last + 1)
                if (place := agent.conversation.position(at, start)) is not None
            ]
            first = len(messages) - len(turn.messages)
            foreign += [first + at for at, by in turn.thinking.items() if by != model]
            for at in foreign:
                messages[at]["content"] = without_thinking(messages[at])["content"]
        return messages

    def _summary(self) -> dict[str, Any] | None:
        """Return what stands for the older turns: ``upto``, their end, and ``text``."""
        if self._config.context.compact_above_tokens is None:
            return None
        found: dict[str, Any] | None = self.turn.facts.get("summary", self._agent.summary)
        return found

    async def _compact(self, limit_tokens: int) -> None:
        """Let the model summarise the older turns if the history is above the limit.

        The summary is saved with the turn's first reply. If that is lost in a crash, the model is
        asked again, and nothing else is lost: the record has all turns.
        """
        agent, turn, before = self._agent, self.turn, self._summary()
        start = 0 if before is None else before["upto"]
        kept = ContextPolicy(window_turns=self._config.context.keep_turns)
        upto = _window_start(kept, agent, turn)
        size = agent.conversation.text_bytes(start, len(agent.conversation))
        size += sum(map(len, turn.encoded))
        if size <= limit_tokens * _BYTES_PER_TOKEN or upto <= start:
            return
        older = agent.conversation.messages(start, upto)
        head = [] if before is None else _told(before)
        reply = await self._asked(
            [*head, *map(without_thinking, older), user(_SUMMARISE)], is_summary=True
        )
        _check(reply)
        turn.usage = Usage(
            turn.usage.input_tokens + reply.usage.input_tokens,
            turn.usage.output_tokens + reply.usage.output_tokens,
        )
        if reply.text.strip() and reply.stop_reason not in CUT_OFF:  # else all is sent once more
            turn.facts["summary"] = {"upto": upto, "text": reply.text.strip()}

    async def _reply(self, messages: Sequence[Message]) -> Reply:
        """Return the model's reply; if it refuses earlier thinking, ask once more without it."""
        try:
            return await self._asked(messages)
        except ModelRefused as error:
            if _WRONG_SIGNATURE.search(str(error)) and any(map(has_thinking, messages)):
                return await self._asked([without_thinking(message) for message in messages])
            if _TOO_LONG.search(str(error)):
                raise ModelRefused(
                    f"{error}; the whole history is sent: declare a context policy for agent "
                    f"{self._config.agent_id!r:.80} (context = {{ window_turns = 20 }}, "
                    "window_tokens or compact_above_tokens)"
                    if self._config.context == _ALL
                    else f"{error}; lower the limit in {self._config.context}"
                ) from error
            raise

    async def _asked(self, messages: Sequence[Message], *, is_summary: bool = False) -> Reply:
        config = self._config
        end_s = self._ticket.end_s
        left_s = None if end_s is None else end_s - asyncio.get_running_loop().time()
        request = Request(
            config.model,
            config.system,
            messages,
            config.tool_specs,
            max(config.max_tokens, _SUMMARY_TOKENS) if is_summary else config.max_tokens,
            config.temperature,
            time_left_s=left_s,
            cache=config.cache,
        )
        is_heard = self._ticket.on_event is not None or bool(self._ticket.given)
        is_streamed = is_heard and not is_summary
        answer: object = self._model(request, self._on_text if is_streamed else None)
        if not isinstance(answer, Awaitable):
            raise ModelGarbage(
                f"the model returned a {type(answer).__name__} that cannot be awaited: "
                "define it with `async def`"
            )
        reply: Reply = await answer
        return reply

    def _is_alone(self, call: ToolCall) -> bool:
        tool = self._config.tool(call.name)
        return tool is not None and tool.is_alone

    async def _use_together(self, calls: Sequence[ToolCall]) -> None:
        if len(calls) == 1:
            await self._use_one(calls[0])
            return
        try:
            async with asyncio.TaskGroup() as group:
                for call in calls:
                    group.create_task(self._use_one(call))
        except BaseExceptionGroup as failed:  # a tool's failure is a result: this is the store's
            raise failed.exceptions[0] from None

    async def _keep_reply(self, reply: Reply) -> None:
        turn, stop_reason = self.turn, reply.stop_reason
        # The Messages API does not accept blank text in a request.
        said = [b for b in reply.content if b["type"] != "text" or b["text"].strip()]
        if stop_reason == "refusal":  # what it asked for before it refused may not be whole
            said = [block for block in said if block["type"] != "tool_use"]
        if tool_calls_of(said):
            said = _with_own_ids(said, turn, self._agent.call_ids)
        if not said or said[-1]["type"] in ("thinking", "redacted_thinking"):
            words = _WORDS_FOR_NOTHING.get(stop_reason, _EMPTY_REPLY)
            said.append({"type": "text", "text": words})
        message = assistant(said)
        facts: dict[str, Any] = {}
        if stop_reason not in ("end_turn", "tool_use"):
            facts["stop_reason"] = stop_reason
        if has_thinking(message):
            facts["thinking_by"] = self._config.model
        if not turn.steps and "summary" in turn.facts:
            facts["summary"] = turn.facts["summary"]
        entry = turn.reply_entry(message, reply.usage, facts)
        turn.add_reply(message, reply.usage, facts)
        if turn.is_answered:
            self._last_steps.append(entry)  # is written with the commit, which is the next step
            return
        if stop_reason in CUT_OFF:  # with the reply: after a crash in between they would run
            limit = (
                f" at max_tokens={self._config.max_tokens}" if stop_reason == "max_tokens" else ""
            )
            cut = f"Not run: the reply was cut off{limit}."
            turn.refuse_calls(cut)
            entry["not_run"] = cut
        await self._store.journal(self._lease, turn, entry)

    async def _use_one(self, call: ToolCall) -> None:
        turn, config = self.turn, self._config
        context = await self._context(call)
        turn.begun.add(call.id)
        self._tell("tool_call", call)
        start_ns = time.monotonic_ns()
        attributes: dict[str, Any] = {"gen_ai.tool.name": call.name, "gen_ai.tool.call.id": call.id}
        tool, lag_s = config.tool(call.name), self._lag.total_s
        try:
            result = await use(
                tool,
                call,
                context,
                config.tool_timeout_s,
                known=config.tool_names,
                lag=self._lag,
                on_late=partial(self._on_late, self._lease.key),
            )
        except BaseException as error:
            self._span("tool", start_ns, attributes, error)
            raise
        if isinstance(result, Pending):
            turn.begun.discard(call.id)  # it has not acted
            answered_by = f"{call.id}:{result.id}" if result.id else call.id
            self._questions[answered_by] = result.question
            attributes["kode_lab.tool.pending"] = result.question[:_SHOWN_CHARS]
            self._span("tool", start_ns, self._with_lag(attributes, lag_s))
            self._tell("approval_needed", ApprovalNeeded(answered_by, call, result.question))
            return
        attributes["kode_lab.tool.result"] = result.content[:_SHOWN_CHARS]
        attributes["kode_lab.tool.is_error"] = result.is_error
        self._span("tool", start_ns, self._with_lag(attributes, lag_s))
        turn.add_result(result)
        await self._store.journal(self._lease, turn, turn.result_entry(result))
        self._tell("tool_result", result)

    async def _context(self, call: ToolCall) -> ToolContext:
        """Return what the tool is told of its call.

        A call that repeats one whose outcome is unknown gets that one's idempotency key, which is
        remembered with the turn: the outcome may become known before the call is repeated.
        """
        key, turn = self._lease.key, self.turn
        earlier_turn, earlier_call = turn.facts.get("earlier", {}).get(call.id, ("", ""))
        if not earlier_call and self._agent.sealed:
            if self._earlier is None:
                self._earlier = self._agent.unknown_calls()
            what = UnknownCall.what_of(call.name, call.input)
            for one in self._earlier:
                if one.what == what and one.turn_id:
                    earlier_turn, earlier_call = one.turn_id, one.call_id
                    earlier = {**turn.facts.get("earlier", {}), call.id: [one.turn_id, one.call_id]}
                    await self._store.journal(self._lease, turn, turn.remember(earlier=earlier))
                    break
        # Clients may use the same turn ids in every session, and models the same call ids.
        once = encode([*key, earlier_turn or turn.turn_id, earlier_call or call.id]).decode()
        if not turn.facts and not earlier_call:
            return ToolContext(key, turn.turn_id, call.id, once, host=self._host)
        approvals: dict[str, str] = turn.facts.get("approvals", {})
        start = f"{call.id}:"
        answers = {n[len(start) :]: a for n, a in approvals.items() if n.startswith(start)}
        approval = approvals.get(call.id)
        return ToolContext(
            key, turn.turn_id, call.id, once, approval, earlier_call, answers, self._host
        )

    def _with_lag(self, attributes: dict[str, Any], before_s: float) -> dict[str, Any]:
        """Add the time for which tools blocked the loop, so that it is not taken for the step's."""
        blocked_s = self._lag.total_s - before_s
        return attributes | {"kode_lab.loop.blocked_s": blocked_s} if blocked_s else attributes

    def _on_text(self, piece: str) -> None:
        self._tell("text", piece)

    def _tell(
        self,
        kind: Literal["text", "tool_call", "tool_result", "approval_needed", "steered"],
        data: object,
    ) -> None:
        """Tell the caller of the turn, and those whose prompts it was given."""
        if self._ticket.on_event is not None:
            self._ticket.on_event(TurnEvent(kind, data))
        for one in self._ticket.given:
            if one.on_event is not None and one.outcome is not None and not one.outcome.done():
                try:
                    one.on_event(TurnEvent(kind, data))
                except Exception as error:  # noqa: BLE001 - a watcher fails its own turn only
                    one.outcome.set_exception(error)

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
                Span(self._lease.key, self.turn.turn_id, step, start_ns, end_ns, attributes, name)
            )


def _window_start(policy: ContextPolicy, agent: Agent, turn: OpenTurn) -> int:
    """Return the index of the first message that the model receives."""
    if policy == _ALL:
        return 0
    newest_first = (f for f in reversed(agent.finished.values()) if not f.is_rewound)
    start = len(agent.conversation)
    if policy.window_turns is not None:
        for finished in islice(newest_first, policy.window_turns):
            start = finished.first
        # Turns of a conversation that was adopted have no record: they count as one.
        return 0 if len(agent.finished) < policy.window_turns else start
    if policy.window_tokens is not None:
        left_bytes = policy.window_tokens * _BYTES_PER_TOKEN - sum(map(len, turn.encoded))
        for finished in newest_first:
            left_bytes -= agent.conversation.text_bytes(finished.first, finished.last + 1)
            if left_bytes < 0:
                break
            start = finished.first
        return start
    return 0


def _told(summary: Mapping[str, Any]) -> list[Message]:
    """Return the messages by which the model is told a summary."""
    said = f"Summary of our conversation until now:\n\n{summary['text']}"
    return [user(said), assistant("I continue from this summary.")]


def _with_own_ids(blocks: list[Block], turn: OpenTurn, taken: set[str]) -> list[Block]:
    """Return the blocks with a new id for each tool call whose id the conversation has already.

    Some services number their calls anew in each reply, and the Messages API accepts an id once.
    """
    here = {
        call.id for message in turn.messages[1::2] for call in tool_calls_of(message["content"])
    }
    own: list[Block] = []
    for block in blocks:
        if block["type"] != "tool_use":
            own.append(block)
            continue
        given = new = block["id"]
        number = len(taken) + len(here)
        while new in taken or new in here:
            number += 1
            new = f"{given}-{number}"
        here.add(new)
        own.append(block if new == given else {**block, "id": new})
    return own


def _check(reply: object) -> None:
    """Refuse a reply that would make the conversation illegal."""
    if not isinstance(reply, Reply):
        raise ModelGarbage(
            f"the model returned a {type(reply).__name__} ({reply!r:.60}), not a Reply: return "
            "Reply(blocks, stop_reason), or Reply.of_text(text)"
        )
    if not isinstance(reply.content, tuple | list):
        raise ModelGarbage(
            f"the content of a reply is a tuple of blocks, not {reply.content!r:.80}"
        )
    if not isinstance(reply.usage, Usage):
        raise ModelGarbage(f"the usage of a reply is a Usage, not {reply.usage!r:.80}")
    if not isinstance(reply.stop_reason, str) or not reply.stop_reason:
        raise ModelGarbage(f"the stop_reason of a reply is a word, not {reply.stop_reason!r:.80}")
    _check_blocks(reply)
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


def _check_blocks(reply: Reply) -> None:
    for block in reply.content:
        kind = block.get("type") if isinstance(block, dict) else None
        if not isinstance(kind, str) or kind == "tool_result":
            raise ModelGarbage(f"a content block is an object with a type, not {block!r:.80}")
        if kind == "text" and not isinstance(block.get("text"), str):
            raise ModelGarbage(f"a text block has a text, not {block!r:.80}")
        if kind == "tool_use":
            call_id, name = block.get("id"), block.get("name")
            if not (isinstance(call_id, str) and isinstance(name, str) and call_id):
                raise ModelGarbage(f"a tool call needs a name and an id: {block!r:.80}")
            if not isinstance(block.get("input"), dict):
                raise ModelGarbage(f"the input of tool call {call_id!r:.40} is not an object")
