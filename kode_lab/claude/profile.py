"""How long the simulated model takes: seeded, scaled, and scripted where a run must come out exact.

A latency depends on what is asked, never on when or in which order, so a concurrent run draws the
same latencies as a serial one. It returns seconds, and must never know sockets or clocks.
"""

from __future__ import annotations

import math
import random
import tomllib
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from kode_lab.errors import InvalidScenario

__all__ = ["Latency", "Plan", "Profile", "profile_of", "report_profile"]

_LIMIT_S = 3_600.0
_FIELDS = ("seed", "ttft_s", "token_s", "jitter", "speed", "plans")
_PLAN_FIELDS = ("name", "intent", "words", "calls_s")


class Latency(NamedTuple):
    """When a reply's first token and its end are due, in seconds after its request arrived."""

    first_s: float
    total_s: float


class Plan(NamedTuple):
    """Exact latencies for the model calls of one kind of turn.

    Attributes:
        intent: what the turn is about, as the script reads it (``create``, ``query``, ...).
        calls_s: seconds of the first, second, ... model call; further ones are drawn.
        words: at least one must be in the prompt; none means any prompt.
    """

    name: str
    intent: str
    calls_s: tuple[float, ...]
    words: tuple[str, ...] = ()

    def fits(self, intent: str, prompt: str) -> bool:
        """Whether a turn of this intent with this prompt follows the plan."""
        return intent == self.intent and (
            not self.words or any(word in prompt.lower() for word in self.words)
        )


@dataclass(frozen=True, slots=True)
class Profile:
    """A latency profile; the default one takes no time at all.

    Attributes:
        ttft_s: seconds to the first token.
        token_s: seconds for each token of output.
        jitter: sigma of a lognormal factor on both; 0 is none.
        speed: by how much everything is faster, plans included.
        plans: the first that fits a turn decides, instead of the figures above.
        seed: of the jitter.
    """

    ttft_s: float = 0.0
    token_s: float = 0.0
    jitter: float = 0.0
    speed: float = 1.0
    plans: tuple[Plan, ...] = ()
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("ttft_s", "token_s", "jitter"):
            value = getattr(self, name)
            if not 0 <= value <= _LIMIT_S:
                raise InvalidScenario(f"{name}={value} must be from 0 to {_LIMIT_S:g}")
        if not (self.speed > 0 and math.isfinite(self.speed)):
            raise InvalidScenario(f"speed={self.speed} must be a number above 0")
        for plan in self.plans:
            if not all(0 <= call_s <= _LIMIT_S for call_s in plan.calls_s):
                raise InvalidScenario(
                    f"plan {plan.name!r}: calls_s={plan.calls_s} must be from 0 to {_LIMIT_S:g}"
                )

    def at(self, speed: float) -> Profile:
        """Return the same profile at another speed."""
        return replace(self, speed=speed)

    def latency(self, intent: str, prompt: str, call: int, output_tokens: int) -> Latency:
        """Return when the reply of a turn's ``call``-th model call (from 0) is due."""
        for plan in self.plans:
            if plan.fits(intent, prompt):
                if call < len(plan.calls_s):
                    total_s = plan.calls_s[call]
                    return self._scaled(min(self.ttft_s, total_s / 2), total_s)
                break
        factor = 1.0
        if self.jitter:
            draw = random.Random(f"{self.seed}/{call}/{prompt}")
            factor = draw.lognormvariate(0.0, self.jitter)
        first_s = self.ttft_s * factor
        return self._scaled(first_s, first_s + self.token_s * factor * output_tokens)

    def _scaled(self, first_s: float, total_s: float) -> Latency:
        return Latency(first_s / self.speed, total_s / self.speed)


def profile_of(path: Path) -> Profile:
    """Return the profile that a TOML file describes.

    Raises:
        InvalidScenario: the file cannot be read or a field makes no sense.
    """
    try:
        fields = tomllib.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise InvalidScenario(f"latency profile {path.name}: {error}") from None
    try:
        plans = tuple(_plan_of(plan) for plan in fields.pop("plans", ()))
        _known(fields, _FIELDS)
        return Profile(plans=plans, **fields)
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        raise InvalidScenario(f"latency profile {path.name}: {error}") from None


@cache
def report_profile() -> Profile:
    """Return the profile by which the report's documented tests take the report's times."""
    return profile_of(Path(__file__).with_name("report_profile.toml"))


def _plan_of(fields: dict[str, Any]) -> Plan:
    _known(fields, _PLAN_FIELDS)
    return Plan(
        fields["name"],
        fields["intent"],
        tuple(float(call_s) for call_s in fields["calls_s"]),
        tuple(word.lower() for word in fields.get("words", ())),
    )


def _known(fields: dict[str, Any], names: tuple[str, ...]) -> None:
    unknown = sorted(set(fields) - set(names))
    if unknown:
        raise ValueError(f"unknown field {unknown[0]!r}; known are {', '.join(names)}")
