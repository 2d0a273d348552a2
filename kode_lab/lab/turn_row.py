"""A turn as one row: which columns there are, and what stands in them.

The row of the pandas table and of a run's ``turns.csv`` alike; it knows neither. Ids come first,
units are in the names, and what was not recorded is None, never 0: a turn without a trace has no
``waited_s``.
"""

from __future__ import annotations

from typing import Any

from kode_lab.history.span import STEPS
from kode_lab.lab.turn_view import TurnView

__all__ = ["TURN_COLUMNS", "TURN_COUNTS", "TURN_TEXTS", "turn_row"]

_IDS = ("user_id", "session_id", "agent_id")
_TOKENS = ("gen_ai.usage.input_tokens", "gen_ai.usage.output_tokens")
_STEP_COLUMNS = {
    "wait": "waited_s",
    "load": "load_s",
    "ask": "model_s",
    "tool": "tools_s",
    "commit": "commit_s",
}
# Whole numbers that can be missing, and texts; the others are seconds.
TURN_COUNTS = (
    *("model_calls", "tool_calls", "input_tokens", "output_tokens", "attempts"),
    *("queue_length", "fence"),
)
TURN_TEXTS = (*_IDS, "turn_id", "outcome", "config_version", "marker", "error")
TURN_COLUMNS = (
    *(*_IDS, "turn_id", "outcome", "sent_s", "latency_s", *_STEP_COLUMNS.values()),
    *(*TURN_COUNTS, "config_version", "marker", "error"),
)


def turn_row(turn: TurnView, origin_ns: int) -> tuple[Any, ...]:
    """Return the turn's values in the order of ``TURN_COLUMNS``; times count from ``origin_ns``."""
    took = dict.fromkeys(STEPS, 0)
    called = dict.fromkeys(STEPS, 0)
    tokens: list[int | None] = [None, None]
    queue: int | None = None
    for span in turn.steps:
        took[span.step] += span.end_ns - span.start_ns
        called[span.step] += 1
        if span.step == "ask":
            for place, name in enumerate(_TOKENS):
                used = span.attributes.get(name)
                if used is not None:
                    tokens[place] = (tokens[place] or 0) + used
        elif span.step == "wait":
            queue = span.attributes.get("kode_lab.queue.length")
    is_traced = bool(turn.steps or turn.whole)
    facts = turn.whole.attributes if turn.whole else {}
    version = facts.get("kode_lab.config.version")
    return (
        *turn.key,
        turn.turn_id,
        turn.outcome,
        (turn.start_ns - origin_ns) / 1e9,
        None if turn.is_open else turn.latency_ns / 1e9,
        *((took[step] / 1e9 if is_traced else None) for step in _STEP_COLUMNS),
        *((called[step] if is_traced else None) for step in ("ask", "tool")),
        *tokens,
        len(turn.operations) or None,
        queue,
        facts.get("kode_lab.fence"),
        None if version is None else str(version),
        turn.operations[0].marker if turn.operations else None,
        turn.error or None,
    )
