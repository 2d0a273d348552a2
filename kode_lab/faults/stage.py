"""Where scenarios are played: a directory, an agent, tools, and one play after another.

It owns what is made once for many plays, so that a play costs little: the agent's configuration,
the tools with their schemas, the directory, in memory where there is such a file system.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from kode_lab.faults.play import Play
from kode_lab.faults.scenario import AGENT_ID, Played, Scenario
from kode_lab.faults.site import Parts
from kode_lab.faults.virtual_time import VirtualClock, in_virtual_time
from kode_lab.faults.world import World
from kode_lab.history.span import Span
from kode_lab.sessions import AgentShelf

__all__ = ["Stage"]

# Limits that are never reached: the clients leave first.
_AGENT = """model = "scribe"
system = "You note what you are told."
tools = ["note", "delegate"]
deadline_s = 80000.0
tool_timeout_s = 80000.0
queue_limit = 1000
"""


class Stage:
    """Plays one scenario as often as one likes, below a directory of its own.

    Args:
        parts: how the real parts are wrapped.

    Attributes:
        root: the directory.
    """

    def __init__(self, scenario: Scenario, parts: Parts) -> None:
        self.scenario = scenario
        self.parts = parts
        memory = Path("/dev/shm")  # noqa: S108 - a private directory is made in it
        place = memory if os.access(memory, os.W_OK) else None
        self.root = Path(tempfile.mkdtemp(prefix="kode-lab-faults-", dir=place))
        self._count = 0
        self._world = World(parts.tools)
        agents = self.root / "agents"
        agents.mkdir()
        path = agents / f"{AGENT_ID}.toml"
        path.write_text(_AGENT, encoding="utf-8")
        os.utime(path, (1, 1))  # an old file: a fresh one is read twice
        self._shelf = AgentShelf(agents, self._world.box)

    def play(self, source: int | Sequence[int], scenario: Scenario | None = None) -> Played:
        """Play the scenario, or another one, with the delays that ``source`` gives (``Delays``)."""
        scenario = scenario or self.scenario
        self._count += 1
        root = self.root / str(self._count)
        root.mkdir()
        seed = source if isinstance(source, int) else 0

        async def main(clock: VirtualClock) -> Played:
            self._world.begin(clock.delays, scenario.tool_ms)
            play = Play(scenario, self.parts, root, self._world, self._shelf, clock, seed)
            await play.run()
            trace = tuple(_at_virtual_times(span, clock) for span in play.trace)
            return Played(tuple(play.history), trace, clock.passes)

        try:
            return in_virtual_time(main, source)
        finally:
            shutil.rmtree(root, ignore_errors=True)

    def close(self) -> None:
        """Remove its directory."""
        shutil.rmtree(self.root, ignore_errors=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def _at_virtual_times(span: Span, clock: VirtualClock) -> Span:
    return span._replace(start_ns=clock.at_ns(span.start_ns), end_ns=clock.at_ns(span.end_ns))
