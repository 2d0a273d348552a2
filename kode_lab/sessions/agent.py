"""Agents' shared half: one frozen configuration per agent, from one TOML file, loaded once.

All sessions of an agent hold the same ``AgentConfig`` object; what differs between sessions is
never in here. The shelf looks at the file's stat before each turn, so that a changed file reaches
every session at its next turn, while a turn keeps the object it began with. A changed file that
cannot be used changes nothing but ``problems()``: the version that worked goes on.

It knows nothing of sessions, stores or models.

Source: "shared configuration, independent instances" of the concurrency report; git's racy index
entries for why a file changed a moment ago is read twice.
"""

from __future__ import annotations

import os
import re
import time
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeAlias, get_args

from kode_lab.errors import CallerError, InvalidConfig, UnknownAgent, UnknownTool
from kode_lab.sessions.tool import Tool, Toolbox

__all__ = [
    "CONFIG_LIMIT_BYTES",
    "STRATEGIES",
    "TOOLS_LIMIT",
    "AgentConfig",
    "AgentShelf",
    "Strategy",
    "config_of",
]

# What a turn does when its session is busy: wait, give up, or take the running turn's place.
Strategy: TypeAlias = Literal["enqueue", "reject", "interrupt", "rollback"]
STRATEGIES: tuple[Strategy, ...] = get_args(Strategy)
CONFIG_LIMIT_BYTES = 1_000_000
TOOLS_LIMIT = 128
# Kernels stamp files with a clock that ticks every 1-10 ms: within this time of its stamp a file
# may change again and look the same.
_RACY_NS = 100_000_000
# One path component on every system: no separator, drive, dot in front, or control character.
_FILE_NAME = re.compile(r"\w[\w.-]{0,99}")


@dataclass(frozen=True, slots=True, eq=False)
class AgentConfig:
    """All that the sessions of an agent share; deeply immutable.

    Attributes:
        model: name of the model, as the Messages API takes it.
        system: the system prompt.
        tools: what the agent may use, in the order of its file.
        tool_specs: the tools as the Messages API takes them.
        max_tokens: limit of one reply.
        temperature: of sampling, or None for the model's own.
        step_limit: model calls in one turn.
        deadline_s: from the start of a turn to its reply.
        queue_limit: turns that may wait for one session.
        tool_timeout_s: for one tool call.
        strategy: one of ``STRATEGIES``, for turns that do not choose.
        version: short hash of the file.
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
    version: str

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


class _Stamp(NamedTuple):
    """What tells one state of a file from another without reading it."""

    mtime_ns: int
    size_bytes: int
    inode: int


class _Shelved(NamedTuple):
    config: AgentConfig
    path: str
    stamp: _Stamp | None  # as last looked at, good or broken; None when the file is gone
    is_racy: bool


class AgentShelf:
    """The agents of a directory: ``<agent_id>.toml`` each, loaded when first asked for.

    Args:
        directory: where the files are.
        toolbox: the tools that they may name.
        on_problem: called once for each new problem of a file; must not raise.
        clock_ns: wall time, to compare with the stamps of files.

    Raises:
        InvalidConfig: there is no such directory.
    """

    def __init__(
        self,
        directory: Path,
        toolbox: Toolbox,
        *,
        on_problem: Callable[[CallerError], None] | None = None,
        clock_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        if not Path(directory).is_dir():
            raise InvalidConfig(f"there is no directory of agents {directory}: create it")
        self.directory = Path(directory)
        self.toolbox = toolbox
        self._on_problem = on_problem
        self._clock_ns = clock_ns
        self._shelved: dict[str, _Shelved] = {}
        self._problems: dict[str, CallerError] = {}

    def current(self, agent_id: str) -> AgentConfig:
        """Return the agent's configuration as its file is now: the same object until that changes.

        It costs one ``stat``; where the file was changed and cannot be used, the last version that
        could is given, and the problem is told and kept.

        Raises:
            UnknownAgent: there is no file of that name, nor was there; names those there are.
            InvalidConfig: the file cannot be used, and there is no older version.
            UnknownTool: likewise, because it names a tool that is not in the toolbox.
        """
        shelved = self._shelved.get(agent_id)
        if shelved is not None:
            stamp = _stamp(shelved.path)
            if stamp == shelved.stamp and not shelved.is_racy:
                return shelved.config
        return self._look_again(agent_id, shelved)

    def problems(self) -> tuple[CallerError, ...]:
        """Return what is wrong now with the files, as of when each agent was last asked for."""
        return tuple(self._problems.values())

    @property
    def agent_ids(self) -> tuple[str, ...]:
        """The agents that have a file now, sorted."""
        names = (path.stem for path in self.directory.glob("*.toml"))
        return tuple(sorted(name for name in names if _FILE_NAME.fullmatch(name)))

    def _look_again(self, agent_id: str, shelved: _Shelved | None) -> AgentConfig:
        path = self._path(agent_id)
        # Both before reading: a change while it is read is then seen at the next turn.
        looked_ns = self._clock_ns()
        stamp = _stamp(path)
        try:
            content = self._content(agent_id, path, stamp)
            if shelved is not None and shelved.config.version == _version(content):
                config = shelved.config  # only touched, or mended as it was: still the same object
            else:
                config = config_of(agent_id, content, self.toolbox, where=path)
        except CallerError as error:
            if shelved is None:
                if not isinstance(error, UnknownAgent):
                    self._tell(agent_id, error)
                raise
            config = shelved.config
            self._tell(agent_id, type(error)(f"{error}; version {config.version} goes on"))
        else:
            self._problems.pop(agent_id, None)
        is_racy = stamp is not None and looked_ns - stamp.mtime_ns < _RACY_NS
        self._shelved[agent_id] = _Shelved(config, path, stamp, is_racy)
        return config

    def _path(self, agent_id: str) -> str:
        if not _FILE_NAME.fullmatch(agent_id):
            raise UnknownAgent(f"{agent_id!r:.80} is no name of an agent; {self._known()}")
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
            if not Path(path).is_file():  # reading a pipe would never end
                raise InvalidConfig(f"{path} is not a file: put the configuration there")
            return Path(path).read_bytes()
        except OSError as error:
            raise InvalidConfig(
                f"{path} cannot be read ({error.strerror}): check its owner and mode"
            ) from error

    def _known(self) -> str:
        known = self.agent_ids
        listed = ", ".join(known[:20]) + (", ..." if len(known) > 20 else "")
        return f"{self.directory} has: {listed or 'none'} (add <agentId>.toml for another)"

    def _tell(self, agent_id: str, problem: CallerError) -> None:
        before = self._problems.get(agent_id)
        self._problems[agent_id] = problem
        if self._on_problem is not None and str(before) != str(problem):
            self._on_problem(problem)


def config_of(
    agent_id: str, content: bytes, toolbox: Toolbox, *, where: str = "configuration"
) -> AgentConfig:
    """Return the configuration that the TOML ``content`` says; ``where`` begins each error.

    ``model`` is required. What the other fields are when they are not given stands in ``_FIELDS``.

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
    for name in given:
        if name not in _FIELDS:
            raise InvalidConfig(f"{where}: there is no field {name!r:.80}{_nearest(name)}")
    fields: dict[str, Any] = {}
    for name, field in _FIELDS.items():
        if name not in given and field.default is _REQUIRED:
            raise InvalidConfig(f"{where}: the field {name!r} is missing: {field.rule}")
        fields[name] = given.get(name, field.default)
        if name in given and not field.accepts(given[name]):
            raise InvalidConfig(f"{where}: {name} is {given[name]!r:.80}: {field.rule}")
    tools = tuple(_tool(name, toolbox, where) for name in fields.pop("tools"))
    return AgentConfig(
        agent_id=agent_id,
        tools=tools,
        tool_specs=tuple(tool.spec for tool in tools),
        version=_version(content),
        **fields,
    )


