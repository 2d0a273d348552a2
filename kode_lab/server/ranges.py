"""The ranges of a command's numbers, checked before anything is opened.

A limit below its least would refuse everything or be read as "not set"; nan compares with nothing,
and would be found out at the end, when turns are drained.
"""

from __future__ import annotations

import math
from argparse import Namespace
from collections.abc import Mapping
from typing import NamedTuple

from kode_lab.errors import InvalidScenario

__all__ = ["Range", "check_ranges"]


class Range(NamedTuple):
    """What a number may be, both ends included; infinity never is."""

    least: float
    most: float = math.inf


def check_ranges(options: Namespace, ranges: Mapping[str, Range]) -> None:
    """Check each number that was set; one that was not is None.

    Raises:
        InvalidScenario: one is; names its option.
    """
    for name, (least, most) in ranges.items():
        value = getattr(options, name)
        if value is not None and not (least <= value <= most and math.isfinite(value)):
            option = f"--{name.replace('_', '-')}"
            upto = " or more" if math.isinf(most) else f" to {most:,.0f}"
            raise InvalidScenario(f"{option} {value:g} is not valid: choose {least:g}{upto}")
