"""The two documented tests, as data: what was asked of whom, and what the report says came of it.

It owns the report's numbers and is the only place that states them; nothing here was measured by
us. The words of the prompts are ours. How long the simulated model takes stands in its profile, of
which each turn names a plan.

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
        plan: which plan of the latency profile the simulated model follows.
        answered_s: how long the turn took, or None where the report does not say.
        tool_calls: how many it made.
        done_at_s: when it was done after the first arrival, in the whole seconds of the report's
            clock.
        storage: the name of its session's directory.
        schedule_id: the id its creation got.
    """

    name: str
    key: SessionKey
    prompt: str
    plan: str
    storage: str
    answered_s: float | None = None
    tool_calls: int | None = None
    done_at_s: int | None = None
    schedule_id: int | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the turn as JSON values."""
        return {**self._asdict(), "key": self.key.to_json()}

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> DocumentedTurn:
        """Return the turn that ``to_json`` told."""
        return cls(**fields | {"key": SessionKey.from_json(fields["key"])})


class DocumentedTest(NamedTuple):
    """Turns that arrive together.

    Attributes:
        name: the test's, and of the run's directory that its sessions rest in.
        picture: the file name of its picture, without an ending.
    """

    name: str
    title: str
    picture: str
    turns: tuple[DocumentedTurn, ...]

    def to_json(self) -> dict[str, Any]:
        """Return the test as JSON values."""
        return {**self._asdict(), "turns": [turn.to_json() for turn in self.turns]}

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> DocumentedTest:
        """Return the test that ``to_json`` told."""
        turns = tuple(DocumentedTurn.from_json(turn) for turn in fields["turns"])
        return cls(**fields | {"turns": turns})


DOCUMENTED = (
    DocumentedTest(
        "test-1",
        "simple dialogue",
        "two-sessions",
        (
            DocumentedTurn(
                "session 1",
                SessionKey.of("yeya", AGENT),
                "Create a schedule: project review on 2026-03-02 at 15:00.",
                plan="create",
                storage="schedule-assistant",
                answered_s=2.19,
                tool_calls=1,
                done_at_s=2,
            ),
            DocumentedTurn(
                "session 2",
                SessionKey.of("test_user", AGENT, "independent_session"),
                "Query my schedules for the eight days from 2026-03-02 on, day by day.",
                plan="query",
                storage="independent_session:schedule-assistant",
                answered_s=16.73,
                tool_calls=8,
                done_at_s=16,
            ),
        ),
    ),
    DocumentedTest(
        "test-2",
        "concurrent creation",
        "two-creations",
        (
            DocumentedTurn(
                "session 1",
                SessionKey.of("user_1", AGENT, "concurrent_create_1"),
                "Create a meeting this afternoon, 2026-03-02 at 14:00.",
                plan="create-meeting",
                storage="concurrent_create_1:schedule-assistant",
                tool_calls=1,
                schedule_id=13039,
            ),
            DocumentedTurn(
                "session 2",
                SessionKey.of("user_2", AGENT, "concurrent_create_2"),
                "Create study time tomorrow morning, 2026-03-03 at 09:00.",
                plan="create-study",
                storage="concurrent_create_2:schedule-assistant",
                tool_calls=1,
                schedule_id=13040,
            ),
        ),
    ),
)
