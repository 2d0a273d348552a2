"""The smallest play that still convicts: found by Hypothesis, replayed from what it prints.

A small play is fewer sessions, clients and turns, and a list of delays (per cents of the longest,
used in turn) in the place of a seed. Hypothesis shrinks all of them together; nothing is random
any more in what it gives. It is the one place that imports Hypothesis.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from random import Random
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

from kode_lab.check import Verdict
from kode_lab.errors import InvalidScenario
from kode_lab.faults.fault import Fault
from kode_lab.faults.laboratory import found_in, judged
from kode_lab.faults.scenario import Played, Scenario
from kode_lab.faults.stage import Stage

__all__ = ["Small", "play_small", "shrink"]

PLAYS_LIMIT = 300
_DELAYS_LIMIT = 12


class Small(NamedTuple):
    """A small play: how many of the scenario's sessions, of their clients, of their turns.

    Attributes:
        delays: whole per cents of the longest time that each piece of I/O may take.
    """

    sessions: int
    clients: int
    turns: int
    delays: tuple[int, ...]

    def of(self, scenario: Scenario) -> Scenario:
        """Return the scenario, made that small."""
        return scenario._replace(
            keys=scenario.keys[: self.sessions], clients=self.clients, turns=self.turns
        )


def play_small(fault: Fault, small: Small) -> tuple[Played, Verdict]:
    """Play it, and judge it."""
    with Stage(small.of(fault.scenario), fault.parts) as stage:
        played = stage.play(small.delays)
    return played, judged(fault, played)


def shrink(fault: Fault, seed: int = 0, *, plays_limit: int = PLAYS_LIMIT) -> Small:
    """Return a small play of the fault that still convicts it: the smallest in so many plays.

    Raises:
        InvalidScenario: Hypothesis is not there, or found none within ``plays_limit`` plays.
    """
    try:
        import hypothesis  # noqa: PLC0415 - a tool of the laboratory, not of the service
        from hypothesis import configuration, strategies  # noqa: PLC0415
    except ImportError:
        raise InvalidScenario("shrinking needs Hypothesis: pip install hypothesis") from None
    whole = fault.scenario
    small = strategies.builds(
        Small,
        sessions=strategies.integers(1, len(whole.keys)),
        clients=strategies.integers(1, whole.clients),
        turns=strategies.integers(1, whole.turns),
        delays=strategies.lists(
            strategies.integers(0, 100), min_size=1, max_size=_DELAYS_LIMIT
        ).map(tuple),
    )

    known: dict[Small, bool] = {}

    def is_convicted(candidate: Small) -> bool:
        if candidate not in known and len(known) < plays_limit:
            played = stage.play(candidate.delays, candidate.of(whole))
            known[candidate] = fault.shows[0] in found_in(judged(fault, played))
        return known.get(candidate, False)

    settings = hypothesis.settings(
        max_examples=plays_limit,
        database=None,
        deadline=None,
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    try:
        with Stage(whole, fault.parts) as stage, TemporaryDirectory(prefix="kode-") as home:
            configuration.set_hypothesis_home_dir(home)  # it would litter where the user stands
            return _found(hypothesis.find, small, is_convicted, settings, Random(seed))
    except hypothesis.errors.NoSuchExample:
        raise InvalidScenario(
            f"{fault.name}: no small play convicts it within {plays_limit=} plays: "
            "replay one of the seeds instead"
        ) from None
    finally:
        configuration.set_hypothesis_home_dir(None)


def _found(
    find: Callable[..., Any],
    small: Any,
    is_convicted: Callable[[Small], bool],
    settings: Any,
    random: Random,
) -> Small:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its advice is for test suites
        found: Small = find(small, is_convicted, settings=settings, random=random)
    return found
