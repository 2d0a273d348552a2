"""The report's two documented tests, done again: run, recorded, judged, drawn.

It owns the order of events of a reproduction and puts the other rooms to work; what the report says
stands in ``documented``, what holds of it in ``claims``. Both requests of a test must leave within
a millisecond, so everything that can be made before (servers, connections, databases, imports) is
made before, and what is not evidence is written after.

Source: the concurrency report, "Concurrency test results".
"""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack, closing
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

from kode_lab.claude import Claude, Profile, SimulatedClaude, report_profile
from kode_lab.errors import CallerError, InvalidScenario, KodeLabError, Refused
from kode_lab.history.operation import echo_in, marker_of
from kode_lab.history.span import Span, Trace
from kode_lab.lab import Handle, start
from kode_lab.lab.exports import export
from kode_lab.lab.live import Card, Pace, Progress, Row, card_for
from kode_lab.lab.perfetto import chrome_trace
from kode_lab.lab.records import RESULTS, Run, RunRecorder
from kode_lab.reports.claims import Claim, claims_of, verdict_of
from kode_lab.reports.documented import (
    AGENT,
    DOCUMENTED,
    STORAGE,
    DocumentedTest,
    DocumentedTurn,
)
from kode_lab.reports.evidence import evidence_of, stored_files, turn_id
from kode_lab.schedule_assistant import AGENTS, ScheduleBook, toolbox
from kode_lab.sessions import AgentShelf, JsonStore, SessionManager

__all__ = ["Reproduction", "reproduce"]

_MODEL_LINE = re.compile(r"^model *=.*$", re.MULTILINE)


class Reproduction(NamedTuple):
    """A recorded reproduction and the verdict on each claim of the report."""

    run: Run
    claims: tuple[Claim, ...]

    @property
    def verdict(self) -> str:
        """``holds``, ``violated`` or ``unknown``, over all claims."""
        return verdict_of(self.claims)


class _Plan(NamedTuple):
    """What to do: all that a reproduction depends on."""

    speed: float
    model: str | None
    profile: Profile
    tests: Sequence[DocumentedTest]

    def calls_s(self, turn: DocumentedTurn) -> tuple[float, ...]:
        """The seconds of the turn's model calls, at the report's speed."""
        return next(plan.calls_s for plan in self.profile.plans if plan.name == turn.plan)

    def parameters(self) -> dict[str, Any]:
        """Return the plan as JSON values."""
        turns = [turn for test in self.tests for turn in test.turns]
        return {
            "speed": self.speed,
            "model": self.model or "simulated",
            "is_simulated": self.model is None,
            "plans_s": {} if self.model else {t.plan: list(self.calls_s(t)) for t in turns},
            "tests": [test.to_json() for test in self.tests],
        }

    def command(self) -> str:
        """Return how to do it again."""
        speed = f" --speed {self.speed:g}" if self.speed != 1 else ""
        model = f" --model {self.model}" if self.model else ""
        profile = " --profile FILE" if self.profile != report_profile() else ""
        return f"kode-lab reproduce{speed}{model}{profile}"


def reproduce(
    *,
    speed: float = 1.0,
    model: str | None = None,
    profile: Profile | None = None,
    tests: Sequence[DocumentedTest] = DOCUMENTED,
    results: Path | str = RESULTS,
    progress: Progress | None = None,
    card: Card | None = None,
) -> Handle[Reproduction]:
    """Begin the documented tests now; await the handle, or ask it for its ``result()``.

    Args:
        speed: by how much the simulated model is faster than the report's.
        model: the name of a real model; None is the simulated one.
        profile: other latencies for the simulated model; it needs the plans that the tests name.
        tests: other tests than the report's.
        results: where the run's directory goes.
        progress: is kept up to date, for a caller who wants to look.
        card: shows the progress while somebody waits; None picks what suits.

    Raises:
        InvalidScenario: the speed or the profile makes no sense.
        StoreUnwritable: ``results`` cannot be written.
        MissingApiKey: a real model, and no key.
    """
    plan = _plan(speed, model, profile or report_profile(), tests)
    real = Claude() if model else None
    recorder = RunRecorder(
        Path(results), "reproduce", parameters=plan.parameters(), command=plan.command()
    )
    watched = progress or Progress("")
    watched.title = "Reproduction of the report"
    watched.where = str(recorder.path)
    watched.rows = [_row(plan, test, turn) for test in tests for turn in test.turns]
    pace = Pace(card or card_for(), watched)
    return start(
        lambda: _recorded(plan, real, recorder, watched),
        name="reproduction",
        on_tick=pace.tick,
        on_end=pace.end,
    )


def _plan(
    speed: float, model: str | None, profile: Profile, tests: Sequence[DocumentedTest]
) -> _Plan:
    if not 0 < speed <= 1000:
        raise InvalidScenario(f"speed={speed} must be above 0 and at most 1000")
    if model and speed != 1:
        raise InvalidScenario("a real model has its own speed: leave out either speed or model")
    named = {turn.plan for test in tests for turn in test.turns}
    if missing := sorted(named - {plan.name for plan in profile.plans}):
        raise InvalidScenario(
            f"the profile has no plan {missing[0]!r}, which a documented turn follows: add it"
        )
    return _Plan(speed, model, profile, tests)


def _row(plan: _Plan, test: DocumentedTest, turn: DocumentedTurn) -> Row:
    expected_s = 0.0 if plan.model else sum(plan.calls_s(turn)) / plan.speed
    return Row(test.name, turn.name, str(turn.key), expected_s)


