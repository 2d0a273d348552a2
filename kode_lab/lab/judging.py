"""A target judged: the simulated model, the battery, the verdict, and the record of all that.

It owns the order of these and what a run of them leaves on the disk. Who asks what is the
battery's, what it means is the judge's.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import NamedTuple

from kode_lab.check import Verdict, check, check_path
from kode_lab.check.render import headline
from kode_lab.claude import Profile, SimulatedClaude
from kode_lab.lab.battery import LOADS, Battery, Settings
from kode_lab.lab.live import Progress, Row
from kode_lab.lab.records import Run, RunRecorder
from kode_lab.targets.http_target import HttpTarget
from kode_lab.targets.lines import asking_process
from kode_lab.targets.opening import open_target
from kode_lab.targets.target import Declaration, Startable

__all__ = ["Judged", "judge_target", "rows"]

# Slow enough for turns to meet, fast enough for a battery of some hundred of them.
MODEL = Profile(ttft_s=0.05, jitter=0.5)


class Judged(NamedTuple):
    """What came of a battery.

    Attributes:
        verdict: on what the target promises.
        not_done: for each load that was left out or broken off, why.
        first_error: of the first turn that was not acknowledged, or "".
        lost: how the service ended, each time that it did so by itself.
        model_requests: how many requests the simulated model had.
        remarks: what else a reader should know: a window that showed, and anomalies of guarantees
            that it does not promise.
    """

    run: Run
    declaration: Declaration
    verdict: Verdict
    not_done: dict[str, str]
    first_error: str
    lost: tuple[str, ...]
    model_requests: int
    took_s: float
    remarks: tuple[str, ...] = ()


def rows() -> list[Row]:
    """Return a row of the progress for each load."""
    return [Row("", name, "", doing="waiting") for name in LOADS]


async def judge_target(
    spec: str,
    *,
    settings: Settings = Settings(),  # noqa: B008 - a frozen value
    results: Path = Path("results"),
    progress: Progress | None = None,
    command: str = "",
    profile: Profile = MODEL,
    model_port: int = 0,
) -> Judged:
    """Do the standard battery to the target that ``spec`` names, and judge it.

    Raises:
        KodeLabError: there is no such target, or its service does not start.
    """
    began_s = time.monotonic()
    progress = progress or Progress("", rows())
    async with AsyncExitStack() as stack:
        model = await stack.enter_async_context(SimulatedClaude(profile, model_port))
        target = open_target(spec, model_url=model.base_url)
        name = "".join(c if c.isalnum() else "-" for c in target.declaration.name)[:40]
        recorder = RunRecorder(
            results,
            f"judge-{name or 'target'}",
            parameters={"target": target.declaration.name, **settings._asdict()},
            seed=settings.seed,
            command=command or f"kode-lab judge {spec}",
        )
        target = open_target(spec, model_url=model.base_url, log=recorder.path / "target.log")
        progress.where, progress.status = str(recorder.path), "starting"
        status = "crashed"
        try:
            if isinstance(target, Startable):
                stack.push_async_callback(target.stop)
                await target.start(model.base_url)
            progress.status = "running"
            second = None
            if isinstance(target, HttpTarget) and "processes" in (settings.loads or ("processes",)):
                second = asking_process(spec, target)
                stack.push_async_callback(second.stop)
                await second.start()
            battery = Battery(
                target,
                recorder.history,
                witness=model.turn,
                settings=settings,
                second=second,
                rows=progress.rows,
            )
            await battery.run()
            status = "complete"
        except asyncio.CancelledError:
            status = "interrupted"
            raise
        finally:
            declaration = target.declaration
            run, verdict, beyond = _judged(recorder, status, declaration.promises)
            progress.status = status
        requests = model.statistics().requests
    not_done, lost = battery.not_done, tuple(battery.lost)
    took_s = time.monotonic() - began_s
    remarks = [beyond] if beyond else []
    if battery.window and not (declaration.window or declaration.compacts):
        remarks.append(
            f"the model is shown only the latest turns (at most {battery.window}), which was taken "
            f"for a declared window: window = {battery.window} or compacts = true in [declares]"
        )
    recorder.write_json(
        "target.json",
        {
            "declaration": declaration._asdict(),
            "not_done": not_done,
            "lost": lost,
            "first_error": battery.first_error,
            "model_requests": requests,
            "took_s": took_s,
            "remarks": remarks,
        },
    )
    first = battery.first_error
    return Judged(
        run, declaration, verdict, not_done, first, lost, requests, took_s, tuple(remarks)
    )


def _judged(
    recorder: RunRecorder, status: str, promises: Sequence[str]
) -> tuple[Run, Verdict, str]:
    run = recorder.close()
    verdict = check_path(run.path, promises, keep=True)
    counts = check(run.operations()).counts
    beyond = ", ".join(f"{n} {name}" for name, n in counts.items() if not verdict.counts.get(name))
    beyond = beyond and f"seen, though it promises nothing about it: {beyond}"
    recorder.write_json("verdict.json", verdict.to_json())
    run = recorder.finish(
        status, verdict=verdict.status, finding=headline(verdict), promises=list(promises)
    )
    return run, verdict, beyond
