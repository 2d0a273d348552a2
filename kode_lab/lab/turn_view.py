"""One turn from both sides: what its client saw beside the steps that the system recorded.

Pictures and tables read turns in this shape, so that how a span finds its operation is decided
once: by session key and turn id, or by the marker where a turn has no id. Nothing here judges: the
trace may lack what the history has, or the other way round, and both are shown as they are.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable
from typing import Any, NamedTuple, Protocol, runtime_checkable

from kode_lab.history.operation import NEMESIS, Operation
from kode_lab.history.span import STEPS, Span
from kode_lab.key import SessionKey

__all__ = [
    "TURN_COLUMNS",
    "TURN_COUNTS",
    "TURN_TEXTS",
    "Recorded",
    "Stretched",
    "TurnView",
    "turn_row",
    "turns_of",
]


@runtime_checkable
class Recorded(Protocol):
    """Anything recorded that can be drawn: a ``Run``, or a stand-in of yours."""

    def spans(self) -> Iterable[Span]:
        """Return the trace."""

    def operations(self) -> Iterable[Operation]:
        """Return the history."""


class TurnView(NamedTuple):
    """A turn: its client's attempts and the system's steps.

    Attributes:
        start_ns: when the client sent it first, or its first step began.
        end_ns: when the client had its answer, or its last step ended.
        steps: its spans, but for the ``turn`` span itself, by start.
        whole: its ``turn`` span, or None.
        operations: the client's attempts, in order; empty where there is only a trace.
        outcome: ``ok``, ``fail``, ``info`` (not known), or ``ok``/``fail`` by the trace alone.
        error: why it is not ``ok``.
    """

    key: SessionKey
    turn_id: str
    start_ns: int
    end_ns: int
    steps: tuple[Span, ...]
    whole: Span | None
    operations: tuple[Operation, ...]
    outcome: str
    error: str

    def steps_named(self, name: str) -> list[Span]:
        """Return the steps of one kind, by start."""
        return [span for span in self.steps if span.step == name]

    def time_in(self, name: str) -> int:
        """Return the nanoseconds in the steps of one kind, added up."""
        return sum(span.end_ns - span.start_ns for span in self.steps if span.step == name)

    @property
    def latency_ns(self) -> int:
        """How long the client waited for its answer (or the system worked, without a client)."""
        return self.end_ns - self.start_ns

    @property
    def is_open(self) -> bool:
        """Whether nothing ever came back to its client."""
        return any(math.isinf(operation.complete_ns) for operation in self.operations)


def turns_of(spans: Iterable[Span], operations: Iterable[Operation] = ()) -> list[TurnView]:
    """Return every turn, by its start (then by key and id, so that ties do not move)."""
    steps: dict[tuple[SessionKey, str], list[Span]] = defaultdict(list)
    for span in spans:
        steps[span.key, span.turn_id].append(span)
    attempts: dict[tuple[SessionKey, str], list[Operation]] = defaultdict(list)
    for operation in operations:
        if operation.f == "turn" and operation.process != NEMESIS:
            attempts[operation.key, operation.turn_id or operation.marker].append(operation)
    views = [
        _view(name, steps.get(name, []), attempts.get(name, []))
        for name in dict.fromkeys((*steps, *attempts))
    ]
    return sorted(views, key=lambda view: (view.start_ns, view.key, view.turn_id))


def _view(name: tuple[SessionKey, str], spans: list[Span], operations: list[Operation]) -> TurnView:
    spans.sort(key=lambda span: (span.start_ns, span.end_ns))
    operations.sort(key=lambda operation: operation.invoke_ns)
    whole = next((span for span in spans if span.step == "turn"), None)
    ends = [operation.complete_ns for operation in operations]
    known = [int(end) for end in ends if not math.isinf(end)]
    begins = [operation.invoke_ns for operation in operations] or [s.start_ns for s in spans]
    if known and len(known) == len(ends):
        end_ns = max(known)
    else:
        end_ns = max((*known, *(span.end_ns for span in spans), *begins))
    outcome, error = _outcome(whole, operations)
    return TurnView(
        *name,
        min(begins),
        end_ns,
        tuple(span for span in spans if span.step != "turn"),
        whole,
        tuple(operations),
        outcome,
        error,
    )


def _outcome(whole: Span | None, operations: list[Operation]) -> tuple[str, str]:
    if operations:
        # Any attempt that was acknowledged settles it; else the last one says what is known.
        best = next((o for o in reversed(operations) if o.type == "ok"), operations[-1])
        return best.type, best.error
    if whole is None:
        return "info", ""
    return ("fail", whole.error) if whole.error else ("ok", "")


class Stretched:
    """A part of what was recorded, with all times stretched: a fast run in the original's seconds.

    Args:
        recorded: the whole.
        prefix: what the ids of the turns begin with; "" is all of them.
        factor: by how much time is stretched; 1 leaves it.
    """

    def __init__(self, recorded: Recorded, prefix: str = "", factor: float = 1.0) -> None:
        self._spans = [s for s in recorded.spans() if s.turn_id.startswith(prefix)]
        self._operations = [
            o
            for o in recorded.operations()
            if o.turn_id.startswith(prefix) or o.process == NEMESIS or o.f != "turn"
        ]
        begun = [o.invoke_ns for o in self._operations] + [s.start_ns for s in self._spans]
        self._origin_ns = min(begun, default=0)
        self._factor = factor

    def spans(self) -> tuple[Span, ...]:
        """Return the trace, stretched."""
        return tuple(
            span._replace(start_ns=self._at(span.start_ns), end_ns=self._at(span.end_ns))
            for span in self._spans
        )

    def operations(self) -> tuple[Operation, ...]:
        """Return the history, stretched; what never ended still does not."""
        return tuple(
            o._replace(
                invoke_ns=self._at(o.invoke_ns),
                complete_ns=o.complete_ns
                if math.isinf(o.complete_ns)
                else self._at(int(o.complete_ns)),
            )
            for o in self._operations
        )

    def _at(self, time_ns: int) -> int:
        if self._factor == 1:
            return time_ns
        return self._origin_ns + round((time_ns - self._origin_ns) * self._factor)


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
