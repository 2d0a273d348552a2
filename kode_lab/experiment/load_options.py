"""What ``kode-lab load`` is told, looked at before anything starts.

It owns the ranges. A number that Locust would take for its default, or divide by, is refused here,
in a sentence that names its option; so is a fault that no server can make.
"""

from __future__ import annotations

import math
from argparse import Namespace
from typing import NamedTuple

from kode_lab.errors import InvalidScenario

__all__ = ["check_load"]


class _Range(NamedTuple):
    least: float
    most: float = math.inf


_RANGES = {
    "users": _Range(1),
    "spawn_rate": _Range(0.001, 100_000),
    # Of one user: from one turn in three hours to more than a generator sends.
    "rate": _Range(0.0001, 10_000),
    "slo_p99_ms": _Range(0.001),
    "processes": _Range(1, 256),
    "kills": _Range(0),
}


def check_load(options: Namespace) -> None:
    """Say what makes no sense.

    Raises:
        InvalidScenario: a number is out of its range, or the fault cannot be served.
    """
    for name, (least, most) in _RANGES.items():
        value = getattr(options, name)
        # nan is in no range, and inf is no number of anything.
        if value is not None and not (least <= value <= most and math.isfinite(value)):
            option = f"--{name.replace('_', '-')}"
            upto = "" if math.isinf(most) else f" to {most:g}"
            raise InvalidScenario(f"{option} {value:g} makes no sense: give from {least:g}{upto}")
    if options.fault is not None:
        _check_fault(options)


def _check_fault(options: Namespace) -> None:
    if options.host:
        raise InvalidScenario(
            "--fault is made by a server that is started here: leave it out with --host"
        )
    from kode_lab.experiment.faults.catalogue import fault_of  # noqa: PLC0415 - few runs have one
    from kode_lab.experiment.faults.serving import SERVABLE  # noqa: PLC0415 - as above

    if fault_of(options.fault).name not in SERVABLE:
        raise InvalidScenario(
            f"--fault {options.fault} needs the laboratory, and cannot be served: name one of "
            f"{', '.join(SERVABLE)}"
        )
