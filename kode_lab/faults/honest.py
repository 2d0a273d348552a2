"""The real parts, unwrapped, under everything that clients, models, disks and kills do to them.

Whatever the judge objects to in these plays is a false alarm, or a defect of the service; both are
to be looked at. It owns the conditions and the counting; a seed replays a play step by step.
"""

from __future__ import annotations

from collections import Counter
from typing import NamedTuple

from kode_lab.check import Verdict, check
from kode_lab.faults.scenario import KEYS, Played, Scenario
from kode_lab.faults.site import Parts
from kode_lab.faults.stage import Stage

__all__ = ["HARD_CONDITIONS", "Honesty", "honest_play", "honest_runs"]

_HARD = Scenario(
    keys=(KEYS[0], KEYS[3]),
    clients=3,
    turns=3,
    hurried_percent=20,
    attempts=3,
    failing_percent=4,
    is_reading=True,
)
# Seed n plays under condition n modulo their number.
HARD_CONDITIONS = (
    _HARD._replace(is_cancelling=True),
    _HARD._replace(crash="kill"),
    _HARD._replace(crash="kill", processes=2, is_cancelling=True),
    _HARD._replace(crash="power-cut", strategy="steer"),
    _HARD._replace(strategy="interrupt"),
    _HARD._replace(strategy="rollback", is_cancelling=True),
    _HARD._replace(strategy="reject", processes=2),
    _HARD._replace(deadline_s=0.04, crash="kill"),
    _HARD._replace(crash="kill", has_full_disk=True, think_ms=10.0, turns=6, strategy="steer"),
)


class Honesty(NamedTuple):
    """What the judge said of right plays.

    Attributes:
        statuses: how many plays were ``valid``, ``unknown`` (too little was seen), ``invalid``.
        turns: asked in all of them.
        crashes: in all of them.
        objections: seeds of invalid plays, with what was found.
    """

    statuses: Counter[str]
    turns: int
    crashes: int
    objections: dict[int, str]


def honest_play(seed: int, stage: Stage | None = None) -> tuple[Played, Verdict]:
    """Play one seed, and judge it."""
    scenario = HARD_CONDITIONS[seed % len(HARD_CONDITIONS)]
    if stage is None:
        with Stage(scenario, Parts()) as own:
            return honest_play(seed, own)
    played = stage.play(seed, scenario)
    return played, check(played.history, played.trace)


def honest_runs(count: int, *, seed: int = 0) -> Honesty:
    """Play that many seeds, and count what the judge says."""
    statuses: Counter[str] = Counter()
    turns = crashes = 0
    objections: dict[int, str] = {}
    with Stage(HARD_CONDITIONS[0], Parts()) as stage:
        for number in range(seed, seed + count):
            _, verdict = honest_play(number, stage)
            statuses[verdict.status] += 1
            turns += verdict.evidence.turns
            crashes += verdict.evidence.crashes
            if verdict.status == "invalid":
                objections[number] = verdict.reason
    return Honesty(statuses, turns, crashes, objections)
