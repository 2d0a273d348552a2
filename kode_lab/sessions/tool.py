"""Tools: functions that the model may call. Registered once, shared by all agents.

A function becomes a tool by ``@toolbox.tool``; its schema comes from its signature and docstring.
A parameter annotated ``ToolContext`` receives the session for which the tool runs; the model
neither sees nor fills it, so no argument of the model can name another session.

``use`` always returns a result: invalid arguments, an exception, a time-out and a result that is
too long become sentences for the model, because a tool's failure must not end a session. Only
cancellation is passed on.

This module must not know locks, models or the manager, except as ``Host``. It imports ``pydantic``
inside functions only.

Source: the shared tool registration of the concurrency report; schemas as
https://docs.anthropic.com/en/docs/agents-and-tools/tool-use/implement-tool-use describes them.
"""

from __future__ import annotations

import asyncio
import inspect
import json
import logging
import re
import time
import types
from collections.abc import Awaitable, Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple, Protocol, TypeVar, get_args, get_type_hints, overload

from kode_lab.errors import CallerError, InvalidTool, Refused
from kode_lab.key import SessionKey
from kode_lab.message import ToolCall, ToolResult
from kode_lab.sessions.memory import Memory
from kode_lab.sessions.store import MemoryStore
from kode_lab.sessions.threads import THREAD_LIMIT, Threads

__all__ = [
    "BLOCKING_S",
    "CANCEL_GRACE_S",
    "ERROR_LIMIT_CHARS",
    "RESULT_LIMIT_CHARS",
    "Blocked",
    "Host",
    "LoopLag",
    "Pending",
    "Tool",
    "ToolContext",
    "Toolbox",
    "tool_of",
    "tools_of",
    "use",
]

# About 12,000 tokens: a longer result only fills the model's context.
RESULT_LIMIT_CHARS = 50_000
ERROR_LIMIT_CHARS = 500
# How long a cancelled async tool may clean up before it is left behind.
CANCEL_GRACE_S = 0.5
# An async tool that keeps the loop longer than this in one step delays every other session.
# asyncio's own debug mode warns at the same time (``slow_callback_duration``).
BLOCKING_S = 0.1
_NAME = re.compile(r"[a-zA-Z0-9_-]{1,64}")
_LOG = logging.getLogger(__name__)
# For functions that are tools of one agent only, without a toolbox.
_THREADS = Threads()

F = TypeVar("F", bound=Callable[..., Any])


class Host(Protocol):
    """What a tool's context needs of the manager."""

    @property
    def store(self) -> object:
        """Where the sessions are."""
        ...

    async def ask_agent(self, context: ToolContext, agent_id: str, prompt: str) -> str | Pending:
        """Take a turn of another agent for a tool call."""
        ...


class ToolContext(NamedTuple):
    """The call that a tool runs for.

    Attributes:
        key: the session.
        turn_id: the turn that asked.
        call_id: the id of this call in the conversation.
        idempotency_key: the same whenever this call is repeated, and different from that of every
            other call of any session. A tool stores it with its effect, so that a repeated call
            has no second effect. Where ``earlier_call`` is not empty, it is that call's key.
        approval: the answer to the ``Pending`` that this call returned before, or None.
        earlier_call: the id of a call of this tool with the same input, whose turn was ended before
            the outcome was known: it may have acted. "" if there is none.
        answers: the answers to each ``Pending`` that had an ``id``, by that id.
        host: the manager, for ``ask`` and ``memory``.
    """

    key: SessionKey
    turn_id: str
    call_id: str
    idempotency_key: str
    approval: str | None = None
    earlier_call: str = ""
    answers: Mapping[str, str] = types.MappingProxyType({})
    host: Host | None = None

    async def ask(self, agent_id: str, prompt: str) -> str | Pending:
        """Return what another agent answers, in a child session that belongs to this one.

        Its turn happens once, however often this call is repeated, and is cancelled with it. A tool
        must return a ``Pending`` as it is: a tool of the other agent waits for an approval.
        """
        if self.host is None:
            raise CallerError("this tool runs without a SessionManager: there is no agent to ask")
        return await self.host.ask_agent(self, agent_id, prompt)

    @property
    def memory(self) -> Memory:
        """The memory that all sessions of this user share.

        Raises:
            CallerError: the store keeps no memories.
        """
        store = None if self.host is None else self.host.store
        if not isinstance(store, MemoryStore):
            raise CallerError(
                f"a {type(store).__name__} keeps no memories: it lacks the methods of "
                "kode_lab.sessions.store.MemoryStore"
            )
        return Memory(store, self.key.user_id)


