"""The two documented tests, as data: what was asked of whom, and what the report says came of it.

It owns the report's numbers and is the only place that states them; nothing here was measured by
us. Where the report is silent (the words of the prompts, how 16.73 s divide over nine model calls)
the choice is ours and marked so.

Source: the concurrency report: "Concurrency test results" (both tests and the timing), "API calls"
and "Directory structure" (the sessions of test 1).
"""

from __future__ import annotations

from typing import Any, NamedTuple

from kode_lab.key import SessionKey

__all__ = ["AGENT", "DOCUMENTED", "STORAGE", "DocumentedTest", "DocumentedTurn"]

AGENT = "schedule-assistant"
# Where the sessions of a test rest, below the test's directory.
STORAGE = ".kode"


class DocumentedTurn(NamedTuple):
    """One turn of a documented test.

    Attributes:
        name: what the report calls it.
        prompt: ours; the report only tells what it was about.
        model_s: seconds of each model call, in order. Their sum is the report's time where it
            gives one; how it divides is ours.
        answered_s: how long the turn took, or None where the report does not say.
        tool_calls: how many it made.
        done_at_s: when it was done after the first arrival, in the whole seconds of the report's
            clock.
        schedule_id: the id its creation got.
    """

    name: str
    key: SessionKey
    prompt: str
    model_s: tuple[float, ...]
    answered_s: float | None = None
    tool_calls: int | None = None
    done_at_s: int | None = None
    schedule_id: int | None = None

    @property
    def critical_path_s(self) -> float:
        """What the turn takes when nothing but the model takes time."""
        return sum(self.model_s)

    def to_json(self) -> dict[str, Any]:
        """Give the turn as JSON values."""
        return {**self._asdict(), "key": self.key.to_json(), "model_s": list(self.model_s)}

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> DocumentedTurn:
        """Give the turn that ``to_json`` told."""
        return cls(
            **fields
            | {"key": SessionKey.from_json(fields["key"]), "model_s": tuple(fields["model_s"])}
        )


class DocumentedTest(NamedTuple):
    """Turns that arrive together, and the directory of the run that their sessions rest in."""

    name: str
    title: str
    turns: tuple[DocumentedTurn, ...]

    def to_json(self) -> dict[str, Any]:
        """Give the test as JSON values."""
        return {**self._asdict(), "turns": [turn.to_json() for turn in self.turns]}

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> DocumentedTest:
        """Give the test that ``to_json`` told."""
        turns = tuple(DocumentedTurn.from_json(turn) for turn in fields["turns"])
        return cls(**fields | {"turns": turns})


DOCUMENTED = (
    DocumentedTest(
        "test-1",
        "simple dialogue",
        (
            DocumentedTurn(
                "session 1",
                SessionKey.of("yeya", AGENT),
                "Create a schedule: project review on 2026-03-02 at 15:00.",
                model_s=(1.24, 0.95),
                answered_s=2.19,
                tool_calls=1,
                done_at_s=2,
            ),
            DocumentedTurn(
                "session 2",
                SessionKey.of("test_user", AGENT, "independent_session"),
                "Query my schedules for the eight days from 2026-03-02 on, day by day.",
                model_s=(2.31, 1.62, 1.48, 2.05, 1.71, 1.39, 1.94, 1.57, 2.66),
                answered_s=16.73,
                tool_calls=8,
                done_at_s=16,
            ),
        ),
    ),
    DocumentedTest(
        "test-2",
        "concurrent creation",
        (
            DocumentedTurn(
                "session 1",
                SessionKey.of("user_1", AGENT, "concurrent_create_1"),
                "Create a meeting this afternoon, 2026-03-02 at 14:00.",
                # The report gives no times for this test: as long as its other creation, and more.
                model_s=(1.10, 0.98),
                tool_calls=1,
                schedule_id=13039,
            ),
            DocumentedTurn(
                "session 2",
                SessionKey.of("user_2", AGENT, "concurrent_create_2"),
                "Create study time tomorrow morning, 2026-03-03 at 09:00.",
                model_s=(1.31, 1.07),
                tool_calls=1,
                schedule_id=13040,
            ),
        ),
    ),
)
