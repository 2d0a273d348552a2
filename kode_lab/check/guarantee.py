"""What is promised, and the names of the ways to break it.

Eight guarantees; each anomaly carries its name from the literature and the guarantees it breaks.
This is the one table that rules, verdicts, witnesses and documents agree on.

Source: the names are those of Adya (aborted, intermediate read, lost update), Herlihy and Wing
(real-time order), Elle (duplicate elements, incompatible orders, garbage reads) and Jepsen's
reports (stale read, lost write).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from kode_lab.history.operation import Operation
from kode_lab.history.span import Span
from kode_lab.key import SessionKey

__all__ = ["ANOMALIES", "GUARANTEES", "SAFETY", "Anomaly", "Guarantee", "breaks"]


class Guarantee(NamedTuple):
    """One promise: its code, its name, and the promise itself."""

    code: str
    name: str
    promise: str


GUARANTEES = (
    Guarantee("G1", "apart", "no session is shown, stores or answers another's words"),
    Guarantee("G2", "kept", "an acknowledged turn is in its session, exactly once"),
    Guarantee("G3", "whole", "a turn shows whole or not at all; a refused one never"),
    Guarantee("G4", "ordered", "turns happen one after another, within the time each took"),
    Guarantee("G5", "durable", "what was acknowledged survives a crash"),
    Guarantee("G6", "tools", "a tool call acts once, for its own session, under its own id"),
    Guarantee("G7", "lock", "one session's turns never overlap, and wait for no other session"),
    Guarantee("G8", "service", "every session answers after faults, with the shared configuration"),
)
# What a history alone decides; the others are claimed when asked for, or when evidence shows up.
SAFETY = ("apart", "kept", "whole", "ordered")

# The guarantees that each anomaly breaks, then what it is in one clause.
ANOMALIES: Mapping[str, tuple[tuple[str, ...], str]] = {
    "cross-session leak": (("apart",), "a session holds or is shown another session's marker"),
    "garbage read": (("apart",), "a session holds or is shown a marker nobody ever sent"),
    "foreign reply": (("apart",), "a reply answers a prompt that is not its turn's"),
    "lost write": (("kept",), "an acknowledged turn is not in the session"),
    "duplicate": (("kept",), "one turn stands in the session twice, or ran twice"),
    "aborted read": (("whole",), "a turn that was refused is in the session, or was shown"),
    "intermediate read": (
        ("whole",),
        "a turn was shown half of another, which was completed later",
    ),
    "torn turn": (("whole",), "half of a turn rests in the session"),
    "lost update": (("kept", "ordered"), "two turns took one position; one overlooks the other"),
    "fork": (("ordered",), "what a turn was shown is no prefix of the session"),
    "future read": (("ordered",), "a reader was shown what was sent only after it returned"),
    "stale read": (("ordered",), "a reader missed what was acknowledged before it asked"),
    "real-time reorder": (("ordered",), "a turn stands before one that ended before it began"),
    "overtaking": (("ordered",), "more turns overtook one than the limit that is claimed"),
    "lost after acknowledgement": (
        ("kept", "durable"),
        "an acknowledged turn is gone after a crash",
    ),
    "duplicate id": (("tools",), "two effects of tools have one id"),
    "effect twice": (("tools",), "one tool call of one turn acted twice"),
    "tool misattributed": (("tools",), "a tool acted for a session that did not ask for it"),
    "overlap": (("lock",), "two turns of one session were at work at once"),
    "needless serialisation": (("lock",), "turns of different sessions wait for each other"),
    "stuck session": (("service",), "a session never answers again, though all faults are over"),
    "configuration drift": (("service",), "turns of one agent ran with different configurations"),
}
_NOTHING: Mapping[str, Any] = {}


class Anomaly(NamedTuple):
    """One breach: its name, where, and the fewest operations that show it.

    Attributes:
        key: the session in which it shows.
        witness: operations (spans, for what only a trace can show), the accused first.
        element: the marker, id or version that it is about, or "".
        facts: numbers and lists that its sentences are made from; JSON values.
    """

    name: str
    key: SessionKey
    witness: tuple[Operation | Span, ...]
    element: str = ""
    facts: Mapping[str, Any] = _NOTHING


def breaks(anomaly: Anomaly) -> tuple[str, ...]:
    """Return the names of the guarantees that an anomaly breaks."""
    return ANOMALIES[anomaly.name][0]