async def _recorded(
    plan: _Plan, real: Claude | None, recorder: RunRecorder, progress: Progress
) -> Reproduction:
    """Do it, and leave a whole record behind however it ends."""
    status = "crashed"
    progress.status = "running"
    try:
        await _measured(plan, real, recorder, progress)
        status = "complete"
    except asyncio.CancelledError:
        status = "interrupted"
        raise
    finally:
        recording = _judged(recorder, status, is_drawn=status == "complete")
        progress.status = status
    return recording


async def _measured(
    plan: _Plan, real: Claude | None, recorder: RunRecorder, progress: Progress
) -> None:
    agents = recorder.path / "agents"
    agents.mkdir()
    text = (AGENTS / f"{AGENT}.toml").read_text("utf-8")
    if plan.model:
        text = _MODEL_LINE.sub(lambda _: f"model = {json.dumps(plan.model)}", text)
    (agents / f"{AGENT}.toml").write_text(text, "utf-8")
    async with AsyncExitStack() as stack:
        claude = real
        if claude is None:
            simulated = SimulatedClaude(plan.profile, speed=plan.speed)
            await stack.enter_async_context(simulated)
            claude = Claude(simulated.base_url)
        await stack.enter_async_context(claude)
        for test in plan.tests:
            # Right before each test: an idle connection is closed after some seconds.
            await claude.warm_up(len(test.turns))
            rows = [row for row in progress.rows if row.test == test.name]
            await _one_test(test, agents, claude, recorder, rows)


async def _one_test(
    test: DocumentedTest, agents: Path, claude: Claude, recorder: RunRecorder, rows: list[Row]
) -> None:
    """Let the turns of a test arrive together, each from a client of its own."""
    directory = recorder.path / test.name
    directory.mkdir()
    with closing(ScheduleBook(directory / "schedules.sqlite3")) as book:
        shelf = AgentShelf(agents, toolbox(book))
        shelf.current(AGENT)  # the first look imports what makes schemas: not between two arrivals
        rows_by_turn = {turn_id(test, t): row for t, row in zip(test.turns, rows, strict=True)}
        manager = SessionManager(
            store=JsonStore(directory / STORAGE),
            agents=shelf,
            model=claude,
            trace=_watching(recorder.trace, rows_by_turn),
        )
        async with manager, asyncio.TaskGroup() as clients:
            for turn, row in zip(test.turns, rows, strict=True):
                clients.create_task(_client(test, turn, manager, recorder, row))


async def _client(
    test: DocumentedTest,
    turn: DocumentedTurn,
    manager: SessionManager,
    recorder: RunRecorder,
    row: Row,
) -> None:
    """Ask one turn, and write down what a client can know of it."""
    id_, marker = turn_id(test, turn), marker_of(turn.key, test.turns.index(turn))
    row.began_ns, row.doing = time.monotonic_ns(), "sent"
    recorder.history.invoke(turn.key, id_, row.began_ns, marker=marker, turn_id=id_)
    outcome, read, error = "info", None, ""
    try:
        # A task of its own, as a request in a socket is: the other client can send at once, too.
        reply = await asyncio.create_task(
            manager.turn(turn.key, f"{turn.prompt} {marker}", turn_id=id_)
        )
        echo = echo_in(reply.text)
        outcome, read = "ok", echo[1] if echo is not None and echo[0] == marker else None
    except KodeLabError as failure:
        # Refused means that it did not begin; whatever else went wrong, nobody knows how far.
        outcome = "fail" if isinstance(failure, Refused | CallerError) else "info"
        error = f"{type(failure).__name__}: {failure}"
    except asyncio.CancelledError:
        error = "interrupted"
        raise
    finally:
        row.ended_ns = time.monotonic_ns()
        recorder.history.complete(id_, row.ended_ns, outcome, read=read, error=error)
        row.doing = "answered" if outcome == "ok" else error


def _watching(trace: Trace, rows: Mapping[str, Row]) -> Trace:
    """Return a trace that also keeps the rows up to date, by turn id."""

    def watch(span: Span) -> None:
        trace(span)
        row = rows[span.turn_id]
        if span.step == "wait":
            row.doing = "thinking"
        elif span.step == "tool":
            row.tool_calls += 1

    return watch


def _judged(recorder: RunRecorder, status: str, *, is_drawn: bool) -> Reproduction:
    """Judge what was recorded, draw it, and close the record, whatever happens to its judge."""
    run = recorder.close()
    claims: tuple[Claim, ...] = ()
    try:
        recorder.write_json("storage.json", stored_files(run))
        claims = tuple(claim for evidence in evidence_of(run) for claim in claims_of(evidence))
        table = [asdict(claim) for claim in claims]
        recorder.write_json("claims.json", {"verdict": verdict_of(claims), "claims": table})
        recorder.write_json("trace.perfetto.json", chrome_trace(run.spans()))
        recorder.write_json("verdict.json", run.verdict().to_json())
        export(run)
        if is_drawn:
            _draw(run)
    finally:
        run = recorder.finish(status, verdict=verdict_of(claims))
    return Reproduction(run, claims)


def _draw(run: Run) -> None:
    from kode_lab.pictures import two_sessions  # noqa: PLC0415 - matplotlib costs seconds

    for fields in run.parameters["tests"]:
        test = DocumentedTest.from_json(fields)
        picture = two_sessions(
            run,
            keys={turn.key for turn in test.turns},
            prompts={turn_id(test, turn): turn.prompt for turn in test.turns},
            speed=run.parameters["speed"],
        )
        picture.save(run.path / "figures" / test.picture)
