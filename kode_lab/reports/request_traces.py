"""Traces of model requests, as serving benchmarks replay them, read as the turns of sessions.

It owns the shapes of these files and how requests become turns. It must never know what a turn is
asked or judged by: it gives the fields of a report's turns.

    mooncake         a line a request: timestamp or delay (ms), input_length, output_length, and
                     session_id where requests belong together
    agentic          the same with request_id, not_before_ms and dependencies
    conversations    a line a conversation: session_id and turns with text and delay (ms)
    coding agents    an object a conversation: requests with t, in, out, api_time, and sub-agents
    profile export   a line a measured request: metadata and metrics (AIPerf's profile_export.jsonl)

A trace of requests tells no reply times unless it was measured: the model then takes half a second,
and 20 ms for each token of output. Requests of a coding agent that follow each other at a
machine's pace are one turn: what lies between them is a tool at work.

Source: Mooncake's open traces (Qin et al., FAST '25), the formats of NVIDIA's AIPerf and Dynamo,
and the KV cache tester's traces of coding agents.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any

__all__ = ["turns_in"]

_FIRST_TOKEN_S, _TOKEN_S = 0.5, 0.02
# A longer pause between two requests of a coding agent is its user's, and begins a new turn.
_TURN_GAP_S = 20.0
_STEPS_LIMIT = 800
_OTHER_NAMES = {
    "input_tokens": "input_length", "output_tokens": "output_length", "delay_ms": "delay",
    "created_time": "timestamp", "not_before_ms": "timestamp",
}  # fmt: skip


def turns_in(rows: Sequence[Any]) -> list[dict[str, Any]] | None:
    """Return the turns that the rows of such a trace describe, or None if it is no such trace.

    Raises:
        ValueError: a field that is needed is missing, or no number.
    """
    first = rows[0] if rows else None
    if not isinstance(first, Mapping):
        return None
    fields = first.keys()
    try:
        if {"metadata", "metrics"} <= fields:
            return _measured(rows)
        if isinstance(first.get("requests"), list):
            return [turn for n, row in enumerate(rows) for turn in _coding(row, n)]
        if isinstance(first.get("turns"), list) and "session_id" in fields:
            return [turn for n, row in enumerate(rows) for turn in _conversation(row, n)]
        if fields & {"input_length", "output_length", "hash_ids", "messages"}:
            return _requests(rows)
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"the trace of requests lacks a field or has a wrong one: {error}"
        ) from None
    return None


def _model_s(output_tokens: float) -> float:
    return _FIRST_TOKEN_S + _TOKEN_S * output_tokens


def _requests(rows: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return a turn for each request; those without a session are sessions of their own."""
    users: dict[str, int] = {}
    turns = []
    for number, given in enumerate(rows):
        row = {_OTHER_NAMES.get(name, name): value for name, value in given.items()}
        session = str(row.get("session_id", f"request-{number}"))
        user = users.setdefault(session, len(users))
        outputs = round(row.get("output_length") or 0)
        turn: dict[str, Any] = {
            "user": f"user-{user}", "agent": "assistant", "name": f"{session} {number}",
            "model": _model_s(outputs), "output_tokens": outputs,
        }  # fmt: skip
        if row.get("input_length") is not None:
            turn["input_tokens"] = round(row["input_length"])
        if row.get("timestamp") is not None:
            turn["arrived"] = row["timestamp"] / 1000
        elif row.get("delay") is not None:
            turn["think"] = row["delay"] / 1000
        said = [one for one in row.get("messages") or () if one.get("role") == "user"]
        if said and isinstance(said[-1].get("content"), str):
            turn["prompt"] = said[-1]["content"][:200]
        turns.append(turn)
    starts = [turn["arrived"] for turn in turns if "arrived" in turn]
    for turn in turns:
        if "arrived" in turn:
            turn["arrived"] = round(turn["arrived"] - min(starts), 6)
    return turns


def _conversation(row: Mapping[str, Any], number: int) -> list[dict[str, Any]]:
    turns = []
    for turn in row["turns"]:
        told = {"user": f"user-{number}", "agent": "assistant", "model": _model_s(100)}
        told["prompt"] = str(turn.get("text") or "Go on.")[:200]
        if turn.get("delay") is not None:
            told["think"] = turn["delay"] / 1000
        turns.append(told)
    return turns


