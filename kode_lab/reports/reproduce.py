"""A report done again: run, recorded, judged, drawn. The built-in report and a user's alike.

It owns how a report becomes scenarios, and the order of events of a reproduction; what a report
says is in ``report``, what holds of it in ``claims``. Requests that a report sends together must
leave within a millisecond, so everything that can be made before (servers, connections, databases,
imports) is made before, and what is not evidence is written after.

Source: the concurrency report, "Concurrency test results".
"""

from __future__ import annotations

import asyncio
import os
import random
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from kode_lab.claude import Claude, Plan, Profile
from kode_lab.claude.wording import intent_of
from kode_lab.errors import InvalidScenario
from kode_lab.history.operation import marker_of
from kode_lab.history.span import Span
from kode_lab.key import SessionKey
from kode_lab.lab import Handle, start
from kode_lab.lab.client import Client as TurnClient
from kode_lab.lab.client import Witness
from kode_lab.lab.exports import chrome_trace, export
from kode_lab.lab.live import Card, Pace, Progress, Row, card_for
from kode_lab.lab.records import RESULTS, Run, RunRecorder
from kode_lab.lab.scenario import (
    AGENT,
    SPEED_LIMIT,
    Ask,
    Client,
    Phase,
    Scenario,
    ScriptedCall,
    ScriptedTool,
    TurnScript,
)
from kode_lab.lab.scripted import tools_of
from kode_lab.lab.trial import ask_script, foreign, in_process
from kode_lab.lab.turn_view import Stretched
from kode_lab.reports.claims import (
    Claim,
    check_claims,
    claims_of,
    contradictions,
    finding,
    verdict_of,
)
from kode_lab.reports.evidence import evidence_of, stored_files, turn_id
from kode_lab.reports.report import Report, ReportedTool, Test, built_in
from kode_lab.reports.timeline import Contradiction, Placed, placed_turns
from kode_lab.targets.target import Outcome, Target

__all__ = ["Reproduction", "reproduce", "scenario_of"]

# The schedule assistant's own deadline is 120 s, and it takes at most 20 model calls.
_PLAIN_TURN_LIMIT_S, _PLAIN_TOOLS_LIMIT = 115.0, 19
# More rows than this are not read one by one: the progress then has a row a test.
_ROWS_LIMIT = 12
# More turns than this are asked of the model in this process: a client a turn costs memory.
_HTTP_TURNS_LIMIT = 200
_SAMPLE_S, _RESOURCES_S = 0.05, 0.5
_TALK = "Thank you."
# Claims that need the pieces of a streamed answer; of each answer so many are noted at most.
_OF_STREAMS = frozenset(
    ("first_token", "second_token", "inter_token", "after_first_token", "per_output_token",
     "token_speed")
)  # fmt: skip
_PIECES_LIMIT = 256


class Reproduction(NamedTuple):
    """A recorded reproduction, the verdicts, and what the report says against itself."""

    run: Run
    claims: tuple[Claim, ...]
    contradictions: tuple[Contradiction, ...] = ()

    @property
    def verdict(self) -> str:
        """``holds``, ``violated`` or ``inconclusive``, over all claims."""
        return verdict_of(self.claims)


class _Plan(NamedTuple):
    """What to do: all that a reproduction depends on."""

    report: Report
    speed: float
    model: str
    scenarios: tuple[Scenario, ...]
    notes: dict[str, dict[str, Any]]
    target: str


