"""One step of a turn as the *system* saw it: the trace.

It is for pictures and explanations, and for the rules no client can see (overlap, needless
waiting); the judge's evidence for safety is the history.

Times are ``time.monotonic_ns`` of the host that ran the step. A line of ``trace.jsonl`` is one
span; attribute names are OpenTelemetry's GenAI semantic conventions wherever these have a name
(``gen_ai.operation.name``, ``gen_ai.conversation.id``, ``gen_ai.tool.call.id``, ...), else
``kode_lab.*``.

Source: https://opentelemetry.io/docs/specs/semconv/gen-ai/
"""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple, TypeAlias

from kode_lab.errors import InvalidKey, InvalidRecord
from kode_lab.key import SessionKey, is_unicode

__all__ = ["STEPS", "Span", "Trace", "read_spans", "span_line", "span_of"]

STEPS = ("turn", "wait", "load", "ask", "tool", "commit")
# The GenAI name of each step that has one.
_OPERATION_NAMES = {"turn": "invoke_agent", "ask": "chat", "tool": "execute_tool"}
_NO_ATTRIBUTES: Mapping[str, Any] = {}


class Span(NamedTuple):
    """One step: which turn of which session, from when to when, and what is known of it.

    Attributes:
        step: one of ``STEPS``; ``turn`` spans the whole and is the parent of the others.
        start_ns: monotonic nanoseconds.
        end_ns: monotonic nanoseconds, not before ``start_ns``.
        attributes: GenAI-named facts; JSON values.
        error: the name of the exception that ended it, or None.
    """

    key: SessionKey
    turn_id: str
    step: str
    start_ns: int
    end_ns: int
    attributes: Mapping[str, Any] = _NO_ATTRIBUTES
    error: str | None = None


# Where spans go: anything that takes one. It is called in the event loop and must not block.
Trace: TypeAlias = Callable[[Span], None]


def span_line(span: Span) -> str:
    """Return the span as one JSON line, without the line break."""
    attributes: dict[str, Any] = {
        "gen_ai.conversation.id": span.key.session_id,
        "gen_ai.agent.id": span.key.agent_id,
        "enduser.id": span.key.user_id,
    }
    operation = _OPERATION_NAMES.get(span.step)
    if operation is not None:
        attributes["gen_ai.operation.name"] = operation
    if span.error is not None:
        attributes["error.type"] = span.error
    fields = {
        "turn_id": span.turn_id,
        "step": span.step,
        "start_ns": span.start_ns,
        "end_ns": span.end_ns,
        "attributes": attributes | dict(span.attributes),
    }
    try:
        return _dumps(fields)
    except ValueError:  # an attribute is NaN or infinite: JSON has no number for it
        return _dumps(_finite(fields))


_dumps = functools.partial(json.dumps, ensure_ascii=False, allow_nan=False, separators=(",", ":"))


def _finite(value: Any) -> Any:
    """Return a JSON value with ``"NaN"``, ``"Infinity"`` and ``"-Infinity"`` as texts.

    Source: the JSON form of proto3, which OTLP's JSON uses too.
    """
    if isinstance(value, Mapping):
        return {name: _finite(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return list(map(_finite, value))
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    return value


_OWN = (
    "gen_ai.conversation.id",
    "gen_ai.agent.id",
    "enduser.id",
    "gen_ai.operation.name",
    "error.type",
)


def span_of(line: str, *, number: int | None = None) -> Span:
    """Return the span that a line of ``trace.jsonl`` holds.

    Raises:
        InvalidRecord: the line is not a span; the message says why.
    """
    try:
        fields = json.loads(line, parse_constant=_no_number)
        attributes = fields["attributes"]
        key = SessionKey.of(
            attributes["enduser.id"],
            attributes["gen_ai.agent.id"],
            attributes["gen_ai.conversation.id"],
        )
        step, start_ns, end_ns = fields["step"], fields["start_ns"], fields["end_ns"]
        rest = {name: value for name, value in attributes.items() if name not in _OWN}
        span = Span(
            key, fields["turn_id"], step, start_ns, end_ns, rest, attributes.get("error.type")
        )
    except KeyError as error:
        raise InvalidRecord(f"a span needs the field {error.args[0]!r}", line=number) from None
    except (ValueError, TypeError, AttributeError, RecursionError, InvalidKey) as error:
        raise InvalidRecord(f"not a span: {error}", line=number) from None
    for name, text in (("turn_id", span.turn_id), ("error.type", span.error or "")):
        if not isinstance(text, str) or not is_unicode(text):
            raise InvalidRecord(f"{name} is text, not {text!r:.60}", line=number)
    if step not in STEPS:
        raise InvalidRecord(f"step {step!r} is none of {', '.join(STEPS)}", line=number)
    if not (isinstance(start_ns, int) and isinstance(end_ns, int) and start_ns <= end_ns):
        raise InvalidRecord(
            f"start_ns {start_ns!r} must be an integer not after end_ns {end_ns!r}", line=number
        )
    return span


def _no_number(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")


def read_spans(lines: Iterable[str]) -> Iterator[Span]:
    """Return the spans of a ``trace.jsonl``, one at a time.

    Raises:
        InvalidRecord: a line is not a span; names the line.
    """
    for number, line in enumerate(lines, 1):
        if line.strip():
            yield span_of(line, number=number)
