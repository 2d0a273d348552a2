"""Claims: each statement of a report beside what was measured, and whether it holds.

It owns what is said of a measure, the tolerances, and the verdict. Every claim is a function of the
evidence alone: it reads no clock and touches no running system, so a run can be judged again years
later. The same functions hold a report against its own turns (``contradictions``).

    holds             within the tolerance
    violated          outside it
    inconclusive      too few turns, no record, or a machine too busy for this time
    not applicable    a real model or a foreign service has its own

Idea: the two columns *reported | measured* of a replication study.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, Literal, TypeAlias

from kode_lab.errors import InvalidScenario
from kode_lab.lab.times import shown_s
from kode_lab.reports.evidence import Evidence, SeenTurn, evidence_in
from kode_lab.reports.measures import (
    MEASURES,
    Measure,
    Measured,
    allowance_s,
    amount_in,
    bounds_of,
    percentile,
    shown_value,
    statistic_of,
)
from kode_lab.reports.report import ClaimSpec, Report, Test, Where
from kode_lab.reports.timeline import Contradiction, Placed, contradictions_of, placed_turns

__all__ = [
    "Claim",
    "Verdict",
    "check_claims",
    "claims_of",
    "contradictions",
    "finding",
    "verdict_of",
]

Verdict: TypeAlias = Literal["holds", "violated", "inconclusive", "not applicable"]

# A figure over many turns with drawn times comes out a little different each time.
_MANY_SHARE = 0.1
# With fewer turns than this nothing is said about the error of drawing them.
_SAMPLE_LEAST = 20
# Late wake-ups of the loop add up over a turn; so many times their sum may explain a miss.
_LATE_FACTOR = 3.0
# What a report's own turns can contradict; the others need a run.
_NOT_OF_A_REPORT = (
    *("stored_in", "result", "guarantee", "foreign_prompts", "beyond_model", "together", "memory"),
    *("memory_growth", "cpu", "open_files", "connections", "loop_lag", "overhead", "users"),
    *("anomalies", "not_measured"),
)


_OF_PHASES = ("users_within", "rate_within")
_NEED_SLO = (*_OF_PHASES, "within", "goodput", "apdex")


@dataclass(frozen=True, slots=True)
class Claim:
    """One statement of the report beside what was measured.

    Attributes:
        test: the name of the test.
        what: the statement's subject.
        how: what it was measured on.
    """

    test: str
    what: str
    reported: str
    measured: str
    verdict: Verdict
    how: str


def verdict_of(claims: Iterable[Claim]) -> Verdict:
    """Return the verdict on all: violated beats inconclusive, and that one the rest."""
    found = {claim.verdict for claim in claims}
    order: tuple[Verdict, ...] = ("violated", "inconclusive", "holds", "not applicable")
    return next((verdict for verdict in order if verdict in found), "inconclusive")


def finding(claims: Sequence[Claim]) -> str:
    """Return the outcome in one sentence, beginning with PASS, FAIL or UNKNOWN."""
    count = {v: sum(c.verdict == v for c in claims) for v in ("violated", "inconclusive", "holds")}
    apart = len(claims) - sum(count.values())
    judged = len(claims) - apart
    rest = f", {apart} not applicable" if apart else ""
    match verdict_of(claims):
        case "violated":
            return f"FAIL: {count['violated']} of {judged} claims of the report do not hold{rest}"
        case "inconclusive":
            return f"UNKNOWN: {count['inconclusive']} of {judged} claims could not be judged{rest}"
        case "not applicable":
            return f"UNKNOWN: none of the {apart} claims of the report applies here"
        case _:
            return f"PASS: {count['holds']} of {judged} claims of the report hold{rest}"


def claims_of(evidence: Evidence, others: Iterable[Evidence] = ()) -> tuple[Claim, ...]:
    """Return every claim about one test, judged: those of its turns, then the others.

    Args:
        others: of the report's other tests, for claims that compare with one.
    """
    test = evidence.test
    among = {one.test.name: one for one in others}
    placed = placed_turns(test)
    specs = [spec for one in placed for spec in _of_turn(one)]
    kept = [spec for one in placed for spec in _of_storage(one)]
    # A claim about all comes where a reader expects it: arrivals first, what is kept last.
    first = [spec for spec in test.claims if spec.measure == "arrival_gap"]
    rest = [spec for spec in test.claims if spec.measure != "arrival_gap"]
    waits = {one.name: one for one in placed if one.waited_other_s and not one.turn.model}
    return tuple(
        _doubted(_judged(spec, evidence, among), waits.get(spec.where.turn), spec)
        for spec in (*first, *specs, *rest, *kept)
    )


def check_claims(report: Report) -> None:
    """Refuse claims that say nothing: an unknown measure, statistic or value.

    Raises:
        InvalidScenario: names the test and the claim.
    """
    for test in report.tests:
        for place, spec in enumerate(test.claims):
            where = f"{test.name}.claims[{place}]"
            if spec.measure in _NEED_SLO and not spec.slo:
                raise InvalidScenario(f"{where}: {spec.measure} needs slo = {{measure, ...}}")
            compared = "" if spec.compared_with is None else spec.compared_with.test
            if compared and compared not in (one.name for one in report.tests):
                raise InvalidScenario(f"{where}: there is no test {compared!r:.60} to compare with")
            for one in (spec, *spec.slo):
                if one.measure in _OF_PHASES:
                    continue
                measure = MEASURES.get(one.measure)
                if measure is None:
                    raise InvalidScenario(
                        f"{where}: there is no measure {one.measure!r:.60}: use one of "
                        f"{', '.join((*MEASURES, *_OF_PHASES))}"
                    )
                try:
                    statistic_of(one.statistic or measure.statistic, [1.0])
                    if one.measure not in ("outcome", "result", "stored_in"):
                        is_ratio = one.compared_with is not None and not one.difference
                        bounds_of(one, "" if is_ratio else measure.unit)
                except ValueError as error:
                    raise InvalidScenario(f"{where}: {error}") from None


def contradictions(report: Report) -> tuple[Contradiction, ...]:
    """Return what in a report cannot be: its turns against the lock, its claims against its turns.

    Idea: reading a study's own tables against its text before repeating it.
    """
    found: list[Contradiction] = []
    for test in report.tests:
        found += contradictions_of(test)
        own = evidence_in(report, test)
        for spec in test.claims:
            if spec.measure in _NOT_OF_A_REPORT or not test.turns:
                continue
            claim = _judged(spec, own)
            if claim.verdict == "violated":
                what = f"it says {claim.what}: {claim.reported}, and its own turns give"
                found.append(Contradiction(test.name, f"{what} {claim.measured}"))
        found += (Contradiction(test.name, text) for text in _among(test))
    return tuple(found)


def _among(test: Test) -> Iterator[str]:  # noqa: C901 - a list of checks
    """Return which of the test's claims exclude each other."""
    by_measure: dict[tuple[str, str, Where], dict[float, float]] = {}
    known: dict[str, float] = {}
    for spec in test.claims:
        measure = MEASURES.get(spec.measure)
        if measure is None or spec.compared_with is not None or spec.is_ is None:
            continue
        if spec.measure in ("outcome", "result", "stored_in"):
            continue
        name = spec.statistic or measure.statistic
        value = amount_in(spec.is_, spec, measure.unit)
        if spec.where == Where():
            known[f"{name} {spec.measure}"] = value
        share = {"min": 0.0, "median": 0.5, "max": 1.0}.get(name)
        if share is None and name[:1] == "p":
            share = float(name[1:]) / 100
        if share is not None:
            by_measure.setdefault((spec.measure, spec.name, spec.where), {})[share] = value
    for (name, _, _), points in by_measure.items():
        ordered = sorted(points.items())
        for (low, first), (high, second) in pairwise(ordered):
            if first > second:
                yield (
                    f"it says {name} p{low * 100:g} = {first:g} and p{high * 100:g} = {second:g}: "
                    "a higher percentile cannot be smaller"
                )
    users = test.load.users if test.load is not None and not test.load.phases else 0
    rate, answer_s = known.get("mean throughput"), known.get("mean answer")
    if users and not (test.load and test.load.rate) and rate and answer_s:
        at_once = users * (test.load.sessions if test.load else 1)
        if rate * answer_s > at_once * 1.1:
            yield (
                f"it says {rate:g} turns a second of {answer_s:g} s each: that is "
                f"{rate * answer_s:.1f} at once, and there are {at_once} (Little's law)"
            )


