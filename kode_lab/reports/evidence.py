"""What a reproduction left behind, gathered turn by turn: the evidence that claims are judged from.

It owns how records find each other (history, trace and files meet in the turn's id and session) and
says nothing of what they mean. Everything is read from the run's directory; no running system is
asked.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple, TypeAlias

from kode_lab.errors import InvalidRecord
from kode_lab.history.operation import Operation
from kode_lab.history.span import Span
from kode_lab.lab.records import Run
from kode_lab.reports.documented import STORAGE, DocumentedTest, DocumentedTurn

__all__ = ["MESSAGES", "Evidence", "Files", "Turn", "evidence_of", "stored_files", "turn_id"]

MESSAGES = "messages.json"
# By test, then by path.
Files: TypeAlias = Mapping[str, Mapping[str, int | None]]


class Turn(NamedTuple):
    """All that is recorded of one documented turn.

    Attributes:
        critical_path_s: what it takes when nothing but the simulated model takes time.
    """

    asked: DocumentedTurn
    operation: Operation | None
    spans: tuple[Span, ...]
    critical_path_s: float

    @property
    def ended(self) -> bool:
        """Its client got the answer, and the system told all of its steps."""
        ok = self.operation is not None and self.operation.type == "ok"
        return ok and self.span is not None

    @property
    def span(self) -> Span | None:
        """The turn as a whole, as the system saw it."""
        return next((span for span in self.spans if span.step == "turn"), None)

    @property
    def took_s(self) -> float:
        """From before its client sent until after it received."""
        assert self.operation is not None
        return (self.operation.complete_ns - self.operation.invoke_ns) / 1e9

    @property
    def waited_s(self) -> float:
        """How long it waited for its session."""
        return sum(s.end_ns - s.start_ns for s in self.spans if s.step == "wait") / 1e9

    @property
    def tools(self) -> tuple[Span, ...]:
        """Its tool calls, in the order in which they began."""
        tools = (span for span in self.spans if span.step == "tool")
        return tuple(sorted(tools, key=lambda span: span.start_ns))

    @property
    def work_ns(self) -> tuple[float, float]:
        """When it was at work: from holding its session to its end."""
        assert self.span is not None
        held = max((s.end_ns for s in self.spans if s.step == "wait"), default=self.span.start_ns)
        return held, self.span.end_ns


class Evidence(NamedTuple):
    """What the claims about one test are judged from.

    Attributes:
        files: the sessions' files by their paths below the storage directory; how many messages
            each has, or None where it has no array of them.
        is_simulated: the model's times are the profile's, and not the real API's.
    """

    test: DocumentedTest
    turns: tuple[Turn, ...]
    files: Mapping[str, int | None]
    speed: float
    is_simulated: bool


def evidence_of(run: Run) -> tuple[Evidence, ...]:
    """Return the evidence for each test of a recorded reproduction.

    Raises:
        InvalidRecord: history or trace cannot be read, or the run is not a reproduction.
    """
    asked = run.parameters
    if "tests" not in asked:
        raise InvalidRecord(f"run {run.id} is no reproduction: it has no documented tests")
    speed, plans = asked["speed"], asked["plans_s"]
    operations = {operation.turn_id: operation for operation in run.operations()}
    storage = stored_files(run)
    spans: dict[str, list[Span]] = {}
    for span in run.spans():
        spans.setdefault(span.turn_id, []).append(span)

    def recorded(test: DocumentedTest, turn: DocumentedTurn) -> Turn:
        id_ = turn_id(test, turn)
        path_s = sum(plans.get(turn.plan, ())) / speed
        return Turn(turn, operations.get(id_), tuple(spans.get(id_, ())), path_s)

    return tuple(
        Evidence(
            test,
            tuple(recorded(test, turn) for turn in test.turns),
            storage.get(test.name, {}),
            speed,
            asked["is_simulated"],
        )
        for test in map(DocumentedTest.from_json, asked["tests"])
    )


def turn_id(test: DocumentedTest, turn: DocumentedTurn) -> str:
    """Return the id under which a turn stands in the records."""
    return f"{test.name}/{turn.name.replace(' ', '-')}"


def stored_files(run: Run) -> Files:
    """Return the files of each test's sessions, as the run noted them, or as they lie there.

    The note (``storage.json``) is what travels: directories with ``:`` in their names do not go
    everywhere.
    """
    try:
        noted: Files = json.loads((run.path / "storage.json").read_bytes())
    except FileNotFoundError:
        tests = [test["name"] for test in run.parameters["tests"]]
        return {name: _listed(run.path / name / STORAGE) for name in tests}
    except ValueError as error:
        raise InvalidRecord(f"storage.json of {run.id} is not JSON: {error}") from None
    return noted


def _listed(storage: Path) -> dict[str, int | None]:
    found: dict[str, int | None] = {}
    for path in sorted(storage.rglob("*")):
        name = path.relative_to(storage).as_posix()
        # "+" begins what is the store's own; no user's directory can begin so.
        if path.is_file() and not name.startswith("+"):
            found[name] = _messages(path) if path.name == MESSAGES else None
    return found


def _messages(path: Path) -> int | None:
    try:
        return len(json.loads(path.read_bytes()))
    except (ValueError, TypeError):
        return None
