"""A reported trace as a small JSON: what came when, how long it took, how many tools it used.

It owns that file: written from a run (``recorded``), read with suspicion (``scenario_of``) into a
scenario that does it again, and compared with what was measured then (``claims_of_replay``).

    {"kode_lab_report": 1, "name": "two people", "turns": [
      {"userId": "yeya", "agentId": "schedule-assistant", "arrived_s": 0, "took_s": 2.19,
       "tool_calls": 1},
      {"userId": "test_user", "agentId": "schedule-assistant", "sessionId": "independent_session",
       "arrived_s": 0.001, "took_s": 16.73, "tool_calls": 8}]}

A turn may add its ``prompt`` (the simulated model then chooses the tools by its words) and
``calls_s``, the seconds of its single model calls; without, its time is dealt to them evenly. In a
replay the model asks for one tool a call: where the report's asked for several at once, the time of
its calls is dealt to more of them. Only the model takes time on purpose there, so what a turn
waited for its session is taken off.

A report tells of answered turns. A run's others, and its faults, are counted in ``left_out``.

Idea: the concurrency report itself, which tells arrivals, durations and counts, and no more.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from kode_lab.claude import Plan, Profile
from kode_lab.claude.wording import intent_of
from kode_lab.errors import InvalidKey, InvalidScenario
from kode_lab.history.operation import HEALS, NEMESIS, QUIET, Operation, marker_of
from kode_lab.key import SessionKey, is_unicode
from kode_lab.lab.records import Run
from kode_lab.lab.scenario import AGENT, SPEED_LIMIT, Ask, Client, Scenario
from kode_lab.lab.turn_view import TurnView, turns_of
from kode_lab.reports.claims import Claim, Verdict, allowance_s, time_verdict

__all__ = [
    "ReportedTurn",
    "claims_of_replay",
    "left_out_of",
    "read_report",
    "recorded",
    "reported",
    "scenario_of",
]

FORMAT = 1
TIME_LIMIT_S = 86_400.0
# Plans are looked through for each model call; more turns would make the model itself slow.
REPORT_TURNS_LIMIT = 2_000
# One less than the steps that the schedule assistant may take.
TOOL_CALLS_LIMIT = 19
_TIMES = ("arrived_s", "took_s")
_FIELDS = ("userId", "agentId", "sessionId", *_TIMES, "tool_calls", "prompt", "calls_s")
# The schedule assistant's own deadline is 120 s.
_TURN_LIMIT_S = 115.0
_TALK = "Thank you."
# A file's seconds are rounded.
_CALLS_SLACK_S = 0.001


class ReportedTurn(NamedTuple):
    """One turn as it was reported.

    Attributes:
        arrived_s: since the first one.
        prompt: "" where the report tells none.
        calls_s: of its model calls; () where the report tells only the whole.
    """

    key: SessionKey
    arrived_s: float
    took_s: float
    tool_calls: int
    prompt: str = ""
    calls_s: tuple[float, ...] = ()


def read_report(path: Path) -> tuple[str, tuple[ReportedTurn, ...]]:
    """Return the name and the turns of a report's file.

    Raises:
        InvalidScenario: it is not a report, or a time in it is impossible; names the turn.
    """
    try:
        fields = json.loads(path.read_text("utf-8"))
    except OSError as error:
        raise InvalidScenario(f"report {path.name}: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise InvalidScenario(f"report {path.name} is not JSON: {error!s:.120}") from None
    return reported(fields)


def reported(fields: Any) -> tuple[str, tuple[ReportedTurn, ...]]:
    """Return the name and the turns of a report, by their arrival.

    Raises:
        InvalidScenario: it is not a report, or a time in it is impossible; names the turn.
    """
    if not isinstance(fields, dict) or not isinstance(fields.get("turns"), list):
        raise InvalidScenario('a report is {"kode_lab_report": 1, "turns": [...]}')
    if fields.get("kode_lab_report", FORMAT) != FORMAT:
        raise InvalidScenario(
            f"kode_lab_report is {fields['kode_lab_report']!r:.40}, this kode_lab reads {FORMAT}"
        )
    listed = fields["turns"]
    if not 1 <= len(listed) <= REPORT_TURNS_LIMIT:
        raise InvalidScenario(
            f"a report has 1 to REPORT_TURNS_LIMIT={REPORT_TURNS_LIMIT} turns, not {len(listed)}"
        )
    turns = [_turn(one, f"turns[{number}]") for number, one in enumerate(listed)]
    name = "".join(c if c.isalnum() or c in "-_" else "-" for c in str(fields.get("name", "")))
    return name[:50] or "report", tuple(sorted(turns, key=lambda turn: turn.arrived_s))


def _turn(one: Any, where: str) -> ReportedTurn:
    if not isinstance(one, dict):
        raise InvalidScenario(f"{where} is not an object")
    unknown = sorted(set(one) - set(_FIELDS))
    if unknown:
        raise InvalidScenario(f"{where} has no field {unknown[0]!r:.60}: {', '.join(_FIELDS)}")
    try:
        key = SessionKey.from_json({"agentId": AGENT, **one})
    except InvalidKey as error:
        raise InvalidScenario(f"{where}: {error}") from None
    if key.agent_id != AGENT:
        raise InvalidScenario(f"{where}: the laboratory has one agent, {AGENT!r}: name that one")
    arrived_s, took_s = (_time(one.get(name), f"{where}.{name}") for name in _TIMES)
    calls = one.get("tool_calls", 0)
    if type(calls) is not int or not 0 <= calls <= TOOL_CALLS_LIMIT:
        raise InvalidScenario(
            f"{where}.tool_calls is {calls!r:.40}: give 0 to TOOL_CALLS_LIMIT={TOOL_CALLS_LIMIT}"
        )
    prompt, told = one.get("prompt", ""), one.get("calls_s", [])
    if not isinstance(prompt, str) or not isinstance(told, list):
        raise InvalidScenario(f"{where}: prompt is a text, calls_s a list of seconds")
    if not is_unicode(prompt):
        raise InvalidScenario(f"{where}.prompt has half a surrogate pair, which is no character")
    calls_s = tuple(_time(value, f"{where}.calls_s") for value in told)
    if calls_s and not _least_calls(calls) <= len(calls_s) <= calls + 1:
        raise InvalidScenario(
            f"{where}.calls_s has {len(calls_s)} model calls, which cannot be with "
            f"tool_calls={calls}: give {_least_calls(calls)} to {calls + 1} (a tool's result is "
            "read by one more call, and one call may ask for several tools)"
        )
    if sum(calls_s) > took_s + _CALLS_SLACK_S:
        raise InvalidScenario(
            f"{where}: its model calls take {sum(calls_s):g} s together, and the whole turn only "
            f"took_s={took_s:g}: one of them is wrong"
        )
    return ReportedTurn(key, arrived_s, took_s, calls, prompt, calls_s)


def _time(value: Any, where: str) -> float:
    if type(value) not in (int, float) or not 0 <= value <= TIME_LIMIT_S:
        raise InvalidScenario(
            f"{where} is {value!r:.40}: give seconds from 0 to TIME_LIMIT_S={TIME_LIMIT_S:g}"
        )
    return float(value)


def _least_calls(tool_calls: int) -> int:
    return 2 if tool_calls else 1


def recorded(run: Run) -> dict[str, Any]:
    """Return a run's answered turns as a report that another run can replay, without its probes.

    Raises:
        InvalidScenario: it has too many turns.
        InvalidRecord: its records cannot be read.
    """
    operations = run.operations()
    asked = [
        view for view in turns_of(run.spans(), operations) if not view.turn_id.startswith("probe-")
    ]
    views = [view for view in asked if view.outcome == "ok"]
    if len(views) > REPORT_TURNS_LIMIT:
        raise InvalidScenario(
            f"run {run.id} has {len(views)} answered turns "
            f"(REPORT_TURNS_LIMIT={REPORT_TURNS_LIMIT}): repeat it whole instead"
        )
    origin_ns = min((view.start_ns for view in views), default=0)
    turns = [
        {
            **view.key.to_json(),
            "arrived_s": round((view.start_ns - origin_ns) / 1e9, 6),
            "took_s": round(view.latency_ns / 1e9, 6),
            "tool_calls": min(TOOL_CALLS_LIMIT, len(view.steps_named("tool"))),
            "calls_s": _calls_s(view),
        }
        for view in views
    ]
    told = {"kode_lab_report": FORMAT, "name": str(run.facts.get("name", ""))}
    return told | {"left_out": _left_out(asked, operations), "turns": turns}


def _calls_s(view: TurnView) -> list[float]:
    """Its model calls; none where the trace has not all of them, or has more than its turn."""
    spans = [span for span in view.steps_named("ask") if not span.error]
    calls_s = [round((span.end_ns - span.start_ns) / 1e9, 6) for span in spans]
    tools = min(TOOL_CALLS_LIMIT, len(view.steps_named("tool")))
    is_whole = _least_calls(tools) <= len(calls_s) <= tools + 1
    return calls_s if is_whole and sum(calls_s) <= view.latency_ns / 1e9 else []


def _left_out(asked: list[TurnView], operations: tuple[Operation, ...]) -> dict[str, int]:
    words = {"fail": "refused", "info": "unanswered"}
    ends = Counter(words[view.outcome] for view in asked if view.outcome != "ok")
    healed = {*HEALS.values(), QUIET}
    return ends | Counter(o.f for o in operations if o.process == NEMESIS and o.f not in healed)


def left_out_of(fields: Mapping[str, Any]) -> str:
    """Return a sentence on what the report lacks of the recorded run; "" for nothing."""
    told = ", ".join(f"{count} {name}" for name, count in fields["left_out"].items())
    return f"only answered turns are recorded; left out: {told}" if told else ""


def scenario_of(name: str, turns: tuple[ReportedTurn, ...], *, speed: float = 1.0) -> Scenario:
    """Return the scenario that does these turns again, each at its time, from a client of its own.

    Raises:
        InvalidScenario: a turn would take longer than the agent's deadline.
    """
    if not 0 < speed <= SPEED_LIMIT:
        raise InvalidScenario(f"speed={speed} must be above 0, at most {SPEED_LIMIT}")
    longest_s = max(turn.took_s for turn in turns)
    if longest_s / speed > _TURN_LIMIT_S:
        raise InvalidScenario(
            f"a turn of {longest_s:g} s is longer than the agent's deadline allows "
            f"({_TURN_LIMIT_S:g} s): give a speed above {longest_s / _TURN_LIMIT_S:.1f}"
        )
    clients, plans = [], []
    busy_until_s: dict[str, float] = {}
    numbers: dict[SessionKey, int] = {}
    for place, turn in enumerate(turns):
        number = numbers[turn.key] = numbers.get(turn.key, -1) + 1
        marker = marker_of(turn.key, number)
        begun_s = max(turn.arrived_s, busy_until_s.get(turn.key.lock_name, 0.0))
        ended_s = turn.arrived_s + turn.took_s
        # Ended before its predecessor did: then it did not wait for it.
        work_s = ended_s - begun_s if ended_s > begun_s else turn.took_s
        busy_until_s[turn.key.lock_name] = max(ended_s, begun_s)
        prompt = turn.prompt or _prompt(turn.tool_calls)
        plans.append(Plan(marker[1:], intent_of(prompt), _dealt(turn, work_s), (marker,)))
        ask = Ask(turn.key, marker[1:], marker, f"{prompt} {marker}")
        clients.append(Client(f"reported-{place}", turn.arrived_s / speed, (ask,)))
    return Scenario(
        name=f"replay-{name}",
        profile=Profile(plans=tuple(plans)),
        speed=speed,
        clients_given=tuple(clients),
        timeout_s=min(TIME_LIMIT_S, 60.0 + 2 * longest_s),
    )


def _dealt(turn: ReportedTurn, work_s: float) -> tuple[float, ...]:
    """Return the seconds of each model call: one before each tool, and the last."""
    count = turn.tool_calls + 1
    if len(turn.calls_s) == count:
        return turn.calls_s
    return ((sum(turn.calls_s) if turn.calls_s else work_s) / count,) * count


def _prompt(tool_calls: int) -> str:
    """Return words by which the scripted model calls so many tools, one after another."""
    return (
        f"Query my schedules of the {tool_calls} days from 2026-03-02 on." if tool_calls else _TALK
    )


def claims_of_replay(run: Run, turns: tuple[ReportedTurn, ...]) -> tuple[Claim, ...]:
    """Return what of a report holds in its replay: each turn's time and its number of tools."""
    scenario = Scenario.from_json(run.parameters)
    views = {view.turn_id: view for view in turns_of(run.spans(), run.operations())}
    claims: list[Claim] = []
    for turn, client in zip(turns, scenario.clients_given, strict=True):
        view = views.get(client.asks[0].turn_id)
        reported_s = turn.took_s / scenario.speed
        values: Mapping[str, tuple[str, str, Verdict]] = {}
        if view is not None and view.outcome == "ok":
            took_s, tools = view.latency_ns / 1e9, len(view.steps_named("tool"))
            slack_s = allowance_s(reported_s, speed=scenario.speed)
            timed = time_verdict(took_s, reported_s, slack_s=slack_s)
            counted: Verdict = "holds" if tools == turn.tool_calls else "violated"
            values = {
                "answered in": (f"{reported_s:.3f} s", f"{took_s:.3f} s", timed),
                "tool calls": (str(turn.tool_calls), str(tools), counted),
            }
        for what, (said, measured, verdict) in values.items():
            claims.append(Claim(str(turn.key), what, said, measured, verdict, "client and trace"))
        if not values:
            why = view.error if view is not None else "it was never asked"
            claims.append(
                Claim(str(turn.key), "answered in", f"{reported_s:.3f} s", why, "unknown", "client")
            )
    return tuple(claims)
