"""A scenario done once: its clients ask, write down what they saw, probe, and the judge decides.

It owns who asks when. What one client writes to the history is ``lab.client``'s. Where the service
can be killed, a client sends a turn again, under the same id, until it is answered.

A run ends by its probe: faults are declared over, each session is asked once more, then read by an
authority. Lost turns and locks that were never released show only there.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kode_lab.check import Verdict, check_path
from kode_lab.check.render import headline
from kode_lab.claude import Claude, SimulatedClaude
from kode_lab.claude.in_process import InProcessClaude
from kode_lab.claude.profile import Profile
from kode_lab.history.span import Trace
from kode_lab.lab.client import Client as TurnClient
from kode_lab.lab.client import Witness
from kode_lab.lab.exports import export
from kode_lab.lab.live import Progress, Row
from kode_lab.lab.records import Run, RunRecorder
from kode_lab.lab.scenario import AGENT, Ask, Client, Scenario
from kode_lab.lab.scripted import (
    ScriptedModel,
    ScriptedTarget,
    add_stand_ins,
    agents_for,
    scripts_of,
    tools_of,
)
from kode_lab.message import Model
from kode_lab.schedule_assistant import AGENTS, ScheduleBook, toolbox
from kode_lab.sessions import AgentShelf, JsonStore, SessionManager, Store
from kode_lab.targets.opening import open_target
from kode_lab.targets.ours import ServerTarget
from kode_lab.targets.target import Killable, Outcome, Startable, Target

__all__ = ["MakeStore", "ask_script", "conduct", "foreign", "in_process", "served"]

MakeStore = Callable[[Path], Store]

# Sendings of one turn, where the service dies and comes back.
ATTEMPTS_LIMIT = 50
AGAIN_AFTER_S = 0.02
PROBE_LIMIT_S = 60.0


async def conduct(
    scenario: Scenario,
    recorder: RunRecorder,
    progress: Progress,
    make_store: MakeStore | None,
    target: Target | str | None = None,
) -> Run:
    """Do it, judge it, and leave a whole record behind however it ends."""
    status, promises = "crashed", None
    progress.status = "running"
    row = progress.rows[0]
    row.began_ns = time.monotonic_ns()
    try:
        promises = await _done(scenario, recorder, row, make_store, target)
        status = "complete"
    except asyncio.CancelledError:
        status = "interrupted"
        raise
    finally:
        row.ended_ns = time.monotonic_ns()
        row.is_broken = status != "complete"
        if row.is_broken:
            row.doing = f"{status}: {row.doing}"
        run = _judged(recorder, status, promises)
        progress.status = status
    return run


def _judged(recorder: RunRecorder, status: str, promises: Sequence[str] | None) -> Run:
    """Judge what was recorded, and close the record, whatever happens to its judge."""
    run = recorder.close()
    verdict: Verdict | None = None
    try:
        verdict = check_path(run.path, promises, keep=True)
        recorder.write_json("verdict.json", verdict.to_json())
        export(run)
    finally:
        said: dict[str, Any] = {} if verdict is None else {"finding": headline(verdict)}
        said |= {} if promises is None else {"promises": list(promises)}
        word = "unknown" if verdict is None else verdict.status
        run = recorder.finish(status, verdict=word, **said)
    return run


@dataclass(slots=True)
class _Trial:
    """What the clients of one run share.

    Attributes:
        on_turn: is told of each turn when it is sent (``None``) and how it ended.
        is_over: whether a client, by name, asked its last turn.
    """

    scenario: Scenario
    client: TurnClient
    row: Row
    began_s: float
    on_turn: Callable[[Ask, Outcome | None], None] = lambda _ask, _outcome: None
    total: int = 0
    acknowledged: int = 0
    ended: int = 0
    one_more: asyncio.Event = field(default_factory=asyncio.Event)
    is_up: asyncio.Event = field(default_factory=asyncio.Event)
    is_over: dict[str, asyncio.Event] = field(default_factory=lambda: defaultdict(asyncio.Event))

    def note(self, outcome: str, *, is_last: bool) -> None:
        """Count a turn that was answered, or given up."""
        self.acknowledged += outcome == "ok"
        self.ended += is_last
        ok = f"{self.acknowledged:,} ok"
        if self.scenario.phases:  # how many turns fit into them is not known before
            self.row.doing = f"{self.ended:,} turns ended, {ok}"
        else:
            self.row.part = self.ended / self.total
            self.row.doing = f"{self.ended:,} of {self.total:,} turns ended, {ok}"
        self.one_more.set()


async def _done(
    scenario: Scenario,
    recorder: RunRecorder,
    row: Row,
    make_store: MakeStore | None,
    target: Target | str | None,
) -> Sequence[str] | None:
    """Do it; return what the target promises, None for our own sessions."""
    history, loop = recorder.history, asyncio.get_running_loop()
    async with AsyncExitStack() as stack:
        server: Killable | None = None
        promises: Sequence[str] | None = None
        if target is not None:
            log = recorder.path / "target.log"
            opened, reads = await stack.enter_async_context(foreign(target, scenario, log))
            client = TurnClient(opened, history, witness=reads)
            promises = opened.declaration.promises
            server = opened if scenario.kills and isinstance(opened, Killable) else None
        elif scenario.kills:
            child = await stack.enter_async_context(served(scenario, recorder.path))
            client, server = TurnClient(child, history), child
        else:
            ours = in_process(scenario, recorder.path, recorder.trace, make_store)
            manager, witness = await stack.enter_async_context(ours)
            client = TurnClient(manager, history, witness=witness)
        script = scenario.script()
        total = sum(len(one.asks) for one in script)
        row.expected_s = scenario.duration_s
        trial = _Trial(scenario, client, row, loop.time(), total=total)
        trial.is_up.set()
        async with asyncio.TaskGroup() as clients:
            if server is not None:
                clients.create_task(_kill(trial, server, recorder))
            for one in script:
                clients.create_task(_ask_all(trial, one, is_killed=server is not None))
        history.fault("quiet", time.monotonic_ns())
        if scenario.is_probed:
            await _probe(trial)
        return promises


async def ask_script(
    scenario: Scenario,
    client: TurnClient,
    row: Row,
    on_turn: Callable[[Ask, Outcome | None], None],
) -> None:
    """Let all clients of a scenario ask what they have to ask of one target.

    Args:
        row: of the progress.
        on_turn: is told of each turn when it is sent (``None``) and how it ended.
    """
    script = scenario.script()
    total = sum(len(one.asks) for one in script)
    trial = _Trial(scenario, client, row, asyncio.get_running_loop().time(), on_turn, total)
    async with asyncio.TaskGroup() as clients:
        for one in script:
            clients.create_task(_ask_all(trial, one, is_killed=False))


@asynccontextmanager
async def foreign(
    target: Target | str, scenario: Scenario, log: Path
) -> AsyncIterator[tuple[Target, Witness]]:
    """Start a target with the simulated model as its model."""
    profile = scenario.profile.at(scenario.profile.speed * scenario.speed)
    async with SimulatedClaude(profile) as simulated:
        url = simulated.base_url
        opened = open_target(target, model_url=url, log=log) if isinstance(target, str) else target
        try:
            if isinstance(opened, Startable):
                await opened.start(url)
            yield opened, simulated.turn
        finally:
            if isinstance(opened, Startable):
                await opened.stop()


@asynccontextmanager
async def in_process(
    scenario: Scenario,
    path: Path,
    trace: Trace,
    make_store: MakeStore | None,
    *,
    real: Claude | None = None,
    model_name: str = "",
    is_streamed: bool = False,
    tools: Sequence[str] = (),
) -> AsyncIterator[tuple[ScriptedTarget, Witness | None]]:
    """Open our own sessions below ``path`` with a model, and the simulated model's witness.

    Args:
        real: a real model instead of the simulated one, asked by ``model_name``.
        is_streamed: note when the first words of each answer come.
        tools: of which there are stand-ins too, besides those that the scenario itself names.
    """
    profile = scenario.profile.at(scenario.profile.speed * scenario.speed)
    script = scenario.script()
    async with AsyncExitStack() as stack:
        witness: Witness | None = None
        model: Model = InProcessClaude(profile)
        if real is not None:
            model = real
            await real.warm_up(len(script))
        elif scenario.is_http:
            simulated = await stack.enter_async_context(SimulatedClaude(profile))
            witness = simulated.turn
            at_once = min(1_000, max(1, len(script)))
            claude = Claude(simulated.base_url, concurrency=at_once)
            model = await stack.enter_async_context(claude)
            await claude.warm_up(at_once)
        book = stack.enter_context(closing(ScheduleBook(path / "schedules.sqlite3")))
        box, agents = toolbox(book), AGENTS
        keys = scenario.session_keys()
        if scenario.is_scripted or model_name or any(key.agent_id != AGENT for key in keys):
            scripts = scripts_of(script)
            names = tuple(dict.fromkeys((*tools, *tools_of(script))))
            add_stand_ins(box, names)
            agents = agents_for(keys, names, path / "agents", model=model_name)
            if scripts:
                model = ScriptedModel(scripts, model, scenario.speed)
        shelf = AgentShelf(agents, box)
        for agent_id in dict.fromkeys(key.agent_id for key in keys):
            shelf.current(agent_id)  # imports what makes schemas, before anything is measured
        store = (make_store or _store(scenario))(path / ".kode")
        manager = await stack.enter_async_context(
            SessionManager(store=store, agents=shelf, model=model, trace=trace)
        )
        refused = frozenset(a.turn_id for one in script for a in one.asks if a.is_refused)
        target = ScriptedTarget(
            manager, book, strategy=scenario.strategy, refused=refused, is_streamed=is_streamed
        )
        yield target, witness


@asynccontextmanager
async def served(scenario: Scenario, path: Path) -> AsyncIterator[ServerTarget]:
    """Open our sessions in a child process that appends its trace to the run's."""
    profile = scenario.profile.at(scenario.profile.speed * scenario.speed)
    (path / "profile.toml").write_text(_profile_toml(profile), encoding="utf-8")
    words = ["--in-process", "--durability", scenario.durability, "--layout", scenario.layout]
    words += ["--profile", str(path / "profile.toml"), "--trace", str(path / "trace.jsonl")]
    log = path / "server.log"
    server = ServerTarget(words, path / ".kode", log, strategy=scenario.strategy)
    try:
        await server.start()
        yield server
    finally:
        await server.stop()


