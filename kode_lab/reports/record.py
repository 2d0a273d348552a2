"""A run written as a report: what came when, how long it took, what it called, how it ended.

It owns that direction alone; reading the file again is ``report``'s. A run's faults (kills, pauses)
cannot be replayed by a report and are counted in ``left_out``.

Idea: the concurrency report itself, which tells arrivals, durations and counts.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from kode_lab.errors import InvalidScenario
from kode_lab.history.operation import HEALS, NEMESIS, QUIET
from kode_lab.lab.records import Run
from kode_lab.lab.scenario import AGENT
from kode_lab.lab.turn_view import TurnView, turns_of
from kode_lab.reports.report import FORMAT, REPORT_TURNS_LIMIT

__all__ = ["left_out_of", "recorded"]

_OUTCOMES = {"ok": "ok", "fail": "refused", "info": "failed"}
_TOOLS = ("create_schedule", "query_schedules", "update_schedule", "delete_schedule")


def recorded(run: Run) -> dict[str, Any]:
    """Return a run's turns as a report that another run can replay, without its probes.

    Raises:
        InvalidScenario: it has too many turns, or none.
        InvalidRecord: its records cannot be read.
    """
    operations = run.operations()
    views = [v for v in turns_of(run.spans(), operations) if not _is_probe(v)]
    if not 0 < len(views) <= REPORT_TURNS_LIMIT:
        raise InvalidScenario(
            f"run {run.id} has {len(views)} turns, a report 1 to REPORT_TURNS_LIMIT="
            f"{REPORT_TURNS_LIMIT}: repeat the run itself (kode-lab reproduce RUN)"
        )
    origin_ns = min(view.start_ns for view in views)
    healed = {*HEALS.values(), QUIET}
    left_out = Counter(o.f for o in operations if o.process == NEMESIS and o.f not in healed)
    told: dict[str, Any] = {"kode_lab_report": FORMAT, "name": str(run.facts.get("name", "run"))}
    if left_out:
        told["left_out"] = dict(left_out)
    return told | {"turns": [_turn(view, origin_ns) for view in views]}


def _is_probe(view: TurnView) -> bool:
    process = view.operations[0].process if view.operations else ""
    return view.turn_id.startswith("probe-") or process.startswith("probe-")


def _turn(view: TurnView, origin_ns: int) -> dict[str, Any]:
    turn: dict[str, Any] = {
        **view.key.to_json(),
        "arrived_s": round((view.start_ns - origin_ns) / 1e9, 6),
        "took_s": round(view.latency_ns / 1e9, 6),
    }
    if view.outcome != "ok":
        is_late = view.is_open or view.error.startswith(("no answer within", "TimeoutError"))
        turn["outcome"] = "unanswered" if is_late else _OUTCOMES[view.outcome]
        turn["error"] = view.error[:200]
        return turn
    if view.whole is None:
        return turn
    tools = view.steps_named("tool")
    is_ours = view.key.agent_id == AGENT and all(_name(tool) in _TOOLS for tool in tools)
    if is_ours:
        # Its script picks the tools by the words of the prompt: their number is enough.
        turn["tool_calls"] = len(tools)
    else:
        turn["tools"] = [
            {
                "name": _name(tool) or "tool",
                "took": round((tool.end_ns - tool.start_ns) / 1e9, 6),
                "failed": bool(tool.error or tool.attributes.get("kode_lab.tool.is_error")),
            }
            for tool in tools
        ]
    asks = [span for span in view.steps_named("ask") if not span.error]
    calls_s = [round((span.end_ns - span.start_ns) / 1e9, 6) for span in asks]
    is_whole = (2 if tools else 1) <= len(calls_s) <= len(tools) + 1
    if is_whole and sum(calls_s) <= view.latency_ns / 1e9:
        turn["calls_s"] = calls_s
    return turn


def _name(tool: Any) -> str:
    return str(tool.attributes.get("gen_ai.tool.name", ""))


def left_out_of(fields: Mapping[str, Any]) -> str:
    """Return a sentence on what the report lacks of the recorded run; "" for nothing."""
    told = ", ".join(f"{count} {name}" for name, count in fields.get("left_out", {}).items())
    return f"a report has no faults; left out: {told}" if told else ""
