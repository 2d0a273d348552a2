"""Bench of the door: what ``import kode_lab`` costs before anything is used.

A Python of its own each time, user and system time of the whole process, so that the interpreter's
start is counted too and nothing is warm but the disk.
"""

from __future__ import annotations

import asyncio

from benchmarks.bench import Row, row
from benchmarks.sampling import child_cpu_s, interleaved, share

__all__ = ["imports"]

_SIDES = {
    "bare": "pass",
    "door": "import kode_lab",
    "sessions": "from kode_lab import SessionManager, JsonStore, AgentShelf, Toolbox",
    "cli": "import kode_lab.cli",
}


def imports(effort: float) -> list[Row]:
    """Return the CPU seconds of the door, and of what a service and a command line load."""

    async def child(code: str) -> float:
        return child_cpu_s("-c", code)

    async def main() -> dict[str, float]:
        sides = {name: lambda code=code: child(code) for name, code in _SIDES.items()}
        return await interleaved(sides, share(11, effort, least=1))

    spent_s = asyncio.run(main())
    bare_s = spent_s["bare"]
    return [
        row(
            "import: kode_lab, against a bare interpreter",
            spent_s["door"],
            "CPU-s",
            baseline=bare_s,
            bar="value <= 0.25",
        ),
        row("import: all that a session manager needs", spent_s["sessions"], "CPU-s"),
        row("import: the command line", spent_s["cli"], "CPU-s"),
    ]