def reproduce(
    report: Report | None = None,
    *,
    speed: float = 1.0,
    model: str | None = None,
    profile: Profile | None = None,
    target: str = "",
    results: Path | str = RESULTS,
    command: str = "",
    progress: Progress | None = None,
    card: Card | None = None,
) -> Handle[Reproduction]:
    """Begin a report's tests now; await the handle, or ask it for its ``result()``.

    Args:
        report: None is the concurrency report.
        speed: by how much the simulated model is faster than the report's.
        model: the name of a real model; None is the simulated one.
        profile: other latencies for the simulated model than the report's own.
        target: another service than ours, named as for ``kode-lab judge``; its model client is
            given the address of a simulated model that takes the report's times.
        results: where the run's directory goes.
        command: how to do it again.
        progress: is kept up to date, for a caller who wants to look.
        card: shows the progress while somebody waits; None picks what suits.

    Raises:
        InvalidScenario: the report, the speed or the profile makes no sense.
        StoreUnwritable: ``results`` cannot be written.
        MissingApiKey: a real model, and no key.
    """
    report = report or built_in()
    check_claims(report)
    if not 0 < speed <= min(1_000_000, SPEED_LIMIT):
        raise InvalidScenario(f"speed={speed} must be above 0 and at most {SPEED_LIMIT}")
    if (model or target) and speed != 1:
        raise InvalidScenario("a real model or service has its own speed: leave out the speed")
    scenarios, notes = _scenarios(
        report, speed, profile, is_real=bool(model), is_foreign=bool(target)
    )
    plan = _Plan(report, speed, model or "", scenarios, notes, target)
    real = Claude() if model else None
    parameters = {
        "report": report.to_json(),
        "speed": speed,
        "model": model or "simulated",
        "is_simulated": model is None,
    }
    if target:
        parameters["target"] = target
    recorder = RunRecorder(
        Path(results),
        "reproduce" if report == built_in() else f"reproduce-{report.name[:40]}",
        parameters=parameters,
        command=command or _command(plan, profile),
    )
    watched = progress or Progress("")
    watched.title = f"Reproduction of {report.title or report.name}"
    watched.where = str(recorder.path)
    watched.rows = _rows(plan)
    pace = Pace(card or card_for(), watched)
    return start(
        lambda: _recorded(plan, real, recorder, watched),
        name="reproduction",
        on_tick=pace.tick,
        on_end=pace.end,
    )


def _command(plan: _Plan, profile: Profile | None) -> str:
    """Return how to do it again; a report that is no file is in the run itself."""
    words = ["kode-lab reproduce"]
    words += [] if plan.report == built_in() else ["THIS_RUN"]
    words += [f"--speed {plan.speed:g}"] if plan.speed != 1 else []
    words += [f"--model {plan.model}"] if plan.model else []
    words += [f"--target {plan.target}"] if plan.target else []
    words += ["--profile FILE"] if profile is not None else []
    return " ".join(words)


def _rows(plan: _Plan) -> list[Row]:
    rows = []
    for test, scenario in zip(plan.report.tests, plan.scenarios, strict=True):
        facts = plan.notes[test.name]["turns"]
        if 0 < len(test.turns) <= _ROWS_LIMIT:
            rows += [
                Row(test.name, facts[client.asks[0].turn_id]["name"], str(client.asks[0].key),
                    0.0 if plan.model else (facts[client.asks[0].turn_id]["planned_s"] or 0.0)
                    / plan.speed)
                for client in scenario.clients_given
            ]  # fmt: skip
        else:
            count = len(scenario.session_keys())
            rows.append(Row(test.name, f"{count:,} session{'s' * (count != 1)}", "",
                            scenario.duration_s))  # fmt: skip
    return rows


# --- from a report to scenarios ----------------------------------------------------------------


def scenario_of(
    report: Report, test: Test, *, speed: float = 1.0, profile: Profile | None = None
) -> Scenario:
    """Return the scenario that does one test of a report again.

    Raises:
        InvalidScenario: the speed makes no sense.
    """
    scenarios, _ = _scenarios(report, speed, profile, is_real=False)
    return scenarios[report.tests.index(test)]


def _scenarios(
    report: Report,
    speed: float,
    profile: Profile | None,
    *,
    is_real: bool,
    is_foreign: bool = False,
) -> tuple[tuple[Scenario, ...], dict[str, dict[str, Any]]]:
    """Return a scenario for each test, and what is noted of its turns."""
    numbers: dict[SessionKey, int] = {}
    homes: dict[tuple[str, str], str] = {}
    scenarios, notes = [], {}
    loads = [test for test in report.tests if test.load is not None]
    for test in report.tests:
        if test.load is not None:
            scenario, note = _of_load(
                test, speed, profile, is_alone=len(loads) == 1, is_foreign=is_foreign
            )
        else:
            scenario, note = _of_turns(test, speed, profile, numbers, is_real=is_real)
            # Tests that share a session share its store: it is one conversation.
            locks = [key[:2] for key in scenario.session_keys()]
            home = next((homes[lock] for lock in locks if lock in homes), test.name)
            homes |= dict.fromkeys(locks, home)
            note["home"] = home
        scenarios.append(scenario)
        notes[test.name] = note
    return tuple(scenarios), notes


