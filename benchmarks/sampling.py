"""How a sample is taken: CPU clocks, rounds in turns, medians, scratch directories, memory.

Every bench uses these few words, so that all figures mean the same. Nothing here knows what is
measured.
"""

from __future__ import annotations

import asyncio
import gc
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from kode_lab.errors import InvalidScenario

__all__ = ["child_cpu_s", "cpu_us", "interleaved", "on_loop", "resident_bytes", "scratch", "share"]

T = TypeVar("T")

# Where Linux keeps a file system in memory, and what the largest bench may need of it.
_MEMORY = Path("/dev/shm")  # noqa: S108 - a directory of our own is made in it
_ROOM_BYTES = 4_000_000_000


def on_loop(main: Coroutine[Any, Any, T]) -> T:
    """Run it on the kind of loop that the laboratory and the server use: uvloop where it exists."""
    try:
        import uvloop  # noqa: PLC0415 - absent on Windows
    except ImportError:
        return asyncio.run(main)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(main)


async def cpu_us(work: Callable[[], Awaitable[object]], times: int) -> float:
    """Return the CPU microseconds, of all threads and of the kernel for us, of each of ``times``.

    Rubbish of earlier work is collected before; collections that the work itself causes count.
    """
    gc.collect()
    start_s = time.process_time()
    await work()
    return (time.process_time() - start_s) * 1e6 / times


async def interleaved(
    sides: Mapping[str, Callable[[], Awaitable[float]]],
    rounds: int,
    *,
    of: Callable[[Sequence[float]], float] = statistics.median,
) -> dict[str, float]:
    """Return the median of each side's samples, taken in turns; every second round backwards.

    The first sample of each side warms up and does not count.

    Args:
        of: ``min`` where the figure is held against microseconds: who shares the machine makes code
            slower, by up to a half, and never faster.
    """
    samples: dict[str, list[float]] = {name: [] for name in sides}
    for side in sides.values():
        await side()
    for number in range(rounds):
        order = list(sides)[:: -1 if number % 2 else 1]
        for name in order:
            samples[name].append(await sides[name]())
    return {name: of(taken) for name, taken in samples.items()}


def child_cpu_s(*arguments: str) -> float:
    """Return the CPU seconds of a Python that runs with these arguments, its start included."""
    child = subprocess.Popen([sys.executable, *arguments])  # noqa: S603 - our own words
    _, status, usage = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        raise InvalidScenario(f"python {' '.join(arguments)} ended with {child.returncode}")
    return usage.ru_utime + usage.ru_stime


def resident_bytes() -> int:
    """Return the memory of this process that is in use now, after a collection (Linux)."""
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text("ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


@contextmanager
def scratch(*, in_memory: bool = False) -> Iterator[Path]:
    """Return a temporary directory: below ``TMPDIR``, or in memory if there is room."""
    above = _MEMORY if in_memory and _has_room(_MEMORY) else None
    path = Path(tempfile.mkdtemp(prefix="kode-lab-bench-", dir=above))
    try:
        yield path
    finally:
        # Hundreds of thousands of files: rm is five times as fast as shutil.
        rm = shutil.which("rm")
        if rm is None or subprocess.run([rm, "-rf", str(path)], check=False).returncode:  # noqa: S603
            shutil.rmtree(path, ignore_errors=True)


def _has_room(path: Path) -> bool:
    try:
        status = os.statvfs(path)
    except OSError:
        return False
    return status.f_bavail * status.f_frsize >= _ROOM_BYTES


def share(full: int, effort: float, *, least: int = 1) -> int:
    """Return that share of the full number of repetitions."""
    return max(least, round(full * effort))
