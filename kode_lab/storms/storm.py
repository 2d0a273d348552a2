"""A storm as a value: what the clients of several workers ask, and which faults happen meanwhile.

It owns the numbers of a run and draws its turns: any turn may go to any worker, so that sessions
move, and a few hot sessions get much of the load, so that turns always wait.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass
from random import Random
from typing import Any

from kode_lab.errors import InvalidScenario
from kode_lab.history.operation import marker_of
from kode_lab.key import SessionKey
from kode_lab.lab.scenario import AGENT, Ask

__all__ = ["FAULTS", "STORMS", "TURNS_LIMIT", "Dice", "Storm"]

TURNS_LIMIT = 1_000_000
WORKERS_LIMIT = 64
# What happens, in one clause each.
FAULTS = {
    "kill": "a worker is killed with kill -9, and another one comes",
    "pause": "a worker is stopped in the middle of a turn for longer than the TTL",
    "restart": "PostgreSQL is killed with all its processes, and started again",
    "cut": "a connection is cut in the middle of a message",
    "slow": "a worker's answers from the database are late, or stop for less or more than the TTL",
    "late": "a write is held back until its sender gave up, and arrives while the session goes on",
}
_USERS = 16
_PROMPTS = (
    'Create a schedule: "{title}" on 2026-03-02 at 15:00.',
    "Thank you.",
    "Query my schedules of the 2 days from 2026-03-02 on.",
    "And thank you again.",
)
_PROBE = "Are you there?"


@dataclass(frozen=True, slots=True)
class Storm:
    """What a run does.

    Attributes:
        name: what the run is called.
        faults: names of ``FAULTS``; each comes ``times`` times, one after another, in random order.
        turns: the least that is asked; the clients go on until the last fault is over.
        hot: sessions that get ``hot_share`` of the turns.
        ttft_s: the least that a call of the simulated model takes, on the average.
        ttl_s: after which a silent worker is taken for gone.
        patience_s: how long a worker retries a database that does not answer.
        timeout_s: how long a client waits for an answer, before it sends the turn again.
        again_share: of the turns that were answered; their clients send them again all the same.
        limit_s: a run that is not over by then is stuck, and judged as it stands.
    """

    name: str
    faults: tuple[str, ...] = ()
    times: int = 10
    turns: int = 10_000
    sessions: int = 240
    hot: int = 12
    hot_share: float = 0.4
    workers: int = 4
    clients: int = 48
    ttft_s: float = 0.004
    ttl_s: float = 30.0
    patience_s: float = 10.0
    timeout_s: float = 60.0
    again_share: float = 0.0
    limit_s: float = 1800.0
    seed: int = 0

    def __post_init__(self) -> None:
        unknown = sorted(set(self.faults) - set(FAULTS))
        if unknown:
            raise InvalidScenario(f"no fault {unknown[0]!r:.60}: choose of {', '.join(FAULTS)}")
        for name, most in (
            ("turns", TURNS_LIMIT),
            ("sessions", TURNS_LIMIT),
            ("workers", WORKERS_LIMIT),
            ("clients", TURNS_LIMIT),
        ):
            if not 1 <= getattr(self, name) <= most:
                value = getattr(self, name)
                raise InvalidScenario(f"{name}={value} is not valid: choose 1 to {most}")
        if not 1 <= self.hot <= self.sessions:
            raise InvalidScenario(
                f"hot={self.hot} is not valid: choose 1 to sessions={self.sessions}"
            )

    def keys(self) -> tuple[SessionKey, ...]:
        """Return the sessions; users share the names of their sessions."""
        return tuple(
            SessionKey(f"user-{number % _USERS}", f"session-{number // _USERS}", AGENT)
            for number in range(self.sessions)
        )

    def probe(self, key: SessionKey) -> Ask:
        """Return the turn that asks, after everything, whether the session still answers."""
        marker = marker_of(key, 0xFFFFFF, seed=self.seed)
        return Ask(key, f"probe-{marker[1:]}", marker, f"{_PROBE} {marker}")

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON values."""
        return asdict(self)


class Dice:
    """Draws a storm's turns, one after another, for the next client that is free."""

    def __init__(self, storm: Storm) -> None:
        self._storm = storm
        self._keys = storm.keys()
        self._random = Random(f"{storm.seed}/{storm.name}")
        self._numbers: Counter[SessionKey] = Counter()

    def ask(self) -> Ask:
        """Return the next turn."""
        storm, random = self._storm, self._random
        is_hot = random.random() < storm.hot_share
        key = self._keys[random.randrange(storm.hot if is_hot else storm.sessions)]
        number = self._numbers[key]
        self._numbers[key] += 1
        marker = marker_of(key, number, seed=storm.seed)
        prompt = _PROMPTS[number % len(_PROMPTS)].replace("{title}", marker[1:])
        return Ask(key, marker[1:], marker, f"{prompt} {marker}", random.uniform(0.0, 0.003))


# The runs of ``kode-lab storm postgres``; a short TTL where a worker must count as dead.
STORMS = {
    storm.name: storm
    for storm in (
        Storm("calm", turns=4_000, hot=4, hot_share=0.5),
        Storm("kill", ("kill",), times=40, turns=4_000, hot=12, hot_share=0.6),
        Storm("pause", ("pause",), times=12, turns=4_000, ttl_s=1.0),
        Storm("restart", ("restart",), times=8, turns=4_000),
        Storm("cut", ("cut",), times=60, turns=4_000),
        Storm("slow", ("slow",), times=12, turns=4_000, ttl_s=1.5),
        Storm("late", ("late",), times=20, turns=4_000, hot_share=0.8, patience_s=0.3),
        Storm(
            "all",
            tuple(name for name in FAULTS if name != "late"),  # it needs a short patience
            times=12,
            turns=12_000,
            ttl_s=1.5,
        ),
    )
}
