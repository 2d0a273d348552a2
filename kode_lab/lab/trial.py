"""A scenario done once: its clients ask, write down what they saw, probe, and the judge decides.

It owns the clients' side of a run: who writes what to the history and when. A client writes its
invoke before it sends and its completion after the answer; what was definitely refused is ``fail``,
what nobody knows is ``info`` and retires the client's name. Where the service can be killed, a
client sends a turn again, under the same id, until it is answered.

A run ends by its probe: faults are declared over, each session is asked once more, then read by an
authority. Only there do lost turns and locks that were never given back show.
"""

from __future__ import annotations

import asyncio
import time
from contextlib import AbstractAsyncContextManager, suppress
from dataclasses import dataclass, field

from kode_lab.check import Verdict, check
from kode_lab.check.render import headline
from kode_lab.errors import CallerError, KodeLabError, Refused, Superseded
from kode_lab.history.operation import HistoryWriter
from kode_lab.key import SessionKey
from kode_lab.lab.exports import export
from kode_lab.lab.live import Progress, Row
from kode_lab.lab.run import Run, RunRecorder
from kode_lab.lab.scenario import Ask, Client, Scenario
from kode_lab.lab.service import Child, MakeStore, Service, in_process, served

__all__ = ["conduct"]

# Sendings of one turn, where the service dies and comes back.
ATTEMPTS_LIMIT = 50
AGAIN_AFTER_S = 0.02
PROBE_LIMIT_S = 60.0


async def conduct(
    scenario: Scenario, recorder: RunRecorder, progress: Progress, make_store: MakeStore | None
) -> Run:
    """Do it, judge it, and leave a whole record behind however it ends."""
    status = "crashed"
    progress.status = "running"
    row = progress.rows[0]
    row.began_ns = time.monotonic_ns()
    try:
        await _done(scenario, recorder, row, make_store)
        status = "complete"
    except asyncio.CancelledError:
        status = "interrupted"
        raise
    finally:
        row.ended_ns = time.monotonic_ns()
        run = _judged(recorder, status)
        progress.status = status
    return run


def _judged(recorder: RunRecorder, status: str) -> Run:
    """Judge what was recorded, and close the record, whatever happens to its judge."""
    run = recorder.close()
    verdict: Verdict | None = None
    try:
        verdict = check(run.operations(), run.spans() or None)
        recorder.write_json("verdict.json", verdict.to_json())
        export(run)
    finally:
        said = {} if verdict is None else {"finding": headline(verdict)}
        word = "unknown" if verdict is None else verdict.status
        run = recorder.finish(status, verdict=word, **said)
    return run


@dataclass(slots=True)
class _Trial:
    """What the clients of one run share."""

    scenario: Scenario
    service: Service
    history: HistoryWriter
    row: Row
    began_s: float
    acknowledged: int = 0
    ended: int = 0
    one_more: asyncio.Event = field(default_factory=asyncio.Event)

    def note(self, outcome: str, *, is_last: bool) -> None:
        """Count a turn that was answered, or given up."""
        self.acknowledged += outcome == "ok"
        self.ended += is_last
        total = self.scenario.turns_total
        self.row.part = self.ended / total
        self.row.doing = f"{self.ended:,} of {total:,} turns ended, {self.acknowledged:,} ok"
        self.one_more.set()


async def _done(
    scenario: Scenario, recorder: RunRecorder, row: Row, make_store: MakeStore | None
) -> None:
    opened: AbstractAsyncContextManager[Service]
    if scenario.kills:
        opened = served(scenario, recorder.path)
    else:
        opened = in_process(scenario, recorder.path, recorder.trace, make_store)
    loop = asyncio.get_running_loop()
    async with opened as service:
        history = recorder.history
        trial = _Trial(scenario, service, history, row, loop.time())
        async with asyncio.TaskGroup() as clients:
            if isinstance(service, Child):
                clients.create_task(_kill(trial, service))
            for client in scenario.script():
                clients.create_task(_ask_all(trial, client))
        history.fault("quiet", time.monotonic_ns())
        await _probe(trial)