class Pending(NamedTuple):
    """Returned by a tool that may not act before somebody approves.

    The turn then rests in its journal, without a thread or a task. ``SessionManager.approve``
    continues it: the tool is called again, with the answer in its context.

    Attributes:
        question: what the person is asked.
        id: for a tool that may ask several times in one call; "" for one question a call. The
            answer is then given to ``callId:id``, and comes in ``ToolContext.answers``.
    """

    question: str
    id: str = ""


class Blocked(NamedTuple):
    """How often and how long one async tool has blocked the event loop."""

    tool: str
    times: int
    total_s: float
    longest_s: float


class LoopLag:
    """Counts the time for which async tools blocked the event loop.

    Attributes:
        total_s: of all tools; it only grows, so two readings tell the lag between them.
    """

    def __init__(self) -> None:
        self.total_s = 0.0
        self._by_tool: dict[str, Blocked] = {}

    def add(self, tool: str, took_s: float) -> None:
        """Count one step of a tool that took at least ``BLOCKING_S``; log a tool's longest."""
        self.total_s += took_s
        before = self._by_tool.get(tool, Blocked(tool, 0, 0.0, 0.0))
        longest_s = max(took_s, before.longest_s)
        self._by_tool[tool] = Blocked(tool, before.times + 1, before.total_s + took_s, longest_s)
        if took_s == longest_s:
            _LOG.warning(
                "async tool %s blocked the event loop for %.2f s, and every session with it: "
                "await what it waits for, or register it as a plain function, which runs in a "
                "thread",
                tool,
                took_s,
            )

    def by_tool(self) -> tuple[Blocked, ...]:
        """Return the counts of each tool that blocked the loop."""
        return tuple(self._by_tool.values())


@dataclass(frozen=True, slots=True, eq=False)
class Tool:
    """One registered function.

    Attributes:
        input_schema: JSON schema of the arguments, deeply immutable.
        function: what runs.
        is_async: whether it runs in the loop (else in a thread).
        context_name: the parameter that takes the ``ToolContext``, or "".
        check: returns the keyword arguments, or raises ``ValueError`` with a sentence.
        threads: where it runs if it is not async.
        is_alone: no other call of the same reply runs beside it.
        limit_s: how long a call may take; None for the agent's ``tool_timeout_s``.
    """

    name: str
    description: str
    input_schema: Mapping[str, Any]
    function: Callable[..., Any]
    is_async: bool
    context_name: str
    check: Callable[[Mapping[str, Any]], dict[str, Any]]
    threads: Threads
    is_alone: bool = False
    limit_s: float | None = None

    @property
    def spec(self) -> Mapping[str, Any]:
        """The definition as the Messages API takes it, deeply immutable."""
        return types.MappingProxyType(
            {
                "name": self.name,
                "description": self.description,
                "input_schema": self.input_schema,
            }
        )


class Toolbox:
    """The tools of a service, by name, in the order in which they were registered."""

    def __init__(self, *, thread_limit: int = THREAD_LIMIT) -> None:
        self.threads = Threads(thread_limit)
        self._tools: dict[str, Tool] = {}

    @overload
    def tool(self, function: F, /) -> F: ...

    @overload
    def tool(
        self, /, *, alone: bool = False, timeout_s: float | None = None
    ) -> Callable[[F], F]: ...

    def tool(
        self, function: Any = None, /, *, alone: bool = False, timeout_s: float | None = None
    ) -> Any:
        """Register the function under its own name and return it unchanged.

        Use it as ``@toolbox.tool`` or ``@toolbox.tool(alone=True)``. Every parameter must be
        annotated. The docstring's first part tells the model what the tool does, its ``Args:``
        section what each argument means. A parameter annotated ``ToolContext`` receives the
        context. A plain function runs in a thread, an ``async`` one in the event loop.

        Args:
            function: what becomes a tool; a ``Tool`` is taken as it is.
            alone: calls of one reply normally run at the same time. A call of this tool starts
                when the calls before it have ended, and the calls after it start when it has
                ended: for tools that change what other tools read.
            timeout_s: how long a call may take, if not as long as the agent's configuration says.

        Raises:
            InvalidTool: the name is taken or not allowed, or the signature has no JSON schema.
        """
        if function is None:
            return partial(self._register, alone=alone, timeout_s=timeout_s)
        return self._register(function, alone=alone, timeout_s=timeout_s)

    def _register(self, function: Any, *, alone: bool, timeout_s: float | None) -> Any:
        if isinstance(function, Tool):
            tool = function
        else:
            tool = replace(tool_of(function, self.threads), is_alone=alone, limit_s=timeout_s)
        if tool.name in self._tools:
            raise InvalidTool(f"there is a tool {tool.name!r} already: rename this function")
        self._tools[tool.name] = tool
        return function

    def get(self, name: str) -> Tool | None:
        """Return the tool of that name, or None."""
        return self._tools.get(name)

    @property
    def names(self) -> tuple[str, ...]:
        """The names of all tools."""
        return tuple(self._tools)

    def __iter__(self) -> Iterator[Tool]:
        return iter(tuple(self._tools.values()))

    def __len__(self) -> int:
        return len(self._tools)


