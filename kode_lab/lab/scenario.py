"""A scenario: who asks what of which session, when, and how slow the model is; frozen and seeded.

It owns what is asked and draws it in advance, so that two runs of one scenario ask the same things
in the same order per client. It runs nothing and opens nothing.

What it draws is chosen to provoke: users and sessions share their names (``ada:bea`` beside
``bea:ada``), clients think for 0 to 3 ms (clients without a pause fall into step and meet in no new
way), and most prompts make the model call a tool, so that a turn has a middle.

Idea: Jepsen's generators, whose schedule is a value apart from its execution; phases and ramps as
k6's and Locust's load shapes have them.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Mapping
from itertools import accumulate
from typing import Annotated, Any, Literal, NamedTuple, TypeAlias

from pydantic import (
    AliasChoices,
    BaseModel,
    ConfigDict,
    Field,
    PlainSerializer,
    ValidationError,
    field_validator,
    model_validator,
)

from kode_lab.claude import Profile
from kode_lab.errors import InvalidScenario
from kode_lab.history.operation import marker_of
from kode_lab.key import SessionKey, is_unicode
from kode_lab.lab.distribution import Distribution, Varying
from kode_lab.lab.times import Seconds

__all__ = [
    "AGENT",
    "PROMPTS",
    "SPEED_LIMIT",
    "TURNS_LIMIT",
    "Ask",
    "Client",
    "Phase",
    "Prompt",
    "Scenario",
    "ScriptedCall",
    "ScriptedTool",
    "ToolUse",
    "TurnScript",
    "Value",
    "problem_of",
]

AGENT = "schedule-assistant"
TURNS_LIMIT = 1_000_000
SPEED_LIMIT = 100_000
# A title of its own lets the schedule book tell which turn asked for an entry.
PROMPTS = (
    'Create a schedule: "{title}" on 2026-03-02 at 15:00.',
    "Query my schedules of the 2 days from 2026-03-02 on.",
    "Thank you.",
)
_NAMES = ("ada", "bea", "cyd", "dot", "eve", "fay", "gil", "hal")
_PROBE = "Are you there?"
# A user of a phase is given turns enough for twice its time, and no more than this.
_PHASE_TURNS_LIMIT = 20_000

Fault: TypeAlias = Literal["refused", "failed", "cancelled", "tool"]
Share = Annotated[float, Field(ge=0, le=1)]
_Count = Annotated[int, Field(strict=True, ge=1)]


def _is_text(value: str) -> str:
    if not value or not is_unicode(value):
        raise ValueError("must be text that UTF-8 can write, and not empty")
    return value


class Value(BaseModel):
    """A frozen value that refuses fields it does not know; files may use its aliases."""

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)


class ScriptedTool(NamedTuple):
    """One tool call that the model makes, what it takes, and what comes of it."""

    name: str
    took_s: float = 0.0
    is_error: bool = False
    result: str = "done"


class ScriptedCall(NamedTuple):
    """One model call of a scripted turn.

    Attributes:
        took_s: until the reply is whole; ``first_s``: until its first token.
        tools: what it asks for, together; none in the last call.
    """

    took_s: float
    first_s: float = 0.0
    tools: tuple[ScriptedTool, ...] = ()
    input_tokens: int = 0
    output_tokens: int = 0


class TurnScript(NamedTuple):
    """What the model does in one turn, call by call.

    Attributes:
        fails: the model's service fails instead of giving the last reply.
    """

    calls: tuple[ScriptedCall, ...]
    fails: bool = False

    @property
    def took_s(self) -> float:
        """How long model and tools take together; tools of one call run side by side."""
        return sum(
            call.took_s + max((tool.took_s for tool in call.tools), default=0.0)
            for call in self.calls
        )

    @property
    def first_s(self) -> float:
        """When the first token of the last reply comes."""
        return self._replace(calls=self.calls[:-1]).took_s + self.calls[-1].first_s


class Ask(NamedTuple):
    """One turn to be asked.

    Attributes:
        pause_s: how long its client thinks before it.
        script: what the model does; without one, it reads the words of the prompt.
        patience_s: the client gives up after this time; 0 is the scenario's own limit.
        is_refused: a gateway in front of the service refuses it.
    """

    key: SessionKey
    turn_id: str
    marker: str
    prompt: str
    pause_s: float = 0.0
    script: TurnScript | None = None
    patience_s: float = 0.0
    is_refused: bool = False


class Client(NamedTuple):
    """Somebody who asks one turn after another, from ``start_s`` on and not after ``end_s``.

    Attributes:
        follows: a client whose last turn must have ended before: the same user, a phase earlier.
    """

    name: str
    start_s: float
    asks: tuple[Ask, ...]
    end_s: float = math.inf
    follows: str = ""


class ToolUse(Value):
    """A tool that a scripted turn calls: a stand-in that waits, and then gives its result."""

    name: str = Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$")
    took: Varying = Distribution("uniform", (0.0, 0.0))
    failed: bool = False
    result: str = "done"


class Prompt(Value):
    """A kind of prompt, how often it comes, and what the model does with it.

    Attributes:
        weight: its share among all prompts.
        model: how long each model call takes.
        first_token: how long until the first token of the last call.
        tools: called one after another, or ``together`` in one reply.
        agent: which agent is asked; "" leaves it to the scenario.
    """

    text: str
    weight: float = Field(default=1.0, gt=0)
    model: Varying | None = None
    first_token: Varying | None = None
    tools: tuple[ToolUse, ...] = ()
    together: bool = False
    input_tokens: Varying | None = None
    output_tokens: Varying | None = None
    agent: str = ""

    @field_validator("text")
    @classmethod
    def _text(cls, value: str) -> str:
        return _is_text(value)

    @property
    def is_scripted(self) -> bool:
        """Whether the model does what this says, whatever the words of the prompt."""
        return self.model is not None or bool(self.tools)

    def script(self, draw: random.Random, profile: Profile, *, fault: str) -> TurnScript:
        """Return one turn's script, drawn."""

        def amount(of: Distribution | None, otherwise: float = 0.0) -> float:
            return of.draw(draw) if of is not None else otherwise

        tools = [
            ScriptedTool(tool.name, amount(tool.took), tool.failed, tool.result)
            for tool in self.tools
        ]
        if fault == "tool" and tools:
            tools[-1] = tools[-1]._replace(is_error=True, result="the tool failed")
        groups = [tuple(tools)] if self.together and tools else [(tool,) for tool in tools]
        calls = []
        for group in (*groups, ()):
            took_s = amount(self.model, profile.ttft_s)
            first_s = min(took_s, amount(self.first_token, min(profile.ttft_s, took_s)))
            inputs, outputs = amount(self.input_tokens), amount(self.output_tokens)
            calls.append(ScriptedCall(took_s, first_s, group, round(inputs), round(outputs)))
        return TurnScript(tuple(calls), fails=fault == "failed")

    def expected_s(self, profile: Profile) -> float:
        """Return how long a turn of this kind takes on average."""
        call_s = self.model.mean if self.model is not None else profile.ttft_s
        return (len(self.tools) + 1) * call_s + sum(tool.took.mean for tool in self.tools)


