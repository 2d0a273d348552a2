"""A service described in a TOML file: the fields that a file may have, and their complaints.

It owns what each field means and checks it when the file is read; a complaint names line and field.
How the described service is asked is ``http_target``'s. ``docs/judge-your-service.md`` explains the
fields to users.
"""

from __future__ import annotations

import difflib
import re
import shlex
import tomllib
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from kode_lab.errors import InvalidScenario
from kode_lab.targets.target import DEFAULT_PROMISES, DEFINITE, Declaration
from kode_lab.targets.template import JsonPath, Template

__all__ = [
    "BookFields",
    "Capture",
    "Condition",
    "DeclaredFields",
    "Description",
    "Fields",
    "HistoryFields",
    "HttpRequest",
    "LaterFields",
    "OutcomeRule",
    "PageFields",
    "SessionFields",
    "SetupFields",
    "Stream",
    "TurnFields",
    "read_description",
]

# Holes: what is known of the surroundings, of a session, of a turn.
_SURROUNDINGS = ("model_url", "model_host", "port", "data", "setting", "python", "here")
_SESSION = ("user", "session", "agent", "key", "session_uuid", "user_uuid", *_SURROUNDINGS)
_TURN = (*_SESSION, "prompt", "turn_id", "turn_uuid")
_KINDS = {
    "string_type": "text", "int_type": "a whole number", "float_type": "a number",
    "bool_type": "true or false", "list_type": "a list", "tuple_type": "a list",
    "dict_type": "a table", "model_type": "a table", "model_attributes_type": "a table",
}  # fmt: skip
_MISSING = {
    "turn": "say how a turn is sent, with path, body and reply",
    "url": 'where does the service listen? "http://127.0.0.1:8000"',
    "rules.outcome": "choose ok, fail or info",
}


def _in_tree(value: Any) -> Any:
    """Return a JSON value whose texts are templates."""
    if isinstance(value, str):
        return Template(value)
    if isinstance(value, dict):
        return {name: _in_tree(one) for name, one in value.items()}
    return [_in_tree(one) for one in value] if isinstance(value, list) else value


def _made(kind: type[Any]) -> BeforeValidator:
    def make(value: Any) -> Any:
        return kind(value) if isinstance(value, str) else value

    return BeforeValidator(make)


def _pattern(value: Any) -> Any:
    try:
        return re.compile(value, re.DOTALL)
    except re.error as error:
        raise ValueError(f"not a regular expression: {error}") from None
    except TypeError:
        raise ValueError(f"must be text, not {value!r:.60}") from None


def _words(value: Any) -> Any:
    if not isinstance(value, str | list):
        raise ValueError(f"must be text or a list, not {value!r:.60}")  # noqa: TRY004 - pydantic's
    try:
        words = shlex.split(value) if isinstance(value, str) else value
    except ValueError as error:
        raise ValueError(f"cannot be split into words: {error}") from None
    return tuple(Template(str(word)) for word in words)


def _listed(value: Any) -> Any:
    return value if isinstance(value, list) else [value]


def _located(value: Any) -> Any:
    """Return the table of a capture: a JSON path, ``header:NAME`` or ``cookie:NAME``."""
    place, colon, name = str(value).partition(":")
    if colon and place in ("header", "cookie"):
        return {"place": place, "name": name.strip()}
    return {"path": str(value)}


_Template = Annotated[Template, _made(Template)]
_Path = Annotated[JsonPath, _made(JsonPath)]
_Pattern = Annotated[re.Pattern[str], BeforeValidator(_pattern)]
_Command = Annotated[tuple[Template, ...], BeforeValidator(_words)]
_Tree = Annotated[Any, BeforeValidator(_in_tree)]
_Templates = Annotated[dict[str, Any], BeforeValidator(_in_tree)]