def tools_of(given: object) -> tuple[Tool, ...]:
    """Return the tools that a toolbox or an iterable of tools and functions holds.

    Raises:
        InvalidTool: an element is neither, two have one name, or a function cannot be a tool.
    """
    if isinstance(given, str | bytes | Mapping) or not isinstance(given, Iterable):
        raise InvalidTool(
            f"tools is a {type(given).__name__}: pass a Toolbox, or a list of functions and tools"
        )
    tools: dict[str, Tool] = {}
    for part in given:
        tool = part if isinstance(part, Tool) else tool_of(part)
        if tool.name in tools:
            raise InvalidTool(f"two tools are called {tool.name!r}: rename one of them")
        tools[tool.name] = tool
    return tuple(tools.values())


async def use(
    tool: Tool | None,
    call: ToolCall,
    context: ToolContext,
    timeout_s: float,
    *,
    known: Sequence[str] = (),
    lag: LoopLag | None = None,
    on_late: Callable[[ToolResult], None] | None = None,
) -> ToolResult | Pending:
    """Return the result of one tool call, whatever the tool does, or ``Pending`` if it says so.

    Args:
        tool: what was asked for, or None if the agent has no tool of that name.
        call: what the model asked.
        context: the session and call that it runs for.
        timeout_s: after this the result is an error. An async tool is then cancelled; a thread
            cannot be: it runs to its end, and only the idempotency key guards its effect.
        known: the names that the model is told when there is no such tool.
        lag: counts the time for which an async tool blocks the event loop.
        on_late: is called with the result of a call that ends after its caller was cancelled.

    Raises:
        asyncio.CancelledError: the caller was cancelled; an async tool was cancelled with it.
    """
    if tool is None:
        tools = ", ".join(known) or "none"
        return ToolResult(call.id, f"There is no tool {call.name!r:.80}. Tools: {tools}.", True)
    try:
        arguments = tool.check(call.input)
    except ValueError as error:
        return ToolResult(call.id, f"{tool.name} was not run: {error}", True)
    if tool.context_name:
        arguments[tool.context_name] = context
    if tool.limit_s is not None:
        timeout_s = tool.limit_s

    def came_late(content: str | Pending, is_error: bool) -> None:
        if on_late is not None and isinstance(content, str):
            on_late(ToolResult(call.id, content, is_error))

    content: str | Pending
    try:
        if tool.is_async:
            content, is_error = await _in_task(tool, arguments, timeout_s, lag, came_late)
        else:
            content, is_error = await tool.threads.run(
                lambda: _run(tool, arguments),
                timeout_s,
                owner=context.key[:2],
                on_late=lambda result: came_late(*result),
            )
    except (TimeoutError, Refused) as error:  # of the threads: a tool's own are caught in _run
        content, is_error = f"{tool.name}: {error}.", True
    return content if isinstance(content, Pending) else ToolResult(call.id, content, is_error)


def _run(tool: Tool, arguments: dict[str, Any]) -> tuple[str | Pending, bool]:
    try:
        return _text(tool.function(**arguments)), False
    except BaseException as error:  # noqa: BLE001 - in our thread even SystemExit is the tool's
        return _failure(tool, error), True


async def _await(
    tool: Tool, arguments: dict[str, Any], lag: LoopLag | None
) -> tuple[str | Pending, bool]:
    try:
        running: Awaitable[Any] = tool.function(**arguments)
        return _text(await (running if lag is None else _Watched(running, tool.name, lag))), False
    except (Exception, SystemExit) as error:  # noqa: BLE001 - a tool's failure is for the model
        return _failure(tool, error), True