class Phase(Value):
    """A part of a run with its own number of users, or its own rate of arrivals.

    Attributes:
        for_s: how long it is; in files also ``for``.
        users: how many ask at the end of the ramp; None keeps those of the phase before.
        ramp_s: how long it takes until they are all there (or gone).
        rate_per_s: turns arrive at random times, so many a second, answered or not.
        prompts: what is asked in this phase; without any, the prompts of the whole.
    """

    name: str = Field(pattern=r"^[\w .-]{1,60}$")
    for_s: Seconds = Field(validation_alias=AliasChoices("for", "for_s"))
    users: int | None = Field(default=None, ge=0)
    ramp_s: Seconds = Field(default=0.0, validation_alias=AliasChoices("ramp", "ramp_s"))
    rate_per_s: float = Field(
        default=0.0, ge=0, le=100_000, validation_alias=AliasChoices("rate", "rate_per_s")
    )
    prompts: tuple[Prompt, ...] = ()


def _client_json(clients: tuple[Client, ...]) -> list[dict[str, Any]]:
    return [
        {
            **client._asdict(),
            "end_s": None if math.isinf(client.end_s) else client.end_s,
            "asks": [ask._asdict() for ask in client.asks],
        }
        for client in clients
    ]


class Scenario(Value):
    """What an experiment does.

    Attributes:
        name: part of the run's id.
        users: how many people.
        sessions: how many sessions each of them has; all users' sessions have the same names.
        clients: how many clients ask each session at once.
        turns: how many turns each client asks; with phases, the most.
        prompts: texts asked in rotation, or ``Prompt`` objects drawn by their weight; ``{title}``
            becomes a title that names its turn.
        think_s: the least and the most that a client waits between its turns.
        think: instead of ``think_s``, any distribution (see ``lab.distribution``).
        arrival: ``closed`` (a client asks after its last answer) or ``open`` (turns arrive at
            random times, ``rate_per_s`` of them a second, whether or not others are answered).
        phases: parts of the run with their own users, ramp or rate; they replace ``users``.
        faults: which share of the turns is ``refused``, ``failed``, ``cancelled``, or has a
            ``tool`` that fails.
        agents: the sessions are dealt to them in turn.
        strategy: what a second turn of a busy session does; "" leaves it to the agent's file.
        timeout_s: how long a client waits for an answer.
        profile: how long the simulated model takes.
        speed: by how much the model and the arrivals are faster than written.
        is_http: ask the simulated model through the real client over HTTP, not in this process.
        durability: what the store survives, ``process`` or ``power``.
        layout: of the store, ``user`` or ``report``.
        kills: how often the service's process is killed (it is then a child process).
        is_probed: after everything, each session is asked once more and read.
        seed: of everything that is drawn.
        clients_given: who asks instead of those that would be drawn: a replayed record.
    """

    name: str = Field(default="scenario", pattern=r"^[\w-]{1,60}$")
    users: _Count = 4
    sessions: _Count = 2
    clients: _Count = 2
    turns: _Count = 3
    prompts: tuple[str | Prompt, ...] = Field(default=PROMPTS, min_length=1)
    think_s: tuple[Seconds, Seconds] = (0.0, 0.003)
    think: Varying | None = None
    arrival: Literal["closed", "open"] = "closed"
    rate_per_s: float = Field(default=0.0, ge=0, le=100_000, strict=True)
    phases: tuple[Phase, ...] = ()
    faults: Mapping[Fault, Share] = Field(default_factory=dict)
    agents: tuple[str, ...] = Field(default=(AGENT,), min_length=1)
    strategy: Literal["", "enqueue", "reject", "interrupt", "rollback", "steer"] = ""
    timeout_s: float = Field(default=60.0, gt=0, le=86_400, strict=True)
    profile: Profile = Profile(ttft_s=0.02, jitter=0.3)
    speed: float = Field(default=1.0, gt=0, le=SPEED_LIMIT, strict=True)
    is_http: bool = Field(default=False, strict=True)
    durability: Literal["process", "power"] = "process"
    layout: Literal["user", "report"] = "user"
    kills: int = Field(default=0, ge=0, le=1000, strict=True)
    is_probed: bool = Field(default=True, strict=True)
    seed: int = Field(default=0, strict=True)
    clients_given: Annotated[tuple[Client, ...], PlainSerializer(_client_json)] = ()

    def __init__(self, **fields: Any) -> None:
        try:
            super().__init__(**fields)
        except ValidationError as error:
            raise InvalidScenario(problem_of(error, known=type(self).model_fields)) from None

    @field_validator("clients_given", mode="before")
    @classmethod
    def _open_ended(cls, value: Any) -> Any:
        if isinstance(value, list):  # JSON has no infinity
            return [
                {**one, "end_s": math.inf if one.get("end_s") is None else one["end_s"]}
                if isinstance(one, dict)
                else one
                for one in value
            ]
        return value

    @field_validator("prompts")
    @classmethod
    def _texts(cls, value: tuple[str | Prompt, ...]) -> tuple[str | Prompt, ...]:
        for one in value:
            if isinstance(one, str):
                _is_text(one)
        return value

    @field_validator("clients_given")
    @classmethod
    def _times(cls, value: tuple[Client, ...]) -> tuple[Client, ...]:
        for client in value:
            for time_s in (client.start_s, *(ask.pause_s for ask in client.asks)):
                if not 0 <= time_s < math.inf:
                    raise ValueError(f"client {client.name!r:.40} has the time {time_s!r:.40}")
            for ask in client.asks:
                _is_text(ask.prompt)
        return value

    @model_validator(mode="after")
    def _fits_together(self) -> Scenario:
        if self.think_s[0] > self.think_s[1]:
            raise ValueError(f"think_s={self.think_s}: put the least before the most")
        if self.arrival != "open" and self.rate_per_s:
            raise ValueError(
                f"rate_per_s={self.rate_per_s} is for open arrivals: set arrival='open' too"
            )
        if self.arrival == "open" and not self.rate_per_s:
            raise ValueError("open arrivals need rate_per_s above 0")
        if self.kills and self.is_http:
            raise ValueError(
                "is_http=True has no use with kills: a killed service has its model inside, so "
                "that both die; leave out one of the two"
            )
        if self.kills and (self.is_scripted or self.agents != (AGENT,)):
            raise ValueError("kills has no use with scripted prompts, faults or other agents")
        if not self.phases and self.turns_total > TURNS_LIMIT:
            raise ValueError(
                f"{self.turns_total} turns are too many for one run (TURNS_LIMIT={TURNS_LIMIT})"
            )
        if self.phases and all(not p.users and not p.rate_per_s for p in self.phases):
            raise ValueError("phases: none of them has users or a rate")
        return self

    @property
    def is_scripted(self) -> bool:
        """Whether any turn says itself what the model does."""
        if any(
            ask.script or ask.is_refused for client in self.clients_given for ask in client.asks
        ):
            return True
        asked = (*self.prompts, *(one for phase in self.phases for one in phase.prompts))
        given = [one for one in asked if isinstance(one, Prompt)]
        return bool(self.faults) or any(prompt.is_scripted for prompt in given)

    @property
    def duration_s(self) -> float:
        """How long the phases are together; 0 without phases."""
        return sum(phase.for_s for phase in self.phases) / self.speed

    @property
    def turns_total(self) -> int:
        """How many turns are asked (with phases: at most), without the final probes."""
        if self.clients_given or self.phases:
            return sum(len(client.asks) for client in self.script())
        return self.users * self.sessions * self.clients * self.turns

    def with_(self, **changes: Any) -> Scenario:
        """Return the same scenario but for these fields."""
        return type(self)(**{**dict(self), **changes})

    def session_keys(self) -> tuple[SessionKey, ...]:
        """Return the sessions; the names of users and of sessions are drawn from one pool."""
        if self.clients_given:
            asked = (ask.key for client in self.clients_given for ask in client.asks)
            return tuple(dict.fromkeys(asked))
        most = max((phase.users or 0 for phase in self.phases), default=0)
        users = max(1, most) if self.phases and most else self.users
        return tuple(
            SessionKey(
                _name(user),
                _name(session),
                self.agents[(user * self.sessions + session) % len(self.agents)],
            )
            for user in range(users)
            for session in range(self.sessions)
        )

    def script(self) -> tuple[Client, ...]:
        """Return who asks what, drawn from the seed."""
        if self.clients_given:
            return self.clients_given
        draw = random.Random(f"{self.seed}/{self.name}")
        numbers = dict.fromkeys(self.session_keys(), 0)
        if self.phases:
            return tuple(self._phased(draw, numbers))
        drawn = [
            Client(f"{key.lock_name}/{at}", 0.0, self._asks(key, self.turns, draw, numbers))
            for key in numbers
            for at in range(self.clients)
        ]
        if self.arrival == "closed":
            return tuple(drawn)
        asks = [ask for client in drawn for ask in client.asks]
        draw.shuffle(asks)
        gaps_s = (draw.expovariate(self.rate_per_s) / self.speed for _ in asks)
        return tuple(
            Client(ask.turn_id, at_s, (ask._replace(pause_s=0.0),))
            for ask, at_s in zip(asks, accumulate(gaps_s), strict=True)
        )

    def probe(self, key: SessionKey) -> Ask:
        """Return the turn that asks, after everything, whether the session still answers."""
        marker = marker_of(key, 0xFFFFFF, seed=self.seed)
        return Ask(key, f"probe-{marker[1:]}", marker, f"{_PROBE} {marker}")

    def to_json(self) -> dict[str, Any]:
        """Return the scenario as JSON values; ``from_json`` takes it back."""
        return self.model_dump(mode="json")

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> Scenario:
        """Return the scenario of ``to_json``.

        Raises:
            InvalidScenario: a field is unknown, missing or makes no sense.
        """
        if "profile" not in fields:
            raise InvalidScenario("not a scenario: it has no profile")
        return cls(**fields)

    def _asks(
        self,
        key: SessionKey,
        count: int,
        draw: random.Random,
        numbers: dict[SessionKey, int],
        prompts: tuple[str | Prompt, ...] = (),
    ) -> tuple[Ask, ...]:
        asks = []
        for _ in range(count):
            pause_s = self.think.draw(draw) if self.think else draw.uniform(*self.think_s)
            asks.append(self._ask(key, numbers[key], pause_s, draw, prompts or self.prompts))
            numbers[key] += 1
        return tuple(asks)

    def _ask(
        self,
        key: SessionKey,
        number: int,
        pause_s: float,
        draw: random.Random,
        prompts: tuple[str | Prompt, ...],
    ) -> Ask:
        marker = marker_of(key, number, seed=self.seed)
        prompt: str | Prompt = prompts[number % len(prompts)]
        if any(isinstance(one, Prompt) for one in prompts):
            weights = [one.weight if isinstance(one, Prompt) else 1.0 for one in prompts]
            (prompt,) = draw.choices(prompts, weights)
        fault = self._fault(draw)
        if isinstance(prompt, str):
            prompt = Prompt(text=prompt)
        text = prompt.text.replace("{title}", marker[1:])
        ask = Ask(key, marker[1:], marker, f"{text} {marker}", pause_s / self.speed)
        expected_s = prompt.expected_s(self.profile) / self.speed
        if prompt.is_scripted or fault == "failed":
            ask = ask._replace(script=prompt.script(draw, self.profile, fault=fault))
        if fault == "cancelled":
            ask = ask._replace(patience_s=max(0.001, expected_s * draw.uniform(0.1, 0.9)))
        return ask._replace(is_refused=fault == "refused")

    def _fault(self, draw: random.Random) -> str:
        if not self.faults:
            return ""
        at, drawn = 0.0, draw.random()
        for name, share in self.faults.items():
            at += share
            if drawn < at:
                return name
        return ""

    def _phased(self, draw: random.Random, numbers: dict[SessionKey, int]) -> Iterator[Client]:
        keys = list(numbers)
        begin_s, before = 0.0, 0
        mean_s = self.think.mean if self.think else sum(self.think_s) / 2
        latest: dict[str, str] = {}
        for phase in self.phases:
            asked = phase.prompts or self.prompts
            given = [p if isinstance(p, Prompt) else Prompt(text=p) for p in asked]
            turn_s = max(0.02, mean_s + min(prompt.expected_s(self.profile) for prompt in given))
            end_s = begin_s + phase.for_s
            if phase.rate_per_s:
                at_s = begin_s + draw.expovariate(phase.rate_per_s)
                while at_s < end_s:
                    key = draw.choice(keys)
                    (ask,) = self._asks(key, 1, draw, numbers, phase.prompts)
                    ask = ask._replace(pause_s=0.0)
                    yield Client(f"{phase.name}/{ask.turn_id}", at_s / self.speed, (ask,))
                    at_s += draw.expovariate(phase.rate_per_s)
                begin_s = end_s
                continue
            users = before if phase.users is None else phase.users
            step_s = phase.ramp_s / max(1, abs(users - before))
            for user in range(max(users, before)):
                # Who comes in this phase comes during the ramp; who goes, goes during it.
                from_s = begin_s + max(0, user - before + 1) * step_s * (user >= before)
                until_s = end_s if user < users else begin_s + (before - user) * step_s
                count = min(
                    _PHASE_TURNS_LIMIT, math.ceil(2 * max(0.0, until_s - from_s) / turn_s) + 1
                )
                if until_s <= from_s:
                    continue
                own = keys[user * self.sessions : (user + 1) * self.sessions]
                for key in own:
                    for at in range(self.clients):
                        who = f"{key.lock_name}/{at}"
                        name = f"{phase.name}/{who}"
                        yield Client(
                            name,
                            from_s / self.speed,
                            self._asks(key, count, draw, numbers, phase.prompts),
                            until_s / self.speed,
                            latest.get(who, ""),
                        )
                        latest[who] = name
            begin_s, before = end_s, users


