"""A service described in a TOML file: what can be said, and where a file says it wrongly.

It owns the fields of the file and their complaints, each with line and field; how the described
service is asked is ``http_target``'s. ``docs/judge-your-service.md`` explains the fields.
"""

from __future__ import annotations

import difflib
import re
import shlex
import tomllib
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from kode_lab.errors import InvalidScenario
from kode_lab.targets.target import DEFAULT_PROMISES, DEFINITE, Declaration
from kode_lab.targets.template import JsonPath, Template

__all__ = ["Capture", "Condition", "Description", "Reading", "Request", "Rule", "read_description"]

# What is known of a turn, a session, the set-up, and the surroundings.
_SURROUNDINGS = ("model_url", "model_host", "port", "data")
_TURN = ("user", "session", "agent", "key", "session_uuid", "user_uuid", *_SURROUNDINGS)
_ASKED = (*_TURN, "prompt", "turn_id", "turn_uuid")
OUTCOMES = ("ok", "fail", "info")
_PROMISES = ("apart", "kept", "whole", "ordered", "durable", "tools", "service")
_USER_ROLES = ("user", "human", "USER", "HumanMessage")


class Request(NamedTuple):
    """One HTTP request with holes.

    Attributes:
        url: absolute, or a path below the service's URL.
        json: the body as a JSON value of templates, or None.
        form: the body as a form, or None.
        raw: the body as a text, or None.
        is_raw_json: whether that text is JSON, so that values are escaped in it.
        captures: values taken from the answer, by name.
    """

    method: str
    url: Template
    headers: Mapping[str, Template]
    json: Any = None
    form: Mapping[str, Template] | None = None
    raw: Template | None = None
    is_raw_json: bool = False
    captures: Mapping[str, Capture] = {}


class Capture(NamedTuple):
    """Where a value is found in an answer: ``body`` (a path), ``header`` or ``cookie`` (a name)."""

    place: str
    path: JsonPath
    name: str


class Condition(NamedTuple):
    """What must be so of an answer or event: a path with one of some values, a text, an event."""

    path: JsonPath | None = None
    values: tuple[Any, ...] = ()
    pattern: re.Pattern[str] | None = None
    event: str = ""
    data: str = ""


class Rule(NamedTuple):
    """An outcome for answers of some status that fulfil a condition."""

    outcome: str
    statuses: frozenset[int]
    condition: Condition | None


class Stream(NamedTuple):
    """How a streamed reply is read.

    Attributes:
        is_sse: server-sent events; else one JSON value a line.
        done: what ends it; a stream that ends without it was cut.
    """

    is_sse: bool
    text: JsonPath | None
    when: Condition | None
    done: Condition | None
    failed: Condition | None


class Later(NamedTuple):
    """How a reply is fetched that does not come with the answer."""

    request: Request
    every_s: float
    patience_s: float
    until: Condition | None
    failed: Condition | None
    find: JsonPath | None


class Reading(NamedTuple):
    """How a session is read back.

    Attributes:
        items: the path to its elements, or None where ``pattern`` finds them in the body.
        empty: statuses that mean a session without turns.
    """

    request: Request
    items: JsonPath | None
    text: JsonPath | None
    role: JsonPath | None
    user_roles: frozenset[str]
    pattern: re.Pattern[str] | None
    next_path: JsonPath | None
    next_query: str
    empty: frozenset[int]


class Description(NamedTuple):
    """A whole file.

    Attributes:
        url: where the service is; may hold ``{port}``.
        start: its command, or empty when it runs already.
        kill: a command that kills it, where killing the started process is not enough.
        directory: where the file lies; the command runs there.
    """

    declaration: Declaration
    url: Template
    turn: Request
    reply: JsonPath | None
    reply_pattern: re.Pattern[str] | None
    is_text: bool
    stream: Stream | None
    later: Later | None
    rules: tuple[Rule, ...]
    definite: frozenset[int]
    config: JsonPath | None
    setup_user: Request | None
    setup_session: Request | None
    is_session_again: bool
    history: Reading | None
    start: tuple[Template, ...]
    kill: tuple[Template, ...]
    restart: tuple[Template, ...]
    env: Mapping[str, Template]
    directory: Path
    ready: Template | None
    ready_s: float