def _of_turn(one: Placed) -> Iterator[ClaimSpec]:  # noqa: C901, PLR0912 - a line a field
    """Return what a reported turn says, as claims about that turn."""
    turn, name = one.turn, one.name
    about = Where(turn=name)

    def claim(what: str, measure: str, reported: str, **fields: Any) -> ClaimSpec:
        return ClaimSpec(
            claim=f"{name} {what}", measure=measure, where=about, reported=reported, **fields
        )

    if turn.outcome != "ok":
        # It says how it ended; a time until then is told, and not compared.
        yield claim("ended", "outcome", turn.outcome, is_=turn.outcome)
        return
    if turn.took is not None or (turn.ended is not None and not turn.ended.is_clock):
        yield claim("answered in", "answer", _plainly(one.took_s or 0.0), is_=one.took_s)
    if turn.ended is not None and turn.ended.is_clock:
        # The report's clock shows whole seconds: from +2 s up to, not including, +3 s.
        early_s = math.floor((one.ended_s + 1e-6) / turn.ended.resolution_s)
        if turn.took is not None and turn.arrived is not None and turn.arrived.is_clock:
            gap_s = turn.ended.at_s - turn.arrived.at_s + 86_400 * (turn.ended < turn.arrived)
            early_s = round((one.at_s + gap_s) / turn.ended.resolution_s)
        at_s = early_s * turn.ended.resolution_s
        slack_s = allowance_s(one.took_s or 0.0)
        until_s = at_s + turn.ended.resolution_s + slack_s
        yield claim("done at", "done_at", f"+{_plainly(at_s)}", at_least=at_s, below=until_s)
    if turn.first_token is not None:
        told = _plainly(turn.first_token)
        yield claim("first token after", "first_token", told, is_=turn.first_token)
    if turn.waited is not None:
        kind = "wait_other" if one.waited_other_s > one.waited_own_s else "wait"
        behind = " for another session" if kind == "wait_other" else ""
        yield claim(f"waited{behind}", kind, _plainly(turn.waited), is_=turn.waited)
    elif one.behind:
        told = f"{_plainly(one.waited_other_s)} (by its time)"
        what = "waited for another session"
        yield claim(what, "wait_other", told, is_=round(one.waited_other_s, 6))
    if turn.tool_calls is not None or turn.tools:
        yield claim("tool calls", "tool_calls", f"{turn.tool_count}", is_=turn.tool_count)
    for tool in turn.tools:
        if tool.failed:
            yield claim(f"tool {tool.name} fails", "tool_error_rate", "failed", name=tool.name,
                        at_least=0.001)  # fmt: skip
    for kind in ("input_tokens", "output_tokens"):
        if (tokens := getattr(turn, kind)) is not None:
            yield claim(kind.replace("_", " "), kind, f"{tokens:,}", is_=tokens)
    for field, value in turn.results.items():
        what = field.replace("_", " ")
        yield claim(what, "result", str(value), name=field, is_=str(value))


