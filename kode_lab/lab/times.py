"""Times and tolerances as people write them: ``2.19``, ``"850 ms"``, ``"1m30s"``, ``"15:02:24"``.

It owns reading them and writing them again, with the resolution that a clock time was written with.
It must never know what a time belongs to.
"""

from __future__ import annotations

import math
import re
from datetime import UTC, date, datetime, time
from typing import Annotated, Any, NamedTuple

from pydantic import BeforeValidator, PlainSerializer, WithJsonSchema

__all__ = [
    "TIME_LIMIT_S",
    "Moment",
    "Seconds",
    "Tolerance",
    "When",
    "Within",
    "counted",
    "seconds_in",
    "shown_s",
]

TIME_LIMIT_S = 86_400.0
_UNITS_S = {
    "ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3,
    "s": 1.0, "sec": 1.0, "secs": 1.0, "second": 1.0, "seconds": 1.0, "秒": 1.0, "毫秒": 1e-3,
    "m": 60.0, "min": 60.0, "mins": 60.0, "minute": 60.0, "minutes": 60.0, "分": 60.0, "分钟": 60.0,
    "h": 3600.0, "hour": 3600.0, "hours": 3600.0, "小时": 3600.0,
}  # fmt: skip
_PART = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s*([a-zµ秒毫分钟小时]+)\s*")
_NUMBER = re.compile(r"[+-]?[0-9]+(?:\.[0-9]+)?(?:e[+-]?[0-9]+)?")
_CLOCK = re.compile(r"([01]?[0-9]|2[0-3]):([0-5][0-9]):([0-5][0-9])(?:[.,]([0-9]{1,9}))?")
_HOW = 'use seconds (2.19) or a text such as "850 ms", "1m30s"'


class Moment(NamedTuple):
    """A time of a report.

    Attributes:
        at_s: seconds since midnight or since 1970 for a clock, else since the test's begin.
        resolution_s: a clock without fractions shows whole seconds; 0 is exact.
        is_clock: it was written as a clock time or a date.
    """

    at_s: float
    resolution_s: float = 0.0
    is_clock: bool = False

    def written(self) -> str | float:
        """Return it as a report file writes it."""
        if not self.is_clock:
            return self.at_s
        moment = datetime.fromtimestamp(self.at_s, UTC)
        digits = round(-math.log10(self.resolution_s)) if self.resolution_s < 1 else 0
        fraction = f"{moment:%f}"[:digits]
        clock = f"{moment:%H:%M:%S}" + (f".{fraction}" if fraction else "")
        return clock if self.at_s < TIME_LIMIT_S else f"{moment:%Y-%m-%d}T{clock}+00:00"


class Tolerance(NamedTuple):
    """How far a measured value may be from the reported one: a share of it, or an amount."""

    share: float = 0.0
    amount: float = 0.0

    def around(self, value: float) -> float:
        """Return the allowed distance from ``value``."""
        return max(self.share * abs(value), self.amount)

    def written(self) -> str | float:
        """Return it as a report file writes it."""
        return f"{self.share * 100:g} %" if self.share else self.amount


def _seconds(value: Any) -> float:
    """Return seconds from a number or a text.

    Raises:
        ValueError: it is neither, or out of range.
    """
    found = seconds_in(value)
    if found is None or not 0 <= found <= TIME_LIMIT_S:
        raise ValueError(f"{_HOW}, from 0 to TIME_LIMIT_S={TIME_LIMIT_S:g} seconds")
    return found


