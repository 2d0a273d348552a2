"""A concurrency report as a file: what was asked, when, and what is said to have come of it.

It owns the file's fields and how they are read from TOML, JSON or a table of turns (CSV, JSONL). It
measures nothing. ``docs/report-format.md`` has each field; ``docs/report.schema.json`` is made from
the classes here.

A report says what happened in turns (``turns``: a trace), as load (``load``: users, phases, think
times), or both ways in several ``tests``. Statements about the whole are ``claims``.

Source: the concurrency report itself (``concurrency-report.toml`` beside this file); the fields of
``load`` follow what public load-test reports of LLM services state.
"""

from __future__ import annotations

import csv
import io
import json
import re
import tomllib
from collections.abc import Mapping
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    AliasChoices,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from kode_lab.errors import InvalidKey, InvalidScenario
from kode_lab.key import SessionKey, is_unicode
from kode_lab.lab.distribution import Varying
from kode_lab.lab.scenario import AGENT, Fault, Phase, Prompt, Share, Value, problem_of
from kode_lab.lab.times import Seconds, When, Within
from kode_lab.reports.request_traces import turns_in

__all__ = [
    "FORMAT",
    "REPORT_TURNS_LIMIT",
    "ClaimSpec",
    "Load",
    "Prices",
    "Report",
    "ReportedTool",
    "ReportedTurn",
    "Test",
    "Where",
    "built_in",
    "parsed",
    "read_report",
    "schema",
]

FORMAT = 1
# Each turn of a replay has a client, a session and a script of its own.
REPORT_TURNS_LIMIT = 10_000
_AGENT_NAME = re.compile(r"\w[\w.-]{0,99}")
Outcome = Literal["ok", "failed", "refused", "cancelled", "unanswered"]

# Other names that reports use for the same field.
_SYNONYMS = {
    "userId": "user", "user_id": "user", "sessionId": "session", "session_id": "session",
    "conversation": "session", "thread": "session", "agentId": "agent", "agent_id": "agent",
    "arrived_s": "arrived", "sent": "arrived", "start": "arrived", "start_s": "arrived",
    "took_s": "took", "duration": "took", "duration_s": "took", "latency": "took",
    "latency_s": "took", "ended_s": "ended", "end": "ended", "end_s": "ended", "done": "ended",
    "ttft": "first_token", "ttft_s": "first_token", "first_token_s": "first_token",
    "waited_s": "waited", "wait": "waited", "calls_s": "calls", "model_s": "model",
    "status": "outcome", "tokens_in": "input_tokens", "tokens_out": "output_tokens",
    "用户": "user", "会话": "session", "智能体": "agent", "开始": "arrived", "开始时间": "arrived",
    "结束": "ended", "结束时间": "ended", "耗时": "took", "首字": "first_token", "等待": "waited",
    "工具调用": "tool_calls", "状态": "outcome", "提示词": "prompt",
    "prompt_tokens": "input_tokens", "completion_tokens": "output_tokens", "think_s": "think",
}  # fmt: skip
# What other tools call the same measure.
_MEASURES = {
    "e2e": "answer", "e2el": "answer", "e2e_latency": "answer", "latency": "answer",
    "request_latency": "answer", "response_time": "answer", "ttft": "first_token",
    "time_to_first_token": "first_token", "ttst": "second_token", "tpot": "per_output_token",
    "time_per_output_token": "per_output_token", "itl": "inter_token",
    "inter_token_latency": "inter_token", "rps": "throughput", "qps": "throughput",
    "tps": "output_token_rate", "request_throughput": "throughput",
    "output_token_throughput": "output_token_rate", "total_token_throughput": "token_rate",
    "output_token_throughput_per_user": "token_speed", "availability": "success_rate",
    "queue_time": "wait", "queue_depth": "waiting", "isl": "input_tokens", "osl": "output_tokens",
    "abandonment_rate": "cancelled_rate", "rate_limited": "refusal_rate",
    "timeout_rate": "unanswered_rate", "gpu": "gpu_utilisation", "gpu_utilization":
    "gpu_utilisation", "kv_cache": "kv_cache_usage", "prefix_cache_hit_rate": "cache_hit_rate",
}  # fmt: skip
_OUTCOMES = {
    "success": "ok", "succeeded": "ok", "200": "ok", "error": "failed", "fail": "failed",
    "500": "failed", "429": "refused", "rejected": "refused", "timeout": "unanswered",
    "info": "unanswered", "canceled": "cancelled",
}  # fmt: skip