def _of_storage(one: Placed) -> Iterator[ClaimSpec]:
    turn = one.turn
    if turn.stored_in:
        yield ClaimSpec(claim=f"{one.name} stored in", measure="stored_in", is_=turn.stored_in,
                        where=Where(turn=one.name), reported=turn.stored_in)  # fmt: skip


def _plainly(seconds: float) -> str:
    return f"{seconds:.10g} s" if seconds >= 0.1 or not seconds else f"{seconds * 1000:.4g} ms"


def _doubted(claim: Claim, one: Placed | None, spec: ClaimSpec) -> Claim:
    """Return the claim without a verdict that only the report's own waiting would give."""
    if one is None or one.is_told or spec.measure not in ("answer", "done_at", "wait_other"):
        return claim
    if claim.verdict != "violated":
        return claim
    why = f"{claim.measured}: the reported time looks like waiting for {one.behind}"
    return replace(claim, verdict="inconclusive", measured=why)


def _chosen(turns: Sequence[SeenTurn], where: Where) -> list[SeenTurn]:
    """Return the turns that a claim is about."""

    def fits(turn: SeenTurn) -> bool:
        return (
            where.user in ("", turn.key.user_id)
            and where.session in ("", turn.key.session_id)
            and where.agent in ("", turn.key.agent_id)
            and where.turn in ("", turn.name)
            and where.phase in ("", turn.phase)
            and where.prompt in turn.prompt
            and (where.start is None or turn.sent_s >= where.start)
            and (where.end is None or turn.sent_s < where.end)
            and where.outcome in (None, turn.outcome)
            and where.index in (None, turn.number)
            and (where.index_from is None or turn.number >= where.index_from)
            and (not where.tool or any(tool.name == where.tool for tool in turn.tools or ()))
        )

    return [turn for turn in turns if fits(turn)]