async def _ask_all(trial: _Trial, client: Client, *, is_killed: bool) -> None:
    """Ask a client's turns one after another."""
    loop = asyncio.get_running_loop()
    await asyncio.sleep(max(0.0, trial.began_s + client.start_s - loop.time()))
    if client.follows:
        await trial.is_over[client.follows].wait()
    lives = 0
    for ask in client.asks:
        await asyncio.sleep(ask.pause_s)
        if loop.time() - trial.began_s >= client.end_s:
            break
        trial.on_turn(ask, None)
        for attempt in range(1, ATTEMPTS_LIMIT + 1):
            process = f"{client.name}.{lives}" if lives else client.name
            outcome = await trial.client.turn(
                process,
                ask.key,
                ask.marker,
                ask.prompt,
                turn_id=ask.turn_id,
                timeout_s=ask.patience_s or trial.scenario.timeout_s,
            )
            trial.on_turn(ask, outcome)
            lives += outcome.type == "info"
            is_last = outcome.type == "ok" or outcome.is_final or attempt == ATTEMPTS_LIMIT
            trial.note(outcome.type, is_last=is_last or not is_killed)
            if is_last or not is_killed:
                break
            await asyncio.sleep(AGAIN_AFTER_S)
            await trial.is_up.wait()
    trial.is_over[client.name].set()


