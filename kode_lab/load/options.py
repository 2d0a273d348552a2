"""What ``kode-lab load`` is told, looked at before anything starts.

It owns the ranges. A number that Locust would take for its default, or divide by, is refused here,
in a sentence that names its option; so is a fault that no server can make.
"""

from __future__ import annotations

from argparse import Namespace

from kode_lab.errors import InvalidScenario
from kode_lab.server.ranges import Range, check_ranges

__all__ = ["check_load"]

_RANGES = {
    "users": Range(1),
    "spawn_rate": Range(0.001, 100_000),
    # Of one user: from one turn in three hours to more than a generator sends.
    "rate": Range(0.0001, 10_000),
    "slo_p99_ms": Range(0.001),
    "processes": Range(1, 256),
    "kills": Range(0),
}


def check_load(options: Namespace) -> None:
    """Say what makes no sense.

    Raises:
        InvalidScenario: a number is out of its range, or the fault cannot be served.
    """
    check_ranges(options, _RANGES)
    if options.fault is not None:
        _check_fault(options)


def _check_fault(options: Namespace) -> None:
    if options.host:
        raise InvalidScenario(
            "--fault is made by a server that is started here: leave it out with --host"
        )
    from kode_lab.faults.catalogue import fault_of  # noqa: PLC0415 - few runs have one
    from kode_lab.faults.serving import SERVABLE  # noqa: PLC0415 - as above

    if fault_of(options.fault).name not in SERVABLE:
        raise InvalidScenario(
            f"--fault {options.fault} needs the laboratory, and cannot be served: name one of "
            f"{', '.join(SERVABLE)}"
        )
