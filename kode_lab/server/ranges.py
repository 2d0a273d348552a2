"""The numbers of ``kode-lab serve``, looked at before anything is opened.

It owns what each may be. A limit below its least would refuse everything or be taken for "not
given"; nan compares with nothing, and would be found out at the end, when turns are drained.
"""

from __future__ import annotations

from argparse import Namespace
from typing import NamedTuple

from kode_lab.errors import InvalidScenario

__all__ = ["check_ranges"]


class _Range(NamedTuple):
    least: float
    most: float


_ROOM = 1_000_000_000
_RANGES = {
    "turns_limit": _Range(1, _ROOM),
    "sessions_per_user": _Range(1, _ROOM),
    "residents": _Range(1, _ROOM),
    "drain": _Range(0, 86_400),
    # What a schema takes: kode_lab.sessions.postgres_schema.
    "ttl": _Range(0.5, 3_600),
}


def check_ranges(options: Namespace) -> None:
    """Say which option makes no sense.

    Raises:
        InvalidScenario: a number is out of its range, or the model's name is empty.
    """
    for name, (least, most) in _RANGES.items():
        value = getattr(options, name)
        if value is not None and not least <= value <= most:
            option = f"--{name.replace('_', '-')}"
            raise InvalidScenario(
                f"{option} {value:g} makes no sense: give from {least:g} to {most:,.0f}"
            )
    if options.model is not None and not options.model.strip():
        raise InvalidScenario("--model is empty: give the model's name, or leave it out")
