"""A Locust load test run from Python: ``kode-lab load`` as a child process, and its run.

It owns the words of that command and how its output becomes progress. It must never import Locust,
which patches the sockets of the whole process: that is why there is a process of its own.
"""

from __future__ import annotations

import asyncio
import re
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kode_lab.check.render import headline
from kode_lab.child import PYTHON_MODULE, Child
from kode_lab.errors import InvalidScenario
from kode_lab.lab.live import Progress
from kode_lab.lab.records import Run

__all__ = ["load_words", "run_load_process"]

_POLL_S = 0.1
_RUN = re.compile(r"run (\S+)$", re.MULTILINE)
_REFUSED = re.compile(r"^kode-lab: InvalidScenario: (.+)$", re.MULTILINE)


def load_words(
    name: str,
    seconds: float,
    users: int | None,
    fault: str,
    target: str,
    options: Mapping[str, Any],
) -> list[str]:
    """Return the command's words after ``kode-lab``."""
    words = ["load", name, "--for", f"{seconds:g}s"]
    named = {"users": users, "fault": fault or None, "target": target or None, **options}
    for option, value in named.items():
        if value is None or value is False:
            continue
        words.append(f"--{option.replace('_', '-')}")
        words += [] if value is True else [str(value)]
    return words


async def run_load_process(words: list[str], results: Path, progress: Progress) -> Run:
    """Run the command to its end, and return the run that it left.

    Raises:
        InvalidScenario: it left none; says why.
    """
    (row,) = progress.rows
    progress.status, row.began_ns, row.doing = "running", time.monotonic_ns(), "starting"
    with tempfile.TemporaryDirectory() as directory:
        log = Path(directory) / "load.log"
        child = Child((PYTHON_MODULE, "kode_lab", *words, "--results", str(results)), log=log)
        try:
            while child.is_running:
                if progress.where == str(results) and (found := _RUN.search(_text(log))):
                    progress.where = found[1]
                took_s = row.elapsed_s(time.monotonic_ns())
                row.doing = "under load" if took_s < row.expected_s else "probing and judging"
                await asyncio.sleep(_POLL_S)
        except asyncio.CancelledError:
            row.is_broken, progress.status = True, "interrupted"
            # Asked to end, the command still judges what there is.
            await child.stopped()
            raise
        finally:
            row.ended_ns = time.monotonic_ns()
            child.kill()
        said = _text(log)
    found = _RUN.search(said)
    if found is None:
        refused = _REFUSED.search(said)
        raise InvalidScenario(
            refused[1] if refused else f"the load test did not run: {said[-300:]}"
        )
    run = Run.load(found[1])
    progress.status, progress.where = run.status, str(run.path)
    row.doing = headline(await asyncio.to_thread(run.verdict)).partition(":")[0]
    return run


def _text(log: Path) -> str:
    return log.read_text("utf-8", "replace") if log.exists() else ""