def problem_of(
    error: ValidationError, *, known: Mapping[str, Any] | None = None, where: str = ""
) -> str:
    """Return the first problem of a validation in one sentence: the field, its value, the rule.

    Args:
        known: the fields there are, for a field that is not known.
        where: the name of the whole, if it has one.
    """
    first = error.errors(include_url=False)[0]
    path = where
    for part in first["loc"]:
        if isinstance(part, int):
            path += f"[{part}]"
        elif not str(part)[:1].isupper() and str(part) not in ("str", "int", "float"):
            # What is left out are the names of a union's kinds, which are no fields.
            path += f".{part}" if path else str(part)
    message = first["msg"].removeprefix("Value error, ").removeprefix("Input ")
    match first["type"]:
        case "extra_forbidden" | "unexpected_keyword_argument":
            owner, _, name = path.rpartition(".")
            there = f": there are {', '.join(known)}" if known and "." not in path else ""
            return f"{owner or 'it'} has no {name!r}{there}"
        case "missing":
            return f"{path} is missing"
        case "value_error" if not first["loc"]:
            return message
        case _ if isinstance(first["input"], dict):
            return f"{path}: {message}"
        case _:
            return f"{path}={first['input']!r:.80}: {message}"


def _name(number: int) -> str:
    return _NAMES[number] if number < len(_NAMES) else f"{_NAMES[number % 8]}-{number // 8}"