def _coding(row: Mapping[str, Any], number: int) -> list[dict[str, Any]]:
    """Return the turns of a coding agent's conversation."""
    steps = sorted(row["requests"], key=lambda step: float(step["t"]))
    groups: list[list[Mapping[str, Any]]] = []
    for before, step in pairwise([None, *steps]):
        assert step is not None
        if before is None or _is_users(before, step) or len(groups[-1]) >= _STEPS_LIMIT:
            groups.append([])
        groups[-1].append(step)
    turns = []
    for place, group in enumerate(groups):
        calls, tools, end_s = list[float](), list[dict[str, Any]](), 0.0
        inputs = outputs = 0
        for step in group:
            if step.get("type") == "subagent":
                tools.append(_sub_agent(step))
                continue
            if calls and len(tools) < len(calls):
                tools.append({"name": "tool", "took": round(max(0.0, step["t"] - end_s), 6)})
            calls.append(_call_s(step))
            end_s = float(step["t"]) + calls[-1]
            inputs, outputs = inputs + (step.get("in") or 0), outputs + (step.get("out") or 0)
        if not calls:
            continue
        if len(tools) >= len(calls):  # a sub-agent that nothing follows
            calls.append(_FIRST_TOKEN_S)
        turn: dict[str, Any] = {
            "user": f"user-{number}", "agent": "coding-agent", "calls": calls, "tools": tools,
            "name": f"{row.get('id', f'trace {number}')} {place + 1}",
            "arrived": round(float(group[0]["t"]), 6), "input_tokens": inputs,
            "output_tokens": outputs,
        }  # fmt: skip
        turns.append(turn)
    return turns


def _is_users(before: Mapping[str, Any], step: Mapping[str, Any]) -> bool:
    """Whether a request begins a new turn: its user said something."""
    if "subagent" in (before.get("type"), step.get("type")):
        return False
    if kinds := step.get("input_types"):
        return "tool_result" not in kinds
    if stop := before.get("stop"):
        return bool(stop != "tool_use")
    return float(step["t"]) - float(before["t"]) - _call_s(before) > _TURN_GAP_S


def _call_s(step: Mapping[str, Any]) -> float:
    return float(step.get("api_time") or _model_s(step.get("out") or 0))


def _sub_agent(step: Mapping[str, Any]) -> dict[str, Any]:
    """Return a sub-agent as a tool with model calls and tools of its own."""
    name = "".join(
        c if c.isalnum() or c in "_-" else "-" for c in str(step.get("subagent_type", ""))
    )
    calls, tools, end_s = list[float](), list[dict[str, Any]](), 0.0
    for inner in step.get("requests") or ():
        if inner.get("type") == "subagent":
            tools.append(_sub_agent(inner))
            continue
        if calls and inner["t"] > end_s:
            tools.append({"name": "tool", "took": round(inner["t"] - end_s, 6)})
        calls.append(_call_s(inner))
        end_s = float(inner["t"]) + calls[-1]
    told: dict[str, Any] = {"name": name[:64] or "sub-agent", "calls": calls, "tools": tools}
    if step.get("duration_ms"):
        told["took"] = step["duration_ms"] / 1000
    return told


def _measured(rows: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the requests that a benchmark measured, as turns with their own times."""
    turns: list[dict[str, Any]] = []
    starts = [row["metadata"]["request_start_ns"] for row in rows]
    for row, start_ns in zip(rows, starts, strict=True):
        metadata, metrics = row["metadata"], row["metrics"]

        def amount(name: str, metrics: Mapping[str, Any] = metrics) -> float | None:
            found = metrics.get(name)
            value = found.get("value") if isinstance(found, Mapping) else found
            unit = found.get("unit", "") if isinstance(found, Mapping) else ""
            scale = {"ms": 1e-3, "ns": 1e-9, "us": 1e-6}.get(unit, 1.0)
            return None if value is None else float(value) * scale

        session = metadata.get("x_correlation_id") or metadata.get("conversation_id")
        turn: dict[str, Any] = {
            "user": f"user-{session or metadata.get('session_num', len(turns))}"[:60],
            "agent": "assistant", "arrived": round((start_ns - min(starts)) / 1e9, 6),
        }  # fmt: skip
        took_s = amount("request_latency")
        if took_s is None and metadata.get("request_end_ns"):
            took_s = (metadata["request_end_ns"] - start_ns) / 1e9
        told = {"took": took_s, "first_token": amount("time_to_first_token")}
        turn |= {name: round(value, 6) for name, value in told.items() if value is not None}
        for name, field in (("input", "input_tokens"), ("output", "output_tokens")):
            if (tokens := amount(f"{name}_sequence_length")) is not None:
                turn[field] = round(tokens)
        if metadata.get("was_cancelled"):
            turn["outcome"] = "cancelled"
        elif row.get("error"):
            turn |= {"outcome": "failed", "error": str(row["error"])[:200]}
        turns.append(turn)
    return turns