class _Watched:
    """Awaits a tool's coroutine and measures each of its steps.

    It sees what the tool itself does between two awaits, not the tasks that the tool creates.
    """

    __slots__ = ("_coroutine", "_lag", "_name")

    def __init__(self, coroutine: Any, name: str, lag: LoopLag) -> None:
        self._coroutine = coroutine
        self._name = name
        self._lag = lag

    def __await__(self) -> Generator[Any, Any, Any]:
        coroutine = self._coroutine
        step = partial(coroutine.send, None)
        while True:
            start_s = time.perf_counter()
            try:
                waits_for = step()
            except StopIteration as ended:
                return ended.value
            finally:
                took_s = time.perf_counter() - start_s
                if took_s >= BLOCKING_S:
                    self._lag.add(self._name, took_s)
            try:
                step = partial(coroutine.send, (yield waits_for))
            except BaseException as error:  # noqa: BLE001 - the coroutine decides about it
                step = partial(coroutine.throw, error)


# The loop keeps only weak references to tasks; one that ignores its cancellation is kept here.
_left_behind: set[asyncio.Task[tuple[str | Pending, bool]]] = set()


async def _in_task(
    tool: Tool,
    arguments: dict[str, Any],
    timeout_s: float,
    lag: LoopLag | None,
    came_late: Callable[[str | Pending, bool], None],
) -> tuple[str | Pending, bool]:
    """Run an async tool in its own task, so that one that ignores cancellation blocks no session.

    ``asyncio.timeout`` would wait for such a tool without end.
    """
    task = asyncio.create_task(_await(tool, arguments, lag), name=f"tool {tool.name}")

    def late(ended: asyncio.Task[tuple[str | Pending, bool]]) -> None:
        if not ended.cancelled():
            came_late(*ended.result())

    try:
        await asyncio.wait((task,), timeout=timeout_s)
    except asyncio.CancelledError:
        task.add_done_callback(late)
        raise
    finally:
        is_late = not task.done()
        if is_late:
            _left_behind.add(task)
            task.add_done_callback(_left_behind.discard)
            task.cancel()
            await asyncio.wait((task,), timeout=CANCEL_GRACE_S)
    if not task.done():
        return f"{tool.name}: no result after {timeout_s:g} s, and it ignores cancellation.", True
    if not task.cancelled():
        return task.result()  # late, but true
    if is_late:
        return f"{tool.name}: no result after {timeout_s:g} s; it was cancelled.", True
    return f"{tool.name} failed: it cancelled itself.", True


def _text(result: object) -> str | Pending:
    if isinstance(result, Pending):
        return result
    if result is None:
        return "done"
    if not isinstance(result, str):
        import pydantic_core  # noqa: PLC0415 - importing this module must stay cheap

        result = pydantic_core.to_json(result).decode()
    if not result.isascii():
        # A lone surrogate could be neither stored nor sent.
        result = result.encode(errors="replace").decode()
    if len(result) > RESULT_LIMIT_CHARS:
        cut = f"\n[cut here: {len(result)} characters, RESULT_LIMIT_CHARS={RESULT_LIMIT_CHARS}]"
        return result[:RESULT_LIMIT_CHARS] + cut
    return result


def _failure(tool: Tool, error: BaseException) -> str:
    _LOG.info("tool %s raised", tool.name, exc_info=error)
    try:
        text = str(error)
    except Exception:  # noqa: BLE001 - even this is the tool's code
        text = "(its message cannot be read)"
    text = text.encode(errors="replace").decode()[:ERROR_LIMIT_CHARS]
    return f"{tool.name} failed: {type(error).__name__}{': ' if text else ''}{text}"