async def _kill(trial: _Trial, server: Killable, recorder: RunRecorder) -> None:
    """Kill the service whenever one more share of the turns has ended, and start it again."""
    scenario, history = trial.scenario, recorder.history
    for number in range(1, scenario.kills + 1):
        due = number * scenario.turns_total // (scenario.kills + 1)
        while trial.ended < due:
            trial.one_more.clear()
            await trial.one_more.wait()
        history.fault("kill", time.monotonic_ns(), f"kill -9, {number} of {scenario.kills}")
        trial.is_up.clear()
        await server.kill()
        await server.restart()
        trial.is_up.set()
        history.fault("restart", time.monotonic_ns())


async def _probe(trial: _Trial) -> None:
    """Ask every session once more, then read it, then read what the tools did."""
    keys, client = trial.scenario.session_keys(), trial.client
    async with asyncio.TaskGroup() as probes:
        for number, key in enumerate(keys):
            ask = trial.scenario.probe(key)
            probes.create_task(
                client.turn(
                    f"probe-{number}",
                    key,
                    ask.marker,
                    ask.prompt,
                    turn_id=ask.turn_id,
                    timeout_s=PROBE_LIMIT_S,
                )
            )
    for number, key in enumerate(keys):
        await client.read(f"reader-{number}", key)
    by_user = {key.user_id: key for key in reversed(keys)}
    for number, key in enumerate(by_user.values()):
        await client.effects(f"book-{number}", key)


def _store(scenario: Scenario) -> MakeStore:
    def make(root: Path) -> Store:
        return JsonStore(root, layout=scenario.layout, durability=scenario.durability)

    return make


def _profile_toml(profile: Profile) -> str:
    lines = [
        f"{name} = {getattr(profile, name)!r}"
        for name in ("ttft_s", "token_s", "jitter", "speed", "seed")
    ]
    for plan in profile.plans:
        lines += ["[[plans]]", f"name = {json.dumps(plan.name)}"]
        lines += [f"intent = {json.dumps(plan.intent)}", f"words = {json.dumps(list(plan.words))}"]
        lines += [f"calls_s = {list(plan.calls_s)}"]
    return "\n".join(lines) + "\n"