def _judged(  # noqa: C901, PLR0911, PLR0912 - in order
    spec: ClaimSpec, evidence: Evidence, among: Mapping[str, Evidence] = {}
) -> Claim:
    if spec.measure in _OF_PHASES:
        return _most_within(spec, evidence)
    measure = MEASURES[spec.measure]
    if spec.where.tool and not spec.name:
        spec = spec.model_copy(update={"name": spec.where.tool})
    turns = _chosen(evidence.turns, spec.where)
    found = measure.of(evidence, turns, spec)
    what = spec.claim or _subject(spec, measure)
    reported = spec.reported or _told(spec)

    def claim(measured: str, verdict: Verdict) -> Claim:
        return Claim(evidence.test.name, what, reported, measured, verdict, measure.how)

    if not found.values and spec.statistic == "sum" and turns and measure.unit == "":
        # Turns that were refused did nothing.
        is_none = all(turn.outcome == "refused" for turn in turns)
        found = found._replace(values=[0.0] if is_none else [])
    if not found.values:
        return claim(*_unknown(spec, evidence, turns, found, measure))
    usual = "mean" if spec.per != "turn" and measure.statistic == "sum" else measure.statistic
    name = spec.statistic or usual
    value = statistic_of(name, found.values)
    unit = measure.unit
    if spec.compared_with is not None:
        beside = among.get(spec.compared_with.test, evidence)
        others = measure.of(beside, _chosen(beside.turns, spec.compared_with), spec)
        if not others.values:
            return claim("there are no turns to compare with", "inconclusive")
        other = statistic_of(name, others.values)
        if not spec.difference and not other:
            return claim("the compared value is 0", "inconclusive")
        value, unit = (value - other, unit) if spec.difference else (value / other, "")
        found = Measured(found.values)
    text = found.text or shown_value(value, unit)
    if spec.measure == "done_at":
        text = f"+{text}"
    if measure.is_models and not evidence.is_simulated:
        return claim(text, "not applicable")
    if found.holds is not None:
        verdict: Verdict = "holds" if found.holds else "violated"
        miss = max(found.values) - allowance_s(0.0)
    else:
        verdict, miss = _compared(spec, measure, value, unit, found.values)
        if verdict == "inconclusive":
            text += "; the usual tolerance of 50 ms is no test of so short a time: state tolerance"
    if verdict == "violated" and (busy := _busy(evidence, unit, miss, value)):
        return claim(f"{text}; {busy}", "inconclusive")
    few = _too_few(name, len(found.values), measure)
    if few and (verdict == "violated" or spec.is_ is not None):
        return claim(f"{text}; {few}", "inconclusive")
    return claim(text, verdict)