def _unicode(text: str) -> str:
    if not is_unicode(text):
        raise ValueError("has half a surrogate pair, which is no character")
    return text


Text = Annotated[str, AfterValidator(_unicode)]


class ReportedTool(Value):
    """One tool call of a reported turn.

    Attributes:
        took: how long it took.
        failed: it gave an error.
        calls: of a sub-agent that runs as a tool: the seconds of its own model calls.
        tools: of a sub-agent: its own tool calls.
    """

    name: str = Field(default="tool", pattern=r"^[a-zA-Z0-9_-]{1,64}$")
    took: Seconds | None = None
    failed: bool = False
    result: Text = "done"
    calls: tuple[Seconds, ...] = ()
    tools: tuple[ReportedTool, ...] = ()

    @property
    def took_s(self) -> float:
        """Its time; a sub-agent's is that of its calls and tools unless it is told."""
        if self.took is not None:
            return self.took
        return sum(self.calls) + sum(tool.took_s for tool in self.tools)


class ReportedTurn(Value):
    """One prompt and what the report says of its answer. Times are seconds or texts with units.

    Attributes:
        name: what the report calls it.
        arrived: when it was sent; without it, after the session's turn before and ``think``.
        took: from sending to the whole answer; ``ended`` says the same as a moment.
        first_token: from sending to the first token of the answer.
        waited: how much of ``took`` was waiting, and ``waited_for`` what: turns of its
            ``own session``, ``another session``, or ``unknown``.
        model: how much of ``took`` was the model; ``calls`` are its single model calls.
        tool_calls: how many; ``tools`` are the calls themselves.
        stored_in: the name of the session's directory.
        results: fields of a tool's result, such as an id that was given.
    """

    name: Text = ""
    user: str
    session: str | None = None
    agent: str = AGENT
    test: str = ""
    phase: str = ""
    prompt: Text = ""
    arrived: When | None = None
    think: Seconds | None = None
    took: Seconds | None = None
    ended: When | None = None
    first_token: Seconds | None = None
    waited: Seconds | None = None
    waited_for: Literal["own session", "another session", "unknown"] = "unknown"
    model: Seconds | None = None
    calls: tuple[Seconds, ...] = ()
    tool_calls: int | None = Field(default=None, ge=0, le=900)
    tools: tuple[ReportedTool, ...] = ()
    outcome: Outcome = "ok"
    error: Text = ""
    input_tokens: int | None = Field(default=None, ge=0)
    output_tokens: int | None = Field(default=None, ge=0)
    stored_in: str = ""
    results: Mapping[str, Any] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _fits_together(self) -> ReportedTurn:
        tools = len(self.tools) if self.tools else self.tool_calls
        if self.tools and self.tool_calls not in (None, len(self.tools)):
            raise ValueError(
                f"tool_calls is {self.tool_calls} and {len(self.tools)} tools are listed"
            )
        least, most = (2 if tools else 1), (tools or 0) + 1
        if self.calls and tools is not None and not least <= len(self.calls) <= most:
            raise ValueError(
                f"{len(self.calls)} model calls cannot be with {tools} tool calls: "
                f"there are {least} to {most} (a tool's result is read by one more call)"
            )
        try:
            _ = self.key
        except InvalidKey as error:
            raise ValueError(str(error)) from None
        if not _AGENT_NAME.fullmatch(self.agent):
            raise ValueError(f"agent {self.agent!r:.60} is no name: use letters, digits, . _ -")
        return self

    def with_(self, **changes: Any) -> ReportedTurn:
        """Return the same turn but for these fields."""
        return self.model_copy(update=changes)

    @property
    def key(self) -> SessionKey:
        """The session that the turn belongs to."""
        return SessionKey.of(self.user, self.agent, self.session)

    @property
    def tool_count(self) -> int:
        """How many tools it called; 0 where the report does not say."""
        return len(self.tools) or self.tool_calls or 0


