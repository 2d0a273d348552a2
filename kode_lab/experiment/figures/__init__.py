"""The pictures: each takes a recorded run (or anything with spans and operations) and argues once.

The title is the finding with its numbers, the line under it says how to read the marks. The only
place that imports matplotlib; nothing here runs or judges anything.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from kode_lab.experiment.figures.lint import figure_lint
from kode_lab.experiment.figures.page import Picture
from kode_lab.experiment.figures.two_sessions import draw_sessions
from kode_lab.experiment.turn_view import Recorded, turns_of
from kode_lab.key import SessionKey

__all__ = ["Picture", "figure_lint", "two_sessions"]


def two_sessions(
    run: Recorded,
    *,
    keys: Collection[SessionKey] | None = None,
    prompts: Mapping[str, str] | None = None,
    speed: float = 1.0,
) -> Picture:
    """Draw a few sessions as lanes over time: waits, model calls and tool calls.

    Args:
        run: what was recorded.
        keys: the sessions to draw; all of them where it is not given.
        prompts: what was asked, by turn id.
        speed: how many times faster than the original the run was; told, never applied.

    Raises:
        InvalidRecord: there is nothing to draw, or more than lanes can show.
    """
    turns = turns_of(run.spans(), run.operations())
    if keys is not None:
        turns = [turn for turn in turns if turn.key in keys]
    return draw_sessions(turns, prompts=prompts, speed=speed)