async def _ask_all(trial: _Trial, client: Client) -> None:
    """Ask a client's turns one after another."""
    loop = asyncio.get_running_loop()
    await asyncio.sleep(max(0.0, trial.began_s + client.start_s - loop.time()))
    lives = 0
    for ask in client.asks:
        await asyncio.sleep(ask.pause_s)
        for attempt in range(1, ATTEMPTS_LIMIT + 1):
            process = f"{client.name}.{lives}" if lives else client.name
            outcome, is_closed = await _turn(trial, process, ask, trial.scenario.timeout_s)
            lives += outcome == "info"
            child = trial.service if isinstance(trial.service, Child) else None
            is_last = outcome == "ok" or is_closed or attempt == ATTEMPTS_LIMIT
            trial.note(outcome, is_last=is_last or child is None)
            if is_last or child is None:
                break
            await asyncio.sleep(AGAIN_AFTER_S)
            await child.is_up.wait()


async def _turn(trial: _Trial, process: str, ask: Ask, timeout_s: float) -> tuple[str, bool]:
    """Ask one turn once, and write down what its client can know of it.

    Gives the outcome, and whether the turn is closed, so that asking again is useless.
    """
    outcome, error, answer, is_closed = "info", "", None, False
    history = trial.history
    history.invoke(ask.key, process, time.monotonic_ns(), marker=ask.marker, turn_id=ask.turn_id)
    try:
        async with asyncio.timeout(timeout_s):
            answer = await trial.service.turn(ask, trial.scenario.strategy)
        outcome = "ok"
    except (Refused, CallerError) as refused:
        outcome, error = "fail", f"{type(refused).__name__}: {refused}"
    except KodeLabError as failure:
        is_closed = isinstance(failure, Superseded)
        error = f"{type(failure).__name__}: {failure}"
    except TimeoutError:
        error = f"no answer within timeout_s={timeout_s:g}"
    except asyncio.CancelledError:
        error = "interrupted"
        raise
    except Exception as failure:  # noqa: BLE001 - what a broken service does is the judge's to tell
        error = f"{type(failure).__name__}: {failure}"
    finally:
        told = answer._asdict() if answer is not None else {}
        history.complete(process, time.monotonic_ns(), outcome, error=error, **told)
    return outcome, is_closed


async def _kill(trial: _Trial, child: Child) -> None:
    """Kill the service whenever one more share of the turns has ended, and start it again."""
    scenario, history = trial.scenario, trial.history
    for number in range(1, scenario.kills + 1):
        due = number * scenario.turns_total // (scenario.kills + 1)
        while trial.ended < due:
            trial.one_more.clear()
            await trial.one_more.wait()
        history.fault("kill", time.monotonic_ns(), f"kill -9, {number} of {scenario.kills}")
        await child.kill()
        await child.start()
        history.fault("restart", time.monotonic_ns())


async def _probe(trial: _Trial) -> None:
    """Ask every session once more, then read it, then read what the tools did."""
    keys = trial.scenario.session_keys()
    async with asyncio.TaskGroup() as probes:
        for number, key in enumerate(keys):
            probes.create_task(
                _turn(trial, f"probe-{number}", trial.scenario.probe(key), PROBE_LIMIT_S)
            )
    for number, key in enumerate(keys):
        with suppress(Exception):  # a session that cannot be read stays unread, and is told so
            await _read(trial, f"reader-{number}", key)
    for number, user_id in enumerate(dict.fromkeys(key.user_id for key in keys)):
        key = next(key for key in keys if key.user_id == user_id)
        process = f"book-{number}"
        trial.history.invoke(key, process, time.monotonic_ns(), f="effects")
        effects = await trial.service.effects(user_id)
        trial.history.complete(process, time.monotonic_ns(), "ok", effects=effects)


async def _read(trial: _Trial, process: str, key: SessionKey) -> None:
    trial.history.invoke(key, process, time.monotonic_ns(), f="read")
    try:
        markers = await trial.service.markers(key)
    except BaseException as error:
        name = type(error).__name__
        trial.history.complete(process, time.monotonic_ns(), "info", error=f"{name}: {error}")
        raise
    trial.history.complete(process, time.monotonic_ns(), "ok", markers=markers)
