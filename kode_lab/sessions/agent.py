"""The shared half of an agent: one frozen configuration, from Python values or from a TOML file.

All sessions of an agent hold the same ``AgentConfig`` object; what differs between sessions is
never in it. A shelf of TOML files calls ``stat`` before each turn, so that a changed file reaches
every session at its next turn, while a running turn keeps the object that it began with. A changed
file that is not valid only adds to ``problems()``: the last valid version stays in use.

This module must not know sessions, stores or models.

Source: "shared configuration, independent instances" of the concurrency report; git's racy index
entries for why a file that changed a moment ago is read twice.
"""

from __future__ import annotations

import json
import os
import re
import time
import tomllib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol, TypeAlias, cast, get_args

from kode_lab.errors import CallerError, InvalidConfig, InvalidTool, UnknownAgent, UnknownTool
from kode_lab.key import SessionKey
from kode_lab.sessions.own_tools import memory_tools, sub_agent
from kode_lab.sessions.tool import Tool, Toolbox, tools_of

__all__ = [
    "CONFIG_LIMIT_BYTES",
    "STRATEGIES",
    "TOOLS_LIMIT",
    "AgentConfig",
    "AgentShelf",
    "Agents",
    "ContextPolicy",
    "Strategy",
    "config_of",
    "shelf_of",
]

# What a turn does when its session is busy: wait, fail, take the running turn's place, or give its
# prompt to the running turn.
Strategy: TypeAlias = Literal["enqueue", "reject", "interrupt", "rollback", "steer"]
STRATEGIES: tuple[Strategy, ...] = get_args(Strategy)
CONFIG_LIMIT_BYTES = 1_000_000
TOOLS_LIMIT = 128
# Kernels stamp files with a clock that ticks every 1-10 ms: within this time of its stamp a file
# may change again without a visible difference.
_RACY_NS = 100_000_000
# A look is a system call; a person who changes a file does not notice this.
_LOOK_S = 0.05
# One path component on every system: no separator, drive, leading dot, or control character.
_FILE_NAME = re.compile(r"\w[\w.-]{0,99}")


class ContextPolicy(NamedTuple):
    """How much of a session's history the model receives; the record is always whole.

    Without a limit that is everything. A turn is sent whole or not at all, so a tool call is never
    separated from its result.

    Attributes:
        window_turns: the running turn and so many finished ones before it.
        window_tokens: as many finished turns as fit into so many tokens (4 bytes of JSON each).
        compact_above_tokens: above this, the older turns are replaced by a summary, which the
            model writes under the session's lock.
        keep_turns: the turns that a summary does not replace.
    """

    window_turns: int | None = None
    window_tokens: int | None = None
    compact_above_tokens: int | None = None
    keep_turns: int = 4


