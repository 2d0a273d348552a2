"""Tools: what the model may do. Registered once, shared by all agents, called for one session.

A function becomes a tool by ``@toolbox.tool``; its schema comes from its signature and docstring.
A tool learns for whom it runs from a parameter annotated ``ToolContext``, which the model neither
sees nor fills: there is no other way to learn it, and none that could be stale.

``use`` gives a result whatever the tool does: arguments that do not fit, an exception, a hang and a
result too long are all sentences for the model, because a tool's failure is the model's to handle
and never the end of a session. Only cancellation goes through.

It must not know stores, locks or models. It knows ``pydantic`` by function-level imports only.

Source: the shared tool registration of the concurrency report; schemas as
https://docs.anthropic.com/en/docs/agents-and-tools/tool-use/implement-tool-use describes them.
"""

from __future__ import annotations

import asyncio
import inspect
import json
import logging
import re
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar, get_args, get_type_hints

from kode_lab.errors import InvalidTool, Refused
from kode_lab.key import SessionKey
from kode_lab.message import ToolCall, ToolResult
from kode_lab.sessions.threads import THREAD_LIMIT, Threads

__all__ = [
    "CANCEL_GRACE_S",
    "ERROR_LIMIT_CHARS",
    "RESULT_LIMIT_CHARS",
    "Tool",
    "ToolContext",
    "Toolbox",
    "use",
]

# About 12,000 tokens: a result that fills the model's context helps nobody.
RESULT_LIMIT_CHARS = 50_000
ERROR_LIMIT_CHARS = 500
# How long a cancelled async tool may tidy up before it is left behind.
CANCEL_GRACE_S = 0.5
_NAME = re.compile(r"[a-zA-Z0-9_-]{1,64}")
_LOG = logging.getLogger(__name__)

F = TypeVar("F", bound=Callable[..., Any])


class ToolContext(NamedTuple):
    """For whom a tool runs.

    Attributes:
        key: the session.
        turn_id: the turn that asked.
        call_id: the model's id of this call.
        idempotency_key: the same whenever this call is made again, and no other call's of whichever
            session; an effect carries it, so that it happens once.
    """

    key: SessionKey
    turn_id: str
    call_id: str
    idempotency_key: str


@dataclass(frozen=True, slots=True, eq=False)
class Tool:
    """One registered function.

    Attributes:
        input_schema: JSON schema of the arguments, deeply immutable.
        function: what runs.
        is_async: whether it runs in the loop (else in a thread).
        context_name: the parameter that takes the ``ToolContext``, or "".
        check: gives the keyword arguments, or raises ``ValueError`` with a sentence.
        threads: where it runs if it is not async.
    """

    name: str
    description: str
    input_schema: Mapping[str, Any]
    function: Callable[..., Any]
    is_async: bool
    context_name: str
    check: Callable[[Mapping[str, Any]], dict[str, Any]]
    threads: Threads

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

    def tool(self, function: F) -> F:
        """Register the function under its own name, and give it back unchanged.

        Every parameter is annotated. The docstring's first part tells the model what the tool is
        for, its ``Args:`` what each argument means. A parameter annotated ``ToolContext`` is given
        the context. A plain function runs in a thread, an ``async`` one in the loop.

        Raises:
            InvalidTool: the name is taken or not allowed, or the signature has no JSON schema.
        """
        name = getattr(function, "__name__", "")
        if not _NAME.fullmatch(name):
            raise InvalidTool(
                f"a tool's name is {_NAME.pattern}, not {name!r:.80}: register a named function"
            )
        if name in self._tools:
            raise InvalidTool(f"there is a tool {name!r} already: give this one another name")
        self._tools[name] = _tool(name, function, self.threads)
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


async def use(
    tool: Tool | None,
    call: ToolCall,
    context: ToolContext,
    timeout_s: float,
    *,
    known: Sequence[str] = (),
) -> ToolResult:
    """Return the result of one call of a tool: always a result, whatever the tool does.

    Args:
        tool: what was asked for, or None if the agent has no tool of that name.
        call: what the model asked.
        context: for whom.
        timeout_s: after this the result is an error. An async tool is then cancelled; a thread
            cannot be: it runs on unheard, and only the idempotency key guards its effect.
        known: the names to tell the model of when there is no such tool.

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
    try:
        if tool.is_async:
            content, is_error = await _in_task(tool, arguments, timeout_s)
        else:
            content, is_error = await tool.threads.run(
                lambda: _run(tool, arguments), timeout_s, owner=context.key[:2]
            )
    except (TimeoutError, Refused) as error:
        content, is_error = f"{tool.name}: {error}.", True
    return ToolResult(call.id, content, is_error)


def _run(tool: Tool, arguments: dict[str, Any]) -> tuple[str, bool]:
    try:
        return _text(tool.function(**arguments)), False
    except BaseException as error:  # noqa: BLE001 - in a thread of ours even SystemExit is the tool's
        return _failure(tool, error), True


async def _await(tool: Tool, arguments: dict[str, Any]) -> tuple[str, bool]:
    try:
        return _text(await tool.function(**arguments)), False
    except (Exception, SystemExit) as error:  # noqa: BLE001 - a tool's failure is for the model
        return _failure(tool, error), True


# The loop keeps only weak references to tasks; one that would not be cancelled is kept here.
_left_behind: set[asyncio.Task[tuple[str, bool]]] = set()


async def _in_task(tool: Tool, arguments: dict[str, Any], timeout_s: float) -> tuple[str, bool]:
    """Run an async tool in a task of its own, so that one that ignores cancellation holds nobody.

    ``asyncio.timeout`` would wait for such a tool for ever.
    """
    task = asyncio.create_task(_await(tool, arguments), name=f"tool {tool.name}")
    try:
        await asyncio.wait((task,), timeout=timeout_s)
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
        return task.result()  # perhaps late, but true
    if is_late:
        return f"{tool.name}: no result after {timeout_s:g} s; it was cancelled.", True
    return f"{tool.name} failed: it cancelled itself.", True


def _text(result: object) -> str:
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


def _tool(name: str, function: Callable[..., Any], threads: Threads) -> Tool:
    if inspect.isasyncgenfunction(function) or inspect.isgeneratorfunction(function):
        raise InvalidTool(f"{name} yields: a tool returns its one result")
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
                f"{name}: {parameter} cannot be given by name: spell every argument out"
            )
        if parameter.name not in hints:
            raise InvalidTool(f"{name}: annotate {parameter.name!r}, its schema comes from there")
        hint = hints[parameter.name]
        if hint is ToolContext and not context_name:
            context_name = parameter.name
        elif _mentions_context(hint):
            # The model must never be able to say whose session it is.
            raise InvalidTool(
                f"{name}: annotate one parameter exactly ToolContext, not {parameter.name!r} so"
            )
        else:
            accepted[parameter.name] = (hint, parameter)
    description, meanings = _described(function)
    schema, check = _checked(name, accepted, meanings)
    is_async = inspect.iscoroutinefunction(function)
    return Tool(
        name, description, _frozen(schema), function, is_async, context_name, check, threads
    )


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
            # Optional, but not to be shown. The function itself supplies its default.
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
        part.pop("title", None)  # made up from the name: tokens that say nothing

    def check(given: Mapping[str, Any]) -> dict[str, Any]:
        if not isinstance(given, Mapping):
            raise ValueError(f"its input is an object, not {type(given).__name__}")  # noqa: TRY004
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