def _tool(name: str, toolbox: Toolbox, where: str) -> Tool:
    tool = toolbox.get(name)
    if tool is None:
        raise UnknownTool(
            f"{where}: no tool {name!r:.80} is registered; tools: {', '.join(toolbox.names)}"
        )
    return tool


class _Field(NamedTuple):
    default: Any
    rule: str  # what to do, as the end of an error
    accepts: Callable[[Any], bool]


def _text(default: Any, limit_chars: int, *, least_chars: int = 0) -> _Field:
    return _Field(
        default,
        f"give a text of {least_chars} to {limit_chars} characters",
        lambda value: isinstance(value, str) and least_chars <= len(value) <= limit_chars,
    )


def _whole(default: int, least: int, most: int) -> _Field:
    return _Field(
        default,
        f"give a whole number from {least} to {most}",
        lambda value: type(value) is int and least <= value <= most,
    )


def _number(default: float | None, least: float, most: float) -> _Field:
    return _Field(
        default,
        f"give a number from {least:g} to {most:g}",
        # "type is" keeps true and false out; neither comparison holds for nan.
        lambda value: type(value) in (int, float) and least <= value <= most,
    )


def _is_tool_list(value: Any) -> bool:
    return (
        isinstance(value, list)
        and len(value) <= TOOLS_LIMIT
        and all(isinstance(name, str) for name in value)
        and len(set(value)) == len(value)
    )


_REQUIRED = object()
_FIELDS: Mapping[str, _Field] = {
    "model": _text(_REQUIRED, 200, least_chars=1),
    "system": _text("", 500_000),
    "tools": _Field(
        (), f"list different names of tools (TOOLS_LIMIT={TOOLS_LIMIT})", _is_tool_list
    ),
    "max_tokens": _whole(1024, 1, 1_000_000),
    "temperature": _number(None, 0, 1),
    "step_limit": _whole(20, 1, 1_000),
    "deadline_s": _number(300, 0.001, 86_400),
    "queue_limit": _whole(100, 0, 1_000_000),
    "tool_timeout_s": _number(30, 0.001, 86_400),
    "strategy": _Field("enqueue", f"give one of {', '.join(STRATEGIES)}", STRATEGIES.__contains__),
}


def _nearest(name: str) -> str:
    import difflib  # noqa: PLC0415 - for errors only

    near = difflib.get_close_matches(name, _FIELDS, n=1)
    return f": did you mean {near[0]!r}?" if near else f"; fields: {', '.join(_FIELDS)}"


def _stamp(path: str) -> _Stamp | None:
    try:
        found = os.stat(path)  # noqa: PTH116 - on the path of every turn
    except OSError:
        return None
    return _Stamp(found.st_mtime_ns, found.st_size, found.st_ino)


def _version(content: bytes) -> str:
    return blake2b(content, digest_size=6).hexdigest()