@dataclass(frozen=True, slots=True, eq=False, init=False)
class AgentConfig:
    """Everything that the sessions of an agent share; deeply immutable.

    Args:
        agent_id: the agent's name; ``SessionKey.agent_id`` of its sessions.
        model: name of the model, as the Messages API takes it.
        system: the system prompt.
        tools: a toolbox (all its tools), or a list of tools and functions.
        max_tokens: limit of one reply.
        temperature: of sampling, or None for the model's own.
        step_limit: model calls in one turn.
        deadline_s: from the start of a turn to its reply.
        queue_limit: turns that may wait for one session.
        tool_timeout_s: for one tool call.
        strategy: one of ``STRATEGIES``, for turns that do not choose.
        context: how much of the history the model receives; ``"all"`` is everything.
        cache: whether to mark the prompt's stable prefix for the API's prompt cache.
        agents: other agents that it may use as tools, each in a child session.
        memory: whether it has the tools ``remember``, ``recall`` and ``forget`` for what the
            sessions of a user share.
        version: names this configuration in replies and records; None derives it from the rest.

    Attributes:
        tool_specs: the tools as the Messages API takes them.

    Raises:
        InvalidConfig: a value is of the wrong kind or out of its range; names the field.
        InvalidKey: ``agent_id`` cannot be used.
    """

    agent_id: str
    model: str
    system: str
    tools: tuple[Tool, ...]
    tool_specs: tuple[Mapping[str, Any], ...]
    max_tokens: int
    temperature: float | None
    step_limit: int
    deadline_s: float
    queue_limit: int
    tool_timeout_s: float
    strategy: Strategy
    context: ContextPolicy
    cache: bool
    agents: tuple[str, ...]
    memory: bool
    version: str

    def __init__(
        self,
        agent_id: str,
        model: str,
        system: str = "",
        tools: Toolbox | Iterable[Tool | Callable[..., Any]] = (),
        *,
        max_tokens: int = 1024,
        temperature: float | None = None,
        step_limit: int = 20,
        deadline_s: float = 300,
        queue_limit: int = 100,
        tool_timeout_s: float = 30,
        strategy: Strategy = "enqueue",
        context: ContextPolicy | Literal["all"] = "all",
        cache: bool = False,
        agents: Sequence[str] = (),
        memory: bool = False,
        version: str | None = None,
    ) -> None:
        given = locals().copy()
        SessionKey.of("user", agent_id)
        where = f"agent {agent_id!r:.80}"
        fields: dict[str, Any] = {name: given[name] for name in _FIELDS}
        for name, value in fields.items():
            _check_field(where, name, value)
        try:
            own = [*map(sub_agent, agents), *(memory_tools() if memory else ())]
            found = tools_of((*tools_of(tools), *own))
        except InvalidTool as error:
            raise InvalidConfig(f"{where}: {error}") from None
        if len(found) > TOOLS_LIMIT:
            raise InvalidConfig(f"{where}: {len(found)} tools, TOOLS_LIMIT={TOOLS_LIMIT}: use less")
        specs = tuple(tool.spec for tool in found)
        if version is not None and not (version.isprintable() and 0 < len(version) <= 100):
            raise InvalidConfig(f"{where}: version is {version!r:.80}: use 1 to 100 characters")
        if version is None:
            facts = json.dumps([fields, specs], default=_plain, sort_keys=True)
            version = _version(facts.encode(errors="replace"))
        fields["context"] = ContextPolicy() if isinstance(context, str) else context
        fields |= {"agent_id": agent_id, "tools": found, "tool_specs": specs, "version": version}
        for name, value in (fields | {"agents": tuple(agents)}).items():
            object.__setattr__(self, name, value)

    def tool(self, name: str) -> Tool | None:
        """Return the agent's tool of that name, or None."""
        for tool in self.tools:
            if tool.name == name:
                return tool
        return None

    @property
    def tool_names(self) -> tuple[str, ...]:
        """The names of the agent's tools."""
        return tuple(tool.name for tool in self.tools)


class Agents(Protocol):
    """Where the manager finds the configuration of an agent, such as an ``AgentShelf``."""

    def current(self, agent_id: str) -> AgentConfig:
        """Return the configuration for the next turn.

        Raises:
            UnknownAgent: there is no agent of that name.
        """
        ...


class _Stamp(NamedTuple):
    """What differs between two states of a file, without reading it."""

    mtime_ns: int
    size_bytes: int
    inode: int


class _Shelved(NamedTuple):
    config: AgentConfig
    path: str
    stamp: _Stamp | None  # of the last look, valid or not; None when the file is gone
    is_racy: bool