def seconds_in(value: Any) -> float | None:
    """Return the seconds (or the plain number) that a value says, or None."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return float(value) if math.isfinite(value) else None
    if not isinstance(value, str):
        return None
    text = value.strip().lower().lstrip("+~≈")
    if _NUMBER.fullmatch(text):
        return float(text)
    parts = _PART.findall(text)
    if not parts or _PART.sub("", text) or any(unit not in _UNITS_S for _, unit in parts):
        return None
    return sum(float(number) * _UNITS_S[unit] for number, unit in parts)


def _moment(value: Any) -> Moment:
    """Return a moment from a clock time, a date with a time, a number, or a duration.

    Raises:
        ValueError: it is none of them.
    """
    if isinstance(value, Moment):
        return value
    if isinstance(value, str) and (clock := _CLOCK.fullmatch(value.strip())):
        hours, minutes, seconds = (int(clock[place]) for place in (1, 2, 3))
        fraction = clock[4] or ""
        at_s = hours * 3600 + minutes * 60 + seconds + float(f"0.{fraction or 0}")
        return Moment(at_s, 10.0 ** -len(fraction), is_clock=True)
    if isinstance(value, str) and len(value) > 8 and value[4:5] == "-":
        try:
            digits = re.search(r"\.([0-9]{1,9})", value)
            stamp = datetime.fromisoformat(value.strip()).timestamp()
            return Moment(stamp, 10.0 ** -len(digits[1]) if digits else 1.0, is_clock=True)
        except ValueError:
            pass
    if isinstance(value, datetime):
        resolution_s = 1e-6 if value.microsecond else 1.0
        return Moment(value.timestamp(), resolution_s, is_clock=True)
    if isinstance(value, time):
        at_s = value.hour * 3600 + value.minute * 60 + value.second + value.microsecond / 1e6
        return Moment(at_s, 1e-6 if value.microsecond else 1.0, is_clock=True)
    found = None if isinstance(value, date) else seconds_in(value)
    if found is None or not 0 <= found <= TIME_LIMIT_S:
        raise ValueError(f'use a clock time ("15:02:24"), a date with a time, or {_HOW[4:]}')
    return Moment(found)


def _within(value: Any) -> Tolerance:
    """Return a tolerance from ``"10 %"``, a duration, or a number in the claim's own unit.

    Raises:
        ValueError: it is none of them, or negative.
    """
    if isinstance(value, Tolerance):
        return value
    if isinstance(value, str) and value.strip().endswith("%"):
        number = value.strip().rstrip("%").strip().lstrip("±")
        if _NUMBER.fullmatch(number) and float(number) >= 0:
            return Tolerance(share=float(number) / 100)
    found = seconds_in(value.strip().lstrip("±") if isinstance(value, str) else value)
    if found is None or found < 0:
        raise ValueError('use a share ("10 %"), a time ("50 ms") or a number in the claim\'s unit')
    return Tolerance(amount=found)


_DURATION = {"anyOf": [{"type": "number", "minimum": 0}, {"type": "string"}]}
Seconds = Annotated[
    float,
    BeforeValidator(_seconds),
    WithJsonSchema({**_DURATION, "examples": [2.19, "850 ms", "1m30s"]}),
]
When = Annotated[
    Moment,
    BeforeValidator(_moment),
    PlainSerializer(Moment.written),
    WithJsonSchema({**_DURATION, "examples": ["15:02:24", "2026-03-02T15:02:24Z", 2.0]}),
]
Within = Annotated[
    Tolerance,
    BeforeValidator(_within),
    PlainSerializer(Tolerance.written),
    WithJsonSchema({**_DURATION, "examples": ["10 %", "50 ms", 2]}),
]


def counted(count: int, noun: str) -> str:
    """Return a count with its noun: ``1 turn``, ``2,000 turns``, ``2 processes``."""
    ending = "" if count == 1 else "es" if noun.endswith("s") else "s"
    return f"{count:,} {noun}{ending}"


def shown_s(seconds: float) -> str:
    """Return a time with the unit that suits its size."""
    if math.isnan(seconds):
        return "none"
    if abs(seconds) < 0.1:
        return f"{seconds * 1000:.2f} ms"
    if abs(seconds) < 120:
        return f"{seconds:.3f} s"
    whole = round(seconds)
    return f"{whole // 60} min {whole % 60} s" if whole < 7200 else f"{whole / 3600:.1f} h"