_REQUEST_FIELDS = {
    "method": str, "path": str, "url": str, "headers": dict, "query": dict,
    "body": (dict, list, str), "form": dict, "capture": dict,
}  # fmt: skip
_CONDITION_FIELDS = {
    "path": str, "value": object, "values": list, "pattern": str, "event": str, "data": str,
}  # fmt: skip
# Every table of the file, with its fields and their kinds.
_FIELDS: Mapping[str, Mapping[str, Any]] = {
    "": {
        "name": str, "version": str, "url": str, "start": (str, list), "kill": (str, list),
        "restart": (str, list), "env": dict, "cwd": str, "ready": str, "ready_s": (int, float),
        "turn": dict, "history": dict, "setup": dict, "declares": dict,
    },
    "turn": {
        **_REQUEST_FIELDS, "reply": str, "reply_pattern": str, "text": bool, "stream": dict,
        "later": dict, "rules": list, "definite": list, "config": str,
    },
    "turn.stream": {
        "format": str, "text": str, "event": str, "when": dict, "done": (str, dict), "failed": dict,
    },
    "turn.later": {
        **_REQUEST_FIELDS, "every_s": (int, float), "patience_s": (int, float), "until": dict,
        "failed": dict, "find": str,
    },
    "turn.rules": {"outcome": str, "status": (int, list), **_CONDITION_FIELDS},
    "setup": {"user": dict, "session": dict},
    "setup.user": _REQUEST_FIELDS,
    "setup.session": {**_REQUEST_FIELDS, "again_after_restart": bool},
    "history": {
        **_REQUEST_FIELDS, "items": str, "text": str, "role": str, "user_role": (str, list),
        "pattern": str, "next": dict, "empty": list,
    },
    "history.next": {"path": str, "query": str},
    "declares": {
        "parts": list, "promises": list, "durable": bool, "idempotent": bool, "window": int,
        "compacts": bool, "strategy": str,
    },
}  # fmt: skip
_KINDS = {str: "text", int: "a whole number", float: "a number", dict: "a table", list: "a list",
          bool: "true or false", object: "a value"}  # fmt: skip