def _of_turns(
    test: Test,
    speed: float,
    profile: Profile | None,
    numbers: dict[SessionKey, int],
    *,
    is_real: bool,
) -> tuple[Scenario, dict[str, Any]]:
    placed = placed_turns(test)
    clients, plans, facts = [], [], {}
    for one in placed:
        key = one.turn.key
        number = numbers[key] = numbers.get(key, -1) + 1
        marker, id_ = marker_of(key, number), turn_id(test, one)
        is_plain = is_real or _is_plain(one, speed)
        prompt = one.turn.prompt or (_prompt(one.turn.tool_count) if is_plain else "Go on.")
        ask = Ask(key, id_, marker, f"{prompt} {marker}")
        if is_plain:
            calls = _dealt(one)
            if calls and profile is None:
                plans.append(Plan(id_, intent_of(prompt), calls, (marker,)))
            planned_s = sum(calls) if calls else None
            if profile is not None:
                own = next((p for p in profile.plans if p.fits(intent_of(prompt), prompt)), None)
                planned_s = sum(own.calls_s) if own is not None else None
        else:
            script = _script(one)
            planned_s = script.took_s
            patience_s = 0.0
            if one.turn.outcome in ("cancelled", "unanswered"):
                patience_s = max(0.001, (one.took_s or 1.0) / speed)
            ask = ask._replace(
                script=script,
                patience_s=patience_s,
                is_refused=one.turn.outcome == "refused",
            )
        facts[id_] = {
            "name": one.name,
            "phase": one.turn.phase,
            "prompt": prompt,
            "planned_s": planned_s,
            "first_s": ask.script.first_s if ask.script is not None else None,
            "is_cancelled": one.turn.outcome == "cancelled",
        }
        clients.append(Client(id_, one.at_s / speed, (ask,)))
    longest_s = max((one.took_s or 0.0) for one in placed)
    scenario = Scenario(
        name=test.name,
        profile=profile or Profile(plans=tuple(plans), ttft_s=0.55, token_s=0.012, jitter=0.2),
        speed=speed,
        clients_given=tuple(clients),
        timeout_s=min(86_400.0, 60.0 + 2 * longest_s),
        is_http=len(clients) <= _HTTP_TURNS_LIMIT,
    )
    return scenario, {"turns": facts, "users": {}}


def _is_plain(one: Placed, speed: float) -> bool:
    """Whether the scripted schedule assistant can do this turn by the words of its prompt."""
    turn = one.turn
    return (
        turn.agent == AGENT
        and turn.outcome == "ok"
        and not turn.tools
        and turn.tool_count <= _PLAIN_TOOLS_LIMIT
        and turn.first_token is None
        and turn.input_tokens is None
        and turn.output_tokens is None
        and (one.took_s or 0.0) / speed <= _PLAIN_TURN_LIMIT_S
    )


def _dealt(one: Placed) -> tuple[float, ...]:
    """Return the seconds of each model call: one before each tool, and the last."""
    count = one.turn.tool_count + 1
    if len(one.turn.calls) == count:
        return one.turn.calls
    return () if one.model_s is None else (one.model_s / count,) * count


def _prompt(tool_calls: int) -> str:
    """Return words by which the scripted model calls so many tools, one after another."""
    return (
        f"Query my schedules of the {tool_calls} days from 2026-03-02 on." if tool_calls else _TALK
    )


def _script(one: Placed) -> TurnScript:
    """Return what the model does in this turn, by the report's own times."""
    turn = one.turn
    told = turn.tools or (ReportedTool(),) * turn.tool_count
    tools = [ScriptedTool(tool.name, tool.took_s, tool.failed, tool.result) for tool in told]
    # With fewer model calls than tools, a reply asked for several of them together.
    groups_count = len(turn.calls) - 1 if turn.calls else len(tools)
    groups: list[tuple[ScriptedTool, ...]] = []
    for place in range(groups_count):
        low, high = (round(n * len(tools) / groups_count) for n in (place, place + 1))
        groups.append(tuple(tools[low:high]))
    count = len(groups) + 1
    model_s = one.model_s if one.model_s is not None else 1.0
    calls_s = list(turn.calls) or [model_s / count] * count
    if turn.outcome in ("cancelled", "unanswered"):
        calls_s[-1] = 2 * calls_s[-1] + 1.0  # its client leaves first
    calls = []
    for took_s, group in zip(calls_s, (*groups, ()), strict=True):
        calls.append(ScriptedCall(took_s, took_s / 2, group))
    if turn.first_token is not None:
        before_s = TurnScript(tuple(calls[:-1])).took_s
        first_s = min(max(0.0, turn.first_token - before_s - one.waited_own_s), calls_s[-1])
        calls[-1] = calls[-1]._replace(first_s=first_s)
    calls[-1] = calls[-1]._replace(
        input_tokens=turn.input_tokens or 0, output_tokens=turn.output_tokens or 0
    )
    return TurnScript(tuple(calls), fails=turn.outcome == "failed")