class Where(Value):
    """Which turns a claim is about; without any field, all of them.

    Attributes:
        test: another test of the same report, to compare with.
        start, end: turns sent from ``start`` on and before ``end``, after the test's begin.
        index: the n-th turn of its session; ``index_from``: this one and all later ones.
    """

    test: str = ""
    start: Seconds | None = None
    end: Seconds | None = None
    user: str = ""
    session: str = ""
    agent: str = ""
    turn: str = ""
    phase: str = ""
    prompt: str = ""
    tool: str = ""
    outcome: Outcome | None = None
    index: int | None = Field(default=None, ge=1)
    index_from: int | None = Field(default=None, ge=1)


def _several(value: Any) -> Any:
    return [value] if isinstance(value, Mapping) else value


class ClaimSpec(Value):
    """One statement of a report: a measure, a statistic over turns, and what is said of it.

    Attributes:
        claim: the report's own words.
        measure: a name from the table in ``docs/report-format.md``.
        statistic: how the turns' values become one; each measure has a default.
        per: values are added up for each ``session`` or ``user`` before the statistic.
        compared_with: other turns; the claim is then about the ratio (or ``difference``).
        tolerance: how far the measured value may be off; each measure has a default.
        slo: for ``within``, ``goodput``, ``apdex``: what a good turn is; for ``users_within`` and
            ``rate_within``: the claim that must hold in a phase.
        reported: the text of the column *reported*; made from the figures where it is not given.
    """

    claim: Text = ""
    measure: str
    statistic: str = ""
    per: Literal["turn", "session", "user"] = "turn"
    is_: float | str | None = Field(
        default=None, validation_alias=AliasChoices("is", "is_"), serialization_alias="is"
    )
    at_most: float | str | None = None
    at_least: float | str | None = None
    below: float | str | None = None
    between: tuple[float | str, float | str] | None = None
    unit: str = ""
    tolerance: Within | None = None
    where: Where = Where()
    compared_with: Where | None = None
    difference: bool = False
    name: str = Field(default="", description="of a step, tool, guarantee, error or cost")
    slo: Annotated[tuple[ClaimSpec, ...], BeforeValidator(_several)] = ()
    reported: Text = ""

    @field_validator("measure")
    @classmethod
    def _by_its_name(cls, value: str) -> str:
        plain = re.sub(r"[\s-]+", "_", value.strip().lower())
        return _MEASURES.get(plain, plain)

    @model_validator(mode="after")
    def _says_something(self) -> ClaimSpec:
        bounds = (self.is_, self.at_most, self.at_least, self.below, self.between)
        told = [bound for bound in bounds if bound is not None]
        if len(told) > 1 and not (self.at_least is not None and len(told) == 2):
            raise ValueError("use one of is, at_most, at_least, below, between")
        return self


