"""Numbers that a command is given, looked at before anything is opened.

It owns what ``kode-lab serve`` may be given, and the sentence for it. A limit below its least would
refuse everything or be taken for "not given"; nan compares with nothing, and would be found out at
the end, when turns are drained.
"""

from __future__ import annotations

import math
from argparse import Namespace
from collections.abc import Mapping
from typing import NamedTuple

from kode_lab.errors import InvalidScenario

__all__ = ["Range", "check_ranges", "check_serve"]


class Range(NamedTuple):
    """What a number may be, both ends included; infinity never is."""

    least: float
    most: float = math.inf


_ROOM = 1_000_000_000
_SERVE = {
    "turns_limit": Range(1, _ROOM),
    "sessions_per_user": Range(1, _ROOM),
    "residents": Range(1, _ROOM),
    "drain": Range(0, 86_400),
}


def check_serve(options: Namespace) -> None:
    """Say which option of ``kode-lab serve`` makes no sense.

    Raises:
        InvalidScenario: a number is out of its range, or the model's name is empty.
    """
    check_ranges(options, _SERVE)
    if options.model is not None and not options.model.strip():
        raise InvalidScenario("--model is empty: give the model's name, or leave it out")


def check_ranges(options: Namespace, ranges: Mapping[str, Range]) -> None:
    """Say which number is out of its range; what was not given is None.

    Raises:
        InvalidScenario: one is; names its option.
    """
    for name, (least, most) in ranges.items():
        value = getattr(options, name)
        if value is not None and not (least <= value <= most and math.isfinite(value)):
            option = f"--{name.replace('_', '-')}"
            upto = "" if math.isinf(most) else f" to {most:,.0f}"
            raise InvalidScenario(f"{option} {value:g} makes no sense: give from {least:g}{upto}")
