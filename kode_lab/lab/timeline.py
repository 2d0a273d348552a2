"""The interactive timeline: every turn of a run on one page that needs no network and no server.

It owns the packing of turns into the page and the page's display in a notebook. The page itself
(``timeline.html``: markup, style and a canvas) is a file beside this one, filled in one place.
Times are packed as whole microseconds, each step by its distance from the last one, so that 10,000
turns make about a megabyte.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from importlib import resources
from pathlib import Path
from typing import Any

from kode_lab.lab.times import counted
from kode_lab.lab.turn_view import Recorded, TurnView, turns_of

__all__ = ["STEP_NAMES", "Timeline", "timeline"]

# The page knows them by their place here.
STEP_NAMES = ("wait", "load", "ask", "tool", "commit")
_OUTCOMES = ("ok", "fail", "info")
_PLACEHOLDER = "/*RUN*/null"
_FRAME_HEIGHT_PX = 520


@dataclass(frozen=True, slots=True)
class Timeline:
    """A page that shows every turn; a notebook displays it, ``save`` writes it.

    Attributes:
        title: what stands at the top.
        html: the whole page, self-contained.
    """

    title: str
    html: str

    def save(self, path: Path) -> Path:
        """Write the page; it opens from disk."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(self.html, encoding="utf-8")
        return path

    def __repr__(self) -> str:
        return f"<Timeline: {self.title}>"

    def _repr_html_(self) -> str:
        # In a frame of its own, so that neither its style nor its script meets the notebook's.
        # A notebook that is not trusted strips the frame and keeps the sentence.
        return (
            f'<iframe srcdoc="{escape(self.html)}" title="{escape(self.title)}" '
            f'style="width:100%;height:{_FRAME_HEIGHT_PX}px;border:0"></iframe>'
            f"<small>Timeline of {escape(self.title)}. Nothing to see? Run the cell again.</small>"
        )


def timeline(run: Recorded, *, title: str = "") -> Timeline:
    """Return the timeline page of a run; without a ``title`` it says how many turns it has."""
    turns = turns_of(run.spans(), run.operations())
    sessions = list(dict.fromkeys(turn.key for turn in turns))
    title = title or f"{counted(len(turns), 'turn')} of {counted(len(sessions), 'session')}"
    packed = _packed(turns, title)
    # "<" can end a script element wherever it stands in it.
    data = json.dumps(packed, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")
    data = data.encode("utf-8", "backslashreplace").decode()
    page = resources.files(__package__).joinpath("timeline.html").read_text(encoding="utf-8")
    before, _, after = page.partition(_PLACEHOLDER)
    return Timeline(title, f"{before}{data}{after}")


def _packed(turns: Sequence[TurnView], title: str) -> dict[str, Any]:
    """The run as small JSON: names once, a list of numbers a turn.

    A turn is ``[session, start, duration, outcome, id, error, step, ...]`` with times in
    microseconds from the first request; a step is its place in ``STEP_NAMES``, the gap since the
    last step ended, its duration, and for a tool call the place of its name.
    """
    names: dict[str, int] = {}
    sessions: dict[str, int] = {}
    has_agents = len({turn.key.agent_id for turn in turns}) > 1
    origin_ns = min((turn.start_ns for turn in turns), default=0)
    rows = []
    for turn in turns:
        row: list[Any] = [
            sessions.setdefault(_session_name(turn, is_full=has_agents), len(sessions)),
            (turn.start_ns - origin_ns) // 1000,
            -1 if turn.is_open else (turn.end_ns - turn.start_ns) // 1000,
            _OUTCOMES.index(turn.outcome) if turn.outcome in _OUTCOMES else 2,
            turn.turn_id,
            turn.error,
        ]
        at = turn.start_ns // 1000
        for span in turn.steps:
            if span.step not in STEP_NAMES:
                continue
            start, end = span.start_ns // 1000, span.end_ns // 1000
            row += [STEP_NAMES.index(span.step), start - at, end - start]
            if span.step == "tool":
                name = str(span.attributes.get("gen_ai.tool.name", ""))
                row.append(names.setdefault(name, len(names)))
            at = end
        rows.append(row)
    return {"title": title, "sessions": list(sessions), "tools": list(names), "turns": rows}


def _session_name(turn: TurnView, *, is_full: bool) -> str:
    """The lock name; with the agent where a run has several, since both tell a session apart."""
    return f"{turn.key} ({turn.key.agent_id})" if is_full else str(turn.key)
