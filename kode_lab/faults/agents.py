"""A broken shelf: the configuration that all sessions share, changed by one of them."""

from __future__ import annotations

import asyncio
import dataclasses

from kode_lab.faults.site import Site
from kode_lab.sessions import AgentConfig, AgentShelf

__all__ = ["Mutated"]

_EVERY_S = 0.02


class Mutated:
    """Adds a sentence to the shared system prompt of all sessions now and then."""

    def __init__(self, inner: AgentShelf, _site: Site) -> None:
        self._inner = inner
        self._began_s = asyncio.get_running_loop().time()

    def current(self, agent_id: str) -> AgentConfig:
        """Return what the configuration has become."""
        config = self._inner.current(agent_id)
        # Not by how often it is asked for, which real time decides.
        said = int((asyncio.get_running_loop().time() - self._began_s) / _EVERY_S)
        system = config.system + " Be brief." * said
        version = f"{config.version}+{said}" if said else config.version
        kept = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
        del kept["tool_specs"]  # made from the tools
        return AgentConfig(**kept | {"system": system, "version": version})
