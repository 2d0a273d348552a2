"""A contract: a sentence, and how to find out whether a store keeps it.

It owns what came of trying, as data, and the prose that is made of it.
"""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable
from typing import Any, Literal, NamedTuple

from kode_lab.testing.conformance.scene import Broken, Claims, MakeStore, Scene, Skipped

__all__ = ["Contract", "Outcome", "Report"]

_SIGNS = {"kept": "kept    ", "broken": "BROKEN  ", "skipped": "skipped "}


class Outcome(NamedTuple):
    """What came of one contract.

    Attributes:
        status: ``kept``, ``broken``, or ``skipped`` where the store says that it does not apply.
        why: how it was broken, or why it was skipped; empty when it was kept.
    """

    sentence: str
    status: Literal["kept", "broken", "skipped"]
    why: str = ""


class Contract(NamedTuple):
    """One promise.

    Attributes:
        sentence: the promise, true of a store that keeps it.
    """

    sentence: str
    trial: Callable[[Scene], Awaitable[None]]

    async def check(self, make_store: MakeStore, claims: Claims | None = None) -> Outcome:
        """Try it on the store. What the store raises where it should not is a breach too."""
        scene = Scene(make_store, claims or Claims(), f"conformance-{os.urandom(6).hex()}")
        try:
            await self.trial(scene)
        except Skipped as skipped:
            return Outcome(self.sentence, "skipped", str(skipped))
        except Broken as broken:
            return Outcome(self.sentence, "broken", str(broken))
        except Exception as error:  # noqa: BLE001 - whatever a stranger's store raises is told
            return Outcome(self.sentence, "broken", f"it raised {type(error).__name__}: {error}")
        finally:
            await scene.aclose()
        return Outcome(self.sentence, "kept")


class Report(NamedTuple):
    """What came of all contracts; as text, a line each."""

    outcomes: tuple[Outcome, ...]

    @property
    def is_conformant(self) -> bool:
        """Whether no contract was broken, and at least one was tried."""
        tried = [outcome.status for outcome in self.outcomes if outcome.status != "skipped"]
        return bool(tried) and "broken" not in tried

    def to_json(self) -> list[dict[str, Any]]:
        """Return the outcomes as JSON objects."""
        return [outcome._asdict() for outcome in self.outcomes]

    def __str__(self) -> str:
        lines = []
        for outcome in self.outcomes:
            lines.append(f"{_SIGNS[outcome.status]} {outcome.sentence}")
            if outcome.why:
                lines.append(f"          {outcome.why}")
        counts = [
            f"{sum(outcome.status == status for outcome in self.outcomes)} {status}"
            for status in _SIGNS
        ]
        return "\n".join([*lines, ", ".join(counts)])
