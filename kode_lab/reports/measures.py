"""What a claim can be about: one table of measures, each a function of the evidence.

It owns the name, unit and computing of every measure, and the statistics that make one number of
many turns. It must never know what a report says of them. A measure returns the values of the turns
asked for; where nothing is known it returns none, and the claim is inconclusive.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from statistics import fmean, median, pstdev
from typing import NamedTuple

from kode_lab.lab.times import seconds_in, shown_s
from kode_lab.reports.evidence import MESSAGES, Evidence, SeenTool, SeenTurn
from kode_lab.reports.report import ClaimSpec

__all__ = [
    "MEASURES",
    "Measure",
    "Measured",
    "allowance_s",
    "amount_in",
    "bounds_of",
    "percentile",
    "statistic_of",
]

# Ours may take this much on top of the model's own time: one per cent, or 50 ms for short turns.
_ALLOWED_SHARE, _ALLOWED_S = 0.01, 0.050
_FACTORS = {"k": 1e3, "m": 1e6, "g": 1e9, "b": 1e9, "万": 1e4, "亿": 1e8}
_PER_S = {
    **dict.fromkeys(("min", "m", "minute", "分", "分钟"), 60.0),
    **dict.fromkeys(("h", "hour", "小时"), 3_600.0),
    **dict.fromkeys(("day", "天"), 86_400.0),
}
# A free lock is taken in less time than this.
_WAITED_S = 0.001


class Measured(NamedTuple):
    """What was found.

    Attributes:
        values: one a turn, a call or a sample.
        text: how it is told, where one number does not say it.
        holds: the measure's own decision, for those that compare with something of the run.
    """

    values: Sequence[float]
    text: str = ""
    holds: bool | None = None


class Measure(NamedTuple):
    """One kind of statement.

    Attributes:
        unit: ``s``, ``share``, ``per s``, ``MB`` or "" (a count or a ratio).
        statistic: what is taken when the claim names none.
        of: returns the values for these turns.
        how: on what it is measured.
        is_models: it is the model's own time or choice, which a real model need not share.
        is_whole: it is one value for the whole test.
    """

    unit: str
    statistic: str
    of: Callable[[Evidence, Sequence[SeenTurn], ClaimSpec], Measured]
    how: str
    is_models: bool = False
    is_whole: bool = False


def allowance_s(planned_s: float) -> float:
    """Return how much longer than its model's own time a turn may take."""
    return max(_ALLOWED_SHARE * planned_s, _ALLOWED_S)