class Load(Value):
    """Load as a report describes it, instead of single turns.

    Attributes:
        users: how many ask at once; each has ``sessions`` conversations.
        for_s: how long it lasts (in files ``for``); or ``turns`` for each user.
        ramp: until all users are there.
        requests: how many turns in all, shared by the users, instead of ``turns`` or ``for``.
        rate: turns a second that arrive at random times, instead of users who wait.
        session_rate: conversations a second that begin at random times, each of ``turns`` turns.
        warm_up: turns sent before this time are left out of all claims.
        think: how long a user thinks between two turns.
        prompts: kinds of prompts with weights, model times, tools and tokens.
        phases: parts with their own users or rate.
        faults: shares of turns that are refused, failed, cancelled, or have a failed tool.
        timeout: how long a client waits.
    """

    users: int = Field(default=1, ge=1, le=5_000)
    sessions: int = Field(default=1, ge=1, le=100)
    turns: Varying | None = None
    requests: int | None = Field(default=None, ge=1, le=1_000_000)
    for_s: Seconds | None = Field(
        default=None, validation_alias=AliasChoices("for", "for_s"), serialization_alias="for"
    )
    ramp: Seconds = 0.0
    rate: float = Field(default=0.0, ge=0, le=100_000)
    session_rate: float = Field(default=0.0, ge=0, le=10_000)
    warm_up: Seconds = 0.0
    think: Varying | None = None
    prompts: tuple[Prompt, ...] = (Prompt(text="Hello."),)
    phases: tuple[Phase, ...] = ()
    agents: tuple[str, ...] = ("assistant",)
    faults: Mapping[Fault, Share] = Field(default_factory=dict)
    timeout: Seconds = 600.0
    seed: int = 0

    @model_validator(mode="after")
    def _ends(self) -> Load:
        if not (self.turns or self.requests or self.for_s or self.phases):
            raise ValueError(
                "say how much: turns (for each user), requests, for (a time) or phases"
            )
        if self.turns and not 1 <= self.turns.mean <= 1_000_000:
            raise ValueError("turns: at least one for each user, and at most a million")
        if any(not _AGENT_NAME.fullmatch(agent) for agent in self.agents):
            raise ValueError("agents: use letters, digits, . _ -")
        return self


class Prices(Value):
    """What a million tokens cost."""

    input: float = Field(default=0.0, ge=0)
    output: float = Field(default=0.0, ge=0)
    currency: str = "USD"


class Test(Value):
    """Turns or load that belong together; tests run one after another.

    Attributes:
        picture: the file name of its figure, without an ending.
    """

    __test__ = False  # its name is the report's word; pytest need not look at it

    name: str = Field(default="test", pattern=r"^[\w-]{1,60}$")
    title: Text = ""
    picture: str = Field(default="", pattern=r"^[\w-]{0,60}$")
    turns: tuple[ReportedTurn, ...] = ()
    load: Load | None = None
    claims: tuple[ClaimSpec, ...] = ()

    @model_validator(mode="after")
    def _has_something(self) -> Test:
        if self.load is None and not self.turns:
            raise ValueError("a test has turns or load")
        if self.load is not None and self.turns:
            raise ValueError("a test has turns or load, not both: make two tests of it")
        if len(self.turns) > REPORT_TURNS_LIMIT:
            raise ValueError(
                f"{len(self.turns)} turns are too many (REPORT_TURNS_LIMIT={REPORT_TURNS_LIMIT})"
            )
        return self


class Report(Value):
    """A whole report.

    Attributes:
        kode_lab_report: the version of this format.
        source: where it was published.
        tests: its tests; a report of one test may have ``turns``, ``load``, ``claims`` directly.
        prices: of tokens, for claims about cost.
        left_out: what a recorded run had that a report cannot replay.
    """

    model_config = ConfigDict(title="A concurrency report that kode-lab can reproduce")

    kode_lab_report: Literal[1] = 1
    name: str = "report"
    title: Text = ""
    source: Text = ""
    notes: Text = ""
    prices: Prices = Prices()
    tests: tuple[Test, ...] = Field(min_length=1)
    left_out: Mapping[str, int] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _named_apart(self) -> Report:
        names = [test.name for test in self.tests]
        if len(set(names)) < len(names):
            raise ValueError(f"two tests have one name: {', '.join(names)}")
        return self

    def only(self, name: str, **changes: Any) -> Report:
        """Return the report with one of its tests alone, with these fields of it changed.

        Raises:
            InvalidScenario: it has no test of that name.
        """
        for test in self.tests:
            if test.name == name:
                return self.model_copy(update={"tests": (test.model_copy(update=changes),)})
        names = ", ".join(test.name for test in self.tests)
        raise InvalidScenario(f"the report has no test {name!r:.60}: it has {names}")

    def to_json(self) -> dict[str, Any]:
        """Return the report as JSON values, without what is at its default."""
        return self.model_dump(mode="json", by_alias=True, exclude_defaults=True) | {
            "kode_lab_report": FORMAT
        }