class AgentShelf:
    """Agents by name: Python values, and files ``<agent_id>.toml`` that are loaded when first used.

    Args:
        directory: where the files are; None for a shelf without files.
        toolbox: the tools that the files may name.
        agents: configurations made in Python; they take precedence over files of the same name.
        on_problem: called once for each new problem of a file; must not raise.
        clock_ns: wall time, to compare with the stamps of files.

    Raises:
        InvalidConfig: there is no such directory, or ``agents`` holds something else or one name
            twice.
    """

    def __init__(
        self,
        directory: Path | str | None = None,
        toolbox: Toolbox | None = None,
        *,
        agents: Iterable[AgentConfig] = (),
        on_problem: Callable[[CallerError], None] | None = None,
        clock_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        if toolbox is not None and not isinstance(toolbox, Toolbox):
            raise InvalidConfig(f"toolbox is a {type(toolbox).__name__}: pass a Toolbox")
        if directory is not None and not (
            isinstance(directory, str | os.PathLike) and Path(directory).is_dir()
        ):
            raise InvalidConfig(
                f"there is no directory of agents {directory!s:.200}: create it, or pass "
                "agents=[AgentConfig(agent_id, model, ...)]"
            )
        self.directory = None if directory is None else Path(directory)
        self.toolbox = Toolbox() if toolbox is None else toolbox
        self._on_problem = on_problem
        self._clock_ns = clock_ns
        self._fixed: dict[str, AgentConfig] = {}
        self._shelved: dict[str, _Shelved] = {}
        self._look_at_s: dict[str, float] = {}
        self._problems: dict[str, CallerError] = {}
        for config in agents:
            if getattr(config, "agent_id", None) in self._fixed:
                raise InvalidConfig(f"two agents are called {config.agent_id!r:.80}: rename one")
            self.put(config)

    def put(self, config: AgentConfig) -> None:
        """Add an agent, or replace it: its sessions use the new configuration from the next turn.

        Raises:
            InvalidConfig: the value is not an ``AgentConfig``.
        """
        if not isinstance(config, AgentConfig):
            raise InvalidConfig(
                f"an agent is a {type(config).__name__}: pass AgentConfig(agent_id, model, ...)"
            )
        self._fixed[config.agent_id] = config

    def current(self, agent_id: str) -> AgentConfig:
        """Return the agent's configuration as it is now: the same object until it changes.

        A file that was not changed is looked at again after 50 ms at the latest. If it was changed
        and is not valid, the last valid version is returned, and the problem is reported and kept.

        Raises:
            UnknownAgent: there is no such agent; names those that exist.
            InvalidConfig: the file is not valid, and there is no older version.
            UnknownTool: likewise, because it names a tool that is not in the toolbox.
        """
        fixed = self._fixed.get(agent_id)
        if fixed is not None:
            return fixed
        shelved = self._shelved.get(agent_id)
        if shelved is not None:
            now_s = time.monotonic()
            if now_s < self._look_at_s.get(agent_id, 0.0):
                return shelved.config
            stamp = _stamp(shelved.path)
            if stamp == shelved.stamp and not shelved.is_racy:
                if stamp is not None:
                    self._look_at_s[agent_id] = now_s + _LOOK_S
                return shelved.config
        return self._look_again(agent_id, shelved)

    def problems(self) -> tuple[CallerError, ...]:
        """Return what is wrong with the files, as of the last use of each agent."""
        return tuple(self._problems.values())

    @property
    def agent_ids(self) -> tuple[str, ...]:
        """The agents that exist now, sorted."""
        names = set(self._fixed)
        if self.directory is not None:
            stems = (path.stem for path in self.directory.glob("*.toml"))
            names.update(stem for stem in stems if _FILE_NAME.fullmatch(stem))
        return tuple(sorted(names))

    def _look_again(self, agent_id: str, shelved: _Shelved | None) -> AgentConfig:
        path = self._path(agent_id)
        # Both before reading, so that a change during the reading is seen at the next turn.
        looked_ns = self._clock_ns()
        stamp = _stamp(path)
        try:
            content = self._content(agent_id, path, stamp)
            if shelved is not None and shelved.config.version == _version(content):
                config = shelved.config  # the same content: keep the same object
            else:
                config = config_of(agent_id, content, self.toolbox, where=path)
        except CallerError as error:
            if shelved is None:
                if not isinstance(error, UnknownAgent):
                    self._report(agent_id, error)
                raise
            config = shelved.config
            self._report(agent_id, type(error)(f"{error}; version {config.version} stays in use"))
        else:
            self._problems.pop(agent_id, None)
        is_racy = stamp is not None and looked_ns - stamp.mtime_ns < _RACY_NS
        self._shelved[agent_id] = _Shelved(config, path, stamp, is_racy)
        return config

    def _path(self, agent_id: str) -> str:
        if self.directory is None:
            raise UnknownAgent(f"there is no agent {agent_id!r:.80}; {self._known()}")
        if not _FILE_NAME.fullmatch(agent_id):
            raise UnknownAgent(f"{agent_id!r:.80} is not the name of an agent; {self._known()}")
        return os.path.join(self.directory, f"{agent_id}.toml")  # noqa: PTH118 - stat takes text

    def _content(self, agent_id: str, path: str, stamp: _Stamp | None) -> bytes:
        if stamp is None:
            if agent_id in self._shelved:
                raise InvalidConfig(f"{path} is gone: put it back")
            raise UnknownAgent(f"there is no agent {agent_id!r:.80}; {self._known()}")
        if stamp.size_bytes > CONFIG_LIMIT_BYTES:
            raise InvalidConfig(
                f"{path} has {stamp.size_bytes} bytes: shorten it"
                f" (CONFIG_LIMIT_BYTES={CONFIG_LIMIT_BYTES})"
            )
        try:
            if not Path(path).is_file():  # reading a pipe would block
                raise InvalidConfig(f"{path} is not a file: put the configuration there")
            return Path(path).read_bytes()
        except OSError as error:
            raise InvalidConfig(
                f"{path} cannot be read ({error.strerror}): check its owner and mode"
            ) from error

    def _known(self) -> str:
        known = self.agent_ids
        listed = (", ".join(known[:20]) or "none") + (", ..." if len(known) > 20 else "")
        if self.directory is None:
            return f"agents: {listed}"
        return f"{self.directory} has: {listed} (add <agentId>.toml for another)"

    def _report(self, agent_id: str, problem: CallerError) -> None:
        before = self._problems.get(agent_id)
        self._problems[agent_id] = problem
        if self._on_problem is not None and str(before) != str(problem):
            self._on_problem(problem)


def shelf_of(agents: object) -> Agents:
    """Return where the agents are found that a caller passed.

    Raises:
        InvalidConfig: it is neither a shelf, nor an ``AgentConfig``, nor several of them.
    """
    if callable(getattr(agents, "current", None)):
        return cast("Agents", agents)
    if isinstance(agents, AgentConfig):
        return AgentShelf(agents=[agents])
    if isinstance(agents, Mapping):
        for name, config in agents.items():
            if isinstance(config, AgentConfig) and config.agent_id != name:
                raise InvalidConfig(
                    f"agents: {name!r:.60} is the name of agent {config.agent_id!r:.60}: use one"
                )
        return AgentShelf(agents=agents.values())
    if isinstance(agents, Iterable) and not isinstance(agents, str | bytes):
        return AgentShelf(agents=agents)
    raise InvalidConfig(
        f"agents is a {type(agents).__name__}: pass AgentShelf(directory, toolbox), or a list of "
        "AgentConfig(agent_id, model, ...)"
    )


def config_of(
    agent_id: str, content: bytes, toolbox: Toolbox, *, where: str = "configuration"
) -> AgentConfig:
    """Return the configuration that the TOML ``content`` describes; ``where`` begins each error.

    Only ``model`` is required; the other fields have the defaults of ``AgentConfig``.

    Raises:
        InvalidConfig: it is not TOML, or a field is unknown, missing, of the wrong kind or out of
            its range; names the line or the field.
        UnknownTool: ``tools`` names one that is not in the toolbox; names those that are.
    """
    try:
        # With the line break, an error at the end has a line number too.
        given = tomllib.loads(content.decode("utf-8-sig") + "\n")
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidConfig(f"{where}: not TOML: {error}") from error
    if "model" not in given:
        raise InvalidConfig(f"{where}: the field 'model' is missing: {_FIELDS['model'].rule}")
    names: list[str] = []
    for name, value in given.items():
        if name == "tools":
            if not _are_names(value):
                raise InvalidConfig(
                    f"{where}: tools is {value!r:.80}: list different names of tools"
                    f" (TOOLS_LIMIT={TOOLS_LIMIT})"
                )
            names = value
            continue
        if name not in _FIELDS:
            raise InvalidConfig(f"{where}: there is no field {name!r:.80}{_nearest(name)}")
        if name == "context" and isinstance(value, dict):
            given[name] = _policy_of(where, value)
        _check_field(where, name, given[name])
    given["tools"] = [_tool(name, toolbox, where) for name in names]
    return AgentConfig(agent_id, version=_version(content), **given)


def _tool(name: str, toolbox: Toolbox, where: str) -> Tool:
    tool = toolbox.get(name)
    if tool is None:
        raise UnknownTool(
            f"{where}: no tool {name!r:.80} is registered; tools: {', '.join(toolbox.names)}"
        )
    return tool


def _policy_of(where: str, table: Mapping[str, Any]) -> ContextPolicy:
    for name in table:
        if name not in ContextPolicy._fields:
            raise InvalidConfig(
                f"{where}: context has no field {name!r:.80}; fields: "
                f"{', '.join(ContextPolicy._fields)}"
            )
    return ContextPolicy(**table)


class _Field(NamedTuple):
    rule: str  # what to do, as the end of an error
    accepts: Callable[[Any], bool]


def _text(least_chars: int, limit_chars: int) -> _Field:
    return _Field(
        f"use a text of {least_chars} to {limit_chars} characters",
        lambda value: isinstance(value, str) and least_chars <= len(value) <= limit_chars,
    )


def _whole(least: int, most: int) -> _Field:
    return _Field(
        f"use a whole number from {least} to {most}",
        lambda value: type(value) is int and least <= value <= most,
    )


def _number(least: float, most: float, *, or_none: bool = False) -> _Field:
    return _Field(
        f"use a number from {least:g} to {most:g}",
        # "type is" excludes true and false; both comparisons are false for nan.
        lambda value: (
            (or_none and value is None) or (type(value) in (int, float) and least <= value <= most)
        ),
    )


def _is_policy(value: Any) -> bool:
    if not isinstance(value, ContextPolicy):
        return bool(value == "all")
    limits = (value.window_turns, value.window_tokens, value.compact_above_tokens)
    return (
        sum(limit is not None for limit in limits) <= 1
        and all(limit is None or type(limit) is int for limit in limits)
        and all(0 <= (limit or 0) <= 1_000_000_000 for limit in limits)
        and (limits[1] is None or limits[1] > 0)
        and (limits[2] is None or limits[2] > 0)
        and type(value.keep_turns) is int
        and 0 <= value.keep_turns <= 1_000
    )


def _are_names(value: Any) -> bool:
    return (
        isinstance(value, list | tuple)
        and len(value) <= TOOLS_LIMIT
        and all(isinstance(name, str) and name for name in value)
        and len(set(value)) == len(value)
    )


_FLAG = _Field("use true or false", lambda value: isinstance(value, bool))
_FIELDS: Mapping[str, _Field] = {
    "model": _text(1, 200),
    "system": _text(0, 500_000),
    "max_tokens": _whole(1, 1_000_000),
    "temperature": _number(0, 1, or_none=True),
    "step_limit": _whole(1, 1_000),
    "deadline_s": _number(0.001, 86_400),
    "queue_limit": _whole(0, 1_000_000),
    "tool_timeout_s": _number(0.001, 86_400),
    "strategy": _Field(f"use one of {', '.join(STRATEGIES)}", STRATEGIES.__contains__),
    "context": _Field(
        'use "all", or one of window_turns, window_tokens, compact_above_tokens (whole numbers) '
        "with keep_turns from 0 to 1000",
        _is_policy,
    ),
    "cache": _FLAG,
    "agents": _Field("list different names of agents", _are_names),
    "memory": _FLAG,
}


def _check_field(where: str, name: str, value: Any) -> None:
    if not _FIELDS[name].accepts(value):
        raise InvalidConfig(f"{where}: {name} is {value!r:.80}: {_FIELDS[name].rule}")


def _nearest(name: str) -> str:
    import difflib  # noqa: PLC0415 - for errors only

    known = [*_FIELDS, "tools"]
    near = difflib.get_close_matches(name, known, n=1)
    return f": did you mean {near[0]!r}?" if near else f"; fields: {', '.join(known)}"


def _stamp(path: str) -> _Stamp | None:
    try:
        found = os.stat(path)  # noqa: PTH116 - every turn calls this
    except OSError:
        return None
    return _Stamp(found.st_mtime_ns, found.st_size, found.st_ino)


def _plain(value: Any) -> Any:
    return dict(value) if isinstance(value, Mapping) else list(value)


def _version(content: bytes) -> str:
    return blake2b(content, digest_size=6).hexdigest()