def percentile(values: Iterable[float], share: float) -> float:
    """Return the nearest rank: a value that was measured, never one between two."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)] if ordered else math.nan


def statistic_of(name: str, values: Sequence[float]) -> float:
    """Return one number from many.

    Raises:
        ValueError: there is no statistic of that name.
    """
    match name:
        case "mean" | "average" | "avg":
            return fmean(values)
        case "median":
            return median(values)
        case "min" | "max" | "sum":
            return sum(values) if name == "sum" else min(values) if name == "min" else max(values)
        case "count":
            return float(len(values))
        case "spread" | "std":
            return pstdev(values)
    if found := re.fullmatch(r"p([0-9]{1,2}(?:\.[0-9]+)?|100)", name):
        return percentile(values, float(found[1]) / 100)
    raise ValueError(
        f"there is no statistic {name!r:.40}: use mean, median, p50 to p100, min, max, sum, count, "
        "spread"
    )


def bounds_of(spec: ClaimSpec, unit: str) -> tuple[float, float, bool]:
    """Return the least and the most that a claim allows, and whether the most is excluded.

    Raises:
        ValueError: a value cannot be read.
    """
    low, high = -math.inf, math.inf
    if spec.is_ is not None:
        low = high = amount_in(spec.is_, spec, unit)
    if spec.between is not None:
        low, high = (amount_in(one, spec, unit) for one in spec.between)
    if spec.at_least is not None:
        low = amount_in(spec.at_least, spec, unit)
    if (most := spec.at_most if spec.below is None else spec.below) is not None:
        high = amount_in(most, spec, unit)
    return low, high, spec.below is not None


def amount_in(value: float | str, spec: ClaimSpec, unit: str) -> float:
    """Return a number in the measure's own unit; "+40 %" of a comparison is a ratio of 1.4.

    Raises:
        ValueError: it cannot be read.
    """
    text = value.strip() if isinstance(value, str) else f"{value!r} {spec.unit}".strip()
    lower = re.sub(r"^(about|约|大约|[~≈<>=≤≥ ])+", "", text.lower()).replace("／", "/")
    sign, plain = (-1.0, lower[1:]) if lower[:1] in ("-", "−") else (1.0, lower.lstrip("+"))
    plain = plain.lstrip("$€¥ ")
    number = seconds_in(plain)
    counted = re.fullmatch(r"(\d[\d.,]*)\s*(?:(k|m|g|b|万|亿)(?![a-z/]))?\s*(.*)", plain)
    if plain.endswith(("%", "％")):
        if (number := seconds_in(plain[:-1].strip())) is not None:
            is_change = spec.compared_with is not None and (sign < 0 or lower[:1] == "+")
            return 1 + sign * number / 100 if is_change else sign * number / 100
    elif unit == "share" and (part := re.fullmatch(r"(\d+) *(?:/|of|out of) *(\d+)", plain)):
        return float(part[1]) / max(1.0, float(part[2]))
    elif unit == "MB" and (size := re.search(r"([kmgt]i?)?b$", plain)):
        if (number := seconds_in(plain[: size.start()].replace(",", ""))) is not None:
            return sign * number * 1024.0 ** ("_kmgt".index((size[1] or "_")[0]) - 2)
    elif unit in ("", "per s") and counted:
        number = float(counted[1].replace(",", "")) * _FACTORS.get(counted[2] or "", 1.0)
        per = re.search(r"(?:/|per |每)\s*(\w+)", counted[3]) if unit else None
        divisor = (
            60.0 if unit and counted[3].endswith("pm") else _PER_S.get(per[1] if per else "", 1.0)
        )
        return sign * number / divisor
    if number is None and unit != "any":
        raise ValueError(f"{text!r:.40} is no amount of {spec.measure} ({unit or 'a number'})")
    return sign * (number or 0.0)


def _each(
    unit: str,
    value: Callable[[SeenTurn], float | None],
    how: str,
    statistic: str = "mean",
    *,
    is_models: bool = False,
    of_all: bool = False,
) -> Measure:
    """Return a measure with one value an answered turn (or any turn)."""

    def of(_: Evidence, turns: Sequence[SeenTurn], spec: ClaimSpec) -> Measured:
        sums: dict[object, float] = {}
        for at, turn in enumerate(turns):
            if (of_all or turn.outcome == "ok") and (one := value(turn)) is not None:
                whole = {"turn": at, "session": turn.key, "user": turn.key.user_id}[spec.per]
                sums[whole] = sums.get(whole, 0.0) + one
        return Measured(list(sums.values()))

    return Measure(unit, statistic, of, how, is_models)


def _calls(value: Callable[[SeenTurn], Iterable[float] | None], how: str) -> Measure:
    """Return a measure with one value a call."""

    def of(_: Evidence, turns: Sequence[SeenTurn], __: ClaimSpec) -> Measured:
        return Measured([one for turn in turns for one in value(turn) or ()])

    return Measure("s", "mean", of, how, is_models=True)


def _share(fits: Callable[[SeenTurn, ClaimSpec], bool]) -> Measure:
    """Return the share of turns that fit, as one value of 0 or 1 a turn."""

    def of(_: Evidence, turns: Sequence[SeenTurn], spec: ClaimSpec) -> Measured:
        return Measured([float(fits(turn, spec)) for turn in turns])

    return Measure("share", "mean", of, "clients' answers")


def _count(fits: Callable[[SeenTurn], bool]) -> Measure:
    def of(_: Evidence, turns: Sequence[SeenTurn], __: ClaimSpec) -> Measured:
        return Measured([float(sum(map(fits, turns)))])

    return Measure("", "sum", of, "clients' answers", is_whole=True)


def _named(tools: Iterable[SeenTool] | None, name: str) -> list[SeenTool]:
    return [tool for tool in tools or () if not name or tool.name == name]


def _window_s(turns: Sequence[SeenTurn]) -> float:
    ended = [turn.ended_s for turn in turns if turn.answer_s is not None]
    return max(ended) - min(turn.sent_s for turn in turns) if ended else 0.0


def _rate(value: Callable[[SeenTurn], float | None], how: str, *, of_all: bool = False) -> Measure:
    """Return a measure with the rate over all, or one a second for statistics but the mean."""

    def of(_: Evidence, turns: Sequence[SeenTurn], spec: ClaimSpec) -> Measured:
        counted = [t for t in turns if of_all or t.outcome == "ok"]
        window_s = _window_s(turns)
        amounts = [(t.ended_s, v) for t in counted if (v := value(t)) is not None]
        if not window_s or not amounts:
            return Measured([])
        if spec.statistic in ("", "mean", "average", "avg"):
            whole = sum(amount for _, amount in amounts)
            return Measured([whole / window_s / _owners(turns, spec)])
        first_s = min(turn.sent_s for turn in turns)
        seconds = [0.0] * math.ceil(window_s)
        for ended_s, amount in amounts:
            seconds[min(len(seconds) - 1, int(ended_s - first_s))] += amount
        return Measured(seconds)

    return Measure("per s", "mean", of, how, is_models=True, is_whole=True)


def _owners(turns: Sequence[SeenTurn], spec: ClaimSpec) -> int:
    """Return among how many sessions or users a figure of the whole is shared."""
    if spec.per == "turn":
        return 1
    return max(1, len({t.key if spec.per == "session" else t.key.user_id for t in turns}))


def _open_at_once(span: Callable[[SeenTurn], tuple[float, float] | None], how: str) -> Measure:
    def of(_: Evidence, turns: Sequence[SeenTurn], spec: ClaimSpec) -> Measured:
        found = (span(turn) for turn in turns)
        return Measured(_at_once([one for one in found if one is not None], spec.statistic))

    return Measure("", "max", of, how, is_whole=True)


def _at_once(spans: Iterable[tuple[float, float]], statistic: str) -> list[float]:
    """Return how many of the spans were open at once: the most, or the mean over time."""
    events = sorted(
        [(start, 1) for start, _ in spans] + [(end, -1) for _, end in spans],
        key=lambda event: (event[0], event[1]),
    )
    if not events:
        return []
    open_now, most, area, before = 0, 0, 0.0, events[0][0]
    for at, change in events:
        area += open_now * (at - before)
        open_now, before = open_now + change, at
        most = max(most, open_now)
    length = events[-1][0] - events[0][0]
    return [area / length if statistic in ("mean", "average", "avg") and length else float(most)]


def _sessions_held(_: Evidence, turns: Sequence[SeenTurn], spec: ClaimSpec) -> Measured:
    held: dict[object, tuple[float, float]] = {}
    for turn in turns:
        first, last = held.get(turn.key, (turn.sent_s, turn.ended_s))
        held[turn.key] = (min(first, turn.sent_s), max(last, turn.ended_s))
    return Measured(_at_once(list(held.values()), spec.statistic))


def _session_time(_: Evidence, turns: Sequence[SeenTurn], __: ClaimSpec) -> Measured:
    held: dict[object, list[SeenTurn]] = {}
    for turn in turns:
        held.setdefault(turn.key, []).append(turn)
    return Measured([_window_s(own) for own in held.values() if _window_s(own)])


def _in_order(_: Evidence, turns: Sequence[SeenTurn], __: ClaimSpec) -> Measured:
    ended = [turn.ended_s for turn in turns if turn.answer_s is not None]
    return Measured([float(first <= second) for first, second in pairwise(ended)])


def _longest_gap(_: Evidence, turns: Sequence[SeenTurn], __: ClaimSpec) -> Measured:
    ended = sorted(turn.ended_s for turn in turns if turn.answer_s is not None)
    begun = min((turn.sent_s for turn in turns), default=0.0)
    gaps = [second - first for first, second in pairwise([begun, *ended])]
    return Measured([max(gaps)] if gaps else [])


def _shares_within(evidence: Evidence, turns: Sequence[SeenTurn], spec: ClaimSpec) -> list[float]:
    """Return by how much each turn exceeds its objectives: up to 1 keeps all of them.

    A turn without an answer exceeds any; where an answered turn's value is not known, nothing is.
    """
    exceeds: list[float] = []
    for turn in turns:
        worst = 0.0 if turn.outcome == "ok" else math.inf
        for slo in spec.slo if turn.outcome == "ok" else ():
            measure = MEASURES[slo.measure]
            found = measure.of(evidence, [turn], slo).values
            low, high, is_open = bounds_of(slo, measure.unit)
            if not found:
                return []
            for value in found:
                is_kept = low <= value and (value < high if is_open else value <= high)
                is_time = 0 < high < math.inf and value > 0
                worst = max(worst, value / high if is_time else 0.0 if is_kept else math.inf)
                worst = max(worst, 0.0 if is_kept else math.nextafter(1, 2))
        exceeds.append(worst)
    return exceeds


def _within(evidence: Evidence, turns: Sequence[SeenTurn], spec: ClaimSpec) -> Measured:
    return Measured([float(one <= 1) for one in _shares_within(evidence, turns, spec)])


def _goodput(evidence: Evidence, turns: Sequence[SeenTurn], spec: ClaimSpec) -> Measured:
    good, window_s = _within(evidence, turns, spec).values, _window_s(turns)
    return Measured([sum(good) / window_s] if good and window_s else [])


def _apdex(evidence: Evidence, turns: Sequence[SeenTurn], spec: ClaimSpec) -> Measured:
    found = _shares_within(evidence, turns, spec)
    return Measured(
        [sum((one <= 1) + (one <= 4) for one in found) / 2 / len(found)] if found else []
    )


def _anomalies(evidence: Evidence, _: Sequence[SeenTurn], spec: ClaimSpec) -> Measured:
    if evidence.verdict is None:
        return Measured([])
    counts = evidence.verdict.counts
    found = {name: n for name, n in counts.items() if n and spec.name.lower() in name.lower()}
    told = ", ".join(f"{count} {name}" for name, count in found.items())
    return Measured([float(sum(found.values()))], told or "none found")


def _not_measured(_: Evidence, __: Sequence[SeenTurn], spec: ClaimSpec) -> Measured:
    return Measured([], f"{spec.name or spec.measure.replace('_', ' ')} is not measured here")


def _arrival_gap(_: Evidence, turns: Sequence[SeenTurn], __: ClaimSpec) -> Measured:
    sent = [turn.sent_s for turn in turns]
    return Measured([max(sent) - min(sent)] if len(sent) > 1 else [])


def _overlap(_: Evidence, turns: Sequence[SeenTurn], __: ClaimSpec) -> Measured:
    works = [
        (t.at_work_s, t.at_work_s + t.work_s)
        for t in turns
        if t.at_work_s is not None and t.work_s is not None
    ]
    if len(works) < 2 or len(works) < len(turns):
        return Measured([])
    both_s = max(0.0, min(end for _, end in works) - max(start for start, _ in works))
    shorter_s = min(end - start for start, end in works)
    text = f"{both_s:.3f} s of {shorter_s:.3f} s"
    return Measured([both_s / shorter_s if shorter_s else 0.0], text)


def _together(_: Evidence, turns: Sequence[SeenTurn], __: ClaimSpec) -> Measured:
    works_s = [turn.work_s for turn in turns if turn.work_s is not None]
    if not turns or len(works_s) < len(turns):
        return Measured([])
    first_s = min(turn.sent_s for turn in turns)
    took_s = max(turn.ended_s for turn in turns) - first_s
    text = f"{sum(works_s):.3f} s -> {took_s:.3f} s"
    longest_s = max(works_s)
    return Measured([took_s - longest_s], text, took_s <= longest_s + allowance_s(longest_s))


def _speedup(_: Evidence, turns: Sequence[SeenTurn], __: ClaimSpec) -> Measured:
    works_s = [turn.work_s for turn in turns if turn.work_s is not None]
    window_s = _window_s(turns)
    return Measured([sum(works_s) / window_s] if works_s and window_s else [])


def _beyond(_: Evidence, turns: Sequence[SeenTurn], __: ClaimSpec) -> Measured:
    if not turns or any(turn.answer_s is None or turn.planned_s is None for turn in turns):
        return Measured([])
    told = [(t.answer_s or 0.0, t.planned_s or 0.0, t.wait_own_s or 0.0) for t in turns]
    beyond_s = [answer_s - planned_s - waited_s for answer_s, planned_s, waited_s in told]
    fits = all(b <= allowance_s(p) for b, (_, p, _) in zip(beyond_s, told, strict=True))
    return Measured(beyond_s, _some(beyond_s), fits)


def _some(values_s: Sequence[float]) -> str:
    return " and ".join(f"{value * 1000:.2f} ms" for value in values_s) if len(values_s) < 4 else ""


def _wait(_: Evidence, turns: Sequence[SeenTurn], spec: ClaimSpec) -> Measured:
    waits = [
        (t.wait_own_s or 0.0) + (t.wait_other_s or 0.0)
        for t in turns
        if t.wait_own_s is not None and t.outcome == "ok"
    ]
    return Measured(waits, _some(waits) if spec.statistic in ("", "max") else "")


def _tool_calls(_: Evidence, turns: Sequence[SeenTurn], spec: ClaimSpec) -> Measured:
    answered = [turn for turn in turns if turn.outcome == "ok"]
    named = [_named(t.tools, spec.name) for t in answered if t.tools is not None]
    if len(named) != 1:
        return Measured([float(len(tools)) for tools in named])
    failed = sum(tool.is_error for tool in named[0])
    told = f"{len(named[0])}" + (f", {failed} failed" if failed else ", all succeeded")
    return Measured([float(len(named[0]))], told if named[0] else "0")


def _tool_errors(_: Evidence, turns: Sequence[SeenTurn], spec: ClaimSpec) -> Measured:
    tools = [tool for turn in turns for tool in _named(turn.tools, spec.name)]
    return Measured([float(tool.is_error) for tool in tools])


def _tool_times(_: Evidence, turns: Sequence[SeenTurn], spec: ClaimSpec) -> Measured:
    return Measured([tool.took_s for turn in turns for tool in _named(turn.tools, spec.name)])


def _cost(evidence: Evidence, turns: Sequence[SeenTurn], spec: ClaimSpec) -> Measured:
    price_in, price_out = evidence.prices

    def cost(turn: SeenTurn) -> float | None:
        if _tokens(turn) is None or not (price_in or price_out):
            return None
        return ((turn.input_tokens or 0) * price_in + (turn.output_tokens or 0) * price_out) / 1e6

    return _each("", cost, "").of(evidence, turns, spec)


def _cost_rate(evidence: Evidence, turns: Sequence[SeenTurn], spec: ClaimSpec) -> Measured:
    costs, window_s = _cost(evidence, turns, spec).values, _window_s(turns)
    return Measured([sum(costs) / window_s] if costs and window_s else [])


def _medians(turns: Sequence[SeenTurn]) -> list[float]:
    of: dict[object, list[float]] = {}
    for turn in turns:
        if turn.answer_s is not None:
            of.setdefault(turn.key, []).append(turn.answer_s)
    return [median(values) for values in of.values()]


def _fairness(_: Evidence, turns: Sequence[SeenTurn], __: ClaimSpec) -> Measured:
    medians = _medians(turns)
    return Measured([max(medians) / max(min(medians), 1e-9)] if len(medians) > 1 else [])


def _jain(_: Evidence, turns: Sequence[SeenTurn], __: ClaimSpec) -> Measured:
    medians = _medians(turns)
    squares = sum(value * value for value in medians)
    index = sum(medians) ** 2 / (len(medians) * squares) if squares else 1.0
    return Measured([index] if len(medians) > 1 else [])


def _users(evidence: Evidence, turns: Sequence[SeenTurn], _: ClaimSpec) -> Measured:
    phases = {turn.phase for turn in turns}
    told = [
        float(n) for phase, n in evidence.users.items() if phase in phases or not evidence.users
    ]
    return Measured([max(told)] if told else [float(len({turn.key.user_id for turn in turns}))])


def _sessions(_: Evidence, turns: Sequence[SeenTurn], __: ClaimSpec) -> Measured:
    return Measured([float(len({turn.key for turn in turns}))])


def _duration(_: Evidence, turns: Sequence[SeenTurn], __: ClaimSpec) -> Measured:
    return Measured([_window_s(turns)] if turns else [])


def _sampled(column: int, *, is_growth: bool = False) -> Callable[..., Measured]:
    def of(evidence: Evidence, turns: Sequence[SeenTurn], spec: ClaimSpec) -> Measured:
        samples = evidence.machine.samples
        if turns and len(turns) < len(evidence.turns):
            low_s, high_s = min(t.sent_s for t in turns), max(t.ended_s for t in turns)
            samples = tuple(s for s in samples if low_s <= s[0] * evidence.speed <= high_s)
        whole = _owners(turns, spec)
        values = [sample[column] / whole for sample in samples]
        if is_growth:
            return Measured([values[-1] - values[0]] if len(values) > 1 else [])
        return Measured(values)

    return of


def _lag(evidence: Evidence, _: Sequence[SeenTurn], __: ClaimSpec) -> Measured:
    return Measured([evidence.machine.worst_late_s] if evidence.machine.samples else [])


def _foreign(evidence: Evidence, turns: Sequence[SeenTurn], _: ClaimSpec) -> Measured:
    seen = [float(t.foreign) for t in turns if t.foreign is not None]
    if len(seen) < len(turns) or not evidence.is_simulated:
        return Measured([], "the model did not tell what it was shown")
    return Measured([sum(seen)], f"{sum(seen):.0f} foreign prompts shown")


def _guarantee(evidence: Evidence, _: Sequence[SeenTurn], spec: ClaimSpec) -> Measured:
    if evidence.verdict is None:
        return Measured([])
    for finding in evidence.verdict.findings:
        if spec.name in ("", finding.name, finding.code):
            if spec.name == "" and finding.status != "invalid":
                continue
            if finding.status not in ("valid", "invalid"):
                return Measured([], finding.reason or finding.status)
            is_valid = finding.status == "valid"
            return Measured([float(is_valid)], f"{finding.name}: {finding.status}", is_valid)
    if spec.name:
        return Measured([], f"there is no guarantee {spec.name!r}")
    return Measured([1.0], "no anomaly found", holds=True)


def _stored_in(evidence: Evidence, turns: Sequence[SeenTurn], spec: ClaimSpec) -> Measured:
    if not turns or turns[0].answer_s is None:
        return Measured([])
    user = turns[0].key.user_part
    path = f"{user}/{spec.is_}/{spec.is_}/runtime/{MESSAGES}"
    of_user = {
        name: messages
        for name, messages in evidence.files.items()
        if name.startswith(f"{user}/") and name.endswith(f"/{MESSAGES}")
    }
    others = f", {len(of_user) - 1} others" if len(of_user) > 1 else ""
    if path not in of_user:
        return Measured([0.0], f"not there{others}", holds=False)
    messages = of_user[path]
    told = "no array" if messages is None else f"{messages} messages"
    return Measured([1.0], f"there, {told}{others}", messages is not None and not others)


def _result(_: Evidence, turns: Sequence[SeenTurn], spec: ClaimSpec) -> Measured:
    found: list[str] = []
    for turn in turns:
        if turn.answer_s is None:
            return Measured([])
        for tool in turn.tools or ():
            pattern = rf'"{re.escape(spec.name)}": *("(?:[^"\\]|\\.)*"|[-+.\w]+)'
            found += [_plain(one) for one in re.findall(pattern, tool.result)]
    return Measured([1.0], ", ".join(found) or "none", found == [str(spec.is_)])


def _plain(value: str) -> str:
    try:
        return str(json.loads(value))
    except ValueError:
        return value


def _outcome(_: Evidence, turns: Sequence[SeenTurn], spec: ClaimSpec) -> Measured:
    if not turns:
        return Measured([])
    told = ", ".join(dict.fromkeys(turn.outcome for turn in turns))
    return Measured([1.0], told, all(turn.outcome == spec.is_ for turn in turns))


def _until_end(evidence: Evidence, turns: Sequence[SeenTurn], _: ClaimSpec) -> Measured:
    return Measured(
        [t.real_s * evidence.speed if t.answer_s is None else t.answer_s for t in turns]
    )


def _per_token(turn: SeenTurn) -> float | None:
    if turn.answer_s is None or turn.first_token_s is None or (turn.output_tokens or 0) < 2:
        return None
    return (turn.answer_s - turn.first_token_s) / ((turn.output_tokens or 0) - 1)


def _token_speed(turn: SeenTurn) -> float | None:
    per_s = _per_token(turn)
    return 1 / per_s if per_s else None


def _second_token(turn: SeenTurn) -> float | None:
    return turn.pieces_s[1] if len(turn.pieces_s) > 1 else None


def _inter_token(turn: SeenTurn) -> list[float]:
    return [second - first for first, second in pairwise(turn.pieces_s)]


def _overhead(turn: SeenTurn) -> float | None:
    if turn.answer_s is None or turn.planned_s is None:
        return None
    return turn.answer_s - turn.planned_s - (turn.wait_own_s or 0.0)


def _tokens(turn: SeenTurn) -> float | None:
    if turn.input_tokens is None and turn.output_tokens is None:
        return None
    return float((turn.input_tokens or 0) + (turn.output_tokens or 0))


def _float(value: int | None) -> float | None:
    return None if value is None else float(value)


def _after_first(turn: SeenTurn) -> float | None:
    if turn.first_token_s is None or turn.answer_s is None:
        return None
    return turn.answer_s - turn.first_token_s


_CLIENT, _TRACE = "clients, send to answer", "the system's steps"
_BAD = ("failed", "unanswered")

MEASURES: dict[str, Measure] = {
    # --- times of a turn
    "answer": _each("s", lambda t: t.answer_s, _CLIENT, is_models=True),
    "first_token": _each("s", lambda t: t.first_token_s, "first text", is_models=True),
    "after_first_token": _each("s", _after_first, "first text to the end", is_models=True),
    "per_output_token": _each("s", _per_token, "time after the first token", is_models=True),
    "second_token": _each("s", _second_token, "second piece of text", is_models=True),
    "inter_token": _calls(_inter_token, "between pieces of text"),
    "token_speed": _each("per s", _token_speed, "tokens after the first", is_models=True),
    "until_end": Measure("s", "mean", _until_end, "clients, however it ended", is_models=True),
    "done_at": _each("s", lambda t: t.ended_s, "client, since first send", "max", is_models=True),
    "wait": Measure("s", "max", _wait, "wait steps"),
    "wait_own": _each("s", lambda t: t.wait_own_s, "wait while the own session worked"),
    "wait_other": _each("s", lambda t: t.wait_other_s, "wait while the own session did nothing"),
    "load": _each("s", lambda t: t.load_s, _TRACE),
    "model": _each("s", lambda t: t.model_s, _TRACE, is_models=True),
    "model_call": _calls(lambda t: t.model_calls, _TRACE),
    "tool": Measure("s", "mean", _tool_times, _TRACE, is_models=True),
    "tools": _each(
        "s", lambda t: None if t.tools is None else sum(tool.took_s for tool in t.tools), _TRACE,
        is_models=True,
    ),
    "commit": _each("s", lambda t: t.commit_s, _TRACE),
    "overhead": _each("s", _overhead, "clients, minus model, tools and waits"),
    # --- how turns stand to each other
    "arrival_gap": Measure("s", "max", _arrival_gap, "clients, send to send", is_whole=True),
    "overlap": Measure("share", "max", _overlap, "turns, without waits", is_whole=True),
    "together": Measure("s", "max", _together, "sum of work; clients", is_whole=True),
    "beyond_model": Measure("s", "max", _beyond, "clients, minus the profile", is_models=True),
    "speedup": Measure("", "max", _speedup, "sum of work; clients", is_whole=True),
    "fairness": Measure("", "max", _fairness, "slowest by fastest session median", is_whole=True),
    "fairness_index": Measure("", "max", _jain, "Jain's index of session medians", is_whole=True),
    "duration": Measure("s", "max", _duration, "first send to last answer", is_whole=True),
    "session_time": Measure("s", "mean", _session_time, "first to last turn", is_models=True),
    "in_order": Measure("share", "mean", _in_order, "answers in the order of sending"),
    "longest_gap": Measure("s", "max", _longest_gap, "time without any answer", is_whole=True),
    "concurrency": _open_at_once(
        lambda t: (t.sent_s, t.ended_s) if t.answer_s is not None else None, "turns under way"
    ),
    "waiting": _open_at_once(
        lambda t: (t.sent_s, t.at_work_s)
        if t.at_work_s is not None and (t.wait_own_s or 0.0) + (t.wait_other_s or 0.0) > _WAITED_S
        else None, "turns that wait for their session",
    ),
    "running": _open_at_once(
        lambda t: None if t.at_work_s is None or t.work_s is None
        else (t.at_work_s, t.at_work_s + t.work_s), "turns at work",
    ),
    "sessions_held": Measure("", "max", _sessions_held, "first to last turn", is_whole=True),
    # --- counts
    "turns": _count(lambda _: True),
    "answered": _count(lambda t: t.outcome == "ok"),
    "failures": _count(lambda t: t.outcome in _BAD),
    "refusals": _count(lambda t: t.outcome == "refused"),
    "cancellations": _count(lambda t: t.outcome == "cancelled"),
    "sessions": Measure("", "max", _sessions, "sessions asked", is_whole=True),
    "users": Measure("", "max", _users, "users asked", is_whole=True),
    "tool_calls": Measure("", "mean", _tool_calls, "tool steps", is_models=True),
    "model_calls": _each(
        "", lambda t: None if t.model_calls is None else float(len(t.model_calls)), _TRACE,
        is_models=True,
    ),
    "input_tokens": _each("", lambda t: _float(t.input_tokens), _TRACE, is_models=True),
    "output_tokens": _each("", lambda t: _float(t.output_tokens), _TRACE, is_models=True),
    "tokens": _each("", _tokens, _TRACE, is_models=True),
    "cost": Measure("", "sum", _cost, "tokens times prices", is_models=True),
    "cost_rate": Measure("per s", "mean", _cost_rate, "tokens times prices", is_models=True,
                         is_whole=True),
    "foreign_prompts": Measure("", "sum", _foreign, "what the model saw", is_whole=True),
    "retries": _each("", lambda t: _float(t.retries), _TRACE, is_models=True),
    # --- against an objective (slo)
    "within": Measure("share", "mean", _within, "turns that keep the objective"),
    "goodput": Measure("per s", "mean", _goodput, "turns a second that keep the objective",
                       is_models=True, is_whole=True),
    "apdex": Measure("", "mean", _apdex, "within the objective; within four times it",
                     is_whole=True),
    # --- shares
    "success_rate": _share(lambda t, _: t.outcome == "ok"),
    "error_rate": _share(lambda t, _: t.outcome in _BAD),
    "failure_rate": _share(lambda t, _: t.outcome == "failed"),
    "refusal_rate": _share(lambda t, _: t.outcome == "refused"),
    "cancelled_rate": _share(lambda t, _: t.outcome == "cancelled"),
    "unanswered_rate": _share(lambda t, _: t.outcome == "unanswered"),
    "error_share": _share(lambda t, spec: bool(t.error) and spec.name.lower() in t.error.lower()),
    "tool_error_rate": Measure("share", "mean", _tool_errors, "tool steps"),
    "waited_rate": _share(lambda t, _: (t.wait_own_s or 0.0) > _WAITED_S),
    # --- rates
    "throughput": _rate(lambda _: 1.0, "answered turns a second"),
    "request_rate": _rate(lambda _: 1.0, "turns sent a second", of_all=True),
    "output_token_rate": _rate(lambda t: _float(t.output_tokens), "tokens a second"),
    "token_rate": _rate(_tokens, "tokens a second"),
    "model_call_rate": _rate(
        lambda t: None if t.model_calls is None else float(len(t.model_calls)), "calls a second"
    ),
    "tool_call_rate": _rate(
        lambda t: None if t.tools is None else float(len(t.tools)), "calls a second"
    ),
    # --- the process (with the simulated model in it)
    "memory": Measure("MB", "max", _sampled(1), "resident memory", is_whole=True),
    "memory_growth": Measure("MB", "max", _sampled(1, is_growth=True), "last - first sample",
                             is_whole=True),
    "cpu": Measure("share", "mean", _sampled(2), "CPU time by wall time, of one core",
                   is_whole=True),
    "open_files": Measure("", "max", _sampled(3), "open files", is_whole=True),
    "connections": Measure("", "max", _sampled(4), "sockets", is_whole=True),
    "loop_lag": Measure("s", "max", _lag, "how late the event loop woke", is_whole=True),
    # --- what is kept, and the judge
    "stored_in": Measure("", "max", _stored_in, MESSAGES, is_whole=True),
    "result": Measure("", "max", _result, "tool result", is_whole=True),
    "outcome": Measure("", "max", _outcome, "client", is_whole=True),
    "guarantee": Measure("", "max", _guarantee, "the judge", is_whole=True),
    "anomalies": Measure("", "sum", _anomalies, "the judge", is_whole=True),
    # --- what only the reported machine has
    **dict.fromkeys(
        ("gpu_utilisation", "gpu_memory", "kv_cache_usage", "cache_hit_rate", "disk", "network",
         "startup", "not_measured"),
        Measure("any", "mean", _not_measured, "nothing here shows it"),
    ),
}  # fmt: skip


def shown_value(value: float, unit: str) -> str:
    """Return a value with its unit as a person writes it."""
    match unit:
        case "s":
            return shown_s(value)
        case "share":
            return f"{value * 100:.3g} %"
        case "per s":
            return f"{value:,.3g} /s"
        case "MB":
            return f"{value:,.1f} MB"
        case _:
            return f"{value:,.0f}" if float(value).is_integer() else f"{value:,.3g}"