class _File:
    """The file's text and values, to complain with a line."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self.text = path.read_text("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise InvalidScenario(f"{path}: cannot be read: {error}") from None
        try:
            self.values = tomllib.loads(self.text)
        except tomllib.TOMLDecodeError as error:
            raise InvalidScenario(f"{path.name}: not TOML: {error}") from None

    def wrong(self, field: str, complaint: str) -> InvalidScenario:
        """Return the error for a field, with the line where it stands."""
        return InvalidScenario(
            f"{self.path.name}, line {self._line_of(field)}: {field}: {complaint}"
        )

    def _line_of(self, field: str) -> int:
        """Return the line of a dotted field, or of the innermost table that has a line."""
        parts = field.split(".")
        best, best_depth, table = 1, 0, ""
        for number, line in enumerate(self.text.splitlines(), 1):
            header = re.match(r"\s*\[\[?\s*([^\]]+?)\s*\]\]?", line)
            named = re.match(r"""\s*["']?([\w-]+(?:\.[\w-]+)*)["']?\s*=""", line)
            where = table
            if header and not named:
                where = table = header[1].replace(" ", "")
            elif named:
                where = f"{table}.{named[1]}".strip(".")
            else:
                continue
            depth = len(where.split("."))
            if parts[:depth] == where.split(".") and depth > best_depth:
                best, best_depth = number, depth
        return best


def read_description(path: Path) -> Description:
    """Return what a TOML file says.

    Raises:
        InvalidScenario: it cannot be read, or a field is wrong; names line and field.
    """
    file = _File(path)
    values = file.values
    _check_fields(file, values, "")
    if "turn" not in values:
        raise file.wrong("turn", "is missing: say how a turn is sent, with path, body and reply")
    if "url" not in values:
        raise file.wrong(
            "url", 'is missing: where does the service listen? "http://127.0.0.1:8000"'
        )
    setup = values.get("setup", {})
    user = _request(file, setup["user"], "setup.user", _TURN) if "user" in setup else None
    per_user = tuple(user.captures) if user else ()
    session = None
    if "session" in setup:
        session = _request(file, setup["session"], "setup.session", (*_TURN, *per_user))
    captured = (*per_user, *(session.captures if session else ()))
    turn = _request(file, values["turn"], "turn", (*_ASKED, *captured))
    later = _later(file, values["turn"], (*_ASKED, *captured, *turn.captures))
    reading = _reading(file, values, (*_TURN, *captured))
    asked = values["turn"]
    definite = file.values["turn"].get("definite")
    stream = _stream(file, asked.get("stream"))
    replies = [name for name in ("reply", "reply_pattern", "text", "stream") if asked.get(name)]
    if not replies:
        raise file.wrong(
            "turn.reply", 'is missing: where is the reply? A path as "$.reply", or text = true'
        )
    return Description(
        declaration=_declaration(file, (turn, user, session), has_history=reading is not None),
        url=_template(file, values["url"].rstrip("/"), "url", ("port",)),
        turn=turn,
        reply=_path(file, asked, "turn", "reply"),
        reply_pattern=_pattern(file, asked, "turn", "reply_pattern"),
        is_text=bool(asked.get("text")),
        stream=stream,
        later=later,
        rules=tuple(_rule(file, rule, at) for at, rule in enumerate(asked.get("rules", ()))),
        definite=DEFINITE if definite is None else frozenset(definite),
        config=_path(file, asked, "turn", "config"),
        setup_user=user,
        setup_session=session,
        is_session_again=bool(setup.get("session", {}).get("again_after_restart")),
        history=reading,
        start=_command(file, values, "start"),
        kill=_command(file, values, "kill"),
        restart=_command(file, values, "restart"),
        env={
            name: _template(file, str(value), f"env.{name}", _SURROUNDINGS)
            for name, value in values.get("env", {}).items()
        },
        directory=(path.parent / values.get("cwd", ".")).resolve(),
        ready=_template(file, values["ready"], "ready", ("port",)) if "ready" in values else None,
        ready_s=float(values.get("ready_s", 60.0)),
    )


def _check_fields(file: _File, values: Mapping[str, Any], table: str) -> None:
    fields = _FIELDS[table]
    for name, value in values.items():
        where = f"{table}.{name}".strip(".")
        kind = fields.get(name)
        if kind is None:
            near = difflib.get_close_matches(name, fields, 1)
            meant = f"did you mean {near[0]}?" if near else f"there are {', '.join(fields)}"
            raise file.wrong(where, f"is not a field: {meant}")
        kinds = kind if isinstance(kind, tuple) else (kind,)
        is_bool = isinstance(value, bool) and bool not in kinds and object not in kinds
        if not isinstance(value, kinds) or is_bool:
            listed = " or ".join(_KINDS[one] for one in kinds)
            raise file.wrong(where, f"must be {listed}, not {value!r:.60}")
        if where in _FIELDS and isinstance(value, dict):
            _check_fields(file, value, where)
        elif where == "turn.rules":
            for rule in value:
                if not isinstance(rule, dict):
                    raise file.wrong(where, f"must be a list of tables, not {rule!r:.60}")
                _check_fields(file, rule, where)


def _template(file: _File, text: str, field: str, known: Collection[str]) -> Template:
    try:
        return Template(text, known)
    except InvalidScenario as error:
        raise file.wrong(field, str(error)) from None


def _templates(file: _File, value: Any, field: str, known: Collection[str]) -> Any:
    if isinstance(value, str):
        return _template(file, value, field, known)
    if isinstance(value, dict):
        return {n: _templates(file, v, f"{field}.{n}", known) for n, v in value.items()}
    if isinstance(value, list):
        return [_templates(file, v, field, known) for v in value]
    return value


def _path(file: _File, table: Mapping[str, Any], where: str, name: str) -> JsonPath | None:
    if name not in table:
        return None
    try:
        return JsonPath(table[name])
    except InvalidScenario as error:
        raise file.wrong(f"{where}.{name}", str(error)) from None


def _pattern(
    file: _File, table: Mapping[str, Any], where: str, name: str
) -> re.Pattern[str] | None:
    if name not in table:
        return None
    try:
        return re.compile(table[name], re.DOTALL)
    except re.error as error:
        raise file.wrong(f"{where}.{name}", f"not a regular expression: {error}") from None


def _command(file: _File, values: Mapping[str, Any], name: str) -> tuple[Template, ...]:
    command = values.get(name, ())
    try:
        words = shlex.split(command) if isinstance(command, str) else list(command)
    except ValueError as error:
        raise file.wrong(name, f"cannot be split into words: {error}") from None
    return tuple(_template(file, str(word), name, _SURROUNDINGS) for word in words)


def _request(file: _File, table: Mapping[str, Any], where: str, known: Collection[str]) -> Request:
    if ("path" in table) == ("url" in table):
        raise file.wrong(f"{where}.path", 'is missing: the path below url, as "/api/chat"')
    target = table.get("path") or table["url"]
    if "query" in table:
        pairs = "&".join(f"{name}={value}" for name, value in table["query"].items())
        target += ("&" if "?" in target else "?") + pairs
    body = table.get("body")
    raw = None
    is_raw_json = False
    if isinstance(body, str):
        raw = _template(file, body, f"{where}.body", known)
        is_raw_json = re.match(r"\s*(\[|\{\s*[\"}])", body) is not None
    headers = _templates(file, table.get("headers", {}), f"{where}.headers", known)
    form = table.get("form")
    return Request(
        table.get("method", "GET" if body is None and form is None else "POST").upper(),
        _template(file, target, f"{where}.path", known),
        headers,
        None if raw is not None or body is None else _templates(file, body, f"{where}.body", known),
        None if form is None else _templates(file, form, f"{where}.form", known),
        raw,
        is_raw_json,
        {n: _capture(file, v, f"{where}.capture.{n}") for n, v in table.get("capture", {}).items()},
    )


def _capture(file: _File, text: Any, field: str) -> Capture:
    place, colon, name = str(text).partition(":")
    if colon and place in ("header", "cookie"):
        return Capture(place, JsonPath("$"), name.strip())
    try:
        return Capture("body", JsonPath(str(text)), "")
    except InvalidScenario as error:
        raise file.wrong(field, f'{error}; or "header:Location", or "cookie:sid"') from None


def _condition(file: _File, table: Mapping[str, Any], where: str) -> Condition:
    for name in table:
        if name not in _CONDITION_FIELDS:
            listed = ", ".join(_CONDITION_FIELDS)
            raise file.wrong(f"{where}.{name}", f"is not a field: there are {listed}")
    values = table.get("values", [table["value"]] if "value" in table else [])
    return Condition(
        _path(file, table, where, "path"),
        tuple(values),
        _pattern(file, table, where, "pattern"),
        table.get("event", ""),
        table.get("data", ""),
    )


def _rule(file: _File, table: Mapping[str, Any], at: int) -> Rule:
    outcome = table.get("outcome")
    if outcome not in OUTCOMES:
        raise file.wrong(
            "turn.rules.outcome", f"{outcome!r} in rule {at + 1}: choose ok, fail or info"
        )
    status = table.get("status", [])
    rest = {name: value for name, value in table.items() if name in _CONDITION_FIELDS}
    condition = _condition(file, rest, "turn.rules") if rest else None
    return Rule(outcome, frozenset([status] if isinstance(status, int) else status), condition)


def _stream(file: _File, table: Mapping[str, Any] | None) -> Stream | None:
    if table is None:
        return None
    where = "turn.stream"
    if (format_ := table.get("format", "sse")) not in ("sse", "lines"):
        raise file.wrong(f"{where}.format", f"{format_!r}: choose sse or lines")
    done = table.get("done")
    when = table.get("when", {"event": table["event"]} if "event" in table else None)
    return Stream(
        format_ == "sse",
        _path(file, table, where, "text"),
        None if when is None else _condition(file, when, f"{where}.when"),
        Condition(data=done) if isinstance(done, str)
        else None if done is None
        else _condition(file, done, f"{where}.done"),
        _condition(file, table["failed"], f"{where}.failed") if "failed" in table else None,
    )  # fmt: skip


def _later(file: _File, turn: Mapping[str, Any], known: Collection[str]) -> Later | None:
    table, where = turn.get("later"), "turn.later"
    if table is None:
        return None
    return Later(
        _request(file, table, where, known),
        float(table.get("every_s", 0.2)),
        float(table.get("patience_s", 60.0)),
        _condition(file, table["until"], f"{where}.until") if "until" in table else None,
        _condition(file, table["failed"], f"{where}.failed") if "failed" in table else None,
        _path(file, table, where, "find"),
    )


def _reading(file: _File, values: Mapping[str, Any], known: Collection[str]) -> Reading | None:
    table, where = values.get("history"), "history"
    if table is None:
        return None
    roles = table.get("user_role", list(_USER_ROLES))
    pages = table.get("next", {})
    return Reading(
        _request(file, table, where, known),
        _path(file, table, where, "items"),
        _path(file, table, where, "text"),
        _path(file, table, where, "role"),
        frozenset([roles] if isinstance(roles, str) else map(str, roles)),
        _pattern(file, table, where, "pattern"),
        _path(file, pages, "history.next", "path"),
        pages.get("query", ""),
        frozenset(table.get("empty", (404,))),
    )


def _declaration(
    file: _File, requests: tuple[Request | None, ...], *, has_history: bool
) -> Declaration:
    told = file.values.get("declares", {})
    used: set[str] = set()
    for request in filter(None, requests):
        for template in _leaves(request):
            used |= template.names
    if "key" in used:
        used |= {"user", "session"}
    used |= {name.removesuffix("_uuid") for name in used if name.endswith("_uuid")}
    parts = told.get("parts", [name for name in ("user", "session", "agent") if name in used])
    for name, known in (("parts", ("user", "session", "agent")), ("promises", _PROMISES)):
        for one in told.get(name, ()):
            if one not in known:
                raise file.wrong(f"declares.{name}", f"{one!r}: choose of {', '.join(known)}")
    promises = list(told.get("promises", DEFAULT_PROMISES))
    if told.get("durable") and "durable" not in promises:
        promises.append("durable")
    return Declaration(
        str(file.values.get("name", file.path.stem)),
        file.values.get("version", ""),
        tuple(parts),
        tuple(promises),
        is_idempotent=told.get("idempotent", False),
        has_history=has_history,
        window=told.get("window", 0),
        compacts=told.get("compacts", False),
        strategy=told.get("strategy", ""),
        client="HTTP",
    )


def _leaves(value: Any) -> list[Template]:
    if isinstance(value, Template):
        return [value]
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, list | tuple):
        return [leaf for one in value for leaf in _leaves(one)]
    return []
