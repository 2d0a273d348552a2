"""Run a coroutine inside the running loop, for blocking callers: the one use of nest-asyncio.

It owns that patch and nothing else. Nothing in kode_lab calls it, and a notebook needs it for
nothing: write ``await`` in the cell, or ask a handle for its ``result()``.

It exists for code one cannot change, such as a blocking callback of somebody else's library that is
called from inside a loop and has to come back with an answer. Why not to use it otherwise:

- it replaces asyncio's C tasks by Python ones for the whole process, from then on: task switches
  and task creation become 1.6 to 1.8 times dearer, everywhere;
- where only ``nest-asyncio`` is installed, a nested run during *Run All* (ipykernel 7) silently
  drops the cells that are waiting; ``nest_asyncio2``, which ipykernel 7.4 brings, drops none;
- it cannot patch uvloop.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

__all__ = ["run_nested"]

T = TypeVar("T")


def run_nested(work: Coroutine[Any, Any, T]) -> T:
    """Return the result of ``work``, run to its end inside the loop that is already running.

    Raises:
        RuntimeError: no loop is running here (``asyncio.run`` is what you want).
        ValueError: the running loop is not asyncio's own (uvloop cannot be nested).
    """
    try:  # the maintained successor, which newer kernels bring; importing is harmless
        import nest_asyncio2 as nest_asyncio  # noqa: PLC0415
    except ImportError:
        import nest_asyncio  # noqa: PLC0415

    try:
        loop = asyncio.get_running_loop()
    except RuntimeError:
        work.close()
        raise RuntimeError("no event loop is running here: use asyncio.run(work)") from None
    try:
        nest_asyncio.apply(loop)
    except ValueError:
        work.close()
        raise
    return loop.run_until_complete(work)