def parsed(fields: Any) -> Report:
    """Return the report that JSON values (or a list of turns) describe.

    Raises:
        InvalidScenario: it is no report; names the field and its value.
    """
    if isinstance(fields, list):
        fields = {"turns": fields}
    if not isinstance(fields, Mapping) or not {"turns", "load", "tests"} & set(fields):
        raise InvalidScenario(
            'a report is {"kode_lab_report": 1, "turns": [...]}, or has "load" or "tests"'
        )
    told = dict(fields)
    if told.get("kode_lab_report", FORMAT) != FORMAT:
        raise InvalidScenario(
            f"kode_lab_report is {told['kode_lab_report']!r:.40}, this kode_lab reads {FORMAT}"
        )
    one = {name: told.pop(name) for name in ("turns", "load", "claims") if name in told}
    name = "".join(c if c.isalnum() or c in "-_" else "-" for c in str(told.get("name", "")))
    told["name"] = name[:50] or "report"
    given_names: dict[str, str] = {}
    if "tests" not in told:
        told["tests"] = [{"name": "test", "title": told.get("title", ""), **one}]
        one = {}
    if one and isinstance(told["tests"], list):
        raise InvalidScenario(f"with tests, {', '.join(one)} belong into one of them")
    told["tests"] = _renamed_tests(told["tests"], given_names)
    try:
        report = Report.model_validate(told)
    except ValidationError as error:
        raise InvalidScenario(_problem(error, given_names)) from None
    except RecursionError:
        raise InvalidScenario("the report is nested too deeply: take it apart") from None
    return report


def _renamed_tests(tests: Any, given_names: dict[str, str]) -> Any:
    """Return the tests with the main names of their turns' fields, and turns dealt to tests."""
    if not isinstance(tests, list):
        return tests
    renamed: list[Any] = []
    for test in tests:
        if not isinstance(test, Mapping) or not isinstance(test.get("turns", []), list):
            renamed.append(test)
            continue
        turns = [_renamed(turn, given_names) for turn in test.get("turns", [])]
        named = [turn for turn in turns if isinstance(turn, dict)]
        names = [str(name) for name in dict.fromkeys(turn.get("test", "") for turn in named)]
        if len(names) > 1 and len(named) == len(turns):
            for name in names:
                own = [turn for turn in named if str(turn.get("test", "")) == name]
                renamed.append({**test, "name": name or "test", "turns": own})
        else:
            renamed.append({**test, "turns": turns} if "turns" in test else test)
    return renamed


def _renamed(turn: Any, given_names: dict[str, str]) -> Any:
    if not isinstance(turn, Mapping):
        return turn
    told: dict[str, Any] = {}
    for name, value in ((str(name), value) for name, value in turn.items()):
        main = _SYNONYMS.get(name, name)
        if main in told:
            raise InvalidScenario(f"{given_names.get(main, main)} and {name} are one field: {main}")
        if main != name:
            given_names[main] = name
        told[main] = value
    if isinstance(told.get("outcome"), str | int):
        told["outcome"] = _OUTCOMES.get(str(told["outcome"]).lower(), told["outcome"])
    if isinstance(told.get("tool_calls"), list):
        told["tools"] = told.pop("tool_calls")
    if isinstance(told.get("tools"), list):
        told["tools"] = [{"name": t} if isinstance(t, str) else t for t in told["tools"]]
    return told


def _problem(error: ValidationError, given_names: Mapping[str, str]) -> str:
    text = problem_of(error).removeprefix("tests[0].")
    path, equals, rest = text.partition("=")
    for main, given in given_names.items():
        path = re.sub(rf"(?<=\.){main}$", given, path)
    return f"{path}{equals}{rest}" if equals else text


