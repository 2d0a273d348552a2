"""What a server keeps for clients that leave their history with it: threads, earlier responses.

Bounded by count, the longest unused is dropped first; a client whose state is gone gets the error
that the API documents for it, and sends everything anew. It must never know a wire format.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Generic, TypeVar

__all__ = ["HELD_LIMIT", "HeldStates"]

State = TypeVar("State")

HELD_LIMIT = 50_000


class HeldStates(Generic[State]):
    """States by id, at most ``limit``, each for ``ttl_s`` seconds after it was used last."""

    def __init__(
        self,
        limit: int = HELD_LIMIT,
        ttl_s: float | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._limit = limit
        self._ttl_s = ttl_s
        self._clock = clock
        self._states: OrderedDict[str | bytes, tuple[State, float]] = OrderedDict()

    def get(self, state_id: str | bytes) -> State | None:
        """Return a state, or None when it is unknown or too old."""
        found = self._states.get(state_id)
        if found is None:
            return None
        now = self._clock()
        if self._ttl_s is not None and now - found[1] > self._ttl_s:
            del self._states[state_id]
            return None
        self._states.move_to_end(state_id)
        return found[0]

    def put(self, state_id: str | bytes, state: State) -> None:
        """Keep a state under its id."""
        self._states[state_id] = state, self._clock()
        self._states.move_to_end(state_id)
        if len(self._states) > self._limit:
            self._states.popitem(last=False)

    def drop(self, state_id: str | bytes) -> bool:
        """Forget a state; return whether it was there."""
        return self._states.pop(state_id, None) is not None

    def __len__(self) -> int:
        return len(self._states)