def _unknown(  # noqa: PLR0911 - one return a reason
    spec: ClaimSpec,
    evidence: Evidence,
    turns: Sequence[SeenTurn],
    found: Measured,
    measure: Measure,
) -> tuple[str, Verdict]:
    """Return why nothing was measured, and whether it could have been."""
    broken = next((turn for turn in turns if turn.outcome != "ok"), None)
    if measure.unit == "any":
        return found.text, "not applicable"
    if spec.measure == "guarantee":
        return found.text or "the judge cannot use this history", "inconclusive"
    if not turns:
        return "there are no such turns", "inconclusive"
    if measure.is_models and not evidence.is_simulated:
        return found.text or "the model's own", "not applicable"
    if spec.measure == "foreign_prompts" and not evidence.is_simulated:
        return "not observed", "not applicable"
    if broken is not None:
        return f"{broken.name} has no answer {broken.error}".rstrip(), "inconclusive"
    if not any(turn.is_traced for turn in turns) and not found.text:
        return "the service does not show its steps", "not applicable"
    return found.text or "not recorded", "inconclusive"


def _most_within(spec: ClaimSpec, evidence: Evidence) -> Claim:
    """Judge the most users, or the highest rate, for which the objective holds in a phase."""
    is_rate = spec.measure == "rate_within"
    load = evidence.test.load
    levels: dict[str, float] = {**evidence.users}
    if is_rate:
        levels = {p.name: p.rate_per_s for p in load.phases if p.rate_per_s} if load else {}
    most, told = 0.0, []
    for phase, level in sorted(levels.items(), key=lambda one: one[1]):
        held = [
            _judged(
                slo.model_copy(update={"where": slo.where.model_copy(update={"phase": phase})}),
                evidence,
            )
            for slo in spec.slo
        ]
        told.append(f"{level:g}: {', '.join(one.measured for one in held)}")
        if any(one.verdict != "holds" for one in held):
            break
        most = float(level)
    objective = " and ".join(_subject(slo, MEASURES[slo.measure]) for slo in spec.slo)
    what = spec.claim or f"most {'turns a second' if is_rate else 'users'} within {objective}"
    how = MEASURES[spec.slo[0].measure].how
    reported = spec.reported or _told(spec)
    if not levels:
        missing = f"there are no phases with {'a rate' if is_rate else 'users'}"
        return Claim(evidence.test.name, what, reported, missing, "inconclusive", how)
    unit = "per s" if is_rate else ""
    measure = Measure(unit, "max", MEASURES["users"].of, how)
    verdict, _ = _compared(spec, measure, most, unit, [most])
    found = f"{shown_value(most, unit)} ({'; '.join(told[-3:])})"
    return Claim(evidence.test.name, what, reported, found, verdict, how)


def _compared(
    spec: ClaimSpec, measure: Measure, value: float, unit: str, values: Sequence[float]
) -> tuple[Verdict, float]:
    """Return the verdict on a value, and by how much it missed."""
    low, high, is_open = bounds_of(spec, unit)
    exact = spec.is_ is not None
    slack = _slack(spec, measure, low if exact else None, unit, len(values))
    if exact and unit != "share" and spec.tolerance is None and spec.compared_with is None:
        slack = max(slack, _sampling_error(spec.statistic or measure.statistic, values))
    if spec.tolerance is not None and not exact:
        edge = high if math.isfinite(high) else low
        slack = spec.tolerance.around(edge if math.isfinite(edge) else 0.0)
    is_over = value >= high + slack if is_open else value > high + slack
    if value < low - slack:
        return "violated", value - (low - slack)
    if is_over:
        return "violated", value - (high + slack)
    # Within a slack as long as the value itself, nothing could be too fast.
    if exact and unit == "s" and spec.tolerance is None and 0 < low <= slack:
        return "inconclusive", 0.0
    return "holds", 0.0