def read_report(path: Path) -> Report:
    """Return the report of a TOML, JSON, JSONL or CSV file, or of a trace of model requests.

    Raises:
        InvalidScenario: it cannot be read; says which field or line.
    """
    try:
        text = path.read_text("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InvalidScenario(f"report {path.name} is not UTF-8: {error.reason}") from None
    except OSError as error:
        raise InvalidScenario(f"report {path.name}: {error.strerror}") from None
    try:
        match path.suffix.lower():
            case ".toml":
                fields: Any = tomllib.loads(text)
            case ".csv":
                fields = {"turns": _csv_turns(text)}
            case ".jsonl":
                rows = [json.loads(line) for line in text.splitlines() if line.strip()]
                fields = {"turns": turns_in(rows) or rows}
            case _:
                fields = json.loads(text)
                told = fields if isinstance(fields, list) else [fields]
                if (turns := turns_in(told)) is not None:
                    fields = {"turns": turns}
    except (ValueError, RecursionError) as error:
        kind = path.suffix[1:].upper() if path.suffix in (".toml", ".csv", ".jsonl") else "JSON"
        raise InvalidScenario(f"report {path.name} is not {kind}: {error!s:.120}") from None
    if isinstance(fields, dict) and "name" not in fields:
        fields["name"] = path.stem
    try:
        return parsed(fields)
    except InvalidScenario as error:
        raise InvalidScenario(f"report {path.name}: {error}") from None


def _csv_turns(text: str) -> list[dict[str, Any]]:
    """Return a row a turn; empty cells are not given, lists are separated by ``;``."""
    rows = csv.DictReader(io.StringIO(text), strict=True)
    turns = []
    for row in rows:
        if None in row or None in row.values():
            cells = len(rows.fieldnames or ())
            raise ValueError(f"line {rows.line_num} does not have {cells} cells")
        turn: dict[str, Any] = {}
        for heading, cell in row.items():
            name = str(heading)
            main = _SYNONYMS.get(name.strip(), name.strip())
            if not cell.strip():
                continue
            if main in ("calls", "tools") or (main == "tool_calls" and not cell.strip().isdigit()):
                turn[main] = [part.strip() for part in cell.split(";")]
            elif main in ("tool_calls", "input_tokens", "output_tokens"):
                turn[main] = int(cell)
            else:
                turn[name.strip()] = cell.strip()
        turns.append(turn)
    return turns


@cache
def built_in() -> Report:
    """Return the concurrency report that this project reproduces."""
    text = resources.files(__package__).joinpath("concurrency-report.toml").read_text("utf-8")
    return parsed(tomllib.loads(text))


def schema() -> dict[str, Any]:
    """Return the JSON Schema of a report file, with the other names that fields may have."""
    made = Report.model_json_schema(by_alias=True, mode="validation")
    made["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    turn = made["$defs"]["ReportedTurn"]
    for other, main in _SYNONYMS.items():
        turn["properties"][other] = turn["properties"][main]
    turn.pop("required", None)  # "user" may be written "userId"
    users = ("user", *(other for other, main in _SYNONYMS.items() if main == "user"))
    turn["anyOf"] = [{"required": [name]} for name in users]
    outcomes = sorted({"ok", "failed", "refused", "cancelled", "unanswered", *_OUTCOMES})
    for name in ("outcome", *(other for other, main in _SYNONYMS.items() if main == "outcome")):
        turn["properties"][name] = {"enum": outcomes}
    tools = {"type": "array", "items": {"anyOf": [{"type": "string"}, _ref("ReportedTool")]}}
    turn["properties"]["tools"] = tools
    turn["properties"]["tool_calls"] = {"anyOf": [{"type": "integer", "minimum": 0}, tools]}
    claim = _ref("ClaimSpec")
    slo = {"anyOf": [claim, {"type": "array", "items": claim}]}
    made["$defs"]["ClaimSpec"]["properties"]["slo"] = slo
    test = made["$defs"]["Test"]["properties"]
    for name in ("turns", "load", "claims"):
        made["properties"][name] = test[name]
    made.pop("required", None)
    made["anyOf"] = [{"required": [name]} for name in ("turns", "load", "tests")]
    return made


def _ref(name: str) -> dict[str, str]:
    return {"$ref": f"#/$defs/{name}"}


ReportedTool.model_rebuild()
ClaimSpec.model_rebuild()