def _of_load(  # noqa: C901 - from top to bottom
    test: Test, speed: float, profile: Profile | None, *, is_alone: bool, is_foreign: bool
) -> tuple[Scenario, dict[str, Any]]:
    load = test.load
    assert load is not None
    phases = load.phases
    if not phases and load.for_s is not None and not load.session_rate:
        phases = (
            Phase(
                name="load", for_s=load.for_s, users=None if load.rate else load.users,
                ramp_s=load.ramp, rate_per_s=load.rate,
            ),
        )  # fmt: skip
    draw = random.Random(f"{load.seed}/{test.name}/turns")
    users, begins_s = load.users, [0.0]
    if load.session_rate:
        while begins_s[-1] < (load.for_s or load.users / load.session_rate):
            begins_s.append(begins_s[-1] + draw.expovariate(load.session_rate))
        users = len(begins_s)
    elif not phases and load.ramp:
        begins_s = [load.ramp * user / users for user in range(users)]
    count = users * load.sessions
    lengths = [max(1, round(load.turns.draw(draw))) if load.turns else 1 for _ in range(count)]
    if load.requests:
        lengths = [load.requests // count + (at < load.requests % count) for at in range(count)]
    scenario = Scenario(
        name=test.name,
        users=users,
        sessions=load.sessions,
        clients=1,
        turns=max(lengths),
        prompts=load.prompts,
        think=load.think,
        think_s=(0.0, 0.0),
        arrival="open" if load.rate and not phases else "closed",
        rate_per_s=load.rate if not phases else 0.0,
        phases=phases,
        faults=load.faults,
        agents=load.agents,
        timeout_s=load.timeout or 600.0,
        profile=profile or Profile(ttft_s=0.5, token_s=0.01, jitter=0.2),
        speed=speed,
        seed=load.seed,
    )
    clients, facts, plans = [], {}, []
    for place, client in enumerate(scenario.script()):
        asks = []
        is_counted = not phases and scenario.arrival == "closed"
        for ask in client.asks[: lengths[place]] if is_counted else client.asks:
            # Two tests of load have the same users: their sessions are told apart by the test.
            key = ask.key
            if not is_alone:
                key = key._replace(user_id=f"{test.name}.{key.user_id}")
            number = int(ask.marker.partition("-")[2], 16)
            marker = marker_of(key, number, seed=load.seed)
            id_ = f"{test.name}/{marker[1:]}"
            text = ask.prompt.removesuffix(f" {ask.marker}")
            facts[id_] = {
                "name": marker[1:],
                "phase": client.name.partition("/")[0] if phases else "",
                "prompt": text,
                "planned_s": ask.script.took_s if ask.script is not None else None,
                "first_s": ask.script.first_s if ask.script is not None else None,
                "is_cancelled": bool(ask.patience_s),
            }
            if ask.script is not None and is_foreign:
                calls_s = tuple(call.took_s for call in ask.script.calls)
                plans.append(Plan(id_, intent_of(text), calls_s, (marker,)))
            asks.append(
                ask._replace(key=key, marker=marker, turn_id=id_, prompt=f"{text} {marker}")
            )
        start_s = client.start_s
        if is_counted:
            start_s = begins_s[place // load.sessions % len(begins_s)] / speed
        if asks:
            changed = client._replace(name=f"{test.name}/{client.name}", start_s=start_s)
            follows = client.follows and f"{test.name}/{client.follows}"
            clients.append(changed._replace(asks=tuple(asks), follows=follows))
    given = scenario.with_(
        clients_given=tuple(clients),
        phases=(),
        arrival="closed",
        rate_per_s=0.0,
        profile=replace(scenario.profile, plans=tuple(plans)) if plans else scenario.profile,
    )
    of_phases = {phase.name: phase.users for phase in phases if phase.users}
    note = {"turns": facts, "users": of_phases or {"": users}, "home": test.name}
    return given, note


# --- running -----------------------------------------------------------------------------------


async def _recorded(
    plan: _Plan, real: Claude | None, recorder: RunRecorder, progress: Progress
) -> Reproduction:
    """Do it, and leave a whole record behind however it ends."""
    status = "crashed"
    progress.status = "running"
    try:
        if real is None:
            await _measured(plan, None, recorder, progress)
        else:
            async with real:
                await _measured(plan, real, recorder, progress)
        status = "complete"
    except asyncio.CancelledError:
        status = "interrupted"
        raise
    finally:
        for row in progress.rows:
            row.is_broken = status != "complete" and not row.ended_ns
        recording = _judged(plan, recorder, status)
        progress.status = status
    return recording


async def _measured(
    plan: _Plan, real: Claude | None, recorder: RunRecorder, progress: Progress
) -> None:
    for test, scenario in zip(plan.report.tests, plan.scenarios, strict=True):
        note = plan.notes[test.name]
        directory = recorder.path / note["home"]
        directory.mkdir(exist_ok=True)
        rows = [row for row in progress.rows if row.test == test.name]
        by_turn = _rows_by_turn(test, scenario, note, rows)
        async with _opened(plan, test, scenario, directory, real, recorder, by_turn) as opened:
            target, witness = opened
            client = TurnClient(target, recorder.history, witness=witness)
            sent: dict[str, int] = {}
            async with _sampled(note):
                spare = Row("", "", "") if by_turn else rows[0]
                pieces = _PIECES_LIMIT if _needs_pieces(test) else 1
                watch = partial(_watch, rows=by_turn, sent=sent, noted=note["turns"], pieces=pieces)
                await ask_script(scenario, client, spare, watch)
        for row in rows:
            row.ended_ns = row.ended_ns or time.monotonic_ns()


def _rows_by_turn(
    test: Test, scenario: Scenario, note: Mapping[str, Any], rows: Sequence[Row]
) -> dict[str, Row]:
    names = {row.name: row for row in rows}
    if test.turns and len(rows) == len(scenario.clients_given):
        return {
            ask.turn_id: names[note["turns"][ask.turn_id]["name"]]
            for client in scenario.clients_given
            for ask in client.asks
        }
    rows[0].began_ns = time.monotonic_ns()
    return {}


def _watch(
    ask: Ask,
    outcome: Outcome | None,
    rows: Mapping[str, Row],
    sent: dict[str, int],
    noted: Mapping[str, dict[str, Any]],
    pieces: int,
) -> None:
    """Keep the progress and the times of a streamed answer: a turn was sent, or has ended."""
    row = rows.get(ask.turn_id)
    if outcome is None:
        sent[ask.turn_id] = time.monotonic_ns()
        if row is not None:
            row.began_ns, row.doing = sent[ask.turn_id], "sent"
        return
    if outcome.pieces_ns:
        began_ns = sent[ask.turn_id]
        noted[ask.turn_id]["pieces_s"] = [
            round((at_ns - began_ns) / 1e9, 6) for at_ns in outcome.pieces_ns[:pieces]
        ]
    if row is not None:
        row.ended_ns = time.monotonic_ns()
        row.doing = "answered" if outcome.type == "ok" else outcome.error


def _needs_pieces(test: Test) -> bool:
    """Whether a claim is about the time between tokens."""
    specs = (*test.claims, *(slo for spec in test.claims for slo in spec.slo))
    return any(spec.measure in ("inter_token", "second_token") for spec in specs)


@asynccontextmanager
async def _opened(
    plan: _Plan,
    test: Test,
    scenario: Scenario,
    directory: Path,
    real: Claude | None,
    recorder: RunRecorder,
    rows: Mapping[str, Row],
) -> AsyncIterator[tuple[Target, Witness | None]]:
    """Open what is asked: our manager with its model, or the service that the caller names."""
    if plan.target:
        async with foreign(plan.target, scenario, directory / "target.log") as opened:
            yield opened
        return

    def trace(span: Span) -> None:
        recorder.trace(span)
        row = rows.get(span.turn_id)
        if row is not None and span.step == "wait":
            row.doing = "thinking"
        elif row is not None and span.step == "tool":
            row.tool_calls += 1

    specs = (*test.claims, *(slo for spec in test.claims for slo in spec.slo))
    is_streamed = any(turn.first_token is not None for turn in test.turns) or any(
        spec.measure in _OF_STREAMS for spec in specs
    )
    async with in_process(
        scenario,
        directory,
        trace,
        None,
        real=real,
        model_name=plan.model,
        is_streamed=is_streamed,
        # An agent has one configuration in all tests.
        tools=tools_of(client for one in plan.scenarios for client in one.clients_given),
    ) as ours:
        yield ours


@asynccontextmanager
async def _sampled(note: dict[str, Any]) -> AsyncIterator[None]:
    """Note how busy the machine is and what this process needs, while the body runs."""
    import psutil  # noqa: PLC0415 - only a reproduction needs it

    process = psutil.Process()
    found: dict[str, Any] = {"late_s": 0.0, "worst_late_s": 0.0, "samples": []}
    note["machine"] = found
    began_s = time.monotonic()

    def sample(cpu_before_s: float, since_s: float) -> float:
        times = process.cpu_times()
        cpu_s, now_s = float(times.user + times.system), time.monotonic()
        share = (cpu_s - cpu_before_s) / max(1e-6, now_s - since_s)
        files, sockets = 0, 0
        with suppress(OSError, AttributeError):
            for one in Path("/proc/self/fd").iterdir():
                files += 1
                with suppress(OSError):
                    sockets += one.readlink().name.startswith("socket:")
        memory_mb = process.memory_info().rss / 1048576
        found["samples"].append(
            [round(now_s - began_s, 2), round(memory_mb, 2), round(share, 3), files, sockets]
        )
        return cpu_s

    async def watch() -> None:
        times = process.cpu_times()
        cpu_s, since_s = times.user + times.system, time.monotonic()
        while True:
            before_s = time.monotonic()
            await asyncio.sleep(_SAMPLE_S)
            now_s = time.monotonic()
            late_s = max(0.0, now_s - before_s - _SAMPLE_S)
            found["late_s"] += late_s
            found["worst_late_s"] = max(found["worst_late_s"], late_s)
            if now_s - since_s >= _RESOURCES_S:
                cpu_s = sample(cpu_s, since_s)
                since_s = now_s

    watcher = asyncio.create_task(watch())
    try:
        yield
    finally:
        watcher.cancel()
        found["load"] = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
        if not found["samples"]:
            sample(0.0, began_s - 1.0)


# --- judging -----------------------------------------------------------------------------------


def _judged(plan: _Plan, recorder: RunRecorder, status: str) -> Reproduction:
    """Judge what was recorded, draw it, and close the record, whatever happens to its judge."""
    run = recorder.close()
    claims: tuple[Claim, ...] = ()
    against = contradictions(plan.report)
    try:
        recorder.write_json("tests.json", plan.notes)
        recorder.write_json("storage.json", _files(plan, run))
        tests = evidence_of(run)
        claims = tuple(claim for evidence in tests for claim in claims_of(evidence, tests))
        recorder.write_json(
            "claims.json",
            {
                "verdict": verdict_of(claims),
                "claims": [asdict(claim) for claim in claims],
                "contradictions": [one._asdict() for one in against],
            },
        )
        recorder.write_json("trace.perfetto.json", chrome_trace(run.spans()))
        recorder.write_json("verdict.json", run.verdict().to_json())
        export(run)
        if status == "complete":
            _draw(plan, run)
    finally:
        run = recorder.finish(status, verdict=verdict_of(claims), finding=finding(claims))
    if status == "complete":
        from kode_lab.reports.page import report as page_of_run  # noqa: PLC0415 - as below

        page_of_run(run).save(run.path / "report.html")
    return Reproduction(run, claims, against)


def _files(plan: _Plan, run: Run) -> dict[str, Any]:
    """Return the files of each test's sessions; tests that share a store share their files."""
    listed = stored_files(run)
    homes = {test.name: plan.notes[test.name].get("home", test.name) for test in plan.report.tests}
    return {name: listed.get(home, {}) for name, home in homes.items()}


def _draw(plan: _Plan, run: Run) -> None:
    from kode_lab import pictures  # noqa: PLC0415 - matplotlib costs seconds

    for test in plan.report.tests:
        drawn = Stretched(run, f"{test.name}/", plan.speed)
        prompts = {id_: told["prompt"] for id_, told in plan.notes[test.name]["turns"].items()}
        name = test.picture or test.name
        if len(test.turns) and len(test.turns) <= _ROWS_LIMIT:
            picture = pictures.two_sessions(drawn, prompts=prompts)
            picture.save(run.path / "figures" / name)
        elif any(o.type == "ok" for o in drawn.operations()):
            pictures.many_sessions(drawn).save(run.path / "figures" / name)
            pictures.percentiles(drawn).save(run.path / "figures" / f"{name}-latency")
