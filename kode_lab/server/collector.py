"""When Python looks for garbage: while nobody is waiting for a turn.

Turns and connections leave no cycles, however they end (tests hold that), so there is nothing to
find; but each time Python looks, it looks at all that came since, and everybody waits: a quarter of
a second with 5,000 turns in flight, two thirds of one when as many conversations have grown by five
turns. So whatever lives is told off once a second as there to stay, which costs nothing, and looked
at again after a minute without turns.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

__all__ = ["settle", "settled"]

# Python comes by itself only if so many new objects live within a second.
_THRESHOLDS = (1_000_000, 50, 50)
_LOOK_S = 1.0
_IDLE_LOOKS = 60
# Fewer new objects than this are not worth telling off.
_FEW = 10_000


def settle() -> None:
    """Look for garbage now, and call all that is left there to stay."""
    gc.unfreeze()
    gc.collect()
    gc.freeze()
    gc.set_threshold(*_THRESHOLDS)


@asynccontextmanager
async def settled(
    in_flight: Callable[[], int], *, look_s: float = _LOOK_S, idle_looks: int = _IDLE_LOOKS
) -> AsyncIterator[None]:
    """Keep the collector away from turns while the context is open.

    Args:
        in_flight: says how many turns somebody is waiting for.
        look_s: how often it looks whether there are any.
        idle_looks: after so many looks at none in a row it looks for garbage.
    """
    before = gc.get_threshold()
    settle()
    keeping = asyncio.create_task(_keep_settled(in_flight, look_s, idle_looks))
    try:
        yield
    finally:
        keeping.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await keeping
        gc.set_threshold(*before)  # what was called there to stay is not looked at on the way out


async def _keep_settled(in_flight: Callable[[], int], look_s: float, idle_looks: int) -> None:
    was_frozen, idle_for = False, 0
    while True:
        await asyncio.sleep(look_s)
        idle_for = 0 if in_flight() else idle_for + 1
        if gc.get_count()[0] > _FEW:
            gc.freeze()
            was_frozen = True
        if was_frozen and idle_for >= idle_looks:
            settle()
            was_frozen = False