def tool_of(function: Any, threads: Threads = _THREADS) -> Tool:
    """Return the tool that a function becomes.

    Raises:
        InvalidTool: its name is not allowed, or its signature has no JSON schema.
    """
    name = getattr(function, "__name__", "")
    if not callable(function) or not _NAME.fullmatch(name):
        raise InvalidTool(
            f"a tool's name is {_NAME.pattern}, not {name!r:.80}: register a named function"
        )
    if inspect.isasyncgenfunction(function) or inspect.isgeneratorfunction(function):
        raise InvalidTool(f"{name} yields: a tool must return one result")
    try:
        hints = get_type_hints(function, include_extras=True)
    except Exception as error:  # an annotation may raise anything when it is read
        raise InvalidTool(
            f"{name}: an annotation cannot be resolved ({error}): import its type at module level"
        ) from error
    context_name = ""
    accepted: dict[str, tuple[Any, inspect.Parameter]] = {}
    for parameter in inspect.signature(function).parameters.values():
        if parameter.kind not in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
            raise InvalidTool(
                f"{name}: {parameter} cannot be passed by name: declare every argument"
            )
        if parameter.name not in hints:
            raise InvalidTool(
                f"{name}: annotate {parameter.name!r}: its schema comes from the annotation"
            )
        hint = hints[parameter.name]
        if hint is ToolContext and not context_name:
            context_name = parameter.name
        elif _mentions_context(hint):
            # The model must never be able to say whose session it is.
            raise InvalidTool(
                f"{name}: {parameter.name!r} may not hold a ToolContext: annotate one parameter as "
                "exactly ToolContext"
            )
        else:
            accepted[parameter.name] = (hint, parameter)
    description, meanings = _described(function)
    schema, check = _checked(name, accepted, meanings)
    schema, is_async = _frozen(schema), inspect.iscoroutinefunction(function)
    return Tool(name, description, schema, function, is_async, context_name, check, threads)


def _mentions_context(hint: Any) -> bool:
    return hint is ToolContext or any(_mentions_context(inner) for inner in get_args(hint))


def _described(function: Callable[..., Any]) -> tuple[str, dict[str, str]]:
    import docstring_parser  # noqa: PLC0415 - importing this module must stay cheap

    parsed = docstring_parser.parse(inspect.getdoc(function) or "")
    parts = (parsed.short_description, parsed.long_description)
    return "\n\n".join(part for part in parts if part), {
        parameter.arg_name: parameter.description
        for parameter in parsed.params
        if parameter.description
    }


def _checked(
    name: str,
    accepted: Mapping[str, tuple[Any, inspect.Parameter]],
    meanings: Mapping[str, str],
) -> tuple[dict[str, Any], Callable[[Mapping[str, Any]], dict[str, Any]]]:
    """Return the JSON schema of the arguments and the function that checks them."""
    import pydantic  # noqa: PLC0415 - 0.2 s that only a service with tools pays

    fields: dict[str, Any] = {}
    for own, (hint, parameter) in accepted.items():
        options: dict[str, Any] = {"alias": own, "description": meanings.get(own)}
        if isinstance(parameter.default, str | int | float | bool | None):
            options["default"] = parameter.default
        elif parameter.default is not parameter.empty:
            # Optional, but not shown to the model. The function supplies its own default.
            options["default_factory"] = lambda: None
        # The prefix keeps an argument called "json" or "copy" off the model's own methods.
        fields[f"arg_{own}"] = (hint, pydantic.Field(**options))
    try:
        model = pydantic.create_model(
            name, __config__=pydantic.ConfigDict(extra="forbid"), **fields
        )
        schema = model.model_json_schema()
    except Exception as error:  # pydantic raises many kinds
        raise InvalidTool(f"{name}: its arguments have no JSON schema ({error})") from error
    for part in (schema, *schema["properties"].values()):
        part.pop("title", None)  # derived from the name: tokens without information

    def check(given: Mapping[str, Any]) -> dict[str, Any]:
        if not isinstance(given, Mapping):
            raise ValueError(f"its input must be an object, not {type(given).__name__}")  # noqa: TRY004
        try:
            # By way of JSON: strict there still takes a date or an enum from its text.
            checked = model.model_validate_json(json.dumps(dict(given)), strict=True)
        except pydantic.ValidationError as error:
            raise ValueError(_wrong(error.errors(include_url=False), accepted)) from None
        except (TypeError, RecursionError) as error:
            raise ValueError(f"its input is not JSON: {error}") from None
        return {own[4:]: getattr(checked, own) for own in checked.model_fields_set}

    return schema, check


def _wrong(problems: Sequence[Any], accepted: Mapping[str, Any]) -> str:
    sentences = [
        f"argument {'.'.join(str(part) for part in problem['loc'])!r:.80}: {problem['msg']}"
        for problem in problems[:5]
    ]
    return f"{'; '.join(sentences)}. Arguments: {', '.join(accepted) or 'none'}."


def _frozen(value: Any) -> Any:
    if isinstance(value, dict):
        return types.MappingProxyType({name: _frozen(inner) for name, inner in value.items()})
    return tuple(_frozen(inner) for inner in value) if isinstance(value, list) else value
