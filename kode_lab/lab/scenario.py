"""A scenario: who asks what of which session, when, and how slow the model is; frozen and seeded.

It owns what is asked and draws it in advance, so that two runs of one scenario ask the same things
in the same order per client. It runs nothing and opens nothing.

What it draws is chosen to provoke: users and sessions share their names (``ada:bea`` beside
``bea:ada``), clients think for 0 to 3 ms (back-to-back clients fall into step and meet in no new
way), and most prompts make the model call a tool, so that a turn has a middle.

Idea: Jepsen's generators, whose schedule is a value apart from its execution.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, NamedTuple

from kode_lab.claude import Plan, Profile
from kode_lab.errors import InvalidScenario
from kode_lab.history.operation import marker_of
from kode_lab.key import SessionKey, is_unicode

__all__ = ["AGENT", "PROMPTS", "SPEED_LIMIT", "TURNS_LIMIT", "Ask", "Client", "Scenario"]

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
_ARRIVALS = ("closed", "open")
_STRATEGIES = ("", "enqueue", "reject", "interrupt", "rollback")
_PROBE = "Are you there?"


class Ask(NamedTuple):
    """One turn to be asked.

    Attributes:
        pause_s: how long its client thinks before it.
    """

    key: SessionKey
    turn_id: str
    marker: str
    prompt: str
    pause_s: float = 0.0


class Client(NamedTuple):
    """Somebody who asks one turn after another, beginning at ``start_s``."""

    name: str
    start_s: float
    asks: tuple[Ask, ...]


@dataclass(frozen=True, slots=True)
class Scenario:
    """What an experiment does.

    Attributes:
        name: part of the run's id.
        users: how many people.
        sessions: how many sessions each of them has; all users' sessions have the same names.
        clients: how many clients ask each session at once.
        turns: how many turns each client asks.
        prompts: asked in rotation; ``{title}`` becomes a title that names its turn.
        think_s: the least and the most that a client waits between its turns.
        arrival: ``closed`` (a client asks after its last answer) or ``open`` (turns arrive at
            random times, ``rate_per_s`` of them a second, whether or not others are answered).
        strategy: what a second turn of a busy session does; "" leaves it to the agent's file.
        timeout_s: how long a client waits for an answer.
        profile: how long the simulated model takes.
        speed: by how much the model and the arrivals are faster than written.
        is_http: ask the simulated model through the real client over HTTP, not in this process.
        durability: what the store survives, ``process`` or ``power``.
        layout: of the store, ``user`` or ``report``.
        kills: how often the service's process is killed (it is then a child process).
        seed: of everything that is drawn.
        clients_given: who asks instead of those that would be drawn: a replayed record.
    """

    name: str = "scenario"
    users: int = 4
    sessions: int = 2
    clients: int = 2
    turns: int = 3
    prompts: tuple[str, ...] = PROMPTS
    think_s: tuple[float, float] = (0.0, 0.003)
    arrival: str = "closed"
    rate_per_s: float = 0.0
    strategy: str = ""
    timeout_s: float = 60.0
    profile: Profile = field(default_factory=lambda: Profile(ttft_s=0.02, jitter=0.3))
    speed: float = 1.0
    is_http: bool = False
    durability: str = "process"
    layout: str = "user"
    kills: int = 0
    seed: int = 0
    clients_given: tuple[Client, ...] = ()

    def __post_init__(self) -> None:
        self._check_given()
        for name in ("users", "sessions", "clients", "turns"):
            value = getattr(self, name)
            if type(value) is not int or value < 1:
                raise InvalidScenario(f"{name}={value!r} must be a whole number of 1 or more")
        if self.turns_total > TURNS_LIMIT:
            raise InvalidScenario(
                f"{self.turns_total} turns are too many for one run (TURNS_LIMIT={TURNS_LIMIT})"
            )
        self._check_times()
        for name, known in (
            ("arrival", _ARRIVALS),
            ("strategy", _STRATEGIES),
            ("durability", ("process", "power")),
            ("layout", ("user", "report")),
        ):
            if getattr(self, name) not in known:
                listed = ", ".join(repr(one) for one in known)
                raise InvalidScenario(f"{name}={getattr(self, name)!r:.80} is none of {listed}")
        if type(self.kills) is not int or not 0 <= self.kills <= 1000:
            raise InvalidScenario(f"kills={self.kills!r:.80} must be a whole number, 0 to 1000")
        if self.kills and self.is_http:
            raise InvalidScenario(
                "is_http=True has no use with kills: a killed service has its model inside, so "
                "that both die; leave out one of the two"
            )

    def _check_given(self) -> None:
        """Check what is given as values of their own: texts, a profile, clients."""
        name = self.name if isinstance(self.name, str) else ""
        if not name.replace("-", "").replace("_", "").isalnum() or len(name) > 60:
            raise InvalidScenario(
                f"name={self.name!r:.80} becomes a directory: give up to 60 letters, digits, - or _"
            )
        prompts = self.prompts if isinstance(self.prompts, tuple | list) else ()
        if not prompts or not all(one and _is_text(one) for one in prompts):
            raise InvalidScenario(
                f"prompts={self.prompts!r:.80}: give a tuple of one text at least, and no empty "
                "one; ('Hello',) asks the same always"
            )
        if not isinstance(self.profile, Profile):
            raise InvalidScenario(f"profile={self.profile!r:.80}: give a Profile, or leave it out")
        if type(self.is_http) is not bool:
            raise InvalidScenario(f"is_http={self.is_http!r:.80}: give True or False")
        if type(self.seed) is not int:
            raise InvalidScenario(f"seed={self.seed!r:.80} must be a whole number")
        given = self.clients_given if isinstance(self.clients_given, tuple | list) else (None,)
        for client in given:
            if (problem := _problem_of(client)) is not None:
                raise InvalidScenario(f"clients_given: {problem}")

    def _check_times(self) -> None:
        pair = self.think_s if isinstance(self.think_s, tuple | list) else ()
        if len(pair) != 2 or not all(map(_is_number, pair)) or not 0 <= pair[0] <= pair[1] <= 3600:
            raise InvalidScenario(
                f"think_s={self.think_s!r:.80}: give two numbers, the least and the most seconds; "
                "they must rise, within 0 and 3600"
            )
        for name, most in (("timeout_s", 86_400), ("speed", SPEED_LIMIT)):
            value = getattr(self, name)
            if not _is_number(value) or not 0 < value <= most:
                raise InvalidScenario(f"{name}={value!r:.80} must be above 0, at most {most}")
        rate = self.rate_per_s
        if self.arrival != "open" and rate != 0:
            raise InvalidScenario(
                f"rate_per_s={rate!r:.80} is for open arrivals: give arrival='open' too, or leave "
                "it out"
            )
        if self.arrival == "open" and not (_is_number(rate) and 0 < rate <= 100_000):
            raise InvalidScenario(
                f"open arrivals need rate_per_s above 0, at most 100000, not {rate!r:.80}"
            )

    @property
    def turns_total(self) -> int:
        """How many turns are asked, without the final probes."""
        if self.clients_given:
            return sum(len(client.asks) for client in self.clients_given)
        return self.users * self.sessions * self.clients * self.turns

    def with_(self, **changes: Any) -> Scenario:
        """Return the same scenario but for these fields."""
        unknown = sorted(set(changes) - set(self.__slots__))
        if unknown:
            raise InvalidScenario(f"a scenario has no {unknown[0]!r}; it has {self.__slots__}")
        return replace(self, **changes)

    def session_keys(self) -> tuple[SessionKey, ...]:
        """Return the sessions; the names of users and of sessions are drawn from one pool."""
        if self.clients_given:
            asked = (ask.key for client in self.clients_given for ask in client.asks)
            return tuple(dict.fromkeys(asked))
        return tuple(
            SessionKey(_name(user), _name(session), AGENT)
            for user in range(self.users)
            for session in range(self.sessions)
        )

    def script(self) -> tuple[Client, ...]:
        """Return who asks what, drawn from the seed."""
        if self.clients_given:
            return self.clients_given
        draw = random.Random(f"{self.seed}/{self.name}")
        numbers = dict.fromkeys(self.session_keys(), 0)
        drawn: list[Client] = []
        for key in self.session_keys():
            for at in range(self.clients):
                asks = []
                for _ in range(self.turns):
                    asks.append(self._ask(key, numbers[key], draw.uniform(*self.think_s)))
                    numbers[key] += 1
                drawn.append(Client(f"{key.lock_name}/{at}", 0.0, tuple(asks)))
        return tuple(drawn) if self.arrival == "closed" else tuple(self._opened(drawn, draw))

    def probe(self, key: SessionKey) -> Ask:
        """Return the turn that asks, after everything, whether the session still answers."""
        marker = marker_of(key, 0xFFFFFF, seed=self.seed)
        return Ask(key, f"probe-{marker[1:]}", marker, f"{_PROBE} {marker}")

    def to_json(self) -> dict[str, Any]:
        """Return the scenario as JSON values; ``from_json`` takes it back."""
        return asdict(self) | {"clients_given": [_client_json(one) for one in self.clients_given]}

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> Scenario:
        """Return the scenario of ``to_json``.

        Raises:
            InvalidScenario: a field is unknown, missing or makes no sense.
        """
        try:
            given = dict(fields)
            profile = dict(given.pop("profile"))
            plans = tuple(
                Plan(name, intent, tuple(calls_s), tuple(words))
                for name, intent, calls_s, words in profile.pop("plans")
            )
            given["clients_given"] = tuple(map(_client_of, given.get("clients_given", ())))
            # A text has letters, and no prompts: the constructor says so.
            listed = {name: given[name] for name in ("prompts", "think_s")}
            tuples = {n: v if isinstance(v, str) else tuple(v) for n, v in listed.items()}
            return cls(**{**given, **tuples, "profile": Profile(plans=plans, **profile)})
        except (KeyError, TypeError, ValueError) as error:
            raise InvalidScenario(f"not a scenario: {error}") from None

    def _ask(self, key: SessionKey, number: int, pause_s: float) -> Ask:
        marker = marker_of(key, number, seed=self.seed)
        prompt = self.prompts[number % len(self.prompts)].replace("{title}", marker[1:])
        return Ask(key, marker[1:], marker, f"{prompt} {marker}", pause_s / self.speed)

    def _opened(self, drawn: list[Client], draw: random.Random) -> list[Client]:
        """Return each turn a client of its own that comes when it comes."""
        asks = [ask for client in drawn for ask in client.asks]
        draw.shuffle(asks)
        at_s, opened = 0.0, []
        for ask in asks:
            at_s += draw.expovariate(self.rate_per_s) / self.speed
            opened.append(Client(ask.turn_id, at_s, (ask._replace(pause_s=0.0),)))
        return opened


def _name(number: int) -> str:
    return _NAMES[number] if number < len(_NAMES) else f"{_NAMES[number % 8]}-{number // 8}"


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_text(value: object) -> bool:
    return isinstance(value, str) and is_unicode(value)


def _problem_of(client: Any) -> str | None:
    if not isinstance(client, Client) or not isinstance(client.asks, tuple):
        return f"give a tuple of Client, each with a tuple of Ask, not {client!r:.80}"
    times: list[Any] = [client.start_s]
    texts: list[Any] = [client.name]
    asks: tuple[Any, ...] = client.asks
    for ask in asks:
        if not isinstance(ask, Ask) or not isinstance(ask.key, SessionKey):
            return f"client {client.name!r:.40} asks {ask!r:.80}: give an Ask with a SessionKey"
        times.append(ask.pause_s)
        texts += [ask.turn_id, ask.marker, ask.prompt]
    if bad := [text for text in texts if not _is_text(text)]:
        return f"client {client.name!r:.40} has {bad[0]!r:.80}: give text that UTF-8 can write"
    if bad := [time for time in times if not (_is_number(time) and 0 <= time < math.inf)]:
        return f"client {client.name!r:.40} has the time {bad[0]!r:.40}: give seconds from 0"
    return None


def _client_json(client: Client) -> dict[str, Any]:
    asks = [{**ask._asdict(), "key": list(ask.key)} for ask in client.asks]
    return {"name": client.name, "start_s": client.start_s, "asks": asks}


def _client_of(fields: Mapping[str, Any]) -> Client:
    asks = (Ask(**{**ask, "key": SessionKey(*ask["key"])}) for ask in fields["asks"])
    return Client(fields["name"], fields["start_s"], tuple(asks))
