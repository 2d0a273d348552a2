"""Amounts that vary: how long people think, how long a model takes, how many tokens a reply has.

It owns reading a distribution as people describe one, drawing from it, and its mean. The same
generator gives the same draws. It must never know what is drawn.

    2.0                                    always the same
    [1, 3]                                 anything between, equally likely
    {"mean": 2}                            exponential: independent events
    {"mean": 2, "spread": 1}               lognormal with this mean and standard deviation
    {"median": 2, "p95": 6, "p99": 9}      through these percentiles
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping
from itertools import pairwise
from typing import Annotated, Any, NamedTuple

from pydantic import BeforeValidator, PlainSerializer, WithJsonSchema

from kode_lab.lab.times import seconds_in

__all__ = ["Distribution", "Varying"]

_SHARES = {"min": 0.0, "median": 0.5, "max": 1.0}
_HOW = "use one amount, [least, most], {mean}, {mean, spread}, or percentiles such as {median, p95}"


class Distribution(NamedTuple):
    """Where an amount is drawn from.

    Attributes:
        kind: ``uniform``, ``exponential``, ``lognormal`` or ``percentiles``.
        values: least and most; the mean; mean and standard deviation; the values at ``shares``.
        shares: of ``percentiles``, rising from 0 to 1.
    """

    kind: str
    values: tuple[float, ...]
    shares: tuple[float, ...] = ()

    def draw(self, draw: random.Random) -> float:
        """Return one amount."""
        match self.kind:
            case "uniform":
                return draw.uniform(*self.values)
            case "exponential":
                return draw.expovariate(1 / self.values[0]) if self.values[0] else 0.0
            case "lognormal":
                return draw.lognormvariate(*_log_parameters(*self.values))
            case _:
                return self._at(draw.random())

    @property
    def mean(self) -> float:
        """The expected amount."""
        match self.kind:
            case "uniform":
                return sum(self.values) / 2
            case "exponential" | "lognormal":
                return self.values[0]
            case _:
                return sum(self._at((step + 0.5) / 1000) for step in range(1000)) / 1000

    def _at(self, share: float) -> float:
        """Return the percentile, drawing straight lines between the logarithms of those given."""
        place = next(n for n, known in enumerate(self.shares) if n and share <= known)
        low, high = self.shares[place - 1], self.shares[place]
        first, last = self.values[place - 1], self.values[place]
        part = (share - low) / (high - low)
        if first <= 0:
            return first + part * (last - first)
        return first * math.exp(part * math.log(last / first))

    def to_json(self) -> dict[str, Any]:
        """Return its fields as JSON values."""
        return self._asdict()


def _log_parameters(mean: float, spread: float) -> tuple[float, float]:
    if mean <= 0:
        return -math.inf, 0.0
    variance = math.log(1 + (spread / mean) ** 2)
    return math.log(mean) - variance / 2, math.sqrt(variance)


def _distribution(value: Any) -> Distribution:  # noqa: PLR0911 - one return a form
    """Return the distribution that a value describes.

    Raises:
        ValueError: it describes none.
    """
    if isinstance(value, Distribution):
        return value
    if isinstance(value, Mapping) and "kind" in value:
        return Distribution(value["kind"], tuple(value["values"]), tuple(value.get("shares") or ()))
    if isinstance(value, list | tuple) and len(value) == 2:
        low, high = _amount(value[0]), _amount(value[1])
        if low > high:
            raise ValueError(f"{low:g} is more than {high:g}: put the smaller first")
        return Distribution("uniform", (low, high))
    if not isinstance(value, Mapping):
        amount = _amount(value)
        return Distribution("uniform", (amount, amount))
    given = {name: _amount(amount) for name, amount in value.items()}
    if set(given) == {"mean"}:
        return Distribution("exponential", (given["mean"],))
    if set(given) == {"mean", "spread"}:
        return Distribution("lognormal", (given["mean"], given["spread"]))
    return _percentiles(given)


def _percentiles(given: Mapping[str, float]) -> Distribution:
    points: dict[float, float] = {}
    for name, amount in given.items():
        share = _SHARES.get(name)
        if share is None and name[:1] == "p" and name[1:].replace(".", "").isdigit():
            share = float(name[1:]) / 100
        if share is None or not 0 <= share <= 1:
            raise ValueError(f"{name!r:.40} is not known: {_HOW}")
        points[share] = amount
    if not points or ordered_badly(points):
        raise ValueError(f"percentiles must rise: {_HOW}")
    ordered = sorted(points.items())
    # Below and above what is told: symmetric on a logarithmic scale around the median, at most.
    if ordered[0][0] > 0:
        ordered.insert(0, (0.0, ordered[0][1] / 2))
    if ordered[-1][0] < 1:
        ordered.append((1.0, ordered[-1][1] * 1.1))
    return Distribution(
        "percentiles", tuple(v for _, v in ordered), tuple(share for share, _ in ordered)
    )


def ordered_badly(points: Mapping[float, float]) -> bool:
    """Return whether a higher percentile has a smaller value."""
    values = [value for _, value in sorted(points.items())]
    return any(first > second for first, second in pairwise(values))


def _amount(value: Any) -> float:
    found = seconds_in(value)
    if found is None or not 0 <= found <= 1e9:
        raise ValueError(f"{value!r:.40} is no amount: {_HOW}")
    return found


Varying = Annotated[
    Distribution,
    BeforeValidator(_distribution),
    PlainSerializer(Distribution.to_json),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": ["number", "string"]},
                {"type": "array", "minItems": 2, "maxItems": 2},
                {"type": "object"},
            ],
            "description": _HOW,
            "examples": ["2 s", ["1 s", "3 s"], {"mean": "2 s"}, {"median": "2 s", "p95": "6 s"}],
        }
    ),
]
