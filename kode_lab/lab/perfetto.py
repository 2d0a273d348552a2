"""A trace as Chrome trace JSON, which ui.perfetto.dev and chrome://tracing open.

It owns the placing of spans on tracks and knows nothing of files or runs. One process a session,
so that each has a heading of its own; in it as many tracks as steps ran side by side, because a
track may only hold steps that nest (a second turn that waits behind the first, and tools that run
together, do not).

Source: the Trace Event Format ("Trace Event Format" document of the Chromium project), complete
events (``ph: X``) and metadata events (``ph: M``); times are microseconds.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from kode_lab.history.span import Span
from kode_lab.key import SessionKey

__all__ = ["chrome_trace"]


def chrome_trace(spans: Iterable[Span]) -> dict[str, Any]:
    """Return the trace as one JSON object; times count from the first step."""
    # A parent starts no later and ends no earlier than its children, so it is placed first.
    ordered = sorted(spans, key=lambda span: (span.start_ns, -span.end_ns, span.step != "turn"))
    origin_ns = ordered[0].start_ns if ordered else 0
    tracks: dict[SessionKey, list[list[Span]]] = {}
    events: list[dict[str, Any]] = []
    numbers: dict[SessionKey, int] = {}
    for span in ordered:
        process = numbers.setdefault(span.key, len(numbers) + 1)
        track = _placed(tracks.setdefault(span.key, []), span)
        events.append(
            {
                "ph": "X",
                "name": _name(span),
                "cat": span.step,
                "pid": process,
                "tid": track,
                "ts": (span.start_ns - origin_ns) / 1000,
                "dur": (span.end_ns - span.start_ns) / 1000,
                "args": {"turn_id": span.turn_id, **span.attributes}
                | ({"error": span.error} if span.error else {}),
            }
        )
    headings = [
        {"ph": "M", "name": "process_name", "pid": number, "tid": 0, "args": {"name": str(key)}}
        for key, number in numbers.items()
    ]
    return {"displayTimeUnit": "ms", "traceEvents": headings + events}


def _placed(tracks: list[list[Span]], span: Span) -> int:
    """Put the span on the first track where it nests, and give the track's number."""
    for number, open_spans in enumerate(tracks):
        while open_spans and open_spans[-1].end_ns <= span.start_ns:
            open_spans.pop()
        parent = open_spans[-1] if open_spans else None
        if parent is None or (parent.turn_id == span.turn_id and span.end_ns <= parent.end_ns):
            open_spans.append(span)
            return number
    tracks.append([span])
    return len(tracks) - 1


def _name(span: Span) -> str:
    detail = span.attributes.get("gen_ai.tool.name" if span.step == "tool" else "", "")
    return f"{span.step} {detail}".strip()
