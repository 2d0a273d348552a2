"""The smallest play that still convicts, found by trying small plays first.

A small play is fewer sessions, clients and turns, and a list of delays (per cents of the longest,
used in turn) in the place of a seed. Shapes are tried by their number of turns; of the first that
convicts, the delays are made shorter and smaller while it still does.

Source: enumerating by size is SmallCheck's (Runciman, Naylor, Lindblad 2008); making a list smaller
is delta debugging (Zeller and Hildebrandt 2002), one element at a time.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from random import Random
from typing import NamedTuple

from kode_lab.check import Verdict
from kode_lab.errors import InvalidScenario
from kode_lab.faults.catalogue import Fault
from kode_lab.faults.laboratory import found_in, judged
from kode_lab.faults.scenario import Played, Scenario
from kode_lab.faults.stage import Stage

__all__ = ["Small", "play_small", "shrink"]

PLAYS_LIMIT = 600
# Lists of delays that are tried with each shape, and their greatest length.
_TRIES = 8
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
    """Return a small play of the fault that still convicts it.

    Args:
        seed: of the delays that are tried.

    Raises:
        InvalidScenario: none was found within ``plays_limit`` plays.
    """
    left = plays_limit
    with Stage(fault.scenario, fault.parts) as stage:

        def is_convicted(small: Small) -> bool:
            nonlocal left
            if left <= 0:
                return False
            left -= 1
            played = stage.play(small.delays, small.of(fault.scenario))
            return fault.shows[0] in found_in(judged(fault, played))

        found = next(filter(is_convicted, _by_size(fault.scenario, Random(seed))), None)
        if found is None:
            raise InvalidScenario(
                f"{fault.name}: no small play convicts it within {plays_limit=} plays: "
                "replay one of the seeds instead"
            )
        while smaller := next(filter(is_convicted, _with_smaller_delays(found)), None):
            found = smaller
    return found


def _by_size(whole: Scenario, random: Random) -> Iterator[Small]:
    """Return plays of every shape, the one with the fewest turns first."""
    ranges = (range(1, most + 1) for most in (len(whole.keys), whole.clients, whole.turns))
    for sessions, clients, turns in sorted(product(*ranges), key=lambda n: (n[0] * n[1] * n[2], n)):
        yield Small(sessions, clients, turns, (0,))
        for _ in range(_TRIES - 1):
            length = random.randint(1, _DELAYS_LIMIT)
            delays = tuple(random.choice((0, random.randint(1, 100))) for _ in range(length))
            yield Small(sessions, clients, turns, delays)


def _with_smaller_delays(small: Small) -> Iterator[Small]:
    """Return the play with one delay less, then with one delay smaller."""
    delays = small.delays
    for at in range(len(delays)):
        if len(delays) > 1:
            yield small._replace(delays=delays[:at] + delays[at + 1 :])
    for at, delay in enumerate(delays):
        for less in sorted({0, delay // 2} - {delay}):
            yield small._replace(delays=(*delays[:at], less, *delays[at + 1 :]))