class Fields(BaseModel):
    """The fields of one table; others are refused."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, arbitrary_types_allowed=True
    )


class Capture(Fields):
    """Where a value is found in an answer: ``body`` (a path), ``header`` or ``cookie`` (a name)."""

    place: str = "body"
    path: _Path = JsonPath("$")
    name: str = ""


class HttpRequest(Fields):
    """One HTTP request with holes.

    Attributes:
        url: absolute, or ``path`` below the service's URL.
        body: a JSON value of templates, or one template.
        capture: values taken from the answer, by name.
    """

    method: str = ""
    path: str = ""
    url: str = ""
    headers: _Templates = Field(default_factory=dict)
    query: dict[str, Any] = Field(default_factory=dict)
    body: _Tree = None
    form: _Templates | None = None
    capture: dict[str, Annotated[Capture, BeforeValidator(_located)]] = Field(default_factory=dict)

    @cached_property
    def address(self) -> Template:
        """The URL or path, with its query."""
        address = self.path or self.url
        pairs = "&".join(f"{name}={value}" for name, value in self.query.items())
        return Template(address + ("&" if "?" in address else "?") * bool(pairs) + pairs)

    @cached_property
    def verb(self) -> str:
        """The method: what the file says, or GET without a body and POST with one."""
        has_body = self.body is not None or self.form is not None
        return (self.method or ("POST" if has_body else "GET")).upper()

    @cached_property
    def is_json_text(self) -> bool:
        """Whether the body is JSON written as a text, so that values are escaped in it."""
        is_text = isinstance(self.body, Template)
        return is_text and re.match(r"\s*(\[|\{\s*[\"}])", self.body.text) is not None


class Condition(Fields):
    """What must be so of an answer or event: a path with one of some values, a text, an event."""

    path: _Path | None = None
    value: Any = None
    values: list[Any] = Field(default_factory=list)
    pattern: _Pattern | None = None
    event: str = ""
    data: str = ""

    @cached_property
    def allowed(self) -> list[Any]:
        """The values that count; none of them means any value."""
        return self.values if self.value is None else [self.value, *self.values]


class OutcomeRule(Condition):
    """An outcome for answers of some status that fulfil a condition."""

    outcome: Literal["ok", "fail", "info"]
    status: Annotated[list[int], BeforeValidator(_listed)] = Field(default_factory=list)


class Stream(Fields):
    """How a streamed reply is read.

    Attributes:
        format: server-sent events, or one JSON value a line.
        done: what ends it; a stream that ends without it was cut.
    """

    format: Literal["sse", "lines"] = "sse"
    text: _Path | None = None
    event: str = ""
    when: Condition | None = None
    done: Annotated[
        Condition, BeforeValidator(lambda v: {"data": v} if isinstance(v, str) else v)
    ] | None = None  # fmt: skip
    failed: Condition | None = None

    @cached_property
    def counts(self) -> Condition | None:
        """Which events have a piece of the reply."""
        return self.when or (Condition(event=self.event) if self.event else None)


class LaterFields(HttpRequest):
    """How a reply is fetched that does not come with the answer."""

    every_s: float = Field(default=0.2, ge=0.001, le=600)
    patience_s: float = Field(default=60.0, gt=0, le=3600)
    until: Condition | None = None
    failed: Condition | None = None
    find: _Path | None = None


class TurnFields(HttpRequest):
    """How a turn is sent, and where its reply is."""

    reply: _Path | None = None
    reply_pattern: _Pattern | None = None
    text: bool = False
    stream: Stream | None = None
    later: LaterFields | None = None
    rules: list[OutcomeRule] = Field(default_factory=list)
    definite: list[int] = Field(default_factory=lambda: sorted(DEFINITE))
    config: _Path | None = None


class PageFields(Fields):
    """Where an answer names its next page: the value, and the query parameter that takes it."""

    path: _Path
    query: str = ""


class HistoryFields(HttpRequest):
    """How a session is read back.

    Attributes:
        items: the path to its elements, or None where ``pattern`` finds them in the body.
        empty: statuses that mean a session without turns.
        only_latest: the answer has the end of the session only, as the service declares.
    """

    items: _Path | None = None
    text: _Path | None = None
    role: _Path | None = None
    user_role: Annotated[list[str], BeforeValidator(_listed)] = Field(
        default_factory=lambda: ["user", "human", "USER", "HumanMessage"]
    )
    pattern: _Pattern | None = None
    next: PageFields | None = None
    empty: list[int] = Field(default_factory=lambda: [404])
    only_latest: bool = False


class BookFields(HttpRequest):
    """What a tool does to the world, and the book in which that can be read.

    Attributes:
        tool: the tool that turns are told to use; each call of it makes one entry.
        file: a file of JSON (a list, or a value a line) instead of a request. Without either, the
            ids in the tool's results, as the model was shown them, are the evidence.
        items: the path to the book's entries; a turn's marker is looked for in the whole entry.
        id: of an entry, unique in the book.
    """

    tool: str
    file: _Template | None = None
    items: _Path = JsonPath("$")
    id: _Path = JsonPath("$.id")

    @property
    def is_book(self) -> bool:
        """Whether there is a book to read."""
        return bool(self.path or self.url or self.file)


class SessionFields(HttpRequest):
    """The request that opens a session."""

    again_after_restart: bool = False


class SetupFields(Fields):
    """What is sent once for each user and for each session."""

    user: HttpRequest | None = None
    session: SessionFields | None = None


_PROMISES = Literal["apart", "kept", "whole", "ordered", "durable", "tools", "lock", "service"]


class DeclaredFields(Fields):
    """What the service promises."""

    parts: list[Literal["user", "session", "agent"]] | None = None
    promises: list[_PROMISES] | None = None
    durable: bool = False
    idempotent: bool = False
    serial: bool = False
    window: int = Field(default=0, ge=0)
    compacts: bool = False
    strategy: str = ""
    notes: str = ""


class Description(Fields):
    """A whole file.

    Attributes:
        url: where the service is; may hold ``{port}``.
        start: its command, or empty when it runs already.
        kill: a command that kills it, where killing the started process is not enough.
        cwd: where the command runs, from the file's directory.
        file: where the description was read.
    """

    url: _Template
    turn: TurnFields
    name: str = ""
    version: str = ""
    start: _Command = ()
    kill: _Command = ()
    restart: _Command = ()
    env: _Templates = Field(default_factory=dict)
    cwd: str = "."
    ready: _Template | None = None
    ready_s: float = Field(default=60.0, gt=0, le=3600)
    setup: SetupFields = SetupFields()
    history: HistoryFields | None = None
    effects: BookFields | None = None
    declares: DeclaredFields = DeclaredFields()
    file: Path = Field(default=Path(), exclude=True)

    @model_validator(mode="after")
    def _fits_together(self) -> Description:
        for where, request in self._requests():
            is_elsewhere = isinstance(request, BookFields) and not (request.path or request.url)
            if bool(request.path) + bool(request.url) + is_elsewhere != 1:
                raise ValueError(f'{where}.path|is missing: the path below url, as "/api/chat"')
        turn = self.turn
        if not (turn.reply or turn.reply_pattern or turn.text or turn.stream):
            raise ValueError(
                'turn.reply|is missing: where is the reply? A path as "$.reply", or text = true'
            )
        for where, template, known in self._holes():
            try:
                template.check(known)
            except InvalidScenario as error:
                raise ValueError(f"{where}|{error}") from None
        return self

    def _requests(self) -> Iterator[tuple[str, HttpRequest]]:
        named = {
            "turn": self.turn, "turn.later": self.turn.later, "setup.user": self.setup.user,
            "setup.session": self.setup.session, "history": self.history, "effects": self.effects,
        }  # fmt: skip
        yield from ((where, request) for where, request in named.items() if request is not None)

    def _holes(self) -> Iterator[tuple[str, Template, Collection[str]]]:
        """Yield each template of the file with its field and the names that are known there."""
        user = tuple(self.setup.user.capture) if self.setup.user else ()
        captured = (*user, *(self.setup.session.capture if self.setup.session else ()))
        known = {
            "turn": (*_TURN, *captured),
            "turn.later": (*_TURN, *captured, *self.turn.capture),
            "setup.user": _SESSION,
            "setup.session": (*_SESSION, *user),
        }
        for where, request in self._requests():
            for name in ("address", "headers", "body", "form", "file"):
                field = "path" if name == "address" else name
                for at, template in _leaves(getattr(request, name, None), f"{where}.{field}"):
                    yield at, template, known.get(where, (*_SESSION, *captured))
        for name in ("start", "kill", "restart", "env"):
            for at, template in _leaves(getattr(self, name), name):
                yield at, template, _SURROUNDINGS
        for name in ("url", "ready"):
            for at, template in _leaves(getattr(self, name), name):
                yield at, template, ("port",)

    @cached_property
    def declaration(self) -> Declaration:
        """What the service says about itself."""
        declares = self.declares
        used: set[str] = set()
        for where, template, _ in self._holes():
            if where.startswith(("turn", "setup")):
                used |= {name.removesuffix("_uuid") for name in template.names}
                if template.names & {"key", "session_uuid"}:  # both are made of user and session
                    used |= {"user", "session"}
        if self.setup.session is not None:  # each user's session is opened by a request of its own
            used |= {"user", "session"}
        named = [name for name in ("user", "session", "agent") if name in used]
        promises = list(declares.promises or DEFAULT_PROMISES)
        for name, is_promised in (
            ("durable", declares.durable),
            ("lock", declares.serial),
            ("tools", self.effects is not None and declares.promises is None),
        ):
            if is_promised and name not in promises:
                promises.append(name)
        return Declaration(
            self.name or self.file.stem,
            self.version,
            tuple(named if declares.parts is None else declares.parts),
            tuple(promises),
            is_idempotent=declares.idempotent,
            has_history=self.history is not None,
            window=declares.window,
            compacts=declares.compacts,
            strategy=declares.strategy,
            tool=self.effects.tool if self.effects is not None else "",
            has_book=self.effects is not None and self.effects.is_book,
            client="HTTP",
            notes=declares.notes,
        )


def read_description(path: Path, text: str | None = None) -> Description:
    """Return what a TOML file says.

    Args:
        text: what the file says, where it is part of another file.

    Raises:
        InvalidScenario: it cannot be read, or a field is wrong; names line and field.
    """
    try:
        text = path.read_text("utf-8") if text is None else text
        values = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise InvalidScenario(f"{path.name}: not TOML: {error}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidScenario(f"{path}: cannot be read: {error}") from None
    values.pop("file", None)
    try:
        return Description.model_validate({**values, "file": path})
    except ValidationError as error:
        field, complaint, nth = _complaint(error)
    line = _line_of(text, field, nth)
    raise InvalidScenario(f"{path.name}, line {line}: {field}: {complaint}")


def _complaint(error: ValidationError) -> tuple[str, str, int]:
    """Return the field of the first error, what is wrong with it, and in which table of a list."""
    problems = error.errors(include_url=False)
    # A field that is not known is most often a slip, of which others follow.
    first = next((one for one in problems if one["type"] == "extra_forbidden"), problems[0])
    names = [str(part) for part in first["loc"] if isinstance(part, str)]
    nth = next((part for part in first["loc"] if isinstance(part, int)), 0)
    field, message = ".".join(names), first["msg"].removeprefix("Value error, ")
    given = f"{first['input']!r:.60}"
    if not field and "|" in message:
        field, _, message = message.partition("|")
    match first["type"]:
        case "extra_forbidden":
            known = _fields_of(names[:-1])
            near = difflib.get_close_matches(names[-1], known, 1)
            meant = f"did you mean {near[0]}?" if near else f"there are {', '.join(known)}"
            message = f"is not a field: {meant}"
        case "missing":
            hint = next((hint for end, hint in _MISSING.items() if field.endswith(end)), "")
            message = f"is missing: {hint}" if hint else "is missing"
        case "literal_error":
            allowed = str(first["ctx"]["expected"]).replace("'", "")
            message = f"{given} is not valid: choose {allowed}"
        case "is_instance_of":
            message = f"must be text, not {given}"
        case kind if kind in _KINDS:
            message = f"must be {_KINDS[kind]}, not {given}"
        case kind if kind != "value_error":
            message = f"{given} is not valid: {message}"
    return field, message, nth


def _fields_of(names: Collection[str]) -> list[str]:
    """Return the fields of a table."""
    table: type[BaseModel] = Description
    for name in names:
        found = [table.model_fields[name].annotation]
        while found:
            one: Any = found.pop()
            if isinstance(one, type) and issubclass(one, BaseModel):
                table = one
                break
            found += get_args(one)
    return [name for name in table.model_fields if name != "file" or table is BookFields]


def _line_of(text: str, field: str, nth: int) -> int:
    """Return the line of a dotted field, or of the innermost table that has a line.

    Args:
        nth: in which of several tables of one name (``[[turn.rules]]``) it stands, from 0.
    """
    parts = field.split(".")
    best, best_depth, table, seen = 1, 0, "", nth
    tables: Counter[str] = Counter()
    for number, line in enumerate(text.splitlines(), 1):
        header = re.match(r"\s*\[\[?\s*([^\]]+?)\s*\]\]?", line)
        named = re.match(r"""\s*["']?([\w-]+(?:\.[\w-]+)*)["']?\s*=""", line)
        where = table
        if header and not named:
            where = table = header[1].replace(" ", "")
            seen = tables[table] if line.lstrip().startswith("[[") else nth
            tables[table] += 1
        elif named:
            where = f"{table}.{named[1]}".strip(".")
        else:
            continue
        depth = len(where.split("."))
        is_inside = parts[:depth] == where.split(".") and seen == nth
        if is_inside and depth > best_depth:
            best, best_depth = number, depth
    return best


def _leaves(value: Any, where: str) -> Iterator[tuple[str, Template]]:
    if isinstance(value, Template):
        yield where, value
    elif isinstance(value, Mapping):
        for name, one in value.items():
            yield from _leaves(one, f"{where}.{name}")
    elif isinstance(value, list | tuple):
        for one in value:
            yield from _leaves(one, where)