def _sampling_error(statistic: str, values: Sequence[float]) -> float:
    """Return two standard errors of a mean, or as far as a percentile may be off by its ranks."""
    count = len(values)
    share = 0.5 if statistic == "median" else None
    if statistic[:1] == "p":
        share = float(statistic[1:]) / 100
    if count < _SAMPLE_LEAST or (share is None and statistic not in ("mean", "average", "avg")):
        return 0.0
    if share is None:
        return 2 * statistic_of("spread", values) / math.sqrt(count)
    ranks = 2 * math.sqrt(share * (1 - share) / count)
    middle = percentile(values, share)
    low, high = (percentile(values, min(1.0, max(0.0, share + off))) for off in (-ranks, ranks))
    return max(high - middle, middle - low)


def _slack(spec: ClaimSpec, measure: Measure, bound: float | None, unit: str, count: int) -> float:
    """Return how far a value may be from the one that a claim names."""
    if bound is None:
        return 0.0
    if spec.tolerance is not None:
        return spec.tolerance.around(bound)
    many = _MANY_SHARE * abs(bound)
    match unit:
        case "s":
            exact_s = allowance_s(abs(bound))
            return exact_s if count == 1 or measure.is_whole else max(many, exact_s)
        case "share":
            share = min(max(bound, 0.0), 1.0)
            return max(many, 2 * math.sqrt(share * (1 - share) / max(1, count)))
        case "per s" | "MB":
            return many
        case _:
            is_count = measure.is_whole or count == 1
            return 0.0 if is_count and spec.compared_with is None else many


def _too_few(statistic: str, count: int, measure: Measure) -> str:
    """Return why so few turns have no such percentile, or ""."""
    if statistic[:1] != "p" or measure.is_whole:
        return ""
    needed = math.ceil(round(1 / max(1e-9, 1 - float(statistic[1:]) / 100), 6))
    return f"{statistic} needs {needed} turns, there are {count}" if count < needed < 1e6 else ""


def _busy(evidence: Evidence, unit: str, miss: float, value: float) -> str:
    """Return the sentence that a busy machine may explain a missed time, or ""."""
    machine = evidence.machine
    late_s = _LATE_FACTOR * machine.late_s
    if unit == "s":
        is_explained = 0 < miss <= max(late_s, machine.worst_late_s)
    elif unit == "per s":
        window_s = max((turn.ended_s for turn in evidence.turns), default=0.0)
        share = late_s / window_s if window_s else 0.0
        is_explained = miss < 0 and -miss <= share * max(value, 1e-9)
    else:
        return ""
    if not is_explained:
        return ""
    return (
        f"machine too busy: load {machine.load:.1f} on {machine.cores} cores, loop up to "
        f"{shown_s(machine.worst_late_s)} late"
    )


def _subject(spec: ClaimSpec, measure: Measure) -> str:
    """Return what a claim without words is about."""
    where = spec.where.model_dump(exclude_defaults=True)
    about = ", ".join(f"{name} {value}" for name, value in where.items())
    statistic = spec.statistic or ("" if measure.is_whole else measure.statistic)
    compared = spec.compared_with
    against = ""
    if compared is not None:
        other = ", ".join(f"{n} {v}" for n, v in compared.model_dump(exclude_defaults=True).items())
        against = f" against {other or 'all'}"
    if spec.per != "turn":
        statistic = f"{statistic} per {spec.per}".strip()
    words = [statistic, spec.measure.replace("_", " "), spec.name, f"({about})" if about else ""]
    return " ".join(word for word in words if word) + against


def _told(spec: ClaimSpec) -> str:
    """Return what a claim says, in signs."""

    def one(value: float | str) -> str:
        return value if isinstance(value, str) else f"{value:.10g} {spec.unit}".strip()

    if spec.is_ is not None:
        return one(spec.is_)
    if spec.between is not None:
        return f"{one(spec.between[0])} to {one(spec.between[1])}"
    signs = (("≥", spec.at_least), ("≤", spec.at_most), ("<", spec.below))
    return " and ".join(f"{sign} {one(v)}" for sign, v in signs if v is not None) or "holds"
