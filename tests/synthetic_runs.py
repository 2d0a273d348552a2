"""Small recorded runs made by hand for the tests of pictures and tables: nothing here was run."""

from __future__ import annotations

import random
from typing import NamedTuple
from zlib import crc32

from kode_lab.history.operation import Operation
from kode_lab.history.span import Span
from kode_lab.key import SessionKey

MS, S = 10**6, 10**9
# Monotonic clocks begin anywhere; nothing may depend on where.
ZERO_NS = 7_777 * S


class Recording(NamedTuple):
    """What a run offers to pictures and tables."""

    trace: tuple[Span, ...]
    history: tuple[Operation, ...]

    def spans(self) -> tuple[Span, ...]:
        return self.trace

    def operations(self) -> tuple[Operation, ...]:
        return self.history

    def __add__(self, other):
        return Recording(self.trace + other.trace, self.history + other.history)


def turn(
    key: SessionKey,
    turn_id: str,
    model_s=(1.0, 0.5),
    tools=("create_schedule",),
    *,
    sent_s=0.0,
    waited_s=20e-6,
    tool_s=0.003,
    results=(),
    outcome="ok",
    error="",
) -> Recording:
    """A turn in which a tool call follows each model call but the last."""
    sent_ns = at = ZERO_NS + round(sent_s * S)
    spans: list[Span] = []

    def step(name, duration_ns, **attributes):
        nonlocal at
        spans.append(Span(key, turn_id, name, at, at + round(duration_ns), attributes))
        at += round(duration_ns)

    step("wait", waited_s * S, **{"kode_lab.queue.length": 0})
    step("load", 0.1 * MS)
    for number, call_s in enumerate(model_s):
        step(
            "ask",
            call_s * S,
            **{"gen_ai.usage.input_tokens": 100, "gen_ai.usage.output_tokens": 10},
        )
        if number < len(tools):
            told = {"kode_lab.tool.result": results[number]} if number < len(results) else {}
            named = {"gen_ai.tool.name": tools[number], "gen_ai.tool.call.id": f"c{number}"}
            step("tool", tool_s * S, **named, **told)
    step("commit", 0.2 * MS)
    facts = {"kode_lab.config.version": "v1", "kode_lab.fence": 4}
    spans.append(Span(key, turn_id, "turn", sent_ns, at, facts, error or None))
    marker = f"#m0000000000-{crc32(turn_id.encode()):08x}"
    operation = Operation(
        key, "turn", f"p-{turn_id}", outcome, sent_ns, at, marker, turn_id, error=error
    )
    return Recording(tuple(spans), (operation,))


def the_report() -> Recording:
    """The report's first test as it would be recorded: 2.19 s beside 16.73 s with 8 tool calls."""
    yeya = SessionKey.of("yeya", "schedule-assistant")
    other = SessionKey.of("test_user", "schedule-assistant", "independent_session")
    calls = (2.31, 1.62, 1.48, 2.05, 1.71, 1.39, 1.94, 1.57, 2.63)
    return turn(yeya, "t1", (1.24, 0.946), results=('{"id": 13039}',)) + turn(
        other, "t2", calls, ("query_schedules",) * 8, sent_s=0.0004
    )


def a_crowd(sessions: int, turns: int, span_s: float, *, seed: int = 1, waits_more_s=0.0):
    """Turns that arrive over ``span_s`` at sessions of uneven popularity; each session is serial.

    ``waits_more_s`` makes each turn wait that much longer than its own session's queue explains.
    """
    chance = random.Random(seed)
    free_s: dict[int, float] = {}
    spans: list[Span] = []
    operations: list[Operation] = []
    for number, sent_s in enumerate(sorted(chance.random() * span_s for _ in range(turns))):
        which = int(sessions * chance.random() ** 1.5)
        waited_s = max(0.0, free_s.get(which, 0.0) - sent_s) + 20e-6 + waits_more_s
        calls_s = (0.2 + chance.expovariate(4), 0.1 + chance.expovariate(5))
        key = SessionKey.of(f"user_{which % 97}", "assistant", f"session_{which}")
        one = turn(key, f"t{number}", calls_s, sent_s=sent_s, waited_s=waited_s)
        free_s[which] = (one.trace[-1].end_ns - ZERO_NS) / S
        spans += one.trace
        operations += one.history
    return Recording(tuple(spans), tuple(operations))
