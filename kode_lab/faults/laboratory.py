"""Each fault under its scenario, seed by seed, judged; and beside it its honest twin.

It owns what "convicted" means: within the seeds the judge names every anomaly that the fault must
show, and in each of them it finds the same scenario on the parts as they are valid.
It knows neither how a fault works nor how a rule judges.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from kode_lab.check import Verdict, check
from kode_lab.faults.catalogue import CATALOGUE, Fault, fault_of
from kode_lab.faults.scenario import Played
from kode_lab.faults.site import Parts
from kode_lab.faults.stage import Stage

__all__ = [
    "SEEDS",
    "Outcome",
    "as_json",
    "convict",
    "found_in",
    "judged",
    "replay",
    "table",
    "try_all",
]

SEEDS = 10


class Outcome(NamedTuple):
    """What came of one fault.

    Attributes:
        seeds: how many plays there were, of the fault and of its twin.
        convicted: plays in which the judge named what the fault is known by.
        first: the first such seed, or None.
        anomalies: in how many plays each anomaly was found, whatever it was.
        acquitted: plays of the twin that were found valid.
        objection: what was wrong with the first of the others, or "".
    """

    fault: Fault
    seeds: int
    convicted: int
    first: int | None
    anomalies: Mapping[str, int]
    acquitted: int
    objection: str = ""

    @property
    def ok(self) -> bool:
        """Whether the fault was convicted of all that it must show, and its twin of nothing."""
        return not self.missing and self.acquitted == self.seeds

    @property
    def missing(self) -> tuple[str, ...]:
        """What it must show and did not."""
        return tuple(name for name in self.fault.shows if name not in self.anomalies)


def judged(fault: Fault, played: Played) -> Verdict:
    """Return the verdict on a play."""
    scenario = fault.scenario
    limit = scenario.overtaking_limit
    return check(played.history, played.trace, scenario.guarantees, overtaking_limit=limit)


def found_in(verdict: Verdict) -> list[str]:
    """Return the names of what a verdict found."""
    return [name for name, count in verdict.counts.items() if count]


def convict(fault: Fault, seeds: int = SEEDS) -> Outcome:
    """Return what came of a fault and of its twin, in that many plays of each."""
    anomalies: Counter[str] = Counter()
    convicted: list[int] = []
    with Stage(fault.scenario, fault.parts) as stage:
        for seed in range(seeds):
            found = found_in(judged(fault, stage.play(seed)))
            anomalies.update(found)
            if fault.shows[0] in found:
                convicted.append(seed)
    acquitted, objection = 0, ""
    with Stage(fault.scenario, Parts()) as stage:
        for seed in range(seeds):
            verdict = judged(fault, stage.play(seed))
            reason = "" if verdict.status == "valid" else f"{verdict.status}: {verdict.reason}"
            acquitted += not reason
            if reason and not objection:
                objection = f"seed {seed}: {reason}"
    first = convicted[0] if convicted else None
    counts = dict(anomalies.most_common())
    return Outcome(fault, seeds, len(convicted), first, counts, acquitted, objection)


def try_all(names: Sequence[str] = (), seeds: int = SEEDS) -> Iterator[Outcome]:
    """Return the outcome of each named fault as it is there, of all if none is named.

    Raises:
        InvalidScenario: there is no fault of that name.
    """
    for fault in [fault_of(name) for name in names or CATALOGUE]:
        yield convict(fault, seeds)


def replay(fault: Fault, seed: int) -> tuple[Played, Verdict]:
    """Play one seed of a fault again, step by step as it was, and judge it."""
    with Stage(fault.scenario, fault.parts) as stage:
        played = stage.play(seed)
    return played, judged(fault, played)


# ---- showing


def table(outcomes: Iterable[Outcome]) -> str:
    """Return the outcomes as a Markdown table whose columns line up in a terminal too."""
    head = ("fault", "must show", "convicted", "first seed", "twin valid", "also shows", "")
    rows = [head, *(_cells(outcome) for outcome in outcomes)]
    widths = [max(len(row[at]) for row in rows) for at in range(len(head))]
    rule = tuple("-" * width for width in widths)
    return "".join(
        f"| {' | '.join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))} |\n"
        for row in (head, rule, *rows[1:])
    )


def _cells(outcome: Outcome) -> tuple[str, ...]:
    fault = outcome.fault
    also = [f"{name} {n}" for name, n in outcome.anomalies.items() if name not in fault.shows]
    missing = f"NOT CONVICTED of {', '.join(outcome.missing)}" if outcome.missing else ""
    return (
        fault.name,
        ", ".join(f"{name} {outcome.anomalies.get(name, 0)}" for name in fault.shows),
        f"{outcome.convicted} of {outcome.seeds}",
        "-" if outcome.first is None else str(outcome.first),
        f"{outcome.acquitted} of {outcome.seeds}",
        ", ".join(also),
        "ok" if outcome.ok else "; ".join(word for word in (missing, outcome.objection) if word),
    )


def as_json(outcomes: Iterable[Outcome]) -> list[dict[str, Any]]:
    """Return the outcomes as JSON values."""
    return [
        {
            "fault": outcome.fault.name,
            "about": outcome.fault.about,
            "shows": list(outcome.fault.shows),
            "seeds": outcome.seeds,
            "convicted": outcome.convicted,
            "first_seed": outcome.first,
            "anomalies": dict(outcome.anomalies),
            "twin_valid": outcome.acquitted,
            "objection": outcome.objection,
            "ok": outcome.ok,
        }
        for outcome in outcomes
    ]
